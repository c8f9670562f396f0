"""Word vectors by skip-gram or CBOW: Mikolov et al. 2013, arXiv:1301.3781 and arXiv:1310.4546.

    python -m experiments.word2vec --flagfile=experiments/flags/word2vec_stdlib.flags
    python -m experiments.word2vec --text=FILE_OR_FOLDER --workdir=W
    python -m experiments.word2vec --mode=neighbours --workdir=W --words=read,list
    python -m experiments.word2vec --mode=analogies --workdir=W --analogies=questions-words.txt
    python -m experiments.word2vec --mode=export --workdir=W

The last leaves vectors.txt, in word2vec's text format, and what TensorBoard's projector reads.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.harness import run_folder, training
from experiments.harness.cli import flag, require
from experiments.harness.corpus import CorpusFlags
from experiments.harness.method import MethodFlags, supervised_task
from experiments.harness.problem import Best, Build, Learner, Problem, View
from experiments.harness.run import RunFlags
from jaxdl import InputError, losses, parallel
from jaxdl.data import words as data
from jaxdl.models import word2vec
from jaxdl.models.word2vec import Word2Vec
from jaxdl.nn import tabulate
from jaxdl.task import State, Task
from jaxdl.writers import Writer

VECTORS_FILE = "vectors.txt"
PROBE_EVERY = 100  # ranks between the words whose neighbours are shown
PROJECTED = 10_000  # words that TensorBoard's projector, which runs in a browser, is given


@dataclasses.dataclass(frozen=True)
class WordFlags:
    """What a network is asked about the words of a text."""

    model: str = flag("skipgram", "what predicts what", ("skipgram", "cbow"))
    features: int = flag(100, "numbers in the vector of each word")
    min_count: int = flag(5, "words that are rarer than this are left out")
    window: int = flag(5, "greatest distance of a word that is around another, in words")
    negatives: int = flag(5, "words drawn for each middle word")
    subsample: float = flag(1e-3, "share of the text above which words are thinned out; 0 for none")

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be."""
        for name in ("features", "min_count", "window", "negatives"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "subsample", 0 <= self.subsample <= 1, "at least 0 and at most 1")


@dataclasses.dataclass(frozen=True)
class ShowFlags:
    """What is asked of the vectors."""

    words: tuple[str, ...] = flag(
        (), "whose neighbours to show; empty for eight frequent ones", part_of_run=False
    )
    neighbours: int = flag(8, "how many to show", part_of_run=False)
    analogies: str = flag(
        "", "a file of questions `a b c d` to score below `: section` lines", part_of_run=False
    )

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be."""
        require(self, "neighbours", self.neighbours >= 1, "at least 1")


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains word vectors, by default on the source of Python's standard library.

    For sgd a learning rate of 0.025 times batch_size is word2vec.c's 0.025 for each pair.
    """

    run: RunFlags = RunFlags(
        "word2vec",
        batch_size=2048,
        epochs=5.0,
        log_every=500,
        eval_every=2000,
        checkpoint_every=2000,
        modes=("train", "eval", "neighbours", "analogies", "export"),
    )
    corpus: CorpusFlags = CorpusFlags()
    words: WordFlags = WordFlags()
    method: MethodFlags = MethodFlags(optimizer="adagrad", learning_rate=0.1, schedule="linear")
    show: ShowFlags = ShowFlags()

    @property
    def hparams(self) -> dict[str, float]:
        """The method's hyperparameters, with a start for adagrad that suits small gradients."""
        # Of a mean over thousands of words each vector's share is small: beside its square optax's
        # own 0.1 and 1e-7 would be all there is.
        start = {"initial_accumulator_value": 1e-9, "eps": 0.0}
        return (start if self.method.optimizer == "adagrad" else {}) | self.method.hparams

    def __post_init__(self) -> None:
        """Raises InputError for flags that do not fit one another."""
        folds = self.run.folds
        require(self, "folds", folds is None, "left out: a text is held out by its own rule")


class Probes(View):
    """Shows the neighbours of some words, and how many analogies are answered right.

    Args:
      config: the flags.
      vocabulary: the words.
      words: whose neighbours to show.
    """

    def __init__(self, config: Config, vocabulary: data.WordVocabulary, words: tuple[str, ...]):
        count, file = config.show.neighbours, config.show.analogies
        require(config, "neighbours", count < len(vocabulary), f"under {len(vocabulary)}")
        for word in words:
            vocabulary.id(word)  # rather now than after the first evaluation
        self._vocabulary, self._words, self._count = vocabulary, words, count
        self._questions = data.read_analogies(file) if file else {}

    def report(self, state: State, metrics: dict[str, float], writer: Writer) -> None:
        """Prints the neighbours, and writes down the share of right answers."""
        step = int(state.step)
        vectors = jax.device_get(state.params["input"])
        shown = describe_neighbours(self._vocabulary, vectors, self._words, self._count)
        print(shown, flush=True)
        writer.text("neighbours", shown, step)
        if self._questions:
            scores = score(self._vocabulary, vectors, self._questions)
            right, asked = np.sum(list(scores.values()), 0)[:2]
            if asked:
                writer.scalars(step, {"eval/analogies": right / asked})

    def notes(self) -> dict[str, Any]:
        """How many words there are."""
        return {"vocabulary_size": len(self._vocabulary)}


