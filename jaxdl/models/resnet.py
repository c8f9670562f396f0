"""Residual networks, and the plain networks they were compared with.

Every network of the two papers is one row at the end of this file:

    model = resnet50(num_classes=100, dtype=jnp.bfloat16)
    variables = model.init(jax.random.key(0), jnp.zeros([1, 224, 224, 3]), train=False)
    logits = model.apply(variables, images, train=False)

A row binds what makes the network that network, and leaves the keyword arguments of the function
it is made from: `imagenet_resnet`, `imagenet_plain`, `cifar_resnet` or `cifar_plain`.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (2015, arXiv:1512.03385) and
"Identity Mappings in Deep Residual Networks" (2016, arXiv:1603.05027).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from jaxdl import InputError
from jaxdl.nn import check_image_size

# Makes a layer of which all but the sizes and the name is already set.
ModuleDef = Callable[..., Any]

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
            projects; None leaves out every shortcut, which makes the network plain.
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
        y = x
        for i, layer in enumerate(self.branch, start=1):
            is_last = i == len(self.branch)
            scale_init = zeros if is_last and self.zero_init_last else ones
            y = self.branch_conv(layer, name=f"conv{i}")(y)
            y = self.norm(scale_init=scale_init, name=f"bn{i}")(y)
            if not is_last:
                y = nn.relu(y)

        if self.shortcut is None:
            return nn.relu(y)
        if x.shape != y.shape and self.shortcut == "A":
            x = self.subsample(x, y.shape[-1])
        elif x.shape != y.shape:
            x = self.projection(y.shape[-1])(x)
            x = self.norm(name="downsample_bn")(x)
        return nn.relu(x + y)

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


class ResNet(nn.Module):
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
        imagenet_stem: whether the stem is that of the ImageNet networks.
        pre_activation: `PreActBlock`s instead of `Block`s.
        shortcut, zero_init_last: see `Block`.
        num_classes: number of logits; with 0 the `features` are returned instead, float32.
        width: features of the stem and of the first stage.
        dtype, param_dtype: the compute type, and the type parameters are stored in. Batch
            statistics are float32.
        norm_momentum, norm_epsilon: of the batch norms: the share of the running statistics that
            stays at each update (torch calls the rest momentum), and what is added to a variance.
        axis_name: mapped axis (of `pmap`, `vmap` or `shard_map`) over which the batch norms average
            their statistics in training; None under plain `jit`, sharded or not.

    Shapes: images [B, H, W, C] to float32 logits [B, num_classes]. They are at least 17x17, with
    the CIFAR stem and three stages 3x3: every layer of stride 2 then has two pixels to take one of.
    Smaller images raise InputError.

    State: `params`, and `batch_stats` which training updates. Draws no random numbers. Sows in
    `intermediates` the output of each stage, `layer1` to the last, and `features`, the pooled
    [B, F] that go into `fc`.
    """

    stage_sizes: tuple[int, ...]
    branch: tuple[Conv, ...]
    imagenet_stem: bool
    pre_activation: bool
    shortcut: str | None
    zero_init_last: bool
    num_classes: int
    width: int
    norm_momentum: float
    norm_epsilon: float
    dtype: Dtype
    param_dtype: Dtype
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return the logits of a batch of images."""
        stride = 2 ** (len(self.stage_sizes) - 1) * (4 if self.imagenet_stem else 1)
        check_image_size(self, x, stride // 2 + 1)
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
        block = partial(
            PreActBlock if self.pre_activation else Block,
            conv=conv,
            norm=norm,
            branch=self.branch,
            shortcut=self.shortcut,
            zero_init_last=self.zero_init_last,
        )

        if self.imagenet_stem:
            x = conv(self.width, (7, 7), strides=2, padding=3, name="conv1")(x)
        else:
            x = conv(self.width, (3, 3), padding=1, name="conv1")(x)
        if not self.pre_activation:
            x = nn.relu(norm(name="bn1")(x))
        if self.imagenet_stem:
            padding: Any = ((1, 1), (1, 1))  # flax takes such pairs, though its annotation says str
            x = nn.max_pool(x, (3, 3), (2, 2), padding)

        for i, num_blocks in enumerate(self.stage_sizes):
            for j in range(num_blocks):
                stride = 2 if i > 0 and j == 0 else 1
                name = f"layer{i + 1}_{j}"
                x = block(features=self.width * 2**i, stride=stride, name=name)(x)
            self.sow("intermediates", f"layer{i + 1}", x)

        if self.pre_activation:
            x = nn.relu(norm(name="bn")(x))
        x = x.mean(axis=(1, 2))
        self.sow("intermediates", "features", x)
        if self.num_classes:
            x = nn.Dense(self.num_classes, name="fc", **types)(x)
        return x.astype(jnp.float32)


def imagenet_resnet(
    stage_sizes: tuple[int, ...],
    branch: tuple[Conv, ...],
    pre_activation: bool,
    /,
    *,
    num_classes: int = 1000,
    width: int = 64,
    zero_init_last: bool = False,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> ResNet:
    """Return a `ResNet` in the ImageNet layout, with projections where the shape changes.

    `ResNet` describes the arguments.
    Parameters at the defaults: 11,689,512 for `resnet18`, 21,797,672 for 34, 25,557,032 for 50,
    44,549,160 for 101 and 60,192,808 for 152; 11,687,720 for `resnet18_v2`, 21,795,880 for 34,
    25,549,352 for 50, 44,541,480 for 101 and 60,185,128 for 152.
    """
    return ResNet(
        stage_sizes=stage_sizes,
        branch=branch,
        imagenet_stem=True,
        pre_activation=pre_activation,
        shortcut="B",
        zero_init_last=zero_init_last,
        num_classes=num_classes,
        width=width,
        norm_momentum=norm_momentum,
        norm_epsilon=norm_epsilon,
        dtype=dtype,
        param_dtype=param_dtype,
        axis_name=axis_name,
    )


def imagenet_plain(
    stage_sizes: tuple[int, ...],
    /,
    *,
    num_classes: int = 1000,
    width: int = 64,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> ResNet:
    """Return the network of basic blocks in the ImageNet layout without its shortcuts.

    It has no `zero_init_last`: a branch at zero with no shortcut beside it would let nothing pass.
    Parameters at the defaults: 11,515,688 for `plain18`, 21,623,848 for 34.
    """
    return ResNet(
        stage_sizes=stage_sizes,
        branch=BASIC,
        imagenet_stem=True,
        pre_activation=False,
        shortcut=None,
        zero_init_last=False,
        num_classes=num_classes,
        width=width,
        norm_momentum=norm_momentum,
        norm_epsilon=norm_epsilon,
        dtype=dtype,
        param_dtype=param_dtype,
        axis_name=axis_name,
    )


def cifar_resnet(
    num_blocks: int,
    pre_activation: bool,
    /,
    *,
    shortcut: str = "A",
    num_classes: int = 10,
    width: int = 16,
    zero_init_last: bool = False,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> ResNet:
    """Return a `ResNet` in the CIFAR layout: three stages of basic blocks, 6 num_blocks + 2 layers.

    The shortcuts are of the paper's kind "A", without parameters, or "B", with projections; any
    other raises InputError. Parameters at the defaults, of both versions: 269,722 for
    `resnet20_cifar`, 464,154 for 32, 658,586 for 44, 853,018 for 56 and 1,727,962 for 110;
    shortcut "B" adds 2,752 and in `_v2` 2,560.
    """
    if shortcut not in ("A", "B"):
        raise InputError(
            f"shortcut must be 'A' (zero padding) or 'B' (projection), not {shortcut!r}"
        )
    return ResNet(
        stage_sizes=(num_blocks,) * 3,
        branch=BASIC,
        imagenet_stem=False,
        pre_activation=pre_activation,
        shortcut=shortcut,
        zero_init_last=zero_init_last,
        num_classes=num_classes,
        width=width,
        norm_momentum=norm_momentum,
        norm_epsilon=norm_epsilon,
        dtype=dtype,
        param_dtype=param_dtype,
        axis_name=axis_name,
    )


def cifar_plain(
    num_blocks: int,
    /,
    *,
    num_classes: int = 10,
    width: int = 16,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> ResNet:
    """Return the network in the CIFAR layout without its shortcuts: 6 num_blocks + 2 layers.

    It has no `zero_init_last`, as `imagenet_plain`, and as many parameters as the residual network
    with shortcuts "A".
    """
    return ResNet(
        stage_sizes=(num_blocks,) * 3,
        branch=BASIC,
        imagenet_stem=False,
        pre_activation=False,
        shortcut=None,
        zero_init_last=False,
        num_classes=num_classes,
        width=width,
        norm_momentum=norm_momentum,
        norm_epsilon=norm_epsilon,
        dtype=dtype,
        param_dtype=param_dtype,
        axis_name=axis_name,
    )


resnet18 = partial(imagenet_resnet, (2, 2, 2, 2), BASIC, False)
resnet34 = partial(imagenet_resnet, (3, 4, 6, 3), BASIC, False)
resnet50 = partial(imagenet_resnet, (3, 4, 6, 3), BOTTLENECK, False)
resnet101 = partial(imagenet_resnet, (3, 4, 23, 3), BOTTLENECK, False)
resnet152 = partial(imagenet_resnet, (3, 8, 36, 3), BOTTLENECK, False)

resnet18_v2 = partial(imagenet_resnet, (2, 2, 2, 2), BASIC, True)
resnet34_v2 = partial(imagenet_resnet, (3, 4, 6, 3), BASIC, True)
resnet50_v2 = partial(imagenet_resnet, (3, 4, 6, 3), BOTTLENECK, True)
resnet101_v2 = partial(imagenet_resnet, (3, 4, 23, 3), BOTTLENECK, True)
resnet152_v2 = partial(imagenet_resnet, (3, 8, 36, 3), BOTTLENECK, True)

plain18 = partial(imagenet_plain, (2, 2, 2, 2))
plain34 = partial(imagenet_plain, (3, 4, 6, 3))

resnet20_cifar = partial(cifar_resnet, 3, False)
resnet32_cifar = partial(cifar_resnet, 5, False)
resnet44_cifar = partial(cifar_resnet, 7, False)
resnet56_cifar = partial(cifar_resnet, 9, False)
resnet110_cifar = partial(cifar_resnet, 18, False)

resnet20_cifar_v2 = partial(cifar_resnet, 3, True)
resnet32_cifar_v2 = partial(cifar_resnet, 5, True)
resnet44_cifar_v2 = partial(cifar_resnet, 7, True)
resnet56_cifar_v2 = partial(cifar_resnet, 9, True)
resnet110_cifar_v2 = partial(cifar_resnet, 18, True)

plain20_cifar = partial(cifar_plain, 3)
plain32_cifar = partial(cifar_plain, 5)
plain44_cifar = partial(cifar_plain, 7)
plain56_cifar = partial(cifar_plain, 9)
plain110_cifar = partial(cifar_plain, 18)
