"""Convolutions that are quick on CPUs too, with a derivative that is theirs.

XLA's convolution on CPUs is sound where Eigen makes it (see `jaxdl.parallel.BY_EIGEN`), but for
1x1 and very thin ones (few channels). So on a single CPU device a convolution and its two
gradients are made of matrix products wherever those are quicker, chosen by shape:

- *pointwise*, of 1x1 kernels: one product;
- *by rows*, of few channels: parts of rows of the image times the kernel laid out as a banded
  matrix, which multiplies by some zeros but in one large product;
- *packed*, of up to 16 outputs: two neighbouring columns of the output are computed as channels;
- *by patches*, where the kernel has more places than the image has pixels: one product with all;
- *by taps*, the kernel's gradient mapped over kernels: one product for each place in the kernel.

Several CPU devices share XLA's convolutions, but for products of such small images. Every other
platform gets the programs of `jax.lax`, to the instruction.
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

NHWC = ("NHWC", "HWIO", "NHWC")

BAND, PARTS = 40, 16
"""How many numbers a band computes at least, and into how many parts a row is cut at most.

The fewer numbers, the fewer products by zeros; but a narrow product is slow in itself, and each
part is copied by a loop of its own.
"""


class Geometry(NamedTuple):
    """The sizes of a convolution that its operands do not tell, each vertical, then horizontal.

    Attributes:
      strides: pixels from window to window.
      padding: (before, after), zeros around the image, none of them negative.
      image: height and width.
      window: the kernel's height and width.
    """

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    image: tuple[int, int]
    window: tuple[int, int]

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the output."""
        sizes = zip(self.image, self.padding, self.window, self.strides, strict=True)
        h, w = ((size + sum(pad) - k) // stride + 1 for size, pad, k, stride in sizes)
        return h, w


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> jax.Array:
    """Return what `jax.lax.conv_general_dilated` does, to rounding, and more quickly on CPUs.

    It fits the field `conv_general_dilated` of `flax.linen.Conv`. Convolutions of images without
    dilation and groups are this module's; all others are `jax.lax`'s own. It can be differentiated
    any number of times, forward and in reverse, and mapped: over kernels too, as a sweep does, it
    stays a product on CPUs where `jax.lax` makes a grouped convolution.

    Args:
      x: [B, H, W, C].
      kernel: [kh, kw, C, O].
      window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
        precision: as there.

    Returns:
      [B, H', W', O], of the operands' type.
    """
    if isinstance(dimension_numbers, lax.ConvDimensionNumbers):
        layout: Any = tuple(dimension_numbers)
    else:
        layout = lax.conv_dimension_numbers(x.shape, kernel.shape, dimension_numbers)
    ours = (
        x.ndim == 4
        and tuple(layout) == tuple(lax.conv_dimension_numbers(x.shape, kernel.shape, NHWC))
        and set(lhs_dilation or ()) <= {1}
        and set(rhs_dilation or ()) <= {1}
        and feature_group_count == 1
        and precision is None
    )
    pads: Any = padding
    if ours and isinstance(padding, str):
        pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], window_strides, padding)
    if not ours or min(map(min, pads)) < 0:
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            precision=precision,
        )
    (top, bottom), (left, right) = pads
    geometry = Geometry(
        (window_strides[0], window_strides[1]),
        ((int(top), int(bottom)), (int(left), int(right))),
        (x.shape[1], x.shape[2]),
        (kernel.shape[0], kernel.shape[1]),
    )
    return forward_p.bind(x, kernel, geometry=geometry)


