"""What generated samples are measured by: features and classes, with a floor and a ceiling beside.

A yardstick looks at samples the way it looks at the data, so generated images are rounded to the
256 levels that real ones have before anything is measured. Nothing measured is a mean over
examples; all is computed on the host, the same on every one.
"""

import contextlib
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.harness import catalogue, classification, cli, image_data, run_folder, training
from jaxdl import InputError, augment, data, fidelity, files, hosts
from jaxdl.losses import SOWN

CHUNK = 256
"""How many samples are looked at at once."""
CLASSIFIER_STEPS = 10_000
"""The most that a classifier is trained to measure with: of a large set it needs few passes."""

Look = tuple[np.ndarray, np.ndarray | None]
"""Features [N, D] and classes int [N] (-1 for none); None where there are no classes."""


class Yardstick(NamedTuple):
    """A way to look at samples.

    Attributes:
      name: what the features are, for people.
      look: (samples [N, ...]) -> Look.
      num_classes: how many classes it tells apart; 0 for none.
    """

    name: str
    look: Callable[[np.ndarray], Look]
    num_classes: int


def of_points(ring: data.Ring) -> Yardstick:
    """The plane itself, and the modes of the ring."""
    look = lambda points: (points, ring.mode_of(points))
    return Yardstick("the plane", look, len(ring.centres))


def of_pixels() -> Yardstick:
    """Means over an 8x8 grid of the image, for data without a classifier: a coarse measure."""

    @jax.jit
    def shrink(images):
        shape = (len(images), 8, 8, images.shape[-1])
        small = jax.image.resize(augment.as_float(images), shape, "linear")
        return (small.reshape(len(images), -1),)

    return Yardstick("8x8 pixels", lambda images: (in_chunks(shrink, images)[0], None), 0)


def of_classifier(workdir: str | Path, channels: int, class_names: tuple[str, ...]) -> Yardstick:
    """The last layer's inputs and the decisions of a classifier that an experiment here trained.

    Args:
      workdir: its run.
      channels: of the images to look at.
      class_names: the classes it must have; any will do for data without classes.

    Raises:
      InputError: there is no such run, or it has other classes or channels.
    """
    run = classification.load_trained(workdir)
    if class_names and run.class_names != class_names:
        raise InputError(
            f"the classifier in {workdir} knows the classes {', '.join(run.class_names[:10])}; the "
            f"data has {', '.join(class_names[:10])}"
        )
    height, width, of_classifier = run.image_shape
    if of_classifier != channels:
        raise InputError(
            f"the classifier in {workdir} takes images of {of_classifier} channels, not {channels}"
        )
    variables = jax.device_put(run.variables)
    mean, std = run.config.classifier.mean, run.config.classifier.std

    @jax.jit
    def look(images):
        shape = (len(images), height, width, channels)
        resized = jax.image.resize(augment.as_float(images), shape, "linear")
        normalized = augment.normalize(resized, mean, std)
        applied: Any = run.model.apply(variables, normalized, train=False, mutable=[SOWN])
        logits, sown = applied
        return sown[SOWN]["features"][0].astype(jnp.float32), jnp.argmax(logits, axis=-1)

    def look_at(images):
        features, classes = in_chunks(look, images)
        return features.reshape(len(features), -1), classes

    return Yardstick(f"{run.config.network.model} of {workdir}", look_at, len(run.class_names))


