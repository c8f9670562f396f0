"""What color pixels have. Images are float [H, W, C] in [0, 1], C being 3 (RGB) or 1 (gray)."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import require
from jaxdl.augment.base import Augment, each_image


def _gray(image: jax.Array) -> jax.Array:
    """The luminance [H, W, 1], with the weights of ITU-R 601 that Pillow and torchvision use."""
    channels = image.shape[-1]
    require(channels in (1, 3), f"images of {channels} channels", "1 (gray) or 3 (RGB) for colors")
    weights = jnp.asarray([299, 587, 114] if channels == 3 else [1000], jnp.float32) / 1000
    return jnp.sum(image * weights[None, None], -1, keepdims=True)


def _blend(base: Any, image: jax.Array, factor: Any) -> jax.Array:
    """`base` where `factor` is 0, `image` where it is 1, and beyond it where it is greater."""
    return jnp.clip(base + factor * (image - base), 0.0, 1.0)


def adjust_brightness(image: jax.Array, factor: Any) -> jax.Array:
    """Black for `factor` 0, the image itself for 1, lighter above."""
    return _blend(0.0, image, factor)


def adjust_contrast(image: jax.Array, factor: Any) -> jax.Array:
    """The even gray of the mean luminance for `factor` 0, the image itself for 1."""
    return _blend(_gray(image).mean(), image, factor)


def adjust_saturation(image: jax.Array, factor: Any) -> jax.Array:
    """The image in gray for `factor` 0, the image itself for 1; gray images stay as they are."""
    return _blend(_gray(image), image, factor)


def adjust_sharpness(image: jax.Array, factor: Any) -> jax.Array:
    """Smoothed for `factor` 0, the image itself for 1; the outermost pixels stay as they are.

    Smoothed as Pillow has it: the mean of 3x3 pixels, the one in the middle counted five times.
    """
    sums = jax.lax.reduce_window(image, 0.0, jax.lax.add, (3, 3, 1), (1, 1, 1), "VALID")
    smooth = (sums + 4 * image[1:-1, 1:-1]) / 13
    return _blend(image.at[1:-1, 1:-1].set(smooth), image, factor)


def adjust_hue(image: jax.Array, turn: Any) -> jax.Array:
    """Hues turned by a share of the color circle, as HSV has it; gray images stay as they are."""
    if image.shape[-1] == 1:
        return image
    red, green, blue = jnp.moveaxis(image, -1, 0)
    value = image.max(-1)
    chroma = value - image.min(-1)
    divisor = jnp.where(chroma > 0, chroma, 1.0)
    hue = jnp.select(  # in sixths of the circle
        [value == red, value == green],
        [(green - blue) / divisor, 2 + (blue - red) / divisor],
        4 + (red - green) / divisor,
    )
    # A channel stays at `value` over a third of the circle, as far below it as it can be over
    # another, and goes from one to the other in straight lines.
    sixths = [(hue + 6 * turn + lead) % 6 for lead in (5, 3, 1)]
    below = jnp.stack([jnp.clip(jnp.minimum(x, 4 - x), 0.0, 1.0) for x in sixths], -1)
    return value[..., None] - chroma[..., None] * below


def color_jitter(
    brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
) -> Augment:
    """Changes brightness, then contrast, then saturation, then hue, each by a random amount.

    The first three are those of Howard 2013 (arXiv:1312.5402); amounts are drawn as torchvision's
    ColorJitter draws them, whose order is random. A factor is uniform from 1 - x (at least 0) to
    1 + x, x being its argument. Gray images know no saturation and no hue.

    Args:
      brightness: greatest change of the factor that multiplies the image.
      contrast: that of the factor on the distance from the mean luminance.
      saturation: that of the factor on the distance from gray.
      hue: the greatest turn either way, as a share of the color circle; at most 0.5.

    Raises:
      InputError: an argument is negative, or `hue` is more than 0.5.
    """
    amounts = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, amount in amounts.items():
        require(amount >= 0, f"{name} {amount}", "at least 0")
    require(0 <= hue <= 0.5, f"hue {hue}", "at least 0 and at most 0.5")

    def jitter(key, image):
        factor_key, hue_key = jax.random.split(key)
        spread = jnp.asarray(list(amounts.values()), jnp.float32)
        factors = jax.random.uniform(
            factor_key, (3,), minval=jnp.maximum(1 - spread, 0), maxval=1 + spread
        )
        image = adjust_brightness(image, factors[0])
        image = adjust_contrast(image, factors[1])
        image = adjust_saturation(image, factors[2])
        return adjust_hue(image, jax.random.uniform(hue_key, minval=-hue, maxval=hue))

    return each_image(jitter)


class PixelStatistics(NamedTuple):
    """How the pixels of a data set are spread, on the [0, 1] scale; C is the channels.

    Attributes:
      mean: float64 [C].
      std: float64 [C].
      eigenvalues: float64 [C], of the covariance of the channels, from the greatest on.
      eigenvectors: float64 [C, C], in columns, in that order.
    """

    mean: np.ndarray
    std: np.ndarray
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray


def pixel_statistics(batches: Iterable[Any]) -> PixelStatistics:
    """The statistics of all pixels of a data set, which is seen once and never held whole.

    Args:
      batches: arrays [B, H, W, C], uint8 or float in [0, 1]; B may differ, and may be 0.

    Raises:
      InputError: there are no pixels.
    """
    count, total, products = 0, np.zeros(()), np.zeros(())
    for batch in batches:
        images = np.asarray(batch)
        pixels = images.reshape(-1, images.shape[-1]).astype(np.float64)
        pixels /= 255 if images.dtype == np.uint8 else 1
        count += len(pixels)
        total = total + pixels.sum(0)
        products = products + pixels.T @ pixels
    require(count > 0, "pixels of no images", "those of one image at least")
    mean = total / count
    covariance = products / count - np.outer(mean, mean)
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    std = np.sqrt(np.maximum(np.diag(covariance), 0))
    return PixelStatistics(mean, std, eigenvalues[::-1], eigenvectors[:, ::-1])


IMAGENET_PCA = (
    (0.2175, 0.0188, 0.0045),
    ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203)),
)
"""Eigenvalues and eigenvectors (in columns) of ImageNet's RGB pixels, as fb.resnet.torch (Gross and
Wilber 2016) published them and others have used them since. The paper gives none."""


def pca_color(eigenvalues: Any, eigenvectors: Any, std: float = 0.1) -> Augment:
    """Shifts the color of a whole image along the principal components of a data set's colors.

    Krizhevsky et al. 2012, section 4.1: added to each pixel is the sum of the components, each
    times its eigenvalue and a draw from a normal distribution. The unit of pixels matters, since
    it is the eigenvalue and not its root; here it is the [0, 1] scale. The result is clipped to it.

    Args:
      eigenvalues: [3], of the covariance of RGB; `*IMAGENET_PCA`, or from `pixel_statistics`.
      eigenvectors: [3, 3], in columns.
      std: the normal distribution's standard deviation.

    Raises:
      InputError: the components are not three, `std` is negative, or (when called) the images are
        not RGB.
    """
    values = jnp.asarray(eigenvalues, jnp.float32)
    vectors = jnp.asarray(eigenvectors, jnp.float32)
    shapes = list(values.shape), list(vectors.shape)
    require(shapes == ([3], [3, 3]), f"color components {shapes[0]} and {shapes[1]}", "[3], [3, 3]")
    require(std >= 0, f"std {std} of color components", "at least 0")

    def shift(key, image):
        channels = image.shape[-1]
        require(channels == 3, f"images of {channels} channels", "3 (RGB) for pca_color")
        amounts = std * jax.random.normal(key, (3,)) * values
        change = jnp.sum(vectors * amounts[None], 1)
        return jnp.clip(image + change[None, None], 0.0, 1.0)

    return each_image(shift)
