"""VGG: Simonyan and Zisserman 2014, arXiv:1409.1556.

python -m experiments.vgg --flagfile=experiments/flags/vgg_digits.flags
"""

import dataclasses

from experiments.harness import classification, training
from experiments.harness.cli import flag


@dataclasses.dataclass(frozen=True)
class Config(classification.Config):
    """Trains a VGG network, by default a narrow VGG-11 with batch norm on handwritten digits."""

    MODEL_FLAGS = ("width", "small_images", "dropout")

    experiment: str = flag("vgg", "which experiment this is", ("vgg",))
    model: str = flag("vgg11_bn", "a VGG of jaxdl.models.names()")
    width: int | None = flag(16, "features of the first stage; the model's own when empty")
    small_images: bool = flag(True, "the form for images of about 32x32")
    dropout: float | None = flag(None, "before fc7 and fc8; the model's own when empty")
    image_size: int = flag(32, "height and width that images are resized to, in pixels")
    epochs: float = flag(15.0, "passes over the training set, unless --steps is given")
    learning_rate: float = flag(0.05, "its peak")
    label_smoothing: float = flag(0.0, "share of the uniform distribution in the target")


build = classification.build

if __name__ == "__main__":
    training.main(Config, build)
