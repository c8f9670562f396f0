"""A trained classifier as one function of images, to predict with, to measure, and to give away."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import classification, image_data
from experiments.harness.cli import flag
from jaxdl import InputError, augment, data, models, pretrained

PLATFORMS = ("cpu", "cuda", "tpu")


@dataclasses.dataclass(frozen=True)
class ServerFlags:
    """Which classifier: a run's, or a network with published weights."""

    workdir: str = flag("", "the folder of the run whose latest checkpoint to use")
    model: str = flag("", "instead of a run, a name of jaxdl.pretrained.names()")
    weights: str = flag("", "its weights under their published names: .safetensors, .npz, .pth")
    resize: int = flag(0, "shorter side they take images at, before the crop; 0 for the usual one")
    labels: str = flag("", "names of their classes, a text file with one in each line")

    def require_one(self, others: str) -> None:
        """Raises InputError unless it is one or the other, completely.

        Args:
          others: what else the command wants, such as "--out=FILE".
        """
        published = self.model or self.weights or self.labels or self.resize
        complete = self.model and self.weights
        if (published and self.workdir) or not (complete or self.workdir):
            raise InputError(
                "give --workdir=RUN, the folder of a run, or --model=NAME --weights=FILE, and "
                f"{others}"
            )

    def server(self) -> "Server":
        """The classifier."""
        if self.workdir:
            return of_run(self.workdir)
        return of_weights(self.model, self.weights, self.resize, self.labels)


class Server(NamedTuple):
    """A classifier.

    Attributes:
      function: (images [B, H, W, C], uint8, or float32 that is normalized) -> probabilities [B, K].
      image_shape: (H, W, C).
      class_names: K of them.
      preprocess: an encoded image -> uint8 [H, W, C], as it was trained.
      title: what it is.
    """

    function: Callable[[Any], Any]
    image_shape: tuple[int, int, int]
    class_names: Sequence[str]
    preprocess: data.Preprocess
    title: str

    def exported(self, dtype: Any = np.uint8) -> "jax.export.Exported":
        """The function for any number of images, on any of `PLATFORMS`, with its weights in it.

        Args:
          dtype: of the images: uint8, or float32 where they are normalized beforehand.
        """
        (count,) = jax.export.symbolic_shape("b")
        images = jax.ShapeDtypeStruct((count, *self.image_shape), dtype)
        return jax.export.export(jax.jit(self.function), platforms=PLATFORMS)(images)

    def classify(self) -> Callable[[str], np.ndarray]:
        """(path) -> probabilities [K]; raises OSError or CorruptImage for what cannot be read.

        It runs what `exported` gives away, so that both give the same bits.
        """
        call = jax.jit(self.exported().call)

        def probabilities(path: str) -> np.ndarray:
            image = self.preprocess(Path(path).read_bytes(), name=path)
            return np.asarray(call(image[None]))[0]

        return probabilities


def _function(
    model: nn.Module, variables: Any, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Any], Any]:
    variables = jax.device_put(variables)

    def probabilities(images):
        if images.dtype == jnp.uint8:
            images = augment.normalize(images, mean, std)
        logits: Any = model.apply(variables, images, train=False)
        return jax.nn.softmax(logits)

    return probabilities


def of_run(workdir: str | Path) -> Server:
    """The classifier that a run trained: its averages if it kept any.

    Raises:
      InputError: the folder holds no run of a classifier, or no checkpoint.
    """
    run = classification.load_trained(workdir)
    flags = run.config.classifier
    return Server(
        _function(run.model, run.variables, flags.mean, flags.std),
        run.image_shape,
        run.class_names,
        image_data.preprocessing(run.config, run.image_shape[-1]),
        f"{run.config.network.model} of {workdir}",
    )


def of_weights(name: str, weights: str, resize: int = 0, labels: str = "") -> Server:
    """A classifier with published weights.

    Args:
      name: one of `jaxdl.pretrained.names()`.
      weights: a file of them, under their published names.
      resize: the shorter side that images are brought to before the crop; 0 for the usual one.
      labels: a text file with a class in each line; empty for numbers.

    Raises:
      InputError: the weights do not fit the model, or the labels or `resize` not the weights.
    """
    preparation = pretrained.preprocessing(name)
    if resize:
        least = preparation.crop
        if resize < least:
            raise InputError(
                f"--resize={resize}: it must be at least {least}, what is then cut out"
            )
        preparation = preparation._replace(resize=resize)
    state_dict = pretrained.read(weights)
    num_classes = pretrained.num_classes_of(name, state_dict)
    try:
        variables = pretrained.from_torch(name, state_dict, num_classes=num_classes)
    except InputError as error:
        raise InputError(f"{weights}: {error}") from None
    class_names = [str(number) for number in range(num_classes)]
    if labels:
        class_names = Path(labels).read_text(errors="replace").splitlines()
        if len(class_names) != num_classes:
            raise InputError(
                f"--labels={labels}: it must be of {num_classes} lines, a class each, not "
                f"{len(class_names)}"
            )
    model = models.create(name, num_classes=num_classes)
    crop = preparation.crop
    return Server(
        _function(model, variables, preparation.mean, preparation.std),
        (crop, crop, 3),
        class_names,
        preparation.host(),
        f"{name} with {weights}",
    )
