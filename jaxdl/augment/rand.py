"""RandAugment, and those of its operations that nothing else has.

Operations do to float images [H, W, C] in [0, 1] what Pillow does to uint8; those that count levels
count 256 of them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdl import require
from jaxdl.augment.base import Augment, each_image
from jaxdl.augment.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    adjust_sharpness,
)
from jaxdl.augment.geometry import affine, middle


def _levels(image: jax.Array) -> jax.Array:
    return jnp.round(image * 255).astype(jnp.int32)


def autocontrast(image: jax.Array) -> jax.Array:
    """Each channel stretched to reach from 0 to 1; an even one stays as it is."""
    low, high = image.min((0, 1), keepdims=True), image.max((0, 1), keepdims=True)
    return jnp.where(high > low, (image - low) / jnp.where(high > low, high - low, 1.0), image)


def equalize(image: jax.Array) -> jax.Array:
    """Each channel with its 256 levels about equally often, by the rule of Pillow's equalize.

    That rule leaves alone what has fewer than 255 pixels below its lightest level.
    """

    def equalized(levels):
        counts = jnp.zeros(256, jnp.int32).at[levels].add(1)
        below = jnp.cumsum(counts) - counts
        step = below[levels.max()] // 255
        table = (step // 2 + below) // jnp.maximum(step, 1)
        return jnp.where(step > 0, jnp.minimum(table[levels], 255), levels)

    return jax.vmap(equalized, -1, -1)(_levels(image)) / 255


def posterize(image: jax.Array, bits: Any) -> jax.Array:
    """Each of 256 levels cut down to its `bits` highest bits."""
    dropped = 8 - jnp.asarray(bits, jnp.int32)
    return (_levels(image) >> dropped << dropped) / 255


def solarize(image: jax.Array, threshold: Any) -> jax.Array:
    """What is at least the `threshold`, one of 256 levels, turned into its negative."""
    return jnp.where(_levels(image).astype(jnp.float32) < threshold, image, 1 - image)


def _rotate(image: jax.Array, degrees: Any) -> jax.Array:
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    turn = jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])
    return affine(image, turn, middle(image), order=0)


def _shear(image: jax.Array, rows: Any, columns: Any) -> jax.Array:
    """Slanted about the upper left corner of the image, which is half a pixel out."""
    slant = jnp.eye(2).at[0, 1].set(rows).at[1, 0].set(columns)
    return affine(image, slant, (-0.5, -0.5), order=0)


def _translate(image: jax.Array, rows: Any, columns: Any) -> jax.Array:
    """Moved by shares of its sides."""
    height, width = image.shape[:2]
    offset = jnp.stack([rows * height, columns * width])
    return affine(image, jnp.eye(2), middle(image), offset, order=0)


# The greatest strengths are those of Cubuk et al. 2018 (arXiv:1805.09501), Table 6, whose images
# were 331 pixels wide.
RAND_AUGMENT: dict[str, Callable[[jax.Array, Any], jax.Array]] = {
    "identity": lambda image, strength: image,
    "autocontrast": lambda image, strength: autocontrast(image),
    "equalize": lambda image, strength: equalize(image),
    "rotate": lambda image, strength: _rotate(image, 30 * strength),
    "solarize": lambda image, strength: solarize(image, 256 * (1 - abs(strength))),
    "color": lambda image, strength: adjust_saturation(image, 1 + 0.9 * strength),
    "posterize": lambda image, strength: posterize(image, 8 - jnp.round(4 * abs(strength))),
    "contrast": lambda image, strength: adjust_contrast(image, 1 + 0.9 * strength),
    "brightness": lambda image, strength: adjust_brightness(image, 1 + 0.9 * strength),
    "sharpness": lambda image, strength: adjust_sharpness(image, 1 + 0.9 * strength),
    "shear_x": lambda image, strength: _shear(image, 0.0, 0.3 * strength),
    "shear_y": lambda image, strength: _shear(image, 0.3 * strength, 0.0),
    "translate_x": lambda image, strength: _translate(image, 0.0, 150 / 331 * strength),
    "translate_y": lambda image, strength: _translate(image, 150 / 331 * strength, 0.0),
}
"""(float image [H, W, C], strength in [-1, 1]) -> image"""


def rand_augment(num_ops: int = 2, magnitude: float = 9.0) -> Augment:
    """Does random operations, one after another, to each image, all of one strength.

    Cubuk et al. 2019, arXiv:1909.13719: an operation is any of `RAND_AUGMENT` with equal chance.
    Its strength is magnitude / 10, either way where there are two. Every operation grows with the
    magnitude, also solarize and posterize, which in the authors' code shrink. As in that code,
    geometry takes the nearest pixel; from outside comes 0. Each image is computed through all the
    operations, of which one is kept, as a batch has no other way.

    Args:
      num_ops: how many, N in the paper; 2 on ImageNet, 3 on CIFAR.
      magnitude: from 0 to 10, M in the paper; 9 for its ResNet-50, 5 for its Wide-ResNet-28-10.

    Raises:
      InputError: an argument is out of range.
    """
    require(num_ops >= 1, f"num_ops {num_ops}", "at least 1")
    require(0 <= magnitude <= 10, f"magnitude {magnitude}", "at least 0 and at most 10")
    operations = list(RAND_AUGMENT.values())

    def operate(image, key):
        choice_key, sign_key = jax.random.split(key)
        choice = jax.random.randint(choice_key, (), 0, len(operations))
        strength = magnitude / 10 * jax.random.rademacher(sign_key, dtype=jnp.float32)
        return jax.lax.switch(choice, operations, image, strength), None

    # A scan compiles the operations once.
    return each_image(
        lambda key, image: jax.lax.scan(operate, image, jax.random.split(key, num_ops))[0]
    )
