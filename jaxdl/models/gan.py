"""The players of generative adversarial networks: convolutional pairs, and the first perceptrons.

    generator = dcgan_generator(image_size=32)
    variables = generator.init(jax.random.key(0), jnp.zeros([1, 100]), train=False)
    images = generator.apply(variables, latents, train=False)  # float32 in [-1, 1]

    discriminator = dcgan_discriminator()
    variables = discriminator.init(jax.random.key(1), images[:1], train=False)
    logits = discriminator.apply(variables, images, train=False)  # [B]: real if above 0

Either network may be conditioned on the classes of the images (`num_classes`), and then takes their
labels after the latents or the images. A generator joins them to the latents as one-hot vectors
(Mirza, Osindero 2014, "Conditional Generative Adversarial Nets", arXiv:1411.1784); a discriminator
adds the inner product of its last features and a learned vector of the class to the logit (Miyato,
Koyama 2018, "cGANs with Projection Discriminator", arXiv:1802.05637). An unconditional network
ignores labels.

Call a discriminator once for real images and once for generated ones. Its batch norms, whose
training statistics are those of the batch they are given, so keep the two apart.

Goodfellow et al., "Generative Adversarial Networks" (2014, arXiv:1406.2661), and Radford, Metz,
Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks" (2015, arXiv:1511.06434).
"""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl import InputError
from jaxdl.conv import double
from jaxdl.nn import Convolution, ModuleDef, Typed

IMAGE_SIZES = (16, 32, 64)
SMALLEST_MAP = 4
UPSAMPLINGS = ("transposed", "resize", "pixel_shuffle")

dcgan_init = nn.initializers.normal(0.02)
leaky_relu = partial(nn.leaky_relu, negative_slope=0.2)


