"""The loop: what it reports, when it evaluates and saves, and how it stops."""

import json
import os
import signal

import jax
import numpy as np
import pytest
import tiny

from jaxdl import InputError, checkpoint, cost, loop, task
from jaxdl.checkpoint import Checkpoints
from jaxdl.writers import Writer, read_rows

KEY = jax.random.key(7)


def batches(start):
    for step in range(start, 1000):
        yield tiny.batches()[step % 10]


def prepare():
    task = tiny.jitted()
    return task, task.init(KEY, tiny.hparams())


def fit(workdir, steps=12, feed=batches, **options):
    """Trains into a folder, going on from what is there."""
    task, state = prepare()
    options = {"eval_every": 5, "log_every": 4, "checkpoint_every": 6} | options
    with Checkpoints(workdir, keep=9, best="eval/accuracy") as checkpoints:
        state = checkpoints.restore(state) or state
        with Writer(workdir, int(state.step)) as writer:
            return loop.fit(
                task,
                state,
                feed,
                steps=steps,
                measure=lambda state: loop.evaluate(task, state, tiny.batches()[:3], "eval"),
                checkpoints=checkpoints,
                writer=writer,
                **options,
            )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts: its folder and its result."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, fit(workdir)


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """No curves but those of `whole`: to draw them takes most of a run's time here."""
    monkeypatch.setattr(Writer, "curves", lambda self: None)


def assert_same_arrays(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    jax.tree.map(np.testing.assert_array_equal, a.opt_state, b.opt_state)


def rows_without_speed(workdir):
    return [{k: v for k, v in r.items() if "second" not in k} for r in read_rows(workdir)]


def test_reports_evaluates_and_saves_when_due(whole):
    workdir, result = whole
    rows = read_rows(workdir)
    trained = [r["step"] for r in rows if "train/loss" in r]
    assert trained == [4, 5, 8, 10, 12]  # every 4, and before each evaluation, not checkpoint
    assert [r["step"] for r in rows if "eval/loss" in r] == [5, 10, 12]
    assert checkpoint.steps(workdir) == [5, 6, 10, 12]
    assert not result.stopped
    assert int(result.state.step) == 12
    assert result.metrics["eval/accuracy"] == rows[-1]["eval/accuracy"]
    assert all(r["images_per_second"] > 0 for r in rows if "train/loss" in r)
    assert (workdir / "curves.png").stat().st_size > 1000


def test_metrics_are_those_of_the_steps_averaged(whole):
    task, state = prepare()
    sums = np.zeros(4)
    for batch in tiny.batches()[:4]:
        state, metrics = task.train(state, batch)
        sums += [*map(float, metrics["loss"]), *map(float, metrics["accuracy"])]
    row = read_rows(whole[0])[0]
    assert row["step"] == 4
    assert row["train/loss"] == pytest.approx(sums[0] / sums[1], rel=1e-6)
    assert row["train/accuracy"] == pytest.approx(sums[2] / sums[3], rel=1e-6)


def test_evaluation_counts_every_example_once(tmp_path):
    """Unequal batches: the mean of their means would be another number."""
    task, state = prepare()
    ragged = [dict(b) for b in tiny.batches()[:2]]
    ragged[1]["mask"] = np.float32([1] + [0] * 15)
    measured = loop.evaluate(task, state, ragged, "eval")
    parts = [task.eval(state, b) for b in ragged]
    expected = sum(float(p["loss"].total) for p in parts) / 15
    assert measured["eval/loss"] == pytest.approx(expected, rel=1e-6)
    means = np.mean([float(p["loss"].value) for p in parts])
    assert abs(measured["eval/loss"] - means) > 1e-4
    with pytest.raises(InputError, match="nothing to evaluate"):
        loop.evaluate(task, state, [], "eval")


@pytest.mark.parametrize("interrupted_at", [5, 6, 10])
def test_going_on_equals_never_stopping(whole, tmp_path, interrupted_at):
    workdir, result = whole
    fit(tmp_path, steps=interrupted_at)
    parts = fit(tmp_path)
    assert_same_arrays(result.state, parts.state)
    assert rows_without_speed(workdir)[-2:] == rows_without_speed(tmp_path)[-2:]


def test_rows_of_steps_that_are_run_again_are_dropped(tmp_path):
    fit(tmp_path, steps=6)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 7, "train/loss": -1.0}) + "\n" + '{"step": 8, "tra')
    fit(tmp_path)
    steps = [r["step"] for r in read_rows(tmp_path)]
    assert steps == sorted(steps)
    assert -1.0 not in [r.get("train/loss") for r in read_rows(tmp_path)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_finishes_the_call_and_saves(whole, tmp_path, number):
    def interrupting(start):
        for step, batch in enumerate(batches(start), start + 1):
            if step == 7:
                os.kill(os.getpid(), number)
            yield batch

    before = signal.getsignal(number)
    stopped = fit(tmp_path, feed=interrupting)
    assert stopped.stopped
    assert int(stopped.state.step) == int(checkpoint.load(tmp_path)["step"])
    assert int(stopped.state.step) in (7, 8)  # of a call of both, or of each
    assert signal.getsignal(number) is before
    assert_same_arrays(fit(tmp_path).state, whole[1].state)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path, bad):
    def poisoned(start):
        for step, batch in enumerate(batches(start), start + 1):
            yield batch | {"mask": np.full_like(batch["mask"], bad)} if step == 8 else batch

    with pytest.raises(
        loop.Diverged, match=r"(loss|gradient_norm) is (nan|inf) at step 8; .*step 6 is kept"
    ):
        fit(tmp_path, feed=poisoned, eval_every=100)
    loaded = checkpoint.load(tmp_path)
    assert int(loaded["step"]) == 6
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(loaded["params"]))


