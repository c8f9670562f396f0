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
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sacrebleu
from jax.sharding import Mesh
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from experiments.harness import cli, training
from experiments.harness.cli import flag, require
from experiments.harness.method import MethodFlags, warmup_steps
from experiments.harness.training import Problem, RunConfig
from jaxdl import InputError, decoding, losses, optim, parallel
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
from jaxdl.task import State, Task, supervised
from jaxdl.writers import Writer

SHOWN = 4  # sentences whose translation and attention are shown
PICTURE_FILE = "attention.png"


@dataclasses.dataclass(frozen=True)
class Config(MethodFlags, RunConfig):
    """Trains a translator, by default of numbers from English to French words."""

    experiment: str = flag("seq2seq", "which experiment this is", ("seq2seq",))
    mode: str = flag(
        "train",
        "train, evaluate a run, or translate lines with it",
        ("train", "eval", "translate"),
        part_of_run=False,
    )
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
    batch_size: int = flag(64, "sentences a step, over all devices")
    epochs: float = flag(8.0, "passes over the training set, unless --steps is given")
    optimizer: str = flag("adam", "the method", tuple(optim.OPTIMIZERS))
    learning_rate: float = flag(0.002, "its peak")
    clip_global_norm: float | None = flag(1.0, "greatest norm of the whole gradient")
    warmup_steps: int = flag(100, "steps over which the learning rate rises in a line")
    grad_accum: int = flag(1, "parts that a batch is computed in, to save memory")
    eval_every: int = flag(500, "steps between evaluations", part_of_run=False)
    checkpoint_every: int = flag(500, "steps between checkpoints", part_of_run=False)
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
        super().__post_init__()
        self.check_method()
        require(self, "folds", self.folds is None, "left out: pairs are held out by their source")
        for name in ("count", "max_length", "buckets", "features", "layers", "embedding", "beam"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("warmup_steps", "length_penalty", "coverage_penalty"):
            value = getattr(self, name)
            require(self, name, math.isfinite(value) and value >= 0, "at least 0")
        for name in ("dropout", "label_smoothing"):
            require(self, name, 0 <= getattr(self, name) < 1, "at least 0 and less than 1")
        rate = self.scheduled_sampling
        require(self, "scheduled_sampling", 0 <= rate <= 1, "at least 0 and at most 1")
        even = self.features % 2 == 0 or not self.bidirectional
        require(self, "features", even, "even, half for each direction, or --nobidirectional")
        require(self, "n_best", 1 <= self.n_best <= self.beam, f"1 to --beam={self.beam}")
        attends = self.attention != "none" or self.coverage_penalty == 0
        require(self, "coverage_penalty", attends, "0 with --attention=none")
        require(
            self,
            "grad_accum",
            self.grad_accum >= 1 and self.batch_size % self.grad_accum == 0,
            f"at least 1 and a divisor of the batch_size {self.batch_size}",
        )


def build_model(config: Config, source: SubwordVocabulary, target: SubwordVocabulary) -> Seq2Seq:
    """The model that a config describes."""
    return Seq2Seq(
        source_vocabulary=len(source),
        target_vocabulary=len(target),
        kind=config.kind,
        features=config.features,
        layers=config.layers,
        embedding=config.embedding,
        bidirectional=config.bidirectional,
        attention=config.attention,
        score=config.score,
        dropout=config.dropout,
        never=(PAD, GO),
        dtype=jnp.dtype(config.precision),
    )


Search = Callable[..., decoding.Sequences]
"""(params, source [B, S], source_length [B], max_length) -> Sequences [B, n_best]"""


def search(
    model: Seq2Seq,
    beam: int = 1,
    n_best: int = 1,
    length_penalty: float = 0.0,
    coverage_penalty: float = 0.0,
) -> Search:
    """Beam search with a model, compiled once for each shape and `max_length`."""

    @functools.partial(jax.jit, static_argnums=3)
    def run(params, source, source_length, max_length):
        apply = functools.partial(model.apply, {"params": params})
        encoded, carry = apply(source, source_length, train=False, method="encode")
        step: Any = functools.partial(apply, decoding.repeat(encoded, beam), method="step")
        return decoding.beam_search(
            step,
            carry,
            GO,
            EOS,
            max_length,
            beam,
            n_best=n_best,
            length_penalty=length_penalty,
            coverage_penalty=coverage_penalty,
            source_mask=None if encoded is None else encoded.mask,
        )

    return run


def heat_maps(
    model: Seq2Seq,
    params: Any,
    vocabularies: tuple[SubwordVocabulary, SubwordVocabulary],
    sources: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
) -> np.ndarray:
    """A picture of what each token of some targets attended to, uint8 [height, width, 3].

    Args:
      model: one with attention.
      params: its parameters.
      vocabularies: of the two languages.
      sources: the tokens of each source, without padding.
      targets: those of its translation.
    """
    figure = Figure(figsize=(4.5 * len(sources), 4.5), layout="constrained")
    panels = figure.subplots(1, len(sources), squeeze=False)[0]
    for axes, source, target in zip(panels, sources, targets, strict=True):
        inputs = np.array([GO, *target[:-1]])
        lengths = np.array([len(source)])
        applied: Any = model.apply(
            {"params": params}, source[None], lengths, inputs[None], train=False
        )
        weights = applied[1][0]
        axes.imshow(weights, cmap="gray", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(source)), vocabularies[0].tokens(source), rotation=90, fontsize=8)
        axes.set_yticks(range(len(target)), vocabularies[1].tokens(target), fontsize=8)
        axes.set_xlabel("source")
        axes.set_ylabel("translation")
    figure.suptitle("attention weights, from 0 (black) to 1 (white)", fontsize=10)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():  # the font may lack a script; a box stands for its letters
        warnings.filterwarnings("ignore", "Glyph")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def without_padding(rows: Any) -> list[np.ndarray]:
    """The tokens [N, T] of sentences, each as far as it goes."""
    return [row[row != PAD] for row in np.asarray(rows)]


