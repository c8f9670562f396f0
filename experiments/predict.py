"""Classifies image files with a trained run, preprocessed as that run was trained.

    python -m experiments.predict --workdir=runs/resnet_digits --images a.png b.jpg

prints for each image its name, its class and the probability, one line each.
"""

import dataclasses
import functools
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import classification, cli, training
from experiments.cli import flag
from jaxdl import InputError, augment, checkpoint, data


@dataclasses.dataclass(frozen=True)
class Config:
    """Classifies image files: --workdir=RUN --images a.png b.jpg ..."""

    workdir: str = flag("", "the folder of the run whose latest checkpoint to use")
    images: str = flag("", "an image file; more may follow it, separated by spaces")


def load_classifier(workdir: Path) -> tuple[Callable[[Path], np.ndarray], list[str]]:
    """The classifier that a run trained.

    Returns:
      (path) -> probabilities [C], which raises OSError or CorruptImage for what cannot be read; and
      the names of the classes.

    Raises:
      InputError: the folder holds no run, or no checkpoint.
    """
    experiment = importlib.import_module(f"experiments.{cli.experiment_of(workdir)}")
    config, _ = cli.parse(experiment.Config, [f"--flagfile={workdir / cli.FLAGS_FILE}"])
    inputs = json.loads((workdir / training.INPUTS_FILE).read_text())
    saved = checkpoint.load(workdir)
    variables = {"params": saved["params"], **saved["extra"]}
    model = classification.build_model(config, len(inputs["class_names"]), axis_name=None)
    preprocess = classification.preprocessing(config, inputs["image_shape"][-1])
    normalize = functools.partial(augment.normalize, mean=config.mean, std=config.std)

    @jax.jit
    def probabilities(image):
        logits: Any = model.apply(variables, normalize(image[None]), train=False)
        return jax.nn.softmax(logits)[0]

    def classify(path: Path) -> np.ndarray:
        return np.asarray(probabilities(preprocess(path.read_bytes(), name=str(path))))

    return classify, inputs["class_names"]


def run(argv: list[str]) -> None:
    """Prints a line for each image; what cannot be read is told on stderr and fails the command."""
    config, more = cli.parse(Config, argv)
    if not config.workdir or not config.images:
        raise InputError("give --workdir=RUN, the folder of a run, and --images a.png b.jpg ...")
    classify, class_names = load_classifier(Path(config.workdir))
    paths = [config.images, *more]
    failures = 0
    for path in paths:
        try:
            probabilities = classify(Path(path))
        except (OSError, data.CorruptImage) as error:
            failures += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        best = int(probabilities.argmax())
        print(f"{path}\t{class_names[best]}\t{probabilities[best]:.4f}", flush=True)
    if failures:
        raise InputError(f"{failures} of {len(paths)} images could not be read")


if __name__ == "__main__":
    cli.main(run)
