"""Regression on tables: least squares, and the multilayer perceptron.

    python -m experiments.regression --flagfile=experiments/flags/regression_diabetes.flags
    python -m experiments.regression --dataset=csv:FILE --target=COLUMN --workdir=W

Inputs and targets are standardized by the training rows. `loss` is of standardized targets;
`rmse`, `mae` and `r2` are in the target's own units, and so is predictions.png.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.harness import table_data, training
from experiments.harness.classification import NetworkFlags, build_model
from experiments.harness.cli import flag, require
from experiments.harness.method import MethodFlags, supervised_task
from experiments.harness.problem import Best, Learner, Problem, View
from experiments.harness.run import RunFlags
from experiments.harness.table_data import TableData, TableDataFlags
from jaxdl import figures, files, losses
from jaxdl.models.mlp import ACTIVATIONS
from jaxdl.nn import tabulate
from jaxdl.task import State, Task

PREDICTIONS_FILE = "predictions.png"
ROWS_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class Network(NetworkFlags):
    """A line, or a multilayer perceptron; what is not given is as the model has it."""

    model: str = flag("linear", "weighted sums of the inputs, or hidden layers", ("linear", "mlp"))
    width: int | None = flag(None, "of mlp: units in each hidden layer")
    depth: int | None = flag(None, "of mlp: number of hidden layers")
    activation: str = flag("", "of mlp: of the hidden layers", ("", *ACTIVATIONS))
    batch_norm: bool = flag(False, "of mlp: a norm between each layer and its activation")
    dropout: float | None = flag(None, "of mlp: rate after each activation")


@dataclasses.dataclass(frozen=True)
class LossFlags:
    """What is minimized."""

    loss: str = flag("mse", "squared error, absolute error, or Huber's", ("mse", "mae", "huber"))
    huber_delta: float = flag(
        1.0, "from where on Huber's loss is a line, in standard deviations of the target"
    )

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be."""
        require(self, "huber_delta", self.huber_delta > 0, "more than 0")

    @property
    def elementwise(self) -> losses.ElementwiseLoss:
        """The loss of each value."""
        if self.loss == "huber":
            return functools.partial(losses.huber, delta=self.huber_delta)
        return {"mse": losses.mse, "mae": losses.mae}[self.loss]


@dataclasses.dataclass(frozen=True)
class Config:
    """Fits a model that predicts a column of a table, by default the diabetes table.

    With --l2_penalty=W a linear model is ridge regression, of scikit-learn's alpha = N W / 2 for N
    training rows, on standardized columns.
    """

    run: RunFlags = RunFlags("regression", epochs=100.0)
    table: TableDataFlags = TableDataFlags()
    method: MethodFlags = MethodFlags(learning_rate=0.01)
    minimized: LossFlags = LossFlags()
    network: Network = Network()

    @property
    def model_arguments(self) -> dict[str, Any]:
        """The keyword arguments of the network that is built."""
        return self.network.arguments

    def __post_init__(self) -> None:
        """Raises InputError for flags that do not fit one another."""
        table_data.check(self)
        build_model(self, 1, axis_name=None)  # does it take what was given?


class Predictions(View):
    """Measures predictions in the target's own units, and draws them.

    Args:
      config: the flags.
      table: the data.
    """

    def __init__(self, config: Config, table: TableData):
        self._config, self._table = config, table
        self._line: dict[str, Any] = {}
        averages = ("rmse", "ema_rmse", "r2", "ema_r2")
        self.measures = averages if config.run.ema_decay is not None else ("rmse", "r2")
        model = build_model(config, 1, axis_name=None)

        @jax.jit
        def predict(variables, inputs):
            apply = lambda row: model.apply(variables, row[None], train=False)[0]
            return jax.lax.map(apply, inputs, batch_size=ROWS_AT_ONCE)

        self._predict = predict

    def predict(self, trained: Any, split: str) -> np.ndarray:
        """Predictions of a split's rows by `params` and `extra`, float64 [N]."""
        params, extra = jax.device_get((trained["params"], trained["extra"]))
        inputs = self._table.inputs.apply(self._table.splits[split].inputs)
        outputs = np.asarray(self._predict({"params": params, **extra}, inputs))
        return self._table.targets.undo(outputs)[:, 0]

    def measure(self, state: State, split: str) -> dict[str, float]:
        """The root of the mean squared error, and the share of the variance that is explained."""
        found = self._scores({"params": state.params, "extra": state.extra}, split)
        if state.average:
            averaged = self._scores(state.average, split)
            found |= {f"ema_{name}": value for name, value in averaged.items()}
        return found

    def _scores(self, trained: Any, split: str) -> dict[str, float]:
        truth = self._table.splits[split].targets[:, 0]
        squares = np.square(self.predict(trained, split) - truth).mean()
        variance = truth.var()
        r2 = 1 - squares / variance if variance > 0 else np.nan
        return {"rmse": float(np.sqrt(squares)), "r2": float(r2)}

    def finish(self, state: State) -> None:
        """Draws predictions.png, and takes down a linear model's line."""
        trained = state.average or {"params": state.params, "extra": state.extra}
        if self._config.network.model == "linear":
            self._line = line(self._table, jax.device_get(trained["params"]["fc"]))
        predicted = {split: self.predict(trained, split) for split in self._table.splits}
        with files.replacing(Path(self._config.run.workdir) / PREDICTIONS_FILE) as file:
            draw(self._table, predicted).savefig(file, format="png", dpi=100)

    def notes(self) -> dict[str, Any]:
        """A linear model's line in the columns' own units."""
        return self._line


