"""What is said of a run: its first line, its end, its summary."""

import functools
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from experiments.harness import devices
from experiments.harness.problem import Problem
from jaxdl import __version__
from jaxdl.task import State
from jaxdl.writers import describe, json_ready, read_rows


def first_line(problem: Problem, state: State, workdir: Path) -> str:
    """What is trained on what by what, and where it is kept."""
    examples = ", ".join(f"{count} {split}" for split, count in problem.examples.items())
    step = int(state.step)
    steps = f"steps {step} to {problem.learner.steps}" if step else f"{problem.learner.steps} steps"
    by = f" by {problem.learner.method}" if problem.learner.method else ""
    return (
        f"{problem.title}{by} on {_devices()}: {_count(state.params):,} parameters, "
        f"{examples} {problem.unit}, {steps}, in {workdir}"
    )


def print_beside(problem: Problem, split: str, metrics: dict[str, float], prefix: str) -> None:
    """Prints what the problem wants below the metrics of a split, which bear a prefix."""
    start = f"{prefix}/"
    own = {k.removeprefix(start): v for k, v in metrics.items() if k.startswith(start)}
    text = problem.view.beside(split, own)
    if text:
        print(text, flush=True)


def print_end(problem: Problem, metrics: dict[str, float], best_step: int | None) -> None:
    """Prints which checkpoint is the best, and the metrics of the last state."""
    split = "test" if "test" in problem.splits else problem.eval_split
    prefix = "test" if split == "test" else "eval"
    final = {k: v for k, v in metrics.items() if k.startswith(f"{prefix}/")}
    by = f"{problem.best.metric.removeprefix('eval/')} on the {problem.eval_split} split"
    print(f"best checkpoint, by {by}: step {best_step}")
    print(f"{split}: {describe(final)}  ({problem.examples[split]} {problem.unit})")
    print_beside(problem, split, final, prefix)


def summary(
    problem: Problem, state: State, metrics: dict[str, float], seconds: float
) -> dict[str, Any]:
    """What summary.json holds; `wall_seconds` are those of the process that finished the run."""
    notes = problem.view.notes()
    return {
        **{name: json_ready(value) for name, value in metrics.items()},
        "step": int(state.step),
        "parameters": _count(state.params),
        "examples": problem.examples,
        "devices": _devices(),
        "versions": _versions() | {"jaxdl": __version__},
        "wall_seconds": round(seconds, 2),
        **{k: json_ready(v) if isinstance(v, float) else v for k, v in notes.items()},
    }


def last_trained(workdir: Path) -> dict[str, float]:
    """The last training metrics of a run; a process that finds it complete has none of its own."""
    rows = [{k: v for k, v in row.items() if k.startswith("train/")} for row in read_rows(workdir)]
    last = next(filter(None, reversed(rows)), {})
    return {name: math.nan if value is None else value for name, value in last.items()}


@functools.cache
def _versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
    return {name: version(name) for name in packages}  # read anew each time otherwise


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _devices() -> str:
    found = devices.of_a_run() or jax.devices()
    return f"{len(found)} {found[0].device_kind} device{'s' if len(found) > 1 else ''}"
