"""Inception's branches: what each brings on the same budget of parameters.

python -m experiments.studies.branches --quick
"""

from typing import Any

from experiments.harness import claim
from experiments.harness.claim import Claim, Measured, Setup, Verdict, clearly_greater, mean
from jaxdl import figures

WIDTHS = {
    "all four": ("1x1,3x3,5x5,pool", 0.125),
    "no 1x1": ("3x3,5x5,pool", 0.144),
    "no 3x3": ("1x1,5x5,pool", 0.262),
    "no 5x5": ("1x1,3x3,pool", 0.133),
    "no pool": ("1x1,3x3,5x5", 0.134),
    "3x3 alone": ("3x3", 0.161),
    "1x1 alone": ("1x1", 0.452),
}
"""{setup: (branches, the width at which it has as many parameters as the others)}"""


def judge(measured: Measured) -> Verdict:
    """By test accuracy: all four against those of one size; the others are told of."""
    accuracy = {name: found["test/accuracy"] for name, found in measured.items()}
    whole = accuracy.pop("all four")
    better = [name for name, found in accuracy.items() if clearly_greater(whole, found)]
    worse = [name for name, found in accuracy.items() if clearly_greater(found, whole)]
    word = claim.word([name in better for name in accuracy if name.endswith("alone")])
    others = ", ".join(f"{name} {mean(found):.3f}" for name, found in accuracy.items())
    return Verdict(
        word,
        f"With all four branches test accuracy is {mean(whole):.3f}, else {others}. All four are "
        f"clearly ahead of {len(better)} of {len(accuracy)}, clearly behind {len(worse)}.",
    )


def draw(figure: Any, measured: Measured) -> None:
    """Test error of each."""
    wrong = {name: claim.error(found["test/accuracy"]) for name, found in measured.items()}
    figures.bars(figure.subplots(), wrong, "test error")
    figure.suptitle("At as many parameters, all four branches are not the best choice here")


CLAIM = Claim(
    name="branches",
    title="The branches of an Inception module",
    claim="Looking at several scales side by side and joining what is seen is better than any one "
    "size of kernel of the same cost.",
    source="Szegedy et al. 2014, Going Deeper with Convolutions, arXiv:1409.4842, 4",
    varied="which branches the nine modules of a GoogLeNet have, and its width, so that all have "
    "about as many parameters",
    held="digits of 16x16 pixels, momentum 0.9 at a rate of 0.05, 4 epochs in batches of 32",
    experiment="inception",
    common=("--image_size=16", "--epochs=4", "--augment=", "--dropout=0"),
    setups=tuple(
        Setup(name, (f"--branches={branches}", f"--width={width}"))
        for name, (branches, width) in WIDTHS.items()
    ),
    metrics=("parameters", "train/loss", "test/accuracy"),
    judge=judge,
    draw=draw,
    seeds=3,
    minutes=15,
    quickly=("--steps=30",),
)

if __name__ == "__main__":
    claim.main(CLAIM)
