"""What every experiment's run has in common: devices, resuming, the loop, a summary.

An experiment describes what it trains as a `Problem`; `main` does the rest.
"""

import json
import math
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.harness import cli, devices, run_folder, summaries
from experiments.harness.cli import require
from experiments.harness.problem import Build, Problem
from experiments.harness.run_folder import FLAGS_FILE, INPUTS_FILE, SUMMARY_FILE
from jaxdl import Batch, InputError, calls, checkpoint, hosts, loop, optim, parallel
from jaxdl.checkpoint import Checkpoints
from jaxdl.data.pipeline import RowPipeline
from jaxdl.task import State, Task, observe
from jaxdl.writers import Writer, describe


class Mode(Protocol):
    """What a --mode of an experiment's own does with a trained run."""

    def __call__(self, config: Any, build: Build, /) -> None:
        """Takes the flags of the run in --workdir, and those given now over them."""
        ...


def main(config_type: Any, build: Build, **modes: Mode) -> None:
    """The command line of an experiment.

    Args:
      config_type: the class of its flags; its field `run` is a RunFlags.
      build: what it trains.
      modes: what each --mode of its own does.
    """
    modes = {"eval": evaluate, **modes}

    def run(argv: list[str]) -> None:
        config: Any
        config, rest = cli.parse(config_type, argv)
        if config.run.mode != "train":
            given = config.run.workdir != ""
            require(config, "workdir", given, f"a run's, for --mode={config.run.mode}")
            run_folder.experiment_of(config.run.workdir)
            saved = f"--flagfile={Path(config.run.workdir) / FLAGS_FILE}"
            # On how many hosts and devices it was trained is no matter.
            anywhere = "--coordinator=", "--mesh=data:-1", "--shard="
            config, rest = cli.parse(config_type, [saved, *anywhere, *argv])
            if config.run.folds and config.run.fold is None:
                raise InputError(
                    f"{config.run.workdir} holds folds; give the --workdir of one of them"
                )
        own = config_type.run.experiment
        require(config, "experiment", config.run.experiment == own, own)
        if rest:
            raise InputError(f"{rest[0]!r} is no flag; see --help")
        prepare_jax(config, large=devices.are_steps_large(config))
        if config.run.mode != "train":
            modes[config.run.mode](config, build)
        elif config.run.folds and config.run.fold is None:
            cross_validate(config, build)
        else:
            train(config, build)
        hosts.wait()  # for the first, which may still have much to show and to write

    cli.main(run)


def prepare_jax(config: Any = None, large: bool = False) -> None:
    """Sets up JAX; call it before anything touches a device.

    Args:
      config: a run's flags; None for what runs on one host alone.
      large: whether steps work in much memory, see `parallel.keep_freed_memory`.
    """
    parallel.keep_freed_memory(large)
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/jaxdl/compiled")
    jax.config.update("jax_compilation_cache_dir", str(Path(cache).expanduser()))
    # A start compiles some ten programs that JAX finds too quick to keep, a second in all.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # What a full disk or a kill left broken there is compiled anew.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    if config is not None:
        run = config.run
        hosts.start(run.coordinator or None, run.num_processes, run.process_id)


def task_of(
    config: Any, problem: Problem, axis_name: str | None = None
) -> tuple[Task, dict[str, Any]]:
    """The problem's task, with averages where they are asked for, and its hyperparameters."""
    task = problem.learner.task(axis_name)
    hparams = jax.tree.map(jnp.float32, problem.learner.hparams)
    if config.run.ema_decay is not None and "ema_decay" not in hparams:
        task = optim.averaged(task)
        hparams["ema_decay"] = jnp.float32(config.run.ema_decay)
    return task, hparams


