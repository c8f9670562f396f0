"""Where pixels lie: mirror, crops, warps and cutout."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import require
from jaxdl.augment.base import Augment, each_image, image_keys


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability one half."""
    mirrored = jax.vmap(jax.random.bernoulli)(image_keys(key, images))
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def padded_crop(padding: int) -> Augment:
    """Pads each side with `padding` zero pixels and cuts the size back out at a random place.

    The CIFAR augmentation of He et al. 2015 (arXiv:1512.03385, section 4.2) with padding 4.
    """

    def crop(key, image):
        padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        corner = jax.random.randint(key, (2,), 0, 2 * padding + 1)
        return jax.lax.dynamic_slice(padded, (corner[0], corner[1], 0), image.shape)

    return lambda key, images: jax.vmap(crop)(image_keys(key, images), images)


def random_resized_crop(
    area: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> Augment:
    """Stretches a random box of each image back to the full size, bilinearly.

    The augmentation of Szegedy et al. 2014 (arXiv:1409.4842, section 6). A box wider or taller than
    the image is cut down to it, where others draw again.

    Args:
      area: the box's least and greatest share of the image.
      ratio: its least and greatest width over height; drawn uniformly in the logarithm.
    """

    def crop(key, image):
        height, width, channels = image.shape
        area_key, ratio_key, corner_key = jax.random.split(key, 3)
        share = jax.random.uniform(area_key, (), jnp.float32, *area)
        low, high = jnp.log(jnp.asarray(ratio, jnp.float32))
        aspect = jnp.exp(jax.random.uniform(ratio_key, (), jnp.float32, low, high))
        pixels = share * height * width
        box = jnp.stack([jnp.sqrt(pixels / aspect), jnp.sqrt(pixels * aspect)])
        size = jnp.asarray([height, width], jnp.float32)
        box = jnp.minimum(box, size)
        corner = jax.random.uniform(corner_key, (2,)) * (size - box)
        return jax.image.scale_and_translate(
            image,
            (height, width, channels),
            (0, 1),
            scale=size / box,
            translation=-corner * size / box,
            method="linear",
        )

    return each_image(crop)


def _resample(image: jax.Array, source: jax.Array, order: int = 1) -> jax.Array:
    """`image` [H, W, C] read at `source` [2, H, W] (row, column); 0 outside of it.

    Order 1 is bilinear, 0 the nearest pixel.
    """
    read = jax.scipy.ndimage.map_coordinates
    return jax.vmap(lambda plane: read(plane, list(source), order=order), -1, -1)(image)


def _grid(image: jax.Array) -> jax.Array:
    """The (row, column) of each pixel, [2, H, W]."""
    return jnp.stack(jnp.meshgrid(*map(jnp.arange, image.shape[:2]), indexing="ij"))


def affine(
    image: jax.Array, matrix: Any, center: Any, offset: Any = (0.0, 0.0), order: int = 1
) -> jax.Array:
    """`image` through an affine map about `center`, after which it moves by `offset`.

    Args:
      image: float [H, W, C].
      matrix: [2, 2], from a row and column of the output to those of the input: backwards.
      center: [2], row and column of what `matrix` leaves in its place.
      offset: [2], in pixels.
      order: see `_resample`.
    """
    matrix, center, offset = (jnp.asarray(x, jnp.float32) for x in (matrix, center, offset))
    center, offset = center[:, None, None], offset[:, None, None]
    # Accelerators would round the coordinates to a few bits.
    place = _grid(image).astype(jnp.float32) - center - offset
    source = jnp.einsum("ij,jhw->ihw", matrix, place, precision="highest")
    return _resample(image, source + center, order)


def middle(image: jax.Array) -> jax.Array:
    """The row and column of an image's middle, [2]."""
    return (jnp.asarray(image.shape[:2], jnp.float32) - 1) / 2


def warp(
    degrees: float = 0.0, shift: float = 0.0, scale: float = 0.0, shear: float = 0.0
) -> Augment:
    """Rotates, shears, scales and shifts each image about its middle, in one bilinear resampling.

    Each amount is drawn uniformly; what comes from outside the image is 0.

    Args:
      degrees: the greatest rotation either way.
      shift: the greatest shift along each axis, as a share of the image's side.
      scale: the greatest change of size either way, as a share; 0.1 is from 0.9 to 1.1.
      shear: the greatest slant either way, in pixels sideways for each pixel down.

    Raises:
      InputError: `scale` is not in [0, 1).
    """
    require(0 <= scale < 1, f"scale {scale}", "at least 0 and less than 1")

    def transform(key, image):
        size = jnp.asarray(image.shape[:2], jnp.float32)
        draw = jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)
        # From a key of its own, so that recipes without shear draw what they always drew.
        shear_key = jax.random.fold_in(key, 1)
        slant = shear * jax.random.uniform(shear_key, minval=-1.0, maxval=1.0)
        angle = jnp.deg2rad(degrees) * draw[0]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        turn = jnp.stack(
            [jnp.stack([cos - slant * sin, -sin]), jnp.stack([sin + slant * cos, cos])]
        )
        zoom = 1.0 + scale * draw[1]
        return affine(image, turn / zoom, middle(image), shift * draw[2:] * size)

    return each_image(transform)


