"""Residual networks, held to torchvision, to timm and to their papers' tables."""

import functools
from pathlib import Path
from typing import Any

import flax.linen as linen
import jax
import jax.nn as nn
import jax.numpy as jnp
import numpy as np
import pytest
from golden.weights import images, weight
from networks import (
    CIFAR,
    MODELS,
    compile_quickly,
    count,
    flat,
    golden_variables,
    init,
    init_shapes,
    largest_error,
    slow,
    torch_axes,
    torch_key,
)

import jaxdl
from jaxdl import models
from jaxdl.models import resnet

GOLDEN = Path(__file__).parent / "golden"

# Where a name of ours, as path, stands in torchvision's models and in timm's resnetv2.
TORCHVISION = [
    (r"layer(\d)_(\d+)/", r"layer\1.\2."),
    (r"downsample_conv/", r"downsample.0."),
    (r"downsample_bn/", r"downsample.1."),
]
TIMM_V2 = [
    (r"layer(\d)_(\d+)/", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}."),
    (r"downsample_conv/", r"downsample.conv."),
    (r"bn(\d)/", r"norm\1."),
    (r"^bn/", r"norm."),
    (r"^conv1/", r"stem.conv."),
    (r"^fc/", r"head.fc."),
]


@pytest.mark.parametrize(
    ("name", "smallest"),
    [
        ("resnet18", 17),
        *[slow(name, 17) for name in ("resnet50", "resnet50_v2", "plain18")],
        *[(name, 3) for name in ("resnet20_cifar", "resnet20_cifar_v2", "plain20_cifar")],
    ],
)
def test_every_stride_has_two_pixels_to_take_one_of(name, smallest):
    model = models.create(name, num_classes=3, width=4)
    halved = []

    def look(call, args, kwargs, context):
        y = call(*args, **kwargs)
        conv = context.module
        if isinstance(conv, linen.Conv) and conv.strides == 2:
            halved.append((args[0].shape[1:3], y.shape[1:3]))
        return y

    with linen.intercept_methods(look):
        init_shapes(model, (smallest, smallest + 1, 3))
    assert halved
    assert all(size[0] > after[0] for size, after in halved)
    for shape in ((smallest - 1, 40), (40, smallest - 1)):
        message = f"ResNet takes images of at least {smallest}x{smallest} pixels, not {shape[0]}x"
        with pytest.raises(jaxdl.InputError, match=message):
            init_shapes(model, (*shape, 3))
    with pytest.raises(
        jaxdl.InputError, match=r"ResNet takes images \[B, H, W, C\], not \[2, 13\]"
    ):
        init_shapes(model, (13,))


@pytest.mark.parametrize("num_blocks", [3, *map(slow, (5, 7, 9, 18))])
def test_cifar_parameters(num_blocks):
    """The paper's table: 16, 32, 64 features, each convolution with a norm of two per feature."""
    n = num_blocks
    stem = 3 * 3 * 3 * 16 + 2 * 16
    layer1 = 2 * n * (3 * 3 * 16 * 16 + 2 * 16)
    layer2 = 3 * 3 * 16 * 32 + 2 * 32 + (2 * n - 1) * (3 * 3 * 32 * 32 + 2 * 32)
    layer3 = 3 * 3 * 32 * 64 + 2 * 64 + (2 * n - 1) * (3 * 3 * 64 * 64 + 2 * 64)
    total = stem + layer1 + layer2 + layer3 + 64 * 10 + 10
    projections = 16 * 32 + 32 * 64
    norms = 2 * (32 + 64)

    def parameters(name, **kwargs):
        return count(init_shapes(models.create(name, **kwargs), CIFAR.image)["params"])

    depth = 6 * n + 2
    assert MODELS[f"resnet{depth}_cifar"][0] == total
    assert parameters(f"resnet{depth}_cifar", shortcut="B") == total + projections + norms
    assert parameters(f"resnet{depth}_cifar_v2", shortcut="B") == total + projections


def test_resnet_stages():
    """Names and sizes of what is sown, for odd sizes of images too."""
    model = resnet.resnet18(width=4, num_classes=3)
    x = jax.ShapeDtypeStruct((2, 75, 33, 3), jnp.float32)
    apply = functools.partial(model.apply, train=False, mutable=["intermediates"])
    _, state = jax.eval_shape(apply, init_shapes(model, (75, 33, 3)), x)
    shapes = jax.tree.map(lambda leaf: leaf.shape, state["intermediates"])
    assert shapes == {
        "layer1": ((2, 19, 9, 4),),
        "layer2": ((2, 10, 5, 8),),
        "layer3": ((2, 5, 3, 16),),
        "layer4": ((2, 3, 2, 32),),
        "features": ((2, 32),),
    }


def tiny(block: type[resnet.Block], **kwargs: Any) -> Any:
    """Return the narrowest network in the CIFAR layout, of a block a stage."""
    sizes = {"num_classes": 10, "width": 2}
    return resnet.ResNet((1, 1, 1), resnet.BASIC, block, "cifar", "A", **sizes, **kwargs)


def test_shortcut_a_subsamples_and_pads():
    model: Any = tiny(resnet.PreActBlock, zero_init_last=True)
    x = np.random.default_rng(0).standard_normal((2, 5, 4, 3), np.float32)
    variables = init(model, x)
    _, state = model.apply(variables, x, train=False, mutable=["intermediates"])
    # The branches are zero, so a stage is its shortcut.
    before, after = (state["intermediates"][name][0] for name in ("layer1", "layer2"))
    assert after.shape == (2, 3, 2, 4)
    assert (after[..., :2] == before[:, ::2, ::2]).all()
    assert (after[..., 2:] == 0).all()


