"""Measures what this project claims of its speed; ratios are of one process, interleaved.

python -m experiments.benchmark --what=loop     # the loop over the bare compiled step
python -m experiments.benchmark --what=start    # command to first step, cold and warm cache
python -m experiments.benchmark --what=lstm     # recurrent.Recurrent against torch.nn.LSTM
python -m experiments.benchmark --what=char_rnn # a step of its recipe, here and in torch
python -m experiments.benchmark --what=cbow     # word2vec's CBOW against gensim's
python -m experiments.benchmark --what=folder   # images read from a folder of 100,000 small JPEGs
"""

import contextlib
import dataclasses
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tqdm import tqdm

from experiments.harness import bench_sequences, classification, cli, training
from experiments.harness.cli import flag, require
from jaxdl import InputError, data, loop, parallel
from jaxdl.checkpoint import Checkpoints
from jaxdl.writers import Writer

CHOICES = ("loop", "start", "lstm", "char_rnn", "cbow", "folder")
CLASSES, BATCH = 100, 256
"""Of the folder that --what=folder makes."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Measures the speed of the default ResNet, of networks on sequences, or of reading images."""

    what: str = flag("loop", "what to measure", CHOICES)
    rounds: int = flag(10, "how often each side is measured")
    steps: int = flag(100, "training steps in a round; batches, of a folder")
    images: int = flag(100_000, "how many JPEGs to make for --what=folder")
    workers: int = flag(0, "worker processes that read the folder; 0 for threads")

    def __post_init__(self) -> None:
        require(self, "rounds", self.rounds >= 2, "at least 2")
        require(self, "steps", self.steps >= 2, "at least 2")
        require(self, "images", self.images >= BATCH, f"at least {BATCH}")
        require(self, "workers", self.workers >= 0, "at least 0")


def measure_loop(config: Config) -> None:
    """Times `fit`, with its data, metrics and files, and the step alone, in turn."""
    mesh = parallel.data_mesh()
    resnet = classification.experiment("resnet")
    problem = resnet.build(resnet.Config(), mesh)
    task = parallel.jit(problem.learner.task(None), mesh)
    hparams = {name: jnp.float32(value) for name, value in problem.learner.hparams.items()}
    state = task.init(jax.random.key(0), hparams)
    ready = next(problem.feed.train(0))
    ratios = []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        for number in range(config.rounds + 1):
            began = time.perf_counter()
            for _ in range(config.steps):
                state, _ = task.train(state, ready)
            jax.block_until_ready(state)
            bare = time.perf_counter() - began
            with Writer(folder, int(state.step)) as writer:
                began = time.perf_counter()
                state = loop.fit(
                    task,
                    state,
                    problem.feed.train,
                    steps=int(state.step) + config.steps,
                    log_every=50,
                    checkpoint_every=10**9,
                    writer=writer,
                ).state
                jax.block_until_ready(state)
                looped = time.perf_counter() - began
            if number:  # the first round compiles
                ratios.append(looped / bare)
                print(f"{1e3 * bare / config.steps:.2f} ms a step, {ratios[-1]:.3f} in the loop")
        checkpoints.save(state)
    low, median, high = np.percentile(ratios, [25, 50, 75])
    print(f"loop over step: median {median:.3f}, quartiles {low:.3f} to {high:.3f}")


def measure_start(config: Config) -> None:
    """Times a command of one training step, as a newcomer waits for it."""
    for _ in range(config.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for cache in ("cold", "warm"):
                command = [
                    *(sys.executable, "-m", "experiments.resnet", "--steps=1", "--log_every=1"),
                    f"--workdir={folder}/{cache}",
                ]
                env = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
                began = time.perf_counter()
                with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as run:
                    assert run.stdout is not None
                    for line in run.stdout:
                        if line.startswith("step 1/1"):
                            print(f"{cache}: {time.perf_counter() - began:.1f} s to the first step")
                            break
                    run.communicate()


def measure_folder(config: Config) -> None:
    """Times the listing of a folder, its first batch, and the batches after it."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        _make_images(Path(folder), config.images)
        rates = []
        for _ in range(config.rounds):
            began = time.perf_counter()
            dataset = data.load(f"folder:{folder}")
            listed = time.perf_counter()
            pipeline = data.Pipeline(
                dataset,
                data.Preprocess(64, 3, random_crop=True),
                BATCH,
                backend="grain",
                workers=config.workers,
            )
            with contextlib.closing(pipeline.train()) as batches:
                next(batches)
                first = time.perf_counter()
                for _ in range(config.steps):
                    next(batches)
                rates.append(config.steps * BATCH / (time.perf_counter() - first))
            print(
                f"{listed - began:.2f} s to list {config.images:,} images, then "
                f"{first - listed:.2f} s to the first batch, then {rates[-1]:,.0f} images/s"
            )
    low, median, high = np.percentile(rates, [25, 50, 75])
    readers = f"{config.workers} workers" if config.workers else "threads"
    print(
        f"{readers} on {cores} cores: median {median:,.0f} images/s, {median / cores:,.0f} a core, "
        f"quartiles {low:,.0f} to {high:,.0f}"
    )


def _make_images(folder: Path, count: int) -> None:
    """Writes JPEGs of 80x60 pixels in class folders; a hundred pictures in turn."""
    rng, files = np.random.default_rng(0), []
    for _ in range(100):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        file = io.BytesIO()
        coarse.resize((80, 60), Image.Resampling.BICUBIC).save(file, "JPEG")
        files.append(file.getvalue())
    for label in range(CLASSES):
        (folder / f"{label:03}").mkdir()
    names = tqdm(range(count), unit="image", dynamic_ncols=True, disable=not sys.stderr.isatty())
    for number in names:
        path = folder / f"{number % CLASSES:03}" / f"{number:06}.jpg"
        path.write_bytes(files[number // CLASSES % len(files)])


def run(argv: list[str]) -> None:
    """Runs the measurement that was asked for."""
    config, rest = cli.parse(Config, argv)
    if rest:
        raise InputError(f"{rest[0]!r} is no flag; see --help")
    training.prepare_jax()
    measure = {
        "loop": measure_loop,
        "start": measure_start,
        "lstm": bench_sequences.measure_lstm,
        "char_rnn": bench_sequences.measure_char_rnn,
        "cbow": bench_sequences.measure_cbow,
        "folder": measure_folder,
    }
    measure[config.what](config)


if __name__ == "__main__":
    cli.main(run)
