"""What an experiment trains, as the harness asks for it: one `Problem`, of named parts."""

from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple, Protocol

from jax.sharding import Mesh

from jaxdl import Batch
from jaxdl.sharding import Rules
from jaxdl.task import State, Task
from jaxdl.writers import Writer


class Feed(Protocol):
    """What feeds a training: the batches of its splits; every pipeline of `jaxdl.data` is one."""

    @property
    def one_shape(self) -> bool:
        """Whether all batches are alike in their shapes."""
        ...

    def examples(self, split: str, /) -> int:
        """How many examples a split has."""
        ...

    def train(self, start: int = 0, /) -> Generator[Batch, None, None]:
        """The batches of the updates after the first `start`."""
        ...

    def evaluate(self, split: str, /) -> Iterable[Batch]:
        """One pass over a split."""
        ...


class MakeTask(Protocol):
    """What makes a Task that runs under `jit`, or over a mapped axis."""

    def __call__(self, axis_name: str | None, /) -> Task:
        """The Task whose devices are an axis of that name; None for all in one program."""
        ...


class MakeTable(Protocol):
    """What draws a model's layers as text."""

    def __call__(self) -> str:
        """The table."""
        ...


class MakeNetwork(Protocol):
    """What gives a network as a function, to be drawn."""

    def __call__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The function and its arguments, or their shapes."""
        ...


class Learner(NamedTuple):
    """What is trained.

    Attributes:
      task: makes its Task.
      hparams: the hyperparameters that travel in State. With `ema_decay` among them the Task keeps
        averages of its own.
      steps: updates in all.
      method: how it is minimized and what decays, in words.
      table: the model's layers, as text.
      sharding: how the model is cut over the mesh axis `model`; empty where it says nothing.
      network: gives its network to be drawn; None where that is not shown.
    """

    task: MakeTask
    hparams: dict[str, Any]
    steps: int
    method: str
    table: MakeTable
    sharding: Rules = ()
    network: MakeNetwork | None = None


class Best(NamedTuple):
    """By what the best checkpoint is kept, and training stopped early.

    Attributes:
      metric: its name, with `eval/`.
      least: whether the least value of it is the best.
    """

    metric: str
    least: bool = False


class View:
    """What a run shows and measures beside the means over a split; by itself nothing.

    Attributes:
      measures: the names of what `measure` gives.
    """

    measures: tuple[str, ...] = ()

    def inputs(self, key: Any, batch: Batch) -> Any:
        """The inputs of a training batch as the model is given them.

        Returns:
          Images [N, H, W, C] in [0, 1]; None where there is nothing to see.
        """
        return None

    def measure(self, state: State, split: str) -> dict[str, float]:
        """The metrics of a state that are no means over a split's examples; on every host."""
        return {}

    def beside(self, split: str, metrics: dict[str, float]) -> str:
        """Lines to print below the metrics of a split, such as what chance gets."""
        return ""

    def report(self, state: State, metrics: dict[str, float], writer: Writer) -> None:
        """Shows what numbers do not, after each evaluation, on the first host alone.

        The metrics are the last under `train/` and `eval/`.
        """

    def finish(self, state: State) -> None:
        """Shows what a run came to, once, on the first host alone."""

    def notes(self) -> dict[str, Any]:
        """What the summary should hold beside all else."""
        return {}


class Problem(NamedTuple):
    """What an experiment trains.

    Attributes:
      title: what it is, for the run's first line.
      learner: what is trained.
      feed: what feeds it.
      splits: the names of the feed's splits.
      best: what of it is best.
      unit: what the feed's examples are.
      inputs: what a trained model must be told with, for prediction: shapes, names of classes.
      view: what is shown.
    """

    title: str
    learner: Learner
    feed: Feed
    splits: tuple[str, ...]
    best: Best
    unit: str
    inputs: dict[str, Any]
    view: View = View()

    @property
    def eval_split(self) -> str:
        """What the run watches: the validation split, or test where there is none."""
        return "validation" if "validation" in self.splits else "test"

    @property
    def examples(self) -> dict[str, int]:
        """How many there are of each split."""
        return {split: self.feed.examples(split) for split in self.splits}


class Build(Protocol):
    """What makes the Problem of an experiment's flags."""

    def __call__(self, config: Any, mesh: Mesh, /) -> Problem:
        """The Problem of a config, fed over a mesh of devices."""
        ...
