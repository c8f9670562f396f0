"""Classifying images: the flags and the Problem that all image experiments share."""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments.cli import flag, require
from experiments.training import Problem, RunConfig
from jaxdl import augment, data, losses, models, optim, parallel
from jaxdl.task import Task, supervised

AUGMENTS = ("flip", "crop", "resized_crop", "warp")


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """The flags of an image classification run."""

    dataset: str = flag("digits", "digits, folder:PATH, or the name of a prepared TFDS set")
    data_dir: str = flag("", "where TFDS sets are; TFDS's own place when empty", part_of_run=False)
    validation: float = flag(0.0, "share of the training split to hold out for validation")
    image_size: int = flag(16, "height and width that images are resized to, in pixels")
    crop_share: float = flag(1.0, "share of the resized image that evaluation's crop keeps")
    random_crop: bool = flag(False, "train on Inception's random crops, cut on the host")
    augment: tuple[str, ...] = flag(("warp",), "what training images go through", AUGMENTS)
    padding: int = flag(4, "pixels that `crop` pads each side with before it crops")
    degrees: float = flag(10.0, "greatest rotation of `warp`")
    shift: float = flag(0.1, "greatest shift of `warp`, as a share of the side")
    scale: float = flag(0.1, "greatest change of size of `warp`, as a share")
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
    optimizer: str = flag("nesterov", "the method", tuple(optim.OPTIMIZERS))
    learning_rate: float = flag(0.1, "its peak")
    momentum: float = flag(0.9, "of the optimizers that have one")
    schedule: str = flag("cosine", "of the learning rate after warm-up", tuple(optim.SCHEDULES))
    warmup_epochs: float = flag(1.0, "passes over which the learning rate rises in a line")
    weight_decay: float = flag(5e-4, "never on biases and norm scales")
    label_smoothing: float = flag(0.1, "share of the uniform distribution in the target")
    clip_norm: float | None = flag(None, "greatest global norm of the gradient")
    aux_weight: float = flag(0.0, "of the losses of auxiliary heads, where the model has any")
    grad_accum: int = flag(1, "parts that a batch is computed in, to save memory")

    # The flags of an experiment that are keyword arguments of its models.
    MODEL_FLAGS: ClassVar[tuple[str, ...]] = ()

    @property
    def model_arguments(self) -> dict[str, Any]:
        """Those flags that say something; the rest is as the model has it."""
        values = {name: getattr(self, name) for name in self.MODEL_FLAGS}
        return {k: v for k, v in values.items() if v is not None and v is not False and v != ""}

    def __post_init__(self) -> None:
        super().__post_init__()
        build_model(self, num_classes=10, axis_name=None)  # does it exist?
        require(self, "validation", 0 <= self.validation < 1, "at least 0 and less than 1")
        require(self, "image_size", self.image_size >= 1, "at least 1")
        require(self, "crop_share", 0 < self.crop_share <= 1, "more than 0 and at most 1")
        require(self, "label_smoothing", 0 <= self.label_smoothing < 1, "at least 0, less than 1")
        require(self, "momentum", 0 <= self.momentum < 1, "at least 0 and less than 1")
        require(self, "clip_norm", self.clip_norm is None or self.clip_norm > 0, "more than 0")
        for name in (
            "learning_rate",
            "weight_decay",
            "warmup_epochs",
            "padding",
            "workers",
            "aux_weight",
        ):
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


def build_augment(config: Config) -> augment.Augment:
    """The augmentations a config names, in the order it names them."""
    known = {
        "flip": augment.flip,
        "crop": augment.padded_crop(config.padding),
        "resized_crop": augment.random_resized_crop(),
        "warp": augment.warp(config.degrees, config.shift, config.scale),
    }
    return augment.compose(*(known[name] for name in config.augment))


def preprocessing(config: Config, channels: int) -> data.Preprocess:
    """The host's part of the preprocessing, in training and in prediction."""
    return data.Preprocess(config.image_size, channels, config.crop_share, config.random_crop)


def build(
    config: Config, mesh: Mesh, example_loss: losses.ExampleLoss = losses.cross_entropy
) -> Problem:
    """The Problem of training a classifier on a data set."""
    dataset = data.load(config.dataset, config.data_dir or None)
    if config.validation:
        dataset = data.split_off(dataset, config.validation, config.seed)
    pipeline = data.Pipeline(
        dataset,
        preprocessing(config, dataset.channels),
        config.batch_size,
        seed=config.seed,
        sharding=parallel.batch_sharding(mesh),
        # The flags' own choices are the literals that mypy misses here.
        backend=config.backend,  # type: ignore[arg-type]
        workers=config.workers,
        on_corrupt=config.on_corrupt,  # type: ignore[arg-type]
    )
    examples = {split: pipeline.examples(split) for split in dataset.splits}
    steps_per_epoch = examples["train"] / config.batch_size
    steps = config.steps or max(1, round(config.epochs * steps_per_epoch))
    warmup = min(round(config.warmup_epochs * steps_per_epoch), steps - 1)
    for name in ("mean", "std"):
        fits = len(getattr(config, name)) in (1, dataset.channels)
        require(config, name, fits, f"one number, or one for each of {dataset.channels} channels")
    num_classes = len(dataset.class_names)
    normalize = functools.partial(augment.normalize, mean=config.mean, std=config.std)
    augmentation = build_augment(config)

    def task(axis_name: str | None) -> Task:
        init, loss = losses.classification(
            build_model(config, num_classes, axis_name),
            pipeline.image_shape,
            normalize,
            augmentation,
            example_loss,
            config.aux_weight,
        )
        return supervised(
            init,
            loss,
            optim.optimizer(config.optimizer, config.clip_norm),
            optim.schedule(config.schedule, steps, warmup),
            accumulate=config.grad_accum,
            axis_name=axis_name,
        )

    def table() -> str:
        model = build_model(config, num_classes, None)
        images = jnp.zeros((1, *pipeline.image_shape))
        text = nn.tabulate(model, jax.random.key(0), console_kwargs={"width": 120})
        return text(images, train=False)

    return Problem(
        title=f"{config.model} learning {config.dataset}",
        task=task,
        hparams={
            name: getattr(config, name)
            for name in ("learning_rate", "momentum", "weight_decay", "label_smoothing")
        },
        steps=steps,
        examples=examples,
        batches=pipeline.train,
        passes=pipeline.evaluate,
        table=table,
        show=lambda key, batch: augment.as_float(augmentation(key, batch["image"][:16])),
        unit="images",
        best="eval/accuracy",
        inputs={"image_shape": pipeline.image_shape, "class_names": dataset.class_names},
        notes=lambda: {"unreadable_images": pipeline.skipped},
    )
