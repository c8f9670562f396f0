"""Convolutional networks as tables: layers, and modules of branches side by side.

    module = mixed(branch1=(Conv(64),), branch2=(Conv(48), Conv(64, 5)), pool=(MAX_HALVE,))

Tables are made of named tuples, which say what there is; the modules below them say what it does.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.nn import ModuleDef
from jaxdl.pooling import avg_pool, max_pool


class Conv(NamedTuple):
    """A convolution without bias, a batch norm and a relu."""

    features: int
    size: int | tuple[int, int] = 1
    stride: int = 1
    padded: bool = True  # by half the kernel, which at stride 1 keeps height and width


class Split(NamedTuple):
    """Two convolutions of the same maps, their outputs concatenated."""

    a: Conv
    b: Conv


class Depthwise(NamedTuple):
    """A padded convolution of each map on its own into `multiplier` maps, and nothing after it."""

    multiplier: int
    size: int
    stride: int


class Pool(NamedTuple):
    """A pool with windows of 3x3."""

    kind: str  # "max" or "avg"
    stride: int = 1
    padded: bool = True  # by a pixel on every side
    count_include_pad: bool = False  # in the averages, as zeros


Branch: TypeAlias = tuple[Conv | Split | Pool, ...]


class Mixed(NamedTuple):
    """An Inception module: branches side by side, their outputs concatenated.

    With a `residual_scale` it is residual, `relu(x + residual_scale * conv2d(concatenated))`, where
    `conv2d` is linear, 1x1 and brings the branches to the features of `x`.
    """

    branches: tuple[tuple[str, Branch], ...]
    residual_scale: float | None = None
    residual_relu: bool = True


Stage: TypeAlias = Mapping[str, Conv | Depthwise | Pool | Mixed]


# What halves height and width has no padding, as `valid` has none.
valid = partial(Conv, padded=False)
halve = partial(Conv, size=3, stride=2, padded=False)
MAX_HALVE = Pool("max", stride=2, padded=False)
AVG = Pool("avg")
AVG_OF_PADDED = Pool("avg", count_include_pad=True)


def mixed(**branches: Branch) -> Mixed:
    """Return the module of these branches."""
    return Mixed(tuple(branches.items()))


def residual(scale: float, **branches: Branch) -> Mixed:
    """Return the residual module of these branches."""
    return Mixed(tuple(branches.items()), scale)


def pool(spec: Pool, x: jax.Array) -> jax.Array:
    """Apply the pool."""
    strides = (spec.stride, spec.stride)
    padding = [(1, 1), (1, 1)] if spec.padded else "VALID"
    if spec.kind == "max":
        return max_pool(x, (3, 3), strides, padding)
    return avg_pool(x, (3, 3), strides, padding, spec.count_include_pad)


def depthwise(spec: Depthwise, conv: ModuleDef, x: jax.Array, name: str) -> jax.Array:
    """Apply the convolution, which `conv` makes."""
    multiplier, size, stride = spec
    maps = x.shape[-1]
    layout = {"strides": stride, "padding": size // 2, "feature_group_count": maps}
    return conv(maps * multiplier, (size, size), name=name, **layout)(x)


class ConvNorm(nn.Module):
    """The layers of a `Conv`, its features multiplied by `width`."""

    spec: Conv
    width: float
    conv: ModuleDef
    norm: ModuleDef

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layers."""
        features, size, stride, padded = self.spec
        features = max(1, round(self.width * features))
        size = (size, size) if isinstance(size, int) else size
        padding = [(side // 2, side // 2) for side in size] if padded else "VALID"
        x = self.conv(features, size, strides=stride, padding=padding, name="conv")(x)
        return nn.relu(self.norm(name="bn")(x))


class MixedBlock(nn.Module):
    """The layers of a `Mixed`.

    The convolutions of a branch are numbered after its name if there is more than one, and those of
    a `Split` lettered: `branch1`, `branch2_0`, `branch2_1a`, `branch2_1b`. Pools are not counted.

    Args:
      spec: the row of the table.
      first: number of a branch's first convolution.
      conv, conv_norm: make a convolution, and a `ConvNorm` of a `Conv`.

    Shapes: [B, H, W, C] to [B, H', W', F], H and W but for strides and for what is not padded.
    """

    spec: Mixed
    first: int
    conv: ModuleDef
    conv_norm: ModuleDef

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the module."""
        branches, scale, relu = self.spec
        y = jnp.concatenate([self.run(*branch, x) for branch in branches], axis=-1)
        if scale is None:
            return y
        y = x + scale * self.conv(x.shape[-1], (1, 1), use_bias=True, name="conv2d")(y)
        return nn.relu(y) if relu else y

    def run(self, name: str, branch: Branch, x: jax.Array) -> jax.Array:
        """Return the output of one branch."""
        convs = [spec for spec in branch if not isinstance(spec, Pool)]
        numbers = iter(range(self.first, self.first + len(convs)))
        for spec in branch:
            if isinstance(spec, Pool):
                x = pool(spec, x)
                continue
            number = next(numbers)
            label = f"{name}_{number}" if len(convs) > 1 else name
            if isinstance(spec, Split):
                a = self.conv_norm(spec.a, name=f"{label}a")(x)
                b = self.conv_norm(spec.b, name=f"{label}b")(x)
                x = jnp.concatenate([a, b], axis=-1)
            else:
                x = self.conv_norm(spec, name=label)(x)
        return x


class AuxHead(nn.Module):
    """The auxiliary classifier of Inception v3, on the maps before the last reduction.

    Shapes: [B, H, W, C] to [B, num_classes], of at least 5x5 after the pool if there is one.
    """

    num_classes: int
    pooled: bool
    conv_norm: ModuleDef
    dense: ModuleDef

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the auxiliary logits."""
        if self.pooled:
            x = avg_pool(x, (5, 5), (3, 3))
        x = self.conv_norm(Conv(128), name="conv0")(x)
        x = self.conv_norm(Conv(768, 5, padded=False), name="conv1")(x)
        return self.dense(self.num_classes, name="fc")(x.mean(axis=(1, 2)))


def apply_layer(
    spec: Conv | Depthwise | Pool | Mixed,
    name: str,
    x: jax.Array,
    conv: ModuleDef,
    conv_norm: ModuleDef,
    block: ModuleDef,
) -> jax.Array:
    """Apply a row of a stage; the last three make its convolution, `ConvNorm` or `MixedBlock`."""
    match spec:
        case Conv():
            return conv_norm(spec, name=name)(x)
        case Depthwise():
            return depthwise(spec, conv, x, name)
        case Pool():
            return pool(spec, x)
        case Mixed():
            return block(spec, name=name)(x)
