"""The multilayer perceptron and LeNet-5, worked by hand."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from golden.weights import weight
from networks import LENET, MODELS, count, flat, init, init_shapes, largest_error
from scipy.signal import correlate
from scipy.stats import norm

import jaxdl
from jaxdl import models
from jaxdl.models import lenet, mlp

# The multilayer perceptron.

ACTIVATIONS = {
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "tanh": np.tanh,
    "relu": lambda z: np.where(z > 0, z, 0),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
    "elu": lambda z: np.where(z > 0, z, np.expm1(z)),
    "selu": lambda z: 1.0507009873554805 * np.where(z > 0, z, 1.6732632423543772 * np.expm1(z)),
    "gelu": lambda z: z * norm.cdf(z),
    "silu": lambda z: z / (1 + np.exp(-z)),
    "softplus": lambda z: np.log1p(np.exp(z)),
    "relu6": lambda z: np.clip(z, 0, 6),
    "hard_tanh": lambda z: np.clip(z, -1, 1),
}


@pytest.mark.parametrize("activation", mlp.ACTIVATIONS)
def test_mlp_by_hand(activation):
    model: Any = mlp.mlp(width=5, depth=2, num_classes=3, activation=activation, batch_norm=True)
    x = np.random.default_rng(0).standard_normal((6, 3, 2, 2), np.float32)
    variables = init(model, x)
    apply = functools.partial(model.apply, train=True, mutable=["batch_stats", "intermediates"])
    logits, state = jax.jit(apply)(variables, x)
    y = np.float64(x).transpose(0, 3, 1, 2).reshape(6, 12)
    params = jax.tree.map(np.float64, variables["params"])
    for i in (1, 2):
        y = y @ params[f"fc{i}"]["kernel"]
        batch_mean, batch_var = y.mean(axis=0), y.var(axis=0)
        moved = state["batch_stats"][f"bn{i}"]
        np.testing.assert_allclose(moved["mean"], 0.1 * batch_mean, atol=1e-6)
        np.testing.assert_allclose(moved["var"], 0.9 + 0.1 * batch_var, rtol=1e-5)
        y = ACTIVATIONS[activation]((y - batch_mean) / np.sqrt(batch_var + 1e-5))
        np.testing.assert_allclose(state["intermediates"][f"hidden{i}"][0], y, atol=1e-5)
    y = y @ params["fc"]["kernel"]
    assert largest_error(logits, y) < 1e-5


def test_mlp_without_hidden_layers_is_softmax_regression():
    params = init_shapes(mlp.mlp(depth=0), (8, 8, 1))["params"]
    assert jax.tree.map(lambda leaf: leaf.shape, params) == {
        "fc": {"kernel": (64, 10), "bias": (10,)}
    }


def test_a_perceptron_takes_inputs_of_any_shape():
    model = models.create("mlp", num_classes=3, width=5)
    for shape in ((4, 13), (4, 7, 6), (4, 2, 3, 2, 2)):
        x = np.random.default_rng(0).standard_normal(shape, np.float32)
        variables = model.init(jax.random.key(0), x, train=False)
        inputs = int(np.prod(shape[1:]))
        assert variables["params"]["fc1"]["kernel"].shape == (inputs, 5)
        assert model.apply(variables, x, train=False).shape == (4, 3)
        rows = np.moveaxis(x, -1, 1) if x.ndim > 2 else x  # as of images, channel by channel
        rows = rows.reshape(4, inputs)
        np.testing.assert_allclose(
            model.apply(variables, x, train=False), model.apply(variables, rows, train=False)
        )


def test_mlp_dropout_is_in_training_only():
    model: Any = mlp.mlp(width=400, depth=1, dropout=0.25, activation="sigmoid")
    x = np.ones((50, 2, 2, 1), np.float32)
    variables = init(model, x)
    run = functools.partial(model.apply, variables, x, mutable=["intermediates"])
    _, state = run(train=True, rngs={"dropout": jax.random.key(0)})
    (hidden,), (features,) = (state["intermediates"][name] for name in ("hidden1", "features"))
    assert (features == 0).mean() == pytest.approx(0.25, abs=0.02)
    np.testing.assert_allclose(features[features != 0], (hidden / 0.75)[features != 0], rtol=1e-6)
    _, state = run(train=False)
    np.testing.assert_array_equal(state["intermediates"]["features"][0], hidden)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"width": 0}, "a width of at least 1, not 0"),
        ({"depth": -1}, "a depth of at least 0, not -1"),
        ({"activation": "swish"}, "an activation out of sigmoid, .*, not 'swish'"),
    ],
)
def test_mlp_mistakes(kwargs, message):
    with pytest.raises(jaxdl.InputError, match=f"^mlp takes {message}$"):
        models.create("mlp", **kwargs)


# LeNet-5.

LENET5 = {"c1": 156, "c3": 2_416, "c5": 48_120, "f6": 10_164, "output": 850}
LENET5_1998 = {"c1": 156, "s2": 12, "c3": 1_516, "s4": 32, "c5": 48_120, "f6": 10_164}


@pytest.mark.parametrize(("name", "layers"), [("lenet5", LENET5), ("lenet5_1998", LENET5_1998)])
def test_lenet_parameters(name, layers):
    params = init_shapes(models.create(name), LENET.image)["params"]
    assert {layer: count(leaves) for layer, leaves in params.items()} == layers
    assert MODELS[name][0] == sum(layers.values())


def lenet_variables(name: str) -> Any:
    """Return weights for a LeNet large enough that every layer bends its input."""
    shapes = flat(init_shapes(models.create(name), LENET.image))
    return traverse_util.unflatten_dict(
        {
            path: 0.3 + 0.3 * weight(path, leaf.shape)
            if path.endswith("coefficient")
            else weight(path, leaf.shape)
            if path.endswith("bias")
            else weight(path + "/weight", leaf.shape[::-1]).T
            for path, leaf in shapes.items()
        },
        sep="/",
    )


def convolve(x: Any, params: Any, connections: Any) -> Any:
    """Return the convolution of maps [H, W, C], map by map over (input, output, kernel)."""
    y = np.stack([np.full((x.shape[0] - 4, x.shape[1] - 4), bias) for bias in params["bias"]], -1)
    for i, o, kernel in connections:
        y[:, :, o] += correlate(x[:, :, i], kernel, mode="valid")
    return y


def full_connections(kernel: Any) -> Any:
    return [(i, o, kernel[:, :, i, o]) for i, o in np.ndindex(kernel.shape[2:])]


def sums_of_2x2(x: Any) -> Any:
    return x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]


def test_lenet5_by_hand():
    variables = lenet_variables("lenet5")
    params = jax.tree.map(np.float64, variables["params"])
    x = np.random.default_rng(0).uniform(-0.1, 1.175, (2, 32, 32, 1)).astype(np.float32)
    model: Any = lenet.lenet5()
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, x)
    for image, got in zip(x, logits, strict=True):
        y = np.tanh(convolve(image, params["c1"], full_connections(params["c1"]["kernel"])))
        y = sums_of_2x2(y) / 4
        y = np.tanh(convolve(y, params["c3"], full_connections(params["c3"]["kernel"])))
        y = sums_of_2x2(y) / 4
        y = np.tanh(convolve(y, params["c5"], full_connections(params["c5"]["kernel"])))[0, 0]
        y = np.tanh(y @ params["f6"]["kernel"] + params["f6"]["bias"])
        y = y @ params["output"]["kernel"] + params["output"]["bias"]
        assert largest_error(got, y) < 1e-5


# Table I of the 1998 paper read by columns: the maps of S2 that each map of C3 sees.
TABLE_1 = [
    *([0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [0, 4, 5], [0, 1, 5]),
    *([0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [0, 3, 4, 5], [0, 1, 4, 5], [0, 1, 2, 5]),
    *([0, 1, 3, 4], [1, 2, 4, 5], [0, 2, 3, 5], [0, 1, 2, 3, 4, 5]),
]


def test_lenet5_1998_by_hand():
    variables = lenet_variables("lenet5_1998")
    params = jax.tree.map(np.float64, variables["params"])
    x = np.random.default_rng(0).uniform(-0.1, 1.175, (2, 32, 32, 1)).astype(np.float32)
    model: Any = lenet.lenet5_1998()
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, x)

    # The kernel lists the connections by input map, and by output map within it.
    pairs = [(i, o) for i in range(6) for o in range(16) if i in TABLE_1[o]]
    table = [(i, o, params["c3"]["kernel"][:, :, k]) for k, (i, o) in enumerate(pairs)]
    bitmaps = [lenet.DIGITS.split()[digit::10] for digit in range(10)]

    def squash(a):
        return 1.7159 * np.tanh(a * 2 / 3)

    def subsample(y, layer):
        return squash(sums_of_2x2(y) * params[layer]["coefficient"] + params[layer]["bias"])

    for image, got in zip(x, logits, strict=True):
        y = squash(convolve(image, params["c1"], full_connections(params["c1"]["kernel"])))
        y = subsample(y, "s2")
        y = squash(convolve(y, params["c3"], table))
        y = subsample(y, "s4")
        y = squash(convolve(y, params["c5"], full_connections(params["c5"]["kernel"])))[0, 0]
        y = squash(y @ params["f6"]["kernel"] + params["f6"]["bias"])
        for digit, rows in enumerate(bitmaps):
            targets = [1 if pixel == "#" else -1 for row in rows for pixel in row]
            penalty = sum((a - b) ** 2 for a, b in zip(y, targets, strict=True))
            assert -got[digit] == pytest.approx(penalty, rel=1e-5)


def test_lenet5_1998_starts_within_its_bounds():
    """Appendix A: uniform within 2.4 / fan_in, where C3's fan-in is its row of the table's."""
    x = np.zeros((1, 32, 32, 1), np.float32)
    params = init(lenet.lenet5_1998(), x)["params"]
    fan_ins = [25 * len(TABLE_1[o]) for i in range(6) for o in range(16) if i in TABLE_1[o]]
    largest = np.abs(params["c3"]["kernel"]).max(axis=(0, 1)) * np.array(fan_ins) / 2.4
    assert largest.max() <= 1
    assert largest.min() > 0.7
    for layer, fan_in in {"c1": 25, "c5": 400, "f6": 120}.items():
        assert np.abs(params[layer]["kernel"]).max() * fan_in / 2.4 == pytest.approx(1, abs=0.05)


def test_digit_codes_are_distinct():
    distances = (lenet.DIGIT_CODES[:, None] != lenet.DIGIT_CODES).sum(-1)
    assert set(np.unique(lenet.DIGIT_CODES)) == {-1, 1}
    assert (distances + 84 * np.eye(10)).min() >= 10


def test_lenet5_1998_loss():
    y = np.array([[0.5, 3.0, 7.0], [2.0, 0.1, 0.3]])
    labels = jnp.array([0, 2])
    got = lenet.lenet5_1998_loss(jnp.asarray(-y), labels, j=1.5)
    for row, label, value in zip(y, labels, got, strict=True):
        assert value == pytest.approx(
            row[label] + np.log(np.exp(-1.5) + np.exp(-row).sum()), rel=1e-6
        )
    # Far from every code exp(-y) is zero in float32; the loss is then y_label - j.
    far = jnp.full((1, 10), -500.0)
    value, grad = jax.value_and_grad(lambda x: lenet.lenet5_1998_loss(x, labels[:1], j=2.0).sum())(
        far
    )
    assert value == pytest.approx(498.0)
    assert np.isfinite(grad).all()


def test_lenets_refuse_other_images_and_classes():
    with pytest.raises(jaxdl.InputError, match=r"lenet5 takes .*32, 32, C\], not \[2, 28, 28, 1\]"):
        init_shapes(lenet.lenet5(), (28, 28, 1))
    with pytest.raises(jaxdl.InputError, match=r"lenet5_1998 takes .*32, 32, 1\], not"):
        init_shapes(lenet.lenet5_1998(), (32, 32, 3))
    with pytest.raises(jaxdl.InputError, match="10 classes, not num_classes=7"):
        lenet.lenet5_1998(num_classes=7)
