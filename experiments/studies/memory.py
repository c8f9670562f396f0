"""Memory: across how many steps each kind of recurrent cell learns to carry one symbol.

python -m experiments.studies.memory --quick
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import claim, cli, study
from experiments.harness.cli import flag, require
from experiments.harness.study import StudyFlags
from jaxdl import figures, losses, optim, parallel
from jaxdl.recurrent import Recurrent
from jaxdl.task import supervised

TITLE = "How long recurrent layers remember"
CLAIM = (
    "Trained by gradients, a plain recurrent layer learns to carry what it saw across few steps, "
    "an LSTM or a GRU across many, the more so if the gates that keep its state start open."
)
SOURCE = (
    "Bengio, Simard and Frasconi 1994, IEEE TNN 5(2); Hochreiter and Schmidhuber 1997; Cho et al. "
    "2014, arXiv:1406.1078; Jozefowicz et al. 2015 and Tallec and Ollivier 2018, arXiv:1804.11188, "
    "for the open gates; Saxe et al. 2013, arXiv:1312.6120, for orthogonal kernels"
)
QUICKLY = ("--lags=5,20", "--updates=200")
"""Flags of the quick form."""


class Cell(NamedTuple):
    """What is trained.

    Attributes:
      kind: of the cell.
      bias: what is added to that of the gates that keep the state: forget, of a GRU update.
      orthogonal: whether the recurrent kernel starts so, and not as normal draws.
    """

    kind: str
    bias: float = 0.0
    orthogonal: bool = True


CELLS = {
    "RNN, normal kernel": Cell("rnn", orthogonal=False),
    "RNN": Cell("rnn"),
    "GRU": Cell("gru"),
    "LSTM": Cell("lstm"),
    "GRU, update bias 3": Cell("gru", 3.0),
    "LSTM, forget bias 3": Cell("lstm", 3.0),
}
SYMBOLS = 8
"""Of which the first step shows one; as many others fill the steps between."""
FEATURES, SEQUENCES, HELD_OUT = 64, 32, 512
BRIDGED = 0.9
"""The share of the symbols that has to be told for a lag to count as bridged."""

Recalled = dict[str, dict[int, list[float]]]
"""{cell: {lag: shares by seed}}"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains recurrent layers to tell the first symbol of a sequence at its end."""

    study: StudyFlags = StudyFlags("runs/memory", seeds=5)
    lags: tuple[int, ...] = flag((5, 10, 20, 40, 80, 160), "steps from the symbol to its recall")
    updates: int = flag(1000, "of each training")

    def __post_init__(self) -> None:
        fits = bool(self.lags) and min(self.lags) >= 1 and list(self.lags) == sorted({*self.lags})
        require(self, "lags", fits, "one or more whole numbers from 1, from the least on")
        require(self, "updates", self.updates >= 1, "at least 1")


