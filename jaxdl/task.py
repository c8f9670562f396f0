"""The one abstraction: a Task is a few pure functions over a State that holds only arrays.

A step is a pure function of (state, batch). It reads no clock and keeps nothing outside State, so
`jaxdl.parallel` can run it under jit, pmap, vmap or scan, and a run that stopped goes on exactly
where it was.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from jaxdl import Batch


class Mean(NamedTuple):
    """A mean before its division: sum both over devices and batches, divide once, at the end.

    A mean of means is wrong as soon as one batch is ragged or one token is masked.

    >>> batches = Mean(8.0, 4), Mean(1.0, 1)
    >>> Mean(*map(sum, zip(*batches))).value
    1.8
    """

    total: Any
    count: Any

    @property
    def value(self) -> Any:
        """The mean; nan where nothing was counted."""
        return self.total / self.count


Metrics = dict[str, Mean]


class Monitor(NamedTuple):
    """What the evaluations of a run have shown, for early stopping and reducing on a plateau.

    Attributes:
      best: float32 [], the greatest value so far.
      since_best: int32 [], how many evaluations ago that was.
      since_cut: int32 [], the same, or since the learning rate was cut if that is later.
    """

    best: Any
    since_best: Any
    since_cut: Any


class LossScale(NamedTuple):
    """What the loss is multiplied with so that float16 gradients neither vanish nor overflow.

    Micikevicius et al. 2017, arXiv:1710.03740: halved when a gradient overflows, and doubled after
    `GROWTH_STEPS` steps without.

    Attributes:
      scale: float32 [].
      good_steps: int32 [], steps since it last changed.
    """

    scale: Any
    good_steps: Any


INITIAL_SCALE, GROWTH_STEPS = 2.0**12, 2000


class State(NamedTuple):
    """All that a run is: what is saved, restored, replicated, and mapped over.

    Attributes:
      step: int32 [], how many updates have been made.
      key: the run's typed PRNG key, constant; step n draws from `fold_in(key, n)`.
      hparams: scalars that a sweep may vary (learning rate, weight decay, label smoothing ...).
      params: what is trained.
      extra: what the loss carries from step to step beside `params`, such as batch statistics.
      opt_state: the optimizer's state.
      monitor: what evaluations have shown.
      average: moving averages of `params` and `extra`, where the task keeps them (`averaged`).
      loss_scale: a LossScale, where the task scales its loss.
    """

    step: Any
    key: Any
    hparams: dict[str, Any]
    params: Any
    extra: Any
    opt_state: Any
    monitor: Any
    average: Any = ()
    loss_scale: Any = ()


class Init(Protocol):
    """Draws what is to be trained."""

    def __call__(self, key: Any, /) -> tuple[Any, Any]:
        """(key) -> (params, extra)."""


class Loss(Protocol):
    """What is minimized, as a total and a count, with what the model carries along."""

    def __call__(
        self, params: Any, extra: Any, batch: Batch, key: Any, hparams: Any, train: bool, /
    ) -> tuple[Mean, Any, Metrics]:
        """(params, extra, batch, key, hparams, train) -> (Mean, extra, Metrics)."""


class Optimizer(Protocol):
    """An optax transformation whose hyperparameters are data."""

    def __call__(self, hparams: Mapping[str, Any], /) -> optax.GradientTransformation:
        """(hparams) -> the transformation with those values, which may be traced."""


class Schedule(Protocol):
    """Hyperparameters that change in the course of a training."""

    def __call__(self, hparams: Mapping[str, Any], step: Any, /) -> dict[str, Any]:
        """(hparams, step int32 []) -> hparams as they are at that step."""


class Begin(Protocol):
    """Makes the state before the first step."""

    def __call__(self, key: Any, hparams: Any, /) -> State:
        """(key, hparams) -> State."""


class Train(Protocol):
    """Makes one step: a `jax.lax.scan` body."""

    def __call__(self, state: State, batch: Batch, /) -> tuple[State, Metrics]:
        """(State, Batch) -> (State, Metrics)."""


class Evaluate(Protocol):
    """Measures a state, which stays as it is."""

    def __call__(self, state: State, batch: Batch, /) -> Metrics:
        """(State, Batch) -> Metrics."""


class Task(NamedTuple):
    """A training problem as pure functions. `train` has the form of a `jax.lax.scan` body.

    Attributes:
      init: (key, hparams) -> State.
      train: (State, Batch) -> (State, Metrics).
      eval: (State, Batch) -> Metrics.
      gradient: (State, Batch) -> the gradient that `train` would apply, for looking at.
    """

    init: Begin
    train: Train
    eval: Evaluate
    gradient: Callable[[State, Batch], Any]


def initial_state(key: Any, hparams: Any, params: Any, extra: Any, opt_state: Any) -> State:
    """The State before the first step, which no evaluation has seen."""
    monitor = Monitor(jnp.float32(-jnp.inf), jnp.int32(0), jnp.int32(0))
    return State(jnp.int32(0), key, dict(hparams), params, extra, opt_state, monitor)


def keyed(batch: Batch, key: Any, axis_name: str | None) -> tuple[Batch, Any]:
    """Gives each example a PRNG key of its own, by its place in the global batch.

    Args:
      batch: what this device sees.
      key: the step's.
      axis_name: the mapped axis that the batch is spread over, if there is one.

    Returns:
      The batch with `key` [B], and a key that differs on each device of the axis.
    """
    size = jax.tree.leaves(batch)[0].shape[0]
    rank = 0 if axis_name is None else jax.lax.axis_index(axis_name)
    example_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rank * size + jnp.arange(size))
    own = key if axis_name is None else jax.random.fold_in(key, rank)
    return batch | {"key": example_keys}, own


def constant(hparams: Mapping[str, Any], step: Any) -> dict[str, Any]:
    """The schedule of hyperparameters that stay as they are."""
    return dict(hparams)


def supervised(
    init: Init,
    loss: Loss,
    optimizer: Optimizer,
    schedule: Schedule = constant,
    *,
    accumulate: int = 1,
    loss_scaling: bool = False,
    axis_name: str | None = None,
) -> Task:
    """Builds the Task that minimizes `loss` by gradient descent.

    The gradient of the loss's *total* is summed over everything that took part (micro-batches,
    devices) and divided once by the global count, so unequal shares weigh what they should.

    Every example gets a PRNG key of its own, `batch["key"]` [B], from the step and its place in the
    global batch: an augmentation that uses it draws the same on one device, on eight, and when the
    batch is accumulated in parts. The `key` handed to the loss (for dropout) differs by part and,
    under a mapped axis, by device.

    Args:
      init: (key) -> (params, extra).
      loss: (params, extra, batch, key, hparams, train) -> (Mean, extra, Metrics). The Mean is
        what is minimized and is reported as the metric `loss`; `train` is a Python bool.
      optimizer: (hparams) -> optax transformation. It is called inside the step, so a
        hyperparameter is data: vmap over it, or restore it from a checkpoint.
      schedule: (hparams, step) -> hparams, the values in force at a step.
      accumulate: how many equal micro-batches a batch is cut into, run one after another to save
        memory. Exact, but for batch statistics, dropout masks and the partners of mixed images,
        which each part has of its own.
      loss_scaling: for float16: gradients are taken of the loss times `State.loss_scale` and
        divided by it. A step whose gradient overflows changes nothing but the scale.
      axis_name: the mapped axis (pmap, shard_map) that the batch is spread over, if there is one.
        Under jit there is none: a step sees the global batch.

    Returns:
      A Task. Besides those of the loss, `train` reports the metrics `loss`, `learning_rate` (when
      it is a hyperparameter), `gradient_norm` and, with loss scaling, `loss_scale`.
    """

    sums = functools.partial(_sums, loss, accumulate)

    def psum(tree):
        return tree if axis_name is None else jax.lax.psum(tree, axis_name)

    def gradient(state, batch, hparams):
        batch, key = keyed(batch, jax.random.fold_in(state.key, state.step), axis_name)
        scale = state.loss_scale.scale if loss_scaling else 1.0
        grads, metrics, extra = sums(state.params, state.extra, batch, key, hparams, scale)
        grads, metrics = psum((grads, metrics))
        count = jnp.maximum(metrics["loss"].count, 1)  # a batch may be masked altogether
        return jax.tree.map(lambda g: g / (count * scale), grads), extra, metrics

    def begin(key, hparams):
        init_key, key = jax.random.split(key)
        params, extra = init(init_key)
        state = initial_state(key, hparams, params, extra, optimizer(hparams).init(params))
        if not loss_scaling:
            return state
        return state._replace(loss_scale=LossScale(jnp.float32(INITIAL_SCALE), jnp.int32(0)))

    def train(state, batch):
        hparams = schedule(state.hparams, state.step)
        grads, extra, metrics = gradient(state, batch, hparams)
        updates, opt_state = optimizer(hparams).update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = state._replace(step=state.step + 1, params=params, extra=extra, opt_state=opt_state)
        if "learning_rate" in hparams:
            metrics["learning_rate"] = Mean(hparams["learning_rate"], 1.0)
        metrics["gradient_norm"] = Mean(optax.tree.norm(grads), jnp.float32(1))
        return _unless_overflown(state, new, metrics) if loss_scaling else (new, metrics)

    def evaluate(state, batch):
        hparams = schedule(state.hparams, state.step)
        mean, _, metrics = loss(state.params, state.extra, batch, state.key, hparams, False)
        return psum(metrics | {"loss": mean})

    return Task(
        init=begin,
        train=train,
        eval=evaluate,
        gradient=lambda s, b: gradient(s, b, schedule(s.hparams, s.step))[0],
    )


def _sums(
    loss: Loss,
    accumulate: int,
    params: Any,
    extra: Any,
    batch: Batch,
    key: Any,
    hparams: Any,
    scale: Any,
) -> tuple[Any, Metrics, Any]:
    """The gradient of the loss's total times `scale`, the metrics, and the new `extra`."""

    def total(params, extra, batch, key):
        mean, extra, metrics = loss(params, extra, batch, key, hparams, True)
        return mean.total * scale, (extra, metrics | {"loss": mean})

    def part(extra, inputs):
        grads, (extra, metrics) = jax.grad(total, has_aux=True)(params, extra, *inputs)
        return extra, (grads, metrics)

    if accumulate == 1:
        extra, sums = part(extra, (batch, key))
        return *sums, extra
    # Part j takes rows j, j + k, j + 2k ...: rows of every device, so nothing moves.
    parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
    extra, sums = jax.lax.scan(part, extra, (parts, jax.random.split(key, accumulate)))
    return *jax.tree.map(lambda x: x.sum(0), sums), extra


