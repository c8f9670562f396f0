"""Generative adversarial networks that draw what they are shown, and are measured at it.

    python -m experiments.gan                                  # digits, in minutes on two cores
    python -m experiments.gan --flagfile=experiments/flags/gan_ring.flags
    python -m experiments.gan --dataset=folder:PATH --classifier=RUN --image_size=64
    python -m experiments.gan --mode=sample --workdir=RUN      # pictures of new latents

Beside what every run leaves, its folder holds `samples/STEP.png`, the same latents drawn after each
evaluation, and at the end `samples.gif` of them all, `walk.png` from latent to latent, and
`nearest.png` with the training images that are nearest to samples. --mode=sample writes the same
pictures into `samples_of_seed_N/`.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.harness import artist, cli, devices, image_data, training, yardstick
from experiments.harness.artist import Artist, Source
from experiments.harness.cli import flag, require
from experiments.harness.image_data import ImageDataFlags
from experiments.harness.method import MethodFlags
from experiments.harness.problem import Best, Build, Learner, Problem, View
from experiments.harness.run import RunFlags
from jaxdl import Batch, adversarial, optim, pictures
from jaxdl.models import gan
from jaxdl.nn import tabulate
from jaxdl.task import State, Task
from jaxdl.writers import Writer

SAMPLES = "samples"
WIDTH = 32
"""Of the dcgan's networks, when not given; the paper's are 128 wide, for photographs."""
IMAGES_ONLY = (
    *("test", "validation", "folds", "classes", "per_class", "channels", "crop_share"),
    *("random_crop", "data_dir", "classifier"),
)
"""Flags that say nothing of points."""
SECONDS_PER_FRAME = 0.4
METHOD = MethodFlags(optimizer="adam", learning_rate=2e-4, schedule="constant")
B1 = 0.5
"""Of adam and its kin, decay of the averaged gradient, when not given."""


@dataclasses.dataclass(frozen=True)
class NetworkFlags:
    """The two players."""

    model: str = flag(
        "", "the pair of networks; mlp for the ring, else dcgan, when empty", ("", "dcgan", "mlp")
    )
    width: int | None = flag(None, "of the generator: maps of its last layer but one, or units")
    discriminator_width: int | None = flag(None, "maps of its first layer, or maxout units")
    depth: int | None = flag(None, "hidden layers of either mlp; 2 when empty")
    pieces: int | None = flag(None, "of each maxout unit of the mlp discriminator; 5 when empty")
    latent_size: int = flag(64, "numbers that a sample is made of")
    upsampling: str = flag(
        "transposed", "how the generator's maps grow", ("transposed", "resize", "pixel_shuffle")
    )
    kernel_size: int | None = flag(None, "of that; 4 for transposed, else 3, when empty")
    discriminator_norm: str = flag(
        "",
        "of its layers; batch for dcgan and none for mlp when empty",
        ("", "batch", "layer", "spectral", "none"),
    )
    dropout: float | None = flag(
        None,
        "of the mlp discriminator's layers and inputs; 0.5 and 0.2, or 0 on the ring, if empty",
    )
    conditional: bool = flag(False, "tell both players the class")

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be."""
        require(self, "latent_size", self.latent_size >= 1, "at least 1")


