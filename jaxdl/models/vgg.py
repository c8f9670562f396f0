"""The networks of the Visual Geometry Group, every column of the paper's Table 1.

    model = vgg16_bn(num_classes=10, small_images=True)
    variables = model.init(jax.random.key(0), jnp.zeros([1, 32, 32, 3]), train=False)
    logits, state = model.apply(
        variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key}
    )

Layers bear the names by which they have been cited since: `conv3_2` is the second convolution of
the third stage, `bn3_2` its norm, and `fc6`, `fc7` and `fc8` follow the five stages. The numbers
in `vgg11` to `vgg19` count the layers with weights.

Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (2014,
arXiv:1409.1556).
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from jaxdl.nn import (
    Convolution,
    LocalResponseNorm,
    ModuleDef,
    Normed,
    adaptive_avg_pool,
    check_image_size,
    flatten,
)
from jaxdl.pooling import max_pool
from jaxdl.published import CONV, DENSE, NORM, TORCHVISION, Permutation, Published, Rows, Weights

he_normal = nn.initializers.he_normal()

# Table 1 of the paper, each network a column: conv3-64 is a 3x3 convolution of 64 features, and a
# dot no layer. Every column ends in the dense layers of 4096, 4096 and 1000.
TABLE_1 = """
A          A-LRN      B          C          D          E
conv3-64   conv3-64   conv3-64   conv3-64   conv3-64   conv3-64
.          LRN        conv3-64   conv3-64   conv3-64   conv3-64
maxpool    maxpool    maxpool    maxpool    maxpool    maxpool
conv3-128  conv3-128  conv3-128  conv3-128  conv3-128  conv3-128
.          .          conv3-128  conv3-128  conv3-128  conv3-128
maxpool    maxpool    maxpool    maxpool    maxpool    maxpool
conv3-256  conv3-256  conv3-256  conv3-256  conv3-256  conv3-256
conv3-256  conv3-256  conv3-256  conv3-256  conv3-256  conv3-256
.          .          .          conv1-256  conv3-256  conv3-256
.          .          .          .          .          conv3-256
maxpool    maxpool    maxpool    maxpool    maxpool    maxpool
conv3-512  conv3-512  conv3-512  conv3-512  conv3-512  conv3-512
conv3-512  conv3-512  conv3-512  conv3-512  conv3-512  conv3-512
.          .          .          conv1-512  conv3-512  conv3-512
.          .          .          .          .          conv3-512
maxpool    maxpool    maxpool    maxpool    maxpool    maxpool
conv3-512  conv3-512  conv3-512  conv3-512  conv3-512  conv3-512
conv3-512  conv3-512  conv3-512  conv3-512  conv3-512  conv3-512
.          .          .          conv1-512  conv3-512  conv3-512
.          .          .          .          .          conv3-512
maxpool    maxpool    maxpool    maxpool    maxpool    maxpool
"""

# The layers of each column, by its name.
COLUMNS = {
    name: tuple(layer for layer in layers if layer != ".")
    for name, *layers in zip(*map(str.split, TABLE_1.strip().splitlines()), strict=True)
}


class VGG(Normed):
    """One column of Table 1, with or without batch normalization.

    Departure: weights are drawn as in He et al. (2015, arXiv:1502.01852), with which the deep
    columns train from the start; the paper trained column A first and took its layers over.

    Args:
      column: its name in the table, "A" to "E".
      batch_norm: a norm between each convolution and its relu, as in torchvision's `_bn`; the
        convolutions keep their biases.
      num_classes: number of logits; with 0 the `features` are returned instead, float32.
      width: features of `conv1_1`, 64 in the paper; those of all other layers are in proportion.
      dropout: rate of the dropout after `fc6` and after `fc7`.
      small_images: fit the network to images of about 32x32 instead of 224x224: `fc6` sees the
        mean of the last map, which five pools leave of 32x32, instead of 7x7 means. Stages and
        features stay as they are.
      dtype, param_dtype, norm_momentum, norm_epsilon, axis_name: see `jaxdl.nn.Normed`.

    Shapes: images [B, H, W, C] of at least 32x32 to float32 logits [B, num_classes]. Sizes whose
    last map is not what `fc6` sees are pooled to it adaptively. Smaller images raise InputError.

    State: `params`, and with batch norm `batch_stats` which training updates. Dropout draws from
    the stream `dropout` in training. Sows in `intermediates` `relu1` to `relu5`, the last map of
    each stage before its pool, and `features`, the [B, F] that go into `fc8`.

    Parameters at the defaults: 132,863,336 for `vgg11` and `vgg11_lrn`, 133,047,848 for 13,
    133,638,952 for `vgg16_c`, 138,357,544 for 16 and 143,667,240 for 19; 132,868,840 for
    `vgg11_bn`, 133,053,736 for 13, 138,365,992 for 16 and 143,678,248 for 19. `vgg16` on CIFAR-10,
    with `num_classes=10, small_images=True`, has 33,638,218.
    """

    column: str
    batch_norm: bool
    _: dataclasses.KW_ONLY
    num_classes: int = 1000
    width: int = 64
    dropout: float = 0.5
    small_images: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return the logits of a batch of images."""
        check_image_size(self, x, 32)
        conv: ModuleDef = partial(Convolution, kernel_init=he_normal, **self.types)
        dense: ModuleDef = partial(nn.Dense, kernel_init=he_normal, **self.types)
        dropout: ModuleDef = partial(nn.Dropout, self.dropout, deterministic=not train)
        norm = self.norm(train)

        stage, i = 1, 1
        for layer in COLUMNS[self.column]:
            if layer == "maxpool":
                self.sow("intermediates", f"relu{stage}", x)
                x = max_pool(x, (2, 2), (2, 2))
                stage, i = stage + 1, 1
            elif layer == "LRN":
                # As in AlexNet, whose alpha=1e-4 is not divided by the size as torch's is.
                x = LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)(x)
            else:
                size, features = map(int, layer.removeprefix("conv").split("-"))
                features = features * self.width // 64
                x = conv(features, (size, size), padding=size // 2, name=f"conv{stage}_{i}")(x)
                if self.batch_norm:
                    x = norm(name=f"bn{stage}_{i}")(x)
                x = nn.relu(x)
                i += 1

        x = flatten(adaptive_avg_pool(x, (1, 1) if self.small_images else (7, 7)))
        x = dropout()(nn.relu(dense(64 * self.width, name="fc6")(x)))
        x = dropout()(nn.relu(dense(64 * self.width, name="fc7")(x)))
        self.sow("intermediates", "features", x)
        x = dense(self.num_classes, name="fc8")(x) if self.num_classes else x
        return x.astype(jnp.float32)


def vgg(
    column: str,
    /,
    *,
    num_classes: int = 1000,
    width: int = 64,
    dropout: float = 0.5,
    small_images: bool = False,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
) -> VGG:
    """Return a `VGG` without batch norms, and without the arguments that are theirs."""
    return VGG(
        column,
        batch_norm=False,
        num_classes=num_classes,
        width=width,
        dropout=dropout,
        small_images=small_images,
        dtype=dtype,
        param_dtype=param_dtype,
    )


vgg11 = partial(vgg, "A")
vgg11_lrn = partial(vgg, "A-LRN")
vgg13 = partial(vgg, "B")
vgg16_c = partial(vgg, "C")
vgg16 = partial(vgg, "D")
vgg19 = partial(vgg, "E")

vgg11_bn = partial(VGG, "A", True)
vgg13_bn = partial(VGG, "B", True)
vgg16_bn = partial(VGG, "D", True)
vgg19_bn = partial(VGG, "E", True)

MODELS = {
    "vgg11": vgg11,
    "vgg11_lrn": vgg11_lrn,
    "vgg13": vgg13,
    "vgg16_c": vgg16_c,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "vgg11_bn": vgg11_bn,
    "vgg13_bn": vgg13_bn,
    "vgg16_bn": vgg16_bn,
    "vgg19_bn": vgg19_bn,
}
IMAGE_SHAPES = dict.fromkeys(MODELS, (224, 224, 3))

TABLE_2 = "Simonyan and Zisserman 2014, Table 2"
PUBLISHED = {
    "vgg11": Published(132_863_336, 7.609e9, TORCHVISION),
    "vgg11_lrn": Published(133e6, None, TABLE_2),
    "vgg13": Published(133_047_848, 11.308e9, TORCHVISION),
    "vgg16": Published(138_357_544, 15.47e9, TORCHVISION),
    "vgg16_c": Published(134e6, None, TABLE_2),
    "vgg19": Published(143_667_240, 19.632e9, TORCHVISION),
    "vgg11_bn": Published(132_868_840, 7.609e9, TORCHVISION),
    "vgg13_bn": Published(133_053_736, 11.308e9, TORCHVISION),
    "vgg16_bn": Published(138_365_992, 15.47e9, TORCHVISION),
    "vgg19_bn": Published(143_678_248, 19.632e9, TORCHVISION),
}


def rows_of(column: str, batch_norm: bool) -> Rows:
    """Return where torchvision has the layers of one column of the paper's table.

    It numbers every layer from the first to the last, norms, relus and pools too.
    """
    rows: list[tuple[str, str, Permutation]] = []
    stage, i, place = 1, 1, 0
    for layer in COLUMNS[column]:
        if layer == "maxpool":
            stage, i, place = stage + 1, 1, place + 1
            continue
        rows.append((f"conv{stage}_{i}", f"features.{place}", CONV))
        if batch_norm:
            rows.append((f"bn{stage}_{i}", f"features.{place + 1}", NORM))
        i, place = i + 1, place + (3 if batch_norm else 2)
    return (
        *rows,
        ("fc6", "classifier.0", DENSE),
        ("fc7", "classifier.3", DENSE),
        ("fc8", "classifier.6", DENSE),
    )


WEIGHTS = {
    f"vgg{depth}{suffix}": Weights(rows_of(column, bool(suffix)), ("classifier.6",))
    for depth, column in {11: "A", 13: "B", 16: "D", 19: "E"}.items()
    for suffix in ("", "_bn")
}
