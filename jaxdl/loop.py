"""The only loop: it feeds batches to a step, and measures, shows, saves and stops."""

import contextlib
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils

from jaxdl import InputError, cost
from jaxdl.checkpoint import Checkpoints
from jaxdl.task import Batch, Metrics, State, Task
from jaxdl.writers import Progress, Writer, describe

IN_FLIGHT = 2
"""How many steps are sent beyond the one whose metrics are fetched."""


class Diverged(InputError):
    """The loss or its gradient stopped being a finite number."""


class Result(NamedTuple):
    """How a run ended: its state, its last metrics, and whether a signal stopped it early."""

    state: State
    metrics: dict[str, float]
    stopped: bool


class _Totals:
    """Sums metrics on the host; their quotients are the means."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}
        self.steps = 0

    def add(self, metrics: Metrics) -> None:
        self.steps += 1
        for name, mean in jax.device_get(metrics).items():
            sums = self._sums.setdefault(name, [0.0, 0.0])
            sums[0] += float(mean.total)
            sums[1] += float(mean.count)

    def count(self) -> float:
        """What the loss, or the first of several, was taken over: examples, or tokens."""
        return next(count for name, (_, count) in self._sums.items() if name.endswith("loss"))

    def means(self, prefix: str) -> dict[str, float]:
        order = sorted(self._sums, key=lambda name: (name != "loss", name))
        divide = lambda total, count: total / count if count else math.nan
        return {f"{prefix}/{name}": divide(*self._sums[name]) for name in order}


def evaluate(task: Task, state: State, batches: Iterable[Batch], prefix: str) -> dict[str, float]:
    """The metrics of a state over all batches, each named `prefix/metric`."""
    totals = _Totals()
    sent = None
    for batch in batches:
        metrics = task.eval(state, batch)
        if sent is not None:
            totals.add(sent)  # the batch before, while the device works on this one
        sent = metrics
    if sent is None:
        raise InputError(f"nothing to evaluate: {prefix} has no example")
    totals.add(sent)
    return totals.means(prefix)


def fit(
    task: Task,
    state: State,
    batches: Callable[[int], Generator[Batch, None, None]],
    *,
    steps: int,
    measure: Callable[[State], dict[str, float]] | None = None,
    eval_every: int = 1000,
    log_every: int = 100,
    checkpoint_every: int = 1000,
    checkpoints: Checkpoints | None = None,
    observe: Callable[[State, dict[str, float]], State] = lambda state, measured: state,
    done: Callable[[State], bool] = lambda state: False,
    writer: Writer | None = None,
    unit: str = "images",
    profile: tuple[Path, int] | None = None,
) -> Result:
    """Trains from `state.step` to `steps`, on whatever devices `task` was prepared for.

    The metrics of a step are fetched once the next two were sent, so the device never waits for
    the host and the host never runs far ahead. SIGTERM or Ctrl-C finishes the step, saves, and
    returns.

    Args:
      task: a Task as `jaxdl.parallel.jit` or `pmap` returns it.
      state: where to begin. It is consumed: its buffers are donated to the first step.
      batches: (n) -> a generator of the batches of the updates after the first n; a pure function
        of n, so that a run that goes on sees what it would have seen.
      steps: the step to train to.
      measure: (state) -> its metrics on the evaluation set, such as `evaluate` gives them under the
        prefix `eval`; None for no evaluation.
      eval_every: evaluate after every so many steps, and after the last.
      log_every: report training metrics, averaged since the last report, every so many steps.
      checkpoint_every: save every so many steps; a state that was evaluated is saved too, so that
        the best is among the saved.
      checkpoints: where to save; None for nowhere.
      observe: (state, the last metrics under `train/` and `eval/`) -> the state to go on
        with, asked after each evaluation.
      done: whether training ends before its last step; asked at the start and after evaluations.
      writer: where metrics go; None for nowhere.
      unit: what the loss counts, for the speed: `images_per_second`. Beside it are reported
        `model_flops_per_second`, of the products in the step (`jaxdl.cost`), and where the devices'
        peak is known the share of it, `model_flops_utilization`.
      profile: (folder, n): write a profiler trace of n steps, once the first three have compiled.

    Returns:
      The final state, the last metrics under `train/` and `eval/`, and whether a signal stopped it.

    Raises:
      Diverged: a loss or gradient norm of a step is not finite. That state was not saved.
    """
    writer = writer or Writer(None)
    start = int(state.step)
    last: dict[str, float] = {}
    totals, clock = _Totals(), time.perf_counter()
    began, step = clock, start
    step_flops: float | None = None
    devices = state.step.sharding.device_set
    peak = cost.peak_flops(next(iter(devices)))
    in_flight: deque[tuple[int, Metrics]] = deque()
    stream = batches(start)
    quiet = jax.process_index() > 0

    def receive(step: int, metrics: Metrics) -> None:
        """Takes in the metrics of a finished step; reports when one is due."""
        nonlocal totals, clock
        fetched = jax.device_get(metrics)
        losses = [name for name in fetched if name.endswith("loss")]  # of two players two
        norms = [name for name in fetched if name.endswith("gradient_norm")]
        for name in losses + norms:
            if not math.isfinite(fetched[name].total):
                saved = checkpoints.latest if checkpoints else None
                kept = f"the checkpoint of step {saved} is kept" if saved else "nothing was saved"
                raise Diverged(
                    f"{name} is {fetched[name].total} at step {step}; {kept}; "
                    "a lower learning_rate, a warm-up or clip_global_norm may help"
                )
        totals.add(fetched)
        progress.step()
        if step % log_every == 0:
            report(step)

    def report(step: int) -> None:
        nonlocal totals, clock
        now = time.perf_counter()
        speed = {f"{unit}_per_second": totals.count() / (now - clock)}
        if step_flops is not None:
            speed["model_flops_per_second"] = step_flops * totals.steps / (now - clock)
            if peak is not None:
                used = speed["model_flops_per_second"] / (peak * len(devices))
                speed["model_flops_utilization"] = used
        values = totals.means("train")
        last.update(values)
        writer.scalars(step, values | speed)
        seconds_left = (now - began) / (step - start) * (steps - step)
        progress.train(step, values | speed, seconds_left)
        totals, clock = _Totals(), now

    with (
        _stop_signal() as stop_asked,
        contextlib.closing(stream),
        Progress(steps, start, quiet) as progress,
    ):
        for step in range(start + 1, start + 1 if done(state) else steps + 1):
            batch = next(stream)
            if step == start + 1:
                step_flops = _flops(task.train, state, batch)
            if profile and step == start + 4:
                jax.profiler.start_trace(profile[0])
            state, metrics = task.train(state, batch)
            in_flight.append((step, metrics))
            if len(in_flight) > IN_FLIGHT:
                receive(*in_flight.popleft())
            if profile and step == start + 3 + profile[1]:
                jax.block_until_ready(metrics)
                jax.profiler.stop_trace()

            stop = stop_asked(step)
            due_eval = measure is not None and (step % eval_every == 0 or step == steps)
            if not (stop or due_eval or step % checkpoint_every == 0 or step == steps):
                continue
            while in_flight:
                receive(*in_flight.popleft())
            if step % log_every:
                report(step)  # a run that goes on from here reports the same from here
            paused = time.perf_counter()
            measured = None
            if due_eval and measure is not None:
                measured = measure(state)
                last.update(measured)
                writer.scalars(step, measured)
                writer.histograms(step, "weights", state.params)
                writer.histograms(step, "gradients", task.gradient(state, batch))
                progress.say(f"step {step}/{steps}  eval: {describe(measured)}")
                state = observe(state, last)
            if checkpoints is not None:
                checkpoints.save(state, measured)
            clock += time.perf_counter() - paused  # the speed reported is that of training
            if stop or (due_eval and done(state)):
                break
    return Result(state, last, stopped=step < steps and not done(state))


def _flops(function: Callable[..., Any], *args: Any) -> float | None:
    """The FLOPs of one call, two for each multiply-add; None where they cannot be counted."""
    try:
        return 2.0 * cost.cost(function, *args).multiply_adds
    except (InputError, jax.errors.ConcretizationTypeError):
        return None  # a loop of unknown length, or a step that looks at its values


@contextlib.contextmanager
def _stop_signal() -> Iterator[Callable[[int], bool]]:
    """Yields (step) -> whether to stop after it; SIGTERM and the first Ctrl-C ask for that."""
    if jax.process_count() > 1:
        # All hosts must stop after the same step: JAX's own SIGTERM handler agrees on it.
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # signals are the main thread's
        return
    asked = threading.Event()
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

    def ask(number, frame):
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C stops at once

    try:
        for number in before:
            signal.signal(number, ask)
        yield lambda step: asked.is_set()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
