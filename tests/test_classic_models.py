"""AlexNet, VGG, NIN and DenseNet, held to torchvision and to their papers' tables."""

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
    each,
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
from jaxdl.models import densenet

GOLDEN = Path(__file__).parent / "golden"


def vgg_rules(convs_per_stage: tuple[int, ...], *, batch_norm: bool) -> list[tuple[str, str]]:
    """Return where torchvision has our layers: it counts relus, norms and pools along with them."""
    rules = [("fc6/", "classifier.0."), ("fc7/", "classifier.3."), ("fc8/", "classifier.6.")]
    index = 0
    for stage, convs in enumerate(convs_per_stage, start=1):
        for i in range(1, convs + 1):
            rules.append((rf"conv{stage}_{i}/", f"features.{index}."))
            rules.append((rf"bn{stage}_{i}/", f"features.{index + 1}."))
            index += 3 if batch_norm else 2
        index += 1
    return rules


# Where a name of ours, as path, stands in torchvision's models.
ALEXNET = [
    *(("conv1/", "features.0."), ("conv2/", "features.3."), ("conv3/", "features.6.")),
    *(("conv4/", "features.8."), ("conv5/", "features.10.")),
    *(("fc6/", "classifier.1."), ("fc7/", "classifier.4."), ("fc8/", "classifier.6.")),
]
DENSENET = [(r"(block\d)_", r"\1."), (r"^(?!classifier)", "features.")]
OURS: list[tuple[str, str]] = []  # written by record_classic.py under our names

RULES = {
    "alexnet": ALEXNET,
    "alexnet_paper": OURS,
    "vgg11": vgg_rules((1, 1, 2, 2, 2), batch_norm=False),
    "vgg11_lrn": OURS,
    "vgg13": vgg_rules((2, 2, 2, 2, 2), batch_norm=False),
    "vgg16": vgg_rules((2, 2, 3, 3, 3), batch_norm=False),
    "vgg16_c": OURS,
    "vgg19": vgg_rules((2, 2, 4, 4, 4), batch_norm=False),
    "vgg11_bn": vgg_rules((1, 1, 2, 2, 2), batch_norm=True),
    "vgg13_bn": vgg_rules((2, 2, 2, 2, 2), batch_norm=True),
    "vgg16_bn": vgg_rules((2, 2, 3, 3, 3), batch_norm=True),
    "vgg19_bn": vgg_rules((2, 2, 4, 4, 4), batch_norm=True),
    "nin": OURS,
    "nin_cifar": OURS,
    "densenet121": DENSENET,
    "densenet161": DENSENET,
    "densenet169": DENSENET,
    "densenet201": DENSENET,
    "densenet100_bc_cifar": DENSENET,
}
TORCHVISION = [
    name for name, rules in RULES.items() if rules is not OURS and name != "densenet100_bc_cifar"
]


@pytest.fixture(scope="module")
def golden():
    """What record_classic.py recorded of torchvision, and of torch for the others."""
    with np.load(GOLDEN / "classic.npz") as arrays:
        return dict(arrays)


def entries(golden: Any, name: str) -> list[str]:
    """Return the lines "key [shape]" of torch's model."""
    return golden[f"{name}/entries"].tobytes().decode().splitlines()


def keys(golden: Any, name: str) -> list[str]:
    return sorted(entry.split()[0] for entry in entries(golden, name))


@pytest.mark.parametrize("name", each(TORCHVISION))
def test_parameters_are_those_of_torchvision(golden, name):
    """Every key and shape of the network in its full width, in both directions."""
    variables = init_shapes(models.create(name), MODELS[name][1].image)
    ours = [
        f"{torch_key(path, RULES[name])} {[leaf.shape[axis] for axis in torch_axes(leaf.ndim)]}"
        for path, leaf in flat(variables).items()
    ]
    assert sorted(ours) == entries(golden, name)


