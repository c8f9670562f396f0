"""The campaign: runs are killed, damaged, moved, starved of disk and given nonsense, by chance.

    python tests/campaign.py kill --count=200      # SIGKILL at random moments; the end is the same
    python tests/campaign.py damage --count=100    # bytes flipped, files cut or gone in checkpoints
    python tests/campaign.py hosts --count=8       # one of two processes killed, or told to stop
    python tests/campaign.py devices --count=6     # over 8, 4, 1, 8 devices; 2, 1, 2 processes
    python tests/campaign.py full --count=10       # no space left, on a tmpfs (needs root)
    python tests/campaign.py mistakes              # a table of them: one line each

Each trial draws from a generator of its own, so `--only=N` repeats the trial of that number. A
failure is a line with the command that repeats it; the last line counts; the exit code is 1 if
anything failed.
"""

import argparse
import contextlib
import io
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # this jaxdl, whichever is installed

from campaign import mistakes
from campaign.runs import (
    CLASSIFIER,
    MOMENTS,
    SMALL,
    SOON,
    Campaign,
    Failure,
    Process,
    Reference,
    at_moment,
    checkpoints_of,
    differences,
    expect,
    loading,
    same_trees,
)

from jaxdl import InputError, checkpoint


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
            moments[0], attempt = "training", attempt + 1  # of a new run, which cannot be missed
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
    names = campaign.names()
    whole = {name: campaign.reference(name, 1).workdir for name in names}
    for name in names:
        stopped = Path(shutil.copytree(whole[name], campaign.folder / f"stopped_{name}"))
        (stopped / "summary.json").unlink()
        last = max(checkpoints_of(stopped))
        shutil.rmtree(stopped / "checkpoints" / str(last))  # something is left to train

    def trial(number: int) -> str:
        rng, name = campaign.generator(number), names[number % len(names)]
        stopped = campaign.folder / f"stopped_{name}"
        newest = max(checkpoints_of(stopped))
        run = Path(shutil.copytree(stopped, campaign.folder / f"damaged{number}"))
        done = spoil(run / "checkpoints", rng)
        with loading, contextlib.redirect_stderr(io.StringIO()):  # it tells of the damage
            try:
                loaded = checkpoint.load(run)
            except InputError:
                loaded = None
            sound = loaded and checkpoint.load(stopped, int(loaded["step"]))
        if loaded:
            same_trees(sound, loaded, f"after {done}, what load gives: ")
        process = Process(campaign.folder, SMALL[name], 1, [f"--workdir={run}"])
        code = process.wait()
        lines = " | ".join(process.err)
        expect("Traceback" not in lines, f"after {done}, a traceback: {lines[:300]}")
        expect(code == 0, f"after {done}, exit code {code}: {lines[:300]}")
        told = [line for line in process.err if "is damaged" in line]
        expect(len(told) <= 1 and len(process.err) == len(told), f"after {done}: {lines[:400]}")
        first = process.out.split("\n", 1)[0]
        silent = not told and f"steps {newest} to " not in first
        expect(not silent, f"after {done}, gone back in silence: {first}")
        try:  # one that is set aside may have been the best, which then is another
            differences(whole[name], run, only_state=bool(told))
        except Failure as failure:
            raise Failure(f"after {done}: {failure}") from None
        shutil.rmtree(run)
        outcome = "gone back from" if told else "harmless"
        campaign.count(outcome)
        return f"{done}: {outcome}"

    campaign.run(campaign.args.count, trial)
    return f"{campaign.trials} damages: {campaign.told()}"


