"""Residual networks: He et al. 2015, "Deep Residual Learning for Image Recognition".

    python -m experiments.resnet --flagfile=experiments/flags/resnet_digits.flags

arXiv:1512.03385; the pre-activation form is arXiv:1603.05027.
"""

import dataclasses

from experiments.harness import classification, training
from experiments.harness.classification import NetworkFlags
from experiments.harness.cli import flag
from experiments.harness.run import RunFlags


@dataclasses.dataclass(frozen=True)
class Network(NetworkFlags):
    """Which form of a residual network."""

    width: int | None = flag(None, "features of the first stage; the paper's when not given")
    shortcut: str = flag(
        "", "of the CIFAR networks: A pads, B projects; A when empty", ("", "A", "B")
    )
    zero_init_last: bool = flag(False, "start each residual branch at zero (Goyal et al. 2017)")


@dataclasses.dataclass(frozen=True)
class Config(classification.Config):
    """Trains a residual network, by default a ResNet-20 on handwritten digits."""

    run: RunFlags = RunFlags("resnet")
    network: Network = Network()


build = classification.build

if __name__ == "__main__":
    training.main(Config, build)
