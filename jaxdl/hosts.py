"""What the processes of one run tell each other: decisions, waits, and that one of them failed.

Decisions travel through JAX's coordination service, not through the devices: a host that takes
long over a report holds nobody's collective up, and no time limit of a backend applies. With a
single process all of this does nothing.
"""

import contextlib
import ctypes
import faulthandler
import itertools
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
from jax._src import distributed  # the key-value store has no public name yet
from jax.experimental import multihost_utils

from jaxdl import InputError

HEARTBEAT_SECONDS = 30
"""A process that was not heard for so long is taken for dead."""
DAYS_IN_MS = 30 * 24 * 3600 * 1000
"""How long to wait for what another host decides; if that one dies, so does this."""
FAILED = "jaxdl/failed"
GONE = "{} of this run is gone; start all of them again with the same command"
TELLING_SECONDS = 2 * HEARTBEAT_SECONDS - 10
"""How long JAX may take to tell which process is dead; until then it is not known."""

_turns = itertools.count()
_last_word = threading.Lock()  # held by whichever thread says why this process ends
_kept_alive: list[Any] = []  # what C calls, or writes to, as long as the process lives


def start(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the processes of a multi-host run; call it before anything touches a device.

    From then on, when one process of the run ends without `jax.distributed`'s goodbye, or tells
    of its failure by `fail`, the others end too, with one line on stderr and exit code 1.

    Args:
      coordinator: None for a run of one process; "auto" where the cluster tells (Cloud TPU, Slurm,
        Open MPI); else `host:port` of process 0, the same on every process.
      num_processes: how many there are; None with "auto".
      process_id: which this is, from 0; None with "auto".

    Raises:
      InputError: the cluster tells nothing, or not all came within five minutes.
    """
    if coordinator is None:
        return
    _end_quietly()
    try:
        jax.distributed.initialize(
            None if coordinator == "auto" else coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"the processes of the run could not join at {coordinator}: {reason}"
        ) from error
    if are_several():
        # Gloo gives them half a minute to find each other: now, before one compiles for longer.
        multihost_utils.sync_global_devices("jaxdl")
        threading.Thread(target=_watch, daemon=True).start()


def are_several() -> bool:
    """Whether the run has more than one process."""
    return distributed.global_state.num_processes > 1  # asking JAX would start its devices


def is_first() -> bool:
    """Whether this is the process that decides, prints and writes."""
    return jax.process_index() == 0


def agree(decide: Callable[[], Any]) -> Any:
    """What the first process decides, on all of them.

    All processes must call it in the same order.

    Args:
      decide: () -> something that JSON can hold; called on the first process alone.

    Raises:
      InputError: `decide` raised one; then every process does.
    """
    if not are_several():
        return decide()
    key = f"jaxdl/turn/{next(_turns)}"
    if is_first():
        try:
            said = json.dumps({"decided": decide()})
        except InputError as error:
            _client().key_value_set(key, json.dumps({"refused": str(error)}))
            raise
        _client().key_value_set(key, said)
    else:
        said = _client().blocking_key_value_get(key, DAYS_IN_MS)
    found = json.loads(said)
    if "refused" in found:
        raise InputError(found["refused"])
    return found["decided"]


def agree_on(metrics: Mapping[str, float]) -> dict[str, float]:
    """The first process's metrics, on all of them, which may have computed slightly others."""
    own = {name: float(value) for name, value in metrics.items()}
    return agree(lambda: own)


def wait() -> None:
    """Waits until every process is here, however long that takes."""
    if are_several():
        _client().wait_at_barrier(f"jaxdl/turn/{next(_turns)}", DAYS_IN_MS)


def fail(line: str, exit_code: int = 1) -> None:
    """Says on stderr why this process ends, and tells the others, which end too.

    With several processes it does not return: a goodbye would wait for them.
    """
    _say(line)
    if not are_several():
        return
    number = distributed.global_state.process_id
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another has failed before, or is gone
        _client().key_value_set(FAILED, f"process {number} failed: {line}")
    _leave(exit_code)


def is_consequence(error: BaseException) -> bool:
    """Whether an error of this process comes of another one's end, which `start` tells of."""
    if not are_several():
        return False
    texts = ("Gloo", "closed by peer", "Socket closed", "heartbeat", "CoordinationService")
    return any(text in str(error) for text in texts)


def end_with_the_others() -> NoReturn:
    """Ends after `is_consequence`: as soon as it is known who failed, or else in a minute."""
    time.sleep(TELLING_SECONDS)
    _say(GONE.format("another process"))
    _leave()


def _client() -> Any:
    return distributed.global_state.client


def _leave(exit_code: int = 1) -> NoReturn:
    """Ends at once: the goodbye of `jax.distributed` waits minutes for processes that are gone."""
    if distributed.global_state.process_id == 0:
        time.sleep(5)  # it serves what was said, so it goes last
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _say(line: str) -> None:
    if _last_word.acquire(blocking=False):
        print(f"error: {line}", file=sys.stderr, flush=True)


def _watch() -> None:
    """Ends this process once another has told of its failure."""
    while _client() is not None and not _last_word.locked():
        if (line := _told()) is not None:
            _say(line)
            _leave()
        time.sleep(1)


def _told() -> str | None:
    """What another process said of its failure, if one has."""
    # Held here alone: a client that outlives `jax.distributed`'s goodbye, in a thread that sleeps,
    # would still be at work when the process ends.
    client = _client()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        return client.key_value_try_get(FAILED) if client is not None else None
    return None


def _dead(text: bytes) -> str:
    """Who JAX's log says has died."""
    # A number a line, in other versions the name of a task that ends in it.
    listed = re.findall(rb"stopped sending heartbeats\):\s*((?:\S*\b\d+\s+)+)", text)
    numbers = {int(n) for names in listed for n in re.findall(rb"(\d+)\s", names)}
    others = sorted(numbers - {distributed.global_state.process_id})
    return f"process {', '.join(map(str, others))}" if others else "another process"


def _end_quietly() -> None:
    """Makes one line of the page that JAX prints as it aborts for another process's death.

    JAX ends a process whose peer died by abort(), after a log and a stack trace in C++, and can be
    given no function of ours to do it better. So what C++ writes to stderr is kept in a file, which
    is shown if the process aborts for anything else; Python's own stderr goes where it always went.
    """
    screen = os.dup(sys.stderr.fileno())
    kept = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
    os.dup2(kept.fileno(), sys.stderr.fileno())
    sys.stderr = os.fdopen(screen, "w", buffering=1)
    if faulthandler.is_enabled():
        faulthandler.enable(sys.stderr)

    def on_abort(number: int) -> None:
        text = os.pread(kept.fileno(), 1 << 16, 0)
        if b"JAX distributed service" in text:
            _say(GONE.format(_dead(text)))
            _leave()
        os.write(screen, text)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(on_abort)
    _kept_alive.append((handler, kept))
    # Not Python's own signal handlers: those run between two instructions of the main thread.
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)
