"""Network in Network: Lin et al. 2013, arXiv:1312.4400.

python -m experiments.nin --flagfile=experiments/flags/nin_digits.flags
"""

import dataclasses

from experiments.harness import classification, training
from experiments.harness.cli import flag
from jaxdl import optim


@dataclasses.dataclass(frozen=True)
class Config(classification.Config):
    """Trains a Network in Network, by default a narrow one on handwritten digits."""

    MODEL_FLAGS = ("width", "small_images", "dropout")

    experiment: str = flag("nin", "which experiment this is", ("nin",))
    model: str = flag("nin_cifar", "the form of it", ("nin", "nin_cifar"))
    width: int | None = flag(48, "features of the first block; the model's own when empty")
    small_images: bool = flag(False, "for `nin`: the form for images of about 32x32")
    dropout: float | None = flag(None, "after the pools; the model's own when empty")
    image_size: int = flag(32, "height and width that images are resized to, in pixels")
    epochs: float = flag(20.0, "passes over the training set, unless --steps is given")
    optimizer: str = flag("adam", "the method", tuple(optim.OPTIMIZERS))
    learning_rate: float = flag(0.002, "its peak")
    l2_penalty: float | None = flag(0.0, "weight of |params|^2 / 2 in what is minimized")
    label_smoothing: float = flag(0.0, "share of the uniform distribution in the target")


build = classification.build

if __name__ == "__main__":
    training.main(Config, build)