def make_problem(config: Any, build: Build, mesh: Mesh) -> Problem:
    """The problem of a run.

    Raises:
      InputError: it does not fit the devices or what was trained before, or cannot be evaluated.
    """
    parallel.check_batch_size(config.run.batch_size, mesh)
    problem = build(config, mesh)
    # What was held out of a run's training does not matter to those who only use it.
    run_folder.check_inputs(
        config.run.workdir, {k: v for k, v in problem.inputs.items() if k != "held_out"}
    )
    if problem.eval_split not in problem.splits:
        there = " and ".join(problem.splits)
        raise InputError(
            f"there is nothing to evaluate by: the data has the split {there} alone; hold some of "
            "it out, by --validation=0.1, say"
        )
    return problem


def _prepare(config: Any, build: Build, *, trains: bool = False) -> tuple[Problem, Task, State]:
    """The problem, its task on all devices, and the state it begins with.

    The step of a new run compiles in a thread, while weights are drawn and data are read.
    """
    mesh = devices.mesh_of(config)
    problem = make_problem(config, build, mesh)
    if trains:
        check_choice(config, problem)
    key = jax.random.key(config.run.seed)
    axis_name = parallel.DATA if config.run.parallel == "pmap" else None
    task, hparams = task_of(config, problem, axis_name)
    if config.run.parallel == "pmap":
        task = parallel.pmap(task, mesh)
    elif config.run.debug_nans:
        task = parallel.checked(task, mesh)
    else:
        rules = devices.sharding_rules(config, problem)
        task = parallel.jit(task, mesh, rules=rules)
        is_new = trains and not checkpoint.steps(config.run.workdir)
        if is_new and not rules and has_schema(problem) and not hosts.are_several():
            spread = parallel.batch_sharding(mesh)
            batch = jax.tree.map(lambda of: of.update(sharding=spread), batch_shapes(problem)[0])
            state = jax.eval_shape(task.init, key, hparams)
            calls.compile_ahead(task, state, batch)
    return problem, task, task.init(key, hparams)


def watching(config: Any) -> Callable[[State, Any], tuple[Any, Any]]:
    """What evaluations do to a state: (state, value, more of which is better) -> what is new of it.

    Returns:
      A pure function that gives `hparams` and `monitor`.
    """
    patience, factor = config.run.plateau, config.run.plateau_factor

    def seen(state, value):
        state = observe(state, value)
        if patience is not None:
            state = optim.reduce_on_plateau(state, patience=patience, factor=factor)
        return state.hparams, state.monitor

    return seen


def has_schema(problem: Problem) -> bool:
    """Whether the shapes of a problem's batches are known with none of them read."""
    return isinstance(problem.feed, RowPipeline)


def batch_shapes(problem: Problem) -> tuple[Any, Any]:
    """The shapes of a batch of training, and of one of the split that is watched."""
    feed = problem.feed
    if isinstance(feed, RowPipeline):
        of = lambda field: jax.ShapeDtypeStruct((feed.batch_size, *field.shape), field.dtype)
        both = {name: of(field) for name, field in feed.schema.items()}
        return both, both
    streams = feed.train(0), feed.evaluate(problem.eval_split)
    shape = lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype)
    batch, watched = (jax.tree.map(shape, next(iter(stream))) for stream in streams)
    streams[0].close()
    return batch, watched


class _Watch:
    """What evaluations do to a run: `observe` and `done` of `loop.fit`."""

    def __init__(self, config: Any, problem: Problem):
        self._best = problem.best
        stop = config.run.early_stop
        self._patience = math.inf if stop is None else stop
        self._seen = jax.jit(watching(config))

    def after(self, state: State, measured: dict[str, float]) -> State:
        """The state after an evaluation that measured this."""
        value = np.float32(measured[self._best.metric])
        hparams, monitor = self._seen(state, -value if self._best.least else value)
        return state._replace(hparams=hparams, monitor=monitor)

    def is_done(self, state: State) -> bool:
        """Whether training stops early."""
        return int(state.monitor.since_best) >= self._patience


def _to_show(state: State) -> State:
    """A state whose networks the first host can read alone; its optimizer's part is not shown."""
    return parallel.readable(state._replace(opt_state=()))


