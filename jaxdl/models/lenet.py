"""LeNet-5: the form it is taught in, and the network of the 1998 paper to the last weight.

LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition",
Proceedings of the IEEE 86(11), 1998, pages 2278-2324 (not on arXiv).
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from jaxdl import InputError
from jaxdl.conv import NHWC, convolve
from jaxdl.nn import Convolution, ModuleDef, Typed
from jaxdl.pooling import avg_pool
from jaxdl.published import Published


class LeNet5(Typed):
    """LeNet-5 as it is taught: convolutions, average pools, tanh, and a linear output.

    Departures from the paper (`LeNet5Of1998` has none of these): C3 sees all the maps of S2, the
    pools neither weigh nor squash, the squashing function is a plain tanh, the output is linear,
    and weights are drawn as Flax does.

    Args:
      num_classes: number of logits; with 0 the `features` are returned instead, float32.
      dtype, param_dtype: see `jaxdl.nn.Typed`.

    Shapes: images [B, 32, 32, C] to float32 logits [B, num_classes]. Any other height or width
    raises InputError; digits of 28x28 are padded by 2 on every side.

    State: `params`. Draws no random numbers; `train` changes nothing. Sows `features`, the states
    of F6 [B, 84], in `intermediates`.

    Parameters at one channel and 10 classes: 61,706 (C1 156, C3 2,416, C5 48,120, F6 10,164,
    output 850).
    """

    num_classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return the logits of a batch of images."""
        if x.shape[1:3] != (32, 32):
            raise InputError(f"lenet5 takes images [B, 32, 32, C], not {list(x.shape)}")
        conv: ModuleDef = partial(Convolution, kernel_size=(5, 5), padding="VALID", **self.types)
        dense: ModuleDef = partial(nn.Dense, **self.types)

        x = nn.tanh(conv(6, name="c1")(x))
        x = avg_pool(x, (2, 2), strides=(2, 2))
        x = nn.tanh(conv(16, name="c3")(x))
        x = avg_pool(x, (2, 2), strides=(2, 2))
        x = nn.tanh(conv(120, name="c5")(x))
        x = x.squeeze((1, 2))
        x = nn.tanh(dense(84, name="f6")(x))
        self.sow("intermediates", "features", x)
        x = dense(self.num_classes, name="output")(x) if self.num_classes else x
        return x.astype(jnp.float32)


# Table I of the paper: the X in row i mark the maps of C3 that see map i of S2. Six maps see three
# neighbouring maps, six see four, three see two pairs of neighbours, and the last sees all.
C3_TABLE = """
X . . . X X X . . X X X X . X X
X X . . . X X X . . X X X X . X
X X X . . . X X X . . X . X X X
. X X X . . X X X X . . X . X X
. . X X X . . X X X X . X X . X
. . . X X X . . X X X X . X X X
"""

# What F6 should be for each digit: drawn anew here after the stylised ASCII digits of the paper's
# Figure 3, 7 pixels wide and 12 high. As there, digits easily confused have codes close together.
DIGITS = """
..###..  ...#...  .#####.  #######  .....#.  #######  ...###.  #######  .#####.  .####..
.#...#.  ..##...  #.....#  .....#.  ....##.  #......  ..#....  #.....#  #.....#  #....#.
#.....#  .###...  ......#  ....#..  ...#.#.  #......  .#.....  ......#  #.....#  #.....#
#.....#  ...#...  ......#  ...#...  ..#..#.  #......  #......  .....#.  #.....#  #.....#
#.....#  ...#...  .....#.  ..###..  ..#..#.  #.###..  #......  .....#.  .#...#.  #.....#
#.....#  ...#...  ....#..  .....#.  .#...#.  ##...#.  #.###..  ....#..  ..###..  .#...##
#.....#  ...#...  ...#...  ......#  #....#.  ......#  ##...#.  ....#..  .#...#.  ..###.#
#.....#  ...#...  ..#....  ......#  #######  ......#  #.....#  ...#...  #.....#  ......#
#.....#  ...#...  .#.....  ......#  .....#.  ......#  #.....#  ...#...  #.....#  ......#
#.....#  ...#...  #......  ......#  .....#.  #.....#  #.....#  ..#....  #.....#  .....#.
.#...#.  ...#...  #......  #.....#  .....#.  .#...#.  .#...#.  ..#....  #.....#  ....#..
..###..  .#####.  #######  .#####.  .....#.  ..###..  ..###..  .#.....  .#####.  .###...
"""


def read_marks(drawing: str, mark: str) -> np.ndarray:
    """Return the drawing as booleans [rows, words, letters], true where the letter is `mark`."""
    lines = drawing.strip().splitlines()
    return np.array(
        [[[letter == mark for letter in word] for word in line.split()] for line in lines]
    )


# [60] input map and [60] output map of each of C3's connections.
C3_INPUTS, C3_OUTPUTS = np.nonzero(read_marks(C3_TABLE, "X")[:, :, 0])

# [10, 84], +1 on a digit's ink and -1 elsewhere, read row by row.
DIGIT_CODES = np.where(read_marks(DIGITS, "#").swapaxes(0, 1).reshape(10, 84), 1.0, -1.0)


def squash(x: jax.Array) -> jax.Array:
    """Return 1.7159 tanh(2x/3), which is +-1 at +-1 and bends the most there."""
    return 1.7159 * jnp.tanh(2 / 3 * x)


