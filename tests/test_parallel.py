"""One step, every way to run it: all give the same states."""

import functools
import os
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from jaxdl import InputError, loop, losses, optim, parallel
from jaxdl.models import language_model
from jaxdl.task import supervised

KEY = jax.random.key(7)
TOLERANCE = 1e-6


def mesh(devices):
    return parallel.data_mesh(jax.devices()[:devices])


def train(task, state):
    for batch in tiny.batches():
        state, metrics = task.train(state, batch)
    return state, metrics


@functools.cache
def solo(seed=None, learning_rate=0.1):
    """Ten steps under jit on one device: what the others are held to."""
    task = tiny.jitted(1)
    key = KEY if seed is None else jax.random.key(seed)
    return train(task, task.init(key, tiny.hparams(learning_rate=learning_rate)))


@functools.cache
def on_eight(way):
    """The Task on eight devices, compiled once for all tests here."""
    return tiny.jitted(8) if way == "jit" else parallel.pmap(tiny.build("data"), mesh(8))


def test_jit_on_eight_devices_equals_one():
    task = on_eight("jit")
    state, metrics = train(task, task.init(KEY, tiny.hparams()))
    assert tiny.distance(state, solo()[0]) < TOLERANCE
    for name, mean in solo()[1].items():
        assert float(metrics[name].value) == pytest.approx(float(mean.value), abs=1e-5)
    batch = jax.device_put(tiny.batches()[0], parallel.batch_sharding(mesh(8)))
    assert len(batch["image"].sharding.device_set) == 8
    assert len(jax.tree.leaves(state.params)[0].sharding.device_set) == 8


def test_pmap_on_eight_devices_equals_one():
    task = on_eight("pmap")
    state, metrics = train(task, task.init(KEY, tiny.hparams()))
    assert tiny.distance(state, solo()[0]) < TOLERANCE
    for name, mean in solo()[1].items():
        assert float(metrics[name].value) == pytest.approx(float(mean.value), abs=1e-5)


def test_pmap_without_synchronized_statistics_differs():
    """The equality above would not see a model that forgot its axis, if this did not hold."""
    task = parallel.pmap(tiny.build("data", synchronized=False), mesh(8))
    state, _ = train(task, task.init(KEY, tiny.hparams()))
    assert tiny.distance(state, solo()[0]) > 1e-3


def test_scan_over_steps_equals_calls():
    task = parallel.jit(parallel.scan(tiny.build()), mesh(8), batch_spec=P(None, "data"))
    stacked = jax.tree.map(lambda *x: np.stack(x), *tiny.batches())
    state, metrics = task.train(task.init(KEY, tiny.hparams()), stacked)
    assert tiny.distance(state, solo()[0]) < TOLERANCE
    assert metrics["loss"].total.shape == (10,)
    assert int(state.step) == 10


def test_lanes_begin_one_after_another():
    """Stacked QR decompositions at once may wait for one another for ever, in jaxlib on CPUs."""
    model = language_model.LanguageModel(5, features=4, layers=2, embedding=3)
    init, loss = losses.language_modeling(model, batch_size=2)
    alone = supervised(init, loss, optim.optimizer("sgd"))
    task, keys = parallel.vmap(alone), jax.random.split(KEY, 3)
    hparams = {"learning_rate": jnp.ones(3)}
    for begin, matrices in ((task.init, "4x4"), (jax.vmap(alone.init), "3x4x4")):
        program = jax.jit(begin).lower(keys, hparams).as_text()
        assert set(re.findall(r"geqrf.* : \(tensor<([0-9x]+)xf32>", program)) == {matrices}


@pytest.mark.parametrize("lane", [0, 1])
def test_vmap_lane_equals_solo_run(lane):
    seeds, rates = [3, 5], [0.05, 0.2]
    task = parallel.jit(parallel.vmap(tiny.build()), mesh(1), batch_spec=P())
    keys = jnp.stack([jax.random.key(s) for s in seeds])
    hparams = {k: jnp.stack([v, v]) for k, v in tiny.hparams().items()}
    state, _ = train(task, task.init(keys, hparams | {"learning_rate": jnp.float32(rates)}))
    of_lane = jax.tree.map(lambda x: x[lane], state)
    assert tiny.distance(of_lane, solo(seeds[lane], rates[lane])[0]) < TOLERANCE
    assert tiny.distance(of_lane, solo(seeds[1 - lane], rates[1 - lane])[0]) > 1e-2


