"""What surrounds the loop: folders, locks, lengths, what is shown, what is refused at once."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import threading

import jax
import numpy as np
import pytest
import tiny

from experiments.harness import cli, run_folder, training
from experiments.harness.problem import Best, Learner, Problem, View
from experiments.harness.run import RunFlags
from jaxdl import InputError, augment, calls, checkpoint, hosts, parallel
from jaxdl.writers import Writer, read_rows


@pytest.fixture(autouse=True)
def at_little_cost(monkeypatch):
    """One program for all, and curves undrawn."""
    compiled = tiny.jitted(8)
    monkeypatch.setattr(parallel, "jit", lambda task, mesh, rules: compiled)
    monkeypatch.setattr(Writer, "curves", lambda self: None)


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags of a run, and none more."""

    run: RunFlags = RunFlags("lenet")


class Fed:
    """What feeds a run, of functions and numbers."""

    def __init__(self, examples, batches, passes):
        self.train, self.evaluate, self.examples = batches, passes, examples.__getitem__


class Shown(View):
    """A view of functions."""

    def __init__(self, **functions):
        vars(self).update(functions)


INPUTS = {"image_shape": (6, 6, 1), "class_names": ["a", "b", "c"]}


def build(config, mesh, batches=None, examples=None, best=None, inputs=None, show=None, **view):
    """A Problem of a tiny network, on 160 examples."""
    sharding = parallel.batch_sharding(mesh)

    def repeated(start):
        for step in range(start, 10_000):
            yield jax.device_put(tiny.batches()[step % 10], sharding)

    def passes(split):
        return [jax.device_put(b, sharding) for b in tiny.batches()[:3]]

    first = lambda key, batch: augment.as_float(batch["image"][:4])
    examples = examples or {"train": 160, "test": 48}
    steps = config.run.steps or round(config.run.epochs * 10)
    return Problem(
        title="a tiny network",
        learner=Learner(tiny.build, dict(tiny.HPARAMS), steps, "", lambda: "a table"),
        feed=Fed(examples, batches or repeated, passes),
        splits=tuple(examples),
        best=Best(best or "eval/accuracy"),
        unit="images",
        inputs=inputs or INPUTS,
        view=Shown(inputs=show or first, **view),
    )


def config(workdir, **changes):
    values = {"batch_size": 16, "steps": 12, "log_every": 5}
    values |= {"eval_every": 6, "checkpoint_every": 4, "keep": 9, "workdir": str(workdir)}
    return cli.replace(Config(), **(values | changes))


def train(workdir, make=build, **changes):
    return training.train(config(workdir, **changes), make)


def params(workdir):
    return checkpoint.load(workdir)["params"]["Conv_0"]["kernel"]


def hold(folder, held, done):
    with checkpoint.lock(folder):
        held.set()
        done.wait()


@pytest.fixture
def busy(tmp_path):
    """A folder that another process holds; that process."""
    spawn = multiprocessing.get_context("spawn")
    held, done = spawn.Event(), spawn.Event()
    process = spawn.Process(target=hold, args=(tmp_path / "busy", held, done))
    process.start()
    assert held.wait(60)
    yield tmp_path / "busy", process
    process.kill()
    process.join()


def test_a_folder_in_use_is_refused_untouched_until_its_process_dies(busy):
    folder, process = busy
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(InputError, match=rf"busy is in use by process {process.pid} on \S+$"):
        train(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    process.kill()  # SIGKILL leaves no stale lock
    process.join()
    train(folder)


def test_readers_need_no_lock_and_change_nothing(tmp_path, capsys):
    train(tmp_path)
    newest = tmp_path / "checkpoints" / "12"
    for path in newest.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:5])
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    with checkpoint.lock(tmp_path):
        training.evaluate(config(tmp_path), build)
    said = capsys.readouterr()
    assert "test at step 8" in said.out
    assert said.err.count("\n") == 1
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("flag", ["steps", "epochs"])
def test_a_finished_run_is_extended(tmp_path, flag):
    lengths = {"steps": (8, 12), "epochs": (0.8, 1.2)}[flag]
    own = {"steps": None} | {flag: lengths[0]}
    train(tmp_path / "run", **own)
    longer = own | {flag: lengths[1]}
    with pytest.raises(InputError, match="holds a run with"):
        train(tmp_path / "run", **longer)
    summary = train(tmp_path / "run", **longer, resume="extend")
    assert summary["step"] == 12
    flags = (tmp_path / "run" / "flags.txt").read_text()
    assert f"--{flag}={lengths[1]}\n" in flags
    assert "--resume=auto\n" in flags
    train(tmp_path / "run", **longer)  # now the run's own length
    steps = [row["step"] for row in read_rows(tmp_path / "run") if "eval/loss" in row]
    assert steps == [6, 8, 12]
    with pytest.raises(InputError, match=rf"--{flag}=\S+: it must be at least \S+ to extend"):
        train(tmp_path / "run", **own, resume="extend")
    other = {"steps": None, "epochs": 0.5} if flag == "steps" else {"steps": 5}
    with pytest.raises(InputError, match="is trained to step 12, and 5 steps were given"):
        train(tmp_path / "run", **other, resume="extend")
    with pytest.raises(InputError, match="--resume=extend, but there is no run in"):
        train(tmp_path / "new", resume="extend")
    assert not (tmp_path / "new").exists()


