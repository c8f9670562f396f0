"""The multilayer perceptron: layers that are each connected to all of the layer before.

    model = mlp(depth=6, activation="sigmoid", batch_norm=True)
    variables = model.init(jax.random.key(0), jnp.zeros([1, 28, 28, 1]), train=False)
    logits, state = model.apply(variables, images, train=True, mutable=["batch_stats"])

The layers are `fc1`, `fc2` and so on, their norms `bn1`, `bn2` ..., and `fc` makes the logits.

Rumelhart, Hinton, Williams, "Learning representations by back-propagating errors", Nature 323,
1986, pages 533-536 (not on arXiv).
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl import InputError
from jaxdl.nn import ModuleDef, Normed, flatten

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sigmoid": nn.sigmoid,
    "tanh": nn.tanh,
    "relu": nn.relu,
    "leaky_relu": nn.leaky_relu,  # a slope of 0.01 below zero
    "elu": nn.elu,
    "selu": nn.selu,
    "gelu": partial(nn.gelu, approximate=False),
    "silu": nn.silu,  # also called swish
    "softplus": nn.softplus,
    "relu6": nn.relu6,
    "hard_tanh": nn.hard_tanh,
}


class MLP(Normed):
    """A multilayer perceptron on the pixels of images, or on the columns of a table.

    The paper's units are sigmoids and its weights start uniform between -0.3 and 0.3; here they are
    drawn as Flax does, with variance 1 / fan_in.

    Args:
      num_classes: number of logits; with 0 the `features` are returned instead, float32.
      width: units in each hidden layer.
      depth: number of hidden layers; without any it is softmax regression.
      activation: of the hidden layers, a key of `ACTIVATIONS`.
      batch_norm: a norm between each hidden layer and its activation (Ioffe, Szegedy 2015,
        arXiv:1502.03167). The layers keep their biases.
      dropout: rate of the dropout after each activation.
      dtype, param_dtype, norm_momentum, norm_epsilon, axis_name: see `jaxdl.nn.Normed`.

    Shapes: images [B, H, W, C], or any other [B, ...], of the size that it was initialized with to
    float32 logits [B, num_classes].

    State: `params`, and with batch norm `batch_stats` which training updates. Dropout draws from
    the stream `dropout` in training. Sows in `intermediates` `hidden1` to the last, the [B, width]
    after each activation, and `features`, the [B, F] that go into `fc`.

    Parameters at the defaults on images of 28x28x1: 269,322.

    Raises:
      InputError: a width below 1, a depth below 0, or an activation that there is not.
    """

    num_classes: int = 10
    width: int = 256
    depth: int = 2
    activation: str = "relu"
    batch_norm: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what makes no perceptron."""
        if self.width < 1:
            raise InputError(f"mlp takes a width of at least 1, not {self.width}")
        if self.depth < 0:
            raise InputError(f"mlp takes a depth of at least 0, not {self.depth}")
        if self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise InputError(f"mlp takes an activation out of {known}, not {self.activation!r}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return the logits of a batch."""
        dense: ModuleDef = partial(nn.Dense, **self.types)
        norm = self.norm(train)
        x = flatten(x).astype(self.dtype)
        for i in range(1, self.depth + 1):
            x = dense(self.width, name=f"fc{i}")(x)
            if self.batch_norm:
                x = norm(name=f"bn{i}")(x)
            x = ACTIVATIONS[self.activation](x)
            self.sow("intermediates", f"hidden{i}", x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        self.sow("intermediates", "features", x)
        x = dense(self.num_classes, name="fc")(x) if self.num_classes else x
        return x.astype(jnp.float32)


mlp = MLP

MODELS = {"mlp": mlp}
IMAGE_SHAPES = {"mlp": (28, 28, 1)}