@pytest.mark.parametrize("at_once", [None, 1, 2, 3])
def test_lanes_in_turns_and_blocks_equal_solo_runs(at_once):
    """Two devices of three lanes each; of at most four steps in a call, three calls make ten."""
    task = parallel.lanes(tiny.build(), mesh(2), at_once)
    seeds, rates = [3, 5, 3, 5, 3, 5], [0.05, 0.2, 0.2, 0.05, 0.1, 0.1]
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    hparams = {k: jnp.stack([v] * 6) for k, v in tiny.hparams().items()}
    state = task.init(keys, hparams | {"learning_rate": jnp.float32(rates)})
    steps, losses_met = tiny.batches(), []
    for start, count in ((0, 4), (4, 3), (7, 3)):
        given = (steps[start : start + count] + steps[:4])[:4]  # what is beyond is of no use
        stacked = jax.tree.map(lambda *x: np.stack([np.stack(x)] * 6), *given)
        state, metrics = task.train(state, stacked, count)
        assert metrics["loss"].total.shape == (6, 4)
        assert not metrics["loss"].count[:, count:].any()
        losses_met.append(metrics["loss"].total[:, :count])
    assert state.step.tolist() == [10] * 6
    for lane, (seed, rate) in enumerate(zip(seeds, rates, strict=True)):
        alone, last = solo(seed, rate)
        assert tiny.distance(jax.tree.map(lambda x, at=lane: x[at], state), alone) < TOLERANCE
        assert losses_met[-1][lane, -1] == pytest.approx(float(last["loss"].total), rel=1e-5)
    measured = task.eval(state, jax.tree.map(lambda x: np.stack([x] * 6), steps[0]))
    one = tiny.jitted(1).eval(solo(3, 0.05)[0], steps[0])
    assert measured["loss"].total[0] == pytest.approx(float(one["loss"].total), rel=1e-5)


@pytest.mark.parametrize("way", ["jit", "pmap"])
def test_second_call_does_not_compile(way):
    task = on_eight(way)
    state = task.init(KEY, tiny.hparams())
    place = functools.partial(jax.device_put, device=parallel.batch_sharding(mesh(8)))
    first, second = map(place, tiny.batches()[:2])
    state, _ = task.train(state, first)
    task.eval(state, first)
    compiled = []
    listener = lambda event, duration, **kw: compiled.append(event)
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        state, _ = task.train(state, second)
        task.eval(state, second)
        assert [e for e in compiled if "compile" in e] == []
        jax.jit(lambda x: x + 1)(jnp.float32(0))  # the listener does hear a compilation
        assert [e for e in compiled if "compile" in e]
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def test_what_is_compiled_ahead_of_shapes_is_what_the_call_runs():
    task = parallel.jit(tiny.build(), mesh(8))
    spread = parallel.batch_sharding(mesh(8))
    like = lambda rows: jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=spread)
    shapes = jax.eval_shape(task.init, KEY, tiny.hparams())
    parallel.compile_ahead(task.train, shapes, jax.tree.map(like, tiny.batches()[0]))
    parallel.compile_ahead(tiny.build().train, shapes, None)  # which nothing compiles
    state = task.init(KEY, tiny.hparams())
    placed = jax.device_put(tiny.batches()[0], spread)
    begun = []
    listener = lambda event, duration, **kw: begun.append(event)
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        state, _ = task.train(state, placed)
        assert [e for e in begun if "mlir" in e] == []
        task.eval(state, placed)
        assert [e for e in begun if "mlir" in e]  # it does hear of a program
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert int(state.step) == 1


def test_training_donates_the_old_state():
    task = tiny.jitted(8)
    state = task.init(KEY, tiny.hparams())
    task.train(state, tiny.batches()[0])
    assert jax.tree.leaves(state.params)[0].is_deleted()


@pytest.mark.parametrize("way", ["jit", "pmap"])
def test_gradient_is_that_of_the_step(way):
    task = on_eight(way)
    state = task.init(KEY, tiny.hparams())
    gradient = task.gradient(state, tiny.batches()[0])
    _, metrics = task.train(state, tiny.batches()[0])
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradient)))
    assert norm == pytest.approx(float(metrics["gradient_norm"].value), rel=1e-5)


