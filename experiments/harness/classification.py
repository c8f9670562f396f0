"""Classifying images: the flags and the Problem that all image experiments share."""

import dataclasses
import functools
import math
import re
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.harness import catalogue, cli, image_data, run_folder
from experiments.harness.augmentation import AugmentFlags
from experiments.harness.cli import flag, require
from experiments.harness.image_data import ImageDataFlags
from experiments.harness.method import (
    GRADIENT_DESCENT,
    MethodFlags,
    supervised_task,
    warmup_steps,
)
from experiments.harness.problem import Best, Learner, Problem, View
from experiments.harness.run import RunFlags
from jaxdl import Batch, InputError, augment, checkpoint, data, losses, models, sharding, transfer
from jaxdl.nn import INITIALIZERS, Normed, initializer, tabulate
from jaxdl.task import Init, Loss, Optimizer, Schedule, Task

L2_PENALTY = 5e-4


@dataclasses.dataclass(frozen=True)
class NetworkFlags:
    """Which network; an experiment's own adds the arguments of its family."""

    model: str = flag("resnet20_cifar", "a name of jaxdl.models.names()")
    norm_momentum: float | None = flag(None, "of batch norms: how much of their averages stays")
    norm_epsilon: float | None = flag(None, "of batch norms: added to the variance")
    norm_over: str = flag(
        "global",
        "of batch norms: what they take statistics over in training, all examples of a step "
        "(global), those on one device (device), or so many (a number)",
    )

    @property
    def arguments(self) -> dict[str, Any]:
        """Those that say something; the rest is as the model has it."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del values["model"], values["norm_over"]
        return {
            k: v
            for k, v in values.items()
            if v is not None and v is not False and v not in ("", ())
        }

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be."""
        for name in {"width", "growth_rate"}.intersection(cli.to_dict(self)):
            value = getattr(self, name)
            require(self, name, value is None or value > 0, "more than 0")
        momentum, epsilon = self.norm_momentum, self.norm_epsilon
        require(self, "norm_momentum", momentum is None or 0 <= momentum < 1, "in [0, 1)")
        require(self, "norm_epsilon", epsilon is None or epsilon > 0, "more than 0")
        over = self.norm_over
        known = over in ("global", "device") or re.fullmatch(r"[1-9]\d{0,8}", over) is not None
        require(self, "norm_over", known, "global, device, or a number of examples")


@dataclasses.dataclass(frozen=True)
class ClassifierFlags:
    """How images are normalized, kernels are drawn, and what is minimized."""

    mean: tuple[float, ...] = flag((0.5,), "subtracted from images in [0, 1]; one or one a channel")
    std: tuple[float, ...] = flag((0.5,), "what that is divided by")
    warmup_epochs: float = flag(1.0, "passes over which the learning rate rises in a line")
    label_smoothing: float = flag(0.1, "share of the uniform distribution in the target")
    init: str = flag(
        "",
        "how kernels are drawn (Xavier is Glorot, Kaiming is He); as the network has it when empty",
        ("", *INITIALIZERS),
    )
    init_scale: float | None = flag(None, "of --init: factor, standard deviation or constant")
    aux_weight: float = flag(0.0, "of the losses of auxiliary heads, where the model has any")

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be."""
        require(self, "label_smoothing", 0 <= self.label_smoothing < 1, "at least 0, less than 1")
        scaled = self.init_scale is None or self.init != ""
        require(self, "init_scale", scaled, "left out without --init")
        scale = 1.0 if self.init_scale is None or self.init == "constant" else self.init_scale
        require(self, "init_scale", scale > 0, "more than 0")
        for name in ("warmup_epochs", "aux_weight"):
            value = getattr(self, name)
            require(self, name, math.isfinite(value) and value >= 0, "at least 0")
        require(self, "std", all(s > 0 for s in self.std), "more than 0")


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags of an image classification run.

    Of --optimizer sgd, momentum and nesterov, without --weight_decay, an --l2_penalty that is not
    given is 0.0005: it is tuned for them, and no other method inherits it.
    """

    run: RunFlags = RunFlags()
    images: ImageDataFlags = ImageDataFlags()
    method: MethodFlags = MethodFlags()
    augmentation: AugmentFlags = AugmentFlags(augment=("warp",))
    classifier: ClassifierFlags = ClassifierFlags()
    network: NetworkFlags = NetworkFlags()

    @property
    def model_arguments(self) -> dict[str, Any]:
        """The keyword arguments of the network that is built."""
        return self.network.arguments

    def __post_init__(self) -> None:
        """Raises InputError for flags that do not fit one another."""
        descends = self.method.optimizer in GRADIENT_DESCENT
        if descends and self.method.l2_penalty is None and self.method.weight_decay is None:
            cli.settle(self, l2_penalty=L2_PENALTY)
        image_data.check(self)
        build_model(self, num_classes=10, axis_name=None)  # does it exist?


