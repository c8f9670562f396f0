"""Short steps made several in one call, so that neither Python nor a program's start shows.

    calls = Calls(task, stream)
    batches = calls.take(state, most)
    state, sent = calls(state, batches)
    metrics = calls.metrics(sent)  # each [len(batches)], or longer by zeros

It needs `train.several`, which `jaxdl.parallel.jit` gives a Task on one CPU device: a program that
makes as many steps as it is told to. All calls of a run are that program, so how many steps a call
makes may follow the clock, and what comes of them does not. (On a GPU the host would be asked
before each turn of such a loop.)
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jaxdl import Batch, InputError, cost, parallel
from jaxdl.task import Metrics, State, Task

TOGETHER, TOGETHER_BYTES, TOGETHER_FLOPS = 8, 8 * 2**20, 5e8
"""How many steps one call makes at most, if their batches are of no more bytes than that.

And if a step is of no more FLOPs, which take about 5 ms: of longer ones nothing is gained, and the
loop takes longer to compile.
"""
IN_FLIGHT = 2
"""How many calls are sent beyond the one whose metrics are fetched."""
CALL_SECONDS = 0.1
"""How long a call of several takes at most: so long a person waits for a signal's effect."""


def step_flops(function: Callable[..., Any], *args: Any) -> float | None:
    """The FLOPs of one call, two for each multiply-add; None where they cannot be counted."""
    try:
        return 2.0 * cost.cost(function, *args).multiply_adds
    except (InputError, jax.errors.ConcretizationTypeError):
        return None  # a loop of unknown length, or a step that looks at its values


def fetch(metrics: Metrics) -> Metrics:
    """Metrics as NumPy arrays, once what makes them is done."""
    # jax.device_get takes ten times as long over scalars, which shows in steps of a millisecond.
    return jax.tree.map(np.asarray, metrics)


def together(task: Task, state: State, batch: Batch) -> int:
    """How many steps on such batches one call makes at most.

    Args:
      task: as `jaxdl.parallel` returns it.
      state, batch: arrays, or their shapes and types.
    """
    if getattr(task.train, "several", None) is None:
        return 1
    flops = step_flops(task.train, state, batch)
    if flops is None or flops > TOGETHER_FLOPS:
        return 1
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch))
    return max(1, min(TOGETHER, TOGETHER_BYTES // max(1, size)))


def compile_ahead(task: Task, state: State, batch: Batch) -> None:
    """Compiles what `Calls` will call, as `jaxdl.parallel.compile_ahead` does, in a thread."""
    most = together(task, state, batch)
    if most == 1:
        parallel.compile_ahead(task.train, state, batch)
        return
    train: Any = task.train
    count = jax.ShapeDtypeStruct((), np.int32)
    parallel.compile_ahead(train.several, state, [batch] * most, count)


def next_due(step: int, steps: int, rhythms: Iterable[int]) -> int:
    """The first step after this one at which something is due, or the last.

    Args:
      step: where training is.
      steps: the last step.
      rhythms: every how many steps something is.
    """
    return min(steps, *(step // every * every + every for every in rhythms))


class Calls:
    """Makes the steps of a training, short ones several in one call.

    Args:
      task: whose steps.
      stream: of batches.

    Attributes:
      at_once: how many steps the next call should make, for it to take `CALL_SECONDS` at most.
    """

    def __init__(self, task: Task, stream: Iterator[Batch]):
        self._task, self._stream = task, stream
        self._held: deque[Batch] = deque()
        self.at_once = 1
        # Of batches of a form, and of it alone: whatever a run has seen, it goes on the same way.
        self._most: dict[Any, int] = {}
        self._form: Any = None  # of the metrics of a step
        self._clock = time.perf_counter()
        self._lately: deque[float] = deque(maxlen=IN_FLIGHT + 1)  # seconds of a step

    def take(self, state: State, most: int) -> list[Batch]:
        """Returns the next batches, of one form, at most so many.

        Args:
          state: like the one that they are for.
          most: how many.
        """
        some = [self._next()]
        form = _form(some[0])
        if form not in self._most:
            self._most[form] = together(self._task, state, some[0])
        for _ in range(1, min(most, self._most[form])):
            batch = self._next()
            if _form(batch) != form:
                self._held.append(batch)
                break
            some.append(batch)
        return some

    def _next(self) -> Batch:
        return self._held.popleft() if self._held else next(self._stream)

    def __call__(self, state: State, batches: list[Batch]) -> tuple[State, Any]:
        """Returns the state after a step on each batch, and what `metrics` takes.

        Args:
          state: before them. It is consumed.
          batches: as `take` returned them.
        """
        most = self._most[_form(batches[0])]
        if most == 1:
            return self._task.train(state, batches[0])
        if self._form is None:
            self._form = jax.tree.structure(jax.eval_shape(self._task.train, state, batches[0])[1])
        train: Any = self._task.train
        filled = batches + batches[-1:] * (most - len(batches))
        return train.several(state, filled, np.int32(len(batches)))

    def metrics(self, sent: Any) -> Metrics:
        """Returns the metrics of a call's steps, each [k], as NumPy arrays once they are done."""
        if isinstance(sent, jax.Array):
            return jax.tree.unflatten(self._form, np.asarray(sent).T)
        return jax.tree.map(np.atleast_1d, fetch(sent))

    def finished(self, steps: int, others: int) -> None:
        """Takes in that a call is done, as it is of each in turn, and sees to `at_once`.

        Args:
          steps: how many that made.
          others: how many the call made that was just sent; of the two it is one that the device
            has worked on since the last was done.
        """
        now = time.perf_counter()
        self._lately.append((now - self._clock) / min(steps, others))
        self._clock = now
        # The longest of the last: after a pause some are done before they are waited for.
        self.at_once = max(1, min(2 * others, int(CALL_SECONDS / max(self._lately))))


def _form(batch: Batch) -> tuple[Any, ...]:
    return tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batch))