class _Shown:
    """What the first host shows of a run, none of which may end it."""

    def __init__(self, problem: Problem, watch: _Watch, writer: Writer):
        self.watch, self._problem, self._writer = watch, problem, writer

    def begin(self, state: State, batch: Batch) -> None:
        """Shows the model and its inputs."""
        if not hosts.is_first():
            return
        with self._writer.sparing("the model's table not shown"):
            self._writer.text("model", self._problem.learner.table())
        if self._problem.learner.network is not None:
            function, args = self._problem.learner.network()
            self._writer.graph(function, *args)
        with self._writer.sparing("inputs not shown"):
            key, rows = jax.random.fold_in(state.key, 0), parallel.own_rows(batch)
            inputs = self._problem.view.inputs(key, rows)
            if inputs is not None:
                self._writer.images(0, "inputs", np.asarray(inputs))

    def evaluated(self, state: State, metrics: dict[str, float]) -> State:
        """Shows an evaluation; the state after it."""
        shown = _to_show(state)
        if hosts.is_first():
            with self._writer.sparing("an evaluation not reported"):
                summaries.print_beside(self._problem, self._problem.eval_split, metrics, "eval")
                self._problem.view.report(shown, metrics, self._writer)
        return self.watch.after(state, metrics)

    def ended(self, result: loop.Result, metrics: dict[str, float], workdir: Path) -> dict:
        """Shows what a run came to; the metrics, with the last of training."""
        state = _to_show(result.state)
        if not hosts.is_first():
            return metrics
        with self._writer.sparing("the last training metrics not read"):
            metrics = summaries.last_trained(workdir) | metrics
        if self._problem.best.metric not in result.metrics:  # this state was not reported on
            with self._writer.sparing("an evaluation not reported"):
                self._problem.view.report(state, metrics, self._writer)
        with self._writer.sparing("the end of the run not drawn"):
            self._problem.view.finish(state)
        return metrics


def train(config: Any, build: Build) -> dict[str, Any]:
    """Trains, or goes on training, and leaves the whole record in the workdir.

    Returns:
      What summary.json holds.

    Raises:
      Interrupted: a signal stopped the run before its end; it is saved.
    """
    devices.check_devices(config)
    with run_folder.opened(config) as workdir:
        return _train(cli.replace(config, workdir=str(workdir)), build)


def _train(config: Any, build: Build) -> dict[str, Any]:
    began = time.perf_counter()
    workdir, first = Path(config.run.workdir), hosts.is_first()
    problem, task, state = _prepare(config, build, trains=True)
    run_folder.check_inputs(config.run.workdir, problem.inputs)
    watch, best = _Watch(config, problem), problem.best
    with Checkpoints(workdir, config.run.keep, best.metric, best.least) as checkpoints:
        state = _restored(config, checkpoints, state)
        _check_length(config, problem, int(state.step))
        if config.run.resume == "extend" and watch.is_done(state):
            raise InputError(f"--resume=extend: {workdir} stopped early, at step {int(state.step)}")
        if first:
            if int(state.step) < problem.learner.steps and not watch.is_done(state):
                # What it came to, it comes to anew.
                (workdir / SUMMARY_FILE).unlink(missing_ok=True)
            run_folder.write_flags(config, workdir)
            run_folder.write(workdir / INPUTS_FILE, json.dumps(problem.inputs, indent=2))
            print(summaries.first_line(problem, state, workdir), flush=True)
        with Writer(workdir if first else None, int(state.step)) as writer:
            shown = _Shown(problem, watch, writer)
            result = _fit(config, problem, task, state, checkpoints, shown, writer)
            checkpoints.wait()  # whatever comes now, what was trained is safe
            if result.stopped:
                if first:
                    step, again = int(result.state.step), run_folder.command_of(config, workdir)
                    print(f"stopped at step {step} and saved; go on with: {again}")
                raise cli.Interrupted(result.stopped)
            if config.run.early_stop is not None:
                result = _gone_back(checkpoints, result)
            metrics = result.metrics | _final_metrics(problem, task, result)
            metrics = shown.ended(result, metrics, workdir)
            writer.hparams(cli.changed(config), metrics)
        best_step = checkpoints.best
    summary = summaries.summary(problem, result.state, metrics, time.perf_counter() - began)
    summary |= {"best_metric": best.metric, "best_step": best_step}
    summary["best_split"] = problem.eval_split
    if first:
        run_folder.write(workdir / SUMMARY_FILE, json.dumps(summary, indent=2))
        summaries.print_end(problem, metrics, best_step)
    return summary


