"""Eight Gaussians on a circle: data of two numbers, on which mode collapse can be seen and counted.

Metz et al. 2016, arXiv:1611.02163. The batch of step n is a pure function of (seed, n).
"""

import dataclasses

import numpy as np

from jaxdl import InputError
from jaxdl.data.order import EvalOrder, generator_for
from jaxdl.data.pipeline import Sharding, StreamPipeline
from jaxdl.data.rows import Indexed, Table


@dataclasses.dataclass(frozen=True)
class _Gaussians:
    """What points are drawn from."""

    centres: np.ndarray
    std: float

    def draw(self, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        modes = rng.integers(len(self.centres), size=count)
        points = self.centres[modes] + self.std * rng.standard_normal((count, 2))
        return {"image": points.astype(np.float32), "label": modes.astype(np.int32)}


@dataclasses.dataclass(frozen=True)
class _Draws:
    """The stream of training: new points every step."""

    gaussians: _Gaussians
    batch_size: int
    seed: int

    @property
    def steps(self) -> None:
        """No end."""

    def __call__(self, step: int, places: np.ndarray) -> dict[str, np.ndarray]:
        # Every process draws all of a batch, to draw the same.
        drawn = self.gaussians.draw(self.batch_size, generator_for(self.seed, 0, step))
        drawn["mask"] = np.ones(self.batch_size, np.float32)
        return {name: value[places] for name, value in drawn.items()}


class Ring(StreamPipeline):
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
        sharding: "Sharding | None" = None,
    ):
        """Draws the points that evaluation shows.

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
        self.image_shape = (2,)
        self._seed = seed
        self._gaussians = _Gaussians(self.centres, std)
        self._held_out = {
            split: Table(self._gaussians.draw(held_out, generator_for(seed, 1, number)))
            for number, split in enumerate(("train", "test"))
        }
        sizes = {split: len(table) for split, table in self._held_out.items()}
        schema = Indexed(self._held_out["train"], EvalOrder(held_out, batch_size)).schema
        super().__init__("the ring", sizes, batch_size, schema, sharding=sharding)

    def points(self, split: str) -> np.ndarray:
        """Returns the points of a split, float32 [N, 2].

        Raises:
          InputError: there is no such split.
        """
        self.examples(split)
        return self._held_out[split].columns["image"]

    def mode_of(self, points: np.ndarray) -> np.ndarray:
        """Returns which Gaussian each point belongs to: the nearest, if within 3 std of its centre.

        Of points drawn from the Gaussians, 98.9 % are. The bound is that of Srivastava et al. 2017,
        arXiv:1705.07761.

        Args:
          points: [N, 2].

        Returns:
          Numbers of Gaussians, int64 [N]; -1 for none.
        """
        distances = np.linalg.norm(np.asarray(points)[:, None] - self.centres, axis=2)
        return np.where(distances.min(1) <= 3 * self.std, distances.argmin(1), -1)

    def _train_stream(self) -> _Draws:
        return _Draws(self._gaussians, self.batch_size, self._seed)

    def _eval_stream(self, split: str) -> Indexed:
        return Indexed(self._held_out[split], EvalOrder(self.examples(split), self.batch_size))
