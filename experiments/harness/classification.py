"""Classifying images: the flags and the Problem that all image experiments share."""

import dataclasses
import functools
import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.harness import cli, image_data, training
from experiments.harness.augmentation import AugmentFlags
from experiments.harness.cli import flag, require
from experiments.harness.image_data import ImageDataFlags
from experiments.harness.method import GRADIENT_DESCENT, MethodFlags, warmup_steps
from experiments.harness.training import Problem
from jaxdl import InputError, augment, checkpoint, data, losses, models, transfer
from jaxdl.nn import INITIALIZERS, initializer, tabulate
from jaxdl.task import Init, Loss, Optimizer, Schedule, Task, supervised

L2_PENALTY = 5e-4
AUGMENT = AugmentFlags.__dataclass_fields__["augment"]


@dataclasses.dataclass(frozen=True)
class Config(MethodFlags, AugmentFlags, ImageDataFlags):
    """The flags of an image classification run."""

    augment: tuple[str, ...] = flag(
        ("warp",), AUGMENT.metadata["help"], AUGMENT.metadata["choices"]
    )
    mean: tuple[float, ...] = flag((0.5,), "subtracted from images in [0, 1]; one or one a channel")
    std: tuple[float, ...] = flag((0.5,), "what that is divided by")
    model: str = flag("resnet20_cifar", "a name of jaxdl.models.names()")
    warmup_epochs: float = flag(1.0, "passes over which the learning rate rises in a line")
    l2_penalty: float | None = flag(
        None,
        f"weight of |params|^2 / 2 in what is minimized; when empty {L2_PENALTY:g} for "
        f"{', '.join(GRADIENT_DESCENT)} without --weight_decay; a flagfile's is left out where the "
        "command line has another --optimizer or --weight_decay",
    )
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
        # A penalty is tuned for a method: no other method inherits it.
        descends = self.optimizer in GRADIENT_DESCENT
        if descends and self.l2_penalty is None and self.weight_decay is None:
            object.__setattr__(self, "l2_penalty", L2_PENALTY)
        self.check_method()
        self.check_augmentation()
        self.check_image_data()
        for name in {"width", "growth_rate"}.intersection(self.MODEL_FLAGS):
            value = getattr(self, name)
            require(self, name, value is None or value > 0, "more than 0")
        build_model(self, num_classes=10, axis_name=None)  # does it exist?
        require(self, "label_smoothing", 0 <= self.label_smoothing < 1, "at least 0, less than 1")
        momentum, epsilon = self.norm_momentum, self.norm_epsilon
        require(self, "norm_momentum", momentum is None or 0 <= momentum < 1, "in [0, 1)")
        require(self, "norm_epsilon", epsilon is None or epsilon > 0, "more than 0")
        scaled = self.init_scale is None or self.init != ""
        require(self, "init_scale", scaled, "left out without --init")
        scale = 1.0 if self.init_scale is None or self.init == "constant" else self.init_scale
        require(self, "init_scale", scale > 0, "more than 0")
        for name in ("warmup_epochs", "aux_weight"):
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


class Trained(NamedTuple):
    """What a run of an image experiment has come to.

    Attributes:
      config: its flags.
      model: the network.
      variables: its averages where it kept any, as numpy arrays.
      image_shape: (height, width, channels) of the images it takes.
      class_names: what its outputs stand for.
    """

    config: Config
    model: nn.Module
    variables: dict[str, Any]
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]


def config_of(workdir: str | Path) -> Config:
    """The flags of a run.

    Raises:
      InputError: there is no run, or none that classifies images.
    """
    name = cli.experiment_of(workdir)
    config_type = importlib.import_module(f"experiments.{name}").Config
    config, _ = cli.parse(config_type, [f"--flagfile={Path(workdir) / cli.FLAGS_FILE}"])
    if not isinstance(config, Config):
        raise InputError(f"{workdir} holds a run of experiments.{name}: no classifier")
    return config


def load_trained(workdir: str | Path) -> Trained:
    """The classifier that a run has trained.

    Raises:
      InputError: the folder holds no such run, or no checkpoint, or files that do not fit together.
    """
    config = config_of(workdir)
    inputs = training.read_inputs(workdir, class_names=list, image_shape=list)
    saved = checkpoint.load(workdir, training.went_back_to(workdir))
    trained = saved["average"] or saved
    variables = transfer.merged(trained["params"], trained["extra"])
    height, width, channels = inputs["image_shape"]
    model = build_model(config, len(inputs["class_names"]), axis_name=None)
    image = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
    wanted = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)
    shapes = lambda tree: {
        jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in jax.tree.leaves_with_path(tree)
    }
    there, here = shapes(variables), shapes({k: v for k, v in wanted.items() if k in variables})
    if there != here:
        name = min(k for k in there.keys() | here.keys() if there.get(k) != here.get(k))
        raise InputError(
            f"the checkpoint in {workdir} is not of the network that its flags.txt and inputs.json "
            f"name: {name} is {there.get(name, 'absent')} there and {here.get(name, 'absent')} here"
        )
    names = tuple(inputs["class_names"])
    return Trained(config, model, variables, (height, width, channels), names)


def make_pipeline(config: Config, mesh: Mesh) -> data.Pipeline:
    """The batches of the data set that a config names, which has to have classes."""
    pipeline = image_data.make_pipeline(config, mesh)
    data.require_classes(pipeline.dataset)
    return pipeline


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
    warmup = warmup_steps(config, "warmup_epochs", steps, steps_per_epoch)
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
        return tabulate(model, images, train=False)

    def show(key, batch):
        images = augment.as_float(augmentation(key, batch["image"]))
        return mix(key, images, batch["label"], batch["mask"])[0] if mix else images

    return Problem(
        title=f"{config.model} learning {config.dataset}",
        task=task,
        method=config.method_in_words(warmup),
        hparams=config.hparams | {"label_smoothing": config.label_smoothing},
        steps=steps,
        examples=examples,
        batches=pipeline.train,
        passes=pipeline.evaluate,
        table=table,
        show=lambda key, batch: show(key, {k: v[:16] for k, v in batch.items()}),
        unit="images",
        best="eval/accuracy",
        inputs={
            "image_shape": pipeline.image_shape,
            "class_names": dataset.class_names,
            **image_data.held_out(config),
        },
        notes=lambda: {"unreadable_images": pipeline.skipped},
    )
