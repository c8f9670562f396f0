"""Programs that are the same but for the numbers in them, as one program of those numbers.

Two trainings whose learning rate, dropout rate or clipping differ run the same operations on
different numbers. Which numbers travel as data and which were written into the program when it was
traced is no matter: `trace` takes the program apart into its operations and its numbers, and
`Family` puts programs of equal operations together again as one function, to which the numbers that
differ are handed. So what may be mapped as lanes of one program is not declared, but found.

    programs = [trace(functools.partial(step, rate=rate), x) for rate in (0.1, 0.2)]
    assert programs[0].operations == programs[1].operations
    family = Family(programs)
    jax.vmap(family, (0, None))(family.numbers, x)  # both at once

To trace takes a while, which `likeness` spares those that are the same function.
"""

import dataclasses
import functools
import hashlib
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

BODY = {
    "jit": "jaxpr",
    "pjit": "jaxpr",  # its name before JAX 0.7
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
"""Operations that do what their body does, by the parameter that holds it."""

_RULES = ("custom_jvp_call", "custom_vjp_call", "custom_vmap_call")
"""Operations whose functions say how their body is differentiated or mapped, not what it does."""

GREATEST_NUMBER = 1 << 12
"""Items of the largest array that is taken for a number; a larger one is a part of the program."""


class Program(NamedTuple):
    """A function as it was traced, for arguments of some shapes.

    Attributes:
      operations: what tells them, in their order and on what they operate, from those of another
        program; equal for programs that differ in their numbers alone.
      numbers: the scalars and small arrays in it, in their order.
      traced: what was traced.
      result: the structure of what it returns, with shapes and types.
    """

    operations: bytes
    numbers: list[np.ndarray]
    traced: Any
    result: Any


def trace(function: Callable[..., Any], *args: Any) -> Program:
    """Takes a function apart into its operations and the numbers in them.

    Numbers in the bodies of loops and branches count as part of the operations.

    Args:
      function: of pytrees of arrays.
      *args: arrays, or their shapes and types.
    """
    traced, result = jax.make_jaxpr(function, return_shape=True)(*args)
    reading = _Reading()
    reading.body(traced)
    structure = repr((jax.tree.structure(args), jax.tree.structure(result)))
    reading.say(structure)
    return Program(reading.digest.digest(), reading.numbers, traced, result)


def likeness(function: Any, *inputs: Any) -> tuple:
    """What tells a function, or a tuple of such, from others: its code and what that has at hand.

    With inputs, arrays or shapes of them in any containers, their shapes and types count too.

    Where it is equal the functions do the same, so that one trace serves for both; where it is not
    they may yet. Compare it while both are there: what is not a function, a container, a number, a
    text or a dataclass, of which a Flax module is one, stands for itself.
    """
    words: list[Any] = []
    met: dict[int, tuple[int, Any]] = {}  # of whatever else is at a place in memory none is kept

    def read(value: Any) -> None:
        words.append(type(value))
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            words.append(repr(value))
        elif id(value) in met:
            words.append(met[id(value)][0])
        else:
            met[id(value)] = len(met), value
            parts = _parts(value)
            words.extend([id(value)] if parts is None else [len(parts), *parts[0]])
            for part in () if parts is None else parts[1:]:
                read(part)

    read(function)
    return (*words, repr(jax.eval_shape(lambda *given: given, *inputs)))


def _parts(value: Any) -> list[Any] | None:
    """What a value is made of: first, in a list, what is compared as it is; None if of nothing."""
    match value:
        case types.FunctionType():
            try:
                cells = [cell.cell_contents for cell in value.__closure__ or ()]
            except ValueError:  # one is empty
                return None
            own = [value.__code__, id(value.__globals__)]
            return [own, value.__defaults__, value.__kwdefaults__, *cells]
        case types.MethodType():
            return [[], value.__func__, value.__self__]
        case functools.partial():
            return [[], value.func, value.args, value.keywords]
        case tuple() | list():
            return [[], *value]
        case dict() | types.MappingProxyType():
            return [[], *value.keys(), *value.values()]
        case np.ndarray() | np.generic():
            return [[value.shape, value.dtype, value.tobytes()]]
        case type():
            return None
        case flax.linen.Module():
            return [[], *(getattr(value, field.name) for field in dataclasses.fields(value))]
    is_plain = dataclasses.is_dataclass(value) and hasattr(value, "__dict__")
    return [[], vars(value)] if is_plain else None


class Family:
    """Programs of the same operations, as one function of the numbers in which they differ.

    Args:
      programs: at least one, all of equal `operations`.

    Attributes:
      numbers: what differs, each array stacked over the programs, [len(programs), ...].
    """

    def __init__(self, programs: Sequence[Program]):
        assert len({program.operations for program in programs}) == 1
        self._traced = programs[0].traced
        self._result = jax.tree.structure(programs[0].result)
        places = enumerate(zip(*(program.numbers for program in programs), strict=True))
        differing = {place: of for place, of in places if len({n.tobytes() for n in of}) > 1}
        self._places = list(differing)
        self.numbers = [np.stack(of) for of in differing.values()]

    def __call__(self, numbers: Sequence[Any], *args: Any) -> Any:
        """What a program with these numbers gives.

        Args:
          numbers: of one program, as `numbers` without its first axis.
          *args: as it was traced with.
        """
        given = dict(zip(self._places, numbers, strict=True))
        outputs, _ = _evaluate(self._traced, given, 0, jax.tree.leaves(args))
        return jax.tree.unflatten(self._result, outputs)


class _Reading:
    """Reads a traced program into a digest of its operations, and its numbers."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.numbers: list[np.ndarray] = []
        self._names: dict[Any, int] = {}

    def say(self, *words: Any) -> None:
        self.digest.update("\0".join(map(str, words)).encode() + b"\n")

    def body(self, closed: Any, lifted: bool = True) -> None:
        """Reads a closed body, whose numbers are lifted, or else are part of its operations."""
        for value in closed.consts:
            self._array(value, lifted)
        self._operations(closed.jaxpr, lifted)

    def _operations(self, jaxpr: Any, lifted: bool) -> None:
        self.say("begin", [self._name(var) for var in (*jaxpr.constvars, *jaxpr.invars)])
        for eqn in jaxpr.eqns:
            self.say(eqn.primitive.name)
            for operand in eqn.invars:
                if isinstance(operand, core.Literal):
                    self._array(value_of(operand), lifted)
                else:
                    self.say(self._name(operand))
            inside = BODY.get(eqn.primitive.name)
            for name in sorted(eqn.params):
                self.say(name)
                if name == inside:
                    self.body(eqn.params[name], lifted)
                else:
                    self._parameter(eqn.primitive.name, eqn.params[name])
            self.say([self._name(var) for var in eqn.outvars])
        for output in jaxpr.outvars:
            if isinstance(output, core.Literal):
                self._array(value_of(output), lifted)
            else:
                self.say(self._name(output))
        self.say("end")

    def _name(self, var: Any) -> str:
        return f"{self._names.setdefault(var, len(self._names))}:{var.aval}"

    def _array(self, value: Any, lifted: bool) -> None:
        """Reads a number, or an array that is part of the program."""
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            self.say("key", jax.random.key_impl(value))
            value, lifted = jax.random.key_data(value), False
        array = np.asarray(value)
        self.say("array", array.shape, array.dtype)
        if lifted and array.size <= GREATEST_NUMBER:
            self.numbers.append(array)
        else:
            self.digest.update(np.ascontiguousarray(array).tobytes())

    def _parameter(self, primitive: str, value: Any) -> None:
        if isinstance(value, core.ClosedJaxpr):
            self.body(value, lifted=False)
        elif isinstance(value, core.Jaxpr):
            self._operations(value, lifted=False)
        elif isinstance(value, tuple | list):
            self.say(type(value).__name__, len(value))
            for item in value:
                self._parameter(primitive, item)
        elif isinstance(value, np.ndarray | jax.Array):
            self._array(value, lifted=False)
        elif primitive not in _RULES or not callable(value):
            # Functions without a name are told apart by where they are.
            self.say(repr(value))


def value_of(literal: Any) -> np.ndarray:
    """The number that stands in a traced program, in its type."""
    return np.asarray(literal.val, literal.aval.dtype)


def _slots(closed: Any) -> Iterator[Any]:
    """Where a body has numbers: None for each of its own, and the bodies within; as `_Reading`."""
    for value in closed.consts:
        if _is_number(value):
            yield None
    for eqn in closed.jaxpr.eqns:
        yield from (None for operand in eqn.invars if isinstance(operand, core.Literal))
        inside = BODY.get(eqn.primitive.name)
        if inside:
            yield eqn.params[inside]
    yield from (None for output in closed.jaxpr.outvars if isinstance(output, core.Literal))


def _is_number(value: Any) -> bool:
    is_key = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return not is_key and np.size(value) <= GREATEST_NUMBER


def _count(closed: Any) -> int:
    """How many numbers a body has."""
    return sum(1 if inside is None else _count(inside) for inside in _slots(closed))


def _evaluate(
    closed: Any, given: dict[int, Any], place: int, args: Sequence[Any]
) -> tuple[list[Any], int]:
    """Runs a body with other numbers at the given places.

    Args:
      closed: the body.
      given: numbers by their places in the whole program.
      place: that of the body's first.
      args: of the body.

    Returns:
      What it returns, and the place after its last number.
    """
    values: dict[Any, Any] = {}
    results: Sequence[Any]
    jaxpr = closed.jaxpr

    def number(own: Any) -> Any:
        nonlocal place
        place += 1
        return given.get(place - 1, own)

    def read(operand: Any) -> Any:
        return number(value_of(operand)) if isinstance(operand, core.Literal) else values[operand]

    for var, value in zip(jaxpr.constvars, closed.consts, strict=True):
        values[var] = number(value) if _is_number(value) else value
    values.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        operands = [read(operand) for operand in eqn.invars]
        inside = BODY.get(eqn.primitive.name)
        after = place + _count(eqn.params[inside]) if inside else place
        if inside and any(place <= other < after for other in given):
            results, place = _evaluate(eqn.params[inside], given, place, operands)
        else:
            results, place = bind(eqn, operands), after
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(output) for output in jaxpr.outvars], place


def bind(eqn: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """Applies one operation of a traced program.

    Args:
      eqn: the operation, with its parameters.
      operands: arrays, one for each of its inputs.
    """
    bound = eqn.primitive.get_bind_params(eqn.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # as JAX 0.10.1 had it
    with eqn.ctx.manager:
        results = eqn.primitive.bind(*functions, *operands, **params)
    return results if eqn.primitive.multiple_results else [results]
