"""Universal approximation: the error of one hidden layer by its width, and depth against width.

python -m experiments.studies.approximation --quick
"""

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np

from experiments.harness import claim, cli, study
from experiments.harness.study import StudyFlags
from jaxdl import arrays, figures, models

TITLE = "One hidden layer approximates, and depth saves parameters"
CLAIM = (
    "One hidden layer approximates any continuous function ever better the wider it is; at as many "
    "parameters a deeper network does better."
)
SOURCE = "Cybenko 1989 (MCSS 2); Hornik 1991 (Neural Networks 4); Telgarsky 2016, arXiv:1602.04485"
WIDTHS = (2, 4, 8, 16, 32, 64, 128)
DEPTHS = {1: 128, 2: 18, 3: 13, 4: 10}
"""{hidden layers: their width}, of about 385 parameters each."""
POINTS = 512


@dataclasses.dataclass(frozen=True)
class Config:
    """Fits a function of one variable by perceptrons of many widths and depths."""

    study: StudyFlags = StudyFlags("runs/approximation", seeds=5)


def target(x: np.ndarray) -> np.ndarray:
    """What is approximated, on [-1, 1]: two frequencies and a corner."""
    return np.sin(3 * x) + 0.3 * np.sin(11 * x) + np.abs(x - 0.3)


def error(depth: int, width: int, seed: int, epochs: int) -> float:
    """The root mean squared error on points between those that were learnt."""
    x = np.linspace(-1, 1, POINTS, dtype=np.float32)[:, None]
    model = models.mlp.mlp(num_classes=1, depth=depth, width=width, activation="tanh", dropout=0.0)
    fitted = arrays.fit(
        *(model, x, target(x)[:, 0]),
        loss="mse",
        epochs=epochs,
        batch_size=POINTS // 4,
        optimizer="adam",
        learning_rate=0.01,
        schedule="cosine",
        seed=seed,
        quiet=True,
    )
    between = x[:-1] + 1 / POINTS
    return float(np.sqrt(np.mean((fitted.predict(between) - target(between)[:, 0]) ** 2)))


def measure(config: Config) -> tuple[dict[int, list[float]], dict[int, list[float]]]:
    """Errors by width of one hidden layer, and by depth at as many parameters."""
    epochs = 60 if config.study.quick else 600
    widths = WIDTHS[::2] if config.study.quick else WIDTHS
    seeds = study.seeds_of(config)
    by_width: dict[int, list[float]] = {}
    by_depth: dict[int, list[float]] = {}
    for found, places in ((by_width, {w: (1, w) for w in widths}), (by_depth, DEPTHS)):
        for place, form in places.items():
            depth, width = form if isinstance(form, tuple) else (place, form)
            found[place] = [error(depth, width, seed, epochs) for seed in seeds]
            print(f"{depth} hidden layers of {width}: {np.mean(found[place]):.4f}", flush=True)
    return by_width, by_depth


def verdict(by_width: dict[int, list[float]], by_depth: dict[int, list[float]]) -> str:
    """What came of it, in words."""
    means = [np.mean(values) for values in by_width.values()]
    falls = all(later < earlier * 1.25 for earlier, later in itertools.pairwise(means))
    falls &= bool(means[-1] < means[0] / 3)
    best = min(by_depth, key=lambda depth: np.mean(by_depth[depth]))
    deeper = claim.clearly_greater([*by_depth[1]], [*by_depth[best]]) and best > 1
    word = claim.word([falls, deeper])
    narrow, wide = min(by_width), max(by_width)
    return (
        f"It {word}: the error falls from {means[0]:.3f} with {narrow} units to {means[-1]:.4f} "
        f"with {wide}; at about 385 parameters it is {np.mean(by_depth[1]):.4f} with one hidden "
        f"layer and {np.mean(by_depth[best]):.4f} with {best}."
    )


def draw(by_width: dict[int, list[float]], by_depth: dict[int, list[float]], figure: Any) -> None:
    """Errors by width and by depth."""
    for axes, found, label in zip(
        figure.subplots(1, 2, sharey=True),
        (by_width, by_depth),
        ("units of one hidden layer", "hidden layers, at about 385 parameters"),
        strict=True,
    ):
        figures.band(axes, [*found], [*found.values()], "tanh")
        axes.set(yscale="log", xlabel=label, ylabel="root mean squared error")
        axes.set_xticks([*found], [str(place) for place in found])
    figure.axes[0].set_xscale("log", base=2)
    figure.axes[0].set_xticks([*by_width], [str(width) for width in by_width], minor=False)
    figure.suptitle("What training finds: little by width, much by depth at as many parameters")


def run(argv: list[str]) -> None:
    """Fits, and leaves the table, the picture and the page."""
    config = study.read_command(Config, argv)
    study.begin(config)
    if not config.study.quick:
        print("about 2 min on two cores; --quick takes less than two", flush=True)
    by_width, by_depth = measure(config)
    rows = [["hidden layers", "width", "root mean squared error"]]
    show = functools.partial(study.significant, digits=3)
    rows += [["1", str(width), study.cell(values, show)] for width, values in by_width.items()]
    rows += [[str(d), str(DEPTHS[d]), study.cell(v, show)] for d, v in by_depth.items() if d > 1]
    text, said = study.table(rows), verdict(by_width, by_depth)
    picture = functools.partial(draw, by_width, by_depth)
    pictures = {"approximation.png": functools.partial(figures.save, draw=picture)}
    record = {"by_width": by_width, "by_depth": by_depth}
    seeds = len(next(iter(by_width.values())))
    notes = (
        f"On [-1, 1], sin 3x + 0.3 sin 11x + |x - 0.3|, {POINTS} points, tanh, Adam at 0.01 with a "
        f"cosine. {seeds} seeds. The error is of what training finds, not of the best there is."
    )
    page = claim.page("approximation", TITLE, CLAIM, SOURCE, said, argv, notes)
    study.finish(config, record, f"{CLAIM}\n\n{said}", text, pictures, page)


if __name__ == "__main__":
    cli.main(run)