def read_pairs(config: Config) -> Pairs:
    """The pairs that a config names."""
    if config.pairs:
        return read_file(config.pairs)
    languages = config.source_language, config.target_language
    return load(
        config.dataset,
        count=config.count,
        languages=languages,
        data_dir=config.data_dir or None,
    )


def by_length(lengths: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """The share that is right by quarters of the lengths, as `3-5: 0.9`."""
    bounds = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75, 1], method="higher"))
    shares, low = {}, int(lengths.min())
    for high in map(int, bounds):
        shares[f"{low}-{high}"] = float(right[(low <= lengths) & (lengths <= high)].mean())
        low = high + 1
    return shares


def build(config: Config, mesh: Mesh) -> Problem:
    """The Problem of translating one language into another."""
    pairs = read_pairs(config)
    source, target = (
        SubwordVocabulary.learn(texts, config.level, config.vocabulary_size)
        for texts in zip(*pairs.splits["train"], strict=True)
    )
    inputs = {
        "source_vocabulary": source.to_json(),
        "target_vocabulary": target.to_json(),
        "pairs_sha256": hashlib.sha256(json.dumps(pairs.splits).encode()).hexdigest(),
    }
    pipeline = functools.partial(
        PairPipeline,
        pairs,
        source,
        target,
        config.batch_size,
        max_length=config.max_length,
        reverse_source=config.reverse_source,
        buckets=config.buckets,
        seed=config.seed,
    )
    spread, here = pipeline(sharding=parallel.batch_sharding(mesh)), pipeline()
    if any(spread.too_long.values()) and jax.process_index() == 0:
        counts = ", ".join(f"{count} of {split}" for split, count in spread.too_long.items())
        print(f"left out, with more than --max_length={config.max_length} tokens: {counts}")
    steps = config.steps or max(1, round(config.epochs * spread.steps_per_epoch))
    warmup = warmup_steps(config, "warmup_steps", steps)
    method = config.make_schedule(steps, warmup)
    model = build_model(config, source, target)
    init, loss = losses.translation(model, GO, EOS)
    hparams = config.hparams | {"label_smoothing": config.label_smoothing}
    if config.scheduled_sampling:
        hparams["sampling_rate"] = config.scheduled_sampling

    def schedule(hparams, step):
        now = method(hparams, step)
        if config.scheduled_sampling:
            now["sampling_rate"] = hparams["sampling_rate"] * step / steps
        return now

    def task(axis_name: str | None) -> Task:
        return supervised(
            init,
            loss,
            config.make_optimizer(),
            schedule,
            accumulate=config.grad_accum,
            loss_scaling=config.precision == "float16",
            axis_name=axis_name,
        )

    def table() -> str:
        batch = {name: jnp.asarray(array) for name, array in next(here.train()).items()}
        inputs = batch["source"], batch["source_length"], batch["target"]
        return tabulate(model, *inputs, train=False)

    greedy = search(model)
    measure = jax.jit(
        lambda params, batch: loss(params, {}, batch, jax.random.key(0), hparams, False)[0]
    )
    watched = "validation" if "validation" in pairs.splits else "test"
    scores: dict[str, Any] = {}

    def report(state: State, metrics: dict[str, float], writer: Writer) -> None:
        step = int(state.step)
        params = jax.device_get(state.params)
        sources: list[np.ndarray] = []
        found: list[np.ndarray] = []
        wanted: list[np.ndarray] = []
        nats = tokens = 0.0
        for batch in here.evaluate(watched):
            rows = slice(int(batch["mask"].sum()))
            length = batch["target"].shape[1]
            decoded = greedy(params, batch["source"], batch["source_length"], length).tokens[:, 0]
            sources += without_padding(batch["source"][rows])
            wanted += without_padding(batch["target"][rows])
            found += without_padding(decoded[rows])
            mean = measure(params, batch)
            nats, tokens = nats + float(mean.total), tokens + float(mean.count)
        hypotheses, references = (list(map(target.decode, side)) for side in (found, wanted))
        values = {
            "eval/perplexity": math.exp(min(nats / tokens, 700)),  # what a float can hold
            "eval/bleu": sacrebleu.corpus_bleu(hypotheses, [references]).score,
            "eval/chrf": sacrebleu.corpus_chrf(hypotheses, [references]).score,
        }
        right = np.array([a == b for a, b in zip(hypotheses, references, strict=True)])
        lengths = np.array(list(map(len, sources)))
        scores.update(values, exact_match_by_source_length=by_length(lengths, right))
        writer.scalars(step, values)
        # Evaluation goes from the short to the long: these are of all lengths.
        shown = np.linspace(0, len(sources) - 1, min(SHOWN, len(sources))).astype(int)
        lines = ""
        for row in shown:
            tokens_read = sources[row][-2::-1] if config.reverse_source else sources[row]
            lines += f"  | {source.decode(tokens_read)} -> {hypotheses[row]}\n"
        print(lines, end="", flush=True)
        writer.text(f"translations/step{step}", lines)
        if config.attention != "none":
            chosen = [sources[row] for row in shown], [found[row] for row in shown]
            picture = heat_maps(model, params, (source, target), *chosen)
            writer.images(step, "attention", picture[None] / 255)
            if config.workdir:
                Image.fromarray(picture).save(Path(config.workdir) / PICTURE_FILE)

    return Problem(
        title=f"{config.kind} with attention {config.attention} learning {pairs.name}",
        task=task,
        method=config.method_in_words(warmup),
        hparams=hparams,
        steps=steps,
        examples={split: spread.tokens(split) for split in pairs.splits},
        batches=spread.train,
        passes=spread.evaluate,
        table=table,
        show=None,
        report=report,
        unit="tokens",
        best="eval/exact_match",
        inputs=inputs,
        notes=lambda: {
            **scores,
            "pairs": {split: spread.examples(split) for split in pairs.splits},
            "pairs_too_long": spread.too_long,
            "unknown_tokens": spread.unknown,
            "padding_share": spread.padding_share,
            "shapes": spread.shapes,
        },
    )


