"""Linear models: one layer of weighted sums, and Rosenblatt's perceptron, their sign.

    model = linear(num_classes=1)
    variables = model.init(jax.random.key(0), jnp.zeros([1, 13]), train=False)
    outputs = model.apply(variables, rows, train=True)

What a weighted sum is depends on what is minimized: with `losses.mse` least squares (ridge with an
L2 penalty), with `losses.cross_entropy` softmax regression, with `losses.sigmoid_cross_entropy`
logistic regression, with `losses.perceptron` the perceptron. The layer is `fc`.

Rosenblatt, "The perceptron: a probabilistic model for information storage and organization in the
brain", Psychological Review 65, 1958, pages 386-408 (not on arXiv).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.nn import Typed, flatten


class Linear(Typed):
    """A linear model of the columns of a table, or of the pixels of images.

    Args:
      num_classes: number of outputs; with 0 the inputs are returned as vectors instead, float32.
      kernel_init: draws the weights, by default as Flax does. Biases start at zero.
      dtype, param_dtype: see `jaxdl.nn.Typed`.

    Shapes: rows [B, F], or any other [B, ...], of the size that it was initialized with to float32
    outputs [B, num_classes].

    State: `params`. Sows in `intermediates` `features`, the [B, F] that go into `fc`.

    Parameters at the defaults on images of 28x28x1: 7,850.
    """

    num_classes: int = 10
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return the weighted sums of a batch."""
        x = flatten(x).astype(self.dtype)
        self.sow("intermediates", "features", x)
        if self.num_classes:
            x = nn.Dense(self.num_classes, kernel_init=self.kernel_init, name="fc", **self.types)(x)
        return x.astype(jnp.float32)


class Perceptron(Linear):
    """Rosenblatt's perceptron: the signs of weighted sums, all weights zero at first.

    Descending `losses.perceptron` by single examples at a rate of 1 is its own rule: what is
    classified wrongly adds its inputs times its class, 1 or -1, to the weights, and its class to
    the bias. On classes that some weights separate it ends after at most (R / gamma)**2 mistakes,
    where R is the greatest norm of the inputs and gamma the margin of any weights of norm 1, both
    with a 1 among the inputs for the bias (Novikoff 1962, "On convergence proofs on perceptrons").

    Args:
      num_classes: number of outputs, each a perceptron of its own.
      kernel_init, dtype, param_dtype: see `Linear`.

    Shapes: as of `Linear`; the call returns the sums, which a loss needs, `classify` their signs.
    """

    num_classes: int = 1
    kernel_init: nn.initializers.Initializer = nn.initializers.zeros_init()

    def classify(self, x: jax.Array) -> jax.Array:
        """Return the classes of a batch, 1.0 or -1.0 [B, num_classes]; a sum of 0 is of class 1."""
        return jnp.where(self(x, train=False) >= 0, 1.0, -1.0)


linear = Linear

MODELS = {"linear": linear}
IMAGE_SHAPES = {"linear": (28, 28, 1)}
