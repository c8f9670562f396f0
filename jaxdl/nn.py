"""Layers, small operations and the start of the weights, where several networks need them."""

import dataclasses
import difflib
import math
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from jaxdl import InputError
from jaxdl.conv import convolve

# Makes a layer of which all but the sizes and the name is already set.
ModuleDef = Callable[..., Any]

Convolution: ModuleDef = partial(nn.Conv, conv_general_dilated=convolve)
"""Flax's convolution, which is quicker on CPUs (see `jaxdl.conv`)."""

INITIALIZERS: dict[str, tuple[nn.initializers.Initializer, float]] = {
    **{
        name: (getattr(nn.initializers, name)(), 1.0)
        for name in (
            *("glorot_uniform", "glorot_normal", "xavier_uniform", "xavier_normal"),
            *("he_uniform", "he_normal", "kaiming_uniform", "kaiming_normal"),
            *("lecun_uniform", "lecun_normal"),
        )
    },
    "orthogonal": (nn.initializers.orthogonal(), 1.0),
    "normal": (nn.initializers.normal(1.0), 0.01),
    "truncated_normal": (nn.initializers.truncated_normal(1.0), 0.01),
    "constant": (nn.initializers.constant(1.0), 0.01),
}
"""Each at a scale of 1, and the scale that it has by default."""


def initializer(name: str, scale: float | None = None) -> nn.initializers.Initializer:
    """Return the initializer of that name, Flax's own, with all that it draws times `scale`.

    With fan_in and fan_out the connections into and out of a unit (torch.nn.init counts the same),
    the variances at a scale of 1 are

    - `glorot_*`, also called `xavier_*`: 2 / (fan_in + fan_out) (Glorot, Bengio, "Understanding the
      difficulty of training deep feedforward neural networks", AISTATS 2010, not on arXiv);
    - `he_*`, also called `kaiming_*`: 2 / fan_in (He et al. 2015, arXiv:1502.01852);
    - `lecun_*`: 1 / fan_in (LeCun et al., "Efficient BackProp", 1998, not on arXiv);

    each uniform, or normal but cut off at two standard deviations and widened to that variance, as
    in TensorFlow (torch's are not cut off). `orthogonal` (Saxe et al. 2013, arXiv:1312.6120) has
    orthonormal columns, or rows where there are fewer of those, of the kernel as a matrix
    [fan_in, features].

    Args:
      name: a key of `INITIALIZERS`.
      scale: what torch calls the gain. For `normal` it is the standard deviation, for
        `truncated_normal` that of the distribution before it is cut off at two of them, and for
        `constant` the value. None for 0.01 in these three, and 1 in all others.

    Returns:
      (key, shape, dtype) -> a kernel [..., in, out].

    Raises:
      InputError: no such name, or a scale that is not finite.
    """
    if name not in INITIALIZERS:
        near = difflib.get_close_matches(name, INITIALIZERS)
        hint = f"near it: {', '.join(near)}; " if near else ""
        raise InputError(f"no initializer {name!r}; {hint}there are {', '.join(INITIALIZERS)}")
    draw, default = INITIALIZERS[name]
    factor = default if scale is None else scale
    if not math.isfinite(factor):
        raise InputError(f"the scale of an initializer must be a finite number, not {scale}")
    return lambda key, shape, dtype=jnp.float32: factor * draw(key, shape, dtype)


def redraw(key: jax.Array, params: Any, initializer: nn.initializers.Initializer) -> Any:
    """Return the parameters with every kernel drawn anew, and all else as it was.

    A kernel is what Flax calls so: the weights of a Dense or Conv layer, [..., in, out]. Biases,
    the scales of norms and embeddings keep what the network gave them. Kernels that it had set to
    zero, with `zero_init_last`, are drawn too.

    Args:
      key: a PRNG key. Each kernel's own follows from it and from the kernel's path, so that a
        layer more in one place changes nothing in another.
      params: nested dicts of arrays, as `model.init` returns them under `params`.
      initializer: (key, shape, dtype) -> array, such as `initializer("he_normal")`. It draws in
        float32 at least.
    """

    def draw(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.split("/")[-1] != "kernel":
            return leaf
        own = jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))
        wide = np.promote_types(leaf.dtype, jnp.float32)  # orthogonal has no narrower form
        return initializer(own, leaf.shape, wide).astype(leaf.dtype)

    return jax.tree.map_with_path(draw, params)


