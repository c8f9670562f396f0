"""Paths of optimizers over a ravine, past a saddle and in a noisy bowl, each at its best rate.

python -m experiments.studies.paths
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.harness import claim, cli, study
from experiments.harness.claim import Values
from experiments.harness.cli import flag, require
from experiments.harness.study import StudyFlags
from jaxdl import figures, optim

TITLE = "Optimizers in a ravine, at a saddle and in noise"
CLAIM = (
    "Across a ravine momentum is faster than plain descent; past a saddle so are momentum and "
    "adaptive rates; in noise none comes closer than its rate allows."
)
SOURCE = (
    "Polyak 1964 (USSR CMMP 4); Kingma and Ba 2014, arXiv:1412.6980; Bottou et al. 2016, "
    "arXiv:1606.04838"
)
OPTIMIZERS = ("sgd", "momentum", "nesterov", "rmsprop", "adam")
RATES = np.geomspace(1e-3, 1.0, 16).astype(np.float32)
NOISE = 1.0


class Surface(NamedTuple):
    """A function of two variables, and when a path over it has come to its end.

    Attributes:
      value: the function, of [2].
      start: where paths begin, but for what the seed adds.
      noise: the standard deviation of each gradient's components.
      there: (value) -> whether that is far enough.
      box: what of it is drawn, as (left, right, bottom, top).
    """

    value: Callable[[Any], Any]
    start: tuple[float, float]
    noise: float
    there: Callable[[Any], Any]
    box: tuple[float, float, float, float]


SURFACES = {
    "ravine": Surface(
        lambda p: 0.5 * (p[0] ** 2 + 50 * p[1] ** 2),
        (-4.0, 0.6),
        0.0,
        lambda value: value < 1e-3,
        (-4.5, 2.0, -1.0, 1.0),
    ),
    "saddle": Surface(
        lambda p: 0.5 * (p[0] ** 2 - p[1] ** 2) + p[1] ** 4 / 16,
        (-2.0, 0.001),
        0.0,
        lambda value: value < -0.9,
        (-2.5, 2.5, -2.5, 2.5),
    ),
    "noisy bowl": Surface(
        lambda p: 0.5 * (p[0] ** 2 + p[1] ** 2),
        (-3.0, 2.0),
        NOISE,
        lambda value: value < 0.05,
        (-3.5, 2.0, -2.0, 3.0),
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Follows optimizers over three surfaces."""

    study: StudyFlags = StudyFlags("runs/paths", seeds=5)
    steps: int = flag(400, "of each path")

    def __post_init__(self) -> None:
        require(self, "steps", self.steps >= 10, "at least 10")


def path(surface: Surface, name: str, steps: int, key: Any, rate: Any) -> tuple[Any, Any]:
    """The points of a path [steps + 1, 2], and their values [steps + 1]."""
    hparams = {argument: jnp.float32(value) for argument, value in optim.arguments(name).items()}
    transform = optim.optimizer(name)(hparams | {"learning_rate": rate})
    begin, key = jax.random.split(key)
    start = jnp.array(surface.start) * (1 + 0.1 * jax.random.normal(begin, (2,)))

    def step(carry: Any, number: Any) -> tuple[Any, Any]:
        point, state = carry
        noise = jax.random.normal(jax.random.fold_in(key, number), (2,))
        slope = jax.grad(surface.value)(point) + surface.noise * noise
        updates, state = transform.update(slope, state, point)
        return (optax.apply_updates(point, updates), state), point

    (last, _), points = jax.lax.scan(step, (start, transform.init(start)), jnp.arange(steps))
    points = jnp.concatenate([points, last[None]])
    return points, jax.vmap(surface.value)(points)


def arrivals(surface: Surface, values: np.ndarray) -> np.ndarray:
    """After how many steps each path [..., steps + 1] is there to stay; inf for never.

    In noise none stays for good: ten steps are enough.
    """
    there = np.asarray(surface.there(values)) & np.isfinite(values)
    if surface.noise:
        stays = np.lib.stride_tricks.sliding_window_view(there, 10, axis=-1).all(-1)
    else:
        stays = np.logical_and.accumulate(there[..., ::-1], axis=-1)[..., ::-1]
    return np.where(stays.any(-1), stays.argmax(-1), np.inf)


class Found(NamedTuple):
    """What an optimizer comes to on a surface, at the rate that arrives soonest over the seeds.

    Attributes:
      rate: that.
      steps: until it is there, by seed; None for never.
      points: the path of the first seed.
    """

    rate: float
    steps: Values
    points: np.ndarray


