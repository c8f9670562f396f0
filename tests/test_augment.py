"""Augmentation: each image's own key decides; geometry is SciPy's, colors are Pillow's."""

import colorsys
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage, stats

from experiments import pixels
from experiments.harness import augmentation
from jaxdl import InputError, augment, parallel

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (16, 9, 7, 3)).astype(np.uint8)
MIXES = {"mixup": jax.jit(augment.mixup(0.4)), "cutmix": jax.jit(augment.cutmix(1.0))}
ALL = {
    "flip": augment.flip,
    "padded_crop": augment.padded_crop(2),
    "random_resized_crop": augment.random_resized_crop(),
    "warp": augment.warp(20, 0.1, 0.2, 0.3),
    "elastic": augment.elastic(8, 2),
    "cutout": augment.cutout(4, (0.1, 0.2, 0.3)),
    "color_jitter": augment.color_jitter(0.4, 0.5, 0.6, 0.2),
    "pca_color": augment.pca_color(*augment.IMAGENET_PCA, std=1.0),
    "rand_augment": augment.rand_augment(2, 9),
    "compose": augment.compose(augment.flip, augment.warp(5), augment.padded_crop(1)),
}
ALL = {name: jax.jit(apply) for name, apply in ALL.items()}


IN_PLACE = slice(5, 9)


def beside_others(keys, images):
    """The same images with the same keys IN_PLACE, among others with other keys."""
    among = np.ones(16, bool)
    among[IN_PLACE] = False
    return (
        jnp.where(among, jax.random.split(jax.random.key(4), 16), keys),
        jnp.where(among[:, None, None, None], 1 - images, images),
    )


@pytest.mark.parametrize("name", ALL)
def test_contract(name):
    """Shape kept, values in range, pure, random, each image decided by its own key.

    And the same for uint8 images spread over eight devices.
    """
    apply = ALL[name]
    images = augment.as_float(jnp.asarray(IMAGES))
    keys = jax.random.split(KEY, 16)
    out = apply(keys, images)
    assert out.shape == images.shape
    assert out.dtype == jnp.float32
    assert float(out.min()) >= -1e-6
    assert float(out.max()) <= 1 + 1e-6
    np.testing.assert_array_equal(out, apply(keys, images))
    assert not np.array_equal(out, apply(keys[::-1], images))
    among = apply(*beside_others(keys, images))
    np.testing.assert_allclose(among[IN_PLACE], out[IN_PLACE], atol=1e-6)
    spread = jax.device_put((keys, IMAGES), parallel.batch_sharding(parallel.data_mesh()))
    np.testing.assert_allclose(augment.as_float(apply(*spread)), out, atol=1e-6)


@pytest.mark.parametrize("apply", [ALL[name] for name in ("flip", "padded_crop", "compose")])
def test_one_key_is_split_for_the_images(apply):
    images = augment.as_float(jnp.asarray(IMAGES))
    np.testing.assert_array_equal(apply(KEY, images), apply(jax.random.split(KEY, 16), images))


