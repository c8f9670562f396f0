"""Losses as totals and counts, and the losses of whole problems built from a model."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdl import decoding, metrics, require
from jaxdl.nn import redraw
from jaxdl.task import Init, Loss, Mean


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: Any = 0.0) -> jax.Array:
    """Softmax cross-entropy of each example, in nats and float32.

    Label smoothing (Szegedy et al. 2015, arXiv:1512.00567, section 7) mixes the one-hot target
    with the uniform distribution over the classes.

    Args:
      logits: [..., num_classes].
      labels: int [...], or shares of the classes, float [..., num_classes].
      label_smoothing: the uniform distribution's share, in [0, 1].

    Returns:
      float32 [...].
    """
    is_class = labels.ndim < logits.ndim
    targets = jax.nn.one_hot(labels, logits.shape[-1]) if is_class else labels
    targets = optax.smooth_labels(targets, label_smoothing)
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def sigmoid_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The cross-entropy of each logit's own yes or no, in nats and float32.

    For examples that have any number of labels at once. It is finite wherever the logit is.

    Args:
      logits: [...].
      labels: [...], 0 or 1, or shares between them.

    Returns:
      float32 [...].
    """
    _require_alike(logits, labels)
    labels = labels.astype(jnp.float32)
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), labels)


def mse(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """The squared error of each value, of which the mean is the mean squared error; float32 [...].

    Raises:
      InputError: the two are of different shapes, which would be broadcast.
    """
    _require_alike(outputs, targets)
    return jnp.square(outputs.astype(jnp.float32) - targets.astype(jnp.float32))


def mae(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """The absolute error of each value, of which the mean is the mean absolute error; as `mse`."""
    _require_alike(outputs, targets)
    return jnp.abs(outputs.astype(jnp.float32) - targets.astype(jnp.float32))


def huber(outputs: jax.Array, targets: jax.Array, delta: float = 1.0) -> jax.Array:
    """Huber's loss of each value: half the squared error, from `delta` on a line; as `mse`.

    Huber 1964, "Robust estimation of a location parameter", Annals of Mathematical Statistics 35.
    """
    _require_alike(outputs, targets)
    outputs, targets = outputs.astype(jnp.float32), targets.astype(jnp.float32)
    return optax.huber_loss(outputs, targets, delta=delta)


def perceptron(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """The perceptron criterion of each value: how far a weighted sum is on the wrong side of 0.

    A sum of 0 is on the wrong side too: its slope is that of a mistake, so that perceptrons learn
    from weights of zero on. Descent by single examples at a rate of 1 is Rosenblatt's rule.

    Args:
      outputs: weighted sums [...].
      targets: as them, -1 or 1.

    Returns:
      max(0, -targets outputs), float32 [...].
    """
    _require_alike(outputs, targets)
    agreement = outputs.astype(jnp.float32) * targets.astype(jnp.float32)
    return jnp.where(agreement <= 0, -agreement, 0.0)


def _require_alike(outputs: jax.Array, targets: jax.Array) -> None:
    given = f"targets of shape {targets.shape}"
    require(outputs.shape == targets.shape, given, f"{outputs.shape}, as the outputs'")


def masked_mean(values: jax.Array, mask: jax.Array) -> Mean:
    """The Mean of `values` [B] over the examples whose `mask` [B] is 1; either may be booleans."""
    wide = np.promote_types(values.dtype, jnp.float32)
    counted = mask.astype(wide)
    return Mean(jnp.sum(values.astype(wide) * counted), jnp.sum(counted))


SOWN = "intermediates"
"""The collection that models sow features and auxiliary logits into: outputs, not state."""


class ExampleLoss(Protocol):
    """The loss of each example."""

    def __call__(self, logits: jax.Array, labels: jax.Array, label_smoothing: Any, /) -> jax.Array:
        """(logits [B, C], labels int [B] or float [B, C], label_smoothing) -> [B]."""


class MixLabels(Protocol):
    """Makes one image of two, and shares of the classes of their labels."""

    def __call__(
        self, keys: jax.Array, images: jax.Array, labels: jax.Array, mask: jax.Array, /
    ) -> tuple[jax.Array, jax.Array]:
        """(keys [B], images, labels int [B], mask [B]) -> (images, targets [B, C])."""


class ElementwiseLoss(Protocol):
    """The loss of each value."""

    def __call__(self, outputs: jax.Array, targets: jax.Array, /) -> jax.Array:
        """(outputs [B, ...], targets as them) -> as them."""


MIX_STREAM = 2**31 - 1
"""What the examples' keys are folded with for mixing; augmentations fold in 0, 1, 2 ..."""


def classification(
    model: nn.Module,
    image_shape: tuple[int, ...],
    normalize: Callable[[Any], jax.Array],
    augment: Callable[[Any, Any], jax.Array] = lambda key, images: images,
    example_loss: ExampleLoss = cross_entropy,
    aux_weight: float = 0.0,
    mix: MixLabels | None = None,
    initializer: nn.initializers.Initializer | None = None,
    input_dtype: Any = jnp.float32,
) -> tuple[Init, Loss]:
    """The parts of `task.supervised` for classifying images, or rows of any other shape.

    Args:
      model: called as `model.apply(variables, images, train=...)`, returns logits [B, C].
      image_shape: (height, width, channels), or the shape of one row.
      normalize: uint8 or float images [B, H, W, C] -> floats as the model wants them.
      augment: (keys [B], images) -> images, in training only, before `normalize`.
      example_loss: (logits, labels, label_smoothing) -> losses [B].
      aux_weight: what the losses of the logits that the model sows as `aux_logits...` are weighted
        with in training (Szegedy et al. 2014, arXiv:1409.4842, section 5).
      mix: (keys [B], images, labels [B], mask [B]) -> (images, targets [B, C]), in training only,
        after `augment`; made of `augment.mixup` or `augment.cutmix`.
      initializer: draws every kernel in the place of the network's own (`jaxdl.nn.redraw`).
      input_dtype: of what `normalize` returns: an integer type for tokens.

    Returns:
      (init, loss). `loss` reads `image` uint8 [B, H, W, C], `label` int [B], `mask` [B] and the
      hyperparameter `label_smoothing`, keeps every collection but `params` in `extra`, and reports
      `accuracy`. Random stream: `dropout`.
    """

    def loss(params, extra, batch, key, hparams, train):
        images, labels, mask = batch["image"], batch["label"], batch["mask"]
        if train:
            images = augment(batch["key"], images)
        if train and mix:
            keys = jax.vmap(jax.random.fold_in, (0, None))(batch["key"], MIX_STREAM)
            images, labels = mix(keys, images, labels, mask)
        logits, updated, sown = _applied(model, params, extra, normalize(images), key, train)
        smoothing = hparams["label_smoothing"] if train else 0.0
        losses = example_loss(logits, labels, smoothing)
        for name, values in sown.items():
            if name.startswith("aux_logits"):
                losses += aux_weight * example_loss(values[0], labels, smoothing)
        reported = {"accuracy": metrics.accuracy(logits, batch["label"], mask)}
        return masked_mean(losses, mask), updated, reported

    return _drawn(model, image_shape, initializer, input_dtype), loss


def prediction(
    model: nn.Module,
    input_shape: tuple[int, ...],
    elementwise: ElementwiseLoss = mse,
    prepare: Callable[[Any], jax.Array] = lambda inputs: inputs,
    augment: Callable[[Any, Any], jax.Array] = lambda key, inputs: inputs,
    reports: Mapping[str, ElementwiseLoss] | None = None,
    initializer: nn.initializers.Initializer | None = None,
    input_dtype: Any = jnp.float32,
) -> tuple[Init, Loss]:
    """The parts of `task.supervised` for predicting values: regression, or labels that are many.

    The loss of an example is the mean over its values.

    Args:
      model: called as `model.apply(variables, inputs, train=...)`, returns outputs [B, ...].
      input_shape: of one example.
      elementwise: (outputs, targets) -> losses, such as `mse` or `sigmoid_cross_entropy`.
      prepare: inputs [B, ...] -> floats as the model wants them.
      augment: (keys [B], inputs) -> inputs, in training only, before `prepare`.
      reports: what else is measured of each value, by its name.
      initializer: draws every kernel in the place of the network's own (`jaxdl.nn.redraw`).
      input_dtype: of what `prepare` returns: an integer type for tokens.

    Returns:
      (init, loss). `loss` reads `input` [B, ...], `target` as the outputs and `mask` [B], keeps
      every collection but `params` in `extra`, and reports what `reports` names. Random stream:
      `dropout`.
    """

    def loss(params, extra, batch, key, hparams, train):
        inputs, targets = batch["input"], batch["target"]
        if train:
            inputs = augment(batch["key"], inputs)
        outputs, updated, _ = _applied(model, params, extra, prepare(inputs), key, train)

        def mean(measure):
            values = measure(outputs, targets)
            return masked_mean(values.mean(tuple(range(1, values.ndim))), batch["mask"])

        reported = {name: mean(measure) for name, measure in (reports or {}).items()}
        return mean(elementwise), updated, reported

    return _drawn(model, input_shape, initializer, input_dtype), loss


def _drawn(
    model: nn.Module,
    input_shape: tuple[int, ...],
    initializer: nn.initializers.Initializer | None,
    input_dtype: Any,
) -> Init:
    """What draws the parameters of a model, and what it carries beside them."""

    def init(key):
        variables = dict(model.init(key, jnp.zeros((1, *input_shape), input_dtype), train=False))
        variables.pop(SOWN, None)
        params = variables.pop("params")
        return redraw(key, params, initializer) if initializer else params, variables

    return init


def _applied(
    model: nn.Module, params: Any, extra: Any, inputs: jax.Array, key: Any, train: bool
) -> tuple[jax.Array, Any, dict[str, Any]]:
    """A model's outputs, what it carries to the next step, and in training what it has sown."""
    applied: Any = model.apply(
        {"params": params, **extra},
        inputs,
        train=train,
        rngs={"dropout": key},
        mutable=[*extra, SOWN] if train else [],
    )
    outputs, updated = applied
    sown = updated.pop(SOWN, {}) if train else {}
    return outputs, updated if train else extra, sown


def language_modeling(
    model: Any, batch_size: int, axis_name: str | None = None
) -> tuple[Init, Loss]:
    """The parts of `task.supervised` for predicting each token of a text from those before it.

    In training the carry goes on from the step before, but no gradient flows back into that step:
    truncated back-propagation (Williams and Peng 1990, "An efficient gradient-based algorithm for
    on-line training of recurrent network trajectories"). In evaluation it starts from zeros.

    Args:
      model: called as `model.apply(variables, tokens [B, T], train=..., carry=...)`, returns logits
        [B, T, V] and the carry; `model.initial_carry(batch_size)` is what a text starts from.
      batch_size: how many streams of text there are, the rows of a global batch.
      axis_name: the mapped axis that the batch is spread over, if there is one.

    Returns:
      (init, loss). `loss`, in nats a token, reads `token` int [B, T + 1] and `mask` [B, T], and in
      training `row` int [B], which stream a row goes on with, and `fresh` [B], 1 where that starts
      anew. It keeps the `carry` of all streams in `extra` and reports `accuracy` and
      `bits_per_character`. Random stream: `dropout`.
    """

    def init(key):
        params = model.init(key, jnp.zeros((1, 1), jnp.int32), train=False)["params"]
        return params, {"carry": model.initial_carry(batch_size)}

    def loss(params, extra, batch, key, hparams, train):
        token, mask = batch["token"], batch["mask"]
        carry = None
        if train:
            # Each array of the carry is [streams, ...]; a batch may have some of the streams only.
            row, fresh = batch["row"], batch["fresh"][:, None] == 1
            carry = jax.tree.map(lambda old: jnp.where(fresh, 0, old[row]), extra["carry"])
        logits, carry = model.apply(
            {"params": params}, token[:, :-1], train=train, carry=carry, rngs={"dropout": key}
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, token[:, 1:])
        mean = masked_mean(losses, mask)
        if train:
            keep = lambda old, new: _put_rows(old, row, new, axis_name)
            extra = {"carry": jax.tree.map(keep, extra["carry"], carry)}
        reported = {
            "accuracy": metrics.accuracy(logits, token[:, 1:], mask),
            "bits_per_character": Mean(mean.total / math.log(2), mean.count),
        }
        return mean, extra, reported

    return init, loss


def _put_rows(old: jax.Array, row: jax.Array, new: jax.Array, axis_name: str | None) -> jax.Array:
    """`old` [N, F] with `new` [B, F] in the rows that `row` [B] names, on every device."""
    if axis_name is None:
        return old.at[row].set(new)
    # No two devices have the same row, so sums over the devices are what one of them has put there.
    put = jnp.zeros_like(old).at[row].set(new)
    is_put = jnp.zeros((len(old), 1)).at[row].set(1)
    put, is_put = jax.lax.psum((put, is_put), axis_name)
    return jnp.where(is_put == 1, put, old)


def translation(model: nn.Module, go: int, eos: int) -> tuple[Init, Loss]:
    """The parts of `task.supervised` for translating sentences.

    Args:
      model: a `jaxdl.models.seq2seq.Seq2Seq`, or one with its methods.
      go: the token that targets start from.
      eos: the token that ends them.

    Returns:
      (init, loss). `loss`, in nats a target token, the closing one included, reads `source` int
      [B, S], `source_length` int [B], `target` int [B, T] with padding of 0, `mask` [B], and the
      hyperparameters `label_smoothing` and, where there is one, `sampling_rate`: that of scheduled
      sampling (Bengio et al. 2015, arXiv:1506.03099). It reports `token_accuracy`, given the tokens
      before, and in evaluation `exact_match`, the share of sentences that greedy decoding gets
      right from the first token to the last. Random stream: `dropout`.
    """

    def init(key):
        tokens, length = jnp.ones((1, 1), jnp.int32), jnp.ones(1, jnp.int32)
        return model.init(key, tokens, length, tokens, train=False)["params"], {}

    def loss(params, extra, batch, key, hparams, train):
        target = batch["target"]
        is_token = jnp.where(target != decoding.PAD, batch["mask"][:, None], 0)
        inputs = jnp.concatenate([jnp.full_like(target[:, :1], go), target[:, :-1]], 1)
        apply = functools.partial(model.apply, {"params": params}, rngs={"dropout": key})
        source = batch["source"], batch["source_length"]
        encoded, carry = apply(*source, train=train, method="encode")
        sampling = {}
        if train and "sampling_rate" in hparams:
            sampling = {"keys": batch["key"], "sampling_rate": hparams["sampling_rate"]}
        logits, _ = apply(encoded, carry, inputs, train=train, **sampling, method="decode")
        smoothing = hparams["label_smoothing"] if train else 0.0
        mean = masked_mean(cross_entropy(logits, target, smoothing), is_token)
        reported = {"token_accuracy": metrics.accuracy(logits, target, is_token)}
        if not train:
            step: Any = functools.partial(apply, encoded, method="step")
            decoded = decoding.greedy(step, carry, go, eos, target.shape[1])
            exact = (decoded.tokens == target).all(1)
            reported["exact_match"] = masked_mean(exact, batch["mask"])
        return mean, extra, reported

    return init, loss


def negative_sampling(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """The negative-sampling loss of pairs of words, in nats.

    Mikolov et al. 2013, arXiv:1310.4546, equation 4: -log s(x_0) - sum over n > 0 of log s(-x_n)
    with s the logistic function, x_0 the score of the true word and x_n those of drawn ones.

    Args:
      logits: float [..., 1 + K]; the first is that of the true word.
      mask: [..., 1 + K], 0 for a drawn word that does not count, as one that is the true word.

    Returns:
      float32 [...].
    """
    signs = jnp.ones(logits.shape[-1:]).at[0].set(-1.0)
    signs = signs.reshape((1,) * (logits.ndim - 1) + signs.shape)
    losses = jax.nn.softplus(signs * logits.astype(jnp.float32))
    return jnp.sum(jnp.where(mask, losses, 0), -1)


def word_prediction(model: nn.Module) -> tuple[Init, Loss]:
    """The parts of `task.supervised` for word vectors by negative sampling.

    Mikolov et al. 2013, arXiv:1310.4546: the mean over the words of a text of the loss that each
    has with all words around it. A negative that is the word itself does not count.

    Returns:
      (init, loss). `loss` reads the batches of `jaxdl.data.words.WordPipeline`, counts words, and
      reports `pair_loss`, the mean over pairs of words, which does not grow with the window.
    """

    def init(key):
        ids, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1))
        return model.init(key, ids, mask, ids)["params"], {}

    def loss(params, extra, batch, key, hparams, train):
        word, negative = batch["word"][:, None], batch["negative"]
        targets = jnp.concatenate([word, negative], 1)
        counted = jnp.concatenate([jnp.ones(word.shape, bool), negative != word], 1)
        scored: Any = model.apply(
            {"params": params}, batch["context"], batch["context_mask"], targets
        )
        logits, pairs = scored
        total = jnp.sum(negative_sampling(logits, counted[:, None]) * pairs)
        words = batch["mask"].astype(total.dtype).sum()
        return Mean(total, words), extra, {"pair_loss": Mean(total, pairs.sum())}

    return init, loss
