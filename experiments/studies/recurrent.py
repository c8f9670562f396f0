"""What recurrent networks do with time: gradients vanish and explode, clipping, and gates at work.

    python -m experiments.studies.recurrent
    python -m experiments.studies.recurrent --from_run=runs/char_rnn_stdlib

Beside table.md and table.json, with all that is drawn, it leaves in WORKDIR:

- lags.png: how much the last output of each kind of cell feels an input so many steps before it,
  with the recurrent kernel, which starts orthogonal, times several factors (Bengio, Simard,
  Frasconi 1994, "Learning long-term dependencies with gradient descent is difficult"; Pascanu,
  Mikolov, Bengio 2012, arXiv:1211.5063).
- clipping.png: the size of each update of a tanh RNN on text, with the gradient's norm clipped and
  without.
- gates.png: the gates of a language model that experiments.char_rnn trained, over a text; with
  `--from_run` alone.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments import char_rnn
from experiments.harness import claim, cli, run_folder, study
from experiments.harness.cli import flag, require
from experiments.harness.study import StudyFlags
from jaxdl import InputError, figures, losses, optim
from jaxdl.data.text import CharVocabulary, TextPipeline, read_corpus
from jaxdl.models.language_model import language_model
from jaxdl.recurrent import Recurrent
from jaxdl.task import supervised

TITLE = "How far back recurrent layers learn"
CLAIM = (
    "Through a plain recurrent layer gradients vanish or explode with the lag, by the scale of its "
    "kernel; through gated cells, above all with open forget gates, they last. Clipping the "
    "gradient keeps its explosions from ruining what was learned."
)
SOURCE = (
    "Bengio, Simard and Frasconi 1994, IEEE TNN 5(2); Pascanu et al. 2012, arXiv:1211.5063; "
    "Hochreiter and Schmidhuber 1997; Jozefowicz et al. 2015, for the forget gates"
)
QUICKLY = ("--updates=50",)
"""Flags of the quick form."""

FACTORS = (0.5, 1.0, 1.5, 2.0)
# An LSTM whose forget gates start open remembers from the start (Jozefowicz, Zaremba, Sutskever
# 2015, "An empirical exploration of recurrent network architectures").
CELLS = {"RNN": ("rnn", 0.0), "LSTM": ("lstm", 0.0), "LSTM, forget bias 3": ("lstm", 3.0)}
CELLS |= {"GRU": ("gru", 0.0)}
# The gates of each kind, by where they stand among the columns of its kernels.
GATES = {"lstm": {"input": 0, "forget": 1, "output": 3}, "gru": {"reset": 0, "update": 1}}


SEQUENCES = 16
"""Of random inputs, or read at once in training."""

Lags = dict[str, np.ndarray]
"""{cell: gradient norms [factors, seeds, lags]}"""
Clipping = dict[str, dict[str, np.ndarray]]
"""{training: {"update_norm" or "loss": [seeds, updates]}}"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Measures how gradients vanish and explode, what clipping does, and draws gates at work."""

    study: StudyFlags = StudyFlags("runs/recurrent", seeds=3)
    from_run: str = flag("", "the folder of a run of experiments.char_rnn, for gates.png")
    text: str = flag("", "what gates.png shows it reading; its own held-out text when empty")
    features: int = flag(64, "numbers in a layer's output, in lags.png and clipping.png")
    lags: int = flag(100, "the greatest lag in lags.png, in steps")
    updates: int = flag(200, "of clipping.png")
    factor: float = flag(2.5, "on the recurrent kernel of the RNN in clipping.png")
    learning_rate: float = flag(0.5, "of the gradient descent in clipping.png")
    clip_global_norm: float = flag(1.0, "greatest norm of the gradient in clipping.png")
    units: int = flag(24, "rows of gates.png for each gate")

    def __post_init__(self) -> None:
        for name in ("features", "lags", "updates", "units"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("factor", "learning_rate", "clip_global_norm"):
            require(self, name, 0 < getattr(self, name) < float("inf"), "more than 0")


def gradients_by_lag(
    kind: str,
    forget_bias: float,
    factors: Sequence[float],
    features: int,
    lags: int,
    seeds: Sequence[int],
) -> np.ndarray:
    """The norm of the gradient of the last output by the input at each lag, over that at lag 0.

    What is differentiated is a random projection of the output; inputs are normal with a standard
    deviation of 0.3; norms are root mean squares over 16 sequences.

    Args:
      kind: of the cell.
      forget_bias: what is added to the bias of an LSTM's forget gates.
      factors: what the orthogonal recurrent kernel is multiplied with.
      features: of the inputs and the outputs.
      lags: the greatest.
      seeds: of weights, inputs and projection.

    Returns:
      float32 [factors, seeds, lags + 1], at lags 0, 1, ...
    """
    model = Recurrent(kind, features)

    def begin(seed):
        keys = jax.random.split(jax.random.key(seed), 3)
        x = 0.3 * jax.random.normal(keys[0], (SEQUENCES, lags + 1, features))
        direction = jax.random.normal(keys[1], (SEQUENCES, features))
        return x, direction, model.init(keys[2], x, train=False)["params"]["layer0"]

    def norms(factor, begun):
        x, direction, layer = begun
        layer = layer | {"hidden_kernel": factor * layer["hidden_kernel"]}
        if kind == "lstm":
            layer["bias"] = layer["bias"].at[features : 2 * features].add(forget_bias)

        def projection(x):
            outputs: Any = model.apply({"params": {"layer0": layer}}, x, train=False)
            return jnp.sum(outputs[0][:, -1] * direction)

        by_lag = jnp.sqrt(jnp.sum(jax.grad(projection)(x) ** 2, axis=(0, 2)))[::-1]
        return by_lag / by_lag[0]

    @jax.jit
    def of_factors(factors, seeds):
        begun = jax.lax.map(begin, seeds)  # one after another, as in `parallel.vmap`, and why
        of_seeds = jax.vmap(norms, in_axes=(None, 0))
        return jax.vmap(of_seeds, in_axes=(0, None))(factors, begun)

    return np.asarray(of_factors(jnp.asarray(factors), jnp.asarray(seeds)))


def clipped_and_not(config: Config, text: np.ndarray) -> Clipping:
    """The norm of each update and the loss of two trainings, alike but for the clipping."""
    model = language_model(kind="rnn", features=config.features, layers=1)
    found: Clipping = {}
    for name, bound in (("clipped", config.clip_global_norm), ("not clipped", None)):
        init, loss = losses.language_modeling(model, SEQUENCES)
        task = supervised(init, loss, optim.optimizer("sgd", clip_global_norm=bound))
        rate = {"learning_rate": jnp.float32(config.learning_rate)}
        train = jax.jit(task.train)
        measured: dict[str, list[list[float]]] = {"update_norm": [], "loss": []}
        for seed in study.seeds_of(config):
            batches = TextPipeline({"train": text}, SEQUENCES, 50, seed=seed).train()
            state = task.init(jax.random.key(seed), rate)
            layer = state.params["recurrent"]["layer0"]
            layer["hidden_kernel"] = config.factor * layer["hidden_kernel"]
            norms, values = [], []
            for _ in range(config.updates):
                after, metrics = train(state, next(batches))
                norms.append(float(optax.tree.norm(optax.tree.sub(after.params, state.params))))
                values.append(float(metrics["loss"].value))
                state = after
            measured["update_norm"].append(norms)
            measured["loss"].append(values)
        found[name] = {name: np.asarray(values) for name, values in measured.items()}
    return found


def gates(params: Any, kind: str, x: jax.Array) -> tuple[dict[str, np.ndarray], jax.Array]:
    """The gates of one recurrent layer over a sequence, and its outputs.

    Args:
      params: the layer's, as `jaxdl.recurrent.Recurrent` has them.
      kind: "lstm" or "gru".
      x: its inputs [T, F].

    Returns:
      {gate: [T, H], in (0, 1)} and the outputs [T, H].
    """
    features = params["hidden_kernel"].shape[0]
    model = Recurrent(kind, features)
    found: Any = model.apply({"params": {"layer0": params}}, x[None], train=False)
    outputs = found[0][0]
    before = jnp.pad(outputs, ((1, 0), (0, 0)))[:-1]
    sums = x @ params["input_kernel"] + before @ params["hidden_kernel"] + params["bias"][None]
    columns = lambda place: sums[:, place * features : (place + 1) * features]
    values = {name: np.asarray(jax.nn.sigmoid(columns(p))) for name, p in GATES[kind].items()}
    return values, outputs


def gates_of_run(config: Config) -> tuple[str, dict[str, np.ndarray]]:
    """The text that a trained model reads, and the gates of its layers [T, H] meanwhile."""
    of_run = Path(config.from_run)
    experiment = run_folder.experiment_of(of_run)
    require(config, "from_run", experiment == "char_rnn", "a run of experiments.char_rnn")
    run, _ = cli.parse(char_rnn.Config, [f"--flagfile={of_run / run_folder.FLAGS_FILE}"])
    flags = cli.to_dict(run)
    kind = flags["kind"]
    if kind not in GATES:
        raise InputError(f"the cells of the run in {of_run} are of kind {kind}; without gates")
    vocabulary = char_rnn.load_vocabulary(config.from_run)
    text = config.text or read_corpus(flags["text"], flags["data_dir"] or None)["validation"][:100]
    tokens = jnp.asarray(vocabulary.encode(text, "--text").astype(np.int32))
    params = run_folder.trained_params(of_run)
    one_hot = jax.nn.one_hot(tokens, vocabulary.size)
    x = one_hot @ params["embedding"]["embedding"] if "embedding" in params else one_hot
    found: dict[str, np.ndarray] = {}
    for i in range(flags["layers"]):
        layer, x = gates(params["recurrent"][f"layer{i}"], kind, x)
        found |= {f"layer {i}, {name}": values for name, values in layer.items()}
    return "".join(vocabulary.decode(token[None]) for token in np.asarray(tokens)), found


def table(by_lag: Lags, clipping: Clipping) -> str:
    """The gradients at the greatest lag, and what clipping changes, in Markdown."""
    show = "{:.1e}".format
    heads = [f"recurrent kernel x {factor}" for factor in FACTORS]
    rows = [["cell", *heads]]
    rows += [
        [title, *(study.cell(values[:, -1].tolist(), show) for values in norms)]
        for title, norms in by_lag.items()
    ]
    trainings = [["tanh RNN on text", "greatest update", "last loss"]]
    for name, values in clipping.items():
        digits = functools.partial(study.significant, digits=2)
        greatest = study.cell(values["update_norm"].max(axis=1).tolist(), digits)
        last = study.cell(values["loss"][:, -1].tolist(), "{:.2f}".format)
        trainings.append([name, greatest, last])
    return f"{study.table(rows)}\n\n{study.table(trainings)}"


def verdict(by_lag: Lags, clipping: Clipping) -> str:
    """What came of the claim, at the greatest lag and in the last update."""
    means = {cell: values[:, :, -1].mean(axis=1) for cell, values in by_lag.items()}
    usual, plain = FACTORS.index(1.0), means["RNN"]
    last = [clipping[name]["loss"][:, -1].tolist() for name in ("not clipped", "clipped")]
    parts = [plain.min() < 1e-6, plain.max() > 1, claim.clearly_greater(*last)]
    parts += [of[usual] > plain[usual] for cell, of in means.items() if cell != "RNN"]
    arrives = ", ".join(f"{of[usual]:.1e} through the {cell}" for cell, of in means.items())
    return (
        f"It {claim.word(parts)}: of the gradient arrives after {by_lag['RNN'].shape[-1] - 1} "
        f"steps, with kernels as they are initialized, {arrives}; through the RNN it is "
        f"{plain.min():.1e} to {plain.max():.1e} by the kernel's scale. Trained with clipping the "
        f"loss ends at {claim.mean(last[1]):.2f}, without at {claim.mean(last[0]):.2f}."
    )


@figures.styled
def draw_lags(by_lag: Lags, path: Path) -> None:
    """Draws the gradients of each cell: means over the seeds, in bands from least to greatest."""
    figure = Figure(figsize=(4 * len(by_lag), 4), layout="constrained")
    all_axes = figure.subplots(1, len(by_lag), sharey=True)
    for axes, (title, norms) in zip(all_axes, by_lag.items(), strict=True):
        for factor, values in zip(FACTORS, norms, strict=True):
            figures.band(
                axes, range(values.shape[1]), values.T, f"recurrent kernel x {factor}", "-"
            )
        axes.set(title=title, xlabel="lag, steps", yscale="log", ylim=(1e-12, 1e6))
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("gradient norm, over that at lag 0")
    all_axes[2].legend(loc="lower center")  # where there is room
    figure.suptitle("Untrained gates let gradients vanish, too, but for open forget gates")
    figures.write(path, figure)


@figures.styled
def draw_clipping(clipping: Clipping, path: Path) -> None:
    """Draws the trainings of the first seed; a mean would blur their jumps."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    above, below = figure.subplots(1, 2)
    for name, values in clipping.items():
        above.semilogy(values["update_norm"][0], label=name)
        below.plot(values["loss"][0], label=name)
    above.set(xlabel="update", ylabel="norm of the update")
    below.set(xlabel="update", ylabel="loss, nats a byte", ylim=(0, 8))
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle("Clipping bounds each update (first seed)")
    figures.write(path, figure)


@figures.styled
def draw_gates(text: str, found: Mapping[str, np.ndarray], units: int, path: Path) -> None:
    """Draws the first units of each gate over the text."""
    figure = Figure(figsize=(0.14 * len(text) + 2, 2.5 * len(found)), layout="constrained")
    all_axes = figure.subplots(len(found), 1, squeeze=False)[:, 0]
    for axes, (title, values) in zip(all_axes, found.items(), strict=True):
        image = axes.imshow(
            values[:, :units].T, vmin=0, vmax=1, aspect="auto", interpolation="nearest"
        )
        # A dollar would begin a formula.
        letters = [repr(c)[1:-1].replace("$", r"\$") for c in text]
        axes.set_xticks(range(len(letters)), letters, fontsize=7, family="monospace")
        axes.set(title=title, ylabel="unit")
    figure.colorbar(image, ax=list(all_axes), label="0 closed, 1 open")
    figures.write(path, figure)


def run(argv: list[str]) -> None:
    """Measures, and leaves the tables and the pictures in the workdir."""
    config = study.read_command(Config, argv, QUICKLY)
    study.begin(config, apart_from=["from_run", "text", "units"])
    record: dict[str, Any] = {}
    pictures: dict[str, Any] = {}
    if config.from_run:  # first: it depends on what is given
        text, of_gates = gates_of_run(config)
        values_of = {name: values.tolist() for name, values in of_gates.items()}
        record["gates"] = {"text": text, **values_of}
        pictures["gates.png"] = functools.partial(draw_gates, text, of_gates, config.units)
    seeds = study.seeds_of(config)
    by_lag = {
        title: gradients_by_lag(kind, bias, FACTORS, config.features, config.lags, seeds)
        for title, (kind, bias) in CELLS.items()
    }
    clipping = clipped_and_not(config, CharVocabulary().encode(read_corpus()["validation"]))
    record["gradients"] = {
        title: {str(f): values.tolist() for f, values in zip(FACTORS, norms, strict=True)}
        for title, norms in by_lag.items()
    }
    record["clipping"] = {
        name: {measure: numbers.tolist() for measure, numbers in values.items()}
        for name, values in clipping.items()
    }
    pictures["lags.png"] = functools.partial(draw_lags, by_lag)
    pictures["clipping.png"] = functools.partial(draw_clipping, clipping)
    title = f"Norms of the gradient by the input {config.lags} steps before, over that by the last."
    study.finish(
        config,
        record,
        title,
        table(by_lag, clipping),
        pictures,
        claim.page("recurrent", TITLE, CLAIM, SOURCE, verdict(by_lag, clipping), argv),
    )


if __name__ == "__main__":
    cli.main(run)
