"""What every experiment's run has in common: devices, the workdir, resuming, the loop, a summary.

An experiment describes what it trains as a `Problem`; `main` does the rest.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Generator, Iterable
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments import cli
from experiments.cli import flag, require
from jaxdl import InputError, loop, parallel
from jaxdl.checkpoint import Checkpoints
from jaxdl.task import Batch, State, Task
from jaxdl.writers import Writer, describe, json_ready

INPUTS_FILE = "inputs.json"
SUMMARY_FILE = "summary.json"


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The flags of any training run."""

    experiment: str = flag("", "which experiment this is; kept in flags.txt")
    mode: str = flag("train", "train, or evaluate a run", ("train", "eval"), part_of_run=False)
    split: str = flag(
        "test",
        "what --mode=eval measures",
        ("train", "validation", "test"),
        part_of_run=False,
    )
    workdir: str = flag("", "the run's folder; empty for a new one in runs/", part_of_run=False)
    resume: str = flag(
        "auto",
        "go on with the run in --workdir if there is one, never, or refuse to start without one",
        ("auto", "never", "must"),
        part_of_run=False,
    )
    seed: int = flag(0, "of the weights, the order of the data and all noise")
    batch_size: int = flag(32, "examples a step, over all devices")
    epochs: float = flag(30.0, "passes over the training set, unless --steps is given")
    steps: int | None = flag(None, "updates in all")
    precision: str = flag(
        "float32", "of the computation; parameters stay float32", ("float32", "bfloat16")
    )
    parallel: str = flag(
        "jit",
        "one program over all devices, or one program a device",
        ("jit", "pmap"),
        part_of_run=False,
    )
    coordinator: str = flag(
        "", "several hosts: host:port of process 0, or auto on a cluster", part_of_run=False
    )
    num_processes: int | None = flag(None, "several hosts: of how many", part_of_run=False)
    process_id: int | None = flag(None, "several hosts: which this is", part_of_run=False)
    log_every: int = flag(50, "steps between reports of the training metrics", part_of_run=False)
    eval_every: int = flag(200, "steps between evaluations", part_of_run=False)
    checkpoint_every: int = flag(200, "steps between checkpoints", part_of_run=False)
    keep: int = flag(2, "how many of the latest checkpoints stay, and the best", part_of_run=False)
    profile_steps: int = flag(0, "trace so many steps for TensorBoard", part_of_run=False)
    debug_nans: bool = flag(False, "name the operation that makes a nan (slow)", part_of_run=False)

    def __post_init__(self) -> None:
        """Raises InputError for a value, or a pair of values, that cannot be."""
        for name in ("batch_size", "log_every", "eval_every", "checkpoint_every", "keep"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("seed", "profile_steps"):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        require(self, "epochs", self.epochs > 0, "more than 0")
        require(self, "steps", self.steps is None or self.steps >= 1, "at least 1")
        if self.coordinator not in ("", "auto") and None in (self.num_processes, self.process_id):
            raise InputError("--coordinator=host:port needs --num_processes and --process_id")
        if self.coordinator and not self.workdir:
            raise InputError(
                "a run of several hosts needs --workdir, a folder that all of them see"
            )
        require(self, "debug_nans", not self.debug_nans or self.parallel == "jit", "off with pmap")
        if self.mode == "eval" and not self.workdir:
            raise InputError("--mode=eval needs --workdir, the folder of a run")


class Problem(NamedTuple):
    """What an experiment trains.

    Attributes:
      title: what it is, for the run's first line.
      task: (axis_name) -> Task.
      hparams: the hyperparameters that travel in State.
      steps: updates in all.
      examples: how many there are of each split.
      batches: (n) -> a generator of the batches of the updates after the first n.
      passes: (split) -> one pass over it.
      table: () -> the model's layers, as text.
      show: (key, batch) -> the inputs of a training batch as the model is given them, [N, H, W, C]
        in [0, 1].
      unit: what the loss counts.
      best: the metric by which the best checkpoint is kept.
      inputs: what a trained model must be told with, for prediction: shapes, names of classes.
      notes: () -> what the summary should hold beside all else.
    """

    title: str
    task: Callable[[str | None], Task]
    hparams: dict[str, float]
    steps: int
    examples: dict[str, int]
    batches: Callable[[int], Generator[Batch, None, None]]
    passes: Callable[[str], Iterable[Batch]]
    table: Callable[[], str]
    show: Callable[[Any, Batch], Any]
    unit: str
    best: str
    inputs: dict[str, Any]
    notes: Callable[[], dict[str, Any]]

    @property
    def eval_split(self) -> str:
        """What the run watches: the validation split, or test where there is none."""
        return "validation" if "validation" in self.examples else "test"


Build = Callable[[Any, Mesh], Problem]
"""(config, mesh) -> Problem"""


def main(config_type: type[RunConfig], build: Build) -> None:
    """The command line of an experiment."""

    def run(argv: list[str]) -> None:
        config, rest = cli.parse(config_type, argv)
        if config.mode == "eval":
            cli.experiment_of(config.workdir)
            saved = f"--flagfile={Path(config.workdir) / cli.FLAGS_FILE}"
            config, rest = cli.parse(config_type, [saved, *argv])
        if rest:
            raise InputError(f"{rest[0]!r} is no flag; see --help")
        prepare_jax(config)
        (evaluate if config.mode == "eval" else train)(config, build)

    cli.main(run)


def prepare_jax(config: RunConfig) -> None:
    """Sets up JAX; call it before anything touches a device."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/jaxdl/compiled")
    jax.config.update("jax_compilation_cache_dir", str(Path(cache).expanduser()))
    parallel.start_hosts(config.coordinator or None, config.num_processes, config.process_id)


def _prepare(config: RunConfig, build: Build) -> tuple[Problem, Task, State]:
    """The problem, its task on all devices, and the state it begins with."""
    mesh = parallel.data_mesh()
    parallel.check_batch_size(config.batch_size, mesh)
    problem = build(config, mesh)
    if config.parallel == "pmap":
        task = parallel.pmap(problem.task(parallel.DATA), mesh)
    elif config.debug_nans:
        task = parallel.checked(problem.task(None), mesh)
    else:
        task = parallel.jit(problem.task(None), mesh)
    hparams = {name: jnp.float32(value) for name, value in problem.hparams.items()}
    return problem, task, task.init(jax.random.key(config.seed), hparams)


def train(config: RunConfig, build: Build) -> None:
    """Trains, or goes on training, and leaves the whole record in the workdir."""
    began = time.perf_counter()
    workdir = _open_workdir(config)
    first_host = jax.process_index() == 0
    problem, task, state = _prepare(config, build)
    with Checkpoints(workdir, config.keep, problem.best) as checkpoints:
        restored = checkpoints.restore(state)
        if restored is None and config.resume == "must":
            raise InputError(f"--resume=must, but {workdir} holds no checkpoint")
        state = restored or state
        step = int(state.step)
        if first_host:
            _write(workdir / INPUTS_FILE, json.dumps(problem.inputs, indent=2))
            _write(workdir / cli.FLAGS_FILE, cli.to_flags(config))
            print(_first_line(problem, state, workdir), flush=True)
        with Writer(workdir if first_host else None, step) as writer:
            if step == 0:
                writer.text("model", problem.table())
                first = next(problem.batches(0))
                key = jax.random.fold_in(state.key, 0)
                writer.images(0, "inputs", np.asarray(problem.show(key, first)))
            result = loop.fit(
                task,
                state,
                problem.batches,
                steps=problem.steps,
                eval_batches=lambda: problem.passes(problem.eval_split),
                eval_every=config.eval_every,
                log_every=config.log_every,
                checkpoint_every=config.checkpoint_every,
                checkpoints=checkpoints,
                writer=writer,
                unit=problem.unit,
                profile=(workdir / "tensorboard", config.profile_steps)
                if config.profile_steps
                else None,
            )
            if result.stopped:
                if first_host:
                    print(
                        f"stopped at step {int(result.state.step)} and saved; go on with: python "
                        f"-m experiments.{config.experiment} --flagfile={workdir / cli.FLAGS_FILE}"
                    )
                return
            metrics = result.metrics | _final_metrics(problem, task, result)
            writer.hparams(dataclasses.asdict(config), metrics)
        best_step = checkpoints.best
    if first_host:
        summary = _summary(problem, result.state, metrics, time.perf_counter() - began)
        summary |= {"best_step": best_step}
        _write(workdir / SUMMARY_FILE, json.dumps(summary, indent=2))
        tested = {k: v for k, v in metrics.items() if k.startswith("test/")}
        print(f"test: {describe(tested)}  ({problem.examples['test']} {problem.unit})")


def evaluate(config: RunConfig, build: Build) -> None:
    """Measures the latest checkpoint of a run on one split."""
    workdir = Path(config.workdir)
    cli.check_same_run(config, workdir)
    problem, task, state = _prepare(config, build)
    if config.split not in problem.examples:
        there = ", ".join(problem.examples)
        raise InputError(f"--split={config.split}: this data set has {there}")
    with Checkpoints(workdir, config.keep) as checkpoints:
        restored = checkpoints.restore(state)
    if restored is None:
        raise InputError(f"{workdir} holds no checkpoint")
    measured = loop.evaluate(task, restored, problem.passes(config.split), config.split)
    if jax.process_index() == 0:
        count = problem.examples[config.split]
        step = int(restored.step)
        print(f"{config.split} at step {step}: {describe(measured)}  ({count} {problem.unit})")


def _open_workdir(config: RunConfig) -> Path:
    """Makes the run's folder, or checks that the one named may be gone on with."""
    if not config.workdir:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
            workdir = Path("runs") / f"{config.experiment}-{stamp}{suffix}"
            try:
                workdir.mkdir(parents=True)
            except FileExistsError:
                continue
            return workdir
    workdir = Path(config.workdir)
    if (workdir / cli.FLAGS_FILE).exists():
        if config.resume == "never":
            raise InputError(f"{workdir} holds a run and --resume=never; take another --workdir")
        there = cli.experiment_of(workdir)
        if there != config.experiment:
            raise InputError(
                f"{workdir} holds a run of experiments.{there}; take another --workdir"
            )
        cli.check_same_run(config, workdir)
    elif workdir.exists() and any(workdir.iterdir()) and jax.process_index() == 0:
        raise InputError(f"{workdir} holds other files and no run; take another --workdir")
    elif config.resume == "must":
        raise InputError(f"--resume=must, but there is no run in {workdir}")
    workdir.mkdir(parents=True, exist_ok=True)
    return workdir


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _devices() -> str:
    kind = jax.devices()[0].device_kind
    return f"{jax.device_count()} {kind} device{'s' if jax.device_count() > 1 else ''}"


def _first_line(problem: Problem, state: State, workdir: Path) -> str:
    examples = ", ".join(f"{count} {split}" for split, count in problem.examples.items())
    step = int(state.step)
    steps = f"steps {step} to {problem.steps}" if step else f"{problem.steps} steps"
    return (
        f"{problem.title} on {_devices()}: {_count(state.params):,} parameters, "
        f"{examples} {problem.unit}, {steps}, in {workdir}"
    )


def _final_metrics(problem: Problem, task: Task, result: loop.Result) -> dict[str, float]:
    """The last state's metrics on the watched split (`eval/`) and on the test split (`test/`)."""
    split = problem.eval_split
    measured = {k: v for k, v in result.metrics.items() if k.startswith("eval/")}
    if not measured:  # the run was complete before it began
        measured = loop.evaluate(task, result.state, problem.passes(split), "eval")
    if split == "test" or "test" not in problem.examples:
        tested = {k.replace("eval/", "test/"): v for k, v in measured.items()}
    else:
        tested = loop.evaluate(task, result.state, problem.passes("test"), "test")
    return measured | tested


def _summary(
    problem: Problem, state: State, metrics: dict[str, float], seconds: float
) -> dict[str, Any]:
    """What summary.json holds; `wall_seconds` are those of the process that finished the run."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "jaxdl")
    return {
        **{name: json_ready(value) for name, value in metrics.items()},
        "step": int(state.step),
        "parameters": _count(state.params),
        "examples": problem.examples,
        "devices": _devices(),
        "versions": {name: version(name) for name in packages},
        "wall_seconds": round(seconds, 2),
        **problem.notes(),
    }


def _write(path: Path, text: str) -> None:
    """Writes beside and renames, so that the file is there whole or not at all."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(text.rstrip("\n") + "\n")
    scratch.replace(path)
