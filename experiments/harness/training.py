"""What every experiment's run has in common: devices, the workdir, resuming, the loop, a summary.

An experiment describes what it trains as a `Problem`; `main` does the rest.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.harness import cli
from experiments.harness.cli import Interrupted, flag, require
from jaxdl import InputError, checkpoint, files, hosts, loop, optim, parallel
from jaxdl.checkpoint import Checkpoints
from jaxdl.task import Batch, State, Task, observe
from jaxdl.writers import Writer, describe, json_ready, read_rows

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
        "go on with the run in --workdir if there is one, never, refuse to start without one, or "
        "train it further than it was meant to go, by more --steps or --epochs",
        ("auto", "never", "must", "extend"),
        part_of_run=False,
    )
    seed: int = flag(0, "of the weights, the order of the data and all noise")
    batch_size: int = flag(32, "examples a step, over all devices")
    epochs: float = flag(30.0, "passes over the training set, unless --steps is given")
    steps: int | None = flag(None, "updates in all")
    precision: str = flag(
        "float32",
        "of the computation; parameters stay float32; float16 scales its loss",
        ("float32", "bfloat16", "float16"),
    )
    ema_decay: float | None = flag(
        None, "of moving averages of the parameters, evaluated beside them, such as 0.999"
    )
    plateau: int | None = flag(
        None, "cut the learning rate after so many evaluations without a better one"
    )
    plateau_factor: float = flag(0.1, "what --plateau multiplies the learning rate with")
    early_stop: int | None = flag(
        None, "stop after so many evaluations without a better one, and go back to the best"
    )
    folds: int | None = flag(
        None,
        "cross-validate: train once for each of so many folds of the training split, which that "
        "run is tested on in place of the test split",
    )
    fold: int | None = flag(None, "with --folds: which to hold out; all in turn when not given")
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
    histograms: bool = flag(
        True,
        "show those of weights and gradients after evaluations, by a program more",
        part_of_run=False,
    )
    profile_steps: int = flag(0, "trace so many steps for TensorBoard", part_of_run=False)
    debug_nans: bool = flag(False, "name the operation that makes a nan (slow)", part_of_run=False)
    # No flag: the names of those that were given. What a run wrote down was all given to it, so
    # that nothing that depends on this changes when it goes on.
    given: frozenset[str] = dataclasses.field(default=frozenset(), compare=False, repr=False)

    def __post_init__(self) -> None:
        """Raises InputError for a value, or a pair of values, that cannot be."""
        for name in ("batch_size", "log_every", "eval_every", "checkpoint_every", "keep"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "profile_steps", self.profile_steps >= 0, "at least 0")
        # Beyond 32 bits seeds would be those of smaller ones, and steps would not be counted.
        require(self, "seed", 0 <= self.seed < 2**32, "at least 0 and less than 2**32")
        require(self, "epochs", self.epochs > 0, "more than 0")
        for name in ("plateau", "early_stop"):
            value = getattr(self, name)
            require(self, name, value is None or value >= 1, "at least 1")
        decay = self.ema_decay
        require(self, "ema_decay", decay is None or 0 <= decay < 1, "at least 0 and less than 1")
        require(self, "plateau_factor", 0 < self.plateau_factor < 1, "more than 0, less than 1")
        cuts = self.plateau is not None or self.plateau_factor == RunConfig.plateau_factor
        require(self, "plateau_factor", cuts, "left out without --plateau")
        require(self, "folds", self.folds is None or self.folds >= 2, "at least 2")
        folds = range(self.folds or 0)
        require(
            self,
            "fold",
            self.fold is None or self.fold in folds,
            f"at least 0 and less than --folds={self.folds}" if folds else "given with --folds",
        )
        counted = self.steps is None or 1 <= self.steps < 2**31
        require(self, "steps", counted, "at least 1 and less than 2**31")
        self._check_hosts()
        require(self, "workdir", "://" not in self.workdir, "a folder of this machine")
        require(self, "debug_nans", not self.debug_nans or self.parallel == "jit", "off with pmap")

    def _check_hosts(self) -> None:
        number, count = self.process_id, self.num_processes
        if self.coordinator in ("", "auto"):
            for name in ("num_processes", "process_id"):
                # Of runs of several hosts, older flagfiles hold them.
                alone = getattr(self, name) is None or self.mode != "train"
                require(self, name, alone, "left out without --coordinator=host:port")
        elif number is None or count is None:
            raise InputError("--coordinator=host:port needs --num_processes and --process_id")
        else:
            host, _, port = self.coordinator.rpartition(":")
            known = host != "" and port.isdecimal() and 1 <= int(port) < 2**16
            require(self, "coordinator", known, "host:port of process 0, or auto")
            require(self, "num_processes", count >= 1, "at least 1")
            require(self, "process_id", 0 <= number < count, f"at least 0 and less than {count}")
        if self.coordinator and not self.workdir:
            raise InputError(
                "a run of several hosts needs --workdir, a folder that all of them see"
            )


class Problem(NamedTuple):
    """What an experiment trains.

    Attributes:
      title: what it is, for the run's first line.
      task: (axis_name) -> Task.
      hparams: the hyperparameters that travel in State. With `ema_decay` among them the task keeps
        averages of its own.
      steps: updates in all.
      examples: how many there are of each split.
      batches: (n) -> a generator of the batches of the updates after the first n.
      passes: (split) -> one pass over it.
      table: () -> the model's layers, as text.
      show: (key, batch) -> the inputs of a training batch as the model is given them, images
        [N, H, W, C] in [0, 1]; None where there is nothing to see.
      unit: what the loss counts.
      best: the metric by which the best checkpoint is kept, and training stopped early.
      best_is_least: whether the least value of it is the best.
      measures: the names of what `measure` gives.
      measure: (state, split) -> metrics of a state that are no means over a split's examples, by
        name; on every host.
      beside: (split, its metrics by name) -> lines to print below them, such as what chance gets.
      report: (state, metrics, writer) -> None: shows what numbers do not, after each evaluation, on
        the first host alone. The metrics are the last under `train/` and `eval/`.
      finish: (state) -> None: shows what a run came to, once, on the first host alone.
      inputs: what a trained model must be told with, for prediction: shapes, names of classes.
      notes: () -> what the summary should hold beside all else.
      method: how it is minimized and what decays, for the run's first line.
    """

    title: str
    task: Callable[[str | None], Task]
    hparams: dict[str, Any]
    steps: int
    examples: dict[str, int]
    batches: Callable[[int], Generator[Batch, None, None]]
    passes: Callable[[str], Iterable[Batch]]
    table: Callable[[], str]
    show: Callable[[Any, Batch], Any] | None
    unit: str
    best: str
    inputs: dict[str, Any]
    notes: Callable[[], dict[str, Any]]
    best_is_least: bool = False
    measures: tuple[str, ...] = ()
    measure: Callable[[State, str], dict[str, float]] = lambda state, split: {}
    beside: Callable[[str, dict[str, float]], str] = lambda split, metrics: ""
    report: Callable[[State, dict[str, float], Writer], None] = lambda state, metrics, writer: None
    finish: Callable[[State], None] = lambda state: None
    method: str = ""

    @property
    def eval_split(self) -> str:
        """What the run watches: the validation split, or test where there is none."""
        return "validation" if "validation" in self.examples else "test"


Build = Callable[[Any, Mesh], Problem]
"""(config, mesh) -> Problem"""


def main(config_type: type[RunConfig], build: Build, **modes: Callable[[Any, Build], None]) -> None:
    """The command line of an experiment.

    Args:
      config_type: its flags.
      build: what it trains.
      modes: what each --mode of its own does with a trained run: (config, build) -> None. Like
        `evaluate` it takes the flags of the run in --workdir, and those given now over them.
    """
    modes = {"eval": evaluate, **modes}

    def run(argv: list[str]) -> None:
        config, rest = cli.parse(config_type, argv)
        if config.mode != "train":
            require(config, "workdir", config.workdir != "", f"a run's, for --mode={config.mode}")
            cli.experiment_of(config.workdir)
            saved = f"--flagfile={Path(config.workdir) / cli.FLAGS_FILE}"
            alone = "--coordinator="  # how many hosts trained it is no matter
            config, rest = cli.parse(config_type, [saved, alone, *argv])
            if config.folds and config.fold is None:
                raise InputError(f"{config.workdir} holds folds; give the --workdir of one of them")
        if rest:
            raise InputError(f"{rest[0]!r} is no flag; see --help")
        prepare_jax(config)
        if config.mode != "train":
            modes[config.mode](config, build)
        elif config.folds and config.fold is None:
            cross_validate(config, build)
        else:
            train(config, build)
        hosts.wait()  # for the first, which may still have much to show and to write

    cli.main(run)


def prepare_jax(config: RunConfig) -> None:
    """Sets up JAX; call it before anything touches a device."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/jaxdl/compiled")
    jax.config.update("jax_compilation_cache_dir", str(Path(cache).expanduser()))
    # What a full disk or a kill left broken there is compiled anew.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    hosts.start(config.coordinator or None, config.num_processes, config.process_id)


