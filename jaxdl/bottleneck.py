"""Bottleneck features: a frozen network is run once over a data set, and heads train on the rest.

    cached = features(model, net, variables, pipeline, normalize, folder)
    init, loss = head(init, net, cached["train"].values.shape[1])
    task = supervised(init, loss, optimizer, schedule)
    fit(task, state, Batches(cached, batch_size, seed).train, ...)

Heads train in seconds, and the state is that of the whole network.
"""

import hashlib
import itertools
import sys
from collections.abc import Callable, Collection, Generator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import PIL
from flax import traverse_util
from jax.sharding import Sharding

from jaxdl import Batch, InputError, files, losses
from jaxdl.data import Pipeline, fingerprint
from jaxdl.data.order import EvalOrder, TrainOrder
from jaxdl.task import Init, Loss
from jaxdl.transfer import Outline, freeze


class Features(NamedTuple):
    """What a network makes of one split, in its order, without images that could not be read.

    Attributes:
      values: [N, F], what goes into the last layer.
      labels: int32 [N].
    """

    values: np.ndarray
    labels: np.ndarray


def features(
    model: nn.Module,
    net: Outline,
    variables: Mapping[str, Any],
    pipeline: Pipeline,
    normalize: Callable[[Any], jax.Array],
    folder: Path,
    on_unfit: Literal["recompute", "fail"] = "recompute",
) -> dict[str, Features]:
    """Runs a network over every split, once: what was computed before is read from a cache.

    A cache is used only for the same weights, the same compiled program (so the same network,
    normalization, precision and library code) and the same images, labels and preprocessing.
    Arrays are compared byte for byte; files, of folders and of TFDS sets, by names, sizes and
    times of change (`data.fingerprint`). Images are taken as in evaluation, without augmentation.

    Args:
      model: sows `features` [B, F] into `intermediates`.
      net: its outline. A cache serves whatever the weights of its head are.
      variables: of the model.
      pipeline: gives the splits and their preprocessing.
      normalize: uint8 images [B, H, W, C] -> floats as the model wants them.
      folder: holds `<split>.npz` for each split.
      on_unfit: a cache that is damaged, or of something else, is told of on stderr and computed
        anew ("recompute"), or is an error ("fail").

    Raises:
      InputError: there are several hosts, the model sows no such features, or a cache does not fit
        under "fail".
    """
    if jax.process_count() > 1:
        raise InputError("features are computed in a single process; run this on one host")

    def extract(variables, images):
        _, sown = model.apply(variables, normalize(images), train=False, mutable=[losses.SOWN])
        (values,) = sown.get(losses.SOWN, {}).get("features", [jnp.zeros(())])
        return values.astype(jnp.float32)

    images = jax.ShapeDtypeStruct((1, *pipeline.image_shape), jnp.uint8)
    lowered = jax.jit(extract).lower(variables, images)
    shape = lowered.out_info.shape
    if len(shape) != 2:
        sows = f"features {list(shape)}" if shape else "no features"
        raise InputError(f"{type(model).__name__} sows {sows}; expected features [B, F]")
    network = {
        "program": hashlib.sha256(lowered.as_text().encode()).hexdigest(),
        "weights": _weights_digest(variables, net.without(net.all_but_head).paths),
    }
    extract, variables = jax.jit(extract), jax.device_put(variables)
    found = {}
    for split, source in pipeline.dataset.splits.items():
        made_of = f"{fingerprint(source)} {pipeline.preprocess} Pillow {PIL.__version__}"
        key = network | {"data": hashlib.sha256(made_of.encode()).hexdigest()}
        path = folder / f"{split}.npz"
        try:
            cached = _read_features(path, key) if path.exists() else None
        except InputError as unfit:
            if on_unfit == "fail":
                raise InputError(f"{unfit}; take another folder") from None
            print(f"{unfit}; computing it anew", file=sys.stderr)
            cached = None
        if cached is None:
            values, labels = [], []
            for batch in pipeline.evaluate(split):
                whole = np.asarray(batch["mask"]) == 1
                values.append(np.asarray(extract(variables, batch["image"]))[whole])
                labels.append(np.asarray(batch["label"])[whole])
            cached = Features(np.concatenate(values), np.concatenate(labels))
            _write_features(path, cached, key)
        found[split] = cached
    return found