def line(table: TableData, layer: dict[str, np.ndarray]) -> dict[str, Any]:
    """The coefficient of each input and the intercept, in the columns' own units."""
    inputs, targets = table.inputs, table.targets
    slopes = targets.scale * layer["kernel"][:, 0] / inputs.scale
    intercept = targets.undo(layer["bias"])[0] - slopes @ inputs.mean
    names = table.splits["train"].input_names
    return {
        "coefficients": dict(zip(names, slopes.tolist(), strict=True)),
        "intercept": float(intercept),
    }


@figures.styled
def draw(table: TableData, predicted: dict[str, np.ndarray]) -> Any:
    """The picture of predictions [N] of each split: beside the truth, or over a single input."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.subplots()
    some = table.splits["train"]
    alone = some.inputs.shape[1] == 1
    for color, (split, values) in zip(("0.75", "C0", "C1"), predicted.items(), strict=False):
        truth = table.splits[split].targets[:, 0]
        x, y = (table.splits[split].inputs[:, 0], truth) if alone else (truth, values)
        axes.scatter(x, y, s=12, color=color, label=f"{split} ({len(truth)} rows)")
    if alone:
        x = np.concatenate([table.splits[split].inputs[:, 0] for split in predicted])
        y, order = np.concatenate([*predicted.values()]), np.argsort(x)
        axes.plot(x[order], y[order], color="C3", label="predicted")
        axes.set(xlabel=some.input_names[0], ylabel=some.target_name)
    else:
        low, high = axes.get_xlim()
        axes.plot([low, high], [low, high], color="C3", label="where they are equal")
        axes.set(xlabel=f"{some.target_name}, as it is", ylabel="as it is predicted")
    axes.legend()
    return figure


def build(config: Config, mesh: Mesh) -> Problem:
    """The Problem of predicting a column of a table."""
    table = table_data.make_data(config, mesh)
    train, pipeline = table.splits["train"], table.pipeline
    steps_per_epoch = pipeline.examples("train") / config.run.batch_size
    steps = config.run.steps or max(1, round(config.run.epochs * steps_per_epoch))
    shape = train.inputs.shape[1:]
    unit = float(table.targets.scale[0])

    def task(axis_name: str | None) -> Task:
        return supervised_task(
            config,
            *losses.prediction(
                build_model(config, 1, axis_name),
                shape,
                config.minimized.elementwise,
                reports={"mae": lambda outputs, targets: unit * losses.mae(outputs, targets)},
            ),
            config.method.make_optimizer(),
            config.method.make_schedule(steps, 0),
            axis_name,
        )

    return Problem(
        title=f"{config.network.model} learning {train.target_name} of {train.name}",
        learner=Learner(
            task,
            config.method.hparams,
            steps,
            config.method.in_words(),
            lambda: tabulate(build_model(config, 1, None), jnp.zeros((1, *shape)), train=False),
        ),
        feed=pipeline,
        splits=tuple(table.splits),
        best=Best("eval/rmse", least=True),
        unit="rows",
        inputs={
            "input_names": train.input_names,
            "input_mean": table.inputs.mean.tolist(),
            "input_scale": table.inputs.scale.tolist(),
            "target_name": train.target_name,
            "target_mean": table.targets.mean.tolist(),
            "target_scale": table.targets.scale.tolist(),
        },
        view=Predictions(config, table),
    )


if __name__ == "__main__":
    training.main(Config, build)