@pytest.mark.parametrize("name", ["mixup", pytest.param("cutmix", marks=pytest.mark.slow)])
def test_contract_of_mixes(name):
    """That of the others, where an image may see the one before it."""
    apply = MIXES[name]
    images = augment.as_float(jnp.asarray(IMAGES))
    keys, targets = jax.random.split(KEY, 16), jnp.eye(16)
    mixed, shares = apply(keys, images, targets)
    assert mixed.shape == images.shape
    assert 0 <= float(mixed.min()) <= float(mixed.max()) <= 1
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    assert not np.array_equal(mixed, apply(keys[::-1], images, targets)[0])
    given = keys, IMAGES, targets, jnp.ones(16)
    spread = jax.device_put(given, parallel.batch_sharding(parallel.data_mesh()))
    for a, b in zip(apply(*spread), (mixed, shares), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    among = apply(*beside_others(keys, images), targets)
    np.testing.assert_allclose(among[0][IN_PLACE][1:], mixed[IN_PLACE][1:], atol=1e-6)
    np.testing.assert_allclose(among[1][IN_PLACE][1:], shares[IN_PLACE][1:], atol=1e-6)


def test_flip_mirrors_half():
    images = jnp.broadcast_to(jnp.asarray(IMAGES[:1]), (2000, 9, 7, 3))
    flipped = np.asarray(augment.flip(KEY, images))
    same = (flipped == IMAGES[0]).all((1, 2, 3))
    mirrored = (flipped == IMAGES[0][:, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert abs(same.mean() - 0.5) < 0.05


def test_padded_crop_gives_every_shift_equally_often():
    images = jnp.ones((4000, 5, 5, 1)).at[:, 2, 2].set(2)
    out = np.asarray(augment.padded_crop(1)(KEY, images))[..., 0]
    places = np.array([np.argwhere(image == 2)[0] for image in out])
    found, counts = np.unique(places, axis=0, return_counts=True)
    assert found.tolist() == [[i, j] for i in (1, 2, 3) for j in (1, 2, 3)]
    assert counts.min() > 350
    shifted = out[(places == [1, 2]).all(1)][0]
    assert (shifted[-1] == 0).all()
    assert (shifted[:-1] >= 1).all()


def smooth(size):
    image = ndimage.gaussian_filter(RNG.uniform(size=(size, size)), 1)
    return (image - image.min()) / np.ptp(image)


@pytest.mark.parametrize(("degrees", "shear"), [(0, 0), (30, 0), (0, 0.4), (30, 0.4)])
def test_warp_is_scipys_affine_transform(degrees, shear):
    image = smooth(15)
    keys = jax.random.split(KEY, 1)
    out = np.asarray(augment.warp(degrees, 0.1, 0.2, shear)(keys, image[None, ..., None]))
    draw = np.asarray(jax.random.uniform(keys[0], (4,), minval=-1, maxval=1))
    slant = shear * jax.random.uniform(jax.random.fold_in(keys[0], 1), minval=-1, maxval=1)
    angle, zoom, shift = np.deg2rad(degrees) * draw[0], 1 + 0.2 * draw[1], 0.1 * 15 * draw[2:]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, 0], [float(slant), 1]]) / zoom
    offset = 7 - matrix @ (7 + shift)
    expected = ndimage.affine_transform(image, matrix, offset, order=1, mode="grid-constant")
    np.testing.assert_allclose(out[0, ..., 0], expected, atol=1e-4)


def test_shear_is_uniform_and_sideways():
    """A vertical line leans by at most the shear, either way, and its rows stay rows."""
    line = np.zeros((21, 21), np.float32)
    line[:, 10] = 1
    images = jnp.broadcast_to(jnp.asarray(line)[None, ..., None], (2000, 21, 21, 1))
    out = np.asarray(jax.jit(augment.warp(shear=0.5))(KEY, images))[..., 0]
    np.testing.assert_allclose(out.sum(2), 1, atol=1e-4)
    column = (out * np.arange(21.0)).sum(2)
    slants = (column[:, 20] - column[:, 0]) / 20
    np.testing.assert_allclose(column[:, 10], 10, atol=1e-4)
    assert stats.kstest(slants, stats.uniform(-0.5, 1).cdf).pvalue > 0.01


@pytest.mark.parametrize("sigma", [0.8, 3])
def test_elastic_is_scipys(sigma):
    """On images that are not square, with every axis of the field where it belongs."""
    image = RNG.uniform(size=(14, 19)).astype(np.float32)
    keys = jax.random.split(KEY, 1)
    out = augment.elastic(12, sigma)(keys, jnp.asarray(image)[None, ..., None])
    noise = np.asarray(jax.random.uniform(keys[0], (2, 14, 19), minval=-1, maxval=1))
    field = [12 * ndimage.gaussian_filter(axis, sigma, mode="constant") for axis in noise]
    source = np.indices(image.shape) + field
    expected = ndimage.map_coordinates(image, source, order=1, mode="grid-constant")
    np.testing.assert_allclose(out[0, ..., 0], expected, atol=1e-4)


def test_elastic_of_no_strength_is_the_identity():
    images = augment.as_float(jnp.asarray(IMAGES))
    np.testing.assert_allclose(augment.elastic(0, 2)(KEY, images), images, atol=1e-6)


def test_warp_of_nothing_is_the_identity():
    images = augment.as_float(jnp.asarray(IMAGES))
    np.testing.assert_allclose(augment.warp()(KEY, images), images, atol=1e-6)


