"""Pooling that is quick on CPUs too, as `flax.linen`'s otherwise.

XLA on CPUs takes five to fifteen times as long for the gradient of a maximum as the shifted slices
of the image do, one for each place in the window, that are compared and put back here. On every
other platform the programs are those of `jax.lax.reduce_window`.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad, batching

from jaxdl.lowering import computed, operation

Pads = tuple[tuple[int, int], tuple[int, int]]


class Windows(NamedTuple):
    """Where windows lie on images [B, H, W, C], vertically and horizontally.

    Attributes:
      size: of a window.
      strides: pixels from window to window.
      padding: (before, after), around the image.
      image: height and width.
    """

    size: tuple[int, int]
    strides: tuple[int, int]
    padding: Pads
    image: tuple[int, int]


def max_pool(
    x: jax.Array,
    window_shape: tuple[int, int],
    strides: tuple[int, int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> jax.Array:
    """Return the greatest value in each window; of several the first has the gradient.

    Args:
      x: images [B, H, W, C].
      window_shape, strides, padding: as in `flax.linen.max_pool`; strides of None are 1.
    """
    return max_p.bind(x, geometry=_windows(x, window_shape, strides, padding))


def avg_pool(
    x: jax.Array,
    window_shape: tuple[int, int],
    strides: tuple[int, int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    count_include_pad: bool = True,
) -> jax.Array:
    """Return the mean of each window.

    Args:
      x: images [B, H, W, C].
      window_shape, strides, padding: as in `flax.linen.avg_pool`; strides of None are 1.
      count_include_pad: whether pixels of the padding count, as zeros.
    """
    windows = _windows(x, window_shape, strides, padding)
    total = sum_p.bind(x, geometry=windows)
    if count_include_pad:
        return total / math.prod(window_shape)
    return total / sum_p.bind(jnp.ones((1, *windows.image, 1), x.dtype), geometry=windows)


def _windows(x: jax.Array, size: Any, strides: Any, padding: Any) -> Windows:
    strides = strides or (1, 1)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], size, strides, padding)
    (top, bottom), (left, right) = padding
    pads = (int(top), int(bottom)), (int(left), int(right))
    return Windows(tuple(size), tuple(strides), pads, (x.shape[1], x.shape[2]))


# What the operations are: jax.lax's.


def _reduce(x, g, start, function):
    whole = lambda sizes: (1, *sizes, 1)
    padding = ((0, 0), *g.padding, (0, 0))
    return lax.reduce_window(x, start, function, whole(g.size), whole(g.strides), padding)


def _max(x, geometry):
    return _reduce(x, geometry, -jnp.inf, lax.max)


def _sum(x, geometry):
    return _reduce(x, geometry, 0.0, lax.add)


def _gather(x, values, geometry):
    """Of `values` [B, H, W, C] those that lie where the windows of x have their maxima."""
    return jax.jvp(functools.partial(_max, geometry=geometry), (x,), (values,))[1]


def _scatter(x, dy, geometry):
    """The transpose of `_gather` in its values: dy [B, H', W', C] added up where maxima lie."""
    gather = lambda values: _gather(x, values, geometry)
    return jax.linear_transpose(gather, jax.ShapeDtypeStruct(x.shape, dy.dtype))(dy)[0]


def _spread(dy, geometry):
    """The transpose of `_sum`."""
    x = jax.ShapeDtypeStruct((dy.shape[0], *geometry.image, dy.shape[-1]), dy.dtype)
    return jax.linear_transpose(functools.partial(_sum, geometry=geometry), x)(dy)[0]


# On CPUs.


def _taps(x: jax.Array, g: Windows, beyond: float) -> list[jax.Array]:
    """What each place of the windows sees, in order: so many arrays [B, H', W', C]."""
    margins = [(0, 0, 0), *((before, after, 0) for before, after in g.padding), (0, 0, 0)]
    x = lax.pad(x, jnp.asarray(beyond, x.dtype), margins)
    (kh, kw), (sh, sw) = g.size, g.strides
    h, w = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    return [x[:, i : i + h : sh, j : j + w : sw] for i in range(kh) for j in range(kw)]


def _put_back(parts: Sequence[jax.Array], g: Windows) -> jax.Array:
    """The transpose of `_taps`: each part added where it was taken from."""
    total: Any = 0.0
    for place, part in enumerate(parts):
        margins = []
        for axis, at in enumerate(divmod(place, g.size[1])):
            before, stride = at - g.padding[axis][0], g.strides[axis]
            covered = stride * (part.shape[1 + axis] - 1) + 1
            margins.append((before, g.image[axis] - before - covered, stride - 1))
        whole = [(0, 0, 0), *margins, (0, 0, 0)]
        total = total + lax.pad(part, jnp.zeros((), part.dtype), whole)
    return total


def _max_on_cpu(x, geometry):
    return functools.reduce(jnp.maximum, _taps(x, geometry, -jnp.inf))


def _first_maxima(x, g):
    """The place in each window, counted from 0, of its first maximum."""
    greatest, *others = _taps(x, g, -jnp.inf)
    first = jnp.zeros(greatest.shape, jnp.int32)
    for place, tap in enumerate(others, start=1):
        first = jnp.where(tap > greatest, place, first)
        greatest = jnp.maximum(greatest, tap)
    return computed(first)


def _gather_on_cpu(x, values, geometry):
    first = _first_maxima(x, geometry)
    taps = _taps(values, geometry, 0.0)
    zero = jnp.zeros((), values.dtype)
    return sum(jnp.where(first == place, tap, zero) for place, tap in enumerate(taps))


def _scatter_on_cpu(x, dy, geometry):
    first, dy = _first_maxima(x, geometry), computed(dy)
    places, zero = range(math.prod(geometry.size)), jnp.zeros((), dy.dtype)
    return _put_back([jnp.where(first == place, dy, zero) for place in places], geometry)


def _sum_on_cpu(x, geometry):
    return functools.reduce(jnp.add, _taps(x, geometry, 0.0))


def _spread_on_cpu(dy, geometry):
    overlap = any(
        size > stride for size, stride in zip(geometry.size, geometry.strides, strict=True)
    )
    if overlap:
        return _put_back([computed(dy)] * math.prod(geometry.size), geometry)
    return _spread(dy, geometry)


max_p = operation("window_max", _max, _max_on_cpu)
gather_p = operation("window_max_gather", _gather, _gather_on_cpu)
scatter_p = operation("window_max_scatter", _scatter, _scatter_on_cpu)
sum_p = operation("window_sum", _sum, _sum_on_cpu)
spread_p = operation("window_spread", _spread, _spread_on_cpu)

# Where the maxima lie does not change for a small change of x, so only the values have derivatives.
ad.defjvp(max_p, lambda dx, x, geometry: gather_p.bind(x, dx, geometry=geometry))


def _linear_in_values(primitive, transposed):
    def tangent(change, x, values, geometry):
        return primitive.bind(x, change, geometry=geometry)

    def transpose(cotangent, x, values, geometry):
        if isinstance(cotangent, ad.Zero):
            return None, ad.Zero(values.aval)
        return None, transposed.bind(x, cotangent, geometry=geometry)

    ad.defjvp(primitive, None, tangent)
    ad.primitive_transposes[primitive] = transpose


_linear_in_values(gather_p, scatter_p)
_linear_in_values(scatter_p, gather_p)
ad.deflinear2(sum_p, lambda cotangent, x, geometry: [spread_p.bind(cotangent, geometry=geometry)])
ad.deflinear2(spread_p, lambda cotangent, dy, geometry: [sum_p.bind(cotangent, geometry=geometry)])


def _batch(primitive, operands, axes, geometry):
    """Maps over images as over a larger batch."""
    size = next(x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None)
    lanes = [
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(operands, axes, strict=True)
    ]
    y = primitive.bind(*(x.reshape(-1, *x.shape[2:]) for x in lanes), geometry=geometry)
    return y.reshape(size, -1, *y.shape[1:]), 0


for _primitive in (max_p, gather_p, scatter_p, sum_p, spread_p):
    batching.primitive_batchers[_primitive] = functools.partial(_batch, _primitive)
