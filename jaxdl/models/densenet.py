"""Densely connected networks: each layer sees the maps of all layers before it in its block.

    model = densenet121(num_classes=10, small_images=True)
    variables = model.init(jax.random.key(0), jnp.zeros([1, 32, 32, 3]), train=False)
    logits, state = model.apply(variables, images, train=True, mutable=["batch_stats"])

All networks here are of the paper's kind DenseNet-BC: with bottlenecks, and with transitions that
halve the number of maps ("compression"). Each is one row at the end of this file.

Layers bear torchvision's names: `conv0` and `norm0`, `denseblock2_denselayer3.conv1`,
`transition2.conv`, `norm5` and `classifier`.

Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks" (2016,
arXiv:1608.06993).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from jaxdl.nn import check_image_size

# Makes a layer of which all but the sizes and the name is already set.
ModuleDef = Callable[..., Any]

he_normal = nn.initializers.he_normal()


class DenseLayer(nn.Module):
    """A bottleneck of 1x1 and a convolution of 3x3, norm and relu before each, beside their input.

    Args:
        conv, norm, dropout: make the layer's convolutions, norms and dropouts.
        growth_rate: number of new maps; the bottleneck has four times as many.

    Shapes: [B, H, W, C] to [B, H, W, C + growth_rate].
    """

    conv: ModuleDef
    norm: ModuleDef
    dropout: ModuleDef
    growth_rate: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer."""
        y = nn.relu(self.norm(name="norm1")(x))
        y = self.dropout()(self.conv(4 * self.growth_rate, (1, 1), name="conv1")(y))
        y = nn.relu(self.norm(name="norm2")(y))
        y = self.dropout()(self.conv(self.growth_rate, (3, 3), padding=1, name="conv2")(y))
        return jnp.concatenate([x, y], axis=-1)


class Transition(nn.Module):
    """Norm, relu, a 1x1 convolution to half as many maps, and means of 2x2 pixels.

    Args:
        conv, norm, dropout: make the convolution, the norm and the dropout.

    Shapes: [B, H, W, C] to [B, floor(H / 2), floor(W / 2), floor(C / 2)].
    """

    conv: ModuleDef
    norm: ModuleDef
    dropout: ModuleDef

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer."""
        y = nn.relu(self.norm(name="norm")(x))
        y = self.dropout()(self.conv(x.shape[-1] // 2, (1, 1), name="conv")(y))
        return nn.avg_pool(y, (2, 2), (2, 2))


class DenseNet(nn.Module):
    """A densely connected network: stem, dense blocks with transitions between, mean, linear layer.

    The stem of the ImageNet networks is a 7x7 convolution of stride 2 with norm and relu, and a 3x3
    max pool of stride 2; that of the CIFAR networks is one 3x3 convolution. It has twice as many
    features as a layer of the blocks. Weights are drawn as in He et al. (2015, arXiv:1502.01852),
    those of the classifier as Flax does.

    Args:
        block_sizes: number of layers in each dense block.
        imagenet_stem: whether the stem is that of the ImageNet networks.
        growth_rate: number of maps each layer adds, k in the paper.
        num_classes: number of logits; with 0 the `features` are returned instead, float32.
        dropout: rate of the dropout after every convolution but the first. The paper has 0.2 on
            CIFAR and SVHN without augmentation, and none elsewhere.
        dtype, param_dtype: the compute type, and the type parameters are stored in. Batch
            statistics are float32.
        norm_momentum, norm_epsilon: of the batch norms: the share of the running statistics that
            stays at each update (torch calls the rest momentum), and what is added to a variance.
        axis_name: mapped axis (of `pmap`, `vmap` or `shard_map`) over which the batch norms average
            their statistics in training; None under plain `jit`, sharded or not.

    Shapes: images [B, H, W, C] of at least 29x29 to float32 logits [B, num_classes]; with the CIFAR
    stem of 8x8 and four blocks, or 4x4 and three. Smaller images raise InputError.

    State: `params`, and `batch_stats` which training updates. Dropout draws from the stream
    `dropout` in training. Sows in `intermediates` the output of each block, `denseblock1` to the
    last, and `features`, the pooled [B, F] that go into the classifier.
    """

    block_sizes: tuple[int, ...]
    imagenet_stem: bool
    growth_rate: int
    num_classes: int
    dropout: float
    norm_momentum: float
    norm_epsilon: float
    dtype: Dtype
    param_dtype: Dtype
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return the logits of a batch of images."""
        # Every transition halves what is left, rounding down; the stem quarters it, rounding up.
        least = 2 ** (len(self.block_sizes) - 1)
        check_image_size(self, x, 4 * least - 3 if self.imagenet_stem else least, least)
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
        dropout: ModuleDef = partial(nn.Dropout, self.dropout, deterministic=not train)
        layer = partial(
            DenseLayer, conv=conv, norm=norm, dropout=dropout, growth_rate=self.growth_rate
        )

        if self.imagenet_stem:
            x = conv(2 * self.growth_rate, (7, 7), strides=2, padding=3, name="conv0")(x)
            x = nn.relu(norm(name="norm0")(x))
            padding: Any = ((1, 1), (1, 1))  # flax takes such pairs, though its annotation says str
            x = nn.max_pool(x, (3, 3), (2, 2), padding)
        else:
            x = conv(2 * self.growth_rate, (3, 3), padding=1, name="conv0")(x)

        for i, num_layers in enumerate(self.block_sizes, start=1):
            for j in range(1, num_layers + 1):
                x = layer(name=f"denseblock{i}_denselayer{j}")(x)
            self.sow("intermediates", f"denseblock{i}", x)
            if i < len(self.block_sizes):
                x = Transition(conv, norm, dropout, name=f"transition{i}")(x)

        # The fifth norm of torchvision's four blocks, and so called there whatever their number.
        x = nn.relu(norm(name="norm5")(x)).mean(axis=(1, 2))
        self.sow("intermediates", "features", x)
        if self.num_classes:
            x = nn.Dense(self.num_classes, name="classifier", **types)(x)
        return x.astype(jnp.float32)


