"""Convolutions made of matrix products: XLA's own to rounding, whatever is done with them."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import parallel
from jaxdl.conv import NHWC, convolve
from jaxdl.cost import cost
from jaxdl.lowering import computed
from jaxdl.nn import Convolution

HALF = ((1, 1), (1, 1))
NONE = ((0, 0), (0, 0))
# name: images [B, H, W, C], kernel [kh, kw], outputs, strides, padding
CASES = {
    "as XLA does": ((2, 9, 8, 20), (3, 3), 24, (1, 1), HALF),
    "as XLA does, strided": ((2, 9, 8, 20), (3, 3), 24, (2, 2), HALF),
    "as XLA does, to no end": ((8, 9, 8, 20), (3, 3), 24, (2, 2), NONE),
    "pointwise": ((2, 5, 6, 20), (1, 1), 9, (1, 1), NONE),
    "pointwise, strided": ((2, 5, 6, 20), (1, 1), 9, (2, 2), NONE),
    "1x1, padded": ((2, 5, 6, 20), (1, 1), 9, (1, 1), HALF),
    "by rows": ((3, 9, 8, 2), (3, 3), 5, (1, 1), HALF),
    "by rows, strided downwards": ((3, 9, 8, 2), (3, 3), 5, (2, 1), HALF),
    "by parts of rows": ((3, 9, 8, 3), (3, 3), 20, (1, 1), HALF),
    "by parts of rows, one channel": ((3, 7, 9, 1), (5, 3), 20, (2, 1), ((2, 0), (0, 2))),
    "by rows, one column": ((3, 5, 5, 16), (5, 5), 12, (1, 1), NONE),
    "packed": ((2, 6, 6, 20), (3, 3), 16, (1, 1), HALF),
    "packed, strided": ((2, 7, 8, 20), (3, 3), 16, (2, 2), HALF),
    "packed, unevenly padded": ((2, 6, 6, 20), (3, 2), 16, (1, 1), ((0, 2), (1, 0))),
    "smaller than the kernel": ((3, 2, 2, 20), (3, 3), 24, (1, 1), HALF),
    "smaller than the kernel, strided": ((3, 2, 3, 20), (4, 3), 24, (2, 2), ((2, 1), (1, 1))),
    "to less than the kernel": ((3, 4, 4, 20), (3, 3), 24, (2, 2), HALF),
    "mirrored beyond the image": ((2, 4, 4, 20), (2, 2), 24, (1, 1), ((2, 2), (2, 2))),
}


def stock(x, kernel, strides, padding):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NHWC)


def ours(x, kernel, strides, padding):
    return convolve(x, kernel, strides, padding, dimension_numbers=NHWC)


def prepare(case, lanes=()):
    """Both functions of (x, kernel), an x, a kernel, and a cotangent."""
    images, window, outputs, strides, padding = case
    draw = lambda seed, *shape: jnp.asarray(
        np.random.default_rng(seed).normal(size=(*lanes, *shape)), jnp.float32
    )
    x, kernel = draw(0, *images), draw(1, *window, images[-1], outputs)
    both = [functools.partial(f, strides=strides, padding=padding) for f in (ours, stock)]
    y = jax.eval_shape(
        both[1], *(jax.ShapeDtypeStruct(a.shape[len(lanes) :], a.dtype) for a in (x, kernel))
    )
    return *both, x, kernel, draw(2, *y.shape)


def assert_close(found, expected, bound=3e-6):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert np.abs(a - b).max() <= bound * np.abs(b).max()


def with_gradients(function):
    """(x, kernel, dy) -> its value and both gradients."""

    def run(x, kernel, dy):
        y, pull = jax.vjp(function, x, kernel)
        return y, pull(dy)

    return jax.jit(run)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name):
    function, reference, *operands = prepare(CASES[name])
    assert_close(with_gradients(function)(*operands), with_gradients(reference)(*operands))


@pytest.mark.parametrize("name", CASES)
def test_lanes_with_kernels_of_their_own(name):
    """A sweep's convolutions: no grouped one is left, which XLA on CPUs is slow at."""
    function, reference, *operands = prepare(CASES[name], lanes=(3,))
    mapped = jax.jit(jax.vmap(with_gradients(function)))
    assert_close(mapped(*operands), jax.vmap(with_gradients(reference))(*operands))
    assert "convolution" not in mapped.lower(*operands).as_text()


