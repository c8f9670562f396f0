"""The campaign: runs are killed, damaged, moved, starved of disk and given nonsense, by chance.

    python tests/campaign.py kill --count=200      # SIGKILL at random moments; the end is the same
    python tests/campaign.py damage --count=100    # bytes flipped, files cut or gone in checkpoints
    python tests/campaign.py hosts --count=8       # one of two processes killed, or told to stop
    python tests/campaign.py devices --count=6     # over 8, 4, 1, 8 devices; 2, 1, 2 processes
    python tests/campaign.py full --count=10       # no space left, on a tmpfs (needs root)
    python tests/campaign.py mistakes              # tests/mistakes.py: one line each

Each trial draws from a generator of its own, so `--only=N` repeats the trial of that number. A
failure is a line with the command that repeats it; the last line counts; the exit code is 1 if
anything failed.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

import mistakes  # noqa: E402
from jaxdl import InputError, checkpoint  # noqa: E402
from jaxdl.writers import read_rows  # noqa: E402

SOON = 60  # seconds in which a run that cannot go on has to say so
PATIENCE = 240  # seconds after which a command hangs

COMMON = "--log_every=10 --eval_every=40 --checkpoint_every=10 --steps=120"
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

    def __init__(self, folder: Path, command: str, devices: int = 1, extra: Iterable[str] = ()):
        name, *words = [word.format(folder=folder) for word in shlex.split(command)]
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
        expect(code == 0, f"exit code {code}, stderr: {' | '.join(self.err)[:400]}")
        strange = [line for line in self.err if "set aside" not in line]
        said = f"{len(strange)} lines on stderr: {' | '.join(strange)[:400]}"
        expect(not strange, f"{said}; of {shlex.join(self.words)}")

    def must_fail_in_one_line(self, word: str = "", seconds: float = PATIENCE) -> None:
        code, err = self.wait(seconds), self.err
        shown = " | ".join(err[-3:])[:400]
        expect(not any("Traceback" in line for line in err), f"a traceback: {shown}")
        expect(code == 1, f"exit code {code}, stderr: {shown or 'empty'}")
        # What was set aside on the way is news of its own.
        lines = [line for line in err if "set aside" not in line]
        # Of several images each has a line, and the last counts them.
        counted = lines[-1:] and lines[-1].endswith("could not be read")
        expect(len(lines) == 1 or counted, f"{len(lines)} lines: {shown}")
        expect(all(line.startswith("error: ") for line in lines), f"no error: {shown}")
        expect(word in lines[0], f"without {word!r}: {shown}")


_loading = threading.Lock()


def differences(whole: Path, parts: Path, exact: bool = True) -> None:
    """Raises Failure unless two finished runs left the same: arrays, metrics, pictures, names."""
    with _loading:
        ours, theirs = checkpoint.load(whole), checkpoint.load(parts)
    _same_trees(ours, theirs, "state", exact)
    if not exact:
        return
    names = lambda folder: sorted(p.name for p in folder.iterdir() if ".damaged" not in p.name)
    for folder in (".", "checkpoints"):
        there, here = names(whole / folder), names(parts / folder)
        expect(there == here, f"in {parts / folder}: {here}, not {there}")
    summaries = [json.loads((run / "summary.json").read_text()) for run in (whole, parts)]
    for summary in summaries:
        summary.pop("wall_seconds")
    expect(summaries[0] == summaries[1], f"summary.json: {summaries[1]}, not {summaries[0]}")
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


def _same_trees(a, b, path: str, exact: bool = True) -> None:
    if isinstance(a, dict):
        expect(a.keys() == b.keys(), f"{path}: {sorted(b)}, not {sorted(a)}")
        for key in a:
            _same_trees(a[key], b[key], f"{path}/{key}", exact)
        return
    same = np.array_equal(a, b) if exact or a.dtype != np.float32 else np.allclose(a, b, atol=1e-3)
    if not same:
        raise Failure(f"{path} differs by {np.max(np.abs(np.subtract(a, b, dtype=float))):.3g}")


class Campaign:
    """The trials of a part, two at a time, and what came of them."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args, self.folder = args, folder
        self.seen: Counter[str] = Counter()
        self.failures = 0
        self._lock = threading.Lock()

    def generator(self, number: int) -> random.Random:
        return random.Random(f"{self.args.part} {self.args.seed} {number}")

    def count(self, what: str) -> None:
        with self._lock:
            self.seen[what] += 1

    def run(self, trials: int, trial: Callable[[int], str]) -> None:
        """Runs the trials, (number) -> what to say of it, each in a thread."""
        numbers = range(trials) if self.args.only is None else [self.args.only]

        def attempt(number):
            began = time.monotonic()
            try:
                said = trial(number)
            except (Failure, InputError, OSError) as failure:
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

    def setups(self) -> list[tuple[str, int]]:
        """The experiments and numbers of devices that were asked for."""
        names = [self.args.experiment] if self.args.experiment else list(SMALL)
        counts = [self.args.devices] if self.args.devices else [1, 8]
        return [(name, devices) for name in names for devices in counts]

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