def test_a_start_that_failed_leaves_no_run(tmp_path):
    def failing(config, mesh):
        def batches(start):
            yield from ()
            raise InputError("the first image is broken")

        return build(config, mesh, batches=batches)

    with pytest.raises(InputError, match="the first image is broken"):
        train(tmp_path, failing)
    assert (tmp_path / "flags.txt").exists()
    # Other flags, other inputs, even --resume=never: nothing was trained here.
    other = {"image_shape": (6, 6, 1), "class_names": ["x", "y", "z"]}
    summary = train(tmp_path, lambda c, m: build(c, m, inputs=other), seed=3, resume="never")
    assert summary["step"] == 12
    assert "--seed=3\n" in (tmp_path / "flags.txt").read_text()
    with pytest.raises(InputError, match="holds a run with --seed=3, not 4"):
        train(tmp_path, lambda c, m: build(c, m, inputs=other), seed=4)


def test_a_finished_run_without_its_checkpoints_is_still_one(tmp_path):
    train(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(InputError, match="holds a run with --seed=0, not 1"):
        train(tmp_path, seed=1)
    with pytest.raises(InputError, match="--resume=never"):
        train(tmp_path, resume="never")


def test_what_was_gone_back_to_is_not_extended(tmp_path):
    falling = iter(range(100))

    def make(config, mesh):
        measure = lambda state, split: {"worse": -next(falling)}
        worse = {"measures": ("worse",), "best": "eval/worse", "measure": measure}
        return build(config, mesh, examples={"train": 160, "validation": 48}, **worse)

    summary = train(tmp_path, make, steps=60, early_stop=2)
    assert summary["step"] == 6
    assert checkpoint.load(tmp_path)["step"] == 6
    assert run_folder.step_of(tmp_path) is None  # the checkpoints say it
    (tmp_path / "checkpoints" / checkpoint.CAME_TO).unlink()  # as a run made before they did
    assert checkpoint.load(tmp_path)["step"] == 18
    run = config(tmp_path, steps=60, early_stop=2)
    assert int(training.restore(run, make)[2].step) == 6
    with pytest.raises(InputError, match=r"--resume=extend: .* stopped early, at step 18"):
        train(tmp_path, make, steps=90, early_stop=2, resume="extend")


def test_what_a_full_disk_left_is_no_stranger(tmp_path):
    for name in (".lock", "flags.txt.tmp"):
        (tmp_path / name).write_text("")
    train(tmp_path, steps=4)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="holds other files and no run"):
        train(tmp_path / "mine")


def test_nothing_to_evaluate_by_is_refused_before_the_first_step(tmp_path):
    alone = lambda c, m: build(c, m, examples={"train": 160})
    with pytest.raises(InputError, match=r"the split train alone.* --validation"):
        train(tmp_path, alone)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workdir": "gs://bucket/run"}, "--workdir=gs://bucket/run: it must be a folder"),
        ({"seed": 2**40}, "--seed=1099511627776: it must be at least 0 and less than 2"),
        ({"coordinator": "here"}, "needs --num_processes and --process_id"),
        ({"num_processes": 2}, "--num_processes=2: it must be left out without --coordinator"),
        ({"process_id": 0, "num_processes": 0, "coordinator": "a:1"}, "--num_processes=0"),
        ({"process_id": 2, "num_processes": 2, "coordinator": "a:1"}, "--process_id=2"),
        ({"process_id": 0, "num_processes": 2, "coordinator": "a:99999"}, "--coordinator=a:99999"),
    ],
)
def test_flags_of_a_run_that_cannot_be(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        cli.replace(config(tmp_path), **changes)


def test_a_profile_that_does_not_fit_the_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="--profile_steps=10: it must be at most 9"):
        train(tmp_path, profile_steps=10)
    train(tmp_path, profile_steps=9, steps=12)
    train(tmp_path, profile_steps=9, steps=14, resume="extend")  # the flag is of its beginning
    assert list((tmp_path / "tensorboard").rglob("*.xplane.pb"))


def test_what_cannot_be_shown_is_told_once_and_ends_nothing(tmp_path, capsys):
    def report(state, metrics, writer):
        raise RuntimeError("no such font")

    def show(key, batch):
        raise OSError("no space left")

    summary = train(tmp_path, lambda c, m: build(c, m, report=report, show=show), eval_every=3)
    assert summary["step"] == 12
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0] for line in lines] == [
        "warning: inputs not shown: no space left",
        "warning: an evaluation not reported: no such font",
    ]


def test_inputs_are_those_of_the_training_stream(tmp_path):
    """A second pipeline would cost its start, and could show other images."""
    opened = []

    def counting(config, mesh):
        train = build(config, mesh).feed.train
        return build(config, mesh, batches=lambda n: opened.append(n) or train(n))

    train(tmp_path, counting)
    assert opened == [0]


