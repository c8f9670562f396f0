"""The contract every model keeps, and what each family must match: papers and other frameworks."""

import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as linen
import jax
import jax.nn as nn
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from golden.weights import images, weight
from scipy.signal import correlate
from scipy.stats import norm

import jaxdl
from jaxdl import models
from jaxdl.models import densenet, inception, lenet, mlp, resnet
from jaxdl.nn import initializer, redraw


class Family(NamedTuple):
    """How to build and run a model of a family: as published, and small enough for a test."""

    image: tuple[int, int, int]
    small_image: tuple[int, int, int]
    small: dict[str, Any]


LENET = Family((32, 32, 1), (32, 32, 1), {})
IMAGENET = Family((224, 224, 3), (40, 33, 3), {"num_classes": 7, "width": 4})
CIFAR = Family((32, 32, 3), (12, 9, 3), {"num_classes": 7, "width": 4})
ALEXNET = Family((224, 224, 3), (67, 75, 3), {"num_classes": 7, "width": 4})
ALEXNET_PAPER = Family((227, 227, 3), (67, 75, 3), {"num_classes": 7, "width": 6})
VGG = Family((224, 224, 3), (32, 41, 3), {"num_classes": 7, "width": 4})
MLP = Family((28, 28, 1), (6, 5, 3), {"num_classes": 7, "width": 16, "batch_norm": True})
NIN = Family((224, 224, 3), (41, 46, 3), {"num_classes": 7, "width": 12})
NIN_CIFAR = Family((32, 32, 3), (12, 9, 3), {"num_classes": 7, "width": 24})
DENSENET = Family((224, 224, 3), (29, 33, 3), {"num_classes": 7, "growth_rate": 4})
DENSENET_CIFAR = Family((32, 32, 3), (8, 9, 3), {"num_classes": 7, "growth_rate": 4})
GOOGLENET = Family((224, 224, 3), (33, 32, 3), {"num_classes": 7, "width": 1 / 8})
INCEPTION = Family((299, 299, 3), (77, 75, 3), {"num_classes": 7, "width": 1 / 8})

# The number of parameters with default arguments. Those of the LeNets are counted layer by layer in
# test_lenet_parameters, those of resnet20_cifar to 110 from the paper's table in
# test_cifar_parameters; those of resnet18 to 152 are as torchvision publishes them. A v2 network
# lacks the norms of its projections, 2 (256 + 512 + 1024 + 2048) parameters with bottlenecks and
# 2 (128 + 256 + 512) without; the norms that it moves come to the same number. A plain network also
# lacks the projections, 64 x 128 + 128 x 256 + 256 x 512. AlexNet, VGG, NIN and DenseNet are
# counted in test_classic_models.py.
MODELS = {
    "alexnet": (61_100_840, ALEXNET),
    "alexnet_paper": (60_965_224, ALEXNET_PAPER),
    "densenet40_bc_cifar": (176_122, DENSENET_CIFAR),
    "densenet100_bc_cifar": (769_162, DENSENET_CIFAR),
    "densenet121": (7_978_856, DENSENET),
    "densenet161": (28_681_000, DENSENET),
    "densenet169": (14_149_480, DENSENET),
    "densenet201": (20_013_928, DENSENET),
    "googlenet": (6_624_904, GOOGLENET),
    "googlenet_paper": (6_998_552, GOOGLENET),
    "inception_v2": (11_188_288, GOOGLENET),
    "inception_v3": (23_834_568, INCEPTION),
    "inception_v4": (42_679_816, INCEPTION),
    "inception_resnet_v2": (55_843_464, INCEPTION),
    "lenet5": (61_706, LENET),
    "lenet5_1998": (60_000, LENET),
    "mlp": (784 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10, MLP),
    "nin": (7_595_176, NIN),
    "nin_cifar": (966_986, NIN_CIFAR),
    "plain18": (11_689_512 - 1_792 - 172_032, IMAGENET),
    "plain34": (21_797_672 - 1_792 - 172_032, IMAGENET),
    "plain20_cifar": (269_722, CIFAR),
    "plain32_cifar": (464_154, CIFAR),
    "plain44_cifar": (658_586, CIFAR),
    "plain56_cifar": (853_018, CIFAR),
    "plain110_cifar": (1_727_962, CIFAR),
    "resnet18": (11_689_512, IMAGENET),
    "resnet34": (21_797_672, IMAGENET),
    "resnet50": (25_557_032, IMAGENET),
    "resnet101": (44_549_160, IMAGENET),
    "resnet152": (60_192_808, IMAGENET),
    "resnet18_v2": (11_689_512 - 1_792, IMAGENET),
    "resnet34_v2": (21_797_672 - 1_792, IMAGENET),
    "resnet50_v2": (25_557_032 - 7_680, IMAGENET),
    "resnet101_v2": (44_549_160 - 7_680, IMAGENET),
    "resnet152_v2": (60_192_808 - 7_680, IMAGENET),
    "resnet20_cifar": (269_722, CIFAR),
    "resnet32_cifar": (464_154, CIFAR),
    "resnet44_cifar": (658_586, CIFAR),
    "resnet56_cifar": (853_018, CIFAR),
    "resnet110_cifar": (1_727_962, CIFAR),
    "resnet20_cifar_v2": (269_722, CIFAR),
    "resnet32_cifar_v2": (464_154, CIFAR),
    "resnet44_cifar_v2": (658_586, CIFAR),
    "resnet56_cifar_v2": (853_018, CIFAR),
    "resnet110_cifar_v2": (1_727_962, CIFAR),
    "vgg11": (132_863_336, VGG),
    "vgg11_bn": (132_868_840, VGG),
    "vgg11_lrn": (132_863_336, VGG),
    "vgg13": (133_047_848, VGG),
    "vgg13_bn": (133_053_736, VGG),
    "vgg16": (138_357_544, VGG),
    "vgg16_bn": (138_365_992, VGG),
    "vgg16_c": (133_638_952, VGG),
    "vgg19": (143_667_240, VGG),
    "vgg19_bn": (143_678_248, VGG),
}

