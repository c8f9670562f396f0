"""A claim of a textbook as a study: setups by seeds, what they measured, and a verdict in words.

A study of a claim is a file in `experiments/studies` that holds one `Claim` and hands it to `main`.
"""

import contextlib
import dataclasses
import functools
import math
import re
import shlex
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from experiments.harness import catalogue, cli, study, training
from experiments.harness.problem import Problem
from experiments.harness.study import Run, StudyFlags
from jaxdl import figures, parallel
from jaxdl.task import Task

GRADIENT_RATIO = "gradient at the first step, first kernel over last"
"""A metric: of the norms of the gradients by two kernels."""
PLACES = 9
GRADIENTS = (
    GRADIENT_RATIO,
    *(f"gradient at {place}/{PLACES - 1} of the depth" for place in range(1, PLACES)),
)
"""Metrics: of kernels from the first to the last, over the last's."""

Values = list[float | None]
"""By seed; None for a run that diverged."""
Measured = Mapping[str, Mapping[str, Values]]
"""{setup: {metric: values}}"""


class Read(Protocol):
    """What reads the metrics of a run that is done."""

    def __call__(self, run: Run, /) -> Mapping[str, Any]:
        """(run) -> {metric: value}."""
        ...


class Setup(NamedTuple):
    """One of those that are compared.

    Attributes:
      name: as tables have it.
      flags: of the experiment.
      experiment: that is run; the claim's when empty.
    """

    name: str
    flags: tuple[str, ...]
    experiment: str = ""


class Verdict(NamedTuple):
    """What came of a claim.

    Attributes:
      word: "holds", "holds in part" or "does not hold".
      reason: the figures that say so, in a sentence or two.
    """

    word: str
    reason: str


class Judge(Protocol):
    """What makes a verdict of measurements."""

    def __call__(self, measured: Measured, /) -> Verdict:
        """({setup: {metric: values}}) -> the verdict."""
        ...


class Draw(Protocol):
    """What draws measurements."""

    def __call__(self, figure: Any, measured: Measured, /) -> None:
        """(an empty Matplotlib figure, {setup: {metric: values}}) -> None."""
        ...


class DrawRuns(Protocol):
    """What draws trained runs."""

    def __call__(self, runs: Sequence[Run], path: Path, /) -> None:
        """(all runs, the picture's file) -> None."""
        ...


class Claim(NamedTuple):
    """What a textbook says, and how it is looked into.

    Attributes:
      name: of the study's module, page and picture.
      title: of the page.
      claim: in a sentence.
      source: the paper or the textbook.
      varied: what differs between the setups.
      held: what does not.
      experiment: that is run.
      common: flags of all setups.
      setups: in the table's order.
      metrics: the table's columns, of what `read` finds.
      judge: makes the verdict.
      draw: draws the picture, whose title says the finding.
      seeds: of the full form.
      minutes: that the full form takes on two cores, about.
      quickly: flags of the quick form, after the others.
      quick_setups: the names of those that the quick form is of; all where not given.
      read: finds the metrics of a run, of its summary where not given.
      drawn: metrics that the picture or the verdict is of, and the table need not have.
      pictures: {the page's other pictures, by file name: what draws them}
    """

    name: str
    title: str
    claim: str
    source: str
    varied: str
    held: str
    experiment: str
    common: tuple[str, ...]
    setups: tuple[Setup, ...]
    metrics: tuple[str, ...]
    judge: Judge
    draw: Draw
    seeds: int
    minutes: float
    quickly: tuple[str, ...]
    quick_setups: tuple[str, ...] = ()
    read: Read = Run.summary
    drawn: tuple[str, ...] = ()
    pictures: Mapping[str, DrawRuns] = {}


def main(claim: Claim) -> NoReturn:
    """The command line of a study of a claim."""

    def looked_into(argv: list[str]) -> None:
        run(claim, argv)

    cli.main(looked_into)


def config_of(claim: Claim, argv: Sequence[str]) -> Any:
    """The flags of a study of this claim."""
    default = StudyFlags(f"runs/{claim.name}", seeds=claim.seeds)
    fields: list[Any] = [("study", StudyFlags, default)]
    made: Any = dataclasses.make_dataclass("Config", fields, frozen=True)
    made.__doc__ = f"{claim.title}."
    return study.read_command(made, argv)


