"""GoogLeNet and Inception: Szegedy et al. 2014, arXiv:1409.4842, and after.

    python -m experiments.inception --flagfile=experiments/flags/inception_digits.flags

Inception v2 is arXiv:1502.03167, v3 arXiv:1512.00567, v4 and Inception-ResNet arXiv:1602.07261.
"""

import dataclasses

from experiments.harness import classification, training
from experiments.harness.classification import ClassifierFlags, NetworkFlags
from experiments.harness.cli import flag
from experiments.harness.method import MethodFlags
from experiments.harness.run import RunFlags
from jaxdl.models import googlenet


@dataclasses.dataclass(frozen=True)
class Network(NetworkFlags):
    """Which form of a GoogLeNet or Inception."""

    model: str = flag("googlenet", "one of them in jaxdl.models.names()")
    width: float | None = flag(0.25, "times the paper's features")
    small_images: bool = flag(True, "the form for images of about 32x32")
    dropout: float | None = flag(None, "before the last layer; the model's own when empty")
    branches: tuple[str, ...] = flag((), "of GoogLeNet's modules, such as 1x1,3x3; all when empty")
    aux_logits: bool = flag(False, "train auxiliary heads, weighted by --aux_weight")


@dataclasses.dataclass(frozen=True)
class Config(classification.Config):
    """Trains a GoogLeNet or Inception, by default a narrow GoogLeNet on handwritten digits."""

    run: RunFlags = RunFlags("inception", epochs=10.0)
    method: MethodFlags = MethodFlags(learning_rate=0.05)
    classifier: ClassifierFlags = ClassifierFlags(
        label_smoothing=0.0, aux_weight=googlenet.AUX_WEIGHT
    )
    network: Network = Network()


build = classification.build

if __name__ == "__main__":
    training.main(Config, build)
