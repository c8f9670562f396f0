"""Batch normalization by batch size: what becomes of it where its statistics are of few examples.

python -m experiments.studies.batch_statistics --quick
"""

from typing import Any

from experiments.harness import claim
from experiments.harness.claim import Claim, Measured, Setup, Verdict, clearly_greater, mean

SIZES = (2, 4, 16, 64, 256)
KINDS = {"without": (), "with": ("--batch_norm",)}
BASE_RATE, BASE_SIZE, USUAL = 0.05, 32, 16
"""A rate, the batch size that it is for, and the size that others are compared with."""
METRIC = "test/accuracy"


def judge(measured: Measured) -> Verdict:
    """By the test accuracy in batches of two against that in usual ones, and against no norms."""
    of = lambda kind, size: measured[f"{kind}, {size}"][METRIC]
    few = min(SIZES)
    lost = clearly_greater(of("with", USUAL), of("with", few))
    norms_alone = not clearly_greater(of("without", USUAL), of("without", few))
    worse = clearly_greater(of("without", few), of("with", few))
    better = clearly_greater(of("with", max(SIZES)), of("without", max(SIZES)))
    said = "; ".join(
        f"{kind} batch norms "
        + ", ".join(f"{mean(of(kind, size)):.3f} in batches of {size}" for size in SIZES)
        for kind in KINDS
    )
    return Verdict(claim.word([lost, norms_alone, worse, better]), f"Test accuracy is {said}.")


def draw(figure: Any, measured: Measured) -> None:
    """Test accuracy and training loss by batch size."""
    lines = {f"{kind} batch norms": [f"{kind}, {size}" for size in SIZES] for kind in KINDS}
    panels = figure.subplots(1, 2)
    claim.draw_by_size(panels, measured, (METRIC, "train/loss"), lines, SIZES, "batch size")
    figure.suptitle("Batch norms harm where a batch has few examples")


CLAIM = Claim(
    name="batch_statistics",
    title="Batch normalization wants batches that are not small",
    claim="Batch norms know a layer's mean and variance by the examples of a batch alone: of two "
    "they are so far off that networks train worse with them, which without they do not.",
    source="Ioffe 2017, Batch Renormalization, arXiv:1702.03275; Wu and He 2018, Group "
    "Normalization, arXiv:1803.08494, figure 1",
    varied="batch norms, and the batch size, with the rate in proportion to it",
    held="three ReLU layers of 64 units, digits, plain gradient descent at a rate of 0.05 for "
    "batches of 32, 12 epochs",
    experiment="mlp",
    common=(
        *("--depth=3", "--width=64", "--dropout=0", "--label_smoothing=0", "--augment="),
        *("--optimizer=sgd", "--l2_penalty=0", "--epochs=12", "--warmup_epochs=0"),
    ),
    setups=tuple(
        Setup(
            f"{kind}, {size}",
            (*flags, f"--batch_size={size}", f"--learning_rate={BASE_RATE * size / BASE_SIZE:g}"),
        )
        for kind, flags in KINDS.items()
        for size in SIZES
    ),
    metrics=(METRIC, "train/loss"),
    judge=judge,
    draw=draw,
    seeds=5,
    minutes=2,
    quickly=("--epochs=4",),
)

if __name__ == "__main__":
    claim.main(CLAIM)
