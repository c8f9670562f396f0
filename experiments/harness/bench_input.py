"""Images a second from a folder of JPEGs, here and by torch's DataLoader, with random crops."""

import functools
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from experiments.harness import bench
from jaxdl import data

CLASSES, PICTURES = 100, 100
AHEAD = 8
"""Batches read before the clock starts: as much is ready when it ends as was when it began."""


def measure(config: Any) -> dict[str, Any]:
    """Times the listing of a folder, its first batch, and the batches after it, by turns.

    Every side decodes, takes an Inception crop, resizes it and stacks bytes.
    """
    torch, cores = bench.import_torch(), len(os.sched_getaffinity(0))
    print(bench.machine(torch))
    with tempfile.TemporaryDirectory() as folder:
        _make_images(Path(folder), config.images, config.jpeg_width)
        began = time.perf_counter()
        dataset = data.load(f"folder:{folder}")
        print(f"{time.perf_counter() - began:.2f} s to list {config.images:,} images")
        readers: dict[str, Callable[[], Iterator[Any]]] = {
            name: functools.partial(_here, dataset, config, workers)
            for name, workers in {"threads": 0, f"{cores} workers": cores}.items()
        }
        if torch is not None:
            from experiments.harness import bench_torch

            files = bench_torch.Files(folder, config.image_size)
            readers[f"torch, {cores} workers"] = functools.partial(
                bench_torch.batches, files, config.batch_size, cores
            )
        speeds: dict[str, list[float]] = {name: [] for name in readers}
        for turn in range(config.rounds):
            for name, read in readers.items():
                speeds[name].append(_speed(read, config))
            said = ", ".join(f"{name} {bench.number(s[-1])}" for name, s in speeds.items())
            print(f"round {turn + 1}: {said} images/s", flush=True)
    for name, speed in speeds.items():
        each = bench.quartiles([one / cores for one in speed])
        print(f"{name} on {cores} cores: {each} images/s a core")
    found = bench.ratios(speeds, [name for name in speeds if not name.startswith("torch")])
    return {"speeds": speeds, "ratios": found}


def _speed(read: Callable[[], Iterator[Any]], config: Any) -> float:
    """Images a second once reading goes on."""
    batches: Any = read()
    for _ in range(AHEAD):
        next(batches)
    began = time.perf_counter()
    for _ in range(config.steps):
        next(batches)
    seconds = time.perf_counter() - began
    batches.close()
    return config.steps * config.batch_size / seconds


def _here(dataset: data.Dataset, config: Any, workers: int) -> Iterator[Any]:
    preprocess = data.Preprocess(config.image_size, 3, random_crop=True)
    return data.Pipeline(
        dataset, preprocess, config.batch_size, backend="grain", workers=workers
    ).train()


def _make_images(folder: Path, count: int, width: int) -> None:
    """Writes JPEGs, three quarters as high as wide, in class folders; some pictures in turn."""
    rng, files, height = np.random.default_rng(0), [], width * 3 // 4
    for _ in range(min(PICTURES, count)):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        smooth = coarse.resize((width, height), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth) + rng.normal(0, 8, (height, width, 3))  # as photographs have it
        file = io.BytesIO()
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    for label in range(CLASSES):
        (folder / f"{label:03}").mkdir()
    names = tqdm(range(count), unit="image", dynamic_ncols=True, disable=not sys.stderr.isatty())
    for place in names:
        path = folder / f"{place % CLASSES:03}" / f"{place:06}.jpg"
        path.write_bytes(files[place // CLASSES % len(files)])
