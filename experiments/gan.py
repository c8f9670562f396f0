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
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.harness import image_data, training, yardstick
from experiments.harness.cli import flag, require
from experiments.harness.image_data import ImageDataFlags
from experiments.harness.method import MethodFlags, ScheduleArguments
from experiments.harness.training import Problem
from jaxdl import InputError, adversarial, data, fidelity, optim, parallel, pictures, schedules
from jaxdl.models import gan
from jaxdl.nn import tabulate
from jaxdl.task import State, Task
from jaxdl.writers import Writer

SAMPLES = "samples"
WIDTH = 32
"""Of the dcgan's networks, when not given; the paper's are 128 wide, for photographs."""
COLUMNS, ROWS = 10, 10
"""Of the grid of samples."""
IMAGES_ONLY = (
    *("test", "validation", "folds", "classes", "per_class", "channels", "crop_share"),
    *("random_crop", "data_dir", "classifier"),
)
"""Flags that say nothing of points."""
NEAREST = ("nearest", "second", "third")
"""The training images that stand below each sample of nearest.png."""
POINTS = 2048
"""How many points are drawn of the ring."""
GRID, WALK, NEAR, MEASURED = range(4)
"""What latents are drawn for: each purpose has its own."""
SECONDS_PER_FRAME = 0.4
WON, COLLAPSED = 0.99, 0.2
"""When to warn: the share of both kinds that the discriminator tells, and the least diversity."""