def task_of(
    config: RunConfig, problem: Problem, axis_name: str | None = None
) -> tuple[Task, dict[str, Any]]:
    """The problem's task, with averages where they are asked for, and its hyperparameters."""
    task = problem.task(axis_name)
    hparams = jax.tree.map(jnp.float32, problem.hparams)
    if config.ema_decay is not None and "ema_decay" not in hparams:
        task = optim.averaged(task)
        hparams["ema_decay"] = jnp.float32(config.ema_decay)
    return task, hparams


def read_record(path: Path, **wanted: type | tuple[type, ...]) -> dict[str, Any]:
    """What a JSON file of a run holds.

    Args:
      path: the file.
      wanted: what it must hold, by name, and of which types.

    Raises:
      InputError: it is not there, or damaged.
    """
    if not path.is_file():
        raise InputError(f"there is no {path}: the run has not come so far")
    try:
        found = json.loads(path.read_bytes())
        sound = all(isinstance(found[name], types) for name, types in wanted.items())
    except (ValueError, LookupError, TypeError):
        sound = False
    if not sound or not isinstance(found, dict):
        raise InputError(f"{path} is damaged; remove it, and the command of the run writes it anew")
    return found


def read_inputs(workdir: str | Path, **wanted: type | tuple[type, ...]) -> dict[str, Any]:
    """What the model of a run must be told with; arguments and errors as of `read_record`."""
    return read_record(Path(workdir) / INPUTS_FILE, **wanted)