def test_stream_is_closed_and_a_finished_run_does_nothing(tmp_path):
    closed = []

    def feed(start):
        try:
            yield from batches(start)
        finally:
            closed.append(start)

    fit(tmp_path, feed=feed)
    assert closed == [0]
    again = fit(tmp_path)
    assert int(again.state.step) == 12
    assert again.metrics == {}
    assert not again.stopped


def test_without_folder_or_evaluation():
    task, state = prepare()
    result = loop.fit(task, state, batches, steps=3)
    assert int(result.state.step) == 3
    assert set(result.metrics) >= {"train/loss", "train/accuracy", "train/learning_rate"}


def test_a_step_that_looks_at_values_runs_in_the_loop():
    """Its step looks at values, so that its cost cannot be counted."""
    plain, state = prepare()
    one_by_one = plain._replace(train=lambda state, batch: plain.train(state, batch))
    expected = loop.fit(one_by_one, state, batches, steps=3)

    def train(state, batch):  # as `parallel.checked` does, which would have to be compiled
        state, metrics = plain.train(state, batch)
        assert bool(metrics["loss"].total > 0)
        return state, metrics

    _, state = prepare()
    result = loop.fit(plain._replace(train=train), state, batches, steps=3)
    assert_same_arrays(result.state, expected.state)


def test_flops_of_the_step_are_reported(whole):
    task, state = prepare()
    multiply_adds = cost.cost(task.train, state, tiny.batches()[0]).multiply_adds
    row = read_rows(whole[0])[0]
    per_image = row["model_flops_per_second"] / row["images_per_second"]
    assert per_image == pytest.approx(2 * multiply_adds / 14)  # two of sixteen are masked


def test_a_checkpoint_keeps_what_was_not_reported(tmp_path):
    """Saving often makes no more rows, and a run that goes on reports what one whole run does."""
    options = {"eval_every": 12, "log_every": 8, "checkpoint_every": 3}

    def breaking(start):
        for step, batch in enumerate(batches(start), start + 1):
            if step == 8:
                raise InputError("a broken image")
            yield batch

    fit(tmp_path / "whole", **options)
    with pytest.raises(InputError, match="a broken image"):
        fit(tmp_path / "parts", feed=breaking, **options)
    fit(tmp_path / "parts", **options)
    whole, parts = (rows_without_speed(tmp_path / name) for name in ("whole", "parts"))
    assert [row["step"] for row in whole] == [8, 12, 12]
    assert parts == whole  # the row of step 8 is of steps before the break, too


def test_what_is_trained_on_is_seen_once_while_the_first_steps_run(tmp_path):
    seen = []
    begin = lambda state, batch: seen.append((int(state.step), batch["label"].shape))
    fit(tmp_path, steps=6, begin=begin)
    assert seen == [(3, (16,))]
    fit(tmp_path, begin=begin)
    assert len(seen) == 1  # which goes on


def test_a_step_is_traced_once_to_be_counted_and_run(tmp_path):
    task, state = prepare()
    traced = []

    def train(state, batch):
        traced.append(state.step)
        return task.train(state, batch)

    counted = task._replace(train=jax.jit(train, donate_argnums=0))
    result = loop.fit(counted, state, batches, steps=4, log_every=2, quiet=True)
    assert int(result.state.step) == 4
    assert len(traced) == 1


def test_histograms_are_a_choice(tmp_path):
    task, _ = prepare()
    asked = []
    task = task._replace(gradient=lambda state, batch: asked.append(1) or state.params)
    measure = lambda state: {"eval/accuracy": 0.5}
    for histograms in (False, True):
        options = {"measure": measure, "eval_every": 1, "histograms": histograms}
        loop.fit(task, task.init(KEY, tiny.hparams()), batches, steps=2, **options)
        assert len(asked) == 2 * histograms


def test_a_trace_of_a_run_that_ends_before_is_written(tmp_path):
    fit(tmp_path, steps=5, profile=(tmp_path / "tensorboard", 20))
    assert list((tmp_path / "tensorboard").rglob("*.xplane.pb"))


def test_profile_is_written(tmp_path):
    fit(tmp_path, profile=(tmp_path / "tensorboard", 2))
    assert list((tmp_path / "tensorboard").rglob("*.xplane.pb"))


def test_evaluations_can_change_the_state_and_end_the_run(tmp_path):
    """`observe` sees each evaluation and is saved; a run that was done goes on no further."""
    seen = []

    def observe(state, measured):
        seen.append(measured["eval/accuracy"])
        hparams = state.hparams | {"learning_rate": state.hparams["learning_rate"] / 2}
        return task.observe(state._replace(hparams=hparams), -len(seen))  # ever worse

    done = lambda state: int(state.monitor.since_best) >= 2
    result = fit(tmp_path, steps=40, observe=observe, done=done)
    assert len(seen) == 3
    assert int(result.state.step) == 15
    assert not result.stopped
    saved = checkpoint.load(tmp_path)
    assert saved["step"] == 15
    np.testing.assert_allclose(saved["hparams"]["learning_rate"], 0.1 / 8, rtol=1e-6)
    assert saved["monitor"]["since_best"] == 2
    rates = {r["step"]: r["train/learning_rate"] for r in read_rows(tmp_path) if "train/loss" in r}
    assert rates[12] < 0.6 * rates[10]

    again = fit(tmp_path, steps=40, observe=observe, done=done)
    assert int(again.state.step) == 15
    assert not again.stopped
    assert len(seen) == 3
