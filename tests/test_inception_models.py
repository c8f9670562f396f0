"""GoogLeNet and the Inceptions, held to torchvision, to timm and to their papers' tables."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.nn as nn
import jax.numpy as jnp
import numpy as np
import pytest
from golden.weights import images, weight
from networks import (
    MODELS,
    compile_quickly,
    count,
    flat,
    golden_variables,
    init_shapes,
    largest_error,
    slow,
    torch_axes,
    torch_key,
)

import jaxdl
from jaxdl import models
from jaxdl.models import googlenet, inception

GOLDEN = Path(__file__).parent / "golden"

# Where a name of ours, as path, stands in torchvision's and timm's models, and in those that
# record_inception.py wrote itself, whose names are ours.
SEQUENCE = (r"(branch\d)_(\d)/", r"\1.\2.")
AFTER_POOL = (r"branch3/", r"branch3.1.")
RULES = {
    "googlenet": [SEQUENCE],
    "googlenet_paper": [SEQUENCE],
    "inception_v2": [],
    "inception_v3": [],
    "inception_v4": [
        (r"^features_(19|20|21)/(branch[12])", r"features.\1.\2"),  # which are no sequences there
        (r"^features_(\d+)/(branch\d)_(\d)/", r"features.\1.\2.\3."),
        (r"^features_(\d+)/", r"features.\1."),
        AFTER_POOL,
        (r"^fc/", r"last_linear."),
    ],
    "inception_resnet_v2": [
        SEQUENCE,
        AFTER_POOL,
        (r"^repeat_([12])_(\d+)/", r"repeat_\1.\2."),
        (r"^repeat_(\d+)/", r"repeat.\1."),
        (r"^fc/", r"classif."),
    ],
}
GAIN = 2**0.5
"""Of that recorder's convolutions."""


def without_aux(keys: Any) -> list[str]:
    return [key for key in keys if not key.startswith(("aux", "AuxLogits"))]


@pytest.fixture(scope="module")
def golden():
    """What record_inception.py recorded of torch."""
    with np.load(GOLDEN / "inception.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        *((name, [97]) for name in ("googlenet", "inception_v2")),
        *(slow(name, [224]) for name in ("googlenet", "inception_v2")),
        slow("googlenet_paper", [224, 97]),
        *(slow(f"inception_{name}", [299, 110]) for name in ("v3", "v4", "resnet_v2")),
    ],
)
def test_logits_match_torch(golden, name, sizes):
    """At the native size, and at one that leaves other remainders in the pools."""
    model: Any = models.create(name, num_classes=10)
    keys = without_aux(golden[f"{name}/keys"])
    variables = golden_variables(model, keys, RULES[name], size=sizes[0], gain=GAIN, name=name)
    apply = functools.partial(model.apply, train=False)
    for size in sizes:
        logits = compile_quickly(apply, variables, images(size))(variables, images(size))
        assert largest_error(logits, golden[f"{name}/logits/{size}"]) < 5e-6


def train_step(name: str, model: Any, variables: Any, x: Any, keys: Any) -> Any:
    """Return the logits of all heads and, by torch's names, the new statistics and some gradients.

    The loss is the cross-entropy of labels 3 and 7, that of auxiliary heads times 0.3.
    """

    def loss(params):
        logits, state = model.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats", "intermediates"]
        )
        aux = {head: leaf for head, (leaf,) in state["intermediates"].items() if "aux" in head}
        log_likelihoods = nn.log_softmax(logits)
        total = -(log_likelihoods[0, 3] + log_likelihoods[1, 7]) / 2
        for leaf in aux.values():
            log_likelihoods = nn.log_softmax(leaf)
            total -= googlenet.AUX_WEIGHT * (log_likelihoods[0, 3] + log_likelihoods[1, 7]) / 2
        return total, ({"logits": logits, **aux}, state.get("batch_stats", {}))

    def step(params):
        grads, (heads, stats) = jax.grad(loss, has_aux=True)(params)
        by_key = {
            torch_key(path, RULES[name]): leaf
            for path, leaf in flat({"params": grads, "batch_stats": stats}).items()
        }
        return heads, {key: by_key[key] for key in keys}

    return compile_quickly(step, variables["params"])(variables["params"])


