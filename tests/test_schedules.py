"""Schedules by hand, their warm-up, and momentum against them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import InputError, schedules


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("constant", {}, {0: 1.0, 99: 1.0}),
        ("cosine", {}, {0: 1.0, 50: 0.5, 25: 0.5 + np.sqrt(0.125), 100: 0.0}),
        ("cosine", {"end": 0.2}, {0: 1.0, 50: 0.6, 100: 0.2, 150: 0.2}),
        ("linear", {}, {0: 1.0, 50: 0.5, 90: 0.1}),
        ("linear", {"end": 0.5}, {0: 1.0, 50: 0.75, 100: 0.5}),
        ("step", {}, {0: 1.0, 49: 1.0, 50: 0.1, 74: 0.1, 75: 0.01, 99: 0.01}),
        ("step", {"boundaries": (0.29, 0.29), "factor": 0.5}, {28: 1.0, 29: 0.25}),
        ("exponential", {}, {0: 1.0, 50: 10**-1.5, 100: 0.001}),
        (
            "exponential",
            {"rate": 0.5, "transitions": 4, "staircase": True},
            {0: 1.0, 24: 1.0, 25: 0.5, 74: 0.25, 75: 0.125},
        ),
        ("exponential", {"rate": 0.5, "transitions": 4}, {25: 0.5, 40: 0.5**1.6}),
        ("inverse_time", {}, {0: 1.0, 10: 0.5, 15: 0.4, 90: 0.1}),
        ("inverse_time", {"rate": 3, "transitions": 5, "staircase": True}, {19: 1.0, 39: 0.25}),
        ("polynomial", {}, {0: 1.0, 50: 0.25, 90: 0.01, 100: 0.0}),
        ("polynomial", {"power": 3, "end": 0.2}, {0: 1.0, 50: 0.3, 100: 0.2}),
        ("one_cycle", {}, {0: 0.04, 15: 0.52, 30: 1.0, 65: 0.500002, 100: 4e-6}),
        (
            "one_cycle",
            {"peak": 0.5, "start": 0.2, "end": 0.0},
            {0: 0.2, 25: 0.6, 50: 1.0, 75: 0.5, 100: 0.0},
        ),
        # 700 steps of 1, 2 and 4 parts.
        ("restarts", {"steps": 700}, {0: 1, 50: 0.5, 100: 1, 200: 0.5, 300: 1, 500: 0.5, 700: 0}),
        (
            "restarts",
            {"cycles": 4, "growth": 1, "end": 0.2},
            {0: 1.0, 25: 1.0, 50: 1.0, 62.5: 0.6, 75: 1.0, 100: 0.2},
        ),
    ],
)
def test_schedules(name, arguments, expected):
    scheduled = jax.jit(schedules.schedule(name, **{"steps": 100} | arguments))
    for step, factor in expected.items():
        at = scheduled({"learning_rate": 0.2, "other": 5.0}, step)
        assert float(at["learning_rate"]) == pytest.approx(0.2 * factor, abs=2e-7, rel=2e-6)
        assert at["other"] == 5.0


def rates_of(scheduled, steps):
    at = lambda step: jnp.asarray(scheduled({"learning_rate": 1.0}, step)["learning_rate"])
    return np.asarray(jax.jit(jax.vmap(at))(jnp.arange(steps)))


def test_every_schedule_stays_between_zero_and_its_peak_at_any_length():
    for name in schedules.SCHEDULES:
        for steps in (7, 300):
            rates = rates_of(schedules.schedule(name, steps), steps)
            assert np.all((rates > 0) & (rates <= 1)), (name, steps)
            assert float(np.max(rates)) > 0.99


def test_warmup_rises_in_a_line_to_the_schedule():
    scheduled = schedules.schedule("cosine", 104, warmup_steps=4)
    rates = rates_of(scheduled, 104).tolist()
    np.testing.assert_allclose(rates[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
    assert rates[54] == pytest.approx(0.5)
    assert rates == sorted(rates[:5]) + sorted(rates[5:], reverse=True)
    scheduled = schedules.schedule("one_cycle", 104, warmup_steps=4)
    rates = rates_of(scheduled, 6)
    np.testing.assert_allclose(rates[:5], 0.04 * np.arange(1, 6) / 5, rtol=1e-5)
    assert rates[5] > rates[4]


def test_momentum_moves_against_the_rate():
    scheduled = schedules.schedule("one_cycle", 100, least_momentum=0.85, start=0.2)
    hparams = {"learning_rate": 3.0, "momentum": 0.95}
    for step, expected in {0: 0.93, 30: 0.85, 100: 0.95}.items():
        assert float(scheduled(hparams, step)["momentum"]) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(InputError, match="momentum: there is none"):
        scheduled({"learning_rate": 1.0}, 0)
