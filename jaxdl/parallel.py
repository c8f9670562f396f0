"""Ways to run a Task: each takes a Task and returns a Task, so they compose and a loop cannot tell.

    task = supervised(init, loss, optimizer)
    task = jit(task, data_mesh())                        # any number of devices
    task = jit(task, mesh, rules=(sharding.fsdp,))       # each of which holds a share of the state
    task = jit(scan(task), mesh, batch_spec=P(None, "data"))   # k steps in one call
    task = jit(vmap(task), mesh)                         # a sweep as one program
    task = lanes(task, mesh)                             # the same, whole trainings on each device
    task = pmap(supervised(..., axis_name="data"), mesh) # one program a device

Buffers are donated here and nowhere else: a state given to `train` must not be used again.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify, multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdl import Batch, InputError, drawing, sharding
from jaxdl.sharding import Rules
from jaxdl.task import Begin, Metrics, State, Task, Train

DATA = sharding.DATA
"""The mesh axis that batches are spread over."""

BATCH = P(DATA)
"""A batch's layout: its first axis over the mesh. `P(None, DATA)` is that of k stacked batches."""

WHOLE_SUMS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
"""How XLA compiles for TPUs what `fsdp` cuts: gradients are summed and then cut.

It would else compute each in pieces that go from chip to chip meanwhile; of ResNet-50 on eight
chips that took 14.5 GB of each where this takes 10.2, as without `fsdp`.
"""

_BY_YNNPACK = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
BY_EIGEN = {"xla_cpu_experimental_ynn_fusion_type": _BY_YNNPACK}
"""How XLA compiles steps for a CPU: matrix products and sums by YNNPACK, convolutions by Eigen.

jaxlib 0.10 gives YNNPACK these too, which takes half as long again for those of large images, and
six times as long for the kernel's gradient of few channels.
"""

