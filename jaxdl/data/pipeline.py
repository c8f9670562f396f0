"""The data rule: the batch of step n is a pure function of (seed, n).

So nothing but the step has to be saved to resume, on any number of devices, processes or workers.
Two backends give the same batches: `grain` reads and preprocesses ahead in threads or worker
processes, `resident` keeps a small set on the device and gathers there.
"""

import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from jaxdl import InputError
from jaxdl.data.images import CorruptImage, Preprocess
from jaxdl.data.sources import Dataset, wrong_label

if TYPE_CHECKING:  # worker processes import this module and have no use for JAX
    import jax

# 'image' uint8 [B, H, W, C], 'label' int32 [B], 'mask' float32 [B]: 1 counts; 0 is padding or, in
# evaluation, an unreadable image, and all of that row is zero. Every row of training counts.
Batch: TypeAlias = "dict[str, np.ndarray | jax.Array]"

RESIDENT_LIMIT = 256 * 2**20  # bytes of uint8 images, over all splits
MAX_THREADS = 8  # each holds one whole batch in memory


class Pipeline:
    """The batches of one set, for training by step and for evaluation in order.

    Training order: every epoch is its own permutation of the train split, and batches run on over
    the seam between two epochs. Evaluation order: every example once, the last batch padded.

    In a multi-process run each process reads only the rows that its own devices hold.

    Attributes:
        dataset: the set.
        preprocess: the host's transform.
        batch_size: rows of a global batch, B.
        backend: 'resident' or 'grain', as chosen.
        image_shape: (H, W, C) of the images in a batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        preprocess: Preprocess,
        batch_size: int,
        *,
        seed: int = 0,
        sharding: "jax.sharding.NamedSharding | jax.sharding.SingleDeviceSharding | None" = None,
        backend: Literal["auto", "resident", "grain"] = "auto",
        workers: int = 0,
        on_corrupt: Literal["fail", "skip"] = "fail",
        rows: slice | None = None,
    ):
        """Choose the backend; read nothing yet.

        Args:
            dataset: the set, from `load` or `from_arrays`.
            preprocess: the host's transform; `random_crop` applies to training only.
            batch_size: rows of a global batch.
            seed: of the order and the random crops, at least 0.
            sharding: how the batch axis lies on the devices, over mesh axes of type Auto; batches
                are then global `jax.Array`s. Without it `grain` yields NumPy arrays and `resident`
                arrays on the default device.
            backend: 'resident' keeps the preprocessed splits on the device (each device, if there
                are several); 'auto' does so where it may (no random crop, no workers) and the
                splits take at most `RESIDENT_LIMIT` bytes.
            workers: processes that read ahead; 0 reads ahead in threads of this process.
            on_corrupt: an unreadable image ends the iteration with `CorruptImage` ('fail'), or is
                named on stderr and counted in `skipped` ('skip'): in training the next example of
                the split that can be read stands in for it, and evaluation gives it mask 0.
            rows: the rows of each batch that this process reads; by default those that its devices
                hold under `sharding`, or all.

        Raises:
            InputError: an argument out of range, or arguments that contradict each other.
        """
        num_train = len(dataset.splits["train"])
        _require(preprocess.size >= 1, f"image size {preprocess.size}", "at least 1")
        _require(preprocess.channels in (1, 3), f"{preprocess.channels} image channels", "1 or 3")
        _require(0 < preprocess.crop_share <= 1, f"crop share {preprocess.crop_share}", "(0, 1]")
        _require(seed >= 0, f"data seed {seed}", "at least 0")
        _require(workers >= 0, f"{workers} data workers", "at least 0")
        _require(
            1 <= batch_size <= num_train,
            f"batch size {batch_size}",
            f"1 to {num_train}, the number of train examples of {dataset.name}",
        )
        _require(on_corrupt in ("fail", "skip"), f"on_corrupt {on_corrupt!r}", "fail or skip")
        _require(
            backend in ("auto", "resident", "grain"),
            f"data backend {backend!r}",
            "auto, resident or grain",
        )
        can_be_resident = not preprocess.random_crop and not workers
        _require(
            backend != "resident" or can_be_resident,
            "data backend 'resident' with random crops or workers",
            "'grain', or neither of the two",
        )
        self.dataset = dataset
        self.preprocess = preprocess
        self.batch_size = batch_size
        self.image_shape = (preprocess.size, preprocess.size, preprocess.channels)
        if backend == "auto":
            num_images = sum(map(len, dataset.splits.values()))
            is_small = num_images * int(np.prod(self.image_shape)) <= RESIDENT_LIMIT
            backend = "resident" if can_be_resident and is_small else "grain"
        self.backend = backend
        self._seed = seed
        self._sharding = sharding
        self._workers = workers
        self._on_corrupt = on_corrupt
        self._rows = (
            local_rows(batch_size, sharding) if rows is None else np.arange(batch_size)[rows]
        )
        self._unreadable: set[tuple[str, int]] = set()
        self._storage: dict[str, tuple[dict[str, jax.Array], np.ndarray]] = {}

    def train(self, start: int = 0) -> Generator[Batch, None, None]:
        """Yield the batches of steps `start`, `start + 1`, ... without end.

        Closing the iterator stops its threads and worker processes; so does dropping it.

        Raises:
            InputError: `start` is negative; from the iterator, a label is of no class, or no image
                can be read.
            CorruptImage: from the iterator, for an unreadable image under on_corrupt='fail'.
        """
        _require(start >= 0, f"start step {start}", "at least 0")
        order = TrainOrder(len(self.dataset.splits["train"]), self.batch_size, self._seed)
        return self._batches("train", order, start)

    def evaluate(self, split: str) -> Generator[Batch, None, None]:
        """Yield every example of `split` once, in order; the last batch is padded with mask 0.

        Raises:
            InputError: the set has no such split; from the iterator, a label is of no class, or no
                image can be read.
            CorruptImage: from the iterator, for an unreadable image under on_corrupt='fail'.
        """
        return self._batches(split, EvalOrder(self.examples(split), self.batch_size), 0)

    def examples(self, split: str) -> int:
        """Return the number of examples of a split, unreadable ones included.

        Raises:
            InputError: the set has no such split.
        """
        _require(
            split in self.dataset.splits,
            f"split {split!r} of {self.dataset.name}",
            " or ".join(self.dataset.splits),
        )
        return len(self.dataset.splits[split])

    def images(self, split: str, indices: Iterable[int]) -> np.ndarray:
        """Return some images of a split as evaluation sees them, on this host alone.

        Args:
            split: its name.
            indices: which; one that cannot be read is left out under on_corrupt='skip'.

        Returns:
            uint8 [N, H, W, C].

        Raises:
            CorruptImage: for an unreadable image under on_corrupt='fail'.
            InputError: none could be read.
        """
        source, images = self.dataset.splits[split], []
        for index in map(int, indices):
            example = source[index]
            try:
                images.append(self.preprocess(example["image"], name=example["name"]))
            except CorruptImage:
                if self._on_corrupt == "fail":
                    raise
                self._report(split, np.array([index]))
        if not images:
            raise _nothing_readable(self.dataset, split)
        return np.stack(images)

    @property
    def skipped(self) -> int:
        """How many different unreadable images this process has met and skipped so far."""
        return len(self._unreadable)

    def _batches(
        self, split: str, order: "TrainOrder | EvalOrder", start: int
    ) -> Generator[Batch, None, None]:
        if self.backend == "resident":
            storage, stand_ins = self._resident(split)
            for step in itertools.islice(itertools.count(start), order.steps):
                index = order(step)[self._rows]
                if isinstance(order, TrainOrder):
                    index = stand_ins[index]
                rows = self._put({"index": index.astype(np.int32)})
                yield self._gather(storage, rows["index"])
            return
        with contextlib.closing(self._read(split, order, self._rows, start)) as batches:
            # One batch ahead, so that its transfer runs beside the step on the batch handed out.
            ready = []
            for batch in batches:
                ready.append(self._put(batch))
                if len(ready) == 2:
                    yield ready.pop(0)
            yield from ready

    def _read(
        self, split: str, order: "TrainOrder | EvalOrder", rows: np.ndarray, start: int
    ) -> Generator[dict[str, np.ndarray], None, None]:
        """Read and preprocess `rows` of each batch, ahead of time."""
        import grain

        alone = self.dataset._replace(splits={split: self.dataset.splits[split]})
        steps = _Steps(alone, split, self.preprocess, order, rows, self._on_corrupt)
        batches = grain.MapDataset.source(steps)[start:]
        if self._workers:
            _excuse_unparsed_flag()
            # A worker works on one batch at a time; Grain deals the batches out in turn.
            in_turn = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            ahead = batches.to_iter_dataset(in_turn).mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=min(self._workers, len(batches)), per_worker_buffer_size=2
                ),
                worker_init_fn=_tie_to_parent,
            )
            # Grain frees its shared memory late, at exit too late; so let go of it at once, in a
            # thread, because a copy of a large batch takes as long as many a step.
            ahead = ahead.map(lambda batch: {key: np.array(rows) for key, rows in batch.items()})
            ahead = grain.experimental.ThreadPrefetchIterDataset(ahead, prefetch_buffer_size=1)
        else:
            threads = min(os.cpu_count() or 1, MAX_THREADS)
            ahead = batches.to_iter_dataset(grain.ReadOptions(threads, threads))
        iterator = iter(ahead)
        any_readable = False
        try:
            for batch in iterator:
                self._report(split, batch.pop("unreadable"))
                any_readable = any_readable or batch["mask"].any()
                yield batch
        finally:
            iterator.close()
        # A pass has ended. This process may have read padding alone, and others images.
        if not any_readable:
            self._require_readable(split)

    def _require_readable(self, split: str) -> None:
        """Raise InputError if no image of a split can be read."""
        source = self.dataset.splits[split]
        for index in range(len(source)):
            with contextlib.suppress(CorruptImage):
                self.preprocess(source[index]["image"])
                return
        raise _nothing_readable(self.dataset, split)

    def _report(self, split: str, unreadable: np.ndarray) -> None:
        """Name each skipped image once; here, because workers cannot know of one another."""
        for index in map(int, unreadable[unreadable >= 0]):
            if (split, index) not in self._unreadable:
                self._unreadable.add((split, index))
                name = self.dataset.splits[split][index]["name"]
                print(f"skipped an image that cannot be decoded: {name}", file=sys.stderr)

    def _put(self, rows: dict[str, np.ndarray]) -> Batch:
        """Make global arrays of this process's rows, if there is a sharding to make them by."""
        if self._sharding is None:
            return dict(rows)
        return {
            key: make_global(value, self._rows, self.batch_size, self._sharding)
            for key, value in rows.items()
        }

    def _resident(self, split: str) -> "tuple[dict[str, jax.Array], np.ndarray]":
        """The preprocessed split on the device, and what stands in for each example in training.

        After the last example comes one row of zeros: the padding.
        """
        import jax

        if split not in self._storage:
            size, chunk = self.examples(split), min(self.examples(split), 1024)
            storage = _zero_rows(size + 1, self.image_shape)
            order = EvalOrder(size, chunk)
            for step, batch in enumerate(self._read(split, order, np.arange(chunk), 0)):
                for key, value in batch.items():
                    here = storage[key][step * chunk : (step + 1) * chunk]
                    here[:] = value[: len(here)]
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
    def _gather(self) -> "Callable[[dict[str, jax.Array], np.ndarray | jax.Array], Batch]":
        import jax

        def gather(storage, index):
            return {key: value[index] for key, value in storage.items()}

        return jax.jit(gather, out_shardings=self._sharding)


