"""The batches of several trainings at once: those that each would see alone, stacked.

Rows that stand in the sets of more than one training are kept on the devices once: what a seed
draws for validation, or leaves out, are other places of the same rows.
"""

import contextlib
import copy
import dataclasses
import functools
import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdl import Batch
from jaxdl.data.order import EvalOrder, TrainOrder
from jaxdl.data.pipeline import RowPipeline
from jaxdl.data.rows import Rows, Schema, origin

AHEAD = 64
"""Steps whose order is drawn at once: a permutation costs as much as a small step."""
SET_SHIFT = 40
"""Bits of a row's index in its code; those above are of its set."""


class Lanes:
    """Feeds of one form as one: every array gets an axis of lanes before that of its rows.

    Args:
      feeds: one a lane, alike in the shapes of their batches and the sizes of their splits.
      lanes: how the axis of lanes lies on the devices.
    """

    def __init__(self, feeds: Sequence[Any], lanes: NamedSharding):
        self._feeds = self._all = list(feeds)
        self._which = np.arange(len(feeds))
        self._lanes = lanes
        self._stored: dict[str, tuple[dict[str, jax.Array], np.ndarray]] = {}

        def gather(storage, index):
            return {name: rows[index] for name, rows in storage.items()}

        self._gather = jax.jit(gather, out_shardings=lanes)

    def of(self, which: Sequence[int]) -> "Lanes":
        """Some of the lanes, some of them perhaps twice, by the same rows on the devices."""
        some = copy.copy(self)
        some._which = self._which[list(which)]
        some._feeds = [self._all[place] for place in some._which]
        return some

    def train(self, start: int, lengths: Iterable[int], most: int) -> Generator[Batch, None, None]:
        """The batches of the updates after the first `start`, in blocks of several.

        Args:
          start: how many updates were made.
          lengths: how many updates each block is for.
          most: what none of these is more than.

        Yields:
          [lanes, most, B, ...]; what comes after the length of a block is of no use.
        """
        if not all(map(_is_resident, self._feeds)):
            with _stacked([feed.train(start) for feed in self._feeds]) as stream:
                for length in lengths:
                    batches = list(itertools.islice(stream, length))
                    batches += batches[-1:] * (most - length)
                    block = jax.tree.map(lambda *steps: np.stack(steps, 1), *batches)
                    yield jax.device_put(block, self._lanes)
            return
        storage, places = self._store("train")
        size, rows = places.shape[1] - 1, self._feeds[0].batch_size
        # Batches run on from epoch to epoch: so many of them are one of as many rows.
        orders = [TrainOrder(size, AHEAD * rows, feed.seed) for feed in self._feeds]

        @functools.lru_cache(maxsize=2)  # a block may begin in one and end in the next
        def drawn(number: int) -> np.ndarray:
            some = np.stack([order(number) for order in orders])
            return np.take_along_axis(places, some, 1).reshape(len(orders), AHEAD, rows)

        for length in lengths:
            steps = range(start, start + most)
            index = np.stack([drawn(step // AHEAD)[:, step % AHEAD] for step in steps], 1)
            yield self._gather(storage, jax.device_put(index, self._lanes))
            start += length

    def evaluate(self, split: str) -> Generator[Batch, None, None]:
        """One pass over a split of every lane, [lanes, B, ...]."""
        if not all(map(_is_resident, self._feeds)):
            with _stacked([feed.evaluate(split) for feed in self._feeds]) as stream:
                for batch in stream:
                    yield jax.device_put(batch, self._lanes)
            return
        storage, places = self._store(split)
        order = EvalOrder(places.shape[1] - 1, self._feeds[0].batch_size)
        for step in range(order.steps):
            yield self._gather(storage, jax.device_put(places[:, order(step)], self._lanes))

    def _store(self, split: str) -> tuple[dict[str, jax.Array], np.ndarray]:
        """The rows that any lane has of a split, and where each lane has its own among them.

        After the last row comes one of padding, of which the last of a lane's places tells.
        """
        if split not in self._stored:
            found = [origin(feed.sets[split]) for feed in self._all]
            sets = {name: rows for name, rows, _ in found}
            numbers = {name: number for number, name in enumerate(sets)}
            codes = [(numbers[name] << SET_SHIFT) + indices for name, _, indices in found]
            every, places = np.unique(np.stack(codes), return_inverse=True)
            union = _Union(tuple(sets.values()), every)
            everywhere = NamedSharding(self._lanes.mesh, P())
            rows = RowPipeline({"train": union}, 1, backend="resident", sharding=everywhere)
            places = np.pad(places.reshape(len(found), -1), ((0, 0), (0, 1)))
            places[:, -1] = len(every)
            self._stored[split] = rows.resident("train")[0], places.astype(np.int32)
        storage, places = self._stored[split]
        return storage, places[self._which]


@contextlib.contextmanager
def _stacked(streams: Sequence[Any]) -> Iterator[Iterator[Any]]:
    """What the lanes' own streams give, for feeds that keep nothing on the devices."""
    with contextlib.ExitStack() as closing:
        for stream in streams:
            closing.enter_context(contextlib.closing(stream))
        stack = lambda *rows: np.stack(rows)
        yield (jax.tree.map(stack, *batches) for batches in zip(*streams, strict=True))


def _is_resident(feed: Any) -> bool:
    """Whether a feed's batches are rows on the devices, all of which can be read."""
    return isinstance(feed, RowPipeline) and feed.backend == "resident" and not feed.skips


@dataclasses.dataclass(frozen=True, eq=False)
class _Union:
    """Some rows of several sets, as `Rows`."""

    sets: tuple[Rows, ...]
    codes: np.ndarray  # int64 [N], of set and row

    @property
    def schema(self) -> Schema:
        return self.sets[0].schema

    @property
    def random(self) -> bool:
        return False

    def __len__(self) -> int:
        return len(self.codes)

    def read(self, index: int, rng: np.random.Generator | None) -> Any:
        number, row = self._place(index)
        return self.sets[number].read(row, rng)

    def name(self, index: int) -> str:
        number, row = self._place(index)
        return self.sets[number].name(row)

    def _place(self, index: int) -> tuple[int, int]:
        return divmod(int(self.codes[index]), 1 << SET_SHIFT)