def _weights_digest(variables: Mapping[str, Any], head: Collection[str]) -> str:
    """Of all but the head."""
    digest = hashlib.sha256()
    flat = traverse_util.flatten_dict(variables, sep="/")
    for path in sorted(flat.keys() - {f"params/{path}" for path in head}):
        array = np.asarray(flat[path])
        digest.update(f"{path} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read_features(path: Path, key: Mapping[str, str]) -> Features:
    """Reads a cache.

    Raises:
      InputError: it is damaged, or not of this key.
    """
    try:
        # numpy leaves a broken file open if it has opened it. Each array has a sum that it checks.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            arrays = dict(saved)
        other = [part for part, digest in key.items() if str(arrays[part]) != digest]
        cached = Features(arrays["values"], arrays["labels"])
    except Exception as error:  # zipfile and numpy raise whatever the broken file led to
        raise InputError(f"the features in {path} are damaged ({type(error).__name__})") from error
    if other:
        raise InputError(f"the features in {path} are of another {' and '.join(other)}")
    return cached


def _write_features(path: Path, features: Features, key: Mapping[str, str]) -> None:
    with files.replacing(path) as file:
        # mypy takes an array's name for the keyword `allow_pickle`.
        np.savez(file, **features._asdict(), **key)  # type: ignore[arg-type]  # no `allow_pickle`


class Batches(NamedTuple):
    """Batches of cached features in the order in which `Pipeline` gives the images.

    Attributes:
      features: of each split.
      batch_size: rows of a batch.
      seed: of the order, as that of `Pipeline`.
      sharding: how a batch lies on the devices.
    """

    features: Mapping[str, Features]
    batch_size: int
    seed: int
    sharding: Sharding | None = None

    @property
    def one_shape(self) -> bool:
        """Whether all batches are alike in their shapes."""
        return True

    def examples(self, split: str) -> int:
        """How many a split has."""
        return len(self.features[split].labels)

    def train(self, start: int = 0) -> Generator[Batch, None, None]:
        """The batches of steps `start`, `start + 1`, ... without end."""
        order = TrainOrder(len(self.features["train"].labels), self.batch_size, self.seed)
        for step in itertools.count(start):
            yield self._batch("train", order(step))

    def evaluate(self, split: str) -> Generator[Batch, None, None]:
        """Every example of a split once, in order; the last batch is padded with mask 0."""
        order = EvalOrder(len(self.features[split].labels), self.batch_size)
        for step in range(order.steps):
            yield self._batch(split, order(step))

    def _batch(self, split: str, rows: np.ndarray) -> Batch:
        values, labels = self.features[split]
        mask = rows < len(labels)
        rows = np.where(mask, rows, 0)
        batch = {
            "image": values[rows] * mask[:, None],
            "label": labels[rows] * mask,
            "mask": mask.astype(np.float32),
        }
        return jax.device_put(batch, self.sharding)


class _Linear(nn.Module):
    """The last layer of a network, alone and under its own name."""

    layer: str
    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name=self.layer)(x)
        return logits.astype(jnp.float32)


def head(
    init: Init, net: Outline, num_features: int, dtype: Any = jnp.float32
) -> tuple[Init, Loss]:
    """The parts of `task.supervised` for training a network's head on its features.

    The state is that of the whole network with all but the head frozen, and so are its checkpoints:
    they serve wherever those do. So does training, to rounding, but for augmentation and for
    dropout before the head, neither of which features go through.

    Args:
      init: (key) -> (params, extra) of the whole network.
      net: its outline.
      num_features: F.
      dtype: the type that the head computes in.

    Returns:
      (init, loss). `loss` reads features as `image` [B, F], otherwise as `losses.classification`.

    Raises:
      InputError: the network's head is not one dense layer on its features.
    """
    params, _ = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
    kernels = {
        layer: leaves["kernel"].shape
        for layer, leaves in params.items()
        if f"{layer}/kernel" in net.head
    }
    if [shape[:-1] for shape in kernels.values()] != [(num_features,)]:
        there = ", ".join(f"{layer} {list(shape)}" for layer, shape in kernels.items())
        raise InputError(
            "only a head of one dense layer trains on cached features, here one of "
            f"[{num_features}, classes]; the network has {there or 'none'}"
        )
    ((layer, (_, num_classes)),) = kernels.items()
    shape: Any = (num_features,)  # no height and no width
    linear = _Linear(layer, num_classes, dtype)
    _, linear_loss = losses.classification(linear, shape, normalize=lambda x: x)
    head_init, _ = freeze(init, linear_loss, net.all_but_head)

    def head_loss(params, extra, batch, key, hparams, train):
        layers = {layer: params[layer]}  # an auxiliary head's, beside it, learns nothing
        mean, _, metrics = linear_loss(layers, {}, batch, key, hparams, train)
        return mean, extra, metrics

    return head_init, head_loss