# In float32, gradients through many norms over a few values each are off on both sides, and a unit
# near zero falls otherwise from one kind of CPU to the next (2.7e-4 of the paper's GoogLeNet). In
# float64 v3's at 299 pixels would be slow. A norm over two values, as in the auxiliary head of
# v3, is the worst: it makes 2e-4 of what is 2e-5 elsewhere.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "dtype", "heads", "pixels", "tolerance"),
    [
        (
            *("googlenet", 64, "float64", {"aux_logits": True, "aux_dropout": 0.0}),
            {"conv1.bn": 32 * 32, "aux2.conv.bn": 4 * 4, "inception5b.branch4.1.bn": 2 * 2},
            1e-6,
        ),
        ("googlenet_paper", 224, "float64", {"aux_logits": True, "aux_dropout": 0.0}, {}, 1e-6),
        (
            *("inception_v3", 110, "float64", {}),
            {"Conv2d_1a_3x3.bn": 54 * 54, "Mixed_7c.branch_pool.bn": 2 * 2},
            1e-6,
        ),
        (
            *("inception_v3", 299, "float32", {"aux_logits": True}),
            {"AuxLogits.conv0.bn": 5 * 5, "AuxLogits.conv1.bn": 1},
            1e-3,
        ),
    ],
)
def test_training_step_matches_torch(golden, name, size, dtype, heads, pixels, tolerance):
    """Logits of all heads, gradients and running statistics of one step in training."""
    prefix = f"{name}/train/{size}/"
    recorded = {
        key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)
    }
    types = {"dtype": dtype, "param_dtype": dtype}
    model: Any = models.create(name, num_classes=10, dropout=0.0, **heads, **types)
    torch_keys = golden[f"{name}/keys"] if heads else without_aux(golden[f"{name}/keys"])
    grads = [key.removeprefix("grad/") for key in recorded if key.startswith("grad/")]
    stats = [f"{bn}.{stat}" for bn in pixels for stat in ("running_mean", "running_var")]
    with jax.enable_x64(dtype == "float64"):
        variables = golden_variables(model, torch_keys, RULES[name], size=size, gain=GAIN)
        variables = jax.tree.map(np.dtype(dtype).type, variables)
        logits, ours = train_step(name, model, variables, images(size), grads + stats)
        logits, ours = jax.device_get((logits, ours))
    assert set(recorded) == {*logits, *stats, *(f"grad/{key}" for key in grads)}

    for head in logits:
        assert largest_error(logits[head], recorded[head]) < tolerance
    for key in grads:
        grad = ours[key].transpose(torch_axes(ours[key].ndim))[:8, :40]
        assert largest_error(grad, recorded[f"grad/{key}"]) < tolerance
    for bn in pixels:
        mean, var = ours[f"{bn}.running_mean"][:64], ours[f"{bn}.running_var"][:64]
        # torch tracks the unbiased variance, and Flax the biased one that it normalizes by.
        n = 2 * pixels[bn]
        old = 0.9 * weight(f"{bn}.running_var", ours[f"{bn}.running_var"].shape)[:64]
        unbiased = old + (var - old) * n / (n - 1)
        assert largest_error(mean, recorded[f"{bn}.running_mean"]) < tolerance
        assert largest_error(unbiased, recorded[f"{bn}.running_var"]) < tolerance


# Parameters and shapes, from the papers' tables.


def conv(size: int, inputs: int, outputs: int) -> int:
    """Return the weights of a convolution."""
    return size * size * inputs * outputs


# Table 1 of the GoogLeNet paper: output size and, here also input, features, 1x1, 3x3 reduce, 3x3,
# 5x5 reduce, 5x5, pool proj. The parameters it states, in units of 1024, are near, if not always
# equal: those of 3a are 163,696, or 159.9.
TABLE_1 = {
    "inception3a": (28, 192, 64, 96, 128, 16, 32, 32),
    "inception3b": (28, 256, 128, 128, 192, 32, 96, 64),
    "inception4a": (14, 480, 192, 96, 208, 16, 48, 64),
    "inception4b": (14, 512, 160, 112, 224, 24, 64, 64),
    "inception4c": (14, 512, 128, 128, 256, 24, 64, 64),
    "inception4d": (14, 512, 112, 144, 288, 32, 64, 64),
    "inception4e": (14, 528, 256, 160, 320, 32, 128, 128),
    "inception5a": (7, 832, 256, 160, 320, 32, 128, 128),
    "inception5b": (7, 832, 384, 192, 384, 48, 128, 128),
}