def test_shortcut_must_be_known():
    with pytest.raises(jaxdl.InputError, match=r"shortcut must be 'A' .* or 'B' .*, not 'C'"):
        models.create("resnet20_cifar", shortcut="C")


@pytest.mark.parametrize("block", [resnet.Block, slow(resnet.PreActBlock)])
def test_zero_init_last_starts_at_zero_and_leaves_it(block):
    model: Any = tiny(block, zero_init_last=True)
    x = np.random.default_rng(0).standard_normal((4, 6, 6, 3), np.float32)
    variables = init(model, x)
    zeroed = ("conv2", "kernel") if block is resnet.PreActBlock else ("bn2", "scale")

    def loss(params):
        variables_ = {**variables, "params": params}
        logits, _ = model.apply(variables_, x, train=True, mutable=["batch_stats"])
        return jnp.square(logits).sum()

    grads = jax.jit(jax.grad(loss))(variables["params"])
    for block in ("layer1_0", "layer2_0", "layer3_0"):
        assert (variables["params"][block][zeroed[0]][zeroed[1]] == 0).all()
        assert np.abs(grads[block][zeroed[0]][zeroed[1]]).max() > 0


def test_axis_name_synchronizes_statistics():
    """Statistics over a mapped axis are those of the whole batch on one device."""
    x = np.random.default_rng(0).standard_normal((4, 3, 6, 6, 3), np.float32)
    variables = init(tiny(resnet.Block), x[0])

    def train(axis_name, x):
        model: Any = tiny(resnet.Block, axis_name=axis_name)
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    logits, state = jax.jit(functools.partial(train, None))(x.reshape(12, 6, 6, 3))
    mapped = jax.vmap(functools.partial(train, "i"), axis_name="i")
    synced_logits, synced_state = jax.jit(mapped)(x)
    np.testing.assert_allclose(synced_logits.reshape(12, 10), logits, rtol=1e-4, atol=1e-5)
    synced = flat(synced_state)
    for path, expected in flat(state).items():
        for got in synced[path]:
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.fixture(scope="module")
def golden():
    """What record_resnet.py recorded of torchvision and timm."""
    with np.load(GOLDEN / "resnet.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize(
    ("name", "rules", "size"),
    [
        ("resnet18", TORCHVISION, 75),
        slow("resnet18", TORCHVISION, 64),
        slow("resnet34", TORCHVISION, 64),
        ("resnet50", TORCHVISION, 64),
        slow("resnet50", TORCHVISION, 75),
        slow("resnet18_v2", TIMM_V2, 64),
        slow("resnet18_v2", TIMM_V2, 75),
        slow("resnet50_v2", TIMM_V2, 64),
    ],
)
def test_logits_match_torch(golden, name, rules, size):
    model: Any = models.create(name, num_classes=10)
    variables = golden_variables(model, golden[f"{name}/keys"], rules, name=name)
    apply = functools.partial(model.apply, train=False)
    logits = compile_quickly(apply, variables, images(size))(variables, images(size))
    assert largest_error(logits, golden[f"{name}/logits/{size}"]) < 5e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "last_bn"), [("resnet18", "layer4.1.bn2"), ("resnet50", "layer4.2.bn3")]
)
def test_training_step_matches_torch(golden, name, last_bn):
    """Loss, gradients and running statistics of one forward and backward pass in training."""
    model: Any = models.create(name, num_classes=10, dtype="float64", param_dtype="float64")

    def loss(params, variables):
        logits, state = model.apply(
            {**variables, "params": params}, images(75), train=True, mutable=["batch_stats"]
        )
        log_likelihoods = nn.log_softmax(logits)
        return -(log_likelihoods[0, 3] + log_likelihoods[1, 7]) / 2, state

    # Both sides are in float64, since torch's own float32 gradients of resnet50 are 1% off. What is
    # left is the rounding of the logits, which are float32 whatever the compute type.
    with jax.enable_x64(True):
        variables = golden_variables(model, golden[f"{name}/keys"], TORCHVISION)
        variables = jax.tree.map(np.float64, variables)
        run = compile_quickly(
            jax.value_and_grad(loss, has_aux=True), variables["params"], variables
        )
        (value, state), grads = jax.device_get(run(variables["params"], variables))
    ours = {
        torch_key(path, TORCHVISION): leaf
        for path, leaf in flat({**state, "params": grads}).items()
    }
    assert value == pytest.approx(golden[f"{name}/train/loss"], rel=1e-6)

    for key in ("conv1.weight", "layer3.1.conv2.weight"):
        grad = ours[key].transpose(torch_axes(4))[:8, :3]
        assert largest_error(grad, golden[f"{name}/train/grad/{key}"]) < 1e-6

    # Values per channel: 2 images of 38x38 after conv1, of 3x3 at the end.
    for bn, n in (("bn1", 2 * 38 * 38), (last_bn, 2 * 3 * 3)):
        mean, var = ours[f"{bn}.running_mean"][:64], ours[f"{bn}.running_var"][:64]
        # torch tracks the unbiased variance, and Flax the biased one that it normalizes by.
        old = 0.9 * weight(f"{bn}.running_var", ours[f"{bn}.running_var"].shape)[:64]
        unbiased = old + (var - old) * n / (n - 1)
        assert largest_error(mean, golden[f"{name}/train/{bn}.running_mean"]) < 1e-6
        assert largest_error(unbiased, golden[f"{name}/train/{bn}.running_var"]) < 1e-6
