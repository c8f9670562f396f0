"""Depth: 20 and 56 layers, plain and residual.

python -m experiments.studies.depth --quick
"""

from typing import Any

from experiments.harness import claim
from experiments.harness.claim import (
    GRADIENT_RATIO,
    GRADIENTS,
    Claim,
    Measured,
    Setup,
    Verdict,
    clearly_greater,
    mean,
)
from jaxdl import figures

DEPTHS = (20, 56)
KINDS = {"plain": "plain", "residual": "resnet"}


def judge(measured: Measured) -> Verdict:
    """By the training loss, for the claim is of optimization and not of overfitting."""
    plain, residual = (
        {depth: measured[f"{kind}, {depth} layers"]["train/loss"] for depth in DEPTHS}
        for kind in KINDS
    )
    worse = clearly_greater(plain[56], plain[20])
    better = clearly_greater(plain[56], residual[56]) and not clearly_greater(
        residual[56], residual[20]
    )
    word = claim.word([worse, better])
    ratios = [measured[f"{kind}, 56 layers"][GRADIENT_RATIO] for kind in KINDS]
    return Verdict(
        word,
        f"With 56 plain layers the training loss ends at {mean(plain[56]):.3f}, with 20 at "
        f"{mean(plain[20]):.3f}; with 56 residual ones at {mean(residual[56]):.3f}, with 20 at "
        f"{mean(residual[20]):.3f}. In the first step the gradient by the first kernel is "
        f"{mean(ratios[0]):.2g} times the last's with 56 plain layers, and {mean(ratios[1]):.2g} "
        "times with 56 residual ones.",
    )


def draw(figure: Any, measured: Measured) -> None:
    """Training loss and test accuracy by depth, and gradients by layer."""
    figure.set_size_inches(10, 4)
    *panels, last = figure.subplots(1, 3)
    for axes, metric in zip(panels, ("train/loss", "test/accuracy"), strict=True):
        for kind in KINDS:
            found = [measured[f"{kind}, {depth} layers"][metric] for depth in DEPTHS]
            figures.band(axes, DEPTHS, found, kind)
        axes.set_xticks(DEPTHS)
        axes.set(xlabel="layers", ylabel=metric)
        axes.legend()
    claim.draw_gradients(last, measured, {setup: setup for setup in measured})
    last.legend()
    figure.suptitle("Deeper plain networks train worse; deeper residual ones do not")


CLAIM = Claim(
    name="depth",
    title="Deeper plain networks train worse, residual ones do not",
    claim="A deeper plain network has a higher training error than a shallower one; with shortcuts "
    "around its layers it does not.",
    source="He et al. 2015, Deep Residual Learning for Image Recognition, arXiv:1512.03385, 4.2",
    varied="depth and shortcuts",
    held="width 8, digits of 8x8 pixels, momentum 0.9 at a rate of 0.1, 15 epochs in batches of 32",
    experiment="resnet",
    common=("--width=8", "--image_size=8", "--epochs=15", "--label_smoothing=0", "--augment="),
    setups=tuple(
        Setup(f"{kind}, {depth} layers", (f"--model={name}{depth}_cifar",))
        for kind, name in KINDS.items()
        for depth in DEPTHS
    ),
    metrics=("train/loss", "train/accuracy", "test/accuracy", GRADIENT_RATIO),
    judge=judge,
    draw=draw,
    read=claim.with_gradients("conv1", "fc"),
    drawn=GRADIENTS,
    seeds=5,
    minutes=9,
    quickly=("--width=4", "--steps=90"),
)

if __name__ == "__main__":
    claim.main(CLAIM)