class Typed(nn.Module):
    """A network whose types can be chosen.

    Args:
      dtype: the compute type.
      param_dtype: the type that parameters are stored in.
    """

    _: dataclasses.KW_ONLY
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def types(self) -> dict[str, Any]:
        """Both, as a layer takes them."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}


class BatchNorm(nn.BatchNorm):
    """Flax's batch norm, which can take its statistics over parts of the batch.

    Across devices the statistics of a whole batch are a message for each layer and direction; those
    of each device's own rows are none, as each GPU has its own in Goyal et al. 2017
    (arXiv:1706.02677, section 4). Parts smaller than that, of about 32 examples in a large batch,
    are the ghost batches of Hoffer et al. 2017 (arXiv:1705.08741).

    Args:
      groups: into how many parts of neighbouring examples a batch is cut, each normalized by its
        own mean and variance. The running statistics are those of the parts on average. With 1 it
        is Flax's to the instruction; with more, features are the last axis, with scale and bias.

    Raises:
      InputError: a batch that does not divide into so many parts, or a mask with several.
    """

    groups: int = 1

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Return the normalized batch."""
        running = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        if self.groups == 1 or running:
            return super().__call__(x, use_running_average, mask=mask)
        if mask is not None:
            raise InputError("batch norms of several groups take no mask")
        if len(x) % self.groups:
            raise InputError(f"a batch of {len(x)} does not divide into {self.groups} norm groups")
        shape = x.shape[-1:]
        scale = self.param("scale", self.scale_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, shape, self.param_dtype)
        means = self.variable("batch_stats", "mean", jnp.zeros, shape)
        variances = self.variable("batch_stats", "var", jnp.ones, shape)

        parts = x.astype(np.promote_types(x.dtype, jnp.float32))
        parts = parts.reshape(self.groups, -1, *x.shape[1:])
        mean, var = parts.mean(range(1, x.ndim)), parts.var(range(1, x.ndim))
        if not self.is_initializing():
            for kept, new in ((means, mean), (variances, var)):
                kept.value = self.momentum * kept.value + (1 - self.momentum) * new.mean(0)
        apart = (slice(None), *[None] * (x.ndim - 1))
        y = (parts - mean[apart]) * jax.lax.rsqrt(var[apart] + self.epsilon)
        of_features = (None,) * x.ndim
        y = y * scale.astype(y.dtype)[of_features] + bias.astype(y.dtype)[of_features]
        return y.reshape(x.shape).astype(self.dtype or x.dtype)


class Normed(Typed):
    """A network with batch norms, whose statistics are float32 whatever the compute type.

    Args:
      dtype, param_dtype: see `Typed`.
      norm_momentum: the share of the running statistics that stays at each update; torch calls the
        rest momentum.
      norm_epsilon: what is added to a variance.
      axis_name: mapped axis (of `pmap`, `vmap` or `shard_map`) over which the norms average their
        statistics in training; None under plain `jit`, sharded or not.
      norm_groups: over how many parts of a batch they take their statistics (see `BatchNorm`).
    """

    _: dataclasses.KW_ONLY
    norm_momentum: float = 0.9
    norm_epsilon: float = 1e-5
    axis_name: str | None = None
    norm_groups: int = 1

    @nn.nowrap
    def norm(self, train: bool) -> ModuleDef:
        """What makes the network's batch norms."""
        return partial(
            BatchNorm,
            use_running_average=not train,
            momentum=self.norm_momentum,
            epsilon=self.norm_epsilon,
            axis_name=self.axis_name,
            groups=self.norm_groups,
            **self.types,
        )