def run(claim: Claim, argv: Sequence[str]) -> Measured:
    """Trains what is not done, and leaves the table, its numbers, the picture and the page."""
    config = config_of(claim, argv)
    if config.study.quick and claim.quick_setups:
        those = tuple(setup for setup in claim.setups if setup.name in claim.quick_setups)
        claim = claim._replace(setups=those)
    runs = plan(claim, config)
    if not config.study.quick and not all(run.done for run in runs):
        print(f"about {claim.minutes:g} min on two cores; --quick takes less than two", flush=True)
    study.begin(config, runs, together=True)
    command = command_of(claim.name, argv)
    workdir = Path(config.study.workdir)
    study.train(runs, command, divergence_is_a_result=True, together_in=workdir)
    measured = measure(claim, runs)
    verdict = claim.judge(measured)
    study.finish(
        config,
        {"measured": measured, "verdict": verdict._asdict()},
        f"{claim.claim}\n\nIt {verdict.word}: {verdict.reason}",
        table(claim, measured),
        {f"{claim.name}.png": functools.partial(_draw, claim, measured)}
        | {name: functools.partial(draw, runs) for name, draw in claim.pictures.items()},
        page_of(claim, config, verdict, command),
    )
    return measured


def plan(claim: Claim, config: Any) -> list[Run]:
    """All runs, each setup's together."""
    seldom = ("--eval_every=1000000", "--checkpoint_every=1000000", "--nohistograms")
    more = claim.quickly if config.study.quick else ()
    return [
        Run(
            setup.name,
            seed,
            study.folder(config, setup.name.replace("/", "_")),
            catalogue.load(setup.experiment or claim.experiment),
            [*claim.common, *seldom, *setup.flags, *more],
        )
        for setup in claim.setups
        for seed in study.seeds_of(config)
    ]


def measure(claim: Claim, runs: Sequence[Run]) -> Measured:
    """What the runs came to, their averages where they keep any; None where one diverged."""
    found: dict[str, dict[str, Values]] = {}
    for run in runs:
        summary = {} if run.diverged else claim.read(run)
        for name in dict.fromkeys((*claim.metrics, *claim.drawn)):
            value = summary.get(name.replace("/", "/ema_"), summary.get(name))
            found.setdefault(str(run.setup), {}).setdefault(name, []).append(value)
    return found


def word(parts: Sequence[bool]) -> str:
    """How far a claim holds of which each part does or does not."""
    return "holds" if all(parts) else "holds in part" if any(parts) else "does not hold"