@dataclasses.dataclass(frozen=True)
class Config(MethodFlags, ImageDataFlags):
    """Trains a generator against a discriminator, by default on handwritten digits."""

    experiment: str = flag("gan", "which experiment this is", ("gan",))
    mode: str = flag(
        "train",
        "train, evaluate a run, or draw its pictures with new latents",
        ("train", "eval", "sample"),
        part_of_run=False,
    )
    dataset: str = flag(
        "digits", "digits, ring, folder:PATH (with classes or without), or a prepared TFDS set"
    )
    image_size: int = flag(32, "height and width that images are resized to; 16, 32, 64 for dcgan")
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
    loss: str = flag("non_saturating", "what the players minimize", tuple(adversarial.LOSSES))
    label_smoothing: float = flag(0.0, "taken off the target of real examples alone")
    penalty: str = flag("", "on the discriminator's slopes", ("", "gradient", "r1"))
    penalty_weight: float = flag(10.0, "of --penalty")
    discriminator_steps: int = flag(1, "updates of the discriminator for each of the generator")
    optimizer: str = flag("adam", "the method of both players", tuple(optim.OPTIMIZERS))
    learning_rate: float = flag(2e-4, "its peak")
    b1: float | None = flag(
        None, "of adam and its kin: decay of the averaged gradient; 0.5 if empty"
    )
    schedule: str = flag("constant", "of the learning rate", tuple(schedules.SCHEDULES))
    discriminator_optimizer: str = flag("", "if it is another; arguments it lacks are left out")
    discriminator_learning_rate: float | None = flag(None, "if it is another")
    discriminator_schedule: str = flag("", "if it is another")
    ema_decay: float | None = flag(0.999, "of the generator's averages, which draw all samples")
    precision: str = flag(
        "float32", "of the computation; parameters stay float32", ("float32", "bfloat16")
    )
    batch_size: int = flag(64, "real examples in an update of the discriminator")
    epochs: float = flag(150.0, "passes over the training set, unless --steps is given")
    classifier: str = flag(
        "", "the run of an image experiment to measure with; one is trained once when empty"
    )
    samples: int = flag(10_000, "to measure, at most; as many as there are training images if less")
    log_every: int = flag(100, "steps between reports of the training metrics", part_of_run=False)
    eval_every: int = flag(500, "steps between evaluations and pictures", part_of_run=False)
    checkpoint_every: int = flag(500, "steps between checkpoints", part_of_run=False)
    sample_seed: int = flag(1, "of the latents of --mode=sample", part_of_run=False)

    @property
    def on_ring(self) -> bool:
        """Whether the data are points and not images."""
        return self.dataset == "ring"

    @property
    def network(self) -> str:
        """Which pair of networks."""
        return self.model or ("mlp" if self.on_ring else "dcgan")

    def method(self, player: str) -> MethodFlags:
        """How a player of `adversarial.PLAYERS` learns."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(MethodFlags)}
        if player == "discriminator":
            own = {
                "optimizer": self.discriminator_optimizer,
                "learning_rate": self.discriminator_learning_rate,
                "schedule": self.discriminator_schedule,
            }
            given: dict[str, Any] = {k: v for k, v in own.items() if v not in ("", None)}
            if "optimizer" in given:
                takes = optim.arguments(given["optimizer"])
                foreign = [name for name in self.optimizer_arguments if name not in takes]
                values |= dict.fromkeys(foreign)
            if "schedule" in given:
                blank = ScheduleArguments()
                values |= {f.name: getattr(blank, f.name) for f in dataclasses.fields(blank)}
            values |= given
        if values["b1"] is None and "b1" in optim.arguments(values["optimizer"]):
            values["b1"] = 0.5
        return MethodFlags(**values)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_image_data()
        for player in adversarial.PLAYERS:
            self.method(player).check_method()
        for name in ("latent_size", "discriminator_steps"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "samples", self.samples > yardstick.NEIGHBOURS, "at least 4")
        require(self, "ema_decay", self.ema_decay is not None, "given")
        for name in IMAGES_ONLY if self.on_ring else ():
            default = type(self).__dataclass_fields__[name].default
            require(self, name, getattr(self, name) == default, "left out with the ring")
        require(
            self, "plateau", self.plateau is None, "left out: of two players neither's loss falls"
        )
        loss = adversarial.LOSSES[self.loss]
        smoothed = self.label_smoothing == 0 or loss.smooths
        require(self, "label_smoothing", 0 <= self.label_smoothing < 1, "at least 0, less than 1")
        require(
            self, "label_smoothing", smoothed, f"0 with --loss={self.loss}, which has no target"
        )
        require(self, "penalty_weight", self.penalty_weight >= 0, "at least 0")
        maps = self.network == "dcgan"
        require(self, "model", not (self.on_ring and maps), "mlp for the ring, which has no pixels")
        require(self, "upsampling", maps or self.upsampling == "transposed", "left out with mlp")
        require(self, "kernel_size", maps or self.kernel_size is None, "left out with mlp")
        for name in ("dropout", "depth", "pieces"):
            require(self, name, not maps or getattr(self, name) is None, "left out with dcgan")
        batch_norm = maps and self.discriminator_norm in ("", "batch")
        own_slopes = "left out with batch norms; give --discriminator_norm=layer, spectral or none"
        require(self, "penalty", not (self.penalty and batch_norm), own_slopes)
        bounded = self.penalty != "" or self.discriminator_norm == "spectral"
        require(
            self,
            "loss",
            self.loss != "wasserstein" or bounded,
            "given with --penalty or --discriminator_norm=spectral, which bound the critic's slope",
        )
        shape = (2,) if self.on_ring else (self.image_size, self.image_size, self.channels or 1)
        make_players(self, shape, num_classes=10, axis_name=None)  # do the sizes fit together?


def make_networks(
    config: Config, sample_shape: tuple[int, ...], num_classes: int, axis_name: str | None
) -> tuple[nn.Module, nn.Module]:
    """The generator and the discriminator that a config names.

    Raises:
      InputError: a size does not fit another.
    """
    both: dict[str, Any] = {
        "dtype": jnp.dtype(config.precision),
        "num_classes": num_classes if config.conditional else 0,
    }
    generator: dict[str, Any] = {"width": config.width}
    discriminator: dict[str, Any] = {
        "width": config.discriminator_width,
        "norm": config.discriminator_norm or None,
    }
    if config.network == "mlp":
        # The paper's dropout is for images; a point has two numbers, too few to hide one.
        rate = 0.0 if config.on_ring and config.dropout is None else config.dropout
        generator |= {"depth": config.depth}
        discriminator |= {"depth": config.depth, "pieces": config.pieces}
        discriminator |= {"dropout": rate, "input_dropout": rate}
        return (
            gan.mlp_generator(output_shape=sample_shape, **_given(generator), **both),
            gan.mlp_discriminator(**_given(discriminator), **both),
        )
    generator |= {"kernel_size": config.kernel_size, "upsampling": config.upsampling}
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
    return adversarial.linen_players(*networks, config.latent_size, sample_shape)


class Source(NamedTuple):
    """What there is to learn from, and to measure by.

    Attributes:
      pipeline: the batches, with `train`, `evaluate` and `examples`.
      splits: the names of the parts.
      sample_shape: of one sample.
      class_names: of the classes; empty where there are none.
      real: (split, limit) -> at most so many of its samples, uint8 images or float points.
      labels: (count) -> the classes of so many training samples.
      noise: (generator, count) -> samples of noise.
      skipped: () -> how many images could not be read.
      yardstick: () -> how to look at samples; it may train a classifier first.
    """

    pipeline: Any
    splits: tuple[str, ...]
    sample_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    real: Callable[[str, int], np.ndarray]
    labels: Callable[[int], np.ndarray]
    noise: Callable[[np.random.Generator, int], np.ndarray]
    skipped: Callable[[], int]
    yardstick: Callable[[], yardstick.Yardstick]


def ring_source(config: Config, mesh: Mesh) -> Source:
    """Eight Gaussians on a circle."""
    ring = data.Ring(
        config.batch_size * config.discriminator_steps,
        seed=config.seed,
        sharding=parallel.batch_sharding(mesh),
    )
    return Source(
        ring,
        ("train", "test"),
        ring.image_shape,
        tuple(str(mode) for mode in range(len(ring.centres))),
        lambda split, limit: ring.points(split)[:limit],
        lambda count: np.arange(count) % len(ring.centres),
        lambda rng, count: rng.uniform(-1, 1, (count, 2)).astype(np.float32),
        lambda: 0,
        lambda: yardstick.of_points(ring),
    )


def image_source(config: Config, mesh: Mesh) -> Source:
    """The images that the flags name, and the classifier to measure with."""
    dataset = image_data.load(config)
    counts = {split: len(source) for split, source in dataset.splits.items()}
    if config.conditional and not dataset.class_names:
        raise InputError(f"--conditional: {dataset.name} has no classes")
    for split, count in counts.items():
        if count <= yardstick.NEIGHBOURS:
            raise InputError(
                f"the {split} split of {dataset.name} holds {count}; expected at least "
                f"{yardstick.NEIGHBOURS + 1} images, to measure by their neighbours"
            )
    if len(counts) == 1:
        raise InputError(f"{dataset.name} has no images to measure by; give --validation=0.1, say")
    rows = config.batch_size * config.discriminator_steps
    if rows > counts["train"]:
        raise InputError(
            f"--batch_size={config.batch_size} times --discriminator_steps="
            f"{config.discriminator_steps}: at most the {counts['train']} training images"
        )
    pipeline = image_data.make_pipeline(config, mesh, rows)
    channels = pipeline.image_shape[-1]

    def chosen(split: str, limit: int) -> np.ndarray:
        return np.random.default_rng(config.seed).permutation(counts[split])[:limit]

    @functools.cache
    def measure() -> yardstick.Yardstick:
        if not config.classifier and not dataset.class_names:
            return yardstick.of_pixels()
        run = config.classifier or yardstick.trained_classifier(config, mesh)
        return yardstick.of_classifier(run, channels, dataset.class_names)

    return Source(
        pipeline,
        tuple(dataset.splits),
        pipeline.image_shape,
        dataset.class_names,
        lambda split, limit: pipeline.images(split, chosen(split, limit)),
        lambda count: data.labels(dataset.splits["train"])[chosen("train", count)],
        lambda rng, count: rng.integers(0, 256, (count, *pipeline.image_shape), np.uint8),
        lambda: pipeline.skipped,
        measure,
    )


class Artist:
    """Draws samples of a generator: of the same latents, for the same purpose, the same ones.

    Args:
      config: the flags; with --mode=sample latents come from --sample_seed.
      source: what the generator learns from.
    """

    def __init__(self, config: Config, source: Source):
        self._config, self._source = config, source
        classes = len(source.class_names)
        players = make_players(config, source.sample_shape, classes, None)

        @jax.jit
        def generate(average, latents, labels):
            params, extra = average["params"], average["extra"]
            samples, _ = players.generate(params, extra, latents, labels, False)
            if config.on_ring:
                return (samples,)
            return (jnp.rint(jnp.clip((samples + 1) * 127.5, 0, 255)).astype(jnp.uint8),)

        self._generate = generate

    def latents(self, purpose: int, count: int) -> np.ndarray:
        """As many latents for a purpose, float32 [count, Z]."""
        sampling = self._config.mode == "sample"
        seed = self._config.sample_seed if sampling else self._config.seed
        key = jax.random.fold_in(jax.random.key(seed), purpose)
        return np.asarray(jax.random.normal(key, (count, self._config.latent_size)))

    def labels(self, count: int) -> np.ndarray:
        """The classes in turn, int32 [count]; zeros where there are none."""
        return np.arange(count, dtype=np.int32) % max(len(self._source.class_names), 1)

    def draw(self, state: State, latents: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Samples of the averaged generator: uint8 images, or float points, on this host."""
        average = jax.device_get(state.average)
        generate = functools.partial(self._generate, average)
        return yardstick.in_chunks(generate, latents, labels)[0]

    def grid(self, state: State) -> np.ndarray:
        """The picture of the same latents at any time, uint8 [H, W, C]."""
        if self._config.on_ring:
            points = self.draw(state, self.latents(GRID, POINTS), self.labels(POINTS))
            return pictures.scatter(points, self._source.real("test", POINTS))
        count = COLUMNS * ROWS
        return _grid(self.draw(state, self.latents(GRID, count), self.labels(count)))

    def walk(self, state: State) -> np.ndarray:
        """A picture whose rows go from one latent to another, uint8 [H, W, C]."""
        ends = self.latents(WALK, 2 * ROWS).reshape(2, ROWS, -1)
        walks = [pictures.spherical_walk(a, b, COLUMNS) for a, b in zip(*ends, strict=True)]
        latents = np.concatenate(walks).astype(np.float32)
        return _grid(self.draw(state, latents, np.repeat(self.labels(ROWS), COLUMNS)))

    def nearest(self, state: State) -> tuple[np.ndarray, float]:
        """Samples with the training images nearest to each below it, to see what is memorized.

        At most --samples training images are searched.

        Returns:
          The picture, uint8 [H, W, C], and how far samples are from their nearest training image
          over how far held-out images are, medians of both: near 0 for a generator that copies.
        """
        train = self._source.real("train", self._config.samples)
        held_out = self._source.real("test" if "test" in self._source.splits else "validation", 200)
        samples = self.draw(state, self.latents(NEAR, 200), self.labels(200))
        indices, distances = fidelity.nearest(samples, train, len(NEAREST))
        _, of_held_out = fidelity.nearest(held_out, train, 1)
        rows = np.concatenate([samples[:COLUMNS], *train[indices[:COLUMNS].T]])
        usual = float(np.median(of_held_out))  # 0 where held-out images stand in training too
        ratio = float(np.median(distances[:, 0])) / usual if usual else math.inf
        return pictures.label_rows(_grid(rows), ["sample", *NEAREST]), ratio