@pytest.mark.parametrize("name", ["as XLA does, strided", "pointwise", "by rows", "packed"])
def test_derivatives_of_derivatives(name):
    """Forward over reverse and reverse over reverse, as curvature and slope penalties need."""
    function, reference, x, kernel, dy = prepare(CASES[name])

    def hessian_times(convolution):
        loss = lambda x, kernel: jnp.sum(jnp.tanh(convolution(x, kernel)) * dy)
        slopes = jax.grad(loss, (0, 1))
        forward = jax.jvp(slopes, (x, kernel), (x, kernel))[1]
        inner = lambda x, kernel: sum(map(jnp.vdot, slopes(x, kernel), (x, kernel)))
        return forward, jax.grad(inner, (0, 1))(x, kernel)

    assert_close(jax.jit(hessian_times, static_argnums=0)(function), hessian_times(reference), 1e-4)


@pytest.mark.parametrize(("width", "by_rows"), [(32, True), (31, False)])
def test_rows_that_cannot_be_cut_are_left_to_XLA(width, by_rows):
    """The band of a whole row of 31 would be of a matrix of zeros, nine parts of ten."""
    function, _, x, kernel, _ = prepare(((2, 5, width, 3), (3, 3), 24, (1, 1), HALF))
    text = jax.jit(function).lower(x, kernel).as_text()
    assert ("stablehlo.convolution" in text) is not by_rows


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("as XLA does, strided", 3),
        ("to less than the kernel", 2),  # what it takes the image's gradient from is small
        ("smaller than the kernel", 1),
        ("smaller than the kernel, strided", 1),
    ],
)
@pytest.mark.parametrize("devices", [1, 8])
def test_convolutions_of_small_images_are_products(name, left, devices):
    """XLA would take such an image for the kernel, a hundred times as slow."""
    function, _, *operands = prepare(CASES[name])
    mesh = parallel.data_mesh(jax.devices()[:devices])
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    compiled = jax.jit(with_gradients(function), in_shardings=everywhere)
    assert compiled.lower(*operands).as_text().count("stablehlo.convolution") == left


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.float16])
def test_what_is_computed_stays_apart(dtype):
    """From what reads it: were XLA to see that the way is always one, it would fuse them."""
    x = np.arange(1, 9).astype(dtype)
    function = jax.jit(lambda x: computed(2 * x)[::-1])
    assert " conditional(" in function.lower(x).compile().as_text()
    np.testing.assert_array_equal(function(x), 2 * x[::-1])
    np.testing.assert_array_equal(function(-x), -2 * x[::-1])
    np.testing.assert_array_equal(jax.vmap(computed)(x[:, None]), x[:, None])
    assert not computed(x[:0]).size


def test_one_gradient_for_each_example():
    function, reference, x, kernel, dy = prepare(CASES["packed"])

    def of_each(convolution):
        score = lambda kernel, x, dy: jnp.vdot(convolution(x[None], kernel)[0], dy)
        return jax.vmap(jax.value_and_grad(score), (None, 0, 0))(kernel, x, dy)

    assert_close(of_each(function), of_each(reference))


@pytest.mark.parametrize(
    "options",
    [
        {"feature_group_count": 2},
        {"rhs_dilation": (2, 2)},
        {"lhs_dilation": (2, 1), "padding": HALF},
        {"padding": ((-1, 0), (0, 0))},
        {"precision": jax.lax.Precision.HIGHEST},
        {"dimension_numbers": ("NHWC", "OIHW", "NHWC")},
    ],
    ids=lambda options: next(iter(options)),
)
def test_all_others_are_left_to_xla(options):
    options = {"padding": "SAME", "dimension_numbers": NHWC} | options
    x = jnp.ones((2, 6, 6, 4))
    shape = (3, 3, 4 // options.get("feature_group_count", 1), 4)
    if options["dimension_numbers"] != NHWC:
        shape = (4, 4, 3, 3)
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    found = convolve(x, kernel, (1, 1), **options)
    assert found.tolist() == jax.lax.conv_general_dilated(x, kernel, (1, 1), **options).tolist()
    assert "conv_general_dilated" in str(
        jax.make_jaxpr(lambda x: convolve(x, kernel, (1, 1), **options))(x)
    )


def test_padding_by_name_and_vectors():
    kernel = jnp.ones((2, 2, 3, 4))
    for padding in ("SAME", "VALID"):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 6, 3)), jnp.float32)
        assert_close(ours(x, kernel, (2, 1), padding), stock(x, kernel, (2, 1), padding))
    sequence = nn.Conv(4, (3,), conv_general_dilated=convolve)
    assert sequence.init(jax.random.key(0), jnp.ones((2, 7, 3)))["params"]["kernel"].shape == (
        3,
        3,
        4,
    )