def test_random_resized_crop_draws_boxes_of_the_asked_size():
    ramp = np.stack(np.meshgrid(np.arange(33.0), np.arange(33.0), indexing="ij"), -1) / 32
    images = jnp.broadcast_to(jnp.asarray(ramp, jnp.float32), (500, 33, 33, 2))
    crop = jax.jit(augment.random_resized_crop((0.25, 0.36), (1.0, 1.0)))
    out = np.asarray(crop(KEY, images))
    sides = [
        (out[:, 22, 16, 0] - out[:, 10, 16, 0]) / 12,
        (out[:, 16, 22, 1] - out[:, 16, 10, 1]) / 12,
    ]
    for side in sides:  # slope of the ramp seen through the box, over that of the whole
        share = side * 32
        assert 0.49 < share.min() < 0.51
        assert 0.59 < share.max() < 0.61
    np.testing.assert_allclose(*sides, atol=1e-3)
    whole = augment.random_resized_crop((1.0, 1.0), (1.0, 1.0))(KEY, images[:1])
    np.testing.assert_allclose(whole, images[:1], atol=1e-5)


def test_normalize():
    images = jnp.asarray(IMAGES)
    out = augment.normalize(images, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    expected = (IMAGES / 255 - [0.1, 0.2, 0.3]) / [0.5, 1.0, 2.0]
    np.testing.assert_allclose(out, expected, atol=1e-6)
    np.testing.assert_allclose(
        augment.normalize(images, (0.5,), (0.5,)), IMAGES / 127.5 - 1, atol=1e-6
    )


def squares(height, width, size):
    """For each pixel of an image, what a square about it covers: bool [H * W, H, W]."""
    covers = np.zeros((height, width, height, width), bool)
    for row, column in np.ndindex(height, width):
        top, left = row - size // 2, column - size // 2
        rows, columns = slice(max(top, 0), top + size), slice(max(left, 0), left + size)
        covers[row, column, rows, columns] = True
    return covers.reshape(-1, height, width)


@pytest.mark.parametrize("size", [1, 3, 4, 20])
def test_cutout_blanks_a_square_about_every_pixel_equally_often(size):
    out = np.asarray(augment.cutout(size)(KEY, jnp.ones((6000, 5, 4, 1))))[..., 0]
    blank = out == 0
    assert (blank | (out == 1)).all()
    covers = squares(5, 4, size)
    assert {x.tobytes() for x in blank} == {x.tobytes() for x in covers}
    np.testing.assert_allclose(blank.mean(0), covers.mean(0), atol=0.03)


def test_cutout_fills_with_a_value_a_channel():
    images = jnp.asarray(IMAGES)
    out = np.asarray(augment.cutout(3, (0.5, 0.25, 2.0))(KEY, images))
    blank = out[..., 2] == 2
    assert (blank.sum((1, 2)) >= 4).all()
    np.testing.assert_array_equal(out[blank], np.tile([0.5, 0.25, 2.0], (blank.sum(), 1)))
    np.testing.assert_array_equal(out[~blank], augment.as_float(images)[~blank])


# Pictures for Pillow: colors of all kinds, an even one, one of few levels, one so small that
# equalize leaves it alone, and one with the very 255 pixels that it takes to be changed.
NOISE = RNG.integers(0, 256, (40, 37, 3)).astype(np.uint8)
SOFT = ndimage.gaussian_filter(RNG.uniform(20, 230, (40, 37, 3)), (2, 2, 0)).astype(np.uint8)
EVEN = np.broadcast_to(np.uint8([7, 130, 255]), (40, 37, 3))
FEW = np.where(NOISE > 99, 40, np.uint8(90)).astype(np.uint8)
PICTURES = {"noise": NOISE, "soft": SOFT, "even": EVEN, "few levels": FEW, "gray": SOFT[..., :1]}
PICTURES["small"] = NOISE[:9, :12]
PICTURES["255"] = (np.arange(256) ** 2 // 256).astype(np.uint8).reshape(16, 16, 1)


def pillow(picture):
    return Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)


def levels_apart(image, expected):
    """The greatest difference of a float image from Pillow's, in levels."""
    expected = np.asarray(expected, np.float64).reshape(image.shape)
    return np.abs(np.asarray(image, np.float64) * 255 - expected).max()


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "sharpness"])
def test_adjustments_are_pillows(name, picture):
    """To a level and a half: Pillow rounds what it blends, and cuts off what comes out."""
    adjust = jax.jit(getattr(augment, f"adjust_{name}"))
    enhance = {"saturation": "Color"}.get(name, name.capitalize())
    image = augment.as_float(jnp.asarray(PICTURES[picture]))
    for factor in (0.0, 0.1, 0.7, 1.0, 1.9):
        expected = getattr(ImageEnhance, enhance)(pillow(PICTURES[picture])).enhance(factor)
        assert levels_apart(adjust(image, factor), expected) <= 1.5, factor
    np.testing.assert_allclose(adjust(image, 1.0), image, atol=1e-6)


