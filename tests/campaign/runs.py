"""What the campaign is made of: commands, what they must leave, moments of a run, and trials."""

import argparse
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from jaxdl import checkpoint
from jaxdl.writers import read_rows

ROOT = Path(__file__).parent.parent.parent
CACHE = Path(tempfile.gettempdir()) / "jaxdl_campaign" / "compiled"
SOON = 60  # seconds in which a run that cannot go on has to say so
PATIENCE = 240  # seconds after which a command hangs

COMMON = "--keep=3 --log_every=10 --eval_every=40 --checkpoint_every=10 --steps=120"
SMALL = {
    "resnet": f"resnet --width=4 --batch_size=16 --ema_decay=0.9 {COMMON}",
    "char_rnn": "char_rnn --text={folder}/book.txt --features=32 --embedding=8 --batch_size=16"
    f" --sequence_length=16 --context=16 --prompt=the --length=20 {COMMON}",
    "gan": "gan --image_size=16 --width=4 --discriminator_width=4 --batch_size=16 --samples=64"
    f" --classifier={{folder}}/classifier {COMMON}",
}
CLASSIFIER = "lenet --steps=60 --eval_every=60 --workdir=classifier"
SPEEDS = ("_per_second", "_utilization")


class Failure(Exception):
    """What was seen and should not have been."""


def expect(holds: bool, seen: str) -> None:
    """Raises Failure unless something holds."""
    if not holds:
        raise Failure(seen)


