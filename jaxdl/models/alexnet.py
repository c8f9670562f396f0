"""AlexNet: the one-tower form that torchvision publishes, and the two-GPU network of 2012.

    model = alexnet(num_classes=10, small_images=True)
    variables = model.init(jax.random.key(0), jnp.zeros([1, 32, 32, 3]), train=False)
    logits = model.apply(variables, images, train=True, rngs={"dropout": key})

Layers bear the paper's numbers in both: `conv1` to `conv5`, then `fc6`, `fc7` and `fc8`.

Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks"
(NIPS 2012, not on arXiv), and for the one-tower form Krizhevsky, "One weird trick for parallelizing
convolutional neural networks" (2014, arXiv:1404.5997).
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdl import InputError, pooling
from jaxdl.conv import convolve
from jaxdl.nn import (
    Convolution,
    LocalResponseNorm,
    ModuleDef,
    Typed,
    adaptive_avg_pool,
    check_image_size,
    flatten,
)
from jaxdl.published import CONV, DENSE, TORCHVISION, Published, Rows, Weights
from jaxdl.sharding import MODEL, Along, apart

he_normal = nn.initializers.he_normal()
normal, ones = nn.initializers.normal(0.01), nn.initializers.ones

# Windows of 3 at a stride of 2 overlap, which the paper found to overfit less (section 3.4).
max_pool = partial(pooling.max_pool, window_shape=(3, 3), strides=(2, 2))


class AlexNet(Typed):
    """AlexNet in one tower, as in torchvision: no normalization, no groups, dropout before `fc6`.

    Weights are drawn as in He et al. (2015, arXiv:1502.01852), which the paper could not yet do.

    Args:
      num_classes: number of logits; with 0 the `features` are returned instead, float32.
      width: features of `conv1`; those of the other layers are in proportion.
      dropout: rate of the dropout before `fc6` and before `fc7`.
      small_images: fit the network to images of about 32x32 instead of 224x224: `conv1` is 5x5
        with stride 1 instead of 11x11 with stride 4, and `fc6` sees a map of 3x3, which is
        what three pools leave of 32x32, instead of 6x6. Features stay as they are.
      dtype, param_dtype: see `jaxdl.nn.Typed`.

    Shapes: images [B, H, W, C] of at least 63x63, of 15x15 with `small_images`, to float32 logits
    [B, num_classes]. Sizes whose last map is not what `fc6` sees are pooled to it adaptively.
    Smaller images raise InputError.

    State: `params`. Dropout draws from the stream `dropout` in training. Sows in `intermediates`
    `relu1` to `relu5`, the maps of each convolution, and `features`, the [B, F] that go into `fc8`.

    Parameters at the defaults: 61,100,840.
    """

    num_classes: int = 1000
    width: int = 64
    dropout: float = 0.5
    small_images: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return the logits of a batch of images."""
        check_image_size(self, x, 15 if self.small_images else 63, 15)
        conv: ModuleDef = partial(Convolution, kernel_init=he_normal, **self.types)
        dense: ModuleDef = partial(nn.Dense, kernel_init=he_normal, **self.types)
        dropout: ModuleDef = partial(nn.Dropout, self.dropout, deterministic=not train)
        w = self.width

        if self.small_images:
            x = conv(w, (5, 5), padding=2, name="conv1")(x)
        else:
            x = conv(w, (11, 11), strides=4, padding=2, name="conv1")(x)
        x = max_pool(relu(self, x, 1))
        x = conv(3 * w, (5, 5), padding=2, name="conv2")(x)
        x = max_pool(relu(self, x, 2))
        x = relu(self, conv(6 * w, (3, 3), padding=1, name="conv3")(x), 3)
        x = relu(self, conv(4 * w, (3, 3), padding=1, name="conv4")(x), 4)
        x = relu(self, conv(4 * w, (3, 3), padding=1, name="conv5")(x), 5)
        x = max_pool(x)

        x = flatten(adaptive_avg_pool(x, (3, 3) if self.small_images else (6, 6)))
        x = nn.relu(dense(64 * w, name="fc6")(dropout()(x)))
        x = nn.relu(dense(64 * w, name="fc7")(dropout()(x)))
        self.sow("intermediates", "features", x)
        x = dense(self.num_classes, name="fc8")(x) if self.num_classes else x
        return x.astype(jnp.float32)


