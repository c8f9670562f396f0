"""Mode collapse and its remedies: generative adversarial networks learn a ring of eight Gaussians.

    python -m experiments.studies.mode_collapse

trains the same two multilayer perceptrons at the same rates for as many steps with several losses,
penalties and norms, and counts the Gaussians that the generator then draws. The seeds of a setup
are trained as one program: the step of a single training, mapped over its states. It writes into
WORKDIR mode_collapse.gif, what the averaged generators of the first seed draw as they learn,
mode_collapse.png, what they draw at last, and table.md and table.json, what was counted, with other
points of the ring and noise beside.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from PIL import Image, ImageDraw, ImageFont

from experiments.harness import claim, cli, study
from experiments.harness.cli import flag, require
from experiments.harness.study import StudyFlags
from jaxdl import adversarial, data, fidelity, figures, optim, parallel, pictures
from jaxdl.models import gan
from jaxdl.task import Task

TITLE = "Which losses find all modes"
CLAIM = (
    "A generator that plays the original game draws few of the data's modes; penalties on the "
    "discriminator's slopes, spectral norms and Wasserstein's loss make it draw all."
)
SOURCE = (
    "Goodfellow et al. 2014, arXiv:1406.2661; Metz et al. 2016, arXiv:1611.02163, for the ring; "
    "Mescheder et al. 2018, arXiv:1801.04406; Miyato et al. 2018, arXiv:1802.05957; Gulrajani et "
    "al. 2017, arXiv:1704.00028"
)
QUICKLY = ("--steps=400", "--frames=4", "--width=64", "--discriminator_width=16")
"""Flags of the quick form."""


class Setup(NamedTuple):
    """In what a training differs from the others.

    Attributes:
      loss: a key of `adversarial.LOSSES`.
      penalty: on the discriminator's slopes.
      penalty_weight: of that; the two penalties are of different things.
      norm: of the discriminator's layers.
    """

    loss: str
    penalty: adversarial.Penalty = ""
    penalty_weight: float = 0.0
    norm: str = "none"


SETUPS = {
    "minimax": Setup("minimax"),
    "minimax + R1": Setup("minimax", penalty="r1", penalty_weight=0.3),
    "minimax + spectral norm": Setup("minimax", norm="spectral"),
    "non-saturating": Setup("non_saturating"),
    "non-saturating + R1": Setup("non_saturating", penalty="r1", penalty_weight=0.3),
    "non-saturating + spectral norm": Setup("non_saturating", norm="spectral"),
    "least squares": Setup("least_squares"),
    "hinge": Setup("hinge"),
    "Wasserstein + penalty": Setup("wasserstein", penalty="gradient", penalty_weight=0.1),
}
"""Each by its title, which holds no comma so that --setups can name it."""

SAMPLES, DRAWN = 2048, 512
"""How many samples of a generator are measured, and how many of them the pictures show."""
COLUMNS, PANEL, TITLE_HEIGHT = 3, 200, 16
"""Panels in a row of the pictures, and the sizes of one and of its title in pixels."""
SECONDS_PER_FRAME = 0.15

Measured = dict[str, list[float]]
"""{measure: of each seed}, as `measure` has them."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Compares adversarial losses, penalties and norms on a ring of eight Gaussians."""

    study: StudyFlags = StudyFlags("runs/mode_collapse", seeds=5)
    setups: tuple[str, ...] = flag((), "the titles of those to train; all when empty")
    steps: int = flag(6000, "updates of either player")
    frames: int = flag(40, "of the animation, at equal distances")
    batch_size: int = flag(128, "points in an update, the same for all seeds")
    latent_size: int = flag(64, "numbers that a sample is made of")
    width: int = flag(256, "units in each of the generator's hidden layers")
    discriminator_width: int = flag(64, "maxout units in each of its hidden layers, of 2 pieces")
    depth: int = flag(3, "hidden layers of either network")
    learning_rate: float = flag(0.001, "of the generator's Adam")
    discriminator_learning_rate: float = flag(0.002, "of the discriminator's Adam")
    b1: float = flag(0.0, "of both, decay of the averaged gradient")
    ema_decay: float = flag(0.999, "of the generator's averages, which draw all samples")

    def __post_init__(self) -> None:
        known = set(self.setups) <= set(SETUPS)
        require(self, "setups", known, f"out of {', '.join(SETUPS)}")
        sizes = "batch_size", "latent_size", "width", "discriminator_width", "depth"
        for name in ("frames", *sizes):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        whole = self.steps >= 1 and self.steps % self.frames == 0
        require(self, "steps", whole, f"a multiple of --frames={self.frames}")
        for name in ("learning_rate", "discriminator_learning_rate"):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        for name in ("b1", "ema_decay"):
            require(self, name, 0 <= getattr(self, name) < 1, "at least 0 and less than 1")

    @property
    def chosen(self) -> dict[str, Setup]:
        """The setups to train, by their titles."""
        return {title: SETUPS[title] for title in self.setups or SETUPS}


