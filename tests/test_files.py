"""Files that are there whole or not at all, and locks of one process."""

import os
import resource
import select
import subprocess
import sys
from pathlib import Path

import pytest

from jaxdl import InputError, files

ROOT = Path(__file__).parent.parent


def test_a_file_is_replaced_once_it_is_whole(tmp_path):
    path = tmp_path / "folder" / "file.txt"
    for text in (b"one", b"two"):
        with files.replacing(path) as file:
            file.write(text)
            assert not path.exists() or path.read_bytes() == b"one"
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_what_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def write(error, content):
        with files.replacing(path) as file:
            file.write(content)
            raise error

    for error in (ValueError("no"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            write(error, b"half")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=rf"File too large: '{path}'"):
            write(None, bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


HOLD = """
import sys
from pathlib import Path
from jaxdl import files
print("begun", flush=True)
with files.lock(Path(sys.argv[1]), wait=True):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_a_lock_is_refused_or_waited_for(tmp_path):
    path = tmp_path / "folder" / ".lock"

    def start():
        pipe = subprocess.PIPE
        arguments = [sys.executable, "-c", HOLD, str(path)]
        process = subprocess.Popen(arguments, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)
        assert process.stdout.readline() == "begun\n"
        return process

    with start() as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"folder is in use by process {first.pid} on "):
            files.lock(path).__enter__()
        with start() as second:
            assert select.select([second.stdout], [], [], 0.5) == ([], [], [])  # it waits
            first.kill()  # SIGKILL leaves no stale lock
            assert second.stdout.readline() == "held\n"
            second.stdin.close()
    with files.lock(path):
        assert path.read_text().startswith(f"process {os.getpid()} on ")
