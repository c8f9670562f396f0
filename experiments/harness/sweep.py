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

from experiments.harness import devices, run_folder, training
from experiments.harness.group import Group, Program
from experiments.harness.lanes import Lane
from jaxdl import lifting, parallel

LANES_FILE = "lanes.json"
"""Which runs of a study were trained together, in the order of their lanes."""


def can_be_lane(config: Any) -> bool:
    """Whether a run's flags ask for nothing that a program of many does not do."""
    run = config.run
    plain = run.parallel == "jit" and run.mesh == type(run).mesh and not run.shard
    return plain and not (run.debug_nans or run.profile_steps or run.folds)


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
    if len(runs) < 2 or all(run.done for run in runs):
        return
    mesh = parallel.data_mesh()
    firsts: dict[tuple, Lane] = {}
    prepared = [_prepare(run, firsts) for run in runs]
    for alike in _several(prepared, lambda lane: lane.kind):
        for lanes in _several(alike, lambda lane: lane.operations):
            if not all(lane.run.done for lane in lanes):
                _train_kind(lanes, mesh, workdir, diverged)


def _several(lanes: Iterable[Lane | None], key: Callable[[Lane], tuple]) -> list[list[Lane]]:
    """The groups of lanes of which a key is the same, and there is more than one."""
    groups: dict[tuple, list[Lane]] = {}
    for lane in lanes:
        if lane is not None:
            groups.setdefault(key(lane), []).append(lane)
    return [group for group in groups.values() if len(group) > 1]


def _prepare(run: Any, firsts: dict[tuple, Lane]) -> Lane | None:
    """A run as a lane; None if its batches are of several shapes.

    Args:
      run: the run.
      firsts: the lanes so far, the first of each function and shapes.
    """
    config = run.config
    devices.check_devices(config)
    problem = training.make_problem(config, run.experiment.build, devices.mesh_of(config))
    if not problem.feed.one_shape:
        return None  # each lane has them in an order of its own
    training.check_choice(config, problem)
    task, hparams = training.task_of(config, problem)
    shapes = training.batch_shapes(problem)
    what = lifting.likeness(task, hparams, shapes)
    first = firsts.get(what)
    init = first.init if first else lifting.trace(task.init, jax.random.key(0), hparams)
    lane = Lane(run, problem, task, hparams, init, *shapes, first)
    firsts.setdefault(what, lane)
    return lane


def _train_kind(
    lanes: list[Lane], mesh: Mesh, workdir: Path, diverged: Callable[[Any, str], None]
) -> None:
    """Trains lanes of one kind, in groups where they are too many for the memory."""
    program = Program(lanes, mesh)
    names = {str(lane.run.workdir.relative_to(workdir)): lane for lane in lanes}
    groups: list[tuple[list[Lane], int]] = []
    for together in _read_groups(workdir):
        group = [names[name] for name in together["runs"] if name in names]
        if len(group) == len(together["runs"]) and not all(lane.run.done for lane in group):
            groups.append((group, program.round(together["size"])))
            for name in together["runs"]:
                del names[name]
    new = [lane for lane in names.values() if not lane.run.done]
    if new:
        size = program.lanes_at_once(len(new))
        groups += [(new[start : start + size], size) for start in range(0, len(new), size)]
    for number, (group, size) in enumerate(groups, start=1):
        of = f"group {number} of {len(groups)}: " if len(groups) > 1 else ""
        print(f"{of}{len(group)} runs as one program: {lanes[0].problem.title}", flush=True)
        _write_group(workdir, group, size)
        Group(program, group, size, diverged).train()


def _read_groups(workdir: Path) -> list[dict[str, Any]]:
    path = workdir / LANES_FILE
    return run_folder.read_record(path, groups=list)["groups"] if path.exists() else []


def _write_group(workdir: Path, group: Iterable[Lane], size: int) -> None:
    """Writes down which lanes are trained together, in the place of what was written of them."""
    names = [str(lane.run.workdir.relative_to(workdir)) for lane in group]
    others = [other for other in _read_groups(workdir) if not set(other["runs"]) & set(names)]
    record = {"groups": [*others, {"size": size, "runs": names}]}
    run_folder.write(workdir / LANES_FILE, json.dumps(record, indent=2))