# These repeat the blocks of a shallower row and take a minute to compile, so only their counts,
# shapes and types are tested.
DEEPER = {
    *("densenet40_bc_cifar", "densenet161", "densenet169", "densenet201"),
    *("inception_v3", "inception_v4"),
    *("vgg13", "vgg16", "vgg19", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
    *("plain34", "plain32_cifar", "plain44_cifar", "plain56_cifar", "plain110_cifar"),
    *("resnet34", "resnet101", "resnet152", "resnet34_v2", "resnet101_v2", "resnet152_v2"),
    *("resnet32_cifar", "resnet44_cifar", "resnet56_cifar", "resnet110_cifar"),
    *("resnet32_cifar_v2", "resnet44_cifar_v2", "resnet56_cifar_v2", "resnet110_cifar_v2"),
}


def shallow_inception(stages: Any, *args: Any) -> Any:
    """Return the network of a table's stem, and of its other stages the first and the last row."""

    def table(stem_stride: int) -> Any:
        whole = stages(stem_stride)
        ends = {stage: [*rows.items()][:: len(rows) - 1] for stage, rows in whole.items()}
        return {stage: dict(rows) for stage, rows in ends.items()} | {"stem": whole["stem"]}

    return functools.partial(inception.inception, table, *args)


# The same blocks as in these rows, and fewer of them, for the tests that compile.
SHALLOW = {
    "densenet100_bc_cifar": functools.partial(densenet.cifar_densenet, 2),
    "densenet121": functools.partial(densenet.imagenet_densenet, (1, 2, 2, 1)),
    "inception_v2": shallow_inception(inception.v2_stages, 0, inception.SMALLEST_V2),
    "inception_resnet_v2": shallow_inception(inception.resnet_v2_stages, 0, inception.SMALLEST),
}


def flat(tree: Any) -> dict[str, Any]:
    """Return the tree's leaves by path, such as layer1_0/conv1/kernel."""
    return dict(traverse_util.flatten_dict(tree, sep="/"))


def init(model: Any, x: Any) -> Any:
    """Return fresh variables."""
    # unsafe_rbg because threefry is slow to compile; which numbers are drawn does not matter.
    key = jax.random.key(0, impl="unsafe_rbg")
    return jax.jit(functools.partial(model.init, train=False))(key, x)


def init_shapes(model: Any, image: tuple[int, ...]) -> Any:
    """Return the shapes and types of the model's variables."""
    x = jax.ShapeDtypeStruct((2, *image), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)


def count(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def compile_quickly(function: Any, *args: Any) -> Any:
    """Return the function compiled for these arguments with little optimization."""
    options: Any = {"xla_backend_optimization_level": 0}
    return jax.jit(function).lower(*args).compile(compiler_options=options)


def largest_error(got: Any, expected: Any) -> float:
    """Return the largest difference, as a fraction of the largest expected magnitude."""
    expected = np.asarray(expected)
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())


# The contract.


def test_every_model_has_its_row():
    assert list(models.names()) == sorted(MODELS)
    assert set(MODELS) > DEEPER


@pytest.mark.parametrize("name", MODELS)
def test_parameters_shapes_and_types(name):
    parameters, family = MODELS[name]
    model: Any = models.create(name, dtype=jnp.bfloat16, param_dtype=jnp.float16)
    variables = init_shapes(model, family.image)
    assert count(variables["params"]) == parameters
    assert all(leaf.dtype == jnp.float16 for leaf in jax.tree.leaves(variables["params"]))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables.get("batch_stats")))
    # `redraw` knows the weights of layers by this name.
    for path, leaf in flat(variables["params"]).items():
        assert path.endswith("kernel") == (leaf.ndim > 1), path
    redrawn = functools.partial(redraw, jax.random.key(0), initializer=initializer("orthogonal"))
    assert jax.eval_shape(redrawn, variables["params"]) == variables["params"]

    x = jax.ShapeDtypeStruct((2, *family.image), jnp.float32)
    apply = functools.partial(model.apply, train=False, mutable=["intermediates"])
    logits, state = jax.eval_shape(apply, variables, x)
    assert logits.shape == (2, 1000 if family.image[0] > 32 else 10)
    assert logits.dtype == jnp.float32
    (features,) = state["intermediates"]["features"]
    assert features.ndim == 2
    assert features.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        *((name, {}) for name in MODELS if name not in DEEPER),
        *(("mlp", {"activation": activation}) for activation in mlp.ACTIVATIONS),
        ("resnet20_cifar", {"shortcut": "B"}),
        ("resnet20_cifar_v2", {"shortcut": "B"}),
    ],
)
def test_contract(name, kwargs):
    """What training and evaluation need of every model, from one compiled function."""
    _, family = MODELS[name]
    build: Any = SHALLOW.get(name, functools.partial(models.create, name))
    model = build(**family.small, **kwargs)
    half = build(**family.small, **kwargs, dtype=jnp.bfloat16)
    classes = family.small.get("num_classes", 10)
    x = np.random.default_rng(0).standard_normal((8, *family.small_image), np.float32)
    labels = np.arange(8) % classes
    variables = init(model, x)

    def everything(variables):
        def loss(params):
            logits, state = model.apply(
                {**variables, "params": params},
                x,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(1, impl="unsafe_rbg")},
            )
            log_likelihoods = jnp.take_along_axis(nn.log_softmax(logits), labels[:, None], axis=-1)
            return -log_likelihoods.mean(), (logits, state)

        grads, (logits, state) = jax.grad(loss, has_aux=True)(variables["params"])
        trained = {**variables, **state}
        eval_logits, eval_state = model.apply(trained, x, train=False, mutable=["batch_stats"])
        half_logits = half.apply(trained, x, train=False)
        return logits, grads, state, eval_logits, eval_state, half_logits

    run = compile_quickly(everything, variables)
    logits, grads, state, eval_logits, eval_state, half_logits = outputs = run(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(outputs))
    assert logits.shape == eval_logits.shape == (8, classes)
    assert (run(variables)[3] == eval_logits).all()

    for path, grad in flat(grads).items():
        assert np.abs(grad).max() > 0, f"{path} has no gradient"

    before, moved, kept = (
        flat(tree.get("batch_stats", {})) for tree in (variables, state, eval_state)
    )
    for path in before:
        assert (moved[path] != before[path]).any(), f"{path} did not move in training"
        assert (moved[path] == kept[path]).all(), f"{path} moved in evaluation"

    # A rounding to bfloat16 is off by 0.4% at most, and the deepest network here gathers 1.3%.
    assert half_logits.dtype == jnp.float32
    assert largest_error(half_logits, eval_logits) < 0.03


