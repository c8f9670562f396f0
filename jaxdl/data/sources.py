"""Where images come from: TFDS sets prepared as ArrayRecord, folders, files of MNIST's, arrays.

Every split is a `Source`: random access by index, picklable (worker processes get a copy), and
undecoded, so that one damaged image is one damaged image and not a dead run.
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np

from jaxdl import InputError, files

MANY = 100_000  # records of which it takes long to read the labels


class Example(TypedDict):
    """One labelled image as it is stored."""

    image: bytes | np.ndarray  # an encoded file, or uint8 [H, W, C]
    label: int
    name: str  # what messages call it: a path, or the set, split and index


class Source(Protocol):
    """Random access to the examples of one split; must survive pickling."""

    def __len__(self) -> int:
        """Returns the number of examples."""
        ...

    def __getitem__(self, index: int, /) -> Example:
        """Returns example `index`, in 0..len-1."""
        ...


class Dataset(NamedTuple):
    """An image set: its splits ('train' and any of 'validation', 'test') and classes.

    A set without classes has no class names, and every label is 0.
    """

    name: str
    splits: dict[str, Source]
    class_names: tuple[str, ...]
    channels: int  # 1 or 3


def load(name: str, data_dir: str | None = None) -> Dataset:
    """Opens a set that is already on this machine; never touches the network.

    Args:
      name: `digits` (prepares itself on first use); a TFDS name, `name/config` or `name:version`
        prepared as ArrayRecord (the newest version unless one is named); `idx:FOLDER` with
        train-images-idx3-ubyte, train-labels-idx1-ubyte and likewise t10k-, the test split, as
        MNIST and its kin come (a dot may stand before idx; gzipped or not); or `folder:PATH` with
        PATH/train/CLASS/*.jpg and likewise `validation` (or `val`) and `test`, or with
        PATH/CLASS/*.jpg, which is then the train split. A folder's classes are its sorted
        directory names. Images without classes lie in PATH/train and so on themselves, or all
        in PATH. What is no image is counted on stderr. The images are gray if all of the train
        split are whose headers are read, `folders.HEADERS` of them at most, else RGB.
        `noise:HxWxC:CLASSES` are images of that size with nothing to read (`data.noise`).
      data_dir: where TFDS keeps its sets; by default TFDS's own choice, $TFDS_DATA_DIR or
        ~/tensorflow_datasets. Folders and idx files do not use it.

    Raises:
      InputError: the set is not there or not usable; the message says what to do.
    """
    if name.startswith("folder:"):
        from jaxdl.data import folders

        return folders.load(pathlib.Path(name.removeprefix("folder:")).expanduser())
    if name.startswith("idx:"):
        from jaxdl.data import idx

        return idx.load(pathlib.Path(name.removeprefix("idx:")).expanduser())
    if name.startswith("noise:"):
        from jaxdl.data import noise

        return noise.load(name.removeprefix("noise:"))
    from tensorflow_datasets.core import constants

    root = pathlib.Path(data_dir or constants.get_default_data_dir()).expanduser()
    if name == "digits":
        from jaxdl.data import digits

        try:
            digits.prepare(root)
        except OSError as error:
            raise InputError(
                f"data_dir {root} cannot hold the set 'digits' ({error}); expected a directory "
                "that can be written"
            ) from error
    return _load_tfds(name, root)


def from_arrays(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
) -> Dataset:
    """Makes a set of arrays in memory.

    Args:
      images: the train images, uint8 [N, H, W, C] with C 1 or 3.
      labels: their classes, integers [N], from 0.
      validation: images and labels of that split, if any.
      test: images and labels of that split, if any.
      class_names: one name per class; by default '0', '1', ... up to the largest train label.
      name: what messages call the set.

    Raises:
      InputError: a wrong type, shape, length or label.
    """
    given = {"train": (images, labels), "validation": validation, "test": test}
    if class_names is None:
        if not np.issubdtype(np.asarray(labels).dtype, np.integer):
            raise InputError(
                f"{name}: the train labels are {np.asarray(labels).dtype}; expected integers"
            )
        # Labels of uint8, too, are compared with -1.
        largest = int(np.max(np.int64(labels), initial=-1))
        class_names = [str(label) for label in range(largest + 1)]
    splits: dict[str, Source] = {}
    for split, pair in given.items():
        if pair is None:
            continue
        x, y = np.asarray(pair[0]), np.asarray(pair[1])
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] not in (1, 3) or not len(x):
            raise InputError(
                f"{name}: the {split} images are {x.dtype} {list(x.shape)}; "
                "expected uint8 [N, H, W, C] with N at least 1 and C 1 or 3"
            )
        if x.shape[3] != np.shape(images)[3]:
            raise InputError(
                f"{name}: the {split} images have {x.shape[3]} channels; "
                f"expected {np.shape(images)[3]} as in train"
            )
        if not np.issubdtype(y.dtype, np.integer) or y.shape != x.shape[:1]:
            raise InputError(
                f"{name}: the {split} labels are {y.dtype} {list(y.shape)}; "
                f"expected integers [{len(x)}]"
            )
        if y.min() < 0 or y.max() >= len(class_names):
            raise InputError(
                f"{name}: the {split} labels span {y.min()}..{y.max()}; "
                f"expected 0..{len(class_names) - 1}"
            )
        splits[split] = _Arrays(x, y, f"{name} {split}")
    return Dataset(name, splits, tuple(class_names), int(np.shape(images)[3]))


def labels(source: Source) -> np.ndarray:
    """Returns the label of every example, integers [N]; no image is decoded.

    Arrays, folders and what is made of them hold their labels. Those of a TFDS set are read once,
    with the records that hold them, and kept in memory and, if it can be written, in a file beside
    the records. Of other sources each example is read.
    """
    held = getattr(source, "labels", None)
    if held is None:
        held = [source[i]["label"] for i in range(len(source))]
    return np.asarray(held)


def wrong_label(dataset: Dataset, split: str, index: int, label: int) -> InputError:
    """The error of an example whose label is of no class."""
    return InputError(
        f"example {index} of the {split} split of {dataset.name}, "
        f"{dataset.splits[split][index]['name']}, has the label {label}; "
        f"expected 0 to {max(1, len(dataset.class_names)) - 1}"
    )


def require_classes(dataset: Dataset) -> None:
    """Raises InputError for a set whose images have no classes."""
    if not dataset.class_names:
        raise InputError(
            f"{dataset.name} has no classes; expected a set with classes, such as a folder with "
            "PATH/train/CLASS/*.jpg"
        )


def fingerprint(source: Source) -> str:
    """Returns a digest of what a split holds, which another content changes.

    Arrays take part with every byte. Files do by their names, sizes and times of change, without
    being read: a file that is rewritten with as many bytes and given its old time back is not
    noticed, and a copy that does not keep the times counts as other. Of a source that is none of
    these every example is read.
    """
    digest = hashlib.sha256()
    for part in identify(source):
        digest.update(part)
    return digest.hexdigest()


def identify(source: Source) -> Iterator[bytes | memoryview]:
    """Yields what tells a split from others, as `fingerprint` says."""
    own = getattr(source, "identify", None)
    if own is not None:
        yield from own()
        return
    for i in range(len(source)):
        image, label = source[i]["image"], source[i]["label"]
        stored = image if isinstance(image, bytes) else image.tobytes()
        yield f"{label} {np.shape(image)} {len(stored)} ".encode() + stored


def identify_files(root: pathlib.Path, paths: Sequence[str]) -> Iterator[bytes]:
    """Yields the names, sizes and times of change of files in a folder."""
    for path in paths:
        found = (root / path).stat()
        yield os.fsencode(path) + f"\0{found.st_size} {found.st_mtime_ns}\0".encode()


@dataclasses.dataclass(frozen=True, eq=False)
class _Arrays:
    images: np.ndarray
    labels: np.ndarray
    name: str

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return Example(
            image=self.images[index],
            label=int(self.labels[index]),
            name=f"{self.name}[{index}]",
        )

    def identify(self) -> Iterator[bytes | memoryview]:
        yield f"{self.images.shape} {self.labels.dtype} ".encode()
        for array in (self.images, self.labels):
            yield np.ascontiguousarray(array).data


@dataclasses.dataclass(frozen=True, eq=False)
class _Records:
    records: Any  # a TFDS data source whose images are left encoded
    name: str
    root: pathlib.Path
    split: str
    files: list[str]  # of the records, in root

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        record = self.records[index]
        name = f"{self.name}[{index}]"
        if "file_name" in record:  # ImageNet knows each image by its original file
            name += f" ({record['file_name'].decode()})"
        return Example(image=record["image"], label=int(record["label"]), name=name)

    def identify(self) -> Iterator[bytes | memoryview]:
        yield from identify_files(self.root, self.files)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        # A label cannot be read without its record, and ImageNet's are 140 GB.
        path, key = self.root / f"jaxdl-labels-{self.split}.npz", fingerprint(self)
        with (
            contextlib.suppress(Exception),  # not there, or damaged
            path.open("rb") as file,
            np.load(file, allow_pickle=False) as saved,
        ):
            if str(saved["key"]) == key:
                return saved["labels"]
        if len(self) >= MANY:
            print(f"reading the labels of {self.name}, once: {path}", file=sys.stderr)
        found = np.array([self.records[i]["label"] for i in range(len(self))], np.int64)
        # The set may be one that may only be read.
        with contextlib.suppress(OSError), files.replacing(path) as output:
            np.savez(output, labels=found, key=np.array(key))
        return found


def _load_tfds(name: str, root: pathlib.Path) -> Dataset:
    import tensorflow_datasets as tfds

    builder = open_tfds(name, root)
    features = dict(builder.info.features.items())
    if not (
        isinstance(features.get("image"), tfds.features.Image)
        and isinstance(features.get("label"), tfds.features.ClassLabel)
    ):
        raise InputError(
            f"{name} has the features {name_some(sorted(features))}; "
            "expected an 'image' (Image) and a 'label' (ClassLabel)"
        )
    splits: dict[str, Source] = {}
    for split in ("train", "validation", "test"):
        if split not in builder.info.splits or not builder.info.splits[split].num_examples:
            continue
        records = _Records(
            builder.as_data_source(
                split,
                decoders={"image": tfds.decode.SkipDecoding()},
                file_format="array_record",
            ),
            f"{name} {split}",
            pathlib.Path(builder.data_path),
            split,
            [pathlib.Path(path).name for path in builder.info.splits[split].filepaths],
        )
        try:
            labelled = records[0]["label"] >= 0  # ImageNet's test images are all labelled -1
        except Exception as error:  # ArrayRecord's reader has no exception type of its own
            raise InputError(
                f"{builder.data_path} is damaged: its {split} split cannot be read; remove the "
                f"directory and prepare it again: {build_command(name, root)}"
            ) from error
        if labelled:
            splits[split] = records
    if "train" not in splits:
        raise InputError(
            f"{name} has the splits {name_some(builder.info.splits.keys())}; "
            "expected 'train', with labels"
        )
    channels = 1 if features["image"].shape[-1] == 1 else 3
    return Dataset(name, splits, tuple(features["label"].names), channels)


def open_tfds(name: str, root: pathlib.Path) -> Any:
    """Returns TFDS's builder of the set `name` in `root`, which is prepared as ArrayRecord."""
    import tensorflow_datasets as tfds

    version_dir = find_version(name, root)
    builder: Any = tfds.builder_from_directory(version_dir)
    if tfds.core.FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
        raise InputError(
            f"{version_dir} is prepared as {builder.info.file_format.value}; expected "
            "array_record: pip install 'jaxdl[tensorflow]' && tfds convert_format "
            f"--dataset_version_dir={version_dir} --out_file_format=array_record"
        )
    return builder


def find_version(name: str, root: pathlib.Path) -> pathlib.Path:
    """Returns the directory of the newest version that `name`, such as `NAME/CONFIG:V`, allows.

    TFDS has a search of its own, but it imports the set's code, which may want TensorFlow, and
    tells what is missing in a page of context.
    """
    import tensorflow_datasets as tfds

    match = re.fullmatch(r"(\w+(?:/[\w.+-]+)?)(?::([\d*]+\.[\d*]+\.[\d*]+))?", name)
    if not match:
        raise InputError(
            f"dataset {name!r} is not a name; expected digits, folder:PATH, idx:FOLDER, or a TFDS "
            f"name such as mnist, imagenet_resized/32x32 or mnist:3.0.1{_guess(name, root)}"
        )
    set_name, wanted = match.groups()
    prepared = [path.parent for path in (root / set_name).glob("*/features.json")]
    versions = [path for path in prepared if tfds.core.Version.is_valid(path.name)]
    for path in sorted(versions, key=lambda path: tfds.core.Version(path.name), reverse=True):
        if wanted is None or tfds.core.Version(path.name).match(wanted):
            return path
    others = {path.name for path in versions}
    others |= {
        f"{set_name}/{path.parents[1].name}" for path in root.glob(f"{set_name}/*/*/features.json")
    }
    if not others and set_name.split("/")[0] not in _listed_sets():
        raise InputError(
            f"dataset {name!r} is not prepared in {root}, and TFDS lists no set of that name"
            f"{_guess(name, root)}"
        )
    found = f" (there is {name_some(sorted(others))})" if others else ""
    raise InputError(
        f"dataset {name!r} is not prepared in {root}{found}; prepare it with: "
        f"{build_command(name, root)}"
    )


