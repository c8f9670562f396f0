"""Translating sentences with a recurrent encoder and decoder, with and without attention.

    python -m experiments.seq2seq --flagfile=experiments/flags/seq2seq_numbers.flags
    python -m experiments.seq2seq --pairs=FILE.tsv --attention=bahdanau --workdir=W
    echo "forty-two" | python -m experiments.seq2seq --mode=translate --workdir=W --n_best=3

Attention is drawn as heat maps: of a few held-out sentences after each evaluation, and of the first
lines that --mode=translate is given, in WORKDIR/attention.png.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import sys
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sacrebleu
from jax.sharding import Mesh
from PIL import Image

from experiments.harness import run_folder, training
from experiments.harness.cli import flag, require
from experiments.harness.method import MethodFlags, supervised_task, warmup_steps
from experiments.harness.problem import Best, Build, Learner, Problem, View
from experiments.harness.run import RunFlags
from experiments.harness.translation import heat_maps, padded, search, without_padding
from jaxdl import Batch, InputError, losses, parallel
from jaxdl.data.pairs import (
    EOS,
    GO,
    LEVELS,
    PAD,
    PairPipeline,
    Pairs,
    SubwordVocabulary,
    encode_sources,
    load,
    read_file,
)
from jaxdl.models.seq2seq import ATTENTIONS, LUONG_SCORES, Seq2Seq
from jaxdl.nn import tabulate
from jaxdl.recurrent import GATES
from jaxdl.task import Loss, State, Task
from jaxdl.writers import Writer

SHOWN = 4  # sentences whose translation and attention are shown
PICTURE_FILE = "attention.png"


@dataclasses.dataclass(frozen=True)
class PairFlags:
    """Which sentences, and how they are read."""

    dataset: str = flag("numbers", "numbers, dates, or the name of a prepared TFDS set")
    pairs: str = flag("", "instead, a file of lines: source, tab, target")
    data_dir: str = flag("", "where TFDS sets are; TFDS's own place when empty", part_of_run=False)
    count: int = flag(20_000, "pairs to make of numbers or dates")
    source_language: str = flag("en", "of numbers and TFDS sets")
    target_language: str = flag("fr", "of numbers and TFDS sets")
    level: str = flag("subword", "what a token is", LEVELS)
    vocabulary_size: int = flag(300, "the most tokens of a language")
    max_length: int = flag(64, "the most tokens of a sentence; pairs with longer are left out")
    reverse_source: bool = flag(False, "read sources from their end")
    buckets: int = flag(3, "the most shapes that batches have, by length")

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be."""
        for name in ("count", "max_length", "buckets"):
            require(self, name, getattr(self, name) >= 1, "at least 1")


