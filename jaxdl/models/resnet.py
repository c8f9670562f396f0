"""Residual networks, and the plain networks they were compared with.

Every network of the two papers is one row at the end of this file:

    model = resnet50(num_classes=100, dtype=jnp.bfloat16)
    variables = model.init(jax.random.key(0), jnp.zeros([1, 224, 224, 3]), train=False)
    logits = model.apply(variables, images, train=False)

A row binds in place what makes the network that network, so that no caller can give it again, and
by name what differs from the defaults of `ResNet`, which takes all else as keywords.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (2015, arXiv:1512.03385) and
"Identity Mappings in Deep Residual Networks" (2016, arXiv:1603.05027).
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl import InputError
from jaxdl.nn import Convolution, ModuleDef, Normed, check_image_size
from jaxdl.pooling import max_pool
from jaxdl.published import (
    CONV,
    DENSE,
    HALVES,
    NORM,
    TIMM,
    TORCHVISION,
    Images,
    Published,
    Rows,
    Weights,
)

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
zeros, ones = nn.initializers.zeros, nn.initializers.ones


class Conv(NamedTuple):
    """One convolution of a residual branch."""

    size: int
    multiple: int = 1  # of the stage's features
    strided: bool = False  # takes the block's stride


BASIC = (Conv(3, strided=True), Conv(3))
BOTTLENECK = (Conv(1), Conv(3, strided=True), Conv(1, multiple=4))


class Block(nn.Module):
    """The residual block of 2015: `relu(shortcut(x) + branch(x))`, each convolution then a norm.

    Departure: a bottleneck's stride is on its 3x3 convolution, as in torchvision and in most
    published weights ("v1.5"); the paper has it on the first 1x1.

    Args:
      conv, norm: make the block's convolutions and norms.
      branch: `BASIC` or `BOTTLENECK`.
      features: features of the stage; a bottleneck block returns four times as many.
      stride: 1, or 2 to halve height and width.
      shortcut: where the shape changes, "A" subsamples and pads with zero channels and "B"
        projects.
      zero_init_last: start the branch at zero, so that the block starts as its shortcut.

    Shapes: [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features x multiple].
    """

    conv: ModuleDef
    norm: ModuleDef
    branch: tuple[Conv, ...]
    features: int
    stride: int
    shortcut: str | None
    zero_init_last: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the block."""
        y = self.run_branch(x)
        if x.shape != y.shape and self.shortcut == "A":
            x = self.subsample(x, y.shape[-1])
        elif x.shape != y.shape:
            x = self.projection(y.shape[-1])(x)
            x = self.norm(name="downsample_bn")(x)
        return nn.relu(x + y)

    def run_branch(self, x: jax.Array) -> jax.Array:
        """Apply the convolutions and norms."""
        y = x
        for i, layer in enumerate(self.branch, start=1):
            is_last = i == len(self.branch)
            scale_init = zeros if is_last and self.zero_init_last else ones
            y = self.branch_conv(layer, name=f"conv{i}")(y)
            y = self.norm(scale_init=scale_init, name=f"bn{i}")(y)
            if not is_last:
                y = nn.relu(y)
        return y

    def branch_conv(self, layer: Conv, **kwargs: Any) -> nn.Module:
        """Make one convolution of the branch."""
        size = (layer.size, layer.size)
        stride = self.stride if layer.strided else 1
        padding = layer.size // 2
        features = self.features * layer.multiple
        return self.conv(features, size, strides=stride, padding=padding, **kwargs)

    def projection(self, features: int) -> nn.Module:
        """Make the convolution of shortcut B."""
        return self.conv(features, (1, 1), strides=self.stride, padding=0, name="downsample_conv")

    def subsample(self, x: jax.Array, features: int) -> jax.Array:
        """Apply shortcut A: every `stride`-th pixel, and zeros for the channels that are new."""
        x = x[:, :: self.stride, :: self.stride, :]
        return jnp.pad(x, [(0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])])


class PlainBlock(Block):
    """The block without its shortcut, `relu(branch(x))`, which makes a network plain."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the block."""
        return nn.relu(self.run_branch(x))


