"""Which runs of a study can be lanes of one program, and their training so.

What may be a lane is found by comparing the programs of the runs, not their flags: those that are
the same but for numbers (`jaxdl.lifting`) are of one kind. Which runs were trained together is kept
in the study's folder, for on some devices the last bit of a lane depends on how many there are.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from experiments.harness import run_folder, training
from experiments.harness.group import Group, Program
from experiments.harness.lanes import Lane
from experiments.harness.problem import Problem
from jaxdl import files, lifting, parallel
from jaxdl.data.pipeline import RowPipeline

LANES_FILE = "lanes.json"
"""Which runs of a study were trained together, in the order of their lanes."""


def can_be_lane(config: Any) -> bool:
    """Whether a run's flags ask for nothing that a program of many does not do."""
    run = config.run
    return run.parallel == "jit" and not (run.debug_nans or run.profile_steps or run.folds)


def train(runs: Sequence[Any], workdir: Path, diverged: Callable[[Any, str], None]) -> None:
    """Trains what is not done of the runs that can be lanes with others; the rest is left.

    Args:
      runs: all that are planned, see `study.Run`.
      workdir: the folder that theirs are in.
      diverged: told of a run that diverged, and how.

    Raises:
      Interrupted: a signal stopped them; all are saved.
    """
    runs = [run for run in runs if can_be_lane(run.config)]
    if all(run.done for run in runs):
        return
    mesh = parallel.data_mesh()
    kinds: dict[tuple, list[Lane]] = {}
    for run in runs:
        lane = _prepare(run, mesh)
        kinds.setdefault(lane.kind, []).append(lane)
    for lanes in kinds.values():
        if len(lanes) > 1 and not all(lane.run.done for lane in lanes):
            _train_kind(lanes, mesh, workdir, diverged)


def _prepare(run: Any, mesh: Mesh) -> Lane:
    """A run as a lane, its programs traced."""
    config = run.config
    training.check_devices(config)
    problem = training.make_problem(config, run.experiment.build, mesh)
    training.check_choice(config, problem)
    task, hparams = training.task_of(config, problem)
    key = jax.random.key(config.run.seed)
    init = lifting.trace(task.init, key, hparams)
    batch, watched = _batch_shapes(problem)
    train = lifting.trace(task.train, init.result, batch)
    evaluate = lifting.trace(task.eval, init.result, watched)
    return Lane(run, problem, task, hparams, (init, train, evaluate), batch)


def _batch_shapes(problem: Problem) -> tuple[Any, Any]:
    """The shapes of a batch of training, and of one of the split that is watched."""
    feed = problem.feed
    if isinstance(feed, RowPipeline):  # which need not be read for that
        of = lambda field: jax.ShapeDtypeStruct((feed.batch_size, *field.shape), field.dtype)
        both = {name: of(field) for name, field in feed.schema.items()}
        return both, both
    streams = feed.train(0), feed.evaluate(problem.eval_split)
    shape = lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype)
    batch, watched = (jax.tree.map(shape, next(iter(stream))) for stream in streams)
    streams[0].close()
    return batch, watched


def _train_kind(
    lanes: list[Lane], mesh: Mesh, workdir: Path, diverged: Callable[[Any, str], None]
) -> None:
    """Trains lanes of one kind, in groups where they are too many for the memory."""
    program = Program(lanes, mesh)
    names = {str(lane.run.workdir.relative_to(workdir)): lane for lane in lanes}
    groups = []
    for together in _read_groups(workdir):
        group = [names[name] for name in together if name in names]
        if len(group) == len(together) and not all(lane.run.done for lane in group):
            groups.append(group)
            for name in together:
                del names[name]
    new = [lane for lane in names.values() if not lane.run.done]
    if new:
        size = program.lanes_at_once(len(new))
        groups += [new[start : start + size] for start in range(0, len(new), size)]
    for number, group in enumerate(groups, start=1):
        of = f"group {number} of {len(groups)}: " if len(groups) > 1 else ""
        problem = group[0].problem
        print(f"{of}{len(group)} runs as one program: {problem.title}", flush=True)
        _write_group(workdir, group)
        Group(program, group, diverged).train()


def _read_groups(workdir: Path) -> list[list[str]]:
    path = workdir / LANES_FILE
    return run_folder.read_record(path, groups=list)["groups"] if path.exists() else []


def _write_group(workdir: Path, group: Iterable[Lane]) -> None:
    """Writes down which lanes are trained together, in the place of what was written of them."""
    names = [str(lane.run.workdir.relative_to(workdir)) for lane in group]
    others = [other for other in _read_groups(workdir) if not set(other) & set(names)]
    with files.replacing(workdir / LANES_FILE) as file:
        file.write((json.dumps({"groups": [*others, names]}) + "\n").encode())
