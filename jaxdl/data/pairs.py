"""Sentences and their translations: where they come from, their tokens, and batches of them.

`load` and `read_file` find pairs, a `SubwordVocabulary` makes numbers of a language, and
`PairPipeline` gives the batch of step n as a pure function of (seed, n).
"""

import collections
import dataclasses
import datetime
import functools
import hashlib
import itertools
import pathlib
import random
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

from jaxdl import InputError
from jaxdl.data import sources
from jaxdl.data.order import EvalOrder, generator_for
from jaxdl.data.pipeline import Sharding, StreamPipeline
from jaxdl.data.rows import Indexed, Table

Pair = tuple[str, str]

SPECIAL = ("<pad>", "<go>", "<eos>", "<unk>")
PAD, GO, EOS, UNK = range(len(SPECIAL))

LEVELS = ("word", "char", "subword")

HELD_OUT = 20  # one source in so many is for testing, and another for validation

LOCALES = (
    *("cs", "da", "de", "el", "en", "es", "fi", "fr", "hu", "id", "it", "ja", "ko"),
    *("nb", "nl", "pl", "pt", "ro", "ru", "sv", "tr", "uk", "vi", "zh"),
)
DAYS = (datetime.date(1900, 1, 1), datetime.date(2099, 12, 31))
MOST_DIGITS = 9


class Pairs(NamedTuple):
    """A set of sentences and their translations: its name, and the pairs of each split."""

    name: str
    splits: dict[str, list[Pair]]


def load(
    name: str,
    *,
    count: int = 20_000,
    languages: tuple[str, str] = ("en", "fr"),
    data_dir: str | None = None,
) -> Pairs:
    """Makes or opens a set by its name; never touches the network.

    Args:
      name: `numbers`, `dates`, or the name of a translation set that TFDS prepared as
        ArrayRecord.
      count: how many pairs to make of `numbers` or `dates`.
      languages: from which to which, but for `dates`.
      data_dir: where TFDS keeps its sets; its own choice by default.

    Raises:
      InputError: the set is not there or not usable, or a language is not in it.
    """
    if name == "numbers":
        return numbers(count, languages)
    if name == "dates":
        return dates(count)
    return _load_tfds(name, languages, data_dir)


@functools.lru_cache(maxsize=2)  # a run asks several times, and changes none
def numbers(count: int, languages: tuple[str, str]) -> Pairs:
    """Makes pairs of one whole number in the words of two languages, by num2words.

    Numbers of 1 to `MOST_DIGITS` digits come in turn, as far as there are new ones.

    Args:
      count: how many; the numbers are the same for all languages.
      languages: from which to which, as num2words calls them.

    Raises:
      InputError: num2words does not have a language.
    """
    import num2words

    for language in languages:
        if language not in num2words.CONVERTER_CLASSES:
            known = ", ".join(sorted(num2words.CONVERTER_CLASSES))
            raise InputError(f"no language {language!r}; num2words has {known}")
    draw = random.Random(0)
    chosen: dict[int, None] = {}  # a set that keeps its order
    digits = itertools.cycle(range(1, MOST_DIGITS + 1))
    while len(chosen) < count:
        chosen[draw.randrange(10 ** next(digits))] = None
    say = lambda number, language: " ".join(num2words.num2words(number, lang=language).split())
    source, target = languages
    pairs = [(say(number, source), say(number, target)) for number in chosen]
    return Pairs(f"numbers from {source} to {target}", split_by_source(pairs))


def dates(count: int) -> Pairs:
    """Makes pairs of a date as it is written out in one of many locales, by Babel, and in ISO 8601.

    The locales are `LOCALES`, in Babel's formats `long` and `full`, and the dates lie in `DAYS`.

    Args:
      count: how many.

    Raises:
      InputError: more are wanted than can be drawn at random without end.
    """
    from babel.dates import format_date

    draw = random.Random(0)
    first, last = (day.toordinal() for day in DAYS)
    most = (last - first) * len(LOCALES)  # about half of what two formats can write
    if count > most:
        raise InputError(f"{count} dates are too many; at most {most} can be made")
    written: dict[str, str] = {}
    while len(written) < count:
        day = datetime.date.fromordinal(draw.randint(first, last))
        form, locale = draw.choice(("long", "full")), draw.choice(LOCALES)
        written[" ".join(format_date(day, form, locale).split())] = day.isoformat()
    return Pairs("dates", split_by_source(list(written.items())))


