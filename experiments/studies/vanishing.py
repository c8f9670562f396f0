"""Vanishing gradients: sigmoid, tanh and ReLU by initialization, with and without batch norms.

python -m experiments.studies.vanishing --quick
"""

from typing import Any

from experiments.harness import claim
from experiments.harness.claim import (
    GRADIENT_RATIO,
    GRADIENTS,
    Claim,
    Measured,
    Setup,
    Verdict,
    mean,
)
from jaxdl import figures

ACTIVATIONS = ("sigmoid", "tanh", "relu")
INITS = {
    "too small (normal, 0.01)": ("--init=normal", "--init_scale=0.01"),
    "Xavier": ("--init=xavier_normal",),
    "Kaiming": ("--init=kaiming_normal",),
    "too large (normal, 1)": ("--init=normal", "--init_scale=1"),
}
NORMED = "Xavier and batch norms"
LEARNT = 0.8
"""The test accuracy from which on a network has learnt; a guess gets 0.1."""


def learnt(measured: Measured, activation: str) -> set[str]:
    """The initializations with which a network of this activation learns."""
    return {
        init
        for init in (*INITS, NORMED)
        if mean(measured[f"{activation}, {init}"]["test/accuracy"]) >= LEARNT
    }


def judge(measured: Measured) -> Verdict:
    """By which of them learn at all."""
    found = {activation: learnt(measured, activation) for activation in ACTIVATIONS}
    saturates = not found["sigmoid"] & set(INITS)
    cured = NORMED in found["sigmoid"]
    scaled = {"Xavier", "Kaiming"} <= found["relu"]
    small = all("too small (normal, 0.01)" not in learning for learning in found.values())
    true = [saturates, cured, scaled, small]
    word = claim.word(true)
    said = "; ".join(
        f"{activation} learns with {', '.join(sorted(learning)) or 'none of them'}"
        for activation, learning in found.items()
    )
    ratios = ", ".join(
        f"{mean(measured[f'{activation}, Xavier'][GRADIENT_RATIO]):.1e} with {activation}"
        for activation in ACTIVATIONS
    )
    return Verdict(
        word,
        f"Of eight layers, {said} (a test accuracy of {LEARNT} or more). At the first step the "
        f"first kernel's gradient over the last's is, by Xavier's initialization, {ratios}.",
    )


def draw(figure: Any, measured: Measured) -> None:
    """Test accuracy of each activation and initialization, and gradients by layer."""
    figure.set_size_inches(10, 6.5)
    accuracies, gradients = figure.subplots(2, len(ACTIVATIONS), sharey="row", sharex="row")
    for above, below, activation in zip(accuracies, gradients, ACTIVATIONS, strict=True):
        setups = {init: f"{activation}, {init}" for init in (*INITS, NORMED)}
        accuracy = {init: measured[setup]["test/accuracy"] for init, setup in setups.items()}
        figures.bars(above, accuracy, "test accuracy")
        above.set(title=activation, xlim=(0, 1), xticks=[0, 0.5, 1])
        claim.draw_gradients(below, measured, setups)
    for axes in gradients[1:]:
        axes.set(ylabel="")
    figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.suptitle("Eight sigmoid layers learn with batch norms or very large kernels alone")


CLAIM = Claim(
    name="vanishing",
    title="Gradients vanish through sigmoids, and through kernels of the wrong scale",
    claim="In a deep network gradients vanish where activations saturate or kernels are too small; "
    "kernels scaled to the fan keep them, and batch normalization does whatever the activation.",
    source="Glorot and Bengio 2010 (AISTATS); He et al. 2015, arXiv:1502.01852; Ioffe and Szegedy "
    "2015, arXiv:1502.03167",
    varied="activation, initialization, batch norms",
    held="eight layers of 64 units, digits, momentum 0.9 at a rate of 0.05, 40 epochs of 45 steps",
    experiment="mlp",
    common=(
        *("--depth=8", "--width=64", "--dropout=0", "--label_smoothing=0", "--augment="),
        *("--optimizer=momentum", "--learning_rate=0.05", "--epochs=40", "--l2_penalty=0"),
    ),
    setups=tuple(
        Setup(f"{activation}, {init}", (f"--activation={activation}", *flags))
        for activation in ACTIVATIONS
        for init, flags in {**INITS, NORMED: (*INITS["Xavier"], "--batch_norm")}.items()
    ),
    metrics=("test/accuracy", "train/loss", GRADIENT_RATIO),
    judge=judge,
    draw=draw,
    read=claim.with_gradients("fc1", "fc"),
    drawn=GRADIENTS,
    seeds=5,
    minutes=3,
    quickly=("--epochs=15",),
)

if __name__ == "__main__":
    claim.main(CLAIM)
