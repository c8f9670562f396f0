"""What curvature makes of gradient descent: rates that converge, where it stops, and its edge.

    python -m experiments.studies.descent

Beside table.md and table.json, with all that is drawn, it leaves in WORKDIR:

- quadratic.png: descent on quadratics at shares of the greatest rate that converges, without
  momentum, with it, and with Nesterov's (LeCun et al. 1998, "Efficient BackProp"; Polyak 1964).
- stationary.png: the points where the gradient of a function is zero, told apart by the eigenvalues
  of its Hessian: minimum, saddle, maximum.
- edge.png: full-batch descent of a tanh perceptron on handwritten digits. Its sharpness, the
  greatest eigenvalue, climbs to 2 / rate and stays there, while the loss goes on falling, though
  not at every step (Cohen et al. 2021, arXiv:2103.00065). At a rate whose edge is out of reach it
  climbs beyond the edges of the others.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments.harness import claim, cli, study
from experiments.harness.cli import flag, require
from experiments.harness.study import StudyFlags
from jaxdl import InputError, curvature, figures, losses, optim
from jaxdl.data.digits import NUM_TRAIN
from jaxdl.models.mlp import mlp
from jaxdl.task import supervised

TITLE = "Why a learning rate diverges"
CLAIM = (
    "Descent converges up to a rate that the greatest eigenvalue of the Hessian sets, and not "
    "beyond; eigenvalues tell minima, saddles and maxima apart; on a network sharpness climbs to "
    "2 / rate and stays there."
)
SOURCE = (
    "LeCun et al. 1998, Efficient BackProp; Polyak 1964; Dauphin et al. 2014, arXiv:1406.2572; "
    "Cohen et al. 2021, arXiv:2103.00065"
)
QUICKLY = ("--steps=2000", "--learning_rates=1.75")
"""Flags of the quick form."""

MOMENTUM = 0.9
METHODS = {"sgd": "gradient descent", "momentum": "momentum 0.9", "nesterov": "Nesterov 0.9"}
"""By their names in `jaxdl.optim`."""
SHARES = (0.5, 0.99, 1.0, 1.01)
"""Of the greatest rate that converges."""
DIMENSIONS, LEAST, DESCENT = 20, 0.05, 200
"""Of each quadratic: numbers, its least eigenvalue (the greatest is 1), and steps made on it."""

FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "x² + 2y²": lambda p: p[0] ** 2 + 2 * p[1] ** 2,
    "-x² - y²": lambda p: -(p[0] ** 2) - p[1] ** 2,
    "x² - y²": lambda p: p[0] ** 2 - p[1] ** 2,
    "x³ - 3xy²": lambda p: p[0] ** 3 - 3 * p[0] * p[1] ** 2,
    "Rosenbrock": lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2,
    "Himmelblau": lambda p: (p[0] ** 2 + p[1] - 11) ** 2 + (p[0] + p[1] ** 2 - 7) ** 2,
}
KINDS = ("minimum", "saddle", "maximum", "undecided")
FLAT = 1e-3
"""Eigenvalues of less than that tell nothing."""

TAIL = 0.25
"""The share of a training, its last, that the table is of."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Measures which rates converge, what stationary points are, and how sharp descent gets."""

    study: StudyFlags = StudyFlags("runs/descent", seeds=3)
    learning_rates: tuple[float, ...] = flag((0.5, 1.25, 1.75), "of the descents on digits")
    steps: int = flag(4000, "of each of them")
    every: int = flag(50, "steps between measurements of the sharpness")
    examples: int = flag(NUM_TRAIN, "digits, all of them in each step")
    width: int = flag(32, "units in each hidden layer")
    depth: int = flag(2, "hidden layers")

    def __post_init__(self) -> None:
        given = self.learning_rates
        fits = given and min(given) > 0 and len({*given}) == len(given)
        require(self, "learning_rates", bool(fits), "one or more numbers above 0, each once")
        for name in ("every", "width"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "depth", self.depth >= 0, "at least 0")
        whole = self.steps >= 1 and self.steps % self.every == 0
        require(self, "steps", whole, f"a multiple of --every={self.every}")
        fits = 1 <= self.examples <= NUM_TRAIN
        require(self, "examples", fits, f"1 to {NUM_TRAIN}, the training digits")