def read_file(path: str | pathlib.Path) -> Pairs:
    """Reads a UTF-8 file of lines `source<TAB>target`, split as by `split_by_source`.

    Raises:
      InputError: the file is not there, empty or binary, or a line has not two sides.
    """
    path = pathlib.Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"pairs {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"pairs {path} is no UTF-8 text (byte {error.start})") from error
    if "\0" in text:
        raise InputError(f"pairs {path} is no text: character {text.index(chr(0))} is NUL")
    lines = text.removesuffix("\n").split("\n")
    if lines == [""]:
        raise InputError(f"pairs {path} is empty; expected lines of source, tab, target")
    pairs = []
    for number, line in enumerate(lines, 1):
        sides = line.split("\t")
        if len(sides) != 2 or not all(side.strip() for side in sides):
            found = "no tab" if len(sides) == 1 else f"{len(sides) - 1} tabs"
            found = "an empty side" if len(sides) == 2 else found
            raise InputError(f"{path}, line {number}: {found}; expected source, one tab, target")
        pairs.append((sides[0].strip(), sides[1].strip()))
    splits = split_by_source(pairs)
    for name, part in splits.items():
        if not part:
            raise InputError(f"pairs {path}: {len(pairs)} lines leave {name} empty; expected more")
    return Pairs(path.name, splits)


