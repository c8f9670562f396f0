"""What is left of a run for a person and for a program."""

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import re
import resource
import shutil
import struct
import sys
import termios

import numpy as np
import pytest
import tiny
from matplotlib.figure import Figure
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from experiments.harness import cli, training
from experiments.harness.problem import Best, Learner, Problem, View
from experiments.harness.run import RunFlags
from jaxdl import writers
from jaxdl.writers import Progress, Writer, read_rows


def events(workdir):
    """The TensorBoard events of a run, read as the format is specified."""
    for path in sorted((workdir / "tensorboard").glob("events*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            length = int.from_bytes(data[place : place + 8], "little")
            event, checksum = data[place + 12 : place + 12 + length], data[place + 12 + length :]
            assert checksum[:4] == struct.pack("<I", masked_crc32c(event))
            yield Event.FromString(event)
            place += 16 + length


def tags(workdir):
    found = {}
    for event in events(workdir):
        for value in event.summary.value:
            kind = value.WhichOneof("value") or value.metadata.plugin_data.plugin_name
            found[value.tag] = kind
    return found


def test_everything_lands_in_tensorboard(tmp_path):
    with Writer(tmp_path) as writer:
        writer.scalars(1, {"train/loss": 2.0, "images_per_second": 7.0})
        writer.histograms(1, "weights", {"conv1": {"kernel": np.ones((3, 3))}})
        writer.images(0, "inputs", np.random.default_rng(0).uniform(size=(6, 8, 8, 1)))
        writer.text("model", "a table\nof layers")
        writer.hparams({"seed": 1, "model": "x", "mean": (0.5,)}, {"test/accuracy": 0.9})
    found = tags(tmp_path)
    assert found["train/loss"] == "simple_value"
    assert found["weights/conv1/kernel"] == "histo"
    assert found["inputs"] == "image"
    assert found["model/text_summary"] == "tensor"
    assert found["_hparams_/session_start_info"] == "hparams"
    assert not [p for p in (tmp_path / "tensorboard").iterdir() if p.is_dir()]  # no run below it


def test_rows_are_json_and_nan_is_null(tmp_path):
    with Writer(tmp_path) as writer:
        writer.scalars(1, {"train/a": 0.5, "train/b": math.nan})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 1, "train/a": 0.5, "train/b": None}


def test_several_rows_at_once_are_as_one_by_one(tmp_path):
    rows = [(step, {"train/loss": 1 / step, "train/b": math.inf}) for step in (1, 2, 3)]
    for folder in ("singly", "at_once"):
        with Writer(tmp_path / folder) as writer:
            writer.scalars(0, {"train/loss": 9.0})
            if folder == "singly":
                for row in rows:
                    writer.scalars(*row)
            else:
                writer.series(rows)
            writer.series([])
    texts = [(tmp_path / f / "metrics.jsonl").read_text() for f in ("singly", "at_once")]
    assert texts[0] == texts[1]
    assert texts[0].count("\n") == 4
    assert steps_of(tmp_path / "singly") == steps_of(tmp_path / "at_once") == [0, 1, 2, 3]


def test_going_on_drops_later_rows(tmp_path):
    with Writer(tmp_path) as writer:
        for step in range(1, 6):
            writer.scalars(step, {"train/loss": float(step)})
    with Writer(tmp_path, step=3) as writer:
        writer.scalars(4, {"train/loss": 40.0})
    assert [r["train/loss"] for r in read_rows(tmp_path)] == [1.0, 2.0, 3.0, 40.0]
    told = [(e.step, e.session_log.status) for e in events(tmp_path) if e.HasField("session_log")]
    assert told == [(4, 1)]  # TensorBoard is told too: a life started there


def test_curves_are_drawn(tmp_path):
    with Writer(tmp_path) as writer:
        for step in range(1, 6):
            writer.scalars(step, {"train/loss": 1 / step, "eval/loss": 2 / step, "eval/top5": 0.5})
    from PIL import Image

    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (900, 350)  # loss and top5
        assert len(picture.convert("RGB").getcolors(100000) or []) > 10


def test_no_folder_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Writer(None) as writer:
        writer.scalars(1, {"a": 1.0})
        writer.histograms(1, "weights", {"a": np.ones(3)})
        writer.images(1, "inputs", np.ones((1, 2, 2, 1)))
        writer.text("model", "x")
        writer.hparams({}, {})
    assert not list(tmp_path.iterdir())


def test_plain_lines_where_there_is_no_terminal(capsys):
    with Progress(10, 2) as progress:
        progress.step()
        progress.train(3, {"train/loss": 0.123456, "images_per_second": 1234.5}, 65)
        progress.say("a line")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["step 3/10  loss 0.1235  images_per_second 1234  01:05 left", "a line"]
    with Progress(10, quiet=True) as progress:
        progress.train(3, {"train/loss": 1.0}, 65)
        progress.say("a line")
    assert capsys.readouterr() == ("", "")


METRICS = {f"train/{name}": 0.123456 for name in ("loss", "accuracy", "gradient_norm", "rate")}


def read_to_end(terminal):
    """All that was written to a terminal whose other side is closed: the kernel hands it on in
    pieces, and says at the end that there is no other side.
    """
    pieces = []
    with open(terminal, "rb", buffering=0) as file, contextlib.suppress(OSError):
        while piece := file.read(4096):
            pieces.append(piece)
    return b"".join(pieces).decode()


def test_bar_on_a_terminal_of_80_columns(capsys, monkeypatch):
    """It always has room for the percentage, the steps, the time left and the speed."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with open(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        with Progress(100_000, 99_990) as progress:
            for step in range(99_991, 100_001):
                progress.step()
                if step % 5 == 0:
                    progress.train(step, METRICS, 3)
            progress.say("evaluated")
    shown = read_to_end(ours)
    bars = [bar for bar in re.split("[\\r\\n]+", shown) if bar.strip()]
    assert len(bars) > 3
    for bar in bars:
        assert len(bar) <= 80
        assert re.search(r"100%\|.* \d+/100000 \[.*<.*, .*step/s\]", bar), bar
    # Every report stays above it.
    values = "loss 0.1235  accuracy 0.1235  gradient_norm 0.1235  rate 0.1235"
    lines = [f"step {step}/100000  {values}" for step in (99_995, 100_000)]
    assert capsys.readouterr().out.splitlines() == [*lines, "evaluated"]


@pytest.mark.parametrize("error", [BrokenPipeError, OSError])
def test_nobody_reading_ends_no_run(error, monkeypatch):
    def write(text):
        raise error

    monkeypatch.setattr(sys.stdout, "write", write)
    with Progress(10) as progress:
        progress.train(3, METRICS, 65)
        progress.say("a line")


@pytest.mark.parametrize(("value", "text"), [(0.98611111, "0.9861"), (1234.5678, "1235")])
def test_describe(value, text):
    assert writers.describe({"eval/accuracy": value}) == f"accuracy {text}"


@contextlib.contextmanager
def full_disk(room):
    """Within it no file grows beyond so many bytes; EFBIG stands for ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_all(writer, step):
    writer.scalars(step, {"train/loss": float(step), "eval/loss": 2.0})
    writer.histograms(step, "weights", {"a": np.ones(3)})
    writer.images(step, "inputs", np.ones((1, 8, 8, 3)))
    writer.text(f"said at {step}", "x", step)
    writer.hparams({"seed": 1}, {"test/accuracy": 0.9})


def steps_of(workdir):
    """The steps whose scalars TensorBoard has."""
    return [e.step for e in events(workdir) for v in e.summary.value if v.tag == "train/loss"]


ODD = {
    "infinite": (
        lambda w: w.histograms(7, "g", {"a": np.full(3, np.inf)}),
        "g/a at step 7: 3 of 3",
    ),
    "nan": (lambda w: w.histograms(7, "g", {"a": np.array([np.nan, 1])}), "g/a at step 7: 1 of 2"),
    "huge": (lambda w: w.histograms(7, "g", {"a": np.full(3, 1e25)}), ""),
    "greatest": (lambda w: w.histograms(7, "g", {"a": np.full(3, 3e38, np.float32)}), ""),
    "one number": (lambda w: w.histograms(7, "g", {"a": np.float16(1)}), ""),
    "no array": (lambda w: w.histograms(7, "g", {"a": "text"}), "histograms of g not written"),
    "no values": (lambda w: w.histograms(7, "g", {"a": np.zeros((0, 3))}), ""),
    "no tree": (lambda w: w.histograms(7, "g", {}), ""),
    "nan pixels": (lambda w: w.images(7, "i", np.full((1, 2, 2, 3), np.nan)), ""),
    "no images": (lambda w: w.images(7, "i", np.ones((0, 2, 2, 3))), "images not written"),
    "flat": (lambda w: w.images(7, "i", np.ones(3)), "images not written"),
    "infinite metric": (lambda w: w.scalars(7, {"train/b": math.inf}), ""),
    "metric of numpy": (lambda w: w.scalars(7, {"train/b": np.float32(1)}), ""),
    "no metric": (lambda w: w.scalars(7, {"train/b": "x"}), "a row of metrics not written"),
    "surrogate": (lambda w: w.text("t", "\ud800", 7), "texts not written"),
    "odd flags": (lambda w: w.hparams({"a": object(), "b": math.nan}, {"c": math.nan}), ""),
}


@pytest.mark.parametrize("case", ODD)
def test_no_value_ends_a_run(case, tmp_path, capsys, caplog, monkeypatch):
    """What cannot be drawn is left out and told once; all else is there."""
    call, told = ODD[case]
    if "metric" not in case:  # which curves show
        monkeypatch.setattr(Writer, "curves", lambda self: None)
    with Writer(tmp_path) as writer:
        write_all(writer, 1)
        call(writer)
        call(writer)
        write_all(writer, 8)
    assert {row["step"] for row in read_rows(tmp_path)} | {7} == {1, 7, 8}
    assert steps_of(tmp_path) == [1, 8]
    err = capsys.readouterr().err.splitlines()
    assert not caplog.records
    if told:
        (line,) = err
        assert line.startswith("warning: ")
        assert told in line
    else:
        assert not err


def test_finite_values_of_a_histogram_are_drawn(tmp_path):
    with Writer(tmp_path) as writer:
        writer.histograms(1, "g", {"a": np.array([np.inf, -1.0, 2.0, 2.0]), "b": np.ones(5)})
        writer.histograms(2, "g", {"a": np.full(2, np.nan), "b": np.full(5, 1e25)})
        writer.histograms(3, "g", {"c": np.zeros(4), "d": np.array([-3e-9, -2e-9])})
    rounded = lambda value: float(f"{value:.3g}")
    found = {
        (e.step, v.tag): (
            v.histo.num,
            *map(rounded, (v.histo.min, v.histo.max)),
            sum(v.histo.bucket),
        )
        for e in events(tmp_path)
        for v in e.summary.value
    }
    assert found == {
        (1, "g/a"): (3, -1, 2, 3),
        (1, "g/b"): (5, 1, 1, 5),
        (2, "g/b"): (5, 1e25, 1e25, 5),
        (3, "g/c"): (4, 0, 0, 4),
        (3, "g/d"): (2, -3e-9, -2e-9, 2),
    }


@pytest.mark.parametrize("room", [0, 500, 1200])
def test_a_full_disk_ends_no_run(room, tmp_path, capsys):
    """Rows come later, events are whole, and each kind is told once."""
    with full_disk(room), Writer(tmp_path) as writer:
        for step in range(1, 30):
            write_all(writer, step)
    rows = read_rows(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 1 + len(rows)))
    assert len(rows) < 29
    with Writer(tmp_path, step=len(rows)) as writer:
        first = len(rows) + 1
        write_all(writer, first)
        with full_disk(room):
            write_all(writer, first + 1)
            write_all(writer, first + 2)
        write_all(writer, first + 3)
    assert [row["step"] for row in read_rows(tmp_path)] == list(range(1, first + 4))
    assert {first, first + 3} <= set(steps_of(tmp_path))
    assert not list(tmp_path.glob("*.tmp"))
    assert (tmp_path / "curves.png").stat().st_size > 2000
    err = capsys.readouterr().err.splitlines()
    assert sum("metrics.jsonl not written: [Errno 27] File too large" in line for line in err) == 2
    assert len(set(err)) <= 7  # in each life: rows, curves and what TensorBoard has
    assert all(line.startswith("warning: ") for line in err)