@pytest.mark.parametrize("name", [name for name in MODELS if name not in DEEPER])
def test_norms_take_their_momentum_and_epsilon(name):
    """All batch norms of a network take both; a network without such norms takes neither."""
    family = MODELS[name][1]
    norms = []

    def look(call, args, kwargs, context):
        if isinstance(context.module, linen.BatchNorm):
            norms.append((context.module.momentum, context.module.epsilon))
        return call(*args, **kwargs)

    def built(**kwargs):
        norms.clear()
        with linen.intercept_methods(look):
            init_shapes(models.create(name, **family.small, **kwargs), family.small_image)
        return set(norms)

    by_default = built()
    if not by_default:
        with pytest.raises(jaxdl.InputError, match=f"{name} does not take norm_momentum"):
            models.create(name, norm_momentum=0.8)
        return
    assert by_default == {(0.9, 1e-3 if name.startswith(("googlenet", "inception")) else 1e-5)}
    assert built(norm_momentum=0.75, norm_epsilon=0.125) == {(0.75, 0.125)}


@pytest.mark.parametrize("name", [name for name in MODELS if name not in DEEPER])
def test_without_classes_it_gives_what_goes_into_the_last_layer(name):
    family = MODELS[name][1]
    whole, bare = (
        models.create(name, **family.small | {"num_classes": classes}) for classes in (10, 0)
    )
    variables = init_shapes(bare, family.small_image)
    x = jax.ShapeDtypeStruct((2, *family.small_image), jnp.float32)
    for train in (False, True):
        apply = functools.partial(bare.apply, train=train, rngs={"dropout": jax.random.key(0)})
        features, state = jax.eval_shape(
            functools.partial(apply, mutable=["intermediates", "batch_stats"]), variables, x
        )
        (sown,) = state["intermediates"]["features"]
        assert features.shape == sown.shape
        assert features.dtype == jnp.float32
    of_whole = flat(init_shapes(whole, family.small_image))
    assert flat(variables).items() <= of_whole.items()
    head = {path.rpartition("/")[0] for path in of_whole.keys() - flat(variables).keys()}
    assert len(head) == (name != "lenet5_1998")  # whose last layer is drawn, not learned


