"""Pictures of what recurrent networks do with time: vanishing gradients, clipping, and gates.

    python -m experiments.studies.recurrent --output=pictures
    python -m experiments.studies.recurrent --output=pictures --workdir=runs/char_rnn_stdlib

It writes into the folder `--output`, and beside each picture its numbers as .json:

- lags.png: how much the last output of each kind of cell feels an input so many steps before it,
  with the recurrent kernel, which starts orthogonal, times several factors (Bengio, Simard,
  Frasconi 1994, "Learning long-term dependencies with gradient descent is difficult"; Pascanu,
  Mikolov, Bengio 2012, arXiv:1211.5063).
- clipping.png: the size of each update of a tanh RNN on text, with the gradient's norm clipped and
  without.
- gates.png: the gates of a language model that experiments.char_rnn trained, over a text; with
  `--workdir` alone.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments import char_rnn
from experiments.harness import cli, training
from experiments.harness.cli import flag, require
from jaxdl import InputError, losses, optim
from jaxdl.data.text import CharVocabulary, TextPipeline, read_corpus
from jaxdl.models.language_model import language_model
from jaxdl.recurrent import Recurrent
from jaxdl.task import supervised

FACTORS = (0.5, 1.0, 1.5, 2.0)
# An LSTM whose forget gates start open remembers from the start (Jozefowicz, Zaremba, Sutskever
# 2015, "An empirical exploration of recurrent network architectures").
CELLS = {"RNN": ("rnn", 0.0), "LSTM": ("lstm", 0.0), "LSTM, forget bias 3": ("lstm", 3.0)}
CELLS |= {"GRU": ("gru", 0.0)}
# The gates of each kind, by where they stand among the columns of its kernels.
GATES = {"lstm": {"input": 0, "forget": 1, "output": 3}, "gru": {"reset": 0, "update": 1}}


@dataclasses.dataclass(frozen=True)
class Config:
    """Draws how gradients vanish and explode, what clipping does, and gates at work."""

    output: str = flag("pictures", "the folder to write into")
    workdir: str = flag("", "a run of experiments.char_rnn, for gates.png")
    text: str = flag("", "what gates.png shows it reading; its own held-out text when empty")
    features: int = flag(64, "numbers in a layer's output, in lags.png and clipping.png")
    lags: int = flag(100, "the greatest lag in lags.png, in steps")
    updates: int = flag(200, "of clipping.png")
    factor: float = flag(2.5, "on the recurrent kernel of the RNN in clipping.png")
    learning_rate: float = flag(0.5, "of the gradient descent in clipping.png")
    clip_global_norm: float = flag(1.0, "greatest norm of the gradient in clipping.png")
    units: int = flag(24, "rows of gates.png for each gate")
    seed: int = flag(0, "of weights, inputs and batches")

    def __post_init__(self) -> None:
        for name in ("features", "lags", "updates", "units"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("factor", "learning_rate", "clip_global_norm"):
            require(self, name, 0 < getattr(self, name) < float("inf"), "more than 0")


def gradient_by_lag(
    kind: str, forget_bias: float, factor: float, features: int, lags: int, seed: int
) -> np.ndarray:
    """The norm of the gradient of the last output by the input at each lag, over that at lag 0.

    What is differentiated is a random projection of the output; inputs are normal with a standard
    deviation of 0.3; norms are root mean squares over 16 sequences.

    Args:
      kind: of the cell.
      forget_bias: what is added to the bias of an LSTM's forget gates.
      factor: what the orthogonal recurrent kernel is multiplied with.
      features: of the inputs and the outputs.
      lags: the greatest.
      seed: of weights, inputs and projection.

    Returns:
      float32 [lags + 1], at lags 0, 1, ...
    """
    model = Recurrent(kind, features)
    keys = jax.random.split(jax.random.key(seed), 3)
    x = 0.3 * jax.random.normal(keys[0], (16, lags + 1, features))
    direction = jax.random.normal(keys[1], (16, features))
    layer = model.init(keys[2], x, train=False)["params"]["layer0"]
    layer = layer | {"hidden_kernel": factor * layer["hidden_kernel"]}
    if kind == "lstm":
        layer["bias"] = layer["bias"].at[features : 2 * features].add(forget_bias)

    def projection(x):
        outputs: Any = model.apply({"params": {"layer0": layer}}, x, train=False)
        return jnp.sum(outputs[0][:, -1] * direction)

    gradient = jax.jit(jax.grad(projection))(x)
    norms = jnp.sqrt(jnp.sum(gradient**2, axis=(0, 2)))[::-1]
    return np.asarray(norms / norms[0])


def clipped_and_not(config: Config, text: np.ndarray) -> dict[str, dict[str, list[float]]]:
    """The norm of each update and the loss of two trainings, alike but for the clipping."""
    model = language_model(kind="rnn", features=config.features, layers=1)
    pipeline = TextPipeline({"train": text}, 16, 50, seed=config.seed)
    series = {}
    for name, bound in (("clipped", config.clip_global_norm), ("not clipped", None)):
        init, loss = losses.language_modeling(model, pipeline.batch_size)
        task = supervised(init, loss, optim.optimizer("sgd", clip_global_norm=bound))
        rate = {"learning_rate": jnp.float32(config.learning_rate)}
        state = task.init(jax.random.key(config.seed), rate)
        layer = state.params["recurrent"]["layer0"]
        layer["hidden_kernel"] = config.factor * layer["hidden_kernel"]
        train, batches = jax.jit(task.train), pipeline.train()
        norms, values = [], []
        for _ in range(config.updates):
            after, metrics = train(state, next(batches))
            norms.append(float(optax.tree.norm(optax.tree.sub(after.params, state.params))))
            values.append(float(metrics["loss"].value))
            state = after
        series[name] = {"update_norm": norms, "loss": values}
    return series


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
    workdir = Path(config.workdir)
    experiment = cli.experiment_of(workdir)
    require(config, "workdir", experiment == "char_rnn", "a run of experiments.char_rnn")
    run, _ = cli.parse(char_rnn.Config, [f"--flagfile={workdir / cli.FLAGS_FILE}"])
    if run.kind not in GATES:
        raise InputError(f"the cells of the run in {workdir} are of kind {run.kind}; without gates")
    vocabulary = char_rnn.load_vocabulary(config.workdir)
    text = config.text or read_corpus(run.text, run.data_dir or None)["validation"][:100]
    tokens = jnp.asarray(vocabulary.encode(text, "--text").astype(np.int32))
    params = training.trained_params(workdir)
    one_hot = jax.nn.one_hot(tokens, vocabulary.size)
    x = one_hot @ params["embedding"]["embedding"] if "embedding" in params else one_hot
    found: dict[str, np.ndarray] = {}
    for i in range(run.layers):
        layer, x = gates(params["recurrent"][f"layer{i}"], run.kind, x)
        found |= {f"layer {i}, {name}": values for name, values in layer.items()}
    return "".join(vocabulary.decode(token[None]) for token in np.asarray(tokens)), found


def draw_lags(config: Config) -> tuple[Figure, dict[str, Any]]:
    """lags.png and its numbers."""
    figure = Figure(figsize=(4 * len(CELLS), 4), layout="constrained")
    numbers: dict[str, Any] = {}
    all_axes = figure.subplots(1, len(CELLS), sharey=True)
    for axes, (title, (kind, bias)) in zip(all_axes, CELLS.items(), strict=True):
        for factor in FACTORS:
            sizes = (config.features, config.lags, config.seed)
            norms = gradient_by_lag(kind, bias, factor, *sizes)
            axes.semilogy(norms, label=f"recurrent kernel x {factor}")
            numbers.setdefault(title, {})[str(factor)] = norms.tolist()
        axes.set(title=title, xlabel="lag, steps", ylim=(1e-12, 1e6))
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("gradient norm, over that at lag 0")
    all_axes[2].legend(loc="lower center")  # where there is room
    return figure, numbers


def draw_clipping(config: Config) -> tuple[Figure, dict[str, Any]]:
    """clipping.png and its numbers."""
    text = CharVocabulary().encode(read_corpus()["validation"])
    numbers = clipped_and_not(config, text)
    figure = Figure(figsize=(10, 4), layout="constrained")
    above, below = figure.subplots(1, 2)
    for name, values in numbers.items():
        above.semilogy(values["update_norm"], label=name)
        below.plot(values["loss"], label=name)
    above.set(xlabel="update", ylabel="norm of the update")
    below.set(xlabel="update", ylabel="loss, nats a byte", ylim=(0, 8))
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure, numbers


def draw_gates(config: Config) -> tuple[Figure, dict[str, Any]]:
    """gates.png and its numbers."""
    text, found = gates_of_run(config)
    figure = Figure(figsize=(0.14 * len(text) + 2, 2.5 * len(found)), layout="constrained")
    all_axes = figure.subplots(len(found), 1, squeeze=False)[:, 0]
    for axes, (title, values) in zip(all_axes, found.items(), strict=True):
        image = axes.imshow(
            values[:, : config.units].T, vmin=0, vmax=1, aspect="auto", interpolation="nearest"
        )
        # A dollar would begin a formula.
        letters = [repr(c)[1:-1].replace("$", r"\$") for c in text]
        axes.set_xticks(range(len(letters)), letters, fontsize=7, family="monospace")
        axes.set(title=title, ylabel="unit")
    figure.colorbar(image, ax=list(all_axes), label="0 closed, 1 open")
    return figure, {"text": text, **{name: values.tolist() for name, values in found.items()}}


def run(argv: list[str]) -> None:
    """Draws the pictures that were asked for."""
    config, rest = cli.parse(Config, argv)
    if rest:
        raise InputError(f"{rest[0]!r} is no flag; see --help")
    draws = {"gates": draw_gates} if config.workdir else {}  # first: it depends on what is given
    draws |= {"lags": draw_lags, "clipping": draw_clipping}
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in draws.items():
        figure, numbers = draw(config)
        figure.savefig(folder / f"{name}.png", dpi=120)
        (folder / f"{name}.json").write_text(json.dumps(numbers))
        print(f"wrote {folder / name}.png and .json")


if __name__ == "__main__":
    cli.main(run)
