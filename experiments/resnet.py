"""Residual networks: He et al. 2015, "Deep Residual Learning for Image Recognition".

    python -m experiments.resnet --flagfile=experiments/flags/resnet_digits.flags

arXiv:1512.03385; the pre-activation form is arXiv:1603.05027.
"""

import dataclasses

from experiments import classification, training
from experiments.cli import flag, require


@dataclasses.dataclass(frozen=True)
class Config(classification.Config):
    """Trains a residual network, by default a ResNet-20 on handwritten digits."""

    MODEL_FLAGS = ("width", "shortcut", "zero_init_last")

    experiment: str = flag("resnet", "which experiment this is", ("resnet",))
    width: int | None = flag(None, "features of the first stage; the paper's when not given")
    shortcut: str = flag(
        "", "of the CIFAR networks: A pads, B projects; A when empty", ("", "A", "B")
    )
    zero_init_last: bool = flag(False, "start each residual branch at zero (Goyal et al. 2017)")

    def __post_init__(self) -> None:
        require(self, "width", self.width is None or self.width >= 1, "at least 1")
        super().__post_init__()


build = classification.build

if __name__ == "__main__":
    training.main(Config, build)
