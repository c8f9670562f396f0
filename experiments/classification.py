"""Classifying images: the flags and the Problem that all image experiments share."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments.augmentation import AugmentFlags
from experiments.cli import flag, require
from experiments.method import MethodFlags
from experiments.training import Problem, RunConfig
from jaxdl import augment, data, losses, models, parallel
from jaxdl.nn import INITIALIZERS, initializer
from jaxdl.task import Init, Loss, Optimizer, Schedule, Task, supervised

AUGMENT = AugmentFlags.__dataclass_fields__["augment"]


@dataclasses.dataclass(frozen=True)
class Config(MethodFlags, AugmentFlags, RunConfig):
    """The flags of an image classification run."""

    dataset: str = flag("digits", "digits, folder:PATH, or the name of a prepared TFDS set")
    data_dir: str = flag("", "where TFDS sets are; TFDS's own place when empty", part_of_run=False)
    validation: float = flag(0.0, "share of the training split to hold out for validation")
    image_size: int = flag(16, "height and width that images are resized to, in pixels")
    crop_share: float = flag(1.0, "share of the resized image that evaluation's crop keeps")
    random_crop: bool = flag(False, "train on Inception's random crops, cut on the host")
    channels: int | None = flag(None, "1 for gray, 3 for RGB; as the data set has when empty")
    classes: tuple[str, ...] = flag((), "names of the classes to keep; all when empty")
    per_class: int | None = flag(None, "training examples of each class to keep, drawn by --seed")
    augment: tuple[str, ...] = flag(
        ("warp",), AUGMENT.metadata["help"], AUGMENT.metadata["choices"]
    )
    mean: tuple[float, ...] = flag((0.5,), "subtracted from images in [0, 1]; one or one a channel")
    std: tuple[float, ...] = flag((0.5,), "what that is divided by")
    backend: str = flag(
        "auto",
        "where examples are kept: on the device, or read by Grain",
        ("auto", "resident", "grain"),
        part_of_run=False,
    )
    workers: int = flag(0, "Grain's worker processes; 0 for threads", part_of_run=False)
    on_corrupt: str = flag("fail", "what an unreadable image does", ("fail", "skip"))
    model: str = flag("resnet20_cifar", "a name of jaxdl.models.names()")
    warmup_epochs: float = flag(1.0, "passes over which the learning rate rises in a line")
    l2_penalty: float | None = flag(5e-4, "weight of |params|^2 / 2 in what is minimized")
    label_smoothing: float = flag(0.1, "share of the uniform distribution in the target")
    init: str = flag(
        "",
        "how kernels are drawn (Xavier is Glorot, Kaiming is He); as the network has it when empty",
        ("", *INITIALIZERS),
    )
    init_scale: float | None = flag(None, "of --init: factor, standard deviation or constant")
    norm_momentum: float | None = flag(None, "of batch norms: how much of their averages stays")
    norm_epsilon: float | None = flag(None, "of batch norms: added to the variance")
    aux_weight: float = flag(0.0, "of the losses of auxiliary heads, where the model has any")
    grad_accum: int = flag(1, "parts that a batch is computed in, to save memory")

    # The flags of an experiment that are keyword arguments of its models.
    MODEL_FLAGS: ClassVar[tuple[str, ...]] = ()

    @property
    def model_arguments(self) -> dict[str, Any]:
        """Those flags that say something; the rest is as the model has it."""
        names = (*self.MODEL_FLAGS, "norm_momentum", "norm_epsilon")
        values = {name: getattr(self, name) for name in names}
        return {k: v for k, v in values.items() if v is not None and v is not False and v != ""}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_method()
        self.check_augmentation()
        build_model(self, num_classes=10, axis_name=None)  # does it exist?
        require(self, "validation", 0 <= self.validation < 1, "at least 0 and less than 1")
        require(self, "image_size", self.image_size >= 1, "at least 1")
        require(self, "crop_share", 0 < self.crop_share <= 1, "more than 0 and at most 1")
        require(self, "label_smoothing", 0 <= self.label_smoothing < 1, "at least 0, less than 1")
        require(self, "channels", self.channels in (None, 1, 3), "1 or 3")
        require(self, "per_class", self.per_class is None or self.per_class >= 1, "at least 1")
        require(self, "folds", not (self.folds and self.validation), "left out with --validation")
        momentum, epsilon = self.norm_momentum, self.norm_epsilon
        require(self, "norm_momentum", momentum is None or 0 <= momentum < 1, "in [0, 1)")
        require(self, "norm_epsilon", epsilon is None or epsilon > 0, "more than 0")
        scaled = self.init_scale is None or self.init != ""
        require(self, "init_scale", scaled, "left out without --init")
        for name in ("warmup_epochs", "workers", "aux_weight"):
            value = getattr(self, name)
            require(self, name, math.isfinite(value) and value >= 0, "at least 0")
        require(self, "std", all(s > 0 for s in self.std), "more than 0")
        require(
            self,
            "grad_accum",
            self.grad_accum >= 1 and self.batch_size % self.grad_accum == 0,
            f"at least 1 and a divisor of the batch_size {self.batch_size}",
        )


def build_model(config: Config, num_classes: int, axis_name: str | None) -> nn.Module:
    """The model that a config names."""
    dtype = jnp.dtype(config.precision)
    arguments = config.model_arguments
    model = models.create(config.model, num_classes=num_classes, dtype=dtype, **arguments)
    # Only a network with batch statistics has something to synchronize.
    return model.clone(axis_name=axis_name) if hasattr(model, "axis_name") else model


def preprocessing(config: Config, channels: int) -> data.Preprocess:
    """The host's part of the preprocessing, in training and in prediction."""
    return data.Preprocess(config.image_size, channels, config.crop_share, config.random_crop)


