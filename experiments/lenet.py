"""LeNet-5: LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition".

    python -m experiments.lenet --flagfile=experiments/flags/lenet_digits.flags

`--model=lenet5` is the network as it is taught; `--model=lenet5_1998` is the paper's own, with its
radial basis outputs and the loss that keeps them apart.
"""

import dataclasses

from jax.sharding import Mesh

from experiments.harness import classification, training
from experiments.harness.cli import flag, require
from jaxdl.models import lenet

# The paper's input: background at -0.1 and ink at 1.175.
MEAN, STD = 0.1 / 1.275, 1 / 1.275


@dataclasses.dataclass(frozen=True)
class Config(classification.Config):
    """Trains a LeNet-5, by default on handwritten digits."""

    experiment: str = flag("lenet", "which experiment this is", ("lenet",))
    model: str = flag("lenet5", "the form of LeNet-5", ("lenet5", "lenet5_1998"))
    image_size: int = flag(32, "height and width that images are resized to; 32 for LeNet-5")
    mean: tuple[float, ...] = flag((MEAN,), "subtracted from images in [0, 1]")
    std: tuple[float, ...] = flag((STD,), "what that is divided by")
    epochs: float = flag(80.0, "passes over the training set, unless --steps is given")
    learning_rate: float = flag(0.05, "its peak; 0.005 suits lenet5_1998, whose loss is steeper")
    label_smoothing: float = flag(0.0, "share of the uniform distribution in the target")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "image_size", self.image_size == 32, "32")
        own_loss = self.model == "lenet5_1998"
        smoothed = own_loss and self.label_smoothing > 0
        require(self, "label_smoothing", not smoothed, "0 with lenet5_1998, whose loss has none")
        require(self, "mix", not (own_loss and self.mix), "left out with lenet5_1998")


def build(config: Config, mesh: Mesh) -> training.Problem:
    """The Problem of training a LeNet-5, the paper's own with the paper's own loss."""
    if config.model != "lenet5_1998":
        return classification.build(config, mesh)
    loss = lambda logits, labels, label_smoothing: lenet.lenet5_1998_loss(logits, labels)
    return classification.build(config, mesh, loss)


if __name__ == "__main__":
    training.main(Config, build)