@pytest.mark.parametrize("name", ["mlp", "nin_cifar"])
def test_features_without_classes_are_those_with(name):
    family = MODELS[name][1]
    x = np.random.default_rng(0).standard_normal((2, *family.small_image), np.float32)
    whole = models.create(name, **family.small)
    variables = init(whole, x)
    _, state = whole.apply(variables, x, train=False, mutable=["intermediates"])
    bare = models.create(name, **family.small | {"num_classes": 0})
    features = bare.apply(variables, x, train=False)
    np.testing.assert_array_equal(features, state["intermediates"]["features"][0])


def test_auxiliary_heads_need_classes():
    for name in ("googlenet", "googlenet_paper", "inception_v3"):
        model = models.create(name, num_classes=0, aux_logits=True, width=1 / 16)
        assert not [k for k in init_shapes(model, (224, 224, 3))["params"] if "aux" in k.lower()]


@pytest.mark.parametrize("classes", [-1, 2.5, "10", None])
def test_a_number_of_classes_that_cannot_be(classes):
    with pytest.raises(jaxdl.InputError) as error:
        models.create("resnet50", num_classes=classes)
    assert str(error.value) == (
        f"resnet50 takes num_classes of at least 1, or 0 for its features, not {classes!r}"
    )


def test_a_perceptron_takes_inputs_of_any_shape():
    model = models.create("mlp", num_classes=3, width=5)
    for shape in ((4, 13), (4, 7, 6), (4, 2, 3, 2, 2)):
        x = np.random.default_rng(0).standard_normal(shape, np.float32)
        variables = model.init(jax.random.key(0), x, train=False)
        inputs = int(np.prod(shape[1:]))
        assert variables["params"]["fc1"]["kernel"].shape == (inputs, 5)
        assert model.apply(variables, x, train=False).shape == (4, 3)
        rows = np.moveaxis(x, -1, 1) if x.ndim > 2 else x  # as of images, channel by channel
        rows = rows.reshape(4, inputs)
        np.testing.assert_allclose(
            model.apply(variables, x, train=False), model.apply(variables, rows, train=False)
        )