def build_model(
    config: Any,
    num_classes: int,
    axis_name: str | None,
    norm_groups: int = 1,
    mesh: Mesh | None = None,
) -> nn.Module:
    """The model that a config names; on the devices of a mesh where it may have to know them."""
    dtype = jnp.dtype(config.run.precision)
    arguments = config.model_arguments
    model = models.create(config.network.model, num_classes=num_classes, dtype=dtype, **arguments)
    if hasattr(model, "tower_mesh") and "model" in config.run.shard:
        model = model.clone(tower_mesh=mesh)
    # Only a network with batch statistics has something to synchronize.
    if not isinstance(model, Normed):
        return model
    return model.clone(axis_name=axis_name, norm_groups=norm_groups)


def norm_groups(config: Any, mesh: Mesh) -> int:
    """Into how many parts --norm_over cuts the examples that a training step sees at once.

    Raises:
      InputError: they cannot be cut so, or not under --parallel=pmap.
    """
    over, devices = config.network.norm_over, mesh.shape[sharding.DATA]
    if over == "global":
        return 1
    require(config, "parallel", config.run.parallel == "jit", "jit with --norm_over")
    if over == "device":
        return devices
    rows = config.run.batch_size // config.run.grad_accum
    accepted = f"global, device, or a divisor of the {rows} examples that are computed at once"
    require(config, "norm_over", rows % int(over) == 0, accepted)
    return rows // int(over)


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
    name = run_folder.experiment_of(workdir)
    config_type = catalogue.load(name).Config
    config, _ = cli.parse(config_type, [f"--flagfile={Path(workdir) / run_folder.FLAGS_FILE}"])
    if not isinstance(config, Config):
        raise InputError(f"{workdir} holds a run of experiments.{name}: no classifier")
    return config


def load_trained(workdir: str | Path) -> Trained:
    """The classifier that a run has trained.

    Raises:
      InputError: the folder holds no such run, or no checkpoint, or files that do not fit together.
    """
    config = config_of(workdir)
    inputs = run_folder.read_inputs(workdir, class_names=list, image_shape=list)
    saved = checkpoint.load(workdir, run_folder.step_of(workdir))
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


class Adapt(Protocol):
    """What changes the parts of a Task before it is made."""

    def __call__(
        self, init: Init, loss: Loss, optimizer: Optimizer, schedule: Schedule, /
    ) -> Parts:
        """The parts to make it of."""
        ...