@dataclasses.dataclass(frozen=True)
class NetworkFlags:
    """The encoder, the decoder, and what is minimized."""

    kind: str = flag("lstm", "of the recurrent cells", tuple(GATES))
    features: int = flag(128, "numbers in the decoder's state and the encoder's outputs")
    layers: int = flag(1, "recurrent layers of either")
    embedding: int = flag(64, "numbers that stand for a token")
    bidirectional: bool = flag(True, "the encoder reads both ways, with half the features each")
    attention: str = flag("luong", "what the decoder sees of the source", ATTENTIONS)
    score: str = flag("general", "of luong attention", tuple(LUONG_SCORES))
    dropout: float = flag(0.0, "rate on embeddings, between layers and before the logits")
    label_smoothing: float = flag(0.0, "share of the uniform distribution in the target")
    scheduled_sampling: float = flag(
        0.0, "share of inputs that are the model's own guesses, rising from 0 to this in a line"
    )

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be."""
        for name in ("features", "layers", "embedding"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("dropout", "label_smoothing"):
            require(self, name, 0 <= getattr(self, name) < 1, "at least 0 and less than 1")
        rate = self.scheduled_sampling
        require(self, "scheduled_sampling", 0 <= rate <= 1, "at least 0 and at most 1")
        even = self.features % 2 == 0 or not self.bidirectional
        require(self, "features", even, "even, half for each direction, or --nobidirectional")


@dataclasses.dataclass(frozen=True)
class SearchFlags:
    """How translations are found."""

    input: str = flag(
        "", "translate the lines of this file, or of standard input", part_of_run=False
    )
    beam: int = flag(4, "beginnings that a translation follows at once", part_of_run=False)
    n_best: int = flag(
        1, "how many to print of each line; with scores if several", part_of_run=False
    )
    length_penalty: float = flag(0.6, "0 prefers the short, 1 is fair by token", part_of_run=False)
    coverage_penalty: float = flag(0.0, "on words that none attended to", part_of_run=False)

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be."""
        require(self, "beam", self.beam >= 1, "at least 1")
        require(self, "n_best", 1 <= self.n_best <= self.beam, f"1 to --beam={self.beam}")
        for name in ("length_penalty", "coverage_penalty"):
            value = getattr(self, name)
            require(self, name, math.isfinite(value) and value >= 0, "at least 0")


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a translator, by default of numbers from English to French words."""

    run: RunFlags = RunFlags(
        "seq2seq",
        batch_size=64,
        epochs=8.0,
        eval_every=500,
        checkpoint_every=500,
        modes=("train", "eval", "translate"),
    )
    pairs: PairFlags = PairFlags()
    network: NetworkFlags = NetworkFlags()
    method: MethodFlags = MethodFlags(optimizer="adam", learning_rate=0.002, clip_global_norm=1.0)
    warmup_steps: int = flag(100, "steps over which the learning rate rises in a line")
    search: SearchFlags = SearchFlags()

    def __post_init__(self) -> None:
        """Raises InputError for flags that do not fit one another."""
        require(self, "warmup_steps", self.warmup_steps >= 0, "at least 0")
        folds = self.run.folds
        require(self, "folds", folds is None, "left out: pairs are held out by their source")
        attends = self.network.attention != "none" or self.search.coverage_penalty == 0
        require(self, "coverage_penalty", attends, "0 with --attention=none")


def build_model(config: Config, source: SubwordVocabulary, target: SubwordVocabulary) -> Seq2Seq:
    """The model that a config describes."""
    return Seq2Seq(
        source_vocabulary=len(source),
        target_vocabulary=len(target),
        kind=config.network.kind,
        features=config.network.features,
        layers=config.network.layers,
        embedding=config.network.embedding,
        bidirectional=config.network.bidirectional,
        attention=config.network.attention,
        score=config.network.score,
        dropout=config.network.dropout,
        never=(PAD, GO),
        dtype=jnp.dtype(config.run.precision),
    )


def read_pairs(config: Config) -> Pairs:
    """The pairs that a config names."""
    if config.pairs.pairs:
        return read_file(config.pairs.pairs)
    languages = config.pairs.source_language, config.pairs.target_language
    return load(
        config.pairs.dataset,
        count=config.pairs.count,
        languages=languages,
        data_dir=config.pairs.data_dir or None,
    )


def by_length(lengths: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """The share that is right by quarters of the lengths, as `3-5: 0.9`."""
    bounds = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75, 1], method="higher"))
    shares, low = {}, int(lengths.min())
    for high in map(int, bounds):
        shares[f"{low}-{high}"] = float(right[(low <= lengths) & (lengths <= high)].mean())
        low = high + 1
    return shares


class Sentences(NamedTuple):
    """What feeds a training: a pipeline of pairs, whose examples are the targets' tokens."""

    pipeline: PairPipeline

    @property
    def one_shape(self) -> bool:
        """Whether all batches are alike in their shapes."""
        return self.pipeline.one_shape

    def examples(self, split: str, /) -> int:
        """How many tokens the targets of a split have."""
        return self.pipeline.tokens(split)

    def train(self, start: int = 0, /) -> Generator[Batch, None, None]:
        """The batches of the updates after the first `start`."""
        return self.pipeline.train(start)

    def evaluate(self, split: str, /) -> Iterable[Batch]:
        """One pass over a split."""
        return self.pipeline.evaluate(split)