def _grid(images: np.ndarray) -> np.ndarray:
    return pictures.grid(images / 255.0, COLUMNS)


def draw_all(config: Config, artist: Artist, state: State, folder: Path) -> float | None:
    """Writes the pictures of a trained generator into a folder.

    Returns:
      The ratio of `Artist.nearest`; None on the ring.
    """
    folder.mkdir(exist_ok=True)
    pictures.write_png(folder / "samples.png", artist.grid(state))
    if config.on_ring:
        return None
    pictures.write_png(folder / "walk.png", artist.walk(state))
    nearest, ratio = artist.nearest(state)
    pictures.write_png(folder / "nearest.png", nearest)
    return ratio


def warnings(metrics: dict[str, float], classes: int) -> list[str]:
    """What a person should be told of a run that goes wrong, from its last metrics."""
    told = [metrics.get(f"train/{kind}_accuracy", 0.0) for kind in ("real", "fake")]
    lines = []
    if min(told) >= WON:
        lines.append(
            f"warning: the discriminator has won: it tells {told[0]:.1%} of real and {told[1]:.1%} "
            "of generated examples; a new run with a lower --discriminator_learning_rate or with "
            "--label_smoothing=0.1 may help"
        )
    diversity, recall = metrics.get("eval/diversity", 1.0), metrics.get("eval/recall", 1.0)
    modes = metrics.get("eval/modes_covered", classes)
    if diversity < COLLAPSED or (modes < classes / 2 and recall < 0.5):
        covered = f" and cover {modes:.0f} of {classes} classes" if classes else ""
        lines.append(
            f"warning: the generator has collapsed: its samples vary {diversity:.2f} times as much "
            f"as the data{covered}; a new run with another --loss, --penalty or --seed may help"
        )
    return lines