@pytest.mark.parametrize(
    ("name", "smallest"),
    [
        *[(name, 17) for name in ("resnet18", "resnet50", "resnet50_v2", "plain18")],
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


def test_unknown_name():
    with pytest.raises(jaxdl.InputError, match=r"no model 'resnet51'; .*resnet50.*names\(\)"):
        models.create("resnet51")
    with pytest.raises(jaxdl.InputError, match=r"^vgg11 takes a dropout in \[0, 1\), not 1.5$"):
        models.create("vgg11", dropout=1.5)
    with pytest.raises(jaxdl.InputError, match=r"no model 'zzz'; jaxdl\.models\.names\(\)"):
        models.create("zzz")


def test_unknown_keyword():
    with pytest.raises(
        jaxdl.InputError, match=r"^lenet5 does not take width; it takes num_classes"
    ):
        models.create("lenet5", width=3)
    # What makes a resnet50 one cannot be overridden, and a plain network has no branch to zero.
    for name, keyword in (("resnet50", "stage_sizes"), ("plain18", "zero_init_last")):
        with pytest.raises(jaxdl.InputError, match=f"^{name} does not take {keyword}; it takes"):
            models.create(name, **{keyword: True})


# Residual networks.


@pytest.mark.parametrize("num_blocks", [3, 5, 7, 9, 18])
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


def test_shortcut_a_subsamples_and_pads():
    model: Any = resnet.cifar_resnet(1, True, zero_init_last=True, width=2)
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


@pytest.mark.parametrize("pre_activation", [False, True])
def test_zero_init_last_starts_at_zero_and_leaves_it(pre_activation):
    model: Any = resnet.cifar_resnet(1, pre_activation, zero_init_last=True, width=2)
    x = np.random.default_rng(0).standard_normal((4, 6, 6, 3), np.float32)
    variables = init(model, x)
    zeroed = ("conv2", "kernel") if pre_activation else ("bn2", "scale")

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
    variables = init(resnet.cifar_resnet(1, False, width=2), x[0])

    def train(axis_name, x):
        model: Any = resnet.cifar_resnet(1, False, width=2, axis_name=axis_name)
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    logits, state = jax.jit(functools.partial(train, None))(x.reshape(12, 6, 6, 3))
    mapped = jax.vmap(functools.partial(train, "i"), axis_name="i")
    synced_logits, synced_state = jax.jit(mapped)(x)
    np.testing.assert_allclose(synced_logits.reshape(12, 10), logits, rtol=1e-4, atol=1e-5)
    synced = flat(synced_state)
    for path, expected in flat(state).items():
        for got in synced[path]:
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6, err_msg=path)


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
LEAVES = [
    (r"[/.](kernel|scale)$", r".weight"),
    (r"/bias$", r".bias"),
    (r"[/.](mean|var)$", r".running_\1"),
    (r"/", r"."),
]


def torch_key(path: str, rules: Any) -> str:
    """Return torch's name for the array at this path in the variables."""
    path = path.split("/", maxsplit=1)[1]  # without the collection
    for pattern, replacement in (*rules, *LEAVES):
        path = re.sub(pattern, replacement, path)
    return path


def torch_axes(ndim: int) -> tuple[int, ...]:
    """Return the transposition from our kernel, HWIO or IO, to torch's, OIHW or OI."""
    return {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[ndim]


def golden_variables(model: Any, keys: Any, rules: Any) -> Any:
    """Return the model's variables with the weights the golden was computed with, every one."""
    variables, ours = {}, []
    for path, leaf in flat(init_shapes(model, (96, 96, 3))).items():
        axes = torch_axes(leaf.ndim)
        key = torch_key(path, rules)
        value = weight(key, tuple(leaf.shape[axis] for axis in axes))
        variables[path] = value.transpose(np.argsort(axes))
        ours.append(key)
    assert sorted(ours) == list(keys)
    return traverse_util.unflatten_dict(variables, sep="/")


@pytest.fixture(scope="module")
def golden():
    """What record_resnet.py recorded of torchvision and timm."""
    with np.load(GOLDEN / "resnet.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize(
    ("name", "rules", "sizes"),
    [
        ("resnet18", TORCHVISION, (64, 75)),
        ("resnet34", TORCHVISION, (64,)),
        ("resnet50", TORCHVISION, (64, 75)),
        ("resnet18_v2", TIMM_V2, (64, 75)),
        ("resnet50_v2", TIMM_V2, (64,)),
    ],
)
def test_logits_match_torch(golden, name, rules, sizes):
    model: Any = models.create(name, num_classes=10)
    variables = golden_variables(model, golden[f"{name}/keys"], rules)
    apply = functools.partial(model.apply, train=False)
    for size in sizes:
        logits = compile_quickly(apply, variables, images(size))(variables, images(size))
        assert largest_error(logits, golden[f"{name}/logits/{size}"]) < 5e-6


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


# The multilayer perceptron.

ACTIVATIONS = {
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "tanh": np.tanh,
    "relu": lambda z: np.where(z > 0, z, 0),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
    "elu": lambda z: np.where(z > 0, z, np.expm1(z)),
    "selu": lambda z: 1.0507009873554805 * np.where(z > 0, z, 1.6732632423543772 * np.expm1(z)),
    "gelu": lambda z: z * norm.cdf(z),
}


@pytest.mark.parametrize("activation", mlp.ACTIVATIONS)
def test_mlp_by_hand(activation):
    model: Any = mlp.mlp(width=5, depth=2, num_classes=3, activation=activation, batch_norm=True)
    x = np.random.default_rng(0).standard_normal((6, 3, 2, 2), np.float32)
    variables = init(model, x)
    apply = functools.partial(model.apply, train=True, mutable=["batch_stats", "intermediates"])
    logits, state = jax.jit(apply)(variables, x)
    y = np.float64(x).transpose(0, 3, 1, 2).reshape(6, 12)
    params = jax.tree.map(np.float64, variables["params"])
    for i in (1, 2):
        y = y @ params[f"fc{i}"]["kernel"]
        batch_mean, batch_var = y.mean(axis=0), y.var(axis=0)
        moved = state["batch_stats"][f"bn{i}"]
        np.testing.assert_allclose(moved["mean"], 0.1 * batch_mean, atol=1e-6)
        np.testing.assert_allclose(moved["var"], 0.9 + 0.1 * batch_var, rtol=1e-5)
        y = ACTIVATIONS[activation]((y - batch_mean) / np.sqrt(batch_var + 1e-5))
        np.testing.assert_allclose(state["intermediates"][f"hidden{i}"][0], y, atol=1e-5)
    y = y @ params["fc"]["kernel"]
    assert largest_error(logits, y) < 1e-5


def test_mlp_without_hidden_layers_is_softmax_regression():
    params = init_shapes(mlp.mlp(depth=0), (8, 8, 1))["params"]
    assert jax.tree.map(lambda leaf: leaf.shape, params) == {
        "fc": {"kernel": (64, 10), "bias": (10,)}
    }


def test_mlp_dropout_is_in_training_only():
    model: Any = mlp.mlp(width=400, depth=1, dropout=0.25, activation="sigmoid")
    x = np.ones((50, 2, 2, 1), np.float32)
    variables = init(model, x)
    run = functools.partial(model.apply, variables, x, mutable=["intermediates"])
    _, state = run(train=True, rngs={"dropout": jax.random.key(0)})
    (hidden,), (features,) = (state["intermediates"][name] for name in ("hidden1", "features"))
    assert (features == 0).mean() == pytest.approx(0.25, abs=0.02)
    np.testing.assert_allclose(features[features != 0], (hidden / 0.75)[features != 0], rtol=1e-6)
    _, state = run(train=False)
    np.testing.assert_array_equal(state["intermediates"]["features"][0], hidden)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"width": 0}, "a width of at least 1, not 0"),
        ({"depth": -1}, "a depth of at least 0, not -1"),
        ({"activation": "swish"}, "an activation out of sigmoid, .*, not 'swish'"),
    ],
)
def test_mlp_mistakes(kwargs, message):
    with pytest.raises(jaxdl.InputError, match=f"^mlp takes {message}$"):
        models.create("mlp", **kwargs)


