"""The perceptron: it learns what a line separates within a bound of mistakes, and never learns xor.

    python -m experiments.studies.perceptron

trains Rosenblatt's perceptron, single examples at a rate of 1 from weights of zero, on the logical
functions of two inputs and on points of two classes with ever smaller margins, and counts its
mistakes beside the bound (R / gamma)**2 (Novikoff 1962, "On convergence proofs on perceptrons").
R is the greatest norm of the inputs and gamma the margin of weights that are known, both with a 1
among the inputs for the bias. On xor, which no line separates, its weights come back to where they
were (Minsky and Papert 1969, "Perceptrons"). Seeds draw the points, or the order of the logical
function's rows; those of a setup are trained as one program.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import claim, cli, study
from experiments.harness.cli import flag, require
from experiments.harness.study import StudyFlags
from jaxdl import figures, losses, optim, parallel
from jaxdl.models.linear import Perceptron
from jaxdl.task import supervised

TITLE = "What the perceptron learns, and what it cannot"
CLAIM = (
    "Of examples that a line separates the perceptron makes at most (R / margin)² mistakes, and "
    "then none any more; of others, as xor, it makes mistakes for ever."
)
SOURCE = "Rosenblatt 1958; Novikoff 1962; Minsky and Papert 1969, Perceptrons"

CORNERS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
LOGIC: dict[str, tuple[list[int], list[float]]] = {
    "and": ([-1, -1, -1, 1], [1, 1, -1.5]),
    "or": ([-1, 1, 1, 1], [1, 1, -0.5]),
    "xor": ([-1, 1, 1, -1], []),
}
"""The class of each corner, and weights and bias that separate them where any do."""
SHOWN = 16
"""How many steps on xor the picture shows."""


class Examples(NamedTuple):
    """What to classify, in the order in which it is shown.

    Attributes:
      inputs: float32 [N, F].
      classes: float32 [N], -1 or 1.
      margin: of weights of norm 1 that separate them; 0 where none do.
    """

    inputs: np.ndarray
    classes: np.ndarray
    margin: float

    @property
    def bound(self) -> float:
        """The most mistakes that a perceptron can make."""
        radius = np.linalg.norm(_with_one(self.inputs), axis=1).max()
        return float(radius / self.margin) ** 2 if self.margin else np.inf


class Course(NamedTuple):
    """How some perceptrons learned.

    Attributes:
      weights: before each example, the bias last, float32 [seeds, passes, N, F + 1].
      mistakes: bool [seeds, passes, N].
    """

    weights: np.ndarray
    mistakes: np.ndarray


@dataclasses.dataclass(frozen=True)
class Config:
    """Counts the mistakes of perceptrons on logical functions and on points with a margin."""

    study: StudyFlags = StudyFlags("runs/perceptron", seeds=5)
    margins: tuple[float, ...] = flag((0.4, 0.2, 0.1, 0.05), "the least distance from the line")
    points: int = flag(100, "of both classes, in a square from -1 to 1")
    passes: int = flag(50, "over what no line separates")

    def __post_init__(self) -> None:
        within = all(0.01 <= margin <= 0.5 for margin in self.margins)
        require(self, "margins", within, "from 0.01 to 0.5")
        require(self, "points", self.points >= 2, "at least 2")
        require(self, "passes", self.passes >= 2, "at least 2")


def _with_one(inputs: np.ndarray) -> np.ndarray:
    return np.c_[inputs, np.ones(len(inputs), inputs.dtype)]


def logic(name: str, seed: int) -> Examples:
    """The four rows of a logical function's table."""
    classes, separating = LOGIC[name]
    order = np.random.default_rng(seed).permutation(len(CORNERS))
    inputs, signs = CORNERS[order], np.array(classes, np.float32)[order]
    if not separating:
        return Examples(inputs, signs, 0.0)
    unit = np.array(separating) / np.linalg.norm(separating)
    return Examples(inputs, signs, float((signs * (_with_one(inputs) @ unit)).min()))


