"""Pooling by shifted slices: Flax's to rounding, ties included, whatever is done with it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import pooling

CASES = {
    "halves": ((2, 8, 8, 3), (2, 2), (2, 2), "VALID"),
    "an odd side": ((2, 9, 8, 3), (2, 2), (2, 2), "VALID"),
    "overlap": ((2, 9, 9, 3), (3, 3), (2, 2), ((1, 1), (1, 1))),
    "every pixel": ((2, 6, 7, 3), (3, 3), None, "SAME"),
    "beyond the image": ((2, 6, 6, 3), (3, 3), (2, 2), ((0, 1), (0, 1))),
    "gaps": ((2, 7, 9, 3), (3, 2), (2, 3), ((0, 1), (1, 0))),
}
POOLS = {
    "max": (pooling.max_pool, nn.max_pool),
    "mean": (pooling.avg_pool, nn.avg_pool),
    "mean of what is there": tuple(
        functools.partial(pool, count_include_pad=False) for pool in (pooling.avg_pool, nn.avg_pool)
    ),
}


def prepare(kind, case):
    """Both pools as functions of images, images with many ties, and a cotangent."""
    shape, size, strides, padding = CASES[case]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 4, shape), jnp.float32)
    arguments = {"window_shape": size, "strides": strides, "padding": padding}
    both = [functools.partial(pool, **arguments) for pool in POOLS[kind]]
    dy = jnp.asarray(rng.normal(size=both[1](x).shape), jnp.float32)
    return *both, x, dy


def assert_close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", POOLS)
def test_values_and_gradients(kind, case):
    """The first of several equal maxima has the gradient, as in torch."""
    pool, reference, x, dy = prepare(kind, case)

    def run(pool):
        y, pull = jax.vjp(pool, x)
        return y, pull(dy), jax.vmap(pool)(jnp.stack([x, -x]))

    assert_close(jax.jit(run, static_argnums=0)(pool), run(reference))


@pytest.mark.parametrize("kind", ["max", "mean"])
def test_tangents_are_the_transpose_of_gradients(kind):
    pool, _, x, dy = prepare(kind, "gaps")
    dx = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)
    tangent, (slopes,) = jax.jvp(pool, (x,), (dx,))[1], jax.vjp(pool, x)[1](dy)
    assert_close(jnp.vdot(tangent, dy), jnp.vdot(dx, slopes))


@pytest.mark.parametrize("kind", ["max", "mean"])
def test_derivatives_of_derivatives(kind):
    pool, reference, x, dy = prepare(kind, "overlap")
    slopes = lambda pool: jax.grad(lambda x: jnp.sum(pool(x) ** 3 * dy))
    over = lambda pool: jax.jvp(slopes(pool), (x,), (x,))[1]
    twice = lambda pool: jax.grad(lambda x: jnp.sum(slopes(pool)(x) ** 2))(x)
    assert_close((over(pool), twice(pool)), (over(reference), twice(reference)))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("kind", POOLS)
def test_the_programs_of_other_platforms_are_those_of_flax(kind, platform):
    def program(pool):
        train = jax.jit(jax.grad(lambda x: jnp.sum(pool(x, (3, 3), (2, 2)) ** 2)))
        x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
        return train.trace(x).lower(lowering_platforms=(platform,)).as_text()

    ours, theirs = map(program, POOLS[kind])
    assert ours == theirs


def test_on_cpus_nothing_is_scattered():
    pool, reference, x, dy = prepare("max", "overlap")
    text = lambda pool: jax.jit(lambda x: jax.vjp(pool, x)[1](dy)).lower(x).as_text()
    assert "select_and_scatter" in text(reference)
    assert "select_and_scatter" not in text(pool)
