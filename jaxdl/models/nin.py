"""Network in Network: small perceptrons in place of convolutions, and a mean as the classifier.

    model = nin_cifar(num_classes=10)
    variables = model.init(jax.random.key(0), jnp.zeros([1, 32, 32, 3]), train=False)
    logits = model.apply(variables, images, train=True, rngs={"dropout": key})

Layers bear the names of the authors' own models for cuda-convnet and Caffe: `conv1` to `conv4`, and
`cccp1` to `cccp8` for the 1x1 convolutions, two after each ("cascaded cross-channel pooling").

Lin, Chen, Yan, "Network In Network" (2013, arXiv:1312.4400).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl import pooling
from jaxdl.nn import Convolution, ModuleDef, Typed, check_image_size

he_normal = nn.initializers.he_normal()

# Caffe and cuda-convnet round the size of a pooled map up, which sets the last window of an even
# side one pixel beyond it. That pixel counts neither in a maximum nor in a mean.
beyond = ((0, 1), (0, 1))
max_pool = partial(pooling.max_pool, window_shape=(3, 3), strides=(2, 2), padding=beyond)
avg_pool = partial(
    pooling.avg_pool, window_shape=(3, 3), strides=(2, 2), padding=beyond, count_include_pad=False
)


class MLPConv(NamedTuple):
    """A convolution and 1x1 convolutions after it: a perceptron that is moved over the image."""

    features: tuple[int, ...]  # of the convolution, and of each layer on top of it
    size: int
    stride: int
    padding: int
    pool: Callable[[jax.Array], jax.Array] | None = None
    dropout: bool = False  # after the pool


class NIN(Typed):
    """A stack of mlpconvs; the means of its last maps, one map for each class, are the logits.

    Every convolution is followed by a relu, the last one too, so that no logit is negative.
    Departure: weights are drawn as in He et al. (2015, arXiv:1502.01852).

    Args:
      stages: (width, small_images) -> the mlpconvs, the last without the layer of the classes.
      smallest: height and width of the smallest images of which the pools leave anything, and
        the same with `small_images`.
      small_images: fit the network to images of about 32x32 instead of 224x224: `conv1` is 5x5
        with stride 1 instead of 11x11 with stride 4. Features stay as they are.
      num_classes: number of logits; with 0 the `features` are returned instead, float32.
      width: features of `conv1`; those of the other layers are in proportion.
      dropout: rate of the dropouts.
      dtype, param_dtype: see `jaxdl.nn.Typed`.

    Shapes: images [B, H, W, C] of at least 39x39, with `small_images` 8x8 and of `nin_cifar` 4x4,
    to float32 logits [B, num_classes]. Smaller images raise InputError.

    State: `params`. Dropout draws from the stream `dropout` in training. Sows in `intermediates`
    `relu1` to the last, the maps of each of `stages`; `features`, the means [B, F] of the last of
    them; and `class_maps` [B, h, w, num_classes], whose means are the logits.

    Parameters at the defaults: 7,595,176 for `nin` and 966,986 for `nin_cifar`.
    """

    stages: Callable[[int, bool], tuple[MLPConv, ...]]
    smallest: tuple[int, int]
    small_images: bool = False
    _: dataclasses.KW_ONLY
    num_classes: int = 1000
    width: int = 96
    dropout: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return the logits of a batch of images."""
        check_image_size(self, x, self.smallest[self.small_images], self.smallest[1])
        conv: ModuleDef = partial(Convolution, kernel_init=he_normal, **self.types)

        cccp = 1
        for i, stage in enumerate(self.stages(self.width, self.small_images), start=1):
            features, *layers = stage.features
            size = (stage.size, stage.size)
            x = conv(features, size, stage.stride, stage.padding, name=f"conv{i}")(x)
            for features in layers:
                x = conv(features, (1, 1), name=f"cccp{cccp}")(nn.relu(x))
                cccp += 1
            x = nn.relu(x)
            self.sow("intermediates", f"relu{i}", x)
            if stage.pool is not None:
                x = stage.pool(x)
            if stage.dropout:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)

        pooled = x.mean(axis=(1, 2))
        self.sow("intermediates", "features", pooled)
        if not self.num_classes:
            return pooled.astype(jnp.float32)
        x = nn.relu(conv(self.num_classes, (1, 1), name=f"cccp{cccp}")(x))
        self.sow("intermediates", "class_maps", x)
        return x.astype(jnp.float32).mean(axis=(1, 2))


def imagenet_stages(width: int, small_images: bool) -> tuple[MLPConv, ...]:
    """Return what the authors published for ImageNet, with dropout before the last mlpconv."""
    first = ((width,) * 3, 5, 1, 2) if small_images else ((width,) * 3, 11, 4, 0)
    second, third, fourth = (features * width // 96 for features in (256, 384, 1024))
    return (
        MLPConv(*first, pool=max_pool),
        MLPConv((second,) * 3, 5, 1, 2, pool=max_pool),
        MLPConv((third,) * 3, 3, 1, 1, pool=max_pool, dropout=True),
        MLPConv((fourth,) * 2, 3, 1, 1),
    )


def cifar_stages(width: int, small_images: bool) -> tuple[MLPConv, ...]:
    """Return what they published for CIFAR-10, with dropout before all mlpconvs but the first."""
    second, third = (features * width // 192 for features in (160, 96))
    return (
        MLPConv((width, second, third), 5, 1, 2, pool=max_pool, dropout=True),
        MLPConv((width,) * 3, 5, 1, 2, pool=avg_pool, dropout=True),
        MLPConv((width,) * 2, 3, 1, 1),
    )


nin = partial(NIN, imagenet_stages, (39, 8))
nin_cifar = partial(NIN, cifar_stages, (4, 4), False, num_classes=10, width=192)

MODELS = {"nin": nin, "nin_cifar": nin_cifar}
IMAGE_SHAPES = {"nin": (224, 224, 3), "nin_cifar": (32, 32, 3)}