def clouds(margin: float, points: int, seed: int) -> Examples:
    """Points at random on both sides of a random line, none within the margin."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi)
    # A short bias, so that there is room on both sides.
    unit = np.array([np.cos(angle), np.sin(angle), 0.2]) / np.hypot(1, 0.2)
    inputs = np.zeros((0, 2), np.float32)
    while len(inputs) < points:
        some = rng.uniform(-1, 1, (points, 2)).astype(np.float32)
        far = np.abs(_with_one(some) @ unit) >= margin
        inputs = np.concatenate([inputs, some[far]])[:points]
    sides = _with_one(inputs) @ unit
    return Examples(inputs, np.sign(sides).astype(np.float32), float(np.abs(sides).min()))


def train(examples: list[Examples], passes: int) -> Course:
    """Shows each of some perceptrons its examples, so many times, one by one."""
    model, features = Perceptron(), examples[0].inputs.shape[1]
    init, loss = losses.prediction(model, (features,), losses.perceptron)
    task = parallel.vmap(supervised(init, loss, optim.optimizer("sgd")), batch_axis=0)
    # Steps before seeds: what is shown at a time is a batch of one row for each.
    inputs = np.stack([each.inputs for each in examples], 1)[:, :, None]
    classes = np.stack([each.classes for each in examples], 1)[:, :, None, None]
    rows = {"input": inputs, "target": classes, "mask": np.ones(inputs.shape[:3], np.float32)}
    judge = jax.vmap(lambda params, x: model.apply({"params": params}, x, train=False))

    def step(state, row):
        layer = state.params["fc"]
        weights = jnp.concatenate([layer["kernel"][:, :, 0], layer["bias"]], 1)
        wrong = judge(state.params, row["input"]) * row["target"] <= 0
        return task.train(state, row)[0], (weights, wrong[:, 0, 0])

    @jax.jit
    def run(rows):
        rate = {"learning_rate": jnp.ones(len(examples))}
        state = task.init(jax.random.split(jax.random.key(0), len(examples)), rate)
        once = lambda state, _: jax.lax.scan(step, state, rows)
        return jax.lax.scan(once, state, length=passes)[1]

    weights, wrong = map(np.asarray, run(rows))
    return Course(weights.transpose(2, 0, 1, 3), wrong.transpose(2, 0, 1))


def period(weights: np.ndarray) -> int | None:
    """After how many passes weights [passes, N, F + 1] are what they were; None if never."""
    starts = weights[:, 0]
    for first, start in enumerate(starts):
        same = np.flatnonzero((starts[first + 1 :] == start).all(1))
        if len(same):
            return int(same[0]) + 1
    return None


def measure(examples: list[Examples], course: Course) -> dict[str, Any]:
    """What there is to tell of a setup, of each seed."""
    separable = examples[0].margin > 0
    counts = course.mistakes.sum((1, 2)).tolist()
    # The last pass with a mistake, counted from 1.
    wrong = np.asarray(course.mistakes.any(2))
    last = (wrong.shape[1] - wrong[:, ::-1].argmax(1)).tolist()
    return {
        "margin": [each.margin for each in examples],
        "bound": [each.bound for each in examples],
        "mistakes": counts if separable else [None] * len(counts),
        "passes": last if separable else [None] * len(counts),
        "period": [None if separable else period(weights) for weights in course.weights],
    }


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """In Markdown: means ± sample standard deviations over the seeds."""
    rows = [["", "margin", "bound on mistakes", "mistakes", "the last in pass"]]
    for title, of_seeds in found.items():
        cells = [
            study.cell(of_seeds[name], show)
            for name, show in (
                ("margin", "{:.3f}".format),
                ("bound", "{:.0f}".format),
                ("mistakes", "{:.1f}".format),
                ("passes", "{:.1f}".format),
            )
        ]
        if not any(of_seeds["margin"]):
            periods = {str(each or "no number of") for each in of_seeds["period"]}
            again = " or ".join(sorted(periods))
            cells = ["none", "none", "no end", f"all; weights repeat after {again}"]
        rows.append([title, *cells])
    return study.table(rows)


@figures.styled
def draw(found: Mapping[str, Mapping[str, Any]], courses: Mapping[str, Course], path: Path) -> None:
    """Draws mistakes so far, those of each margin beside the bound, and the weights on xor."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.2), layout="constrained")
    so_far, by_margin, weights = figure.subplots(1, 3)
    for title, course in courses.items():
        total = course.mistakes.reshape(len(course.mistakes), -1).cumsum(1).mean(0)
        style = "k--" if title == "xor" else "-"
        so_far.plot(np.arange(1, len(total) + 1), total, style, label=title)
    so_far.set(xscale="log", yscale="log", xlabel="examples shown", ylabel="mistakes so far")
    so_far.legend()
    separable = [of for of in found.values() if any(of["margin"])]
    points = [(m, n, b) for of in separable for m, n, b in zip(*map(of.get, MEASURED), strict=True)]
    margin, mistakes, bound = np.array(sorted(points)).T
    by_margin.plot(margin, bound, "k_", label="bound, (R / margin)²")
    by_margin.plot(margin, mistakes, "o", label="made, a dot a seed")
    by_margin.set(xscale="log", yscale="log", xlabel="margin", ylabel="mistakes")
    by_margin.legend()
    first = courses["xor"].weights[0]
    steps = first.reshape(-1, first.shape[-1])[:SHOWN]
    for values, label, style in zip(steps.T, ("w1", "w2", "bias"), ("-", "--", ":"), strict=True):
        weights.step(np.arange(len(values)), values, style, where="post", label=label)
    weights.set(xlabel="examples of xor shown", ylabel="weights, first seed")
    weights.legend()
    figures.write(path, figure, 85)


