"""Losses as totals and counts, and the losses of whole problems built from a model."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxdl import metrics
from jaxdl.task import Init, Loss, Mean


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: Any = 0.0) -> jax.Array:
    """Softmax cross-entropy of each example, in nats and float32.

    Label smoothing (Szegedy et al. 2015, arXiv:1512.00567, section 7) mixes the one-hot target
    with the uniform distribution over the classes.

    Args:
      logits: [..., num_classes].
      labels: int [...].
      label_smoothing: the uniform distribution's share, in [0, 1].

    Returns:
      float32 [...].
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    targets = optax.smooth_labels(targets, label_smoothing)
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def masked_mean(values: jax.Array, mask: jax.Array) -> Mean:
    """The Mean of `values` [B] over the examples whose `mask` [B] is 1."""
    return Mean(jnp.sum(values * mask), jnp.sum(mask))


SOWN = "intermediates"
"""The collection that models sow features and auxiliary logits into: outputs, not state."""

ExampleLoss = Callable[..., jax.Array]
"""(logits [B, C], labels [B], label_smoothing) -> [B]"""


def classification(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    normalize: Callable[[Any], jax.Array],
    augment: Callable[[Any, Any], jax.Array] = lambda key, images: images,
    example_loss: ExampleLoss = cross_entropy,
    aux_weight: float = 0.0,
) -> tuple[Init, Loss]:
    """The parts of `task.supervised` for classifying images.

    Args:
      model: called as `model.apply(variables, images, train=...)`, returns logits [B, C].
      image_shape: (height, width, channels).
      normalize: uint8 or float images [B, H, W, C] -> floats as the model wants them.
      augment: (keys [B], images) -> images, in training only, before `normalize`.
      example_loss: (logits, labels, label_smoothing) -> losses [B].
      aux_weight: what the losses of the logits that the model sows as `aux_logits...` are weighted
        with in training (Szegedy et al. 2014, arXiv:1409.4842, section 5).

    Returns:
      (init, loss). `loss` reads `image` uint8 [B, H, W, C], `label` int [B], `mask` [B] and the
      hyperparameter `label_smoothing`, keeps every collection but `params` in `extra`, and reports
      `accuracy`. Random stream: `dropout`.
    """

    def init(key):
        images = jnp.zeros((1, *image_shape), jnp.float32)
        variables = dict(model.init(key, images, train=False))
        variables.pop(SOWN, None)
        return variables.pop("params"), variables

    def loss(params, extra, batch, key, hparams, train):
        images = augment(batch["key"], batch["image"]) if train else batch["image"]
        applied: Any = model.apply(
            {"params": params, **extra},
            normalize(images),
            train=train,
            rngs={"dropout": key},
            mutable=[*extra, SOWN] if train else [],
        )
        logits, updated = applied
        smoothing = hparams["label_smoothing"] if train else 0.0
        losses = example_loss(logits, batch["label"], smoothing)
        sown = updated.pop(SOWN, {}) if train else {}
        for name, values in sown.items():
            if name.startswith("aux_logits"):
                losses += aux_weight * example_loss(values[0], batch["label"], smoothing)
        reported = {"accuracy": metrics.accuracy(logits, batch["label"], batch["mask"])}
        return masked_mean(losses, batch["mask"]), updated if train else extra, reported

    return init, loss
