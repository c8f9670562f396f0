"""Sets of images for tests, and what their tests share; worker processes import this module too."""

import contextlib
import dataclasses
import io
import itertools
import multiprocessing
import sys

import numpy as np
from PIL import Image

from jaxdl.data import Example, from_arrays, load


def digits(tmp_path_factory):
    """The digits, prepared once in a session."""
    return load("digits", str(tmp_path_factory.getbasetemp() / "tfds"))


def over_eight_devices():
    import jax

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))


def take(pipeline, count, start=0):
    with contextlib.closing(pipeline.train(start)) as batches:
        return [to_numpy(batch) for batch in itertools.islice(batches, count)]


def to_numpy(batch):
    return {key: np.asarray(value) for key, value in batch.items()}


def assert_same(batches, expected):
    """Whether batches of images are the same, of the types that they are to have."""
    dtypes = {"image": np.uint8, "label": np.int32, "mask": np.float32}
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys() == dtypes.keys()
        for key, dtype in dtypes.items():
            assert batch[key].dtype == other[key].dtype == dtype
            np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


def encode(array, format="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format)
    return buffer.getvalue()


def numbered(count, size=24, channels=3, **splits):
    """Images of noise whose label is their number, so that a label tells which one it is."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, channels), np.uint8)
    return from_arrays(images, np.arange(count), **splits)


def names_and_labels(dataset, split):
    source = dataset.splits[split]
    return {source[i]["name"]: source[i]["label"] for i in range(len(source))}


@dataclasses.dataclass
class Stored:
    """Encoded images and their labels as they are given."""

    images: list
    labels_: list

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index: int, /) -> Example:
        return Example(image=self.images[index], label=self.labels_[index], name=f"stored[{index}]")


@dataclasses.dataclass
class Witness:
    """A source that labels its examples with what the reading process has done to itself."""

    def __len__(self):
        return 64

    def __getitem__(self, index: int, /) -> Example:
        from jax._src import xla_bridge

        in_worker = multiprocessing.parent_process() is not None
        label = in_worker + 2 * xla_bridge.backends_are_initialized()
        label += 4 * ("tensorflow" in sys.modules)
        return Example(image=np.zeros((4, 4, 3), np.uint8), label=label, name="witness")


def write_folder(tmp_path):
    """Six images of two classes to train on and two to validate on, 20 x 30 pixels."""
    paths = "train/cat/b.png train/cat/a.jpg train/cat/c.PNG train/dog/d.bmp train/dog/e.webp"
    paths += " train/dog/f.jpeg val/cat/x.png val/dog/y.png"
    for number, path in enumerate(paths.split()):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(number).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / path)
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    (tmp_path / "train/cat/._a.jpg").write_bytes(b"a macOS resource fork")
    (tmp_path / "train/.DS_Store").write_bytes(b"")
    return tmp_path


def without_classes(folder):
    """The images of `write_folder` without their classes."""
    for path in sorted(folder.glob("*/*/*")):
        path.rename(path.parents[1] / path.name)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (folder / split / name).rmdir()
    return folder
