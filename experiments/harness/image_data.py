"""The flags of image data, for the dataclasses of image experiments to inherit, and its batches."""

import dataclasses
from pathlib import Path

from jax.sharding import Mesh

from experiments.harness.cli import flag, require
from experiments.harness.training import INPUTS_FILE, RunConfig, holds_run, read_inputs
from jaxdl import data, parallel


@dataclasses.dataclass(frozen=True)
class ImageDataFlags(RunConfig):
    """Which images a run is about, and how they are read."""

    dataset: str = flag("digits", "digits, folder:PATH, or the name of a prepared TFDS set")
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

    def check_image_data(self) -> None:
        """Raises InputError for a value that cannot be."""
        for name in ("test", "validation"):
            require(self, name, 0 <= getattr(self, name) < 1, "at least 0 and less than 1")
        require(self, "test", not (self.folds and self.test), "left out with --folds")
        require(self, "image_size", self.image_size >= 1, "at least 1")
        require(self, "crop_share", 0 < self.crop_share <= 1, "more than 0 and at most 1")
        require(self, "channels", self.channels in (None, 1, 3), "1 or 3")
        require(self, "per_class", self.per_class is None or self.per_class >= 1, "at least 1")
        require(self, "workers", self.workers >= 0, "at least 0")


def preprocessing(config: ImageDataFlags, channels: int) -> data.Preprocess:
    """The host's part of the preprocessing, in training and in prediction."""
    return data.Preprocess(config.image_size, channels, config.crop_share, config.random_crop)


def load(config: ImageDataFlags) -> data.Dataset:
    """The data set a config names, with the classes, examples and splits that it asks for."""
    dataset = data.load(config.dataset, config.data_dir or None)
    if config.classes:
        dataset = data.select_classes(dataset, config.classes)
    if config.folds and config.fold is not None:
        # What is held out is the test split: nothing may be chosen by what is to be estimated.
        cut = data.fold(dataset, config.folds, config.fold, config.seed).splits
        dataset = dataset._replace(splits={"train": cut["train"], "test": cut["validation"]})
    if config.test:
        dataset = data.hold_out(dataset, config.test, config.seed, "test")
    if config.validation:
        dataset = data.hold_out(dataset, config.validation, config.seed)
    if config.per_class:
        dataset = data.subsample(dataset, config.per_class, config.seed)
    return dataset


def held_out(config: ImageDataFlags) -> dict[str, str]:
    """For a run's inputs: how shares of the training split are drawn, where any are.

    Runs of before they were drawn by classes had other training images, and cannot go on here.
    """
    return {"held_out": "by classes"} if config.validation or config.folds else {}


def _channels_of(workdir: str) -> int | None:
    """Those that a run goes on with: some of before took gray folders for colored ones."""
    if not workdir or not holds_run(workdir) or not (Path(workdir) / INPUTS_FILE).exists():
        return None
    inputs = read_inputs(workdir)
    shape = inputs.get("image_shape") or inputs.get("sample_shape")
    return int(shape[-1]) if shape else None


def make_pipeline(
    config: ImageDataFlags, mesh: Mesh, batch_size: int | None = None
) -> data.Pipeline:
    """The batches of the data set that a config names.

    Args:
      config: the flags.
      mesh: the devices.
      batch_size: rows of a global batch; --batch_size when None.
    """
    dataset = load(config)
    channels = config.channels or _channels_of(config.workdir) or dataset.channels
    return data.Pipeline(
        dataset,
        preprocessing(config, channels),
        config.batch_size if batch_size is None else batch_size,
        seed=config.seed,
        sharding=parallel.batch_sharding(mesh),
        # The flags' own choices are the literals that mypy misses in these two.
        backend=config.backend,  # type: ignore[arg-type]
        workers=config.workers,
        on_corrupt=config.on_corrupt,  # type: ignore[arg-type]
    )