# Moments of a run, and how long from each on something may happen, given the reference's seconds.


def _tail(run: Reference, share: float) -> float:
    return share * (run.seconds - run.start)


MOMENTS = ("starting", "restoring", "training", "saving", "evaluating", "finishing")


def at_moment(moment: str, process: Process, run: Path, like: Reference, rng: random.Random) -> bool:
    """Waits for a random time within a moment of a run; False if it ended before."""
    checkpoints, metrics = run / "checkpoints", run / "metrics.jsonl"
    unfinished = lambda: {p.name for p in checkpoints.glob("*tmp*")}
    evaluations = lambda: metrics.read_text().count("eval/loss") if metrics.exists() else 0
    there, before = unfinished(), evaluations()
    steps = json.loads((like.workdir / "summary.json").read_text())["step"]
    last = checkpoints / str(steps)
    begun, longest = {
        "starting": (lambda: True, like.start),
        "restoring": (lambda: process.out != "" or time.monotonic() > late, 0.3 * like.start),
        "training": (lambda: process.out != "", _tail(like, 1)),
        "saving": (lambda: bool(unfinished() - there), 0.04),
        "evaluating": (lambda: evaluations() > before or last.is_dir(), 0.2),
        "finishing": (last.is_dir, _tail(like, 0.2)),
    }[moment]
    late = time.monotonic() + 0.7 * like.start
    if not process.wait_for(begun):
        return False
    time.sleep(rng.uniform(0, longest))
    return process.alive


def kill(campaign: Campaign) -> str:
    """SIGKILL at random moments; the end is that of the run that was never killed."""
    setups = campaign.setups()
    whole = {setup: campaign.reference(*setup) for setup in setups}
    trials = max(1, round(campaign.args.count / 9), min(len(setups), campaign.args.count))

    def trial(number: int) -> str:
        rng = campaign.generator(number)
        name, devices = setups[number % len(setups)]
        like = whole[name, devices]
        kills = campaign.args.count // trials + (number < campaign.args.count % trials)
        # A run that was killed while it finished has nothing left to train.
        moments = sorted(rng.choices(MOMENTS, k=kills), key=lambda m: m == "finishing")
        attempt, run = 0, campaign.folder / f"run{number}"
        while moments:
            process = Process(campaign.folder, SMALL[name], devices, [f"--workdir={run}"])
            if at_moment(moments[0], process, run, like, rng):
                process.send(signal.SIGKILL)
                process.wait()
                _no_traceback(process)
                campaign.count(moments.pop(0))
                continue
            process.must_end_well()  # it was too fast; what it came to counts as well
            differences(like.workdir, run)
            attempt += 1
            run = campaign.folder / f"run{number}_{attempt}"
        Process(campaign.folder, SMALL[name], devices, [f"--workdir={run}"]).must_end_well()
        differences(like.workdir, run)
        shutil.rmtree(run)
        campaign.count("runs")
        return f"{name} on {devices}: {kills} kills, the same end"

    campaign.run(trials, trial)
    runs = campaign.seen.pop("runs", 0)
    landed = ", ".join(f"{moment} {campaign.seen[moment]}" for moment in MOMENTS)
    return f"{campaign.seen.total()} kills over {runs} runs that ended the same ({landed})"


def _no_traceback(process: Process) -> None:
    traced = any("Traceback" in line for line in process.err)
    expect(not traced, f"a traceback: {' | '.join(process.err[-3:])}")