@dataclasses.dataclass(frozen=True)
class GameFlags:
    """What they play for."""

    loss: str = flag("non_saturating", "what the players minimize", tuple(adversarial.LOSSES))
    label_smoothing: float = flag(0.0, "taken off the target of real examples alone")
    penalty: str = flag("", "on the discriminator's slopes", ("", "gradient", "r1"))
    penalty_weight: float = flag(10.0, "of --penalty")
    discriminator_steps: int = flag(1, "updates of the discriminator for each of the generator")

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be."""
        require(self, "discriminator_steps", self.discriminator_steps >= 1, "at least 1")
        smoothing, loss = self.label_smoothing, adversarial.LOSSES[self.loss]
        require(self, "label_smoothing", 0 <= smoothing < 1, "at least 0, less than 1")
        smoothed = smoothing == 0 or loss.smooths
        accepted = f"0 with --loss={self.loss}, which has no target"
        require(self, "label_smoothing", smoothed, accepted)
        require(self, "penalty_weight", self.penalty_weight >= 0, "at least 0")


@dataclasses.dataclass(frozen=True)
class MeasureFlags:
    """By what samples are measured, and what is drawn."""

    classifier: str = flag(
        "", "the run of an image experiment to measure with; one is trained once when empty"
    )
    samples: int = flag(10_000, "to measure, at most; as many as there are training images if less")
    sample_seed: int = flag(1, "of the latents of --mode=sample", part_of_run=False)

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be."""
        require(self, "samples", self.samples > yardstick.NEIGHBOURS, "at least 4")


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a generator against a discriminator, by default on handwritten digits.

    --dataset is digits, ring, folder:PATH (with classes or without), idx:FOLDER, or a TFDS set.
    """

    run: RunFlags = RunFlags(
        "gan",
        batch_size=64,
        epochs=150.0,
        ema_decay=0.999,
        log_every=100,
        eval_every=500,
        checkpoint_every=500,
        modes=("train", "eval", "sample"),
    )
    images: ImageDataFlags = ImageDataFlags(image_size=32)
    networks: NetworkFlags = NetworkFlags()
    game: GameFlags = GameFlags()
    method: MethodFlags = METHOD
    discriminator: MethodFlags = cli.group(METHOD, prefix="discriminator_", like="method")
    measuring: MeasureFlags = MeasureFlags()

    @property
    def on_ring(self) -> bool:
        """Whether the data are points and not images."""
        return self.images.dataset == "ring"

    @property
    def network(self) -> str:
        """Which pair of networks."""
        return self.networks.model or ("mlp" if self.on_ring else "dcgan")

    @property
    def methods(self) -> tuple[MethodFlags, MethodFlags]:
        """How each of `adversarial.PLAYERS` learns."""
        generator, discriminator = (
            cli.replace(method, b1=B1)
            if method.b1 is None and "b1" in optim.arguments(method.optimizer)
            else method
            for method in (self.method, self.discriminator)
        )
        return generator, discriminator

    def __post_init__(self) -> None:
        """Raises InputError for flags that do not fit one another."""
        image_data.check(self)
        for name in IMAGES_ONLY if self.on_ring else ():
            value, default = cli.to_dict(self)[name], cli.default(type(self), name)
            require(self, name, value == default, "left out with the ring")
        run = self.run
        require(self, "ema_decay", run.ema_decay is not None, "given")
        require(self, "precision", run.precision != "float16", "float32 or bfloat16")
        whole = "left out: batch statistics of two players are of whole batches"
        require(self, "grad_accum", run.grad_accum == 1, whole)
        alone = "left out: of two players neither's loss falls"
        require(self, "plateau", run.plateau is None, alone)
        self._check_networks()
        shape = (2,) if self.on_ring else (*[self.images.image_size] * 2, self.images.channels or 1)
        make_players(self, shape, num_classes=10, axis_name=None)  # do the sizes fit together?

    def _check_networks(self) -> None:
        maps, networks = self.network == "dcgan", self.networks
        require(self, "model", not (self.on_ring and maps), "mlp for the ring, which has no pixels")
        grown = maps or networks.upsampling == "transposed"
        require(self, "upsampling", grown, "left out with mlp")
        require(self, "kernel_size", maps or networks.kernel_size is None, "left out with mlp")
        for name in ("dropout", "depth", "pieces"):
            require(self, name, not maps or getattr(networks, name) is None, "left out with dcgan")
        batch_norm = maps and networks.discriminator_norm in ("", "batch")
        own_slopes = "left out with batch norms; give --discriminator_norm=layer, spectral or none"
        require(self, "penalty", not (self.game.penalty and batch_norm), own_slopes)
        bounded = self.game.penalty != "" or networks.discriminator_norm == "spectral"
        bounds = (
            "given with --penalty or --discriminator_norm=spectral, which bound the critic's slope"
        )
        require(self, "loss", self.game.loss != "wasserstein" or bounded, bounds)


def make_networks(
    config: Config, sample_shape: tuple[int, ...], num_classes: int, axis_name: str | None
) -> tuple[nn.Module, nn.Module]:
    """The generator and the discriminator that a config names.

    Raises:
      InputError: a size does not fit another.
    """
    both: dict[str, Any] = {
        "dtype": jnp.dtype(config.run.precision),
        "num_classes": num_classes if config.networks.conditional else 0,
    }
    generator: dict[str, Any] = {"width": config.networks.width}
    discriminator: dict[str, Any] = {
        "width": config.networks.discriminator_width,
        "norm": config.networks.discriminator_norm or None,
    }
    if config.network == "mlp":
        # The paper's dropout is for images; a point has two numbers, too few to hide one.
        rate = (
            0.0 if config.on_ring and config.networks.dropout is None else config.networks.dropout
        )
        generator |= {"depth": config.networks.depth}
        discriminator |= {"depth": config.networks.depth, "pieces": config.networks.pieces}
        discriminator |= {"dropout": rate, "input_dropout": rate}
        return (
            gan.mlp_generator(output_shape=sample_shape, **_given(generator), **both),
            gan.mlp_discriminator(**_given(discriminator), **both),
        )
    generator |= {
        "kernel_size": config.networks.kernel_size,
        "upsampling": config.networks.upsampling,
    }
    return (
        gan.dcgan_generator(
            image_size=sample_shape[0],
            channels=sample_shape[-1],
            axis_name=axis_name,
            **{"width": WIDTH} | _given(generator),
            **both,
        ),
        gan.dcgan_discriminator(
            axis_name=axis_name, **{"width": WIDTH} | _given(discriminator), **both
        ),
    )


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def make_players(
    config: Config, sample_shape: tuple[int, ...], num_classes: int, axis_name: str | None
) -> adversarial.Players:
    """The two players that a config names."""
    networks = make_networks(config, sample_shape, num_classes, axis_name)
    return adversarial.linen_players(*networks, config.networks.latent_size, sample_shape)


class Gallery(View):
    """Draws what the generator makes, and measures it against held-out data.

    Args:
      config: the flags.
      source: what there is to learn from.
      draws: what draws.
    """

    def __init__(self, config: Config, source: Source, draws: Artist):
        self._config, self._source, self._artist = config, source, draws
        self._watched = "validation" if "validation" in source.splits else "test"
        self._notes: dict[str, Any] = {}
        self._reference = functools.cache(self._make_reference)
        self.measures = yardstick.measures(len(source.class_names), config.networks.conditional)

    def inputs(self, key: Any, batch: Batch) -> Any:
        """Training images; those of a global batch are not all on this host."""
        return None if self._config.on_ring else self._source.real("train", 16) / 255.0

    def _make_reference(self, split: str) -> yardstick.Reference:
        source, count = self._source, self._config.measuring.samples
        train = source.real("train", count)
        labels = source.labels(count)[: len(train)] if self._config.networks.conditional else None
        noise = source.noise(np.random.default_rng(self._config.run.seed), len(train))
        held_out = source.real(split, count)
        found = yardstick.Reference(source.yardstick(), held_out, train, noise, labels)
        prefixes = ["eval"] if split == self._watched else []
        prefixes += ["test"] if split == "test" else []
        for level, values in {"floor": found.floor, "ceiling": found.ceiling}.items():
            for prefix in prefixes:
                named = {f"{prefix}/{name}_{level}": value for name, value in values.items()}
                self._notes.update(named)
        return found

    def measure(self, state: State, split: str) -> dict[str, float]:
        """The metrics of samples, see `yardstick.Reference.measure`."""
        against = self._reference(split)
        given = against.labels
        labels = self._artist.labels(against.count) if given is None else given
        latents = self._artist.latents(artist.MEASURED, against.count)
        return against.measure(self._artist.draw(state, latents, labels.astype(np.int32)))

    def beside(self, split: str, metrics: dict[str, float]) -> str:
        """What training data and noise would get."""
        return self._reference(split).table(metrics)

    def report(self, state: State, metrics: dict[str, float], writer: Writer) -> None:
        """Warns of a game that goes wrong, and draws the same latents as always."""
        step = int(state.step)
        for line in artist.warnings(metrics, self._source.yardstick().num_classes):
            print(line, flush=True)
        folder = Path(self._config.run.workdir) / SAMPLES
        folder.mkdir(exist_ok=True)
        picture = self._artist.grid(state)
        pictures.write_png(folder / f"{step:06}.png", picture)
        writer.images(step, "samples", picture[None] / 255.0)

    def finish(self, state: State) -> None:
        """Draws how samples changed, and all pictures of the last state."""
        folder = Path(self._config.run.workdir)
        frames = [pictures.read_png(path) for path in sorted((folder / SAMPLES).glob("*.png"))]
        pictures.write_gif(folder / "samples.gif", frames, SECONDS_PER_FRAME)
        ratio = artist.draw_all(self._artist, state, folder)
        if ratio is not None:
            self._notes["nearest_distance_ratio"] = ratio

    def notes(self) -> dict[str, Any]:
        """By what was measured, with what training data and noise got."""
        skipped = self._source.skipped()
        measured_in = self._source.yardstick().name
        return {"measured_in": measured_in, "unreadable_images": skipped, **self._notes}


def _artist(config: Config, source: Source) -> Artist:
    players = make_players(config, source.sample_shape, len(source.class_names), None)
    return Artist(config, source, players)


def build(config: Config, mesh: Mesh) -> Problem:
    """The Problem of training a generator against a discriminator."""
    source = artist.source_of(config, mesh)
    classes, shape, game = len(source.class_names), source.sample_shape, config.game
    if config.run.mode == "train":
        source.yardstick()  # what does not fit is told before anything is trained
    rows = config.run.batch_size * game.discriminator_steps
    examples = source.pipeline.examples("train")
    steps = config.run.steps or max(1, round(config.run.epochs * examples / rows))
    generator, discriminator = config.methods

    def task(axis_name: str | None) -> Task:
        return adversarial.adversarial(
            make_players(config, shape, classes, axis_name),
            adversarial.LOSSES[game.loss],
            (generator.make_optimizer(), discriminator.make_optimizer()),
            (generator.make_schedule(steps, 0), discriminator.make_schedule(steps, 0)),
            discriminator_steps=game.discriminator_steps,
            penalty=game.penalty,  # type: ignore[arg-type]  # the flag's choices
            axis_name=axis_name,
        )

    def table() -> str:
        inputs = jnp.zeros((1, config.networks.latent_size)), jnp.zeros((1, *shape))
        labels = jnp.zeros(1, jnp.int32)
        networks = make_networks(config, shape, classes, None)
        return "".join(
            tabulate(network, value, labels, train=False)
            for network, value in zip(networks, inputs, strict=True)
        )

    hparams = {
        **dict(zip(adversarial.PLAYERS, (generator.hparams, discriminator.hparams), strict=True)),
        "ema_decay": config.run.ema_decay,
        "label_smoothing": game.label_smoothing,
        "penalty_weight": game.penalty_weight,
    }
    method = " and ".join(dict.fromkeys((generator.in_words(), discriminator.in_words())))
    drawn = f"the {game.loss} loss learning to draw {config.images.dataset}"
    return Problem(
        title=f"{config.network} with {drawn}",
        learner=Learner(task, hparams, steps, method, table),
        feed=source.pipeline,
        splits=source.splits,
        best=Best("eval/frechet_distance", least=True),
        unit="points" if config.on_ring else "images",
        inputs={
            "sample_shape": shape,
            "class_names": source.class_names,
            **image_data.held_out(config),
        },
        view=Gallery(config, source, _artist(config, source)),
    )


def sample(config: Config, build: Build) -> None:
    """Draws the pictures of a run anew, with the latents of --sample_seed."""
    _, _, state = training.restore(config, build)
    source = artist.source_of(config, devices.mesh_of(config))
    folder = Path(config.run.workdir) / f"{SAMPLES}_of_seed_{config.measuring.sample_seed}"
    artist.draw_all(_artist(config, source), state, folder)
    names = "samples.png" if config.on_ring else "samples.png, walk.png, nearest.png"
    print(f"wrote {names} into {folder}")


if __name__ == "__main__":
    training.main(Config, build, sample=sample)
