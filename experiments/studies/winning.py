"""What tells a discriminator that has won: a ring of eight Gaussians, by how much it learns.

python -m experiments.studies.winning --quick
"""

from collections.abc import Iterator
from typing import Any

from scipy import stats

from experiments.harness import claim
from experiments.harness.claim import Claim, Measured, Setup, Verdict, mean

LOSSES = ("minimax", "non_saturating")
DISCRIMINATORS = {
    "1 at 0.0005": (1, 5e-4),
    "5 at 0.0005": (5, 5e-4),
    "5 at 0.002": (5, 2e-3),
    "5 at 0.008": (5, 8e-3),
}
"""{how strong it is: (updates for each of the generator, whose rate is 0.001, and their rate)}"""
WON = 0.99
"""The share of either kind that a discriminator tells which has won."""


def judge(measured: Measured) -> Verdict:
    """Over all runs: is more told where less is covered, and has who lost no gradient left?"""
    runs = {loss: list(_runs(measured, loss)) for loss in LOSSES}
    told, covered = ([run[i] for of in runs.values() for run in of] for i in (0, 2))
    varies = len(set(told)) > 1 and len(set(covered)) > 1
    correlation = float(stats.spearmanr(told, covered).statistic) if varies else 0.0
    lost = [gradient for told, gradient, *_ in runs["minimax"] if told >= WON]
    learns = [gradient for told, gradient, *_ in runs["minimax"] if told < WON]
    sign = correlation < -0.5
    vanished = bool(lost) and bool(learns) and mean(lost) < 0.01 * mean(learns)
    word = claim.word([sign, vanished])
    gone = f" and of {mean(lost):.2g} in the {len(lost)} where it has won" if lost else ""
    return Verdict(
        word,
        "Over all runs the rank correlation of what the discriminator tells and of the modes that "
        f"samples cover is {correlation:.2f}. Under the minimax loss the generator's gradient has "
        f"a norm of {mean(learns):.2g} where the discriminator errs{gone}.",
    )


def _runs(measured: Measured, loss: str) -> Iterator[tuple[float, float, float, float]]:
    """Of each run of a loss: what is told of the kind told worse, and the three other metrics."""
    for name, found in measured.items():
        if name.startswith(loss):
            for real, fake, *others in zip(*(found[metric] for metric in METRICS), strict=True):
                if None not in (real, fake, *others):
                    yield min(real, fake), *others


def draw(figure: Any, measured: Measured) -> None:
    """Each run: what the discriminator tells, and what samples cover."""
    for axes, place, label in zip(
        figure.subplots(1, 2), (2, 3), ("modes covered, of 8", "share near the data"), strict=True
    ):
        for loss in LOSSES:
            runs = list(_runs(measured, loss))
            told, values = ([run[i] for run in runs] for i in (0, place))
            axes.plot(told, values, "o", alpha=0.6, label=loss.replace("_", "-"))
        axes.set(xlabel="told apart, of the kind told worse", ylabel=f"samples: {label}")
    axes.legend()
    figure.suptitle("The more surely a discriminator tells, the fewer modes its generator covers")


RING = (
    "--dataset=ring",
    "--model=mlp",
    "--width=128",
    "--discriminator_width=64",
    "--pieces=2",
    "--learning_rate=0.001",
    "--b1=0",
    "--batch_size=128",
    "--steps=3000",
    "--samples=2000",
)
"""Flags of a short game of two perceptrons."""
METRICS = (
    "train/real_accuracy",
    "train/fake_accuracy",
    "train/generator_gradient_norm",
    "test/modes_covered",
    "test/precision",
)

CLAIM = Claim(
    name="winning",
    title="What tells a winning discriminator",
    claim="A generator learns from a discriminator that errs. The more surely it tells real from "
    "generated, the less of the data do samples cover; one that never errs has won, and leaves the "
    "minimax loss without a gradient.",
    source="Goodfellow et al. 2014, arXiv:1406.2661, 3; Arjovsky and Bottou 2017, arXiv:1701.04862",
    varied="how often and at what rate the discriminator learns, and the generator's loss",
    held="a ring of eight Gaussians, two perceptrons, Adam, the generator's rate of 0.001, 3,000 "
    "updates in batches of 128",
    experiment="gan",
    common=RING,
    setups=tuple(
        Setup(
            f"{loss}, {name}",
            (
                f"--loss={loss}",
                f"--discriminator_steps={updates}",
                f"--discriminator_learning_rate={rate}",
            ),
        )
        for loss in LOSSES
        for name, (updates, rate) in DISCRIMINATORS.items()
    ),
    metrics=METRICS,
    judge=judge,
    draw=draw,
    seeds=5,
    minutes=10,
    quickly=("--steps=400",),
)

if __name__ == "__main__":
    claim.main(CLAIM)