def test_hue_is_that_of_hsv():
    """Whole and half turns and any other, on colors, grays, black, white and ties of channels."""
    corners = np.array(list(itertools.product([0.0, 0.5, 1.0], repeat=3)))
    colors = np.concatenate([corners, RNG.uniform(size=(73, 3))]).reshape(10, 10, 3)
    adjust = jax.jit(augment.adjust_hue)
    for turn in (-0.5, -0.21, 0.0, 0.1, 0.5, 1.0):
        expected = np.empty_like(colors)
        for place in np.ndindex(10, 10):
            hue, saturation, value = colorsys.rgb_to_hsv(*colors[place])
            expected[place] = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
        np.testing.assert_allclose(adjust(jnp.asarray(colors), turn), expected, atol=3e-6)
    gray = jnp.asarray(colors[..., :1])
    np.testing.assert_array_equal(adjust(gray, 0.3), gray)


JITTERS = {
    # argument: (image of one pixel or two, the random amount read off its result, its range)
    "brightness": ([[0.2, 0.3, 0.1]], lambda x: x[:, 0, 0] / 0.2, (0.4, 1.6)),
    "contrast": ([[0.4] * 3, [0.6] * 3], lambda x: (x[:, 1, 0] - x[:, 0, 0]) / 0.2, (0.4, 1.6)),
    "saturation": ([[0.5, 0.5, 0.4]], lambda x: (x[:, 0, 0] - x[:, 0, 2]) / 0.1, (0.4, 1.6)),
    "hue": ([[1.0, 0.5, 0.5]], lambda x: [signed_hue(*rgb) for rgb in x[:, 0]], (-0.3, 0.3)),
}


def signed_hue(*rgb):
    return (colorsys.rgb_to_hsv(*map(float, rgb))[0] + 0.5) % 1 - 0.5


@pytest.mark.parametrize("name", JITTERS)
def test_color_jitter_draws_uniformly(name):
    image, amount, (low, high) = JITTERS[name]
    argument = {name: 0.3 if name == "hue" else 0.6}
    images = jnp.broadcast_to(jnp.asarray(image)[None, None], (2000, 1, len(image), 3))
    out = np.asarray(jax.jit(augment.color_jitter(**argument))(KEY, images))[:, 0]
    drawn = np.asarray(amount(out))
    assert stats.kstest(drawn, stats.uniform(low, high - low).cdf).pvalue > 0.01


def test_color_jitter_has_its_order():
    """Brightness, contrast, saturation, hue, which the clipping in between tells from others."""
    image = augment.as_float(jnp.asarray(NOISE))
    keys = jax.random.split(KEY, 8)
    out = jax.jit(augment.color_jitter(0.9, 0.8, 0.7, 0.5))(keys, jnp.stack([image] * 8))
    spread, adjust_hue = np.array([0.9, 0.8, 0.7]), jax.jit(augment.adjust_hue)
    for i, key in enumerate(keys):
        factor_key, hue_key = jax.random.split(key)
        factors = jax.random.uniform(factor_key, (3,), minval=1 - spread, maxval=1 + spread)
        turn = jax.random.uniform(hue_key, minval=-0.5, maxval=0.5)
        expected = np.asarray(image)
        expected = np.clip(factors[0] * expected, 0, 1)
        mean = (expected @ [0.299, 0.587, 0.114]).mean()
        expected = np.clip(mean + factors[1] * (expected - mean), 0, 1)
        gray = (expected @ [0.299, 0.587, 0.114])[..., None]
        expected = np.clip(gray + factors[2] * (expected - gray), 0, 1)
        np.testing.assert_allclose(out[i], adjust_hue(expected, turn), atol=1e-5)


