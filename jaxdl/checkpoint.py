"""Saving and restoring whole states; the only file that knows Orbax.

A checkpoint is `<workdir>/checkpoints/<step>/`, written in the background and complete or absent:
Orbax writes beside it and renames. Every checkpoint carries a fingerprint of its arrays, because
a flipped byte in a file of plain floats is otherwise restored without complaint.
"""

import functools
import json
import logging
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jaxdl import InputError
from jaxdl.task import State

FOLDER = "checkpoints"
# Orbax tells each save at length through absl's logger; what users must hear is raised or printed.
logging.getLogger("absl").setLevel(logging.CRITICAL)


def _to_tree(state: State) -> dict[str, Any]:
    """A State as nested dicts of plain arrays: no named tuples, no typed PRNG keys."""
    plain = state._replace(key=jax.random.key_data(state.key))
    return flax.serialization.to_state_dict(plain)


def _from_tree(tree: dict[str, Any], template: State) -> State:
    """The reverse of `_to_tree`; types, structure and shardings are the template's."""
    plain = template._replace(key=jax.random.key_data(template.key))
    state = flax.serialization.from_state_dict(plain, tree)
    state = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), state, plain)
    impl = jax.random.key_impl(template.key)
    return state._replace(key=jax.random.wrap_key_data(state.key, impl=impl))


@jax.jit
def fingerprint(tree: Any) -> jax.Array:
    """uint32 [] that changes with any change of a single word of any array.

    Words are summed modulo 2^32 with odd weights: exact, and the same in whatever order and on
    however many devices the sum is taken.
    """
    total = jnp.uint32(0)
    for place, (path, leaf) in enumerate(jax.tree.leaves_with_path(tree)):
        name = sum(map(ord, jax.tree_util.keystr(path))) + place
        if leaf.dtype == jnp.bool_:
            leaf = leaf.astype(jnp.uint8)
        word = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
        words = jax.lax.bitcast_convert_type(leaf, word).astype(jnp.uint32).ravel()
        weights = jax.lax.iota(jnp.uint32, words.size) * 2 + jnp.uint32(2 * name + 1)
        total += jnp.sum(words * weights, dtype=jnp.uint32)
    return total


class Checkpoints:
    """The checkpoints of one run: saves in the background, keeps the latest and the best.

    Use it as a context manager: leaving waits for what is being written, and raises if that failed.

    Args:
      workdir: the run's folder.
      keep: how many of the latest to keep.
      best: the metric whose greatest value marks the one more checkpoint to keep; None for none.
      least: whether it is the least value that is best.
    """

    def __init__(
        self, workdir: str | Path, keep: int = 2, best: str | None = None, least: bool = False
    ):
        self.folder = Path(workdir).absolute() / FOLDER
        self._keep, self._best, self._least = keep, best, least

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Orbax's manager, which reads the metrics of every checkpoint as soon as it is made."""
        for step in _steps(self.folder):
            try:
                _read_metrics(self.folder / str(step))
            except DamagedCheckpoint as damage:
                self._set_aside(step, damage)
        kept: list[Any] = [policies.LatestN(self._keep)]
        rank = None if self._best is None else self._rank
        if rank is not None:
            kept.append(
                policies.BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False)
            )
        return ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept), best_fn=rank
            ),
        )

    def _rank(self, metrics: Mapping[str, float]) -> float:
        value = metrics[self._best or ""]
        return -value if self._least else value

    def _set_aside(self, step: int, damage: "DamagedCheckpoint") -> None:
        aside = self.folder / f"{step}.damaged"
        shutil.rmtree(aside, ignore_errors=True)
        (self.folder / str(step)).rename(aside)
        print(f"{damage}; set aside as {aside.name}, going back", file=sys.stderr)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The newest saved step; None before the first."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The saved step whose metric is best; None when none was measured."""
        return None if self._best is None else self._manager.best_step()

    def save(self, state: State, metrics: Mapping[str, float] | None = None) -> None:
        """Starts saving a state under its step; returns once its arrays may be donated.

        Args:
          state: what to save. A step that is saved already is not saved again.
          metrics: what was measured of it, among them `best`; None when nothing was.
        """
        step = int(state.step)
        if step == self.latest:
            return
        tree = _to_tree(state)
        tree["fingerprint"] = fingerprint(tree)
        self._manager.save(step, args=ocp.args.StandardSave(tree), metrics=metrics, force=True)

    def restore_best(self, template: State) -> State:
        """The saved state whose metric is best, as a State like `template`.

        Raises:
          DamagedCheckpoint: it cannot be read back.
        """
        self._manager.wait_until_finished()
        step = self.best
        assert step is not None, "restore_best is for runs that were evaluated"
        return _from_tree(_read(self.folder, step), template)

    def restore(self, template: State) -> State | None:
        """The newest sound checkpoint as a State like `template`; None when there is none at all.

        A damaged checkpoint is reported on stderr, set aside as `<step>.damaged`, and the one
        before it used. The number of devices need not be that of the run that saved.

        Args:
          template: a State with the structure, shapes, dtypes and shardings wanted.

        Raises:
          InputError: the checkpoint is of another model or optimizer, or all are damaged.
        """
        steps = _steps(self.folder)
        for step in reversed(steps):
            try:
                _read_metrics(self.folder / str(step))
                tree = _read(self.folder, step)
            except DamagedCheckpoint as damage:
                self._set_aside(step, damage)
                continue
            _check_alike(tree, template, self.folder / str(step))
            return _from_tree(tree, template)
        if steps:
            raise InputError(f"every checkpoint in {self.folder} is damaged")
        return None