class DCGANGenerator(Typed):
    """The generator of Radford et al.: latents to a map of 4x4, doubled until it is the image.

    A dense layer `project`, then an upsampling convolution `up1`, `up2` ... for each doubling; each
    but the last is followed by a norm and a relu, the last by a tanh. Kernels start from a normal
    distribution of standard deviation 0.02. The paper does not say whether layers have biases: none
    has here, as in torch's own example, except in the place of a norm that is left out.

    The paper's own kernels are 5x5, with a `width` of 128.

    Args:
      image_size: height and width of the images in pixels, one of `IMAGE_SIZES`.
      channels: of the images.
      width: channels of the last hidden map; each map of half the size has twice as many.
      upsampling: "transposed", a transposed convolution of stride 2; "resize", each pixel
        repeated 2x2 and then a convolution, which leaves no checkerboard (Odena, Dumoulin, Olah
        2016, "Deconvolution and Checkerboard Artifacts", Distill); or "pixel_shuffle", a
        convolution to four times the channels, which become 2x2 pixels (Shi et al. 2016,
        arXiv:1609.05158).
      kernel_size: height and width of its kernels, in pixels; None for 4 where upsampling is
        transposed, so that the stride divides it, and else 3. Padding is "SAME"; for a
        transposed convolution of size 4 that is torch's padding of 1.
      norm: "batch" (momentum 0.9, epsilon 1e-5) or "none".
      num_classes: 0 for an unconditional generator.
      dtype, param_dtype, axis_name: see `jaxdl.nn.Normed`.

    Shapes: latents [B, Z], and int labels [B] where it is conditional, to float32 images
    [B, image_size, image_size, channels] in [-1, 1].

    State: `params`, and with batch norm `batch_stats` which training updates. Draws no random
    numbers.

    Parameters with 100 latents: 1,066,880 at the defaults; 3,576,704 of 64 pixels and three
    channels, as in torch's example.

    Raises:
      InputError: an image size, an upsampling or a norm that there is not, or sizes below 1 (of a
        kernel below 2).
    """

    image_size: int = 32
    channels: int = 1
    width: int = 64
    upsampling: str = "transposed"
    kernel_size: int | None = None
    norm: str = "batch"
    num_classes: int = 0
    axis_name: str | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no generator."""
        if self.image_size not in IMAGE_SIZES:
            sizes = ", ".join(map(str, IMAGE_SIZES))
            raise InputError(
                f"dcgan_generator takes image_size out of {sizes}, not {self.image_size}"
            )
        _check_choice("dcgan_generator", "upsampling", self.upsampling, UPSAMPLINGS)
        _check_choice("dcgan_generator", "norm", self.norm, ("batch", "none"))
        _check_least("dcgan_generator", 1, channels=self.channels, width=self.width)
        if self.kernel_size is not None:
            _check_least("dcgan_generator", 2, kernel_size=self.kernel_size)
        _check_least("dcgan_generator", 0, num_classes=self.num_classes)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, latents: jax.Array, labels: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        """Return an image for each latent."""
        has_norm = self.norm == "batch"
        norm: ModuleDef = partial(batch_norm, train=train, axis_name=self.axis_name, **self.types)
        doublings = round(math.log2(self.image_size / SMALLEST_MAP))

        x = join_labels(self, latents, labels)
        features = self.width * 2 ** (doublings - 1)
        project = nn.Dense(
            SMALLEST_MAP**2 * features,
            use_bias=not has_norm,
            kernel_init=dcgan_init,
            name="project",
            **self.types,
        )
        x = project(x).reshape(-1, SMALLEST_MAP, SMALLEST_MAP, features)
        for i in range(1, doublings + 1):
            if has_norm:
                x = norm(name=f"norm{i}")(x)
            x = nn.relu(x)
            is_last = i == doublings
            features = self.channels if is_last else features // 2
            x = self.upsample(x, features, use_bias=not (has_norm or is_last), name=f"up{i}")
        return jnp.tanh(x.astype(jnp.float32))

    def upsample(self, x: jax.Array, features: int, **kwargs: Any) -> jax.Array:
        """Return `features` maps of twice the height and width."""
        kwargs |= {"dtype": self.dtype, "param_dtype": self.param_dtype, "kernel_init": dcgan_init}
        size = self.kernel_size or (4 if self.upsampling == "transposed" else 3)
        kernel = (size, size)
        if self.upsampling == "transposed":
            return nn.Conv(features, kernel, conv_general_dilated=double, **kwargs)(x)
        if self.upsampling == "resize":
            x = x.repeat(2, axis=1).repeat(2, axis=2)
            return Convolution(features, kernel, **kwargs)(x)
        return pixel_shuffle(Convolution(4 * features, kernel, **kwargs)(x))


class DCGANDiscriminator(Typed):
    """The discriminator of Radford et al.: strided convolutions down to a map of 4x4, and a logit.

    Convolutions `conv1`, `conv2` ..., each followed by a leaky relu of slope 0.2 and all but the
    first by a norm before it; then `logit`, a convolution of the whole last map. Kernels start from
    a normal distribution of standard deviation 0.02. Biases are as in `DCGANGenerator`.

    Args:
      width: channels of the first map; each map of half the size has twice as many.
      kernel_size: height and width of the strided kernels, in pixels. Padding is "SAME"; for a
        size of 4 that is torch's padding of 1. The paper's own kernels are 5x5.
      norm: "batch" (momentum 0.9, epsilon 1e-5); "layer", over all values of an example, for
        a penalty on the gradient of each (Gulrajani et al. 2017, arXiv:1704.00028); "spectral",
        of the weights of all layers (Miyato et al. 2018, arXiv:1802.05957), by one power
        iteration in each training call; or "none".
      num_classes: 0 for an unconditional discriminator.
      dtype, param_dtype, axis_name: see `jaxdl.nn.Normed`.

    Shapes: images [B, H, W, C] of one of `IMAGE_SIZES` each way, and int labels [B] where it is
    conditional, to float32 logits [B], above 0 for real. Other images raise InputError.

    State: `params`, and with batch or spectral norm `batch_stats` which training updates: running
    averages over the batches that it was called with, or a vector and an estimate of the largest
    singular value for each layer. Draws no random numbers.

    Parameters at the defaults: 661,248 for images of 32x32x1; 2,765,568 for 64x64x3, as in torch's
    example.

    Raises:
      InputError: a norm that there is not, or sizes below 1 (of a kernel below 2).
    """

    width: int = 64
    kernel_size: int = 4
    norm: str = "batch"
    num_classes: int = 0
    axis_name: str | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no discriminator."""
        norms = ("batch", "layer", "spectral", "none")
        _check_choice("dcgan_discriminator", "norm", self.norm, norms)
        _check_least("dcgan_discriminator", 1, width=self.width)
        _check_least("dcgan_discriminator", 2, kernel_size=self.kernel_size)
        _check_least("dcgan_discriminator", 0, num_classes=self.num_classes)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: jax.Array, labels: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        """Return a logit for each image."""
        height, width = images.shape[1:3]
        if height != width or height not in IMAGE_SIZES:
            sizes = ", ".join(f"{size}x{size}" for size in IMAGE_SIZES)
            raise InputError(
                f"{type(self).__name__} takes images of {sizes} pixels, not {height}x{width}"
            )
        conv: ModuleDef = partial(Convolution, kernel_init=dcgan_init, **self.types)
        kernel = (self.kernel_size, self.kernel_size)
        norms: dict[str, ModuleDef] = {
            "batch": partial(batch_norm, train=train, axis_name=self.axis_name, **self.types),
            "layer": partial(nn.LayerNorm, epsilon=1e-5, reduction_axes=(1, 2, 3), **self.types),
        }
        wrap = spectral_norm if self.norm == "spectral" else lambda layer, **_: layer
        halvings = round(math.log2(height / SMALLEST_MAP))

        x = images
        for i in range(1, halvings + 1):
            use_bias = i > 1 and self.norm not in norms
            features = self.width * 2 ** (i - 1)
            layer = conv(features, kernel, strides=2, use_bias=use_bias, name=f"conv{i}")
            x = wrap(layer, train=train)(x)
            if i > 1 and self.norm in norms:
                x = norms[self.norm](name=f"norm{i}")(x)
            x = leaky_relu(x)
        layer = conv(1, (SMALLEST_MAP,) * 2, padding="VALID", use_bias=False, name="logit")
        logits = wrap(layer, train=train)(x).reshape(-1).astype(jnp.float32)
        if self.num_classes:
            layer = nn.Embed(
                self.num_classes,
                x.shape[-1],
                embedding_init=dcgan_init,
                name="projection",
                **self.types,
            )
            vectors = wrap(layer, train=train)(require(self, labels))
            logits += inner_product(x.sum(axis=(1, 2), dtype=jnp.float32), vectors)
        return logits


