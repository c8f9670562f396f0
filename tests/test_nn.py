"""The layers that Flax lacks, held to torch's and to their papers' own formulas."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from golden.weights import weight
from jax.test_util import check_grads

import jaxdl
from jaxdl.models.nin import avg_pool, max_pool
from jaxdl.nn import LocalResponseNorm, adaptive_avg_pool, check_image_size, flatten

MAPS = 100 * weight("maps", (2, 6, 5, 9))


@pytest.fixture(scope="module")
def golden():
    """What record_classic.py recorded of torch's own functions on `MAPS`."""
    with np.load(Path(__file__).parent / "golden" / "classic.npz") as arrays:
        return dict(arrays)


def norm(x, size=5, alpha=1e-4, beta=0.75, k=1.0):
    return LocalResponseNorm(size, alpha, beta, k).apply({}, x)


@pytest.mark.parametrize("size", range(1, 7))
def test_local_response_norm_matches_torch(golden, size):
    got = norm(MAPS, size, alpha=0.01, beta=0.6, k=1.5)
    np.testing.assert_allclose(got, golden[f"local_response_norm/{size}"], rtol=2e-6)


def test_local_response_norm_of_the_papers():
    """Krizhevsky et al. 2012, section 3.3: alpha times the sum, channels cut off at the ends."""
    n, alpha, beta, k, channels = 5, 1e-4, 0.75, 2, 9
    expected = np.empty_like(MAPS)
    for i in range(channels):
        near = MAPS[..., max(0, i - n // 2) : min(channels - 1, i + n // 2) + 1]
        expected[..., i] = MAPS[..., i] / (k + alpha * np.square(near).sum(-1)) ** beta
    np.testing.assert_allclose(norm(MAPS, n, n * alpha, beta, k), expected, rtol=2e-6)


def test_local_response_norm_computes_in_float32():
    """Squares of bfloat16 are off by up to 0.8%; the result may be off by its own rounding only."""
    x = jnp.asarray(MAPS, jnp.bfloat16)
    got = norm(x, alpha=0.01)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.float32(got), norm(x.astype(jnp.float32), alpha=0.01), rtol=2**-8, atol=0
    )
    big = jnp.full((1, 1, 1, 3), 300.0, jnp.float16)  # its square is beyond float16
    np.testing.assert_allclose(norm(big)[0, 0, 0, 1], 300 / (1 + 2e-5 * 3 * 9e4) ** 0.75, rtol=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (6, 5), (7, 7)])
def test_adaptive_avg_pool_matches_torch(golden, size):
    got = adaptive_avg_pool(jnp.asarray(MAPS), size)
    expected = golden[f"adaptive_avg_pool/{size[0]}x{size[1]}"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    half = adaptive_avg_pool(jnp.asarray(MAPS, jnp.bfloat16), size)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(half), expected, rtol=2**-7, atol=0.05)


def test_nin_pools_match_torch(golden):
    """Sizes rounded up, over sides of 6, which that changes, and of 5, which it does not."""
    np.testing.assert_array_equal(max_pool(jnp.asarray(MAPS)), golden["max_pool"])
    got = avg_pool(jnp.asarray(MAPS))
    np.testing.assert_allclose(got, golden["avg_pool"], rtol=1e-5, atol=1e-5)


def test_gradients():
    with jax.enable_x64(True):
        x = jnp.asarray(MAPS[:, :3, :3], jnp.float64)
        check_grads(lambda x: norm(x, 4, alpha=0.01), (x,), order=1, modes=["rev"])
        check_grads(lambda x: adaptive_avg_pool(x, (2, 5)), (x,), order=1, modes=["rev"])


def test_flatten_goes_channel_by_channel():
    x = np.arange(24).reshape(1, 2, 3, 4)
    expected = [x[0, h, w, c] for c in range(4) for h in range(2) for w in range(3)]
    assert flatten(jnp.asarray(x)).tolist() == [expected]


def test_check_image_size():
    model = nn.Dense(1)
    check_image_size(model, jnp.zeros([1, 5, 6, 3]), 5)
    with pytest.raises(jaxdl.InputError, match=r"^Dense takes .* least 6x6 pixels, not 5x6$"):
        check_image_size(model, jnp.zeros([1, 5, 6, 3]), 6)
    with pytest.raises(jaxdl.InputError, match=r"not 6x5$"):
        check_image_size(model, jnp.zeros([1, 6, 5, 3]), 6)