# Figure 5 of the batch normalization paper: output size, input features, 1x1, 3x3 reduce, 3x3,
# double 3x3 reduce, double 3x3, pool proj. The pools of 4c and 4d are projected to 96.
FIGURE_5 = {
    "inception3a": (28, 192, 64, 64, 64, 64, 96, 32),
    "inception3b": (28, 256, 64, 64, 96, 64, 96, 64),
    "inception3c": (14, 320, 0, 128, 160, 64, 96, 0),
    "inception4a": (14, 576, 224, 64, 96, 96, 128, 128),
    "inception4b": (14, 576, 192, 96, 128, 96, 128, 128),
    "inception4c": (14, 576, 160, 128, 160, 128, 160, 96),
    "inception4d": (14, 576, 96, 128, 192, 160, 192, 96),
    "inception4e": (7, 576, 0, 128, 192, 192, 256, 0),
    "inception5a": (7, 1024, 352, 192, 320, 160, 224, 128),
    "inception5b": (7, 1024, 352, 192, 320, 192, 224, 128),
}


def layers(model: Any, size: int) -> tuple[dict[str, int], dict[str, Any]]:
    """Return the parameters and the output shape, without the batch, of each layer of the model."""
    variables = init_shapes(model, (size, size, 3))
    x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    apply = functools.partial(model.apply, train=False, capture_intermediates=True)
    _, state = jax.eval_shape(apply, variables, x)
    shapes = {
        name: outputs["__call__"][0].shape[1:]
        for name, outputs in state["intermediates"].items()
        if name in variables["params"]
    }
    return {name: count(leaves) for name, leaves in variables["params"].items()}, shapes


def test_googlenet_paper_layer_by_layer():
    parameters = {
        "conv1": conv(7, 3, 64) + 64,
        "conv2": conv(1, 64, 64) + 64,
        "conv3": conv(3, 64, 192) + 192,
        "fc": 1024 * 1000 + 1000,
    }
    shapes = {
        "conv1": (112, 112, 64),
        "conv2": (56, 56, 64),
        "conv3": (56, 56, 192),
        "fc": (1000,),
    }
    for name, (size, inputs, n1, r3, n3, r5, n5, proj) in TABLE_1.items():
        weights = conv(1, inputs, n1 + r3 + r5 + proj) + conv(3, r3, n3) + conv(5, r5, n5)
        parameters[name] = weights + n1 + r3 + n3 + r5 + n5 + proj
        shapes[name] = (size, size, n1 + n3 + n5 + proj)
    assert layers(models.create("googlenet_paper"), 224) == (parameters, shapes)
    assert sum(parameters.values()) == MODELS["googlenet_paper"][0]

    for name, inputs in (("aux1", 512), ("aux2", 528)):
        dense = 4 * 4 * 128 * 1024 + 1024 + 1024 * 1000 + 1000
        parameters[name] = conv(1, inputs, 128) + 128 + dense
    assert layers(models.create("googlenet_paper", aux_logits=True), 224)[0] == parameters
    assert sum(parameters.values()) == 13_378_280


def test_inception_v2_layer_by_layer():
    parameters = {
        "conv1_depthwise": 7 * 7 * 3 * 8,
        "conv1": conv(1, 3 * 8, 64) + 2 * 64,
        "conv2": conv(1, 64, 64) + 2 * 64,
        "conv3": conv(3, 64, 192) + 2 * 192,
        "fc": 1024 * 1000 + 1000,
    }
    shapes = {
        "conv1_depthwise": (112, 112, 24),
        "conv1": (112, 112, 64),
        "conv2": (56, 56, 64),
        "conv3": (56, 56, 192),
        "fc": (1000,),
    }
    for name, (size, inputs, n1, r3, n3, r33, n33, proj) in FIGURE_5.items():
        weights = conv(1, inputs, n1 + r3 + r33 + proj) + conv(3, r3, n3)
        weights += conv(3, r33, n33) + conv(3, n33, n33)
        parameters[name] = weights + 2 * (n1 + r3 + n3 + r33 + n33 + n33 + proj)
        shapes[name] = (size, size, n1 + n3 + n33 + (proj or inputs))
    assert layers(models.create("inception_v2"), 224) == (parameters, shapes)
    assert sum(parameters.values()) == MODELS["inception_v2"][0]


