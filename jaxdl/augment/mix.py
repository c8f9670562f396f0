"""Two images into one, and their targets."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxdl import require
from jaxdl.augment.base import as_float, image_keys
from jaxdl.augment.geometry import inside_box, random_pixel


class Mix(Protocol):
    """Makes one image of two, and one target of theirs."""

    def __call__(
        self, key: jax.Array, images: jax.Array, targets: jax.Array, mask: Any = None, /
    ) -> tuple[jax.Array, jax.Array]:
        """(key or keys [B], images [B, H, W, C], targets, mask=None) -> (images, targets).

        `targets` is float [B, num_classes], the share of each class. `mask` [B] is 0 for an example
        that must not reach another, as padding must not.
        """


def _mix(draw_share: Callable[[jax.Array, jax.Array], jax.Array]) -> Mix:
    """Mixes each image with the one before it in the batch, the first with the last.

    Args:
      draw_share: (key, image [H, W, C]) -> the image's own share at each pixel, [H, W, 1] or
        [1, 1, 1].
    """

    def mix(key, images, targets, mask=None):
        images = as_float(images)
        own = jax.vmap(draw_share)(image_keys(key, images), images)
        if mask is not None:
            own = jnp.where(jnp.roll(mask, 1)[:, None, None, None] > 0, own, 1.0)
        share = own.mean((1, 2))
        mixed = own * images + (1 - own) * jnp.roll(images, 1, 0)
        return mixed, share * targets + (1 - share) * jnp.roll(targets, 1, 0)

    return mix


def mixup(alpha: float) -> Mix:
    """Adds two images and their targets in random shares, x and 1 - x.

    Zhang et al. 2017, arXiv:1710.09412. The share is Beta(alpha, alpha), drawn for each image where
    the authors' code draws one a batch. An image's partner is the one before it in the batch, so
    the layout over devices does not matter under jit; under pmap, and when a batch is accumulated
    in parts, partners come from the same part.

    Args:
      alpha: 0.2 on ImageNet, 1 on CIFAR; the smaller, the closer to unmixed.

    Raises:
      InputError: `alpha` is not positive.
    """
    require(alpha > 0, f"mixup alpha {alpha}", "more than 0")
    return _mix(lambda key, image: jax.random.beta(key, alpha, alpha, (1, 1, 1)))


def cutmix(alpha: float) -> Mix:
    """Pastes a random box of one image into another and mixes the targets by the box's area.

    Yun et al. 2019, arXiv:1905.04899. The box has the image's shape and 1 - Beta(alpha, alpha) of
    its area; it lies about a random pixel and is clipped at the borders, and what is left is the
    share of the targets. Partners are as in `mixup`.

    Args:
      alpha: 1 in the paper.

    Raises:
      InputError: `alpha` is not positive.
    """
    require(alpha > 0, f"cutmix alpha {alpha}", "more than 0")

    def draw_share(key, image):
        share_key, center_key = jax.random.split(key)
        side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))
        size = jnp.floor(side * jnp.asarray(image.shape[:2], jnp.float32)).astype(jnp.int32)
        pasted = inside_box(image, random_pixel(center_key, image), size)
        return jnp.where(pasted, 0.0, 1.0)

    return _mix(draw_share)