def split_by_source(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    """Deals pairs out to 'train', 'validation' and 'test' by a hash of the source.

    So no source is in two splits, and each stays in its own when others come and go. One in
    `HELD_OUT` goes to test, and one to validation.
    """
    splits: dict[str, list[Pair]] = {"train": [], "validation": [], "test": []}
    for pair in pairs:
        digest = hashlib.blake2b(pair[0].encode(), digest_size=8).digest()
        place = int.from_bytes(digest) % HELD_OUT
        splits[{0: "test", 1: "validation"}.get(place, "train")].append(pair)
    return splits


def _load_tfds(name: str, languages: tuple[str, str], data_dir: str | None) -> Pairs:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import constants

    root = pathlib.Path(data_dir or constants.get_default_data_dir()).expanduser()
    builder = sources.open_tfds(name, root)
    features = dict(builder.info.features.items())
    for language in languages:
        if not isinstance(features.get(language), tfds.features.Text):
            there = ", ".join(sorted(features))
            raise InputError(f"{name} has the features {there}; expected a language {language!r}")
    splits = {}
    for split in builder.info.splits:
        records = builder.as_data_source(split, file_format="array_record")
        sides = lambda record: tuple(record[language].decode() for language in languages)
        splits[split] = [sides(record) for record in records]
    if set(splits) == {"train"}:
        splits = split_by_source(splits["train"])
    kept = {k: v for k, v in splits.items() if k in ("train", "validation", "test") and v}
    if "train" not in kept or len(kept) == 1:
        raise InputError(f"{name} has the splits {', '.join(splits)}; expected train, and another")
    return Pairs(f"{name} from {languages[0]} to {languages[1]}", kept)


class SubwordVocabulary:
    """The tokens of one language and their numbers, by a tokenizer of Hugging Face's tokenizers.

    Numbers 0 to 3 are `SPECIAL`, which no text gives: there such a word is text, or unknown. What
    is decoded after it was encoded is the same text, but for what is unknown, and for white space
    at the level of words.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        """Takes a tokenizer whose first tokens are `SPECIAL`."""
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer

    @classmethod
    def learn(cls, texts: Iterable[str], level: str, size: int) -> "SubwordVocabulary":
        """Makes the vocabulary of some texts.

        Args:
          texts: those to train on.
          level: 'word' for what stands between white space, 'char', or 'subword' for byte-pair
            encoding (Sennrich et al. 2015, arXiv:1508.07909).
          size: the most tokens, `SPECIAL` included; the most frequent are kept.

        Raises:
          InputError: no such level, or no room beside `SPECIAL`.
        """
        if level not in LEVELS:
            raise InputError(f"no vocabulary of {level!r}; there are {', '.join(LEVELS)}")
        if size <= len(SPECIAL):
            raise InputError(f"a vocabulary of {size}; expected more than the {len(SPECIAL)} marks")
        from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

        if level == "subword":
            tokenizer = tokenizers.Tokenizer(models.BPE(unk_token=SPECIAL[UNK]))
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
            tokenizer.decoder = decoders.Metaspace()
            trainer = trainers.BpeTrainer(
                vocab_size=size, special_tokens=list(SPECIAL), show_progress=False
            )
            tokenizer.train_from_iterator(texts, trainer)
            return cls(tokenizer)
        counts: collections.Counter[str] = collections.Counter()
        for text in texts:
            counts.update(text.split() if level == "word" else text)
        names = [name for name, _ in counts.most_common() if name not in SPECIAL]
        kept = [*SPECIAL, *names[: size - len(SPECIAL)]]
        model = models.WordLevel({name: i for i, name in enumerate(kept)}, SPECIAL[UNK])
        tokenizer = tokenizers.Tokenizer(model)
        if level == "word":
            tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
            tokenizer.decoder = decoders.Fuse()
        return cls(tokenizer)

    @classmethod
    def from_json(cls, text: str) -> "SubwordVocabulary":
        """Reads what `to_json` wrote.

        Raises:
          InputError: it is something else.
        """
        try:
            return cls(tokenizers.Tokenizer.from_str(text))
        except Exception as error:  # tokenizers has no exception type of its own
            raise InputError(f"no vocabulary of the tokenizers library ({error})") from error

    def to_json(self) -> str:
        """Returns the whole vocabulary as a text that tokenizers.Tokenizer.from_str reads."""
        return self._tokenizer.to_str()

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the numbers of each text's tokens, and `EOS` after them."""
        encodings = self._tokenizer.encode_batch(list(texts))
        return [[*(max(number, UNK) for number in e.ids), EOS] for e in encodings]

    def decode(self, tokens: Iterable[int]) -> str:
        """Returns the text of some tokens up to the first `EOS`, less `PAD` and `GO`."""
        ids = itertools.takewhile(lambda token: token != EOS, map(int, tokens))
        words = [token for token in ids if token not in (PAD, GO)]
        return self._tokenizer.decode(words, skip_special_tokens=False)

    def tokens(self, numbers: Iterable[int]) -> list[str]:
        """Returns the name of each token, to be shown one by one."""
        return [self._tokenizer.id_to_token(int(number)) or "?" for number in numbers]

    def unknown(self, text: str) -> list[str]:
        """Returns the parts of a text that the vocabulary lacks."""
        encoding = self._tokenizer.encode(text)
        parts = zip(encoding.ids, encoding.offsets, strict=True)
        return [text[slice(*offsets)] for number, offsets in parts if number <= UNK]


Dealt = tuple[int, np.ndarray]
"""A batch before it is read: the number of its shape, and which pairs of the split it holds."""


@dataclasses.dataclass(frozen=True)
class _BucketOrder:
    """The pairs of every step, dealt out by the shapes that they fit in."""

    deal: Callable[[int], Dealt]
    batch_size: int
    size: int
    steps: int | None

    def __call__(self, step: int) -> np.ndarray:
        rows = self.deal(step)[1]
        index = np.full(self.batch_size, self.size)
        index[: len(rows)] = rows
        return index

    def generators(self, step: int) -> None:
        """No randomness."""


@dataclasses.dataclass(frozen=True)
class _Cut:
    """Pairs in their order, each batch cut to its shape."""

    pairs: Table
    order: _BucketOrder
    shapes: Sequence[tuple[int, int]]

    @property
    def steps(self) -> int | None:
        return self.order.steps

    def __call__(self, step: int, places: np.ndarray) -> dict[str, np.ndarray]:
        batch = Indexed(self.pairs, self.order)(step, places)
        widths = zip(("source", "target"), self.shapes[self.order.deal(step)[0]], strict=True)
        return batch | {side: batch[side][:, :width] for side, width in widths}


class PairPipeline(StreamPipeline):
    """The batches of pairs, for training by step and for evaluation in order.

    A batch is `source` int32 [B, S] and `target` int32 [B, T], each with `EOS` at its end and `PAD`
    behind, `source_length` int32 [B], and `mask` float32 [B]: 0 for a row that only fills a batch,
    whose source is an empty sentence.

    (S, T) is one of a few `shapes`; a pair goes where both its sides fit. In training each epoch
    deals every pair once, and the batches of all shapes in an order of its own; what is left over
    of a shape, less than a batch, goes to the next larger one.

    Attributes:
      shapes: (S, T) of the buckets, from the smallest on.
      too_long: how many pairs of each split were left out for `max_length`.
      unknown: the share of source and target tokens of each split that the vocabularies lack.
      steps_per_epoch: batches of one epoch.
    """

    def __init__(
        self,
        pairs: Pairs,
        source_vocabulary: SubwordVocabulary,
        target_vocabulary: SubwordVocabulary,
        batch_size: int,
        *,
        max_length: int,
        reverse_source: bool = False,
        buckets: int = 3,
        seed: int = 0,
        sharding: "Sharding | None" = None,
    ):
        """Encodes all pairs.

        Args:
          pairs: the set.
          source_vocabulary, target_vocabulary: of the two sides.
          batch_size: rows of a global batch, B.
          max_length: the most tokens of either side, `EOS` included; longer pairs are left out
            and counted.
          reverse_source: feed sources from their end (Sutskever et al. 2014, arXiv:1409.3215,
            section 3.3); `EOS` stays last.
          buckets: the most different shapes, each a program to compile.
          seed: of the order, at least 0.
          sharding: how the batch axis lies on the devices; batches are then global `jax.Array`s
            of which each process makes its own rows. Without it they are NumPy arrays.

        Raises:
          InputError: an argument out of range, or a split of which nothing is left.
        """
        for value, what in ((batch_size, "batch size"), (buckets, "buckets")):
            if value < 1:
                raise InputError(f"{what} {value}: expected at least 1")
        self._seed = seed
        self.too_long: dict[str, int] = {}
        self.unknown: dict[str, float] = {}
        kept: dict[str, list[tuple[list[int], list[int]]]] = {}
        for split, texts in pairs.splits.items():
            source = encode_sources(source_vocabulary, [pair[0] for pair in texts], reverse_source)
            target = target_vocabulary.encode([pair[1] for pair in texts])
            both = list(zip(source, target, strict=True))
            kept[split] = [pair for pair in both if max(map(len, pair)) <= max_length]
            self.too_long[split] = len(both) - len(kept[split])
            if not kept[split]:
                raise InputError(
                    f"no pair of {split} has at most {max_length} tokens on either side; "
                    "expected a greater max_length"
                )
            tokens = [token for pair in kept[split] for side in pair for token in side]
            self.unknown[split] = tokens.count(UNK) / len(tokens)
        lengths = {k: np.array([[len(s), len(t)] for s, t in v]) for k, v in kept.items()}
        longest = np.concatenate(list(lengths.values())).max(0)
        shares = np.arange(1, buckets) / buckets
        bounds = np.quantile(lengths["train"], shares, axis=0, method="higher").astype(int)
        sides_of_buckets = {(int(s), int(t)) for s, t in [*bounds, longest]}
        self.shapes = sorted(sides_of_buckets)
        self._tables = {k: _padded(pairs, longest) for k, pairs in kept.items()}
        self._buckets = {k: self._fit(sides) for k, sides in lengths.items()}
        sizes = {k: len(pairs) for k, pairs in kept.items()}
        self.steps_per_epoch = -(-sizes["train"] // batch_size)
        schema = Indexed(self._tables["train"], EvalOrder(sizes["train"], batch_size)).schema
        super().__init__(pairs.name, sizes, batch_size, schema, sharding=sharding)

    @property
    def one_shape(self) -> bool:
        """Whether there is one bucket alone."""
        return len(self.shapes) == 1

    def tokens(self, split: str) -> int:
        """Returns the number of target tokens of a split, the closing ones included."""
        self.examples(split)
        return int(np.count_nonzero(self._tables[split].columns["target"]))

    @property
    def padding_share(self) -> float:
        """The share of padding among all places of the batches of the first epoch."""
        batches = self._epoch(0)
        places = sum(self.batch_size * sum(self.shapes[bucket]) for bucket, _ in batches)
        filled = self._tables["train"].columns["source_length"].sum() + self.tokens("train")
        return 1 - int(filled) / places

    def _train_stream(self) -> _Cut:
        def deal(step: int) -> Dealt:
            epoch, place = divmod(step, self.steps_per_epoch)
            return self._epoch(epoch)[place]

        return self._cut("train", deal, None)

    def _eval_stream(self, split: str) -> _Cut:
        batches = self._deal(self._buckets[split])
        return self._cut(split, batches.__getitem__, len(batches))

    def _cut(self, split: str, deal: Callable[[int], Dealt], steps: int | None) -> _Cut:
        order = _BucketOrder(deal, self.batch_size, self.examples(split), steps)
        return _Cut(self._tables[split], order, self.shapes)

    def _fit(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Which pairs belong to each of the shapes: the first that has room."""
        fits = (lengths[:, None] <= np.array(self.shapes)).all(-1)
        bucket = fits.argmax(1)
        return [np.flatnonzero(bucket == b) for b in range(len(self.shapes))]

    def _deal(self, buckets: Sequence[np.ndarray]) -> list[Dealt]:
        """Batches, as their bucket and rows; what is left of a bucket goes to the next."""
        batches = []
        left = np.array([], int)
        for bucket, rows in enumerate(buckets):
            rows = np.concatenate([left, rows])
            whole = len(rows) // self.batch_size * self.batch_size
            parts = rows[:whole].reshape(-1, self.batch_size)
            batches += [(bucket, part) for part in parts]
            left = rows[whole:]
        return [*batches, (len(buckets) - 1, left)] if len(left) else batches

    @functools.lru_cache(maxsize=2)  # noqa: B019 - a pipeline lives as long as its run
    def _epoch(self, epoch: int) -> list[Dealt]:
        draw = generator_for(self._seed, 0, epoch)
        batches = self._deal([draw.permutation(rows) for rows in self._buckets["train"]])
        return [batches[place] for place in draw.permutation(len(batches))]


def encode_sources(
    vocabulary: SubwordVocabulary, texts: Sequence[str], reverse: bool
) -> list[list[int]]:
    """Returns the tokens of sources, from their end if `reverse`, with `EOS` last in any case."""
    encoded = vocabulary.encode(texts)
    return [[*tokens[-2::-1], EOS] for tokens in encoded] if reverse else encoded


def _padded(pairs: Sequence[tuple[list[int], list[int]]], longest: Sequence[int]) -> Table:
    """The pairs of a split as a table whose padding is an empty sentence."""
    source, target = (np.full((len(pairs), length), PAD, np.int32) for length in longest)
    for row, (source_tokens, target_tokens) in enumerate(pairs):
        source[row, : len(source_tokens)] = source_tokens
        target[row, : len(target_tokens)] = target_tokens
    lengths = np.count_nonzero(source != PAD, axis=1).astype(np.int32)
    empty = np.where(np.arange(longest[0]) == 0, EOS, PAD)
    return Table(
        {"source": source, "source_length": lengths, "target": target},
        {"source": empty, "source_length": 1},
    )
