"""AlexNet: Krizhevsky et al. 2012, "ImageNet Classification with Deep Convolutional Networks".

python -m experiments.alexnet --flagfile=experiments/flags/alexnet_digits.flags
"""

import dataclasses

from experiments.harness import classification, training
from experiments.harness.cli import flag


@dataclasses.dataclass(frozen=True)
class Config(classification.Config):
    """Trains an AlexNet, by default a narrow one on handwritten digits."""

    MODEL_FLAGS = ("width", "small_images", "dropout")

    experiment: str = flag("alexnet", "which experiment this is", ("alexnet",))
    model: str = flag("alexnet", "the form of AlexNet", ("alexnet", "alexnet_paper"))
    width: int | None = flag(24, "features of conv1; the model's own when empty")
    small_images: bool = flag(True, "the form for images of about 32x32")
    dropout: float | None = flag(None, "before fc6 and fc7; the model's own when empty")
    image_size: int = flag(32, "height and width that images are resized to, in pixels")
    epochs: float = flag(30.0, "passes over the training set, unless --steps is given")
    learning_rate: float = flag(0.02, "its peak")
    label_smoothing: float = flag(0.0, "share of the uniform distribution in the target")


build = classification.build

if __name__ == "__main__":
    training.main(Config, build)
