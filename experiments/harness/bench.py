"""What measurements of speed share: sides that run by turns, their ratios, a peak, memory, records.

Sides run in one process by turns, so that a machine that slows down slows all of them. Ratios are
of one round each; quartiles are over the rounds.
"""

import contextlib
import ctypes
import dataclasses
import gc
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

SECONDS = 1.0
"""What a side is to run for in a round, where no number of steps is given."""


class Run(Protocol):
    """Runs some steps, and returns once the last of them is done."""

    def __call__(self, steps: int, /) -> None:
        """(steps) -> None."""


class Side(NamedTuple):
    """One of those that are compared.

    Attributes:
      name: what it is called.
      run: its steps.
      held: bytes of what it keeps from step to step, its batch included.
      peak: () -> how many bytes a step needs at most, these included; None for what the process
        grows by in one.
    """

    name: str
    run: Run
    held: int = 0
    peak: Callable[[], int] | None = None


class Quartiles(NamedTuple):
    """The middle half of what was measured in several rounds."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        """`1.05 (1.02 to 1.07)`, in as many digits as are worth reading."""
        low, median, high = (number(value) for value in self)
        return f"{median} ({low} to {high})"


def quartiles(values: Sequence[float]) -> Quartiles:
    """The quartiles of values."""
    return Quartiles(*(float(v) for v in np.percentile(values, [25, 50, 75])))


def number(value: float) -> str:
    """A number to three digits, larger ones to the unit."""
    digits = max(0, 2 - int(np.floor(np.log10(abs(value))))) if value else 0
    return f"{value:,.{digits}f}"


def steps_of(side: Side, seconds: float = SECONDS) -> int:
    """How many steps of a side, which was run before, take so long."""
    began = time.perf_counter()
    side.run(1)
    return max(1, round(seconds / (time.perf_counter() - began)))


def by_turns(
    sides: Sequence[Side], rounds: int, steps: int, unit: str, of_step: float
) -> dict[str, list[float]]:
    """Runs the sides by turns, each round beginning with another one, and prints the rounds.

    Args:
      sides: all of which have run before.
      rounds: how often each runs.
      steps: how many steps each runs in a round.
      unit: of the speed.
      of_step: how many of the unit a step has.

    Returns:
      {name: the speed in each round}.
    """
    speeds: dict[str, list[float]] = {side.name: [] for side in sides}
    for turn in range(rounds):
        first = turn % len(sides)
        for side in (*sides[first:], *sides[:first]):
            began = time.perf_counter()
            side.run(steps)
            speeds[side.name].append(steps * of_step / (time.perf_counter() - began))
        said = ", ".join(f"{name} {number(speed[-1])}" for name, speed in speeds.items())
        print(f"round {turn + 1}: {said} {unit}", flush=True)
    return speeds


def ratios(speeds: Mapping[str, Sequence[float]], names: Sequence[str]) -> dict[str, Quartiles]:
    """The speeds of `names` over those of all others, round by round, printed a line each."""
    found = {}
    for name in names:
        for other, theirs in speeds.items():
            if other not in names:
                found[f"{name} over {other}"] = quartiles(np.divide(speeds[name], theirs).tolist())
    for pair, ratio in found.items():
        print(f"{pair}: {ratio}")
    return found


def matrix_peak(dtype: str, torch: Any = None) -> float:
    """The FLOP/s of large products of two square matrices, the best of JAX's and torch's."""
    size, repeats = (2048, 5) if jax.devices()[0].platform == "cpu" else (8192, 50)
    a = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    runs: list[Callable[[], Any]] = [lambda: jax.block_until_ready(product(a, a))]
    if torch is not None:
        b = torch.ones(size, size, dtype=getattr(torch, dtype), device=torch_device(torch))

        def of_torch():
            c = b @ b
            return c[0, 0].item()  # waits for it

        runs.append(of_torch)
    best = np.inf
    for run in runs:
        run()
        for _ in range(repeats):
            began = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def peak_bytes(side: Side) -> int | None:
    """How much memory a step of a side, which was run before, needs; None where nothing tells."""
    if side.peak is not None:
        return side.peak()
    try:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # glibc's: what was freed goes back to the system
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
        before = _resident("VmRSS")
        side.run(1)
        return side.held + max(0, _resident("VmHWM") - before)
    except OSError:
        return None  # another system than Linux


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def tree_bytes(tree: Any) -> int:
    """The bytes of a tree's arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def import_torch() -> Any:
    """The module torch, or None with a line that says that it is not there."""
    try:
        import torch
    except ImportError:
        print("torch is not installed: without it")
        return None
    if torch_device(torch) == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as JAX's default is on GPUs
    return torch


def torch_device(torch: Any) -> str:
    """Where torch works: on a GPU if JAX does."""
    on_gpu = jax.devices()[0].platform == "gpu" and torch.cuda.is_available()
    return "cuda" if on_gpu else "cpu"


def machine(torch: Any = None) -> str:
    """What measured: devices, cores and versions, as one line."""
    devices, cores = jax.devices(), len(os.sched_getaffinity(0))
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax")]
    if torch is not None:
        versions.append(f"torch {torch.__version__} with {torch.get_num_threads()} threads")
    return f"{len(devices)} {devices[0].device_kind}, {cores} cores, {', '.join(versions)}"


def record(path: str, config: Any, results: Mapping[str, Any]) -> None:
    """Adds a line of JSON with the flags and what they gave to a file, if one is named."""
    if path:
        row = dataclasses.asdict(config) | {"machine": machine()} | dict(results)
        with Path(path).open("a") as file:
            file.write(json.dumps(row) + "\n")
