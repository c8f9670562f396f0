"""Local response normalization: what it adds to a VGG, beside batch norms.

python -m experiments.studies.response_norm --quick
"""

from typing import Any

from experiments.harness import claim
from experiments.harness.claim import Claim, Measured, Setup, Verdict, clearly_greater, mean
from jaxdl import figures

MODELS = {"nothing": "vgg11", "response norm": "vgg11_lrn", "batch norms": "vgg11_bn"}


def judge(measured: Measured) -> Verdict:
    """By test accuracy, against nothing."""
    accuracy = {name: measured[name]["test/accuracy"] for name in MODELS}
    helps = clearly_greater(accuracy["response norm"], accuracy["nothing"])
    harms = clearly_greater(accuracy["nothing"], accuracy["response norm"])
    effect = "clearly more than" if helps else "clearly less than" if harms else "no other than"
    return Verdict(
        claim.word([helps]),
        f"With response normalization test accuracy is {mean(accuracy['response norm']):.4f}, "
        f"{effect} {mean(accuracy['nothing']):.4f} with nothing; with batch norms it is "
        f"{mean(accuracy['batch norms']):.4f}. Its constants are for pixels up to 255; here they "
        "are within 1.",
    )


def draw(figure: Any, measured: Measured) -> None:
    """Test error of each."""
    wrong = {name: claim.error(measured[name]["test/accuracy"]) for name in MODELS}
    figures.bars(figure.subplots(), wrong, "test error")
    figure.suptitle("Response normalization takes no error off; batch norms do")


CLAIM = Claim(
    name="response_norm",
    title="Local response normalization",
    claim="Dividing a map by what its neighbouring channels say aids generalization: it took 1.4 "
    "points off AlexNet's error.",
    source="Krizhevsky et al. 2012, ImageNet Classification with Deep Convolutional Neural "
    "Networks, 3.3; of no use to Simonyan and Zisserman 2014, arXiv:1409.1556, 4.1",
    varied="what follows the first convolution of a VGG-11, or with batch norms every one",
    held="a quarter of VGG's width, digits of 32x32 pixels, momentum 0.9 at a rate of 0.02, 12 "
    "epochs in batches of 32",
    experiment="vgg",
    common=("--width=16", "--learning_rate=0.02", "--epochs=12", "--augment="),
    setups=tuple(Setup(name, (f"--model={model}",)) for name, model in MODELS.items()),
    metrics=("train/loss", "train/accuracy", "test/accuracy"),
    judge=judge,
    draw=draw,
    seeds=3,
    minutes=6,
    quickly=("--steps=60",),
)

if __name__ == "__main__":
    claim.main(CLAIM)