def test_color_factors_are_never_negative():
    images = jnp.broadcast_to(augment.as_float(jnp.asarray(NOISE)), (300, *NOISE.shape))
    out = np.asarray(jax.jit(augment.color_jitter(saturation=3.0))(KEY, images))
    lightest = NOISE.argmax(-1)[None, ..., None]  # it would be the darkest
    assert (np.take_along_axis(out, lightest, -1) >= out - 1e-6).all()


def test_pca_color_has_the_covariance_of_the_paper():
    """Each component is a column, times its eigenvalue (not the root) and a normal draw."""
    values, vectors = map(np.array, augment.IMAGENET_PCA)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-3)
    images = jnp.full((6000, 2, 2, 3), 0.5)
    out = np.asarray(augment.pca_color(values, vectors, 0.5)(KEY, images)) - 0.5
    np.testing.assert_allclose(out, np.broadcast_to(out[:, :1, :1], out.shape), atol=1e-6)
    amounts = out[:, 0, 0] @ vectors / values
    np.testing.assert_allclose(np.cov(amounts.T), 0.25 * np.eye(3), atol=0.02)
    for column in amounts.T:
        assert stats.kstest(column, stats.norm(0, 0.5).cdf).pvalue > 0.01
    single = augment.pca_color([0.2, 0, 0], vectors)(KEY, images[:1])[0, 0, 0] - 0.5
    np.testing.assert_allclose(np.cross(single, vectors[:, 0]), 0, atol=1e-6)
    assert 0.001 < np.linalg.norm(single) < 0.06


@pytest.mark.parametrize("channels", [1, 3])
def test_pixel_statistics(channels):
    weights = np.array([[60, 20, 5], [0, 30, 10], [0, 0, 20]])[:channels, :channels]
    images = np.clip(RNG.normal(size=(50, 6, 5, channels)) @ weights + 120, 0, 255)
    images = images.astype(np.uint8)
    seen = augment.pixel_statistics(np.split(images, [1, 20, 20, 41]))
    every = images.reshape(-1, channels) / 255
    np.testing.assert_allclose(seen.mean, every.mean(0), rtol=1e-12)
    np.testing.assert_allclose(seen.std, every.std(0), rtol=1e-10)
    covariance = np.cov(every.T, bias=True).reshape(channels, channels)
    assert (np.diff(seen.eigenvalues) < 0).all()
    np.testing.assert_allclose(
        covariance @ seen.eigenvectors, seen.eigenvectors * seen.eigenvalues, atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.norm(seen.eigenvectors, axis=0), 1)
    for a, b in zip(seen, augment.pixel_statistics([images / 255]), strict=True):
        np.testing.assert_allclose(abs(a), abs(b), rtol=1e-9)


# The operations of RandAugment, and Pillow's at a strength s of either sign. Strengths are such
# that no pixel's source lies halfway between two.
AFFINE = Image.Transform.AFFINE
PILLOW = {
    "identity": lambda x, s: x,
    "autocontrast": lambda x, s: ImageOps.autocontrast(x),
    "equalize": lambda x, s: ImageOps.equalize(x),
    "rotate": lambda x, s: x.rotate(-30 * s),
    "solarize": lambda x, s: ImageOps.solarize(x, 256 * (1 - abs(s))),
    "color": lambda x, s: ImageEnhance.Color(x).enhance(1 + 0.9 * s),
    "posterize": lambda x, s: ImageOps.posterize(x, 8 - round(4 * abs(s))),
    "contrast": lambda x, s: ImageEnhance.Contrast(x).enhance(1 + 0.9 * s),
    "brightness": lambda x, s: ImageEnhance.Brightness(x).enhance(1 + 0.9 * s),
    "sharpness": lambda x, s: ImageEnhance.Sharpness(x).enhance(1 + 0.9 * s),
    "shear_x": lambda x, s: x.transform(x.size, AFFINE, (1, 0.3 * s, 0, 0, 1, 0)),
    "shear_y": lambda x, s: x.transform(x.size, AFFINE, (1, 0, 0, 0.3 * s, 1, 0)),
    "translate_x": lambda x, s: x.transform(
        x.size, AFFINE, (1, 0, -150 / 331 * s * x.size[0], 0, 1, 0)
    ),
    "translate_y": lambda x, s: x.transform(
        x.size, AFFINE, (1, 0, 0, 0, 1, -150 / 331 * s * x.size[1])
    ),
}
BLENDS = {"color": 1.5, "contrast": 1.5, "brightness": 1.0, "sharpness": 1.5, "autocontrast": 1.0}


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("name", PILLOW)
def test_rand_augment_operations_are_pillows(name, picture):
    """Exactly, but where Pillow cuts off fractions of a level."""
    operation = jax.jit(augment.RAND_AUGMENT[name])
    image = augment.as_float(jnp.asarray(PICTURES[picture]))
    for strength in (0.0, 0.43, -0.43, 0.87, -1.0):
        expected = PILLOW[name](pillow(PICTURES[picture]), strength)
        assert levels_apart(operation(image, strength), expected) <= BLENDS.get(name, 1e-4), (
            strength
        )