class MLPGenerator(Typed):
    """The generator of Goodfellow et al. for MNIST: layers of relus, `fc1`, `fc2` ... and `fc`.

    Kernels start uniform between -0.05 and 0.05, biases at zero, as in the authors' code, but for
    the last bias, which theirs starts from the mean of the data.
    Departure: the last layer ends in a tanh and not in a sigmoid, since images are in [-1, 1].

    Args:
      output_shape: of one example: (height, width, channels), or (2,) for points.
      width: units in each hidden layer.
      depth: number of hidden layers.
      num_classes: 0 for an unconditional generator.
      dtype, param_dtype: see `jaxdl.nn.Typed`.

    Shapes: latents [B, Z], and int labels [B] where it is conditional, to float32
    [B, *output_shape] in [-1, 1].

    State: `params`. Draws no random numbers.

    Parameters at the defaults with 100 latents: 2,503,984.

    Raises:
      InputError: sizes below 1.
    """

    output_shape: tuple[int, ...] = (28, 28, 1)
    width: int = 1200
    depth: int = 2
    num_classes: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no generator."""
        if not self.output_shape or min(self.output_shape) < 1:
            raise InputError(
                f"mlp_generator takes output_shape of sizes of at least 1, not {self.output_shape}"
            )
        _check_least("mlp_generator", 1, width=self.width, depth=self.depth)
        _check_least("mlp_generator", 0, num_classes=self.num_classes)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, latents: jax.Array, labels: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        """Return an example for each latent."""
        dense: ModuleDef = partial(nn.Dense, kernel_init=uniform(0.05), **self.types)
        x = join_labels(self, latents, labels)
        for i in range(1, self.depth + 1):
            x = nn.relu(dense(self.width, name=f"fc{i}")(x))
        x = dense(math.prod(self.output_shape), name="fc")(x)
        return jnp.tanh(x.astype(jnp.float32)).reshape(-1, *self.output_shape)


class MLPDiscriminator(Typed):
    """The discriminator of Goodfellow et al. for MNIST: layers of maxout units, and a logit.

    A maxout unit is the largest of `pieces` linear functions (Goodfellow et al. 2013, "Maxout
    Networks", arXiv:1302.4389). The layers are `fc1`, `fc2` ... and `fc`. Kernels start uniform
    between -0.005 and 0.005, biases at zero, as in the authors' code.

    Args:
      width: units in each hidden layer.
      pieces: linear functions of each unit.
      depth: number of hidden layers.
      norm: "none", as in the paper; "layer", of the linear functions of an example; or
        "spectral", as in `DCGANDiscriminator`.
      dropout: rate of the dropout after each hidden layer.
      input_dropout: rate of the dropout on the images.
      num_classes: 0 for an unconditional discriminator.
      dtype, param_dtype: see `jaxdl.nn.Typed`.

    Shapes: images or points [B, ...], of the shape it was initialized with, and int labels [B]
    where it is conditional, to float32 logits [B], above 0 for real.

    State: `params`, and with spectral norm `batch_stats` which training updates. Dropout draws from
    the stream `dropout` in training.

    Parameters at the defaults for images of 28x28x1: 1,231,441.

    Raises:
      InputError: a norm that there is not, sizes below 1 (fewer than 2 pieces), or a rate of
        dropout outside of [0, 1).
    """

    width: int = 240
    pieces: int = 5
    depth: int = 2
    norm: str = "none"
    dropout: float = 0.5
    input_dropout: float = 0.2
    num_classes: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no discriminator."""
        _check_choice("mlp_discriminator", "norm", self.norm, ("none", "layer", "spectral"))
        _check_least("mlp_discriminator", 1, width=self.width, depth=self.depth)
        _check_least("mlp_discriminator", 2, pieces=self.pieces)
        _check_least("mlp_discriminator", 0, num_classes=self.num_classes)
        for name in ("dropout", "input_dropout"):
            if not 0 <= getattr(self, name) < 1:
                rate = getattr(self, name)
                raise InputError(f"mlp_discriminator takes {name} in [0, 1), not {rate}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: jax.Array, labels: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        """Return a logit for each example."""
        dense: ModuleDef = partial(nn.Dense, kernel_init=uniform(0.005), **self.types)
        wrap = spectral_norm if self.norm == "spectral" else lambda layer, **_: layer
        has_norm = self.norm == "layer"

        x = images.reshape(len(images), -1)
        x = nn.Dropout(self.input_dropout, deterministic=not train)(x)
        for i in range(1, self.depth + 1):
            layer = dense(self.width * self.pieces, use_bias=not has_norm, name=f"fc{i}")
            x = wrap(layer, train=train)(x)
            if has_norm:
                x = nn.LayerNorm(epsilon=1e-5, name=f"norm{i}", **self.types)(x)
            x = largest(x.reshape(-1, self.width, self.pieces))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        logits = wrap(dense(1, name="fc"), train=train)(x).reshape(-1).astype(jnp.float32)
        if self.num_classes:
            layer = nn.Embed(
                self.num_classes,
                self.width,
                embedding_init=uniform(0.005),
                name="projection",
                **self.types,
            )
            vectors = wrap(layer, train=train)(require(self, labels))
            logits += inner_product(x, vectors)
        return logits


def uniform(bound: float) -> nn.initializers.Initializer:
    """Return the initializer that draws uniformly between -bound and bound."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def batch_norm(*, train: bool, **kwargs: Any) -> nn.BatchNorm:
    """Return a batch norm with the constants that torch has by default; the paper gives none."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, **kwargs)


def spectral_norm(layer: Any, *, train: bool) -> ModuleDef:
    """Return the layer with its weights over an estimate of their largest singular value.

    Flax divides them in `init` already, so that they start at a norm of about 1.
    """
    return partial(nn.SpectralNorm(layer, param_dtype=layer.param_dtype), update_stats=train)


def pixel_shuffle(x: jax.Array) -> jax.Array:
    """Return maps [B, H, W, 4 C] as [B, 2 H, 2 W, C], in torch's order of the channels."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, channels // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, 2 * height, 2 * width, channels // 4)


def largest(x: jax.Array) -> jax.Array:
    """Return the largest of the last axis.

    Not `x.max(axis=-1)`: its gradient looks for values equal to the largest and divides by how many
    there are, which is none (and the gradient nan) where XLA computes x again with other rounding.
    """
    return jnp.take_along_axis(x, x.argmax(axis=-1, keepdims=True), axis=-1).squeeze(-1)


def inner_product(features: jax.Array, vectors: jax.Array) -> jax.Array:
    """Return the inner products of rows [B, F] and [B, F], in float32."""
    return jnp.sum(features.astype(jnp.float32) * vectors.astype(jnp.float32), axis=-1)


def join_labels(model: Any, latents: jax.Array, labels: jax.Array | None) -> jax.Array:
    """Return the latents [B, Z], with one-hot labels beside them if the generator takes classes."""
    if not model.num_classes:
        return latents
    one_hot = jax.nn.one_hot(require(model, labels), model.num_classes, dtype=latents.dtype)
    return jnp.concatenate([latents, one_hot], axis=-1)


def require(model: Any, labels: jax.Array | None) -> jax.Array:
    """Return the labels, or raise InputError if there are none."""
    if labels is None:
        raise InputError(
            f"{type(model).__name__} of {model.num_classes} classes takes labels: none were given"
        )
    return labels


def _check_choice(model: str, name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise InputError if the argument is none of those known."""
    if value not in known:
        raise InputError(f"{model} takes {name} out of {', '.join(known)}, not {value!r}")


def _check_least(model: str, least: int, **sizes: int) -> None:
    """Raise InputError if one of the arguments is less than `least`."""
    for name, size in sizes.items():
        if size < least:
            raise InputError(f"{model} takes {name} of at least {least}, not {size}")


dcgan_generator = DCGANGenerator
dcgan_discriminator = DCGANDiscriminator
mlp_generator = MLPGenerator
mlp_discriminator = MLPDiscriminator