class Translations(View):
    """Translates the held-out sentences, and shows some with their attention.

    Args:
      config: the flags.
      vocabularies: of the two languages.
      pipeline: of all sentences, on this host.
      splits: the names of its splits.
      loss: of the model.
    """

    def __init__(
        self,
        config: Config,
        vocabularies: tuple[SubwordVocabulary, SubwordVocabulary],
        pipeline: PairPipeline,
        splits: Iterable[str],
        loss: Loss,
    ):
        self._config, self._vocabularies, self._pipeline = config, vocabularies, pipeline
        self._model = build_model(config, *vocabularies)
        self._greedy = search(self._model)
        self._loss = jax.jit(
            lambda params, batch: loss(params, {}, batch, jax.random.key(0), {}, False)[0]
        )
        self._splits = splits
        self._watched = "validation" if "validation" in splits else "test"
        self._scores: dict[str, Any] = {}

    def report(self, state: State, metrics: dict[str, float], writer: Writer) -> None:
        """Scores greedy translations of all held-out sentences, and shows a few."""
        step, params = int(state.step), jax.device_get(state.params)
        sources, found, wanted, perplexity = self._translate(params)
        target = self._vocabularies[1]
        hypotheses, references = (list(map(target.decode, side)) for side in (found, wanted))
        values = {
            "eval/perplexity": perplexity,
            "eval/bleu": sacrebleu.corpus_bleu(hypotheses, [references]).score,
            "eval/chrf": sacrebleu.corpus_chrf(hypotheses, [references]).score,
        }
        right = np.array([a == b for a, b in zip(hypotheses, references, strict=True)])
        lengths = np.array(list(map(len, sources)))
        self._scores.update(values, exact_match_by_source_length=by_length(lengths, right))
        writer.scalars(step, values)
        # Evaluation goes from the short to the long: these are of all lengths.
        shown = np.linspace(0, len(sources) - 1, min(SHOWN, len(sources))).astype(int)
        lines = ""
        for row in shown:
            backwards = self._config.pairs.reverse_source
            tokens_read = sources[row][-2::-1] if backwards else sources[row]
            lines += f"  | {self._vocabularies[0].decode(tokens_read)} -> {hypotheses[row]}\n"
        print(lines, end="", flush=True)
        writer.text(f"translations/step{step}", lines)
        if self._config.network.attention != "none":
            chosen = [sources[row] for row in shown], [found[row] for row in shown]
            picture = heat_maps(self._model, params, self._vocabularies, *chosen)
            writer.images(step, "attention", picture[None] / 255)
            if self._config.run.workdir:
                Image.fromarray(picture).save(Path(self._config.run.workdir) / PICTURE_FILE)

    def _translate(
        self, params: Any
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], float]:
        """The sources, their translations, the references, and the perplexity of these."""
        sources: list[np.ndarray] = []
        found: list[np.ndarray] = []
        wanted: list[np.ndarray] = []
        nats = tokens = 0.0
        for batch in self._pipeline.evaluate(self._watched):
            rows, length = slice(int(batch["mask"].sum())), batch["target"].shape[1]
            decoded = self._greedy(params, batch["source"], batch["source_length"], length)
            sources += without_padding(batch["source"][rows])
            wanted += without_padding(batch["target"][rows])
            found += without_padding(decoded.tokens[rows, 0])
            mean = self._loss(params, batch)
            nats, tokens = nats + float(mean.total), tokens + float(mean.count)
        return sources, found, wanted, math.exp(min(nats / tokens, 700))  # what a float can hold

    def notes(self) -> dict[str, Any]:
        """The last scores, and what became of the pairs."""
        pipeline = self._pipeline
        return {
            **self._scores,
            "pairs": {split: pipeline.examples(split) for split in self._splits},
            "pairs_too_long": pipeline.too_long,
            "unknown_tokens": pipeline.unknown,
            "padding_share": pipeline.padding_share,
            "shapes": pipeline.shapes,
        }


def build(config: Config, mesh: Mesh) -> Problem:
    """The Problem of translating one language into another."""
    pairs = read_pairs(config)
    source, target = (
        SubwordVocabulary.learn(texts, config.pairs.level, config.pairs.vocabulary_size)
        for texts in zip(*pairs.splits["train"], strict=True)
    )
    pipeline = functools.partial(
        PairPipeline,
        pairs,
        source,
        target,
        config.run.batch_size,
        max_length=config.pairs.max_length,
        reverse_source=config.pairs.reverse_source,
        buckets=config.pairs.buckets,
        seed=config.run.seed,
    )
    spread, here = pipeline(sharding=parallel.batch_sharding(mesh)), pipeline()
    if any(spread.too_long.values()) and jax.process_index() == 0:
        counts = ", ".join(f"{count} of {split}" for split, count in spread.too_long.items())
        print(f"left out, with more than --max_length={config.pairs.max_length} tokens: {counts}")
    steps = config.run.steps or max(1, round(config.run.epochs * spread.steps_per_epoch))
    warmup = warmup_steps(config, "warmup_steps", steps)
    model = build_model(config, source, target)
    init, loss = losses.translation(model, GO, EOS)
    hparams = config.method.hparams | {"label_smoothing": config.network.label_smoothing}
    if config.network.scheduled_sampling:
        hparams["sampling_rate"] = config.network.scheduled_sampling

    def task(axis_name: str | None) -> Task:
        method = config.method.make_schedule(steps, warmup)

        def schedule(hparams, step):
            now = method(hparams, step)
            if config.network.scheduled_sampling:
                now["sampling_rate"] = hparams["sampling_rate"] * jnp.float32(step) / steps
            return now

        return supervised_task(
            config, init, loss, config.method.make_optimizer(), schedule, axis_name
        )

    def table() -> str:
        batch = {name: jnp.asarray(array) for name, array in next(here.train()).items()}
        inputs = batch["source"], batch["source_length"], batch["target"]
        return tabulate(model, *inputs, train=False)

    return Problem(
        title=f"{config.network.kind} with attention {config.network.attention} learning "
        f"{pairs.name}",
        learner=Learner(task, hparams, steps, config.method.in_words(warmup), table),
        feed=Sentences(spread),
        splits=tuple(pairs.splits),
        best=Best("eval/exact_match"),
        unit="tokens",
        inputs={
            "source_vocabulary": source.to_json(),
            "target_vocabulary": target.to_json(),
            "pairs_sha256": hashlib.sha256(json.dumps(pairs.splits).encode()).hexdigest(),
        },
        view=Translations(config, (source, target), here, pairs.splits, loss),
    )