def test_even_images_make_no_nan_on_the_way():
    """Which --debug_nans would find, though nothing comes of it."""
    image = augment.as_float(jnp.asarray(EVEN))
    with jax.debug_nans(True):
        np.testing.assert_array_equal(augment.autocontrast(image), image)
        gray = jnp.full((2, 2, 3), 0.4)
        np.testing.assert_allclose(augment.adjust_hue(gray, 0.2), gray, atol=1e-6)


@pytest.mark.slow
def test_rand_augment_draws_every_operation_and_sign_equally_often():
    """Told by their results: of one operation, and of pairs of them one after the other."""
    image = augment.as_float(jnp.asarray(SOFT))
    apply_all = jax.jit(
        lambda image: jnp.stack(
            [f(image, s) for f in augment.RAND_AUGMENT.values() for s in (0.83, -0.83)]
        )
    )
    known = np.asarray(apply_all(image))
    images = jnp.broadcast_to(image, (1400, *image.shape))
    out = np.asarray(jax.jit(augment.rand_augment(1, 8.3))(KEY, images))
    apart = np.stack([np.abs(out - x).max((1, 2, 3)) for x in known], 1)
    assert apart.min(1).max() < 1e-5
    found = apart < 1e-5
    counts = found.reshape(1400, 14, 2).any(2).sum(0)
    assert stats.chisquare(counts).pvalue > 0.01
    unsigned = {"identity", "autocontrast", "equalize", "solarize", "posterize"}
    for i, name in enumerate(augment.RAND_AUGMENT):
        up, down = found[:, 2 * i : 2 * i + 2].sum(0)
        assert name in unsigned or stats.binomtest(int(up), int(up + down)).pvalue > 0.001

    pairs = np.concatenate([apply_all(jnp.asarray(x)) for x in known])
    twice = np.asarray(jax.jit(augment.rand_augment(2, 8.3))(KEY, images[:40]))
    apart = np.stack([np.abs(twice - x).max((1, 2, 3)) for x in pairs], 1)
    assert apart.min(1).max() < 1e-4
    assert len(np.unique(apart.argmin(1))) > 25


def test_mixup_draws_beta_and_mixes_by_it():
    images = jnp.tile(jnp.asarray([0.0, 1.0]), 1000)[:, None, None, None] * jnp.ones((1, 3, 2, 1))
    labels = jnp.arange(2000) % 2
    mixed, targets = jax.jit(augment.mixup(0.3))(KEY, images, jax.nn.one_hot(labels, 2))
    np.testing.assert_allclose(
        mixed, jnp.broadcast_to(targets[:, 1, None, None, None], mixed.shape)
    )
    own = np.asarray(targets)[np.arange(2000), labels]
    assert stats.kstest(own, stats.beta(0.3, 0.3).cdf).pvalue > 0.01


