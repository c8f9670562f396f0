"""What transfer learning brings, and which way of it: few, some and many examples.

    python -m experiments.studies.transfer

pretrains a narrow ResNet-20 on the digits 0 to 4 and takes it to the digits 5 to 9, of which it is
shown 5, 20 or 100 examples each, as they are: training the head alone, the top layers, or all,
beside the same network from scratch, each for as many steps. Every run is an ordinary one in
WORKDIR, so the same command goes on where it was stopped, and trains nothing again that is done.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import resnet, transfer
from experiments.harness import cli, training
from experiments.harness.cli import flag, require
from jaxdl import InputError, data

OLD_CLASSES, NEW_CLASSES = "0,1,2,3,4", "5,6,7,8,9"

# What is frozen of the network that was trained before.
WAYS: dict[str, tuple[str, ...]] = {
    "scratch": (),
    "head only": ("--head_only",),
    "top layers": ("--freeze_up_to=layer1",),
    "all layers": (),
}

Accuracies = dict[str, dict[int, list[float]]]
"""{way: {examples per class: the test accuracy of each seed}}"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Compares ways of transfer learning on the digits with training from scratch."""

    workdir: str = flag("runs/transfer_study", "the folder")
    per_class: tuple[int, ...] = flag((5, 20, 100), "how many training examples of each class")
    seeds: int = flag(5, "how many runs of each; each has a pretraining and examples of its own")
    pretraining_epochs: int = flag(40, "passes over the digits 0 to 4")
    steps: int = flag(200, "of the training after it, or from scratch, in batches of 25")

    def __post_init__(self) -> None:
        least = min(self.per_class, default=0)
        require(self, "per_class", least >= 5, "at least 5, so that a batch is full")
        once = len(set(self.per_class)) == len(self.per_class)
        require(self, "per_class", once, "each given once")
        require(self, "seeds", self.seeds >= 1, "at least 1")
        require(self, "pretraining_epochs", self.pretraining_epochs >= 1, "at least 1")
        require(self, "steps", self.steps >= 1, "at least 1")


def train(experiment: Any, workdir: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """The summary of a run, which is trained unless it is done."""
    own = (f"--workdir={workdir}", "--eval_every=1000000", "--checkpoint_every=1000000")
    config, _ = cli.parse(experiment.Config, [*arguments, *own])
    summary = workdir / training.SUMMARY_FILE
    if not summary.exists():
        return training.train(config, experiment.build)
    cli.check_same_run(config, workdir)
    return training.read_summary(workdir)


def study(config: Config) -> Accuracies:
    """Trains what is not done."""
    digits = data.select_classes(data.load("digits"), NEW_CLASSES.split(","))
    data.subsample(digits, max(config.per_class), seed=0)  # are there as many?
    workdir = Path(config.workdir)
    found: Accuracies = {way: {count: [] for count in config.per_class} for way in WAYS}
    runs, number = config.seeds * (1 + len(WAYS) * len(config.per_class)), 0

    def run(experiment, folder, arguments):
        nonlocal number
        number += 1
        print(f"run {number} of {runs}: {folder}", flush=True)
        return train(experiment, folder, arguments)

    for seed in range(config.seeds):
        trained = workdir / "pretrained" / f"seed{seed}"
        first = [f"--seed={seed}", "--width=8", f"--classes={OLD_CLASSES}"]
        run(resnet, trained, [*first, f"--epochs={config.pretraining_epochs}"])
        for count in config.per_class:
            task = [f"--seed={seed}", f"--classes={NEW_CLASSES}", f"--per_class={count}"]
            task += ["--augment=", "--learning_rate=0.1", "--batch_size=25"]
            task += [f"--steps={config.steps}"]
            for way, frozen in WAYS.items():
                folder = workdir / f"{count}_per_class" / way.replace(" ", "_") / f"seed{seed}"
                scratch = way == "scratch"
                origin = "--width=8" if scratch else f"--from_run={trained}"
                summary = run(resnet if scratch else transfer, folder, [*task, origin, *frozen])
                found[way][count].append(summary["test/accuracy"])
    return found


def table(found: Mapping[str, Mapping[int, Sequence[float]]]) -> str:
    """The test accuracies in Markdown: mean ± sample standard deviation over the seeds."""
    counts = list(next(iter(found.values())))
    rows = [["trained", *(f"{count} per class" for count in counts)]]
    rows += [[way, *(_cell(found[way][count]) for count in counts)] for way in found]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def draw(found: Mapping[str, Mapping[int, Sequence[float]]], path: Path) -> None:
    """Draws means over the seeds, with bands from the least to the greatest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for way, by_count in found.items():
        counts = list(by_count)
        values = np.array(list(by_count.values()))
        (line,) = axes.plot(counts, values.mean(axis=1), ".-", label=way)
        axes.fill_between(
            counts, values.min(axis=1), values.max(axis=1), alpha=0.15, color=line.get_color()
        )
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts], minor=False)
    axes.set_xlabel("training examples of each class")
    axes.set_ylabel("test accuracy")
    axes.set_title("ResNet-20 from the digits 0-4 to 5-9")
    axes.grid(alpha=0.3)
    axes.legend(title="trained")
    figure.savefig(path, dpi=120)


def run(argv: list[str]) -> None:
    """Trains, and leaves table.md, table.json and transfer.png in the workdir."""
    config, rest = cli.parse(Config, argv)
    if rest:
        raise InputError(f"{rest[0]!r} is no flag; see --help")
    training.prepare_jax(training.RunConfig())
    with cli.if_interrupted("and with the study: the same command"):
        found = study(config)
    text, workdir = table(found), Path(config.workdir)
    record = dataclasses.asdict(config) | {"test/accuracy": found}
    (workdir / "table.json").write_text(json.dumps(record, indent=2) + "\n")
    (workdir / "table.md").write_text(f"Test accuracy on the digits 5 to 9.\n\n{text}\n")
    draw(found, workdir / "transfer.png")
    print(f"\n{text}\n\nin {workdir}: table.md, table.json, transfer.png")


if __name__ == "__main__":
    cli.main(run)