def spoil(folder: Path, rng: random.Random) -> str:
    """Damages one file of a folder; says how."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    weights = [p.stat().st_size for p in files] if rng.random() < 0.5 else None
    path = rng.choices(files, weights)[0]
    content = path.read_bytes()
    place = rng.randrange(max(1, len(content)))
    what = rng.choice(("flip", "cut", "remove")) if content else "remove"
    if what == "flip":
        flipped = content[place] ^ (1 << rng.randrange(8))
        path.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
    elif what == "cut":
        path.write_bytes(content[:place])
    else:
        path.unlink()
    return f"{what} of {path.relative_to(folder)} at byte {place} of {len(content)}"


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
    names, whole = campaign.names(), {}
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
        # One that was killed before they joined is waited for as one that comes late.
        moment = rng.choice(("saving", "evaluating") if term else MOMENTS[1:])
        over = lambda: max(checkpoints_of(like.workdir)) in checkpoints_of(run)
        pair = start_hosts(campaign.folder, SMALL[name], run)
        if not at_moment(moment, pair[victim], run, like, rng):
            said = "too fast"
        elif term:
            pair[victim].send(signal.SIGTERM)
            codes = [process.wait() for process in pair]
            ended = codes == [0, 0] and over()  # the last step was on its way
            expect(ended or codes == [143, 143], f"SIGTERM while {moment}: exit codes {codes}")
            expect(ended or "and saved; go on with: " in pair[0].out, f"{moment}: no word of it")
            said = "stopped as it ended" if ended else "stopped"
        else:
            pair[victim].send(signal.SIGKILL)
            other, said = pair[1 - victim], "killed"
            try:
                if other.wait(SOON) or not over():
                    other.must_fail_in_one_line()
                else:
                    said = "killed as it ended"  # the other had nothing left to do
            except Failure as failure:
                raise Failure(f"host {victim} killed while {moment}: {failure}") from None
        campaign.count(said)
        for process in pair:
            process.wait()
        for process in start_hosts(campaign.folder, SMALL[name], run):
            process.must_end_well()
        differences(like.workdir, run)
        shutil.rmtree(run)
        return f"{name}: host {victim} {said} while {moment}, the same end"

    campaign.run(campaign.args.count, trial)
    return f"{campaign.trials} pairs of hosts: {campaign.told()}"


def devices(campaign: Campaign) -> str:
    """A run goes on over other numbers of devices, and of processes."""
    names = campaign.names()
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
        stops = [10 + 30 * place + rng.randrange(10) for place in range(len(ways) - 1)]
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
            # SIGTERM before the first step ends the process at once.
            least = max(stop, *checkpoints_of(run), 0) + 1
            if group[0].wait_for(lambda least=least: max(checkpoints_of(run), default=0) >= least):
                time.sleep(rng.uniform(0, 0.2))
                group[-1].send(signal.SIGTERM)
            codes = [process.wait() for process in group]
            if (run / "summary.json").exists():
                break  # it ended before the signal came
            expect(set(codes) == {143}, f"on {way}, SIGTERM: exit codes {codes}")
            with loading:
                came.append(int(checkpoint.load(run)["step"]))
        differences(alone[name], run, exact=False)
        shutil.rmtree(run)
        campaign.count(f"over {', '.join(map(str, ways))}")
        return f"{name} over {', '.join(map(str, ways))}, moved at {came}: the same end"

    campaign.run(campaign.args.count, trial)
    return f"{campaign.trials} moved runs: {campaign.told()}"


def full(campaign: Campaign) -> str:
    """No space is left: one line, soon; what was saved stays; with space the run goes on."""
    names = campaign.names()
    whole = {name: campaign.reference(name, 1) for name in names}

    def trial(number: int) -> str:
        rng, name = campaign.generator(number), names[number % len(names)]
        like, disk = whole[name], campaign.folder / f"disk{number}"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
        mounted = subprocess.run(mount, capture_output=True, text=True)
        expect(mounted.returncode == 0, f"cannot mount a tmpfs: {mounted.stderr.strip()}")
        try:
            said = starve(campaign, disk, name, like, rng)
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)
        campaign.count(said.split()[0])
        return f"{name}: {said}, the same end"

    campaign.run(campaign.args.count, trial)
    return f"{campaign.trials} full disks: {campaign.told()}"


def starve(campaign: Campaign, disk: Path, name: str, like: Reference, rng: random.Random) -> str:
    """One trial of `full` on a disk of its own."""
    run, filler = disk / "run", disk / "filler"
    size = sum(p.stat().st_blocks * 512 for p in like.workdir.rglob("*") if p.is_file())
    left = rng.choice((0, int(size ** rng.random()), rng.randrange(size)))
    moment = rng.choice((None, *MOMENTS))
    fill = lambda: _fill(filler, shutil.disk_usage(disk).free - left)
    if moment is None:
        fill()
    process = Process(campaign.folder, SMALL[name], 1, [f"--workdir={run}"])
    if moment is not None and at_moment(moment, process, run, like, rng):
        fill()
    said = f"full of all but {left} bytes {'before it' if moment is None else f'while {moment}'}"
    saved = checkpoints_of(run)
    try:
        process.wait(like.seconds + SOON)
        if (run / "summary.json").exists():
            process.must_end_well()
            said = f"enough, {said}"
        else:
            process.must_fail_in_one_line("o space left")  # whoever says it
        kept = checkpoints_of(run)
        expect(not saved or max(kept, default=0) >= max(saved), f"of {saved} stayed {kept}")
    except Failure as failure:
        raise Failure(f"{said}: {failure}") from None
    filler.unlink(missing_ok=True)
    Process(campaign.folder, SMALL[name], 1, [f"--workdir={run}"]).must_end_well()
    differences(like.workdir, run)
    return said


def _fill(path: Path, size: int) -> None:
    # Without a buffer, which would be written once more on closing.
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for _ in range(0, size, 4096):
            file.write(bytes(4096))


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
    return f"{campaign.trials} mistakes"


PARTS = {
    "kill": (kill, 200),
    "damage": (damage, 100),
    "hosts": (hosts, 12),
    "devices": (devices, 6),
    "full": (full, 10),
    "mistakes": (make_mistakes, 10_000),
}


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
        finally:
            campaign.end_all()
    minutes = (time.monotonic() - began) / 60
    print(f"{args.part}: {said}, {campaign.failures} failures  ({minutes:.1f} min)")
    return 1 if campaign.failures else 0


if __name__ == "__main__":
    sys.exit(main())