def read_summary(workdir: str | Path) -> dict[str, Any]:
    """What a run came to; errors as of `read_record`."""
    return read_record(Path(workdir) / SUMMARY_FILE, step=int)


def check_inputs(workdir: str, inputs: dict[str, Any]) -> None:
    """Raises InputError when the run in a folder was told other inputs: it had other data."""
    path = Path(workdir) / INPUTS_FILE
    if not workdir or not path.exists() or not holds_run(workdir):
        return
    saved, now = read_record(path), json.loads(json.dumps(inputs))
    other = [name for name in now if saved.get(name) != now[name]]
    if other:
        raise InputError(
            f"{path} has another {' and another '.join(other)} than the data given now; give the "
            "run its own data, or another --workdir"
        )


def _prepare(config: RunConfig, build: Build) -> tuple[Problem, Task, State]:
    """The problem, its task on all devices, and the state it begins with."""
    mesh = parallel.data_mesh()
    parallel.check_batch_size(config.batch_size, mesh)
    problem = build(config, mesh)
    # What was held out of a run's training does not matter to those who only use it.
    check_inputs(config.workdir, {k: v for k, v in problem.inputs.items() if k != "held_out"})
    if problem.eval_split not in problem.examples:
        there = " and ".join(problem.examples)
        raise InputError(
            f"there is nothing to evaluate by: the data has the split {there} alone; hold some of "
            "it out, by --validation=0.1, say"
        )
    axis_name = parallel.DATA if config.parallel == "pmap" else None
    task, hparams = task_of(config, problem, axis_name)
    if config.parallel == "pmap":
        task = parallel.pmap(task, mesh)
    elif config.debug_nans:
        task = parallel.checked(task, mesh)
    else:
        task = parallel.jit(task, mesh)
    return problem, task, task.init(jax.random.key(config.seed), hparams)


