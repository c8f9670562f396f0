"""Several steps in one call: when there are, and that nothing comes of how many there are."""

import itertools

import jax
import numpy as np
import pytest
import tiny

from jaxdl import calls, loop, parallel, sharding
from jaxdl.calls import Calls, next_due, together
from jaxdl.writers import Writer, read_rows

KEY = jax.random.key(7)


def stream(start):
    for step in itertools.count(start):
        yield tiny.batches()[step % 10]


@pytest.mark.parametrize("count", [1, 3])
def test_a_call_makes_the_steps_it_is_told_to(count):
    task, batches = tiny.jitted(), tiny.batches()[:3]
    state, found = task.init(KEY, tiny.hparams()), []
    for batch in batches[:count]:
        state, metrics = task.train(state, batch)
        found.append(np.stack(jax.tree.leaves(metrics)))
    begun = task.init(KEY, tiny.hparams())
    after, rows = task.train.several(begun, batches, np.int32(count))
    assert int(after.step) == count
    for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(rows[:count], np.stack(found), rtol=1e-5)
    assert not rows[count:].any()
    assert any(leaf.is_deleted() for leaf in jax.tree.leaves(begun.params))


def test_nothing_comes_of_how_many_steps_a_call_makes(monkeypatch, tmp_path):
    """A run of single calls, and one of as many steps as there may be, are the same to the bit."""
    made = []
    call = Calls.__call__

    def counted(self, state, batches):
        made.append(len(batches))
        return call(self, state, batches)

    monkeypatch.setattr(Calls, "__call__", counted)
    results = []
    for seconds in (1e9, 0.0):
        monkeypatch.setattr(calls, "CALL_SECONDS", seconds)
        made.clear()
        with Writer(tmp_path / str(seconds)) as writer:
            state = tiny.jitted().init(KEY, tiny.hparams())
            fitted = loop.fit(tiny.jitted(), state, stream, steps=30, log_every=12, writer=writer)
        assert sum(made) == 30
        assert (max(made) > 1) == (seconds > 0)
        rows = read_rows(tmp_path / str(seconds))
        assert [row["step"] for row in rows] == [12, 24, 30]
        plain = [{k: v for k, v in row.items() if "second" not in k} for row in rows]
        results.append((jax.tree.map(np.asarray, fitted.state.params), plain))
    (several, rows), (singly, expected) = results
    jax.tree.map(np.testing.assert_array_equal, several, singly)
    assert rows == expected


def test_where_a_call_makes_several(monkeypatch):
    task, batch = tiny.jitted(), tiny.batches()[0]
    state = jax.eval_shape(task.init, KEY, tiny.hparams())
    assert together(task, state, batch) == calls.TOGETHER
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(batch))
    for least, most in ((3 * size, 3), (size, 1), (size // 2, 1)):
        monkeypatch.setattr(calls, "TOGETHER_BYTES", least)
        assert together(task, state, batch) == most
    monkeypatch.undo()
    monkeypatch.setattr(calls, "TOGETHER_FLOPS", calls.step_flops(task.train, state, batch) / 2)
    assert together(task, state, batch) == 1
    monkeypatch.setattr(calls, "step_flops", lambda *_: None)  # of a step that looks at its values
    assert together(task, state, batch) == 1
    monkeypatch.undo()
    assert together(tiny.jitted(8), state, batch) == 1
    cut = parallel.jit(tiny.build(), parallel.data_mesh(jax.devices()[:1]), rules=(sharding.fsdp,))
    assert together(cut, state, batch) == 1
    other = task._replace(train=lambda state, batch: task.train(state, batch))
    assert together(other, state, batch) == 1


def test_batches_of_one_form_go_together(monkeypatch):
    """And how they go is of their form alone: a run that begins with another goes the same way."""
    large = tiny.batches()[0]
    small = jax.tree.map(lambda rows: rows[:8], large)
    task, state = tiny.jitted(), tiny.jitted().init(KEY, tiny.hparams())
    limit = calls.step_flops(task.train, state, small) * 1.5
    monkeypatch.setattr(calls, "TOGETHER_FLOPS", limit)
    order = [small, small, small, large, large, small, small]
    calling, sizes, losses = Calls(task, iter(order)), [], []
    for most in (2, 8, 8, 8, 2):
        some = calling.take(state, most)
        sizes.append([len(batch["label"]) for batch in some])
        state, sent = calling(state, some)
        losses += calling.metrics(sent)["loss"].total[: len(some)].tolist()
    assert sizes == [[8, 8], [8], [16], [16], [8, 8]]
    state, expected = task.init(KEY, tiny.hparams()), []
    for batch in order:
        state, metrics = task.train(state, batch)
        expected.append(float(metrics["loss"].total))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_what_is_compiled_ahead_is_what_is_called():
    mesh = parallel.data_mesh(jax.devices()[:1])
    task, spread = parallel.jit(tiny.build(), mesh), parallel.batch_sharding(mesh)
    like = lambda rows: jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=spread)
    shapes = jax.eval_shape(task.init, KEY, tiny.hparams())
    calls.compile_ahead(task, shapes, jax.tree.map(like, tiny.batches()[0]))
    state, batch = task.init(KEY, tiny.hparams()), jax.device_put(tiny.batches()[0], spread)
    calling = Calls(task, iter([batch] * 3))
    begun = []
    listener = lambda event, duration, **kw: begun.append(event)
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        state, _ = calling(state, calling.take(state, 2))
        assert [e for e in begun if "mlir" in e] == []
        assert int(state.step) == 2
        task.train(state, batch)
        assert [e for e in begun if "mlir" in e]  # it does hear of a program
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def test_what_is_due_ends_a_call():
    assert next_due(0, 100, [30, 40]) == 30
    assert next_due(30, 100, [30, 40]) == 40
    assert next_due(95, 100, [30, 40]) == 100


@pytest.mark.parametrize(("seconds", "most"), [(1e-3, 8), (0.019, 5), (0.3, 1)])
def test_calls_grow_while_steps_are_short(monkeypatch, seconds, most):
    """By twice at most, from one."""
    clock = [0.0]
    monkeypatch.setattr(calls.time, "perf_counter", lambda: clock[0])
    growing, sent = Calls(tiny.jitted(), iter(())), [1, 1, 1]
    clock[0] += 5  # it compiles
    for place in range(12):
        growing.finished(sent[place], sent[-1])
        sent.append(min(growing.at_once, calls.TOGETHER))
        clock[0] += seconds * sent[place + 1]
    assert sent[:6] == [1] * 6  # as long as the first is among the last
    assert max(sent) == most
    assert all(later <= 2 * earlier for earlier, later in itertools.pairwise(sent))


def test_a_pause_does_not_make_long_steps_look_short(monkeypatch):
    """Two that were done in it are waited for without a wait."""
    clock = [0.0]
    monkeypatch.setattr(calls.time, "perf_counter", lambda: clock[0])
    made = Calls(tiny.jitted(), iter(()))
    for waited in (1.0, 1.0, 1.0, 3.0, 0.0, 0.0, 1.0, 1.0):
        clock[0] += waited
        made.finished(1, 1)
        assert made.at_once == 1
