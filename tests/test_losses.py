"""Losses of values, and the task that predicts them; those of classes are tested with the tasks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import InputError, losses, metrics, optim
from jaxdl.nn import Normed
from jaxdl.task import supervised

OUTPUTS, TARGETS = np.float32([[0.0, 3.0], [-2.0, 0.5]]), np.float32([[0.5, 0.0], [-2.0, 1.5]])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (losses.mse, [[0.25, 9], [0, 1]]),
        (losses.mae, [[0.5, 3], [0, 1]]),
        (losses.huber, [[0.125, 2.5], [0, 0.5]]),
        (lambda *pair: losses.huber(*pair, delta=2.0), [[0.125, 4], [0, 0.5]]),
    ],
    ids=["mse", "mae", "huber", "huber of 2"],
)
def test_errors_by_hand(loss, expected):
    np.testing.assert_allclose(loss(OUTPUTS, TARGETS), expected)
    half = loss(jnp.bfloat16(OUTPUTS), TARGETS)
    assert half.dtype == jnp.float32
    with pytest.raises(InputError, match=r"^targets of shape \(2,\): expected \(2, 2\)"):
        loss(OUTPUTS, TARGETS[0])


def test_sigmoid_cross_entropy_is_finite_for_the_surest():
    logits, labels = np.float32([[0, 1e4, -1e4, -1e4]]), np.array([[1, 1, 1, 0]])
    expected = [[np.log(2), 0, 1e4, 0]]
    np.testing.assert_allclose(losses.sigmoid_cross_entropy(logits, labels), expected, rtol=1e-6)
    gradient = jax.grad(lambda x: losses.sigmoid_cross_entropy(x, labels).sum())(logits)
    np.testing.assert_allclose(gradient, [[-0.5, 0, -1, 0]], atol=1e-6)
    shares = losses.sigmoid_cross_entropy(np.float32([2.0]), np.float32([0.25]))
    p = 1 / (1 + np.exp(-2.0))
    np.testing.assert_allclose(shares, [-0.25 * np.log(p) - 0.75 * np.log(1 - p)], rtol=1e-6)


class Noisy(Normed):
    """A line after a norm and dropout, which both know of training."""

    @nn.compact
    def __call__(self, x, *, train):
        x = self.norm(train)(name="bn")(x)
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))


def test_prediction_counts_rows_and_carries_statistics():
    init, loss = losses.prediction(
        Noisy(), (3,), losses.huber, prepare=lambda x: x / 2, reports={"mse": losses.mse}
    )
    task = supervised(init, loss, optim.optimizer("sgd"))
    rng = np.random.default_rng(0)
    batch = {
        "input": rng.normal(size=(6, 3)).astype(np.float32),
        "target": rng.normal(size=(6, 2)).astype(np.float32),
        "mask": np.float32([1, 1, 1, 1, 0, 0]),
    }
    state = task.init(jax.random.key(0), {"learning_rate": jnp.float32(0.1)})
    measured = task.eval(state, batch)
    variables = {"params": state.params, **state.extra}
    outputs = Noisy().apply(variables, batch["input"] / 2, train=False)
    assert measured["mse"].count == measured["loss"].count == 4
    few = slice(0, 4)
    expected = losses.mse(outputs[few], batch["target"][few]).mean()
    np.testing.assert_allclose(measured["mse"].value, expected, rtol=1e-6)
    expected = losses.huber(outputs[few], batch["target"][few]).mean()
    np.testing.assert_allclose(measured["loss"].value, expected, rtol=1e-6)
    after, _ = jax.jit(task.train)(state, batch)
    mean = after.extra["batch_stats"]["bn"]["mean"]
    assert np.abs(mean - state.extra["batch_stats"]["bn"]["mean"]).max() > 1e-3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32, bool])
def test_a_mask_of_any_type_leaves_losses_what_they_are(dtype):
    values, mask = jnp.array([0.5, 2.0, 4.0]), jnp.array([1, 0, 1]).astype(dtype)
    assert losses.masked_mean(values, mask).value == 2.25
    slopes = jax.grad(lambda values: losses.masked_mean(values, mask).total)(values)
    assert slopes.tolist() == [1.0, 0.0, 1.0]
    hits = metrics.accuracy(jnp.eye(3), jnp.array([0, 1, 1]), mask)
    assert (hits.total, hits.count) == (1, 2)
