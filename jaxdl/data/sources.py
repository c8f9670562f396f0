"""Where images come from: TFDS sets prepared as ArrayRecord, image folders, plain arrays.

Every split is a `Source`: random access by index, picklable (worker processes get a copy), and
undecoded, so that one damaged image is one damaged image and not a dead run.
"""

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np

from jaxdl import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class Example(TypedDict):
    """One labelled image as it is stored."""

    image: bytes | np.ndarray  # an encoded file, or uint8 [H, W, C]
    label: int
    name: str  # what messages call it: a path, or the set, split and index


class Source(Protocol):
    """Random access to the examples of one split; must survive pickling."""

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def __getitem__(self, index: int, /) -> Example:
        """Return example `index`, in 0..len-1."""
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
    """Open a set that is already on this machine; never touches the network.

    Args:
        name: `digits` (prepares itself on first use); a TFDS name, `name/config` or `name:version`
            prepared as ArrayRecord (the newest version unless one is named); or `folder:PATH` with
            PATH/train/CLASS/*.jpg and likewise `validation` (or `val`) and `test`. A folder's
            classes are its sorted directory names, and its images count as RGB whatever they hold.
            Images without classes lie in PATH/train and so on themselves, or all in PATH, which is
            then the train split.
        data_dir: where TFDS keeps its sets; by default TFDS's own choice, $TFDS_DATA_DIR or
            ~/tensorflow_datasets. Folders do not use it.

    Raises:
        InputError: the set is not there or not usable; the message says what to do.
    """
    if name.startswith("folder:"):
        return _load_folder(pathlib.Path(name.removeprefix("folder:")).expanduser())
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
    """Make a set of arrays in memory.

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
        class_names = [str(label) for label in range(int(np.max(labels, initial=-1)) + 1)]
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


def split_off(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Move a random share of 'train' to a new 'validation' split; the same one for the same seed.

    Args:
        dataset: a set without a validation split.
        share: the part of the train examples to move, in (0, 1).
        seed: which examples.

    Raises:
        InputError: there is a validation split, or either part would be empty.
    """
    if "validation" in dataset.splits:
        raise InputError(
            f"{dataset.name} has a validation split of its own; "
            "a share of train can be split off only from a set without one"
        )
    train = dataset.splits["train"]
    count = round(share * len(train)) if 0 < share < 1 else 0
    if not 0 < count < len(train):
        raise InputError(
            f"validation share {share} of {len(train)} train examples leaves a part empty; "
            "expected a share between 0 and 1 that gives both parts an example"
        )
    order = np.random.default_rng(seed).permutation(len(train))
    parts: dict[str, Source] = {
        "train": _Subset(train, np.sort(order[count:])),
        "validation": _Subset(train, np.sort(order[:count])),
    }
    return dataset._replace(splits=dataset.splits | parts)


def labels(source: Source) -> np.ndarray:
    """Return the label of every example, integers [N]; no image is decoded.

    Arrays, folders and what is made of them hold their labels; of other sources each example is
    read.
    """
    held = getattr(source, "labels", None)
    if held is None:
        held = [source[i]["label"] for i in range(len(source))]
    return np.asarray(held)


def require_classes(dataset: Dataset) -> None:
    """Raise InputError for a set whose images have no classes."""
    if not dataset.class_names:
        raise InputError(
            f"{dataset.name} has no classes; expected a set with classes, such as a folder with "
            "PATH/train/CLASS/*.jpg"
        )


