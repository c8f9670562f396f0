"""Compares the values of a flag: every value with several seeds, in one table and one picture.

    python -m experiments.compare --experiment=lenet --flag=optimizer --values=sgd,momentum,adam \\
        --learning_rates=0.1,0.05,0.001 --seeds=3 --target_loss=0.2 --epochs=20

All other flags go to the experiment. To compare whole recipes, any number of flags at a time,
put them into flagfiles: `--flag=flagfile --values=a.flags,b.flags`. Each is called by its file's
name. So can values be compared that hold a comma.

    python -m experiments.compare --experiment=mlp --flag=learning_rate --values=0.001,0.003,0.01 \\
        --by=weight_decay --by_values=0,0.01,0.1 --optimizer=adamw --seeds=5

trains a grid, every value with every one of another flag, and draws it as a heat map.

Runs that differ in numbers alone (seeds, rates, decays, smoothing, dropout ...) are trained at once
as lanes of one program, `--vectorize=never` in turn. Every run is an ordinary one, in
WORKDIR/FLAG=VALUE/seedN, of a grid in WORKDIR/FLAG=VALUE/BY=VALUE/seedN. The same command goes on
where it was stopped, and trains nothing again that is done; with more values or seeds it trains
those.
"""

import dataclasses
import functools
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.harness import catalogue, cli, devices, study, training
from experiments.harness.cli import require
from experiments.harness.study import Run, StudyFlags
from jaxdl import InputError, figures, lifting
from jaxdl.writers import Events, read_rows

Series = dict[str, dict[int, float]]
"""{metric: {step: value}}"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Compares the values of a flag: --experiment=NAME --flag=NAME --values=A,B,C

    All other flags go to the experiment. Without --workdir the folder is
    runs/compare_EXPERIMENT_FLAG.
    """

    experiment: str = cli.flag("", "a name of experiments.NAME")
    flag: str = cli.flag("", "any flag of it, or flagfile to compare whole recipes")
    values: tuple[str, ...] = cli.flag((), "of that flag, two or more")
    by: str = cli.flag("", "another flag, for a grid of each value with each one of this")
    by_values: tuple[str, ...] = cli.flag((), "of --by, two or more")
    learning_rates: tuple[float, ...] = cli.flag((), "one for each value, if each wants its own")
    target_loss: float | None = cli.flag(None, "count the steps until train/loss is this or less")
    metric: str = cli.flag("", "eval/NAME; by default the one a run chooses its best by")
    vectorize: str = cli.flag(
        "auto",
        "train runs that differ in numbers alone as lanes of one program, or all in turn",
        ("auto", "never"),
    )
    study: StudyFlags = StudyFlags(seeds=3)

    def __post_init__(self) -> None:
        if not catalogue.is_experiment(self.experiment):
            require(self, "experiment", False, f"one of {', '.join(catalogue.names())}")
        require(self, "flag", self.flag != "", "given")
        require(self, "flag", self.flag not in TAKEN, "a flag that compare does not set itself")
        require(self, "values", len(self.values) >= 2, "two values or more")
        require(self, "values", len(set(self.values)) == len(self.values), "each given once")
        fits = len(self.learning_rates) in (0, len(self.values))
        require(self, "learning_rates", fits, f"one for each of the {len(self.values)} values")
        twice = "learning_rate" in (self.flag, self.by) and self.learning_rates
        require(self, "learning_rates", not twice, "left out where that is what is compared")
        self._check_grid()

    def _check_grid(self) -> None:
        other = self.by not in (*TAKEN, self.flag, "flagfile")
        require(self, "by", other, "a flag beside --flag that compare does not set itself")
        several = len(self.by_values) >= 2 if self.by else not self.by_values
        require(self, "by_values", several, "two values or more of --by")
        require(
            self, "by_values", len(set(self.by_values)) == len(self.by_values), "each given once"
        )

    @property
    def compared(self) -> str:
        """What is compared, as the table has it."""
        return f"{self.flag}, {self.by}" if self.by else self.flag


