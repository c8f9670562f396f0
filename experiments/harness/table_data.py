"""The flags of table data, and the batches of the table that they name."""

import dataclasses
import sys
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from experiments.harness.cli import flag, require, settle
from jaxdl import InputError, data, hosts, parallel
from jaxdl.data import tables
from jaxdl.data.tables import Numbers, Standardization

CSV = "csv:"


@dataclasses.dataclass(frozen=True)
class TableDataFlags:
    """Which table a run is about, what is predicted of it, and from what."""

    dataset: str = flag("diabetes", "diabetes, scikit-learn's, or csv:FILE")
    target: str = flag("", "the column to predict; of diabetes its progression when empty")
    columns: tuple[str, ...] = flag((), "those to predict it from; all others when empty")
    leave_out: tuple[str, ...] = flag((), "columns that are not used")
    missing: str = flag(
        "fail",
        "what missing values do: end the run, become the training rows' mean (a category their "
        "shares; a row without a target is left out), or have their rows left out",
        ("fail", "mean", "drop"),
    )
    test: float = flag(0.2, "share of the rows to hold out for testing")
    validation: float = flag(0.0, "share of what is then left to hold out for validation")

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be."""
        known = self.dataset == "diabetes" or self.dataset.startswith(CSV)
        require(self, "dataset", known, "diabetes or csv:FILE")
        for name in ("test", "validation"):
            require(self, name, 0 <= getattr(self, name) < 1, "at least 0 and less than 1")


def check(config: Any) -> None:
    """Sets what follows of other flags; raises InputError for those of a run that do not fit."""
    if config.run.folds and "test" not in config.run.given:
        settle(config, test=0.0)
    require(config, "test", not (config.run.folds and config.table.test), "left out with --folds")
    own = config.table.dataset == "diabetes"
    require(config, "target", config.table.target != "" or own, "a column of the file")


class TableData(NamedTuple):
    """A table cut into splits, standardized by its training rows.

    Attributes:
      splits: the rows of each, in the columns' own units.
      inputs: how they are standardized.
      targets: the same of the target.
      pipeline: the batches of standardized rows: `input` [B, F], `target` [B, 1].
    """

    splits: dict[str, Numbers]
    inputs: Standardization
    targets: Standardization
    pipeline: data.RowPipeline


def load(config: Any) -> Numbers:
    """The rows that a config names, without those that missing values take away."""
    flags = config.table
    path = flags.dataset.removeprefix(CSV)
    table = tables.read_csv(path) if flags.dataset.startswith(CSV) else tables.diabetes()
    target = flags.target or "progression"
    numbers = tables.design(table, target, flags.columns, flags.leave_out)
    lacking = numbers.describe_missing()
    if not lacking:
        return numbers
    if flags.missing == "fail":
        raise InputError(
            f"{lacking}; give --missing=mean to fill them in, --missing=drop to leave the rows out,"
            " or --leave_out=COLUMN"
        )
    left_out = numbers.lacking if flags.missing == "drop" else np.isnan(numbers.targets[:, 0])
    if hosts.is_first():
        filled = "; means fill in" if flags.missing == "mean" else ""
        print(f"{lacking}{filled}; rows left out: {left_out.sum()}", file=sys.stderr)
    return numbers.rows(~left_out)


def cut(config: Any, numbers: Numbers) -> dict[str, Numbers]:
    """The rows of each split, drawn as images without classes are."""
    count, seed = len(numbers.targets), config.run.seed
    every: Any = range(count)  # a source of the rows' own numbers
    dataset = data.Dataset(numbers.name, {"train": every}, (), 1)
    if config.run.folds and config.run.fold is not None:
        folds = data.fold(dataset, config.run.folds, config.run.fold, seed).splits
        dataset = dataset._replace(splits={"train": folds["train"], "test": folds["validation"]})
    for split in ("test", "validation"):
        if share := getattr(config.table, split):
            dataset = data.hold_out(dataset, share, seed, split)
    splits: dict[str, Any] = dict(dataset.splits)
    chosen = {name: np.array([row[i] for i in range(len(row))]) for name, row in splits.items()}
    return {name: numbers.rows(rows) for name, rows in chosen.items()}


def make_data(config: Any, mesh: Mesh) -> TableData:
    """The splits of the table that a config names, and their batches."""
    numbers = load(config)
    splits = cut(config, numbers)
    train = splits["train"]
    inputs, targets = Standardization.of(train.inputs), Standardization.of(train.targets)
    rows = {
        split: data.Table(
            {"input": inputs.apply(part.inputs), "target": targets.apply(part.targets)},
            title=f"{split} of {numbers.name}",
        )
        for split, part in splits.items()
    }
    pipeline = data.RowPipeline(
        rows,
        config.run.batch_size,
        name=numbers.name,
        seed=config.run.seed,
        sharding=parallel.batch_sharding(mesh),
    )
    return TableData(splits, inputs, targets, pipeline)
