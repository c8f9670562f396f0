"""How all pictures with axes look: one hand, one palette, one size of type."""

import functools
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

# Of Okabe and Ito (2008), which people see apart who are blind to some colors.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
STYLE: dict[str, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.titlesize": 11,
    "font.family": "DejaVu Sans",  # which Matplotlib brings
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.markersize": 4,
}
SIZE = (7.0, 3.6)
"""Inches."""


P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Makes a function draw in the style of the house."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib
        from cycler import cycler

        style: Any = STYLE | {"axes.prop_cycle": cycler(color=PALETTE)}
        with matplotlib.rc_context(style):
            return draw(*args, **kwargs)

    return drawn


@styled
def save(path: Path, draw: Callable[[Any], None], size: tuple[float, float] = SIZE) -> None:
    """Writes a picture of at most about 100 kB.

    Args:
      path: a PNG file.
      draw: (an empty figure) -> None.
      size: inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    draw(figure)
    write(path, figure)


def write(path: Path, figure: Any, dots_per_inch: float = 110) -> None:
    """Writes a Matplotlib figure as a small PNG file."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=dots_per_inch)
    with Image.open(drawn) as picture:  # of 256 colors it takes a third of the bytes
        picture.convert("RGB").quantize(256).save(path, format="PNG", optimize=True)


def bars(axes: Any, found: Mapping[str, Sequence[float | None]], label: str) -> None:
    """Draws the mean of each row's values as a bar, with a dot for each seed."""
    names = list(found)
    for place, name in enumerate(names):
        values = [value for value in found[name] if value is not None]
        if values:
            axes.barh(place, np.mean(values), color=PALETTE[0], alpha=0.35)
            axes.plot(values, [place] * len(values), ".", color=PALETTE[0])
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)  # the first on top
    axes.set_xlabel(label)


def band(
    axes: Any, x: Sequence[float], found: Iterable[Any], label: str, style: str = ".-"
) -> None:
    """Draws the means of values by x, in a band from the least seed to the greatest.

    Args:
      axes: to draw on.
      x: where.
      found: for each x the values of the seeds, None for those that have none.
      label: for the legend.
      style: of the line.
    """
    known = [[v for v in values if v is not None] for values in found]
    means = [np.mean(values) if values else np.nan for values in known]
    (line,) = axes.plot(x, means, style, label=label)
    low = [min(values, default=np.nan) for values in known]
    high = [max(values, default=np.nan) for values in known]
    axes.fill_between(x, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