def _restored(config: Any, checkpoints: Checkpoints, state: State) -> State:
    """The state that a run goes on from, which is the one given for a new run."""
    restored = checkpoints.restore(state)
    if restored is None and config.run.resume in ("must", "extend"):
        raise InputError(
            f"--resume={config.run.resume}, but {config.run.workdir} holds no checkpoint"
        )
    return restored or state


def _fit(
    config: Any,
    problem: Problem,
    task: Task,
    state: State,
    checkpoints: Checkpoints,
    shown: _Shown,
    writer: Writer,
) -> loop.Result:
    run = config.run
    traced = Path(run.workdir) / "tensorboard", run.profile_steps
    return loop.fit(
        task,
        state,
        problem.feed.train,
        steps=problem.learner.steps,
        measure=lambda state: measure(problem, task, state, problem.eval_split, "eval"),
        eval_every=run.eval_every,
        log_every=run.log_every,
        checkpoint_every=run.checkpoint_every,
        checkpoints=checkpoints,
        begin=shown.begin,
        observe=shown.evaluated,
        done=shown.watch.is_done,
        writer=writer,
        histograms=run.histograms,
        unit=problem.unit,
        profile=traced if run.profile_steps else None,
    )


def _gone_back(checkpoints: Checkpoints, result: loop.Result) -> loop.Result:
    """What training came to, with the best state where that is an earlier one."""
    best = checkpoints.restore_best(result.state)
    checkpoints.came_to(int(best.step))
    if int(best.step) >= int(result.state.step):
        return result
    trained = {k: v for k, v in result.metrics.items() if k.startswith("train/")}
    return loop.Result(best, trained, stopped=0)


def _check_length(config: Any, problem: Problem, step: int) -> None:
    """Raises InputError for a length that does not fit what was trained already."""
    steps = problem.learner.steps
    if config.run.resume == "extend" and steps < step:
        raise InputError(
            f"--resume=extend: {config.run.workdir} is trained to step {step}, and {steps} steps "
            "were given; give more --steps or --epochs"
        )
    most = max(steps - loop.COMPILING, 0)
    # A run that goes on has the flag from its beginning, and may have few steps left.
    fits = step > 0 or config.run.profile_steps <= most
    require(
        config,
        "profile_steps",
        fits,
        f"at most {most}, of the {steps} steps all but the first {loop.COMPILING}",
    )


def check_choice(config: Any, problem: Problem) -> None:
    """Raises InputError when a run would be chosen by what it is tested on."""
    for name in ("early_stop", "plateau"):
        if getattr(config.run, name) is not None and problem.eval_split == "test":
            tested = "fold held out" if config.run.folds else "test split"
            raise InputError(f"--{name} would choose by the {tested}; give --validation")


def cross_validate(config: Any, build: Build) -> None:
    """Trains once for each fold, in WORKDIR/fold0 and so on, and prints the mean over the folds.

    Each run is tested on the fold that it was not shown. With --validation it makes its choices by
    a share of the others.

    A fold is an ordinary run: the same command goes on where it was stopped, and trains no fold
    again that is done.
    """
    # What cannot be trained is told before the folder is its.
    devices.check_devices(config)
    problem = build(cli.replace(config, fold=0), devices.mesh_of(config))
    check_choice(config, problem)
    with run_folder.opened(config) as workdir:
        for folder in workdir.glob("fold*"):
            _check_length(config, problem, max(checkpoint.steps(folder), default=0))
        _cross_validate(cli.replace(config, workdir=str(workdir)), build)