def train_step(module):
    """The gradient of a network of one layer, which also pads, strides and has a bias."""

    def gradient(params, x):
        return jax.grad(lambda params: jnp.sum(module.apply(params, x) ** 2))(params)

    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    return jax.jit(gradient).trace(params, x)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("size", [1, 3])
def test_the_programs_of_other_platforms_are_those_of_flax(platform, size):
    arguments = {"features": 5, "kernel_size": (size, size), "strides": 2}
    programs = [
        train_step(layer(**arguments)).lower(lowering_platforms=(platform,)).as_text()
        for layer in (Convolution, nn.Conv)
    ]
    assert programs[0] == programs[1]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("name", CASES)
def test_convolutions_in_loops_are_of_the_form_that_eigen_takes(name, devices, dtype):
    """XLA turns others so, but none in a loop, where they take up to fifty times as long."""
    function, _, x, kernel, dy = prepare(CASES[name])
    mesh = parallel.data_mesh(jax.devices()[:devices])
    one = with_gradients(function)
    looped = jax.jit(
        lambda *several: jax.lax.map(lambda each: one(*each), several),
        in_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()),
    )
    like = [jax.ShapeDtypeStruct((2, *a.shape), dtype) for a in (x, kernel, dy)]
    program = looped.lower(*like).as_text()
    labels = re.findall(r"dim_numbers = (.*?), window", program)
    assert labels or devices == 1
    assert set(labels) <= {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}


@pytest.mark.parametrize(
    "case",
    [
        ((8, 6, 6, 20), (3, 3), 16, (1, 1), HALF),
        CASES["as XLA does, to no end"],
        ((8, 2, 2, 20), (3, 3), 24, (1, 1), HALF),
    ],
    ids=["as XLA does", "to no end", "smaller than the kernel"],
)
def test_several_devices_share_a_batch(case):
    """Across CPU devices XLA splits what is of its own form or a product; lanes are the same."""
    function, reference, x, kernel, dy = prepare(case)
    mesh = parallel.data_mesh()
    spread = jax.device_put((x, dy), parallel.batch_sharding(mesh))
    run = with_gradients(function)
    shared = run.lower(spread[0], kernel, spread[1]).compile()
    assert "all-gather" not in shared.as_text()
    found = shared(spread[0], kernel, spread[1])
    assert_close(found, with_gradients(reference)(x, kernel, dy))

    pieces = lambda a: a.reshape(8, 1, *a.shape[1:])
    own = jax.pmap(with_gradients(function), in_axes=(0, None, 0))(pieces(x), kernel, pieces(dy))
    assert_close(own[0].reshape(dy.shape), found[0])
    assert_close(own[1][1].sum(0), found[1][1])


def test_narrow_types_are_left_to_xla():
    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((1, 1, 3, 4), jnp.bfloat16)
    function = functools.partial(ours, strides=(1, 1), padding=NONE)
    program = jax.jit(function).trace(x, kernel).lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.convolution" in program


def test_what_is_computed_is_counted():
    function, reference, x, kernel, dy = prepare(CASES["as XLA does, strided"])
    for lanes in (False, True):
        map_it = jax.vmap if lanes else lambda f: f
        stack = (lambda a: jnp.stack([a, a])) if lanes else lambda a: a
        counts = [
            cost(map_it(with_gradients(f)), *map(stack, (x, kernel, dy))).multiply_adds
            for f in (function, reference)
        ]
        assert counts[0] == counts[1] > 0


def test_a_batch_of_any_size_is_left_to_xla():
    x = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 8, 8, 3"), jnp.float32)
    kernel = jax.ShapeDtypeStruct((1, 1, 3, 4), jnp.float32)
    function = jax.jit(functools.partial(ours, strides=(1, 1), padding=NONE))
    exported = jax.export.export(function, platforms=["cpu"])(x, kernel)
    assert "stablehlo.convolution" in str(exported.mlir_module())
    images, weights = jnp.ones((2, 8, 8, 3)), jnp.ones((1, 1, 3, 4))
    assert exported.call(images, weights).tolist() == function(images, weights).tolist()