def translate(config: Config, build: training.Build) -> None:
    """Prints translations of the lines of --input, or of standard input, by the run in --workdir.

    A line that is empty or too long is told on stderr, has an empty translation, and fails the
    command at its end; what the vocabulary lacks is told, too.
    """
    cli.check_same_run(config, Path(config.workdir), apart_from=("batch_size", "max_length"))
    inputs = training.read_inputs(config.workdir, source_vocabulary=str, target_vocabulary=str)
    vocabularies = (
        SubwordVocabulary.from_json(inputs["source_vocabulary"]),
        SubwordVocabulary.from_json(inputs["target_vocabulary"]),
    )
    model = build_model(config, *vocabularies)
    params = training.trained_params(config.workdir)
    for side, vocabulary in zip(("source", "target"), vocabularies, strict=True):
        rows = len(params[f"{side}_embedding"]["embedding"])
        if rows != len(vocabulary):
            raise InputError(
                f"{config.workdir} holds a {side} vocabulary of {len(vocabulary)} tokens that is "
                f"not its checkpoint's, which has {rows}"
            )
    run = search(model, config.beam, config.n_best, config.length_penalty, config.coverage_penalty)
    # Of a stream the good lines are translated all the same: what is no UTF-8 is unknown.
    lines: Iterable[str] = (line.decode(errors="replace") for line in sys.stdin.buffer)
    if config.input:
        try:
            lines = [line.decode() for line in Path(config.input).read_bytes().splitlines()]
        except UnicodeDecodeError:
            raise InputError(f"--input={config.input}: it is no UTF-8 text") from None
    # A person at a terminal wants an answer to each line, a pipe wants speed.
    size = 1 if not config.input and sys.stdin.isatty() else config.batch_size
    failures = 0
    for first, texts in chunks(lines, size):
        encoded = encode_sources(vocabularies[0], texts, config.reverse_source)
        for row, (text, tokens) in enumerate(zip(texts, encoded, strict=True)):
            if len(tokens) > config.max_length or not text:
                failures += 1
                encoded[row] = [EOS]
                limit = f"{len(tokens)} tokens, more than --max_length={config.max_length}"
                print(f"error: line {first + row}: {limit if text else 'empty'}", file=sys.stderr)
            elif unknown := vocabularies[0].unknown(text):
                missing = ", ".join(map(repr, unknown))
                print(f"line {first + row}: read as <unk>: {missing}", file=sys.stderr)
        width = -(-max(map(len, encoded)) // 8) * 8  # few widths are few programs
        source = np.full((size, width), PAD, np.int32)
        source[:, 0] = EOS
        for row, tokens in enumerate(encoded):
            source[row, : len(tokens)] = tokens
        lengths = np.count_nonzero(source != PAD, axis=1)
        found = jax.device_get(run(params, source, lengths, config.max_length))
        for row, tokens in enumerate(encoded):
            for place in range(config.n_best):
                said = vocabularies[1].decode(found.tokens[row, place]) if tokens != [EOS] else ""
                score = f"{first + row}\t{found.scores[row, place]:.4f}\t"
                print(score + said if config.n_best > 1 else said, flush=True)
        shown = [row for row, tokens in enumerate(encoded) if tokens != [EOS]][:SHOWN]
        if first == 1 and shown and config.attention != "none":
            sides = without_padding(source[shown]), without_padding(found.tokens[shown, 0])
            picture = heat_maps(model, params, vocabularies, *sides)
            path = Path(config.workdir) / PICTURE_FILE
            try:
                Image.fromarray(picture).save(path)
                print(f"wrote {path}: what the translations above attend to", file=sys.stderr)
            except OSError as error:  # the translations are what was asked for
                print(f"warning: {path} not written: {error}", file=sys.stderr)
    if failures:
        raise InputError(f"{failures} of the lines were empty or too long")


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
