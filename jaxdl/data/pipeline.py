"""The data rule: the batch of step n is a pure function of (seed, n).

A `StreamPipeline` lays what a stream makes on the devices that hold it: text windows, sentence
pairs, words, drawn points. A `RowPipeline` is one of stored rows, images or tables, with two
backends that give the same batches: `grain` reads ahead in threads or worker processes, `resident`
keeps a small set on the device and gathers there.
"""

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from jaxdl import Batch, InputError, require
from jaxdl.data.order import EvalOrder, Order, TrainOrder
from jaxdl.data.reading import UNREADABLE, read_ahead, read_once
from jaxdl.data.rows import MASK, Indexed, Rows, Schema, Stream, Unreadable, padding_rows

if TYPE_CHECKING:  # worker processes import this module and have no use for JAX
    import jax

Sharding: TypeAlias = "jax.sharding.NamedSharding | jax.sharding.SingleDeviceSharding"

RESIDENT_LIMIT = 256 * 2**20  # bytes of rows, over all splits
# One call gathers so many batches of training, of at most so many bytes: each call takes as long as
# several small batches do.
TOGETHER, TOGETHER_LIMIT = 8, 8 * 2**20


class StreamPipeline:
    """The batches of streams, for training by step and for evaluation in order.

    In a multi-process run each process makes only the rows that its own devices hold.

    Subclasses give the streams: `_train_stream`, `_eval_stream`.

    Attributes:
      name: what messages call the set.
      splits: the names of its splits.
      batch_size: rows of a global batch, B.
      schema: of a batch of training.
    """

    def __init__(
        self,
        name: str,
        examples: Mapping[str, int],
        batch_size: int,
        schema: Schema,
        *,
        sharding: "Sharding | None" = None,
        rows: slice | None = None,
    ):
        """Finds out which rows are this process's.

        Args:
          name: what messages call the set.
          examples: how many each split has.
          batch_size: rows of a global batch.
          schema: of a batch of training.
          sharding: how the batch axis lies on the devices, over mesh axes of type Auto; batches are
            then global `jax.Array`s. Without it they are NumPy arrays.
          rows: the rows of each batch that this process makes; by default those that its devices
            hold under `sharding`, or all.

        Raises:
          InputError: the batch size does not divide over the devices.
        """
        self.name = name
        self.splits = tuple(examples)
        self.batch_size = batch_size
        self.schema = schema
        self._examples = dict(examples)
        self._sharding = sharding
        self._rows = (
            local_rows(batch_size, sharding) if rows is None else np.arange(batch_size)[rows]
        )

    @property
    def one_shape(self) -> bool:
        """Whether all batches are alike in their shapes, as they are but for sentences."""
        return True

    def train(self, start: int = 0) -> Generator[Batch, None, None]:
        """Yields the batches of steps `start`, `start + 1`, ... without end.

        Closing the iterator stops its threads and worker processes; so does dropping it.

        Raises:
          InputError: `start` is negative; from the iterator, what is stored is wrong.
          Unreadable: from the iterator, for a row that cannot be read, unless such are skipped.
        """
        require(start >= 0, f"start step {start}", "at least 0")
        return self._batches("train", self._train_stream(), start)

    def evaluate(self, split: str) -> Generator[Batch, None, None]:
        """Yields every example of `split` once, in order; the last batch is padded with mask 0.

        Raises:
          InputError: the set has no such split; from the iterator, what is stored is wrong.
          Unreadable: from the iterator, for a row that cannot be read, unless such are skipped.
        """
        self.examples(split)
        return self._batches(split, self._eval_stream(split), 0)

    def examples(self, split: str) -> int:
        """Returns the number of examples of a split, unreadable ones included.

        Raises:
          InputError: the set has no such split.
        """
        require(
            split in self._examples, f"split {split!r} of {self.name}", " or ".join(self._examples)
        )
        return self._examples[split]

    def _train_stream(self) -> Stream:
        raise NotImplementedError  # each kind of data has its own

    def _eval_stream(self, split: str) -> Stream:
        raise NotImplementedError  # each kind of data has its own

    def _batches(self, split: str, stream: Stream, start: int) -> Generator[Batch, None, None]:
        for step in _steps(stream, start):
            yield self._put(stream(step, self._rows))

    def _put(self, rows: dict[str, np.ndarray]) -> Batch:
        """Makes global arrays of this process's rows, if there is a sharding to make them by."""
        if self._sharding is None:
            return dict(rows)
        return {
            key: make_global(value, self._rows, self.batch_size, self._sharding)
            for key, value in rows.items()
        }