@pytest.mark.parametrize(
    ("name", "size", "maps"),
    [
        ("googlenet", 224, [("inception3b", 28, 480), ("inception4e", 14, 832)]),
        slow("inception_v3", 299, [("Mixed_5d", 35, 288), ("Mixed_6e", 17, 768)]),
        slow("inception_v4", 299, [("features_9", 35, 384), ("features_17", 17, 1024)]),
        slow("inception_resnet_v2", 299, [("repeat_9", 35, 320), ("repeat_1_19", 17, 1088)]),
    ],
)
def test_maps_at_native_size(name, size, maps):
    _, shapes = layers(models.create(name), size)
    for layer, side, features in maps:
        assert shapes[layer] == (side, side, features)


# Auxiliary heads, small images and small networks.


@pytest.mark.parametrize(
    ("name", "parameters", "heads"),
    [
        slow("googlenet", 13_004_888, ["aux_logits1", "aux_logits2"]),
        slow("googlenet_paper", 13_378_280, ["aux_logits1", "aux_logits2"]),
        slow("inception_v3", 27_161_264, ["aux_logits"]),
    ],
)
def test_auxiliary_heads(name, parameters, heads):
    """They are there from `init` on, learn in training, drop out, and rest in evaluation."""
    native = (299, 299, 3) if name == "inception_v3" else (224, 224, 3)
    whole = init_shapes(models.create(name, aux_logits=True), native)
    assert count(whole["params"]) == parameters

    kwargs: dict[str, Any] = {"num_classes": 7, "width": 1 / 16, "small_images": True}
    model: Any = models.create(name, aux_logits=True, **kwargs)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 32, 33, 3), np.float32)
    variables = jax.tree.map(
        lambda leaf: 0.2 * rng.standard_normal(leaf.shape, np.float32),
        init_shapes(model, (32, 33, 3)),
    )

    def loss(params, key):
        _, state = model.apply(
            {**variables, "params": params},
            x,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats", "intermediates"],
        )
        aux = {head: leaf for head, (leaf,) in state["intermediates"].items() if "aux" in head}
        return sum(jnp.square(leaf).sum() for leaf in aux.values()), (aux, state)

    def train(params, key):
        """Return what concerns the heads; nothing else is compiled."""
        grads, (aux, state) = jax.grad(loss, has_aux=True)(params, key)
        of_heads = flat({"params": grads, "batch_stats": state.get("batch_stats", {})})
        return aux, {path: leaf for path, leaf in of_heads.items() if "/aux" in path.lower()}

    run = compile_quickly(train, variables["params"], jax.random.key(0))
    aux, results = run(variables["params"], jax.random.key(0))
    other_aux, _ = run(variables["params"], jax.random.key(1))
    assert sorted(aux) == heads
    for head in heads:
        assert aux[head].shape == (4, 7)
        assert aux[head].dtype == jnp.float32
        has_dropout = name != "inception_v3"
        assert (other_aux[head] != aux[head]).any() == has_dropout
    for path, leaf in results.items():
        if path.startswith("params"):
            assert np.abs(leaf).max() > 0, f"{path} has no gradient"
        else:
            assert (leaf != flat(variables)[path]).any(), f"{path} did not move in training"

    apply = functools.partial(model.apply, train=False, mutable=["intermediates"])
    _, state = jax.eval_shape(apply, variables, x)
    assert not set(heads) & set(state["intermediates"])
    # The other weights serve the network without heads.
    bare = init_shapes(models.create(name, **kwargs), (32, 33, 3))
    assert set(flat(bare)) == {path for path in flat(variables) if "/aux" not in path.lower()}


@pytest.mark.parametrize(
    ("name", "smallest", "smallest_as_small"),
    [
        ("googlenet", 15, 6),
        ("googlenet_paper", 31, 14),
        ("inception_v2", 17, 3),
        slow("inception_v3", 75, 17),
        slow("inception_v4", 75, 17),
        slow("inception_resnet_v2", 75, 17),
    ],
)
def test_smallest_images(name, smallest, smallest_as_small):
    """The smallest images leave a pixel in the last stage, and less is refused."""
    for small_images, size in ((False, smallest), (True, smallest_as_small)):
        model = models.create(name, small_images=small_images, width=1 / 16, num_classes=3)
        init_shapes(model, (size, size + 1, 3))
        hint = "" if small_images else f"; with small_images=True of at least {smallest_as_small}x"
        message = rf"at least {size}x{size} pixels, not {size + 1}x{size - 1}{hint}"
        with pytest.raises(jaxdl.InputError, match=message):
            init_shapes(model, (size + 1, size - 1, 3))


