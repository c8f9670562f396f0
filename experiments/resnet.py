"""Residual networks: He et al. 2015, "Deep Residual Learning for Image Recognition".

    python -m experiments.resnet --flagfile=experiments/flags/resnet_digits.flags

arXiv:1512.03385; the pre-activation form is arXiv:1603.05027.
"""

import dataclasses
from typing import Any

from experiments import classification, training
from experiments.cli import flag


@dataclasses.dataclass(frozen=True)
class Config(classification.Config):
    """Trains a residual network, by default a ResNet-20 on handwritten digits."""

    experiment: str = flag("resnet", "which experiment this is", ("resnet",))
    zero_init_last: bool = flag(False, "start each residual branch at zero (Goyal et al. 2017)")

    @property
    def model_arguments(self) -> dict[str, Any]:
        """What the flags of this experiment alone say of the model."""
        return {"zero_init_last": True} if self.zero_init_last else {}


build = classification.build

if __name__ == "__main__":
    training.main(Config, build)