def in_chunks(function: Callable[..., tuple[Any, ...]], *arrays: np.ndarray) -> list[np.ndarray]:
    """Applies a jitted function to arrays in chunks of one size, and joins what it returns."""
    parts = []
    for start in range(0, len(arrays[0]), CHUNK):
        chunks = [array[start : start + CHUNK] for array in arrays]
        size = len(chunks[0])
        padded = [np.resize(chunk, (CHUNK, *chunk.shape[1:])) for chunk in chunks]
        parts.append([np.asarray(out)[:size] for out in function(*padded)])
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def trained_classifier(config: Any, mesh: Mesh) -> Path:
    """The folder of a LeNet-5 trained on a run's data: trained now where it was not before.

    It lies in runs/, is called after the data and the images held out of it, and serves all runs on
    them. One process trains; others that need it at the same time wait.

    Raises:
      Interrupted: a signal stopped its training.
    """
    lenet = catalogue.load("lenet")
    shared = ("dataset", "data_dir", "classes", "channels", "on_corrupt", "test", "validation")
    values = {name: cli.to_dict(config)[name] for name in (*shared, "folds", "fold")}
    held_out = bool(values["test"] or values["validation"] or values["folds"])
    values["seed"] = config.run.seed if held_out else 0  # which are held out
    classifier = cli.replace(lenet.Config(), **values, eval_every=10**9, log_every=500)
    code = zlib.crc32(cli.to_flags(classifier).encode())
    name = "".join(c if c.isalnum() else "_" for c in config.images.dataset[-32:])
    workdir = Path("runs") / f"classifier_{name}_{code:08x}"
    count = len(image_data.load(config).splits["train"])
    batch_size = min(max(classifier.run.batch_size, mesh.size), count) // mesh.size * mesh.size
    epochs = min(classifier.run.epochs, CLASSIFIER_STEPS * batch_size / count)
    classifier = cli.replace(classifier, workdir=str(workdir), batch_size=batch_size, epochs=epochs)
    with contextlib.ExitStack() as held:
        if hosts.is_first():
            held.enter_context(files.lock(workdir.with_suffix(".lock"), wait=True))
        if hosts.agree((workdir / run_folder.SUMMARY_FILE).exists):
            return workdir
        if hosts.is_first():
            print(f"training the classifier to measure with, once: {workdir}", flush=True)
        with cli.if_interrupted("that is the classifier to measure with; give the same command"):
            training.train(classifier, lenet.build)
    return workdir


def measures(num_classes: int, conditional: bool) -> tuple[str, ...]:
    """The names of the metrics of `Reference.measure`, where the data have so many classes."""
    names = ["frechet_distance", "precision", "recall", "diversity"]
    if num_classes:
        names += ["modes_covered", "class_divergence"]
        names += ["class_accuracy"] if conditional else []
    return tuple(names)


NEIGHBOURS = 3
"""Which neighbour's distance is the radius in precision and recall; more examples are needed."""


class Reference:
    """Held-out data to measure samples against, with what the training data and noise would get.

    Args:
      yardstick: how to look.
      held_out: samples that no player saw, [N, ...].
      train: of the training data as many as will be measured of the generator, [M, ...].
      noise: as many of noise.
      labels: classes that generated samples will be asked to be of, those of `train`, int [M]; None
        where none is asked for.
    """

    def __init__(
        self,
        yardstick: Yardstick,
        held_out: np.ndarray,
        train: np.ndarray,
        noise: np.ndarray,
        labels: np.ndarray | None = None,
    ):
        self._yardstick, self._samples, self.labels = yardstick, held_out, labels
        self.count = len(train)
        self._features, classes = yardstick.look(held_out)
        self._gaussian = fidelity.fit_gaussian(self._features)
        self._shares = None
        if classes is not None:
            self._shares = fidelity.class_shares(classes, yardstick.num_classes)
        self.floor, self.ceiling = self.measure(train), self.measure(noise)

    def measure(self, samples: np.ndarray) -> dict[str, float]:
        """The metrics of samples [M, ...] against the held-out data.

        Returns:
          `frechet_distance`, `precision`, `recall`, `diversity`, where there are classes
          `modes_covered` and `class_divergence` (see `jaxdl.fidelity`), and where classes were
          asked for `class_accuracy`, how often the class is the one that was.
        """
        features, classes = self._yardstick.look(samples)
        distance = fidelity.frechet_distance(fidelity.fit_gaussian(features), self._gaussian)
        precision, recall = fidelity.precision_recall(self._features, features, NEIGHBOURS)
        measured = {
            "frechet_distance": distance,
            "precision": precision,
            "recall": recall,
            "diversity": fidelity.diversity(samples, self._samples),
        }
        if classes is not None and self._shares is not None:
            shares = fidelity.class_shares(classes, self._yardstick.num_classes)
            measured["modes_covered"] = float(fidelity.modes_covered(shares, self._shares))
            measured["class_divergence"] = fidelity.class_divergence(shares, self._shares)
            if self.labels is not None:
                measured["class_accuracy"] = float(np.mean(classes == self.labels))
        return measured

    def table(self, measured: Mapping[str, float]) -> str:
        """The metrics of generated samples, as lines, with what data and noise get below."""
        rows = {"generated": measured, "training data": self.floor, "noise": self.ceiling}
        lines = ["".join([" " * 14, *(f"{name:>18}" for name in self.floor)])]
        for title, row in rows.items():
            lines.append("".join([f"{title:14}", *(f"{row[name]:18.4g}" for name in self.floor)]))
        return "\n".join(lines)
