"""Checkerboards in what a generator draws: transposed convolutions against what avoids them.

    python -m experiments.studies.checkerboard

trains a generator of digits for each way of upsampling, and measures the share of its images'
energy that repeats with the stride, every two pixels, before the first step and after the last,
beside that of the training images and of white noise. Neighbouring pixels of a transposed
convolution are sums over different weights, and over different numbers of them where the stride
does not divide the kernel (Odena et al. 2016, Distill, "Deconvolution and checkerboard artifacts").

Images are measured as the generator's floats, for at initialization their contrast is less than one
of 256 levels; they come from its averages, for which at initialization batch norms change nothing.
Every run is one of `experiments.gan` in WORKDIR, so the same command goes on where it was stopped,
and trains nothing again that is done.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import gan
from experiments.harness import claim, cli, image_data, study, training
from experiments.harness.cli import flag, require
from experiments.harness.study import Run, StudyFlags
from jaxdl import adversarial, fidelity, figures, parallel, pictures

TITLE = "What transposed convolutions leave in pictures"
CLAIM = (
    "Transposed convolutions draw checkerboards, before they have learned anything and after; "
    "where a map is resized first, or its pixels are shuffled, there are none."
)
SOURCE = (
    "Odena et al. 2016, Distill, Deconvolution and checkerboard artifacts; Shi et al. 2016, "
    "arXiv:1609.05158, for the shuffled pixels"
)
QUICKLY = ("--image_size=16", "--width=16", "--steps=60")
"""Flags of the quick form."""

STRIDE = 2
"""Of every layer that doubles a map, in pixels."""
IMAGES = 1024
"""How many are measured: generated ones, those of noise, and at most of the data."""
COLUMNS, SHOWN = 2, 4
"""Of the samples in the picture."""
FAINTEST, BRIGHTEST = 1e-7, 1e-1
"""Shares of the energy at a frequency that the picture tells apart."""

UPSAMPLINGS = {
    "transposed 5x5": ("--upsampling=transposed", "--kernel_size=5"),
    "transposed 4x4": ("--upsampling=transposed", "--kernel_size=4"),
    "resize 3x3": ("--upsampling=resize", "--kernel_size=3"),
    "pixel shuffle 3x3": ("--upsampling=pixel_shuffle", "--kernel_size=3"),
}
"""Flags of `experiments.gan`, of the paper's own way first."""


class Look(NamedTuple):
    """What there is to see of images.

    Attributes:
      energy: the share of it that repeats with the stride.
      spectrum: every frequency's share [H, W], the images' means aside, frequency 0 in the middle.
      samples: the first of the images, float [N, H, W, C] in [-1, 1].
    """

    energy: float
    spectrum: np.ndarray
    samples: np.ndarray


Found = dict[str, list[tuple[Look, Look]]]
"""{upsampling: [(at initialization, after training) for each seed]}"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Compares the checkerboards that ways of upsampling leave in generated images."""

    study: StudyFlags = StudyFlags("runs/checkerboard", seeds=3)
    dataset: str = flag("digits", "digits, folder:PATH, or a prepared TFDS set")
    image_size: int = flag(32, "height and width of the images: 16, 32, 64")
    width: int = flag(gan.WIDTH, "maps of the generator's last layer but one and the other's first")
    steps: int = flag(1000, "of each training")

    def __post_init__(self) -> None:
        require(self, "dataset", self.dataset != "ring", "one of images")
        require(self, "steps", self.steps >= 1, "at least 1")


def look(images: np.ndarray) -> Look:
    """Measures images, float [N, H, W, C] in [-1, 1]."""
    centred = images - images.mean((1, 2), keepdims=True)
    energy = np.square(np.abs(np.fft.fft2(centred, axes=(1, 2)))).sum((0, 3))
    spectrum = np.fft.fftshift(energy / (energy.sum() or 1.0))
    return Look(fidelity.stride_energy(images, STRIDE), spectrum, images[:SHOWN])


def plan(config: Config) -> list[Run]:
    """A training of each way with each seed."""
    sizes = [f"--dataset={config.dataset}", f"--image_size={config.image_size}"]
    sizes += [f"--width={config.width}", f"--discriminator_width={config.width}"]
    sizes += [f"--steps={config.steps}", f"--eval_every={config.steps}"]
    return [
        Run(way, seed, study.folder(config, way), gan, [*sizes, *own])
        for seed in study.seeds_of(config)
        for way, own in UPSAMPLINGS.items()
    ]