@pytest.mark.parametrize("name", MIXES)
def test_mixes_are_of_an_image_and_the_one_before_it(name):
    images = augment.as_float(jnp.asarray(IMAGES))
    mixed, targets = MIXES[name](jax.random.split(KEY, 16), images, jnp.eye(16))
    own = np.diag(targets)
    previous = targets[np.arange(16), np.arange(16) - 1]
    np.testing.assert_allclose(own + previous, 1, atol=1e-6)
    others = np.roll(images, 1, 0)
    if name == "mixup":
        shares = own[:, None, None, None]
    else:  # a box of the other's pixels, and of as many of them as the targets say
        shares = np.isclose(mixed, images).all(-1, keepdims=True).astype(np.float32)
        np.testing.assert_allclose(shares.mean((1, 2, 3)), own, atol=1e-6)
        for kept in shares[..., 0] == 1:
            rows, columns = (~kept).any(1), (~kept).any(0)
            assert (~kept == np.outer(rows, columns)).all()
            assert (abs(np.diff(rows)).sum() <= 2) & (abs(np.diff(columns)).sum() <= 2)
    np.testing.assert_allclose(mixed, shares * images + (1 - shares) * others, atol=1e-6)
    assert 0 < own.min() < 0.5 < own.max() <= 1


@pytest.mark.slow
def test_cutmix_boxes_are_those_of_the_paper():
    """Against the paper's own recipe in NumPy: how much is left, how wide and how high."""
    height, width, many = 24, 10, 3000
    images = jnp.zeros((many, height, width, 1)).at[::2].set(1)
    mixed, targets = jax.jit(augment.cutmix(0.7))(KEY, images, jnp.ones((many, 1)))
    np.testing.assert_allclose(targets, 1, atol=1e-6)
    pasted = np.asarray(mixed != images)[..., 0]
    ours = [pasted.mean((1, 2)), pasted.any(2).sum(1), pasted.any(1).sum(1)]
    rng = np.random.default_rng(1)
    side = np.sqrt(1 - rng.beta(0.7, 0.7, many))
    spans = []
    for length in (height, width):
        extent = np.floor(length * side)
        first = rng.integers(0, length, many) - extent // 2
        spans.append(np.minimum(first + extent, length) - np.maximum(first, 0))
    theirs = [spans[0] * spans[1] / (height * width), *spans]
    theirs[1:] = [np.where(theirs[0] > 0, span, 0) for span in spans]
    for a, b in zip(ours, theirs, strict=True):
        assert stats.ks_2samp(a, b).pvalue > 0.01
    # As often at one border as at the other, in each direction.
    for hits in (pasted[:, [0, -1]].any(2), pasted[:, :, [0, -1]].any(1)):
        assert abs(np.diff(hits.mean(0))) < 0.04


@pytest.mark.parametrize("name", MIXES)
def test_what_the_mask_leaves_out_is_not_mixed_into_another(name):
    images = augment.as_float(jnp.asarray(IMAGES))
    mask = jnp.ones(16).at[jnp.array([2, 3, 15])].set(0)
    given = jax.random.split(KEY, 16), images, jnp.eye(16)
    mixed, targets = MIXES[name](*given, mask)
    plain, plain_targets = MIXES[name](*given)
    after = np.array([3, 4, 0])
    np.testing.assert_array_equal(mixed[after], images[after])
    np.testing.assert_array_equal(targets[after], np.eye(16)[after])
    rest = np.setdiff1d(np.arange(16), after)
    np.testing.assert_array_equal(mixed[rest], plain[rest])
    np.testing.assert_array_equal(targets[rest], plain_targets[rest])


@pytest.mark.parametrize(
    "name", ["elastic", "color_jitter", pytest.param("rand_augment", marks=pytest.mark.slow)]
)
def test_gray_images(name):
    """The same as RGB images that are gray."""
    gray = augment.as_float(jnp.asarray(IMAGES[..., :1]))
    out = ALL[name](KEY, gray)
    assert out.shape == gray.shape
    colored = ALL[name](KEY, jnp.tile(gray, 3))
    np.testing.assert_allclose(jnp.tile(out, 3), colored, atol=1e-5)