class LocalResponseNorm(nn.Module):
    """Local response normalization: each value divided by the energy of its neighbour channels.

    With a sum over the `size` channels around its own, zeros beyond the first and the last, a value
    x becomes `x / (k + alpha / size * sum(x**2)) ** beta`. This is torch's definition and Caffe's:
    the paper (Krizhevsky et al. 2012, section 3.3) has `alpha` times the sum, not divided by
    `size`. Its n=5, alpha=1e-4, beta=0.75, k=2 are `LocalResponseNorm(5, 5e-4, 0.75, 2)` here.

    Args:
      size: number of channels summed over; of an even number one more lies before than after.
      alpha, beta, k: as above, torch's defaults.
      groups: parts of the channels; what lies in another is no neighbour.

    Shapes: [..., C] to [..., C], of the same type. Computes in float32 at least.

    State: none.
    """

    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer."""
        wide = x.astype(np.promote_types(x.dtype, jnp.float32))
        wide = wide.reshape(*x.shape[:-1], self.groups, -1) if self.groups > 1 else wide
        beyond = (self.size // 2, (self.size - 1) // 2)
        squares = jnp.pad(wide**2, [(0, 0)] * (wide.ndim - 1) + [beyond])
        # Shifted slices, which XLA fuses into one pass over the maps.
        total = sum(squares[..., i : i + wide.shape[-1]] for i in range(self.size))
        y = wide / (self.k + self.alpha / self.size * total) ** self.beta
        return y.reshape(x.shape).astype(x.dtype)


def adaptive_avg_pool(x: jax.Array, output_size: tuple[int, int]) -> jax.Array:
    """Return the means over a grid of `output_size` windows that cover the image, as torch's does.

    Window i of n over a side of H pixels goes from floor(i H / n) to ceil((i + 1) H / n), without
    the latter. Windows overlap where n does not divide H, and repeat pixels where n exceeds it.

    Shapes: [B, H, W, C] of any size to [B, *output_size, C], of the same type.
    """
    if x.shape[1:3] == output_size:
        return x
    rows, columns = (averages(h, n) for h, n in zip(x.shape[1:3], output_size, strict=True))
    wide = x.astype(np.promote_types(x.dtype, jnp.float32))
    operands = wide, rows.astype(wide.dtype), columns.astype(wide.dtype)
    means = jnp.einsum("bhwc,ih,jw->bijc", *operands, precision=jax.lax.Precision.HIGHEST)
    return means.astype(x.dtype)


def averages(size: int, windows: int) -> np.ndarray:
    """Return the matrix [windows, size] that takes a row of pixels to its adaptive means."""
    i, pixel = np.arange(windows)[:, None], np.arange(size)
    start, stop = i * size // windows, -(-(i + 1) * size // windows)
    inside = (start <= pixel) & (pixel < stop)
    return (inside / (stop - start)).astype(np.float32)


def flatten(x: jax.Array) -> jax.Array:
    """Return the maps [B, H, W, C] as vectors [B, C x H x W], channel by channel.

    That is the order in torch and Caffe, so that the dense layers of published weights fit as they
    are. Of any other [B, ..., C] the last axis comes first in the same way; [B, F] stays.
    """
    if x.ndim > 2:
        x = jnp.moveaxis(x, -1, 1)
    return x.reshape(x.shape[0], -1)


def tabulate(model: nn.Module, *inputs: Any, **kwargs: Any) -> str:
    """Return the table of a network's layers as plain text, 120 columns wide.

    Args:
      model: the network.
      inputs, kwargs: what it is called with, such as images and `train=False`.
    """
    # Flax would else write the codes of a terminal's colors, wherever the text goes.
    plain = {"width": 120, "force_terminal": False}
    return nn.tabulate(model, jax.random.key(0), console_kwargs=plain)(*inputs, **kwargs)


def check_image_size(
    model: nn.Module,
    images: jax.Array,
    smallest: int,
    as_small: int | None = None,
    part: str = "",
) -> None:
    """Raise InputError for what is no images [B, H, W, C] of at least so many pixels each way.

    Args:
      model: what they are given to.
      images: they.
      smallest: the least height and width.
      as_small: the same of the network with `small_images`, for the message; None where it has no
        such argument.
      part: of the model, such as "the head of ".
    """
    name = f"{part}{type(model).__name__}"
    if images.ndim != 4:
        raise InputError(f"{name} takes images [B, H, W, C], not {list(images.shape)}")
    height, width = images.shape[1:3]
    if min(height, width) < smallest:
        smaller = as_small is not None and as_small < smallest
        hint = f"; with small_images=True of at least {as_small}x{as_small}" if smaller else ""
        raise InputError(
            f"{name} takes images of at least {smallest}x{smallest} pixels, not "
            f"{height}x{width}{hint}"
        )