def make_players(config: Config, setup: Setup) -> adversarial.Players:
    """The multilayer perceptrons of a setup, without dropout."""
    generator = gan.mlp_generator(output_shape=(2,), width=config.width, depth=config.depth)
    discriminator = gan.mlp_discriminator(
        width=config.discriminator_width,
        pieces=2,
        depth=config.depth,
        norm=setup.norm,
        dropout=0.0,
        input_dropout=0.0,
    )
    return adversarial.linen_players(generator, discriminator, config.latent_size, (2,))


def make_task(config: Config, setup: Setup) -> tuple[Task, dict]:
    """The Task of a single training of a setup, and its hyperparameters."""
    task = adversarial.adversarial(
        make_players(config, setup),
        adversarial.LOSSES[setup.loss],
        (optim.optimizer("adam"),) * 2,
        penalty=setup.penalty,
    )
    rates = config.learning_rate, config.discriminator_learning_rate
    hparams = {
        **{
            player: {"learning_rate": rate, "b1": config.b1}
            for player, rate in zip(adversarial.PLAYERS, rates, strict=True)
        },
        "ema_decay": config.ema_decay,
        "label_smoothing": 0.0,
        "penalty_weight": setup.penalty_weight,
    }
    return task, jax.tree.map(jnp.float32, hparams)


