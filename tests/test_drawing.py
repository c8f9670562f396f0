"""Draws together: the same numbers as one by one, by fewer operations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import initializers
from networks import SHALLOW_GOOGLENET

from jaxdl import drawing, models
from jaxdl.models import googlenet

KEY = jax.random.key(3)


def operations(function, *args):
    """The names of all operations of a function's program, those within others too."""
    names = []

    def look(jaxpr):
        for eqn in jaxpr.eqns:
            names.append(eqn.primitive.name)
            for inside in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_body):
                if is_body(inside):
                    look(getattr(inside, "jaxpr", inside))

    is_body = lambda value: hasattr(value, "eqns")
    look(jax.make_jaxpr(function)(*args).jaxpr)
    return names


def draws(key):
    """Of three distributions, five sizes and two types, some from a key that was drawn for."""
    keys = [jax.random.fold_in(key, place) for place in range(12)]
    shapes = [(3, 2), (7,), (), (4, 1, 5), (6,)]
    normal = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=False)]
    uniform = [
        jax.random.uniform(k, s, minval=-place, maxval=jnp.exp(normal[2]) + place)
        for place, (k, s) in enumerate(zip(keys[5:], shapes, strict=False))
    ]
    cut = [initializers.he_normal()(k, (9, s), jnp.float16) for s, k in enumerate(keys[:3], 2)]
    again = jax.random.normal(jax.random.fold_in(keys[11], jnp.int32(normal[0][0, 0])), (2,))
    integers = jax.random.randint(keys[10], (8,), 0, 100)
    return normal, uniform, cut, again, integers, initializers.orthogonal()(keys[4], (3, 3))


def assert_alike(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        rounding = 2e-3 if ours.dtype == "float16" else 1e-6
        np.testing.assert_allclose(ours, theirs, rounding, atol=rounding / 2)


@pytest.mark.parametrize("most", [drawing.MOST_TOGETHER, 12, 1])
def test_what_is_drawn_is_the_same(most, monkeypatch):
    monkeypatch.setattr(drawing, "MOST_TOGETHER", most)
    assert_alike(jax.jit(drawing.together(draws))(KEY), jax.jit(draws)(KEY))
    alone, together = operations(draws, KEY), operations(drawing.together(draws), KEY)
    assert alone.count("random_bits") == 17
    # Normal, uniform and half ones, two of integers, and those of a key that was drawn for.
    assert together.count("random_bits") == {drawing.MOST_TOGETHER: 6, 12: 15, 1: 17}[most]
    assert together.count("random_fold_in") == (2 if most > 1 else 13)


def test_many_at_once():
    keys = jax.random.split(KEY, 3)
    many = jax.jit(jax.vmap(drawing.together(draws)))(keys)
    assert_alike(many, jax.jit(jax.vmap(draws))(keys))


@pytest.mark.parametrize("name", ["resnet20_cifar", "lenet5", "googlenet"])
def test_a_network_begins_as_it_does_alone(name, monkeypatch):
    for stage, rows in SHALLOW_GOOGLENET.items():
        monkeypatch.setattr(googlenet, stage, rows)
    image = jnp.zeros((1, 32, 32, 1 if name.startswith("lenet") else 3))
    width = {} if name.startswith("lenet") else {"width": 1 / 16 if name == "googlenet" else 4}
    begin = functools.partial(models.create(name, **width).init, train=False)
    together = drawing.together(begin)
    assert_alike(jax.jit(together)(KEY, image), jax.jit(begin)(KEY, image))
    alone, names = operations(begin, KEY, image), operations(together, KEY, image)
    assert names.count("random_bits") <= 2 < alone.count("random_bits")
    assert "convolution" in alone  # what only runs the network is left out
    assert "convolution" not in names


def test_strangers_functions_of_their_names_are_left_alone():
    @jax.jit
    def _uniform(key, low, high):
        return low + high * jax.random.bits(key, dtype=jnp.uint32).astype(jnp.float32)

    @jax.jit
    def _normal():
        return jnp.zeros(2, jnp.int32)

    function = lambda key: [(_uniform(key, 1.0, float(n)), _normal()) for n in range(3)]
    assert_alike(jax.jit(drawing.together(function))(KEY), jax.jit(function)(KEY))


def test_other_keys_draw_one_by_one():
    key = jax.random.key(3, impl="rbg")
    function = lambda key: [jax.random.normal(jax.random.fold_in(key, n), (n,)) for n in (2, 3)]
    assert_alike(jax.jit(drawing.together(function))(key), jax.jit(function)(key))
    assert operations(drawing.together(function), key).count("random_bits") == 2


def test_draws_that_are_not_by_place_stay_apart():
    with jax.threefry_partitionable(False):
        assert_alike(jax.jit(drawing.together(draws))(KEY), jax.jit(draws)(KEY))
        assert operations(drawing.together(draws), KEY).count("random_bits") == 17


def test_what_is_told_on_the_way_is_told():
    told = []

    def function(key):
        jax.debug.callback(told.append, jax.random.uniform(key))
        return jax.random.uniform(key, (2,))

    jax.block_until_ready(jax.jit(drawing.together(function))(KEY))
    jax.effects_barrier()
    assert told == [pytest.approx(float(jax.random.uniform(KEY)))]