LAYERS = {
    "alexnet_paper": {
        "conv1": 11 * 11 * 3 * 96 + 96,
        "conv2": 5 * 5 * 48 * 256 + 256,
        "conv3": 3 * 3 * 256 * 384 + 384,
        "conv4": 3 * 3 * 192 * 384 + 384,
        "conv5": 3 * 3 * 192 * 256 + 256,
        "fc6": 6 * 6 * 256 * 4096 + 4096,
        "fc7": 4096 * 4096 + 4096,
        "fc8": 4096 * 1000 + 1000,
    },
    "nin": {
        "conv1": 11 * 11 * 3 * 96 + 96,
        "cccp1": 96 * 96 + 96,
        "cccp2": 96 * 96 + 96,
        "conv2": 5 * 5 * 96 * 256 + 256,
        "cccp3": 256 * 256 + 256,
        "cccp4": 256 * 256 + 256,
        "conv3": 3 * 3 * 256 * 384 + 384,
        "cccp5": 384 * 384 + 384,
        "cccp6": 384 * 384 + 384,
        "conv4": 3 * 3 * 384 * 1024 + 1024,
        "cccp7": 1024 * 1024 + 1024,
        "cccp8": 1024 * 1000 + 1000,
    },
    "nin_cifar": {
        "conv1": 5 * 5 * 3 * 192 + 192,
        "cccp1": 192 * 160 + 160,
        "cccp2": 160 * 96 + 96,
        "conv2": 5 * 5 * 96 * 192 + 192,
        "cccp3": 192 * 192 + 192,
        "cccp4": 192 * 192 + 192,
        "conv3": 3 * 3 * 192 * 192 + 192,
        "cccp5": 192 * 192 + 192,
        "cccp6": 192 * 10 + 10,
    },
    "vgg16_c": {
        "conv1_1": 9 * 3 * 64 + 64,
        "conv1_2": 9 * 64 * 64 + 64,
        "conv2_1": 9 * 64 * 128 + 128,
        "conv2_2": 9 * 128 * 128 + 128,
        "conv3_1": 9 * 128 * 256 + 256,
        "conv3_2": 9 * 256 * 256 + 256,
        "conv3_3": 256 * 256 + 256,
        "conv4_1": 9 * 256 * 512 + 512,
        "conv4_2": 9 * 512 * 512 + 512,
        "conv4_3": 512 * 512 + 512,
        "conv5_1": 9 * 512 * 512 + 512,
        "conv5_2": 9 * 512 * 512 + 512,
        "conv5_3": 512 * 512 + 512,
        "fc6": 7 * 7 * 512 * 4096 + 4096,
        "fc7": 4096 * 4096 + 4096,
        "fc8": 4096 * 1000 + 1000,
    },
}


@pytest.mark.parametrize("name", LAYERS)
def test_parameters_layer_by_layer(name):
    params = init_shapes(models.create(name), MODELS[name][1].image)["params"]
    assert {layer: count(leaves) for layer, leaves in params.items()} == LAYERS[name]
    assert MODELS[name][0] == sum(LAYERS[name].values())


def test_vgg_millions():
    """Table 2 of the paper, which counts A and A-LRN as one."""
    table = {"vgg11": 133, "vgg11_lrn": 133, "vgg13": 133, "vgg16_c": 134, "vgg16": 138}
    for name, millions in {**table, "vgg19": 144}.items():
        assert round(MODELS[name][0] / 1e6) == millions