def _watch(
    config: RunConfig, problem: Problem
) -> tuple[Callable[[State, dict[str, float]], State], Callable[[State], bool]]:
    """What evaluations do to a run: `observe` and `done` of `loop.fit`."""

    @jax.jit
    def seen(state, value):
        state = observe(state, value)
        if config.plateau is not None:
            state = optim.reduce_on_plateau(
                state, patience=config.plateau, factor=config.plateau_factor
            )
        return state.hparams, state.monitor

    def after(state, measured):
        value = np.float32(measured[problem.best])
        hparams, monitor = seen(state, -value if problem.best_is_least else value)
        return state._replace(hparams=hparams, monitor=monitor)

    patience = math.inf if config.early_stop is None else config.early_stop
    return after, lambda state: int(state.monitor.since_best) >= patience


def train(config: RunConfig, build: Build) -> dict[str, Any]:
    """Trains, or goes on training, and leaves the whole record in the workdir.

    Returns:
      What summary.json holds.

    Raises:
      Interrupted: a signal stopped the run before its end; it is saved.
    """
    check_devices(config)
    with _opened(config) as workdir:
        return _train(dataclasses.replace(config, workdir=str(workdir)), build)


def _train(config: RunConfig, build: Build) -> dict[str, Any]:
    began = time.perf_counter()
    workdir = Path(config.workdir)
    problem, task, state = _prepare(config, build)
    _check_choice(config, problem)
    check_inputs(config.workdir, problem.inputs)
    observe_evaluation, done = _watch(config, problem)

    def begin(state, batch):
        if int(state.step) > 0 or not hosts.is_first():
            return
        with writer.sparing("the model's table not shown"):
            writer.text("model", problem.table())
        with writer.sparing("inputs not shown"):
            if problem.show is not None:
                key, rows = jax.random.fold_in(state.key, 0), parallel.own_rows(batch)
                writer.images(0, "inputs", np.asarray(problem.show(key, rows)))

    def seen(state, metrics):
        if hosts.is_first():
            with writer.sparing("an evaluation not reported"):
                _print_beside(problem, problem.eval_split, metrics, "eval")
                problem.report(state, metrics, writer)
        return observe_evaluation(state, metrics)

    with Checkpoints(workdir, config.keep, problem.best, problem.best_is_least) as checkpoints:
        restored = checkpoints.restore(state)
        if restored is None and config.resume in ("must", "extend"):
            raise InputError(f"--resume={config.resume}, but {workdir} holds no checkpoint")
        state = restored or state
        step = int(state.step)
        _check_length(config, problem, step)
        if config.resume == "extend" and done(state):
            raise InputError(f"--resume=extend: {workdir} stopped early, at step {step}")
        if hosts.is_first():
            if step < problem.steps and not done(state):  # what it came to, it comes to anew
                (workdir / SUMMARY_FILE).unlink(missing_ok=True)
            _write_flags(config, workdir)
            _write(workdir / INPUTS_FILE, json.dumps(problem.inputs, indent=2))
            print(_first_line(problem, state, workdir), flush=True)
        with Writer(workdir if hosts.is_first() else None, step) as writer:
            result = loop.fit(
                task,
                state,
                problem.batches,
                steps=problem.steps,
                measure=lambda state: measure(problem, task, state, problem.eval_split, "eval"),
                eval_every=config.eval_every,
                log_every=config.log_every,
                checkpoint_every=config.checkpoint_every,
                checkpoints=checkpoints,
                begin=begin,
                observe=seen,
                done=done,
                writer=writer,
                histograms=config.histograms,
                unit=problem.unit,
                profile=(workdir / "tensorboard", config.profile_steps)
                if config.profile_steps
                else None,
            )
            checkpoints.wait()  # whatever comes now, what was trained is safe
            if result.stopped:
                if hosts.is_first():
                    again = _again(config, workdir)
                    print(
                        f"stopped at step {int(result.state.step)} and saved; go on with: {again}"
                    )
                raise Interrupted(result.stopped)
            if config.early_stop is not None:
                best = checkpoints.restore_best(result.state)
                checkpoints.came_to(int(best.step))
                if int(best.step) < int(result.state.step):
                    trained = {k: v for k, v in result.metrics.items() if k.startswith("train/")}
                    result = loop.Result(best, trained, stopped=0)
            metrics = result.metrics | _final_metrics(problem, task, result)
            if hosts.is_first():
                with writer.sparing("the last training metrics not read"):
                    metrics = _last_trained(workdir) | metrics
                if problem.best not in result.metrics:  # this state was not reported on
                    with writer.sparing("an evaluation not reported"):
                        problem.report(result.state, metrics, writer)
                with writer.sparing("the end of the run not drawn"):
                    problem.finish(result.state)
            writer.hparams(cli.changed(config), metrics)
        best_step = checkpoints.best
    summary = _summary(problem, result.state, metrics, time.perf_counter() - began)
    summary |= {"best_metric": problem.best, "best_step": best_step}
    summary["best_split"] = problem.eval_split
    if hosts.is_first():
        _write(workdir / SUMMARY_FILE, json.dumps(summary, indent=2))
        split = "test" if "test" in problem.examples else problem.eval_split
        prefix = "test/" if split == "test" else "eval/"
        final = {k: v for k, v in metrics.items() if k.startswith(prefix)}
        by = f"{problem.best.removeprefix('eval/')} on the {problem.eval_split} split"
        print(f"best checkpoint, by {by}: step {best_step}")
        print(f"{split}: {describe(final)}  ({problem.examples[split]} {problem.unit})")
        _print_beside(problem, split, final, prefix[:-1])
    return summary


