"""Counts against hands, papers and other frameworks' tables."""

from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
import tiny
from jax import lax
from jax.experimental import pallas as pl
from networks import slow

from experiments import summary
from jaxdl import InputError, models, parallel
from jaxdl.cost import Cost, cost, layers, peak_flops

NHWC = ("NHWC", "HWIO", "NHWC")


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def count(function, *args):
    return cost(function, *args).multiply_adds


def conv(image, kernel, **options):
    """The count of a convolution of an image [H, W, C] with a kernel [H, W, I, O]."""
    options = {"window_strides": (1, 1), "padding": "SAME"} | options
    function = partial(lax.conv_general_dilated, dimension_numbers=NHWC, **options)
    return count(function, floats(1, *image), floats(*kernel))


def network(name, image_shape, **arguments):
    """A network applied without training, and its abstract arguments."""
    model = models.create(name, **arguments)
    images, key = floats(1, *image_shape), jax.eval_shape(partial(jax.random.key, 0))
    variables = jax.eval_shape(partial(model.init, train=False), key, images)
    return partial(model.apply, train=False), variables, images


def test_the_textbook_bottleneck():
    assert conv((28, 28, 192), (5, 5, 192, 32)) == 120_422_400
    reduced = conv((28, 28, 192), (1, 1, 192, 16)) + conv((28, 28, 16), (5, 5, 16, 32))
    assert reduced == 2_408_448 + 10_035_200 == 12_443_648


@pytest.mark.parametrize(
    ("options", "kernel", "expected"),
    [
        ({"padding": "VALID"}, (3, 3, 8, 5), 10 * 10 * 9 * 8 * 5),
        ({"padding": "SAME"}, (3, 3, 8, 5), 12 * 12 * 9 * 8 * 5),
        ({"padding": "VALID"}, (1, 7, 8, 5), 12 * 6 * 7 * 8 * 5),
        ({"window_strides": (2, 3)}, (3, 3, 8, 5), 6 * 4 * 9 * 8 * 5),
        ({"feature_group_count": 2}, (3, 3, 4, 6), 12 * 12 * 9 * 4 * 6),
        ({"feature_group_count": 8}, (3, 3, 1, 8), 12 * 12 * 9 * 8),  # depthwise
        ({"rhs_dilation": (2, 2), "padding": "VALID"}, (3, 3, 8, 5), 8 * 8 * 9 * 8 * 5),
        # Each input pixel paints a 4x4 patch of the 24x24 outputs.
        ({"lhs_dilation": (2, 2), "padding": [(2, 2)] * 2}, (4, 4, 8, 5), 12 * 12 * 16 * 8 * 5),
    ],
)
def test_convolutions_by_hand(options, kernel, expected):
    assert conv((12, 12, 8), kernel, **options) == expected


def test_batch_groups_and_other_ranks():
    grouped = partial(
        lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=NHWC,
        batch_group_count=2,
    )
    assert count(grouped, floats(6, 4, 4, 3), floats(3, 3, 3, 8)) == 3 * 2 * 2 * 9 * 3 * 8
    line = partial(lax.conv_general_dilated, window_strides=(1,), padding="VALID")
    assert count(line, floats(2, 3, 10), floats(5, 3, 4)) == 2 * 7 * 4 * 3 * 5


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_each_gradient_of_a_convolution_costs_what_it_costs(stride, padding):
    convolve = partial(
        lax.conv_general_dilated,
        window_strides=(stride, stride),
        padding=padding,
        dimension_numbers=NHWC,
        feature_group_count=2,
    )
    args = floats(4, 15, 15, 6), floats(3, 3, 3, 8)
    forward = count(convolve, *args)
    for argument in (0, 1):
        gradient = jax.grad(lambda *args: convolve(*args).sum(), argument)
        assert count(gradient, *args) == 2 * forward