def uniform_by_fan_in(fan_in: int | np.ndarray) -> Callable[..., jax.Array]:
    """Return the initializer of Appendix A, uniform between -2.4 / fan_in and 2.4 / fan_in."""

    def init(key, shape, dtype=jnp.float32):
        limit = jnp.broadcast_to(jnp.asarray(2.4 / fan_in, dtype), shape)
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


class Subsample(Typed):
    """The layers S2 and S4: the sum of 2x2 pixels, a coefficient and a bias for each map, squashed.

    Shapes: [B, H, W, C] to [B, H / 2, W / 2, C]. Parameters: 2 C.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer."""
        maps = (x.shape[-1],)
        coefficient = self.param("coefficient", uniform_by_fan_in(4), maps, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, maps, self.param_dtype)
        x, coefficient, bias = promote_dtype(x, coefficient, bias, dtype=self.dtype)
        x = 4 * avg_pool(x, (2, 2), strides=(2, 2))
        return squash(x * coefficient.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1))


class TableConv(Typed):
    """The layer C3: a 5x5 convolution in which each map sees some of the input maps, squashed.

    Its `kernel` [5, 5, 60] holds the connections that exist. They are scattered into a full kernel
    with zeros elsewhere, so that one ordinary convolution does the work.

    Shapes: [B, H, W, 6] to [B, H - 4, W - 4, 16]. Parameters: 1,516.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer."""
        fan_in = 25 * np.bincount(C3_OUTPUTS)[C3_OUTPUTS]
        shape = (5, 5, len(C3_OUTPUTS))
        kernel = self.param("kernel", uniform_by_fan_in(fan_in), shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (16,), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        full = jnp.zeros((5, 5, 6, 16), kernel.dtype)
        full = full.at[:, :, C3_INPUTS, C3_OUTPUTS].set(kernel)
        x = convolve(x, full, (1, 1), "VALID", dimension_numbers=NHWC)
        return squash(x + bias.reshape(1, 1, 1, -1))


class LeNet5Of1998(Typed):
    """LeNet-5 as the paper describes it (section II.B), an RBF for each digit as its output.

    Departure: biases, of whose start the paper says nothing, start at zero.

    Args:
      num_classes: 10, or 0 for the `features` in place of the logits, float32.
      dtype, param_dtype: see `jaxdl.nn.Typed`. The output layer computes in float32.

    Shapes: images [B, 32, 32, 1], the digit centred, background at -0.1 and ink at 1.175, to
    float32 logits [B, 10]: the negative squared distances of F6 from `DIGIT_CODES`, for which the
    loss is `lenet5_1998_loss`. Any other shape raises InputError.

    State: `params`. Draws no random numbers; `train` changes nothing. Sows `features`, the states
    of F6 [B, 84], in `intermediates`.

    Parameters: 60,000 (C1 156, S2 12, C3 1,516, S4 32, C5 48,120, F6 10,164). The codes are none.

    Raises:
      InputError: images of another shape, or another number of classes.
    """

    num_classes: int = 10

    def __post_init__(self) -> None:
        """Refuse classes that are not the ten digits."""
        if self.num_classes not in (0, 10):
            raise InputError(
                f"lenet5_1998 has drawn codes for 10 classes, not num_classes={self.num_classes}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return the logits of a batch of images."""
        if x.shape[1:] != (32, 32, 1):
            raise InputError(f"lenet5_1998 takes images [B, 32, 32, 1], not {list(x.shape)}")
        conv: ModuleDef = partial(Convolution, kernel_size=(5, 5), padding="VALID", **self.types)
        dense: ModuleDef = partial(nn.Dense, **self.types)

        x = squash(conv(6, kernel_init=uniform_by_fan_in(25), name="c1")(x))
        x = Subsample(name="s2", **self.types)(x)
        x = TableConv(name="c3", **self.types)(x)
        x = Subsample(name="s4", **self.types)(x)
        x = squash(conv(120, kernel_init=uniform_by_fan_in(400), name="c5")(x))
        x = x.squeeze((1, 2))
        x = squash(dense(84, kernel_init=uniform_by_fan_in(120), name="f6")(x))
        self.sow("intermediates", "features", x)
        if not self.num_classes:
            return x.astype(jnp.float32)
        codes = jnp.asarray(DIGIT_CODES, jnp.float32)
        return -jnp.square(x.astype(jnp.float32)[:, None, :] - codes[None]).sum(axis=-1)


def lenet5_1998_loss(logits: jax.Array, labels: jax.Array, j: float | jax.Array = 1.0) -> jax.Array:
    """Return the paper's loss of each example, `y_label + log(exp(-j) + sum_i exp(-y_i))`.

    This is equation 9 before its mean, with the penalties `y = -logits`. It pulls the label's
    penalty down and pushes the others up until they are beyond j, a positive constant whose value
    the paper does not give.

    Args:
      logits: [B, 10], of `lenet5_1998`.
      labels: [B], integers.
      j: the penalty of the rubbish class, from which on others are left alone.

    Shapes: to [B], of the logits' type.
    """
    label_logits = jnp.take_along_axis(logits, labels[:, None], axis=-1).squeeze(-1)
    return jnp.logaddexp(-j, jax.nn.logsumexp(logits, axis=-1)) - label_logits


lenet5 = LeNet5
lenet5_1998 = LeNet5Of1998

MODELS = {"lenet5": lenet5, "lenet5_1998": lenet5_1998}
IMAGE_SHAPES = dict.fromkeys(MODELS, (32, 32, 1))
PUBLISHED = {"lenet5_1998": Published(60_000, None, "LeCun et al. 1998, section II.B")}
