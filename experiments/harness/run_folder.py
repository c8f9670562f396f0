"""A run's folder: who holds it, what it holds, and whether that is the run that is asked for."""

import contextlib
import itertools
import json
import shutil
from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import jax

from experiments.harness import cli
from experiments.harness.cli import require
from jaxdl import InputError, checkpoint, files, hosts

FLAGS_FILE = "flags.txt"
INPUTS_FILE = "inputs.json"
SUMMARY_FILE = "summary.json"


@contextlib.contextmanager
def opened(config: Any) -> Iterator[Path]:
    """The run's folder, made where it was not, and held against other processes."""
    if not config.run.workdir:
        workdir = _new_workdir(config)
        with checkpoint.lock(workdir):
            yield workdir
        return
    workdir = Path(config.run.workdir)
    check = lambda: _check_workdir(config, workdir)
    hosts.agree(check)  # nothing is made where it is refused
    with checkpoint.lock(workdir):
        hosts.agree(check)  # another run may have begun and ended since
        if hosts.is_first() and not holds_run(workdir):  # what an earlier start has left
            shutil.rmtree(workdir / "tensorboard", ignore_errors=True)
        yield workdir


def _new_workdir(config: Any) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        suffix = f"-{number}" if number > 1 else ""
        workdir = Path("runs") / f"{config.run.experiment}-{stamp}{suffix}"
        try:
            workdir.mkdir(parents=True)
        except FileExistsError:
            continue
        return workdir
    raise AssertionError  # there is no end of numbers


def holds_run(workdir: str | Path) -> bool:
    """Whether anything was trained in a folder: a start that failed before that is no run yet."""
    folders = (Path(workdir), *Path(workdir).glob("fold*"))
    return any(checkpoint.steps(f) or (f / SUMMARY_FILE).exists() for f in folders)


def _check_workdir(config: Any, workdir: Path) -> None:
    """Raises InputError unless a folder is new, or holds a run that may be gone on with."""
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir={workdir} is no folder")
    if holds_run(workdir):
        if config.run.resume == "never":
            raise InputError(f"{workdir} holds a run and --resume=never; take another --workdir")
        there = experiment_of(workdir)
        if there != config.run.experiment:
            raise InputError(
                f"{workdir} holds a run of experiments.{there}; take another --workdir"
            )
        longer = ("steps", "epochs") if config.run.resume == "extend" else ()
        saved = check_same_run(config, workdir, apart_from=longer)
        for name in longer if (saved.run.steps is None) == (config.run.steps is None) else ():
            was, now = getattr(saved.run, name), getattr(config.run, name)
            fits = was is None or now >= was
            require(config, name, fits, f"at least {was} to extend the run in {workdir}")
    elif config.run.resume in ("must", "extend"):
        raise InputError(f"--resume={config.run.resume}, but there is no run in {workdir}")
    elif workdir.exists() and not (workdir / FLAGS_FILE).exists():
        # A start that failed early may have left these.
        own = {checkpoint.LOCK_FILE, checkpoint.FOLDER}
        others = {path.name for path in workdir.iterdir()} - own
        if not all(name.startswith(FLAGS_FILE) for name in others):
            raise InputError(f"{workdir} holds other files and no run; take another --workdir")


def check_same_run(config: Any, workdir: Path, apart_from: Collection[str] = ()) -> Any:
    """Gives the flags of the run in `workdir`, which must be the same where they make the run.

    Args:
      config: the flags given now.
      workdir: the run's folder.
      apart_from: flags that may differ all the same, as what uses a trained run takes them anew.

    Raises:
      InputError: one is another; the message names it.
    """
    try:
        saved, _ = cli.parse(type(config), [f"--flagfile={workdir / FLAGS_FILE}"])
    except InputError as error:
        raise InputError(f"{workdir / FLAGS_FILE} is damaged: {error}") from None
    before, given = cli.to_dict(saved), cli.to_dict(config)
    for flag in cli.flags_of(type(config)):
        was, now = before[flag.name], given[flag.name]
        checked = flag.field.metadata["part_of_run"] and flag.name not in apart_from
        if checked and was != now:
            further = "--resume=extend, " if flag.name in ("steps", "epochs") else ""
            raise InputError(
                f"{workdir} holds a run with --{flag.name}={cli.to_text(was)}, not "
                f"{cli.to_text(now) or 'none'}; give the flags of {workdir / FLAGS_FILE}, "
                f"{further}or another --workdir"
            )
    return saved


