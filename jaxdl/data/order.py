"""Which example stands in each row of a step: a pure function of (seed, step).

So nothing but the step has to be saved to resume, on any number of devices, processes or workers.
"""

import functools
from typing import NamedTuple, Protocol

import numpy as np


class Order(Protocol):
    """The examples of every step's rows."""

    @property
    def steps(self) -> int | None:
        """How many steps there are; None without end, as in training."""
        ...

    def __call__(self, step: int) -> np.ndarray:
        """The examples of a step's rows, [batch_size]; the number of examples is padding."""
        ...

    def generator(self, step: int, row: int) -> np.random.Generator | None:
        """The randomness of one row of one step, if it has any."""
        ...


class TrainOrder(NamedTuple):
    """Every epoch a permutation of its own; batches run on over the seam between two epochs."""

    size: int
    batch_size: int
    seed: int

    @property
    def steps(self) -> None:
        """No end."""

    def __call__(self, step: int) -> np.ndarray:
        """The examples of a step's rows, [batch_size]."""
        parts, missing = [], self.batch_size
        epoch, start = divmod(step * self.batch_size, self.size)
        while missing:
            part = _permutation(self.size, self.seed, epoch)[start : start + missing]
            parts.append(part)
            missing -= len(part)
            epoch, start = epoch + 1, 0
        return np.concatenate(parts)

    def generator(self, step: int, row: int) -> np.random.Generator:
        """The randomness of one row of one step."""
        return generator_for(self.seed, 1, step * self.batch_size + row)


class EvalOrder(NamedTuple):
    """Every example in order; rows past the last one hold `size`, which stands for padding."""

    size: int
    batch_size: int

    @property
    def steps(self) -> int:
        """How many batches hold all examples."""
        return -(-self.size // self.batch_size)

    def __call__(self, step: int) -> np.ndarray:
        """The examples of a step's rows, [batch_size]."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return np.minimum(positions, self.size)

    def generator(self, step: int, row: int) -> None:
        """No randomness: evaluation takes the centre crop."""


@functools.lru_cache(maxsize=4)  # two epochs meet in a batch, and two pipelines in a process
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return generator_for(seed, 0, epoch).permutation(size)


def generator_for(seed: int, purpose: int, index: int) -> np.random.Generator:
    """The randomness of an epoch, a row or whatever else `purpose` numbers."""
    # A spawn key is hashed apart from the seed: seed 1, epoch 2 has nothing in common with seed 2,
    # epoch 1, as `seed + epoch` would have it.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, index)))