MISTAKES = {
    "scale 1: expected at least 0 and less than 1": lambda: augment.warp(scale=1),
    "elastic alpha -1: ": lambda: augment.elastic(-1, 2),
    "elastic sigma 0: expected more than 0": lambda: augment.elastic(1, 0),
    "cutout size 0: expected at least 1": lambda: augment.cutout(0),
    "contrast -0.1: expected at least 0": lambda: augment.color_jitter(contrast=-0.1),
    "hue 0.6: expected at least 0 and at most 0.5": lambda: augment.color_jitter(hue=0.6),
    "std -1 of color components": lambda: augment.pca_color(*augment.IMAGENET_PCA, std=-1),
    r"color components \[1\] and \[1, 1\]: expected": lambda: augment.pca_color([1], [[1]]),
    "images of 1 channels: expected 3": lambda: ALL["pca_color"](KEY, IMAGES[..., :1]),
    "images of 2 channels: expected 1": lambda: ALL["color_jitter"](KEY, IMAGES[..., :2]),
    "mixup alpha 0: expected more than 0": lambda: augment.mixup(0),
    "cutmix alpha -1: expected more than 0": lambda: augment.cutmix(-1),
    "num_ops 0: expected at least 1": lambda: augment.rand_augment(0),
    "magnitude 11: expected at least 0 and at most 10": lambda: augment.rand_augment(1, 11),
    "pixels of no images": lambda: augment.pixel_statistics([]),
    "pixels of no images: expected": lambda: augment.pixel_statistics([IMAGES[:0]]),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes(message):
    with pytest.raises(InputError, match=message):
        MISTAKES[message]()


def write_folder(root, images):
    for i, image in enumerate(images):
        path = root / "train" / "ab"[i % 2] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return f"--dataset=folder:{root}"


def test_pixels_command_measures_and_writes(tmp_path, capsys):
    """A last batch that is padded and an unreadable image count for nothing."""
    images = RNG.integers(0, 200, (130, 4, 4, 3)).astype(np.uint8)
    folder = write_folder(tmp_path, images)
    (tmp_path / "train" / "a" / "bad.png").write_bytes(b"no image")
    output = tmp_path / "pixels.json"
    flags = [folder, "--image_size=4", f"--output={output}"]
    with pytest.raises(InputError, match=r"bad\.png"):
        pixels.run(flags)
    assert not output.exists()
    pixels.run([*flags, "--on_corrupt=skip"])
    first, *flags = capsys.readouterr().out.splitlines()
    assert first.startswith("130 train images of folder:")
    every = images.reshape(-1, 3) / 255
    mean, std = (",".join(f"{x:.4f}" for x in values) for values in (every.mean(0), every.std(0)))
    assert flags == [f"--mean={mean}", f"--std={std}", f"--pca_file={output}"]
    saved = json.loads(output.read_text())
    np.testing.assert_allclose(saved["mean"], every.mean(0))
    np.testing.assert_allclose(saved["std"], every.std(0))
    values, vectors = augmentation.read_components(output)
    np.testing.assert_allclose(vectors * values @ vectors.T, np.cov(every.T, bias=True))
    assert augment.pca_color(values, vectors)(KEY, images).shape == images.shape


def test_pixels_command_of_a_gray_set(tmp_path, capsys):
    output = tmp_path / "gray.json"
    pixels.run([f"--data_dir={tmp_path}", "--image_size=8", f"--output={output}"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("=")[0] for line in lines[1:]] == ["--mean", "--std"]
    saved = json.loads(output.read_text())
    assert len(saved["mean"]) == len(saved["std"]) == 1
    assert saved["images"] == 1437
    with pytest.raises(InputError, match=r"gray\.json holds no color components"):
        augmentation.read_components(output)


def test_pixels_command_tells_mistakes_in_one_line(tmp_path):
    for flag, message in {
        f"--output={tmp_path}/no/pixels.json": "a file in a folder that is there",
        f"--output={tmp_path}": "a file in a folder that is there",
        "--image_size=0": "image size 0",
        "--crop_share=2": "crop share 2.0",
        f"--dataset=folder:{tmp_path}": "no directory 'train'",
        "word": "'word' is no flag",
    }.items():
        with pytest.raises(InputError, match=message) as raised:
            pixels.run([f"--output={tmp_path / 'pixels.json'}", f"--data_dir={tmp_path}", flag])
        assert "\n" not in str(raised.value)
    for text in ("", "[]", '{"eigenvalues": 1}', '{"eigenvalues": [1], "eigenvectors": [[1]]}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match="holds no color components"):
            augmentation.read_components(tmp_path / "bad.json")
