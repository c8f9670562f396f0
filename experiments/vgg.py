"""VGG: Simonyan and Zisserman 2014, arXiv:1409.1556.

python -m experiments.vgg --flagfile=experiments/flags/vgg_digits.flags
"""

import dataclasses

from experiments.harness import classification, training
from experiments.harness.classification import ClassifierFlags, NetworkFlags
from experiments.harness.cli import flag
from experiments.harness.image_data import ImageDataFlags
from experiments.harness.method import MethodFlags
from experiments.harness.run import RunFlags


@dataclasses.dataclass(frozen=True)
class Network(NetworkFlags):
    """Which form of a VGG network."""

    model: str = flag("vgg11_bn", "a VGG of jaxdl.models.names()")
    width: int | None = flag(16, "features of the first stage; the model's own when empty")
    small_images: bool = flag(True, "the form for images of about 32x32")
    dropout: float | None = flag(None, "before fc7 and fc8; the model's own when empty")


@dataclasses.dataclass(frozen=True)
class Config(classification.Config):
    """Trains a VGG network, by default a narrow VGG-11 with batch norm on handwritten digits."""

    run: RunFlags = RunFlags("vgg", epochs=15.0)
    images: ImageDataFlags = ImageDataFlags(image_size=32)
    method: MethodFlags = MethodFlags(learning_rate=0.05)
    classifier: ClassifierFlags = ClassifierFlags(label_smoothing=0.0)
    network: Network = Network()


build = classification.build

if __name__ == "__main__":
    training.main(Config, build)