class AlexNetOf2012(Typed):
    """AlexNet as the paper describes it: response normalization, groups, and dropout after `fc6`.

    Convolutions 2, 4 and 5 are in two groups, which the paper has on a GPU each. Weights are drawn
    from a normal distribution of standard deviation 0.01; biases are one in convolutions 2, 4 and 5
    and in `fc6` and `fc7`, and zero elsewhere.

    The paper calls its images 224x224, but only 227x227 gives the 55x55 maps that it counts.

    Args:
      num_classes: number of logits; with 0 the `features` are returned instead, float32.
      width: features of `conv1`, a multiple of 3, since `conv2` has eight for every three of
        them; those of the other layers are in proportion.
      dropout: rate of the dropout after `fc6` and after `fc7`.
      small_images: as in `AlexNet`.
      norm_within_towers: response normalization does not take the outermost channels of the two
        towers for neighbours, as forms of one device do. Each of two devices (`SHARDING`) then
        needs the other's maps for `conv3` and the dense layers alone, as the paper draws it.
      tower_mesh: of a network that is cut by `SHARDING`, its devices: each then convolves its own
        towers, where the partitioner would gather both.
      dtype, param_dtype: see `jaxdl.nn.Typed`.

    Shapes: images [B, H, W, C] of at least 67x67, of 15x15 with `small_images`, to float32 logits
    [B, num_classes]. Sizes whose last map is not what `fc6` sees are pooled to it adaptively.
    Smaller images raise InputError.

    State: as `AlexNet`.

    Parameters at the defaults: 60,965,224.

    Raises:
      InputError: images that are too small, or a width that is no multiple of 3.
    """

    num_classes: int = 1000
    width: int = 96
    dropout: float = 0.5
    small_images: bool = False
    norm_within_towers: bool = False
    tower_mesh: Mesh | None = None

    def __post_init__(self) -> None:
        """Refuse a width that does not go into groups."""
        if self.width < 3 or self.width % 3:
            raise InputError(f"alexnet_paper takes a width of 3, 6, 9 and so on, not {self.width}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return the logits of a batch of images."""
        check_image_size(self, x, 15 if self.small_images else 67, 15)
        conv: ModuleDef = partial(Convolution, kernel_init=normal, **self.types)
        convolution = convolve if self.tower_mesh is None else apart(convolve, self.tower_mesh)
        grouped: ModuleDef = partial(
            conv, feature_group_count=2, bias_init=ones, conv_general_dilated=convolution
        )
        dense: ModuleDef = partial(nn.Dense, kernel_init=normal, **self.types)
        dropout: ModuleDef = partial(nn.Dropout, self.dropout, deterministic=not train)
        # The paper's n=5, alpha=1e-4, beta=0.75, k=2; its alpha is not divided by n as torch's is.
        towers = 2 if self.norm_within_towers else 1
        norm = LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0, groups=towers)
        w = self.width // 3

        if self.small_images:
            x = conv(3 * w, (5, 5), padding=2, name="conv1")(x)
        else:
            x = conv(3 * w, (11, 11), strides=4, padding=0, name="conv1")(x)
        x = max_pool(norm(relu(self, x, 1)))
        x = grouped(8 * w, (5, 5), padding=2, name="conv2")(x)
        x = max_pool(norm(relu(self, x, 2)))
        x = relu(self, conv(12 * w, (3, 3), padding=1, name="conv3")(x), 3)
        x = relu(self, grouped(12 * w, (3, 3), padding=1, name="conv4")(x), 4)
        x = relu(self, grouped(8 * w, (3, 3), padding=1, name="conv5")(x), 5)
        x = max_pool(x)

        x = flatten(adaptive_avg_pool(x, (3, 3) if self.small_images else (6, 6)))
        x = dropout()(nn.relu(dense(128 * w, bias_init=ones, name="fc6")(x)))
        x = dropout()(nn.relu(dense(128 * w, bias_init=ones, name="fc7")(x)))
        self.sow("intermediates", "features", x)
        x = dense(self.num_classes, name="fc8")(x) if self.num_classes else x
        return x.astype(jnp.float32)


def relu(model: nn.Module, x: jax.Array, layer: int) -> jax.Array:
    """Return relu(x), sown as the maps of that layer of the model."""
    x = nn.relu(x)
    model.sow("intermediates", f"relu{layer}", x)
    return x


alexnet = AlexNet
alexnet_paper = AlexNetOf2012

SHARDING = {
    # Two towers, as on the paper's GPUs: each layer's features over the axis.
    "alexnet_paper": (
        Along("conv[1-5]/kernel", (None, None, None, MODEL)),
        Along("fc[67]/kernel", (None, MODEL)),
        Along("(conv[1-5]|fc[67])/bias", (MODEL,)),
        Along("fc8/kernel", (MODEL, None)),  # whose sums are then the logits, whole on each
    ),
    # "One weird trick": convolutions by examples alone, the dense layers by features.
    "alexnet": (
        Along("fc[67]/kernel", (None, MODEL)),
        Along("fc[67]/bias", (MODEL,)),
        Along("fc8/kernel", (MODEL, None)),
    ),
}

MODELS = {"alexnet": alexnet, "alexnet_paper": alexnet_paper}
IMAGE_SHAPES = {"alexnet": (224, 224, 3), "alexnet_paper": (227, 227, 3)}
PUBLISHED = {
    "alexnet": Published(61_100_840, 0.714e9, TORCHVISION),
    "alexnet_paper": Published(61e6, 0.724e9, "Sze et al. 2017, Table II"),
}

ROWS: Rows = (
    ("conv1", "features.0", CONV),
    ("conv2", "features.3", CONV),
    ("conv3", "features.6", CONV),
    ("conv4", "features.8", CONV),
    ("conv5", "features.10", CONV),
    ("fc6", "classifier.1", DENSE),
    ("fc7", "classifier.4", DENSE),
    ("fc8", "classifier.6", DENSE),
)
WEIGHTS = {"alexnet": Weights(ROWS, ("classifier.6",))}
