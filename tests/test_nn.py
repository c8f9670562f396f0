"""The layers that Flax lacks, and the starts of the weights, held to torch and to the papers."""

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
from jaxdl.nn import (
    INITIALIZERS,
    LocalResponseNorm,
    adaptive_avg_pool,
    check_image_size,
    flatten,
    initializer,
    redraw,
    tabulate,
)

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
    with pytest.raises(jaxdl.InputError, match=r"not 6x5; with small_images=True of at least 4x4$"):
        check_image_size(model, jnp.zeros([1, 6, 5, 3]), 6, 4)
    with pytest.raises(jaxdl.InputError, match=r"not 6x5$"):
        check_image_size(model, jnp.zeros([1, 6, 5, 3]), 6, 6)
    with pytest.raises(
        jaxdl.InputError, match=r"^Dense takes images \[B, H, W, C\], not \[4, 13\]$"
    ):
        check_image_size(model, jnp.zeros([4, 13]), 6)


# Kernels with the fans that torch.nn.init counts for the same layers: a dense layer, a convolution,
# one in two groups, and a depthwise one.
FANS = {
    (300, 200): (300, 200),
    (3, 5, 16, 32): (240, 480),
    (5, 5, 24, 128): (600, 3200),
    (7, 7, 1, 240): (49, 11760),
}
VARIANCES = {
    **dict.fromkeys(("glorot", "xavier"), lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
    **dict.fromkeys(("he", "kaiming"), lambda fan_in, fan_out: 2 / fan_in),
    "lecun": lambda fan_in, fan_out: 1 / fan_in,
}


def kernel(name, shape, scale=None, key=0, dtype=jnp.float32):
    return np.asarray(initializer(name, scale)(jax.random.key(key), shape, dtype), np.float64)


@pytest.mark.parametrize("shape", FANS)
@pytest.mark.parametrize(
    "name", [name for name in INITIALIZERS if "_" in name and "tr" not in name]
)
def test_variances_by_fan(name, shape):
    """What is drawn has the variance, the mean and the bounds of the papers."""
    variance = VARIANCES[name.split("_")[0]](*FANS[shape])
    # Cut off at 2, a normal distribution has variance 1 - 4 phi(2) / (2 Phi(2) - 1).
    bound = np.sqrt(3) if name.endswith("uniform") else 2 / np.sqrt(0.7737413)
    for scale in (1, 2.5):
        drawn = kernel(name, shape, scale) / (scale * np.sqrt(variance))
        # The squares of either distribution have a standard deviation of about 1.
        assert np.square(drawn).mean() == pytest.approx(1, abs=5 / np.sqrt(drawn.size))
        assert abs(drawn.mean()) < 5 / np.sqrt(drawn.size)
        assert 0.99 * bound < np.abs(drawn).max() < 1.0001 * bound
    np.testing.assert_array_equal(kernel(name, shape), kernel(name, shape, 1))


@pytest.mark.parametrize(
    ("name", "deviation", "bound"),
    [("normal", 1, np.inf), ("truncated_normal", np.sqrt(0.7737413), 2), ("constant", 1, 1)],
)
def test_scale_is_the_deviation_or_the_value(name, deviation, bound):
    for scale, given in ((0.01, None), (0.3, 0.3)):
        drawn = kernel(name, (300, 200), given) / scale
        assert np.sqrt(np.square(drawn).mean()) == pytest.approx(deviation, rel=0.01)
        assert np.abs(drawn).max() <= bound * 1.0001
    assert (kernel("constant", (2, 3), -0.5) == -0.5).all()


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (3, 3, 5, 20), (1, 1, 8, 16)])
def test_orthogonal(shape):
    drawn = kernel("orthogonal", shape, 3.0).reshape(-1, shape[-1])
    product = drawn.T @ drawn if drawn.shape[0] >= drawn.shape[1] else drawn @ drawn.T
    np.testing.assert_allclose(product, 9 * np.eye(min(drawn.shape)), atol=1e-5)


def test_initializer_mistakes():
    with pytest.raises(jaxdl.InputError, match=r"^no initializer 'he_norm'; near it: .*he_normal"):
        initializer("he_norm")
    with pytest.raises(jaxdl.InputError, match=r"finite number, not nan$"):
        initializer("he_normal", float("nan"))


PARAMS = {
    "conv": {"kernel": np.zeros((3, 3, 4, 8), np.float32), "bias": np.ones(8, np.float32)},
    "block": {
        "conv": {"kernel": np.zeros((3, 3, 4, 8), np.float16)},
        "bn": {"scale": np.ones(8, np.float32)},
    },
    "embed": {"embedding": np.ones((5, 4), np.float32)},
}


@pytest.mark.parametrize("name", ["he_normal", "orthogonal"])
def test_redraw(name):
    key, draw = jax.random.key(1), initializer(name)
    got = jax.jit(lambda params: redraw(key, params, draw))(PARAMS)
    for path in (("conv", "bias"), ("block", "bn", "scale"), ("embed", "embedding")):
        before, after = PARAMS, got
        for step in path:
            before, after = before[step], after[step]
        assert (after == before).all()
    first, second = got["conv"]["kernel"], got["block"]["conv"]["kernel"]
    assert (first.dtype, second.dtype) == (jnp.float32, jnp.float16)
    assert first.shape == second.shape == (3, 3, 4, 8)
    assert first.std() == pytest.approx(np.sqrt(2 / 36) if name == "he_normal" else 1 / 6, rel=0.1)
    assert abs(np.corrcoef(np.ravel(first), np.ravel(second))[0, 1]) < 0.3  # a key for each path

    more = redraw(key, {"a": PARAMS["conv"], **PARAMS}, draw)
    np.testing.assert_array_equal(more["conv"]["kernel"], first)  # that no other path changes
    renamed = redraw(key, {"conw": PARAMS["conv"]}, draw)
    assert (renamed["conw"]["kernel"] != first).any()
    other = redraw(jax.random.key(2), PARAMS, draw)
    assert (other["conv"]["kernel"] != first).any()


def test_a_table_of_layers_is_plain_text(monkeypatch):
    """Also where an environment asks for colors."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = tabulate(nn.Dense(3), jnp.ones((2, 5)))
    assert "float32[5,3]" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 120
