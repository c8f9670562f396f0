"""Schedules by name: what the learning rate is multiplied with at each step of a training.

Like optimizers, they are functions of hyperparameters, which may be traced: see
`jaxdl.task.supervised`.
"""

import inspect
import itertools
import math
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from jaxdl import InputError, methods, require
from jaxdl.methods import NOT_NEGATIVE, POSITIVE, SHARE, Argument, lookup
from jaxdl.task import Schedule


def _constant(steps: int) -> optax.Schedule:
    return optax.constant_schedule(1.0)


def _linear(steps: int, end: float = 0.0) -> optax.Schedule:
    return optax.linear_schedule(1.0, end, steps)


def _step(
    steps: int, boundaries: tuple[float, ...] = (0.5, 0.75), factor: float = 0.1
) -> optax.Schedule:
    inside = all(0 < share < 1 for share in boundaries)
    require(inside, f"boundaries {boundaries}", "each more than 0 and less than 1")
    scales: dict[int, float] = {}
    for share in boundaries:
        # Rounded first, so that 0.29 of 100 steps is 29 of them.
        at = int(round(share * steps, 6))
        scales[at] = scales.get(at, 1.0) * factor
    return optax.piecewise_constant_schedule(1.0, scales)


def _exponential(
    steps: int, rate: float = 0.1, transitions: float = 3.0, staircase: bool = False
) -> optax.Schedule:
    return optax.exponential_decay(1.0, steps / transitions, rate, staircase=staircase)


def _inverse_time(
    steps: int, rate: float = 1.0, transitions: float = 10.0, staircase: bool = False
) -> optax.Schedule:
    def factor(step):
        passed = step / (steps / transitions)
        return 1 / (1 + rate * (jnp.floor(passed) if staircase else passed))

    return factor


def _polynomial(steps: int, power: float = 2.0, end: float = 0.0) -> optax.Schedule:
    return optax.polynomial_schedule(1.0, end, power, steps)


def _cosine(steps: int, end: float = 0.0) -> optax.Schedule:
    return optax.cosine_decay_schedule(1.0, steps, end)


def _one_cycle(
    steps: int, peak: float = 0.3, start: float = 0.04, end: float = 4e-6
) -> optax.Schedule:
    if not (0 < peak < 1 and int(peak * steps) >= 1):
        raise InputError(f"peak {peak} of {steps} steps leaves none to rise in, or none to fall in")
    return optax.cosine_onecycle_schedule(
        steps, 1.0, peak, 1 / start, start / end if end else math.inf
    )


def _restarts(steps: int, cycles: int = 3, growth: float = 2.0, end: float = 0.0) -> optax.Schedule:
    try:
        shares = [float(growth) ** cycle for cycle in range(cycles)]
    except OverflowError:
        shares = [0.0, 1.0]  # the first cycle is none beside the last
    starts = [round(steps * sum(shares[:cycle]) / sum(shares)) for cycle in range(cycles + 1)]
    lengths = [after - before for before, after in itertools.pairwise(starts)]
    if min(lengths) < 1:
        raise InputError(
            f"{cycles} cycles, each {growth} times as long as the last, do not fit in {steps} steps"
        )
    return optax.join_schedules([_cosine(length, end) for length in lengths], starts[1:-1])


class Factor(Protocol):
    """Makes the factor of a schedule from the length of the training and its own arguments."""

    def __call__(self, steps: int, /, *args: Any, **arguments: Any) -> optax.Schedule:
        """(step) -> the factor on the learning rate, which is 1 at its peak."""


SCHEDULES: dict[str, Factor] = {
    "constant": _constant,
    "linear": _linear,
    "step": _step,
    "exponential": _exponential,
    "inverse_time": _inverse_time,
    "polynomial": _polynomial,
    "cosine": _cosine,
    "one_cycle": _one_cycle,
    "restarts": _restarts,
}
"""(steps, **arguments) -> (step) -> the factor on the learning rate, which is 1 at its peak.

Arguments are shares of the training, or counts over all of it, so that they mean the same at any
length; `end` is the last factor.

- linear(end): a line from 1 to `end`.
- step(boundaries, factor): times `factor` at each of the `boundaries`, shares of the training; by
  default the CIFAR schedule of He et al. 2015, arXiv:1512.03385.
- exponential(rate, transitions, staircase): rate^x, where x goes from 0 to `transitions`; with
  `staircase` in whole steps of x.
- inverse_time(rate, transitions, staircase): 1 / (1 + rate x), x likewise.
- polynomial(power, end): end + (1 - end) (1 - x)^power, where x goes from 0 to 1.
- cosine(end): half a cosine from 1 to `end` (Loshchilov and Hutter 2016, arXiv:1608.03983).
- one_cycle(peak, start, end): half a cosine from `start` up to 1 in the share `peak` of the
  training, another down to `end` (Smith and Topin 2017, arXiv:1708.07120, who rise and fall in
  lines; Smith 2018, arXiv:1803.09820, moves the momentum against it: see `schedule`).
- restarts(cycles, growth, end): the cosine anew `cycles` times, each cycle `growth` times as long
  as the one before (Loshchilov and Hutter 2016).
"""