def imagenet_densenet(
    block_sizes: tuple[int, ...],
    /,
    *,
    growth_rate: int = 32,
    num_classes: int = 1000,
    dropout: float = 0.0,
    small_images: bool = False,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> DenseNet:
    """Return a `DenseNet`, which describes the arguments but this, in the ImageNet layout.

    Args:
        small_images: fit the network to images of about 32x32 instead of 224x224: the stem is that
            of the CIFAR networks, which leaves height and width as they are. Features stay too.

    Parameters at the defaults: 7,978,856 for `densenet121`, 14,149,480 for 169, 20,013,928 for 201
    and 28,681,000 for 161, whose growth rate is 48.
    """
    return DenseNet(
        block_sizes=block_sizes,
        imagenet_stem=not small_images,
        growth_rate=growth_rate,
        num_classes=num_classes,
        dropout=dropout,
        norm_momentum=norm_momentum,
        norm_epsilon=norm_epsilon,
        dtype=dtype,
        param_dtype=param_dtype,
        axis_name=axis_name,
    )


def cifar_densenet(
    num_layers: int,
    /,
    *,
    growth_rate: int = 12,
    num_classes: int = 10,
    dropout: float = 0.0,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    dtype: Dtype = jnp.float32,
    param_dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> DenseNet:
    """Return a `DenseNet` in the CIFAR layout: three blocks, 6 num_layers + 4 layers with weights.

    `DenseNet` describes the arguments. The paper's smallest such network is `densenet100_bc_cifar`;
    40 layers it has without bottlenecks only. Parameters at the defaults: 769,162 for
    `densenet100_bc_cifar` and 176,122 for 40.
    """
    return DenseNet(
        block_sizes=(num_layers,) * 3,
        imagenet_stem=False,
        growth_rate=growth_rate,
        num_classes=num_classes,
        dropout=dropout,
        norm_momentum=norm_momentum,
        norm_epsilon=norm_epsilon,
        dtype=dtype,
        param_dtype=param_dtype,
        axis_name=axis_name,
    )


densenet121 = partial(imagenet_densenet, (6, 12, 24, 16))
densenet161 = partial(imagenet_densenet, (6, 12, 36, 24), growth_rate=48)
densenet169 = partial(imagenet_densenet, (6, 12, 32, 32))
densenet201 = partial(imagenet_densenet, (6, 12, 48, 32))

densenet40_bc_cifar = partial(cifar_densenet, 6)
densenet100_bc_cifar = partial(cifar_densenet, 16)
