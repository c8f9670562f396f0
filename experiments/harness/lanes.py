"""Runs that are lanes of one program: what each is, and what is told of all.

What a lane leaves out of the folder of a run: curves.png, histograms, the model's table and inputs
in TensorBoard, what a problem's view reports on the way (it reports once, at the end), and of the
checkpoints those that are neither the best nor among the last saved.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.harness.problem import Problem
from jaxdl import calls, lifting, loop
from jaxdl.task import Metrics, State, Task
from jaxdl.writers import Progress


class Best(NamedTuple):
    """The best evaluation of a lane.

    Attributes:
      rank: the greater the better.
      step: when.
      measured: what it measured.
      saved: whether its state is on disk.
    """

    rank: float
    step: int
    measured: dict[str, float]
    saved: bool


@dataclasses.dataclass(eq=False)
class Lane:
    """A run as a lane.

    Attributes:
      run: the run, see `study.Run`.
      problem: what it trains.
      task: its Task.
      hparams: those of its state.
      init: the task's, traced.
      batch: the shapes of a batch of training.
      watched: those of one of evaluation.
      first: a lane whose task is the same function of the same shapes, if any was before.
      alive: whether it is still trained.
      last: its last metrics under `train/` and `eval/`.
      best: its best evaluation.
      rows: of metrics, still to be written: (step, values).
      checkpoints: its own, while it is trained; as `writer`.
    """

    run: Any
    problem: Problem
    task: Task
    hparams: dict[str, Any]
    init: lifting.Program
    batch: Any
    watched: Any
    first: "Lane | None" = None
    alive: bool = False
    last: dict[str, float] = dataclasses.field(default_factory=dict)
    best: Best | None = None
    rows: list[tuple[int, dict[str, float]]] = dataclasses.field(default_factory=list)
    checkpoints: Any = None
    writer: Any = None

    @functools.cached_property
    def programs(self) -> tuple[lifting.Program, ...]:
        """The task's `init`, `train` and `eval`; it takes as long as the first step of a run."""
        if self.first is not None:
            return self.first.programs
        train = lifting.trace(self.task.train, self.init.result, self.batch)
        evaluate = lifting.trace(self.task.eval, self.init.result, self.watched)
        return self.init, train, evaluate

    @property
    def operations(self) -> tuple:
        """Those of `programs`, equal for those that can be lanes of one program."""
        return tuple(program.operations for program in self.programs)

    @property
    def kind(self) -> tuple:
        """What is equal for those whose `operations` are worth a comparison."""
        run, problem = self.run.config.run, self.problem
        rhythm = (run.log_every, run.eval_every, run.checkpoint_every, run.keep)
        choices = (run.plateau, run.plateau_factor, run.early_stop)
        fed = (problem.learner.steps, tuple(problem.examples.items()), problem.unit, problem.best)
        shapes = tuple(jax.tree.leaves((self.batch, self.watched)))
        return self.init.operations, shapes, fed, rhythm, choices

    def rank(self, measured: dict[str, float]) -> float:
        """How good an evaluation is; what is not finite is worst."""
        value = measured[self.problem.best.metric]
        if not math.isfinite(value):
            return -math.inf
        return -value if self.problem.best.least else value


class Totals:
    """Sums the metrics of lanes on the host; their quotients are the means.

    Args:
      of_lanes: {metric: (total, count)} of each to count on from.
    """

    def __init__(self, of_lanes: Sequence[dict[str, tuple[float, float]]]):
        self._count = len(of_lanes)
        self.sums: dict[str, np.ndarray] = {}
        for place, of_lane in enumerate(of_lanes):
            for name, pair in of_lane.items():
                self._sum(name)[:, place] = pair

    def _sum(self, name: str) -> np.ndarray:
        return self.sums.setdefault(name, np.zeros((2, self._count)))

    def add(self, metrics: Metrics) -> None:
        """Adds those of a batch, or a step, of every lane."""
        for name, mean in jax.device_get(metrics).items():
            self._sum(name)[:] += np.stack([mean.total, mean.count])[:, : self._count]

    def of_lane(self, place: int) -> dict[str, tuple[float, float]]:
        """{metric: (total, count)} of one lane."""
        found = {name: sums[:, place].tolist() for name, sums in self.sums.items()}
        return {name: (total, count) for name, (total, count) in found.items()}

    def means(self, place: int, prefix: str) -> dict[str, float]:
        """The means of one lane, each named `prefix/metric`, in the order of a single run's."""
        order = sorted(self.sums, key=lambda name: (name != "loss", name))
        divide = lambda total, count: float(total / count) if count else math.nan
        return {f"{prefix}/{name}": divide(*self.sums[name][:, place]) for name in order}


