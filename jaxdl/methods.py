"""Named methods and what their arguments may be: for those who look them up, and for flags.

The names and defaults of arguments are those of the methods' own signatures. What a signature does
not tell, the bounds and a few words, is written once, in a table beside the methods (`ARGUMENTS` of
`jaxdl.optim` and `jaxdl.schedules`).
"""

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from jaxdl import InputError, require

T = TypeVar("T")


class Bound(NamedTuple):
    """Which numbers an argument may be.

    Attributes:
      holds: (number) -> whether it may.
      accepted: the same in words.
    """

    holds: Callable[[float], bool]
    accepted: str


SHARE = Bound(lambda number: 0 <= number < 1, "at least 0 and less than 1")
NOT_NEGATIVE = Bound(lambda number: number >= 0, "at least 0")
POSITIVE = Bound(lambda number: number > 0, "more than 0")
NOT_POSITIVE = Bound(lambda number: number <= 0, "at most 0")


class Argument(NamedTuple):
    """What is known of an argument.

    Attributes:
      help: what it does, in a few words.
      bound: which numbers it may be; None where the method itself tells.
      type: of its values.
      defaults: of each method that takes it, by the method's name.
    """

    help: str
    bound: Bound | None = None
    type: Any = float
    defaults: Mapping[str, Any] = {}


def with_defaults(
    table: Mapping[str, Argument], taken: Mapping[str, Mapping[str, Any]]
) -> dict[str, Argument]:
    """Completes a table of arguments.

    Args:
      table: the arguments by name, in the order to show them in.
      taken: {method: {argument: default}}.

    Returns:
      The table with `defaults`.
    """
    return {
        name: argument._replace(
            defaults={method: own[name] for method, own in taken.items() if name in own}
        )
        for name, argument in table.items()
    }


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """The method of that name.

    Raises:
      InputError: there is none; the message names those there are, and the one that was meant.
    """
    if name not in table:
        close = difflib.get_close_matches(name, table, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"no {kind} {name!r}; there are {', '.join(sorted(table))}{hint}")
    return table[name]


def check(
    method: str, taken: Mapping[str, Any], table: Mapping[str, Argument], given: Mapping[str, Any]
) -> None:
    """Refuses an argument that a method does not take, and a value that it cannot have.

    Args:
      method: its kind and name, for the message.
      taken: the arguments that it takes.
      table: what they may be.
      given: values by name; a None is of no value, and its name alone is checked.

    Raises:
      InputError: one is refused.
    """
    for name in given:
        if name not in taken:
            takes = ", ".join(taken) or "no argument of its own"
            raise InputError(f"{method} takes no {name}; it takes {takes}")
    for name, value in given.items():
        if value is not None:
            check_bound(f"{method}: {name}", value, table[name].bound)


def check_bound(name: str, value: Any, bound: Bound | None) -> None:
    """Refuses a number that is out of its bound, or not finite."""
    if bound is not None:
        holds = bound.holds(value) and math.isfinite(value)
        require(holds, f"{name}={value}", f"{bound.accepted}, finite")
