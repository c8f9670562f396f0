"""Tables for regression: columns of numbers and of names, read from a csv file or bundled.

What is read stays as it is written until `design` makes numbers of the columns that are asked for,
so a column that nobody uses may hold anything.
"""

import csv
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdl import InputError, require
from jaxdl.data.sources import name_some

MISSING = frozenset(("", "?", "na", "n/a", "#n/a", "nan", "null", "none"))
"""What stands in a cell, in capitals or not, for which no value is known."""
DELIMITERS = ",;\t"
MOST_CATEGORIES = 100


class Columns(NamedTuple):
    """A table as it was read.

    Attributes:
      name: what messages call it.
      columns: arrays [N] by their names, of numbers or of text; of text what it stands for is
        looked at when it is used.
      lines: int [N], where each row stands in its file.
    """

    name: str
    columns: dict[str, np.ndarray]
    lines: np.ndarray


def diabetes() -> Columns:
    """scikit-learn's bundled table: 442 patients, ten measures, the disease's `progression`.

    Efron, Hastie, Johnstone, Tibshirani, "Least angle regression", Annals of Statistics 32, 2004,
    pages 407-499. The measures come centred and scaled, each column to a sum of squares of 1.
    """
    from sklearn.datasets import load_diabetes

    found = load_diabetes()
    columns = dict(zip(found.feature_names, found.data.T, strict=True))
    columns["progression"] = found.target
    return Columns("diabetes", columns, np.arange(1, len(found.target) + 1))


