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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments.harness import classification, training
from experiments.harness.cli import flag, require
from jaxdl import (
    InputError,
    augment,
    bottleneck,
    losses,
    parallel,
    pretrained,
    transfer,
)


@dataclasses.dataclass(frozen=True)
class Config(classification.Config):
    """Trains a network on from --from_run=WORKDIR, or --from_weights=FILE and --model=NAME."""

    experiment: str = flag("transfer", "which experiment this is", ("transfer",))
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
    learning_rate: float = flag(0.02, "its peak")

    def __post_init__(self) -> None:
        frozen = ("freeze", "freeze_up_to", "head_only", "bottleneck")
        given = [f"--{name}" for name in frozen if getattr(self, name)]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} say what to freeze; give one of them")
        if self.from_run and self.from_weights:
            raise InputError("--from_run and --from_weights say where to start; give one of them")
        self._default_to(_known_of(self))
        super().__post_init__()
        require(self, "layer_decay", 0 < self.layer_decay <= 1, "more than 0 and at most 1")
        every, clip = self.unfreeze_every, self.clip_global_norm
        require(self, "unfreeze_every", every is None or every >= 1, "at least 1")
        apart = every is None or clip is None  # each stage has an optimizer of its own
        require(self, "clip_global_norm", apart, "left out with --unfreeze_every; see --clip_norm")
        staged = every is not None or self.layer_decay < 1
        require(self, "stages", staged or not self.stages, "of --layer_decay or --unfreeze_every")
        labelled = not self.from_labels or self.from_weights != ""
        require(self, "from_labels", labelled, "given with --from_weights")
        if self.bottleneck:
            require(self, "unfreeze_every", every is None, "left out with --bottleneck")
            require(self, "layer_decay", self.layer_decay == 1, "1 with --bottleneck")
            require(self, "augment", not self.augment, "empty with --bottleneck")
            require(self, "mix", not self.mix, "empty with --bottleneck")

    def _default_to(self, values: Mapping[str, Any]) -> None:
        """Sets what was not given, so that the run's flagfile says what holds."""
        for name, value in values.items():
            if name not in self.given and getattr(self, name) == getattr(type(self), name):
                object.__setattr__(self, name, value)

    @property
    def model_arguments(self) -> dict[str, Any]:
        """Those of the run that it starts from, and what is given here."""
        of_run = classification.config_of(self.from_run).model_arguments if self.from_run else {}
        return of_run | super().model_arguments


def _known_of(config: Config) -> dict[str, Any]:
    """The flags that the starting point settles."""
    known: dict[str, Any] = {"augment": ()} if config.bottleneck else {}
    if config.from_run:
        of_run = classification.config_of(config.from_run)
        names = ("model", "image_size", "crop_share", "mean", "std")
        known |= {name: getattr(of_run, name) for name in names}
        known["channels"] = training.read_inputs(config.from_run, image_shape=list)["image_shape"][
            -1
        ]
    elif config.from_weights:
        wants = pretrained.preprocessing(config.model)
        known |= {"image_size": wants.crop, "crop_share": wants.crop / wants.resize}
        known |= {"mean": wants.mean, "std": wants.std, "channels": 3}
    return known


def starting_point(config: Config) -> tuple[dict[str, Any], list[str]]:
    """Variables to start from, and the names of their classes as far as they are known.

    Raises:
      InputError: there is none, or it is damaged or of another network.
    """
    if config.from_run:
        run = classification.load_trained(config.from_run)
        return run.variables, list(run.class_names)
    if not config.from_weights:
        raise InputError("give --from_run=WORKDIR, or --from_weights=FILE and its --model=NAME")
    state_dict = pretrained.read(config.from_weights)
    num_classes = pretrained.num_classes_of(config.model, state_dict)
    arguments = config.model_arguments | {"num_classes": num_classes}
    try:
        variables = pretrained.from_torch(config.model, state_dict, **arguments)
    except InputError as error:
        raise InputError(f"{config.from_weights}: {error}") from None
    class_names: list[str] = []
    if config.from_labels:
        class_names = Path(config.from_labels).read_text(errors="replace").splitlines()
        fits = len(class_names) == num_classes
        require(config, "from_labels", fits, f"of {num_classes} lines, a class each")
    return variables, class_names


def build(config: Config, mesh: Mesh) -> training.Problem:
    """The Problem of training a network on from where another training left it."""
    variables, old_classes = starting_point(config)
    pipeline = classification.make_pipeline(config, mesh)
    new_classes = pipeline.dataset.class_names
    net = transfer.outline(
        lambda num_classes: classification.build_model(config, num_classes, None),
        pipeline.image_shape,
    )
    frozen = config.freeze
    if config.freeze_up_to:
        frozen = net.up_to(config.freeze_up_to)
    elif config.head_only:
        frozen = net.all_but_head

    def begun(init):
        return transfer.start_from(init, variables, net.head, old_classes, new_classes)

    def adapt(init, loss, optimizer, schedule):
        init = begun(init)
        if frozen:
            init, loss = transfer.freeze(init, loss, frozen)
        stages = config.stages or (net.without(frozen) if frozen else net).stages
        if config.unfreeze_every:
            loss, optimizer, schedule = transfer.gradual(
                loss, optimizer, schedule, stages, config.unfreeze_every
            )
        if config.layer_decay < 1:
            rates = transfer.discriminative(stages, config.layer_decay)
            optimizer = transfer.layer_rates(optimizer, rates)
        return init, loss, optimizer, schedule

    title = f"{config.model} of {config.from_run or config.from_weights} learning {config.dataset}"
    if not config.bottleneck:
        return classification.build(config, mesh, adapt=adapt)._replace(title=title)

    model = classification.build_model(config, len(new_classes), None)
    normalize = functools.partial(augment.normalize, mean=config.mean, std=config.std)
    init, _ = losses.classification(model, pipeline.image_shape, normalize)
    params, extra = jax.jit(begun(init))(jax.random.key(config.seed))
    folder = Path(config.bottleneck)
    if config.fold is not None:  # each has a data set of its own
        folder /= f"fold{config.fold}"
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
    batches = bottleneck.Batches(
        features, config.batch_size, config.seed, parallel.batch_sharding(mesh)
    )

    def on_features(init, loss, optimizer, schedule):
        dtype = jnp.dtype(config.precision)
        return *bottleneck.head(begun(init), net, width, dtype), optimizer, schedule

    return classification.build(config, mesh, adapt=on_features)._replace(
        title=title,
        batches=batches.train,
        passes=batches.evaluate,
        show=lambda key, batch: next(pipeline.evaluate("train"))["image"][:16] / 255,
        notes=lambda: {"unreadable_images": pipeline.skipped},
    )


if __name__ == "__main__":
    training.main(Config, build)