def double(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """Return `jax.lax.conv_transpose` of stride 2 and padding "SAME": maps of twice the sides.

    It is the image gradient of a convolution of stride 2, so its own gradients are quick on CPUs
    too, where XLA's of a dilated image are not. It fits the field `conv_general_dilated` of
    `flax.linen.Conv`, whose strides and padding it does not look at.

    Args:
      x: [B, H, W, C].
      kernel: [kh, kw, C, O], at least 2 each way.

    Returns:
      [B, 2 H, 2 W, O], of the operands' type.
    """
    (top, bottom), (left, right) = ((k // 2 - 1, (k - 1) // 2) for k in kernel.shape[:2])
    geometry = Geometry(
        strides=(2, 2),
        padding=((top, bottom), (left, right)),
        image=(2 * x.shape[1], 2 * x.shape[2]),
        window=(kernel.shape[0], kernel.shape[1]),
    )
    mirrored = kernel[::-1, ::-1].swapaxes(2, 3)
    return image_gradient_p.bind(x, mirrored, geometry=geometry)


# What the operations are: jax.lax's, which are the programs of every platform but the CPU. With a
# leading axis more on both operands they are that many of them (see `_batch`).


def _each(function):
    """Maps an operation over the leading axis of both operands, where they have one more."""

    @functools.wraps(function)
    def apply(lhs, rhs, geometry):
        once = functools.partial(function, geometry=geometry)
        return (jax.vmap(once) if lhs.ndim == 5 else once)(lhs, rhs)

    return apply


@_each
def _forward(x, kernel, geometry):
    return lax.conv_general_dilated(
        x, kernel, geometry.strides, geometry.padding, dimension_numbers=NHWC
    )


@_each
def _image_gradient(dy, kernel, geometry):
    x = jax.ShapeDtypeStruct((dy.shape[0], *geometry.image, kernel.shape[2]), dy.dtype)
    return jax.linear_transpose(lambda x: _forward(x, kernel, geometry), x)(dy)[0]


@_each
def _kernel_gradient(x, dy, geometry):
    kernel = jax.ShapeDtypeStruct((*geometry.window, x.shape[-1], dy.shape[-1]), dy.dtype)
    return jax.linear_transpose(lambda kernel: _forward(x, kernel, geometry), kernel)(dy)[0]


# On CPUs.

# Eigen takes convolutions of NHWC alone. XLA turns others so, but not in loops and branches (jax
# issue 12868): there gradients as jax.lax has them take up to fifty times as long.


def _image_gradient_by_convolution(dy, kernel, g):
    padding = [
        (k - 1 - before, size - 1 - stride * (length - 1) + before)
        for k, (before, _), size, length, stride in zip(
            g.window, g.padding, g.image, g.output, g.strides, strict=True
        )
    ]
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    return lax.conv_general_dilated(
        dy, flipped, (1, 1), padding, lhs_dilation=g.strides, dimension_numbers=NHWC
    )


def _kernel_gradient_by_convolution(x, dy, g):
    used = [s * (n - 1) + k for s, n, k in zip(g.strides, g.output, g.window, strict=True)]
    ends = [
        length - before - size
        for length, (before, _), size in zip(used, g.padding, g.image, strict=True)
    ]
    reached = x[:, : g.image[0] + min(0, ends[0]), : g.image[1] + min(0, ends[1])]
    turned = lax.conv_general_dilated(
        reached.transpose(3, 1, 2, 0),
        dy.transpose(1, 2, 0, 3),
        (1, 1),
        [(before, max(0, end)) for (before, _), end in zip(g.padding, ends, strict=True)],
        rhs_dilation=g.strides,
        dimension_numbers=NHWC,
    )
    return turned.transpose(1, 2, 0, 3)


def _is_pointwise(g: Geometry) -> bool:
    return g.window == (1, 1) and g.padding == ((0, 0), (0, 0))


def _is_thin(g: Geometry, inputs: int, outputs: int) -> bool:
    """Whether by rows is quicker, in spite of the band's zeros."""
    whole_row = g.output[1] == 1  # the band has no zeros
    few = inputs * outputs <= 128 or (inputs <= 3 and outputs <= 64)
    narrow = _places(g, outputs) <= 3 * g.window[1]
    return g.strides[1] == 1 and (whole_row or (few and narrow))


def _is_small(image: tuple[int, int], g: Geometry) -> bool:
    """Whether the kernel has more places than an image that it is moved over has pixels.

    XLA then takes the one for the other, and what that gives has no quick form in either library:
    of 512 channels on 2x2 pixels it took a hundred times as long.
    """
    return math.prod(image) < math.prod(g.window)


def _pad(x: jax.Array, g: Geometry) -> jax.Array:
    """The image with its zeros, without what no window reaches."""
    used = [s * (n - 1) + k for s, n, k in zip(g.strides, g.output, g.window, strict=True)]
    margins = [
        (before, size - length - before, 0)
        for (before, _), size, length in zip(g.padding, used, g.image, strict=True)
    ]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *margins, (0, 0, 0)])


def _taps(padded: jax.Array, g: Geometry) -> list[jax.Array]:
    """What each place of the kernel meets, in order: so many arrays [B, H', W', C]."""
    (sh, sw), (h, w) = g.strides, g.output
    return [
        padded[:, i : i + sh * (h - 1) + 1 : sh, j : j + sw * (w - 1) + 1 : sw]
        for i in range(g.window[0])
        for j in range(g.window[1])
    ]


def _places(g: Geometry, outputs: int) -> int:
    """How many columns of the output one band computes; it divides their number."""
    width = g.output[1]
    least = max(2, width / PARTS, BAND / outputs)  # of one column each pixel is copied kw times
    return next((n for n in range(1, width) if width % n == 0 and n >= least), width)


def _bands(kernel: jax.Array, places: int) -> jax.Array:
    """The kernel as what takes parts of rows of the padded image to places side by side.

    Shapes: [kh, kw, C, O] to [kh x (places + kw - 1) x C, places x O].
    """
    beside = [
        jnp.pad(kernel, [(0, 0), (place, places - 1 - place), (0, 0), (0, 0)])
        for place in range(places)
    ]
    return jnp.stack(beside, axis=3).reshape(-1, places * kernel.shape[3])


def _row_patches(x: jax.Array, g: Geometry, places: int) -> jax.Array:
    """What places side by side see of the image, [n, kh x (places + kw - 1) x C].

    The n are B x H' x W' / places, in the order of the output.
    """
    (stride, _), (h, w), (kh, kw) = g.strides, g.output, g.window
    padded = _pad(x, g)
    parts = [
        padded[:, :, at : at + places + kw - 1].reshape(*padded.shape[:2], -1)
        for at in range(0, w, places)
    ]
    # Parts, then rows of them all: slices to compile are as many as both added, not multiplied.
    # Of the last axis XLA copies what it joins; joined elsewhere it would look up each number.
    beside = jnp.concatenate(parts, -1).reshape(*parts[0].shape[:2], len(parts), -1)
    rows = [beside[:, i : i + stride * (h - 1) + 1 : stride] for i in range(kh)]
    return jnp.concatenate(rows, -1).reshape(-1, kh * beside.shape[-1])


def _packed(x: jax.Array, kernel: jax.Array, g: Geometry) -> jax.Array:
    """Two columns of the output at once, as channels of a convolution that strides over both."""
    stride = g.strides[1]
    beside = [jnp.pad(kernel, [(0, 0), (u, stride - u), (0, 0), (0, 0)]) for u in (0, stride)]
    both = jnp.stack(beside, axis=3).reshape(*beside[0].shape[:3], 2 * kernel.shape[3])
    y = lax.conv_general_dilated(
        _pad(x, g), both, (g.strides[0], 2 * stride), "VALID", dimension_numbers=NHWC
    )
    return y.reshape(x.shape[0], *g.output, kernel.shape[3])


def _forward_on_cpu(x, kernel, geometry):
    g, (inputs, outputs) = geometry, kernel.shape[-2:]
    if x.ndim == 5:
        return jax.vmap(functools.partial(_forward_by_products, g=g))(x, kernel)
    thinnest = _is_thin(g, inputs, outputs) and inputs <= 3  # of more, Eigen's is quicker
    if _is_pointwise(g) or thinnest or _is_small(g.image, g):
        return _forward_by_products(x, kernel, g)
    if outputs <= 16 and g.output[1] % 2 == 0:
        return _packed(x, kernel, g)
    return _forward(x, kernel, g)


def _forward_by_products(x, kernel, g):
    inputs, outputs = kernel.shape[-2:]
    if _is_pointwise(g):
        patches, matrix = _taps(x, g)[0].reshape(-1, inputs), kernel[0, 0]
    elif _is_thin(g, inputs, outputs):
        places = _places(g, outputs)
        patches, matrix = _row_patches(x, g, places), _bands(kernel, places)
    else:
        patches = jnp.concatenate(_taps(_pad(x, g), g), axis=-1).reshape(-1, kernel[..., 0].size)
        matrix = kernel.reshape(-1, outputs)
    return (patches @ matrix).reshape(x.shape[0], *g.output, outputs)


def _image_gradient_on_cpu(dy, kernel, geometry):
    g, (inputs, outputs) = geometry, kernel.shape[-2:]
    by_products = functools.partial(_image_gradient_by_products, g=g)
    if dy.ndim == 5:
        return jax.vmap(by_products)(dy, kernel)
    if _is_pointwise(g) or _is_thin(g, inputs, outputs) or _is_small(g.output, g):
        return by_products(dy, kernel)
    if g.strides == (1, 1) and min(map(min, _mirrored(g).padding)) >= 0:
        flipped = kernel[::-1, ::-1].swapaxes(2, 3)
        return _forward_on_cpu(dy, flipped, _mirrored(g))
    return _image_gradient_by_convolution(dy, kernel, g)


def _mirrored(g: Geometry) -> Geometry:
    """The convolution that an image gradient is, where every pixel begins a window."""
    padding = [
        (k - 1 - before, length - size + before)
        for k, (before, _), length, size in zip(g.window, g.padding, g.image, g.output, strict=True)
    ]
    return Geometry((1, 1), (padding[0], padding[1]), g.output, g.window)


def _image_gradient_by_products(dy, kernel, g):
    inputs, outputs = kernel.shape[-2:]
    (batch, h, w), (kh, kw) = dy.shape[:3], g.window
    if not _is_pointwise(g) and _is_thin(g, inputs, outputs):
        places = _places(g, outputs)
        rows = (dy.reshape(-1, places * outputs) @ _bands(kernel, places).T).reshape(
            batch, h, w // places, kh, places + kw - 1, inputs
        )
        return sum(
            _placed(rows[:, :, n, i], g, i, n * places)
            for i in range(kh)
            for n in range(w // places)
        )
    taps = (dy.reshape(-1, outputs) @ kernel.reshape(-1, outputs).T).reshape(
        batch, h, w, kh, kw, inputs
    )
    return sum(_placed(taps[:, :, :, i, j], g, i, j) for i in range(kh) for j in range(kw))


def _placed(part: jax.Array, g: Geometry, row: int, column: int) -> jax.Array:
    """What one place of the kernel adds to the image's gradient, where it belongs in it."""
    margins = []
    for axis, at in ((0, row), (1, column)):
        stride, before = g.strides[axis], at - g.padding[axis][0]
        covered = stride * (part.shape[1 + axis] - 1) + 1
        margins.append((before, g.image[axis] - before - covered, stride - 1))
    return lax.pad(part, jnp.zeros((), part.dtype), [(0, 0, 0), *margins, (0, 0, 0)])


def _kernel_gradient_on_cpu(x, dy, geometry):
    if x.ndim == 5:
        return jax.vmap(functools.partial(_kernel_gradient_by_products, g=geometry))(x, dy)
    if _is_pointwise(geometry):
        return _kernel_gradient_by_products(x, dy, geometry)
    # Transposed they would be computed in the order of the transpose.
    return _kernel_gradient_by_convolution(computed(x), computed(dy), geometry)


def _kernel_gradient_by_products(x, dy, g):
    inputs, outputs, (kh, kw) = x.shape[-1], dy.shape[-1], g.window
    if not _is_pointwise(g) and _is_thin(g, inputs, outputs):
        places = _places(g, outputs)
        rows = dy.reshape(-1, places * outputs)
        bands = (rows.T @ _row_patches(x, g, places)).T
        bands = bands.reshape(kh, places + kw - 1, inputs, places, outputs)
        return sum(bands[:, place : place + kw, :, place] for place in range(places))
    # The gradient is transposed and not the taps: it is the smaller.
    columns = dy.reshape(-1, outputs).T
    taps = [(columns @ tap.reshape(-1, inputs)).T for tap in _taps(_pad(x, g), g)]
    return jnp.stack(taps).reshape(kh, kw, inputs, outputs)


@_each
def _forward_on_cpus(x, kernel, geometry):
    by_products = _is_small(geometry.image, geometry)
    return (_forward_by_products if by_products else _forward)(x, kernel, geometry)


@_each
def _image_gradient_on_cpus(dy, kernel, geometry):
    if _is_small(geometry.output, geometry):
        return _image_gradient_by_products(dy, kernel, geometry)
    return _image_gradient_by_convolution(dy, kernel, geometry)


@_each
def _kernel_gradient_on_cpus(x, dy, geometry):
    return _kernel_gradient_by_convolution(x, dy, geometry)


forward_p = operation("convolution", _forward, _forward_on_cpu, _forward_on_cpus)
image_gradient_p = operation(
    "convolution_image_gradient", _image_gradient, _image_gradient_on_cpu, _image_gradient_on_cpus
)
kernel_gradient_p = operation(
    "convolution_kernel_gradient",
    _kernel_gradient,
    _kernel_gradient_on_cpu,
    _kernel_gradient_on_cpus,
)

# Each is linear in either operand, and transposed it is another of the three.
ad.defbilinear(
    forward_p,
    lambda dy, x, kernel, geometry: image_gradient_p.bind(dy, kernel, geometry=geometry),
    lambda dy, x, kernel, geometry: kernel_gradient_p.bind(x, dy, geometry=geometry),
)
ad.defbilinear(
    image_gradient_p,
    lambda dx, dy, kernel, geometry: forward_p.bind(dx, kernel, geometry=geometry),
    lambda dx, dy, kernel, geometry: kernel_gradient_p.bind(dx, dy, geometry=geometry),
)
ad.defbilinear(
    kernel_gradient_p,
    lambda dk, x, dy, geometry: image_gradient_p.bind(dy, dk, geometry=geometry),
    lambda dk, x, dy, geometry: forward_p.bind(x, dk, geometry=geometry),
)


def _batch(primitive, operands, axes, geometry):
    """Maps over images alone as a larger batch; otherwise gives both operands one more axis."""
    size = next(x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None)
    moved = [
        x if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(operands, axes, strict=True)
    ]
    if axes[1] is None and primitive is not kernel_gradient_p and moved[0].ndim == 5:
        images = moved[0].reshape(-1, *moved[0].shape[2:])
        y = primitive.bind(images, moved[1], geometry=geometry)
        return y.reshape(size, -1, *y.shape[1:]), 0
    both = [
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else x
        for x, axis in zip(moved, axes, strict=True)
    ]
    if both[0].ndim == 5:
        return primitive.bind(*both, geometry=geometry), 0
    lanes = [x.reshape(-1, *x.shape[2:]) for x in both]
    y = primitive.bind(*lanes, geometry=geometry)
    return y.reshape(size, -1, *y.shape[1:]), 0


for _primitive in (forward_p, image_gradient_p, kernel_gradient_p):
    batching.primitive_batchers[_primitive] = functools.partial(_batch, _primitive)