def load(config: Config) -> data.Dataset:
    """The data set a config names, with the classes, examples and splits that it asks for."""
    dataset = data.load(config.dataset, config.data_dir or None)
    if config.classes:
        dataset = data.only(dataset, config.classes)
    if config.validation:
        dataset = data.split_off(dataset, config.validation, config.seed)
    if config.folds and config.fold is not None:
        dataset = data.fold(dataset, config.folds, config.fold, config.seed)
    if config.per_class:
        dataset = data.few(dataset, config.per_class, config.seed)
    return dataset


def make_pipeline(config: Config, mesh: Mesh) -> data.Pipeline:
    """The batches of the data set that a config names."""
    dataset = load(config)
    return data.Pipeline(
        dataset,
        preprocessing(config, config.channels or dataset.channels),
        config.batch_size,
        seed=config.seed,
        sharding=parallel.batch_sharding(mesh),
        # The flags' own choices are the literals that mypy misses in these two.
        backend=config.backend,  # type: ignore[arg-type]
        workers=config.workers,
        on_corrupt=config.on_corrupt,  # type: ignore[arg-type]
    )


Parts = tuple[Init, Loss, Optimizer, Schedule]
"""What `task.supervised` makes a Task of."""


def build(
    config: Config,
    mesh: Mesh,
    example_loss: losses.ExampleLoss = losses.cross_entropy,
    adapt: Callable[..., Parts] = lambda *parts: parts,
) -> Problem:
    """The Problem of training a classifier on a data set.

    Args:
      config: the flags.
      mesh: the devices.
      example_loss: of the logits.
      adapt: (init, loss, optimizer, schedule) -> the same, changed before a Task is made of them.
    """
    pipeline = make_pipeline(config, mesh)
    dataset, channels = pipeline.dataset, pipeline.image_shape[-1]
    examples = {split: pipeline.examples(split) for split in dataset.splits}
    steps_per_epoch = examples["train"] / config.batch_size
    steps = config.steps or max(1, round(config.epochs * steps_per_epoch))
    warmup = min(round(config.warmup_epochs * steps_per_epoch), steps - 1)
    for name in ("mean", "std"):
        fits = len(getattr(config, name)) in (1, channels)
        require(config, name, fits, f"one number, or one for each of {channels} channels")
    num_classes = len(dataset.class_names)
    normalize = functools.partial(augment.normalize, mean=config.mean, std=config.std)
    augmentation = config.make_augment(fill=config.mean)
    image = jax.ShapeDtypeStruct((1, *pipeline.image_shape), jnp.uint8)
    jax.eval_shape(augmentation, jax.random.key(0), image)  # does it fit the images?
    mix = config.make_mix(num_classes)
    draw = initializer(config.init, config.init_scale) if config.init else None

    def task(axis_name: str | None) -> Task:
        init, loss = losses.classification(
            build_model(config, num_classes, axis_name),
            pipeline.image_shape,
            normalize,
            augmentation,
            example_loss,
            config.aux_weight,
            mix,
            draw,
        )
        return supervised(
            *adapt(init, loss, config.make_optimizer(), config.make_schedule(steps, warmup)),
            accumulate=config.grad_accum,
            loss_scaling=config.precision == "float16",
            axis_name=axis_name,
        )

    def table() -> str:
        model = build_model(config, num_classes, None)
        images = jnp.zeros((1, *pipeline.image_shape))
        text = nn.tabulate(model, jax.random.key(0), console_kwargs={"width": 120})
        return text(images, train=False)

    def show(key, batch):
        images = augment.as_float(augmentation(key, batch["image"]))
        return mix(key, images, batch["label"], batch["mask"])[0] if mix else images

    return Problem(
        title=f"{config.model} learning {config.dataset}",
        task=task,
        hparams=config.hparams | {"label_smoothing": config.label_smoothing},
        steps=steps,
        examples=examples,
        batches=pipeline.train,
        passes=pipeline.evaluate,
        table=table,
        show=lambda key, batch: show(key, {k: v[:16] for k, v in batch.items()}),
        unit="images",
        best="eval/accuracy",
        inputs={"image_shape": pipeline.image_shape, "class_names": dataset.class_names},
        notes=lambda: {"unreadable_images": pipeline.skipped},
    )
