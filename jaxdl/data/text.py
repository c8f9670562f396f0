"""Texts: where they come from, their tokens, and which stretch of them belongs to which step.

    corpus = read_corpus("books/")               # {"train": str, "validation": str, "test": str}
    vocabulary = CharVocabulary.of("byte", corpus)
    splits = {split: vocabulary.encode(text) for split, text in corpus.items()}
    pipeline = TextPipeline(splits, batch_size=32, length=64)

The batch of step n is a pure function of (seed, n), as in `jaxdl.data.pipeline`.
"""

import dataclasses
import hashlib
import os
import pathlib
import sysconfig
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from jaxdl import InputError
from jaxdl.data.order import generator_for
from jaxdl.data.pipeline import Sharding, StreamPipeline
from jaxdl.data.rows import Field, Schema
from jaxdl.data.sources import name_some, open_tfds

SPLITS = ("train", "validation", "test")
HELD_OUT = 20  # one part in so many is for validation, and one for test

# What stands in the standard library's folder beside the library: installed packages, and tests,
# among which are files that are broken on purpose.
NOT_THE_LIBRARY = ("site-packages", "dist-packages", "test", "tests", "idle_test")


def read_corpus(name: str = "", data_dir: str | None = None) -> dict[str, str]:
    """Reads a text and its three splits.

    - "" is the source of the standard library of the Python that runs this, without its tests:
      about 12 MB, which differ a little from one version of Python to the next.
    - A folder is all the files in it and below but hidden ones, in the order of their paths.
    - A file is cut by position: the last tenth is, half and half, validation and test.
    - `tfds:NAME` is the feature `text` of a set that TFDS prepared as ArrayRecord, an example a
      line.

    The files of a folder, and of the library, are dealt out by a hash of their relative paths, so
    that a file stays in its split whatever comes and goes beside it. What has no validation or test
    split of its own, or would leave one without a file, is cut by position as a file is.

    Args:
      name: which text.
      data_dir: where TFDS keeps its sets; by default TFDS's own choice.

    Returns:
      'train', 'validation' and 'test', none of them empty.

    Raises:
      InputError: it is not there, too short to have three splits, or not UTF-8 text.
    """
    if name.startswith("tfds:"):
        return _held_out(_read_tfds(name.removeprefix("tfds:"), data_dir), name)
    path = pathlib.Path(name or sysconfig.get_path("stdlib")).expanduser()
    if path.is_dir():
        files = _files(path) if name else _files(path, ".py", NOT_THE_LIBRARY)
        return _held_out(_read_folder(path, files), str(path))
    if path.is_file():
        return _held_out({"train": _read_file(path)}, name)
    raise InputError(f"no text {name!r}; expected a file, a folder, or tfds:NAME")


