"""Arrays in, answers out: a model fitted to arrays in memory, by the Task and loop of every run.

    fitted = arrays.fit(mlp(num_classes=10), x, y, epochs=20, learning_rate=1e-3, validation=0.1)
    fitted.evaluate(x_test, y_test)  # {"loss": ..., "accuracy": ...}
    fitted.predict(x_test)  # classes

A run by flags and one by arrays with the same settings end bit for bit alike.
"""

import contextlib
import dataclasses
import inspect
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdl import (
    Batch,
    InputError,
    checkpoint,
    data,
    files,
    forms,
    loop,
    methods,
    optim,
    parallel,
    require,
    schedules,
    trees,
)
from jaxdl.augment import Augment
from jaxdl.checkpoint import Checkpoints
from jaxdl.data.order import EvalOrder
from jaxdl.data.rows import Indexed
from jaxdl.forms import CLASSES, FUNCTION, SEVERAL, VALUES, Form
from jaxdl.losses import ElementwiseLoss
from jaxdl.task import Optimizer, Schedule, State, Task, supervised
from jaxdl.writers import Row, Writer, draw_curves, read_rows

if TYPE_CHECKING:  # it takes a second to import
    from matplotlib.figure import Figure

FORM_FILE = "arrays.json"
"""A file of a run's folder: what its arrays look like, and its settings."""
BATCH_SIZE = 32