def _check_length(config: RunConfig, problem: Problem, step: int) -> None:
    """Raises InputError for a length that does not fit what was trained already."""
    if config.resume == "extend" and problem.steps < step:
        raise InputError(
            f"--resume=extend: {config.workdir} is trained to step {step}, and {problem.steps} "
            "steps were given; give more --steps or --epochs"
        )
    most = max(problem.steps - loop.COMPILING, 0)
    # A run that goes on has the flag from its beginning, and may have few steps left.
    fits = step > 0 or config.profile_steps <= most
    require(
        config,
        "profile_steps",
        fits,
        f"at most {most}, of the {problem.steps} steps all but the first {loop.COMPILING}",
    )


def check_devices(config: RunConfig) -> None:
    """Raises InputError when a batch, or a part by --grad_accum, does not go round the devices."""
    parts = getattr(config, "grad_accum", 1)  # not every experiment has that flag
    parallel.check_batch_size(config.batch_size, parallel.data_mesh(), parts)


def _check_choice(config: RunConfig, problem: Problem) -> None:
    """Raises InputError when a run would be chosen by what it is tested on."""
    for name in ("early_stop", "plateau"):
        if getattr(config, name) is not None and problem.eval_split == "test":
            tested = "fold held out" if config.folds else "test split"
            raise InputError(f"--{name} would choose by the {tested}; give --validation")


def _print_beside(problem: Problem, split: str, metrics: dict[str, float], prefix: str) -> None:
    """Prints what the problem wants below the metrics of a split, which bear a prefix."""
    start = f"{prefix}/"
    own = {k.removeprefix(start): v for k, v in metrics.items() if k.startswith(start)}
    text = problem.beside(split, own)
    if text:
        print(text, flush=True)


def cross_validate(config: RunConfig, build: Build) -> None:
    """Trains once for each fold, in WORKDIR/fold0 and so on, and prints the mean over the folds.

    Each run is tested on the fold that it was not shown. With --validation it makes its choices by
    a share of the others.

    A fold is an ordinary run: the same command goes on where it was stopped, and trains no fold
    again that is done.
    """
    # What cannot be trained is told before the folder is its.
    check_devices(config)
    problem = build(dataclasses.replace(config, fold=0), parallel.data_mesh())
    _check_choice(config, problem)
    with _opened(config) as workdir:
        for folder in workdir.glob("fold*"):
            _check_length(config, problem, max(checkpoint.steps(folder), default=0))
        _cross_validate(dataclasses.replace(config, workdir=str(workdir)), build)