@pytest.mark.parametrize(("depth", "layers"), [(40, 6), (100, 16)])
def test_densenet_cifar_parameters(depth, layers):
    """The paper's recipe: three blocks, k=12, bottlenecks of 4k, transitions to a half."""
    k, features = 12, 24
    total = 3 * 3 * 3 * features
    for block in range(3):
        for _ in range(layers):
            total += 2 * features + features * 4 * k + 2 * 4 * k + 3 * 3 * 4 * k * k
            features += k
        if block < 2:
            total += 2 * features + features * (features // 2)
            features //= 2
    assert MODELS[f"densenet{depth}_bc_cifar"][0] == total + 2 * features + features * 10 + 10


def sown_shapes(model: Any, image: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what the model sows for one image, without the batch."""
    x = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    apply = functools.partial(model.apply, train=False, mutable=["intermediates"])
    _, state = jax.eval_shape(apply, init_shapes(model, image), x)
    return {name: leaf.shape[1:] for name, (leaf,) in state["intermediates"].items()}


def alexnet_stages(*features: int) -> dict[str, tuple[int, ...]]:
    """Return the maps of both forms, which differ in their numbers alone."""
    sides = zip((55, 27, 13, 13, 13), features, strict=True)
    stages = {f"relu{i}": (side, side, maps) for i, (side, maps) in enumerate(sides, start=1)}
    return {**stages, "features": (4096,)}


VGG_STAGES = {
    "relu1": (224, 224, 64),
    "relu2": (112, 112, 128),
    "relu3": (56, 56, 256),
    "relu4": (28, 28, 512),
    "relu5": (14, 14, 512),
    "features": (4096,),
}


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("alexnet", alexnet_stages(64, 192, 384, 256, 256)),
        ("alexnet_paper", alexnet_stages(96, 256, 384, 384, 256)),
        ("vgg11_lrn", VGG_STAGES),
        ("vgg16_c", VGG_STAGES),
        ("vgg19_bn", VGG_STAGES),
        (
            "nin",
            {
                "relu1": (54, 54, 96),
                "relu2": (27, 27, 256),
                "relu3": (13, 13, 384),
                "relu4": (6, 6, 1024),
                "features": (1024,),
                "class_maps": (6, 6, 1000),
            },
        ),
        (
            "nin_cifar",
            {
                "relu1": (32, 32, 96),
                "relu2": (16, 16, 192),
                "relu3": (8, 8, 192),
                "features": (192,),
                "class_maps": (8, 8, 10),
            },
        ),
        slow(
            "densenet161",
            {
                "denseblock1": (56, 56, 96 + 6 * 48),
                "denseblock2": (28, 28, 192 + 12 * 48),
                "denseblock3": (14, 14, 384 + 36 * 48),
                "denseblock4": (7, 7, 1056 + 24 * 48),
                "features": (2208,),
            },
        ),
        slow(
            "densenet100_bc_cifar",
            {
                "denseblock1": (32, 32, 24 + 16 * 12),
                "denseblock2": (16, 16, 108 + 16 * 12),
                "denseblock3": (8, 8, 150 + 16 * 12),
                "features": (342,),
            },
        ),
    ],
)
def test_maps_at_the_published_size(name, stages):
    assert sown_shapes(models.create(name), MODELS[name][1].image) == stages


@pytest.mark.parametrize(
    ("name", "last", "parameters"),
    [
        # conv1 is 5x5 instead of 11x11, and fc6 sees 3x3 instead of 6x6.
        ("alexnet", (7, 7, 256), 61_100_840 - 96 * 3 * 64 - 27 * 256 * 4096),
        ("alexnet_paper", (7, 7, 256), 60_965_224 - 96 * 3 * 96 - 27 * 256 * 4096),
        # fc6 sees 1x1 instead of 7x7.
        ("vgg16", (2, 2, 512), 138_357_544 - 48 * 512 * 4096),
        ("vgg16_bn", (2, 2, 512), 138_365_992 - 48 * 512 * 4096),
        # conv1 is 5x5 instead of 11x11.
        ("nin", (4, 4, 1024), 7_595_176 - 96 * 3 * 96),
        # conv0 is 3x3 instead of 7x7, and has no norm.
        slow("densenet121", (4, 4, 1024), 7_978_856 - 40 * 3 * 64 - 2 * 64),
    ],
)
def test_small_images(name, last, parameters):
    model = models.create(name, small_images=True)
    maps = {k: v for k, v in sown_shapes(model, (32, 32, 3)).items() if len(v) == 3}
    maps.pop("class_maps", None)
    first, *_, end = (maps[stage] for stage in sorted(maps))
    assert first[:2] == (32, 32)
    assert end == last
    assert count(init_shapes(model, (32, 32, 3))["params"]) == parameters


@pytest.mark.parametrize(
    ("name", "kwargs", "smallest"),
    [
        ("alexnet", {}, 63),
        ("alexnet", {"small_images": True}, 15),
        ("alexnet_paper", {}, 67),
        ("alexnet_paper", {"small_images": True}, 15),
        ("vgg11", {}, 32),
        ("vgg11_bn", {"small_images": True}, 32),
        ("nin", {}, 39),
        ("nin", {"small_images": True}, 8),
        ("nin_cifar", {}, 4),
        slow("densenet121", {}, 29),
        slow("densenet121", {"small_images": True}, 8),
        slow("densenet100_bc_cifar", {}, 4),
    ],
)
def test_smallest_images(name, kwargs, smallest):
    """The size in the message is the least from which every pool leaves at least a pixel."""
    model = models.create(name, **kwargs)
    shapes = sown_shapes(model, (smallest, smallest, 3)).values()
    assert min(min(shape) for shape in shapes) > 0
    for image in ((smallest - 1, smallest, 3), (smallest, smallest - 1, 3)):
        with pytest.raises(
            jaxdl.InputError, match=f"at least {smallest}x{smallest} pixels, not {image[0]}x"
        ):
            init_shapes(model, image)


def test_what_small_images_take_is_told():
    """Where the network has that argument, and it helps."""
    for name, smallest in {"alexnet": 15, "alexnet_paper": 15, "nin": 8, "densenet121": 8}.items():
        with pytest.raises(jaxdl.InputError) as error:
            init_shapes(models.create(name), (28, 28, 3))
        told = f"not 28x28; with small_images=True of at least {smallest}x{smallest}"
        assert str(error.value).endswith(told)
    for name, size in {"vgg16": 28, "densenet40_bc_cifar": 3, "nin_cifar": 3}.items():
        with pytest.raises(jaxdl.InputError) as error:
            init_shapes(models.create(name), (size, size, 3))
        assert str(error.value).endswith(f"not {size}x{size}")


def test_alexnet_paper_width():
    for width in (0, 4, 64):
        with pytest.raises(jaxdl.InputError, match=rf"width of 3, 6, 9 and so on, not {width}$"):
            models.create("alexnet_paper", width=width)


@pytest.mark.slow
def test_alexnet_paper_starts_as_the_paper_says():
    params = init(models.create("alexnet_paper", width=24), np.zeros((1, 67, 67, 3)))["params"]
    with_ones = {"conv2", "conv4", "conv5", "fc6", "fc7"}
    for name, layer in params.items():
        assert (layer["bias"] == float(name in with_ones)).all()
        assert np.std(layer["kernel"]) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("name", ["nin_cifar", *map(slow, ("alexnet", "alexnet_paper", "vgg11"))])
def test_dropout(name):
    """Draws from its stream in training only; a rate of zero leaves nothing to draw."""
    family = MODELS[name][1]
    x = np.random.default_rng(0).standard_normal((2, *family.small_image), np.float32)
    model: Any = models.create(name, **family.small)
    without: Any = models.create(name, **family.small, dropout=0.0)
    variables = init(model, x)

    def run(variables):
        first, second = (
            model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)})
            for seed in (0, 1)
        )
        outputs = model.apply(variables, x, train=False), without.apply(variables, x, train=True)
        return first, second, *outputs

    first, second, evaluated, undropped = compile_quickly(run, variables)(variables)
    assert (first != second).any()
    assert (first != evaluated).any()
    np.testing.assert_array_equal(undropped, evaluated)


def test_densenet_dropout():
    """After every convolution but the first: without it the rest passes nothing on."""
    model: Any = densenet.DenseNet((1,) * 3, True, growth_rate=2, dropout=1.0)
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32)
    variables = init(model, x)
    apply = functools.partial(
        model.apply,
        train=True,
        mutable=["batch_stats", "intermediates"],
        rngs={"dropout": jax.random.key(0)},
    )
    _, state = compile_quickly(apply, variables, x)(variables, x)
    (first,), (second,) = (state["intermediates"][f"denseblock{i}"] for i in (1, 2))
    assert np.abs(first[..., :4]).max() > 0  # the stem's
    assert (first[..., 4:] == 0).all()
    assert (second == 0).all()


# What they compute.


@pytest.mark.parametrize(
    ("name", "kwargs", "sizes", "scale"),
    [
        ("alexnet_paper", {"width": 24}, [99], 100),
        ("nin_cifar", {}, [32], 1),
        ("vgg11", {"width": 16}, [75], 1),
        slow("alexnet", {}, [224, 255], 1),
        slow("alexnet_paper", {"width": 24}, [227], 100),
        slow("vgg11", {"width": 16}, [224], 1),
        slow("vgg16_bn", {"width": 16}, [224, 75], 1),
        slow("vgg11_lrn", {"width": 16}, [75], 100),
        slow("vgg16_c", {"width": 16}, [75], 1),
        slow("nin", {}, [224, 75], 1),
        slow("nin_cifar", {}, [45], 1),
        slow("densenet121", {}, [224, 75], 1),
        slow("densenet161", {}, [64], 1),
        slow("densenet100_bc_cifar", {}, [32, 45], 1),
    ],
)
def test_logits_match_torch(golden, name, kwargs, sizes, scale):
    model: Any = models.create(name, num_classes=10, **kwargs)
    variables = golden_variables(model, keys(golden, name), RULES[name], name=name, **kwargs)
    for size in sizes:
        x, apply = scale * images(size), functools.partial(model.apply, train=False)
        logits = compile_quickly(apply, variables, x)(variables, x)
        assert largest_error(logits, golden[f"{name}/logits/{size}"]) < 5e-6


# Where torch's norms stand, and from how many values each takes its statistics: those of two images
# after the stem, and of what the pools leave of them at the end.
VGG_NORMS = {"features.1": 2 * 75 * 75, "features.41": 2 * 4 * 4}
DENSENET_NORMS = {
    "features.norm0": 2 * 38 * 38,
    "features.denseblock4.denselayer2.norm2": 2 * 2 * 2,
    "features.norm5": 2 * 2 * 2,
}


@pytest.mark.parametrize(
    ("name", "build", "size", "scale", "rules", "norms"),
    [
        slow(
            "alexnet_paper",
            functools.partial(models.create, "alexnet_paper", width=24, dropout=0.0),
            *(99, 100, OURS, {}),
        ),
        slow(
            "vgg16_bn",
            functools.partial(models.create, "vgg16_bn", width=16, dropout=0.0),
            *(75, 1, RULES["vgg16_bn"], VGG_NORMS),
        ),
        slow(
            "nin_cifar",
            functools.partial(models.create, "nin_cifar", dropout=0.0),
            *(45, 1, OURS, {}),
        ),
        slow(
            "narrow_densenet",
            functools.partial(densenet.DenseNet, (2, 3, 3, 2), growth_rate=8),
            *(75, 1, DENSENET, DENSENET_NORMS),
        ),
    ],
)
def test_training_step_matches_torch(golden, name, build, size, scale, rules, norms):
    """Loss, gradients and running statistics of one forward and backward pass in training."""
    model = build(num_classes=10, dtype="float64", param_dtype="float64")
    x = scale * images(size)

    def loss(params, variables):
        logits, state = model.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        log_likelihoods = nn.log_softmax(logits)
        return -(log_likelihoods[0, 3] + log_likelihoods[1, 7]) / 2, state

    # Both sides are in float64, but for the logits, which are float32 whatever the compute type.
    with jax.enable_x64(True):
        variables = golden_variables(model, keys(golden, name), rules)
        variables = jax.tree.map(np.float64, variables)
        run = compile_quickly(
            jax.value_and_grad(loss, has_aux=True), variables["params"], variables
        )
        (value, state), grads = jax.device_get(run(variables["params"], variables))
    ours = {torch_key(path, rules): leaf for path, leaf in flat({**state, "params": grads}).items()}
    assert value == pytest.approx(golden[f"{name}/train/loss"], rel=1e-6)

    prefix = f"{name}/train/grad/"
    layers = [key.removeprefix(prefix) for key in golden if key.startswith(prefix)]
    assert len(layers) == 3
    for key in layers:
        grad = ours[key].transpose(torch_axes(ours[key].ndim))[:8, :3]
        assert largest_error(grad, golden[prefix + key]) < 1e-6

    for norm, n in norms.items():
        mean, var = ours[f"{norm}.running_mean"][:64], ours[f"{norm}.running_var"][:64]
        # torch tracks the unbiased variance, and Flax the biased one that it normalizes by.
        old = 0.9 * weight(f"{norm}.running_var", ours[f"{norm}.running_var"].shape)[:64]
        unbiased = old + (var - old) * n / (n - 1)
        assert largest_error(mean, golden[f"{name}/train/{norm}.running_mean"]) < 1e-6
        assert largest_error(unbiased, golden[f"{name}/train/{norm}.running_var"]) < 1e-6
