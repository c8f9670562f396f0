"""Classifies image files with a trained run, or with published weights.

    python -m experiments.predict --workdir=runs/resnet_digits --images a.png b.jpg

prints for each image its name, its class and the probability, one line each. Images are
preprocessed as that run was trained.

    python -m experiments.predict --model=resnet50 --weights=resnet50.safetensors --images photos

prints five such lines for each image below the folder, for its best classes from the best on.
Images are preprocessed as those weights were trained. Classes are numbers, or the lines of
--labels=FILE.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from tqdm import tqdm

from experiments.harness import classification, cli, image_data
from experiments.harness.cli import flag, require
from jaxdl import InputError, augment, data, models, pretrained
from jaxdl.data.folders import IMAGE_SUFFIXES


@dataclasses.dataclass(frozen=True)
class Config:
    """Classifies images: --workdir=RUN or --model=NAME --weights=FILE, and --images a.png ..."""

    workdir: str = flag("", "the folder of the run whose latest checkpoint to use")
    model: str = flag("", "instead of a run, a name of jaxdl.pretrained.names()")
    weights: str = flag("", "its weights under their published names: .safetensors, .npz, .pth")
    resize: int = flag(0, "shorter side they take images at, before the crop; 0 for the usual one")
    labels: str = flag("", "names of their classes, a text file with one in each line")
    images: str = flag("", "an image file or a folder; more may follow it, separated by spaces")

    def __post_init__(self) -> None:
        published = self.model or self.weights or self.labels or self.resize
        complete = self.model and self.weights
        if not self.images or (published and self.workdir) or not (complete or self.workdir):
            raise InputError(
                "give --workdir=RUN, the folder of a run, or --model=NAME --weights=FILE, and "
                "--images a.png b.jpg ..."
            )


# (path) -> probabilities [C]; raises OSError or CorruptImage for what cannot be read.
Classify = Callable[[str], np.ndarray]


def classifier(
    model: nn.Module,
    variables: Any,
    preprocess: data.Preprocess,
    mean: Sequence[float],
    std: Sequence[float],
) -> Classify:
    """A network as a function of image files."""
    variables = jax.device_put(variables)

    @jax.jit
    def probabilities(variables, image):
        images = augment.normalize(image[None], mean, std)
        logits: Any = model.apply(variables, images, train=False)
        return jax.nn.softmax(logits)[0]

    def classify(path: str) -> np.ndarray:
        image = preprocess(Path(path).read_bytes(), name=path)
        return np.asarray(probabilities(variables, image))

    return classify


def load_run(workdir: Path) -> tuple[Classify, Sequence[str]]:
    """The classifier that a run trained, its averages if it kept any, and its classes' names.

    Raises:
      InputError: the folder holds no run, or no checkpoint.
    """
    run = classification.load_trained(workdir)
    preprocess = image_data.preprocessing(run.config, run.image_shape[-1])
    mean, std = run.config.classifier.mean, run.config.classifier.std
    return classifier(run.model, run.variables, preprocess, mean, std), run.class_names


def load_published(config: Config) -> tuple[Classify, Sequence[str]]:
    """The classifier with published weights, and the names of its classes.

    Raises:
      InputError: the weights do not fit the model, or a flag does not fit the weights.
    """
    preparation = pretrained.preprocessing(config.model)
    if config.resize:
        least = preparation.crop
        require(config, "resize", config.resize >= least, f"at least {least}, what is then cut out")
        preparation = preparation._replace(resize=config.resize)
    state_dict = pretrained.read(config.weights)
    num_classes = pretrained.num_classes_of(config.model, state_dict)
    try:
        variables = pretrained.from_torch(config.model, state_dict, num_classes=num_classes)
    except InputError as error:
        raise InputError(f"{config.weights}: {error}") from None
    model = models.create(config.model, num_classes=num_classes)
    class_names = [str(number) for number in range(num_classes)]
    if config.labels:
        class_names = Path(config.labels).read_text(errors="replace").splitlines()
        fits = len(class_names) == num_classes
        require(config, "labels", fits, f"of {num_classes} lines, a class each")
    mean, std = preparation.mean, preparation.std
    return classifier(model, variables, preparation.host(), mean, std), class_names


def find_images(paths: Sequence[str]) -> list[str]:
    """The paths, with the images below it in the place of a folder.

    Raises:
      InputError: there are none in a folder.
    """
    found = []
    for path in paths:
        if not Path(path).is_dir():
            found.append(path)
            continue
        files = sorted(file for file in Path(path).rglob("[!.]*") if file.is_file())
        images = [str(file) for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise InputError(f"no file in {path} ends in {', '.join(IMAGE_SUFFIXES)}")
        found += images
    return found


def run(argv: list[str]) -> None:
    """Prints lines for each image; what cannot be read is told on stderr and fails the command."""
    config, more = cli.parse(Config, argv)
    paths = find_images([config.images, *more])
    if config.workdir:
        classify, class_names = load_run(Path(config.workdir))
        lines = 1
    else:
        classify, class_names = load_published(config)
        lines = 5
    failures = 0
    for path in tqdm(paths, unit="image", dynamic_ncols=True, disable=not sys.stderr.isatty()):
        try:
            probabilities = classify(path)
        except (OSError, data.CorruptImage) as error:
            failures += 1
            with tqdm.external_write_mode():
                print(f"error: {error}", file=sys.stderr)
            continue
        best = np.argsort(-probabilities, kind="stable")[:lines]
        with tqdm.external_write_mode():
            for i in best:
                print(f"{path}\t{class_names[i]}\t{probabilities[i]:.4f}", flush=True)
    if failures:
        raise InputError(f"{failures} of {len(paths)} images could not be read")


if __name__ == "__main__":
    cli.main(run)
