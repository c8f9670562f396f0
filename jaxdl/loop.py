"""The only loop: it feeds batches to a step, and measures, shows, saves and stops."""

import contextlib
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdl import Batch, InputError, cost, hosts, parallel
from jaxdl.calls import IN_FLIGHT, Calls, fetch, next_due, step_flops
from jaxdl.checkpoint import Checkpoints
from jaxdl.task import Metrics, State, Task
from jaxdl.writers import Progress, Writer, describe

COMPILING = 3
"""How many of the first steps a profile leaves out, in which programs compile."""


class Diverged(InputError):
    """The loss or its gradient stopped being a finite number."""


class Result(NamedTuple):
    """How a run ended.

    Attributes:
      state: its last.
      metrics: its last, under `train/` and `eval/`.
      stopped: the number of the signal that asked it to stop; 0 for none.
    """

    state: State
    metrics: dict[str, float]
    stopped: int


class _Totals:
    """Sums metrics on the host; their quotients are the means.

    Args:
      sums: {metric: (total, count)} to count on from.
    """

    def __init__(self, sums: Mapping[str, tuple[float, float]] | None = None) -> None:
        self.sums = dict(sums or {})

    def add(self, fetched: Metrics) -> None:
        """Adds those of a step, or of several one by one: to the same bits however they come."""
        for name, mean in fetched.items():
            total, count = self.sums.get(name, (0.0, 0.0))
            for of_step, examples in zip(np.ravel(mean.total), np.ravel(mean.count), strict=True):
                total, count = total + float(of_step), count + float(examples)
            self.sums[name] = total, count

    def means(self, prefix: str) -> dict[str, float]:
        order = sorted(self.sums, key=lambda name: (name != "loss", name))
        divide = lambda total, count: total / count if count else math.nan
        return {f"{prefix}/{name}": divide(*self.sums[name]) for name in order}


def evaluate(task: Task, state: State, batches: Iterable[Batch], prefix: str) -> dict[str, float]:
    """The metrics of a state over all batches, each named `prefix/metric`."""
    totals = _Totals()
    sent = None
    for batch in batches:
        metrics = task.eval(state, batch)
        if sent is not None:
            totals.add(fetch(sent))  # the batch before, while the device works on this one
        sent = metrics
    if sent is None:
        raise InputError(f"nothing to evaluate: {prefix} has no example")
    totals.add(fetch(sent))
    return totals.means(prefix)


def losses_of(metrics: Iterable[str]) -> list[str]:
    """The names of the losses among metrics, of two players two; the first counts examples."""
    return [name for name in metrics if name.endswith("loss")]


def watched(metrics: Iterable[str]) -> list[str]:
    """The names of the metrics that have to stay finite."""
    return losses_of(metrics) + [name for name in metrics if name.endswith("gradient_norm")]


def how_diverged(name: str, value: float, step: int, saved: int | None) -> str:
    """What to say of a metric that is not finite, after a step."""
    kept = f"the checkpoint of step {saved} is kept" if saved else "nothing was saved"
    return (
        f"{name} is {value} at step {step}; {kept}; "
        "a lower learning_rate, a warm-up or clip_global_norm may help"
    )


def speed(
    unit: str, examples: float, steps: int, seconds: float, step_flops: float | None
) -> dict[str, float]:
    """How fast steps were, as `fit` reports it.

    Args:
      unit: what examples are.
      examples: in those steps.
      steps: how many.
      seconds: that they took.
      step_flops: of each; None where they cannot be counted.
    """
    found = {f"{unit}_per_second": examples / seconds}
    if step_flops is not None:
        found["model_flops_per_second"] = step_flops * steps / seconds
        peak = cost.peak_flops(jax.devices()[0])
        if peak is not None:
            used = found["model_flops_per_second"] / (peak * jax.device_count())
            found["model_flops_utilization"] = used
    return found