def only(dataset: Dataset, class_names: Sequence[str]) -> Dataset:
    """Keep the examples of some classes, labelled anew in the order given.

    Args:
        dataset: the set, of which every split is reduced.
        class_names: at least two of its classes; the first becomes label 0.

    Raises:
        InputError: a class that the set does not have or that is given twice, fewer than two, or a
            split that would be left empty.
    """
    require_classes(dataset)
    unknown = [name for name in class_names if name not in dataset.class_names]
    if unknown:
        raise InputError(
            f"{dataset.name} has no class {unknown[0]!r}; it has {name_some(dataset.class_names)}"
        )
    if len(set(class_names)) < max(2, len(class_names)):
        raise InputError(
            f"classes {name_some(class_names)} of {dataset.name}: expected at least two, each once"
        )
    new_labels = np.full(len(dataset.class_names), -1)
    new_labels[[dataset.class_names.index(name) for name in class_names]] = range(len(class_names))
    splits: dict[str, Source] = {}
    for split, source in dataset.splits.items():
        relabelled = new_labels[labels(source)]
        indices = np.flatnonzero(relabelled >= 0)
        if not len(indices):
            raise InputError(
                f"the {split} split of {dataset.name} has no example of {name_some(class_names)}"
            )
        splits[split] = _Subset(source, indices, relabelled[indices])
    return dataset._replace(splits=splits, class_names=tuple(class_names))


def few(dataset: Dataset, per_class: int, seed: int) -> Dataset:
    """Keep so many train examples of each class, and all of the other splits.

    The same seed draws the same examples, and a smaller number a part of a larger one's.

    Args:
        dataset: the set.
        per_class: how many of each class.
        seed: which examples.

    Raises:
        InputError: fewer than one is wanted, or more than a class has, or there are no classes.
    """
    require_classes(dataset)
    train = dataset.splits["train"]
    of_train = labels(train)
    counts = np.bincount(of_train, minlength=len(dataset.class_names))
    if not 1 <= per_class <= counts.min():
        raise InputError(
            f"{per_class} train examples of each class of {dataset.name}: expected 1 to "
            f"{counts.min()}, what there is of class {dataset.class_names[counts.argmin()]!r}"
        )
    order = np.random.default_rng(seed).permutation(len(train))
    chosen = [order[of_train[order] == label][:per_class] for label in range(len(counts))]
    subset = _Subset(train, np.sort(np.concatenate(chosen)))
    return dataset._replace(splits=dataset.splits | {"train": subset})


def fold(dataset: Dataset, folds: int, number: int, seed: int) -> Dataset:
    """Cut 'train' into equal parts at random; one becomes 'validation' and the others 'train'.

    Every example is in the validation split of just one fold. Classes are not balanced; parts
    differ by one example where the number of folds does not divide that of the examples.

    Args:
        dataset: a set without a validation split.
        folds: how many parts.
        number: which part is for validation, from 0.
        seed: of the cut, the same for all folds of one cross-validation.

    Raises:
        InputError: there is a validation split, or one of the numbers is out of range.
    """
    if "validation" in dataset.splits:
        raise InputError(
            f"{dataset.name} has a validation split of its own; "
            "folds can be cut only from a set without one"
        )
    train = dataset.splits["train"]
    if not 2 <= folds <= len(train):
        raise InputError(
            f"{folds} folds of {len(train)} train examples: expected 2 to {len(train)}"
        )
    if not 0 <= number < folds:
        raise InputError(f"fold {number} of {folds}: expected 0 to {folds - 1}")
    cut = np.array_split(np.random.default_rng(seed).permutation(len(train)), folds)
    validation = cut.pop(number)
    parts: dict[str, Source] = {
        "train": _Subset(train, np.sort(np.concatenate(cut))),
        "validation": _Subset(train, np.sort(validation)),
    }
    return dataset._replace(splits=dataset.splits | parts)


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


@dataclasses.dataclass(frozen=True, eq=False)
class _Subset:
    source: Source
    indices: np.ndarray
    new_labels: np.ndarray | None = None  # of the chosen examples, where they are not the source's

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        example = self.source[int(self.indices[index])]
        if self.new_labels is not None:
            example["label"] = int(self.new_labels[index])
        return example

    @property
    def labels(self) -> np.ndarray:
        return labels(self.source)[self.indices] if self.new_labels is None else self.new_labels


@dataclasses.dataclass(frozen=True, eq=False)
class _Files:
    root: pathlib.Path
    paths: list[str]  # relative to root, to keep the copy that each worker gets small
    labels: list[int]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        path = self.root / self.paths[index]
        try:
            image = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror})") from error
        return Example(image=image, label=self.labels[index], name=str(path))