def on_quadratics(seeds: range) -> dict[str, np.ndarray]:
    """Descends on a quadratic for each seed, with eigenvalues from `LEAST` to 1 along any axes.

    The greatest eigenvalue is not told but measured, and the range of rates follows from that.

    Returns:
      {method: distances to the minimum [SHARES, seeds, DESCENT + 1], over that at the start}
    """
    found: dict[str, list] = {name: [] for name in METHODS}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        axes, _ = np.linalg.qr(rng.standard_normal((DIMENSIONS, DIMENSIONS)))
        matrix = jnp.asarray((axes * np.geomspace(LEAST, 1, DIMENSIONS)) @ axes.T, jnp.float32)
        drawn = rng.standard_normal(DIMENSIONS)
        start = jnp.asarray(drawn / np.linalg.norm(drawn), jnp.float32)
        f = lambda x, matrix=matrix: 0.5 * x @ matrix @ x
        (greatest,) = curvature.top_eigenvalues(f, start, tolerance=1e-6).values
        for name in METHODS:
            momentum = 0.0 if name == "sgd" else MOMENTUM
            _, limit = curvature.step_size_range(greatest, momentum, nesterov=name == "nesterov")
            rates = limit * jnp.asarray(SHARES)
            found[name].append(_distances(name, momentum, rates, matrix, start))
    return {name: np.stack(values, 1) for name, values in found.items()}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _distances(name: str, momentum: float, rates: Any, matrix: Any, start: Any) -> jax.Array:
    """|x| at each step [rates, DESCENT + 1] of a descent on x^T matrix x / 2."""

    def descend(rate):
        hparams = {"learning_rate": rate} | ({"momentum": momentum} if momentum else {})
        method = optim.optimizer(name)(hparams)

        def step(carry, _):
            x, state = carry
            update, state = method.update(matrix @ x, state, x)
            return (optax.apply_updates(x, update), state), jnp.linalg.norm(x)

        steps = jax.lax.scan(step, (start, method.init(start)), length=DESCENT + 1)
        return steps[1]

    return jax.vmap(descend)(rates)


class Point(NamedTuple):
    """A point where the gradient is zero.

    Attributes:
      place: its x and y.
      kind: out of `KINDS`.
      eigenvalues: of the Hessian, ascending.
      lower: the share of the points on a small circle around it that lie lower.
    """

    place: list[float]
    kind: str
    eigenvalues: list[float]
    lower: float


def kind_of(eigenvalues: np.ndarray) -> str:
    """What a stationary point is, by the eigenvalues of the Hessian there."""
    rises, falls = eigenvalues > FLAT, eigenvalues < -FLAT
    if rises.any() and falls.any():
        return "saddle"
    return "minimum" if rises.all() else "maximum" if falls.all() else "undecided"


def stationary_points(f: Callable[[jax.Array], jax.Array], starts: int = 400) -> list[Point]:
    """The stationary points of a function of the plane that Newton's method finds in [-6, 6]²."""

    def newton(p):
        step = lambda _, p: p - jnp.linalg.pinv(jax.hessian(f)(p)) @ jax.grad(f)(p)
        return jax.lax.fori_loop(0, 100, step, p)

    begun = jnp.asarray(np.random.default_rng(0).uniform(-6, 6, (starts, 2)), jnp.float32)
    ended = jax.jit(jax.vmap(newton))(begun)
    slopes = jnp.linalg.norm(jax.vmap(jax.grad(f))(ended), axis=1)
    there = np.asarray(ended)[np.asarray((slopes < FLAT) & (jnp.abs(ended).max(1) <= 6))]
    places = np.unique(np.round(there, 2) + 0.0, axis=0)
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    circle = jnp.asarray(0.05 * np.stack([np.cos(angles), np.sin(angles)], 1), jnp.float32)
    found = []
    for place in places:
        point = jnp.asarray(there[np.abs(there - place).sum(1).argmin()])
        eigenvalues = np.linalg.eigvalsh(curvature.hessian(f, point))
        around = jax.vmap(f)(point[None] + circle)
        lower = float((around < f(point)).mean())
        found.append(Point(point.tolist(), kind_of(eigenvalues), eigenvalues.tolist(), lower))
    return found


def agrees(point: Point) -> bool:
    """Whether the function around a point is as its kind says; where it says nothing, so."""
    expected = {"minimum": point.lower == 0, "maximum": point.lower == 1}
    return expected.get(point.kind, point.kind == "undecided" or 0 < point.lower < 1)


class Descent(NamedTuple):
    """Full-batch descents at one rate.

    Attributes:
      sharpness: [seeds, measurements], every `every` steps from the start on.
      losses: [seeds, steps], before each step.
    """

    sharpness: np.ndarray
    losses: np.ndarray