def _cross_validate(config: RunConfig, build: Build) -> None:
    workdir = Path(config.workdir)
    if hosts.is_first():
        _write_flags(config, workdir)
    summaries = []
    for fold in range(config.folds or 0):
        if hosts.is_first():
            print(f"fold {fold} of {config.folds}", flush=True)
        folder = workdir / f"fold{fold}"
        # To --resume=must it is enough that WORKDIR is there; a fold may not have begun.
        extend = config.resume == "extend" and holds_run(folder)
        resume = "extend" if extend else "auto"
        run = dataclasses.replace(config, fold=fold, workdir=str(folder), resume=resume)
        with cli.if_interrupted(f"and with the folds after it: {_again(config, workdir)}"):
            summaries.append(train(run, build))
    names = [name for name in summaries[0] if name.startswith(("eval/", "test/"))]
    values = {name: [summary[name] for summary in summaries] for name in names}
    # What is not finite in one fold has no mean.
    names = [name for name in names if None not in values[name]]
    means = {name: float(np.mean(values[name])) for name in names}
    spreads = {f"{name}_std": float(np.std(values[name], ddof=1)) for name in names}
    record = means | spreads | {"folds": values}
    if hosts.is_first():
        _write(workdir / SUMMARY_FILE, json.dumps(record, indent=2))
        for name in (name for name in names if name.startswith("test/")):
            spread = spreads[f"{name}_std"]
            print(f"{name}: {means[name]:.4g} +- {spread:.2g} (mean and std of the folds held out)")


def _write_flags(config: RunConfig, workdir: Path) -> None:
    """Writes the flagfile that goes on with a run, on however many hosts and however it began."""
    run = dataclasses.replace(
        config, resume="auto", coordinator="", num_processes=None, process_id=None
    )
    _write(workdir / cli.FLAGS_FILE, cli.to_flags(run))


def _again(config: RunConfig, workdir: Path) -> str:
    """The command that goes on with a run."""
    command = f"python -m experiments.{config.experiment} --flagfile={workdir / cli.FLAGS_FILE}"
    if jax.process_count() == 1:
        return command
    return f"{command} and each process's --coordinator, --num_processes and --process_id"


def restore(config: RunConfig, build: Build) -> tuple[Problem, Task, State]:
    """The problem of the run in --workdir, its task, and the state that it has come to."""
    workdir = Path(config.workdir)
    cli.check_same_run(config, workdir)
    problem, task, state = _prepare(config, build)
    return problem, task, checkpoint.restore(workdir, state, went_back_to(workdir))


def trained_params(workdir: str | Path) -> Any:
    """The parameters that a run has come to; their averages where the run keeps them."""
    saved = checkpoint.load(workdir, went_back_to(workdir))
    return (saved["average"] or saved)["params"]


def went_back_to(workdir: str | Path) -> int | None:
    """The step that a run came to by --early_stop, before checkpoints said so themselves."""
    workdir = Path(workdir)
    said = workdir / checkpoint.FOLDER / checkpoint.CAME_TO
    if said.exists() or not (workdir / SUMMARY_FILE).exists():
        return None
    given = "--early_stop=" in (workdir / cli.FLAGS_FILE).read_text()
    return read_summary(workdir)["step"] if given else None


def measure(
    problem: Problem, task: Task, state: State, split: str, prefix: str
) -> dict[str, float]:
    """All metrics of a state on a split, each named `prefix/metric`."""
    means = loop.evaluate(task, state, problem.passes(split), prefix)
    others = problem.measure(state, split)
    return means | {f"{prefix}/{name}": value for name, value in others.items()}


def evaluate(config: RunConfig, build: Build) -> None:
    """Measures what a run has come to on one split."""
    problem, task, state = restore(config, build)
    if config.split not in problem.examples:
        there = ", ".join(problem.examples)
        raise InputError(f"--split={config.split}: this data set has {there}")
    if config.folds or config.split != "test":  # drawn of what may have been trained on
        check_inputs(config.workdir, problem.inputs)
    measured = measure(problem, task, state, config.split, config.split)
    if hosts.is_first():
        count = problem.examples[config.split]
        step = int(state.step)
        print(f"{config.split} at step {step}: {describe(measured)}  ({count} {problem.unit})")
        _print_beside(problem, config.split, measured, config.split)


@contextlib.contextmanager
def _opened(config: RunConfig) -> Iterator[Path]:
    """The run's folder, made where it was not, and held against other processes."""
    if not config.workdir:
        workdir = _new_workdir(config)
        with checkpoint.lock(workdir):
            yield workdir
        return
    workdir = Path(config.workdir)
    check = lambda: _check_workdir(config, workdir)
    hosts.agree(check)  # nothing is made where it is refused
    with checkpoint.lock(workdir):
        hosts.agree(check)  # another run may have begun and ended since
        if hosts.is_first() and not holds_run(workdir):  # what an earlier start has left
            shutil.rmtree(workdir / "tensorboard", ignore_errors=True)
        yield workdir


