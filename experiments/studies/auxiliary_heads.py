"""GoogLeNet's auxiliary heads: what they bring, without and with batch norms.

python -m experiments.studies.auxiliary_heads --quick
"""

from typing import Any

from experiments.harness import claim
from experiments.harness.claim import Claim, Measured, Setup, Verdict, clearly_greater, mean
from jaxdl import figures

MODELS = {"paper's, no norms": "googlenet_paper", "with batch norms": "googlenet"}
METRICS = ("train/accuracy", "test/accuracy")


def judge(measured: Measured) -> Verdict:
    """By test accuracy."""
    found, helped, harmed = [], [], []
    for kind in (kind for kind in MODELS if f"{kind}, none" in measured):
        with_heads, without = (
            measured[f"{kind}, {heads}"]["test/accuracy"] for heads in ("heads", "none")
        )
        helped.append(clearly_greater(with_heads, without))
        harmed.append(clearly_greater(without, with_heads))
        found.append(f"{kind}, {mean(with_heads):.3f} with heads and {mean(without):.3f} without")
    word = claim.word(helped)
    harm = " Where they change much, they harm." if any(harmed) and not any(helped) else ""
    return Verdict(word, f"Test accuracy: {'; '.join(found)}.{harm}")


def draw(figure: Any, measured: Measured) -> None:
    """Accuracy of each, in training and in the test."""
    for axes, metric in zip(figure.subplots(1, 2, sharey=True), METRICS, strict=True):
        figures.bars(axes, {name: found[metric] for name, found in measured.items()}, metric)
    figure.suptitle("Auxiliary heads add a little, most where there are no norms")


CLAIM = Claim(
    name="auxiliary_heads",
    title="GoogLeNet's auxiliary heads",
    claim="Classifiers on maps in mid-network bring gradients to the layers below them, and "
    "regularize: the network learns better with them.",
    source="Szegedy et al. 2014, Going Deeper with Convolutions, arXiv:1409.4842, 5; doubted by "
    "Szegedy et al. 2015, arXiv:1512.00567, 4",
    varied="auxiliary heads, whose losses count 0.3 each, and batch norms",
    held="an eighth of GoogLeNet's width, digits of 32x32 pixels, Adam at a rate of 0.001 (at that "
    "width the paper's form hardly learns by momentum), 6 epochs in batches of 32",
    experiment="inception",
    common=(
        *("--image_size=32", "--epochs=6", "--augment=", "--width=0.125"),
        *("--optimizer=adam", "--learning_rate=0.001"),
    ),
    setups=tuple(
        Setup(f"{kind}, {heads}", (f"--model={model}", *flags))
        for kind, model in MODELS.items()
        for heads, flags in {"none": (), "heads": ("--aux_logits",)}.items()
    ),
    metrics=("train/loss", *METRICS),
    judge=judge,
    draw=draw,
    seeds=3,
    minutes=25,
    quickly=("--steps=40", "--image_size=16"),
    quick_setups=("with batch norms, none", "with batch norms, heads"),
)

if __name__ == "__main__":
    claim.main(CLAIM)