# LeNet-5.

LENET5 = {"c1": 156, "c3": 2_416, "c5": 48_120, "f6": 10_164, "output": 850}
LENET5_1998 = {"c1": 156, "s2": 12, "c3": 1_516, "s4": 32, "c5": 48_120, "f6": 10_164}


@pytest.mark.parametrize(("name", "layers"), [("lenet5", LENET5), ("lenet5_1998", LENET5_1998)])
def test_lenet_parameters(name, layers):
    params = init_shapes(models.create(name), LENET.image)["params"]
    assert {layer: count(leaves) for layer, leaves in params.items()} == layers
    assert MODELS[name][0] == sum(layers.values())


def lenet_variables(name: str) -> Any:
    """Return weights for a LeNet large enough that every layer bends its input."""
    shapes = flat(init_shapes(models.create(name), LENET.image))
    return traverse_util.unflatten_dict(
        {
            path: 0.3 + 0.3 * weight(path, leaf.shape)
            if path.endswith("coefficient")
            else weight(path, leaf.shape)
            if path.endswith("bias")
            else weight(path + "/weight", leaf.shape[::-1]).T
            for path, leaf in shapes.items()
        },
        sep="/",
    )


def convolve(x: Any, params: Any, connections: Any) -> Any:
    """Return the convolution of maps [H, W, C], map by map over (input, output, kernel)."""
    y = np.stack([np.full((x.shape[0] - 4, x.shape[1] - 4), bias) for bias in params["bias"]], -1)
    for i, o, kernel in connections:
        y[:, :, o] += correlate(x[:, :, i], kernel, mode="valid")
    return y


