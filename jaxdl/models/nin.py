"""Network in Network: small perceptrons in place of convolutions, and a mean as the classifier.

    model = nin_cifar(num_classes=10)
    variables = model.init(jax.random.key(0), jnp.zeros([1, 32, 32, 3]), train=False)
    logits = model.apply(variables, images, train=True, rngs={"dropout": key})

Layers bear the names of the authors' own models for cuda-convnet and Caffe: `conv1` to `conv4`, and
`cccp1` to `cccp8` for the 1x1 convolutions, two after each ("cascaded cross-channel pooling").

Lin, Chen, Yan, "Network In Network" (2013, arXiv:1312.4400).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from jaxdl.nn import check_image_size

# Makes a layer of which all but the sizes and the name is already set.
ModuleDef = Callable[..., Any]

he_normal = nn.initializers.he_normal()

# Caffe and cuda-convnet round the size of a pooled map up, which sets the last window of an even
# side one pixel beyond it. That pixel counts neither in a maximum nor in a mean.
beyond: Any = ((0, 1), (0, 1))  # flax takes such pairs, though its annotation says str
max_pool = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding=beyond)
avg_pool = partial(
    nn.avg_pool, window_shape=(3, 3), strides=(2, 2), padding=beyond, count_include_pad=False
)


class MLPConv(NamedTuple):
    """A convolution and 1x1 convolutions after it: a perceptron that is moved over the image."""

    features: tuple[int, ...]  # of the convolution, and of each layer on top of it
    size: int
    stride: int
    padding: int
    pool: Callable[[jax.Array], jax.Array] | None = None
    dropout: bool = False  # after the pool


class NIN(nn.Module):
    """A stack of mlpconvs; the means of its last maps, one map for each class, are the logits.

    Every convolution is followed by a relu, the last one too, so that no logit is negative.
    Departure: weights are drawn as in He et al. (2015, arXiv:1502.01852).

    Args:
        stages: the mlpconvs, the last one without the layer of the classes.
        smallest: height and width of the smallest images of which the pools leave anything, and
            the same of the network for small images.
        num_classes: number of logits; with 0 the `features` are returned instead, float32.
        dropout: rate of the dropouts.
        dtype, param_dtype: the compute type, and the type parameters are stored in.

    Shapes: images [B, H, W, C] of at least `smallest[0]` pixels each way to float32 logits
    [B, num_classes]. Smaller images raise InputError.

    State: `params`. Dropout draws from the stream `dropout` in training. Sows in `intermediates`
    `relu1` to the last, the maps of each of `stages`; `features`, the means [B, F] of the last of
    them; and `class_maps` [B, h, w, num_classes], whose means are the logits.
    """

    stages: tuple[MLPConv, ...]
    smallest: tuple[int, int]
    num_classes: int
    dropout: float
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return the logits of a batch of images."""
        check_image_size(self, x, *self.smallest)
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv: ModuleDef = partial(nn.Conv, kernel_init=he_normal, **types)

        cccp = 1
        for i, stage in enumerate(self.stages, start=1):
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


def nin(
    *,
    num_classes: int = 1000,
    width: int = 96,
    dropout: float = 0.5,
    small_images: bool = False,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
) -> NIN:
    """Return the `NIN` that its authors published for ImageNet.

    Dropout is before the last of its four mlpconvs. `NIN` describes the arguments but these:

    Args:
        width: features of `conv1`; those of the other layers are in proportion.
        small_images: fit the network to images of about 32x32 instead of 224x224: `conv1` is 5x5
            with stride 1 instead of 11x11 with stride 4. Features stay as they are.

    Images are at least 39x39, with `small_images` 8x8. 7,595,176 parameters at the defaults.
    """
    first = ((width,) * 3, 5, 1, 2) if small_images else ((width,) * 3, 11, 4, 0)
    second, third, fourth = (features * width // 96 for features in (256, 384, 1024))
    return NIN(
        stages=(
            MLPConv(*first, pool=max_pool),
            MLPConv((second,) * 3, 5, 1, 2, pool=max_pool),
            MLPConv((third,) * 3, 3, 1, 1, pool=max_pool, dropout=True),
            MLPConv((fourth,) * 2, 3, 1, 1),
        ),
        smallest=(8 if small_images else 39, 8),
        num_classes=num_classes,
        dropout=dropout,
        dtype=dtype,
        param_dtype=param_dtype,
    )


def nin_cifar(
    *,
    num_classes: int = 10,
    width: int = 192,
    dropout: float = 0.5,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
) -> NIN:
    """Return the `NIN` that its authors published for CIFAR-10, whose images are 32x32.

    Dropout is before the second and the third of its three mlpconvs. `NIN` describes the arguments
    but `width`, the features of `conv1`, to which those of the other layers are in proportion.

    Images are at least 4x4. 966,986 parameters at the defaults.
    """
    second, third = (features * width // 192 for features in (160, 96))
    return NIN(
        stages=(
            MLPConv((width, second, third), 5, 1, 2, pool=max_pool, dropout=True),
            MLPConv((width,) * 3, 5, 1, 2, pool=avg_pool, dropout=True),
            MLPConv((width,) * 2, 3, 1, 1),
        ),
        smallest=(4, 4),
        num_classes=num_classes,
        dropout=dropout,
        dtype=dtype,
        param_dtype=param_dtype,
    )
