"""What studies share: setups by seeds, each trained once, then a table, its numbers and a picture.

A study's config holds the group `StudyFlags`. Its `run` goes the same way as
every other's: `read`, `begin`, then either `train` for the ordinary runs that it plans or one
program for all `seeds_of` a setup, and at last `finish`.
"""

import contextlib
import dataclasses
import functools
import json
import math
import statistics
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from experiments.harness import cli, devices, run_folder, sweep, training
from experiments.harness.cli import flag, require
from jaxdl import InputError, loop

TABLE_FILE = "table.md"
RECORD_FILE = "table.json"
DIVERGED_FILE = "diverged.txt"
GROWING = ("workdir", "seeds", "first_seed", "page")
"""Flags that may be others when a study goes on."""


@dataclasses.dataclass(frozen=True)
class StudyFlags:
    """Where a study is kept, and how many trainings each of its setups has."""

    workdir: str = flag("", "the study's folder, in which the same command goes on")
    seeds: int = flag(5, "how many trainings of each setup")
    first_seed: int = flag(0, "of the seeds, which are in a row")
    page: str = flag("", "a folder for a page and its pictures, such as docs/results")
    quick: bool = flag(False, "two seeds of a smaller form, in under two minutes")

    def __post_init__(self) -> None:
        """Raises InputError for seeds that cannot be."""
        require(self, "seeds", self.seeds >= 1, "at least 1")
        fits = 0 <= self.first_seed < 2**31 - self.seeds
        require(self, "first_seed", fits, "at least 0, 31 bits")
        there = not self.page or Path(self.page).is_dir()
        require(self, "page", there, "a folder that there is")


class Config(Protocol):
    """The flags of a study."""

    @property
    def study(self) -> StudyFlags:
        """Those that every study has."""
        ...


C = TypeVar("C", bound=Config)


def seeds_of(config: Config) -> range:
    """The seeds of every setup."""
    return range(config.study.first_seed, config.study.first_seed + config.study.seeds)


def folder(config: Config, setup: str) -> Path:
    """Where the runs of a setup are."""
    return Path(config.study.workdir) / setup.replace(" ", "_")


def read(config_type: type[C], argv: Sequence[str]) -> C:
    """The config that a command line gives; nothing in it may be no flag."""
    config, rest = cli.parse(config_type, argv)
    if rest:
        raise InputError(f"{rest[0]!r} is no flag; see --help")
    return config


def read_command(config_type: type[C], argv: Sequence[str], quickly: Sequence[str] = ()) -> C:
    """The config that the command line of a study gives.

    Args:
      config_type: whose flags they are.
      argv: what was given.
      quickly: flags of the quick form, beside two seeds and a folder of its own; those given win.
    """
    config = read(config_type, argv)
    if not config.study.quick:
        return config
    folder = f"{config_type().study.workdir}_quick"
    return read(config_type, [f"--workdir={folder}", "--seeds=2", *quickly, *argv])


@dataclasses.dataclass(frozen=True)
class Run:
    """One training of a study, an ordinary run.

    Attributes:
      setup: what the study calls that which it trains with several seeds.
      seed: its seed.
      folder: where all seeds of the setup are.
      experiment: the module of `experiments` that it is a run of.
      arguments: its flags but for the seed and the folder.
    """

    setup: Hashable
    seed: int
    folder: Path
    experiment: Any
    arguments: Sequence[str]

    @property
    def workdir(self) -> Path:
        """Its own folder."""
        return self.folder / f"seed{self.seed}"

    @functools.cached_property
    def config(self) -> Any:
        """Its flags. They may be of use only after an earlier run, whose folder they name."""
        own = [f"--seed={self.seed}", f"--workdir={self.workdir}"]
        return read(self.experiment.Config, [*self.arguments, *own])

    @property
    def done(self) -> bool:
        """Whether there is nothing left to train."""
        return any((self.workdir / n).exists() for n in (run_folder.SUMMARY_FILE, DIVERGED_FILE))

    @property
    def diverged(self) -> str:
        """How it diverged; empty if it came to its end."""
        ended = (self.workdir / run_folder.SUMMARY_FILE).exists()
        return "" if ended else (self.workdir / DIVERGED_FILE).read_text().strip()

    def summary(self) -> dict[str, Any]:
        """What it came to."""
        return run_folder.read_summary(self.workdir)


def begin(
    config: Any,
    runs: Sequence[Run] = (),
    apart_from: Collection[str] = (),
    *,
    together: bool = False,
) -> None:
    """Sets up JAX, and refuses a folder that another study or other runs are in.

    Args:
      config: the study's flags.
      runs: those it plans.
      apart_from: flags that may be others when it goes on, beside `GROWING`.
      together: whether the runs are trained as lanes where they can be.

    Raises:
      InputError: the folder holds a run, the table of another study or of this one with other
        flags, or other runs where the planned ones would be.
    """
    training.prepare_jax(large=any(map(_is_large, runs)))
    if together:
        devices.take_cores(sum(not run.done for run in runs))
    _check_folder(Path(config.study.workdir), cli.to_dict(config), {*GROWING, *apart_from})
    for run in runs:
        if run.done or run_folder.holds_run(run.workdir):
            run_folder.check_same_run(run.config, run.workdir)


def _is_large(run: Run) -> bool:
    """Whether its steps are; False where its flags want a run that the study trains before."""
    with contextlib.suppress(InputError):
        return devices.are_steps_large(run.config)
    return False