def arguments(name: str) -> dict[str, Any]:
    """What a schedule takes besides `steps`.

    Args:
      name: a key of `SCHEDULES`.

    Returns:
      Their names and defaults.

    Raises:
      InputError: no such schedule.
    """
    parameters = inspect.signature(lookup("schedule", name, SCHEDULES)).parameters
    return {p.name: p.default for p in parameters.values() if p.name != "steps"}


ARGUMENTS = methods.with_defaults(
    {
        "boundaries": Argument("shares of the training", type=tuple[float, ...]),
        "factor": Argument("at each boundary", POSITIVE),
        "rate": Argument("of each transition", POSITIVE),
        "transitions": Argument("in all", POSITIVE),
        "staircase": Argument("in whole steps", type=bool),
        "power": Argument("of the share of the training that is left", POSITIVE),
        "peak": Argument("share of the training that rises"),
        "start": Argument("the first factor", POSITIVE),
        "cycles": Argument("how many there are", POSITIVE, int),
        "growth": Argument("of each cycle's length over the last", POSITIVE),
        "end": Argument("the last factor", NOT_NEGATIVE),
    },
    {name: arguments(name) for name in SCHEDULES},
)
"""What the arguments of schedules may be, and which schedules take them."""

LEAST_MOMENTUM = Argument("what momentum falls to as the learning rate rises to its peak", SHARE)
"""The argument of `schedule` for any of them."""


def check_arguments(name: str, given: Mapping[str, Any]) -> None:
    """Raises InputError for an argument that a schedule does not take, or a value out of bounds.

    Args:
      name: a key of `SCHEDULES`.
      given: values by the names of arguments; with a value of None the name alone is checked.
    """
    methods.check(f"schedule {name}", arguments(name), ARGUMENTS, given)


def schedule(
    name: str,
    steps: int,
    warmup_steps: int = 0,
    *,
    least_momentum: float | None = None,
    **given: Any,
) -> Schedule:
    """The schedule of that name on `learning_rate` over `steps` steps.

    >>> cosine = schedule("cosine", steps=100)
    >>> round(float(cosine({"learning_rate": 0.2}, 50)["learning_rate"]), 3)
    0.1

    Args:
      name: a key of `SCHEDULES`.
      steps: the length of the whole training.
      warmup_steps: how many of those first raise the factor in a line from 0 to the named
        schedule's first (Goyal et al. 2017, arXiv:1706.02677); that schedule fills the rest.
      least_momentum: moves `momentum` in a line with the factor, from its own value at a factor of
        0 down to this at a factor of 1 (Smith 2018, arXiv:1803.09820); None leaves it.
      **given: the schedule's own.

    Returns:
      (hparams, step) -> hparams as they are at that step.

    Raises:
      InputError: no such schedule, an argument it does not take or cannot use, or a warm-up that
        leaves it no step; or there is no step at all.
    """
    build = lookup("schedule", name, SCHEDULES)
    check_arguments(name, given)
    require(steps >= 1, f"schedule {name}: steps={steps}", "at least 1")
    if not 0 <= warmup_steps < steps:
        raise InputError(f"a warm-up of {warmup_steps} steps does not fit in {steps} steps")
    factor = warm = build(max(steps - warmup_steps, 1), **given)
    if warmup_steps:
        # The first step learns too: it takes 1/(n+1) of the rate, not 0.
        rise = optax.linear_schedule(1 / (warmup_steps + 1), 1.0, warmup_steps)
        factor = optax.join_schedules([lambda step: rise(step) * warm(0), warm], [warmup_steps])

    def scheduled(hparams, step):
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies rates with steps
            now = factor(step)
        moved = {"learning_rate": hparams["learning_rate"] * now}
        if least_momentum is not None:
            if "momentum" not in hparams:
                raise InputError("least_momentum moves the hyperparameter momentum: there is none")
            momentum = hparams["momentum"]
            moved["momentum"] = momentum + (least_momentum - momentum) * now
        return {**hparams, **moved}

    return scheduled