def verdict(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What came of the claim, over all setups and seeds."""
    separable = [of for of in found.values() if any(of["margin"])]
    made = [m for of in separable for m in of["mistakes"]]
    shares = [m / b for of in separable for m, b in zip(of["mistakes"], of["bound"], strict=True)]
    within = max(shares) <= 1
    never = all(all(of["period"]) for of in found.values() if not any(of["margin"]))
    return (
        f"It {claim.word([within, never])}: of {len(made)} trainings on what a line separates "
        f"none made more than {max(shares):.2f} of the bound, {max(made):.0f} mistakes at most; on "
        f"xor the weights {'' if never else 'do not always '}come back to where they were."
    )


MEASURED = ("margin", "mistakes", "bound")


def run(argv: list[str]) -> None:
    """Trains every setup, and leaves table.md, table.json and perceptron.png in the workdir."""
    config = study.read_command(Config, argv)
    study.begin(config)
    seeds = study.seeds_of(config)
    setups = {name: [logic(name, seed) for seed in seeds] for name in LOGIC}
    for margin in config.margins:
        setups[f"margin {margin:g}"] = [clouds(margin, config.points, seed) for seed in seeds]
    courses, found = {}, {}
    for title, examples in setups.items():
        most = max(each.bound for each in examples)
        # A pass without a mistake is the last that changes anything.
        courses[title] = train(examples, int(most) + 1 if np.isfinite(most) else config.passes)
        found[title] = measure(examples, courses[title])
        print(f"{title}: {int(courses[title].mistakes.sum())} mistakes of all seeds", flush=True)
    study.finish(
        config,
        {"measured": found},
        "Mistakes of perceptrons beside Novikoff's bound.",
        table(found),
        {"perceptron.png": functools.partial(draw, found, courses)},
        claim.page("perceptron", TITLE, CLAIM, SOURCE, verdict(found), argv),
    )


if __name__ == "__main__":
    cli.main(run)
