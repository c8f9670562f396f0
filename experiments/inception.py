"""GoogLeNet and Inception: Szegedy et al. 2014, arXiv:1409.4842, and after.

    python -m experiments.inception --flagfile=experiments/flags/inception_digits.flags

Inception v2 is arXiv:1502.03167, v3 arXiv:1512.00567, v4 and Inception-ResNet arXiv:1602.07261.
"""

import dataclasses

from experiments.harness import classification, training
from experiments.harness.cli import flag
from jaxdl.models import googlenet


@dataclasses.dataclass(frozen=True)
class Config(classification.Config):
    """Trains a GoogLeNet or Inception, by default a narrow GoogLeNet on handwritten digits."""

    MODEL_FLAGS = ("width", "small_images", "dropout", "aux_logits")

    experiment: str = flag("inception", "which experiment this is", ("inception",))
    model: str = flag("googlenet", "one of them in jaxdl.models.names()")
    width: float | None = flag(0.25, "times the paper's features")
    small_images: bool = flag(True, "the form for images of about 32x32")
    dropout: float | None = flag(None, "before the last layer; the model's own when empty")
    aux_logits: bool = flag(False, "train auxiliary heads, weighted by --aux_weight")
    aux_weight: float = flag(googlenet.AUX_WEIGHT, "of the losses of auxiliary heads")
    epochs: float = flag(10.0, "passes over the training set, unless --steps is given")
    learning_rate: float = flag(0.05, "its peak")
    label_smoothing: float = flag(0.0, "share of the uniform distribution in the target")


build = classification.build

if __name__ == "__main__":
    training.main(Config, build)