def train(config: Config, setup: Setup, mesh: Mesh) -> np.ndarray:
    """Trains a setup with all seeds at once.

    Returns:
      What the averaged generators make of the same latents, `config.frames` times on the way:
      float32 [frames, seeds, SAMPLES, 2].
    """
    task, hparams = make_task(config, setup)
    stacked = P(None, *parallel.BATCH)
    task = parallel.jit(parallel.scan(parallel.vmap(task)), mesh, batch_spec=stacked)
    seeds = jnp.asarray(study.seeds_of(config))
    each = jax.tree.map(lambda value: jnp.full(config.study.seeds, value), hparams)
    state = task.init(jax.vmap(jax.random.key)(seeds), each)

    players = make_players(config, setup)
    latents = jax.random.normal(jax.random.key(config.study.seeds), (SAMPLES, config.latent_size))
    generate = lambda average: players.generate(
        average["params"], average["extra"], latents, None, False
    )
    draw = jax.jit(jax.vmap(lambda average: generate(average)[0]))

    batches = data.Ring(config.batch_size).train()
    samples = []
    for _ in range(config.frames):
        some = itertools.islice(batches, config.steps // config.frames)
        state, _ = task.train(state, jax.tree.map(lambda *rows: np.stack(rows), *some))
        samples.append(np.asarray(draw(state.average)))
    return np.stack(samples)


def measure(ring: data.Ring, of_seeds: Sequence[np.ndarray]) -> Measured:
    """How samples [N, 2] of several seeds cover the ring.

    Returns:
      `modes_covered` and `class_divergence` (`jaxdl.fidelity`) against the ring's test points, and
      `share_near`, the share of samples within three standard deviations of a centre.
    """
    modes = len(ring.centres)
    of_data = fidelity.class_shares(ring.mode_of(ring.points("test")), modes)
    shares = [fidelity.class_shares(ring.mode_of(points), modes) for points in of_seeds]
    return {
        "modes_covered": [fidelity.modes_covered(share, of_data) for share in shares],
        "share_near": [float(share.sum()) for share in shares],
        "class_divergence": [fidelity.class_divergence(share, of_data) for share in shares],
    }


def floor_and_ceiling(ring: data.Ring, seeds: int) -> dict[str, Measured]:
    """What other points of the ring, and noise in place of samples, would measure."""
    others = [data.Ring(1, seed=seed, held_out=SAMPLES).points("train") for seed in range(seeds)]
    noise = [np.random.default_rng(seed).uniform(-1, 1, (SAMPLES, 2)) for seed in range(seeds)]
    return {"training data": measure(ring, others), "noise": measure(ring, noise)}


def table(found: Mapping[str, Measured]) -> str:
    """In Markdown: means ± sample standard deviations over the seeds, and the worst of them."""
    head = ["", "modes covered", "fewest", "share near a centre", "least", "class divergence"]
    rows = [[*head, "greatest"]]
    for title, measured in found.items():
        modes, near = measured["modes_covered"], measured["share_near"]
        divergence = measured["class_divergence"]
        cells = [study.cell(modes, "{:.1f}".format), f"{min(modes)}"]
        cells += [study.cell(near, "{:.3f}".format), f"{min(near):.3f}"]
        cells += [study.cell(divergence, "{:.3f}".format), f"{max(divergence):.3f}"]
        rows.append([title, *cells])
    return study.table(rows)


def verdict(found: Mapping[str, Measured], modes: int) -> str:
    """What came of the claim: whether each plain game loses modes, and each remedy finds all."""
    of = {title: found[title]["modes_covered"] for title in SETUPS if title in found}
    plain = [title for title in ("minimax", "non-saturating") if title in of]
    remedies = [title for title in of if "+" in title]
    parts = [min(of[title]) < modes for title in plain]
    parts += [min(of[title]) == modes for title in remedies]
    counted = ", ".join(f"{title} {claim.mean(values):.1f}" for title, values in of.items())
    return f"It {claim.word(parts)}: of {modes} modes are drawn by {counted}."


def panel(title: str, points: np.ndarray, ring: data.Ring) -> np.ndarray:
    """Samples of one generator over the ring's own points, below a title, uint8 [H, W, 3]."""
    dots = pictures.scatter(points[:DRAWN], ring.points("test")[:DRAWN], size=PANEL)
    head = Image.new("RGB", (PANEL, TITLE_HEIGHT), "white")
    font = ImageFont.load_default(11)
    ImageDraw.Draw(head).text(
        (PANEL / 2, TITLE_HEIGHT / 2), title, fill="black", font=font, anchor="mm"
    )
    return np.concatenate([np.asarray(head), dots])


def frame(samples: Mapping[str, np.ndarray], ring: data.Ring) -> np.ndarray:
    """A panel for the samples [N, 2] of each setup, with the modes it covers, uint8 [H, W, 3]."""
    panels = []
    for title, points in samples.items():
        (covered,) = measure(ring, [points])["modes_covered"]
        panels.append(panel(f"{title}: {covered} of {len(ring.centres)}", points, ring))
    return pictures.grid(np.stack(panels) / 255, min(COLUMNS, len(panels)))


def draw(samples: Mapping[str, np.ndarray], ring: data.Ring, figure: Any) -> None:
    """Draws the samples [N, 2] of each setup over the ring's own points."""
    rows = -(-len(samples) // COLUMNS)
    panels = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(samples) :]:
        axes.remove()
    for axes, (title, points) in zip(panels.flat, samples.items(), strict=False):
        (covered,) = measure(ring, [points])["modes_covered"]
        axes.plot(*ring.points("test")[:DRAWN].T, ".", color="0.7", markersize=3)
        axes.plot(*points[:DRAWN].T, ".", markersize=3)
        axes.set(title=f"{title}\n{covered} of {len(ring.centres)}", aspect="equal")
        axes.set(xlim=(-1, 1), ylim=(-1, 1))
    figure.suptitle("modes that the first seed's generator draws, over the data's in grey")


def run(argv: list[str]) -> None:
    """Trains every setup, and leaves the animation, its last frame and the table in the workdir."""
    config = study.read_command(Config, argv, QUICKLY)
    study.begin(config, apart_from=["setups"])
    mesh = parallel.data_mesh()
    parallel.check_batch_size(config.batch_size, mesh)
    ring = data.Ring(config.batch_size, held_out=SAMPLES)
    samples, found = {}, {}
    for title, setup in config.chosen.items():
        start = time.perf_counter()
        samples[title] = train(config, setup, mesh)
        found[title] = measure(ring, samples[title][-1])
        covered = " ".join(map(str, found[title]["modes_covered"]))
        seconds = time.perf_counter() - start
        print(f"{title}: {covered} modes covered, {seconds:.0f} s", flush=True)
    found |= floor_and_ceiling(ring, config.study.seeds)

    frames = [
        frame({title: points[i, 0] for title, points in samples.items()}, ring)
        for i in range(config.frames)
    ]
    at_last = {title: points[-1, 0] for title, points in samples.items()}
    picture = functools.partial(draw, at_last, ring)
    size = (7.0, 2.4 * -(-len(samples) // COLUMNS) + 0.4)
    study.finish(
        config,
        {"measured": found},
        "Samples of averaged generators.",
        table(found),
        {
            "mode_collapse.png": functools.partial(figures.save, draw=picture, size=size),
            "mode_collapse.gif": lambda path: pictures.write_gif(path, frames, SECONDS_PER_FRAME),
        },
        claim.page("mode_collapse", TITLE, CLAIM, SOURCE, verdict(found, len(ring.centres)), argv),
    )


if __name__ == "__main__":
    cli.main(run)