def test_matrix_products():
    assert count(jnp.matmul, floats(7, 3, 4), floats(7, 4, 5)) == 7 * 3 * 4 * 5
    assert count(jnp.dot, floats(9), floats(9)) == 9
    assert count(partial(jnp.tensordot, axes=2), floats(7, 3, 4), floats(3, 4, 5)) == 7 * 12 * 5
    attend = partial(jnp.einsum, "bqhd,bkhd->bhqk")
    assert count(attend, floats(2, 5, 3, 8), floats(2, 6, 3, 8)) == 2 * 3 * 5 * 6 * 8
    assert count(jax.vmap(jnp.matmul, (0, None)), floats(7, 3, 4), floats(4, 5)) == 7 * 3 * 4 * 5
    assert count(jax.vmap(jnp.dot), floats(7, 9), floats(7, 9)) == 7 * 9


def test_no_array_is_made():
    exabytes = floats(10**9, 10**9)
    assert count(jnp.matmul, exabytes, exabytes) == 10**27


def test_elementwise_work_is_not_counted():
    assert cost(lambda x: nn.relu(x * x + x).sum(), floats(100)) == Cost(0, 0)


def test_activations_are_the_bytes_that_products_write():
    half = jax.ShapeDtypeStruct((4, 5), jnp.bfloat16)
    assert cost(jnp.matmul, floats(3, 4), floats(4, 5)).activation_bytes == 3 * 5 * 4
    assert cost(jnp.matmul, jax.ShapeDtypeStruct((3, 4), jnp.bfloat16), half) == Cost(60, 30)


def test_loops_and_branches():
    square = floats(4, 4)
    scanned = lambda x: lax.scan(lambda c, _: (c @ c, None), x, length=5)[0]
    assert cost(scanned, square) == Cost(5 * 64, 5 * 64)
    assert (
        count(lambda x: lax.scan(lambda c, _: (scanned(c), None), x, length=3), square) == 15 * 64
    )
    assert count(lambda x: lax.fori_loop(0, 7, lambda i, c: c @ c, x), square) == 7 * 64
    branches = [lambda x: x, lambda x: x @ x @ x, lambda x: x @ x]
    assert count(lambda i, x: lax.switch(i, branches, x), jnp.int32(0), square) == 2 * 64


def test_a_loop_of_unknown_length_must_not_multiply():
    halve = lambda x: lax.while_loop(lambda c: c.sum() > 1, lambda c: c / 2, x)
    assert count(halve, floats(4, 4)) == 0
    for until, body in ((jnp.trace, lambda c: c @ c), (lambda c: jnp.trace(c @ c), lambda c: c)):
        loop = partial(lax.while_loop, lambda c, until=until: until(c) > 1, body)
        with pytest.raises(InputError, match="its length is unknown") as error:
            cost(loop, floats(4, 4))
        assert "\n" not in str(error.value)


def test_transformed_functions():
    args = floats(3, 4), floats(4, 5)

    @jax.custom_vjp
    def product(x, y):
        return x @ y

    product.defvjp(lambda x, y: (x @ y, (x, y)), lambda s, g: (g @ s[1].T, s[0].T @ g))
    assert count(product, *args) == 60
    assert count(jax.grad(lambda *a: product(*a).sum(), (0, 1)), *args) == 3 * 60
    assert count(jax.jit(lambda x, y: jax.jit(jnp.matmul)(x, y)), *args) == 60
    assert count(jax.checkpoint(jnp.matmul), *args) == 60
    # The sine's gradient wants the product again.
    again = jax.checkpoint(lambda x, y: jnp.sin(x @ y).sum())
    assert count(jax.value_and_grad(again), *args) == 3 * 60


def test_programs_on_many_devices_count_together():
    mesh = parallel.data_mesh()
    spread, everywhere = parallel.BATCH, jax.sharding.PartitionSpec()
    x, y = floats(16, 4), floats(4, 5)
    for specs, share in ((spread, 1), (everywhere, mesh.size)):  # spread, or done by each
        mapped = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(specs, everywhere), out_specs=specs)
        assert count(mapped, x, y) == share * 16 * 4 * 5
    assert count(jax.pmap(jnp.matmul, in_axes=(0, None)), floats(8, 2, 4), y) == 16 * 4 * 5


