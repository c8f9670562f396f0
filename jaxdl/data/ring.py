"""Eight Gaussians on a circle: data of two numbers, on which mode collapse can be seen and counted.

Metz et al. 2016, arXiv:1611.02163. The batch of step n is a pure function of (seed, n).
"""

import itertools
from collections.abc import Generator
from typing import TYPE_CHECKING

import numpy as np

from jaxdl import InputError
from jaxdl.data.pipeline import Batch, generator_for, local_rows, make_global

if TYPE_CHECKING:
    import jax


class Ring:
    """Batches of points from equal Gaussians around a circle, for training and for evaluation.

    A batch holds `image` float32 [B, 2], the points; `label` int32 [B], the Gaussian that each was
    drawn from; and `mask` float32 [B], 0 for padding, of which all else is zero too.

    Points lie between -1 and 1, as images do here, and the default standard deviation is a fiftieth
    of the radius; the paper has twice as narrow Gaussians on a larger circle.

    Attributes:
        centres: of the Gaussians, float32 [modes, 2].
        std: their standard deviation along each axis.
        batch_size: rows of a global batch, B.
        image_shape: (2,), of a point.
    """

    def __init__(
        self,
        batch_size: int,
        *,
        modes: int = 8,
        radius: float = 0.7,
        std: float = 0.014,
        seed: int = 0,
        held_out: int = 2048,
        sharding: "jax.sharding.NamedSharding | jax.sharding.SingleDeviceSharding | None" = None,
    ):
        """Draw the points that evaluation shows.

        Args:
            batch_size: rows of a global batch.
            modes: how many Gaussians.
            radius: of the circle on which their centres are.
            std: standard deviation of each along each axis.
            seed: of all draws, at least 0.
            held_out: points in an evaluation of 'train', and in one of 'test'.
            sharding: how the batch axis lies on the devices; batches are then global `jax.Array`s
                of which each process makes its own rows. Without it they are NumPy arrays.

        Raises:
            InputError: an argument out of range, or points that would lie beyond -1 or 1.
        """
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("modes", modes, 2),
            ("data seed", seed, 0),
            ("held_out", held_out, 1),
        ):
            if value < least:
                raise InputError(f"{name} {value}: expected at least {least}")
        # So far off its centre lies one point in 65 million.
        if not (radius > 0 and std > 0 and radius + 6 * std <= 1):
            raise InputError(
                f"radius {radius} and std {std}: expected both more than 0, and "
                "radius + 6 std at most 1"
            )
        angles = 2 * np.pi * np.arange(modes) / modes
        self.centres = (radius * np.stack([np.cos(angles), np.sin(angles)], 1)).astype(np.float32)
        self.std = std
        self.batch_size = batch_size
        self.image_shape = (2,)
        self._seed = seed
        self._sharding = sharding
        self._rows = local_rows(batch_size, sharding)
        self._splits = {
            split: self._draw(held_out, generator_for(seed, 1, number))
            for number, split in enumerate(("train", "test"))
        }

    def train(self, start: int = 0) -> Generator[Batch, None, None]:
        """Yield the batches of steps `start`, `start + 1`, ... without end, all of new points.

        Raises:
            InputError: `start` is negative.
        """
        if start < 0:
            raise InputError(f"start step {start}: expected at least 0")
        for step in itertools.count(start):
            yield self._batch(self._draw(self.batch_size, generator_for(self._seed, 0, step)))

    def evaluate(self, split: str) -> Generator[Batch, None, None]:
        """Yield every point of `split` once, in order; the last batch is padded with mask 0.

        Raises:
            InputError: there is no such split.
        """
        size = self.batch_size
        for first in range(0, self.examples(split), size):
            batch = {name: value[first : first + size] for name, value in self._of(split).items()}
            missing = size - len(batch["mask"])
            yield self._batch(
                {
                    name: np.pad(value, [(0, missing)] + [(0, 0)] * (value.ndim - 1))
                    for name, value in batch.items()
                }
            )

    def examples(self, split: str) -> int:
        """Return the number of points of a split.

        Raises:
            InputError: there is no such split.
        """
        return len(self.points(split))

    def points(self, split: str) -> np.ndarray:
        """Return the points of a split, float32 [N, 2].

        Raises:
            InputError: there is no such split.
        """
        return self._of(split)["image"]

    def mode_of(self, points: np.ndarray) -> np.ndarray:
        """Return which Gaussian each point belongs to: the nearest, if within 3 std of its centre.

        Of points drawn from the Gaussians, 98.9 % are. The bound is that of Srivastava et al. 2017,
        arXiv:1705.07761.

        Args:
            points: [N, 2].

        Returns:
            Numbers of Gaussians, int64 [N]; -1 for none.
        """
        distances = np.linalg.norm(np.asarray(points)[:, None] - self.centres, axis=2)
        return np.where(distances.min(1) <= 3 * self.std, distances.argmin(1), -1)

    def _of(self, split: str) -> dict[str, np.ndarray]:
        if split not in self._splits:
            raise InputError(f"split {split!r} of the ring: expected {' or '.join(self._splits)}")
        return self._splits[split]

    def _draw(self, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        modes = rng.integers(len(self.centres), size=count)
        points = self.centres[modes] + self.std * rng.standard_normal((count, 2))
        return {
            "image": points.astype(np.float32),
            "label": modes.astype(np.int32),
            "mask": np.ones(count, np.float32),
        }

    def _batch(self, batch: dict[str, np.ndarray]) -> Batch:
        """This process's rows of a batch; every process draws all of it, to draw the same."""
        rows = {name: value[self._rows] for name, value in batch.items()}
        if self._sharding is None:
            return dict(rows)
        return {
            name: make_global(value, self._rows, self.batch_size, self._sharding)
            for name, value in rows.items()
        }