def build(config: Config, mesh: Mesh) -> Problem:
    """The Problem of training a generator against a discriminator."""
    source = ring_source(config, mesh) if config.on_ring else image_source(config, mesh)
    classes = len(source.class_names)
    pipeline, shape = source.pipeline, source.sample_shape
    if config.mode != "sample":
        source.yardstick()  # what does not fit is told before anything is trained
    examples = {split: pipeline.examples(split) for split in source.splits}
    rows = config.batch_size * config.discriminator_steps
    steps = config.steps or max(1, round(config.epochs * examples["train"] / rows))
    methods = [config.method(player) for player in adversarial.PLAYERS]
    artist = Artist(config, source)
    notes: dict[str, Any] = {}

    def task(axis_name: str | None) -> Task:
        generator, discriminator = methods
        return adversarial.adversarial(
            make_players(config, shape, classes, axis_name),
            adversarial.LOSSES[config.loss],
            (generator.make_optimizer(), discriminator.make_optimizer()),
            (generator.make_schedule(steps, 0), discriminator.make_schedule(steps, 0)),
            discriminator_steps=config.discriminator_steps,
            penalty=config.penalty,  # type: ignore[arg-type]
            axis_name=axis_name,
        )

    def table() -> str:
        inputs = jnp.zeros((1, config.latent_size)), jnp.zeros((1, *shape))
        labels = jnp.zeros(1, jnp.int32)
        networks = make_networks(config, shape, classes, None)
        return "".join(
            tabulate(network, value, labels, train=False)
            for network, value in zip(networks, inputs, strict=True)
        )

    @functools.cache
    def reference(split: str) -> yardstick.Reference:
        train = source.real("train", config.samples)
        labels = source.labels(config.samples)[: len(train)] if config.conditional else None
        noise = source.noise(np.random.default_rng(config.seed), len(train))
        held_out = source.real(split, config.samples)
        found = yardstick.Reference(source.yardstick(), held_out, train, noise, labels)
        prefixes = ["eval"] if split == watched else []
        prefixes += ["test"] if split == "test" else []
        for level, values in {"floor": found.floor, "ceiling": found.ceiling}.items():
            for prefix in prefixes:
                notes.update({f"{prefix}/{name}_{level}": value for name, value in values.items()})
        return found

    def measure(state: State, split: str) -> dict[str, float]:
        against = reference(split)
        labels = artist.labels(against.count) if against.labels is None else against.labels
        latents = artist.latents(MEASURED, against.count)
        return against.measure(artist.draw(state, latents, labels.astype(np.int32)))

    def report(state: State, metrics: dict[str, float], writer: Writer) -> None:
        step = int(state.step)
        for line in warnings(metrics, source.yardstick().num_classes):
            print(line, flush=True)
        folder = Path(config.workdir) / SAMPLES
        folder.mkdir(exist_ok=True)
        picture = artist.grid(state)
        pictures.write_png(folder / f"{step:06}.png", picture)
        writer.images(step, "samples", picture[None] / 255.0)

    def finish(state: State) -> None:
        folder = Path(config.workdir)
        frames = [pictures.read_png(path) for path in sorted((folder / SAMPLES).glob("*.png"))]
        pictures.write_gif(folder / "samples.gif", frames, SECONDS_PER_FRAME)
        ratio = draw_all(config, artist, state, folder)
        if ratio is not None:
            notes["nearest_distance_ratio"] = ratio

    def show(key: Any, batch: Any) -> Any:
        return source.real("train", 16) / 255.0  # a global batch is not all on this host

    watched = "validation" if "validation" in source.splits else "test"
    return Problem(
        title=f"{config.network} with the {config.loss} loss learning to draw {config.dataset}",
        task=task,
        method=" and ".join(dict.fromkeys(method.method_in_words() for method in methods)),
        hparams={
            **{
                player: method.hparams
                for player, method in zip(adversarial.PLAYERS, methods, strict=True)
            },
            "ema_decay": config.ema_decay,
            "label_smoothing": config.label_smoothing,
            "penalty_weight": config.penalty_weight,
        },
        steps=steps,
        examples=examples,
        batches=pipeline.train,
        passes=pipeline.evaluate,
        table=table,
        show=None if config.on_ring else show,
        measures=yardstick.measures(len(source.class_names), config.conditional),
        measure=measure,
        beside=lambda split, metrics: reference(split).table(metrics),
        report=report,
        finish=finish,
        unit="points" if config.on_ring else "images",
        best="eval/frechet_distance",
        best_is_least=True,
        inputs={
            "sample_shape": shape,
            "class_names": source.class_names,
            **image_data.held_out(config),
        },
        notes=lambda: {
            "measured_in": source.yardstick().name,
            "unreadable_images": source.skipped(),
            **notes,
        },
    )


def sample(config: Config, build: training.Build) -> None:
    """Draws the pictures of a run anew, with the latents of --sample_seed."""
    _, _, state = training.restore(config, build)
    mesh = parallel.data_mesh()
    source = ring_source(config, mesh) if config.on_ring else image_source(config, mesh)
    folder = Path(config.workdir) / f"{SAMPLES}_of_seed_{config.sample_seed}"
    draw_all(config, Artist(config, source), state, folder)
    names = "samples.png" if config.on_ring else "samples.png, walk.png, nearest.png"
    print(f"wrote {names} into {folder}")


if __name__ == "__main__":
    training.main(Config, build, sample=sample)