class ImageView(View):
    """Shows the images of a batch as the network is given them.

    Args:
      pipeline: what feeds the run.
      augmentation: what its images go through.
      mix: what mixes them; None for nothing.
    """

    def __init__(
        self, pipeline: data.Pipeline, augmentation: augment.Augment, mix: losses.MixLabels | None
    ):
        self._pipeline = pipeline

        @jax.jit  # as one program: otherwise it is a hundred, each to be compiled
        def shown(key, batch):
            few = {name: values[:16] for name, values in batch.items()}
            images = augment.as_float(augmentation(key, few["image"]))
            return mix(key, images, few["label"], few["mask"])[0] if mix else images

        self._shown = shown

    def inputs(self, key: Any, batch: Batch) -> Any:
        """The first sixteen."""
        return self._shown(key, batch)

    def notes(self) -> dict[str, Any]:
        """How many images could not be read."""
        return {"unreadable_images": self._pipeline.skipped}


def build(
    config: Config,
    mesh: Mesh,
    example_loss: losses.ExampleLoss = losses.cross_entropy,
    adapt: Adapt = lambda *parts: parts,
) -> Problem:
    """The Problem of training a classifier on a data set.

    Args:
      config: the flags.
      mesh: the devices.
      example_loss: of the logits.
      adapt: changes the parts of the Task.
    """
    pipeline = make_pipeline(config, mesh)
    dataset, channels = pipeline.dataset, pipeline.image_shape[-1]
    steps_per_epoch = pipeline.examples("train") / config.run.batch_size
    steps = config.run.steps or max(1, round(config.run.epochs * steps_per_epoch))
    warmup = warmup_steps(config, "warmup_epochs", steps, steps_per_epoch)
    mean, std = config.classifier.mean, config.classifier.std
    for name, values in {"mean": mean, "std": std}.items():
        accepted = f"one number, or one for each of {channels} channels"
        require(config, name, len(values) in (1, channels), accepted)
    num_classes, groups = len(dataset.class_names), norm_groups(config, mesh)
    augmentation = config.augmentation.make_augment(fill=mean)
    image = jax.ShapeDtypeStruct((1, *pipeline.image_shape), jnp.uint8)
    jax.eval_shape(augmentation, jax.random.key(0), image)  # does it fit the images?
    mix = config.augmentation.make_mix(num_classes)

    def task(axis_name: str | None) -> Task:
        init, loss = losses.classification(
            build_model(config, num_classes, axis_name, groups, mesh),
            pipeline.image_shape,
            functools.partial(augment.normalize, mean=mean, std=std),
            augmentation,
            example_loss,
            config.classifier.aux_weight,
            mix,
            _drawn(config.classifier),
        )
        optimizer, schedule = (
            config.method.make_optimizer(),
            config.method.make_schedule(steps, warmup),
        )
        return supervised_task(config, *adapt(init, loss, optimizer, schedule), axis_name)

    def table() -> str:
        model = build_model(config, num_classes, None)
        return tabulate(model, jnp.zeros((1, *pipeline.image_shape)), train=False)

    def network() -> tuple[Any, tuple[Any, ...]]:
        model = build_model(config, num_classes, None)
        image = jax.ShapeDtypeStruct((1, *pipeline.image_shape), jnp.float32)
        apply = functools.partial(model.apply, train=False)
        variables = jax.eval_shape(
            functools.partial(model.init, train=False), jax.random.key(0), image
        )
        return apply, (variables, image)

    smoothing = {"label_smoothing": config.classifier.label_smoothing}
    return Problem(
        title=f"{config.network.model} learning {config.images.dataset}",
        learner=Learner(
            task,
            config.method.hparams | smoothing,
            steps,
            config.method.in_words(warmup),
            table,
            models.SHARDING.get(config.network.model, ()),
            network,
        ),
        feed=pipeline,
        splits=tuple(dataset.splits),
        best=Best("eval/accuracy"),
        unit="images",
        inputs={
            "image_shape": pipeline.image_shape,
            "class_names": dataset.class_names,
            **image_data.held_out(config),
        },
        view=ImageView(pipeline, augmentation, mix),
    )


def _drawn(flags: ClassifierFlags) -> nn.initializers.Initializer | None:
    """How kernels are drawn; None for as the network has it."""
    return initializer(flags.init, flags.init_scale) if flags.init else None