MOST_NAMED = 12  # lines of a picture; of more the names have no room beside it
# Flags of an experiment that every run is given by `compare`.
TAKEN = ("experiment", "workdir", "seed", "mode")


def series_of(run: Run) -> Series:
    """All that a run measured on its way."""
    series: Series = {}
    for row in read_rows(run.workdir):
        for name, value in row.items():
            if name != "step" and value is not None:
                series.setdefault(name, {})[int(row["step"] or 0)] = value
    return series


def plan(config: Config, experiment: ModuleType, others: Sequence[str]) -> list[Run]:
    """All runs, each value's together; their flags are parsed, so that a mistake is found here."""
    for argument in others:
        if cli.name_of(argument) in TAKEN:
            raise InputError(
                f"{argument}: compare sets --{cli.name_of(argument)} of every run itself"
            )
    runs = []
    for place, value in enumerate(config.values):
        arguments = [*others, f"--{config.flag}={value}"]
        if config.flag == "flagfile":  # what is said on the command line wins over a recipe
            arguments = [arguments[-1], *others]
            value = Path(value).stem
        if config.learning_rates:
            arguments.append(f"--learning_rate={config.learning_rates[place]}")
        value = value.replace("/", "_")  # it names folders
        folder = Path(config.study.workdir) / f"{config.flag}={value}"
        arguments.append("--mode=train")
        for setup, place_of_it, more in _cells(config, value, folder):
            seeds = study.seeds_of(config)
            own = [*arguments, *more]
            runs += [Run(setup, seed, place_of_it, experiment, own) for seed in seeds]
    for run in runs:
        flags = cli.to_dict(run.config)
        if flags["coordinator"]:
            raise InputError("compare runs on one host; start the runs of several hosts singly")
        if flags["folds"]:
            raise InputError("compare repeats a run over seeds; give no --folds")
    folders = [run.workdir for run in runs]
    if len(set(folders)) < len(folders):
        raise InputError(f"two of --values={','.join(config.values)} would share a folder")
    return runs


