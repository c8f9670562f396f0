"""The multilayer perceptron: Rumelhart, Hinton and Williams 1986, Nature 323, pages 533-536.

python -m experiments.mlp --flagfile=experiments/flags/mlp_digits.flags
"""

import dataclasses

from experiments.harness import classification, training
from experiments.harness.cli import flag
from jaxdl import optim
from jaxdl.models.mlp import ACTIVATIONS


@dataclasses.dataclass(frozen=True)
class Config(classification.Config):
    """Trains a multilayer perceptron, by default on handwritten digits."""

    MODEL_FLAGS = ("width", "depth", "activation", "batch_norm", "dropout")

    experiment: str = flag("mlp", "which experiment this is", ("mlp",))
    model: str = flag("mlp", "the only one", ("mlp",))
    width: int = flag(256, "units in each hidden layer")
    depth: int = flag(2, "number of hidden layers; 0 for softmax regression")
    activation: str = flag("relu", "of the hidden layers", tuple(ACTIVATIONS))
    batch_norm: bool = flag(False, "a norm between each hidden layer and its activation")
    dropout: float = flag(0.2, "rate after each activation")
    epochs: float = flag(100.0, "passes over the training set, unless --steps is given")
    optimizer: str = flag("adam", "the method", tuple(optim.OPTIMIZERS))
    learning_rate: float = flag(0.002, "its peak")
    l2_penalty: float | None = flag(0.0, "weight of |params|^2 / 2 in what is minimized")
    label_smoothing: float = flag(0.1, "share of the uniform distribution in the target")


build = classification.build

if __name__ == "__main__":
    training.main(Config, build)
