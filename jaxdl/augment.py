"""Image augmentation on the device: (key, images) -> images, batched and pure.

`images` is [B, H, W, C], uint8 or float in [0, 1]. `key` is one key, or one for each image as
`jaxdl.task.supervised` gives them in `batch["key"]`; each image's randomness depends on its own key
alone, so it does not matter how a batch is spread over devices.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Augment = Callable[[jax.Array, jax.Array], jax.Array]


def as_float(images: jax.Array) -> jax.Array:
    """uint8 images as float32 in [0, 1]; floats as they are."""
    return images.astype(jnp.float32) / 255.0 if images.dtype == jnp.uint8 else images


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """(images - mean) / std on the [0, 1] scale; `mean`, `std`: one value, or one a channel."""
    shape = (1,) * (images.ndim - 1) + (-1,)
    offset = jnp.asarray(mean, jnp.float32).reshape(shape)
    scale = jnp.asarray(std, jnp.float32).reshape(shape)
    return (as_float(images) - offset) / scale


def _image_keys(key: jax.Array, images: jax.Array) -> jax.Array:
    return key if key.ndim else jax.random.split(key, images.shape[0])


def compose(*augments: Augment) -> Augment:
    """One augmentation that applies several in turn, each with keys of its own."""

    def composed(key, images):
        keys = _image_keys(key, images)
        for i, augment in enumerate(augments):
            images = augment(jax.vmap(jax.random.fold_in, (0, None))(keys, i), images)
        return images

    return composed


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability one half."""
    mirrored = jax.vmap(jax.random.bernoulli)(_image_keys(key, images))
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def padded_crop(padding: int) -> Augment:
    """Pads each side with `padding` zero pixels and cuts the size back out at a random place.

    The CIFAR augmentation of He et al. 2015 (arXiv:1512.03385, section 4.2) with padding 4.
    """

    def crop(key, image):
        padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        corner = jax.random.randint(key, (2,), 0, 2 * padding + 1)
        return jax.lax.dynamic_slice(padded, (corner[0], corner[1], 0), image.shape)

    return lambda key, images: jax.vmap(crop)(_image_keys(key, images), images)


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

    return lambda key, images: jax.vmap(crop)(_image_keys(key, images), as_float(images))


def warp(degrees: float = 0.0, shift: float = 0.0, scale: float = 0.0) -> Augment:
    """Rotates, scales and shifts each image about its middle, in one bilinear resampling.

    Each amount is drawn uniformly; what comes from outside the image is 0.

    Args:
      degrees: the greatest rotation either way.
      shift: the greatest shift along each axis, as a share of the image's side.
      scale: the greatest change of size either way, as a share; 0.1 is from 0.9 to 1.1.
    """

    def transform(key, image):
        size = jnp.asarray(image.shape[:2], jnp.float32)
        draw = jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)
        angle = jnp.deg2rad(degrees) * draw[0]
        # Coordinates run backwards, from a pixel of the output to its source.
        turn = jnp.stack(
            [
                jnp.stack([jnp.cos(angle), -jnp.sin(angle)]),
                jnp.stack([jnp.sin(angle), jnp.cos(angle)]),
            ]
        ) / (1.0 + scale * draw[1])
        middle = ((size - 1) / 2)[:, None, None]
        offset = (shift * draw[2:] * size)[:, None, None]
        grid = jnp.stack(jnp.meshgrid(*map(jnp.arange, image.shape[:2]), indexing="ij"))
        source = jnp.einsum("ij,jhw->ihw", turn, grid - middle - offset) + middle
        resample = jax.vmap(
            lambda plane: jax.scipy.ndimage.map_coordinates(plane, list(source), order=1), -1, -1
        )
        return resample(image)

    return lambda key, images: jax.vmap(transform)(_image_keys(key, images), as_float(images))
