"""Stored rows read: once by threads, or ahead of time by Grain, in threads or worker processes."""

import dataclasses
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jaxdl.data.rows import Indexed

UNREADABLE = "unreadable"  # beside the arrays of a batch: the rows of the split that were not read
MAX_THREADS = 8  # each holds one whole batch in memory


@dataclasses.dataclass(frozen=True)
class _Steps:
    """Grain's view of a split: element n is this process's rows of the batch of step n."""

    stream: Indexed
    places: np.ndarray

    def __len__(self) -> int:
        return sys.maxsize if self.stream.steps is None else self.stream.steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        batch, unreadable = self.stream.read(step, self.places)
        # -1 is no row, so that the array has an item.
        return batch | {UNREADABLE: np.array([-1, *unreadable])}


def read_once(
    stream: Indexed, places: np.ndarray
) -> Iterator[tuple[dict[str, np.ndarray], list[int]]]:
    """Yields some rows of every batch of a stream that ends, and what was unreadable.

    For what is kept: a small set is read before Grain is imported.

    Args:
      stream: of the rows.
      places: in the global batch, of the rows that are read.
    """
    assert stream.steps is not None
    with ThreadPoolExecutor(_threads()) as pool:
        yield from pool.map(functools.partial(stream.read, places=places), range(stream.steps))


def read_ahead(
    stream: Indexed, places: np.ndarray, start: int, workers: int
) -> Generator[dict[str, np.ndarray], None, None]:
    """Yields some rows of the batches of steps `start`, `start + 1`, ... and what was unreadable.

    Closing the iterator stops its threads and worker processes.

    Args:
      stream: of the rows.
      places: in the global batch, of the rows that are read.
      start: the first step.
      workers: processes that read; 0 reads in threads of this process.
    """
    import grain

    batches = grain.MapDataset.source(_Steps(stream, places))[start:]
    if workers:
        _excuse_unparsed_flag()
        # A worker works on one batch at a time; Grain deals the batches out in turn.
        in_turn = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        ahead = batches.to_iter_dataset(in_turn).mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=min(workers, len(batches)), per_worker_buffer_size=2
            ),
            worker_init_fn=_tie_to_parent,
        )
        # Grain frees its shared memory late, at exit too late; so let go of it at once, in a
        # thread, because a copy of a large batch takes as long as many a step.
        ahead = ahead.map(lambda batch: {key: np.array(rows) for key, rows in batch.items()})
        ahead = grain.experimental.ThreadPrefetchIterDataset(ahead, prefetch_buffer_size=1)
    else:
        threads = _threads()
        ahead = batches.to_iter_dataset(grain.ReadOptions(threads, threads))
    iterator = iter(ahead)
    try:
        yield from iterator
    finally:
        iterator.close()


def _threads() -> int:
    return min(os.cpu_count() or 1, MAX_THREADS)


def _tie_to_parent(worker: int, workers: int) -> None:
    """Lets a worker process end with its parent, however that ends, and never before it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the parent decides

    def watch():
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="jaxdl-watch-parent", daemon=True).start()


def _excuse_unparsed_flag() -> None:
    """Lets Grain start workers in a program that parses no absl flags (google/grain#1355).

    Grain up to 0.2.18 reads this flag of its own without asking whether any were parsed.
    """
    from absl import flags

    name = "grain_enable_multiprocess_worker_profiling"
    if name in flags.FLAGS:
        flags.FLAGS[name].present = True