def test_rows_are_written_when_the_disk_has_room_again(tmp_path):
    """Also where that is only at the end."""
    with Writer(tmp_path) as writer:
        writer.scalars(1, {"train/loss": 1.0})
        with full_disk(50):
            writer.scalars(2, {"train/loss": 2.0})
            assert [row["step"] for row in read_rows(tmp_path)] == [1]
    assert [row["step"] for row in read_rows(tmp_path)] == [1, 2]


def test_a_removed_folder_ends_no_run(tmp_path):
    with Writer(tmp_path / "run") as writer:
        write_all(writer, 1)
        shutil.rmtree(tmp_path / "run")
        write_all(writer, 2)
    assert [row["step"] for row in read_rows(tmp_path / "run")] == [1, 2]
    assert steps_of(tmp_path / "run") == [2]
    assert next(events(tmp_path / "run")).file_version == "brain.Event:2"


def test_a_folder_that_cannot_be_ends_no_run(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with Writer(tmp_path / "file" / "run") as writer:
        write_all(writer, 1)
    assert "metrics.jsonl not written: [Errno 20] Not a directory" in capsys.readouterr().err
    for name in ("metrics.jsonl", "curves.png", "tensorboard"):  # files and folders confused
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).mkdir() if "." in name else (folder / name).write_text("")
        with Writer(folder) as writer:
            write_all(writer, 1)
        assert capsys.readouterr().err.startswith("warning: ")


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("matplotlib.figure.Figure.savefig", "curves.png not drawn: out of order"),
        ("tensorboardX.summary.histogram", "histograms of weights not written: out of order"),
        ("tensorboardX.summary.image", "images not written: out of order"),
    ],
)
def test_broken_libraries_end_no_run(target, told, tmp_path, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("out of\norder")

    monkeypatch.setattr(target, fail)
    with Writer(tmp_path) as writer:
        write_all(writer, 1)
        write_all(writer, 2)
    assert [row["step"] for row in read_rows(tmp_path)] == [1, 2]
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_interrupting_is_not_survived(tmp_path):
    def interrupt():
        with Writer(tmp_path) as writer, writer.sparing("it not drawn"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()


DAMAGE = [
    *(
        b"[1, 2]",
        b"7",
        b'"text"',
        b"null",
        b'{"train/loss": 1}',
        b'{"step": "x"}',
        b'{"step": null}',
    ),
    *(b"\xff\xfe", b"[" * 100_000, b"", b'{"step": 1, "a": "b"}', b'{"step": 1, "tr{"step": 4}'),
]


def test_a_damaged_file_of_rows_ends_no_run(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    good = [b'{"step": 1, "train/loss": 3.0}', b'{"step": 2, "train/loss": null}']
    path.write_bytes(b"\n".join([good[0], *DAMAGE, good[1], b'{"step": 3, "tr']))
    with Writer(tmp_path, step=2) as writer:
        writer.scalars(3, {"train/loss": 1.0})
    assert [(row["step"], row["train/loss"]) for row in read_rows(tmp_path)] == [
        (1, 3.0),
        (2, None),
        (3, 1.0),
    ]
    assert capsys.readouterr().err == (
        f"warning: {path}: {len(DAMAGE)} lines are damaged and left out\n"
    )
    path.write_bytes(b"{}\n" + good[0] + b"\n" + good[1][:-5])  # the last was being written
    assert len(read_rows(tmp_path)) == 1
    assert capsys.readouterr().err == f"warning: {path}: line 1 is damaged and left out\n"


def test_what_cannot_be_read_is_not_written_over(tmp_path, monkeypatch):
    with Writer(tmp_path) as writer:
        writer.scalars(1, {"train/loss": 1.0})

    def fail(workdir):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(writers, "read_rows", fail)
        with Writer(tmp_path, step=1) as writer:
            writer.scalars(2, {"train/loss": 1.0})
    assert [row["step"] for row in read_rows(tmp_path)] == [1, 2]


def test_a_single_evaluation_can_be_seen(tmp_path, monkeypatch):
    drawn = {}

    def keep(figure, *args, **kwargs):
        for axes in figure.axes:
            drawn[axes.get_title()] = [line.get_marker() for line in axes.get_lines()]

    monkeypatch.setattr(Figure, "savefig", keep)
    with Writer(tmp_path) as writer:
        for step in range(1, 100):
            writer.scalars(step, {"train/loss": 1 / step})
        writer.scalars(99, {"eval/loss": 0.5})
    assert drawn == {"loss": ["o", ""]}


def test_texts_and_hyperparameters_are_shown_as_they_are(tmp_path):
    with Writer(tmp_path) as writer:
        writer.text("said", "a <unk> & b")
        writer.hparams({"seed": 1, "steps": None, "mean": (0.5, 1.0)}, {"test/accuracy": 0.9})
    said, *flags = (v for e in events(tmp_path) for v in e.summary.value)
    assert said.tensor.string_val[0] == b"<pre>a &lt;unk&gt; &amp; b</pre>"
    text = b"".join(value.metadata.plugin_data.content for value in flags)
    assert b"(0.5, 1.0)" in text
    assert b"seed" in text
    assert b"steps" not in text


def test_a_report_that_fails_ends_no_run(tmp_path, capsys):
    """What an experiment draws of its own is left out as well; numbers and the summary stay."""
    drawn = []

    def fail(*args):
        drawn.append(args)
        raise OSError(28, "No space left on device")

    class Failing(View):
        report = finish = fail

    class Fed:
        def examples(self, split):
            return {"train": 160, "test": 32}[split]

        def train(self, start):
            yield from tiny.batches()[start:]

        def evaluate(self, split):
            return tiny.batches()[:2]

    @dataclasses.dataclass(frozen=True)
    class Config:
        run: RunFlags = RunFlags("tiny")

    task = lambda axis_name: tiny.build(axis_name, augmented=False)
    learner = Learner(task, tiny.HPARAMS, 4, "", lambda: "")
    best, splits = Best("eval/accuracy"), ("train", "test")
    problem = Problem("a tiny network", learner, Fed(), splits, best, "images", {}, Failing())
    flags = {"workdir": str(tmp_path / "run"), "batch_size": 16, "eval_every": 2, "seed": 5}
    flags["histograms"] = False
    config = cli.replace(Config(), **flags)
    training.train(config, lambda config, mesh: problem)
    assert len(drawn) == 3  # two evaluations and the end
    evaluated = [row["step"] for row in read_rows(tmp_path / "run") if "eval/loss" in row]
    assert evaluated == [2, 4]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["step"] == 4
    told = [line for line in capsys.readouterr().err.splitlines() if "No space left" in line]
    assert [line.split(": ")[1] for line in told] == [
        "an evaluation not reported",
        "the end of the run not drawn",
    ]
    # Of the flags those are shown that say something.
    shown = [v for e in events(tmp_path / "run") for v in e.summary.value if "hparams" in v.tag]
    text = b"".join(value.metadata.plugin_data.content for value in shown)
    assert b"batch_size" in text
    assert b"early_stop" not in text
    assert b"log_every" not in text
