"""Image folders: PATH/train/CLASS/*.jpg and the like, as `sources.load` describes them."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxdl import InputError
from jaxdl.data.sources import Dataset, Example, Source, identify_files, name_some

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
HEADERS = 64  # how many images are looked at to tell whether a folder is gray


@dataclasses.dataclass(frozen=True, eq=False)
class _Files:
    root: pathlib.Path
    paths: list[str]  # relative to root, to keep the copy that each worker gets small
    labels: list[int]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        path = os.path.join(self.root, self.paths[index])  # a Path takes as long as to open it
        try:
            with open(path, "rb", buffering=0) as file:
                image = file.read()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror})") from error
        return Example(image=image, label=self.labels[index], name=path)

    def identify(self) -> Iterator[bytes | memoryview]:
        yield np.array(self.labels).tobytes()
        yield from identify_files(self.root, self.paths)


class _Listing(NamedTuple):
    """What lies in a folder, each kind sorted; what is hidden is left out."""

    folders: list[str]
    images: list[str]
    others: list[str]


def _list(folder: pathlib.Path) -> _Listing:
    found = _Listing([], [], [])
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                found.folders.append(entry.name)
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                found.images.append(entry.name)
            else:
                found.others.append(entry.name)
    for names in found:
        names.sort()
    return found


def load(root: pathlib.Path) -> Dataset:
    """Indexes a folder of images as `sources.load` describes.

    Raises:
      InputError: it is not there, or what lies in it is no set; the message says what to do.
    """
    places = {name: root / name for name in SPLITS if (root / name).is_dir()}
    if "train" not in places:
        holds = _list(root) if root.is_dir() else _Listing([], [], [])
        in_classes = (_list(root / name).images for name in holds.folders)
        if places or not (holds.images or any(in_classes)):
            there = f"{next(iter(places))!r} but no" if places else "no images and no"
            raise InputError(
                f"folder {root} has {there} directory 'train'; expected "
                f"{root}/train/CLASS/*.jpg or {root}/CLASS/*.jpg, or without classes {root}/*.jpg"
            )
        places = {"train": root}
    if {"validation", "val"} <= places.keys():
        raise InputError(f"folder {root} has both 'validation' and 'val'; expected one")
    class_names = tuple(_list(places["train"]).folders)
    splits: dict[str, Source] = {}
    ignored: list[pathlib.Path] = []
    for name, folder in places.items():
        files, others = _index_files(folder, class_names)
        splits[SPLITS[name]] = files
        ignored += others
        if name == "train":
            channels = _count_channels(files)
    if ignored:
        _say_once(
            f"folder:{root}: left out for not being named like images: {len(ignored)}, such as "
            f"{ignored[0]}; expected {', '.join(IMAGE_SUFFIXES)}"
        )
    return Dataset(f"folder:{root}", splits, class_names, channels)


def _index_files(
    folder: pathlib.Path, class_names: tuple[str, ...]
) -> tuple[_Files, list[pathlib.Path]]:
    """The images of a split, and what lies among them and is none."""
    class_folders, images, others = _list(folder)
    if images and class_folders:
        raise InputError(
            f"{folder} holds images and directories, such as {images[0]!r} and "
            f"{class_folders[0]!r}; expected one or the other"
        )
    if not images and not class_folders:
        raise InputError(
            f"{folder} holds no classes and no images; expected {folder}/CLASS/*.jpg, or "
            f"{folder}/*.jpg without classes"
        )
    if bool(class_folders) != bool(class_names):
        has, form = ("no classes", "CLASS/*.jpg") if class_names else ("classes", "*.jpg")
        raise InputError(f"{folder} has {has}, unlike train; expected {folder}/{form}")
    paths, labels = images, [0] * len(images)
    ignored = [folder / name for name in others]
    for name in class_folders:
        if name not in class_names:
            raise InputError(
                f"{folder / name} is not one of the classes of train; "
                f"expected {name_some(class_names)}"
            )
        within = _list(folder / name)
        if not within.images:
            raise InputError(
                f"{folder / name} holds no images; expected files ending in "
                f"{', '.join(IMAGE_SUFFIXES)}"
            )
        paths += [f"{name}/{image}" for image in within.images]
        labels += [class_names.index(name)] * len(within.images)
        ignored += [folder / name / other for other in (*within.others, *within.folders)]
    return _Files(folder, paths, labels), ignored


def _count_channels(files: _Files) -> int:
    """1 if all images that are looked at are gray, else 3; the same on every host."""
    places = np.unique(np.linspace(0, len(files) - 1, HEADERS).astype(int))
    modes = []
    for place in places:
        with (
            contextlib.suppress(Exception),  # a damaged one tells nothing
            Image.open(files.root / files.paths[place]) as picture,
        ):
            modes.append(Image.getmodebase(picture.mode))
    if set(modes) != {"L"}:
        return 3
    if len(places) < len(files):
        _say_once(
            f"{files.root}: the {len(files)} images are taken to be gray, as are all "
            f"{len(modes)} that were looked at"
        )
    return 1


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)