def digits(examples: int) -> dict[str, jax.Array]:
    """The first training digits as one batch, the mean image taken away, classes as one-hot."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images[:examples] / 16
    return {
        "input": jnp.asarray(images - images.mean(0), jnp.float32),
        "target": jax.nn.one_hot(labels[:examples], 10),
        "mask": jnp.ones(examples),
    }


def on_digits(config: Config) -> dict[float, Descent]:
    """Descends on the mean squared error of the digits with each rate and seed."""
    batch = digits(config.examples)
    model = mlp(num_classes=10, width=config.width, depth=config.depth, activation="tanh")
    init, loss = losses.prediction(model, (64,), losses.mse)
    task = supervised(init, loss, optim.optimizer("sgd"))
    key = jax.random.key(0)  # of no use where nothing is dropped
    measured = lambda params, batch: loss(params, {}, batch, key, {}, False)[0]

    @jax.jit
    def descend(state, batch):
        step = lambda state, _: task.train(state, batch)
        state, metrics = jax.lax.scan(step, state, length=config.every)
        return state, metrics["loss"].value

    found = {}
    for rate in config.learning_rates:
        sharpness, values = [], []
        for seed in study.seeds_of(config):
            state = task.init(jax.random.key(seed), {"learning_rate": jnp.float32(rate)})
            of_seed: tuple[list, list] = [], []
            for _ in range(config.steps // config.every):
                top = curvature.top_eigenvalues(measured, state.params, batches=lambda: [batch])
                state, before = descend(state, batch)
                if not np.isfinite(before).all():
                    raise InputError(f"--learning_rates={rate}: seed {seed} diverged; take less")
                of_seed[0].append(top.values[0])
                of_seed[1].append(np.asarray(before))
            sharpness.append(of_seed[0])
            values.append(np.concatenate(of_seed[1]))
            share = of_seed[0][-1] * rate / 2
            print(f"rate {rate}, seed {seed}: sharpness {share:.2f} x 2 / rate at last", flush=True)
        found[rate] = Descent(np.asarray(sharpness), np.asarray(values))
    return found


def edge(rate: float, descent: Descent) -> dict[str, list[float]]:
    """What the descents at a rate come to, of each seed.

    Returns:
      Of the sharpness over 2 / rate: `start`, `greatest`, and `last`, its mean over the last part
      of the training; there, `rises` is the share of steps after which the loss is greater; `loss`
      is that before the last step.
    """
    shares = descent.sharpness * rate / 2
    tail = lambda values: values[:, -max(2, round(TAIL * values.shape[1])) :]
    return {
        "start": shares[:, 0].tolist(),
        "greatest": shares.max(1).tolist(),
        "last": tail(shares).mean(1).tolist(),
        "rises": (np.diff(tail(descent.losses)) > 0).mean(1).tolist(),
        "loss": descent.losses[:, -1].tolist(),
    }


def table(
    distances: Mapping[str, np.ndarray],
    points: Mapping[str, list[Point]],
    descents: Mapping[float, Descent],
) -> str:
    """The three measurements, in Markdown."""
    show = "{:.1e}".format
    rows = [["quadratics", *(f"rate {share} x limit" for share in SHARES)]]
    rows += [
        [METHODS[name], *(study.cell(of_rate[:, -1].tolist(), show) for of_rate in values)]
        for name, values in distances.items()
    ]
    kinds = [["stationary points", *KINDS, "as around them"]]
    for name, found in points.items():
        counts = [str(sum(point.kind == kind for point in found)) for kind in KINDS]
        kinds.append([name, *counts, f"{sum(map(agrees, found))} of {len(found)}"])
    head = ["digits", "2 / rate", "sharpness over that, at first", "greatest", "last quarter"]
    edges = [[*head, "of it, steps upward", "last loss"]]
    for rate, descent in descents.items():
        of_rate = edge(rate, descent)
        two = "{:.2f}".format
        cells = [study.cell(of_rate[name], two) for name in ("start", "greatest", "last", "rises")]
        digits = functools.partial(study.significant, digits=2)
        last = study.cell(of_rate["loss"], digits)
        edges.append([f"rate {rate:g}", f"{2 / rate:.3g}", *cells, last])
    return "\n\n".join(map(study.table, (rows, kinds, edges)))


def verdict(
    distances: Mapping[str, np.ndarray],
    points: Mapping[str, list[Point]],
    descents: Mapping[float, Descent],
) -> str:
    """What came of the claim, each of its three parts."""
    below, beyond = SHARES.index(0.99), SHARES.index(1.01)
    bounded = all(v[below, :, -1].max() < 1 < v[beyond, :, -1].min() for v in distances.values())
    everywhere = [point for found in points.values() for point in found]
    told = sum(map(agrees, everywhere))
    last = {rate: claim.mean(edge(rate, descent)["last"]) for rate, descent in descents.items()}
    reached = {rate: share for rate, share in last.items() if share > 0.9}
    stays = bool(reached) and max(reached.values()) < 1.1
    edges = ", ".join(f"{share:.2f} at rate {rate:g}" for rate, share in last.items())
    return (
        f"It {claim.word([bounded, told == len(everywhere), stays])}: a hundredth below the limit "
        f"all methods converge, a hundredth above it {'' if bounded else 'not '}all diverge; "
        f"{told} of {len(everywhere)} stationary points are what their eigenvalues say; sharpness "
        f"ends at these shares of 2 / rate: {edges}."
    )


@figures.styled
def draw_quadratics(distances: Mapping[str, np.ndarray], path: Path) -> None:
    """Draws the distances to the minimum: means over the seeds, from least to greatest."""
    figure = Figure(figsize=(4 * len(distances), 4), layout="constrained")
    all_axes = figure.subplots(1, len(distances), sharey=True)
    for axes, (name, values) in zip(all_axes, distances.items(), strict=True):
        for share, of_rate in zip(SHARES, values, strict=True):
            figures.band(axes, range(of_rate.shape[1]), of_rate.T, f"{share} x limit", "-")
        axes.set(title=METHODS[name], xlabel="step", yscale="log", ylim=(1e-6, 1e6))
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("distance to the minimum, over the first")
    all_axes[0].legend(title="rate")
    figure.suptitle("Descent converges up to a greatest rate and not beyond")
    figures.write(path, figure)


@figures.styled
def draw_points(points: Mapping[str, list[Point]], path: Path) -> None:
    """Draws each function's levels, and its stationary points by their kinds."""
    columns = 3
    figure = Figure(figsize=(4 * columns, 4 * -(-len(points) // columns)), layout="constrained")
    all_axes = figure.subplots(-(-len(points) // columns), columns).ravel()
    line = np.linspace(-6, 6, 121)
    grid = jnp.asarray(np.stack(np.meshgrid(line, line), -1).reshape(-1, 2), jnp.float32)
    for axes, (name, found) in zip(all_axes, points.items(), strict=False):
        heights = np.asarray(jax.vmap(FUNCTIONS[name])(grid)).reshape(len(line), -1)
        levels = np.sign(heights) * np.log1p(np.abs(heights))
        axes.contourf(line, line, levels, 20, cmap="Greys")
        for kind, marker, color in zip(KINDS, ("o", "X", "^", "s"), figures.PALETTE, strict=False):
            places = np.array([point.place for point in found if point.kind == kind])
            if len(places):
                axes.plot(*places.T, marker, label=kind, color=color, markersize=9)
        axes.set(title=name, xticks=[-6, 0, 6], yticks=[-6, 0, 6])
        axes.legend(loc="lower right", frameon=True)
    figure.suptitle("The Hessian's eigenvalues tell what a stationary point is (low is light)")
    figures.write(path, figure, 80)


@figures.styled
def draw_edge(every: int, descents: Mapping[float, Descent], path: Path) -> None:
    """Draws the losses of the first seed, and of all seeds the sharpness beside 2 / rate."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for rate, descent in descents.items():
        (line,) = left.semilogy(descent.losses[0], linewidth=0.8, label=f"rate {rate:g}")
        steps = range(0, every * descent.sharpness.shape[1], every)
        figures.band(right, steps, descent.sharpness.T, f"rate {rate:g}", "-")
        right.axhline(2 / rate, linestyle="--", color=line.get_color())
    figure.suptitle("Sharpness climbs to 2 / rate and stays there, while the loss goes on falling")
    left.set(xlabel="step", ylabel="mean squared error")
    right.set(xlabel="step", ylabel="sharpness, and 2 / rate (dashed)", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figures.write(path, figure)


def run(argv: list[str]) -> None:
    """Measures, and leaves the tables and the pictures in the workdir."""
    config = study.read_command(Config, argv, QUICKLY)
    study.begin(config)
    distances = on_quadratics(study.seeds_of(config))
    points = {name: stationary_points(f) for name, f in FUNCTIONS.items()}
    descents = on_digits(config)
    record = {
        "quadratics": {
            name: {
                str(share): of_rate.tolist() for share, of_rate in zip(SHARES, values, strict=True)
            }
            for name, values in distances.items()
        },
        "stationary_points": {
            name: [point._asdict() for point in found] for name, found in points.items()
        },
        "digits": {
            str(rate): edge(rate, descent)
            | {"sharpness": descent.sharpness.tolist(), "losses": descent.losses.tolist()}
            for rate, descent in descents.items()
        },
    }
    study.finish(
        config,
        record,
        f"Distances to a quadratic's minimum after {DESCENT} steps, over the first; stationary "
        "points by their eigenvalues; sharpness of full-batch descent.",
        table(distances, points, descents),
        {
            "quadratic.png": functools.partial(draw_quadratics, distances),
            "stationary.png": functools.partial(draw_points, points),
            "edge.png": functools.partial(draw_edge, config.every, descents),
        },
        claim.page("descent", TITLE, CLAIM, SOURCE, verdict(distances, points, descents), argv),
    )


if __name__ == "__main__":
    cli.main(run)
