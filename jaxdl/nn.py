"""Layers and small operations that several networks need and Flax lacks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import InputError


class LocalResponseNorm(nn.Module):
    """Local response normalization: each value divided by the energy of its neighbour channels.

    With a sum over the `size` channels around its own, zeros beyond the first and the last, a value
    x becomes `x / (k + alpha / size * sum(x**2)) ** beta`. This is torch's definition and Caffe's:
    the paper (Krizhevsky et al. 2012, section 3.3) has `alpha` times the sum, not divided by
    `size`. Its n=5, alpha=1e-4, beta=0.75, k=2 are `LocalResponseNorm(5, 5e-4, 0.75, 2)` here.

    Args:
        size: number of channels summed over; of an even number one more lies before than after.
        alpha, beta, k: as above, torch's defaults.

    Shapes: [..., C] to [..., C], of the same type. Computes in float32 at least.

    State: none.
    """

    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        beyond = (self.size // 2, (self.size - 1) // 2)
        squares = jnp.pad(wide**2, [(0, 0)] * (x.ndim - 1) + [beyond])
        # Shifted slices, which XLA fuses into one pass over the maps.
        total = sum(squares[..., i : i + x.shape[-1]] for i in range(self.size))
        y = wide / (self.k + self.alpha / self.size * total) ** self.beta
        return y.astype(x.dtype)


def adaptive_avg_pool(x: jax.Array, output_size: tuple[int, int]) -> jax.Array:
    """Return the means over a grid of `output_size` windows that cover the image, as torch's does.

    Window i of n over a side of H pixels goes from floor(i H / n) to ceil((i + 1) H / n), without
    the latter. Windows overlap where n does not divide H, and repeat pixels where n exceeds it.

    Shapes: [B, H, W, C] of any size to [B, *output_size, C], of the same type.
    """
    if x.shape[1:3] == output_size:
        return x
    rows, columns = (averages(h, n) for h, n in zip(x.shape[1:3], output_size, strict=True))
    means = jnp.einsum("bhwc,ih,jw->bijc", x, rows, columns, precision=jax.lax.Precision.HIGHEST)
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
    are.
    """
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


def check_image_size(model: nn.Module, images: jax.Array, smallest: int) -> None:
    """Raise InputError if images [B, H, W, C] are less than `smallest` pixels high or wide."""
    height, width = images.shape[1:3]
    if min(height, width) < smallest:
        raise InputError(
            f"{type(model).__name__} takes images of at least {smallest}x{smallest} pixels, "
            f"not {height}x{width}"
        )
