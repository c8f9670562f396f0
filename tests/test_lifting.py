"""Programs taken apart into operations and numbers, and put together again as one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import lifting, models

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


@jax.custom_jvp
def doubled(x):
    return 2.0 * x


doubled.defjvp(lambda primals, tangents: (doubled(*primals), 2.0 * tangents[0]))


@functools.partial(jax.jit, static_argnums=1)
def inner(x, rate):
    return jnp.where(x > rate, doubled(x), x * rate)


def function(rate, x, table=(1.0, 2.0, 3.0), power=2, loops=3, scale=1.5):
    """Numbers at the top, in a compiled function, in an array, and as results."""
    y = inner(x, rate) + inner(x, 2 * rate) * scale
    y = y + jnp.asarray(table)[None]
    y = jax.lax.fori_loop(0, loops, lambda i, y: y * 0.5, y)
    return {"y": y**power, "rate": jnp.float32(rate)}


def traced(**changed):
    arguments = {"rate": 0.25} | changed
    return lifting.trace(lambda x: function(x=x, **arguments), X)


def test_programs_of_other_numbers_are_one_family():
    changes = [{}, {"rate": 0.5}, {"table": (4.0, 5.0, 6.0), "scale": 2.5}, {"rate": 0.75}]
    programs = [traced(**change) for change in changes]
    assert len({program.operations for program in programs}) == 1
    family = lifting.Family(programs)
    found = jax.jit(jax.vmap(family, (0, None)))(family.numbers, X)
    for place, change in enumerate(changes):
        alone = jax.jit(functools.partial(function, **({"rate": 0.25} | change)))(x=X)
        for name, value in alone.items():
            np.testing.assert_allclose(found[name][place], value, rtol=1e-6, err_msg=name)


def test_only_what_differs_becomes_an_argument():
    same = lifting.Family([traced(), traced()])
    assert same.numbers == []
    np.testing.assert_array_equal(same([], X)["y"], function(0.25, X)["y"])
    numbers = lifting.Family([traced(), traced(scale=3.0)]).numbers
    assert [array.tolist() for array in numbers] == [[1.5, 3.0]]


@pytest.mark.parametrize("change", [{"power": 3}, {"loops": 4}, {"table": (1.0,)}])
def test_other_operations_are_another_program(change):
    assert traced().operations != traced(**change).operations


def test_numbers_in_loops_and_large_arrays_are_part_of_the_operations():
    def looped(factor):
        body = lambda carry, _: (carry * factor, None)
        return lifting.trace(lambda x: jax.lax.scan(body, x, None, 3)[0], X).operations

    assert looped(0.5) == looped(0.5)
    assert looped(0.5) != looped(0.25)

    def shifted(offset):
        table = jnp.arange(lifting.GREATEST_NUMBER + 1, dtype=jnp.float32) + offset
        return lifting.trace(lambda x: x.sum() + table.sum(), X).operations

    assert shifted(0.0) == shifted(0.0)
    assert shifted(0.0) != shifted(1.0)


def test_keys_and_callbacks_are_part_of_the_operations():
    def drawn(seed):
        key = jax.random.key(seed)
        return lifting.trace(lambda x: x + jax.random.uniform(key, (2, 3)), X).operations

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)

    def called(callback):
        shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
        return lifting.trace(lambda x: jax.pure_callback(callback, shape, x), X).operations

    assert called(np.sin) != called(np.cos)


@dataclasses.dataclass
class Settings:
    """What a function may have at hand."""

    table: np.ndarray
    rates: dict


class Thing:
    """What cannot be looked into."""


def closed_over(value, scale=1.0):
    """A function made anew, of the same code."""

    def own(x, more=scale):
        return x * value if more else x

    return own


THING = Thing()


@pytest.mark.parametrize(
    "make",
    [
        lambda: closed_over(2.5),
        lambda: closed_over(closed_over(("a", b"b", None, 1j, [True, {"x": THING}]))),
        lambda: functools.partial(closed_over(1), 2, more=np.float32(3)),
        lambda: closed_over(Settings(np.arange(3), {"rate": 0.1})),
        lambda: (models.create("lenet5", num_classes=3).apply, closed_over(jnp.sin)),
    ],
)
def test_the_same_code_over_the_same_values_is_alike(make):
    assert lifting.likeness(make()) == lifting.likeness(make())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (closed_over(1), closed_over(1.0)),
        (closed_over(1), closed_over(True)),
        (closed_over(0.0), closed_over(-0.0)),
        (closed_over(1), closed_over(1, scale=2.0)),
        (closed_over([1, [2]]), closed_over([1, 2])),
        (closed_over([[1], 2]), closed_over([[1, 2]])),
        (closed_over({"a": 1, "b": 2}), closed_over({"b": 1, "a": 2})),
        (closed_over(np.zeros(2, np.int32)), closed_over(np.zeros(2, np.float32))),
        (closed_over(np.zeros((2, 1))), closed_over(np.zeros((1, 2)))),
        (closed_over(Settings(np.arange(3), {})), closed_over(Settings(np.arange(1, 4), {}))),
        (closed_over(Thing()), closed_over(Thing())),
        (closed_over(jnp.sin), closed_over(jnp.cos)),
        (functools.partial(closed_over(1), 2), functools.partial(closed_over(1), 3)),
        (lambda x: x + 1, lambda x: x + 2),
        (
            models.create("lenet5", num_classes=3).apply,
            models.create("lenet5", num_classes=4).apply,
        ),
    ],
)
def test_other_code_or_values_are_not_alike(one, other):
    assert lifting.likeness(one) == lifting.likeness(one)
    assert lifting.likeness(one) != lifting.likeness(other)


def test_a_function_may_have_itself_at_hand():
    def make(step):
        def own(x):
            return own(x - step) if x else x

        return own

    assert lifting.likeness(make(1)) == lifting.likeness(make(1))
    assert lifting.likeness(make(1)) != lifting.likeness(make(2))
    given = {"rate": 0.1}, jax.ShapeDtypeStruct((3, 2), np.int32)
    assert lifting.likeness(make(1), *given) == lifting.likeness(make(1), {"rate": 0.3}, given[1])
    assert lifting.likeness(make(1), *given) != lifting.likeness(make(1), given[0], np.ones((3, 2)))