def _new_workdir(config: RunConfig) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        suffix = f"-{number}" if number > 1 else ""
        workdir = Path("runs") / f"{config.experiment}-{stamp}{suffix}"
        try:
            workdir.mkdir(parents=True)
        except FileExistsError:
            continue
        return workdir
    raise AssertionError  # there is no end of numbers


def holds_run(workdir: str | Path) -> bool:
    """Whether anything was trained in a folder: a start that failed before that is no run yet."""
    folders = (Path(workdir), *Path(workdir).glob("fold*"))
    return any(checkpoint.steps(f) or (f / SUMMARY_FILE).exists() for f in folders)


def _check_workdir(config: RunConfig, workdir: Path) -> None:
    """Raises InputError unless a folder is new, or holds a run that may be gone on with."""
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir={workdir} is no folder")
    if holds_run(workdir):
        if config.resume == "never":
            raise InputError(f"{workdir} holds a run and --resume=never; take another --workdir")
        there = cli.experiment_of(workdir)
        if there != config.experiment:
            raise InputError(
                f"{workdir} holds a run of experiments.{there}; take another --workdir"
            )
        longer = ("steps", "epochs") if config.resume == "extend" else ()
        saved = cli.check_same_run(config, workdir, apart_from=longer)
        for name in longer if (saved.steps is None) == (config.steps is None) else ():
            was, now = getattr(saved, name), getattr(config, name)
            fits = was is None or now >= was
            require(config, name, fits, f"at least {was} to extend the run in {workdir}")
    elif config.resume in ("must", "extend"):
        raise InputError(f"--resume={config.resume}, but there is no run in {workdir}")
    elif workdir.exists() and not (workdir / cli.FLAGS_FILE).exists():
        # A start that failed early may have left these.
        own = {checkpoint.LOCK_FILE, checkpoint.FOLDER}
        others = {path.name for path in workdir.iterdir()} - own
        if not all(name.startswith(cli.FLAGS_FILE) for name in others):
            raise InputError(f"{workdir} holds other files and no run; take another --workdir")


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _devices() -> str:
    kind = jax.devices()[0].device_kind
    return f"{jax.device_count()} {kind} device{'s' if jax.device_count() > 1 else ''}"


def _first_line(problem: Problem, state: State, workdir: Path) -> str:
    examples = ", ".join(f"{count} {split}" for split, count in problem.examples.items())
    step = int(state.step)
    steps = f"steps {step} to {problem.steps}" if step else f"{problem.steps} steps"
    by = f" by {problem.method}" if problem.method else ""
    return (
        f"{problem.title}{by} on {_devices()}: {_count(state.params):,} parameters, "
        f"{examples} {problem.unit}, {steps}, in {workdir}"
    )


def _last_trained(workdir: Path) -> dict[str, float]:
    """The last training metrics of a run; a process that finds it complete has none of its own."""
    rows = [{k: v for k, v in row.items() if k.startswith("train/")} for row in read_rows(workdir)]
    last = next(filter(None, reversed(rows)), {})
    return {name: math.nan if value is None else value for name, value in last.items()}


def _final_metrics(problem: Problem, task: Task, result: loop.Result) -> dict[str, float]:
    """The last state's metrics on the watched split (`eval/`) and on a test split (`test/`)."""
    split = problem.eval_split
    measured = {k: v for k, v in result.metrics.items() if k.startswith("eval/")}
    if not measured:  # the run was complete before it began
        measured = measure(problem, task, result.state, split, "eval")
    if "test" not in problem.examples:
        return measured
    if split == "test":
        tested = {k.replace("eval/", "test/"): v for k, v in measured.items()}
    else:
        tested = measure(problem, task, result.state, "test", "test")
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
        **{k: json_ready(v) if isinstance(v, float) else v for k, v in problem.notes().items()},
    }


def _write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with files.replacing(path) as file:
        file.write((text.rstrip("\n") + "\n").encode())
