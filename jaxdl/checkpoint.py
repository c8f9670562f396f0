"""Saving and restoring whole states.

A checkpoint is `<workdir>/checkpoints/<step>/`, complete or absent: Orbax writes beside it and
renames. What is in one, `jaxdl.saved` knows. States that are cut over devices are written and read
in their parts: no host ever holds a whole one.

A run has one writer, who holds `lock` and uses `Checkpoints`, and any number of readers, who use
`load` and `restore` and change nothing.
"""

import contextlib
import errno
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import jax

from jaxdl import InputError, files, hosts, saved, trees
from jaxdl.saved import DamagedCheckpoint
from jaxdl.task import State

T = TypeVar("T")

FOLDER = "checkpoints"
LOCK_FILE = ".lock"
CAME_TO = "came_to"
"""A file among the checkpoints, of the step that a run came to where it said so."""


@contextlib.contextmanager
def lock(workdir: str | Path) -> Iterator[None]:
    """Holds a run's folder against other writers; readers need no lock.

    It ends with the process that holds it, however that ends. Of several hosts the first holds it
    for all.

    Raises:
      InputError: another process holds it.
    """
    with contextlib.ExitStack() as held:
        hosts.agree(lambda: held.enter_context(files.lock(Path(workdir) / LOCK_FILE)))
        yield


