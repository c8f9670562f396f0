"""What a generator learns from and is measured by, and the pictures of its samples."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.harness import image_data, yardstick
from experiments.harness.problem import Feed
from jaxdl import InputError, adversarial, data, fidelity, parallel, pictures
from jaxdl.task import State

COLUMNS, ROWS = 10, 10
"""Of the grid of samples."""
NEAREST = ("nearest", "second", "third")
"""The training images that stand below each sample of nearest.png."""
POINTS = 2048
"""How many points are drawn of the ring."""
GRID, WALK, NEAR, MEASURED = range(4)
"""What latents are drawn for: each purpose has its own."""
WON, COLLAPSED = 0.99, 0.2
"""When to warn: the share of both kinds that the discriminator tells, and the least diversity."""


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

    pipeline: Feed
    splits: tuple[str, ...]
    sample_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    real: Callable[[str, int], np.ndarray]
    labels: Callable[[int], np.ndarray]
    noise: Callable[[np.random.Generator, int], np.ndarray]
    skipped: Callable[[], int]
    yardstick: Callable[[], yardstick.Yardstick]


def ring_source(config: Any, mesh: Mesh) -> Source:
    """Eight Gaussians on a circle."""
    ring = data.Ring(
        config.run.batch_size * config.game.discriminator_steps,
        seed=config.run.seed,
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


def image_source(config: Any, mesh: Mesh) -> Source:
    """The images that the flags name, and the classifier to measure with."""
    dataset = image_data.load(config)
    counts = {split: len(source) for split, source in dataset.splits.items()}
    if config.networks.conditional and not dataset.class_names:
        raise InputError(f"--conditional: {dataset.name} has no classes")
    for split, count in counts.items():
        if count <= yardstick.NEIGHBOURS:
            raise InputError(
                f"the {split} split of {dataset.name} holds {count}; expected at least "
                f"{yardstick.NEIGHBOURS + 1} images, to measure by their neighbours"
            )
    if len(counts) == 1:
        raise InputError(f"{dataset.name} has no images to measure by; give --validation=0.1, say")
    rows = config.run.batch_size * config.game.discriminator_steps
    if rows > counts["train"]:
        raise InputError(
            f"--batch_size={config.run.batch_size} times --discriminator_steps="
            f"{config.game.discriminator_steps}: at most the {counts['train']} training images"
        )
    pipeline = image_data.make_pipeline(config, mesh, rows)
    channels = pipeline.image_shape[-1]

    def chosen(split: str, limit: int) -> np.ndarray:
        return np.random.default_rng(config.run.seed).permutation(counts[split])[:limit]

    @functools.cache
    def measure() -> yardstick.Yardstick:
        if not config.measuring.classifier and not dataset.class_names:
            return yardstick.of_pixels()
        run = config.measuring.classifier or yardstick.trained_classifier(config, mesh)
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


def source_of(config: Any, mesh: Mesh) -> Source:
    """What the flags name: the ring, or images."""
    return ring_source(config, mesh) if config.on_ring else image_source(config, mesh)


class Artist:
    """Draws samples of a generator: of the same latents, for the same purpose, the same ones.

    Args:
      config: the flags; with --mode=sample latents come from --sample_seed.
      source: what the generator learns from.
      players: the two of them.
    """

    def __init__(self, config: Any, source: Source, players: adversarial.Players):
        self._config, self._source = config, source

        @jax.jit
        def generate(average, latents, labels):
            params, extra = average["params"], average["extra"]
            samples, _ = players.generate(params, extra, latents, labels, False)
            if config.on_ring:
                return (samples,)
            return (jnp.rint(jnp.clip((samples + 1) * 127.5, 0, 255)).astype(jnp.uint8),)

        self._generate = generate

    @property
    def on_ring(self) -> bool:
        """Whether it draws points."""
        return self._config.on_ring

    def latents(self, purpose: int, count: int) -> np.ndarray:
        """As many latents for a purpose, float32 [count, Z]."""
        sampling = self._config.run.mode == "sample"
        seed = self._config.measuring.sample_seed if sampling else self._config.run.seed
        key = jax.random.fold_in(jax.random.key(seed), purpose)
        return np.asarray(jax.random.normal(key, (count, self._config.networks.latent_size)))

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
        train = self._source.real("train", self._config.measuring.samples)
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


def draw_all(artist: Artist, state: State, folder: Path) -> float | None:
    """Writes the pictures of a trained generator into a folder.

    Returns:
      The ratio of `Artist.nearest`; None on the ring.
    """
    folder.mkdir(exist_ok=True)
    pictures.write_png(folder / "samples.png", artist.grid(state))
    if artist.on_ring:
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
