"""The flags of image data, and the batches of the data set that they name."""

import dataclasses
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from experiments.harness.cli import flag, require
from experiments.harness.run_folder import INPUTS_FILE, holds_run, read_inputs
from jaxdl import data, parallel


@dataclasses.dataclass(frozen=True)
class ImageDataFlags:
    """Which images a run is about, and how they are read."""

    dataset: str = flag(
        "digits", "digits, folder:PATH, idx:FOLDER, noise:HxWxC:CLASSES, or a prepared TFDS set"
    )
    data_dir: str = flag("", "where TFDS sets are; TFDS's own place when empty", part_of_run=False)
    test: float = flag(0.0, "share of the training split to hold out for testing")
    validation: float = flag(0.0, "share of what is then left to hold out for validation")
    image_size: int = flag(16, "height and width that images are resized to, in pixels")
    crop_share: float = flag(1.0, "share of the resized image that evaluation's crop keeps")
    random_crop: bool = flag(False, "train on Inception's random crops, cut on the host")
    channels: int | None = flag(None, "1 for gray, 3 for RGB; as the data set has when empty")
    classes: tuple[str, ...] = flag((), "names of the classes to keep; all when empty")
    per_class: int | None = flag(None, "training examples of each class to keep, drawn by --seed")
    backend: str = flag(
        "auto",
        "where examples are kept: on the device, or read by Grain",
        ("auto", "resident", "grain"),
        part_of_run=False,
    )
    workers: int = flag(0, "Grain's worker processes; 0 for threads", part_of_run=False)
    on_corrupt: str = flag("fail", "what an unreadable image does", ("fail", "skip"))

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be."""
        for name in ("test", "validation"):
            require(self, name, 0 <= getattr(self, name) < 1, "at least 0 and less than 1")
        require(self, "image_size", self.image_size >= 1, "at least 1")
        require(self, "crop_share", 0 < self.crop_share <= 1, "more than 0 and at most 1")
        require(self, "channels", self.channels in (None, 1, 3), "1 or 3")
        require(self, "per_class", self.per_class is None or self.per_class >= 1, "at least 1")
        require(self, "workers", self.workers >= 0, "at least 0")


def check(config: Any) -> None:
    """Raises InputError for flags of a run that do not fit those of its images."""
    require(config, "test", not (config.run.folds and config.images.test), "left out with --folds")


def preprocessing(config: Any, channels: int) -> data.Preprocess:
    """The host's part of the preprocessing, in training and in prediction."""
    images = config.images
    return data.Preprocess(images.image_size, channels, images.crop_share, images.random_crop)


def load(config: Any) -> data.Dataset:
    """The data set a config names, with the classes, examples and splits that it asks for."""
    dataset = data.load(config.images.dataset, config.images.data_dir or None)
    if config.images.classes:
        dataset = data.select_classes(dataset, config.images.classes)
    if config.run.folds and config.run.fold is not None:
        # What is held out is the test split: nothing may be chosen by what is to be estimated.
        cut = data.fold(dataset, config.run.folds, config.run.fold, config.run.seed).splits
        dataset = dataset._replace(splits={"train": cut["train"], "test": cut["validation"]})
    if config.images.test:
        dataset = data.hold_out(dataset, config.images.test, config.run.seed, "test")
    if config.images.validation:
        dataset = data.hold_out(dataset, config.images.validation, config.run.seed)
    if config.images.per_class:
        dataset = data.subsample(dataset, config.images.per_class, config.run.seed)
    return dataset


def held_out(config: Any) -> dict[str, str]:
    """For a run's inputs: how shares of the training split are drawn, where any are.

    Runs of before they were drawn by classes had other training images, and cannot go on here.
    """
    return {"held_out": "by classes"} if config.images.validation or config.run.folds else {}


def _channels_of(workdir: str) -> int | None:
    """Those that a run goes on with: some of before took gray folders for colored ones."""
    if not workdir or not holds_run(workdir) or not (Path(workdir) / INPUTS_FILE).exists():
        return None
    inputs = read_inputs(workdir)
    shape = inputs.get("image_shape") or inputs.get("sample_shape")
    return int(shape[-1]) if shape else None


def make_pipeline(config: Any, mesh: Mesh, batch_size: int | None = None) -> data.Pipeline:
    """The batches of the data set that a config names.

    Args:
      config: the flags.
      mesh: the devices.
      batch_size: rows of a global batch; --batch_size when None.
    """
    dataset = load(config)
    channels = config.images.channels or _channels_of(config.run.workdir) or dataset.channels
    return data.Pipeline(
        dataset,
        preprocessing(config, channels),
        config.run.batch_size if batch_size is None else batch_size,
        seed=config.run.seed,
        sharding=parallel.batch_sharding(mesh),
        backend=config.images.backend,
        workers=config.images.workers,
        on_corrupt=config.images.on_corrupt,
    )
