"""Linear models by the house's Task: closed forms, scikit-learn's, and the perceptron's theory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import threadpool_limits

from jaxdl import InputError, losses, optim
from jaxdl.data.tables import Standardization
from jaxdl.models import linear
from jaxdl.task import supervised

XOR = np.float32([[0, 0], [0, 1], [1, 0], [1, 1]])
SIGNS = {"and": [-1, -1, -1, 1], "or": [-1, 1, 1, 1], "xor": [-1, 1, 1, -1]}


def descend(init, loss, batch, optimizer, steps, **hparams):
    """The parameters after so many steps on all rows at once."""
    task = supervised(init, loss, optim.optimizer(optimizer))

    @jax.jit
    def run(hparams):
        state = task.init(jax.random.key(0), hparams)
        train = lambda state, _: (task.train(state, batch)[0], None)
        return jax.lax.scan(train, state, length=steps)[0].params

    return run({name: jnp.float32(value) for name, value in hparams.items()})


@functools.cache
def diabetes():
    x, y = load_diabetes(return_X_y=True)
    x, y = (Standardization.of(z).apply(z) for z in (x, y[:, None]))
    return {"input": x, "target": y, "mask": np.ones(len(x), np.float32)}


@pytest.mark.parametrize("l2_penalty", [0.0, 0.1])
def test_least_squares_and_ridge_are_their_closed_forms(l2_penalty):
    batch = diabetes()
    x, y = np.float64(batch["input"]), np.float64(batch["target"])
    init, loss = losses.prediction(linear.linear(1), (10,))
    decay = {"l2_penalty": l2_penalty} if l2_penalty else {}
    # The greatest eigenvalue of the Hessian is 8, the least 0.017.
    found = descend(init, loss, batch, "momentum", 5000, learning_rate=0.2, momentum=0.95, **decay)[
        "fc"
    ]
    if l2_penalty:
        # mean((Xw + b - y)^2) + l2 |w|^2 / 2 is 1 / N of |Xw + b - y|^2 + alpha |w|^2.
        ridge = Ridge(alpha=len(x) * l2_penalty / 2).fit(x, y)
        expected = np.append(ridge.coef_, ridge.intercept_)
    else:
        expected = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0][:, 0]
    found = np.append(found["kernel"], found["bias"])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected).max() > 0.1


def test_softmax_regression_reaches_the_loss_of_scikit_learn():
    images, labels = load_digits(return_X_y=True)
    x, count, l2_penalty = images / 16, len(images), 1e-2
    batch = {
        "image": np.float32(x).reshape(-1, 8, 8, 1),
        "label": labels.astype(np.int32),
        "mask": np.ones(count, np.float32),
    }
    init, loss = losses.classification(linear.linear(), (8, 8, 1), lambda images: images)
    rates = {"learning_rate": 1.0, "momentum": 0.95}
    params = descend(
        init, loss, batch, "nesterov", 150, l2_penalty=l2_penalty, label_smoothing=0.0, **rates
    )
    by_descent = np.float64(params["fc"]["kernel"]), np.float64(params["fc"]["bias"])
    known = LogisticRegression(C=1 / (count * l2_penalty), tol=1e-8, max_iter=10_000)
    with threadpool_limits(1):  # many threads beside other work take a hundred times as long
        known.fit(x, labels)

    def minimized(kernel, bias):
        logits = x @ kernel + bias
        top = logits.max(1, keepdims=True)
        log_likelihoods = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
        return l2_penalty / 2 * (kernel**2).sum() - log_likelihoods[np.arange(count), labels].mean()

    best = minimized(known.coef_.T, known.intercept_)
    assert minimized(*by_descent) == pytest.approx(best, abs=1e-4)
    assert minimized(*map(np.zeros_like, by_descent)) > best + 1


def test_the_perceptron_criterion_by_hand():
    outputs = np.float32([[2, -2], [0.5, 0]])
    targets = np.float32([[1, 1], [-1, 1]])
    np.testing.assert_allclose(losses.perceptron(outputs, targets), [[0, 2], [0.5, 0]])
    slopes = jax.grad(lambda x: losses.perceptron(x, targets).sum())(outputs)
    np.testing.assert_allclose(slopes, [[0, -1], [1, -1]])
    with pytest.raises(InputError, match=r"^targets of shape \(2,\): expected \(2, 2\)"):
        losses.perceptron(outputs, targets[0])


def learned(x, y, passes):
    """The weights [passes, N, F + 1] before each example, and whether each was a mistake."""
    model = linear.Perceptron()
    task = supervised(
        *losses.prediction(model, x.shape[1:], losses.perceptron), optim.optimizer("sgd")
    )
    rows = {"input": x[:, None], "target": y[:, None, None], "mask": np.ones((len(x), 1))}
    rows = jax.tree.map(jnp.float32, rows)

    def step(state, row):
        before = state.params["fc"]
        wrong = model.apply({"params": state.params}, row["input"], train=False) * row["target"]
        return task.train(state, row)[0], (
            jnp.append(before["kernel"], before["bias"]),
            wrong[0, 0] <= 0,
        )

    @jax.jit
    def run():
        state = task.init(jax.random.key(0), {"learning_rate": jnp.float32(1)})
        once = lambda state, _: jax.lax.scan(step, state, rows)
        return jax.lax.scan(once, state, length=passes)[1]

    return map(np.asarray, run())


def clouds(seed, margin, count=60):
    """Points [N, 2] of two classes that a line through none of them separates by a margin."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=3)
    normal /= np.linalg.norm(normal)
    x = np.float32(rng.uniform(-1, 1, (20 * count, 2)))
    side = x @ normal[:2] + normal[2]
    kept = np.flatnonzero(np.abs(side) >= margin)[:count]
    return x[kept], np.sign(side[kept])