def full_connections(kernel: Any) -> Any:
    return [(i, o, kernel[:, :, i, o]) for i, o in np.ndindex(kernel.shape[2:])]


def sums_of_2x2(x: Any) -> Any:
    return x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]


def test_lenet5_by_hand():
    variables = lenet_variables("lenet5")
    params = jax.tree.map(np.float64, variables["params"])
    x = np.random.default_rng(0).uniform(-0.1, 1.175, (2, 32, 32, 1)).astype(np.float32)
    model: Any = lenet.lenet5()
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, x)
    for image, got in zip(x, logits, strict=True):
        y = np.tanh(convolve(image, params["c1"], full_connections(params["c1"]["kernel"])))
        y = sums_of_2x2(y) / 4
        y = np.tanh(convolve(y, params["c3"], full_connections(params["c3"]["kernel"])))
        y = sums_of_2x2(y) / 4
        y = np.tanh(convolve(y, params["c5"], full_connections(params["c5"]["kernel"])))[0, 0]
        y = np.tanh(y @ params["f6"]["kernel"] + params["f6"]["bias"])
        y = y @ params["output"]["kernel"] + params["output"]["bias"]
        assert largest_error(got, y) < 1e-5


# Table I of the 1998 paper read by columns: the maps of S2 that each map of C3 sees.
TABLE_1 = [
    *([0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [0, 4, 5], [0, 1, 5]),
    *([0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [0, 3, 4, 5], [0, 1, 4, 5], [0, 1, 2, 5]),
    *([0, 1, 3, 4], [1, 2, 4, 5], [0, 2, 3, 5], [0, 1, 2, 3, 4, 5]),
]


def test_lenet5_1998_by_hand():
    variables = lenet_variables("lenet5_1998")
    params = jax.tree.map(np.float64, variables["params"])
    x = np.random.default_rng(0).uniform(-0.1, 1.175, (2, 32, 32, 1)).astype(np.float32)
    model: Any = lenet.lenet5_1998()
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, x)

    # The kernel lists the connections by input map, and by output map within it.
    pairs = [(i, o) for i in range(6) for o in range(16) if i in TABLE_1[o]]
    table = [(i, o, params["c3"]["kernel"][:, :, k]) for k, (i, o) in enumerate(pairs)]
    bitmaps = [lenet.DIGITS.split()[digit::10] for digit in range(10)]

    def squash(a):
        return 1.7159 * np.tanh(a * 2 / 3)

    def subsample(y, layer):
        return squash(sums_of_2x2(y) * params[layer]["coefficient"] + params[layer]["bias"])

    for image, got in zip(x, logits, strict=True):
        y = squash(convolve(image, params["c1"], full_connections(params["c1"]["kernel"])))
        y = subsample(y, "s2")
        y = squash(convolve(y, params["c3"], table))
        y = subsample(y, "s4")
        y = squash(convolve(y, params["c5"], full_connections(params["c5"]["kernel"])))[0, 0]
        y = squash(y @ params["f6"]["kernel"] + params["f6"]["bias"])
        for digit, rows in enumerate(bitmaps):
            targets = [1 if pixel == "#" else -1 for row in rows for pixel in row]
            penalty = sum((a - b) ** 2 for a, b in zip(y, targets, strict=True))
            assert -got[digit] == pytest.approx(penalty, rel=1e-5)


def test_lenet5_1998_starts_within_its_bounds():
    """Appendix A: uniform within 2.4 / fan_in, where C3's fan-in is its row of the table's."""
    x = np.zeros((1, 32, 32, 1), np.float32)
    params = init(lenet.lenet5_1998(), x)["params"]
    fan_ins = [25 * len(TABLE_1[o]) for i in range(6) for o in range(16) if i in TABLE_1[o]]
    largest = np.abs(params["c3"]["kernel"]).max(axis=(0, 1)) * np.array(fan_ins) / 2.4
    assert largest.max() <= 1
    assert largest.min() > 0.7
    for layer, fan_in in {"c1": 25, "c5": 400, "f6": 120}.items():
        assert np.abs(params[layer]["kernel"]).max() * fan_in / 2.4 == pytest.approx(1, abs=0.05)


def test_digit_codes_are_distinct():
    distances = (lenet.DIGIT_CODES[:, None] != lenet.DIGIT_CODES).sum(-1)
    assert set(np.unique(lenet.DIGIT_CODES)) == {-1, 1}
    assert (distances + 84 * np.eye(10)).min() >= 10


def test_lenet5_1998_loss():
    y = np.array([[0.5, 3.0, 7.0], [2.0, 0.1, 0.3]])
    labels = jnp.array([0, 2])
    got = lenet.lenet5_1998_loss(jnp.asarray(-y), labels, j=1.5)
    for row, label, value in zip(y, labels, got, strict=True):
        assert value == pytest.approx(
            row[label] + np.log(np.exp(-1.5) + np.exp(-row).sum()), rel=1e-6
        )
    # Far from every code exp(-y) is zero in float32; the loss is then y_label - j.
    far = jnp.full((1, 10), -500.0)
    value, grad = jax.value_and_grad(lambda x: lenet.lenet5_1998_loss(x, labels[:1], j=2.0).sum())(
        far
    )
    assert value == pytest.approx(498.0)
    assert np.isfinite(grad).all()


def test_lenets_refuse_other_images_and_classes():
    with pytest.raises(jaxdl.InputError, match=r"lenet5 takes .*32, 32, C\], not \[2, 28, 28, 1\]"):
        init_shapes(lenet.lenet5(), (28, 28, 1))
    with pytest.raises(jaxdl.InputError, match=r"lenet5_1998 takes .*32, 32, 1\], not"):
        init_shapes(lenet.lenet5_1998(), (32, 32, 3))
    with pytest.raises(jaxdl.InputError, match="10 classes, not num_classes=7"):
        lenet.lenet5_1998(num_classes=7)
