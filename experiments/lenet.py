"""LeNet-5: LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition".

    python -m experiments.lenet --flagfile=experiments/flags/lenet_digits.flags

`--model=lenet5` is the network as it is taught; `--model=lenet5_1998` is the paper's own, with its
radial basis outputs and the loss that keeps them apart.
"""

import dataclasses

from jax.sharding import Mesh

from experiments.harness import classification, training
from experiments.harness.classification import ClassifierFlags, NetworkFlags
from experiments.harness.cli import flag, require
from experiments.harness.image_data import ImageDataFlags
from experiments.harness.method import MethodFlags
from experiments.harness.problem import Problem
from experiments.harness.run import RunFlags
from jaxdl.models import lenet

# The paper's input: background at -0.1 and ink at 1.175.
MEAN, STD = 0.1 / 1.275, 1 / 1.275


@dataclasses.dataclass(frozen=True)
class Network(NetworkFlags):
    """Which form of a LeNet-5."""

    model: str = flag("lenet5", "the form of LeNet-5", ("lenet5", "lenet5_1998"))


@dataclasses.dataclass(frozen=True)
class Config(classification.Config):
    """Trains a LeNet-5, by default on handwritten digits."""

    run: RunFlags = RunFlags("lenet", epochs=80.0)
    images: ImageDataFlags = ImageDataFlags(image_size=32)
    method: MethodFlags = MethodFlags(learning_rate=0.05)
    classifier: ClassifierFlags = ClassifierFlags(mean=(MEAN,), std=(STD,), label_smoothing=0.0)
    network: Network = Network()

    def __post_init__(self) -> None:
        """Raises InputError for what the paper's own form does not have."""
        super().__post_init__()
        require(self, "image_size", self.images.image_size == 32, "32")
        own_loss = self.network.model == "lenet5_1998"
        smoothed = own_loss and self.classifier.label_smoothing > 0
        require(self, "label_smoothing", not smoothed, "0 with lenet5_1998, whose loss has none")
        mixed = own_loss and self.augmentation.mix
        require(self, "mix", not mixed, "left out with lenet5_1998")


def build(config: Config, mesh: Mesh) -> Problem:
    """The Problem of training a LeNet-5, the paper's own with the paper's own loss."""
    if config.network.model != "lenet5_1998":
        return classification.build(config, mesh)
    loss = lambda logits, labels, label_smoothing: lenet.lenet5_1998_loss(logits, labels)
    return classification.build(config, mesh, loss)


if __name__ == "__main__":
    training.main(Config, build)
