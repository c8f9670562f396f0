"""One-sided label smoothing of a GAN's discriminator, on a ring of eight Gaussians.

python -m experiments.studies.smoothing --quick
"""

from typing import Any

from experiments.harness import claim
from experiments.harness.claim import Claim, Measured, Setup, Verdict, clearly_greater, mean
from experiments.studies.winning import RING
from jaxdl import figures

SMOOTHED = (0.0, 0.1, 0.2, 0.4)
UPDATES = {"one update": 1, "five updates": 5}
"""Of the discriminator, for each of the generator."""
RATE = "--discriminator_learning_rate=0.002"
SHOWN = {
    "test/precision": "share of samples near the data",
    "test/modes_covered": "modes covered, of 8",
}
METRICS = ("train/real_accuracy", "train/fake_accuracy", *SHOWN)


def judge(measured: Measured) -> Verdict:
    """By the share of samples near the data, at the usual 0.1, and that no mode is lost for it."""
    helped, harmed, said = [], [], []
    for game in UPDATES:
        without, smooth = (measured[f"{game}, {s:g}"] for s in (0.0, 0.1))
        helped.append(clearly_greater(smooth["test/precision"], without["test/precision"]))
        harmed.append(
            clearly_greater(without["test/precision"], smooth["test/precision"])
            or clearly_greater(without["test/modes_covered"], smooth["test/modes_covered"])
        )
        near, modes = ([mean(found[metric]) for found in (without, smooth)] for metric in SHOWN)
        said.append(
            f"{game}: {near[0]:.3f} without and {near[1]:.3f} with 0.1, of eight modes "
            f"{modes[0]:.1f} and {modes[1]:.1f}"
        )
    word = "does not hold"
    if any(helped):
        word = "holds in part" if any(harmed) or not all(helped) else "holds"
    return Verdict(word, f"The share of samples near the data, by {'; by '.join(said)}.")


def draw(figure: Any, measured: Measured) -> None:
    """Samples near the data and modes covered, by how much is smoothed."""
    for axes, metric in zip(figure.subplots(1, 2), SHOWN, strict=True):
        for game in UPDATES:
            found = [measured[f"{game}, {s:g}"][metric] for s in SMOOTHED]
            figures.band(axes, SMOOTHED, found, game)
        axes.set(xlabel="taken off the target of real examples", ylabel=SHOWN[metric])
    axes.legend(title="of the discriminator")
    figure.suptitle("Smoothed, a strong discriminator leaves good samples of fewer modes")


CLAIM = Claim(
    name="smoothing",
    title="One-sided label smoothing",
    claim="A target of 0.9 in place of 1 for real examples keeps the discriminator from being too "
    "sure of itself, and the generator learns better; generated ones keep their 0.",
    source="Salimans et al. 2016, Improved Techniques for Training GANs, arXiv:1606.03498, 3.4; "
    "Goodfellow 2016, NIPS Tutorial, arXiv:1701.00160, 4.2",
    varied="what is taken off the target, and how often the discriminator is updated",
    held="the non-saturating loss, a ring of eight Gaussians, two perceptrons, Adam, the "
    "generator's rate of 0.001 and the discriminator's of 0.002, 3,000 updates in batches of 128",
    experiment="gan",
    common=RING,
    setups=tuple(
        Setup(
            f"{game}, {share:g}",
            (f"--label_smoothing={share}", f"--discriminator_steps={updates}", RATE),
        )
        for game, updates in UPDATES.items()
        for share in SMOOTHED
    ),
    metrics=METRICS,
    judge=judge,
    draw=draw,
    seeds=5,
    minutes=12,
    quickly=("--steps=400",),
)

if __name__ == "__main__":
    claim.main(CLAIM)
