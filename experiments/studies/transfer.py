"""What transfer learning brings, and which way of it: few, some and many examples.

    python -m experiments.studies.transfer

pretrains a narrow ResNet-20 on the digits 0 to 4 and takes it to the digits 5 to 9, of which it is
shown 5, 20 or 100 examples each, as they are: training the head alone, the top layers, or all,
beside the same network from scratch, each for as many steps. Every run is an ordinary one in
WORKDIR, so the same command goes on where it was stopped, and trains nothing again that is done.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from experiments import resnet, transfer
from experiments.harness import claim, cli, study
from experiments.harness.cli import flag, require
from experiments.harness.study import Run, StudyFlags
from jaxdl import data, figures

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
    runs = []
    for seed in study.seeds_of(config):
        first = ["--width=8", f"--classes={OLD_CLASSES}", f"--epochs={config.pretraining_epochs}"]
        folder = study.folder(config, "pretrained")
        pretraining = Run("pretrained", seed, folder, resnet, [*first, *seldom])
        runs.append(pretraining)
        for count in config.per_class:
            task = [f"--classes={NEW_CLASSES}", f"--per_class={count}", "--augment="]
            task += ["--learning_rate=0.1", "--batch_size=25", f"--steps={config.steps}", *seldom]
            for way, frozen in WAYS.items():
                scratch = way == "scratch"
                origin = "--width=8" if scratch else f"--from_run={pretraining.workdir}"
                folder = study.folder(config, f"{count}_per_class/{way}")
                experiment = resnet if scratch else transfer
                runs.append(Run((way, count), seed, folder, experiment, [*task, origin, *frozen]))
    return runs


def accuracies(config: Config, runs: Sequence[Run]) -> Accuracies:
    """What the runs came to."""
    return {
        way: {
            count: [run.summary()["test/accuracy"] for run in runs if run.setup == (way, count)]
            for count in config.per_class
        }
        for way in WAYS
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
    axes.set_title("ResNet-20 from the digits 0-4 to 5-9")
    axes.grid(alpha=0.3)
    axes.legend(title="trained")
    figures.write(path, figure)


TITLE = "What transfer learning brings"
CLAIM = (
    "A network that starts from what another has learned needs fewer examples; where they are few "
    "it is better to train its last layers alone, where they are many, all."
)
SOURCE = "Yosinski et al. 2014, How transferable are features, arXiv:1411.1792"


def verdict(found: Accuracies) -> str:
    """What came of the claim: at the fewest examples, and at the most."""
    few, *_, many = next(iter(found.values()))
    of = {way: by_count[few] for way, by_count in found.items()}
    start = claim.clearly_greater(of["all layers"], of["scratch"])
    part = claim.clearly_greater(of["top layers"], of["all layers"])
    whole = claim.clearly_greater(found["all layers"][many], found["top layers"][many])
    means = lambda count: ", ".join(
        f"{way} {claim.mean(by_count[count]):.3f}" for way, by_count in found.items()
    )
    return (
        f"It {claim.word([start, part, whole])}: of {few} examples a class {means(few)}; "
        f"of {many} {means(many)}."
    )


def run(argv: list[str]) -> None:
    """Trains, and leaves table.md, table.json and transfer.png in the workdir."""
    config = study.read(Config, argv)
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
        claim.page("transfer", TITLE, CLAIM, SOURCE, verdict(found)),
    )


if __name__ == "__main__":
    cli.main(run)
