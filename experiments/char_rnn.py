"""A recurrent language model of the characters or bytes of a text.

    python -m experiments.char_rnn --flagfile=experiments/flags/char_rnn_stdlib.flags
    python -m experiments.char_rnn --text=FILE_OR_FOLDER --workdir=W
    python -m experiments.char_rnn --mode=sample --workdir=W --prompt="def " --temperature=0.7

Held-out text is measured in bits per character, beside what `gzip -9` and `xz -9` need for it.
"""

import dataclasses
import gzip
import hashlib
import lzma
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.harness import run_folder, training
from experiments.harness.cli import flag, require
from experiments.harness.corpus import CorpusFlags
from experiments.harness.method import MethodFlags, supervised_task, warmup_steps
from experiments.harness.problem import Best, Build, Learner, Problem, View
from experiments.harness.run import RunFlags
from jaxdl import InputError, losses, parallel
from jaxdl.data.text import CharVocabulary, TextPipeline
from jaxdl.models.language_model import LanguageModel, generate, language_model
from jaxdl.nn import tabulate
from jaxdl.recurrent import GATES
from jaxdl.task import State, Task
from jaxdl.writers import Writer


@dataclasses.dataclass(frozen=True)
class TextFlags:
    """How a text is read."""

    level: str = flag("byte", "what a token is", ("byte", "char"))
    sequence_length: int = flag(64, "tokens of each stream in a step: how far gradients flow back")
    context: int = flag(128, "tokens that evaluation reads before those it counts")

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be."""
        require(self, "sequence_length", self.sequence_length >= 1, "at least 1")
        require(self, "context", self.context >= 0, "at least 0")


@dataclasses.dataclass(frozen=True)
class NetworkFlags:
    """The language model."""

    kind: str = flag("lstm", "of the recurrent cells", tuple(GATES))
    features: int = flag(512, "numbers in each layer's output")
    layers: int = flag(1, "number of recurrent layers")
    embedding: int = flag(64, "numbers that stand for a token; 0 for one-hot vectors")
    dropout: float = flag(0.0, "rate on the embedding, between layers and before the logits")


@dataclasses.dataclass(frozen=True)
class SampleFlags:
    """What it writes."""

    prompt: str = flag("import", "what samples go on from", part_of_run=False)
    length: int = flag(400, "tokens of a sample", part_of_run=False)
    temperature: float = flag(0.8, "of samples; the lower, the likelier tokens", part_of_run=False)
    top_k: int | None = flag(
        None, "of samples: draw from so many of the likeliest tokens", part_of_run=False
    )

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be."""
        require(self, "prompt", self.prompt != "", "one character or more to go on from")
        require(self, "length", self.length >= 1, "at least 1")
        require(self, "temperature", 0 < self.temperature < float("inf"), "more than 0")
        require(self, "top_k", self.top_k is None or self.top_k >= 1, "at least 1")


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a language model, by default on the source of Python's standard library."""

    run: RunFlags = RunFlags(
        "char_rnn",
        epochs=0.8,
        log_every=100,
        eval_every=1500,
        checkpoint_every=500,
        modes=("train", "eval", "sample"),
    )
    corpus: CorpusFlags = CorpusFlags()
    text: TextFlags = TextFlags()
    network: NetworkFlags = NetworkFlags()
    method: MethodFlags = MethodFlags(optimizer="adam", learning_rate=0.003, clip_global_norm=1.0)
    warmup_steps: int = flag(100, "steps over which the learning rate rises in a line")
    sample: SampleFlags = SampleFlags()

    def __post_init__(self) -> None:
        """Raises InputError for flags that do not fit one another."""
        build_model(self, vocabulary_size=256)  # does it exist?
        folds = self.run.folds
        require(self, "folds", folds is None, "left out: a text is held out by its own rule")
        require(self, "warmup_steps", self.warmup_steps >= 0, "at least 0")
        # flags.txt holds a flag a line; sampling writes none.
        prompt = self.sample.prompt
        fits = self.run.mode == "sample" or prompt.strip().splitlines() == [prompt]
        require(self, "prompt", fits, "one line, without space at its ends, for a training run")


def build_model(config: Config, vocabulary_size: int) -> LanguageModel:
    """The model that a config describes."""
    return language_model(
        vocabulary_size,
        kind=config.network.kind,
        features=config.network.features,
        layers=config.network.layers,
        embedding=config.network.embedding,
        dropout=config.network.dropout,
        dtype=jnp.dtype(config.run.precision),
    )


def encode_prompt(config: Config, vocabulary: CharVocabulary) -> np.ndarray:
    """The tokens [1, P] of the prompt; InputError when a sample cannot be written."""
    size = vocabulary.size
    require(config, "top_k", (config.sample.top_k or 1) <= size, f"at most {size}, the vocabulary")
    return vocabulary.encode(config.sample.prompt, "--prompt")[None].astype(np.int32)