def trained(config: Config) -> tuple[Seq2Seq, Any, tuple[SubwordVocabulary, SubwordVocabulary]]:
    """The model of the run in --workdir, its parameters, and the vocabularies of the languages."""
    workdir = Path(config.run.workdir)
    run_folder.check_same_run(config, workdir, apart_from=("batch_size", "max_length"))
    inputs = run_folder.read_inputs(workdir, source_vocabulary=str, target_vocabulary=str)
    source, target = (
        SubwordVocabulary.from_json(inputs[f"{side}_vocabulary"]) for side in ("source", "target")
    )
    params = run_folder.trained_params(workdir)
    for side, vocabulary in {"source": source, "target": target}.items():
        rows = len(params[f"{side}_embedding"]["embedding"])
        if rows != len(vocabulary):
            raise InputError(
                f"{workdir} holds a {side} vocabulary of {len(vocabulary)} tokens that is not its "
                f"checkpoint's, which has {rows}"
            )
    return build_model(config, source, target), params, (source, target)


def read_lines(path: str) -> Iterable[str]:
    """The lines of a file, or of standard input."""
    if not path:
        # Of a stream the good lines are translated all the same: what is no UTF-8 is unknown.
        return (line.decode(errors="replace") for line in sys.stdin.buffer)
    try:
        return [line.decode() for line in Path(path).read_bytes().splitlines()]
    except UnicodeDecodeError:
        raise InputError(f"--input={path}: it is no UTF-8 text") from None


def translate(config: Config, build: Build) -> None:
    """Prints translations of the lines of --input, or of standard input, by the run in --workdir.

    A line that is empty or too long is told on stderr, has an empty translation, and fails the
    command at its end; what the vocabulary lacks is told, too.
    """
    model, params, vocabularies = trained(config)
    flags, longest = config.search, config.pairs.max_length
    penalties = flags.length_penalty, flags.coverage_penalty
    run = search(model, flags.beam, flags.n_best, *penalties)
    # A person at a terminal wants an answer to each line, a pipe wants speed.
    size = 1 if not flags.input and sys.stdin.isatty() else config.run.batch_size
    failures = 0
    for first, texts in chunks(read_lines(flags.input), size):
        encoded = encode_sources(vocabularies[0], texts, config.pairs.reverse_source)
        for row, (text, tokens) in enumerate(zip(texts, encoded, strict=True)):
            if len(tokens) > longest or not text:
                failures += 1
                encoded[row] = [EOS]
                limit = f"{len(tokens)} tokens, more than --max_length={longest}"
                print(f"error: line {first + row}: {limit if text else 'empty'}", file=sys.stderr)
            elif unknown := vocabularies[0].unknown(text):
                missing = ", ".join(map(repr, unknown))
                print(f"line {first + row}: read as <unk>: {missing}", file=sys.stderr)
        source = padded(encoded, size)
        lengths = np.count_nonzero(source != PAD, axis=1)
        found = jax.device_get(run(params, source, lengths, longest))
        for row, tokens in enumerate(encoded):
            for place in range(flags.n_best):
                said = vocabularies[1].decode(found.tokens[row, place]) if tokens != [EOS] else ""
                score = f"{first + row}\t{found.scores[row, place]:.4f}\t"
                print(score + said if flags.n_best > 1 else said, flush=True)
        shown = [row for row, tokens in enumerate(encoded) if tokens != [EOS]][:SHOWN]
        if first == 1 and shown and config.network.attention != "none":
            sides = without_padding(source[shown]), without_padding(found.tokens[shown, 0])
            _draw(heat_maps(model, params, vocabularies, *sides), Path(config.run.workdir))
    if failures:
        raise InputError(f"{failures} of the lines were empty or too long")


def _draw(picture: np.ndarray, workdir: Path) -> None:
    path = workdir / PICTURE_FILE
    try:
        Image.fromarray(picture).save(path)
        print(f"wrote {path}: what the translations above attend to", file=sys.stderr)
    except OSError as error:  # the translations are what was asked for
        print(f"warning: {path} not written: {error}", file=sys.stderr)


def chunks(lines: Iterable[str], size: int) -> Iterator[tuple[int, list[str]]]:
    """Stripped lines, `size` at a time, and the number of the first of them, from 1."""
    stripped = (line.strip() for line in lines)
    for first in itertools.count(1, size):
        texts = list(itertools.islice(stripped, size))
        if not texts:
            return
        yield first, texts


if __name__ == "__main__":
    training.main(Config, build, translate=translate)