@pytest.mark.parametrize("name", ["and", "or", "xor", "clouds"])
def test_descending_the_criterion_is_rosenblatts_rule(name):
    x, y = clouds(0, 0.1) if name == "clouds" else (XOR, np.float32(SIGNS[name]))
    found, wrong = learned(x, y, passes=10)
    weights, expected, mistakes = np.zeros(x.shape[1] + 1, np.float32), [], []
    for _ in range(10):
        for row, sign in zip(np.c_[x, np.ones(len(x), np.float32)], y, strict=True):
            expected.append(weights)
            mistakes.append(sign * (row @ weights) <= 0)
            if mistakes[-1]:
                weights = weights + np.float32(sign) * row
    np.testing.assert_allclose(found.reshape(len(expected), -1), expected, atol=1e-6)
    np.testing.assert_array_equal(wrong.ravel(), mistakes)
    assert np.any(mistakes)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("margin", [0.3, 0.1])
def test_mistakes_on_separable_classes_are_within_novikoffs_bound(seed, margin):
    x, y = clouds(seed, margin)
    _, wrong = learned(x, y, passes=int(3 / margin**2))
    radius = np.linalg.norm(np.c_[x, np.ones(len(x))], axis=1).max()
    assert 0 < wrong.sum() <= (radius / margin) ** 2
    assert not wrong[-1].any()


def test_the_perceptron_goes_in_circles_on_xor_and_learns_and_and_or():
    for name in ("and", "or"):
        _, wrong = learned(XOR, np.float32(SIGNS[name]), passes=20)
        assert wrong[0].any()
        assert not wrong[-1].any(), name
    weights, wrong = learned(XOR, np.float32(SIGNS["xor"]), passes=20)
    assert wrong.any(axis=1).all()
    # From the second pass on, each begins where the one before began.
    np.testing.assert_array_equal(weights[1:-1], weights[2:])


def test_a_perceptron_classifies_by_the_sign():
    model = linear.Perceptron(2)
    params = {"fc": {"kernel": np.float32([[1, -1]]), "bias": np.float32([0, 1])}}
    found = model.apply({"params": params}, np.float32([[2], [0], [-3]]), method="classify")
    np.testing.assert_array_equal(found, [[1, -1], [1, 1], [-1, 1]])
    fresh = model.init(jax.random.key(0), np.zeros((1, 5)), train=False)["params"]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(fresh))