def continue_prompt(config: Config, vocabulary: CharVocabulary, params: Any) -> str:
    """The prompt and what the model writes after it, fit for a terminal."""
    tokens = generate(
        build_model(config, vocabulary.size),
        params,
        encode_prompt(config, vocabulary),
        jax.random.key(config.run.seed),
        length=config.sample.length,
        temperature=config.sample.temperature,
        top_k=config.sample.top_k,
    )
    text = config.sample.prompt + vocabulary.decode(np.asarray(tokens[0]))
    shown = lambda character: character.isprintable() or character in "\n\t"
    return "".join(c if shown(c) else "\N{REPLACEMENT CHARACTER}" for c in text)


def compressed_bits(text: str, tokens: int) -> dict[str, float]:
    """The bits a token that `gzip -9` and `xz -9` make of a text."""
    data = text.encode()
    return {
        "gzip_bits_per_character": 8 * len(gzip.compress(data, 9)) / tokens,
        "xz_bits_per_character": 8 * len(lzma.compress(data, preset=9)) / tokens,
    }


def load_vocabulary(workdir: str) -> CharVocabulary:
    """The vocabulary of a run."""
    inputs = run_folder.read_inputs(workdir, vocabulary=(str, type(None)))
    return CharVocabulary(inputs["vocabulary"])


class Writing(View):
    """Shows what the model writes, and what compressors make of the held-out text.

    Args:
      config: the flags.
      vocabulary: of the text.
      corpus: the text of each split.
      tokens: how many each is.
    """

    def __init__(
        self,
        config: Config,
        vocabulary: CharVocabulary,
        corpus: dict[str, str],
        tokens: dict[str, int],
    ):
        self._config, self._vocabulary = config, vocabulary
        self._corpus, self._tokens = corpus, tokens

    def report(self, state: State, metrics: dict[str, float], writer: Writer) -> None:
        """Prints a sample."""
        step = int(state.step)
        sample = continue_prompt(self._config, self._vocabulary, jax.device_get(state.params))
        print(f"sample at step {step}:")
        print("".join(f"  | {line}\n" for line in sample.split("\n")), end="", flush=True)
        writer.text("sample", sample, step)

    def notes(self) -> dict[str, Any]:
        """The bits a token that compressors need."""
        measured = {
            split: compressed_bits(text, self._tokens[split])
            for split, text in self._corpus.items()
        }
        test = {f"test_{name}": value for name, value in measured["test"].items()}
        return measured["validation"] | test | {"vocabulary_size": self._vocabulary.size}


def build(config: Config, mesh: Mesh) -> Problem:
    """The Problem of predicting each token of a text."""
    corpus = config.corpus.read()
    vocabulary = CharVocabulary.of(config.text.level, corpus)
    inputs = {
        "vocabulary": vocabulary.characters,  # null for bytes
        "text_sha256": hashlib.sha256("".join(corpus.values()).encode()).hexdigest(),
    }
    encode_prompt(config, vocabulary)  # rather now than at the first sample
    splits = {split: vocabulary.encode(text) for split, text in corpus.items()}
    pipeline = TextPipeline(
        splits,
        config.run.batch_size,
        config.text.sequence_length,
        seed=config.run.seed,
        context=config.text.context,
        sharding=parallel.batch_sharding(mesh),
    )
    steps = config.run.steps or max(1, round(config.run.epochs * pipeline.steps_per_epoch))
    warmup = warmup_steps(config, "warmup_steps", steps)
    model = build_model(config, vocabulary.size)

    def task(axis_name: str | None) -> Task:
        return supervised_task(
            config,
            *losses.language_modeling(model, config.run.batch_size, axis_name),
            config.method.make_optimizer(),
            config.method.make_schedule(steps, warmup),
            axis_name,
        )

    def table() -> str:
        tokens = jnp.zeros((1, config.text.sequence_length), jnp.int32)
        return tabulate(model, tokens, train=False)

    return Problem(
        title=f"{config.network.kind} learning {config.corpus.name}",
        learner=Learner(task, config.method.hparams, steps, config.method.in_words(warmup), table),
        feed=pipeline,
        splits=tuple(splits),
        best=Best("eval/bits_per_character", least=True),
        unit="bytes" if config.text.level == "byte" else "characters",
        inputs=inputs,
        view=Writing(config, vocabulary, corpus, {k: len(v) for k, v in splits.items()}),
    )


def sample(config: Config, build: Build) -> None:
    """Prints a text that the run in --workdir writes."""
    run_folder.check_same_run(
        config, Path(config.run.workdir), apart_from=("seed",)
    )  # here of the sample
    vocabulary = load_vocabulary(config.run.workdir)
    params = run_folder.trained_params(config.run.workdir)
    outputs = params["output"]["bias"].size
    if outputs != vocabulary.size:
        raise InputError(
            f"{config.run.workdir} holds a vocabulary of {vocabulary.size} tokens that is not its "
            f"checkpoint's, which has {outputs}"
        )
    print(continue_prompt(config, vocabulary, params))


if __name__ == "__main__":
    training.main(Config, build, sample=sample)
