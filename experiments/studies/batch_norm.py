"""Batch normalization: the range of learning rates that train, with and without.

python -m experiments.studies.batch_norm --quick
"""

from typing import Any

from experiments.harness import claim
from experiments.harness.claim import Claim, Measured, Setup, Verdict, mean
from jaxdl import figures

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
KINDS = {"without": (), "with": ("--batch_norm",)}
TRAINED = 0.85


def trained(measured: Measured, kind: str) -> list[float]:
    """The rates at which every seed ends above `TRAINED`."""
    found = []
    for rate in RATES:
        values = measured[f"{kind}, rate {rate:g}"]["test/accuracy"]
        if all(value is not None and value >= TRAINED for value in values):
            found.append(rate)
    return found


def judge(measured: Measured) -> Verdict:
    """By the ratio of the greatest to the least rate that trains."""
    ranges = {kind: trained(measured, kind) for kind in KINDS}
    ratios = {kind: max(r) / min(r) if r else 0.0 for kind, r in ranges.items()}
    wider = ratios["with"] > ratios["without"]
    higher = max(ranges["with"], default=0.0) > max(ranges["without"], default=0.0)
    word = claim.word([wider, higher])
    said = " and ".join(
        f"{kind} batch norms " + (f"from {min(r):g} to {max(r):g}" if r else "at none of the rates")
        for kind, r in ranges.items()
    )
    return Verdict(word, f"All seeds reach a test accuracy of {TRAINED} {said}.")


def draw(figure: Any, measured: Measured) -> None:
    """Test accuracy by learning rate."""
    axes = figure.subplots()
    for kind in KINDS:
        found = [measured[f"{kind}, rate {rate:g}"]["test/accuracy"] for rate in RATES]
        figures.band(axes, RATES, found, f"{kind} batch norms")
    axes.set(xscale="log", xlabel="learning rate", ylabel="test accuracy", ylim=(0, 1))
    axes.legend()
    best = max(mean(measured[s.name]["test/accuracy"]) for s in CLAIM.setups)
    axes.set_title(f"Batch norms widen the range of rates that train (best: {best:.3f})")


CLAIM = Claim(
    name="batch_norm",
    title="Batch normalization widens the range of learning rates",
    claim="Batch normalization permits much higher learning rates, and makes training less "
    "sensitive to them.",
    source="Ioffe and Szegedy 2015, arXiv:1502.03167, 3.3",
    varied="batch norms, learning rate",
    held="six ReLU layers of 64 units, digits, plain gradient descent, 15 epochs in batches of 32",
    experiment="mlp",
    common=(
        *("--depth=6", "--width=64", "--dropout=0", "--label_smoothing=0", "--augment="),
        *("--optimizer=sgd", "--l2_penalty=0", "--epochs=15", "--warmup_epochs=0"),
    ),
    setups=tuple(
        Setup(f"{kind}, rate {rate:g}", (*flags, f"--learning_rate={rate:g}"))
        for kind, flags in KINDS.items()
        for rate in RATES
    ),
    metrics=("test/accuracy", "train/loss"),
    judge=judge,
    draw=draw,
    seeds=5,
    minutes=1,
    quickly=("--epochs=6",),
)

if __name__ == "__main__":
    claim.main(CLAIM)
