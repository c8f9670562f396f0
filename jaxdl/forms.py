"""What the arrays of a fit look like: checked, cast, and laid out as the losses read them.

Each mistake in them is told in one line, before anything is compiled.
"""

import contextlib
import dataclasses
import zlib
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import InputError, augment, data, losses, methods, require
from jaxdl.augment import Augment
from jaxdl.data.subsets import draw_share
from jaxdl.losses import ElementwiseLoss
from jaxdl.task import Init, Loss

CLASSES, SEVERAL, FUNCTION = "cross_entropy", "sigmoid_cross_entropy", "function"


class Values(NamedTuple):
    """A loss of values, and what else is measured of them."""

    loss: ElementwiseLoss
    reports: Mapping[str, ElementwiseLoss]


def _agrees(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether each logit is on the side of its label."""
    return (logits > 0) == (labels > 0.5)


VALUES = {
    SEVERAL: Values(losses.sigmoid_cross_entropy, {"accuracy": _agrees}),
    "mse": Values(losses.mse, {"mae": losses.mae}),
    "mae": Values(losses.mae, {"mse": losses.mse}),
    "huber": Values(losses.huber, {"mse": losses.mse, "mae": losses.mae}),
}
"""The losses by name beside that of one class an example."""


@dataclasses.dataclass(frozen=True)
class Form:
    """What a model's arrays look like, and how they become what it is given.

    Attributes:
      loss: its name; `FUNCTION` for one of the user's own.
      input_shape: of a row, as the model takes it.
      input_dtype: uint8, int32 or float32.
      channel: whether [N, H, W] get an axis of one channel.
      mean: what is subtracted; empty to leave inputs as they are.
      std: what that is divided by.
      output_shape: of a row.
      target_shape: of a row of y, as it is given.
    """

    loss: str
    input_shape: tuple[int, ...]
    input_dtype: str
    channel: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    output_shape: tuple[int, ...]
    target_shape: tuple[int, ...]

    def prepare(self, x: jax.Array) -> jax.Array:
        """Inputs as the model is given them."""
        return augment.normalize(x, self.mean, self.std) if self.mean else augment.as_float(x)

    def inputs(self, what: str, x: Any) -> np.ndarray:
        """Arrays as those that the model is fitted to, which messages call `what`.

        Raises:
          InputError: they are not; as from the other methods.
        """
        inputs = to_inputs(what, x, self.channel)
        if inputs.dtype == np.int32 and self.input_dtype == "float32":
            inputs = inputs.astype(np.float32)  # whole numbers among others
        dtype, shape = inputs.dtype.name, inputs.shape[1:]
        accepted = f"{self.input_dtype} {rows_of(self.input_shape)}, as what the model is fitted to"
        same = (dtype, shape) == (self.input_dtype, self.input_shape)
        require(same, f"{what} of {dtype} {rows_of(shape)}", accepted)
        return inputs

    def targets(self, what: str, y: Any, rows: int) -> np.ndarray:
        """Targets for so many rows, as the loss takes them: int32 classes, or as the outputs."""
        targets = to_numbers(what, y)
        shape, outputs = targets.shape[1:], self.output_shape
        require(len(targets) == rows, f"{what} of {len(targets)} rows", f"{rows}, as its x has")
        given = f"{what} of {targets.dtype} {rows_of(shape)} for the loss {self.loss!r}"
        if self.loss == CLASSES:
            accepted = f"integers [N], classes in 0..{outputs[0] - 1}; for values 'mse' is a loss"
            require(shape == () and targets.dtype != np.float32, given, accepted)
            low, high = targets.min(), targets.max()
            accepted = f"0..{outputs[0] - 1}, as the model has {outputs[0]} outputs"
            within = low >= 0 and high < outputs[0]
            require(within, f"{what} with classes {low}..{high}", accepted)
            return targets.astype(np.int32)
        require(shape == self.target_shape, given, rows_of(self.target_shape))
        if self.loss == FUNCTION:
            return targets
        fits = shape == outputs or (shape == () and outputs == (1,))
        accepted = f"{rows_of(outputs)}, as the model's outputs; for classes {CLASSES!r} is a loss"
        require(fits, given, accepted)
        shares = self.loss != SEVERAL or (targets.min() >= 0 and targets.max() <= 1)
        require(bool(shares), f"{given}, outside of 0..1", "0, 1 or shares between them")
        return targets.astype(np.float32).reshape(rows, *outputs)

    def table(self, inputs: np.ndarray, targets: np.ndarray) -> data.Table:
        """Rows under the names that the loss reads them by."""
        names = ("image", "label") if self.loss == CLASSES else ("input", "target")
        return data.Table(dict(zip(names, (inputs, targets), strict=True)), title="x")

    def parts(
        self, model: nn.Module, loss: str | ElementwiseLoss, transform: Augment | None = None
    ) -> tuple[Init, Loss]:
        """The parts of `task.supervised`.

        Args:
          model: the network.
          loss: a name, or a function of outputs and targets.
          transform: the augmentation of inputs.
        """
        example = jax.ShapeDtypeStruct((1, *self.input_shape), self.input_dtype)
        given: dict[str, Any] = {"input_dtype": jax.eval_shape(self.prepare, example).dtype}
        if transform is not None:
            given["augment"] = transform
        if self.loss == CLASSES:
            return losses.classification(model, self.input_shape, self.prepare, **given)
        elementwise, reports = VALUES[loss] if isinstance(loss, str) else Values(loss, {})
        given["reports"] = reports
        return losses.prediction(model, self.input_shape, elementwise, self.prepare, **given)


def describe(
    model: nn.Module,
    loss: str | ElementwiseLoss,
    inputs: np.ndarray,
    y: Any,
    *,
    channel: bool,
    scale: tuple[Any, Any],
    transform: Augment | None,
) -> Form:
    """The form of arrays that a model is to be fitted to.

    Args:
      model: the network.
      loss: a name, or a function of outputs and targets.
      inputs: as `to_inputs` makes them.
      y: the targets, as they are given.
      channel: whether [N, H, W] get an axis of one channel.
      scale: the mean and the standard deviation that inputs are normalized by; None for none.
      transform: the augmentation of inputs.

    Raises:
      InputError: there is no such loss, or one of the functions cannot take the inputs.
    """
    require(isinstance(loss, str) or callable(loss), f"loss {loss!r}", "a name or a function")
    if isinstance(loss, str):
        methods.lookup("loss", loss, {CLASSES: None, **VALUES})
    name = loss if isinstance(loss, str) else FUNCTION
    shape, dtype = inputs.shape[1:], inputs.dtype.name
    mean, std = _scale(*scale, inputs.shape[-1])
    target_shape = to_numbers("y", y).shape[1:]
    form = Form(name, shape, dtype, channel, mean, std, (), target_shape)
    form = dataclasses.replace(form, output_shape=output_shape(model, form))
    logits = name != CLASSES or len(form.output_shape) == 1
    given = f"outputs {rows_of(form.output_shape)} of the model for the loss {name!r}"
    require(logits, given, "logits [N, C]")
    if transform is not None:
        keys, example = jax.random.split(jax.random.key(0), 1), jnp.zeros((1, *shape), dtype)
        with _told(f"augment cannot take {rows_of(shape)}"):
            made = jax.eval_shape(transform, keys, example).shape[1:]
        require(made == shape, f"{rows_of(made)} by augment", rows_of(shape))
    return form


def output_shape(model: nn.Module, form: Form) -> tuple[int, ...]:
    """The shape of a row of a model's outputs.

    Raises:
      InputError: it cannot take the inputs, or returns something else.
    """
    accepted = "a flax.linen.Module, called as model(x, train=...)"
    is_model = isinstance(model, nn.Module)
    require(is_model, f"a model of type {type(model).__name__}", accepted)

    def outputs(key, x):
        return model.init_with_output(key, form.prepare(x), train=False)[0]

    example = jax.ShapeDtypeStruct((1, *form.input_shape), form.input_dtype)
    with _told(f"the model cannot take x {rows_of(form.input_shape)}"):
        made = jax.eval_shape(outputs, jax.random.key(0), example)
    is_one = isinstance(made, jax.ShapeDtypeStruct) and made.shape[:1] == (1,)
    require(is_one, f"what the model returns, {made}", "one array [N, ...]")
    return made.shape[1:]


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Tells in one line of what a function of the user's cannot take."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # whatever that function makes of them
        raise InputError(f"{what}: {' '.join(str(error).split())[:300]}") from error


def rows_of(shape: tuple[int, ...]) -> str:
    """The shape of N rows, in words."""
    return f"[{', '.join(['N', *map(str, shape)])}]"


def to_inputs(what: str, x: Any, channel: bool) -> np.ndarray:
    """Numbers [N, ...], with the axes that a model expects.

    Args:
      what: what messages call them.
      x: the numbers; [N] are one column, [N, 1].
      channel: whether [N, H, W] get an axis of one channel.

    Returns:
      uint8, int32 or float32.

    Raises:
      InputError: they are no numbers, not finite, or none.
    """
    inputs = to_numbers(what, x)
    if inputs.ndim == 1:
        return inputs[:, None]
    return inputs[..., None] if inputs.ndim == 3 and channel else inputs


def to_numbers(what: str, values: Any) -> np.ndarray:
    """Finite numbers [N, ...] of the types that are kept, uint8, int32 and float32; as above."""
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of several lengths
        raise InputError(f"{what}: {error}; expected one array") from error
    require(array.ndim > 0 and array.size > 0, f"{what} of shape {array.shape}", "at least one row")
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool or np.issubdtype(array.dtype, np.integer):
        low, high = array.min(), array.max()
        held = np.iinfo(np.int32)
        fits = held.min <= low and high <= held.max
        require(bool(fits), f"{what} of {low}..{high}", "integers of at most 32 bits")
        return array.astype(np.int32, copy=False)
    accepted = "numbers; np.unique(names, return_inverse=True) makes them of names"
    require(jnp.issubdtype(array.dtype, jnp.floating), f"{what} of {array.dtype}", accepted)
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    finite = np.isfinite(array)
    if not finite.all():
        first = tuple(map(int, np.argwhere(~finite)[0]))
        raise InputError(f"{what}: row {first[0]} holds {array[first]}; expected finite numbers")
    return array


def _scale(mean: Any, std: Any, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What inputs are normalized by; two empty ones for nothing."""
    if mean is None and std is None:
        return (), ()
    scale = []
    for name, value in (
        ("mean", 0.0 if mean is None else mean),
        ("std", 1 if std is None else std),
    ):
        found = to_numbers(name, np.atleast_1d(value))
        fits = found.ndim == 1 and len(found) in (1, channels)
        accepted = f"one number, or one for each of {channels}, the last axis of x"
        require(fits, f"{name} of shape {found.shape}", accepted)
        scale.append(tuple(map(float, np.atleast_1d(value))))
    require(min(scale[1]) > 0, f"std {min(scale[1])}", "more than 0")
    return scale[0], scale[1]


def splits_of(
    form: Form, inputs: np.ndarray, y: Any, validation: Any, seed: int
) -> dict[str, data.Table]:
    """The rows to train on, and as `validation` those that are measured on the way.

    Args:
      form: of the arrays.
      inputs: all that are given, as `to_inputs` makes them.
      y: their targets.
      validation: a share of them, 0 for none, or (x, y) of its own.
      seed: of a share.

    Raises:
      InputError: they do not fit the form, or a part would be empty.
    """
    targets = form.targets("y", y, len(inputs))
    if isinstance(validation, tuple | list):
        require(len(validation) == 2, f"validation of {len(validation)} parts", "(x, y)")
        held = form.inputs("the validation's x", validation[0])
        held_targets = form.targets("the validation's y", validation[1], len(held))
        return {"train": form.table(inputs, targets), "validation": form.table(held, held_targets)}
    is_share = isinstance(validation, Real) and 0 <= float(validation) < 1
    require(is_share, f"validation={validation!r}", "at least 0 and less than 1, or (x, y)")
    if not validation:
        return {"train": form.table(inputs, targets)}
    classes = targets if form.loss == CLASSES else np.zeros(len(inputs), int)
    kept, drawn = draw_share(classes, float(validation), seed)
    return {
        "train": form.table(inputs[kept], targets[kept]),
        "validation": form.table(inputs[drawn], targets[drawn]),
    }


def checksum(table: data.Table) -> int:
    """A number that changes with what a table holds."""
    total = 0
    for column in table.columns.values():
        total = zlib.crc32(np.ascontiguousarray(column).data, total)
    return total
