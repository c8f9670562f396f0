"""Optimizers: each at the best of a sweep of rates, and how much the rate matters.

python -m experiments.studies.optimizers --quick
"""

import math
from typing import Any

import numpy as np

from experiments.harness import claim
from experiments.harness.claim import Claim, Measured, Setup, Verdict, clearly_greater, mean

OPTIMIZERS = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "lion")
RATES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
METRIC = "train/loss"


def best(measured: Measured, optimizer: str) -> float:
    """The rate with the least training loss; a rate at which a seed diverged is none."""

    def loss(rate: float) -> float:
        values = measured[f"{optimizer}, {rate:g}"][METRIC]
        return math.inf if None in values else mean(values)

    return min(RATES, key=loss)


def judge(measured: Measured) -> Verdict:
    """By the training loss of each at its best rate, against plain gradient descent's."""
    found = {o: measured[f"{o}, {best(measured, o):g}"][METRIC] for o in OPTIMIZERS}
    faster = [o for o in OPTIMIZERS[1:] if clearly_greater(found["sgd"], found[o])]
    word = claim.word([o in faster for o in OPTIMIZERS[1:]])
    each = ", ".join(f"{o} {mean(v):.4f} at {best(measured, o):g}" for o, v in found.items())
    return Verdict(
        word,
        f"Training losses at each one's best rate: {each}. Clearly below sgd's: "
        f"{', '.join(faster) or 'none'}.",
    )


def draw(figure: Any, measured: Measured) -> None:
    """The training loss by optimizer and rate, as a heat map."""
    axes = figure.subplots()
    table = np.array([[mean(measured[f"{o}, {r:g}"][METRIC]) for r in RATES] for o in OPTIMIZERS])
    shown = np.log10(np.maximum(table, 1e-6))
    image = axes.imshow(shown, aspect="auto", cmap="cividis_r")
    middle = (np.nanmin(shown) + np.nanmax(shown)) / 2 if np.isfinite(shown).any() else 0.0
    for row, optimizer in enumerate(OPTIMIZERS):
        for column, rate in enumerate(RATES):
            value = table[row, column]
            text = "diverged" if math.isnan(value) else f"{value:.2g}"
            weight = "bold" if rate == best(measured, optimizer) else "normal"
            color = "white" if shown[row, column] > middle else "black"
            axes.text(
                *(column, row, text), ha="center", va="center", size=7, weight=weight, color=color
            )
    axes.set_xticks(range(len(RATES)), [f"{rate:g}" for rate in RATES])
    axes.set_yticks(range(len(OPTIMIZERS)), OPTIMIZERS)
    axes.set(xlabel="learning rate")
    axes.grid(False)
    figure.colorbar(image, label="log10 of the training loss")
    axes.set_title("Every optimizer has its own range of rates; its best in bold")


CLAIM = Claim(
    name="optimizers",
    title="Optimizers, each at its best rate",
    claim="Momentum and adaptive methods reduce the training loss faster than plain gradient "
    "descent.",
    source="Kingma and Ba 2014, arXiv:1412.6980; compared as Choi et al. 2019 would have it, "
    "arXiv:1910.05446: each at the best of its own rates",
    varied="optimizer, learning rate",
    held="two ReLU layers of 64 units, digits, 400 steps of 32 examples, other hyperparameters at "
    "their defaults",
    experiment="mlp",
    common=(
        *("--width=64", "--dropout=0", "--label_smoothing=0", "--augment=", "--l2_penalty=0"),
        *("--steps=400", "--schedule=constant", "--warmup_epochs=0"),
    ),
    setups=tuple(
        Setup(f"{optimizer}, {rate:g}", (f"--optimizer={optimizer}", f"--learning_rate={rate:g}"))
        for optimizer in OPTIMIZERS
        for rate in RATES
    ),
    metrics=(METRIC, "test/accuracy"),
    judge=judge,
    draw=draw,
    seeds=5,
    minutes=2,
    quickly=("--steps=100",),
)

if __name__ == "__main__":
    claim.main(CLAIM)