def _smoothing(size: int, sigma: float) -> jax.Array:
    """The matrix [size, size] that convolves with a Gaussian, cut off at 4 `sigma`, among zeros."""
    reach = round(4 * sigma)
    gaussian = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    offsets = np.arange(size)[:, None] - np.arange(size)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2) * (abs(offsets) <= reach)
    return jnp.asarray(weights / gaussian.sum(), jnp.float32)


def elastic(alpha: float, sigma: float) -> Augment:
    """Moves each pixel a little way of its own, near pixels alike: local elastic distortion.

    Simard, Steinkraus and Platt 2003, "Best practices for convolutional neural networks applied to
    visual document analysis", section 2: uniform displacements in [-1, 1], smoothed by a Gaussian,
    times alpha; not normalized in between. On their digits of 29x29 alpha was 34 and sigma 4, which
    moves a pixel by 1.4 along each axis (root mean square). Bilinear; from outside comes 0.

    Args:
      alpha: the strength, in pixels.
      sigma: the Gaussian's standard deviation, in pixels.

    Raises:
      InputError: `alpha` is negative or `sigma` is not positive.
    """
    require(alpha >= 0, f"elastic alpha {alpha}", "at least 0")
    require(sigma > 0, f"elastic sigma {sigma}", "more than 0")

    def distort(key, image):
        height, width = image.shape[:2]
        noise = jax.random.uniform(key, (2, height, width), minval=-1.0, maxval=1.0)
        rows, columns = _smoothing(height, sigma), _smoothing(width, sigma)
        field = jnp.einsum("ij,ajk,lk->ail", rows, noise, columns, precision="highest")
        return _resample(image, _grid(image).astype(jnp.float32) + alpha * field)

    return each_image(distort)


def inside_box(image: jax.Array, center: jax.Array, size: Any) -> jax.Array:
    """True [H, W, 1] inside the box of `size` rows and columns about `center`, clipped."""
    start = center - jnp.asarray(size) // 2
    row, column = _grid(image)
    inside = (row >= start[0]) & (row < start[0] + size[0])
    inside &= (column >= start[1]) & (column < start[1] + size[1])
    return inside[..., None]


def random_pixel(key: jax.Array, image: jax.Array) -> jax.Array:
    """The row and column of any pixel of an image, int32 [2]."""
    return jax.random.randint(key, (2,), 0, jnp.asarray(image.shape[:2]))


def cutout(size: int, value: float | Sequence[float] = 0.0) -> Augment:
    """Blanks a square about a random pixel, clipped where it crosses the border.

    DeVries and Taylor 2017, arXiv:1708.04552. They blank normalized images with 0: that is `value`
    as the mean that `normalize` subtracts.

    Args:
      size: the square's side, in pixels.
      value: what it is filled with, in [0, 1]: one value, or one a channel.

    Raises:
      InputError: `size` is less than 1.
    """
    require(size >= 1, f"cutout size {size}", "at least 1")
    fill = jnp.asarray(value, jnp.float32).reshape(1, 1, -1)
    return each_image(
        lambda key, image: jnp.where(
            inside_box(image, random_pixel(key, image), (size, size)), fill, image
        )
    )
