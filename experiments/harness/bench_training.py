"""A training step of an image network here, in plain Flax and in torch, by turns."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state

from experiments.harness import bench
from experiments.harness.bench import Side
from experiments.harness.cli import require
from jaxdl import augment, cost, losses, lowering, models, optim, parallel, schedules
from jaxdl.task import supervised

HPARAMS = {"learning_rate": 0.01, "momentum": 0.9, "l2_penalty": 1e-4, "label_smoothing": 0.0}
CLASSES = {224: 1000, 299: 1000}
"""By the size of images; 10 for others."""


def measure(config: Any) -> dict[str, Any]:
    """Prints speeds, ratios, memory and the share of a peak, and returns them.

    All sides learn the same images by momentum and an L2 penalty. Ours has them as bytes, which its
    step normalizes, as it does in a run; the others are given floats.
    """
    require(config, "model", config.model in models.names(), "a name of jaxdl.models.names()")
    batch = batch_of(config)
    classes = CLASSES.get(batch["image"].shape[1], 10)
    model = models.create(config.model, num_classes=classes, dtype=jnp.dtype(config.precision))
    torch = bench.import_torch()
    flax_side, multiply_adds = _plain_flax(model, _floats(batch))
    sides = [_here(model, batch), flax_side]
    if torch is not None:
        sides += _torch_sides(config, torch, classes, _floats(batch))
    print(
        f"{bench.machine(torch)}\n{config.model} on {'x'.join(map(str, batch['image'].shape[1:]))} "
        f"images, batch {config.batch_size}, {config.precision}: "
        f"{2e-9 * multiply_adds:,.3g} GFLOP a step"
    )
    for side in sides:
        side.run(2)  # memory is made room for
    memory = {side.name: bench.peak_bytes(side) for side in sides}
    steps = config.steps or bench.steps_of(sides[0])
    speeds = bench.by_turns(sides, config.rounds, steps, "images/s", config.batch_size)
    peak = bench.matrix_peak(config.precision, torch)
    print(f"matrix products reach {peak / 1e9:,.0f} GFLOP/s")
    for name, speed in speeds.items():
        flops = 2 * multiply_adds / config.batch_size * bench.quartiles(speed).median
        held = memory[name]
        needs = "" if held is None else f", {held / 2**20:,.0f} MiB"
        print(
            f"{name}: {bench.quartiles(speed)} images/s, {flops / 1e9:,.1f} GFLOP/s, "
            f"{flops / peak:.1%} of the peak{needs}"
        )
    compared = bench.ratios(speeds, [sides[0].name])
    return {"speeds": speeds, "ratios": compared, "memory": memory, "peak_flops": peak}


def batch_of(config: Any) -> dict[str, Any]:
    """Noise as images and labels, of the size that the network was published for."""
    height, width, channels = models.IMAGE_SHAPES[config.model]
    if config.image_size is not None:
        height = width = config.image_size
    shape = (config.batch_size, height, width, config.channels or channels)
    rng = np.random.default_rng(0)
    label = rng.integers(0, 10, config.batch_size).astype(np.int32)
    mask = np.ones(config.batch_size, np.float32)
    return {"image": rng.integers(0, 256, shape, np.uint8), "label": label, "mask": mask}


def _floats(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as the other sides have it: normalized beforehand."""
    image = (batch["image"] / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    return {"image": image, "label": batch["label"]}


def _side(name: str, step: Any, state: Any, batch: Any) -> Side:
    """Steps of a jitted (state, batch) -> (state, metrics) that is given its state away."""
    held = bench.tree_bytes((state, batch))
    box = [state]

    def run(steps: int) -> None:
        for _ in range(steps):
            box[0], _ = step(box[0], batch)
        jax.block_until_ready(box[0])

    def planned() -> int:
        plan = step.lower(box[0], batch).compile().memory_analysis()
        arguments, outputs = plan.argument_size_in_bytes, plan.output_size_in_bytes
        return arguments + outputs - plan.alias_size_in_bytes + plan.temp_size_in_bytes

    on_gpu = jax.devices()[0].platform != "cpu"
    return Side(name, run, held, planned if on_gpu else None)


def _here(model: nn.Module, batch: dict[str, Any]) -> Side:
    """The step that the experiments train by."""
    normalize = functools.partial(augment.normalize, mean=(0.5,), std=(0.5,))
    init, loss = losses.classification(model, batch["image"].shape[1:], normalize)
    optimizer, schedule = optim.optimizer("momentum"), schedules.schedule("constant", steps=1)
    mesh = parallel.data_mesh(jax.devices()[:1])
    task = parallel.jit(supervised(init, loss, optimizer, schedule), mesh)
    state = task.init(jax.random.key(0), jax.tree.map(jnp.float32, HPARAMS))
    return _side("here", task.train, state, jax.device_put(batch, parallel.batch_sharding(mesh)))


class _TrainState(train_state.TrainState):
    """As in Flax's ImageNet example."""

    batch_stats: Any
    key: Any


def _plain_flax(model: nn.Module, batch: dict[str, Any]) -> tuple[Side, int]:
    """The step as Flax's examples have it, and its multiply-adds."""

    def step(state: _TrainState, batch: dict[str, Any]) -> tuple[_TrainState, dict[str, Any]]:
        def loss_of(params: Any) -> tuple[Any, Any]:
            logits, new = state.apply_fn(
                {"params": params, "batch_stats": state.batch_stats},
                batch["image"],
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.fold_in(state.key, state.step)},
            )
            found = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return found.mean(), (logits, new)

        (loss, (logits, new)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        new = state.apply_gradients(grads=grads, batch_stats=new.get("batch_stats", {}))
        accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["label"])
        return new, {"loss": loss, "accuracy": accuracy}

    @jax.jit
    def begin(key: Any, image: Any) -> _TrainState:
        variables: Any = model.init(key, image, train=False)
        momentum = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.01, momentum=0.9))
        return _TrainState.create(
            apply_fn=model.apply,
            params=variables["params"],
            tx=momentum,
            batch_stats=variables.get("batch_stats", {}),
            key=key,
        )

    batch = jax.device_put(batch, jax.devices()[0])
    state = begin(jax.random.key(0), batch["image"][:1])
    multiply_adds = cost.cost(step, state, batch).multiply_adds
    side = _side("plain Flax", jax.jit(step, donate_argnums=0), state, batch)
    with stock_programs():
        side.run(2)  # compiles it, and once more for the state that a step has placed
    return side, multiply_adds


@contextlib.contextmanager
def stock_programs() -> Iterator[None]:
    """What is compiled meanwhile for a CPU is so of what `jax.lax` has, with nothing of ours."""
    with mock.patch.object(lowering, "has_known_shape", return_value=False):
        yield


def _torch_sides(config: Any, torch: Any, classes: int, batch: dict[str, Any]) -> list[Side]:
    """torch's step as it stands, and compiled where that works."""
    from experiments.harness import bench_torch

    made = lambda: bench_torch.network(config.model, batch["image"].shape[-1], classes)
    network = made()
    if network is None:
        print(f"there is no torch network of the name {config.model} here: without it")
        return []
    sides = [bench_torch.training("torch", network, batch, config.precision)]
    if config.compile:
        compiled = torch.compile(made())
        side = bench_torch.training("torch.compile", compiled, batch, config.precision)
        try:
            side.run(1)
        except Exception as error:  # whatever a compiler may find missing
            print(f"torch.compile does not work here: {type(error).__name__}")
            return sides
        sides.append(side)
    return sides
