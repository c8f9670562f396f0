"""AlexNet: Krizhevsky et al. 2012, "ImageNet Classification with Deep Convolutional Networks".

python -m experiments.alexnet --flagfile=experiments/flags/alexnet_digits.flags
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
    """Which form of an AlexNet."""

    model: str = flag("alexnet", "the form of AlexNet", ("alexnet", "alexnet_paper"))
    width: int | None = flag(24, "features of conv1; the model's own when empty")
    small_images: bool = flag(True, "the form for images of about 32x32")
    norm_within_towers: bool = flag(
        False, "of alexnet_paper: channels of the other tower are no neighbours; see --shard=model"
    )
    dropout: float | None = flag(None, "before fc6 and fc7; the model's own when empty")


@dataclasses.dataclass(frozen=True)
class Config(classification.Config):
    """Trains an AlexNet, by default a narrow one on handwritten digits."""

    run: RunFlags = RunFlags("alexnet")
    images: ImageDataFlags = ImageDataFlags(image_size=32)
    method: MethodFlags = MethodFlags(learning_rate=0.02)
    classifier: ClassifierFlags = ClassifierFlags(label_smoothing=0.0)
    network: Network = Network()


build = classification.build

if __name__ == "__main__":
    training.main(Config, build)
