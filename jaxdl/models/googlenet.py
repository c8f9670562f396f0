"""GoogLeNet, the first Inception network: as it is trained today, and as the paper has it.

    model = googlenet(num_classes=100, aux_logits=True)
    variables = model.init(jax.random.key(0), jnp.zeros([1, 224, 224, 3]), train=False)
    call = {"train": True, "rngs": {"dropout": key}, "mutable": ["batch_stats", "intermediates"]}
    logits, state = model.apply(variables, images, **call)
    (aux_logits1,), (aux_logits2,) = (state["intermediates"][f"aux_logits{i}"] for i in (1, 2))

Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke, Rabinovich, "Going Deeper with
Convolutions" (2014, arXiv:1409.4842).
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from jaxdl import InputError
from jaxdl.nn import (
    Convolution,
    LocalResponseNorm,
    ModuleDef,
    Normed,
    adaptive_avg_pool,
    check_image_size,
    flatten,
)
from jaxdl.pooling import avg_pool, max_pool
from jaxdl.published import CONV, DENSE, HALVES, TORCHVISION, Images, Published, Rows, Weights

he_normal = nn.initializers.he_normal()

# What the loss of each auxiliary head counts beside that of the network (section 5 of the paper).
AUX_WEIGHT = 0.3


class Features(NamedTuple):
    """A row of the paper's Table 1: the features of an Inception module's six convolutions."""

    conv1x1: int
    conv3x3_reduce: int
    conv3x3: int
    conv5x5_reduce: int
    conv5x5: int
    pool_proj: int


INCEPTION3 = {
    "inception3a": Features(64, 96, 128, 16, 32, 32),
    "inception3b": Features(128, 128, 192, 32, 96, 64),
}
INCEPTION4 = {
    "inception4a": Features(192, 96, 208, 16, 48, 64),
    "inception4b": Features(160, 112, 224, 24, 64, 64),
    "inception4c": Features(128, 128, 256, 24, 64, 64),
    "inception4d": Features(112, 144, 288, 32, 64, 64),
    "inception4e": Features(256, 160, 320, 32, 128, 128),
}
INCEPTION5 = {
    "inception5a": Features(256, 160, 320, 32, 128, 128),
    "inception5b": Features(384, 192, 384, 48, 128, 128),
}

BRANCHES = ("1x1", "3x3", "5x5", "pool")
"""Of a module, in the order of their features."""

# The modules that an auxiliary head follows.
AUX_HEADS = {"inception4a": 1, "inception4d": 2}


def ceil_max_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Return the maxima of windows that may reach beyond the last row and column, but not start so.

    This is the `ceil_mode` of torch and the way of Caffe. At the paper's sizes 'SAME' does the
    same; at odd ones it would pad before the first pixel too.
    """
    padding = [(0, (size - side) % stride) for side in x.shape[1:3]]
    return max_pool(x, (size, size), (stride, stride), padding)


class BasicConv(nn.Module):
    """A convolution that keeps height and width but for its stride, batch norm if any, and relu."""

    features: int
    size: int
    conv: ModuleDef
    norm: ModuleDef | None
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layers."""
        size = (self.size, self.size)
        padding = self.size // 2
        x = self.conv(self.features, size, strides=self.stride, padding=padding, name="conv")(x)
        if self.norm is not None:
            x = self.norm(name="bn")(x)
        return nn.relu(x)


class Inception(nn.Module):
    """The Inception module: 1x1, 3x3 and 5x5 convolutions and a max pool side by side.

    1x1 convolutions reduce the features before the 3x3 and 5x5 and project those of the pool.

    Args:
      features: features of the six convolutions.
      conv5x5_size: size of the kernels of the third branch.
      basic_conv: makes a `BasicConv` of so many features, of a size and of a name.
      branches: those of `BRANCHES` that it has.

    Shapes: [B, H, W, C] to [B, H, W, F], where F is the sum of the branches' features, of all four
    conv1x1 + conv3x3 + conv5x5 + pool_proj.
    """

    features: Features
    conv5x5_size: int
    basic_conv: ModuleDef
    branches: tuple[str, ...] = BRANCHES

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the module."""
        f, found = self.features, []
        if "1x1" in self.branches:
            found.append(self.basic_conv(f.conv1x1, 1, name="branch1")(x))
        if "3x3" in self.branches:
            y = self.basic_conv(f.conv3x3_reduce, 1, name="branch2_0")(x)
            found.append(self.basic_conv(f.conv3x3, 3, name="branch2_1")(y))
        if "5x5" in self.branches:
            y = self.basic_conv(f.conv5x5_reduce, 1, name="branch3_0")(x)
            found.append(self.basic_conv(f.conv5x5, self.conv5x5_size, name="branch3_1")(y))
        if "pool" in self.branches:
            y = max_pool(x, (3, 3), padding="SAME")
            found.append(self.basic_conv(f.pool_proj, 1, name="branch4_1")(y))
        return jnp.concatenate(found, axis=-1)