# With the augmentation it takes several times as long to compile.
@pytest.mark.parametrize("augmented", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_checked_names_the_operation_that_makes_a_nan(augmented):
    built = tiny.build(augmented=augmented)
    task, expected = parallel.checked(built, mesh(8)), parallel.jit(built, mesh(8))
    feed = lambda start: (batch for batch in tiny.batches()[start:])
    state, same = (
        loop.fit(way, way.init(KEY, tiny.hparams()), feed, steps=2).state
        for way in (task, expected)
    )
    assert tiny.distance(state, same) < TOLERANCE
    batch = tiny.batches()[2]
    mask = np.full_like(batch["mask"], np.inf)
    with pytest.raises(FloatingPointError, match=r"nan generated by primitive: \w+"):
        task.train(state, batch | {"mask": mask})


def test_batch_size_must_divide():
    parallel.check_batch_size(16, mesh(8))
    for size, message in ((12, "8 or 16"), (3, "take 8"), (0, "take 8")):
        with pytest.raises(InputError, match=f"batch_size {size} .*{message}"):
            parallel.check_batch_size(size, mesh(8))
    parallel.check_batch_size(64, mesh(8), 4)
    with pytest.raises(
        InputError,
        match="grad_accum 4 does not divide the 6 rows that each of the 8 devices has of a "
        "batch_size of 48; take grad_accum 3, or a batch_size that divides by 32",
    ):
        parallel.check_batch_size(48, mesh(8), 4)


def test_convolutions_of_steps_on_cpus_are_eigens():
    """Where jaxlib has the choice; products stay what they are, and sums."""
    if parallel.compiler_options(parallel.data_mesh()) is None:
        pytest.skip("this jaxlib has no such option")
    x, kernel, matrix = jnp.ones((8, 56, 56, 64)), jnp.ones((3, 3, 64, 64)), jnp.ones((512, 512))
    convolve = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    by_ynnpack = lambda options, f, *args: (
        "ynn_fusion" in jax.jit(f).lower(*args).compile(options).as_text()
    )
    options = parallel.compiler_options(parallel.data_mesh())
    assert by_ynnpack(None, convolve, x, kernel)
    assert not by_ynnpack(options, convolve, x, kernel)
    for other in (jnp.dot, lambda a, b: (a * b).sum(0)):
        assert by_ynnpack(options, other, matrix, matrix) == by_ynnpack(None, other, matrix, matrix)


def test_an_option_that_jaxlib_does_not_know_is_left_out(monkeypatch):
    known = {"xla_backend_optimization_level": 1}
    monkeypatch.setattr(parallel, "BY_EIGEN", {"xla_of_another_version": "1"})
    assert parallel.compiler_options(parallel.data_mesh()) is None
    monkeypatch.setattr(parallel, "BY_EIGEN", {"xla_of_another_version": "1", **known})
    assert parallel.compiler_options(parallel.data_mesh()) == known


def test_a_compiled_task_may_stand_within_another_program(monkeypatch):
    """Whose options are then those of the whole."""
    monkeypatch.setattr(parallel, "RUN_ONCE", {"xla_backend_optimization_level": 1})
    task = parallel.jit(tiny.build(), parallel.data_mesh(jax.devices()[:1]))
    first, second, *_ = tiny.batches()
    twice = jax.jit(lambda state: task.train(task.train(state, first)[0], second)[0])
    begin = jax.jit(task.init)
    within = twice(begin(jax.random.key(0), tiny.hparams()))
    alone = task.init(jax.random.key(0), tiny.hparams())
    for batch in (first, second):
        alone, _ = task.train(alone, batch)
    assert tiny.distance(within, alone) < 1e-6


@pytest.mark.parametrize(
    ("variables", "large", "told"),
    [
        ({}, True, [("jax_cpu_enable_async_dispatch", False)]),
        ({}, False, []),
        ({"MALLOC_ARENA_MAX": "2"}, True, None),
        ({"JAX_CPU_ENABLE_ASYNC_DISPATCH": "1"}, True, None),
    ],
)
def test_what_a_step_frees_is_kept_unless_the_environment_says_how(
    variables, large, told, monkeypatch
):
    said, asked = [], []
    for name in [*os.environ]:
        if name.startswith(("MALLOC_", "JAX_CPU_")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    libc = types.SimpleNamespace(mallopt=lambda *given: asked.append(given))
    monkeypatch.setattr(parallel.ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(jax.config, "update", lambda *given: said.append(given))
    parallel.keep_freed_memory(large)
    assert said == (told or [])
    assert asked == ([] if told is None else [(-4, 0), (-1, -1)])
    monkeypatch.setattr(parallel.ctypes, "CDLL", lambda name: object())  # no glibc
    asked.clear()
    parallel.keep_freed_memory()
    assert said == (told or [])
    assert not asked


@pytest.mark.slow
def test_a_large_step_takes_no_memory_anew(environment):
    """In a process of one CPU device, by the pages that the kernel had to clear."""
    code = """
import os, resource, sys
import jax, jax.numpy as jnp
from jaxdl import parallel
parallel.keep_freed_memory(sys.argv[1] == "large")
step = jax.jit(lambda x: (jnp.sort(jnp.stack([x] * 16), 1) * 2).sum())  # works in 128 MB and more
x = jnp.ones(2**21)
step(x).block_until_ready(), step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    own = environment | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    faults = {}
    for large in ("large", "small"):
        command = [sys.executable, "-c", code, large]
        done = subprocess.run(command, env=own, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        faults[large] = int(done.stdout)
    assert faults["large"] < 1000 < 10_000 < faults["small"]
