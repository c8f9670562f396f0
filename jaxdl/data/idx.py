"""Sets in MNIST's own format, idx: FOLDER/train-images-idx3-ubyte and the like.

A file is four bytes (zero, zero, the type of the values, the number of axes), the length of each
axis as a big-endian integer of four bytes, and the values, those of the last axis side by side.
"""

import gzip
import hashlib
import math
import pathlib
import struct
import zlib

import numpy as np

from jaxdl import InputError, require
from jaxdl.data.sources import Dataset, from_arrays

FILES = {"images-idx3-ubyte": 3, "labels-idx1-ubyte": 1}  # the ends of their names: their axes
UINT8 = 0x08
GZIP = b"\x1f\x8b"

# The format holds no names of classes. Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747) is known
# by the digest of its train labels; the classes of other sets are called by their numbers.
FASHION_DIGEST = "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7"
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def load(root: pathlib.Path) -> Dataset:
    """Reads a folder of idx files into memory, as `sources.load` describes.

    Raises:
      InputError: a file is missing, cut or of another kind, or they do not fit together.
    """
    images, labels = _read_split(root, "train")
    is_fashion = hashlib.sha256(labels.tobytes()).hexdigest() == FASHION_DIGEST
    is_tested = any(_find(root, f"t10k-{end}") for end in FILES)
    return from_arrays(
        images,
        labels,
        test=_read_split(root, "t10k") if is_tested else None,
        class_names=FASHION_CLASSES if is_fashion else None,
        name=f"idx:{root}",
    )


def _find(root: pathlib.Path, name: str) -> pathlib.Path | None:
    """The file of a folder that has a name of MNIST's, in any of its spellings, if one has."""
    spellings = (name, name.replace("-idx", ".idx"))
    paths = (root / f"{spelling}{end}" for spelling in spellings for end in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def _read_split(root: pathlib.Path, start: str) -> tuple[np.ndarray, np.ndarray]:
    """The images, uint8 [N, H, W, 1], and the labels, uint8 [N], of files whose names begin so."""
    found = []
    for end, axes in FILES.items():
        path = _find(root, f"{start}-{end}")
        if path is None:
            names = " and ".join(f"{start}-{end}" for end in FILES)
            raise InputError(
                f"idx folder {root} has no {start}-{end}; expected {names}, gzipped (.gz) or not, "
                "with a dash or a dot before idx"
            )
        found.append(_read(path, axes))
    images, labels = found
    return images[..., None], labels


def _read(path: pathlib.Path, axes: int) -> np.ndarray:
    """The array in a file, uint8 of so many axes."""
    try:
        stored = path.read_bytes()
        if stored.startswith(GZIP):  # whatever its name says
            stored = gzip.decompress(stored)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); expected a whole file") from error
    magic, begins = bytes([0, 0, UINT8, axes]), stored[:4]
    require(
        begins == magic,
        f"{path} begins with the bytes {begins.hex(' ') or 'of an empty file'}",
        f"{magic.hex(' ')}, which say uint8 [{', '.join('NHW'[:axes])}] in the idx format",
    )
    header = 4 + 4 * axes
    require(len(stored) >= header, f"{path} ends within its header", f"{header} bytes of it")
    shape = struct.unpack(f">{axes}I", stored[4:header])
    require(
        len(stored) - header == math.prod(shape) > 0,
        f"{path} holds {len(stored) - header} values, and its header says {list(shape)}",
        "as many as that, and at least one",
    )
    return np.frombuffer(stored, np.uint8, offset=header).reshape(shape)