def _cross_validate(config: Any, build: Build) -> None:
    workdir = Path(config.run.workdir)
    if hosts.is_first():
        run_folder.write_flags(config, workdir)
    summaries = []
    for fold in range(config.run.folds or 0):
        if hosts.is_first():
            print(f"fold {fold} of {config.run.folds}", flush=True)
        folder = workdir / f"fold{fold}"
        # To --resume=must it is enough that WORKDIR is there; a fold may not have begun.
        extend = config.run.resume == "extend" and run_folder.holds_run(folder)
        resume = "extend" if extend else "auto"
        run = cli.replace(config, fold=fold, workdir=str(folder), resume=resume)
        with cli.if_interrupted(
            f"and with the folds after it: {run_folder.command_of(config, workdir)}"
        ):
            summaries.append(train(run, build))
    names = [name for name in summaries[0] if name.startswith(("eval/", "test/"))]
    values = {name: [summary[name] for summary in summaries] for name in names}
    # What is not finite in one fold has no mean.
    names = [name for name in names if None not in values[name]]
    means = {name: float(np.mean(values[name])) for name in names}
    spreads = {f"{name}_std": float(np.std(values[name], ddof=1)) for name in names}
    record = means | spreads | {"folds": values}
    if hosts.is_first():
        run_folder.write(workdir / SUMMARY_FILE, json.dumps(record, indent=2))
        for name in (name for name in names if name.startswith("test/")):
            spread = spreads[f"{name}_std"]
            print(f"{name}: {means[name]:.4g} +- {spread:.2g} (mean and std of the folds held out)")


def restore(config: Any, build: Build) -> tuple[Problem, Task, State]:
    """The problem of the run in --workdir, its task, and the state that it has come to."""
    workdir = Path(config.run.workdir)
    run_folder.check_same_run(config, workdir)
    problem, task, state = _prepare(config, build)
    return problem, task, checkpoint.restore(workdir, state, run_folder.step_of(workdir))


def measure(
    problem: Problem, task: Task, state: State, split: str, prefix: str
) -> dict[str, float]:
    """All metrics of a state on a split, each named `prefix/metric`."""
    means = loop.evaluate(task, state, problem.feed.evaluate(split), prefix)
    others = problem.view.measure(_to_show(state), split)
    return means | {f"{prefix}/{name}": value for name, value in others.items()}


def evaluate(config: Any, build: Build) -> None:
    """Measures what a run has come to on one split."""
    problem, task, state = restore(config, build)
    if config.run.split not in problem.splits:
        there = ", ".join(problem.splits)
        raise InputError(f"--split={config.run.split}: this data set has {there}")
    if config.run.folds or config.run.split != "test":  # drawn of what may have been trained on
        run_folder.check_inputs(config.run.workdir, problem.inputs)
    measured = measure(problem, task, state, config.run.split, config.run.split)
    if hosts.is_first():
        count = problem.examples[config.run.split]
        step = int(state.step)
        print(f"{config.run.split} at step {step}: {describe(measured)}  ({count} {problem.unit})")
        summaries.print_beside(problem, config.run.split, measured, config.run.split)


def _final_metrics(problem: Problem, task: Task, result: loop.Result) -> dict[str, float]:
    """The last state's metrics on the watched split (`eval/`) and on a test split (`test/`)."""
    split = problem.eval_split
    measured = {k: v for k, v in result.metrics.items() if k.startswith("eval/")}
    if not measured:  # the run was complete before it began
        measured = measure(problem, task, result.state, split, "eval")
    if "test" not in problem.splits:
        return measured
    if split == "test":
        tested = {k.replace("eval/", "test/"): v for k, v in measured.items()}
    else:
        tested = measure(problem, task, result.state, "test", "test")
    return measured | tested