def _cells(config: Config, value: str, folder: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """What is trained with a value: its name, its folder, and its own arguments."""
    if not config.by:
        yield value, folder, []
    for other in config.by_values:
        name = other.replace("/", "_")
        yield f"{value}, {name}", folder / f"{config.by}={name}", [f"--{config.by}={other}"]


class Compared(NamedTuple):
    """The metrics that runs are compared by.

    Attributes:
      metric: `--metric`, or the one by which a run keeps its best checkpoint.
      loss: the training loss; of two players, the discriminator's.
      best: the one by which a run keeps its best checkpoint.
      split: what `eval/` is measured on, the best chosen by.
    """

    metric: str
    loss: str
    best: str
    split: str


def check(runs: Sequence[Run], config: Config) -> Compared:
    """Checks before any run trains whether each value fits the data and the devices.

    Returns:
      What to compare by.

    Raises:
      InputError: one does not fit, or there is no such metric.
    """
    metric, loss, best, splits = config.metric, "", "", set()
    # What is measured of tasks that are the same function; of each one is kept, as `likeness` asks.
    known: dict[tuple, tuple[Any, list[str]]] = {}
    for run in runs:
        if run.seed > config.study.first_seed:
            continue
        devices.check_devices(run.config)
        problem = run.experiment.build(run.config, devices.mesh_of(run.config))
        task, hparams = training.task_of(run.config, problem)
        _, batch = training.batch_shapes(problem)
        what = lifting.likeness(task, hparams, batch)
        if what not in known:
            state = jax.eval_shape(task.init, jax.random.key(0), hparams)
            known[what] = task, sorted(jax.eval_shape(task.eval, state, batch))
        _, means = known[what]
        loss = "train/" + next(name for name in means if name.endswith("loss"))
        measured = [f"eval/{name}" for name in (*means, *problem.view.measures)]
        metric, best = metric or problem.best.metric, best or problem.best.metric
        splits.add(problem.eval_split)
        require(config, "metric", metric in measured, f"one of {', '.join(measured)}")
    return Compared(metric, loss, best, " or ".join(sorted(splits)))


def measure(run: Run, by: Compared, target_loss: float | None) -> dict[str, float | None]:
    """The figures of a run that are compared; None for what it does not have.

    The training loss is what the run reported, the mean over the steps since its last report. The
    seconds are those of the process that finished it, compilation and evaluations included.
    """
    if run.diverged:
        return dict.fromkeys(FIGURES)
    summary, series = run.summary(), series_of(run)
    losses = series.get(by.loss, {})
    reached = [s for s, loss in losses.items() if target_loss is not None and loss <= target_loss]
    return {
        "final": summary[by.metric],
        "best": series[by.metric].get(summary["best_step"]),
        "train_loss": losses.get(max(losses, default=0)),
        "steps_to_target": min(reached, default=None),
        "seconds": summary["wall_seconds"],
    }


FIGURES = ("final", "best", "train_loss", "steps_to_target", "seconds")


def by_value(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each value, in their order."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(str(run.setup), []).append(run)
    return found


def results(runs: Sequence[Run], by: Compared, target_loss: float | None) -> dict[str, Any]:
    """{value: {figure: its spread}}, with `diverged`: {seed: how}."""
    found: dict[str, Any] = {}
    for value, those in by_value(runs).items():
        measured = [measure(run, by, target_loss) for run in those]
        found[value] = {name: study.spread([m[name] for m in measured]) for name in FIGURES}
        found[value]["diverged"] = {run.seed: run.diverged for run in those if run.diverged}
    return found


def table(found: Mapping[str, Any], config: Config, by: Compared) -> str:
    """The results in Markdown, mean ± sample standard deviation over the seeds."""
    goal = "" if config.target_loss is None else f"steps to {by.loss} {config.target_loss:g}"
    best = f"best {by.metric}" if by.metric == by.best else f"{by.metric} at the best {by.best}"
    heads = (f"final {by.metric}", best, f"final {by.loss}", goal, "seconds")
    shown = [(name, head) for name, head in zip(FIGURES, heads, strict=True) if head]
    rows = [[config.compared, *(head for _, head in shown), "runs"]]
    for value, measured in found.items():
        failed = measured["diverged"]
        seeds = config.study.seeds
        runs = f"{seeds}, {len(failed)} diverged" if failed else str(seeds)
        rows.append([value, *(_cell(name, measured[name]) for name, _ in shown), runs])
    notes = [f"eval/ is of the {by.split} split, which the best was chosen by."]
    notes += [
        f"{config.compared}={value}, seed {seed}: {how}"
        for value, measured in found.items()
        for seed, how in measured["diverged"].items()
    ]
    return "\n".join([study.table(rows), *(f"\n{note}" for note in notes)])


def _cell(name: str, figure: dict[str, Any]) -> str:
    seeds = figure["seeds"]
    mean, std = (functools.partial(study.significant, digits=digits) for digits in (4, 2))
    text = study.cell(seeds, mean, std)
    if name != "steps_to_target":
        return text
    known = sum(value is not None for value in seeds)
    if known == 0:
        return "not reached"
    return f"{text} ({known} of {len(seeds)})" if known < len(seeds) else text


def aligned(measured: Sequence[Series], name: str) -> tuple[list[int], np.ndarray]:
    """The steps at which every run measured this, and what each did: [runs, steps]."""
    those = [series.get(name, {}) for series in measured]
    steps = sorted(set.intersection(*map(set, those)))
    return steps, np.array([[series[step] for step in steps] for series in those])


def finished(runs: Sequence[Run]) -> dict[str, list[Series]]:
    """What the runs of each value measured that did not diverge."""
    return {
        value: [series_of(run) for run in those if not run.diverged]
        for value, those in by_value(runs).items()
    }


@figures.styled
def draw(measured: Mapping[str, Sequence[Series]], flag: str, by: Compared, path: Path) -> None:
    """Draws means over the seeds, in bands from the least to the greatest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = dict(zip((by.loss, by.metric), figure.subplots(1, 2), strict=True))
    for name, axes in panels.items():
        for value, those in measured.items():
            steps, values = aligned(those, name) if those else ([], np.zeros(0))
            if steps:
                figures.band(axes, steps, values.T, value)
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if 0 < len(axes.lines) <= MOST_NAMED:
            axes.legend(title=flag)
    losses = [loss for line in panels[by.loss].lines for loss in np.asarray(line.get_ydata())]
    if losses and min(losses) > 0:
        panels[by.loss].set_yscale("log")
    figures.write(path, figure)


@figures.styled
def draw_grid(found: Mapping[str, Any], config: Config, by: Compared, path: Path) -> None:
    """Draws the final metric of a grid as a heat map, its means over the seeds."""
    from matplotlib.figure import Figure

    # As they were planned: --flag down, --by across.
    cells = np.array(list(found.values()), object).reshape(len(config.values), -1)
    means = [[of["final"]["mean"] for of in row] for row in cells]
    shown = np.ma.masked_invalid(np.array(means, float))
    rows, columns = shown.shape
    figure = Figure(figsize=(2.5 + 1.3 * columns, 1.5 + 0.7 * rows), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.85")  # where all seeds diverged
    image = axes.imshow(shown, aspect="auto")
    figure.colorbar(image, label=f"final {by.metric}")
    middle = (shown.min() + shown.max()) / 2
    for (row, column), of in np.ndenumerate(cells):
        lines = [_cell("final", of["final"]).replace(" ", "\n", 1)]
        lines += [f"{len(of['diverged'])} diverged"] if of["diverged"] else []
        drawn = not np.ma.getmaskarray(shown)[row, column]
        color = "white" if drawn and shown[row, column] < middle else "black"
        text = "\n".join(filter(None, lines))
        axes.text(column, row, text, color=color, ha="center", va="center", fontsize=8)
    axes.set_xticks(range(columns), config.by_values)
    axes.set_yticks(range(rows), config.values)
    axes.set(xlabel=config.by, ylabel=config.flag)
    figures.write(path, figure)


def write_means(measured: Mapping[str, Sequence[Series]], path: Path) -> None:
    """Writes the means over the seeds for TensorBoard, one run there for each value."""
    for value, those in measured.items():
        shutil.rmtree(path / value, ignore_errors=True)  # an earlier call's, of fewer seeds
        events = Events(path / value)
        for name in those[0] if those else ():
            steps, values = aligned(those, name)
            means = zip(steps, values.mean(axis=0), strict=True)
            events.scalars([(step, {name: float(mean)}) for step, mean in means])


def run(argv: list[str]) -> None:
    """Trains what is to be compared, and compares it."""
    own, others = cli.apart(Config, argv)
    config, _ = cli.parse(Config, own)
    if not config.study.workdir:
        name = "_".join(filter(None, (config.experiment, config.flag, config.by)))
        config = cli.replace(config, workdir=f"runs/compare_{name}")
    experiment = catalogue.load(config.experiment)
    runs = plan(config, experiment, others)
    asked = "values", "by", "by_values", "learning_rates", "target_loss", "metric", "vectorize"
    together = config.vectorize == "auto"
    study.begin(config, runs, apart_from=asked, together=together)
    by = check(runs, config)
    command = shlex.join(["python", "-m", "experiments.compare", *argv])
    together_in = Path(config.study.workdir) if together else None
    study.train(runs, command, divergence_is_a_result=True, together_in=together_in)

    measured = finished(runs)
    found = results(runs, by, config.target_loss)
    picture = {"compare.png": functools.partial(draw, measured, config.flag, by)}
    if config.by:  # whose curves would be too many to tell apart
        picture = {"heatmap.png": functools.partial(draw_grid, found, config, by)}
    pictures = picture | {"tensorboard/": functools.partial(write_means, measured)}
    record = by._asdict() | {"results": found}
    page = study.Page(Path(config.study.workdir).name, f"Values of {config.compared}", "", "")
    study.finish(config, record, f"`{command}`", table(found, config, by), pictures, page)


if __name__ == "__main__":
    cli.main(run)