def damage(campaign: Campaign) -> str:
    """Bytes flipped, files cut or missing: never used, and the end is the same."""
    name, devices = campaign.args.experiment or "resnet", campaign.args.devices or 1
    like = campaign.reference(name, devices)
    stopped = campaign.folder / "stopped"
    shutil.copytree(like.workdir, stopped)
    (stopped / "summary.json").unlink()
    steps = sorted(int(p.name) for p in (stopped / "checkpoints").iterdir())
    shutil.rmtree(stopped / "checkpoints" / str(steps.pop()))  # something is left to train
    sound = {step: checkpoint.load(stopped, step) for step in steps}

    def trial(number: int) -> str:
        rng = campaign.generator(number)
        run = Path(shutil.copytree(stopped, campaign.folder / f"damaged{number}"))
        done = spoil(run / "checkpoints", rng)
        with _loading:
            try:
                loaded = checkpoint.load(run)
            except InputError:
                loaded = None
        if loaded:
            _same_trees(sound[int(loaded["step"])], loaded, f"after {done}, what load gives: ")
        process = Process(campaign.folder, SMALL[name], devices, [f"--workdir={run}"])
        code = process.wait()
        lines = " | ".join(process.err)
        expect("Traceback" not in lines, f"after {done}, a traceback: {lines[:300]}")
        expect(code == 0, f"after {done}, exit code {code}: {lines[:300]}")
        told = [line for line in process.err if "is damaged" in line]
        expect(len(told) <= 1 and len(process.err) == len(told), f"after {done}: {lines[:400]}")
        first = process.out.split("\n", 1)[0]
        begun = next((step for step in steps if f"steps {step} to " in first), 0)
        expect(bool(told) == (begun != steps[-1]), f"after {done}, in silence: {first}")
        try:
            differences(like.workdir, run)
        except Failure as failure:
            raise Failure(f"after {done}: {failure}") from None
        shutil.rmtree(run)
        outcome = "gone back from" if told else "harmless"
        campaign.count(outcome)
        return f"{done}: {outcome}"

    campaign.run(campaign.args.count, trial)
    return f"{campaign.args.count} damages: " + _counted(campaign)


