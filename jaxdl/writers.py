"""What a user sees of a run: metrics.jsonl, TensorBoard events, curves.png, the progress bar.

None of it can end what is trained: what cannot be drawn or written is left out, and said once.
"""

import contextlib
import html
import io
import json
import math
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from tqdm import tqdm

from jaxdl import figures, files, require

if TYPE_CHECKING:  # it takes a second to import
    from matplotlib.figure import Figure

Row = dict[str, float | None]
PANELS_IN_A_ROW = 5
"""Of curves.png."""
FEW = 30
"""Points of a line that are marked, for one alone makes no line."""
BINS = 64
"""Of a histogram; TensorBoard shows half as many."""


def read_rows(workdir: str | Path) -> list[Row]:
    """The rows of a run's metrics.jsonl, in order.

    What is no row is left out: the last line silently if it was cut short, as a crash may leave
    it, and other damage with a line on stderr.
    """
    path = Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    *lines, last = path.read_text(errors="replace").split("\n")
    found = [_parse(line) for line in lines]
    damaged = [number for number, row in enumerate(found, 1) if row is None]
    if damaged:
        count = f"line {damaged[0]} is" if len(damaged) == 1 else f"{len(damaged)} lines are"
        _say(f"warning: {path}: {count} damaged and left out")
    return [row for row in [*found, _parse(last)] if row is not None]