class _Reports:
    """Takes in the metrics of finished calls, and reports their means and the speed when due.

    Args:
      state: where training begins or goes on.
      steps: the last step.
      log_every: report every so many steps.
      unit: what the loss counts.
      calls: which make the steps.
      writer: where rows go.
      progress: what a person sees.
      checkpoints: which hold the totals that a run goes on from.
    """

    def __init__(
        self,
        state: State,
        steps: int,
        log_every: int,
        unit: str,
        calls: Calls,
        writer: Writer,
        progress: Progress,
        checkpoints: Checkpoints | None,
    ):
        self._calls = calls
        self._start, self._steps = int(state.step), steps
        self._log_every, self._unit = log_every, unit
        self._writer, self._progress, self._checkpoints = writer, progress, checkpoints
        self.last: dict[str, float] = {}
        self.totals = _Totals(checkpoints.totals if checkpoints and self._start else None)
        self.step_flops: float | None = None
        self._began = self._clock = time.perf_counter()
        self._timed_steps, self._timed_examples = 0, 0.0
        self._in_flight: deque[tuple[range, Any]] = deque()

    def send(self, steps: range, sent: Any) -> None:
        """Takes in a call that was sent to the device, once the next are; raises Diverged."""
        self._in_flight.append((steps, sent))
        if len(self._in_flight) > IN_FLIGHT:
            received, sent = self._in_flight.popleft()
            self._receive(received, sent)
            self._calls.finished(len(received), len(steps))

    def catch_up(self) -> None:
        """Takes in all steps that were sent; raises Diverged."""
        while self._in_flight:
            self._receive(*self._in_flight.popleft())

    def _receive(self, steps: range, sent: Any) -> None:
        fetched = self._calls.metrics(sent)
        self._check(steps, fetched)
        self.totals.add(fetched)
        self._timed_steps += len(steps)
        self._timed_examples += float(np.sum(fetched[losses_of(fetched)[0]].count))
        for _ in steps:
            self._progress.step()
        if steps[-1] % self._log_every == 0:
            self.report(steps[-1])

    def _check(self, steps: range, fetched: Metrics) -> None:
        """Raises Diverged for the first of some steps of which a loss or gradient is no number."""
        names = watched(fetched)
        values = np.stack([fetched[name].total for name in names], -1)
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            place, which = bad[0]
            saved = self._checkpoints.latest if self._checkpoints else None
            how = how_diverged(names[which], float(values[place, which]), steps[place], saved)
            raise Diverged(how)

    def report(self, step: int) -> None:
        """Writes what came since the last report, if anything."""
        if not self.totals.sums:
            return
        now = time.perf_counter()
        values = self.totals.means("train")
        self.last.update(values)
        seconds = now - self._clock
        values |= speed(
            self._unit, self._timed_examples, self._timed_steps, seconds, self.step_flops
        )
        self._writer.scalars(step, values)
        seconds_left = (now - self._began) / (step - self._start) * (self._steps - step)
        self._progress.train(step, values, seconds_left)
        self.totals = _Totals()
        self._clock, self._timed_steps, self._timed_examples = now, 0, 0.0

    def evaluated(self, step: int, measured: dict[str, float]) -> None:
        """Writes what an evaluation gave."""
        self.last.update(measured)
        self._writer.scalars(step, measured)
        self._progress.say(f"step {step}/{self._steps}  eval: {describe(measured)}")

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What is done meanwhile does not count against the speed of training."""
        paused = time.perf_counter()
        yield
        self._clock += time.perf_counter() - paused


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
    begin: Callable[[State, Batch], None] = lambda state, batch: None,
    observe: Callable[[State, dict[str, float]], State] = lambda state, measured: state,
    done: Callable[[State], bool] = lambda state: False,
    writer: Writer | None = None,
    histograms: bool = True,
    unit: str = "images",
    profile: tuple[Path, int] | None = None,
    quiet: bool = False,
) -> Result:
    """Trains from `state.step` to `steps`, on whatever devices `task` was prepared for.

    The metrics of a call are fetched once the next two were sent, so the device never waits for the
    host and the host never runs far ahead. Short steps on one CPU device are made several in one
    call (`jaxdl.calls`). SIGTERM or Ctrl-C finishes the call, saves, and returns. Of several hosts
    all stop after the same step, and go by what the first one measured.

    Args:
      task: a Task as `jaxdl.parallel.jit` or `pmap` returns it.
      state: where to begin. It is consumed: its buffers are donated to the first step.
      batches: (n) -> a generator of the batches of the updates after the first n; a pure function
        of n, so that a run that goes on sees what it would have seen.
      steps: the step to train to.
      measure: (state) -> its metrics on the evaluation set, such as `evaluate` gives them under the
        prefix `eval`; None for no evaluation.
      eval_every: evaluate after every so many steps, and after the last.
      log_every: report training metrics, averaged since the last report, every so many steps; they
        are also reported before an evaluation.
      checkpoint_every: save every so many steps; a state that was evaluated is saved too, so that
        the best is among the saved. What was not yet reported is saved with it.
      checkpoints: where to save; None for nowhere.
      begin: (state, a batch) -> None: sees what is trained on, while the first steps run; not in
        a run that goes on, which has shown it.
      observe: (state, the last metrics under `train/` and `eval/`) -> the state to go on
        with, asked after each evaluation.
      done: whether training ends before its last step; asked at the start and after evaluations.
      writer: where metrics go; None for nowhere.
      histograms: whether evaluations show those of weights and gradients, for which the gradient
        is computed by a program of its own.
      unit: what the loss counts, for the speed: `images_per_second`. Beside it are reported
        `model_flops_per_second`, of the products in the step (`jaxdl.cost`), and where the devices'
        peak is known the share of it, `model_flops_utilization`.
      profile: (folder, n): write a profiler trace of n steps, after the first `COMPILING`; of fewer
        where the run ends before.
      quiet: prints nothing and shows no bar.

    Returns:
      The final state, the last metrics under `train/` and `eval/`, and the signal that stopped it.

    Raises:
      Diverged: a loss or gradient norm of a step is not finite. That state was not saved.
    """
    writer = writer or Writer(None)
    start = step = int(state.step)
    stop = 0
    rhythms = [log_every, checkpoint_every, *([eval_every] if measure is not None else [])]
    stream = batches(start)
    with (
        stop_signal() as stop_asked,
        contextlib.closing(stream),
        Progress(steps, start, quiet=quiet or not hosts.is_first()) as progress,
        _Trace(profile, start) as trace,
    ):
        calls = Calls(task, stream)
        reports = _Reports(state, steps, log_every, unit, calls, writer, progress, checkpoints)
        while step < steps and not (step == start and done(state)):
            due = 1 if profile else next_due(step, steps, rhythms) - step
            some = calls.take(state, min(calls.at_once, due))
            if step == start:
                reports.step_flops = step_flops(task.train, state, some[0])
            made = range(step + 1, step + len(some) + 1)
            step = made[-1]
            trace.before(step)
            state, sent = calls(state, some)
            reports.send(made, sent)
            trace.after(step, sent)
            if start == 0 and min(1 + IN_FLIGHT, steps) in made:  # which has told of the first
                with reports.pause():
                    begin(state, some[-1])

            stop = stop_asked(step)
            due_eval = measure is not None and (step % eval_every == 0 or step == steps)
            if not (stop or due_eval or step % checkpoint_every == 0 or step == steps):
                continue
            reports.catch_up()
            if due_eval or step == steps:
                reports.report(step)
            with reports.pause():
                measured = None
                if due_eval and measure is not None:
                    measured = hosts.agree_on(measure(state))
                    reports.evaluated(step, measured)
                    if histograms:
                        writer.histograms(step, "weights", parallel.readable(state.params))
                        slopes = parallel.readable(task.gradient(state, some[-1]))
                        writer.histograms(step, "gradients", slopes)
                    state = observe(state, reports.last)
                    hosts.wait()  # for the first, which may have shown much
                if checkpoints is not None:
                    checkpoints.save(state, measured, reports.totals.sums)
            if stop or (due_eval and done(state)):
                break
        if not hosts.are_several():
            stop = stop or stop_asked(step)  # meanwhile: of several hosts, each would say its own
    return Result(state, reports.last, stop)


class _Trace:
    """A profiler trace of some steps, ended in any case."""

    def __init__(self, wanted: tuple[Path, int] | None, start: int):
        self._wanted = wanted
        self._first = start + COMPILING + 1
        self._running = False

    def __enter__(self) -> "_Trace":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._running:
            jax.profiler.stop_trace()

    def before(self, step: int) -> None:
        if self._wanted and step == self._first:
            jax.profiler.start_trace(self._wanted[0])
            self._running = True

    def after(self, step: int, sent: Any) -> None:
        if self._wanted and self._running and step == self._first + self._wanted[1] - 1:
            jax.block_until_ready(sent)
            jax.profiler.stop_trace()
            self._running = False


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], int]]:
    """Yields (step) -> the signal that asks to stop after it, or 0: SIGTERM or the first Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: 0  # signals are the main thread's
        return
    asked: list[int] = []
    several = jax.process_count() > 1

    def ask(number, frame):
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C stops at once
        if several:
            os.kill(os.getpid(), signal.SIGTERM)

    def stop_asked(step: int) -> int:
        if several and multihost_utils.reached_preemption_sync_point(step):
            return asked[0] if asked else int(signal.SIGTERM)
        return asked[0] if asked and not several else 0

    # All hosts must stop after the same step: JAX's own SIGTERM handler agrees on it.
    numbers = [signal.SIGINT] if several else [signal.SIGTERM, signal.SIGINT]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in before:
            signal.signal(number, ask)
        yield stop_asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