class Checkpoints:
    """The checkpoints of one run: saves them, keeps the latest and the best.

    Use it as a context manager, holding `lock(workdir)`. Entering finds the newest sound checkpoint
    and sets damaged ones after it aside; leaving waits for what is being written.

    Args:
      workdir: the run's folder.
      keep: how many of the latest to keep.
      best: the metric whose greatest value marks the one more checkpoint to keep; None for none.
        What is not finite is never better than what is.
      least: whether it is the least value that is best.
      background: whether `save` writes beside what the caller does next. Who would only wait, with
        many small states to save in turn, is quicker without.

    Attributes:
      totals: what was saved with the restored state as its `totals`; empty when nothing was.

    Raises:
      InputError: on entering, when there are checkpoints but all are damaged.
      OSError: on leaving, when what was being written could not be.
    """

    def __init__(
        self,
        workdir: str | Path,
        keep: int = 2,
        best: str | None = None,
        least: bool = False,
        background: bool = True,
    ):
        self.folder = Path(workdir).absolute() / FOLDER
        self.totals: dict[str, tuple[float, float]] = {}
        self._keep, self._best, self._least, self._background = keep, best, least, background
        self._sound: int | None = None

    def __enter__(self) -> "Checkpoints":
        saved.mute_closed_loops()
        self._sound = hosts.agree(self._find_sound)
        ocp = saved.orbax()
        policies = ocp.checkpoint_managers
        kept: list[Any] = [policies.LatestN(self._keep)]
        rank = None if self._best is None else self._rank
        if rank is not None:
            kept.append(
                policies.BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False)
            )
        # It reads the metrics of every checkpoint at once.
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                best_fn=rank,
                enable_async_checkpointing=self._background,
            ),
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._manager.wait_until_finished()
            self._manager.close()
        except Exception as failed:
            if error is None:  # else that is what to tell of
                self._tell_of(failed)

    def _find_sound(self) -> int | None:
        """The newest sound step; damaged checkpoints are set aside, and what kills left removed."""
        _remove_unfinished(self.folder)
        steps = _steps(self.folder)
        damaged: dict[int, DamagedCheckpoint] = {}
        measured: dict[int, Mapping[str, float]] = {}
        for step in reversed(steps):
            path = self.folder / str(step)
            try:
                if not measured:
                    saved.check(path)
                measured[step] = saved.metrics(path)
            except DamagedCheckpoint as found:
                damaged[step] = found
        if steps and not measured:
            raise InputError(f"every checkpoint in {self.folder} is damaged; {damaged[steps[-1]]}")
        for step, damage in damaged.items():
            aside = self.folder / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / str(step)).rename(aside)
            print(f"{damage}; set aside as {aside.name}, going back", file=sys.stderr)
        self._remove_superseded(measured)
        return max(measured, default=None)

    def _remove_superseded(self, measured: Mapping[int, Mapping[str, float]]) -> None:
        """Removes what is neither among the latest nor the best.

        Orbax does so after each save; after the last one of a run a kill may have come before.
        """
        kept = set(sorted(measured)[-self._keep :])
        ranks = {step: self._rank(of) for step, of in measured.items() if self._best in of}
        if ranks:
            kept.add(max(ranks, key=lambda step: (ranks[step], step)))
        for step in measured.keys() - kept:
            shutil.rmtree(self.folder / str(step), ignore_errors=True)

    def _rank(self, metrics: Mapping[str, float]) -> float:
        value = metrics[self._best or ""]
        if not math.isfinite(value):
            return -math.inf
        return -value if self._least else value

    @property
    def latest(self) -> int | None:
        """The newest saved step; None before the first."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The saved step whose metric is best; None when none was measured."""
        return None if self._best is None else self._manager.best_step()

    def save(
        self,
        state: State,
        metrics: Mapping[str, float] | None = None,
        totals: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        """Saves a state under its step; in the background it returns once arrays may be donated.

        Args:
          state: what to save. A step that is saved already is not saved again.
          metrics: what was measured of it, among them `best`; None when nothing was.
          totals: what a run that goes on from here counts on from.

        Raises:
          OSError: there is no room for it, or the save before it could not be written.
        """
        step = int(state.step)
        if step == self.latest:
            return
        tree = trees.from_state(state)
        tree[saved.TOTALS] = {name: trees.to_words(pair) for name, pair in (totals or {}).items()}
        tree[saved.FINGERPRINT] = trees.fingerprint(tree)
        if metrics is not None:
            metrics = dict(metrics) | {saved.CHECKSUM: saved.checksum(metrics)}
        self.wait()
        try:
            if hosts.is_first():
                _check_room(self.folder, sum(leaf.nbytes for leaf in jax.tree.leaves(tree)))
                (self.folder / CAME_TO).unlink(missing_ok=True)
            args = saved.orbax().args.StandardSave(tree)
            self._manager.save(step, args=args, metrics=metrics, force=True)
        except Exception as error:
            self._tell_of(error)

    def wait(self) -> None:
        """Waits until all that was given to `save` is on disk.

        Raises:
          OSError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # whatever Orbax's threads came upon
            self._tell_of(error)

    def _tell_of(self, error: Exception) -> NoReturn:
        """Removes what a failed save left, and tells of it."""
        if hosts.is_consequence(error):
            raise error
        if hosts.is_first():
            _remove_unfinished(self.folder)
        steps = _steps(self.folder)
        kept = f"those of steps {', '.join(map(str, steps))} are kept" if steps else "there is none"
        raise OSError(
            f"a checkpoint could not be written to {self.folder} ({saved.reason(error)}); {kept}; "
            "mend that and give the same command again"
        ) from error

    def go_back(self, step: int) -> None:
        """Goes back to a step that is saved: what was saved after it is removed, to be made anew.

        Call it before `restore`.

        Args:
          step: which; 0 for the beginning, without any.

        Raises:
          DamagedCheckpoint: it cannot be read back; then nothing is removed.
        """
        if step:
            saved.check(self.folder / str(step))
        self._sound = step or None
        for later in _steps(self.folder):
            if later > step:
                shutil.rmtree(self.folder / str(later))
        self._manager.reload()

    def measured(self, step: int) -> dict[str, float]:
        """The metrics that were saved with a step; none where there were none."""
        found = dict(saved.metrics(self.folder / str(step)))
        found.pop(saved.CHECKSUM, None)
        return found

    def restore(self, template: State) -> State | None:
        """The newest sound checkpoint as a State like `template`; None when there is none at all.

        The number of devices need not be that of the run that saved.

        Args:
          template: a State with the structure, shapes, dtypes and shardings wanted.

        Raises:
          InputError: the checkpoint is of another model or optimizer.
        """
        if self._sound is None:
            return None
        path, self._sound = self.folder / str(self._sound), None
        state, totals = saved.onto(path, template)
        self.totals = {name: trees.from_words(words) for name, words in totals.items()}
        return state

    def restore_best(self, template: State) -> State:
        """The saved state whose metric is best, as a State like `template`.

        Raises:
          DamagedCheckpoint: it cannot be read back.
        """
        self.wait()
        assert self.best is not None, "restore_best is for runs that were evaluated"
        path = self.folder / str(hosts.agree(lambda: self.best))
        hosts.agree(lambda: saved.check(path))
        return saved.onto(path, template)[0]

    def came_to(self, step: int) -> None:
        """Says which of its checkpoints the run came to: `load` and `restore` take that one.

        It holds until another step is saved. The run itself goes on from the newest in any case.

        Raises:
          OSError: it could not be written.
        """
        if hosts.is_first():
            with files.replacing(self.folder / CAME_TO) as file:
                file.write(b"%d\n" % step)


def load(workdir: str | Path, step: int | None = None) -> dict[str, Any]:
    """Reads a run's checkpoint without its model's code; also while the run goes on.

    Args:
      workdir: the run's folder.
      step: which checkpoint; when None the one that the run came to (`Checkpoints.came_to`), or
        else the latest complete one.

    Returns:
      Nested dicts of numpy arrays: `step`, `key` (the PRNG key's words), `hparams`, `params`,
      `extra` (`batch_stats` ...), `opt_state` (tuples are dicts with keys "0", "1" ...), `monitor`;
      `average` (`params`, `extra`) and `loss_scale` are empty where the run kept none.

    Raises:
      InputError: there is no such checkpoint, or it is damaged; the message lists those there are.
      OSError: it cannot be read now, whatever is in it.
    """
    _, tree = _choose(Path(workdir).absolute() / FOLDER, step, saved.read)
    tree.pop(saved.TOTALS, None)
    return tree


def restore(workdir: str | Path, template: State, step: int | None = None) -> State:
    """What `load` reads, as a State like `template`, read straight to where that lies.

    Raises:
      InputError: also when the checkpoint is of another model or optimizer.
    """
    folder = Path(workdir).absolute() / FOLDER
    # While its run goes on, hosts could find different ones.
    chosen = hosts.agree(lambda: _choose(folder, step, saved.check)[0])
    try:
        return saved.onto(folder / str(chosen), template)[0]
    except (DamagedCheckpoint, FileNotFoundError):
        if chosen in _steps(folder) or hosts.are_several():
            raise
        return restore(workdir, template, step)  # the run that goes on has removed it


def _choose(folder: Path, step: int | None, use: Callable[[Path], T]) -> tuple[int, T]:
    """The checkpoint that `load` describes, and what `use` makes of its path."""
    steps = _steps(folder)
    if step is not None and step not in steps:
        there = f"there are {', '.join(map(str, steps))}" if steps else "there is none"
        raise InputError(f"no checkpoint of step {step} in {folder}; {there}")
    came_to = _came_to(folder)
    choice = sorted(steps, key=lambda other: (other == came_to, other)) if step is None else [step]
    while choice:
        chosen = choice.pop()
        try:
            return chosen, use(folder / str(chosen))
        except (DamagedCheckpoint, FileNotFoundError) as damage:
            if _steps(folder) != steps:  # the run that goes on has removed it
                return _choose(folder, step, use)
            if not choice:
                raise
            print(f"{damage}; going back to that of step {choice[-1]}", file=sys.stderr)
    raise InputError(f"no checkpoint in {folder}")


def _came_to(folder: Path) -> int | None:
    """What `Checkpoints.came_to` was told; None where it was not, or more was saved since."""
    path = folder / CAME_TO
    try:
        return int(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise InputError(f"{path} is damaged; the command of the run writes it anew") from error


def steps(workdir: str | Path) -> list[int]:
    """The steps whose checkpoints are complete, in order; those set aside as damaged left out."""
    return _steps(Path(workdir) / FOLDER)


def _steps(folder: Path) -> list[int]:
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdecimal() and p.is_dir())


def _remove_unfinished(folder: Path) -> None:
    for path in folder.glob("*.orbax-checkpoint-tmp*"):  # what Orbax calls one it still writes
        for seconds in (0.0, 0.1, 0.4):  # its other threads may write on after one has failed
            time.sleep(seconds)
            shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                break


def _check_room(folder: Path, size: int) -> None:
    """Raises OSError where a checkpoint would not fit, which Orbax tells late and at length."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / "probe.orbax-checkpoint-tmp"  # no folder can be made on a full disk either
    probe.mkdir(exist_ok=True)
    probe.rmdir()
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(errno.ENOSPC, f"no space left: it takes {size:,} bytes and {free:,} are free")
