"""Pipelines of images: their rows, decoded and cut on the host, in the order of every pipeline."""

import dataclasses
from collections.abc import Iterable
from typing import Literal

import numpy as np

from jaxdl import InputError, require
from jaxdl.data.images import CorruptImage, Preprocess
from jaxdl.data.pipeline import RowPipeline, Sharding
from jaxdl.data.rows import Field, Origin, Schema
from jaxdl.data.sources import Dataset, fingerprint, wrong_label
from jaxdl.data.subsets import origin


@dataclasses.dataclass(frozen=True)
class _Images:
    """The images of one split, as `Rows`."""

    dataset: Dataset  # of this split alone: each worker gets a copy
    split: str
    preprocess: Preprocess

    @property
    def schema(self) -> Schema:
        size, channels = self.preprocess.size, self.preprocess.channels
        return {"image": Field((size, size, channels), np.uint8), "label": Field((), np.int32)}

    @property
    def random(self) -> bool:
        return self.preprocess.random_crop

    def __len__(self) -> int:
        return len(self.dataset.splits[self.split])

    def read(self, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray | int]:
        example = self.dataset.splits[self.split][index]
        image = self.preprocess(example["image"], rng, example["name"])
        label = example["label"]
        if not 0 <= label < max(1, len(self.dataset.class_names)):
            raise wrong_label(self.dataset, self.split, index, label)
        return {"image": image, "label": label}

    def name(self, index: int) -> str:
        return self.dataset.splits[self.split][index]["name"]

    def origin(self) -> Origin:
        source, indices = origin(self.dataset.splits[self.split])
        whole = self.dataset._replace(splits={self.split: source})
        name = fingerprint(source), len(self.dataset.class_names), self.preprocess
        return Origin(name, _Images(whole, self.split, self.preprocess), indices)


class Pipeline(RowPipeline):
    """The batches of one set of images, for training by step and for evaluation in order.

    A batch holds `image` uint8 [B, H, W, C], `label` int32 [B] and `mask` float32 [B]: 1 counts; 0
    is padding or, in evaluation, an unreadable image, and all of that row is zero. Every row of
    training counts.

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

    KIND, UNREADABLE = "image", "an image that cannot be decoded"

    def __init__(
        self,
        dataset: Dataset,
        preprocess: Preprocess,
        batch_size: int,
        *,
        seed: int = 0,
        sharding: "Sharding | None" = None,
        backend: Literal["auto", "resident", "grain"] = "auto",
        workers: int = 0,
        on_corrupt: Literal["fail", "skip"] = "fail",
        rows: slice | None = None,
    ):
        """Chooses the backend; reads nothing yet.

        Args:
          dataset: the set, from `load` or `from_arrays`.
          preprocess: the host's transform; `random_crop` applies to training only.
          batch_size: rows of a global batch.
          seed: of the order and the random crops, at least 0.
          sharding: how the batch axis lies on the devices, as for `RowPipeline`.
          backend: 'resident' keeps the preprocessed splits on the device (each device, if there
            are several); 'auto' does so where it may (no random crop, no workers) and the splits
            take at most `RESIDENT_LIMIT` bytes.
          workers: processes that read ahead; 0 reads ahead in threads of this process.
          on_corrupt: an unreadable image ends the iteration with `CorruptImage` ('fail'), or is
            named on stderr and counted in `skipped` ('skip'): in training the next example of the
            split that can be read stands in for it, and evaluation gives it mask 0.
          rows: the rows of each batch that this process reads; by default those that its devices
            hold under `sharding`, or all.

        Raises:
          InputError: an argument out of range, or arguments that contradict each other.
        """
        require(preprocess.size >= 1, f"image size {preprocess.size}", "at least 1")
        require(preprocess.channels in (1, 3), f"{preprocess.channels} image channels", "1 or 3")
        require(0 < preprocess.crop_share <= 1, f"crop share {preprocess.crop_share}", "(0, 1]")
        require(on_corrupt in ("fail", "skip"), f"on_corrupt {on_corrupt!r}", "fail or skip")
        self.dataset = dataset
        self.preprocess = preprocess
        self.image_shape = (preprocess.size, preprocess.size, preprocess.channels)
        splits = {
            split: _Images(dataset._replace(splits={split: source}), split, preprocess)
            for split, source in dataset.splits.items()
        }
        super().__init__(
            splits,
            batch_size,
            name=dataset.name,
            seed=seed,
            sharding=sharding,
            backend=backend,
            workers=workers,
            skips=on_corrupt == "skip",
            rows=rows,
        )

    def images(self, split: str, indices: Iterable[int]) -> np.ndarray:
        """Returns some images of a split as evaluation sees them, on this host alone.

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
                if not self.skips:
                    raise
                self._report(split, [index])
        if not images:
            raise InputError(self._nothing_readable(split))
        return np.stack(images)