def mean(values: Sequence[float | None]) -> float:
    """Of those there are; nan of none."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.mean(known) if known else math.nan


def with_gradients(first: str, last: str) -> Read:
    """What reads the summary of a run, and `GRADIENTS`.

    Gradients are told from how far the first step moves the kernels, which is to be one of plain
    descent or of momentum, at a rate so great that nothing of it is lost in rounding.

    Args:
      first, last: the names of these layers; those between are in the order of their numbers.
    """

    def read(run: Run) -> dict[str, Any]:
        gradients = _gradients_at_first_step(run)
        numbers = lambda name: [int(n) for n in re.findall(r"\d+", name)]
        between = sorted(gradients.keys() - {first, last}, key=numbers)
        norms = [gradients[name] for name in (first, *between, last)]
        over_last = [norm / norms[-1] if norms[-1] else math.nan for norm in norms]
        places = (round(p * (len(norms) - 1) / (PLACES - 1)) for p in range(PLACES))
        found = (over_last[place] for place in places)
        return run.summary() | dict(zip(GRADIENTS, found, strict=True))

    return read


def _gradients_at_first_step(run: Run) -> dict[str, float]:
    """The norm of the gradient by the kernel of each layer."""
    problem, task, hparams = begun(run)
    hparams |= {"l2_penalty": jnp.float32(0), "learning_rate": jnp.float32(1e12)}
    before = task.init(jax.random.key(run.seed), hparams)
    with contextlib.closing(problem.feed.train()) as batches:
        after, _ = jax.jit(task.train)(before, next(batches))
    old, new = (flatten_dict(of.params, sep="/") for of in (before, after))
    return {
        name.removesuffix("/kernel"): float(jnp.linalg.norm(new[name] - old[name]))
        for name in old
        if name.endswith("/kernel")
    }


def seconds_of_a_step(run: Run) -> float:
    """How long a step of a run takes that is trained alone: the best of twenty times twenty."""
    problem, task, hparams = begun(run)
    task = parallel.jit(task, parallel.data_mesh(jax.devices()[:1]))
    state, train = task.init(jax.random.key(run.seed), hparams), task.train
    with contextlib.closing(problem.feed.train()) as batches:
        several = [next(batches) for _ in range(20)]
    state, _ = train(state, several[0])  # compiles
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        for batch in several:
            state, _ = train(state, batch)
        jax.block_until_ready(state)
        seconds.append((time.perf_counter() - began) / len(several))
    return min(seconds)


def begun(run: Run) -> tuple[Problem, Task, dict[str, Any]]:
    """What a run trains, by the first device alone, and its hyperparameters."""
    mesh = parallel.data_mesh(jax.devices()[:1])
    problem = training.make_problem(run.config, run.experiment.build, mesh)
    return problem, *training.task_of(run.config, problem)


def draw_gradients(axes: Any, measured: Measured, lines: Mapping[str, str]) -> None:
    """Draws the gradients at the first step from the first kernel to the last.

    Args:
      axes: to draw on.
      measured: {setup: {metric: values}}
      lines: {label: setup}
    """
    shares = [place / (PLACES - 1) for place in range(PLACES)]
    for label, setup in lines.items():
        figures.band(axes, shares, [measured[setup][metric] for metric in GRADIENTS], label)
    axes.set(yscale="log", xlabel="from the first kernel to the last")
    axes.set(ylabel="gradient at first, over the last's")


def draw_by_size(
    panels: Sequence[Any],
    measured: Measured,
    metrics: Sequence[str],
    lines: Mapping[str, Sequence[str]],
    sizes: Sequence[int],
    label: str,
) -> None:
    """Draws a panel for each metric, of lines over sizes that are far apart.

    Args:
      panels: Matplotlib axes, of which the last gets the legend.
      measured: {setup: {metric: values}}
      metrics: of the panels.
      lines: {label: its setups, by size}
      sizes: in order.
      label: of the sizes.
    """
    for axes, metric in zip(panels, metrics, strict=True):
        for name, setups in lines.items():
            figures.band(axes, sizes, [measured[setup][metric] for setup in setups], name)
        axes.set(xscale="log", xlabel=label, ylabel=metric)
        axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
        axes.minorticks_off()
    panels[-1].legend()


def error(accuracy: Values) -> Values:
    """The share that is wrong, by seed."""
    return [None if right is None else 1 - right for right in accuracy]


def clearly_greater(a: Sequence[float | None], b: Sequence[float | None]) -> bool:
    """Whether `a` is above `b` by more on average than by how much that differs from seed to seed.

    Both are by the same seeds, which share what is drawn from them, such as examples.
    """
    pairs = zip(a, b, strict=True)
    apart = [x - y for x, y in pairs if x is not None and y is not None]
    spread = statistics.stdev(apart) if len(apart) > 1 else 0.0
    return bool(apart) and statistics.mean(apart) > spread


def table(claim: Claim, measured: Measured) -> str:
    """Mean ± sample standard deviation over the seeds, in Markdown."""
    show, show_std = "{:.4g}".format, "{:.2g}".format
    rows = [["", *claim.metrics]]
    for name, found in measured.items():
        cells = [study.cell(found[metric], show, show_std) for metric in claim.metrics]
        lost = sum(value is None for value in found[claim.metrics[0]])
        diverged = f" ({lost} of {len(found[claim.metrics[0]])} diverged)" if lost else ""
        rows.append([name + diverged, *cells])
    return study.table(rows)


def command_of(name: str, argv: Sequence[str]) -> str:
    """The command of a study, but for where it is kept."""
    said = [argument for argument in argv if cli.name_of(argument) not in ("workdir", "page")]
    return shlex.join(["python", "-m", f"experiments.studies.{name}", *said])


def page(
    name: str,
    title: str,
    claim: str,
    source: str,
    verdict: str,
    argv: Sequence[str],
    notes: str = "",
) -> study.Page:
    """The page of a claim whose study measures other things than runs by setups and seeds.

    Args:
      name: of the study's module.
      title: of the page.
      claim: in a sentence.
      source: the paper or the textbook.
      verdict: "It holds" or another, and the figures that say so.
      argv: what was given to the command.
      notes: on how the table came about.
    """
    command = f"Command: `{command_of(name, argv)}`"
    return study.Page(name, title, above(claim, source, verdict), f"{notes} {command}".lstrip())


def above(claim: str, source: str, verdict: str) -> str:
    """What stands above the picture of a claim's page."""
    return f"> {claim}\n>\n> {source}\n\n**{verdict}**"


def page_of(claim: Claim, config: Any, verdict: Verdict, command: str) -> study.Page:
    """What is on a claim's page."""
    seeds = config.study.seeds
    below = f"""Mean and sample standard deviation of {seeds} seed{"s" * (seeds > 1)}.

- Varied: {claim.varied}
- Held: {claim.held}
- Command: `{command}`"""
    said = f"It {verdict.word}. {verdict.reason}"
    return study.Page(claim.name, claim.title, above(claim.claim, claim.source, said), below)


def _draw(claim: Claim, measured: Measured, path: Path) -> None:
    figures.save(path, lambda figure: claim.draw(figure, measured))