def experiment_of(workdir: str | Path) -> str:
    """The name of the experiment whose run is in `workdir`.

    Raises:
      InputError: there is no run.
    """
    path = Path(workdir) / FLAGS_FILE
    if not path.is_file():
        raise InputError(f"no run in {workdir}: it has no {FLAGS_FILE}")
    for line in path.read_text().splitlines():
        if line.startswith("--experiment="):
            return line.split("=", 1)[1]
    raise InputError(f"{path} names no --experiment")


def read_record(path: Path, **wanted: type | tuple[type, ...]) -> dict[str, Any]:
    """What a JSON file of a run holds.

    Args:
      path: the file.
      wanted: what it must hold, by name, and of which types.

    Raises:
      InputError: it is not there, or damaged.
    """
    if not path.is_file():
        raise InputError(f"there is no {path}: the run has not come so far")
    try:
        found = json.loads(path.read_bytes())
        sound = all(isinstance(found[name], types) for name, types in wanted.items())
    except (ValueError, LookupError, TypeError):
        sound = False
    if not sound or not isinstance(found, dict):
        raise InputError(f"{path} is damaged; remove it, and the command of the run writes it anew")
    return found


def read_inputs(workdir: str | Path, **wanted: type | tuple[type, ...]) -> dict[str, Any]:
    """What the model of a run must be told with; arguments and errors as of `read_record`."""
    return read_record(Path(workdir) / INPUTS_FILE, **wanted)


def read_summary(workdir: str | Path) -> dict[str, Any]:
    """What a run came to; errors as of `read_record`."""
    return read_record(Path(workdir) / SUMMARY_FILE, step=int)


def check_inputs(workdir: str, inputs: dict[str, Any]) -> None:
    """Raises InputError when the run in a folder was told other inputs: it had other data."""
    path = Path(workdir) / INPUTS_FILE
    if not workdir or not path.exists() or not holds_run(workdir):
        return
    saved, now = read_record(path), json.loads(json.dumps(inputs))
    other = [name for name in now if saved.get(name) != now[name]]
    if other:
        raise InputError(
            f"{path} has another {' and another '.join(other)} than the data given now; give the "
            "run its own data, or another --workdir"
        )


def trained_params(workdir: str | Path) -> Any:
    """The parameters that a run has come to; their averages where the run keeps them."""
    saved = checkpoint.load(workdir, step_of(workdir))
    return (saved["average"] or saved)["params"]


def step_of(workdir: str | Path) -> int | None:
    """The step that a run came to by --early_stop, before checkpoints said so themselves."""
    workdir = Path(workdir)
    said = workdir / checkpoint.FOLDER / checkpoint.CAME_TO
    if said.exists() or not (workdir / SUMMARY_FILE).exists():
        return None
    given = "--early_stop=" in (workdir / FLAGS_FILE).read_text()
    return read_summary(workdir)["step"] if given else None


def write_flags(config: Any, workdir: Path) -> None:
    """Writes the flagfile that goes on with a run, on however many hosts and however it began."""
    run = cli.replace(config, resume="auto", coordinator="", num_processes=None, process_id=None)
    write(workdir / FLAGS_FILE, cli.to_flags(run))


def command_of(config: Any, workdir: Path) -> str:
    """The command that goes on with a run."""
    command = f"python -m experiments.{config.run.experiment} --flagfile={workdir / FLAGS_FILE}"
    if jax.process_count() == 1:
        return command
    return f"{command} and each process's --coordinator, --num_processes and --process_id"


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with files.replacing(path) as file:
        file.write((text.rstrip("\n") + "\n").encode())