def read_csv(path: str | Path) -> Columns:
    """Reads a csv file: a line of names, then a line of values for each row.

    Values are separated by commas, or by the semicolons or tabs that the first line has more of;
    empty lines are passed over.

    Raises:
      InputError: it cannot be read, is no csv, has a column without a name or two of one name, a
        row of another length, or fewer than two rows.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            delimiter = max(DELIMITERS, key=file.readline().count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no csv file in UTF-8 ({error})") from error
    require(bool(rows), f"{path}, which is empty", "a line of names and a line for each row")
    (_, names), *rows = rows
    for place, name in enumerate(names):
        column = f"column {place + 1} of {path}"
        require(name != "", f"{column} without a name", "one in the first line")
        require(name not in names[:place], f"{column} called {name!r} again", "another name")
    for line, row in rows:
        given = f"{len(row)} values in line {line} of {path}"
        require(len(row) == len(names), given, f"{len(names)}, one for each name")
    count = f"{len(rows)} row{'s' * (len(rows) != 1)} of values in {path}"
    require(len(rows) >= 2, count, "at least 2")
    cells = zip(*(row for _, row in rows), strict=True)
    columns = {name: np.array(column) for name, column in zip(names, cells, strict=True)}
    return Columns(str(path), columns, np.array([line for line, _ in rows]))


class Numbers(NamedTuple):
    """What a regression learns from, every row as numbers.

    Attributes:
      name: what messages call it.
      inputs: float64 [N, F], nan where nothing is known.
      targets: float64 [N, 1], likewise.
      input_names: of the F columns; that of a category is `column=category`.
      sources: the table's column that each of them is of.
      target_name: of the column to predict.
      lines: int [N], where each row stands in its file.
    """

    name: str
    inputs: np.ndarray
    targets: np.ndarray
    input_names: tuple[str, ...]
    sources: tuple[str, ...]
    target_name: str
    lines: np.ndarray

    @property
    def lacking(self) -> np.ndarray:
        """Of which rows a value is missing, bool [N]."""
        return np.isnan(self.inputs).any(1) | np.isnan(self.targets[:, 0])

    def rows(self, chosen: np.ndarray) -> "Numbers":
        """Those rows alone that an index or a mask chooses."""
        parts = {name: getattr(self, name)[chosen] for name in ("inputs", "targets", "lines")}
        return self._replace(**parts)

    def describe_missing(self) -> str:
        """How many values are missing and where, in a line; empty where none is."""
        parts = []
        # A category is missing from all inputs of its column at once.
        columns = dict(zip(self.sources, self.inputs.T, strict=True))
        for name, values in (columns | {self.target_name: self.targets[:, 0]}).items():
            lines = self.lines[np.isnan(values)]
            if len(lines):
                parts.append(f"{len(lines)} in {name!r} (first in line {lines[0]})")
        if not parts:
            return ""
        rows = f"{self.lacking.sum()} of the {len(self.lines)} rows of {self.name}"
        return f"{rows} lack values: {', '.join(parts)}"


def design(
    table: Columns, target: str, chosen: Sequence[str] = (), left_out: Collection[str] = ()
) -> Numbers:
    """Makes numbers of a table's columns.

    A column of numbers is one input. One of names is an input for each name, 1 where a row has it
    and 0 elsewhere, in their order.

    Args:
      table: the table.
      target: the column to predict, of numbers.
      chosen: the columns to predict it from, in this order; all others when empty.
      left_out: columns that are not used.

    Raises:
      InputError: there is no such column, or none to predict from, or one that cannot be used:
        of numbers and text, of numbers that are not finite, of one value throughout, of more than
        `MOST_CATEGORIES` names, or a target of names.
    """
    for name in (target, *chosen, *left_out):
        given = f"column {name!r} of {table.name}"
        require(name in table.columns, given, f"one of {name_some(table.columns)}")
    names = [name for name in chosen or table.columns if name not in left_out]
    if not chosen:
        names = [name for name in names if name != target]
    require(target not in names, f"inputs {name_some(names)}", f"none of them the target {target}")
    require(bool(names), f"no column of {table.name} to predict {target!r} from", "at least one")
    targets = _typed(table, target)
    given = f"target {target!r} of {table.name}, which is of names"
    require(targets.dtype.kind == "f", given, "one of numbers, for a regression")
    inputs: list[_Input] = []
    for name in names:
        values = _typed(table, name)
        numeric = values.dtype.kind == "f"
        inputs += [_Input(name, name, values)] if numeric else _one_hot(table, name, values)
    input_names, sources, columns = zip(*inputs, strict=True)
    return Numbers(
        table.name,
        np.stack(columns, 1),
        targets[:, None],
        input_names,
        sources,
        target,
        table.lines,
    )


class _Input(NamedTuple):
    name: str
    source: str
    values: np.ndarray


def _one_hot(table: Columns, name: str, values: np.ndarray) -> list[_Input]:
    known = values != ""
    categories = np.unique(values[known])
    given = f"column {name!r} of {table.name}, of {len(categories)} names"
    accepted = f"at most {MOST_CATEGORIES}, or to be left out"
    require(len(categories) <= MOST_CATEGORIES, given, accepted)
    return [
        _Input(f"{name}={each}", name, np.where(known, values == each, np.nan))
        for each in categories
    ]


def _typed(table: Columns, name: str) -> np.ndarray:
    """A column as float64 [N], nan where nothing is known, or as names [N], then empty."""
    cells, where = table.columns[name], f"column {name!r} of {table.name}"
    values = cells if cells.dtype.kind == "f" else _read(cells, table.lines, where)
    known = ~np.isnan(values) if values.dtype.kind == "f" else values != ""
    require(known.any(), f"{where}, which is empty", "some values, or to be left out")
    several = len(np.unique(values[known])) > 1
    require(several, f"{where}, {values[known][0]} throughout", "two values, or to be left out")
    return values


def _read(cells: np.ndarray, lines: np.ndarray, where: str) -> np.ndarray:
    known = np.array([text.casefold() not in MISSING for text in cells])
    numbers = [_number(text) for text in cells]
    is_text = np.array([number is None for number in numbers]) & known
    if (is_text == known).all():
        return np.where(known, cells, "")
    if is_text.any():
        text, number = is_text.argmax(), (known & ~is_text).argmax()
        raise InputError(
            f"{where} has the text {str(cells[text])!r} in line {lines[text]} and the number "
            f"{cells[number]} in line {lines[number]}: expected numbers alone or text alone, and "
            "nothing, ? or NA where a value is missing"
        )
    values = np.where(known, np.array(numbers, float), np.nan)
    # Beyond float32 nothing could be trained on.
    wrong = known & ~(np.abs(values) <= np.finfo(np.float32).max)
    if wrong.any():
        place = wrong.argmax()
        given = f"{where} has {cells[place]} in line {lines[place]}"
        raise InputError(f"{given}: expected finite numbers, below 3e38")
    return values


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


class Standardization(NamedTuple):
    """Shifts and scales of columns after which the rows they are of have mean 0 and variance 1.

    Attributes:
      mean: float64 [F].
      scale: float64 [F], 1 for a column of one value.
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> "Standardization":
        """Those of rows [N, F], without the values that are missing."""
        known = np.ma.masked_invalid(rows)
        # By the values, as what rounding leaves of a variance of 0 is no scale.
        varies = (known.max(0) > known.min(0)).filled(False)
        scale = np.where(varies, known.std(0).filled(1.0), 1.0)
        return cls(known.mean(0).filled(0.0), scale)

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """Standardized rows, float32 [N, F]; what is missing becomes the mean, 0."""
        return np.nan_to_num((rows - self.mean) / self.scale, nan=0.0).astype(np.float32)

    def undo(self, rows: np.ndarray) -> np.ndarray:
        """What standardized rows are in the columns' own units, float64 [N, F]."""
        return rows * self.scale + self.mean
