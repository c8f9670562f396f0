"""What is measured, as totals and counts (`jaxdl.task.Mean`)."""

import jax
import jax.numpy as jnp

from jaxdl.task import Mean


def accuracy(logits: jax.Array, labels: jax.Array, mask: jax.Array, k: int = 1) -> Mean:
    """How often the label is among the k largest logits.

    Args:
      logits: [B, C].
      labels: int [B].
      mask: [B], 0 or False for an example that does not count.
      k: how many guesses count; ties go to the lower class, as with argmax.
    """
    if k == 1:
        hits = jnp.argmax(logits, -1) == labels
    else:
        hits = jnp.any(jax.lax.top_k(logits, k)[1] == labels[:, None], axis=-1)
    counted = mask.astype(jnp.float32)
    return Mean(jnp.sum(jnp.where(hits, counted, 0.0)), jnp.sum(counted))