class RowPipeline(StreamPipeline):
    """The batches of stored rows of any schema.

    Training order: every epoch is its own permutation of the train split, and batches run on over
    the seam between two epochs. Evaluation order: every row once, the last batch padded.

    Attributes:
      name: what messages call the set.
      splits: the names of its splits.
      batch_size: rows of a global batch, B.
      schema: of a batch: that of the rows, and `mask`.
      backend: 'resident' or 'grain', as chosen.
      sets: the rows of each split.
      seed: of the order.
      skips: whether unreadable rows are passed over.
    """

    KIND, UNREADABLE = "row", "a row that cannot be read"  # as messages say

    def __init__(
        self,
        splits: Mapping[str, Rows],
        batch_size: int,
        *,
        name: str = "table",
        seed: int = 0,
        sharding: "Sharding | None" = None,
        backend: Literal["auto", "resident", "grain"] = "auto",
        workers: int = 0,
        skips: bool = False,
        rows: slice | None = None,
    ):
        """Chooses the backend; reads nothing yet.

        Args:
          splits: 'train' and any others, of one schema.
          batch_size: rows of a global batch.
          name: what messages call the set.
          seed: of the order and of what reading draws, at least 0.
          sharding: how the batch axis lies on the devices, over mesh axes of type Auto; batches are
            then global `jax.Array`s. Without it `grain` yields NumPy arrays and `resident` arrays
            on the default device.
          backend: 'resident' keeps the splits on the device (each device, if there are several);
            'auto' does so where it may (rows that are not random, no workers) and the splits take
            at most `RESIDENT_LIMIT` bytes.
          workers: processes that read ahead; 0 reads ahead in threads of this process.
          skips: whether an unreadable row is named on stderr and counted in `skipped` instead of
            ending the iteration: in training the next row of the split that can be read stands in
            for it, and evaluation gives it mask 0.
          rows: the rows of each batch that this process reads; by default those that its devices
            hold under `sharding`, or all.

        Raises:
          InputError: an argument out of range, arguments that contradict each other, or splits of
            different schemas.
        """
        train = splits["train"]
        require(seed >= 0, f"data seed {seed}", "at least 0")
        require(workers >= 0, f"{workers} data workers", "at least 0")
        require(
            1 <= batch_size <= len(train),
            f"batch size {batch_size}",
            f"1 to {len(train)}, the number of train examples of {name}",
        )
        require(
            backend in ("auto", "resident", "grain"),
            f"data backend {backend!r}",
            "auto, resident or grain",
        )
        may_be_resident = not train.random and not workers
        require(
            backend != "resident" or may_be_resident,
            "data backend 'resident' with random crops or workers",
            "'grain', or neither of the two",
        )
        # Compared without the padding, which may be an array.
        fields = {
            split: {field: (of.shape, np.dtype(of.dtype)) for field, of in part.schema.items()}
            for split, part in splits.items()
        }
        for split, found in fields.items():
            require(
                found == fields["train"],
                f"{name}: rows of {split} hold {found}",
                f"{fields['train']}, as those of train",
            )
        self.sets = dict(splits)
        self.seed = seed
        self._workers = workers
        self.skips = skips
        self._unreadable: set[tuple[str, int]] = set()
        self._storage: dict[str, tuple[dict[str, jax.Array], np.ndarray]] = {}
        sizes = {split: len(part) for split, part in splits.items()}
        schema = {**train.schema, "mask": MASK}
        super().__init__(name, sizes, batch_size, schema, sharding=sharding, rows=rows)
        row_bytes = sum(array.nbytes for array in padding_rows(schema, 1).values())
        self._together = max(1, min(TOGETHER, TOGETHER_LIMIT // (batch_size * row_bytes)))
        if backend == "auto":
            is_small = sum(sizes.values()) * row_bytes <= RESIDENT_LIMIT
            backend = "resident" if may_be_resident and is_small else "grain"
        self.backend = backend

    @property
    def skipped(self) -> int:
        """How many different unreadable rows this process has met and skipped so far."""
        return len(self._unreadable)

    def _stream(self, split: str, order: Order) -> Indexed:
        return Indexed(self.sets[split], order, self.skips, self._nothing_readable(split))

    def _train_stream(self) -> Indexed:
        order = TrainOrder(self.examples("train"), self.batch_size, self.seed)
        return self._stream("train", order)

    def _eval_stream(self, split: str) -> Indexed:
        return self._stream(split, EvalOrder(self.examples(split), self.batch_size))

    def _batches(self, split: str, stream: Stream, start: int) -> Generator[Batch, None, None]:
        assert isinstance(stream, Indexed)
        if self.backend == "resident":
            storage, stand_ins = self.resident(split)
            training = stream.steps is None

            def index(step: int) -> Any:
                rows = stream.order(step)[self._rows]
                rows = (stand_ins[rows] if training else rows).astype(np.int32)
                is_all = len(rows) == self.batch_size  # else others have the other rows
                return rows if is_all else self._put({"index": rows})["index"]

            steps = _steps(stream, start)
            while some := list(itertools.islice(steps, self._together if training else 1)):
                yield from self._gather(storage, [index(step) for step in some])
            return
        with contextlib.closing(self._read(split, stream, self._rows, start)) as batches:
            # One batch ahead, so that its transfer runs beside the step on the batch handed out.
            ready = []
            for batch in batches:
                ready.append(self._put(batch))
                if len(ready) == 2:
                    yield ready.pop(0)
            yield from ready

    def _read(
        self, split: str, stream: Indexed, rows: np.ndarray, start: int
    ) -> Generator[dict[str, np.ndarray], None, None]:
        """Reads `rows` of each batch, ahead of time."""
        any_readable = False
        with contextlib.closing(read_ahead(stream, rows, start, self._workers)) as batches:
            for batch in batches:
                self._report(split, batch.pop(UNREADABLE)[1:].tolist())
                any_readable |= bool(batch["mask"].any())
                yield batch
        # A pass has ended. This process may have read padding alone, and others rows.
        if not any_readable:
            self._require_readable(split)

    def _require_readable(self, split: str) -> None:
        """Raises InputError if no row of a split can be read."""
        for index in range(self.examples(split)):
            with contextlib.suppress(Unreadable):
                self.sets[split].read(index, None)
                return
        raise InputError(self._nothing_readable(split))

    def _nothing_readable(self, split: str) -> str:
        return f"{self.name}: no {self.KIND} of {split} could be read"

    def _report(self, split: str, unreadable: Iterable[int]) -> None:
        """Names each skipped row once; here, because workers cannot know of one another."""
        for index in unreadable:
            if (split, index) not in self._unreadable:
                self._unreadable.add((split, index))
                name = self.sets[split].name(index)
                print(f"skipped {self.UNREADABLE}: {name}", file=sys.stderr)

    def resident(self, split: str) -> "tuple[dict[str, jax.Array], np.ndarray]":
        """The rows of a split on the device, and what stands in for each in training.

        After the last row comes one of padding.
        """
        import jax

        if split not in self._storage:
            size, chunk = self.examples(split), min(self.examples(split), 1024)
            storage = padding_rows(self.schema, size + 1)
            stream = self._stream(split, EvalOrder(size, chunk))
            for step, (batch, unreadable) in enumerate(read_once(stream, np.arange(chunk))):
                self._report(split, unreadable)
                for key, value in batch.items():
                    here = storage[key][step * chunk : (step + 1) * chunk]
                    here[:] = value[: len(here)]
            if not storage["mask"].any():
                raise InputError(self._nothing_readable(split))
            everywhere: Any = self._sharding
            if isinstance(self._sharding, jax.sharding.NamedSharding):
                replicated = jax.sharding.PartitionSpec()
                everywhere = jax.sharding.NamedSharding(self._sharding.mesh, replicated)
            on_devices = {
                key: jax.device_put(value)
                if everywhere is None
                else make_global(value, np.arange(size + 1), size + 1, everywhere)
                for key, value in storage.items()
            }
            readable = np.flatnonzero(storage["mask"])
            following = np.searchsorted(readable, np.arange(size))
            self._storage[split] = on_devices, readable[following % len(readable)]
        return self._storage[split]

    @functools.cached_property
    def _gather(self) -> "Callable[..., list[Batch]]":
        """(storage, the rows of some batches, each [B]) -> those batches."""
        import jax

        def gather(storage, index):
            return [{key: value[rows] for key, value in storage.items()} for rows in index]

        return jax.jit(gather, out_shardings=self._sharding)


def _steps(stream: Stream, start: int) -> Iterator[int]:
    return itertools.islice(itertools.count(start), stream.steps)


def local_rows(
    batch_size: int,
    sharding: "Sharding | None",
) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, ascending."""
    if sharding is None:
        return np.arange(batch_size)
    try:
        held = sharding.addressable_devices_indices_map((batch_size,)).values()
    except ValueError as error:
        raise InputError(
            f"batch size {batch_size} does not divide over the {len(sharding.device_set)} devices "
            "of the mesh; expected a multiple"
        ) from error
    everything = np.arange(batch_size)
    own = [everything[index] for index in held if index is not None]
    return np.unique(np.concatenate([everything[:0], *own]))  # none of a mesh that is elsewhere


def make_global(
    rows: np.ndarray,
    places: np.ndarray,
    length: int,
    sharding: "Sharding",
) -> "jax.Array":
    """The array of `length` rows of which this process holds `rows`, at `places`, ascending."""
    import jax

    def shard(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(length)
        first = np.searchsorted(places, start)
        return rows[first : first + stop - start]

    return jax.make_array_from_callback((length, *rows.shape[1:]), sharding, shard)
