"""What all augmentations share: the contract, keys for each image, and composition."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Augment = Callable[[jax.Array, jax.Array], jax.Array]
"""(key, images) -> images"""


def as_float(images: jax.Array) -> jax.Array:
    """uint8 images as float32 in [0, 1]; floats as they are."""
    return images.astype(jnp.float32) / 255.0 if images.dtype == jnp.uint8 else images


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """(images - mean) / std on the [0, 1] scale; `mean`, `std`: one value, or one a channel."""
    shape = (1,) * (images.ndim - 1) + (-1,)
    offset = jnp.asarray(mean, jnp.float32).reshape(shape)
    scale = jnp.asarray(std, jnp.float32).reshape(shape)
    return (as_float(images) - offset) / scale


def image_keys(key: jax.Array, images: jax.Array) -> jax.Array:
    """A key for each image, from such keys or from one."""
    return key if key.ndim else jax.random.split(key, images.shape[0])


def each_image(transform: Callable[[jax.Array, jax.Array], jax.Array]) -> Augment:
    """The augmentation that does `transform` (key, float image [H, W, C]) to each image."""
    return lambda key, images: jax.vmap(transform)(image_keys(key, images), as_float(images))


def compose(*augments: Augment) -> Augment:
    """One augmentation that applies several in turn, each with keys of its own.

    >>> augment = compose(lambda key, images: images + 0.5, lambda key, images: images * 0.5)
    >>> float(augment(jax.random.key(0), jnp.ones((1, 2, 2, 3))).mean())
    0.75
    """

    def composed(key, images):
        keys = image_keys(key, images)
        for i, augment in enumerate(augments):
            images = augment(jax.vmap(jax.random.fold_in, (0, None))(keys, i), images)
        return images

    return composed
