"""Transfer learning: a new task for a network that was trained before.

    python -m experiments.transfer --from_run=runs/resnet_digits --dataset=folder:PATH --head_only
    python -m experiments.transfer --from_weights=resnet50.safetensors --model=resnet50 \\
        --dataset=folder:PATH --freeze_up_to=layer3

The first takes the network and the form of its images from the run, the second from what is known
of the weights; a flag that is given wins over both. Classes that old and new task both know keep
their outputs. `experiments.studies.transfer` compares what the flags here do.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments.harness import classification, cli, run_folder, training
from experiments.harness.cli import flag, require
from experiments.harness.method import MethodFlags
from experiments.harness.problem import Problem, View
from experiments.harness.run import RunFlags
from jaxdl import (
    Batch,
    InputError,
    augment,
    bottleneck,
    data,
    losses,
    parallel,
    pretrained,
    transfer,
)
from jaxdl.task import Init


@dataclasses.dataclass(frozen=True)
class StartFlags:
    """Where to start from, and what is trained on."""

    from_run: str = flag("", "the folder of the run to start from, which has to stay there")
    from_weights: str = flag("", "or weights as torchvision or timm name them, of --model")
    from_labels: str = flag("", "names of their classes, a text file with one in each line")
    freeze: str = flag("", "layers that are not trained, by a pattern such as conv1|layer1")
    freeze_up_to: str = flag("", "or all from the first layer to this one or this stage")
    head_only: bool = flag(False, "or all but the head")
    bottleneck: str = flag(
        "", "or all but the head, which trains on features that this folder will keep"
    )
    layer_decay: float = flag(1.0, "factor on the learning rate from each stage to that below it")
    unfreeze_every: int | None = flag(
        None, "train the head first, and one stage more below it after so many steps"
    )
    stages: tuple[str, ...] = flag((), "their patterns from the lowest up; found when empty")

    def __post_init__(self) -> None:
        """Raises InputError for a value, or a pair of values, that cannot be."""
        frozen = ("freeze", "freeze_up_to", "head_only", "bottleneck")
        given = [f"--{name}" for name in frozen if getattr(self, name)]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} say what to freeze; give one of them")
        if self.from_run and self.from_weights:
            raise InputError("--from_run and --from_weights say where to start; give one of them")
        require(self, "layer_decay", 0 < self.layer_decay <= 1, "more than 0 and at most 1")
        every = self.unfreeze_every
        require(self, "unfreeze_every", every is None or every >= 1, "at least 1")
        staged = every is not None or self.layer_decay < 1
        require(self, "stages", staged or not self.stages, "of --layer_decay or --unfreeze_every")
        labelled = not self.from_labels or self.from_weights != ""
        require(self, "from_labels", labelled, "given with --from_weights")
        if self.bottleneck:
            require(self, "unfreeze_every", every is None, "left out with --bottleneck")
            require(self, "layer_decay", self.layer_decay == 1, "1 with --bottleneck")


@dataclasses.dataclass(frozen=True)
class Config(classification.Config):
    """Trains a network on from --from_run=WORKDIR, or --from_weights=FILE and --model=NAME."""

    run: RunFlags = RunFlags("transfer")
    method: MethodFlags = MethodFlags(learning_rate=0.02)
    start: StartFlags = StartFlags()

    def __post_init__(self) -> None:
        """Raises InputError for flags that do not fit one another."""
        known = {k: v for k, v in _known_of(self).items() if k not in self.run.given}
        cli.settle(self, **known)  # so that the run's flagfile says what holds
        super().__post_init__()
        every, clip = self.start.unfreeze_every, self.method.clip_global_norm
        apart = every is None or clip is None  # each stage has an optimizer of its own
        require(self, "clip_global_norm", apart, "left out with --unfreeze_every; see --clip_norm")
        if self.start.bottleneck:
            require(self, "augment", not self.augmentation.augment, "empty with --bottleneck")
            require(self, "mix", not self.augmentation.mix, "empty with --bottleneck")

    @property
    def model_arguments(self) -> dict[str, Any]:
        """Those of the run that it starts from, and what is given here."""
        start = self.start.from_run
        of_run = classification.config_of(start).model_arguments if start else {}
        return of_run | super().model_arguments


def _known_of(config: Config) -> dict[str, Any]:
    """The flags that the starting point settles."""
    known: dict[str, Any] = {"augment": ()} if config.start.bottleneck else {}
    if config.start.from_run:
        of_run = cli.to_dict(classification.config_of(config.start.from_run))
        names = ("model", "image_size", "crop_share", "mean", "std")
        known |= {name: of_run[name] for name in names}
        inputs = run_folder.read_inputs(config.start.from_run, image_shape=list)
        known["channels"] = inputs["image_shape"][-1]
    elif config.start.from_weights:
        wants = pretrained.preprocessing(config.network.model)
        known |= {"image_size": wants.crop, "crop_share": wants.crop / wants.resize}
        known |= {"mean": wants.mean, "std": wants.std, "channels": 3}
    return known


def starting_point(config: Config) -> tuple[dict[str, Any], list[str]]:
    """Variables to start from, and the names of their classes as far as they are known.

    Raises:
      InputError: there is none, or it is damaged or of another network.
    """
    if config.start.from_run:
        run = classification.load_trained(config.start.from_run)
        return run.variables, list(run.class_names)
    if not config.start.from_weights:
        raise InputError("give --from_run=WORKDIR, or --from_weights=FILE and its --model=NAME")
    state_dict = pretrained.read(config.start.from_weights)
    num_classes = pretrained.num_classes_of(config.network.model, state_dict)
    arguments = config.model_arguments | {"num_classes": num_classes}
    try:
        variables = pretrained.from_torch(config.network.model, state_dict, **arguments)
    except InputError as error:
        raise InputError(f"{config.start.from_weights}: {error}") from None
    class_names: list[str] = []
    if config.start.from_labels:
        class_names = Path(config.start.from_labels).read_text(errors="replace").splitlines()
        fits = len(class_names) == num_classes
        require(config, "from_labels", fits, f"of {num_classes} lines, a class each")
    return variables, class_names


class FeatureView(View):
    """Shows the images whose features a head is trained on.

    Args:
      pipeline: of the images.
    """

    def __init__(self, pipeline: data.Pipeline):
        self._pipeline = pipeline

    def inputs(self, key: Any, batch: Batch) -> Any:
        """The first sixteen of the set."""
        return next(self._pipeline.evaluate("train"))["image"][:16] / 255

    def notes(self) -> dict[str, Any]:
        """How many images could not be read."""
        return {"unreadable_images": self._pipeline.skipped}


def build(config: Config, mesh: Mesh) -> Problem:
    """The Problem of training a network on from where another training left it."""
    variables, old_classes = starting_point(config)
    pipeline, start = classification.make_pipeline(config, mesh), config.start
    new_classes = pipeline.dataset.class_names
    net = transfer.outline(
        lambda num_classes: classification.build_model(config, num_classes, None),
        pipeline.image_shape,
    )

    def begun(init):
        return transfer.start_from(init, variables, net.head, old_classes, new_classes)

    title = f"{config.network.model} of {start.from_run or start.from_weights} learning "
    title += config.images.dataset
    if start.bottleneck:
        return _on_features(config, mesh, pipeline, net, begun)._replace(title=title)
    frozen = start.freeze
    if start.freeze_up_to:
        frozen = net.up_to(start.freeze_up_to)
    elif start.head_only:
        frozen = net.all_but_head

    def adapt(init, loss, optimizer, schedule):
        init = begun(init)
        if frozen:
            init, loss = transfer.freeze(init, loss, frozen)
        stages = start.stages or (net.without(frozen) if frozen else net).stages
        if start.unfreeze_every:
            loss, optimizer, schedule = transfer.gradual(
                loss, optimizer, schedule, stages, start.unfreeze_every
            )
        if start.layer_decay < 1:
            rates = transfer.discriminative(stages, start.layer_decay)
            optimizer = transfer.layer_rates(optimizer, rates)
        return init, loss, optimizer, schedule

    return classification.build(config, mesh, adapt=adapt)._replace(title=title)


def _on_features(
    config: Config,
    mesh: Mesh,
    pipeline: data.Pipeline,
    net: transfer.Outline,
    begun: Callable[[Init], Init],
) -> Problem:
    """The Problem of training the head on what the layers below it make of the images."""
    model = classification.build_model(config, len(pipeline.dataset.class_names), None)
    mean, std = config.classifier.mean, config.classifier.std
    normalize = functools.partial(augment.normalize, mean=mean, std=std)
    init, _ = losses.classification(model, pipeline.image_shape, normalize)
    params, extra = jax.jit(begun(init))(jax.random.key(config.run.seed))
    folder = Path(config.start.bottleneck)
    if config.run.fold is not None:  # each has a data set of its own
        folder /= f"fold{config.run.fold}"
    features = bottleneck.features(
        model,
        net,
        transfer.merged(params, extra),
        pipeline,
        normalize,
        folder,
        on_unfit="fail",
    )
    width = features["train"].values.shape[1]

    def adapt(init, loss, optimizer, schedule):
        dtype = jnp.dtype(config.run.precision)
        return *bottleneck.head(begun(init), net, width, dtype), optimizer, schedule

    batches = bottleneck.Batches(
        features, config.run.batch_size, config.run.seed, parallel.batch_sharding(mesh)
    )
    problem = classification.build(config, mesh, adapt=adapt)
    return problem._replace(feed=batches, view=FeatureView(pipeline))


if __name__ == "__main__":
    training.main(Config, build)
