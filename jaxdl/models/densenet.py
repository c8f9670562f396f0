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

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.nn import Convolution, ModuleDef, Normed, check_image_size
from jaxdl.pooling import avg_pool, max_pool
from jaxdl.published import CONV, DENSE, NORM, TORCHVISION, Published, Rows, Weights

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
        return avg_pool(y, (2, 2), (2, 2))


class DenseNet(Normed):
    """A densely connected network: stem, dense blocks with transitions between, mean, linear layer.

    The stem of the ImageNet networks is a 7x7 convolution of stride 2 with norm and relu, and a 3x3
    max pool of stride 2; that of the CIFAR networks is one 3x3 convolution. It has twice as many
    features as a layer of the blocks. Weights are drawn as in He et al. (2015, arXiv:1502.01852),
    those of the classifier as Flax does.

    Args:
      block_sizes: number of layers in each dense block.
      small_images: the stem is that of the CIFAR networks, which leaves height and width as they
        are, and so fits any of the networks to images of about 32x32. Features stay.
      growth_rate: number of maps each layer adds, k in the paper.
      num_classes: number of logits; with 0 the `features` are returned instead, float32.
      dropout: rate of the dropout after every convolution but the first. The paper has 0.2 on
        CIFAR and SVHN without augmentation, and none elsewhere.
      dtype, param_dtype, norm_momentum, norm_epsilon, axis_name: see `jaxdl.nn.Normed`.

    Shapes: images [B, H, W, C] of at least 29x29 to float32 logits [B, num_classes]; as
    `small_images` of 8x8 and four blocks, or 4x4 and three. Smaller images raise InputError.

    State: `params`, and `batch_stats` which training updates. Dropout draws from the stream
    `dropout` in training. Sows in `intermediates` the output of each block, `denseblock1` to the
    last, and `features`, the pooled [B, F] that go into the classifier.

    Parameters at the defaults: 7,978,856 for `densenet121`, 14,149,480 for 169, 20,013,928 for 201
    and 28,681,000 for 161, whose growth rate is 48; 769,162 for `densenet100_bc_cifar` and 176,122
    for 40.
    """

    block_sizes: tuple[int, ...]
    small_images: bool = False
    _: dataclasses.KW_ONLY
    growth_rate: int = 32
    num_classes: int = 1000
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return the logits of a batch of images."""
        # Every transition halves what is left, rounding down; the stem quarters it, rounding up.
        least = 2 ** (len(self.block_sizes) - 1)
        check_image_size(self, x, least if self.small_images else 4 * least - 3, least)
        conv: ModuleDef = partial(Convolution, use_bias=False, kernel_init=he_normal, **self.types)
        norm = self.norm(train)
        dropout: ModuleDef = partial(nn.Dropout, self.dropout, deterministic=not train)
        layer = partial(
            DenseLayer, conv=conv, norm=norm, dropout=dropout, growth_rate=self.growth_rate
        )

        if self.small_images:
            x = conv(2 * self.growth_rate, (3, 3), padding=1, name="conv0")(x)
        else:
            x = conv(2 * self.growth_rate, (7, 7), strides=2, padding=3, name="conv0")(x)
            x = nn.relu(norm(name="norm0")(x))
            x = max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

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
            x = nn.Dense(self.num_classes, name="classifier", **self.types)(x)
        return x.astype(jnp.float32)


densenet121 = partial(DenseNet, (6, 12, 24, 16))
densenet161 = partial(DenseNet, (6, 12, 36, 24), growth_rate=48)
densenet169 = partial(DenseNet, (6, 12, 32, 32))
densenet201 = partial(DenseNet, (6, 12, 48, 32))

# 6n + 4 layers with weights. The paper's smallest such network is that of 100 layers; 40 it has
# without bottlenecks only.
densenet40_bc_cifar = partial(DenseNet, (6,) * 3, True, growth_rate=12, num_classes=10)
densenet100_bc_cifar = partial(DenseNet, (16,) * 3, True, growth_rate=12, num_classes=10)

MODELS = {
    "densenet121": densenet121,
    "densenet161": densenet161,
    "densenet169": densenet169,
    "densenet201": densenet201,
    "densenet40_bc_cifar": densenet40_bc_cifar,
    "densenet100_bc_cifar": densenet100_bc_cifar,
}
IMAGE_SHAPES = {name: (32, 32, 3) if "cifar" in name else (224, 224, 3) for name in MODELS}
PUBLISHED = {
    "densenet121": Published(7_978_856, 2.834e9, TORCHVISION),
    "densenet161": Published(28_681_000, 7.728e9, TORCHVISION),
    "densenet169": Published(14_149_480, 3.36e9, TORCHVISION),
    "densenet201": Published(20_013_928, 4.291e9, TORCHVISION),
    "densenet100_bc_cifar": Published(0.8e6, None, "Huang et al. 2016, Table 2"),
}

ROWS: Rows = (
    (r"conv0", r"features.conv0", CONV),
    (r"norm([05])", r"features.norm\1", NORM),
    (r"(denseblock\d)_(denselayer\d+)/(conv\d)", r"features.\1.\2.\3", CONV),
    (r"(denseblock\d)_(denselayer\d+)/(norm\d)", r"features.\1.\2.\3", NORM),
    (r"(transition\d)/conv", r"features.\1.conv", CONV),
    (r"(transition\d)/norm", r"features.\1.norm", NORM),
    (r"classifier", r"classifier", DENSE),
)
WEIGHTS = {f"densenet{depth}": Weights(ROWS, ("classifier",)) for depth in (121, 161, 169, 201)}