@pytest.mark.parametrize(
    ("name", "small_images", "sizes", "message"),
    [
        (
            "googlenet_paper",
            False,
            (223, 270),
            "sides 223 to 270, not .*; with small_images=T.* 32 to",
        ),
        ("googlenet_paper", True, (32, 37), "sides 32 to 37, not"),
        slow(
            "inception_v3",
            False,
            (299,),
            "least 299x299 pixels, not .*; with small_images=True.* 21x",
        ),
        ("inception_v3", True, (21,), "at least 21x21 pixels, not"),
    ],
)
def test_images_of_auxiliary_heads(name, small_images, sizes, message):
    kwargs = {"small_images": small_images, "width": 1 / 16, "num_classes": 3}
    model: Any = models.create(name, aux_logits=True, **kwargs)
    variables = [init_shapes(model, (size, size, 3)) for size in sizes]
    assert all(leaves == variables[0] for leaves in variables)
    for size in {sizes[0] - 1, *(size + 1 for size in sizes[1:])}:
        with pytest.raises(jaxdl.InputError, match=f"auxiliary head.*{message}"):
            init_shapes(model, (size, size, 3))
        # In evaluation the heads rest, and do not mind.
        x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
        jax.eval_shape(functools.partial(model.apply, train=False), variables[0], x)


@pytest.mark.parametrize(
    ("name", "maps"),
    [
        ("googlenet", {"stem": 28, "inception3": 28, "inception4": 14, "inception5": 7}),
        ("googlenet_paper", {"stem": 28, "inception3": 28, "inception4": 14, "inception5": 7}),
        ("inception_v2", {"stem": 32, "inception3": 16, "inception4": 8, "inception5": 8}),
        slow("inception_v3", {"stem": 22, "Mixed_5": 22, "Mixed_6": 10, "Mixed_7": 4}),
        slow("inception_v4", {"stem": 22, "inception_a": 22, "inception_b": 10, "inception_c": 4}),
        slow(
            "inception_resnet_v2",
            {"stem": 22, "inception_a": 22, "inception_b": 10, "inception_c": 4},
        ),
    ],
)
def test_small_images(name, maps):
    """The maps of a 32x32 image, whose parameters are those of the published size."""
    model: Any = models.create(name, small_images=True, num_classes=3)
    variables = init_shapes(model, (32, 32, 3))
    assert hash(model) == hash(models.create(name, small_images=True, num_classes=3))
    assert variables == init_shapes(models.create(name, num_classes=3), (299, 299, 3))
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    apply = functools.partial(model.apply, train=False, mutable=["intermediates"])
    _, state = jax.eval_shape(apply, variables, x)
    sown = {stage: leaf for stage, (leaf,) in state["intermediates"].items()}
    assert sown.pop("features").ndim == 2
    assert {stage: leaf.shape[1] for stage, leaf in sown.items()} == maps


@pytest.mark.slow
def test_width_multiplies_features():
    _, shapes = layers(inception.inception_v3(width=0.25), 75)
    assert shapes["Mixed_7c"][-1] == 2048 // 4
    _, shapes = layers(googlenet.googlenet(width=1 / 32), 32)
    # 192, 208, 48 and 64 by 32: the fractions go to the nearest.
    assert shapes["inception4a"][-1] == 6 + 6 + 2 + 2


def test_modules_of_some_branches_have_those_alone():
    """The kernels that are left have the shapes that they have beside the others."""
    image = jnp.zeros((1, 16, 16, 1))

    def module(**kwargs):
        model = models.create("googlenet", num_classes=3, small_images=True, width=0.1, **kwargs)
        init = functools.partial(model.init, train=False)
        variables = jax.eval_shape(init, jax.random.key(0), image)
        return variables["params"]["inception3a"]

    whole, some = module(), module(branches=("3x3", "pool"))
    assert set(whole) == {
        "branch1",
        "branch2_0",
        "branch2_1",
        "branch3_0",
        "branch3_1",
        "branch4_1",
    }
    assert some == {name: whole[name] for name in ("branch2_0", "branch2_1", "branch4_1")}
    for wrong in ((), ("1x1", "7x7")):
        with pytest.raises(jaxdl.InputError, match="expected some of 1x1, 3x3, 5x5, pool"):
            module(branches=wrong)
