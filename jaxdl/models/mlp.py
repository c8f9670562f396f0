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
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from jaxdl import InputError
from jaxdl.nn import flatten

# Makes a layer of which all but the sizes and the name is already set.
ModuleDef = Callable[..., Any]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sigmoid": nn.sigmoid,
    "tanh": nn.tanh,
    "relu": nn.relu,
    "leaky_relu": nn.leaky_relu,  # a slope of 0.01 below zero
    "elu": nn.elu,
    "selu": nn.selu,
    "gelu": partial(nn.gelu, approximate=False),
}


class MLP(nn.Module):
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
        norm_momentum, norm_epsilon: of the batch norms: the share of the running statistics that
            stays at each update (torch calls the rest momentum), and what is added to a variance.
        dtype, param_dtype: the compute type, and the type parameters are stored in. Batch
            statistics are float32.
        axis_name: mapped axis (of `pmap`, `vmap` or `shard_map`) over which the batch norms average
            their statistics in training; None under plain `jit`, sharded or not.

    Shapes: images [B, H, W, C], or any other [B, ...], of the size that it was initialized with to
    float32 logits [B, num_classes].

    State: `params`, and with batch norm `batch_stats` which training updates. Dropout draws from
    the stream `dropout` in training. Sows in `intermediates` `hidden1` to the last, the [B, width]
    after each activation, and `features`, the [B, F] that go into `fc`.
    """

    num_classes: int
    width: int
    depth: int
    activation: str
    batch_norm: bool
    dropout: float
    norm_momentum: float
    norm_epsilon: float
    dtype: Dtype
    param_dtype: Dtype
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return the logits of a batch."""
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense: ModuleDef = partial(nn.Dense, **types)
        norm: ModuleDef = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=self.norm_momentum,
            epsilon=self.norm_epsilon,
            axis_name=self.axis_name,
            **types,
        )
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


def mlp(
    *,
    num_classes: int = 10,
    width: int = 256,
    depth: int = 2,
    activation: str = "relu",
    batch_norm: bool = False,
    dropout: float = 0.0,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> MLP:
    """Return an `MLP`, which describes the arguments.

    Parameters at the defaults on images of 28x28x1: 269,322.

    Raises InputError for a width below 1, a depth below 0 and an activation it does not know.
    """
    if width < 1:
        raise InputError(f"mlp takes a width of at least 1, not {width}")
    if depth < 0:
        raise InputError(f"mlp takes a depth of at least 0, not {depth}")
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise InputError(f"mlp takes an activation out of {known}, not {activation!r}")
    return MLP(
        num_classes=num_classes,
        width=width,
        depth=depth,
        activation=activation,
        batch_norm=batch_norm,
        dropout=dropout,
        norm_momentum=norm_momentum,
        norm_epsilon=norm_epsilon,
        dtype=dtype,
        param_dtype=param_dtype,
        axis_name=axis_name,
    )