def generated(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """What a run's averaged generator drew at initialization and draws now, float [N, H, W, C]."""
    problem, task, trained = training.restore(run.config, gan.build)
    initial = task.init(jax.random.key(run.seed), trained.hparams)
    players = gan.make_players(run.config, problem.inputs["sample_shape"], 0, None)
    key = jax.random.fold_in(trained.key, adversarial.EVAL_STREAM)
    latents = players.latents(jax.random.split(key, IMAGES))

    @jax.jit
    def generate(average):
        return players.generate(average["params"], average["extra"], latents, None, False)[0]

    return np.asarray(generate(initial.average)), np.asarray(generate(trained.average))


def measure(runs: Sequence[Run]) -> Found:
    """Looks at what the runs' generators draw."""
    found: Found = {}
    for run in runs:
        initial, trained = generated(run)
        found.setdefault(str(run.setup), []).append((look(initial), look(trained)))
    return found


def references(run: Run) -> dict[str, Look]:
    """What the training images, spread evenly over all of them, and white noise look like."""
    pipeline = image_data.make_pipeline(run.config, parallel.data_mesh())
    count = len(pipeline.dataset.splits["train"])
    chosen = np.linspace(0, count - 1, min(count, IMAGES)).astype(int)
    images = np.asarray(adversarial.signed(jnp.asarray(pipeline.images("train", chosen))))
    noise = np.random.default_rng(0).uniform(-1, 1, (IMAGES, *images.shape[1:]))
    return {"training images": look(images), "white noise": look(noise)}


def table(found: Found, beside: Mapping[str, Look]) -> str:
    """The shares in percent, in Markdown: mean ± sample standard deviation over the seeds."""

    def cell(looks: Sequence[Look]) -> str:
        percent = [100 * seen.energy for seen in looks]
        return study.cell(percent, "{:.3g}".format, "{:.2g}".format)

    rows = [["upsampling", "at initialization", "after training"]]
    rows += [[way, *map(cell, zip(*seeds, strict=True))] for way, seeds in found.items()]
    rows += [[name, "", cell([seen])] for name, seen in beside.items()]
    return study.table(rows)


@figures.styled
def draw(found: Found, beside: Mapping[str, Look], path: Path) -> None:
    """Draws a row for each upsampling: samples and their spectrum, at first and at last.

    Samples are the first seed's, spectra the means over the seeds. The last row is of noise and of
    the training images.
    """
    from matplotlib.figure import Figure

    rows = dict(found)
    last = "noise, and the\ntraining images"
    rows[last] = [(beside["white noise"], beside["training images"])]
    figure = Figure(figsize=(10, 2.1 * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), 4)
    titles = "at initialization", "spectrum", "after training", "spectrum"
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    for row, (name, seeds) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(name, fontsize=12)
        for pair, looks in zip((row[:2], row[2:]), zip(*seeds, strict=True), strict=True):
            samples = looks[0].samples
            contrast = max(np.ptp(samples), 1e-12)
            picture = pictures.grid((samples - samples.min()) / contrast, COLUMNS)
            pair[0].imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            pair[0].set(xticks=[], yticks=[])
            mean = np.mean([seen.spectrum for seen in looks], axis=0)
            # Both ends of an axis are one frequency, the stride's.
            shares = np.log10(np.maximum(np.pad(mean, (0, 1), mode="wrap"), FAINTEST))
            image = pair[1].imshow(
                shares,
                interpolation="nearest",
                extent=(-0.5, 0.5, -0.5, 0.5),
                vmin=np.log10(FAINTEST),
                vmax=np.log10(BRIGHTEST),
            )
            pair[1].set(xticks=[-0.5, 0, 0.5], yticks=[-0.5, 0, 0.5])
    for axis in axes[-1, 1::2]:
        axis.set_xlabel("cycles a pixel; the stride's at the edges", fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.4, label="log10 of the share of the energy")
    figure.suptitle(
        "Untrained transposed convolutions draw checkerboards, which training takes away\n"
        "(the contrast of all samples is stretched)"
    )
    figures.write(path, figure, 70)


def verdict(found: Found, beside: Mapping[str, Look]) -> str:
    """What came of the claim: each other way against the paper's own."""
    first, *others = UPSAMPLINGS
    of = {
        way: [[100 * seen.energy for seen in looks] for looks in zip(*seeds, strict=True)]
        for way, seeds in found.items()
    }
    fewer = [
        claim.clearly_greater(of[first][when], of[way][when])
        for way in others
        if "transposed" not in way
        for when in (0, 1)
    ]
    shares = "; ".join(
        f"{way} {claim.mean(at_first):.2g}% and {claim.mean(at_last):.2g}%"
        for way, (at_first, at_last) in of.items()
    )
    natural = 100 * beside["training images"].energy
    return (
        f"It {claim.word(fewer)}: this share of the energy repeats every {STRIDE} pixels, before "
        f"and after training: {shares}; of the training images' it is {natural:.2g}%."
    )


def run(argv: list[str]) -> None:
    """Trains, and leaves table.md, table.json and checkerboard.png in the workdir."""
    config = study.read_command(Config, argv, QUICKLY)
    runs = plan(config)
    study.begin(config, runs)
    beside = references(runs[0])
    study.train(runs)
    found = measure(runs)
    energies: dict[str, object] = {
        way: [{"initialization": a.energy, "training": b.energy} for a, b in seeds]
        for way, seeds in found.items()
    }
    energies |= {name: seen.energy for name, seen in beside.items()}
    study.finish(
        config,
        {"stride_energy": energies},
        f"Percent of the images' energy that repeats every {STRIDE} pixels.",
        table(found, beside),
        {"checkerboard.png": functools.partial(draw, found, beside)},
        claim.page("checkerboard", TITLE, CLAIM, SOURCE, verdict(found, beside), argv),
    )


if __name__ == "__main__":
    cli.main(run)
