"""Weights that a recorder and a test both compute, so that goldens store no weights.

Needs numpy only: recorders import it in the reference environment, tests in their own.
"""

import math
import zlib

import numpy as np


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the float32 array that stands for the torch parameter or buffer of that name.

    A function of the name and the shape alone. No array is constant, so that a layer left out or
    swapped shows, and the scales keep the activations of a deep network within a few decades.
    """
    # RandomState and not default_rng: numpy has frozen its streams, so that they outlive versions.
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        values = np.exp(0.5 * noise)
    elif name.endswith("weight") and len(shape) == 1:
        values = 1 + 0.1 * noise
    elif name.endswith("weight"):
        values = noise * math.sqrt(1 / math.prod(shape[1:]))
    else:
        values = 0.1 * noise
    return values.astype(np.float32)


def images(size: int) -> np.ndarray:
    """Return the two images that the goldens are computed on, float32 [2, size, size, 3]."""
    noise = np.random.RandomState(size).standard_normal((2, size, size, 3))
    return noise.astype(np.float32)
