"""Trains runs as lanes of one program.

The program is the step of a single run, mapped over states, batches and the numbers in which the
runs' own programs differ (`jaxdl.lifting`). Each lane sees the batches of its own seed, has a
folder of its own, and stops alone.

Lanes are saved as any run is, at the end and every `SAVE_SECONDS` between. After a kill all lanes
of a group go on from the newest step that all of them have.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.harness import cli, run_folder, summaries, training
from experiments.harness.lanes import Best, Lane, Reports, Totals, lane_of, set_lane, to_host
from experiments.harness.problem import View
from experiments.harness.run_folder import INPUTS_FILE, SUMMARY_FILE
from jaxdl import calls, checkpoint, lifting, loop, parallel
from jaxdl.checkpoint import Checkpoints
from jaxdl.data.lanes import Lanes
from jaxdl.saved import DamagedCheckpoint
from jaxdl.task import State, Task
from jaxdl.writers import Progress, Writer

SAVE_SECONDS = 60.0
"""How long to train at least from one save of all lanes to the next."""
STEPS_A_CALL, CALL_BYTES = 8, 64 * 2**20
"""How many steps one call makes, if the batches of all its lanes are of no more bytes than that."""
CACHE_BYTES, LEAST_AT_ONCE = 2**20, 2
"""Of states that make their steps at once on a CPU: what a core has close at hand.

