"""What a run costs beside its steps, how soon it begins, and what many runs cost."""

import contextlib
import functools
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.harness import bench, catalogue, classification, cli, devices, training
from experiments.harness.bench import Side
from jaxdl import loop, parallel
from jaxdl.writers import Writer

EXPERIMENTS = {"mlp": "mlp", "lenet5": "lenet"}
"""Those that train a model on digits; resnet trains the others."""
LOG_EVERY = 50


def measure_loop(config: Any) -> dict[str, Any]:
    """Times `fit`, with its data, metrics and files, and the step alone, by turns, on digits."""
    mesh = parallel.data_mesh()
    experiment = catalogue.load(EXPERIMENTS.get(config.model, "resnet"))
    flags = [f"--model={config.model}", f"--batch_size={config.batch_size}", "--augment="]
    run, _ = cli.parse(experiment.Config, flags)
    problem = experiment.build(run, mesh)
    task, hparams = training.task_of(run, problem)
    task = parallel.jit(task, mesh)
    box, ready = [task.init(jax.random.key(0), hparams)], next(problem.feed.train(0))

    def bare(steps: int) -> None:
        for _ in range(steps):
            box[0], _ = task.train(box[0], ready)
        jax.block_until_ready(box[0])

    def looped(steps: int, writer: Writer) -> None:
        steps += int(box[0].step)
        with contextlib.redirect_stdout(io.StringIO()):  # a line for each report
            box[0] = loop.fit(
                task,
                box[0],
                problem.feed.train,
                steps=steps,
                log_every=LOG_EVERY,
                writer=writer,
            ).state
        jax.block_until_ready(box[0])

    with tempfile.TemporaryDirectory() as folder, Writer(folder) as writer:
        sides = [Side("loop", functools.partial(looped, writer=writer)), Side("step", bare)]
        for side in sides:
            side.run(LOG_EVERY)
        print(bench.machine())
        steps = config.steps or bench.steps_of(sides[1], seconds=3.0)
        speeds = bench.by_turns(sides, config.rounds, steps, "steps/s", 1)
    milliseconds = bench.quartiles([1e3 / speed for speed in speeds["step"]])
    ratio = bench.quartiles(np.divide(speeds["step"], speeds["loop"]).tolist())
    print(f"a step takes {milliseconds} ms, in the loop {ratio} times as long")
    return {"speeds": speeds, "ratio": ratio}


def measure_start(config: Any) -> dict[str, Any]:
    """Times the README's command to its first step, as a newcomer waits for it."""
    seconds: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": []}
    for _ in range(config.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for cache, found in seconds.items():
                found.append(_first_step(Path(folder), cache))
                wall, cpu = found[-1]
                print(f"{cache}: {wall:.1f} s to the first step, {cpu:.1f} s of CPU", flush=True)
    for cache, found in seconds.items():
        waited, used = (bench.quartiles(values) for values in zip(*found, strict=True))
        print(f"{cache} compile cache: {waited} s, {used} s of CPU")
    return {"seconds": seconds}


def _first_step(folder: Path, name: str) -> tuple[float, float]:
    """Seconds of wall and CPU until a process has said what its first step gave."""
    command = [sys.executable, "-m", "experiments.resnet", "--flagfile=resnet_digits"]
    command += ["--log_every=1", f"--workdir={folder / name}"]
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    began = time.perf_counter()
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        while not run.stdout.readline().startswith("step 1/"):
            assert run.poll() is None, f"{command} ended before its first step"
        wall = time.perf_counter() - began
        run.kill()
        _, status, used = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
    return wall, used.ru_utime + used.ru_stime


SWEEPS = {"mlp": (1, 5e-4, 5e-3), "lenet": (4, 0.01, 0.1)}
"""{experiment: (what share of --runs it has, its least and its greatest learning rate)}"""
SEEDS = 2


def measure_sweep(config: Any) -> dict[str, Any]:
    """Times `compare` over learning rates and seeds, as one program, in turn, and torch in turn.

    Each side is what a person waits for: compiling, evaluating and writing included.
    """
    devices.take_cores(config.runs)
    torch = bench.import_torch()
    print(bench.machine(torch))
    with tempfile.TemporaryDirectory() as folder:  # what was just removed makes new files slow
        return _measure_sweeps(config, torch, Path(folder))


def _measure_sweeps(config: Any, torch: Any, folder: Path) -> dict[str, Any]:
    found = {}
    for name, (share, least, greatest) in SWEEPS.items():
        count = config.runs // share
        rates = np.geomspace(least, greatest, count // SEEDS)
        sides: dict[str, Callable[[], None]] = {
            "one program": functools.partial(_compare, folder, name, rates, config.steps, "auto"),
            "in turn": functools.partial(_compare, folder, name, rates, config.steps, "never"),
        }
        if torch is not None:
            sides["torch"] = functools.partial(_torch_in_turn, name, rates, config.steps)
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(config.rounds):
            for side, run in sides.items():
                began = time.perf_counter()
                run()
                seconds[side].append(time.perf_counter() - began)
        told = ", ".join(f"{side} {bench.quartiles(s)}" for side, s in seconds.items())
        print(f"{count} runs of {name}, {config.steps} steps each: {told} s", flush=True)
        speeds = {side: (1 / np.array(s)).tolist() for side, s in seconds.items()}
        found[name] = {"seconds": seconds, "ratios": bench.ratios(speeds, ["one program"])}
    return found


def _compare(folder: Path, name: str, rates: np.ndarray, steps: int, vectorize: str) -> None:
    """Runs `experiments.compare` in a new folder within one, and shows nothing of it."""
    compare = catalogue.load("compare")
    workdir = tempfile.mkdtemp(dir=folder)
    with contextlib.redirect_stdout(io.StringIO()):
        compare.run(
            [
                *(f"--experiment={name}", "--flag=learning_rate", f"--seeds={SEEDS}"),
                f"--values={','.join(f'{rate:.6f}' for rate in rates)}",
                *(f"--vectorize={vectorize}", f"--workdir={workdir}/compared"),
                *(f"--steps={steps}", f"--eval_every={steps}", "--augment=", "--nohistograms"),
                "--warmup_epochs=0",
            ]
        )


def _torch_in_turn(name: str, rates: np.ndarray, steps: int) -> None:
    """Trains the same networks in torch, one after another, and tests each on the test split."""
    from experiments.harness import bench_torch

    experiment = catalogue.load(name)
    run = experiment.Config()
    pipeline = classification.make_pipeline(run, parallel.data_mesh(jax.devices()[:1]))
    splits = {}
    for split in ("train", "test"):
        count = pipeline.examples(split)
        labels = np.array([pipeline.dataset.splits[split][i]["label"] for i in range(count)])
        splits[split] = pipeline.images(split, range(count)) / np.float32(127.5) - 1, labels
    for rate in rates:
        for seed in range(SEEDS):
            bench_torch.train(name, splits, run.run.batch_size, steps, float(rate), seed)
