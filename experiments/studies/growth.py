"""DenseNet's growth rate: how few maps a layer has to add.

python -m experiments.studies.growth --quick
"""

from typing import Any

from experiments.harness import claim
from experiments.harness.claim import Claim, Measured, Setup, Verdict, clearly_greater, mean
from jaxdl import figures

GROWTH = (2, 4, 8, 12)
WIDTHS = (2, 4, 9, 13)
"""Of ResNet-20: each has about as many parameters as the DenseNet of 40 layers beside it."""


def judge(measured: Measured) -> Verdict:
    """Whether few maps are enough, and whether a ResNet of as many parameters falls behind."""
    dense = {k: measured[f"DenseNet-40, {k} maps a layer"]["test/accuracy"] for k in GROWTH}
    wide = {w: measured[f"ResNet-20, width {w}"]["test/accuracy"] for w in WIDTHS}
    pairs = [(dense[k], wide[w]) for k, w in zip(GROWTH, WIDTHS, strict=True)]
    grows = clearly_greater(dense[8], dense[2]) and not clearly_greater(dense[12], dense[8])
    behind = sum(clearly_greater(a, b) for a, b in pairs)
    ahead = sum(clearly_greater(b, a) for a, b in pairs)
    word = claim.word([grows, behind > ahead])
    by_rate = ", ".join(f"{mean(dense[k]):.3f} at {k}" for k in GROWTH)
    by_width = ", ".join(f"{mean(found):.3f}" for found in wide.values())
    return Verdict(
        word,
        f"By the maps that a layer adds test accuracy is {by_rate}; ResNets of as many parameters "
        f"reach {by_width}. At {behind} of {len(pairs)} sizes the DenseNet is clearly ahead, at "
        f"{ahead} the ResNet.",
    )


def draw(figure: Any, measured: Measured) -> None:
    """Test accuracy by the number of parameters."""
    axes = figure.subplots()
    for kind in ("DenseNet-40", "ResNet-20"):
        rows = [found for name, found in measured.items() if name.startswith(kind)]
        sizes = [mean(found["parameters"]) for found in rows]
        figures.band(axes, sizes, [found["test/accuracy"] for found in rows], kind)
    axes.set(xscale="log", xlabel="parameters", ylabel="test accuracy")
    axes.legend()
    figure.suptitle("Few maps a layer are enough, since every later layer sees them")


CLAIM = Claim(
    name="growth",
    title="DenseNet's growth rate",
    claim="Layers that see the maps of all layers before them need to add few of their own: with a "
    "growth rate of 12 a DenseNet of 40 layers has learned what there is, and it does so with "
    "fewer parameters than a ResNet.",
    source="Huang et al. 2016, Densely Connected Convolutional Networks, arXiv:1608.06993, 3 and 5",
    varied="maps that a layer adds, and ResNets of as many parameters",
    held="digits of 8x8 pixels, momentum 0.9 at a rate of 0.1, 10 epochs in batches of 32",
    experiment="densenet",
    common=("--image_size=8", "--epochs=10", "--augment=", "--label_smoothing=0"),
    setups=(
        *(Setup(f"DenseNet-40, {k} maps a layer", (f"--growth_rate={k}",)) for k in GROWTH),
        *(Setup(f"ResNet-20, width {w}", (f"--width={w}",), "resnet") for w in WIDTHS),
    ),
    metrics=("parameters", "train/loss", "test/accuracy"),
    judge=judge,
    draw=draw,
    seeds=5,
    minutes=12,
    quickly=("--steps=100",),
)

if __name__ == "__main__":
    claim.main(CLAIM)
