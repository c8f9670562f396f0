"""DenseNet: Huang et al. 2016, arXiv:1608.06993.

python -m experiments.densenet --flagfile=experiments/flags/densenet_digits.flags
"""

import dataclasses

from experiments.harness import classification, training
from experiments.harness.cli import flag


@dataclasses.dataclass(frozen=True)
class Config(classification.Config):
    """Trains a DenseNet, by default a shallow one on handwritten digits."""

    MODEL_FLAGS = ("growth_rate", "small_images", "dropout")

    experiment: str = flag("densenet", "which experiment this is", ("densenet",))
    model: str = flag("densenet40_bc_cifar", "a DenseNet of jaxdl.models.names()")
    growth_rate: int | None = flag(None, "features a layer adds; the model's own when empty")
    small_images: bool = flag(False, "for ImageNet's: the form for images of about 32x32")
    dropout: float | None = flag(None, "after each convolution; the model's own when empty")
    epochs: float = flag(10.0, "passes over the training set, unless --steps is given")
    learning_rate: float = flag(0.1, "its peak")
    label_smoothing: float = flag(0.0, "share of the uniform distribution in the target")


build = classification.build

if __name__ == "__main__":
    training.main(Config, build)
