"""AlexNet's local response normalization: what it adds, by how much neighbours count.

python -m experiments.studies.response_norm --quick
"""

from typing import Any

from experiments.harness import claim
from experiments.harness.claim import Claim, Measured, Setup, Verdict, clearly_greater, mean
from jaxdl import figures

ALPHAS = (0.0, 5e-4, 0.05, 5.0)
PAPER = 5e-4


def judge(measured: Measured) -> Verdict:
    """By test accuracy, against maps that do not compete."""
    accuracy = {alpha: measured[f"alpha {alpha:g}"]["test/accuracy"] for alpha in ALPHAS}
    helped = [a for a in ALPHAS[1:] if clearly_greater(accuracy[a], accuracy[0.0])]
    harmed = [a for a in ALPHAS[1:] if clearly_greater(accuracy[0.0], accuracy[a])]
    word = "holds" if PAPER in helped else "holds in part" if helped else "does not hold"
    figures_of = ", ".join(f"{mean(found):.4f} at {a:g}" for a, found in accuracy.items())
    clear = {"ahead": helped, "behind": harmed}
    said = " and ".join(
        f"clearly {where} at {', '.join(f'{a:g}' for a in found)}"
        for where, found in clear.items()
        if found
    )
    return Verdict(
        word,
        f"By what neighbours' squares count, test accuracy is {figures_of}: against maps that do "
        f"not compete {said or 'no different'}. The paper's constant is for pixels up to 255; "
        "here they are within 1.",
    )


def draw(figure: Any, measured: Measured) -> None:
    """Training loss and test accuracy by alpha."""
    for axes, metric in zip(figure.subplots(1, 2), ("train/loss", "test/accuracy"), strict=True):
        found = [measured[f"alpha {alpha:g}"][metric] for alpha in ALPHAS]
        figures.band(axes, range(len(ALPHAS)), found, "AlexNet")
        axes.set_xticks(range(len(ALPHAS)), [f"{alpha:g}" for alpha in ALPHAS])
        axes.set(xlabel="alpha, for 5 channels", ylabel=metric)
    figure.suptitle("Response normalization by how much neighbouring channels count")


CLAIM = Claim(
    name="response_norm",
    title="Local response normalization",
    claim="Dividing a map by what its neighbouring channels say aids generalization: it took 1.4 "
    "points off AlexNet's error, and 2 off a small network's on CIFAR-10.",
    source="Krizhevsky et al. 2012, ImageNet Classification with Deep Convolutional Neural "
    "Networks, 3.3; of no use to Simonyan and Zisserman 2014, arXiv:1409.1556, 4.1",
    varied="alpha, what the squares of five channels count; at 0 they divide by a constant",
    held="the paper's AlexNet at a quarter of its width, kernels as in He et al., digits of 32x32 "
    "pixels, momentum 0.9 at a rate of 0.01, 15 epochs in batches of 32",
    experiment="alexnet",
    common=(
        "--model=alexnet_paper",
        "--width=24",
        "--init=kaiming_normal",
        "--learning_rate=0.01",
        "--epochs=15",
        "--augment=",
    ),
    setups=tuple(Setup(f"alpha {alpha:g}", (f"--response_alpha={alpha}",)) for alpha in ALPHAS),
    metrics=("train/loss", "train/accuracy", "test/accuracy"),
    judge=judge,
    draw=draw,
    seeds=5,
    minutes=12,
    quickly=("--steps=60",),
    together=False,  # the paper's convolutions are in two groups
)

if __name__ == "__main__":
    claim.main(CLAIM)
