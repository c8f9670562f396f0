"""What is left of a run for a person and for a program."""

import json
import math

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from jaxdl import writers
from jaxdl.writers import Progress, Writer, read_rows


def events(workdir):
    """The TensorBoard events of a run, read as the format is specified."""
    for path in sorted((workdir / "tensorboard").glob("events*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            length = int.from_bytes(data[place : place + 8], "little")
            yield Event.FromString(data[place + 12 : place + 12 + length])
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


def test_going_on_drops_later_rows(tmp_path):
    with Writer(tmp_path) as writer:
        for step in range(1, 6):
            writer.scalars(step, {"train/loss": float(step)})
    with Writer(tmp_path, step=3) as writer:
        writer.scalars(4, {"train/loss": 40.0})
    assert [r["train/loss"] for r in read_rows(tmp_path)] == [1.0, 2.0, 3.0, 40.0]
    purges = [e.session_log.status for e in events(tmp_path) if e.HasField("session_log")]
    assert purges  # TensorBoard is told too


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


def test_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(writers.sys.stderr, "isatty", lambda: True)
    with Progress(4) as progress:
        for step in range(1, 5):
            progress.step()
            progress.train(step, {"train/loss": 1.0 / step}, 3)
        progress.say("evaluated")
    out, err = capsys.readouterr()
    assert "loss 0.25" in err
    assert "4/4" in err
    assert out == "evaluated\n"


@pytest.mark.parametrize(("value", "text"), [(0.98611111, "0.9861"), (1234.5678, "1235")])
def test_describe(value, text):
    assert writers.describe({"eval/accuracy": value}) == f"accuracy {text}"