def fit(
    model: nn.Module,
    x: Any,
    y: Any,
    *,
    loss: str | ElementwiseLoss = CLASSES,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    optimizer: str = "adam",
    learning_rate: float = 1e-3,
    schedule: str = "constant",
    warmup_steps: int = 0,
    label_smoothing: float = 0.0,
    validation: float | tuple[Any, Any] = 0.0,
    seed: int = 0,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    channel: bool = True,
    augment: Augment | None = None,
    workdir: str | Path | None = None,
    log_every: int | None = None,
    eval_every: int | None = None,
    checkpoint_every: int = 1000,
    devices: Sequence[jax.Device] | None = None,
    quiet: bool = False,
    **arguments: Any,
) -> "Fitted":
    """Fits a model to arrays in memory, on all devices.

    All floats are cast to float32 (JAX by default keeps no 64 bits), and bools and integers other
    than uint8 to int32. uint8 are pixels, which the model gets as floats in [0, 1]; int32 are
    tokens or counts, and reach it as they are. Ctrl-C ends the fit after a step, or a few short
    ones: what it has come to is returned, with `stopped`.

    Args:
      model: called as `model.apply(variables, x, train=...)`, with `batch_stats` and dropout or
        without; its outputs are logits [B, C] for classes, else values.
      x: images [N, H, W, C], or [N, H, W], which get an axis of one channel; tables [N, F], or [N],
        which is one column; sequences of tokens [N, T]; or any other [N, ...] that the model takes.
      y: for 'cross_entropy' classes, int [N], from 0; for 'sigmoid_cross_entropy' 0, 1 or shares,
        as the model's outputs; for 'mse', 'mae' and 'huber' values as the outputs. [N] goes with
        outputs [N, 1].
      loss: one of those; or a function (outputs, targets) -> losses [B, ...], of which the mean is
        minimized, for targets of any shape.
      epochs: passes over the training rows; give these, or `steps`.
      steps: updates in all.
      batch_size: rows a step, over all devices; by default 32 or, of fewer rows, all, and never
        more than divides over the devices.
      optimizer: a key of `optim.OPTIMIZERS`.
      learning_rate: its peak.
      schedule: a key of `schedules.SCHEDULES`, of the learning rate after warm-up.
      warmup_steps: over which the learning rate rises in a line.
      label_smoothing: the uniform distribution's share in the targets of 'cross_entropy'.
      validation: what is measured on the way: a share of the rows, drawn as `data.hold_out` draws
        it, or (x, y) of its own; 0 for none.
      seed: of the weights, the order of the rows and all noise.
      mean: what is subtracted from x, on the scale of [0, 1] where x is uint8: one number, or one
        for each of the last axis.
      std: what that is divided by.
      channel: whether x [N, H, W] are images; False for sequences of vectors, [N, T, F].
      augment: (keys [B], x) -> x, in training only, before `mean` and `std`; see `jaxdl.augment`.
      workdir: a folder for checkpoints, metrics and curves. The same call goes on where it stopped,
        exactly; one with more steps goes further, by a schedule of their length. What differs is
        refused, but for functions, which are not compared. Without it no file is written.
      log_every: steps between reports of the training metrics; by default an epoch's.
      eval_every: steps between evaluations on the validation rows; by default an epoch's.
      checkpoint_every: steps between checkpoints, beside those after evaluations.
      devices: which to use; by default all, but no more than there are training rows.
      quiet: prints nothing and shows no bar.
      **arguments: by the names of the flags: what the optimizer takes (`momentum`, `b1`, ...),
        penalties (`l1_penalty`, `l2_penalty`, `weight_decay`, `decay_all`), clipping (`clip_value`,
        `clip_norm`, `clip_global_norm`), and what the schedule takes (`schedule_end`, ...,
        `least_momentum`).

    Returns:
      What was fitted.

    Raises:
      InputError: an argument that cannot be, arrays that do not fit one another or the model, or
        a workdir with another run.
      loop.Diverged: the loss stopped being a finite number.
    """
    counts = {"steps": steps, "batch_size": batch_size, "log_every": log_every}
    counts |= {"eval_every": eval_every, "checkpoint_every": checkpoint_every}
    _check_numbers(counts, epochs, seed, label_smoothing)
    inputs = forms.to_inputs("x", x, channel)
    form = forms.describe(
        model, loss, inputs, y, channel=channel, scale=(mean, std), transform=augment
    )
    splits = forms.splits_of(form, inputs, y, validation, seed)
    rows = len(splits["train"])
    mesh = parallel.data_mesh(devices or jax.devices()[:rows])
    size = batch_size or min(BATCH_SIZE, rows) // mesh.size * mesh.size or mesh.size
    parallel.check_batch_size(size, mesh)
    sharding = parallel.batch_sharding(mesh)
    feed = data.RowPipeline(splits, size, name="x", seed=seed, sharding=sharding)
    last, epoch = steps or max(1, round((epochs or 0) * rows / size)), math.ceil(rows / size)
    method = _method(optimizer, learning_rate, schedule, arguments, last, warmup_steps)
    if form.loss == CLASSES:
        method.hparams["label_smoothing"] = label_smoothing
    else:
        given = f"label_smoothing={label_smoothing} for the loss {form.loss!r}"
        require(label_smoothing == 0, given, "0")
    parts = form.parts(model, loss, augment)
    task = parallel.jit(supervised(*parts, method.optimizer, method.schedule), mesh)
    state = task.init(jax.random.key(seed), jax.tree.map(jnp.float32, method.hparams))
    settings: dict[str, Any] = {"batch_size": size, "seed": seed, "warmup_steps": warmup_steps}
    settings |= {"optimizer": optimizer, "schedule": schedule, **arguments, **method.hparams}
    settings |= {
        **{f"rows of {split}": len(table) for split, table in splits.items()},
        **{f"checksum of {split}": forms.checksum(table) for split, table in splits.items()},
    }
    with _record(workdir, form, settings, state, last) as (state, checkpoints, writer):
        result = loop.fit(
            task,
            state,
            feed.train,
            steps=last,
            measure=_measure(task, feed) if "validation" in splits else None,
            eval_every=eval_every or epoch,
            log_every=log_every or epoch,
            checkpoint_every=checkpoint_every,
            checkpoints=checkpoints,
            writer=writer,
            histograms=False,
            unit="examples",
            quiet=quiet,
        )
    if result.stopped:
        print(f"stopped at step {result.state.step} of {last}", file=sys.stderr)
    fitted = _Fitting(form, settings, mesh, task, writer.rows)
    return Fitted(model, result.state, result.stopped, fitted)


