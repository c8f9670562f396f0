"""Which example stands in each row of a step: a pure function of (seed, step).

So nothing but the step has to be saved to resume, on any number of devices, processes or workers.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

Generators = Callable[[int], np.random.Generator]
"""(row) -> its randomness, in one object for all: it is that row's until the next is asked for."""


class Order(Protocol):
    """The examples of every step's rows."""

    @property
    def steps(self) -> int | None:
        """How many steps there are; None without end, as in training."""
        ...

    def __call__(self, step: int) -> np.ndarray:
        """The examples of a step's rows, [batch_size]; the number of examples is padding."""
        ...

    def generators(self, step: int) -> Generators | None:
        """The randomness of the rows of a step, if they have any."""
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

    def generators(self, step: int) -> Generators:
        """The randomness of the rows of a step."""
        # A generator made anew takes twenty microseconds or more, a tenth of a small JPEG's.
        counted = np.random.Philox(_entropy(self.seed, 1, step))
        generator, start = np.random.Generator(counted), counted.state

        def of_row(row: int) -> np.random.Generator:
            start["state"]["counter"][-1] = row  # so that each has 2^192 blocks of its own
            counted.state = start
            return generator

        return of_row


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

    def generators(self, step: int) -> None:
        """No randomness: evaluation takes the centre crop."""


@functools.lru_cache(maxsize=4)  # two epochs meet in a batch, and two pipelines in a process
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return generator_for(seed, 0, epoch).permutation(size)


def generator_for(seed: int, purpose: int, index: int) -> np.random.Generator:
    """The randomness of an epoch, a row or whatever else `purpose` numbers."""
    return np.random.default_rng(_entropy(seed, purpose, index))


def _entropy(seed: int, purpose: int, index: int) -> np.random.SeedSequence:
    # A spawn key is hashed apart from the seed: seed 1, epoch 2 has nothing in common with seed 2,
    # epoch 1, as `seed + epoch` would have it.
    return np.random.SeedSequence(seed, spawn_key=(purpose, index))
