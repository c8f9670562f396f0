"""One saved state in its folder: read whole, checked, or read straight onto devices.

This file and `jaxdl.checkpoint` alone know Orbax. Every state is saved with a fingerprint of its
arrays, because a flipped byte in a file of plain floats is otherwise read without complaint.
"""

import contextlib
import functools
import json
import logging
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdl import InputError, trees
from jaxdl.task import State

ARRAYS = "default"
"""The folder of the arrays, in a checkpoint's."""
FINGERPRINT, TOTALS = "fingerprint", "totals"
"""What is saved beside the fields of a State."""
CHECKSUM = "checksum"
"""Of the metrics that are saved with a checkpoint, among them."""
PART = 256 * 2**20
"""How many bytes of a checkpoint are held at once to check it; of one array it may be more."""


class DamagedCheckpoint(InputError):
    """A checkpoint that is not what was saved."""


@functools.cache
def orbax() -> Any:
    """Orbax's module, imported where it is first used: it takes a quarter of a second."""
    import orbax.checkpoint as ocp

    # It tells each save at length through absl's logger; what users must hear is raised or printed.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    return ocp


def checksum(metrics: Mapping[str, float]) -> int:
    """What `metrics` compares: of all but itself."""
    pairs = sorted((name, float(value)) for name, value in metrics.items() if name != CHECKSUM)
    return zlib.crc32(repr(pairs).encode())


def metrics(path: Path) -> Mapping[str, float]:
    """The metrics saved with a checkpoint; none if there are none.

    Raises:
      DamagedCheckpoint: they are not those that were saved.
    """
    file = path / "metrics" / "metrics"
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_bytes())
        sound = found.get(CHECKSUM, checksum(found)) == checksum(found)
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"checkpoint {path} is damaged ({file.name}: {error})") from error
    if not sound:
        raise DamagedCheckpoint(f"checkpoint {path} is damaged ({file.name} are not those saved)")
    return found


def read(path: Path) -> dict[str, Any]:
    """Reads a checkpoint into numpy arrays on this host, and checks it.

    Raises:
      DamagedCheckpoint: files are missing or cannot be decoded, or the fingerprint is another.
      OSError: files cannot be read now.
    """
    metrics(path)
    with _reading(path) as (handler, shapes):
        tree = _read_part(path, handler, shapes)
        saved = tree.pop(FINGERPRINT)
    _compare(path, saved, trees.fingerprint(tree))
    return tree


def check(path: Path) -> None:
    """Reads a checkpoint as `read` does and for the same errors, but holds only parts of it."""
    metrics(path)
    with _reading(path) as (handler, shapes):
        saved = _read_part(path, handler, {FINGERPRINT: shapes.pop(FINGERPRINT)})[FINGERPRINT]
        leaves = jax.tree.leaves_with_path(shapes)
        places, total = {keys: place for place, (keys, _) in enumerate(leaves)}, 0
        for part in _parts(shapes):
            for keys, array in jax.tree.leaves_with_path(_read_part(path, handler, part)):
                total += trees.fingerprint_of_array(keys, places[keys], array)
    _compare(path, saved, total % 2**32)


def onto(path: Path, template: State) -> tuple[State, dict[str, Any]]:
    """Reads a checkpoint that was checked straight to where a template's arrays lie.

    Each host reads what its devices hold.

    Args:
      path: the checkpoint.
      template: a State with the structure, shapes and shardings wanted.

    Returns:
      The State, and the totals saved with it.

    Raises:
      InputError: it is of another model or optimizer.
      DamagedCheckpoint, OSError: as `read`.
    """
    name, wanted = f"checkpoint {path}", trees.from_state(template)
    with _reading(path) as (handler, shapes):
        del shapes[FINGERPRINT]
        totals = shapes.pop(TOTALS, {})
        trees.check_same_shapes(shapes, wanted, name)
        placed = jax.tree.map(
            lambda leaf, like: orbax().ArrayRestoreArgs(
                sharding=like.sharding, global_shape=leaf.shape, dtype=leaf.dtype
            ),
            shapes,
            wanted,
        )
        tree = _read_part(
            path, handler, shapes | {TOTALS: totals}, placed | {TOTALS: _as_numpy(totals)}
        )
    totals = tree.pop(TOTALS, {})
    return trees.to_state(tree, template, name), totals


def _as_numpy(shapes: Any) -> Any:
    return jax.tree.map(lambda _: orbax().RestoreArgs(restore_type=np.ndarray), shapes)


def _read_part(path: Path, handler: Any, part: Any, how: Any = None) -> dict[str, Any]:
    """The arrays of a part of a checkpoint's tree; as numpy arrays unless `how` says otherwise."""
    how = _as_numpy(part) if how is None else how
    request = orbax().args.PyTreeRestore(part, how, partial_restore=True)
    return handler.restore(path / ARRAYS, args=request)


def _parts(shapes: Any) -> Iterator[dict[str, Any]]:
    """A tree of shapes as trees of about `PART` bytes each."""
    part: dict[str, Any] = {}
    size = 0
    for keys, leaf in jax.tree.leaves_with_path(shapes):
        *folders, name = (key.key for key in keys)
        node = part
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
        size += int(np.prod(leaf.shape, dtype=np.int64)) * np.dtype(leaf.dtype).itemsize
        if size >= PART:
            yield part
            part, size = {}, 0
    if part:
        yield part


def _compare(path: Path, saved: Any, found: Any) -> None:
    if int(saved) != int(found):
        raise DamagedCheckpoint(
            f"checkpoint {path} is damaged (its arrays are not those that were saved)"
        )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yields what reads a checkpoint, and its shapes; tells damage from what else may fail."""
    # The handler itself, for what wraps it hides errors and waits for other hosts.
    handler = orbax().PyTreeCheckpointHandler()
    mute_closed_loops()
    try:
        yield handler, dict(handler.metadata(path / ARRAYS).tree)
    except InputError:
        raise
    except Exception as error:
        if not _is_damage(error):
            if isinstance(error, OSError | MemoryError):
                raise
            raise OSError(f"checkpoint {path} cannot be read ({reason(error)})") from error
        raise DamagedCheckpoint(f"checkpoint {path} is damaged ({reason(error)})") from error


def _is_damage(error: Exception) -> bool:
    """Whether a failed read shows that files are missing or hold what cannot be decoded.

    A rename follows from it, so whatever else may have failed (memory, a device, a network's file
    system) is no damage.
    """
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return True
    status = re.match(r"([A-Z_]+): ", str(error))  # TensorStore's, which are ValueErrors
    if isinstance(error, ValueError) and status:
        return status[1] in (
            *("DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND"),
            *("OUT_OF_RANGE", "UNIMPLEMENTED"),
        )
    return isinstance(error, ValueError | LookupError | TypeError | AttributeError)


def reason(error: Exception) -> str:
    """The first line of an error."""
    if "No space left" in str(error):  # at the end of a long line
        return "no space left"
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


@functools.cache
def mute_closed_loops() -> None:
    """Keeps failed reads and saves from printing a traceback for each array that was under way.

    Orbax closes its event loop at the first error. The others then find it closed, some of them
    only later, and complain to the interpreter; or they have failed too, which asyncio logs.
    """
    before = sys.unraisablehook

    def heard(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = heard

    def is_another_s(record: logging.LogRecord) -> bool:
        text = logging.Formatter().format(record)
        # Where the frames of Orbax are gone already, TensorStore's error names what it read.
        return not any(name in text for name in ("/orbax/", "/tensorstore/", "OCDBT"))

    logging.getLogger("asyncio").addFilter(is_another_s)