def _files(root: pathlib.Path, suffix: str = "", not_in: Collection[str] = ()) -> list[str]:
    """The paths below a folder, relative and sorted, without what is hidden or in such folders."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in not_in and name[0] != "."]
        names = [name for name in names if name.endswith(suffix) and name[0] != "."]
        found += [pathlib.Path(folder, name).relative_to(root).as_posix() for name in names]
    return sorted(found)


def _read_folder(root: pathlib.Path, names: list[str]) -> dict[str, str]:
    if not names:
        raise InputError(f"folder {root} holds no files of text")
    parts: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name in names:
        parts[_split_of(name)].append(_read_file(root / name))
    splits = {split: "".join(texts) for split, texts in parts.items()}
    if all(splits.values()):
        return splits
    return {"train": "".join(_read_file(root / name) for name in names)}


def _split_of(name: str) -> str:
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return {0: "validation", 1: "test"}.get(int.from_bytes(digest[:8]) % HELD_OUT, "train")


def _read_file(path: pathlib.Path) -> str:
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.start} is {error.object[error.start]:#04x})"
        ) from None
    if "\0" in text:
        raise InputError(f"{path} is not text: character {text.index(chr(0))} is NUL")
    return text


def _read_tfds(name: str, data_dir: str | None) -> dict[str, str]:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import constants

    root = pathlib.Path(data_dir or constants.get_default_data_dir()).expanduser()
    builder = open_tfds(name, root)
    features = dict(builder.info.features.items())
    if not isinstance(features.get("text"), tfds.features.Text):
        raise InputError(
            f"{name} has the features {name_some(sorted(features))}; expected a 'text'"
        )
    splits = {}
    for split in SPLITS:
        if split in builder.info.splits and builder.info.splits[split].num_examples:
            records = builder.as_data_source(split, file_format="array_record")
            splits[split] = "".join(f"{record['text'].decode()}\n" for record in records)
    if "train" not in splits:
        raise InputError(
            f"{name} has the splits {name_some(builder.info.splits)}; expected 'train'"
        )
    return splits


def _held_out(splits: dict[str, str], name: str) -> dict[str, str]:
    """Cuts those of the three splits that there are not off the end of train."""
    count = len(splits["train"])
    share = count // HELD_OUT
    if not share and len(splits) < len(SPLITS):
        raise InputError(
            f"text {name!r} has {count} characters; expected at least {HELD_OUT}, to hold out some"
        )
    for split in ("test", "validation"):
        if split not in splits:
            train = splits["train"]
            splits[split], splits["train"] = train[-share:], train[:-share]
    return {split: splits[split] for split in SPLITS}


class CharVocabulary(NamedTuple):
    """What the tokens of a text stand for: bytes of its UTF-8 form, or characters.

    Attributes:
      characters: the character of each token, sorted; None where tokens are bytes.
    """

    characters: str | None = None

    @classmethod
    def of(cls, level: str, corpus: Mapping[str, str]) -> "CharVocabulary":
        """Returns the 256 bytes, or all characters of all splits of a corpus.

        Held-out text takes part, because a model that cannot name a character has no loss on it.
        """
        if level == "byte":
            return cls()
        return cls("".join(sorted(set().union(*corpus.values()))))

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return 256 if self.characters is None else len(self.characters)

    def encode(self, text: str, name: str = "the text") -> np.ndarray:
        """Returns the tokens of a text, uint8 [N] for bytes or int32 [N] for characters.

        Args:
          text: what to encode.
          name: what messages call it.

        Raises:
          InputError: a character that is not in the vocabulary.
        """
        if self.characters is None:
            # A command line that is not UTF-8 comes with its bytes escaped.
            return np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)
        known, codes = (_code_points(each) for each in (self.characters, text))
        tokens = np.searchsorted(known, codes).clip(max=len(known) - 1).astype(np.int32)
        strange = np.flatnonzero(known[tokens] != codes)
        if len(strange):
            raise InputError(
                f"{name} has the character {chr(codes[strange[0]])!r}, which is not among the "
                f"{self.size} of the vocabulary: {self.characters[:100]!r}"
            )
        return tokens

    def decode(self, tokens: np.ndarray) -> str:
        """Returns the text of tokens [N]; bytes that are no UTF-8 become U+FFFD."""
        if self.characters is None:
            return bytes(np.asarray(tokens).tolist()).decode(errors="replace")
        return "".join(self.characters[token] for token in tokens)


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.uint32)


@dataclasses.dataclass(frozen=True)
class _Streams:
    """The stream of training: a text read along several streams side by side."""

    text: np.ndarray
    batch_size: int
    length: int
    seed: int

    @property
    def steps(self) -> None:
        """No end."""

    @property
    def steps_per_epoch(self) -> int:
        return len(self.text) // self.batch_size // self.length

    @property
    def schema(self) -> Schema:
        return {
            "token": Field((self.length + 1,), np.int32),
            "mask": Field((self.length,), np.float32),
            "row": Field((), np.int32),
            "fresh": Field((), np.float32),
        }

    def __call__(self, step: int, places: np.ndarray) -> dict[str, np.ndarray]:
        size = len(self.text)
        epoch, step = divmod(step, self.steps_per_epoch)
        offset = generator_for(self.seed, 0, epoch).integers(size)
        starts = offset + places * (size // self.batch_size) + step * self.length
        read = starts[:, None] + np.arange(self.length + 1)
        return {
            "token": self.text[read % size].astype(np.int32),
            "mask": np.ones((len(places), self.length), np.float32),
            "row": places.astype(np.int32),
            "fresh": np.full(len(places), step == 0, np.float32),
        }


@dataclasses.dataclass(frozen=True)
class _Windows:
    """The stream of evaluation: windows that follow one another, each after its context."""

    text: np.ndarray
    batch_size: int
    window: int
    context: int

    @property
    def steps(self) -> int:
        return -(-len(self.text) // (self.window * self.batch_size))

    def __call__(self, step: int, places: np.ndarray) -> dict[str, np.ndarray]:
        size = len(self.text)
        rows = step * self.batch_size + places
        first = rows[:, None] * self.window  # what counts is from here up to `past`
        past = np.minimum(first + self.window, size)
        # The first windows have less before them than `context`; they begin with the text.
        starts = np.maximum(first - self.context, 0)
        read = starts + np.arange(-1, self.context + self.window)
        within = (read >= 0) & (read < size)
        counts = (read >= first) & (read < past)
        token = np.where(within, self.text[read.clip(0, size - 1)], 0)
        return {"token": token.astype(np.int32), "mask": counts[:, 1:].astype(np.float32)}


class TextPipeline(StreamPipeline):
    """The batches of one text, for training by step and for evaluation in order.

    A batch has `token` int32 [B, T + 1], of which a model reads all but the last and predicts all
    but the first, and `mask` float32 [B, T], 1 for a prediction that counts.

    Training reads the text as a ring, along B streams side by side: row b of a step begins where
    row b of the step before ended, so that a recurrent state can be carried from one to the next.
    Its batches also have `row` int32 [B], the number of the stream, and `fresh` float32 [B], 1
    where it begins anew. Each epoch deals the ring out to the streams from another offset, and
    leaves out what fills no step: less than B (T + 1) tokens, others each time.

    Evaluation reads windows; before what is counted in a window comes a context that is not, to
    warm the state up. Each token of the split is counted once; before its first one stands token 0.

    In a multi-process run each process makes only the rows that its own devices hold.
    """

    def __init__(
        self,
        splits: Mapping[str, np.ndarray],
        batch_size: int,
        length: int,
        *,
        seed: int = 0,
        window: int = 512,
        context: int = 128,
        sharding: "Sharding | None" = None,
        rows: slice | None = None,
    ):
        """Checks the sizes.

        Args:
          splits: the tokens of 'train' and the other splits, integers [N].
          batch_size: rows of a global batch, B; in training, streams.
          length: T in training, tokens.
          seed: of the offsets, at least 0.
          window: how many tokens a row of evaluation counts.
          context: how many it reads before those.
          sharding: how the batch axis lies on the devices; batches are then global `jax.Array`s.
            Without it they are NumPy arrays.
          rows: the rows of each batch that this process makes; by default those that its devices
            hold under `sharding`, or all.

        Raises:
          InputError: an argument out of range, or a text too short for one step.
        """
        sizes = {"batch size": batch_size, "length": length, "window": window}
        for name, value, least in (*((k, v, 1) for k, v in sizes.items()), ("seed", seed, 0)):
            if value < least:
                raise InputError(f"{name} {value}: expected at least {least}")
        if context < 0:
            raise InputError(f"context {context}: expected at least 0")
        if len(splits["train"]) < batch_size * length:
            raise InputError(
                f"the train split has {len(splits['train'])} tokens; {batch_size} streams of steps "
                f"of {length} need at least {batch_size * length}"
            )
        self.length = length
        self.window = window
        self.context = context
        self._texts = dict(splits)
        self._streams = _Streams(splits["train"], batch_size, length, seed)
        sizes = {split: len(text) for split, text in splits.items()}
        super().__init__(
            "the text", sizes, batch_size, self._streams.schema, sharding=sharding, rows=rows
        )

    @property
    def steps_per_epoch(self) -> int:
        """How many steps pass along the whole of each stream."""
        return self._streams.steps_per_epoch

    def _train_stream(self) -> _Streams:
        return self._streams

    def _eval_stream(self, split: str) -> _Windows:
        return _Windows(self._texts[split], self.batch_size, self.window, self.context)