def _check_folder(workdir: Path, flags: Mapping[str, Any], apart_from: Collection[str]) -> None:
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir={workdir} is no folder")
    if (workdir / run_folder.FLAGS_FILE).exists():
        raise InputError(f"{workdir} holds a run and no study; take another --workdir")
    if not (workdir / RECORD_FILE).exists():
        return
    saved = run_folder.read_record(workdir / RECORD_FILE)
    for name, now in json.loads(json.dumps(flags)).items():
        if name in apart_from:
            continue
        if name not in saved:
            raise InputError(f"{workdir} holds another study; take another --workdir")
        if saved[name] != now:
            raise InputError(
                f"{workdir} holds a study with --{name}={saved[name]}, not {now}; take another "
                "--workdir"
            )


def train(
    runs: Sequence[Run],
    command: str = "the same command",
    divergence_is_a_result: bool = False,
    together_in: Path | None = None,
) -> None:
    """Trains what is not done.

    Args:
      runs: in this order.
      command: what goes on with the study after an interruption.
      divergence_is_a_result: whether to write it down and to go on with the next run.
      together_in: the folder of runs that are trained as lanes of one program where they can be,
        and where divergence is a result; None to train them in turn.

    Raises:
      Interrupted: a signal stopped a run, and with it the study.
    """

    def diverged(run: Run, how: str) -> None:
        (run.workdir / DIVERGED_FILE).write_text(f"{how}\n")
        print(f"diverged: {run.workdir}: {how}", flush=True)

    with cli.if_interrupted(f"and with the study: {command}"):
        if together_in is not None:
            sweep.train(runs, together_in, diverged)
        for number, run in enumerate(runs, start=1):
            state = ", which is done" if run.done else ""
            print(f"run {number} of {len(runs)}: {run.workdir}{state}", flush=True)
            if run.done:
                continue
            try:
                training.train(run.config, run.experiment.build)
            except loop.Diverged as error:
                if not divergence_is_a_result:
                    raise
                diverged(run, str(error))


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and sample standard deviation of those there are, with all of them by seed."""
    known = [value for value in values if value is not None]
    several = len(known) > 1 and all(map(math.isfinite, known))
    return {
        # Exact, so that equal values have no spread.
        "mean": statistics.mean(known) if known else None,
        "std": statistics.stdev(known) if several else None,
        "seeds": list(values),
    }


def cell(
    values: Sequence[float | None],
    show: Callable[[float], str],
    show_std: Callable[[float], str] | None = None,
) -> str:
    """Mean ± sample standard deviation over the seeds, as text; empty where there are none.

    Args:
      values: of each seed; None for what it does not have.
      show: a number as text.
      show_std: the deviation as text, if otherwise than the mean.
    """
    found = spread(values)
    if found["mean"] is None:
        return ""
    std = found["std"]
    return show(found["mean"]) + ("" if std is None else f" ± {(show_std or show)(std)}")


def significant(value: float, digits: int) -> str:
    """A number with so many significant digits and no exponent."""
    return np.format_float_positional(value, digits, fractional=False, trim="-")


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows, of which the first is the head, in Markdown that is in columns as text too."""
    rows = list(rows)
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    padded = ([text.ljust(w) for text, w in zip(row, widths, strict=True)] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


class Page(NamedTuple):
    """What stands on a study's page beside its pictures and its table.

    Attributes:
      name: of the file, without its suffix; pictures are called after it.
      title: the finding.
      above: the pictures, in Markdown, such as the claim and the verdict.
      below: the table, such as the command.
    """

    name: str
    title: str
    above: str
    below: str


def finish(
    config: Any,
    found: Mapping[str, Any],
    title: str,
    text: str,
    pictures: Mapping[str, Callable[[Path], None]],
    page: Page,
) -> None:
    """Writes table.json, table.md and the pictures into the study's folder, and tells of them.

    With --page=FOLDER it writes the study's page there, too.

    Args:
      config: the study's flags, which table.json holds too.
      found: the numbers; null in table.json where they are not finite.
      title: what the table is of.
      text: the table.
      pictures: {file name: what draws it, (path) -> None}
      page: what else is on the page.
    """
    workdir = Path(config.study.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    record = json.dumps(cli.to_dict(config) | dict(found))
    finite = json.loads(record, parse_constant=lambda name: None)  # JSON has no NaN and Infinity
    (workdir / RECORD_FILE).write_text(json.dumps(finite, indent=2) + "\n")
    (workdir / TABLE_FILE).write_text(f"{title}\n\n{text}\n")
    for name, draw in pictures.items():
        draw(workdir / name)
    print(f"\n{title}\n\n{text}\n\nin {workdir}: {', '.join([TABLE_FILE, RECORD_FILE, *pictures])}")
    if config.study.page:
        _write_page(Path(config.study.page), page, text, pictures)


def _write_page(
    folder: Path, page: Page, text: str, pictures: Mapping[str, Callable[[Path], None]]
) -> None:
    parts = [f"# {page.title}", page.above]
    for name, draw in pictures.items():
        if name.endswith(".png"):
            stem = Path(name).stem
            own = f"{page.name}.png" if stem == page.name else f"{page.name}_{name}"
            draw(folder / own)
            parts.append(f"![{page.title}]({own})")
    text = "\n\n".join([*parts, text, page.below]).rstrip()
    (folder / f"{page.name}.md").write_text(f"{text}\n", encoding="utf-8")