class DamagedCheckpoint(InputError):
    """A checkpoint that cannot be read back as it was written."""


def load(workdir: str | Path, step: int | None = None) -> dict[str, Any]:
    """Reads a run's checkpoint without its model's code.

    Args:
      workdir: the run's folder.
      step: which checkpoint; the latest complete one when None.

    Returns:
      Nested dicts of numpy arrays: `step`, `key` (the PRNG key's words), `hparams`, `params`,
      `extra` (`batch_stats` ...), `opt_state` (tuples are dicts with keys "0", "1" ...), `monitor`;
      `average` (`params`, `extra`) and `loss_scale` are empty where the run kept none.

    Raises:
      InputError: there is no such checkpoint, or it is damaged; the message lists those there are.
    """
    folder = Path(workdir).absolute() / FOLDER
    steps = _steps(folder)
    if step is not None and step not in steps:
        there = f"there are {', '.join(map(str, steps))}" if steps else "there is none"
        raise InputError(f"no checkpoint of step {step} in {folder}; {there}")
    for candidate in reversed(steps) if step is None else [step]:
        try:
            return _read(folder, candidate)
        except DamagedCheckpoint as damage:
            if step is not None or candidate == steps[0]:
                raise
            print(f"{damage}; going back to the one before", file=sys.stderr)
    raise InputError(f"no checkpoint in {folder}")


def _steps(folder: Path) -> list[int]:
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdecimal() and p.is_dir())


def _read_metrics(path: Path) -> None:
    """Checks that the metrics saved with a checkpoint, if there are any, can be read."""
    file = path / "metrics" / "metrics"
    try:
        json.loads(file.read_text() if file.exists() else "{}")
    except ValueError as error:
        raise DamagedCheckpoint(f"checkpoint {path} is damaged ({file.name}: {error})") from error


def _read(folder: Path, step: int) -> dict[str, Any]:
    """Reads a checkpoint into numpy arrays on this host and checks its fingerprint."""
    path = folder / str(step)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            shapes = reader.metadata(path / "default").item_metadata
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes.tree)
            tree = reader.restore(path / "default", args=ocp.args.PyTreeRestore(None, as_numpy))
        if tree.pop("fingerprint") != np.asarray(fingerprint(tree)):
            raise ValueError("its arrays are not those that were saved")
    except Exception as error:  # Orbax raises whatever the broken file led to
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DamagedCheckpoint(f"checkpoint {path} is damaged ({reason})") from error
    return tree


def _check_alike(tree: dict[str, Any], template: State, path: Path) -> None:
    """Raises InputError that names where a checkpoint and the wanted state first differ."""

    def shapes(tree):
        return {
            jax.tree_util.keystr(k, simple=True, separator="/"): np.shape(v)
            for k, v in jax.tree.leaves_with_path(tree)
        }

    saved, wanted = shapes(tree), shapes(_to_tree(template))
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise InputError(
                f"checkpoint {path} is of another model or optimizer: {name} is "
                f"{saved.get(name, 'absent')} there and {wanted.get(name, 'absent')} here"
            )
