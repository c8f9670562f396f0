"""The devices of a run: their mesh, how its state is cut over them, its batch, its memory."""

import contextlib
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from experiments.harness.problem import Problem
from jaxdl import InputError, models, parallel, sharding

LARGE_PIXELS = 2**15
"""Of a batch: from these on a network that convolves them works in more than 64 MB at a step."""
SMALLER = {"lenet5": 12, "lenet5_1998": 12, "mlp": 100}
"""How many times as many it takes of networks that work in less memory for each."""

_cores_are_devices = False  # what JAX cannot say: that it was `take_cores` who asked for them


def take_cores(runs: int) -> None:
    """Takes each core of a CPU for a device, for so many runs as lanes, if nobody said how many.

    Most operations of a small network are too small for two cores, so that lanes of one device
    leave the others idle. Call it before anything touches a device; after that it does nothing.
    """
    global _cores_are_devices
    asked: int = getattr(jax.config, "jax_num_cpu_devices", -1)
    if asked > 0 or "device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    most_of_a_core = math.ceil(runs / len(os.sched_getaffinity(0)))
    cores = math.ceil(runs / max(most_of_a_core, 1))  # as many as go round without idle places
    if cores > 1:
        with contextlib.suppress(RuntimeError):  # a device was touched
            jax.config.update("jax_num_cpu_devices", cores)
            _cores_are_devices = True


def are_steps_large(config: Any) -> bool:
    """Whether the steps of a run work in much memory, as far as its flags tell."""
    images, network = getattr(config, "images", None), getattr(config, "network", None)
    model = getattr(network, "model", network)  # of a GAN it is a word
    return images is not None and is_large(model, config.run.batch_size, images.image_size)


def is_large(model: str | None, batch_size: int, image_size: int) -> bool:
    """Whether a step on so many images of that height and width works in much memory."""
    return batch_size * image_size**2 >= LARGE_PIXELS * SMALLER.get(model or "", 1)


def of_a_run() -> list[jax.Device] | None:
    """The devices of a run that is trained alone; None for all there are.

    Of cores it is the first device, whose programs use all of them.
    """
    return jax.devices()[:1] if _cores_are_devices and jax.default_backend() == "cpu" else None


def mesh_of(config: Any, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices of a run, by default those of `of_a_run`, as its --mesh lays them out.

    Raises:
      InputError: it does not fit them.
    """
    axes = config.run.mesh_axes
    devices = of_a_run() if devices is None else devices
    if devices is None and axes == {sharding.DATA: -1}:
        return parallel.data_mesh()
    return sharding.make_mesh(axes, devices)


def sharding_rules(config: Any, problem: Problem) -> sharding.Rules:
    """How a run's --shard cuts its state.

    Raises:
      InputError: it is to be cut by a model that says nothing.
    """
    by_model = "model" in config.run.shard
    if by_model and not problem.learner.sharding:
        raise InputError(
            f"--shard=model: {problem.title.split()[0]} says nothing of how it is cut; take "
            f"--shard=fsdp, or one of {', '.join(models.SHARDING)}"
        )
    of_model = problem.learner.sharding if by_model else ()
    return (*of_model, sharding.fsdp) if "fsdp" in config.run.shard else of_model


def check_devices(config: Any) -> None:
    """Raises InputError when a batch, or a part by --grad_accum, does not go round the devices."""
    parallel.check_batch_size(config.run.batch_size, mesh_of(config), config.run.grad_accum)
