"""Schedules and warm-up: what a rate that changes brings over a constant one.

python -m experiments.studies.schedules --quick
"""

from typing import Any

from experiments.harness import claim
from experiments.harness.claim import Claim, Measured, Setup, Verdict, clearly_greater, mean
from jaxdl import figures

WAYS: dict[str, tuple[str, ...]] = {
    "constant": ("--schedule=constant", "--warmup_epochs=0"),
    "constant, warm-up": ("--schedule=constant", "--warmup_epochs=2"),
    "constant, averaged weights": (
        *("--schedule=constant", "--warmup_epochs=0", "--ema_decay=0.98"),
    ),
    "exponential": ("--schedule=exponential", "--warmup_epochs=0"),
    "exponential, staircase": (
        *("--schedule=exponential", "--warmup_epochs=0", "--schedule_staircase"),
    ),
    "cosine": ("--schedule=cosine", "--warmup_epochs=0"),
    "cosine, warm-up": ("--schedule=cosine", "--warmup_epochs=2"),
}


def judge(measured: Measured) -> Verdict:
    """By the test loss, for on digits accuracies are near their end."""
    loss = {way: measured[way]["test/loss"] for way in WAYS}
    better = [way for way in WAYS if clearly_greater(loss["constant"], loss[way])]
    decays = [way for way in better if way.startswith(("exponential", "cosine"))]
    word = "holds" if len(decays) == 4 else "holds in part" if better else "does not hold"
    each = "; ".join(f"{way}: {mean(values):.4f}" for way, values in loss.items())
    return Verdict(
        word,
        f"Test losses: {each}. Clearly below a constant rate's: {'; '.join(better) or 'none'}.",
    )


def draw(figure: Any, measured: Measured) -> None:
    """Test loss and accuracy by schedule."""
    for axes, metric in zip(
        figure.subplots(1, 2, sharey=True), ("test/loss", "test/accuracy"), strict=True
    ):
        figures.bars(axes, {way: measured[way][metric] for way in WAYS}, metric)
        known = [v for way in WAYS for v in measured[way][metric] if v is not None]
        if metric == "test/accuracy" and known:
            axes.set_xlim(min(known) - 0.01, max(known) + 0.005)
    figure.suptitle("A rate that decays ends lower than one that does not")


CLAIM = Claim(
    name="schedules",
    title="Rates that decay, and rates that warm up",
    claim="A learning rate that decays ends at a lower loss than a constant one; a warm-up helps "
    "at high rates; averaged weights do what a decay does.",
    source="Loshchilov and Hutter 2016, arXiv:1608.03983; Goyal et al. 2017, arXiv:1706.02677; "
    "Izmailov et al. 2018, arXiv:1803.05407",
    varied="schedule, warm-up, moving averages of the weights",
    held="LeNet-5 on warped digits, momentum 0.9 at a rate of 0.1, 15 epochs in batches of 32",
    experiment="lenet",
    common=("--optimizer=momentum", "--learning_rate=0.1", "--epochs=15", "--label_smoothing=0"),
    setups=tuple(Setup(way, flags) for way, flags in WAYS.items()),
    metrics=("test/loss", "test/accuracy", "train/loss"),
    judge=judge,
    draw=draw,
    seeds=5,
    minutes=3,
    quickly=("--steps=150",),
)

if __name__ == "__main__":
    claim.main(CLAIM)
