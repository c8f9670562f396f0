"""DenseNet: Huang et al. 2016, arXiv:1608.06993.

python -m experiments.densenet --flagfile=experiments/flags/densenet_digits.flags
"""

import dataclasses

from experiments.harness import classification, training
from experiments.harness.classification import ClassifierFlags, NetworkFlags
from experiments.harness.cli import flag
from experiments.harness.run import RunFlags


@dataclasses.dataclass(frozen=True)
class Network(NetworkFlags):
    """Which form of a DenseNet."""

    model: str = flag("densenet40_bc_cifar", "a DenseNet of jaxdl.models.names()")
    growth_rate: int | None = flag(None, "features a layer adds; the model's own when empty")
    small_images: bool = flag(False, "for ImageNet's: the form for images of about 32x32")
    dropout: float | None = flag(None, "after each convolution; the model's own when empty")


@dataclasses.dataclass(frozen=True)
class Config(classification.Config):
    """Trains a DenseNet, by default a shallow one on handwritten digits."""

    run: RunFlags = RunFlags("densenet", epochs=10.0)
    classifier: ClassifierFlags = ClassifierFlags(label_smoothing=0.0)
    network: Network = Network()


build = classification.build

if __name__ == "__main__":
    training.main(Config, build)