def test_pallas_kernels_count_once_for_each_place_in_the_grid():
    def kernel(x, y, out):
        out[...] = x[...] @ y[...]

    product = pl.pallas_call(
        kernel,
        grid=(4, 2),
        in_specs=[
            pl.BlockSpec((8, 16), lambda i, j: (i, 0)),
            pl.BlockSpec((16, 8), lambda i, j: (0, j)),
        ],
        out_specs=pl.BlockSpec((8, 8), lambda i, j: (i, j)),
        out_shape=floats(32, 16),
    )
    assert count(product, floats(32, 16), floats(16, 16)) == 32 * 16 * 16


def test_the_gradient_of_two_dense_layers():
    loss = lambda params, x: (nn.relu(x @ params[0]) @ params[1]).sum()
    params, x = (floats(10, 20), floats(20, 3)), floats(8, 10)
    first, second = 8 * 10 * 20, 8 * 20 * 3
    assert count(loss, params, x) == first + second
    # Each layer once more for its kernel; once more for its input, which the first does not need.
    assert count(jax.grad(loss), params, x) == 2 * first + 3 * second
    assert count(jax.grad(loss, (0, 1)), params, x) == 3 * (first + second)


def test_lenet_by_hand():
    apply, variables, images = network("lenet5", (32, 32, 1))
    hand = 28 * 28 * 25 * 6 + 10 * 10 * 25 * 6 * 16 + 400 * 120 + 120 * 84 + 84 * 10
    assert count(apply, variables, images) == hand == 416_520
    gradient = jax.grad(lambda variables, images: apply(variables, images).sum())
    assert count(gradient, variables, images) == 3 * hand - 28 * 28 * 25 * 6


# Activations in millions, by timm's benchmark tables.
@pytest.mark.parametrize(
    ("name", "activations"),
    [
        ("resnet18", 2.48),
        slow("resnet50", 11.11),
        ("vgg16", 13.56),
        slow("densenet121", 6.90),
        slow("inception_v3", 8.97),
        slow("googlenet", None),
        ("alexnet", None),
        ("alexnet_paper", None),
    ],
)
def test_networks_cost_what_is_published(name, activations):
    counted = cost(*network(name, models.IMAGE_SHAPES[name]))
    assert counted.multiply_adds == pytest.approx(models.PUBLISHED[name].multiply_adds, rel=1e-3)
    if activations is not None:
        assert counted.activation_bytes / 4e6 == pytest.approx(activations, abs=0.006)


@pytest.mark.parametrize(
    "name", ["lenet5_1998", "resnet20_cifar", *map(slow, ("resnet50_v2", "googlenet"))]
)
def test_layers_add_up_to_the_network(name):
    shape = models.IMAGE_SHAPES[name]
    rows = layers(models.create(name), shape)
    apply, variables, images = network(name, shape)
    whole = cost(apply, variables, images)
    assert sum(row.multiply_adds for row in rows) == whole.multiply_adds
    assert sum(row.activation_bytes for row in rows) == whole.activation_bytes
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert sum(row.parameters for row in rows) == parameters


class Branch(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Dense(8, name="fc")(x))


