"""Optimizers and schedules by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import InputError, optim

HPARAMS = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0}
PARAMS = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0]), "scale": jnp.float32(2)}
GRADS = {"kernel": jnp.array([[0.5, 0.25]]), "bias": jnp.array([-1.0]), "scale": jnp.float32(4)}


def run(name, steps=3, clip_norm=None, **changes):
    """The parameters after some steps with constant gradients."""
    transform = optim.optimizer(name, clip_norm)(HPARAMS | changes)
    params, state = PARAMS, transform.init(PARAMS)
    for _ in range(steps):
        updates, state = transform.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_momentum_by_hand():
    velocity, weight = 0.0, 3.0
    for _ in range(3):
        velocity = 0.9 * velocity - 1.0
        weight -= 0.1 * velocity
    np.testing.assert_allclose(run("momentum")["bias"], weight, rtol=1e-6)
    velocity, weight = 0.0, 3.0
    for _ in range(3):
        velocity = 0.9 * velocity - 1.0
        weight -= 0.1 * (-1.0 + 0.9 * velocity)
    np.testing.assert_allclose(run("nesterov")["bias"], weight, rtol=1e-6)
    np.testing.assert_allclose(run("sgd")["bias"], 3.3, rtol=1e-6)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_decay_shrinks_kernels_alone(name):
    plain, decayed = run(name), run(name, weight_decay=0.5)
    assert np.any(np.abs(plain["kernel"] - decayed["kernel"]) > 1e-4)
    for spared in ("bias", "scale"):
        np.testing.assert_array_equal(plain[spared], decayed[spared])


def test_penalty_and_decoupled_decay_differ():
    """With Adam a penalty is rescaled away with the gradient; a decoupled decay is not."""
    start = np.asarray(PARAMS["kernel"])
    penalty = run("adam", 1, weight_decay=0.5)["kernel"]
    np.testing.assert_allclose(
        penalty, start - 0.1 * np.sign(GRADS["kernel"] + 0.5 * start), atol=1e-6
    )
    decoupled = run("adamw", 1, weight_decay=0.5)["kernel"]
    expected = start - 0.1 * (np.sign(GRADS["kernel"]) + 0.5 * start)
    np.testing.assert_allclose(decoupled, expected, atol=1e-6)


def test_clip_norm():
    norm = np.sqrt(0.5**2 + 0.25**2 + 1 + 16)
    clipped = run("sgd", 1, clip_norm=0.1)
    np.testing.assert_allclose(clipped["bias"], 3 + 0.1 * 0.1 / norm, rtol=1e-6)
    np.testing.assert_allclose(run("sgd", 1, clip_norm=100.0)["bias"], 3.1, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", {0: 1.0, 99: 1.0}),
        ("cosine", {0: 1.0, 50: 0.5, 25: 0.5 + np.sqrt(0.125), 100: 0.0}),
        ("linear", {0: 1.0, 50: 0.5, 90: 0.1}),
        ("step", {0: 1.0, 49: 1.0, 50: 0.1, 74: 0.1, 75: 0.01, 99: 0.01}),
    ],
)
def test_schedules(name, expected):
    scheduled = jax.jit(optim.schedule(name, 100))
    for step, factor in expected.items():
        at = scheduled({"learning_rate": 0.2, "other": 5.0}, step)
        assert float(at["learning_rate"]) == pytest.approx(0.2 * factor, abs=1e-6)
        assert at["other"] == 5.0


def test_warmup_rises_in_a_line_to_the_schedule():
    scheduled = optim.schedule("cosine", 104, warmup_steps=4)
    rates = [float(scheduled({"learning_rate": 1.0}, step)["learning_rate"]) for step in range(104)]
    np.testing.assert_allclose(rates[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
    assert rates[54] == pytest.approx(0.5)
    assert rates == sorted(rates[:5]) + sorted(rates[5:], reverse=True)


def test_unknown_names_and_impossible_warmup():
    with pytest.raises(InputError, match=r"no optimizer 'adm'; there are .*; did you mean 'adam'"):
        optim.optimizer("adm")
    with pytest.raises(InputError, match="no schedule 'sine'"):
        optim.schedule("sine", 10)
    with pytest.raises(InputError, match="warm-up of 10 steps does not fit in 10 steps"):
        optim.schedule("cosine", 10, 10)
