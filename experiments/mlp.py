"""The multilayer perceptron: Rumelhart, Hinton and Williams 1986, Nature 323, pages 533-536.

python -m experiments.mlp --flagfile=experiments/flags/mlp_digits.flags
"""

import dataclasses

from experiments.harness import classification, training
from experiments.harness.classification import NetworkFlags
from experiments.harness.cli import flag
from experiments.harness.method import MethodFlags
from experiments.harness.run import RunFlags
from jaxdl.models.mlp import ACTIVATIONS


@dataclasses.dataclass(frozen=True)
class Network(NetworkFlags):
    """Which form of a multilayer perceptron."""

    model: str = flag("mlp", "the only one", ("mlp",))
    width: int = flag(256, "units in each hidden layer")
    depth: int = flag(2, "number of hidden layers; 0 for softmax regression")
    activation: str = flag("relu", "of the hidden layers", tuple(ACTIVATIONS))
    batch_norm: bool = flag(False, "a norm between each hidden layer and its activation")
    dropout: float = flag(0.2, "rate after each activation")


@dataclasses.dataclass(frozen=True)
class Config(classification.Config):
    """Trains a multilayer perceptron, by default on handwritten digits."""

    run: RunFlags = RunFlags("mlp", epochs=100.0)
    method: MethodFlags = MethodFlags(optimizer="adam", learning_rate=0.002, l2_penalty=0.0)
    network: Network = Network()


build = classification.build

if __name__ == "__main__":
    training.main(Config, build)