def spoil(folder: Path, rng: random.Random) -> str:
    """Damages one file of a folder; says how."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
    weights = [p.stat().st_size for p in files] if rng.random() < 0.5 else None
    path = rng.choices(files, weights)[0]
    content = path.read_bytes()
    place = rng.randrange(len(content))
    what = rng.choice(("flip", "cut", "remove"))
    if what == "flip":
        flipped = content[place] ^ (1 << rng.randrange(8))
        path.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
    elif what == "cut":
        path.write_bytes(content[:place])
    else:
        path.unlink()
    return f"{what} of {path.relative_to(folder)} at byte {place} of {len(content)}"


def _counted(campaign: Campaign) -> str:
    return ", ".join(f"{count} {what}" for what, count in campaign.seen.items())


def start_hosts(folder: Path, command: str, run: Path, count: int = 2) -> list[Process]:
    """One process, or two that are hosts of one run; of four devices in all."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        hosts = f"--coordinator=localhost:{probe.getsockname()[1]}", f"--num_processes={count}"
    own = lambda i: (*hosts, f"--process_id={i}") if count > 1 else ()
    return [
        Process(folder, command, 4 // count, [f"--workdir={run}", *own(i)]) for i in range(count)
    ]


def hosts(campaign: Campaign) -> str:
    """One of two processes is killed, or told to stop; the other ends, and both go on."""
    names = [name for name, devices in campaign.setups() if devices == (campaign.args.devices or 1)]
    whole = {}
    for name in names:
        run, began = campaign.folder / f"whole_{name}_2_hosts", time.monotonic()
        pair = start_hosts(campaign.folder, SMALL[name], run)
        pair[0].wait_for(lambda pair=pair: pair[0].out != "")
        start = time.monotonic() - began
        for process in pair:
            process.must_end_well()
        whole[name] = Reference(run, start, time.monotonic() - began)

    def trial(number: int) -> str:
        rng = campaign.generator(number)
        name = names[number // 4 % len(names)]
        like, run = whole[name], campaign.folder / f"hosts{number}"
        victim, term = number % 2, number // 2 % 2
        # SIGTERM before the first step ends the process at once.
        moment = rng.choice(("training", "saving", "evaluating")) if term else rng.choice(MOMENTS)
        pair = start_hosts(campaign.folder, SMALL[name], run)
        if not at_moment(moment, pair[victim], run, like, rng):
            said = "too fast"
        elif term:
            pair[victim].send(signal.SIGTERM)
            codes = [process.wait() for process in pair]
            over = (run / "summary.json").exists()  # the last step was on its way
            expect(codes == ([0, 0] if over else [143, 143]), f"{moment}: exit codes {codes}")
            expect(over or "and saved; go on with: " in pair[0].out, f"{moment}: no word of it")
            said = "stopped" if not over else "stopped as it ended"
        else:
            pair[victim].send(signal.SIGKILL)
            try:
                pair[1 - victim].must_fail_in_one_line(seconds=SOON)
            except Failure as failure:
                raise Failure(f"host {victim} killed while {moment}: {failure}") from None
            said = "killed"
        campaign.count(said)
        for process in pair:
            process.wait()
        for process in start_hosts(campaign.folder, SMALL[name], run):
            process.must_end_well()
        differences(like.workdir, run)
        shutil.rmtree(run)
        return f"{name}: host {victim} {said} while {moment}, the same end"

    campaign.run(campaign.args.count, trial)
    return f"{campaign.args.count} pairs of hosts: " + _counted(campaign)


def devices(campaign: Campaign) -> str:
    """A run goes on over other numbers of devices, and of processes."""
    names = [campaign.args.experiment] if campaign.args.experiment else list(SMALL)
    # By plain gradient descent: Adam makes much of rounding where a gradient is nearly zero.
    plain = "--optimizer=sgd --learning_rate=0.01"
    alone = {}
    for name in names:
        alone[name] = campaign.folder / f"alone_{name}"
        command = f"{SMALL[name]} {plain}"
        Process(campaign.folder, command, 1, [f"--workdir={alone[name]}"]).must_end_well()

    def trial(number: int) -> str:
        rng = campaign.generator(number)
        name, run = names[number // 2 % len(names)], campaign.folder / f"moved{number}"
        ways = ((8, 4, 1, 8), ("2 hosts", "1 host", "2 hosts"))[number % 2]
        stops = sorted(rng.sample(range(10, 110), len(ways) - 1))
        came = []
        for way, stop in zip(ways, [*stops, None], strict=True):
            command = f"{SMALL[name]} {plain}"
            if isinstance(way, int):
                group = [Process(campaign.folder, command, way, [f"--workdir={run}"])]
            else:
                group = start_hosts(campaign.folder, command, run, int(way[0]))
            if stop is None:
                for process in group:
                    process.must_end_well()
                continue
            mark = run / "checkpoints" / str(stop // 10 * 10)
            if group[0].wait_for(mark.is_dir):
                time.sleep(rng.uniform(0, 0.2))
                group[-1].send(signal.SIGTERM)
            codes = [process.wait() for process in group]
            if (run / "summary.json").exists():
                break  # it ended before the signal came
            expect(set(codes) == {143}, f"on {way}, SIGTERM: exit codes {codes}")
            with _loading:
                came.append(int(checkpoint.load(run)["step"]))
        differences(alone[name], run, exact=False)
        shutil.rmtree(run)
        campaign.count(f"over {', '.join(map(str, ways))}")
        return f"{name} over {', '.join(map(str, ways))}, moved at {came}: the same end"

    campaign.run(campaign.args.count, trial)
    return f"{campaign.args.count} moved runs: " + _counted(campaign)


def full(campaign: Campaign) -> str:
    """No space is left: one line, soon; what was saved stays; with space the run goes on."""
    setups = [(name, devices) for name, devices in campaign.setups() if devices == 1]
    whole = {setup: campaign.reference(*setup) for setup in setups}

    def trial(number: int) -> str:
        rng = campaign.generator(number)
        name, devices = setups[number % len(setups)]
        like, disk = whole[name, devices], campaign.folder / f"disk{number}"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
        mounted = subprocess.run(mount, capture_output=True, text=True)
        expect(mounted.returncode == 0, f"cannot mount a tmpfs: {mounted.stderr.strip()}")
        try:
            said = starve(campaign, disk, (name, devices), like, rng)
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)
        campaign.count(said.split()[0])
        return f"{name}: {said}, the same end"

    campaign.run(campaign.args.count, trial)
    return f"{campaign.args.count} full disks: " + _counted(campaign)


def starve(
    campaign: Campaign, disk: Path, setup: tuple[str, int], like: Reference, rng: random.Random
) -> str:
    """One trial of `full` on a disk of its own."""
    name, devices = setup
    run, filler = disk / "run", disk / "filler"
    size = sum(p.stat().st_blocks * 512 for p in like.workdir.rglob("*") if p.is_file())
    left = rng.choice((0, int(size ** rng.random()), rng.randrange(size)))
    moment = rng.choice((None, *MOMENTS))
    fill = lambda: _fill(filler, shutil.disk_usage(disk).free - left)
    if moment is None:
        fill()
    process = Process(campaign.folder, SMALL[name], devices, [f"--workdir={run}"])
    if moment is not None and at_moment(moment, process, run, like, rng):
        fill()
    said = f"full of all but {left} bytes {'before it' if moment is None else f'while {moment}'}"
    saved = checkpoints_of(run)
    try:
        process.wait(_tail(like, 1) + SOON)
        if (run / "summary.json").exists():
            process.must_end_well()
            said = f"enough, {said}"
        else:
            process.must_fail_in_one_line("No space left")
        kept = checkpoints_of(run)
        expect(not saved or max(kept, default=0) >= max(saved), f"of {saved} stayed {kept}")
    except Failure as failure:
        raise Failure(f"{said}: {failure}") from None
    filler.unlink(missing_ok=True)
    Process(campaign.folder, SMALL[name], devices, [f"--workdir={run}"]).must_end_well()
    differences(like.workdir, run)
    return said


def checkpoints_of(run: Path) -> list[int]:
    """The steps of a run's complete checkpoints."""
    return [int(p.name) for p in (run / "checkpoints").glob("*") if p.name.isdecimal()]


def _fill(path: Path, size: int) -> None:
    with path.open("wb") as file:
        try:
            for _ in range(0, size, 4096):
                file.write(bytes(4096))
                file.flush()
        except OSError:
            pass  # the run was faster


def make_mistakes(campaign: Campaign) -> str:
    """What people get wrong: exit code 1 and one line that names it."""
    folder = campaign.folder
    with ThreadPoolExecutor(campaign.args.jobs) as pool:
        start = lambda name: Process(folder, mistakes.RUNS[name], 1, [f"--workdir={name}"])
        codes = pool.map(lambda name: start(name).wait(), mistakes.RUNS)
        expect(not any(codes), "the runs to be wrong about cannot be made")
    mistakes.prepare(folder)
    table = mistakes.rows()

    def trial(number: int) -> str:
        command, word = table[number]
        if command.startswith("python "):
            code = mistakes.LIBRARY.format(command.removeprefix("python "))
            process = Process(folder, shlex.join(["python", code]))
        else:
            process = Process(folder, command.replace("{long}", "w" * 300))
        try:
            process.must_fail_in_one_line(word, seconds=90)
        except Failure as failure:
            raise Failure(f"`{command}`: {failure}") from None
        return f"`{command}` told"

    campaign.run(min(campaign.args.count, len(table)), trial)
    expect(not (folder / "executed").exists(), "a weights file's code was run")
    return f"{min(campaign.args.count, len(table))} mistakes"


PARTS = {
    "kill": (kill, 200),
    "damage": (damage, 100),
    "hosts": (hosts, 12),
    "devices": (devices, 6),
    "full": (full, 10),
    "mistakes": (make_mistakes, 10_000),
}
CACHE = Path(tempfile.gettempdir()) / "jaxdl_campaign" / "compiled"


def main() -> int:
    """Runs a part and says what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--count", type=int, help="trials; of kill, how many kills")
    parser.add_argument("--seed", type=int, default=0, help="of all random moments and places")
    parser.add_argument("--experiment", choices=SMALL, help="one of them alone")
    parser.add_argument("--devices", type=int, help="so many, rather than 1 and 8")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time")
    parser.add_argument("--only", type=int, help="the number of the one trial to repeat")
    args = parser.parse_args()
    args.words = [word for word in sys.argv[1:] if not word.startswith("--only")]
    part, usual = PARTS[args.part]
    args.count = args.count or usual
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="jaxdl_campaign_") as name:
        campaign = Campaign(args, Path(name))
        (campaign.folder / "book.txt").write_text(mistakes.book())
        try:
            if args.part != "mistakes" and args.experiment in (None, "gan"):
                Process(campaign.folder, CLASSIFIER).must_end_well()
            said = part(campaign)
        except Failure as failure:
            campaign.failures += 1
            said = f"{failure}"
    minutes = (time.monotonic() - began) / 60
    print(f"{args.part}: {said}, {campaign.failures} failures  ({minutes:.1f} min)")
    return 1 if campaign.failures else 0


if __name__ == "__main__":
    sys.exit(main())
