"""Measures this project's speed, and beside it that of what a person would pick instead.

python -m experiments.benchmark --what=train --model=resnet20_cifar --batch_size=32 --image_size=16
python -m experiments.benchmark --what=layers   # what the convolutions of a step take, one by one
python -m experiments.benchmark --what=lstm     # recurrent.Recurrent against torch.nn.LSTM
python -m experiments.benchmark --what=char_rnn # a step of its recipe, here and in torch
python -m experiments.benchmark --what=cbow     # word2vec's CBOW against gensim's
python -m experiments.benchmark --what=sweep    # many runs as one program, in turn, and in torch
python -m experiments.benchmark --what=data     # images read from a folder of JPEGs
python -m experiments.benchmark --what=loop     # the loop over the bare compiled step
python -m experiments.benchmark --what=start    # README's command to its first step

Sides run by turns in one process; where torch is not installed, without it. Let nothing else run
beside it.
"""

import dataclasses
import os
from typing import Any

from experiments.harness import (
    bench,
    bench_input,
    bench_layers,
    bench_runs,
    bench_sequences,
    bench_training,
    cli,
    devices,
    training,
)
from experiments.harness.cli import flag, require
from jaxdl import InputError, models

DEFAULTS: dict[str, dict[str, Any]] = {
    "train": {"rounds": 10, "batch_size": 32},
    "layers": {"rounds": 5, "batch_size": 32},
    "lstm": {"rounds": 10, "steps": 5},
    "char_rnn": {"rounds": 10, "steps": 2},
    "cbow": {"rounds": 5, "steps": 50},
    "sweep": {"rounds": 1, "steps": 300},
    "data": {"rounds": 5, "batch_size": 256, "steps": 40, "image_size": 64},
    "loop": {"rounds": 20, "batch_size": 32},
    "start": {"rounds": 5},
}
"""What flags are that are not given, by --what."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Measures speed beside plain Flax and torch, where that is installed."""

    what: str = flag("train", "what to measure", tuple(DEFAULTS))
    model: str = flag("resnet20_cifar", "of train, layers, loop: a name of jaxdl.models.names()")
    batch_size: int | None = flag(None, "of data 256, of others 32 when not given")
    image_size: int | None = flag(None, "of data 64, of others as published when not given")
    channels: int | None = flag(None, "of images to train on; as published when not given")
    precision: str = flag("float32", "of the computation of train", ("float32", "bfloat16"))
    compile: bool = flag(True, "whether train measures torch.compile as well")
    rounds: int | None = flag(None, "how often each side is measured")
    steps: int | None = flag(
        None, "of a round; of each run of a sweep; about a second's worth of training by default"
    )
    runs: int = flag(64, "of the perceptron in a sweep; of LeNet-5 there are a quarter as many")
    images: int = flag(100_000, "how many JPEGs to make for data")
    jpeg_width: int = flag(80, "of these, in pixels; they are three quarters as high")
    json: str = flag("", "a file to add the results to, as a line of JSON")

    def __post_init__(self) -> None:
        """Fills in what --what settles; raises InputError for what cannot be."""
        defaults = DEFAULTS[self.what]
        cli.settle(self, **{k: v for k, v in defaults.items() if getattr(self, k) is None})
        for name in ("batch_size", "image_size", "rounds", "steps", "jpeg_width"):
            value, least = getattr(self, name), 8 if name == "jpeg_width" else 1
            require(self, name, value is None or value >= least, f"at least {least}")
        require(self, "channels", self.channels in (None, 1, 3), "1 or 3")
        fits = self.runs >= 16 and self.runs % 16 == 0
        require(self, "runs", fits, "a multiple of 16")
        enough = self.what != "data" or self.images >= (self.batch_size or 0)
        require(self, "images", enough, f"at least {self.batch_size}, a batch")


def run(argv: list[str]) -> None:
    """Runs the measurement that was asked for."""
    config, rest = cli.parse(Config, argv)
    if rest:
        raise InputError(f"{rest[0]!r} is no flag; see --help")
    training.prepare_jax(large=config.what == "train" and _is_large(config))
    # On a GPU JAX would else take three quarters of the memory for itself.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    measure = {
        "train": bench_training.measure,
        "layers": bench_layers.measure,
        "lstm": bench_sequences.measure_lstm,
        "char_rnn": bench_sequences.measure_char_rnn,
        "cbow": bench_sequences.measure_cbow,
        "sweep": bench_runs.measure_sweep,
        "data": bench_input.measure,
        "loop": bench_runs.measure_loop,
        "start": bench_runs.measure_start,
    }
    bench.record(config.json, config, measure[config.what](config) or {})


def _is_large(config: Config) -> bool:
    published, *_ = models.IMAGE_SHAPES.get(config.model, (0,))  # what is no model is told later
    return devices.is_large(config.model, config.batch_size or 0, config.image_size or published)


if __name__ == "__main__":
    cli.main(run)