def _listed_sets() -> set[str]:
    """The sets that TFDS has code for, by its files: to import it all would take TensorFlow."""
    import tensorflow_datasets as tfds

    package = pathlib.Path(tfds.__file__).parent
    folders = (path.parent for path in package.glob("*/*/__init__.py"))
    no_sets = ("core", "scripts", "testing")
    by_folder = {folder.name for folder in folders if folder.parent.name not in no_sets}
    return by_folder | {path.stem for path in package.glob("url_checksums/*.txt")}


def _guess(name: str, root: pathlib.Path) -> str:
    """What may have been meant by a name of no set, to end a message."""
    if name and pathlib.Path(name).expanduser().is_dir():
        is_idx = any(pathlib.Path(name).expanduser().glob("train-images?idx3-ubyte*"))
        return f"; did you mean {'idx' if is_idx else 'folder'}:{name}?"
    depths = ("*/*/features.json", "*/*/*/features.json")
    prepared = {path.relative_to(root).parts[0] for depth in depths for path in root.glob(depth)}
    known = ["digits", *sorted(prepared | _listed_sets())]
    plain = re.sub(r"[^\w]", "", re.split("[/:]", name)[0]).lower()
    close = difflib.get_close_matches(plain, known, 3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def build_command(name: str, root: pathlib.Path) -> str:
    """What prepares a set of TFDS."""
    return (
        "pip install 'jaxdl[tensorflow]' && "
        f"tfds build {name} --data_dir={root} --file_format=array_record"
    )


def name_some(names: Any) -> str:
    """The first few of `names`, for a message of one line."""
    names = list(names)
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