def measure(config: Config) -> dict[str, dict[str, Found]]:
    """What each optimizer comes to on each surface: {surface: {optimizer: Found}}."""
    keys = jnp.stack([jax.random.key(seed) for seed in study.seeds_of(config)])
    found: dict[str, dict[str, Found]] = {}
    for title, surface in SURFACES.items():
        for name in OPTIMIZERS:
            one = functools.partial(path, surface, name, config.steps)
            all_of = jax.jit(jax.vmap(jax.vmap(one, (0, None)), (None, 0)))
            points, values = jax.device_get(all_of(keys, jnp.asarray(RATES)))
            steps = arrivals(surface, values)  # [rates, seeds]
            best = int(np.argmin(np.minimum(steps, 10 * config.steps).mean(1)))
            by_seed = [float(n) if math.isfinite(n) else None for n in steps[best]]
            own = Found(float(RATES[best]), by_seed, points[best, 0])
            found.setdefault(title, {})[name] = own
    return found


def table(found: dict[str, dict[str, Found]]) -> str:
    """Steps until each is there, in Markdown."""
    rows = [["", *(f"{title}: steps, rate" for title in found)]]
    for name in OPTIMIZERS:
        cells = []
        for of in found.values():
            steps = study.cell(of[name].steps, "{:.0f}".format) or "never"
            missing = sum(n is None for n in of[name].steps)
            lost = f" ({missing} never)" if missing and missing < len(of[name].steps) else ""
            cells.append(f"{steps}{lost}, {of[name].rate:.3g}")
        rows.append([name, *cells])
    return study.table(rows)


def verdict(found: dict[str, dict[str, Found]]) -> str:
    """What came of it, in words."""
    steps = {title: {name: of.steps for name, of in by.items()} for title, by in found.items()}
    ravine, saddle = steps["ravine"], steps["saddle"]
    crosses = claim.clearly_greater(ravine["sgd"], ravine["momentum"])
    leaves = [n for n in OPTIMIZERS[1:] if claim.clearly_greater(saddle["sgd"], saddle[n])]
    word = claim.word([crosses, *(n in leaves for n in OPTIMIZERS[1:])])
    say = lambda values: f"{claim.mean(values):.0f}"
    return (
        f"It {word}: the ravine takes plain descent {say(ravine['sgd'])} steps and momentum "
        f"{say(ravine['momentum'])}; the saddle {say(saddle['sgd'])} and, "
        + ", ".join(f"{name} {say(saddle[name])}" for name in OPTIMIZERS[1:])
        + ". In the bowl the best rates are "
        + ", ".join(f"{name}'s {found['noisy bowl'][name].rate:.2g}" for name in OPTIMIZERS)
        + "."
    )


def draw(found: dict[str, dict[str, Found]], figure: Any) -> None:
    """The first seed's paths over contours."""
    for axes, (title, of) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        surface = SURFACES[title]
        left, right, bottom, top = surface.box
        x, y = np.meshgrid(np.linspace(left, right, 80), np.linspace(bottom, top, 80))
        values = surface.value(np.stack([x, y]))
        axes.contour(x, y, values, levels=12, colors="0.8", linewidths=0.7)
        for name, own in of.items():
            axes.plot(own.points[:40, 0], own.points[:40, 1], ".-", label=name, linewidth=1)
        axes.set(xlim=(left, right), ylim=(bottom, top), xlabel="x", ylabel="y")
        axes.set_title(title)
        axes.grid(False)
    axes.legend(fontsize=7)
    figure.suptitle("Forty steps of five optimizers, each at its best rate")


def run(argv: list[str]) -> None:
    """Follows the paths, and leaves the table, the picture and the page."""
    config = study.read_command(Config, argv)
    study.begin(config, apart_from=["steps"])
    found = measure(config)
    said = verdict(found)
    record = {
        title: {name: {"rate": of.rate, "steps": of.steps} for name, of in by.items()}
        for title, by in found.items()
    }
    notes = (
        "Steps until the value is below 0.001, -0.9 and 0.05 and stays there, in noise for ten, of "
        f"{config.steps}; of {len(RATES)} rates from 0.001 to 1 the one that is soonest over "
        f"{config.study.seeds} seeds, which move the start by a tenth and draw the noise."
    )
    picture = functools.partial(figures.save, draw=functools.partial(draw, found), size=(8.0, 3.2))
    page = claim.page("paths", TITLE, CLAIM, SOURCE, said, argv, notes)
    study.finish(config, record, f"{CLAIM}\n\n{said}", table(found), {"paths.png": picture}, page)


if __name__ == "__main__":
    cli.main(run)