def _parse(line: str) -> Row | None:
    """A line of metrics.jsonl; None where it is no row."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    numbers = all(value is None or isinstance(value, int | float) for value in row.values())
    return row if numbers else None


def json_ready(value: float) -> float | None:
    """A number as JSON can hold it: None (null) for what is not finite."""
    return value if math.isfinite(value) else None


class Writer:
    """Writes a run's metrics into its folder.

    No method raises for what it is handed or for a disk that is full: see `sparing`. Rows of
    metrics.jsonl that could not be written are written with the next that can.

    Args:
      workdir: the run's folder; None writes no file, as on the hosts beside the first.
      step: where the run goes on. What an earlier life of it wrote of later steps is dropped, for
        those steps are run again.
      draws: whether curves.png is drawn at the end, which takes matplotlib a second.

    Attributes:
      rows: those of metrics.jsonl so far, also where there is no file.
    """

    def __init__(self, workdir: str | Path | None, step: int = 0, draws: bool = True):
        self._workdir = None if workdir is None else Path(workdir)
        self._draws = draws
        self.rows: list[Row] = []
        self._said: set[str] = set()
        if self._workdir is None:
            return
        self._events = Events(self._workdir / "tensorboard", step)
        self._sound = False  # whether metrics.jsonl holds all rows but those still to come
        with self.sparing("metrics.jsonl not read"):
            self._sound = True  # what cannot be read is not written over
            self.rows = [row for row in read_rows(self._workdir) if (row["step"] or 0) <= step]
            self._sound = False
        if not self._sound:
            self._write_rows()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._workdir is not None:
            if self._draws:
                self.curves()
            if not self._sound:
                self._write_rows()

    @contextlib.contextmanager
    def sparing(self, what: str) -> Iterator[None]:
        """A block whose failure is said on stderr, in one line and once, and ends no run.

        Args:
          what: did not happen where it failed, such as "curves.png not drawn": the line begins so.
        """
        try:
            yield
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            self._warn(what, f"{what}: {reason}")

    def _warn(self, about: str, line: str) -> None:
        if about not in self._said:
            self._said.add(about)
            _say(f"warning: {line}; the run goes on, and more of this is not told")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one row, `{"step": step, **values}`, and the same scalars to TensorBoard."""
        self.series([(step, values)])

    def series(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Appends several rows at once, each a step and its scalars."""
        with self.sparing("a row of metrics not written"):
            numbers = [(step, {n: float(value) for n, value in row.items()}) for step, row in rows]
            for step, row in numbers:
                self.rows.append({"step": step} | {n: json_ready(v) for n, v in row.items()})
            if self._workdir is None or not rows:
                return
            self._write_rows(len(rows))
            with self.sparing("TensorBoard's scalars not written"):
                self._events.scalars(numbers)

    def _write_rows(self, count: int = 1) -> None:
        """Brings metrics.jsonl up to date: by the last rows, or after a failure by all, anew."""
        assert self._workdir is not None
        path = self._workdir / "metrics.jsonl"
        with self.sparing("metrics.jsonl not written"):
            sound, self._sound = self._sound and path.exists(), False
            new = self.rows[-count:] if sound else self.rows
            lines = [json.dumps(row) + "\n" for row in new]
            if sound:
                _append(path, "".join(lines).encode())
            else:
                with files.replacing(path) as file:
                    file.write("".join(lines).encode())
            self._sound = True

    def graph(self, function: Callable[..., Any], *args: Any) -> None:
        """Shows a function's operations, such as a network's, in TensorBoard's tab of graphs."""
        if self._workdir is None:
            return
        with self.sparing("TensorBoard's graph not written"):
            from jaxdl.graph import graph

            self._events.graph(graph(function, *args))

    def histograms(self, step: int, prefix: str, tree: Any) -> None:
        """One histogram for each array of a tree, named `prefix/path`, of its finite values."""
        if self._workdir is None:
            return
        with self.sparing(f"TensorBoard's histograms of {prefix} not written"):
            from tensorboardX.summary import histogram

            found = []
            for path, leaf in jax.tree.leaves_with_path(tree):
                name = f"{prefix}/{jax.tree_util.keystr(path, simple=True, separator='/')}"
                values = np.asarray(leaf, np.float64)  # their sum may be beyond float32
                finite = values[np.isfinite(values)]
                if finite.size < values.size:
                    count = f"{values.size - finite.size} of {values.size}"
                    self._warn(prefix, f"{name} at step {step}: {count} values are not finite")
                if finite.size:
                    found.append(histogram(name, finite, _edges(finite)))
            self._events.add(step, *found)

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        """A grid of images [N, H, W, C], floats in [0, 1]."""
        if self._workdir is None:
            return
        with self.sparing("TensorBoard's images not written"):
            from tensorboardX.summary import image

            shown = np.clip(np.nan_to_num(images), 0, 1)
            self._events.add(step, image(name, shown, dataformats="NHWC"))

    def text(self, name: str, text: str, step: int = 0) -> None:
        """A text, shown with its line breaks."""
        if self._workdir is None:
            return
        with self.sparing("TensorBoard's texts not written"):
            from tensorboardX.summary import text as summary

            self._events.add(step, summary(name, f"<pre>{html.escape(text, quote=False)}</pre>"))

    def hparams(self, hparams: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """The run's row in TensorBoard's table of hyperparameters, without those that are None."""
        if self._workdir is None:
            return
        with self.sparing("TensorBoard's hyperparameters not written"):
            from tensorboardX.summary import hparams as summaries

            # SummaryWriter.add_hparams would open a run of its own below this one.
            known = {
                name: value
                if isinstance(value, int | float) and math.isfinite(value)
                else str(value)
                for name, value in hparams.items()
                if value is not None
            }
            self._events.add(0, *summaries(known, dict(metrics)))

    def curves(self) -> None:
        """Draws curves.png: a panel for each kind of metric, its training and evaluation lines."""
        if self._workdir is None or not _names(self.rows):
            return
        with self.sparing("curves.png not drawn"):
            drawn = io.BytesIO()
            draw_curves(self.rows).savefig(drawn, dpi=100)
            with files.replacing(self._workdir / "curves.png") as file:
                file.write(drawn.getvalue())


class Events:
    """A file of TensorBoard's events, in a folder that is made with the first of them.

    tensorboardX's own writer has a thread, which dies of a full disk with a traceback, and a queue
    that then blocks whoever adds to it. Only its way of making events is used.

    Args:
      folder: to hold the file, and those of the run's earlier lives.
      step: what earlier files hold of later steps is dropped.
    """

    def __init__(self, folder: Path, step: int = 0):
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._path, self._step = folder / name, step

    def scalars(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Adds numbers by their names, those of several steps at once."""
        from tensorboardX.proto.summary_pb2 import Summary

        number = lambda name, value: Summary.Value(tag=name, simple_value=value)
        summary = lambda row: Summary(value=[number(*item) for item in row.items()])
        self._append(*({"step": step, "summary": summary(row)} for step, row in rows))

    def add(self, step: int, *summaries: Any) -> None:
        """Adds summaries, as `tensorboardX.summary` makes them, in one event."""
        from tensorboardX.proto.summary_pb2 import Summary

        merged = Summary()
        for summary in summaries:
            merged.MergeFrom(summary)
        self._append({"step": step, "summary": merged})

    def graph(self, drawn: Any) -> None:
        """Adds a GraphDef."""
        self._append({"graph_def": drawn.SerializeToString()})

    def _append(self, *contents: dict[str, Any]) -> None:
        """Adds events, to a file that has begun by then."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        now, records = time.time(), b""
        if not (self._path.exists() and self._path.stat().st_size):
            records += _record(Event(wall_time=now, file_version="brain.Event:2"))
            if self._step:
                start = SessionLog(status=SessionLog.START)
                records += _record(Event(wall_time=now, step=self._step + 1, session_log=start))
        records += b"".join(_record(Event(wall_time=now, **content)) for content in contents)
        _append(self._path, records)


def _edges(values: np.ndarray) -> np.ndarray:
    """The edges of a histogram's bins, as many for values that are all the same."""
    low, high = float(values.min()), float(values.max())
    beyond = 1e-6 * max(-low, high) + float(np.finfo(np.float32).tiny)
    return np.linspace(low - beyond, high + beyond, BINS + 1)


def _record(event: Any) -> bytes:
    """An event as the TFRecord format has it: length, its checksum, data, their checksum."""
    from tensorboardX.record_writer import masked_crc32c

    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
    return length + checksums[0] + data + checksums[1]


def _append(path: Path, data: bytes) -> None:
    """Adds to the end of a file, all of it or, where that fails, nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:  # a buffer would try again when it is closed
        size, left = file.tell(), memoryview(data)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(size)
            raise


def _names(rows: Sequence[Row]) -> set[str]:
    """What can be drawn of rows: metrics that have the prefix of a split."""
    return {name for row in rows for name in row if "/" in name}


@figures.styled
def draw_curves(rows: Sequence[Row]) -> "Figure":
    """A matplotlib figure with a panel for each kind of metric, its lines those of the splits.

    Raises:
      InputError: there is no metric in the rows.
    """
    from matplotlib.figure import Figure

    names = _names(rows)
    require(bool(names), "curves of no metric", "at least one row of metrics")
    kinds = sorted({name.split("/", 1)[1] for name in names}, key=_panel_order)
    columns = min(len(kinds), PANELS_IN_A_ROW)
    lines = -(-len(kinds) // columns)
    figure = Figure(figsize=(4.5 * columns, 3.5 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for axes in panels[len(kinds) :]:
        axes.remove()
    for axes, kind in zip(panels, kinds, strict=False):
        for name in sorted(n for n in names if n.split("/", 1)[1] == kind):
            points = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
            steps, values = [p[0] for p in points], [p[1] for p in points]
            life = name.split("/")[0]
            color = "C0" if life == "train" else "C1"
            marker = "o" if len(points) <= FEW else ""
            axes.plot(steps, values, label=life, color=color, marker=marker, markersize=3)
        axes.set_title(kind)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _panel_order(kind: str) -> tuple[bool, str]:
    return (kind not in ("loss", "accuracy"), kind)


def describe(values: Mapping[str, float]) -> str:
    """`loss 0.1234  accuracy 0.9800`: metrics for a person, without their prefix."""
    return "  ".join(f"{name.split('/')[-1]} {value:.4g}" for name, value in values.items())


def _say(line: str) -> None:
    """A line on stderr, above a bar if there is one."""
    with contextlib.suppress(OSError), tqdm.external_write_mode(sys.stderr):
        print(line, file=sys.stderr, flush=True)


class Progress:
    """Lines that stay, and on a terminal a bar below them.

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
        """Shows the training metrics of a logged step; the bar itself has no room for them."""
        left = f"  {tqdm.format_interval(seconds_left)} left" if self._plain else ""
        self.say(f"step {step}/{self._total}  {describe(values)}{left}")

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._quiet:
            return
        # Its reader may have gone, or its file lie on a disk that is full.
        with contextlib.suppress(OSError), tqdm.external_write_mode():
            print(line, flush=True)
