"""Inception v2 (BN-Inception), v3, v4 and Inception-ResNet v2.

Each network is a table at the end of this file, of stages, the layers and modules of a stage, the
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

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import freeze
from flax.typing import Dtype

from jaxdl.nn import check_image_size

# Makes a layer of which all but the sizes and the name is already set.
ModuleDef = Callable[..., Any]

he_normal = nn.initializers.he_normal()

# What the loss of v3's auxiliary head counts beside that of the network, in torchvision's reference
# training. The paper does not say.
AUX_WEIGHT = 0.4


class Conv(NamedTuple):
    """A convolution without bias, a batch norm and a relu."""

    features: int
    size: int | tuple[int, int] = 1
    stride: int = 1
    padded: bool = True  # by half the kernel, which at stride 1 keeps height and width


class Split(NamedTuple):
    """Two convolutions of the same maps, their outputs concatenated."""

    a: Conv
    b: Conv


class Depthwise(NamedTuple):
    """A padded convolution of each map on its own into `multiplier` maps, and nothing after it."""

    multiplier: int
    size: int
    stride: int


class Pool(NamedTuple):
    """A pool with windows of 3x3."""

    kind: str  # "max" or "avg"
    stride: int = 1
    padded: bool = True  # by a pixel on every side
    count_include_pad: bool = False  # in the averages, as zeros


Branch: TypeAlias = tuple[Conv | Split | Pool, ...]


class Mixed(NamedTuple):
    """An Inception module: branches side by side, their outputs concatenated.

    With a `residual_scale` it is residual, `relu(x + residual_scale * conv2d(concatenated))`, where
    `conv2d` is linear, 1x1 and brings the branches to the features of `x`.
    """

    branches: tuple[tuple[str, Branch], ...]
    residual_scale: float | None = None
    residual_relu: bool = True


Stage: TypeAlias = Mapping[str, Conv | Depthwise | Pool | Mixed]


def mixed(**branches: Branch) -> Mixed:
    """Return the module of these branches."""
    return Mixed(tuple(branches.items()))


def residual(scale: float, **branches: Branch) -> Mixed:
    """Return the residual module of these branches."""
    return Mixed(tuple(branches.items()), scale)


def pool(spec: Pool, x: jax.Array) -> jax.Array:
    """Apply the pool."""
    strides = (spec.stride, spec.stride)
    padding: Any = [(1, 1), (1, 1)] if spec.padded else "VALID"  # flax's annotation says str
    if spec.kind == "max":
        return nn.max_pool(x, (3, 3), strides, padding)
    return nn.avg_pool(x, (3, 3), strides, padding, spec.count_include_pad)


def depthwise(spec: Depthwise, conv: ModuleDef, x: jax.Array, name: str) -> jax.Array:
    """Apply the convolution, which `conv` makes."""
    multiplier, size, stride = spec
    maps = x.shape[-1]
    layout = {"strides": stride, "padding": size // 2, "feature_group_count": maps}
    return conv(maps * multiplier, (size, size), name=name, **layout)(x)


class ConvNorm(nn.Module):
    """The layers of a `Conv`, its features multiplied by `width`."""

    spec: Conv
    width: float
    conv: ModuleDef
    norm: ModuleDef

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layers."""
        features, size, stride, padded = self.spec
        features = max(1, round(self.width * features))
        size = (size, size) if isinstance(size, int) else size
        padding = [(side // 2, side // 2) for side in size] if padded else "VALID"
        x = self.conv(features, size, strides=stride, padding=padding, name="conv")(x)
        return nn.relu(self.norm(name="bn")(x))


class MixedBlock(nn.Module):
    """The layers of a `Mixed`.

    The convolutions of a branch are numbered after its name if there is more than one, and those of
    a `Split` lettered: `branch1`, `branch2_0`, `branch2_1a`, `branch2_1b`. Pools are not counted.

    Args:
        spec: the row of the table.
        first: number of a branch's first convolution.
        conv, conv_norm: make a convolution, and a `ConvNorm` of a `Conv`.

    Shapes: [B, H, W, C] to [B, H', W', F], H and W but for strides and for what is not padded.
    """

    spec: Mixed
    first: int
    conv: ModuleDef
    conv_norm: ModuleDef

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the module."""
        branches, scale, relu = self.spec
        y = jnp.concatenate([self.run(*branch, x) for branch in branches], axis=-1)
        if scale is None:
            return y
        y = x + scale * self.conv(x.shape[-1], (1, 1), use_bias=True, name="conv2d")(y)
        return nn.relu(y) if relu else y

    def run(self, name: str, branch: Branch, x: jax.Array) -> jax.Array:
        """Return the output of one branch."""
        convs = [spec for spec in branch if not isinstance(spec, Pool)]
        numbers = iter(range(self.first, self.first + len(convs)))
        for spec in branch:
            if isinstance(spec, Pool):
                x = pool(spec, x)
                continue
            number = next(numbers)
            label = f"{name}_{number}" if len(convs) > 1 else name
            if isinstance(spec, Split):
                a = self.conv_norm(spec.a, name=f"{label}a")(x)
                b = self.conv_norm(spec.b, name=f"{label}b")(x)
                x = jnp.concatenate([a, b], axis=-1)
            else:
                x = self.conv_norm(spec, name=label)(x)
        return x


class AuxHead(nn.Module):
    """The auxiliary classifier of v3, on the maps before the last reduction.

    Shapes: [B, H, W, C] to [B, num_classes], of at least 5x5 after the pool if there is one.
    """

    num_classes: int
    pooled: bool
    conv_norm: ModuleDef
    dense: ModuleDef

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the auxiliary logits."""
        if self.pooled:
            x = nn.avg_pool(x, (5, 5), (3, 3))
        x = self.conv_norm(Conv(128), name="conv0")(x)
        x = self.conv_norm(Conv(768, 5, padded=False), name="conv1")(x)
        return self.dense(self.num_classes, name="fc")(x.mean(axis=(1, 2)))


class Inception(nn.Module):
    """An Inception network: the stages of a table, global average, dropout, linear layer.

    Every convolution has a batch norm. Weights are drawn as in He et al. (2015, arXiv:1502.01852),
    those of linear layers as Flax does.

    Args:
        stages: the table, frozen: a module has to be hashable.
        first: number of a branch's first convolution, 1 in torchvision's names and 0 in timm's.
        smallest: pixels on a side of the smallest image that the stages leave something of, and the
            same with `small_images`.
        aux_smallest: both for the auxiliary head after stage `Mixed_6`, or None for none. The
            parameters of the head are made by `init`; it is computed in training only.
        num_classes: number of logits; with 0 the `features` are returned instead, float32.
        small_images: the table is that for small images, and the auxiliary head does not pool.
        width: multiplies the features of every convolution, to the nearest integer above zero.
        dropout: rate of the dropout before the linear layer.
        dtype, param_dtype: the compute type, and the type parameters are stored in. Batch
            statistics are float32.
        norm_momentum, norm_epsilon: of the batch norms: the share of the running statistics that
            stays at each update (torch calls the rest momentum), and what is added to a variance.
        axis_name: mapped axis (of `pmap`, `vmap` or `shard_map`) over which the batch norms average
            their statistics in training; None under plain `jit`, sharded or not.

    Shapes: images [B, H, W, C] to float32 logits [B, num_classes]. Smaller ones than the smallest
    raise InputError.

    State: `params`, and `batch_stats` which training updates. Dropout draws from the stream
    `dropout` in training. Sows in `intermediates` the output of each stage by its name, `features`,
    the pooled [B, F] before dropout, and in training, from an auxiliary head, the float32
    `aux_logits` [B, num_classes], for a loss that counts `AUX_WEIGHT`.
    """

    stages: Mapping[str, Stage]
    first: int
    smallest: tuple[int, int]
    aux_smallest: tuple[int, int] | None
    num_classes: int
    small_images: bool
    width: float
    dropout: float
    norm_momentum: float
    norm_epsilon: float
    dtype: Dtype
    param_dtype: Dtype
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return the logits of a batch of images."""
        check_image_size(self, x, self.smallest[self.small_images], self.smallest[1])
        use_aux = self.num_classes > 0 and (train or self.is_initializing())
        aux_smallest = self.aux_smallest if use_aux else None
        if aux_smallest is not None:
            least = aux_smallest[self.small_images]
            check_image_size(self, x, least, aux_smallest[1], "the auxiliary head of ")

        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv: ModuleDef = partial(nn.Conv, use_bias=False, kernel_init=he_normal, **types)
        norm: ModuleDef = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=self.norm_momentum,
            epsilon=self.norm_epsilon,
            axis_name=self.axis_name,
            **types,
        )
        dense: ModuleDef = partial(nn.Dense, **types)
        conv_norm: ModuleDef = partial(ConvNorm, width=self.width, conv=conv, norm=norm)
        block: ModuleDef = partial(MixedBlock, first=self.first, conv=conv, conv_norm=conv_norm)

        for stage, layers in self.stages.items():
            for name, spec in layers.items():
                match spec:
                    case Conv():
                        x = conv_norm(spec, name=name)(x)
                    case Depthwise():
                        x = depthwise(spec, conv, x, name)
                    case Pool():
                        x = pool(spec, x)
                    case Mixed():
                        x = block(spec, name=name)(x)
            self.sow("intermediates", stage, x)
            if aux_smallest is not None and stage == "Mixed_6":
                pooled = not self.small_images
                head = AuxHead(self.num_classes, pooled, conv_norm, dense, name="AuxLogits")
                self.sow("intermediates", "aux_logits", head(x).astype(jnp.float32))

        x = x.mean(axis=(1, 2))
        self.sow("intermediates", "features", x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = dense(self.num_classes, name="fc")(x) if self.num_classes else x
        return x.astype(jnp.float32)


# Layers of the tables. What halves height and width has no padding, as `valid` has none.
valid = partial(Conv, padded=False)
halve = partial(Conv, size=3, stride=2, padded=False)
MAX_HALVE = Pool("max", stride=2, padded=False)
AVG = Pool("avg")


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

AVG_OF_PADDED = Pool("avg", count_include_pad=True)


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
    """Return the table of Inception v3."""
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


# Pixels on a side of the smallest images that convolutions without padding leave something of: with
# strides of 2 in the stem, and with strides of 1. Inception v2 pads, so that something is left of
# any; its smallest are those of which every stride of 2 has two pixels to take one of.
SMALLEST = (75, 17)
SMALLEST_V2 = (17, 3)


def inception(
    stages: Callable[[int], dict[str, Stage]],
    first: int,
    smallest: tuple[int, int],
    /,
    *,
    num_classes: int = 1000,
    small_images: bool = False,
    width: float = 1.0,
    dropout: float = 0.2,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-3,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> Inception:
    """Return Inception v2, v4 or Inception-ResNet v2; none has an auxiliary head.

    Args:
        small_images: give every layer of the stem a stride of 1, so that a 32x32 image has maps of
            22x22, 10x10 and 4x4 in the three stages (of 32x32, 16x16 and 8x8 in v2), where else
            nothing (1x1) would be left of it. No parameter changes.
        num_classes, width, dropout, norm_momentum, norm_epsilon, dtype, param_dtype, axis_name:
            see `Inception`. The rate of `inception_v2` is 0, since its paper removes dropout.

    Images are at least 75x75, as `small_images` 17x17; for `inception_v2` 17x17 and 3x3.
    Parameters at the defaults: 11,188,288 for `inception_v2`, 42,679,816 for `inception_v4` and
    55,843,464 for `inception_resnet_v2`.
    """
    return Inception(
        stages=freeze(stages(1 if small_images else 2)),
        first=first,
        smallest=smallest,
        aux_smallest=None,
        num_classes=num_classes,
        small_images=small_images,
        width=width,
        dropout=dropout,
        norm_momentum=norm_momentum,
        norm_epsilon=norm_epsilon,
        dtype=dtype,
        param_dtype=param_dtype,
        axis_name=axis_name,
    )


def inception_v3(
    *,
    num_classes: int = 1000,
    aux_logits: bool = False,
    small_images: bool = False,
    width: float = 1.0,
    dropout: float = 0.5,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-3,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> Inception:
    """Return Inception v3, as torchvision has it.

    Departures, which are those of the published weights: the stem is that of the authors'
    TensorFlow model and not of the paper's Table 1, the first modules keep a 5x5 convolution, and
    average pools count the zeros that they pad with.

    Args:
        aux_logits: whether it has the auxiliary head of `Inception`.
        small_images: give the layers of the stem a stride of 1, so that a 32x32 image has maps of
            22x22, 10x10 and 4x4 in the three stages, as one of 299x299 has of 35x35, 17x17 and 8x8
            with the strides, and leave out the pool of the auxiliary head. No parameter changes.
        num_classes, width, dropout, norm_momentum, norm_epsilon, dtype, param_dtype, axis_name:
            see `Inception`.

    Images are at least 75x75, and 299x299 to train or initialize with the auxiliary head; as
    `small_images` 17x17 and 21x21. Parameters at the defaults: 23,834,568, and 27,161,264 with the
    auxiliary head.
    """
    return Inception(
        stages=freeze(v3_stages(1 if small_images else 2)),
        first=1,
        smallest=SMALLEST,
        aux_smallest=(299, 21) if aux_logits else None,
        num_classes=num_classes,
        small_images=small_images,
        width=width,
        dropout=dropout,
        norm_momentum=norm_momentum,
        norm_epsilon=norm_epsilon,
        dtype=dtype,
        param_dtype=param_dtype,
        axis_name=axis_name,
    )


inception_v2 = partial(inception, v2_stages, 0, SMALLEST_V2, dropout=0.0)
inception_v4 = partial(inception, v4_stages, 0, SMALLEST)
inception_resnet_v2 = partial(inception, resnet_v2_stages, 0, SMALLEST)