class _Fitting(NamedTuple):
    """How a model was fitted.

    Attributes:
      form: of its arrays.
      settings: of the run.
      mesh: the devices.
      task: what evaluates it there.
      rows: of metrics.
    """

    form: Form
    settings: Mapping[str, Any]
    mesh: Mesh
    task: Task
    rows: Sequence[Row]


class Fitted:
    """A model with what it was fitted to; `fit` and `load` make it.

    Arrays that it is given are as those of `fit`, of any number of rows, and take the same errors.

    Attributes:
      model: the network.
      state: all that training came to; `fit` goes on from what `save` writes of it.
      stopped: the number of the signal that ended the fit early; 0 for none.
    """

    def __init__(self, model: nn.Module, state: State, stopped: int, fitting: _Fitting):
        self.model, self.state, self.stopped = model, state, stopped
        self._form, self._settings, self._mesh, self._task, self._rows = fitting
        prepare = self._form.prepare
        self._apply = jax.jit(lambda variables, x: model.apply(variables, prepare(x), train=False))

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes: `params`, and `batch_stats` where the model has them."""
        return {"params": self.state.params, **self.state.extra}

    @property
    def history(self) -> dict[str, list[float]]:
        """Every metric by its name, a number for each `step` in it; nan where it was not measured.

        `train/` are means since the report before, `eval/` those of the validation rows.
        """
        merged: dict[int, dict[str, float]] = {}
        for row in self._rows:
            numbers = {k: math.nan if value is None else value for k, value in row.items()}
            merged.setdefault(int(numbers["step"]), {}).update(numbers)
        names = dict.fromkeys(name for row in merged.values() for name in row)
        return {name: [row.get(name, math.nan) for row in merged.values()] for name in names}

    def plot(self) -> "Figure":
        """The curves of `history`, as a matplotlib figure with a panel for each kind of metric.

        Raises:
          InputError: nothing was reported yet.
        """
        return draw_curves(self._rows)

    def evaluate(self, x: Any, y: Any) -> dict[str, float]:
        """The loss and the other metrics on these rows, each by its name."""
        inputs = self._form.inputs("x", x)
        table = self._form.table(inputs, self._form.targets("y", y, len(inputs)))
        measured = loop.evaluate(self._task, self.state, self._batches(table), "eval")
        return {name.removeprefix("eval/"): value for name, value in measured.items()}

    def predict(self, x: Any) -> np.ndarray:
        """What the model says of each row.

        Args:
          x: as that of `fit`.

        Returns:
          Of 'cross_entropy' classes, int32 [N]; of 'sigmoid_cross_entropy' 0 or 1, int32, and of
          the other losses by name values, float32, both shaped as `y` was; of a function the
          model's outputs.
        """
        outputs = self._outputs(x)
        if self._form.loss == SEVERAL:
            return (outputs > 0).astype(np.int32)
        return outputs.argmax(-1).astype(np.int32) if self._form.loss == CLASSES else outputs

    def probabilities(self, x: Any) -> np.ndarray:
        """The probability of each class, float32 [N, C]; of several labels that of each, as `y`.

        Raises:
          InputError: also where the loss is of neither, so that outputs are no logits.
        """
        of = {CLASSES: jax.nn.softmax, SEVERAL: jax.nn.sigmoid}
        given = f"probabilities of a model fitted by {self._form.loss!r}"
        require(self._form.loss in of, given, " or ".join(map(repr, of)))
        return np.asarray(of[self._form.loss](self._outputs(x)))

    def save(self, folder: str | Path) -> None:
        """Writes all of it into a folder, as `fit` does with `workdir`; see `load`.

        Raises:
          InputError: the folder holds a run already.
        """
        folder = Path(folder)
        found = f"{folder}, which holds a run"
        require(not checkpoint.steps(folder), found, "a folder without one")
        with _opened(folder, self._form, self._settings) as checkpoints, Writer(folder) as writer:
            for row in self._rows:
                values = {k: math.nan if v is None else v for k, v in row.items() if k != "step"}
                writer.scalars(int(row["step"] or 0), values)
            checkpoints.save(self.state)

    def _outputs(self, x: Any) -> np.ndarray:
        """The model's outputs for all rows, float32; of a loss of values shaped as `y` was."""
        inputs = self._form.inputs("x", x)
        batches = self._batches(data.Table({"x": inputs}))
        parts = [np.asarray(self._apply(self.variables, batch["x"])) for batch in batches]
        outputs = np.concatenate(parts)[: len(inputs)].astype(np.float32)
        like = self._form.target_shape if self._form.loss in VALUES else self._form.output_shape
        return outputs.reshape(len(inputs), *like)

    def _batches(self, table: data.Table) -> Iterator[Batch]:
        """All rows in order, in batches as large as those of training, the last one padded."""
        size = -(-self._settings["batch_size"] // self._mesh.size) * self._mesh.size
        order = EvalOrder(len(table), size)
        stream, sharding = Indexed(table, order), parallel.batch_sharding(self._mesh)
        for step in range(order.steps):
            yield jax.device_put(stream(step, np.arange(size)), sharding)


def load(
    folder: str | Path,
    model: nn.Module,
    *,
    loss: ElementwiseLoss | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Fitted:
    """What `Fitted.save` has written, or `fit` in its `workdir`, also while it goes on.

    Args:
      folder: where it is.
      model: the network, as it was given to `fit`.
      loss: the function that was given to `fit`, where it was one and is to be evaluated.
      devices: which to use; by default all.

    Raises:
      InputError: nothing is there, or it is damaged or of another model.
    """
    form, settings = _described(Path(folder))
    own = form.loss == FUNCTION
    require(own or loss is None, f"a loss for what was fitted by {form.loss!r}", "none")
    outputs, there = forms.output_shape(model, form), forms.rows_of(form.output_shape)
    given = f"a model with outputs {forms.rows_of(outputs)}"
    require(outputs == form.output_shape, given, f"{there}, as that in {folder}")
    mesh = parallel.data_mesh(devices)
    init, of_batch = form.parts(model, loss or _missing if own else form.loss)
    shapes = jax.eval_shape(init, jax.random.key(0))
    # It only evaluates: how it was drawn and optimized does not matter.
    zeros = lambda key: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    task = parallel.jit(supervised(zeros, of_batch, optim.optimizer("sgd")), mesh)
    tree = checkpoint.load(folder)
    opt_state, tree["opt_state"] = tree["opt_state"], {}
    template = task.init(jax.random.key(0), tree["hparams"])._replace(opt_state=())
    state = trees.to_state(tree, template, f"the checkpoint in {folder}")
    fitting = _Fitting(form, settings, mesh, task, read_rows(folder))
    return Fitted(model, state._replace(opt_state=opt_state), 0, fitting)


def _missing(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Stands in for a function that was not given to `load`."""
    raise InputError("this was fitted by a function; give it to load as loss=... to evaluate")


def _measure(task: Task, feed: data.RowPipeline) -> Callable[[State], dict[str, float]]:
    """What measures a state on the validation rows."""
    return lambda state: loop.evaluate(task, state, feed.evaluate("validation"), "eval")


def _check_numbers(
    counts: Mapping[str, int | None], epochs: float | None, seed: int, label_smoothing: float
) -> None:
    """Refuses numbers that cannot be, whatever the arrays."""
    is_whole = lambda number: isinstance(number, int | np.integer)
    for name, count in counts.items():
        counted = count is None or (is_whole(count) and 1 <= count < 2**31)
        require(counted, f"{name}={count!r}", "an integer, at least 1")
    one = (epochs is None) != (counts["steps"] is None)
    require(one, f"epochs={epochs} and steps={counts['steps']}", "one of the two")
    if epochs is not None:
        methods.check_bound("epochs", epochs, methods.POSITIVE)
    # Beyond 32 bits seeds would be those of smaller ones.
    seeds = is_whole(seed) and 0 <= seed < 2**32
    require(seeds, f"seed={seed!r}", "an integer, at least 0 and less than 2**32")
    methods.check_bound("label_smoothing", label_smoothing, methods.SHARE)


class _Method(NamedTuple):
    """How to minimize."""

    optimizer: Optimizer
    schedule: Schedule
    hparams: dict[str, float]


def _method(
    optimizer: str,
    learning_rate: float,
    schedule: str,
    arguments: Mapping[str, Any],
    steps: int,
    warmup_steps: int,
) -> _Method:
    """The method that the arguments of a fit name; raises InputError for what cannot be."""
    own, around = optim.arguments(optimizer), inspect.signature(optim.optimizer).parameters
    scheduled = {f"schedule_{name}" for name in schedules.arguments(schedule)} | {"least_momentum"}
    known = {*inspect.signature(fit).parameters, *own, *optim.COMMON, *around, *scheduled}
    kind = f"argument for the optimizer {optimizer} and the schedule {schedule}"
    for name in arguments:
        methods.lookup(kind, name, dict.fromkeys(known - {"name", "arguments"}))
    hparams = {"learning_rate": learning_rate}
    hparams |= {k: v for k, v in arguments.items() if k not in {*around, *scheduled}}
    for name, value in hparams.items():
        require(isinstance(value, Real), f"{name}={value!r}", "a number")
        methods.check_bound(name, value, (optim.ARGUMENTS | optim.COMMON)[name].bound)
    if "momentum" in own:
        hparams = {"momentum": own["momentum"]} | hparams  # a schedule may move it
    moved = arguments.get("least_momentum") is None or "momentum" in hparams
    require(moved, f"least_momentum for {optimizer}", "a method with momentum")
    return _Method(
        optim.optimizer(optimizer, **{k: v for k, v in arguments.items() if k in around}),
        schedules.schedule(
            schedule,
            steps,
            warmup_steps,
            **{k.removeprefix("schedule_"): v for k, v in arguments.items() if k in scheduled},
        ),
        hparams,
    )


@contextlib.contextmanager
def _record(
    workdir: str | Path | None, form: Form, settings: Mapping[str, Any], state: State, last: int
) -> Iterator[tuple[State, Checkpoints | None, Writer]]:
    """Where a run is written, if anywhere, and the state that it goes on from."""
    with contextlib.ExitStack() as stack:
        checkpoints = None
        if workdir is not None:
            checkpoints = stack.enter_context(_opened(Path(workdir), form, settings))
            state = checkpoints.restore(state) or state
            accepted = f"at least {state.step}, which {workdir} was trained for"
            require(int(state.step) <= last, f"{last} steps", accepted)
        yield state, checkpoints, stack.enter_context(Writer(workdir, int(state.step)))


@contextlib.contextmanager
def _opened(folder: Path, form: Form, settings: Mapping[str, Any]) -> Iterator[Checkpoints]:
    """Holds a folder for a run of these settings, which is new or the one that goes on."""
    text = json.dumps({"form": dataclasses.asdict(form), "settings": settings}, default=float)
    require(folder.is_dir() or not folder.exists(), f"{folder}, a file", "a folder")
    with checkpoint.lock(folder):
        if checkpoint.steps(folder):
            there, here = _read(folder), json.loads(text)
            for part in ("form", "settings"):
                for name in here[part] | there[part]:
                    now, before = (run[part].get(name) for run in (here, there))
                    accepted = f"{before}, as the run in {folder} has, or another folder"
                    require(now == before, f"{name} {now}", accepted)
        else:
            with files.replacing(folder / FORM_FILE) as file:
                file.write(text.encode())
        with Checkpoints(folder) as checkpoints:
            yield checkpoints


def _described(folder: Path) -> tuple[Form, dict[str, Any]]:
    """The form and the settings of the run in a folder."""
    there = _read(folder)
    fields: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in there["form"].items()
    }
    return Form(**fields), there["settings"]


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    """The same as they are stored."""
    path = folder / FORM_FILE
    try:
        there = json.loads(path.read_bytes())
        sound = there["form"].keys() == {field.name for field in dataclasses.fields(Form)}
        sound = sound and there["settings"]["batch_size"] >= 1
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder} holds no run of arrays.fit: there is no {path}") from None
    except (ValueError, TypeError, LookupError, AttributeError):
        sound = False
    require(sound, f"{path} is damaged", "as arrays.fit has written it")
    return there