class Process:
    """A command in a folder; what it says goes to files."""

    started: ClassVar[list["Process"]] = []

    def __init__(self, folder: Path, command: str, devices: int = 1, extra: Iterable[str] = ()):
        name, *words = [w.replace("{folder}", str(folder)) for w in shlex.split(command)]
        self.words = ["-c", *words] if name == "python" else ["-m", f"experiments.{name}", *words]
        self.words += extra
        logs = folder / "logs"
        logs.mkdir(exist_ok=True)
        number, self._out = tempfile.mkstemp(dir=logs, suffix=".out")
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(CACHE),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": str(ROOT),
        }
        with open(number, "wb") as out, open(f"{self._out}.err", "wb") as err:
            self._popen = subprocess.Popen(
                [sys.executable, *self.words],
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        self.started.append(self)

    @property
    def out(self) -> str:
        return Path(self._out).read_text(errors="replace")

    @property
    def err(self) -> list[str]:
        """The lines of stderr that are ours, without Gloo's talk of its connections."""
        lines = Path(f"{self._out}.err").read_text(errors="replace").splitlines()
        return [line for line in lines if "[Gloo]" not in line and "peer ranks" not in line]

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def send(self, number: int) -> None:
        self._popen.send_signal(number)

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit code; Failure when it is still running after so many seconds."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
            said = " | ".join(self.err[-2:])[:300]
            raise Failure(f"still running after {seconds:.0f} s; stderr ends: {said}") from None

    def wait_for(self, holds: Callable[[], bool]) -> bool:
        """Waits until something holds; False if the command ended before."""
        deadline = time.monotonic() + PATIENCE
        while self.alive and not holds():
            expect(time.monotonic() < deadline, f"still waiting after {PATIENCE} s")
            time.sleep(0.004)
        return self.alive

    def must_end_well(self) -> None:
        code = self.wait()
        expect(code == 0, f"exit code {code}, stderr: {' | '.join(self.err[-3:])[:400]}")
        strange = [line for line in self.err if not is_news(line)]
        said = f"{len(strange)} lines on stderr: {' | '.join(strange)[:400]}"
        expect(not strange, f"{said}; of {shlex.join(self.words)}")

    def must_fail_in_one_line(self, word: str = "", seconds: float = PATIENCE) -> None:
        code, err = self.wait(seconds), self.err
        shown = " | ".join(err[-3:])[:400]
        expect(not any("Traceback" in line for line in err), f"a traceback: {shown}")
        expect(code == 1, f"exit code {code}, stderr: {shown or 'empty'}")
        lines = [line for line in err if not is_news(line)]
        # Of several images each has a line, and the last counts them.
        counted = lines[-1:] and lines[-1].endswith("could not be read")
        expect(len(lines) == 1 or counted, f"{len(lines)} lines: {shown}")
        expect(all(line.startswith("error: ") for line in lines), f"no error: {shown}")
        expect(word in lines[0], f"without {word!r}: {shown}")


def is_news(line: str) -> bool:
    """Whether a line on stderr is of what was set aside, or not shown because of a full disk."""
    not_shown = line.startswith("warning: ") and "No space left" in line
    return not_shown or "set aside" in line or "; going back to " in line


def checkpoints_of(run: Path) -> list[int]:
    """The steps of a run's complete checkpoints."""
    return [int(p.name) for p in (run / "checkpoints").glob("*") if p.name.isdecimal()]


loading = threading.Lock()
"""Held while a checkpoint is read in this process."""


def differences(whole: Path, parts: Path, exact: bool = True, only_state: bool = False) -> None:
    """Raises Failure unless two finished runs left the same: arrays, metrics, pictures, names.

    Args:
      whole: the run that nothing disturbed.
      parts: the other.
      exact: whether bit for bit; to float tolerance, and of the arrays alone, otherwise.
      only_state: whether of the arrays alone.
    """
    with loading:
        ours, theirs = checkpoint.load(whole), checkpoint.load(parts)
    same_trees(ours, theirs, "state", exact)
    if only_state or not exact:
        return
    names = lambda folder: sorted(p.name for p in folder.iterdir() if ".damaged" not in p.name)
    for folder in (".", "checkpoints"):
        there, here = names(whole / folder), names(parts / folder)
        expect(there == here, f"in {parts / folder}: {here}, not {there}")
    rows = [
        [{k: v for k, v in row.items() if not k.endswith(SPEEDS)} for row in read_rows(run)]
        for run in (whole, parts)
    ]
    expect(len(rows[0]) == len(rows[1]), f"{len(rows[1])} rows of metrics, not {len(rows[0])}")
    for there, here in zip(*rows, strict=True):
        expect(there == here, f"metrics.jsonl: {here}, not {there}")
    for picture in (whole / "samples").glob("*.png"):
        same = picture.read_bytes() == (parts / "samples" / picture.name).read_bytes()
        expect(same, f"samples/{picture.name} is another picture")
    summaries = [json.loads((run / "summary.json").read_text()) for run in (whole, parts)]
    for name in sorted(set().union(*summaries) - {"wall_seconds"}):
        there, here = (summary.get(name, "absent") for summary in summaries)
        expect(there == here, f"{name} in summary.json: {here}, not {there}")


def same_trees(a, b, path: str, exact: bool = True) -> None:
    """Raises Failure unless two nested dicts hold the same arrays."""
    if isinstance(a, dict):
        expect(a.keys() == b.keys(), f"{path}: {sorted(b)}, not {sorted(a)}")
        for key in a:
            same_trees(a[key], b[key], f"{path}/{key}", exact)
        return
    expect(a.shape == b.shape, f"{path}: {b.shape}, not {a.shape}")
    same = np.array_equal(a, b) if exact or a.dtype != np.float32 else np.allclose(a, b, atol=1e-3)
    if not same:
        raise Failure(f"{path} differs by {np.max(np.abs(np.subtract(a, b, dtype=float))):.3g}")


class Campaign:
    """The trials of a part, two at a time, and what came of them."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args, self.folder = args, folder
        self.seen: Counter[str] = Counter()
        self.trials = self.failures = 0
        self._lock = threading.Lock()

    def generator(self, number: int) -> random.Random:
        return random.Random(f"{self.args.part} {self.args.seed} {number}")

    def count(self, what: str) -> None:
        with self._lock:
            self.seen[what] += 1

    def told(self) -> str:
        """What was counted, in words."""
        return ", ".join(f"{count} {what}" for what, count in self.seen.items())

    def end_all(self) -> None:
        """Ends what still runs, so that nothing outlives the campaign."""
        for process in Process.started:
            if process.alive:
                process.send(signal.SIGKILL)

    def run(self, trials: int, trial: Callable[[int], str]) -> None:
        """Runs the trials, (number) -> what to say of it, each in a thread."""
        numbers = range(trials) if self.args.only is None else [self.args.only]
        self.trials = len(numbers)

        def attempt(number):
            began = time.monotonic()
            try:
                said = trial(number)
            except Exception as failure:  # the rest is tried all the same
                kind = "" if isinstance(failure, Failure) else f"{type(failure).__name__}: "
                again = f"python tests/campaign.py {shlex.join(self.args.words)} --only={number}"
                said = f"FAILED: {kind}{failure}; repeat with: {again}"
                with self._lock:
                    self.failures += 1
            with self._lock:
                seconds = time.monotonic() - began
                print(f"{self.args.part} {number + 1}/{trials}: {said}  ({seconds:.0f} s)")
                sys.stdout.flush()

        with ThreadPoolExecutor(self.args.jobs) as pool:
            list(pool.map(attempt, numbers))

    def names(self) -> list[str]:
        """The experiments that were asked for."""
        return [self.args.experiment] if self.args.experiment else list(SMALL)

    def setups(self) -> list[tuple[str, int]]:
        """Those, each with the numbers of devices that were asked for."""
        counts = [self.args.devices] if self.args.devices else [1, 8]
        return [(name, devices) for name in self.names() for devices in counts]

    def reference(self, name: str, devices: int) -> "Reference":
        """Runs an experiment to its end, undisturbed."""
        folder = f"whole_{name}_{devices}"
        process = Process(self.folder, SMALL[name], devices, [f"--workdir={folder}"])
        began = time.monotonic()
        process.wait_for(lambda: process.out != "")
        start = time.monotonic() - began
        process.must_end_well()
        return Reference(self.folder / folder, start, time.monotonic() - began)


class Reference(NamedTuple):
    """A run that nothing disturbed: its folder, and its seconds to the first line and in all."""

    workdir: Path
    start: float
    seconds: float


MOMENTS = ("starting", "restoring", "training", "saving", "evaluating", "finishing")


def at_moment(
    moment: str, process: Process, run: Path, like: Reference, rng: random.Random
) -> bool:
    """Waits for a random time within a moment of a run; False if it ended before."""
    checkpoints, metrics = run / "checkpoints", run / "metrics.jsonl"
    unfinished = lambda: {p.name for p in checkpoints.glob("*tmp*")}
    evaluations = lambda: metrics.read_text().count('"eval/') if metrics.exists() else 0
    there, before = unfinished(), evaluations()
    steps = json.loads((like.workdir / "summary.json").read_text())["step"]
    last = checkpoints / str(steps)
    late = time.monotonic() + 0.7 * like.start  # most of a start is importing
    tail = like.seconds - like.start
    begun, longest = {
        "starting": (lambda: True, like.start),
        "restoring": (lambda: process.out != "" or time.monotonic() > late, 0.3 * like.start),
        "training": (lambda: process.out != "", tail),
        "saving": (lambda: bool(unfinished() - there), 0.04),
        "evaluating": (lambda: evaluations() > before, 0.2),
        "finishing": (last.is_dir, 0.2 * tail),
    }[moment]
    if not process.wait_for(begun):
        return False
    time.sleep(rng.uniform(0, longest))
    return process.alive