class AuxHead(nn.Module):
    """A classifier on the maps in mid-network, which brings gradients there during training.

    Shapes: [B, 4, 4, C] to [B, num_classes].
    """

    num_classes: int
    fc1_features: int
    dropout: float
    basic_conv: ModuleDef
    dense: ModuleDef

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return the auxiliary logits."""
        x = self.basic_conv(128, 1, name="conv")(x)
        x = nn.relu(self.dense(self.fc1_features, name="fc1")(flatten(x)))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return self.dense(self.num_classes, name="fc2")(x)


class GoogLeNet(Normed):
    """GoogLeNet: a stem, nine Inception modules in three stages, global average, linear layer.

    In the paper's network the convolutions have biases, local response normalization stands in the
    stem, and the auxiliary heads average windows of 5x5 every 3 pixels. In torchvision's, whose
    published weights fit, every convolution has a batch norm in place of all that, 3x3 kernels
    stand where the paper has 5x5 (which was a slip, and stayed), the pool before the last stage
    has windows of 2x2 in place of 3x3, and the heads average over a grid of 4x4 whatever the size.

    Departures: the paper says nothing of how weights start, and they are drawn as in He et al.
    (2015, arXiv:1502.01852), those of linear layers as Flax does; nor of the constants of local
    response normalization, which are those of the BVLC's Caffe model.

    Layers bear torchvision's names, the index of a sequence after an underscore:
    `inception3a/branch2_1/conv`, `aux1/fc1`, `fc`.

    Args:
      paper: the paper's network, or torchvision's.
      num_classes: number of logits; with 0 the `features` are returned instead, float32.
      aux_logits: whether it has the two auxiliary heads. Their parameters are made by `init`;
        they are computed in training only.
      small_images: give every layer of the stem a stride of 1. A 32x32 image then meets the
        Inception modules as 28x28 maps, as one of 224x224 does with the strides, where else 4x4
        would be left of it. No parameter changes.
      width: multiplies the features of every layer, to the nearest integer above zero.
      branches: those of `BRANCHES` that Inception modules have, to see what each brings.
      dropout: rate of the dropout before `fc`.
      aux_dropout: rate of the dropout before the last layer of an auxiliary head.
      dtype, param_dtype, norm_momentum, norm_epsilon, axis_name: see `jaxdl.nn.Normed`.

    Shapes: images [B, H, W, C] to float32 logits [B, num_classes]. The smallest are 15x15, and 6x6
    as `small_images`; in the paper's network 31x31 and 14x14. Its auxiliary heads have weights for
    maps of 4x4, which sides of 223 to 270 lead to, and of 32 to 37 as `small_images`. Other images
    raise InputError.

    State: `params`, and with batch norms `batch_stats` which training updates. Dropout draws from
    the stream `dropout` in training. Sows in `intermediates` the output of the stem and of each
    stage, `stem` and `inception3` to `inception5`; `features`, the pooled [B, F] before dropout;
    and in training, from the auxiliary heads, the float32 `aux_logits1` and `aux_logits2`
    [B, num_classes], for losses that count `AUX_WEIGHT` each.

    Raises:
      InputError: images of other sizes, or branches that there are not.

    Parameters at the defaults: 6,624,904 for `googlenet`, 6,998,552 for `googlenet_paper`, and
    13,004,888 and 13,378,280 with auxiliary heads.
    """

    paper: bool
    _: dataclasses.KW_ONLY
    num_classes: int = 1000
    aux_logits: bool = False
    small_images: bool = False
    width: float = 1.0
    branches: tuple[str, ...] = BRANCHES
    dropout: float = 0.2
    aux_dropout: float = 0.7
    norm_epsilon: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse branches that there are not."""
        if not self.branches or not set(self.branches) <= set(BRANCHES):
            raise InputError(f"branches={self.branches}: expected some of {', '.join(BRANCHES)}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return the logits of a batch of images."""
        use_aux = self.aux_logits and self.num_classes > 0 and (train or self.is_initializing())
        self.check_image_size(x, use_aux)

        conv: ModuleDef = partial(
            Convolution, use_bias=self.paper, kernel_init=he_normal, **self.types
        )
        norm = self.norm(train)
        dense: ModuleDef = partial(nn.Dense, **self.types)

        def scaled(features: int) -> int:
            return max(1, round(self.width * features))

        def basic_conv(features: int, size: int, **kwargs: Any) -> BasicConv:
            return BasicConv(scaled(features), size, conv, None if self.paper else norm, **kwargs)

        def inception(features: Features, name: str) -> Inception:
            size = 5 if self.paper else 3
            return Inception(features, size, basic_conv, self.branches, name=name)

        def aux_head(name: str) -> AuxHead:
            fc1 = scaled(1024)
            return AuxHead(self.num_classes, fc1, self.aux_dropout, basic_conv, dense, name=name)

        local_norm = LocalResponseNorm(5) if self.paper else lambda x: x
        stride = 1 if self.small_images else 2

        x = basic_conv(64, 7, stride=stride, name="conv1")(x)
        x = local_norm(ceil_max_pool(x, 3, stride))
        x = basic_conv(64, 1, name="conv2")(x)
        x = local_norm(basic_conv(192, 3, name="conv3")(x))
        x = ceil_max_pool(x, 3, stride)
        self.sow("intermediates", "stem", x)

        for name, features in INCEPTION3.items():
            x = inception(features, name)(x)
        self.sow("intermediates", "inception3", x)

        x = ceil_max_pool(x, 3, 2)
        for name, features in INCEPTION4.items():
            x = inception(features, name)(x)
            if use_aux and name in AUX_HEADS:
                i = AUX_HEADS[name]
                maps = avg_pool(x, (5, 5), (3, 3)) if self.paper else adaptive_avg_pool(x, (4, 4))
                aux_logits = aux_head(f"aux{i}")(maps, train=train)
                self.sow("intermediates", f"aux_logits{i}", aux_logits.astype(jnp.float32))
        self.sow("intermediates", "inception4", x)

        x = ceil_max_pool(x, 3 if self.paper else 2, 2)
        for name, features in INCEPTION5.items():
            x = inception(features, name)(x)
        self.sow("intermediates", "inception5", x)

        x = x.mean(axis=(1, 2))
        self.sow("intermediates", "features", x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = dense(self.num_classes, name="fc")(x) if self.num_classes else x
        return x.astype(jnp.float32)

    def check_image_size(self, images: jax.Array, use_aux: bool) -> None:
        """Raise InputError for images that a pool would leave nothing of, or that no head fits."""
        if self.paper:
            check_image_size(self, images, 14 if self.small_images else 31, 14)
        else:
            check_image_size(self, images, 6 if self.small_images else 15, 6)
        if self.paper and use_aux:
            low, high = (32, 37) if self.small_images else (223, 270)
            height, width = images.shape[1:3]
            if not low <= min(height, width) <= max(height, width) <= high:
                hint = "" if self.small_images else "; with small_images=True of 32 to 37"
                raise InputError(
                    f"the paper's auxiliary heads take images of sides {low} to {high}, "
                    f"not {height}x{width}{hint}"
                )


googlenet = partial(GoogLeNet, False)


def googlenet_paper(
    *,
    num_classes: int = 1000,
    aux_logits: bool = False,
    small_images: bool = False,
    width: float = 1.0,
    branches: tuple[str, ...] = BRANCHES,
    dropout: float = 0.4,
    aux_dropout: float = 0.7,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
) -> GoogLeNet:
    """Return the paper's `GoogLeNet`: no batch norms, nor the arguments that are theirs."""
    return GoogLeNet(
        paper=True,
        num_classes=num_classes,
        aux_logits=aux_logits,
        small_images=small_images,
        width=width,
        branches=branches,
        dropout=dropout,
        aux_dropout=aux_dropout,
        dtype=dtype,
        param_dtype=param_dtype,
    )


MODELS = {"googlenet": googlenet, "googlenet_paper": googlenet_paper}
IMAGE_SHAPES = dict.fromkeys(MODELS, (224, 224, 3))
PUBLISHED = {
    "googlenet": Published(6_624_904, 1.498e9, TORCHVISION),
    "googlenet_paper": Published(None, 1.5e9, "Szegedy et al. 2014, the budget in section 1"),
}

# Every convolution has a norm; one row stands for both.
ROWS: Rows = (
    (r"conv(\d)/(conv|bn)", r"conv\1.\2", CONV),
    (r"(inception\w+)/branch1/(conv|bn)", r"\1.branch1.\2", CONV),
    (r"(inception\w+)/branch(\d)_(\d)/(conv|bn)", r"\1.branch\2.\3.\4", CONV),
    (r"aux(\d)/conv/(conv|bn)", r"aux\1.conv.\2", CONV),
    (r"aux(\d)/fc1", r"aux\1.fc1", DENSE),
    (r"aux(\d)/fc2", r"aux\1.fc2", DENSE),
    (r"fc", r"fc", DENSE),
)

# torchvision's code takes images normalized by ImageNet's mean and deviation and normalizes them
# over by the halves that the weights were trained with (`transform_input`). Here the halves are
# applied at once.
WEIGHTS = {
    "googlenet": Weights(
        ROWS, ("fc", "aux1.fc2", "aux2.fc2"), Images(256, 224, "bilinear", *HALVES)
    ),
}