class Lifted(nn.Module):
    """What Flax can do to modules, an auxiliary head, and a parameter of the network's own."""

    def setup(self):
        self.shared = nn.Dense(8)
        self.aux = nn.Dense(2)
        self.scale = self.param("scale", nn.initializers.ones, (8,))

    @nn.compact
    def __call__(self, x, *, train):
        x = self.shared(self.shared(x.reshape(1, -1))) * self.scale[None]
        x = nn.remat(Branch)(name="again")(x)
        x = nn.jit(Branch)(name="compiled")(x)
        repeat = nn.scan(
            lambda module, x, _: (module(x), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=5,
        )
        x, _ = repeat(Branch(name="stack"), x, None)
        if train or self.is_initializing():
            self.aux(x)
        return x


def test_layers_of_lifted_shared_and_absent_modules():
    rows = {row.path: row[1:] for row in layers(Lifted(), (2, 2, 2))}
    assert rows == {
        "": ("Lifted", (1, 8), 8 + 18, 0, 0),  # and the head that only trains
        "shared": ("Dense", (1, 8), 72, 2 * 64, 2 * 32),
        "again.fc": ("Dense", (1, 8), 72, 64, 32),
        "compiled.fc": ("Dense", (1, 8), 72, 64, 32),
        "stack.fc": ("Dense", (1, 8), 5 * 72, 5 * 64, 5 * 32),
    }


def test_a_train_step_however_it_runs():
    state = jax.eval_shape(tiny.build().init, jax.random.key(0), tiny.hparams())
    batch = tiny.batches()[0]
    convolution, dense = 16 * 36 * 9 * 8, 16 * 8 * 3
    plain = tiny.build(augmented=False)
    assert count(plain.eval, state, batch) == convolution + dense
    assert count(plain.train, state, batch) == 2 * convolution + 3 * dense
    # The augmentation multiplies, too.
    step = count(tiny.build().train, state, batch)
    assert 2 * convolution + 3 * dense < step < 2.2 * convolution
    mapped = parallel.pmap(tiny.build("data"), parallel.data_mesh())
    for task in (tiny.jitted(8), mapped, tiny.build(accumulate=4)):
        assert count(task.train, state, batch) == step
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((3, *x.shape), x.dtype), batch)
    assert count(parallel.scan(tiny.build()).train, state, stacked) == 3 * step


def test_training_a_deep_network_costs_three_times_its_forward_pass():
    apply, variables, images = network("resnet20_cifar", (32, 32, 3))
    loss = lambda variables, images: apply(variables, images).sum()
    ratio = count(jax.grad(loss), variables, images) / count(loss, variables, images)
    assert 2.9 < ratio < 3


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla T4", 65),
        ("NVIDIA L4", 121),
        ("TPU v3", 61.5),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA L40S", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("cpu", None),
    ],
)
def test_peak_flops(kind, teraflops):
    peak = peak_flops(SimpleNamespace(device_kind=kind))
    assert peak == (None if teraflops is None else teraflops * 1e12)


def test_summary_prints_layers_totals_and_what_is_published(capsys):
    summary.run(["--model=resnet18"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "resnet18 for one image of 224x224x3, in float32"
    first = next(line for line in lines if line.startswith("conv1")).split()
    shape = ["[1,", "112,", "112,", "64]"]
    assert first == ["conv1", "Conv", *shape, "9,408", "118,013,952", "3,211,264"]
    assert "total 11,689,512 1,814,073,344 9,938,848" in [" ".join(x.split()) for x in lines]
    assert "published 11,689,512 1,814,000,000" in [" ".join(x.split()) for x in lines]
    assert lines[-1] == "published: torchvision 0.28, for images of 224x224x3"


def test_summary_of_another_size_and_head(capsys):
    summary.run(["--model=vgg16", "--small_images", "--num_classes=10", "--channels=1"])
    text = capsys.readouterr().out
    assert text.startswith("vgg16 for one image of 32x32x1")
    parameters = 33_638_218 - 2 * 9 * 64  # two channels less
    assert f" {parameters:,} " in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model=resnet5"], "near it: resnet50"),
        (["--model=vgg16", "--image_size=8"], "at least 32x32 pixels, not 8x8"),
        (["--model=resnet18", "--small_images"], "resnet18 does not take small_images"),
        (["--image_size=0"], "--image_size=0: it must be at least 1"),
        (["--num_classes=-1"], "--num_classes=-1: it must be at least 0"),
        (["resnet18"], "'resnet18' is no flag"),
    ],
)
def test_mistakes_are_one_line(argv, message, capsys):
    with pytest.raises(InputError) as error:
        summary.run(argv)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not capsys.readouterr().out
