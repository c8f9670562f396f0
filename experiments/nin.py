"""Network in Network: Lin et al. 2013, arXiv:1312.4400.

python -m experiments.nin --flagfile=experiments/flags/nin_digits.flags
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
    """Which form of a Network in Network."""

    model: str = flag("nin_cifar", "the form of it", ("nin", "nin_cifar"))
    width: int | None = flag(48, "features of the first block; the model's own when empty")
    small_images: bool = flag(False, "for `nin`: the form for images of about 32x32")
    dropout: float | None = flag(None, "after the pools; the model's own when empty")


@dataclasses.dataclass(frozen=True)
class Config(classification.Config):
    """Trains a Network in Network, by default a narrow one on handwritten digits."""

    run: RunFlags = RunFlags("nin", epochs=20.0)
    images: ImageDataFlags = ImageDataFlags(image_size=32)
    method: MethodFlags = MethodFlags(optimizer="adam", learning_rate=0.002, l2_penalty=0.0)
    classifier: ClassifierFlags = ClassifierFlags(label_smoothing=0.0)
    network: Network = Network()


build = classification.build

if __name__ == "__main__":
    training.main(Config, build)