def build(config: Config, mesh: Mesh) -> Problem:
    """The Problem of predicting words from those around them."""
    corpus = config.corpus.read()
    tokens = {split: data.tokenize(text) for split, text in corpus.items()}
    vocabulary = data.WordVocabulary.of(tokens["train"], config.words.min_count)
    splits = {split: vocabulary.encode(each) for split, each in tokens.items()}
    inputs = {
        "vocabulary": " ".join(vocabulary.words),
        "text_sha256": hashlib.sha256(np.concatenate(list(splits.values())).tobytes()).hexdigest(),
    }
    probes = Probes(config, vocabulary, config.show.words or frequent(vocabulary))
    pipeline = data.WordPipeline(
        splits,
        vocabulary.counts,
        config.run.batch_size,
        window=config.words.window,
        negatives=config.words.negatives,
        subsample=config.words.subsample,
        seed=config.run.seed,
        sharding=parallel.batch_sharding(mesh),
    )
    steps = config.run.steps or max(1, round(config.run.epochs * pipeline.steps_per_epoch))
    model = Word2Vec(
        len(vocabulary),
        config.words.features,
        cbow=config.words.model == "cbow",
        dtype=jnp.dtype(config.run.precision),
    )

    def task(axis_name: str | None) -> Task:
        return supervised_task(
            config,
            *losses.word_prediction(model),
            config.method.make_optimizer(),
            config.method.make_schedule(steps, 0),
            axis_name,
        )

    def table() -> str:
        around = jnp.zeros((1, 2 * config.words.window), jnp.int32)
        targets = jnp.zeros((1, 1 + config.words.negatives), jnp.int32)
        return tabulate(model, around, jnp.ones(around.shape), targets)

    return Problem(
        title=f"{config.words.model} learning the words of {config.corpus.name}",
        learner=Learner(task, config.hparams, steps, config.method.in_words(), table),
        feed=pipeline,
        splits=tuple(splits),
        best=Best("eval/loss", least=True),
        unit="words",
        inputs=inputs,
        view=probes,
    )


def trained(config: Config) -> tuple[data.WordVocabulary, np.ndarray]:
    """The words of the run in --workdir and their vectors, [V, D]."""
    run_folder.check_same_run(config, Path(config.run.workdir))
    path = Path(config.run.workdir) / run_folder.INPUTS_FILE
    words = run_folder.read_record(path, vocabulary=str)["vocabulary"].split()
    vectors = run_folder.trained_params(config.run.workdir)["input"]
    if len(words) != len(vectors):
        raise InputError(
            f"{path} has {len(words)} words and the checkpoint beside it {len(vectors)}; expected "
            "as many"
        )
    return data.WordVocabulary(words), vectors


def frequent(vocabulary: data.WordVocabulary) -> tuple[str, ...]:
    """Eight frequent words that are not the most frequent ones, which have little meaning."""
    return vocabulary.words[: 8 * PROBE_EVERY : PROBE_EVERY]


def describe_neighbours(
    vocabulary: data.WordVocabulary, vectors: np.ndarray, words: tuple[str, ...], count: int
) -> str:
    """A line for each word: those nearest to it, with their cosines."""
    ids = jnp.array([vocabulary.id(word) for word in words])
    everything = jnp.asarray(vectors)
    near, cosines = jax.device_get(
        word2vec.nearest(everything, everything[ids], ids[:, None], count)
    )
    lines = []
    for word, ids_near, values in zip(words, near, cosines, strict=True):
        pairs = zip(ids_near, values, strict=True)
        lines.append(f"{word}: " + ", ".join(f"{vocabulary.words[i]} {v:.2f}" for i, v in pairs))
    return "\n".join(lines)


def score(
    vocabulary: data.WordVocabulary, vectors: np.ndarray, questions: data.Analogies
) -> dict[str, tuple[int, int, int]]:
    """How many questions of each section are answered right, could be asked, and there are.

    A question with a word that is not in the vocabulary cannot be asked.
    """
    answer = jax.jit(word2vec.analogy)
    scores = {}
    for section, asked in questions.items():
        known = [question for question in asked if all(word in vocabulary for word in question)]
        ids = np.array([[vocabulary.id(word) for word in question] for question in known])
        right = 0
        for start in range(0, len(ids), 256):
            chunk = ids[start : start + 256]
            padded = np.resize(chunk, (256, 4))  # of one size, so compiled once
            answers = np.asarray(answer(vectors, padded[:, :3]))
            right += int((answers == padded[:, 3])[: len(chunk)].sum())
        scores[section] = right, len(known), len(asked)
    return scores


def neighbours(config: Config, build: Build) -> None:
    """Prints the words nearest to --words."""
    vocabulary, vectors = trained(config)
    words = config.show.words or frequent(vocabulary)
    print(describe_neighbours(vocabulary, vectors, words, config.show.neighbours))


def analogies(config: Config, build: Build) -> None:
    """Prints the share of right answers in each section of --analogies."""
    require(config, "analogies", config.show.analogies != "", "a file of questions to score")
    vocabulary, vectors = trained(config)
    scores = score(vocabulary, vectors, data.read_analogies(config.show.analogies))
    total = tuple(np.sum(list(scores.values()), 0))
    for section, (right, asked, there) in [*scores.items(), ("all", total)]:
        share = f"{right / asked:.4f}" if asked else "none asked"
        print(f"{section}: {share}  ({right} right of {asked}; {there - asked} with unknown words)")


def export(config: Config, build: Build) -> None:
    """Writes the vectors into the workdir, as text and for TensorBoard's projector."""
    vocabulary, vectors = trained(config)
    path, board = Path(config.run.workdir) / VECTORS_FILE, Path(config.run.workdir) / "tensorboard"
    data.write_vectors(path, vocabulary.words, vectors)
    data.write_projector(board, vocabulary.words[:PROJECTED], vectors[:PROJECTED])
    print(f"wrote {len(vectors)} vectors of {vectors.shape[1]} numbers: {path}")
    print(f"the first {min(PROJECTED, len(vectors))} for tensorboard --logdir {config.run.workdir}")


if __name__ == "__main__":
    training.main(Config, build, neighbours=neighbours, analogies=analogies, export=export)
