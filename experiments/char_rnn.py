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

from experiments.harness import cli, training
from experiments.harness.cli import flag, require
from experiments.harness.method import MethodFlags, warmup_steps
from experiments.harness.training import Problem, RunConfig
from jaxdl import InputError, losses, optim, parallel
from jaxdl.data.text import CharVocabulary, TextPipeline, read_corpus
from jaxdl.models.language_model import LanguageModel, generate, language_model
from jaxdl.nn import tabulate
from jaxdl.recurrent import GATES
from jaxdl.task import State, Task, supervised
from jaxdl.writers import Writer


@dataclasses.dataclass(frozen=True)
class Config(MethodFlags, RunConfig):
    """Trains a language model, by default on the source of Python's standard library."""

    experiment: str = flag("char_rnn", "which experiment this is", ("char_rnn",))
    mode: str = flag(
        "train",
        "train, evaluate a run, or write text with it",
        ("train", "eval", "sample"),
        part_of_run=False,
    )
    text: str = flag("", "a file, a folder, or tfds:NAME; empty for Python's standard library")
    data_dir: str = flag("", "where TFDS sets are; TFDS's own place when empty", part_of_run=False)
    level: str = flag("byte", "what a token is", ("byte", "char"))
    kind: str = flag("lstm", "of the recurrent cells", tuple(GATES))
    features: int = flag(512, "numbers in each layer's output")
    layers: int = flag(1, "number of recurrent layers")
    embedding: int = flag(64, "numbers that stand for a token; 0 for one-hot vectors")
    dropout: float = flag(0.0, "rate on the embedding, between layers and before the logits")
    batch_size: int = flag(32, "streams of text that are read side by side")
    sequence_length: int = flag(64, "tokens of each stream in a step: how far gradients flow back")
    context: int = flag(128, "tokens that evaluation reads before those it counts")
    epochs: float = flag(0.8, "passes over the training text, unless --steps is given")
    optimizer: str = flag("adam", "the method", tuple(optim.OPTIMIZERS))
    learning_rate: float = flag(0.003, "its peak")
    clip_global_norm: float | None = flag(1.0, "greatest norm of the whole gradient")
    warmup_steps: int = flag(100, "steps over which the learning rate rises in a line")
    grad_accum: int = flag(1, "parts that a batch is computed in, to save memory")
    log_every: int = flag(100, "steps between reports of the training metrics", part_of_run=False)
    eval_every: int = flag(1500, "steps between evaluations", part_of_run=False)
    checkpoint_every: int = flag(500, "steps between checkpoints", part_of_run=False)
    prompt: str = flag("import", "what samples go on from", part_of_run=False)
    length: int = flag(400, "tokens of a sample", part_of_run=False)
    temperature: float = flag(0.8, "of samples; the lower, the likelier tokens", part_of_run=False)
    top_k: int | None = flag(
        None, "of samples: draw from so many of the likeliest tokens", part_of_run=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_method()
        build_model(self, vocabulary_size=256)  # does it exist?
        require(self, "folds", self.folds is None, "left out: a text is held out by its own rule")
        for name in ("sequence_length", "length"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("context", "warmup_steps"):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        require(self, "prompt", self.prompt != "", "one character or more to go on from")
        # flags.txt holds a flag a line; sampling writes none.
        fits = self.mode == "sample" or self.prompt.strip().splitlines() == [self.prompt]
        require(self, "prompt", fits, "one line, without space at its ends, for a training run")
        require(self, "temperature", 0 < self.temperature < float("inf"), "more than 0")
        require(self, "top_k", self.top_k is None or self.top_k >= 1, "at least 1")
        require(
            self,
            "grad_accum",
            self.grad_accum >= 1 and self.batch_size % self.grad_accum == 0,
            f"at least 1 and a divisor of the batch_size {self.batch_size}",
        )


def build_model(config: Config, vocabulary_size: int) -> LanguageModel:
    """The model that a config describes."""
    return language_model(
        vocabulary_size,
        kind=config.kind,
        features=config.features,
        layers=config.layers,
        embedding=config.embedding,
        dropout=config.dropout,
        dtype=jnp.dtype(config.precision),
    )


def encode_prompt(config: Config, vocabulary: CharVocabulary) -> np.ndarray:
    """The tokens [1, P] of the prompt; InputError when a sample cannot be written."""
    size = vocabulary.size
    require(config, "top_k", (config.top_k or 1) <= size, f"at most {size}, the vocabulary")
    return vocabulary.encode(config.prompt, "--prompt")[None].astype(np.int32)


def continue_prompt(config: Config, vocabulary: CharVocabulary, params: Any) -> str:
    """The prompt and what the model writes after it, fit for a terminal."""
    tokens = generate(
        build_model(config, vocabulary.size),
        params,
        encode_prompt(config, vocabulary),
        jax.random.key(config.seed),
        length=config.length,
        temperature=config.temperature,
        top_k=config.top_k,
    )
    text = config.prompt + vocabulary.decode(np.asarray(tokens[0]))
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
    inputs = training.read_inputs(workdir, vocabulary=(str, type(None)))
    return CharVocabulary(inputs["vocabulary"])


def build(config: Config, mesh: Mesh) -> Problem:
    """The Problem of predicting each token of a text."""
    corpus = read_corpus(config.text, config.data_dir or None)
    vocabulary = CharVocabulary.of(config.level, corpus)
    inputs = {
        "vocabulary": vocabulary.characters,  # null for bytes
        "text_sha256": hashlib.sha256("".join(corpus.values()).encode()).hexdigest(),
    }
    encode_prompt(config, vocabulary)  # rather now than at the first sample
    splits = {split: vocabulary.encode(text) for split, text in corpus.items()}
    pipeline = TextPipeline(
        splits,
        config.batch_size,
        config.sequence_length,
        seed=config.seed,
        context=config.context,
        sharding=parallel.batch_sharding(mesh),
    )
    steps = config.steps or max(1, round(config.epochs * pipeline.steps_per_epoch))
    warmup = warmup_steps(config, "warmup_steps", steps)
    model = build_model(config, vocabulary.size)

    def task(axis_name: str | None) -> Task:
        return supervised(
            *losses.language_modeling(model, config.batch_size, axis_name),
            config.make_optimizer(),
            config.make_schedule(steps, warmup),
            accumulate=config.grad_accum,
            loss_scaling=config.precision == "float16",
            axis_name=axis_name,
        )

    def table() -> str:
        return tabulate(model, jnp.zeros((1, config.sequence_length), jnp.int32), train=False)

    def report(state: State, metrics: dict[str, float], writer: Writer) -> None:
        step = int(state.step)
        sample = continue_prompt(config, vocabulary, jax.device_get(state.params))
        print(f"sample at step {step}:")
        print("".join(f"  | {line}\n" for line in sample.split("\n")), end="", flush=True)
        writer.text("sample", sample, step)

    def notes() -> dict[str, Any]:
        measured = {split: compressed_bits(corpus[split], len(splits[split])) for split in corpus}
        test = {f"test_{name}": value for name, value in measured["test"].items()}
        return measured["validation"] | test | {"vocabulary_size": vocabulary.size}

    return Problem(
        title=f"{config.kind} learning {config.text or 'the standard library'}",
        task=task,
        method=config.method_in_words(warmup),
        hparams=config.hparams,
        steps=steps,
        examples={split: pipeline.examples(split) for split in splits},
        batches=pipeline.train,
        passes=pipeline.evaluate,
        table=table,
        show=None,
        report=report,
        unit="bytes" if config.level == "byte" else "characters",
        best="eval/bits_per_character",
        best_is_least=True,
        inputs=inputs,
        notes=notes,
    )


def sample(config: Config, build: training.Build) -> None:
    """Prints a text that the run in --workdir writes."""
    cli.check_same_run(config, Path(config.workdir), apart_from=("seed",))  # here of the sample
    vocabulary = load_vocabulary(config.workdir)
    params = training.trained_params(config.workdir)
    outputs = params["output"]["bias"].size
    if outputs != vocabulary.size:
        raise InputError(
            f"{config.workdir} holds a vocabulary of {vocabulary.size} tokens that is not its "
            f"checkpoint's, which has {outputs}"
        )
    print(continue_prompt(config, vocabulary, params))


if __name__ == "__main__":
    training.main(Config, build, sample=sample)
