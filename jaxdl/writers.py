"""What a user sees of a run: metrics.jsonl, TensorBoard events, curves.png, the progress bar."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from tqdm import tqdm

Row = dict[str, float | None]
PANELS_IN_A_ROW = 5
"""Of curves.png."""


def read_rows(workdir: str | Path) -> list[Row]:
    """The rows of a run's metrics.jsonl, in order; a line cut short by a crash is left out."""
    path = Path(workdir) / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def json_ready(value: float) -> float | None:
    """A number as JSON can hold it: None (null) for what is not finite."""
    return value if math.isfinite(value) else None


class Writer:
    """Writes a run's metrics into its folder.

    Args:
      workdir: the run's folder; None writes nothing, as on the hosts beside the first.
      step: where the run goes on. What an earlier life of it wrote of later steps is dropped, for
        those steps are run again.
    """

    def __init__(self, workdir: str | Path | None, step: int = 0):
        self._workdir = None if workdir is None else Path(workdir)
        self._rows: list[Row] = []
        if self._workdir is None:
            return
        from tensorboardX import SummaryWriter  # 50 ms that importing the library should not cost

        self._workdir.mkdir(parents=True, exist_ok=True)
        self._rows = [row for row in read_rows(self._workdir) if (row["step"] or 0) <= step]
        path = self._workdir / "metrics.jsonl"
        kept = path.with_suffix(".tmp")
        kept.write_text("".join(json.dumps(row) + "\n" for row in self._rows))
        kept.replace(path)
        self._file: TextIO = path.open("a")
        self._board = SummaryWriter(
            str(self._workdir / "tensorboard"), purge_step=step + 1 if step else None
        )

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._workdir is not None:
            self.curves()
            self._file.close()
            self._board.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one row, `{"step": step, **values}`, and the same scalars to TensorBoard."""
        if self._workdir is None:
            return
        row: Row = {"step": step} | {k: json_ready(v) for k, v in values.items()}
        self._rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def histograms(self, step: int, prefix: str, tree: Any) -> None:
        """One histogram for each array of a tree, named `prefix/path`."""
        if self._workdir is None:
            return
        for path, leaf in jax.tree.leaves_with_path(tree):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            self._board.add_histogram(f"{prefix}/{name}", np.asarray(leaf, np.float32), step)

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        """A grid of images [N, H, W, C], floats in [0, 1]."""
        if self._workdir is not None:
            self._board.add_images(name, np.clip(images, 0, 1), step, dataformats="NHWC")

    def text(self, name: str, text: str, step: int = 0) -> None:
        """A text, shown with its line breaks."""
        if self._workdir is not None:
            self._board.add_text(name, f"<pre>{text}</pre>", step)

    def hparams(self, hparams: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """The run's row in TensorBoard's table of hyperparameters."""
        if self._workdir is None:
            return
        from tensorboardX.summary import hparams as summaries

        # add_hparams would open a run of its own below this one.
        known = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in hparams.items()}
        for summary in summaries(known, dict(metrics)):
            self._board.file_writer.add_summary(summary)

    def curves(self) -> None:
        """Draws curves.png: a panel for each kind of metric, its training and evaluation lines."""
        names = {name for row in self._rows for name in row if "/" in name}
        if self._workdir is None or not names:
            return
        from matplotlib.figure import Figure

        kinds = sorted({name.split("/", 1)[1] for name in names}, key=_panel_order)
        columns = min(len(kinds), PANELS_IN_A_ROW)
        rows = -(-len(kinds) // columns)
        figure = Figure(figsize=(4.5 * columns, 3.5 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for axes in panels[len(kinds) :]:
            axes.remove()
        for axes, kind in zip(panels, kinds, strict=False):
            for name in sorted(n for n in names if n.split("/", 1)[1] == kind):
                points = [(r["step"], r[name]) for r in self._rows if r.get(name) is not None]
                steps, values = [p[0] for p in points], [p[1] for p in points]
                life = name.split("/")[0]
                color = "C0" if life == "train" else "C1"
                axes.plot(steps, values, label=life, color=color)
            axes.set_title(kind)
            axes.set_xlabel("step")
            axes.grid(alpha=0.3)
            axes.legend()
        figure.savefig(self._workdir / "curves.png", dpi=100)


def _panel_order(kind: str) -> tuple[bool, str]:
    return (kind not in ("loss", "accuracy"), kind)


def describe(values: Mapping[str, float]) -> str:
    """`loss 0.1234  accuracy 0.9800`: metrics for a person, without their prefix."""
    return "  ".join(f"{name.split('/')[-1]} {value:.4g}" for name, value in values.items())


class Progress:
    """A bar on a terminal, plain lines elsewhere.

    Args:
      total: the last step.
      initial: the step the run goes on from.
      quiet: shows nothing, as on the hosts beside the first.
    """

    def __init__(self, total: int, initial: int = 0, quiet: bool = False):
        self._quiet, self._total = quiet, total
        self._plain = not sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=initial,
            unit="step",
            dynamic_ncols=True,
            disable=quiet or self._plain,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def step(self) -> None:
        """One step is done."""
        self._bar.update()

    def train(self, step: int, values: Mapping[str, float], seconds_left: float) -> None:
        """Shows the training metrics of a logged step and the time that is left."""
        if self._plain:
            left = tqdm.format_interval(seconds_left)
            self.say(f"step {step}/{self._total}  {describe(values)}  {left} left")
        else:
            self._bar.set_postfix_str(describe(values))

    def say(self, line: str) -> None:
        """A line that stays."""
        if not self._quiet:
            self._bar.write(line) if not self._plain else print(line, flush=True)