But two at least, for of one XLA makes other products, which take twice as long.
"""
MEMORY_SHARE = 0.8
"""How much of the free memory a program may take."""


class Program:
    """The step of a single run over lanes, and over the numbers in which these differ."""

    def __init__(self, lanes: Sequence[Lane], mesh: Mesh):
        self.lanes, self.mesh = list(lanes), mesh
        parts = zip(*(lane.programs for lane in lanes), strict=True)
        self._families = init, train, evaluate = [lifting.Family(part) for part in parts]
        state, batch = lanes[0].programs[0].result, lanes[0].batch
        self._at_once = len(lanes)
        if jax.default_backend() == "cpu":
            self._at_once = max(LEAST_AT_ONCE, CACHE_BYTES // _bytes(state))
        self.together = max(1, min(STEPS_A_CALL, CALL_BYTES // (len(lanes) * _bytes(batch))))
        self.task: Any = parallel.lanes(  # of which batches and hyperparameters bring the numbers
            Task(
                init=lambda key, given: init(given[0], key, given[1]),
                train=lambda state, given: train(given[0], state, given[1]),
                eval=lambda state, given: evaluate(given[0], state, given[1]),
                gradient=lambda state, given: (),  # of which histograms would be drawn
            ),
            mesh,
            self._at_once,
        )
        self.spread = parallel.batch_sharding(mesh)
        self._feeds = Lanes([lane.problem.feed for lane in lanes], self.spread)
        self._compiled: dict[int, Any] = {}

    def of(self, group: Sequence[Lane]) -> tuple[Lanes, list[list[jax.Array]]]:
        """What feeds some lanes, and the numbers of `init`, `train` and `eval` that differ.

        Those of `train` are there for each step of a call.
        """
        which = [self.lanes.index(lane) for lane in group]
        init, train, evaluate = [[n[which] for n in of.numbers] for of in self._families]
        train = [np.repeat(n[:, None], self.together, 1) for n in train]
        return self._feeds.of(which), jax.device_put([init, train, evaluate], self.spread)

    def lanes_at_once(self, count: int) -> int:
        """How many lanes fit into the memory, of so many."""
        size = count
        while True:
            groups = -(-count // size)
            size = self.round(-(-count // groups))  # of one size, for which it is compiled once
            if size <= self.mesh.size or self._needs(size) <= MEMORY_SHARE * _free_memory():
                return size
            size = size // 2

    def round(self, count: int) -> int:
        """The least number of lanes from that on that goes round the devices, and their turns."""
        of_device = -(-count // self.mesh.size)
        turns = -(-of_device // self._at_once)
        return -(-of_device // turns) * turns * self.mesh.size

    def step(self, size: int) -> Any:
        """`train` of so many lanes, compiled."""
        if size not in self._compiled:
            many = lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype, sharding=self.spread)
            state, batch = self.lanes[0].programs[0].result, self.lanes[0].batch
            numbers = [
                jax.ShapeDtypeStruct(n.shape[1:], n.dtype) for n in self._families[1].numbers
            ]
            several = lambda x: jax.ShapeDtypeStruct((self.together, *x.shape), x.dtype)
            given = jax.tree.map(many, jax.tree.map(several, (numbers, batch)))
            shapes = jax.tree.map(many, state), given, np.int32(self.together)
            self._compiled[size] = self.task.train.lower(*shapes).compile()
        return self._compiled[size]

    def _needs(self, size: int) -> float:
        """The bytes that the step of so many lanes takes on a device."""
        needs = self.step(size).memory_analysis()
        if needs is None:  # this backend does not tell
            return 0
        return needs.argument_size_in_bytes + needs.temp_size_in_bytes


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _free_memory() -> float:
    """The bytes that are free on a device."""
    told = jax.local_devices()[0].memory_stats()
    if told and "bytes_limit" in told:
        return told["bytes_limit"] - told.get("bytes_in_use", 0)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Group:
    """Lanes that are trained together.

    Args:
      program: what trains them.
      lanes: the lanes; those whose runs are done only fill their places.
      size: how many lanes the program is of; the first fills the places that are left.
      diverged: told of a run that diverged, and how.
    """

    def __init__(
        self,
        program: Program,
        lanes: Sequence[Lane],
        size: int,
        diverged: Callable[[Any, str], None],
    ):
        self._program, self._lanes, self._diverged = program, list(lanes), diverged
        self._problem, self._run = lanes[0].problem, lanes[0].run.config.run
        self._steps = self._problem.learner.steps
        padded = [*lanes, *[lanes[0]] * (size - len(lanes))]
        self._spread, self._step = program.spread, program.step(size)
        self._feed, numbers = program.of(padded)
        _, self._train_numbers, self._eval_numbers = numbers
        keys = [jax.random.key_data(jax.random.key(x.run.config.run.seed)) for x in padded]
        self._keys = jax.random.wrap_key_data(self._put(np.stack(keys)))
        hparams = jax.tree.map(lambda *of: np.stack(of), *(lane.hparams for lane in padded))
        self._state = program.task.init(self._keys, (numbers[0], self._put(hparams)))
        self._best: State | None = None
        watching = jax.vmap(training.watching(lanes[0].run.config))
        self._watch = jax.jit(watching, out_shardings=self._spread)
        self._began = time.perf_counter()

    def train(self) -> None:
        """Trains all lanes to their ends.

        Raises:
          Interrupted: a signal stopped them; all are saved.
        """
        with contextlib.ExitStack() as stack:
            start = self._open(stack)
            stopped = self._loop(start)
        if stopped:
            step = int(self._state.step[0])
            print(f"stopped after step {step}, and {len(self._alive)} runs saved")
            raise cli.Interrupted(stopped)

    @property
    def _alive(self) -> list[tuple[int, Lane]]:
        return [(place, lane) for place, lane in enumerate(self._lanes) if lane.alive]

    def _put(self, tree: Any) -> Any:
        return jax.device_put(tree, self._spread)

    def _to_devices(self, host: State) -> State:
        state = self._put(host)
        return state._replace(key=jax.random.wrap_key_data(state.key))

    def _open(self, stack: contextlib.ExitStack) -> int:
        """Opens the folders of all lanes, and brings them to the step to go on from."""
        for lane in self._lanes:
            lane.alive = not lane.run.done
        for _, lane in self._alive:
            config, best = lane.run.config, lane.problem.best
            folder = stack.enter_context(run_folder.opened(config))
            run_folder.check_inputs(config.run.workdir, lane.problem.inputs)
            # One more than alone: the best comes between the last and the one before it.
            keep = max(config.run.keep, 2) + 1
            lane.checkpoints = stack.enter_context(
                Checkpoints(folder, keep, best.metric, best.least, background=False)
            )
            run_folder.write_flags(config, folder)
            run_folder.write(folder / INPUTS_FILE, json.dumps(lane.problem.inputs, indent=2))
        start = self._go_back()
        self._restore(start)
        for _, lane in self._alive:
            writer = Writer(lane.run.workdir, start, draws=False)
            lane.writer = stack.enter_context(writer)
        return start

    def _go_back(self) -> int:
        """Takes all lanes back to the newest sound step that they share; 0 for the beginning."""
        saved = [set(checkpoint.steps(lane.run.workdir)) for _, lane in self._alive]
        # A run that is at its end is measured, so it makes its last steps anew.
        shared = {step for step in set.intersection(*saved) if step < self._steps}
        for step in sorted(shared, reverse=True):
            with contextlib.suppress(DamagedCheckpoint):
                for _, lane in self._alive:
                    lane.checkpoints.go_back(step)
                return step
        for _, lane in self._alive:
            lane.checkpoints.go_back(0)
        return 0

    def _restore(self, start: int) -> None:
        """Takes over what the lanes have saved at a step."""
        self._saved_totals: list[dict[str, tuple[float, float]]] = [{} for _ in self._lanes]
        if not start:
            return
        host, best = to_host(self._state), to_host(self._state)
        for place, lane in self._alive:
            template = jax.device_put(lane_of(host, place))
            set_lane(host, place, lane.checkpoints.restore(template))
            self._saved_totals[place] = dict(lane.checkpoints.totals)
            step = lane.checkpoints.best
            if step is not None:
                measured = lane.checkpoints.measured(step)
                lane.best = Best(lane.rank(measured), step, measured, saved=True)
                set_lane(best, place, lane.checkpoints.restore_best(template))
        self._state, self._best = self._to_devices(host), self._to_devices(best)

    def _loop(self, start: int) -> int:
        """Trains from a step to the end; the signal that stopped it, or 0."""
        run, saved = self._run, time.perf_counter()
        blocks = self._blocks(start)
        stream = self._feed.train(start, map(len, blocks), self._program.together)
        with (
            loop.stop_signal() as stop_asked,
            contextlib.closing(stream),
            Progress(self._steps, start) as progress,
        ):
            self._totals = Totals(self._saved_totals)
            reports = Reports(self._lanes, self._totals, start, progress, self._drop)
            for block, batches in zip(blocks, stream, strict=True):
                given = self._train_numbers, batches
                self._state, metrics = self._step(self._state, given, np.int32(len(block)))
                reports.send(block, metrics)
                step = block[-1]
                stop, last = stop_asked(step), step == self._steps
                due_eval = step % run.eval_every == 0 or last
                due_save = step % run.checkpoint_every == 0
                if self._alive and not (stop or due_eval or due_save):
                    continue
                reports.catch_up()
                if due_eval:
                    reports.report(step)
                measured: list[dict[str, float]] = []
                with reports.pause():
                    if due_eval and self._alive:
                        measured = self._evaluated(step)
                        reports.evaluated(step)
                        self._end(step, measured, last)
                    if self._alive and (stop or time.perf_counter() - saved >= SAVE_SECONDS):
                        self._save(measured)
                        saved = time.perf_counter()
                if stop or not self._alive:
                    return stop if self._alive else 0
        return 0

    def _blocks(self, start: int) -> list[range]:
        """The steps of each call, none of which goes beyond one after which something is due."""
        rhythms, blocks = (self._run.eval_every, self._run.checkpoint_every), []
        while start < self._steps:
            due = calls.next_due(start, self._steps, rhythms)
            end = min(start + self._program.together, due)
            blocks.append(range(start + 1, end + 1))
            start = end
        return blocks

    def _drop(self, lane: Lane, name: str, value: float, step: int) -> None:
        """Takes out a lane that diverged."""
        lane.alive = False
        self._flush(lane)
        how = loop.how_diverged(name, value, step, lane.checkpoints.latest)
        self._diverged(lane.run, how)

    def _measure(self, state: State, split: str, prefix: str) -> list[dict[str, float]]:
        """All metrics of a split for every lane."""
        totals = Totals([{}] * len(self._lanes))
        for batch in self._feed.evaluate(split):
            totals.add(self._program.task.eval(state, (self._eval_numbers, batch)))
        found = [totals.means(place, prefix) for place in range(len(self._lanes))]
        if any(type(lane.problem.view).measure is not View.measure for lane in self._lanes):
            host = to_host(state)
            for place, lane in self._alive:
                others = lane.problem.view.measure(lane_of(host, place), split)
                found[place] |= {f"{prefix}/{name}": value for name, value in others.items()}
        return found

    def _evaluated(self, step: int) -> list[dict[str, float]]:
        """Evaluates all lanes, and keeps the best state of each."""
        measured = self._measure(self._state, self._problem.eval_split, "eval")
        size = self._keys.shape[0]
        values, better = np.zeros(size, np.float32), np.zeros(size, bool)
        for place, lane in self._alive:
            lane.last |= measured[place]
            lane.rows.append((step, measured[place]))
            rank = lane.rank(measured[place])
            values[place] = rank if math.isfinite(rank) else math.nan
            if lane.best is None or rank >= lane.best.rank:
                better[place] = True
                lane.best = Best(rank, step, measured[place], saved=False)
        hparams, monitor = self._watch(self._state, self._put(values))
        self._state = self._state._replace(hparams=hparams, monitor=monitor)
        self._best = _chosen(better, self._state, self._best or self._state)
        return measured

    def _end(self, step: int, measured: Sequence[dict[str, float]], last: bool) -> None:
        """Ends the lanes that are done."""
        patience = self._run.early_stop
        since = np.asarray(self._state.monitor.since_best)
        stops = lambda place: patience is not None and since[place] >= patience
        ended = [(place, lane) for place, lane in self._alive if last or stops(place)]
        if not ended:
            return
        self._save(measured, ended)
        state = self._state if patience is None else self._best
        assert state is not None
        tested = None
        if "test" in self._problem.splits and self._problem.eval_split != "test":
            tested = self._measure(state, "test", "test")
        host = to_host(state)
        for place, lane in ended:
            self._sum_up(lane, lane_of(host, place), tested[place] if tested else {})
            lane.alive = False

    def _save(
        self,
        measured: Sequence[dict[str, float]],
        lanes: Sequence[tuple[int, Lane]] | None = None,
    ) -> None:
        """Saves lanes, by default all, with what was just measured, and the best of each."""
        lanes = self._alive if lanes is None else lanes
        host, best = to_host(self._state), None
        for place, lane in lanes:
            self._flush(lane)
            if lane.best and not lane.best.saved and lane.best.step < host.step[place]:
                assert self._best is not None
                best = best or to_host(self._best)
                lane.checkpoints.save(lane_of(best, place), lane.best.measured)
            sums = self._totals.of_lane(place)
            lane.checkpoints.save(lane_of(host, place), measured[place] if measured else None, sums)
            if lane.best:
                lane.best = lane.best._replace(saved=True)

    def _flush(self, lane: Lane) -> None:
        """Writes the rows of a lane that are not written yet."""
        lane.writer.series(lane.rows)
        lane.rows = []

    def _sum_up(self, lane: Lane, state: State, tested: dict[str, float]) -> None:
        """Writes what a lane came to."""
        problem, config, best = lane.problem, lane.run.config, lane.best
        assert best is not None
        metrics = dict(lane.last)
        if config.run.early_stop is not None:  # it is its best state that it came to
            lane.checkpoints.came_to(best.step)
            metrics |= best.measured
        if problem.eval_split == "test":
            own = [name for name in metrics if name.startswith("eval/")]
            tested = {name.replace("eval/", "test/"): metrics[name] for name in own}
        metrics |= tested
        with lane.writer.sparing("the end of the run not shown"):
            problem.view.report(state, metrics, lane.writer)
            problem.view.finish(state)
        lane.writer.hparams(cli.changed(config), metrics)
        # A lane's share of the time, for they are trained at once.
        seconds = (time.perf_counter() - self._began) / len(self._lanes)
        summary = summaries.summary(problem, state, metrics, seconds)
        summary |= {"best_metric": problem.best.metric, "best_step": best.step}
        summary |= {"best_split": problem.eval_split, "lanes": len(self._lanes)}
        run_folder.write(lane.run.workdir / SUMMARY_FILE, json.dumps(summary, indent=2))


@jax.jit
def _chosen(better: Any, new: State, old: State) -> State:
    """Of each lane the new state where that is better [lanes], else the old one."""

    def choose(new, old):
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    chosen = jax.tree.map(choose, new._replace(key=()), old._replace(key=()))
    return chosen._replace(key=new.key)
