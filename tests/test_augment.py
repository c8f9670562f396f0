"""Augmentation: each image's own key decides, and the geometry is SciPy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxdl import augment, parallel

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (16, 9, 7, 3)).astype(np.uint8)
ALL = {
    "flip": augment.flip,
    "padded_crop": augment.padded_crop(2),
    "random_resized_crop": augment.random_resized_crop(),
    "warp": augment.warp(20, 0.1, 0.2),
    "compose": augment.compose(augment.flip, augment.warp(5), augment.padded_crop(1)),
}


@pytest.mark.parametrize("name", ALL)
def test_contract(name):
    """Shape kept, values in range, pure, random, and each image decided by its own key."""
    apply = jax.jit(ALL[name])
    images = augment.as_float(jnp.asarray(IMAGES))
    out = apply(KEY, images)
    assert out.shape == images.shape
    assert float(out.min()) >= -1e-6
    assert float(out.max()) <= 1 + 1e-6
    np.testing.assert_array_equal(out, apply(KEY, images))
    assert not np.array_equal(out, apply(jax.random.key(4), images))
    np.testing.assert_allclose(augment.as_float(apply(KEY, jnp.asarray(IMAGES))), out, atol=1e-6)
    keys = jax.random.split(KEY, 16)
    np.testing.assert_allclose(apply(keys[5:9], images[5:9]), apply(keys, images)[5:9], atol=1e-6)
    spread = jax.device_put((keys, images), parallel.batch_sharding(parallel.data_mesh()))
    np.testing.assert_allclose(apply(*spread), apply(keys, images), atol=1e-6)


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


@pytest.mark.parametrize("degrees", [0, 30])
def test_warp_is_scipys_affine_transform(degrees):
    image = smooth(15)
    out = np.asarray(
        augment.warp(degrees, 0.1, 0.2)(jax.random.split(KEY, 1), image[None, ..., None])
    )
    draw = np.asarray(jax.random.uniform(jax.random.split(KEY, 1)[0], (4,), minval=-1, maxval=1))
    angle, zoom, shift = np.deg2rad(degrees) * draw[0], 1 + 0.2 * draw[1], 0.1 * 15 * draw[2:]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
    offset = 7 - turn @ (7 + shift)
    expected = ndimage.affine_transform(image, turn, offset, order=1, mode="grid-constant")
    np.testing.assert_allclose(out[0, ..., 0], expected, atol=1e-4)


def test_warp_of_nothing_is_the_identity():
    images = augment.as_float(jnp.asarray(IMAGES))
    np.testing.assert_allclose(augment.warp()(KEY, images), images, atol=1e-6)


def test_random_resized_crop_draws_boxes_of_the_asked_size():
    ramp = np.stack(np.meshgrid(np.arange(33.0), np.arange(33.0), indexing="ij"), -1) / 32
    images = jnp.broadcast_to(jnp.asarray(ramp, jnp.float32), (500, 33, 33, 2))
    out = np.asarray(augment.random_resized_crop((0.25, 0.36), (1.0, 1.0))(KEY, images))
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