class Recall(nn.Module):
    """Logits of the first symbol, from the last output of a recurrent layer."""

    kind: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Sequences, float [B, T, F], to logits [B, SYMBOLS]."""
        outputs, _ = Recurrent(self.kind, FEATURES, name="recurrent")(x, train=train)
        return nn.Dense(SYMBOLS)(outputs[:, -1])


def draw_batch(key: jax.Array, lag: int, size: int) -> dict[str, jax.Array]:
    """A symbol, then others that mean nothing: rows that a classifier of sequences learns from."""
    keys = jax.random.split(key)
    first = jax.random.randint(keys[0], (size, 1), 0, SYMBOLS)
    others = jax.random.randint(keys[1], (size, lag), SYMBOLS, 2 * SYMBOLS)
    tokens = jnp.concatenate([first, others], axis=1)
    return {"image": tokens, "label": first[:, 0], "mask": jnp.ones(size)}


def recalled(cell: Cell, lag: int, updates: int, seeds: range) -> list[float]:
    """The share of the symbols that is told `lag` steps later, by seed.

    All seeds are trained as one program, and all steps within it: the task's own pure functions,
    mapped and scanned.
    """
    one_hot = functools.partial(jax.nn.one_hot, num_classes=2 * SYMBOLS)
    drawn, loss = losses.classification(Recall(cell.kind), (lag + 1, 2 * SYMBOLS), one_hot)

    def begin(key):
        params, extra = drawn(key)
        layer = params["recurrent"]["layer0"]
        if cell.bias:
            layer["bias"] = layer["bias"].at[FEATURES : 2 * FEATURES].add(cell.bias)
        if not cell.orthogonal:
            normal = nn.initializers.lecun_normal()
            layer["hidden_kernel"] = normal(jax.random.fold_in(key, 1), (FEATURES, FEATURES))
        return params, extra

    task = supervised(begin, loss, optim.optimizer("adam", clip_global_norm=1.0))
    many = parallel.vmap(task, batch_axis=0)

    def batches(keys, number, size):
        return jax.vmap(lambda key: draw_batch(jax.random.fold_in(key, number), lag, size))(keys)

    @jax.jit
    def trained(seeds):
        keys = jax.vmap(jax.random.key)(seeds)
        values = {"learning_rate": 0.003, "label_smoothing": 0.0}
        hparams = {name: jnp.full(seeds.shape, value) for name, value in values.items()}
        step = lambda states, number: (many.train(states, batches(keys, number, SEQUENCES))[0], ())
        states, _ = jax.lax.scan(step, many.init(keys, hparams), jnp.arange(updates))
        return many.eval(states, batches(keys, updates, HELD_OUT))["accuracy"].value

    return np.asarray(trained(jnp.asarray(seeds))).tolist()


def measure(config: Config) -> Recalled:
    """Of each cell and lag."""
    found: Recalled = {}
    for title, cell in CELLS.items():
        found[title] = {}
        for lag in config.lags:
            shares = recalled(cell, lag, config.updates, study.seeds_of(config))
            found[title][lag] = shares
            print(f"{title}, lag {lag}: {claim.mean(shares):.3f}", flush=True)
    return found


def bridged(by_lag: dict[int, list[float]]) -> int:
    """The greatest lag across which the symbol is told, as it is across all smaller ones; or 0."""
    longest = 0
    for lag, shares in by_lag.items():
        if claim.mean(shares) < BRIDGED:
            break
        longest = lag
    return longest


def verdict(found: Recalled) -> str:
    """What came of it, in words."""
    longest = {title: bridged(by_lag) for title, by_lag in found.items()}
    plain = max(longest["RNN"], longest["RNN, normal kernel"])
    parts = [longest[kind] > plain for kind in ("GRU", "LSTM")]
    parts.append(longest["GRU, update bias 3"] > longest["GRU"])
    parts.append(longest["LSTM, forget bias 3"] > longest["LSTM"])
    each = ", ".join(f"{title} {lag}" for title, lag in longest.items())
    tried = max(next(iter(found.values())))
    return (
        f"It {claim.word(parts)}: the longest lag across which {BRIDGED:.0%} of the symbols are "
        f"told, of {tried} at most, is {each}."
    )


def draw(found: Recalled, figure: Any) -> None:
    """The shares by lag."""
    axes = figure.subplots()
    for title, by_lag in found.items():
        figures.band(axes, [*by_lag], [*by_lag.values()], title)
    lags = [*next(iter(found.values()))]
    axes.set(xscale="log", xlabel="lag, steps", ylabel="share of the symbols that is told")
    axes.set_xticks(lags, [str(lag) for lag in lags], minor=False)
    axes.minorticks_off()
    axes.axhline(1 / SYMBOLS, color="gray", linestyle=":", label="chance")
    axes.legend()
    figure.suptitle("Open gates remember longest")


def run(argv: list[str]) -> None:
    """Trains, and leaves the table, the picture and the page."""
    config = study.read_command(Config, argv, QUICKLY)
    study.begin(config)
    if not config.study.quick:
        print("about 15 min on two cores; --quick takes less than two", flush=True)
    found = measure(config)
    rows = [["cell", *(f"lag {lag}" for lag in config.lags)]]
    show = functools.partial(study.significant, digits=3)
    rows += [
        [title, *(study.cell(shares, show) for shares in by_lag.values())]
        for title, by_lag in found.items()
    ]
    seeds, said = config.study.seeds, verdict(found)
    notes = (
        f"The share of {HELD_OUT} first symbols that is told at the end of the sequence, "
        f"{1 / SYMBOLS} by chance; one layer of {FEATURES}, {config.updates} updates by Adam at "
        f"0.003, {SEQUENCES} new sequences in each, gradients clipped to a norm of 1. Recurrent "
        f"kernels start orthogonal but where another is named. Mean and sample standard deviation "
        f"of {seeds} seeds."
    )
    page = claim.page("memory", TITLE, CLAIM, SOURCE, said, argv, notes)
    pictures = {"memory.png": functools.partial(figures.save, draw=functools.partial(draw, found))}
    study.finish(
        config, {"recalled": found}, f"{CLAIM}\n\n{said}", study.table(rows), pictures, page
    )


if __name__ == "__main__":
    cli.main(run)