def _unless_overflown(old: State, new: State, metrics: Metrics) -> tuple[State, Metrics]:
    """The step of a scaled loss: one whose gradient overflowed changes nothing but the scale."""
    norm = metrics["gradient_norm"].total
    finite = jnp.isfinite(norm)  # an overflow in any gradient shows in their norm
    learnt = lambda state: (state.params, state.extra, state.opt_state)
    params, extra, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), learnt(new), learnt(old)
    )
    scale = old.loss_scale
    metrics["loss_scale"] = Mean(scale.scale, 1.0)
    metrics["gradient_norm"] = Mean(jnp.where(finite, norm, 0.0), finite.astype(jnp.float32))
    new = new._replace(
        params=params, extra=extra, opt_state=opt_state, loss_scale=_rescale(scale, finite)
    )
    return new, metrics


def observe(state: State, value: Any) -> State:
    """The state once an evaluation has shown `value`, float32 [], of which more is better.

    What is not finite is never better.
    """
    best, since_best, since_cut = state.monitor
    better = (value > best) & jnp.isfinite(value)
    since = lambda count: jnp.where(better, 0, count + 1)
    monitor = Monitor(jnp.where(better, value, best), since(since_best), since(since_cut))
    return state._replace(monitor=monitor)


def _rescale(scale: LossScale, finite: Any) -> LossScale:
    """The scale for the step after one whose gradient was or was not finite."""
    good_steps = jnp.where(finite, scale.good_steps + 1, 0)
    grown = good_steps == GROWTH_STEPS
    factor = jnp.where(finite, jnp.where(grown, 2.0, 1.0), 0.5)
    return LossScale(jnp.maximum(scale.scale * factor, 1.0), jnp.where(grown, 0, good_steps))
