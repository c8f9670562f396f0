"""Every network with its row, and how tests build, run and compare them."""

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from golden.weights import weight

from jaxdl import drawing, pretrained
from jaxdl.models import densenet, googlenet, inception, resnet


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
LINEAR = Family((28, 28, 1), (6, 5, 3), {"num_classes": 7})
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
    "linear": (784 * 10 + 10, LINEAR),
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

# Small networks of most families, for the fast part, in which the others have their parity tests.
QUICK = {
    *("alexnet", "lenet5", "lenet5_1998", "linear", "mlp", "nin_cifar"),
    "resnet20_cifar",
}


slow = functools.partial(pytest.param, marks=pytest.mark.slow)
"""A row of a parametrized test that the fast part leaves out."""


def each(names: Iterable[str]) -> list[Any]:
    """Return the names as rows of a parametrized test, of which the quick ones are fast."""
    return [name if name in QUICK else slow(name) for name in names]


def shallow_inception(stages: Any, *args: Any) -> Any:
    """Return the network of a table's stem, and of its other stages the first and the last row."""

    def table(stem_stride: int) -> Any:
        whole = stages(stem_stride)
        ends = {stage: [*rows.items()][:: len(rows) - 1] for stage, rows in whole.items()}
        return {stage: dict(rows) for stage, rows in ends.items()} | {"stem": whole["stem"]}

    return functools.partial(inception.Inception, table, *args)


def resized_resnet(whole: Any, sizes: tuple[int, ...]) -> Any:
    """Return the network of the same blocks, but so many in each stage."""
    return functools.partial(whole.func, sizes, *whole.args[1:], **whole.keywords)


def shallow_resnet(whole: Any) -> Any:
    """Return the network of the same blocks, of which the first stage alone has two."""
    return resized_resnet(whole, (2, *[1] * (len(whole.args[0]) - 1)))


# The same blocks as in these rows, and fewer of them, for the tests that compile.
SHALLOW = {
    **{
        name: shallow_resnet(resnet.MODELS[name])
        for name in (
            *("plain18", "resnet18", "resnet18_v2", "resnet50", "resnet50_v2"),
            *("plain20_cifar", "resnet20_cifar", "resnet20_cifar_v2"),
        )
    },
    "densenet100_bc_cifar": functools.partial(densenet.DenseNet, (2,) * 3, True),
    "densenet121": functools.partial(densenet.DenseNet, (1, 2, 2, 1)),
    "inception_v2": shallow_inception(inception.v2_stages, 0, inception.SMALLEST_V2),
    "inception_resnet_v2": shallow_inception(inception.resnet_v2_stages, 0, inception.SMALLEST),
}

# GoogLeNet reads its tables when it is called: these in their place are its first modules.
SHALLOW_GOOGLENET = {
    stage: dict([*getattr(googlenet, stage).items()][:1])
    for stage in ("INCEPTION3", "INCEPTION4", "INCEPTION5")
}


def flat(tree: Any) -> dict[str, Any]:
    """Return the tree's leaves by path, such as layer1_0/conv1/kernel."""
    return dict(traverse_util.flatten_dict(tree, sep="/"))


def init(model: Any, x: Any) -> Any:
    """Return fresh variables."""
    begin = drawing.together(functools.partial(model.init, train=False))
    return jax.jit(begin)(jax.random.key(0), x)


@functools.cache
def init_shapes(model: Any, image: tuple[int, ...]) -> Any:
    """Return the shapes and types of the model's variables, which are not to be changed."""
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


# torch's names and axes.

TORCH_LEAVES = [
    (r"[/.](kernel|scale)$", r".weight"),
    (r"/bias$", r".bias"),
    (r"[/.](mean|var)$", r".running_\1"),
    (r"/", r"."),
]


def torch_key(path: str, rules: Any) -> str:
    """Return torch's name for the array at this path in the variables."""
    path = path.split("/", maxsplit=1)[1]  # without the collection
    for pattern, replacement in (*rules, *TORCH_LEAVES):
        path = re.sub(pattern, replacement, path)
    return path


def torch_axes(ndim: int) -> tuple[int, ...]:
    """Return the transposition from our kernel, HWIO or IO, to torch's, OIHW or OI."""
    return {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[ndim]


def golden_variables(
    model: Any, keys: Any, rules: Any, *, size: int = 96, gain: float = 1.0, **published: Any
) -> Any:
    """Return the model's variables with the weights the golden was computed with, every one.

    Args:
      model: the network.
      keys: of all that torch's has.
      rules: where its names stand in torch's.
      size: of images that it can be built for.
      gain: on the kernels of convolutions, as the recorder drew them.
      published: `name` and arguments of a published network, whose table of weights is then held
        to the rules: `pretrained.from_torch` has to put every array in the same place.
    """
    variables, state_dict = {}, {}
    for path, leaf in flat(init_shapes(model, (size, size, 3))).items():
        axes = torch_axes(leaf.ndim)
        key = torch_key(path, rules)
        value = weight(key, tuple(leaf.shape[axis] for axis in axes))
        state_dict[key] = np.float32(gain) * value if leaf.ndim == 4 else value
        variables[path] = state_dict[key].transpose(np.argsort(axes))
    assert sorted(state_dict) == sorted(keys)
    variables = traverse_util.unflatten_dict(variables, sep="/")
    if (name := published.get("name")) in pretrained.names():
        axes = {key: len(shape) for key, shape in contents(name).items()}  # a head may be 1x1
        state_dict = {
            key: a.reshape(*a.shape, *[1] * (axes[key] - a.ndim)) for key, a in state_dict.items()
        }
        loaded = pretrained.from_torch(state_dict=state_dict, num_classes=10, **published)
        assert_same_bits(flat(loaded), flat(variables))
    return variables


# Published weights.


@functools.cache
def recorded_weights() -> dict[str, Any]:
    """What record_pretrained.py recorded of torchvision and timm."""
    with np.load(Path(__file__).parent / "golden" / "pretrained.npz") as arrays:
        return dict(arrays)


def contents(name: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all that the published network stores, by name."""
    lines = bytes(recorded_weights()[f"{name}/contents"]).decode().splitlines()
    return {key: tuple(map(int, shape)) for key, *shape in map(str.split, lines)}


def assert_same_bits(got: Any, expected: Any) -> None:
    assert got.keys() == expected.keys()
    for key, array in got.items():
        assert array.shape == expected[key].shape, key
        assert array.dtype == expected[key].dtype, key
        assert np.ascontiguousarray(array).tobytes() == expected[key].tobytes(), key
