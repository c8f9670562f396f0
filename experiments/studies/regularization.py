"""Regularization: what each of seven ways adds where examples are few.

python -m experiments.studies.regularization --quick
"""

from typing import Any

from experiments.harness import claim
from experiments.harness.claim import Claim, Measured, Setup, Verdict, clearly_greater, mean
from jaxdl import figures

COUNTS = (10, 100)
WAYS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "L1 penalty": ("--l1_penalty=0.0003",),
    "L2 penalty": ("--l2_penalty=0.003",),
    "dropout": ("--dropout=0.5",),
    "label smoothing": ("--label_smoothing=0.1",),
    "early stopping": ("--validation=0.2", "--early_stop=3", "--eval_every=25"),
    "augmentation": ("--augment=warp",),
}


def judge(measured: Measured) -> Verdict:
    """By the test loss against nothing, seed by seed."""
    of = lambda way, count: measured[f"{way}, {count} a class"]["test/loss"]
    others = [way for way in WAYS if way != "nothing"]
    better = {
        count: [w for w in others if clearly_greater(of("nothing", count), of(w, count))]
        for count in COUNTS
    }
    found = sum(map(len, better.values()))
    word = "does not hold" if not found else "holds in part"
    word = "holds" if found == len(others) * len(COUNTS) else word
    each = "; ".join(f"{way} {mean(of(way, min(COUNTS))):.3f}" for way in WAYS)
    said = "; ".join(
        f"with {count} examples of each class, {', '.join(ways) or 'none'}"
        for count, ways in better.items()
    )
    return Verdict(
        word,
        f"The test loss is clearly below that of nothing, {said}. With {min(COUNTS)} it is {each}.",
    )


def draw(figure: Any, measured: Measured) -> None:
    """Test accuracy by way, for few and for more examples."""
    panels = figure.subplots(1, len(COUNTS), sharey=True)
    for axes, count in zip(panels, COUNTS, strict=True):
        rows = {way: measured[f"{way}, {count} a class"]["test/accuracy"] for way in WAYS}
        figures.bars(axes, rows, "test accuracy")
        known = [value for values in rows.values() for value in values if value is not None]
        axes.set_xlim(min(known, default=0) - 0.02, min(1, max(known, default=1) + 0.01))
        axes.set_title(f"{count} examples of each class")
    figure.suptitle("What each way of regularization adds to a perceptron on digits")


CLAIM = Claim(
    name="regularization",
    title="What regularization adds where examples are few",
    claim="Penalties on the weights, dropout, label smoothing, early stopping and augmentation "
    "each narrow the gap between training and test.",
    source="Goodfellow, Bengio and Courville 2016, Deep Learning, chapter 7; Srivastava et al. "
    "2014 (JMLR 15); Szegedy et al. 2015, arXiv:1512.00567",
    varied="one way of regularization at a time, and the number of examples",
    held="two ReLU layers of 256 units, digits, Adam at a rate of 0.002, 600 steps of 32 examples; "
    "each way at one strength, not tuned",
    experiment="mlp",
    common=(
        *("--dropout=0", "--label_smoothing=0", "--augment=", "--l2_penalty=0", "--steps=600"),
    ),
    setups=tuple(
        Setup(f"{way}, {count} a class", (f"--per_class={count}", *flags))
        for count in COUNTS
        for way, flags in WAYS.items()
    ),
    metrics=("train/accuracy", "test/accuracy", "test/loss"),
    judge=judge,
    draw=draw,
    seeds=5,
    minutes=1,
    quickly=("--steps=200",),
)

if __name__ == "__main__":
    claim.main(CLAIM)
