"""What transfer learning brings, and which way of it: few, some and many examples.

    python -m experiments.studies.transfer

pretrains a narrow ResNet-20 on the digits 0 to 4 and takes it to the digits 5 to 9, of which it is
shown 5, 20 or 100 examples each, as they are: training the head alone, the top layers, or all,
beside the same network from scratch, each for as many steps. Where Fashion-MNIST is (Debian's
package dataset-fashion-mnist), another is pretrained on as many pictures of five kinds of clothes,
a task less like the new one. Every run is an ordinary one in WORKDIR, so the same command goes on
where it was stopped, and trains nothing again that is done.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments import resnet, transfer
from experiments.harness import claim, cli, study
from experiments.harness.cli import flag, require
from experiments.harness.study import Run, StudyFlags
from jaxdl import data, figures

TITLE = "What transfer learning brings"
CLAIM = (
    "A network that starts from what another has learned needs fewer examples; where they are few "
    "it is better to train its last layers alone, where they are many, all; and the more, the more "
    "alike the two tasks are."
)
SOURCE = "Yosinski et al. 2014, How transferable are features, arXiv:1411.1792"
QUICKLY = ("--per_class=5", "--pretraining_epochs=10", "--steps=40")
"""Flags of the quick form."""

OLD_CLASSES, NEW_CLASSES = "0,1,2,3,4", "5,6,7,8,9"
CLOTHES = Path("/usr/share/datasets/fashion-mnist")
ORIGINS: dict[str, tuple[str, ...]] = {
    "digits": (f"--classes={OLD_CLASSES}",),
    "clothes": (
        f"--dataset=idx:{CLOTHES}",
        "--classes=T-shirt/top,Trouser,Pullover,Dress,Coat",
        "--per_class=144",  # as many as there are digits
    ),
}
"""What a network is trained on before, of five classes."""


class Way(NamedTuple):
    """How the new task is learned.

    Attributes:
      origin: on what the network was trained before; empty for none.
      flags: what of it is frozen.
    """

    origin: str = ""
    flags: tuple[str, ...] = ()


WAYS = {
    "scratch": Way(),
    "head only": Way("digits", ("--head_only",)),
    "top layers": Way("digits", ("--freeze_up_to=layer1",)),
    "all layers": Way("digits"),
}
FROM_CLOTHES = {
    "head only, from clothes": Way("clothes", ("--head_only",)),
    "all layers, from clothes": Way("clothes"),
}


def ways() -> dict[str, Way]:
    """Those for which there are data."""
    return WAYS | FROM_CLOTHES if CLOTHES.is_dir() else WAYS


Accuracies = dict[str, dict[int, list[float]]]
"""{way: {examples per class: the test accuracy of each seed}}"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Compares ways of transfer learning on the digits with training from scratch."""

    study: StudyFlags = StudyFlags("runs/transfer_study", seeds=5)
    per_class: tuple[int, ...] = flag((5, 20, 100), "how many training examples of each class")
    pretraining_epochs: int = flag(40, "passes over the digits 0 to 4")
    steps: int = flag(200, "of the training after it, or from scratch, in batches of 25")

    def __post_init__(self) -> None:
        least = min(self.per_class, default=0)
        require(self, "per_class", least >= 5, "at least 5, so that a batch is full")
        once = len(set(self.per_class)) == len(self.per_class)
        require(self, "per_class", once, "each given once")
        require(self, "pretraining_epochs", self.pretraining_epochs >= 1, "at least 1")
        require(self, "steps", self.steps >= 1, "at least 1")


def plan(config: Config) -> list[Run]:
    """The runs of each seed, which has a pretraining and examples of its own."""
    seldom = ["--eval_every=1000000", "--checkpoint_every=1000000"]
    runs: list[Run] = []
    for seed in study.seeds_of(config):
        before = {}
        for origin in filter(None, dict.fromkeys(way.origin for way in ways().values())):
            folder = study.folder(config, f"pretrained/{origin}")
            epochs = f"--epochs={config.pretraining_epochs}"
            flags = ["--width=8", epochs, *ORIGINS[origin], *seldom]
            before[origin] = Run("pretrained", seed, folder, resnet, flags)
        runs += before.values()
        for count in config.per_class:
            task = [f"--classes={NEW_CLASSES}", f"--per_class={count}", "--augment="]
            task += ["--learning_rate=0.1", "--batch_size=25", f"--steps={config.steps}", *seldom]
            for name, way in ways().items():
                start = f"--from_run={before[way.origin].workdir}" if way.origin else "--width=8"
                folder = study.folder(config, f"{count}_per_class/{name}")
                experiment = transfer if way.origin else resnet
                runs.append(
                    Run((name, count), seed, folder, experiment, [*task, start, *way.flags])
                )
    return runs


def accuracies(config: Config, runs: Sequence[Run]) -> Accuracies:
    """What the runs came to."""
    return {
        way: {
            count: [run.summary()["test/accuracy"] for run in runs if run.setup == (way, count)]
            for count in config.per_class
        }
        for way in ways()
    }


def table(found: Accuracies) -> str:
    """The test accuracies in Markdown: mean ± sample standard deviation over the seeds."""
    rows = [["trained", *(f"{count} per class" for count in next(iter(found.values())))]]
    rows += [
        [way, *(study.cell(values, "{:.3f}".format) for values in by_count.values())]
        for way, by_count in found.items()
    ]
    return study.table(rows)


@figures.styled
def draw(found: Accuracies, path: Path) -> None:
    """Draws means over the seeds, in bands from the least to the greatest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for way, by_count in found.items():
        counts = list(by_count)
        figures.band(axes, counts, by_count.values(), way)
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts], minor=False)
    axes.set_xlabel("training examples of each class")
    axes.set_ylabel("test accuracy")
    axes.set_title(
        "To the digits 5-9: features help where examples are few, of digits more than clothes"
    )
    axes.grid(alpha=0.3)
    axes.legend(title="trained")
    figures.write(path, figure)


def verdict(found: Accuracies) -> str:
    """What came of the claim: at the fewest examples, and at the most."""
    counts = next(iter(found.values()))
    few, many = min(counts), max(counts)
    of = {way: by_count[few] for way, by_count in found.items()}
    start = claim.clearly_greater(of["all layers"], of["scratch"])
    part = claim.clearly_greater(of["top layers"], of["all layers"])
    whole = claim.clearly_greater(found["all layers"][many], found["top layers"][many])
    parts = [start, part, whole]
    if "all layers, from clothes" in of:
        parts.append(claim.clearly_greater(of["all layers"], of["all layers, from clothes"]))
    means = lambda count: ", ".join(
        f"{way} {claim.mean(by_count[count]):.3f}" for way, by_count in found.items()
    )
    return (
        f"It {claim.word(parts)}: of {few} examples a class {means(few)}; of {many} {means(many)}."
    )


def run(argv: list[str]) -> None:
    """Trains, and leaves table.md, table.json and transfer.png in the workdir."""
    config = study.read_command(Config, argv, QUICKLY)
    digits = data.select_classes(data.load("digits"), NEW_CLASSES.split(","))
    data.subsample(digits, max(config.per_class), seed=0)  # are there as many?
    runs = plan(config)
    study.begin(config, runs, apart_from=["per_class"])
    study.train(runs)
    found = accuracies(config, runs)
    study.finish(
        config,
        {"test/accuracy": found},
        "Test accuracy on the digits 5 to 9.",
        table(found),
        {"transfer.png": functools.partial(draw, found)},
        claim.page("transfer", TITLE, CLAIM, SOURCE, verdict(found), argv),
    )


if __name__ == "__main__":
    cli.main(run)