class Reports:
    """Takes in the metrics of finished steps, and reports those of each lane when due.

    Args:
      lanes: the lanes.
      totals: what to count on from.
      start: the step that they go on from.
      progress: what a person sees.
      drop: takes out a lane of which a metric is not finite: (lane, name, value, step).
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        totals: Totals,
        start: int,
        progress: Progress,
        drop: Callable[[Lane, str, float, int], None],
    ):
        self._lanes, self.totals, self._start = lanes, totals, start
        self._progress, self._drop = progress, drop
        problem = lanes[0].problem
        self._steps, self._unit = problem.learner.steps, problem.unit
        self._log_every = lanes[0].run.config.run.log_every
        state = lanes[0].programs[0].result
        self._step_flops = calls.step_flops(lanes[0].task.train, state, lanes[0].batch)
        self._began = self._clock = time.perf_counter()
        self._timed_steps, self._timed_examples = 0, np.zeros(len(lanes))
        self._in_flight: deque[tuple[range, Metrics]] = deque()

    def send(self, steps: range, metrics: Metrics) -> None:
        """Takes in steps that were sent to the devices in one call, once the next ones are."""
        self._in_flight.append((steps, metrics))
        if len(self._in_flight) > calls.IN_FLIGHT:
            self._receive(*self._in_flight.popleft())

    def catch_up(self) -> None:
        """Takes in all steps that were sent."""
        while self._in_flight:
            self._receive(*self._in_flight.popleft())

    def _receive(self, steps: range, metrics: Metrics) -> None:
        fetched = jax.device_get(metrics)
        for place, step in enumerate(steps):
            self._count(step, jax.tree.map(lambda of_all, at=place: of_all[:, at], fetched))

    def _count(self, step: int, fetched: Metrics) -> None:
        for name in loop.watched(fetched):
            for lane, value in zip(self._lanes, fetched[name].total.tolist(), strict=False):
                if lane.alive and not math.isfinite(value):
                    self._drop(lane, name, value, step)
        self.totals.add(fetched)
        counts = fetched[loop.losses_of(fetched)[0]].count
        self._timed_examples += counts[: len(self._lanes)]
        self._timed_steps += 1
        self._progress.step()
        if step % self._log_every == 0:
            self.report(step)

    def report(self, step: int) -> None:
        """Puts what came since the last report into the lanes' rows, if anything."""
        if not self.totals.sums:
            return
        now = time.perf_counter()
        for place, lane in enumerate(self._lanes):
            if lane.alive:
                values = self.totals.means(place, "train")
                lane.last.update(values)
                examples, seconds = float(self._timed_examples[place]), now - self._clock
                values |= loop.speed(
                    self._unit, examples, self._timed_steps, seconds, self._step_flops
                )
                lane.rows.append((step, values))
        seconds_left = (now - self._began) / (step - self._start) * (self._steps - step)
        self._say(step, "train", f"  {seconds_left:.0f} s left")
        self.totals.sums.clear()
        self._clock, self._timed_steps = now, 0
        self._timed_examples[:] = 0

    def evaluated(self, step: int) -> None:
        """Shows what an evaluation gave."""
        self._say(step, "eval", "")

    def _say(self, step: int, prefix: str, end: str) -> None:
        """A line of what all lanes have come to."""
        alive = [lane for lane in self._lanes if lane.alive]
        names = sorted({name for lane in alive for name in lane.last if name.startswith(prefix)})
        losses = loop.losses_of(names)
        chosen = [*losses, *(lane for lane in names if lane.endswith("accuracy"))]
        parts = [f"step {step}/{self._steps}  {prefix} of {len(alive)}:"]
        for name in chosen:
            values = [lane.last[name] for lane in alive]
            low, mean, high = min(values), sum(values) / len(values), max(values)
            parts.append(f"{name.split('/')[1]} {mean:.4g} ({low:.4g} to {high:.4g})")
        self._progress.say("  ".join(parts) + end)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What is done meanwhile does not count against the speed of training."""
        paused = time.perf_counter()
        yield
        self._clock += time.perf_counter() - paused


def to_host(state: State) -> State:
    """The states of all lanes as numpy arrays, the key as its words."""
    plain = state._replace(key=jax.random.key_data(state.key))
    return jax.tree.map(np.array, jax.device_get(plain))


def lane_of(host: State, place: int) -> State:
    """The state of one lane."""
    own = jax.tree.map(lambda array: np.asarray(array[place]), host)
    return own._replace(key=jax.random.wrap_key_data(own.key))


def set_lane(host: State, place: int, state: State) -> None:
    """Puts the state of one lane among those of all."""
    own = state._replace(key=jax.random.key_data(state.key))
    for array, value in zip(jax.tree.leaves(host), jax.tree.leaves(own), strict=True):
        array[place] = value