class TrainOrder(NamedTuple):
    """Which train example stands in each row of step n, without end."""

    size: int
    batch_size: int
    seed: int

    @property
    def steps(self) -> None:
        """No end."""

    def __call__(self, step: int) -> np.ndarray:
        """The examples of a step's rows, [batch_size]."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, offsets = np.divmod(positions, self.size)
        return np.concatenate(
            [
                _permutation(self.size, self.seed, int(epoch))[offsets[epochs == epoch]]
                for epoch in np.unique(epochs)
            ]
        )

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


@dataclasses.dataclass(frozen=True)
class _Steps:
    """Grain's view of a split: element n is this process's rows of the batch of step n."""

    dataset: Dataset  # of this split alone: each worker gets a copy
    split: str
    preprocess: Preprocess
    order: TrainOrder | EvalOrder
    rows: np.ndarray
    on_corrupt: str

    def __len__(self) -> int:
        return sys.maxsize if self.order.steps is None else self.order.steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        source = self.dataset.splits[self.split]
        size, trains = len(source), isinstance(self.order, TrainOrder)
        shape = (self.preprocess.size, self.preprocess.size, self.preprocess.channels)
        batch = _zero_rows(len(self.rows), shape)
        unreadable = [-1]  # no example, so that the array has an item
        for row, first in enumerate(map(int, self.order(step)[self.rows])):
            if first == size:
                continue  # padding
            for number in range(first, first + size if trains else first + 1):
                number %= size
                example = source[number]
                rng = None
                if self.preprocess.random_crop:
                    rng = self.order.generator(step, int(self.rows[row]))
                try:
                    image = self.preprocess(example["image"], rng, example["name"])
                except CorruptImage:
                    if self.on_corrupt == "fail":
                        raise
                    unreadable.append(number)
                    continue
                if not 0 <= example["label"] < max(1, len(self.dataset.class_names)):
                    raise wrong_label(self.dataset, self.split, number, example["label"])
                batch["image"][row] = image
                batch["label"][row] = example["label"]
                batch["mask"][row] = 1
                break
            else:
                if trains:
                    raise _nothing_readable(self.dataset, self.split)
        return batch | {"unreadable": np.array(unreadable)}


def _nothing_readable(dataset: Dataset, split: str) -> InputError:
    return InputError(f"{dataset.name}: no image of {split} could be read")


def _zero_rows(count: int, image_shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    return {
        "image": np.zeros((count, *image_shape), np.uint8),
        "label": np.zeros(count, np.int32),
        "mask": np.zeros(count, np.float32),
    }


def local_rows(
    batch_size: int,
    sharding: "jax.sharding.NamedSharding | jax.sharding.SingleDeviceSharding | None",
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
    return np.unique(np.concatenate([everything[index] for index in held if index is not None]))


def make_global(
    rows: np.ndarray,
    places: np.ndarray,
    length: int,
    sharding: "jax.sharding.NamedSharding | jax.sharding.SingleDeviceSharding",
) -> "jax.Array":
    """The array of `length` rows of which this process holds `rows`, at `places`, ascending."""
    import jax

    def shard(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(length)
        first = np.searchsorted(places, start)
        return rows[first : first + stop - start]

    return jax.make_array_from_callback((length, *rows.shape[1:]), sharding, shard)


def _tie_to_parent(worker: int, workers: int) -> None:
    """Let a worker process end with its parent, however that ends, and never before it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the parent decides

    def watch():
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="jaxdl-watch-parent", daemon=True).start()


def _excuse_unparsed_flag() -> None:
    """Let Grain start workers in a program that parses no absl flags (google/grain#1355).

    Grain up to 0.2.18 reads this flag of its own without asking whether any were parsed.
    """
    from absl import flags

    name = "grain_enable_multiprocess_worker_profiling"
    if name in flags.FLAGS:
        flags.FLAGS[name].present = True


def _require(condition: bool, given: str, accepted: str) -> None:
    if not condition:
        raise InputError(f"{given}: expected {accepted}")
