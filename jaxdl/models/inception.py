"""Inception v2 (BN-Inception), v3, v4 and Inception-ResNet v2.

Each network is a table in this file, of stages, the layers and modules of a stage, the
branches of a module and the layers of a branch:

    model = inception_v3(num_classes=10, small_images=True)
    variables = model.init(jax.random.key(0), jnp.zeros([1, 32, 32, 3]), train=False)
    logits, state = model.apply(
        variables, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
    )

v2: Ioffe, Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
Covariate Shift" (2015, arXiv:1502.03167); v3: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking
the Inception Architecture for Computer Vision" (2015, arXiv:1512.00567); v4 and Inception-ResNet:
Szegedy, Ioffe, Vanhoucke, Alemi, "Inception-v4, Inception-ResNet and the Impact of Residual
Connections on Learning" (2016, arXiv:1602.07261). The first, GoogLeNet, is in googlenet.py.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.branches import (
    AVG,
    AVG_OF_PADDED,
    MAX_HALVE,
    AuxHead,
    Conv,
    ConvNorm,
    Depthwise,
    Mixed,
    MixedBlock,
    Pool,
    Split,
    Stage,
    apply_layer,
    halve,
    mixed,
    residual,
    valid,
)
from jaxdl.nn import Convolution, ModuleDef, Normed, check_image_size
from jaxdl.published import CONV, DENSE, HALVES, TIMM, TORCHVISION, Images, Published, Rows, Weights

he_normal = nn.initializers.he_normal()

# What the loss of v3's auxiliary head counts beside that of the network, in torchvision's reference
# training. The paper does not say.
AUX_WEIGHT = 0.4

# Pixels on a side of the smallest images that convolutions without padding leave something of: with
# strides of 2 in the stem, and with strides of 1. Inception v2 pads, so that something is left of
# any; its smallest are those of which every stride of 2 has two pixels to take one of.
SMALLEST = (75, 17)
SMALLEST_V2 = (17, 3)
AUX_SMALLEST = (299, 21)


class Inception(Normed):
    """An Inception network: the stages of a table, global average, dropout, linear layer.

    Every convolution has a batch norm. Weights are drawn as in He et al. (2015, arXiv:1502.01852),
    those of linear layers as Flax does.

    Args:
      stages: (stride of the stem) -> the table.
      first: number of a branch's first convolution, 1 in torchvision's names and 0 in timm's.
      smallest: pixels on a side of the smallest image that the stages leave something of, and the
        same with `small_images`.
      aux_logits: whether it has an auxiliary head after stage `Mixed_6`, as v3 may. Its
        parameters are made by `init`; it is computed in training only.
      num_classes: number of logits; with 0 the `features` are returned instead, float32.
      small_images: give every layer of the stem a stride of 1, so that a 32x32 image has maps of
        22x22, 10x10 and 4x4 in the three stages (of 32x32, 16x16 and 8x8 in v2), as one of
        299x299 has of 35x35, 17x17 and 8x8 with the strides, and leave out the pool of the
        auxiliary head. No parameter changes.
      width: multiplies the features of every convolution, to the nearest integer above zero.
      dropout: rate of the dropout before the linear layer; `inception_v2` has none by default,
        since its paper removes it.
      dtype, param_dtype, norm_momentum, norm_epsilon, axis_name: see `jaxdl.nn.Normed`.

    Shapes: images [B, H, W, C] to float32 logits [B, num_classes]. They are at least 75x75, as
    `small_images` 17x17; for `inception_v2` 17x17 and 3x3; and to train or initialize an auxiliary
    head 299x299 and 21x21. Smaller ones raise InputError.

    State: `params`, and `batch_stats` which training updates. Dropout draws from the stream
    `dropout` in training. Sows in `intermediates` the output of each stage by its name, `features`,
    the pooled [B, F] before dropout, and in training, from an auxiliary head, the float32
    `aux_logits` [B, num_classes], for a loss that counts `AUX_WEIGHT`.

    Parameters at the defaults: 11,188,288 for `inception_v2`, 23,834,568 for `inception_v3`,
    27,161,264 with its auxiliary head, 42,679,816 for `inception_v4` and 55,843,464 for
    `inception_resnet_v2`.
    """

    stages: Callable[[int], dict[str, Stage]]
    first: int
    smallest: tuple[int, int]
    aux_logits: bool = False
    _: dataclasses.KW_ONLY
    num_classes: int = 1000
    small_images: bool = False
    width: float = 1.0
    dropout: float = 0.2
    norm_epsilon: float = 1e-3

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return the logits of a batch of images."""
        check_image_size(self, x, self.smallest[self.small_images], self.smallest[1])
        training = train or self.is_initializing()
        use_aux = self.aux_logits and self.num_classes > 0 and training
        if use_aux:
            least = AUX_SMALLEST[self.small_images]
            check_image_size(self, x, least, AUX_SMALLEST[1], "the auxiliary head of ")

        conv: ModuleDef = partial(Convolution, use_bias=False, kernel_init=he_normal, **self.types)
        norm = self.norm(train)
        dense: ModuleDef = partial(nn.Dense, **self.types)
        conv_norm: ModuleDef = partial(ConvNorm, width=self.width, conv=conv, norm=norm)
        block: ModuleDef = partial(MixedBlock, first=self.first, conv=conv, conv_norm=conv_norm)

        for stage, layers in self.stages(1 if self.small_images else 2).items():
            for name, spec in layers.items():
                x = apply_layer(spec, name, x, conv, conv_norm, block)
            self.sow("intermediates", stage, x)
            if use_aux and stage == "Mixed_6":
                pooled = not self.small_images
                head = AuxHead(self.num_classes, pooled, conv_norm, dense, name="AuxLogits")
                self.sow("intermediates", "aux_logits", head(x).astype(jnp.float32))

        x = x.mean(axis=(1, 2))
        self.sow("intermediates", "features", x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = dense(self.num_classes, name="fc")(x) if self.num_classes else x
        return x.astype(jnp.float32)


# Inception v2: Figure 5 of the paper.


def v2_module(
    conv1x1: int,
    conv3x3_reduce: int,
    conv3x3: int,
    double3x3_reduce: int,
    double3x3: int,
    pool_kind: str,
    pool_proj: int,
) -> Mixed:
    """Return the module of a row of the figure."""
    double = Conv(double3x3, 3)
    return mixed(
        branch1=(Conv(conv1x1),),
        branch2=(Conv(conv3x3_reduce), Conv(conv3x3, 3)),
        branch3=(Conv(double3x3_reduce), double, double),
        branch4=(Pool(pool_kind), Conv(pool_proj)),
    )


def v2_reduction(conv3x3_reduce: int, conv3x3: int, double3x3_reduce: int, double3x3: int) -> Mixed:
    """Return the module of a row of stride 2, whose pool is passed through."""
    double = Conv(double3x3, 3)
    return mixed(
        branch2=(Conv(conv3x3_reduce), Conv(conv3x3, 3, stride=2)),
        branch3=(Conv(double3x3_reduce), double, double._replace(stride=2)),
        branch4=(Pool("max", stride=2),),
    )


def v2_stages(stem_stride: int) -> dict[str, Stage]:
    """Return the table of Inception v2.

    The first convolution is separable as in the paper: eight maps of each colour and then 1x1.

    Departures: the figure projects the pools of 4c and 4d to 128 features, which makes 608 where it
    prints 576 and 1056 where it prints 1024; here they are 96, as in the authors' TensorFlow model,
    so that all printed sizes hold. The text counts 13.6 million parameters, which the figure does
    not add up to. It is silent on padding, which here is symmetric, and is not counted in averages.
    """
    return {
        "stem": {
            "conv1_depthwise": Depthwise(8, 7, stem_stride),
            "conv1": Conv(64),
            "maxpool1": Pool("max", stem_stride),
            "conv2": Conv(64),
            "conv3": Conv(192, 3),
            "maxpool2": Pool("max", stem_stride),
        },
        "inception3": {
            "inception3a": v2_module(64, 64, 64, 64, 96, "avg", 32),
            "inception3b": v2_module(64, 64, 96, 64, 96, "avg", 64),
            "inception3c": v2_reduction(128, 160, 64, 96),
        },
        "inception4": {
            "inception4a": v2_module(224, 64, 96, 96, 128, "avg", 128),
            "inception4b": v2_module(192, 96, 128, 96, 128, "avg", 128),
            "inception4c": v2_module(160, 128, 160, 128, 160, "avg", 96),
            "inception4d": v2_module(96, 128, 192, 160, 192, "avg", 96),
            "inception4e": v2_reduction(128, 192, 192, 256),
        },
        "inception5": {
            "inception5a": v2_module(352, 192, 320, 160, 224, "avg", 128),
            "inception5b": v2_module(352, 192, 320, 192, 224, "max", 128),
        },
    }


# Inception v3, in torchvision's names.


def v3_a(pool_features: int) -> Mixed:
    """Return a module of the 35x35 maps (the paper's Figure 5, one 5x5 kept)."""
    return mixed(
        branch1x1=(Conv(64),),
        branch5x5=(Conv(48), Conv(64, 5)),
        branch3x3dbl=(Conv(64), Conv(96, 3), Conv(96, 3)),
        branch_pool=(AVG_OF_PADDED, Conv(pool_features)),
    )


def v3_c(features: int) -> Mixed:
    """Return a module of the 17x17 maps (the paper's Figure 6, n = 7)."""
    row, column = Conv(features, (1, 7)), Conv(features, (7, 1))
    last_row, last_column = Conv(192, (1, 7)), Conv(192, (7, 1))
    return mixed(
        branch1x1=(Conv(192),),
        branch7x7=(Conv(features), row, last_column),
        branch7x7dbl=(Conv(features), column, row, column, last_row),
        branch_pool=(AVG_OF_PADDED, Conv(192)),
    )


V3_B = mixed(
    branch3x3=(halve(384),),
    branch3x3dbl=(Conv(64), Conv(96, 3), halve(96)),
    branch_pool=(MAX_HALVE,),
)
V3_D = mixed(
    branch3x3=(Conv(192), halve(320)),
    branch7x7x3=(Conv(192), Conv(192, (1, 7)), Conv(192, (7, 1)), halve(192)),
    branch_pool=(MAX_HALVE,),
)
V3_SPLIT = Split(Conv(384, (1, 3)), Conv(384, (3, 1)))
V3_E = mixed(
    branch1x1=(Conv(320),),
    branch3x3=(Conv(384), V3_SPLIT),
    branch3x3dbl=(Conv(448), Conv(384, 3), V3_SPLIT),
    branch_pool=(AVG_OF_PADDED, Conv(192)),
)


def v3_stages(stem_stride: int) -> dict[str, Stage]:
    """Return the table of Inception v3, as torchvision has it.

    Departures, which are those of the published weights: the stem is that of the authors'
    TensorFlow model and not of the paper's Table 1, the first modules keep a 5x5 convolution, and
    average pools count the zeros that they pad with.
    """
    return {
        "stem": {
            "Conv2d_1a_3x3": valid(32, 3, stem_stride),
            "Conv2d_2a_3x3": valid(32, 3),
            "Conv2d_2b_3x3": Conv(64, 3),
            "maxpool1": Pool("max", stem_stride, padded=False),
            "Conv2d_3b_1x1": Conv(80),
            "Conv2d_4a_3x3": valid(192, 3),
            "maxpool2": Pool("max", stem_stride, padded=False),
        },
        "Mixed_5": {"Mixed_5b": v3_a(32), "Mixed_5c": v3_a(64), "Mixed_5d": v3_a(64)},
        "Mixed_6": {
            "Mixed_6a": V3_B,
            "Mixed_6b": v3_c(128),
            "Mixed_6c": v3_c(160),
            "Mixed_6d": v3_c(160),
            "Mixed_6e": v3_c(192),
        },
        "Mixed_7": {"Mixed_7a": V3_D, "Mixed_7b": V3_E, "Mixed_7c": V3_E},
    }


# Inception v4, in timm's names: the paper's Figures 3 to 9.

V4_A = mixed(
    branch0=(Conv(96),),
    branch1=(Conv(64), Conv(96, 3)),
    branch2=(Conv(64), Conv(96, 3), Conv(96, 3)),
    branch3=(AVG, Conv(96)),
)
V4_REDUCTION_A = mixed(
    branch0=(halve(384),),
    branch1=(Conv(192), Conv(224, 3), halve(256)),
    branch2=(MAX_HALVE,),
)
V4_B = mixed(
    branch0=(Conv(384),),
    branch1=(Conv(192), Conv(224, (1, 7)), Conv(256, (7, 1))),
    branch2=(
        *(Conv(192), Conv(192, (7, 1)), Conv(224, (1, 7))),
        *(Conv(224, (7, 1)), Conv(256, (1, 7))),
    ),
    branch3=(AVG, Conv(128)),
)
V4_REDUCTION_B = mixed(
    branch0=(Conv(192), halve(192)),
    branch1=(Conv(256), Conv(256, (1, 7)), Conv(320, (7, 1)), halve(320)),
    branch2=(MAX_HALVE,),
)
V4_SPLIT = Split(Conv(256, (1, 3)), Conv(256, (3, 1)))
V4_C = mixed(
    branch0=(Conv(256),),
    branch1=(Conv(384), V4_SPLIT),
    branch2=(Conv(384), Conv(448, (3, 1)), Conv(512, (1, 3)), V4_SPLIT),
    branch3=(AVG, Conv(256)),
)
V4_STEM_SPLIT = mixed(
    branch0=(Conv(64), valid(96, 3)),
    branch1=(Conv(64), Conv(64, (1, 7)), Conv(64, (7, 1)), valid(96, 3)),
)


def v4_stages(stem_stride: int) -> dict[str, Stage]:
    """Return the table of Inception v4, as timm has it; its `last_linear` is `fc` here."""
    stem_pool = Pool("max", stem_stride, padded=False)
    stem_conv = valid(96, 3, stem_stride)

    def features(first: int, *layers: Conv | Mixed) -> Stage:
        return {f"features_{i}": layer for i, layer in enumerate(layers, first)}

    return {
        "stem": features(
            0,
            valid(32, 3, stem_stride),
            valid(32, 3),
            Conv(64, 3),
            mixed(maxpool=(stem_pool,), conv=(stem_conv,)),
            V4_STEM_SPLIT,
            mixed(conv=(stem_conv._replace(features=192),), maxpool=(stem_pool,)),
        ),
        "inception_a": features(6, *[V4_A] * 4),
        "inception_b": features(10, V4_REDUCTION_A, *[V4_B] * 7),
        "inception_c": features(18, V4_REDUCTION_B, *[V4_C] * 3),
    }


# Inception-ResNet v2, in timm's names: the paper's Figures 15 to 19.

MIXED_5B = mixed(
    branch0=(Conv(96),),
    branch1=(Conv(48), Conv(64, 5)),
    branch2=(Conv(64), Conv(96, 3), Conv(96, 3)),
    branch3=(AVG, Conv(64)),
)
BLOCK35 = residual(
    0.17,
    branch0=(Conv(32),),
    branch1=(Conv(32), Conv(32, 3)),
    branch2=(Conv(32), Conv(48, 3), Conv(64, 3)),
)
MIXED_6A = mixed(
    branch0=(halve(384),),
    branch1=(Conv(256), Conv(256, 3), halve(384)),
    branch2=(MAX_HALVE,),
)
BLOCK17 = residual(
    0.1,
    branch0=(Conv(192),),
    branch1=(Conv(128), Conv(160, (1, 7)), Conv(192, (7, 1))),
)
MIXED_7A = mixed(
    branch0=(Conv(256), halve(384)),
    branch1=(Conv(256), halve(288)),
    branch2=(Conv(256), Conv(288, 3), halve(320)),
    branch3=(MAX_HALVE,),
)
BLOCK8 = residual(
    0.2,
    branch0=(Conv(192),),
    branch1=(Conv(192), Conv(224, (1, 3)), Conv(256, (3, 1))),
)


def resnet_v2_stages(stem_stride: int) -> dict[str, Stage]:
    """Return the table of Inception-ResNet v2, as timm has it; its `classif` is `fc` here.

    Departures, which are those of the published weights: the stem is v3's with a module after it,
    not v4's, and there are 10, 20 and 10 residual modules in place of 5, 10 and 5, on 320, 1088 and
    2080 features in place of 384, 1154 and 2048. The last has neither scale nor relu. The scales
    keep the sums from growing, which kills such wide networks early in training.
    """
    return {
        "stem": {
            "conv2d_1a": valid(32, 3, stem_stride),
            "conv2d_2a": valid(32, 3),
            "conv2d_2b": Conv(64, 3),
            "maxpool_3a": Pool("max", stem_stride, padded=False),
            "conv2d_3b": Conv(80),
            "conv2d_4a": valid(192, 3),
            "maxpool_5a": Pool("max", stem_stride, padded=False),
        },
        "inception_a": {
            "mixed_5b": MIXED_5B,
            **{f"repeat_{i}": BLOCK35 for i in range(10)},
        },
        "inception_b": {
            "mixed_6a": MIXED_6A,
            **{f"repeat_1_{i}": BLOCK17 for i in range(20)},
        },
        "inception_c": {
            "mixed_7a": MIXED_7A,
            **{f"repeat_2_{i}": BLOCK8 for i in range(9)},
            "block8": BLOCK8._replace(residual_scale=1.0, residual_relu=False),
            "conv2d_7b": Conv(1536),
        },
    }


inception_v2 = partial(Inception, v2_stages, 0, SMALLEST_V2, False, dropout=0.0)
inception_v3 = partial(Inception, v3_stages, 1, SMALLEST, dropout=0.5)
inception_v4 = partial(Inception, v4_stages, 0, SMALLEST, False)
inception_resnet_v2 = partial(Inception, resnet_v2_stages, 0, SMALLEST, False)

MODELS = {
    "inception_v2": inception_v2,
    "inception_v3": inception_v3,
    "inception_v4": inception_v4,
    "inception_resnet_v2": inception_resnet_v2,
}
IMAGE_SHAPES = dict.fromkeys(MODELS, (299, 299, 3)) | {"inception_v2": (224, 224, 3)}
PUBLISHED = {
    # The parameters are with the auxiliary head, the multiply-adds without.
    "inception_v3": Published(27_161_264, 5.713e9, f"{TORCHVISION}, with the auxiliary head"),
    "inception_v4": Published(42.68e6, 12.28e9, TIMM),
    "inception_resnet_v2": Published(55.84e6, 13.18e9, TIMM),
}

# Every convolution has a norm; one row stands for both.
V3_ROWS: Rows = (
    (r"(Conv2d_\w+)/(conv|bn)", r"\1.\2", CONV),
    (r"(Mixed_\w+)/(branch\w+)/(conv|bn)", r"\1.\2.\3", CONV),
    (r"AuxLogits/(conv\d)/(conv|bn)", r"AuxLogits.\1.\2", CONV),
    (r"AuxLogits/fc", r"AuxLogits.fc", DENSE),
    (r"fc", r"fc", DENSE),
)

# timm counts the pool before a branch's only convolution. The last three modules of v4 are no
# sequences there, and keep their underscores.
V4_ROWS: Rows = (
    (r"features_([012])/(conv|bn)", r"features.\1.\2", CONV),
    (r"features_([35])/conv/(conv|bn)", r"features.\1.conv.\2", CONV),
    (r"features_(\d+)/branch0/(conv|bn)", r"features.\1.branch0.\2", CONV),
    (r"features_(\d+)/branch3/(conv|bn)", r"features.\1.branch3.1.\2", CONV),
    (r"features_(19|20|21)/(branch\d_\w+)/(conv|bn)", r"features.\1.\2.\3", CONV),
    (r"features_(\d+)/branch(\d)_(\d)/(conv|bn)", r"features.\1.branch\2.\3.\4", CONV),
    (r"fc", r"last_linear", DENSE),
)

RESNET_V2_ROWS: Rows = (
    (r"(conv2d_\w+)/(conv|bn)", r"\1.\2", CONV),
    (r"mixed_5b/branch3/(conv|bn)", r"mixed_5b.branch3.1.\1", CONV),
    (r"(mixed_\w+|block8)/(branch\d)/(conv|bn)", r"\1.\2.\3", CONV),
    (r"(mixed_\w+|block8)/(branch\d)_(\d)/(conv|bn)", r"\1.\2.\3.\4", CONV),
    (r"block8/conv2d", r"block8.conv2d", CONV),
    (r"(repeat(?:_\d)?)_(\d+)/(branch\d)/(conv|bn)", r"\1.\2.\3.\4", CONV),
    (r"(repeat(?:_\d)?)_(\d+)/(branch\d)_(\d)/(conv|bn)", r"\1.\2.\3.\4.\5", CONV),
    (r"(repeat(?:_\d)?)_(\d+)/conv2d", r"\1.\2.conv2d", CONV),
    (r"fc", r"classif", DENSE),
)

WEIGHTS = {
    "inception_v3": Weights(V3_ROWS, ("fc", "AuxLogits.fc"), Images(342, 299, "bilinear", *HALVES)),
    "inception_v4": Weights(V4_ROWS, ("last_linear",), Images(341, 299, "bicubic", *HALVES)),
    "inception_resnet_v2": Weights(
        RESNET_V2_ROWS, ("classif",), Images(333, 299, "bicubic", *HALVES)
    ),
}
