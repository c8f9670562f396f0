"""Text as words, as word2vec samples them: middle words, those around them, and drawn ones.

Mikolov et al. 2013, arXiv:1310.4546. The batch of step n is a pure function of (seed, n).
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdl import InputError, files
from jaxdl.data.order import generator_for
from jaxdl.data.pipeline import Sharding, StreamPipeline
from jaxdl.data.rows import MASK, Field, Schema

WORD = re.compile(r"[^\W\d_]+")
"""A word: letters of any script, as many as follow one another; `read_file` is two words."""


def tokenize(text: str) -> list[str]:
    """The words of a text in order, in lower case."""
    return WORD.findall(text.lower())


class WordVocabulary:
    """The words that are told apart, the most frequent first.

    Args:
      words: different words.
      counts: how often each occurs in the training text; empty where that does not matter.
    """

    def __init__(self, words: Iterable[str], counts: Iterable[int] = ()):
        self.words = tuple(words)
        self.counts = np.array(list(counts), np.int64)
        self._ids = {word: id for id, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._ids

    @classmethod
    def of(cls, tokens: Iterable[str], min_count: int = 5) -> "WordVocabulary":
        """The words that occur at least `min_count` times; words as frequent stand by alphabet.

        Raises:
          InputError: fewer than two do.
        """
        counts = collections.Counter(tokens)
        kept = sorted((-n, word) for word, n in counts.items() if n >= min_count)
        if len(kept) < 2:
            raise InputError(
                f"{len(kept)} of the text's {len(counts)} different words occur "
                f"min_count={min_count} times or more; expected at least 2"
            )
        return cls((word for _, word in kept), (-n for n, _ in kept))

    def encode(self, tokens: Iterable[str]) -> np.ndarray:
        """The numbers of the words, int32 [N]; words that are not in the vocabulary are left out.

        As in word2vec.c, the words on both sides of one left out become neighbours.
        """
        ids = self._ids
        return np.array([ids[token] for token in tokens if token in ids], np.int32)

    def id(self, word: str) -> int:
        """The number of one word.

        Raises:
          InputError: it is not in the vocabulary.
        """
        if word not in self._ids:
            raise InputError(
                f"no word {word!r} in the vocabulary of {len(self)} lower-case words, "
                f"such as {self.words[0]!r} and {self.words[-1]!r}"
            )
        return self._ids[word]


def keep_probability(counts: np.ndarray, threshold: float) -> np.ndarray:
    """The share of a word's occurrences that training keeps, as in word2vec.c.

    With f the word's share of the text it is sqrt(t / f) + t / f, at most 1; the paper
    (arXiv:1310.4546, equation 5) has the first term alone.

    Args:
      counts: how often each word occurs, [V].
      threshold: t; 0 keeps all.

    Returns:
      float64 [V].
    """
    if threshold == 0:
        return np.ones(len(counts))
    ratio = threshold * counts.sum() / counts
    return np.minimum(np.sqrt(ratio) + ratio, 1.0)


def noise_distribution(counts: np.ndarray, power: float = 0.75) -> np.ndarray:
    """The probability of each word to be drawn as a negative: its count to a power, [V]."""
    weights = counts**power
    return weights / weights.sum()


class _Epoch(NamedTuple):
    """One pass: the words that thinning left, after them a 0 for padding, and in what order."""

    words: np.ndarray
    order: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class _Sampler:
    """How the batches of a pass over some words are drawn."""

    batch_size: int
    window: int
    negatives: int
    keep: np.ndarray
    cumulative: np.ndarray

    @property
    def schema(self) -> Schema:
        around = (2 * self.window,)
        return {
            "word": Field((), np.int32),
            "context": Field(around, np.int32),
            "context_mask": Field(around, np.float32),
            "negative": Field((self.negatives,), np.int32),
            "mask": MASK,
        }

    def thin_out(self, words: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The words that stay in a pass, and a 0 for padding."""
        return np.append(words[rng.random(len(words)) < self.keep[words]], np.int32(0))

    def batch(
        self, epoch: _Epoch, place: int, rng: np.random.Generator, rows: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Rows of the batch at a place in an epoch; `rng` draws for all, on every process alike."""
        size, window, length = self.batch_size, self.window, len(epoch.order)
        reach = rng.integers(1, window + 1, (size, 1))[rows]
        draws = rng.random((size, self.negatives))[rows]

        middle = np.full(size, length)
        taken = epoch.order[place * size : (place + 1) * size]
        middle[: len(taken)] = taken
        middle = middle[rows, None]
        distance = np.concatenate([np.arange(-window, 0), np.arange(1, window + 1)])[None]
        around = middle + distance
        mask = middle < length
        within = mask & (abs(distance) <= reach) & (around >= 0) & (around < length)
        return {
            "word": epoch.words[middle[:, 0]],
            "context": epoch.words[np.where(within, around, length)],
            "context_mask": within.astype(np.float32),
            "negative": np.searchsorted(self.cumulative, draws, side="right").astype(np.int32),
            "mask": mask[:, 0].astype(np.float32),
        }


class _TrainWords:
    """The stream of training: every epoch drawn and ordered anew."""

    steps = None

    def __init__(self, sampler: _Sampler, words: np.ndarray, steps_per_epoch: int, seed: int):
        self._sampler = sampler
        self._words = words
        self._steps_per_epoch = steps_per_epoch
        self._seed = seed
        self._drawn: tuple[int, _Epoch] | None = None

    def __call__(self, step: int, places: np.ndarray) -> dict[str, np.ndarray]:
        number, place = divmod(step, self._steps_per_epoch)
        if self._drawn is None or self._drawn[0] != number:
            words = self._sampler.thin_out(self._words, generator_for(self._seed, 0, number))
            order = generator_for(self._seed, 1, number).permutation(len(words) - 1)
            self._drawn = number, _Epoch(words, order)
        rng = generator_for(self._seed, 2, step)
        return self._sampler.batch(self._drawn[1], place, rng, places)


@dataclasses.dataclass(frozen=True, eq=False)
class _EvalWords:
    """The stream of evaluation: one pass, always the same draw."""

    sampler: _Sampler
    words: np.ndarray
    seed: int

    @functools.cached_property
    def _epoch(self) -> _Epoch:
        words = self.sampler.thin_out(self.words, generator_for(self.seed, 3, 0))
        return _Epoch(words, np.arange(len(words) - 1))

    @property
    def steps(self) -> int:
        return -(-len(self._epoch.order) // self.sampler.batch_size)

    def __call__(self, step: int, places: np.ndarray) -> dict[str, np.ndarray]:
        return self.sampler.batch(self._epoch, step, generator_for(self.seed, 4, step), places)


class WordPipeline(StreamPipeline):
    """Batches of middle words with those around them, for training by step and for evaluation.

    A batch holds, for each of B middle words:
    - `word` int32 [B];
    - `context` int32 [B, 2 window], the words before and after it, and `context_mask` float32
      alike, 1 for those within a reach that is drawn from 1 to `window` for each middle word;
    - `negative` int32 [B, K], words drawn from the unigram distribution to the power 0.75. They
      serve all pairs of a middle word (Ji et al. 2016, arXiv:1604.04661);
    - `mask` float32 [B], 0 for padding.

    Frequent words are thinned out first, so windows reach over them. An epoch draws anew which
    occurrences stay, and takes them in a new order. It has as many steps as their expected number
    needs: occurrences beyond that are left out, and where there are fewer, rows are masked.

    An evaluation is one pass over a split, drawn as for training but always the same draw: every
    word that thinning left is a middle word once. Its examples are the words of a split before
    frequent ones are thinned out.

    Attributes:
      steps_per_epoch: steps that pass once over the train split.
    """

    def __init__(
        self,
        splits: Mapping[str, np.ndarray],
        counts: np.ndarray,
        batch_size: int,
        *,
        window: int = 5,
        negatives: int = 5,
        subsample: float = 1e-3,
        seed: int = 0,
        sharding: "Sharding | None" = None,
    ):
        """Computes the probabilities; draws nothing yet.

        Args:
          splits: the words of `train` and of other splits, int32 [N], as `WordVocabulary` numbers
            them.
          counts: of each word of the vocabulary in the train split, [V].
          batch_size: middle words in a global batch.
          window: the greatest distance of a word that is around another, in words.
          negatives: words drawn for each middle word.
          subsample: share of the text above which a word is thinned out; 0 keeps all.
          seed: of all draws, at least 0.
          sharding: how the batch axis lies on the devices; batches are then global `jax.Array`s
            of which each process makes its own rows. Without it they are NumPy arrays.

        Raises:
          InputError: an argument out of range, or a split of fewer than two words.
        """
        sizes = {"batch_size": batch_size, "window": window, "negatives": negatives}
        for name, value in sizes.items():
            if value < 1:
                raise InputError(f"{name} {value}: expected at least 1")
        if seed < 0:
            raise InputError(f"data seed {seed}: expected at least 0")
        if not 0 <= subsample <= 1:
            raise InputError(f"subsample {subsample}: expected 0 to 1, the share of a word")
        for split, words in splits.items():
            if len(words) < 2:
                raise InputError(
                    f"the {split} split has {len(words)} words of the vocabulary; "
                    "expected at least 2"
                )
        keep = keep_probability(counts, subsample)
        cumulative = np.cumsum(noise_distribution(counts))
        cumulative[-1] = 1.0  # whatever rounding made of it
        self._words = dict(splits)
        self._sampler = _Sampler(batch_size, window, negatives, keep, cumulative)
        self._seed = seed
        expected = keep[splits["train"]].sum()
        self.steps_per_epoch = max(1, int(np.ceil(expected / batch_size)))
        sizes = {split: len(words) for split, words in splits.items()}
        super().__init__("the text", sizes, batch_size, self._sampler.schema, sharding=sharding)

    def _train_stream(self) -> _TrainWords:
        return _TrainWords(self._sampler, self._words["train"], self.steps_per_epoch, self._seed)

    def _eval_stream(self, split: str) -> _EvalWords:
        return _EvalWords(self._sampler, self._words[split], self._seed)


Analogies = dict[str, list[tuple[str, str, str, str]]]
"""Questions a, b, c, d by section: d is to c as b is to a."""


def read_analogies(path: str | Path) -> Analogies:
    """The questions of a file as Mikolov et al. 2013, arXiv:1301.3781, published theirs.

    Args:
      path: a text file with `a b c d` on each line, d being to c as b is to a, below headers
        `: section`.

    Returns:
      The questions of each section, in lower case.

    Raises:
      InputError: a line that is neither, or no question at all.
    """
    sections: Analogies = {}
    section = "questions"
    for number, line in enumerate(_read_text(Path(path)).splitlines(), 1):
        words = line.lower().split()
        if line.startswith(":"):
            section = line[1:].strip()
        elif words:
            if len(words) != 4:
                raise InputError(
                    f"{path}, line {number}: {len(words)} words; expected 4, or ': section'"
                )
            a, b, c, d = words
            sections.setdefault(section, []).append((a, b, c, d))
    if not sections:
        raise InputError(f"{path} holds no question; expected lines of 4 words")
    return sections


def write_vectors(path: str | Path, words: Iterable[str], vectors: np.ndarray) -> None:
    """Writes vectors in word2vec's text format, which gensim and others read.

    Args:
      path: the file: a line `V D`, then a line for each word and its D numbers, which read back
        as the same float32.
      words: V words without white space.
      vectors: float32 [V, D].
    """
    with files.replacing(Path(path)) as file:
        file.write(f"{len(vectors)} {vectors.shape[1]}\n".encode())
        for word, vector in zip(words, np.asarray(vectors, np.float32), strict=True):
            file.write(f"{word} {' '.join(map(str, vector))}\n".encode())


def write_projector(folder: str | Path, words: Iterable[str], vectors: np.ndarray) -> None:
    """Writes vectors for TensorBoard's projector, over those of an earlier call.

    Args:
      folder: TensorBoard's folder of a run.
      words: a label for each vector.
      vectors: [V, D].
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    np.savetxt(folder / "vectors.tsv", vectors, "%.6g", delimiter="\t")
    (folder / "words.tsv").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    (folder / "projector_config.pbtxt").write_text(
        'embeddings {\n  tensor_name: "words"\n  tensor_path: "vectors.tsv"\n'
        '  metadata_path: "words.tsv"\n}\n'
    )


def read_vectors(path: str | Path) -> tuple[list[str], np.ndarray]:
    """Reads what `write_vectors`, word2vec.c or gensim wrote as text.

    Returns:
      The words and their vectors, float32 [V, D].

    Raises:
      InputError: the file is not of that format; the message names the line.
    """
    lines = _read_text(Path(path)).split("\n")
    try:
        count, features = map(int, lines[0].split())
    except ValueError:
        raise InputError(
            f"{path}, line 1: {lines[0][:40]!r}; expected two numbers, V and D"
        ) from None
    words, vectors = [], np.zeros((count, features), np.float32)
    for number, line in enumerate(lines[1 : count + 1]):
        word, *numbers = line.split() or [""]
        try:
            vectors[number] = np.array(numbers, np.float32).reshape(features)
        except ValueError:
            if not line:
                break  # the end of a file that is too short
            raise InputError(
                f"{path}, line {number + 2}: expected a word and {features} numbers"
            ) from None
        words.append(word)
    if len(words) != count:
        raise InputError(f"{path} holds {len(words)} words; expected {count}, as its line 1 says")
    return words, vectors


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"no file {path}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text ({error})") from None
