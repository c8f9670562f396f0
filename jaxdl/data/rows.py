"""What a batch is made of: rows by their schema, stored ones and made ones.

`Rows` are stored and read one by one, in whatever `Order`; a `Stream` makes the rows of a step.
`Indexed` is the stream of stored rows. Worker processes get copies of all of these.
"""

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxdl import InputError
from jaxdl.data.order import Order


class Field(NamedTuple):
    """One of the arrays that a batch consists of.

    Attributes:
      shape: of a row.
      dtype: of its items; no more than 32 bits, because JAX keeps no more.
      padding: what a row holds that only fills a batch; it is broadcast to `shape`.
    """

    shape: tuple[int, ...]
    dtype: Any
    padding: Any = 0


Schema = Mapping[str, Field]
"""What the arrays of a batch are called, and what a row of each is."""

MASK = Field((), np.float32)  # 1 counts; 0 is padding or, in evaluation, an unreadable row


def padding_rows(schema: Schema, count: int) -> dict[str, np.ndarray]:
    """The arrays of `count` rows that only fill a batch."""
    rows = {}
    for name, field in schema.items():
        rows[name] = np.zeros((count, *field.shape), field.dtype)
        if np.any(field.padding):
            rows[name][:] = field.padding
    return rows


class Origin(NamedTuple):
    """The set that rows were taken out of.

    Attributes:
      name: equal for sets of the same content alone.
      rows: all of it.
      indices: int [N], which of them these are.
    """

    name: Hashable
    rows: "Rows"
    indices: np.ndarray


def origin(rows: "Rows") -> Origin:
    """The set that rows were taken out of, so far as they tell: see `Origin`."""
    own = getattr(rows, "origin", None)
    return Origin(id(rows), rows, np.arange(len(rows))) if own is None else own()


class Unreadable(InputError):
    """A row is stored that cannot be read."""


class Rows(Protocol):
    """Random access to the rows of one split; must survive pickling."""

    @property
    def schema(self) -> Schema:
        """What a row holds; `mask` comes by itself."""
        ...

    @property
    def random(self) -> bool:
        """Whether reading for training draws, as a random crop does."""
        ...

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def read(self, index: int, rng: np.random.Generator | None) -> Mapping[str, Any]:
        """Row `index`, in 0..len-1, by the schema.

        Args:
          index: which.
          rng: to draw from in training, if `random`; until the next row is read.

        Raises:
          Unreadable: it cannot be read, which need not end a run.
        """
        ...

    def name(self, index: int) -> str:
        """What messages call a row."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Rows of arrays in memory, one array a column.

    Attributes:
      columns: arrays [N, ...] of one length, of at most 32 bits an item.
      padding: of columns whose padding is not zero, what a row of it holds.
      title: what messages call the table.

    Raises:
      InputError: no columns or no rows, lengths that differ, a type that JAX does not keep, or a
        column `mask`.
    """

    columns: Mapping[str, np.ndarray]
    padding: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    title: str = "table"

    def __post_init__(self):
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise InputError(f"{self.title}: columns of lengths {lengths}; expected one, above 0")
        if "mask" in lengths:
            raise InputError(f"{self.title}: a column 'mask'; expected another name for it")
        for name, column in self.columns.items():
            if column.dtype.name not in KEPT:
                raise InputError(
                    f"{self.title}: column {name!r} is {column.dtype}; expected {', '.join(KEPT)}"
                )

    @property
    def schema(self) -> Schema:
        """What a row holds."""
        return {
            name: Field(column.shape[1:], column.dtype, self.padding.get(name, 0))
            for name, column in self.columns.items()
        }

    @property
    def random(self) -> bool:
        """A row is the same whenever it is read."""
        return False

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def read(self, index: int, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Row `index` of every column."""
        return {name: column[index] for name, column in self.columns.items()}

    def name(self, index: int) -> str:
        """What messages call a row."""
        return f"{self.title}[{index}]"


KEPT = (
    *("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32"),
    *("float16", "bfloat16", "float32", "complex64"),
)
"""Types that an array keeps on its way through JAX."""


class Stream(Protocol):
    """The rows of every step, each a pure function of the step."""

    @property
    def steps(self) -> int | None:
        """How many steps there are; None without end."""
        ...

    def __call__(self, step: int, places: np.ndarray) -> dict[str, np.ndarray]:
        """The rows at `places` of the global batch of a step."""
        ...


@dataclasses.dataclass(frozen=True)
class Indexed:
    """Stored rows in some order, padded by their schema, with `mask` 1 for what counts.

    Attributes:
      rows: of one split.
      order: which of them stand in a step.
      skips: whether an `Unreadable` row is passed over instead of raised: in an order without end
        the next row that can be read stands in for it, else it is padding.
      nothing: the message of the InputError where no row can stand in.
    """

    rows: Rows
    order: Order
    skips: bool = False
    nothing: str = "no row could be read"

    @property
    def schema(self) -> Schema:
        """What a row of a batch holds."""
        return {**self.rows.schema, "mask": MASK}

    @property
    def steps(self) -> int | None:
        """As many as the order has."""
        return self.order.steps

    def __call__(self, step: int, places: np.ndarray) -> dict[str, np.ndarray]:
        """The rows at `places` of the global batch of a step."""
        return self.read(step, places)[0]

    def read(self, step: int, places: np.ndarray) -> tuple[dict[str, np.ndarray], list[int]]:
        """The rows at `places` of a step's global batch, and which could not be read."""
        size, endless = len(self.rows), self.order.steps is None
        batch = padding_rows(self.schema, len(places))
        unreadable: list[int] = []
        index = self.order(step)[places]
        if isinstance(self.rows, Table):  # at once: row by row takes fifty times as long
            real = np.flatnonzero(index < size)
            for name, column in self.rows.columns.items():
                batch[name][real] = column[index[real]]
            batch["mask"][real] = 1
            return batch, unreadable
        generators = self.order.generators(step) if self.rows.random else None
        for row, first in enumerate(map(int, index)):
            if first == size:
                continue  # padding
            for number in range(first, first + size if endless else first + 1):
                rng = generators(int(places[row])) if generators else None
                try:
                    values = self.rows.read(number % size, rng)
                except Unreadable:
                    if not self.skips:
                        raise
                    unreadable.append(number % size)
                    continue
                for name, value in values.items():
                    batch[name][row] = value
                batch["mask"][row] = 1
                break
            else:
                if endless:
                    raise InputError(self.nothing)
        return batch, unreadable