RUN_ONCE = {
    "xla_backend_optimization_level": 1,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
"""How XLA compiles for a CPU what runs once: in about half the time, and to the same bits.

The emitters that jaxlib had before, and after 0.11 has no more, are right for whole modules alone.
"""


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, `data`, over the given devices (all by default, of all processes)."""
    return sharding.make_mesh({DATA: -1}, devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How `jit` and `pmap` want a batch: its first axis spread over the mesh."""
    return NamedSharding(mesh, BATCH)


def keep_freed_memory(of_large_steps: bool = True) -> None:
    """Has a process on CPUs keep what a step frees; call it before anything touches a device.

    What a step computes between its arguments and results is one block. By default glibc gives a
    large one back at once, and the kernel clears each of its pages anew in the next step: of steps
    on large images that takes a quarter to a third. The price is that a process stays as large as
    it once was.

    It does nothing where there is no glibc, or where the environment has a say of its own, by
    variables MALLOC_ or by JAX_CPU_ENABLE_ASYNC_DISPATCH.

    Args:
      of_large_steps: also of blocks beyond 64 MB, which glibc keeps in the main thread alone: one
        CPU device then runs its programs there, and makes a step when it is called, no longer
        beside what Python does next. Steps of a few milliseconds are better off without. Several
        devices run in threads as ever.
    """
    said = [n for n in os.environ if n.startswith(("MALLOC_", "JAX_CPU_ENABLE_ASYNC_DISPATCH"))]
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or said:
        return
    trim_threshold, mmap_max = -1, -4  # of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)  # never
    if of_large_steps:
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def own_rows(batch: Batch) -> Batch:
    """The rows of a global batch that this host's devices hold, in order; all, of a single host."""

    def rows(array):
        if not isinstance(array, jax.Array) or array.is_fully_addressable:
            return array
        held = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
        return np.concatenate([held[start] for start in sorted(held)])

    return jax.tree.map(rows, batch)


def readable(tree: Any) -> Any:
    """A tree that each host can read alone: what is cut over several hosts is gathered to them all.

    All hosts must call it. Of one host it is the tree as it is.
    """

    def whole(leaf):
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(whole, tree)


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises InputError when a global batch cannot be dealt out evenly to the devices.

    Args:
      batch_size: rows of a global batch.
      mesh: the devices.
      accumulate: into how many parts each device cuts its rows (see `task.supervised`).
    """
    count = sharding.axis_size(mesh, DATA)
    if batch_size < 1 or batch_size % count:
        below = batch_size - batch_size % count
        fits = f"{below} or {below + count}" if below > 0 else f"{count}"
        raise InputError(
            f"batch_size {batch_size} does not divide by the {count} {_devices(mesh)}; take {fits}"
        )
    rows = batch_size // count
    if rows % accumulate:
        less = max(n for n in range(1, accumulate) if rows % n == 0)
        raise InputError(
            f"grad_accum {accumulate} does not divide the {rows} rows that each of the {count} "
            f"{_devices(mesh)} has of a batch_size of {batch_size}; take grad_accum {less}, or a "
            f"batch_size that divides by {accumulate * count}"
        )


def _devices(mesh: Mesh) -> str:
    """What a mesh has along `data`, for messages."""
    return "devices" if mesh.size == mesh.shape[DATA] else f"devices along the mesh axis {DATA!r}"


def jit(task: Task, mesh: Mesh, batch_spec: P = BATCH, rules: Rules = ()) -> Task:
    """Compiles a Task for a mesh: the state placed by rules, each batch spread over the devices.

    A step sees the global batch, so sums, batch statistics and random draws are those of one
    device; the compiler adds the communication.

    Args:
      task: what to compile.
      mesh: the devices, by the axis `data` and others that `rules` name.
      batch_spec: of a batch.
      rules: how the arrays of a state are cut (`jaxdl.sharding`); with none every device holds all.
        What is cut over `data` is gathered once a step, before it is used, and only the device's
        own share of it is updated.

    Returns:
      The compiled Task. On one CPU device its `train` also makes several steps in one call:
      `train.several(state, batches, count)`, of as many as there are batches in a list the first
      `count`, to the state after them and their metrics, [len(batches), metrics]: a row for each
      step, of the leaves in order, and the rows of those that were not made 0.

    Raises:
      InputError: when the state is first seen, a rule that fits nothing of it, or not the mesh.
    """
    if rules:
        return _jit_by_rules(task, mesh, batch_spec, rules)
    everywhere, spread = NamedSharding(mesh, P()), NamedSharding(mesh, batch_spec)
    compiled = functools.partial(
        _Compiled,
        compiler_options(mesh),
        in_shardings=(everywhere, spread),
        out_shardings=everywhere,
    )
    train = compiled(task.train, donate_argnums=0)
    if mesh.size == 1 and mesh.devices.flat[0].platform == "cpu":
        several, inputs = functools.partial(_several, train), (everywhere, spread, None)
        train.several = compiled(several, donate_argnums=0, in_shardings=inputs)
    return Task(
        init=_jit_init(task.init, mesh, everywhere),
        train=train,
        eval=compiled(task.eval),
        gradient=compiled(task.gradient),
    )


def _jit_by_rules(task: Task, mesh: Mesh, batch_spec: P, rules: Rules) -> Task:
    # A state comes as `init` placed it, so that no shape has to be known before it does.
    everywhere, inputs = NamedSharding(mesh, P()), (None, NamedSharding(mesh, batch_spec))

    def placed(tree, specs):
        constrain = lambda array, spec: jax.lax.with_sharding_constraint(
            array, NamedSharding(mesh, spec)
        )
        return jax.tree.map(constrain, tree, specs)

    def used(state, specs, *names):
        """The state as a step uses it: networks whole over `data`, on which examples are."""
        whole = jax.tree.map(lambda spec: P(*(a if a != DATA else None for a in spec)), specs)
        return state._replace(
            **{name: placed(getattr(state, name), getattr(whole, name)) for name in names}
        )

    def init(key, hparams):
        state = task.init(key, hparams)
        return placed(state, sharding.specs(state, rules, mesh))

    def train(state, batch):
        specs = sharding.specs(state, rules, mesh)
        state, metrics = task.train(used(state, specs, "params", "extra"), batch)
        return placed(state, specs), jax.lax.with_sharding_constraint(metrics, everywhere)

    def evaluate(state, batch):
        specs = sharding.specs(state, rules, mesh)
        return task.eval(used(state, specs, "params", "extra", "average"), batch)

    def gradient(state, batch):
        specs = sharding.specs(state, rules, mesh)
        return placed(task.gradient(used(state, specs, "params", "extra"), batch), specs.params)

    compiled = functools.partial(_Compiled, compiler_options(mesh, rules), in_shardings=inputs)
    return Task(
        init=_jit_init(init, mesh, None),
        train=compiled(train, donate_argnums=0),
        eval=compiled(evaluate, out_shardings=everywhere),
        gradient=compiled(gradient),
    )


def _jit_init(init: Begin, mesh: Mesh, placed: NamedSharding | None) -> Begin:
    """Compiles a Task's `init`, which would take longer than its step does, and runs once."""
    return _Compiled(_run_once(mesh), drawing.together(init), out_shardings=placed)


class _Compiled:
    """A compiled function of a Task: by options of its own, or part of what it is called within.

    JAX takes options for whole programs alone. `lower` and `trace` are those of `jax.jit`.

    Attributes:
      several: of `train`, what makes several steps in one call (see `jit`), if there is such.
    """

    several: "_Compiled | None" = None

    def __init__(self, options: dict[str, Any] | None, function: Callable[..., Any], **how: Any):
        self._alone = jax.jit(function, compiler_options=options, **how)
        self._within = jax.jit(function, **how) if options else self._alone
        self.lower, self.trace = self._alone.lower, self._alone.trace
        self.ahead: futures.Future[Any] | None = None  # of `compile_ahead`

    def __call__(self, state: Any, *inputs: Any) -> Any:
        if self.ahead is not None:
            futures.wait([self.ahead])  # what went wrong there goes wrong here, which tells of it
            self.ahead = None
        first = state.step if isinstance(state, State) else state  # all leaves would take a while
        traced = any(isinstance(a, jax.core.Tracer) for a in (first, *jax.tree.leaves(inputs)))
        return (self._within if traced else self._alone)(state, *inputs)


def compile_ahead(function: Callable[..., Any], *like: Any) -> None:
    """Compiles a function of a Task that `jit` made, in a thread; its first call waits for that.

    Meanwhile data are read and weights are drawn. The arguments of that call have to be just like
    these in shapes, types and shardings, or it compiles anew. A function that comes of something
    else is left as it is.

    Args:
      function: such as `task.train`.
      like: its arguments, as arrays or as `jax.ShapeDtypeStruct`s with a sharding.
    """
    if isinstance(function, _Compiled):
        thread = futures.ThreadPoolExecutor(1)
        function.ahead = thread.submit(function.lower(*like).compile)
        thread.shutdown(wait=False)


def _run_once(mesh: Mesh) -> dict[str, Any] | None:
    return _known(RUN_ONCE) if mesh.devices.flat[0].platform == "cpu" else None


def compiler_options(mesh: Mesh, rules: Rules = ()) -> dict[str, Any] | None:
    """How XLA is to compile steps, as `jax.jit` takes it; None for its defaults.

    `jit` and `lanes` see to it; a step that is compiled by hand is as quick with
    `jax.jit(task.train, compiler_options=compiler_options(mesh))`.

    Args:
      mesh: the devices.
      rules: how the arrays of a state are cut.
    """
    platform = mesh.devices.flat[0].platform
    if platform == "tpu" and sharding.fsdp in rules:
        return WHOLE_SUMS
    return _known(BY_EIGEN) if platform == "cpu" else None


def _known(options: dict[str, Any]) -> dict[str, Any] | None:
    """Those of the options that this jaxlib has, which others may not know; None for none."""
    return {name: value for name, value in options.items() if _is_known(name, value)} or None


@functools.cache
def _is_known(option: str, value: Any) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def checked(task: Task, mesh: Mesh) -> Task:
    """Runs a Task as `jit` does, slowly, and raises FloatingPointError where a nan first arises.

    The error names the operation. For looking for a fault, not for training; each device holds the
    whole state, so that rules that cut it have no place here.
    """

    def find_nan(function):
        compiled = jax.jit(
            checkify.checkify(function, errors=checkify.nan_checks),
            in_shardings=(NamedSharding(mesh, P()), NamedSharding(mesh, BATCH)),
        )

        def run(state, batch):
            error, result = compiled(state, batch)
            if error.get():
                raise FloatingPointError(error.get())
            return result

        return run

    return jit(task, mesh)._replace(train=find_nan(task.train), eval=find_nan(task.eval))


def pmap(task: Task, mesh: Mesh) -> Task:
    """Runs a Task built with `axis_name="data"` as one program on each device of one process.

    Each device sees its share of the batch and the task sums over the axis itself. States and
    batches look as they do under `jit`: global arrays, no replica axis.
    """
    if jax.process_count() > 1:
        raise InputError("pmap runs in a single process; several hosts are served by jit")

    def mapped(function, donated=()):
        inner = jax.pmap(
            function,
            DATA,
            in_axes=(None, 0),
            out_axes=None,
            devices=list(mesh.devices.flat),
            donate_argnums=donated,
        )

        def run(state, batch):
            deal = lambda x: x.reshape(mesh.size, -1, *x.shape[1:])
            return inner(state, jax.tree.map(deal, batch))

        return run

    return Task(
        init=_jit_init(task.init, mesh, NamedSharding(mesh, P())),
        train=mapped(task.train, donated=(0,)),
        eval=mapped(task.eval),
        gradient=mapped(task.gradient),
    )


def scan(task: Task) -> Task:
    """Makes `train` take k batches stacked on a new first axis, and run k steps as one.

    Metrics come back stacked likewise. It saves the launch of k - 1 programs, which shows in small
    steps.
    """
    return task._replace(train=lambda state, batches: jax.lax.scan(task.train, state, batches))


def lanes(task: Task, mesh: Mesh, at_once: int | None = None) -> Task:
    """Runs many trainings as one program, whole ones on each device, several steps in one call.

    A device has its own lanes and no word with the others. `train` takes batches [lanes, k, B, ...]
    and on how many of the k to train; its metrics are [lanes, k], of which the rest are 0.

    Args:
      task: the Task of a single training.
      mesh: the devices, of which the number of lanes has to be a multiple.
      at_once: so many lanes of a device, at most, make all steps of a call before the next lanes
        do; all by default. Where their states have room in a core's cache that is quicker.

    Returns:
      A Task of states, keys, hyperparameters, batches and metrics with a first axis of lanes.
    """
    options = compiler_options(mesh)

    def in_turns(function):
        def run(states, batches, *shared):
            found = states.step.shape[0]
            turns = -(-found // (at_once or found))
            own = lambda lane: function(*lane, *shared)
            return jax.lax.map(own, (states, batches), batch_size=-(-found // turns))

        return run

    def compiled(function, options, inputs=(BATCH, BATCH), donated=()):
        apart = jax.shard_map(
            function, mesh=mesh, in_specs=inputs, out_specs=BATCH, check_vma=False
        )
        return _Compiled(options, apart, donate_argnums=donated)

    steps = functools.partial(_stacked, task.train)
    return Task(
        init=compiled(vmap(task).init, _run_once(mesh)),
        train=compiled(in_turns(steps), options, (BATCH, BATCH, P()), donated=0),
        eval=compiled(in_turns(task.eval), options),
        gradient=compiled(in_turns(task.gradient), options),
    )


def _steps(
    train: Train, state: State, batch: Callable[[Any], Batch], most: int, count: Any
) -> tuple[State, jax.Array]:
    """The first `count` steps of `most`, and their metrics in rows: the leaves in order.

    Unlike a `scan`'s their number is data, so that calls of any length are one program. One array
    of metrics is less to compile than one of each.

    Args:
      batch: (place) -> the batch of a step, whose place is traced.
    """
    metrics = jax.tree.leaves(jax.eval_shape(lambda: train(state, batch(0))[1]))

    def step(place, done):
        state, rows = done
        state, metrics = train(state, batch(place))
        return state, rows.at[place].set(jnp.stack(jax.tree.leaves(metrics)))

    return jax.lax.fori_loop(0, count, step, (state, jnp.zeros((most, len(metrics)))))


def _several(
    train: Train, state: State, batches: Sequence[Batch], count: Any
) -> tuple[State, jax.Array]:
    """`_steps` on batches that lie apart: to choose is less to compile than to stack them."""
    choices = [lambda own=own: own for own in batches]
    return _steps(train, state, lambda place: jax.lax.switch(place, choices), len(batches), count)


def _stacked(train: Train, state: State, batches: Batch, count: Any) -> tuple[State, Metrics]:
    """`_steps` on batches [k, B, ...], and each of the metrics [k]."""
    batch = lambda place: jax.tree.map(lambda rows: rows[place], batches)
    most = jax.tree.leaves(batches)[0].shape[0]
    state, rows = _steps(train, state, batch, most, count)
    form = jax.tree.structure(jax.eval_shape(lambda: train(state, batch(0))[1]))
    return state, jax.tree.unflatten(form, list(rows.T))


def vmap(task: Task, batch_axis: int | None = None) -> Task:
    """Runs many trainings as one: `init` takes keys [n] and hyperparameters of shape [n].

    States are begun one after another: of jaxlib on CPUs, two decompositions of stacked matrices at
    once, as in several orthogonal kernels, may wait for one another without end.

    Args:
      task: the Task of a single training.
      batch_axis: None when all train on the same batch, 0 when batches are stacked [n, B, ...].
    """
    axes, init = (0, batch_axis), drawing.together(task.init)
    return Task(
        init=lambda keys, hparams: jax.lax.map(lambda one: init(*one), (keys, hparams)),
        train=jax.vmap(task.train, axes),
        eval=jax.vmap(task.eval, axes),
        gradient=jax.vmap(task.gradient, axes),
    )