def test_a_run_found_complete_has_the_whole_summary(tmp_path):
    first = train(tmp_path)
    (tmp_path / "summary.json").unlink()  # killed after its last checkpoint
    second = train(tmp_path)
    assert {k: v for k, v in first.items() if k != "wall_seconds"} == {
        k: v for k, v in second.items() if k != "wall_seconds"
    }


def test_a_signal_while_a_run_ends_is_heard(tmp_path):
    """Or the next fold, or the next run of a comparison, would begin."""

    def make(config, mesh):
        def report(state, metrics, writer):
            if int(state.step) == 12:
                os.kill(os.getpid(), signal.SIGINT)

        return build(config, mesh, report=report)

    with pytest.raises(cli.Interrupted):
        train(tmp_path, make)
    assert checkpoint.steps(tmp_path)[-1] == 12
    assert train(tmp_path)["step"] == 12


def test_interrupted_runs_are_saved_and_raise(tmp_path, capsys):
    def interrupting(config, mesh):
        whole = build(config, mesh).feed.train

        def batches(start):
            for step, batch in enumerate(whole(start), start + 1):
                if step == 7:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        return build(config, mesh, batches=batches)

    with pytest.raises(cli.Interrupted) as stopped:
        train(tmp_path / "parts", interrupting)
    assert stopped.value.number == signal.SIGTERM
    step = checkpoint.steps(tmp_path / "parts")[-1]
    assert 7 <= step < 7 + calls.TOGETHER  # of the call that was to be made of that batch
    said = capsys.readouterr().out
    assert f"stopped at step {step} and saved; go on with: python -m" in said
    train(tmp_path / "parts")
    train(tmp_path / "whole")
    np.testing.assert_array_equal(params(tmp_path / "parts"), params(tmp_path / "whole"))
    rows = [
        [{k: v for k, v in row.items() if "second" not in k} for row in read_rows(tmp_path / name)]
        for name in ("parts", "whole")
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (cli.Interrupted(signal.SIGTERM), 143, ""),
        (cli.Interrupted(signal.SIGINT), 130, ""),
        (InputError("a mistake\n of two lines"), 1, "error: a mistake of two lines\n"),
        (OSError(28, "No space left on device", "x"), 1, "error: [Errno 28] No space"),
        (RuntimeError("RESOURCE_EXHAUSTED: out of memory"), 1, "error: out of memory: RES"),
        (MemoryError("Unable to allocate"), 1, "error: out of memory: Unable"),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code, line):
    monkeypatch.setattr(hosts, "_last_word", threading.Lock())

    def run(argv):
        raise error

    with pytest.raises(SystemExit) as end:
        cli.main(run)
    assert end.value.code == code
    assert capsys.readouterr().err.startswith(line)


def test_folds_are_extended_too(tmp_path):
    def folded(config, mesh):
        return build(config, mesh, examples={"train": 107, "validation": 53})

    run = cli.replace(config(tmp_path / "cv", steps=4), folds=2)
    training.cross_validate(run, folded)
    before = (tmp_path / "cv" / "flags.txt").read_text()
    shorter = cli.replace(run, steps=None, epochs=0.3, resume="extend")
    with pytest.raises(InputError, match="trained to step 4, and 3 steps were given"):
        training.cross_validate(shorter, folded)
    assert (tmp_path / "cv" / "flags.txt").read_text() == before
    longer = cli.replace(run, steps=6, resume="extend")
    training.cross_validate(longer, folded)
    for fold in range(2):
        summary = json.loads((tmp_path / "cv" / f"fold{fold}" / "summary.json").read_text())
        assert summary["step"] == 6


@pytest.mark.parametrize("text", ["", '{"image_sh', "[1, 2]", "{}", '{"class_names": 3}'])
def test_a_damaged_record_is_one_line(tmp_path, text):
    train(tmp_path)
    (tmp_path / "inputs.json").write_text(text)
    with pytest.raises(InputError, match=r"inputs\.json is damaged; remove it"):
        run_folder.read_inputs(tmp_path, class_names=list)
    (tmp_path / "inputs.json").unlink()
    train(tmp_path)  # writes it anew
    assert run_folder.read_inputs(tmp_path, class_names=list)["class_names"] == ["a", "b", "c"]
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(InputError, match=r"summary\.json is damaged; remove it"):
        run_folder.read_summary(tmp_path)
    with pytest.raises(
        InputError, match=r"there is no .*inputs\.json: the run has not come so far"
    ):
        run_folder.read_inputs(tmp_path / "nowhere")


def test_what_is_held_out_must_be_what_was_to_go_on_and_not_to_evaluate(tmp_path):
    train(tmp_path)
    held_out = {"image_shape": (6, 6, 1), "class_names": ["a", "b", "c"], "held_out": "by classes"}
    now = lambda c, m: build(c, m, inputs=held_out)
    with pytest.raises(InputError, match="another held_out"):
        train(tmp_path, now)
    training.evaluate(config(tmp_path), now)