class PreActBlock(Block):
    """The residual block of 2016: `shortcut(x) + branch(x)`, norm and relu before each convolution.

    A projection takes the activated input and has no norm; every other shortcut, padded or not,
    carries `x` itself. Arguments and shapes are those of `Block`. `zero_init_last` zeroes the last
    kernel: were it the last norm's scale, the relu after it would pass no gradient, and the branch
    would stay at zero.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the block."""
        activated = y = nn.relu(self.norm(name="bn1")(x))
        for i, layer in enumerate(self.branch, start=1):
            is_last = i == len(self.branch)
            kernel_init = zeros if is_last and self.zero_init_last else he_normal
            if i > 1:
                y = nn.relu(self.norm(name=f"bn{i}")(y))
            y = self.branch_conv(layer, kernel_init=kernel_init, name=f"conv{i}")(y)

        if x.shape != y.shape and self.shortcut == "A":
            x = self.subsample(x, y.shape[-1])
        elif x.shape != y.shape:
            x = self.projection(y.shape[-1])(activated)
        return x + y


class ResNet(Normed):
    """A residual network, or a plain one: stem, stages of blocks, global average, linear layer.

    The stem of the ImageNet networks is a 7x7 convolution of stride 2 and a 3x3 max pool of stride
    2; that of the CIFAR networks is one 3x3 convolution. Each stage after the first halves height
    and width in its first block and doubles the features.

    With pre-activation blocks the stem has no norm and no relu, since the first block brings them,
    and a norm and a relu (`bn`) follow the last block. Departure: the paper's first shortcut
    branches off after the first activation; here it does so only if it is a projection. On ImageNet
    the first norm follows the max pool. Both are as in timm's `resnetv2_*`, whose published weights
    fit.

    Layers bear torchvision's names: `conv1`, `bn1`, `layer1_0.conv1`, `layer1_0.downsample_conv`,
    `fc`. Weights are drawn as in He et al. (2015, arXiv:1502.01852), those of `fc` as Flax does.

    Args:
      stage_sizes: number of blocks in each stage.
      branch: `BASIC` or `BOTTLENECK`.
      block: `Block`, `PreActBlock` or `PlainBlock`.
      stem: "imagenet" or "cifar".
      shortcut: "A" or "B", see `Block`; None with `PlainBlock`s alone.
      zero_init_last: see `Block`. With no shortcut beside them, branches at zero would let
        nothing pass.
      num_classes: number of logits; with 0 the `features` are returned instead, float32.
      width: features of the stem and of the first stage.
      dtype, param_dtype, norm_momentum, norm_epsilon, axis_name: see `jaxdl.nn.Normed`.

    Shapes: images [B, H, W, C] to float32 logits [B, num_classes]. They are at least 17x17, with
    the CIFAR stem and three stages 3x3: every layer of stride 2 then has two pixels to take one of.
    Smaller images raise InputError.

    State: `params`, and `batch_stats` which training updates. Draws no random numbers. Sows in
    `intermediates` the output of each stage, `layer1` to the last, and `features`, the pooled
    [B, F] that go into `fc`.

    Parameters at the defaults: 11,689,512 for `resnet18`, 21,797,672 for 34, 25,557,032 for 50,
    44,549,160 for 101 and 60,192,808 for 152; 11,687,720 for `resnet18_v2`, 21,795,880 for 34,
    25,549,352 for 50, 44,541,480 for 101 and 60,185,128 for 152; 11,515,688 for `plain18`,
    21,623,848 for 34; and, residual in both versions or plain, 269,722 for `resnet20_cifar`,
    464,154 for 32, 658,586 for 44, 853,018 for 56 and 1,727,962 for 110, to which shortcut "B" adds
    2,752 and in `_v2` 2,560.

    Raises:
      InputError: images that are too small, or a shortcut that there is not.
    """

    stage_sizes: tuple[int, ...]
    branch: tuple[Conv, ...]
    block: type[Block]
    stem: str
    shortcut: str | None = "B"
    zero_init_last: bool = False
    _: dataclasses.KW_ONLY
    num_classes: int = 1000
    width: int = 64

    def __post_init__(self) -> None:
        """Refuse a shortcut that there is not."""
        if self.shortcut not in ((None,) if self.block is PlainBlock else ("A", "B")):
            raise InputError(
                f"shortcut must be 'A' (zero padding) or 'B' (projection), not {self.shortcut!r}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return the logits of a batch of images."""
        stride = 2 ** (len(self.stage_sizes) - 1) * (4 if self.stem == "imagenet" else 1)
        check_image_size(self, x, stride // 2 + 1)
        conv: ModuleDef = partial(Convolution, use_bias=False, kernel_init=he_normal, **self.types)
        norm = self.norm(train)
        block = partial(
            self.block,
            conv=conv,
            norm=norm,
            branch=self.branch,
            shortcut=self.shortcut,
            zero_init_last=self.zero_init_last,
        )
        pre_activation = self.block is PreActBlock

        if self.stem == "imagenet":
            x = conv(self.width, (7, 7), strides=2, padding=3, name="conv1")(x)
        else:
            x = conv(self.width, (3, 3), padding=1, name="conv1")(x)
        if not pre_activation:
            x = nn.relu(norm(name="bn1")(x))
        if self.stem == "imagenet":
            x = max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

        for i, num_blocks in enumerate(self.stage_sizes):
            for j in range(num_blocks):
                stride = 2 if i > 0 and j == 0 else 1
                name = f"layer{i + 1}_{j}"
                x = block(features=self.width * 2**i, stride=stride, name=name)(x)
            self.sow("intermediates", f"layer{i + 1}", x)

        if pre_activation:
            x = nn.relu(norm(name="bn")(x))
        x = x.mean(axis=(1, 2))
        self.sow("intermediates", "features", x)
        if self.num_classes:
            x = nn.Dense(self.num_classes, name="fc", **self.types)(x)
        return x.astype(jnp.float32)


resnet18 = partial(ResNet, (2, 2, 2, 2), BASIC, Block, "imagenet", "B")
resnet34 = partial(ResNet, (3, 4, 6, 3), BASIC, Block, "imagenet", "B")
resnet50 = partial(ResNet, (3, 4, 6, 3), BOTTLENECK, Block, "imagenet", "B")
resnet101 = partial(ResNet, (3, 4, 23, 3), BOTTLENECK, Block, "imagenet", "B")
resnet152 = partial(ResNet, (3, 8, 36, 3), BOTTLENECK, Block, "imagenet", "B")

resnet18_v2 = partial(ResNet, (2, 2, 2, 2), BASIC, PreActBlock, "imagenet", "B")
resnet34_v2 = partial(ResNet, (3, 4, 6, 3), BASIC, PreActBlock, "imagenet", "B")
resnet50_v2 = partial(ResNet, (3, 4, 6, 3), BOTTLENECK, PreActBlock, "imagenet", "B")
resnet101_v2 = partial(ResNet, (3, 4, 23, 3), BOTTLENECK, PreActBlock, "imagenet", "B")
resnet152_v2 = partial(ResNet, (3, 8, 36, 3), BOTTLENECK, PreActBlock, "imagenet", "B")

plain18 = partial(ResNet, (2, 2, 2, 2), BASIC, PlainBlock, "imagenet", None, False)
plain34 = partial(ResNet, (3, 4, 6, 3), BASIC, PlainBlock, "imagenet", None, False)

# 6n + 2 layers, with the paper's shortcuts "A", which have no parameters.
CIFAR: dict[str, Any] = {"num_classes": 10, "width": 16}
RESNET_CIFAR: dict[str, Any] = {"shortcut": "A", **CIFAR}

resnet20_cifar = partial(ResNet, (3,) * 3, BASIC, Block, "cifar", **RESNET_CIFAR)
resnet32_cifar = partial(ResNet, (5,) * 3, BASIC, Block, "cifar", **RESNET_CIFAR)
resnet44_cifar = partial(ResNet, (7,) * 3, BASIC, Block, "cifar", **RESNET_CIFAR)
resnet56_cifar = partial(ResNet, (9,) * 3, BASIC, Block, "cifar", **RESNET_CIFAR)
resnet110_cifar = partial(ResNet, (18,) * 3, BASIC, Block, "cifar", **RESNET_CIFAR)

resnet20_cifar_v2 = partial(ResNet, (3,) * 3, BASIC, PreActBlock, "cifar", **RESNET_CIFAR)
resnet32_cifar_v2 = partial(ResNet, (5,) * 3, BASIC, PreActBlock, "cifar", **RESNET_CIFAR)
resnet44_cifar_v2 = partial(ResNet, (7,) * 3, BASIC, PreActBlock, "cifar", **RESNET_CIFAR)
resnet56_cifar_v2 = partial(ResNet, (9,) * 3, BASIC, PreActBlock, "cifar", **RESNET_CIFAR)
resnet110_cifar_v2 = partial(ResNet, (18,) * 3, BASIC, PreActBlock, "cifar", **RESNET_CIFAR)

plain20_cifar = partial(ResNet, (3,) * 3, BASIC, PlainBlock, "cifar", None, False, **CIFAR)
plain32_cifar = partial(ResNet, (5,) * 3, BASIC, PlainBlock, "cifar", None, False, **CIFAR)
plain44_cifar = partial(ResNet, (7,) * 3, BASIC, PlainBlock, "cifar", None, False, **CIFAR)
plain56_cifar = partial(ResNet, (9,) * 3, BASIC, PlainBlock, "cifar", None, False, **CIFAR)
plain110_cifar = partial(ResNet, (18,) * 3, BASIC, PlainBlock, "cifar", None, False, **CIFAR)

# What is published.

IMAGENET_MODELS = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "resnet152": resnet152,
    "resnet18_v2": resnet18_v2,
    "resnet34_v2": resnet34_v2,
    "resnet50_v2": resnet50_v2,
    "resnet101_v2": resnet101_v2,
    "resnet152_v2": resnet152_v2,
    "plain18": plain18,
    "plain34": plain34,
}
CIFAR_MODELS = {
    "resnet20_cifar": resnet20_cifar,
    "resnet32_cifar": resnet32_cifar,
    "resnet44_cifar": resnet44_cifar,
    "resnet56_cifar": resnet56_cifar,
    "resnet110_cifar": resnet110_cifar,
    "resnet20_cifar_v2": resnet20_cifar_v2,
    "resnet32_cifar_v2": resnet32_cifar_v2,
    "resnet44_cifar_v2": resnet44_cifar_v2,
    "resnet56_cifar_v2": resnet56_cifar_v2,
    "resnet110_cifar_v2": resnet110_cifar_v2,
    "plain20_cifar": plain20_cifar,
    "plain32_cifar": plain32_cifar,
    "plain44_cifar": plain44_cifar,
    "plain56_cifar": plain56_cifar,
    "plain110_cifar": plain110_cifar,
}
MODELS = IMAGENET_MODELS | CIFAR_MODELS
IMAGE_SHAPES = dict.fromkeys(IMAGENET_MODELS, (224, 224, 3)) | dict.fromkeys(
    CIFAR_MODELS, (32, 32, 3)
)

HE, HE_CIFAR = "He et al. 2015, Table 1", "He et al. 2015, Table 6"
PUBLISHED = {
    "plain18": Published(None, 1.8e9, HE),
    "plain34": Published(None, 3.6e9, HE),
    "resnet18": Published(11_689_512, 1.814e9, TORCHVISION),
    "resnet34": Published(21_797_672, 3.664e9, TORCHVISION),
    "resnet50": Published(25_557_032, 4.089e9, TORCHVISION),
    "resnet101": Published(44_549_160, 7.801e9, TORCHVISION),
    "resnet152": Published(60_192_808, 11.514e9, TORCHVISION),
    "resnet101_v2": Published(44.54e6, 7.83e9, TIMM),
    "resnet152_v2": Published(60.19e6, 11.55e9, TIMM),
    "resnet20_cifar": Published(0.27e6, None, HE_CIFAR),
    "resnet32_cifar": Published(0.46e6, None, HE_CIFAR),
    "resnet44_cifar": Published(0.66e6, None, HE_CIFAR),
    "resnet56_cifar": Published(0.85e6, None, HE_CIFAR),
    "resnet110_cifar": Published(1.7e6, None, HE_CIFAR),
}

ROWS: Rows = (
    (r"conv1", r"conv1", CONV),
    (r"bn1", r"bn1", NORM),
    (r"layer(\d)_(\d+)/conv(\d)", r"layer\1.\2.conv\3", CONV),
    (r"layer(\d)_(\d+)/bn(\d)", r"layer\1.\2.bn\3", NORM),
    (r"layer(\d)_(\d+)/downsample_conv", r"layer\1.\2.downsample.0", CONV),
    (r"layer(\d)_(\d+)/downsample_bn", r"layer\1.\2.downsample.1", NORM),
    (r"fc", r"fc", DENSE),
)

# timm counts stages from 0, and its last layer is a 1x1 convolution.
ROWS_V2: Rows = (
    (r"conv1", r"stem.conv", CONV),
    *(
        row
        for i in range(4)
        for row in (
            (rf"layer{i + 1}_(\d+)/conv(\d)", rf"stages.{i}.blocks.\1.conv\2", CONV),
            (rf"layer{i + 1}_(\d+)/bn(\d)", rf"stages.{i}.blocks.\1.norm\2", NORM),
            (
                rf"layer{i + 1}_(\d+)/downsample_(conv)",
                rf"stages.{i}.blocks.\1.downsample.\2",
                CONV,
            ),
        )
    ),
    (r"bn", r"norm", NORM),
    (r"fc", r"head.fc", CONV),
)

WEIGHTS = {
    **{f"resnet{depth}": Weights(ROWS, ("fc",)) for depth in (18, 34, 50, 101, 152)},
    **{
        f"resnet{depth}_v2": Weights(ROWS_V2, ("head.fc",), Images(resize, 224, "bicubic", *HALVES))
        for depth, resize in {18: 248, 34: 248, 50: 235, 101: 235, 152: 256}.items()
    },
}
