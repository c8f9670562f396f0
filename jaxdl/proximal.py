"""Optimizers that optax lacks, or has otherwise: each gives new parameters, not a change of them.

FTRL, dual averaging and the proximal methods solve for weights of which many are exactly zero; they
are computed as TensorFlow's kernels compute them. Rprop goes by signs. `jaxdl.optim` has them all
by name.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxdl import InputError

Rate: TypeAlias = float | jax.Array | Callable[[Any], Any]
"""A learning rate: a number, which may be traced, or an optax schedule."""


class AccumulatorState(NamedTuple):
    """The state of the methods written here.

    Attributes:
      count: int32 [], how many updates have been made.
      sums: trees like the parameters, of each one's running sums (rprop: step sizes and signs).
    """

    count: Any
    sums: tuple[Any, ...]


def _elementwise(
    learning_rate: Rate, initial_sums: tuple[Any, ...], step: Callable[..., tuple[Any, ...]]
) -> optax.GradientTransformation:
    """A transformation from `step`: (rate, count, gradient, param, *sums) -> (param, *sums)."""

    def init(params):
        sums = tuple(optax.tree.full_like(params, value) for value in initial_sums)
        return AccumulatorState(jnp.int32(0), sums)

    def update(grads, state, params=None):
        if params is None:
            raise InputError("this method computes new parameters: give update the present ones")
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        count = optax.safe_increment(state.count)
        times = count.astype(jnp.float32)
        stepped = jax.tree.map(functools.partial(step, rate, times), grads, params, *state.sums)
        place = lambda i, like: jax.tree.map(
            lambda old, new: new[i].astype(old.dtype), like, stepped
        )
        updates = jax.tree.map(jnp.subtract, place(0, params), params)
        sums = tuple(place(i, like) for i, like in enumerate(state.sums, 1))
        return updates, AccumulatorState(count, sums)

    return optax.GradientTransformation(init, update)


def _shrink(values: Any, threshold: Any) -> Any:
    """Values nearer to zero by `threshold`, and exactly zero where they would pass it."""
    return jnp.sign(values) * jnp.maximum(jnp.abs(values) - threshold, 0)


def ftrl(
    learning_rate: Rate,
    learning_rate_power: Any = -0.5,
    initial_accumulator_value: Any = 0.1,
    l1: Any = 0.0,
    l2: Any = 0.0,
    l2_shrinkage: Any = 0.0,
    beta: Any = 0.0,
) -> optax.GradientTransformation:
    """FTRL-Proximal: weights are solved for from sums over all gradients, many exactly zero.

    McMahan et al. 2013, "Ad Click Prediction: a View from the Trenches", Algorithm 1, as
    TensorFlow's kernel ResourceApplyFtrlV2 computes it. With n the sum of squared gradients and
    p = -learning_rate_power:

        z += g + 2 l2_shrinkage w - (n_new^p - n_old^p) / learning_rate * w
        w = -sign(z) max(|z| - l1, 0) / ((n_new^p + beta) / learning_rate + 2 l2)

    Against the paper, l2 counts twice and n starts at `initial_accumulator_value`. Against the
    kernel's documentation, the shrinkage enters z but not n. As z starts at 0, the first step
    forgets the weights but for their part in it: one with no gradient becomes 0.

    Args:
      learning_rate: more than 0; a number, traced or not, or an optax schedule.
      learning_rate_power: at most 0; 0 leaves the rate the same for all weights.
      initial_accumulator_value: where n starts, more than 0.
      l1: weight of the penalty |w|, at least 0.
      l2: weight of the penalty |w|^2 on what the sums solve for, at least 0.
      l2_shrinkage: weight of the penalty |w|^2 on the loss itself, at least 0.
      beta: the paper's smoothing of the rate; TensorFlow adds beta / (2 learning_rate) to l2.

    Returns:
      An optax transformation, whose `update` needs the parameters.
    """

    def step(rate, count, grad, param, squares, linear):
        before, squares = squares, squares + grad**2
        sigma = (squares**-learning_rate_power - before**-learning_rate_power) / rate
        linear = linear + grad + 2 * l2_shrinkage * param - sigma * param
        curvature = (squares**-learning_rate_power + beta) / rate + 2 * l2
        # Not left to the shrinking, which would make 0 / 0 of a weight that never had a gradient.
        kept = jnp.abs(linear) > l1
        return jnp.where(kept, -_shrink(linear, l1) / curvature, 0), squares, linear

    return _elementwise(learning_rate, (initial_accumulator_value, 0.0), step)


def adagrad_da(
    learning_rate: Rate, initial_accumulator_value: Any = 0.1, l1: Any = 0.0, l2: Any = 0.0
) -> optax.GradientTransformation:
    """AdaGrad with dual averaging: weights are computed anew from the sum of all gradients.

    Duchi, Hazan and Singer 2011, "Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization", as TensorFlow's kernel ResourceApplyAdagradDA computes it. With G the sum of the
    gradients, n that of their squares and t the step, counted from 1:

        w = -learning_rate sign(G) max(|G| - l1 t, 0) / (l2 t learning_rate + sqrt(n))

    The weights before a step do not enter, and so the initial ones only through the first
    gradient; for the same reason a decoupled weight decay does not build up: use l2.

    Args:
      learning_rate: a number, traced or not, or an optax schedule.
      initial_accumulator_value: where n starts, more than 0.
      l1: weight of the penalty |w|, at least 0.
      l2: weight of the penalty |w|^2 / 2, at least 0.

    Returns:
      An optax transformation, whose `update` needs the parameters.
    """

    def step(rate, count, grad, param, squares, linear):
        squares, linear = squares + grad**2, linear + grad
        curvature = l2 * count * rate + jnp.sqrt(squares)
        return -rate * _shrink(linear, l1 * count) / curvature, squares, linear

    return _elementwise(learning_rate, (initial_accumulator_value, 0.0), step)


def proximal_sgd(learning_rate: Rate, l1: Any = 0.0, l2: Any = 0.0) -> optax.GradientTransformation:
    """Gradient descent with forward-backward splitting: a step, then the penalties' own solution.

    Duchi and Singer 2009, "Efficient Online and Batch Learning Using Forward Backward Splitting",
    as TensorFlow's kernel ResourceApplyProximalGradientDescent computes it. With
    v = w - learning_rate g:

        w = sign(v) max(|v| - learning_rate l1, 0) / (1 + learning_rate l2)

    Args:
      learning_rate: a number, traced or not, or an optax schedule.
      l1: weight of the penalty |w|, at least 0.
      l2: weight of the penalty |w|^2 / 2, at least 0.

    Returns:
      An optax transformation, whose `update` needs the parameters.
    """

    def step(rate, count, grad, param):
        return (_shrink(param - rate * grad, rate * l1) / (1 + rate * l2),)

    return _elementwise(learning_rate, (), step)


def proximal_adagrad(
    learning_rate: Rate, initial_accumulator_value: Any = 0.1, l1: Any = 0.0, l2: Any = 0.0
) -> optax.GradientTransformation:
    """`proximal_sgd` with AdaGrad's rate of each weight, learning_rate / sqrt(n).

    Duchi, Hazan and Singer 2011 and Duchi and Singer 2009, as TensorFlow's kernel
    ResourceApplyProximalAdagrad computes it; n is the sum of the squared gradients, the present
    one among them.

    Args:
      learning_rate: a number, traced or not, or an optax schedule.
      initial_accumulator_value: where n starts, more than 0.
      l1: weight of the penalty |w|, at least 0.
      l2: weight of the penalty |w|^2 / 2, at least 0.

    Returns:
      An optax transformation, whose `update` needs the parameters.
    """

    def step(rate, count, grad, param, squares):
        squares = squares + grad**2
        rate = rate / jnp.sqrt(squares)
        return _shrink(param - rate * grad, rate * l1) / (1 + rate * l2), squares

    return _elementwise(learning_rate, (initial_accumulator_value,), step)


def rprop(
    learning_rate: Rate,
    eta_minus: Any = 0.5,
    eta_plus: Any = 1.2,
    min_step_size: Any = 1e-6,
    max_step_size: Any = 50.0,
) -> optax.GradientTransformation:
    """Rprop: each weight has a step size of its own; of the gradient only the signs count.

    Riedmiller and Braun 1993, "A Direct Adaptive Method for Faster Backpropagation Learning: the
    RPROP Algorithm", in the form that does not take a step back when a sign has changed, but waits
    for one step (the iRprop- of Igel and Huesken 2000, and torch's). Made for full batches.

    Written here because optax 0.2.8's gives each update one step late.

    Args:
      learning_rate: the size of the first step. A schedule is asked for that alone.
      eta_minus: what the size is multiplied with after a change of sign.
      eta_plus: what it is multiplied with otherwise.
      min_step_size: the least size.
      max_step_size: the greatest.

    Returns:
      An optax transformation, whose `update` needs the parameters.
    """
    first = learning_rate(0) if callable(learning_rate) else learning_rate

    def step(rate, count, grad, param, sizes, previous):
        sign = jnp.sign(grad)
        scaled = sizes * jnp.where(sign * previous > 0, eta_plus, eta_minus)
        sizes = jnp.where(
            sign * previous == 0, sizes, jnp.clip(scaled, min_step_size, max_step_size)
        )
        sign = jnp.where(sign * previous < 0, 0, sign)
        return param - sizes * sign, sizes, sign

    return _elementwise(learning_rate, (first, 0.0), step)