@dataclasses.dataclass(frozen=True, eq=False)
class _Records:
    records: Any  # a TFDS data source whose images are left encoded
    name: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        record = self.records[index]
        name = f"{self.name}[{index}]"
        if "file_name" in record:  # ImageNet knows each image by its original file
            name += f" ({record['file_name'].decode()})"
        return Example(image=record["image"], label=int(record["label"]), name=name)


def _load_folder(root: pathlib.Path) -> Dataset:
    places = [("train", "train"), ("validation", "validation"), ("validation", "val")]
    places += [("test", "test")]
    if not (root / "train").is_dir():
        if not (root.is_dir() and any(path.is_file() for path in _images(root))):
            raise InputError(
                f"folder {root} has no directory 'train' and no images; expected "
                f"{root}/train/CLASS/*.jpg, or {root}/*.jpg without classes"
            )
        places = [("train", "")]
    train = root / places[0][1]
    class_names = tuple(path.name for path in _visible(train) if path.is_dir())
    splits: dict[str, Source] = {}
    for split, directory in places:
        if (root / directory).is_dir():
            if split in splits:
                raise InputError(f"folder {root} has both 'validation' and 'val'; expected one")
            splits[split] = _index_files(root / directory, class_names)
    return Dataset(f"folder:{root}", splits, class_names, channels=3)


def _index_files(directory: pathlib.Path, class_names: tuple[str, ...]) -> _Files:
    class_dirs = [path for path in _visible(directory) if path.is_dir()]
    loose = [path for path in _images(directory) if path not in class_dirs]
    if loose and class_dirs:
        raise InputError(
            f"{directory} holds images and directories, such as {loose[0].name!r} and "
            f"{class_dirs[0].name!r}; expected one or the other"
        )
    if not loose and not class_dirs:
        raise InputError(
            f"{directory} holds no classes and no images; expected {directory}/CLASS/*.jpg, or "
            f"{directory}/*.jpg without classes"
        )
    if bool(class_dirs) != bool(class_names):
        has, form = ("no classes", "CLASS/*.jpg") if class_names else ("classes", "*.jpg")
        raise InputError(f"{directory} has {has}, unlike train; expected {directory}/{form}")
    paths, labels = [path.name for path in loose], [0] * len(loose)
    for class_dir in class_dirs:
        if class_dir.name not in class_names:
            raise InputError(
                f"{class_dir} is not one of the classes of train; expected {name_some(class_names)}"
            )
        images = _images(class_dir)
        if not images:
            raise InputError(
                f"{class_dir} holds no images; expected files ending in {', '.join(IMAGE_SUFFIXES)}"
            )
        paths += [f"{class_dir.name}/{path.name}" for path in images]
        labels += [class_names.index(class_dir.name)] * len(images)
    return _Files(directory, paths, labels)


def _images(directory: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in _visible(directory) if path.suffix.lower() in IMAGE_SUFFIXES]


def _visible(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in directory.iterdir() if not path.name.startswith("."))


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
    """Return TFDS's builder of the set `name` in `root`, which is prepared as ArrayRecord."""
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
    """Return the directory of the newest prepared version that `name` (NAME[/CONFIG][:V]) allows.

    TFDS has a search of its own, but it imports the set's code, which may want TensorFlow, and
    tells what is missing in a page of context.
    """
    import tensorflow_datasets as tfds

    match = re.fullmatch(r"(\w+(?:/[\w.+-]+)?)(?::([\d*]+\.[\d*]+\.[\d*]+))?", name)
    if not match:
        raise InputError(
            f"dataset {name!r} is not a name; expected digits, folder:PATH, or a TFDS name such as "
            "mnist, imagenet_resized/32x32 or mnist:3.0.1"
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
    found = f" (there is {name_some(sorted(others))})" if others else ""
    raise InputError(
        f"dataset {name!r} is not prepared in {root}{found}; prepare it with: "
        f"{build_command(name, root)}"
    )


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
