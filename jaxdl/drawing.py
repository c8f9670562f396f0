"""The random numbers of a whole network, drawn by few operations.

Every parameter has a draw of its own, for which XLA takes a tenth of a second to compile on a CPU:
longer for a network than its step takes. What is drawn depends on nothing but a key and a place, so
that draws of one distribution are rows of one array:

    init = drawing.together(lambda key: model.init(key, image, train=False))
    variables = jax.jit(init)(jax.random.key(0))
"""

import functools
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxdl import lifting

R = TypeVar("R")

MOST_TOGETHER = 1 << 22
"""Numbers of one array of draws, of which the longest sets the length of each row."""

_DISTRIBUTIONS: dict[str, Callable[..., jax.Array]] = {
    "_normal": lambda key, shape, dtype: jax.random.normal(key, shape, dtype),
    "_truncated_normal": lambda key, lower, upper, shape, dtype: jax.random.truncated_normal(
        key, lower, upper, shape, dtype
    ),
    "_uniform": lambda key, low, high, shape, dtype: jax.random.uniform(
        key, shape, dtype, low, high
    ),
}
"""JAX's draws, by what it calls them in a program, of what they are given there."""
_SOURCE = inspect.getsourcefile(inspect.unwrap(jax.random.uniform)) or ""
"""Where they are defined: a function of the same name that is not from there is another."""


def together(function: Callable[..., R]) -> Callable[..., R]:
    """The same function, of fewer operations.

    It draws the same bits; what is worked out from them may be rounded otherwise, where XLA does
    several steps as one. For what runs under `jit` and is not differentiated, as `init` of a
    network: derivatives that a function brings of its own are lost, and so is what its result does
    not depend on. Draws by other keys than threefry's stay as they are, and those that JAX does not
    make place by place, without its `jax_threefry_partitionable`.

    Args:
      function: of pytrees of arrays.
    """

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        traced, result = jax.make_jaxpr(function, return_shape=True)(*args)
        operations: list[_Operation] = []
        outputs = _unfold(traced, jax.tree.leaves(args), operations)
        _run(_needed(operations, outputs))
        return jax.tree.unflatten(jax.tree.structure(result), list(map(_value, outputs)))

    return call


class _Operation:
    """An operation of a program, and what it gave."""

    def __init__(self, eqn: Any, operands: Sequence[Any]):
        self.eqn, self.operands = eqn, operands
        self.needs = {operand.of for operand in operands if isinstance(operand, _Result)}
        self.results: Sequence[Any] | None = None

    @property
    def ready(self) -> bool:
        return all(other.results is not None for other in self.needs)

    @property
    def values(self) -> list[Any]:
        return list(map(_value, self.operands))

    def run(self) -> None:
        self.results = lifting.bind(self.eqn, self.values)

    @functools.cached_property
    def draw(self) -> tuple[Any, ...] | None:
        """What draws have in common that may be one; None of what is no draw."""
        name = self.eqn.params.get("name", self.eqn.primitive.name)
        if name in _DISTRIBUTIONS:
            body = self.eqn.params.get(lifting.BODY.get(self.eqn.primitive.name))
            if body is None or _SOURCE not in body.jaxpr.debug_info.func_src_info:
                return None
        elif name != "random_fold_in":
            return None
        types = [var.aval for var in self.eqn.invars]
        by_place = getattr(jax.config, "jax_threefry_partitionable", False)
        if any(of.shape for of in types) or str(types[0].dtype) != "key<fry>" or not by_place:
            return None
        return name, *(of.dtype for of in (*types, self.eqn.outvars[0].aval))


class _Result(NamedTuple):
    """What an operation will give."""

    of: _Operation
    place: int


def _value(operand: Any) -> Any:
    if not isinstance(operand, _Result):
        return operand
    assert operand.of.results is not None
    return operand.of.results[operand.place]


def _unfold(closed: Any, args: Sequence[Any], operations: list[_Operation]) -> list[Any]:
    """Appends the operations of a body and of the bodies within; what it returns."""
    values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(closed.jaxpr.invars, args, strict=True))

    def read(var: Any) -> Any:
        return lifting.value_of(var) if isinstance(var, core.Literal) else values[var]

    for eqn in closed.jaxpr.eqns:
        operation = _Operation(eqn, list(map(read, eqn.invars)))
        inside = lifting.BODY.get(eqn.primitive.name)
        results: Sequence[Any]
        if inside and operation.draw is None:
            results = _unfold(eqn.params[inside], operation.operands, operations)
        else:
            operations.append(operation)
            results = [_Result(operation, place) for place in range(len(eqn.outvars))]
        values.update(zip(eqn.outvars, results, strict=True))
    return list(map(read, closed.jaxpr.outvars))


def _needed(operations: Sequence[_Operation], outputs: Iterable[Any]) -> list[_Operation]:
    """Those that the outputs depend on, in their order, and those that do more than return."""
    needed = {output.of for output in outputs if isinstance(output, _Result)}
    for operation in reversed(operations):
        if operation in needed or operation.eqn.effects:
            needed |= {operation} | operation.needs
    return [operation for operation in operations if operation in needed]


def _run(operations: Sequence[_Operation]) -> None:
    """Runs operations, and draws together what can be drawn at the same time."""
    while operations:
        draws, waiting = defaultdict(list), []
        for operation in operations:
            if not operation.ready:
                waiting.append(operation)
            elif operation.draw is None:
                operation.run()
            else:
                draws[operation.draw].append(operation)
        for alike in draws.values():
            for some in _packed(alike):
                _draw(some)
        operations = waiting


def _packed(draws: Iterable[_Operation]) -> list[list[_Operation]]:
    """Draws by their sizes, as many at once as `MOST_TOGETHER` allows."""
    packs: list[list[_Operation]] = [[]]
    for draw in sorted(draws, key=_size):
        if (len(packs[-1]) + 1) * _size(draw) > MOST_TOGETHER:
            packs.append([])
        packs[-1].append(draw)
    return [pack for pack in packs if pack]


def _size(draw: _Operation) -> int:
    return int(draw.eqn.outvars[0].aval.size)


def _draw(draws: Sequence[_Operation]) -> None:
    """Draws as rows of one array, of which each has as many as it needs."""
    if len(draws) == 1:
        draws[0].run()
        return
    name, longest = draws[0].eqn.params.get("name"), _size(draws[-1])
    stacked = [jnp.stack(of) for of in zip(*(draw.values for draw in draws), strict=True)]
    if name is None:
        rows = jax.vmap(jax.random.fold_in)(*stacked)[:, None]
    else:
        dtype = draws[0].eqn.outvars[0].aval.dtype
        rows = jax.vmap(lambda *given: _DISTRIBUTIONS[name](*given, (longest,), dtype))(*stacked)
    for row, draw in zip(rows, draws, strict=True):
        draw.results = [row[: _size(draw)].reshape(draw.eqn.outvars[0].aval.shape)]
