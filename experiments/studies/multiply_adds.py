"""1x1 convolutions, small kernels and global pooling: what they cost, counted and timed.

python -m experiments.studies.multiply_adds
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.harness import claim, cli, study
from experiments.harness.study import StudyFlags
from jaxdl import cost, figures, models
from jaxdl.nn import Convolution

TITLE = "1x1 convolutions, small kernels and global pooling"
CLAIM = (
    "A 1x1 convolution before a 5x5 one takes a tenth of its multiply-adds, 12.4 instead of 120.4 "
    "million; two 3x3 convolutions see as far as one 5x5 for 18/25 of the cost; global average "
    "pooling needs no dense layers."
)
SOURCE = (
    "Lin et al. 2013, arXiv:1312.4400; Szegedy et al. 2014, arXiv:1409.4842; Simonyan and "
    "Zisserman 2014, arXiv:1409.1556"
)
QUICKLY = ("--seeds=3",)
"""Flags of the quick form."""
BATCH = 8


class Chain(nn.Module):
    """Convolutions one after another: (features, kernel size) of each."""

    layers: tuple[tuple[int, int], ...]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return the last map."""
        for features, size in self.layers:
            x = Convolution(features, (size, size), use_bias=False)(x)
        return x


PAIRS: dict[str, tuple[tuple[int, int, int], dict[str, Chain]]] = {
    "28x28, 192 to 32": (
        (28, 28, 192),
        {"5x5": Chain(((32, 5),)), "1x1 to 16, then 5x5": Chain(((16, 1), (32, 5)))},
    ),
    "28x28, 64 to 64": (
        (28, 28, 64),
        {"one 5x5": Chain(((64, 5),)), "two 3x3": Chain(((64, 3), (64, 3)))},
    ),
}
HEADS = ("alexnet", "nin", "vgg16", "googlenet")
"""With dense layers at their end, and with a global average."""


class Row(NamedTuple):
    """What one of those that are compared costs.

    Attributes:
      parameters: how many.
      multiply_adds: for one image.
      milliseconds: of a forward pass of `BATCH` images, by round.
    """

    parameters: int
    multiply_adds: int
    milliseconds: list[float]


@dataclasses.dataclass(frozen=True)
class Config:
    """Counts and times the convolutions that the texts compare."""

    study: StudyFlags = StudyFlags("runs/multiply_adds", seeds=9)


def measure(rounds: int) -> dict[str, dict[str, Row]]:
    """Of each pair, by turns, so that a machine that slows down slows both."""
    found: dict[str, dict[str, Row]] = {}
    for name, (shape, chains) in PAIRS.items():
        runs: dict[str, Callable[[], Any]] = {}
        for label, chain in chains.items():
            layers = cost.layers(chain, shape)
            image = jnp.ones((BATCH, *shape))
            variables = chain.init(jax.random.key(0), image, train=False)
            apply = jax.jit(functools.partial(chain.apply, train=False))
            runs[label] = functools.partial(apply, variables, image)
            parameters = sum(layer.parameters for layer in layers)
            multiply_adds = sum(layer.multiply_adds for layer in layers)
            found.setdefault(name, {})[label] = Row(parameters, multiply_adds, [])
        for _ in range(rounds + 1):  # the first compiles
            for label, run in runs.items():
                start = time.perf_counter()
                for _ in range(5):
                    jax.block_until_ready(run())
                found[name][label].milliseconds.append(200 * (time.perf_counter() - start))
    return {
        name: {label: row._replace(milliseconds=row.milliseconds[1:]) for label, row in of.items()}
        for name, of in found.items()
    }


def heads() -> dict[str, tuple[int, int]]:
    """Of each network its parameters, and those of its dense layers."""
    found = {}
    for name in HEADS:
        layers = cost.layers(models.create(name), models.IMAGE_SHAPES[name])
        dense = sum(layer.parameters for layer in layers if layer.type == "Dense")
        found[name] = sum(layer.parameters for layer in layers), dense
    return found


def tables(found: dict[str, dict[str, Row]], networks: dict[str, tuple[int, int]]) -> str:
    """Both in Markdown."""
    rows = [["convolution", "as", "parameters", "multiply-adds", f"ms for {BATCH} images"]]
    for name, of in found.items():
        for label, row in of.items():
            ms = study.cell(row.milliseconds, "{:.2f}".format)
            rows.append(
                [name, label, f"{row.parameters:,}", f"{row.multiply_adds / 1e6:.1f} M", ms]
            )
    ends = [["network", "parameters", "of dense layers"]]
    for name, (count, dense) in networks.items():
        ends.append([name, f"{count:,}", f"{dense:,} ({dense / count:.0%})"])
    return f"{study.table(rows)}\n\n{study.table(ends)}"


def verdict(found: dict[str, dict[str, Row]], networks: dict[str, tuple[int, int]]) -> str:
    """What came of it, in words."""
    (wide, narrow), (one, two) = (list(of.values()) for of in found.values())
    times = [statistics.median(row.milliseconds) for row in (wide, narrow, one, two)]
    return (
        f"It holds: {wide.multiply_adds / 1e6:.1f} against {narrow.multiply_adds / 1e6:.1f} "
        f"million multiply-adds, and {times[0] / times[1]:.1f} times the speed here; two 3x3 for "
        f"one 5x5 take {two.multiply_adds / one.multiply_adds:.2f} of the multiply-adds and "
        f"{times[3] / times[2]:.2f} of the time. Dense layers hold "
        f"{networks['alexnet'][1] / networks['alexnet'][0]:.0%} of AlexNet's parameters and none "
        "of NiN's."
    )


def draw(found: dict[str, dict[str, Row]], figure: Any) -> None:
    """Multiply-adds and time of each."""
    rows = {f"{label}\n({name})": row for name, of in found.items() for label, row in of.items()}
    counts, times = figure.subplots(1, 2, sharey=True)
    figures.bars(
        counts, {k: [r.multiply_adds / 1e6] for k, r in rows.items()}, "million multiply-adds"
    )
    figures.bars(times, {k: r.milliseconds for k, r in rows.items()}, f"ms for {BATCH} images")
    figure.suptitle("A 1x1 convolution in front saves nine of ten multiply-adds")


def run(argv: list[str]) -> None:
    """Counts and times, and leaves the table, the picture and the page."""
    config = study.read_command(Config, argv, QUICKLY)
    study.begin(config)
    rounds = config.study.seeds
    found, networks = measure(rounds), heads()
    text, said = tables(found, networks), verdict(found, networks)
    picture = functools.partial(draw, found)
    record = {"measured": {k: {n: r._asdict() for n, r in v.items()} for k, v in found.items()}}
    pictures = {"multiply_adds.png": functools.partial(figures.save, draw=picture)}
    notes = f"Times are of {rounds} rounds by turns."
    page = claim.page("multiply_adds", TITLE, CLAIM, SOURCE, said, argv, notes)
    study.finish(config, record, f"{CLAIM}\n\n{said}", text, pictures, page)


if __name__ == "__main__":
    cli.main(run)
