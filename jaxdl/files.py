"""Files that several processes look at: written whole or not at all, and held by one at a time."""

import contextlib
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from jaxdl import InputError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write in, which takes the place of `path` once it is whole.

    Until then, and where it fails, `path` is what it was. Each process writes under a name of its
    own, so that the last of several that write the same file has it.

    Raises:
      OSError: it cannot be written; the error says which file.
    """
    scratch = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            yield file
        scratch.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        if isinstance(error, OSError) and error.filename is None:  # a full disk does not say where
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds a lock file against other processes; it ends with this one, however that ends.

    Args:
      path: the lock file, which names its holder and stays when it is let go.
      wait: whether to wait while another process holds it, or refuse.

    Raises:
      InputError: another process holds it, and this one does not wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "another process"
            raise InputError(f"{path.parent} is in use by {holder}") from None
        except OSError as error:  # a network's file system may have no locks
            where = f"{path.parent} cannot be locked ({error})"
            print(f"{where}: train nothing else in it", file=sys.stderr)
        file.truncate(0)
        try:
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        except OSError as error:  # one of a full disk does not say where
            raise OSError(error.errno, error.strerror, str(path)) from None
        yield
