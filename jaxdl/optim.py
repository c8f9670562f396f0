"""Optimizers and schedules by name, with hyperparameters as data; penalties, decay and averages.

What optax has is used as it is. `optimizer` takes no value that a sweep may vary: it returns a
function of a step's hyperparameters, which may be traced (see `jaxdl.task.supervised`).
"""

import difflib
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxdl import InputError
from jaxdl.task import Optimizer, Schedule, State, Task

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
        stepped = jax.tree.map(functools.partial(step, rate, count), grads, params, *state.sums)
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


def decay_mask(params: Any) -> Any:
    """True for what weight decay shrinks: kernels, never biases or norm scales (rank 0 and 1)."""
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "nesterov": functools.partial(optax.sgd, momentum=0.9, nesterov=True),
    "rprop": rprop,
    "adagrad": optax.adagrad,
    "adagrad_da": adagrad_da,
    "adadelta": optax.adadelta,
    "rmsprop": functools.partial(optax.rmsprop, momentum=0.0),
    "rmsprop_centered": functools.partial(optax.rmsprop, momentum=0.0, centered=True),
    "adam": optax.adam,
    "adamax": optax.adamax,
    "nadam": optax.nadam,
    "amsgrad": optax.amsgrad,
    "adabelief": optax.adabelief,
    "adamw": optax.adamw,
    "lion": optax.lion,
    "lars": functools.partial(optax.lars, trust_ratio_mask=decay_mask),
    "lamb": optax.lamb,
    "ftrl": ftrl,
    "proximal_sgd": proximal_sgd,
    "proximal_adagrad": proximal_adagrad,
}
"""(learning_rate, **arguments) -> optax transformation.

momentum: Polyak 1964. nesterov: Sutskever et al. 2013. adagrad: Duchi et al. 2011. adadelta: Zeiler
2012, arXiv:1212.5701. rmsprop: Tieleman and Hinton 2012; centered: Graves 2013, arXiv:1308.0850;
both with eps inside the root. adam and adamax: Kingma and Ba 2014, arXiv:1412.6980. nadam: Dozat
2016, without its schedule of the momentum. amsgrad: Reddi et al. 2018, arXiv:1904.09237, with
Adam's bias correction. adabelief: Zhuang et al. 2020, arXiv:2010.07468. adamw: Loshchilov and
Hutter 2017, arXiv:1711.05101. lion: Chen et al. 2023, arXiv:2302.06675. lars: You et al. 2017,
arXiv:1708.03888, on kernels alone: biases and norm scales take plain momentum. lamb: You et al.
2019, arXiv:1904.00962. The others are functions of this module.
"""

# What the methods that say themselves where a weight decay belongs call its mask.
_DECAY_MASKS = {"adamw": "mask", "lion": "mask", "lars": "weight_decay_mask", "lamb": "mask"}

# The penalties that belong to a method itself.
_OWN_PENALTIES = ("l1", "l2", "l2_shrinkage")


def arguments(name: str) -> dict[str, float]:
    """The numbers that an optimizer takes besides `learning_rate` and `weight_decay`.

    Args:
      name: a key of `OPTIMIZERS`.

    Returns:
      Their names and defaults.

    Raises:
      InputError: no such optimizer.
    """
    parameters = inspect.signature(_lookup("optimizer", name, OPTIMIZERS)).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if isinstance(p.default, int | float)
        and not isinstance(p.default, bool)
        and p.name != "weight_decay"
    }


def decay_of(name: str, hparams: Mapping[str, float | None]) -> dict[str, float]:
    """The penalties and the decay that `optimizer` has in force, those that are not 0.

    Args:
      name: a key of `OPTIMIZERS`.
      hparams: numbers by the names that `optimizer` reads.

    Returns:
      The weight of each by its name, with the default decay of a method that has one.

    Raises:
      InputError: no such optimizer.
    """
    default = inspect.signature(_lookup("optimizer", name, OPTIMIZERS)).parameters
    decays = {"weight_decay": default["weight_decay"].default} if name in _DECAY_MASKS else {}
    names = ("l1_penalty", "l2_penalty", "weight_decay", *_OWN_PENALTIES)
    decays |= {k: hparams[k] for k in names if hparams.get(k) is not None}
    return {k: v for k, v in decays.items() if v}


def optimizer(
    name: str,
    *,
    clip_value: float | None = None,
    clip_norm: float | None = None,
    clip_global_norm: float | None = None,
    decay_all: bool = False,
) -> Optimizer:
    """The optimizer of that name, with clipping, penalties and weight decay around it.

    It reads these hyperparameters: `learning_rate`; the method's own `arguments`, where they are
    given; and, where given (a None counts as not given),

    - `l2_penalty` w adds w |params|^2 / 2 to what is minimized, so w params to the gradient;
    - `l1_penalty` w adds w |params|, so w sign(params) to the gradient;
    - `weight_decay` w is decoupled (Loshchilov and Hutter 2017, arXiv:1711.05101): it takes
      learning_rate w params off the parameters, past the method. lars and lamb have it inside
      their trust ratio, as their papers do. adamw and lion have optax's default, 1e-4 and 1e-3,
      where none is given; the other methods have none.

    For sgd an L2 penalty and a decoupled decay are the same. A method with momentum carries the
    penalty along from step to step, and one that scales its gradient, such as adam, scales the
    penalty too, so that weights with large gradients are shrunk less; a decoupled decay shrinks
    all by the same share.

    The loss's gradient is clipped first, by value, then norm, then global norm; then come the
    penalties, the method, and the decay.

    Args:
      name: a key of `OPTIMIZERS`.
      clip_value: the greatest absolute value in the gradient.
      clip_norm: the greatest norm of the gradient of each array.
      clip_global_norm: the greatest norm of the whole gradient (Pascanu et al. 2012,
        arXiv:1211.5063).
      decay_all: whether penalties (the methods' own `l1`, `l2` and `l2_shrinkage` among them) and
        decay act on all parameters, not on those of `decay_mask` alone.

    Returns:
      (hparams) -> optax transformation.

    Raises:
      InputError: no such optimizer, or a bound of a clipping that is not more than 0.
    """
    method = _lookup("optimizer", name, OPTIMIZERS)
    own = arguments(name)
    mask = (lambda params: jax.tree.map(lambda _: True, params)) if decay_all else decay_mask
    clips = []
    if _positive("clip_value", clip_value):
        clips.append(optax.clip(clip_value))
    if _positive("clip_norm", clip_norm):
        to_norm = lambda grad, _: optax.projections.projection_l2_ball(grad, clip_norm)
        clips.append(optax.stateless_with_tree_map(to_norm))
    if _positive("clip_global_norm", clip_global_norm):
        clips.append(optax.clip_by_global_norm(clip_global_norm))

    def build(hparams):
        given = {k: v for k, v in hparams.items() if v is not None}
        rate, decay = given["learning_rate"], given.get("weight_decay")
        values = {k: v for k, v in given.items() if k in own}
        chain = list(clips)
        if "l2_penalty" in given:
            chain.append(optax.add_decayed_weights(given["l2_penalty"], mask))
        if "l1_penalty" in given:
            add_sign = lambda grad, param: grad + given["l1_penalty"] * jnp.sign(param)
            chain.append(optax.masked(optax.stateless_with_tree_map(add_sign), mask))
        if name in _DECAY_MASKS:
            values[_DECAY_MASKS[name]] = mask
            if decay is not None:
                values["weight_decay"] = decay
        unpenalized = {k: v for k, v in values.items() if k not in _OWN_PENALTIES}
        if decay_all or len(unpenalized) == len(values):
            chain.append(method(rate, **values))
        else:
            both = {True: method(rate, **values), False: method(rate, **unpenalized)}
            chain.append(optax.partition(both, decay_mask))
        if decay is not None and name not in _DECAY_MASKS:
            chain.append(optax.add_decayed_weights(-rate * decay, mask))
        return optax.chain(*chain)

    return build


def _positive(name: str, bound: float | None) -> bool:
    """Whether a bound is given, and if so, that it is one."""
    if bound is not None and not 0 < bound < math.inf:
        raise InputError(f"{name}={bound}: it must be more than 0, finite")
    return bound is not None


def _constant(steps: int) -> optax.Schedule:
    return optax.constant_schedule(1.0)


def _linear(steps: int, end: float = 0.0) -> optax.Schedule:
    return optax.linear_schedule(1.0, end, steps)


def _step(
    steps: int, boundaries: tuple[float, ...] = (0.5, 0.75), factor: float = 0.1
) -> optax.Schedule:
    if not all(0 < share < 1 for share in boundaries):
        raise InputError(f"boundaries {boundaries}: each must be more than 0 and less than 1")
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


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
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


def schedule_arguments(name: str) -> dict[str, Any]:
    """What a schedule takes besides `steps`.

    Args:
      name: a key of `SCHEDULES`.

    Returns:
      Their names and defaults.

    Raises:
      InputError: no such schedule.
    """
    parameters = inspect.signature(_lookup("schedule", name, SCHEDULES)).parameters
    return {p.name: p.default for p in parameters.values() if p.name != "steps"}


def schedule(
    name: str,
    steps: int,
    warmup_steps: int = 0,
    *,
    least_momentum: float | None = None,
    **arguments: Any,
) -> Schedule:
    """The schedule of that name on `learning_rate` over `steps` steps.

    Args:
      name: a key of `SCHEDULES`.
      steps: the length of the whole training.
      warmup_steps: how many of those first raise the factor in a line from 0 to the named
        schedule's first (Goyal et al. 2017, arXiv:1706.02677); that schedule fills the rest.
      least_momentum: moves `momentum` in a line with the factor, from its own value at a factor of
        0 down to this at a factor of 1 (Smith 2018, arXiv:1803.09820); None leaves it.
      **arguments: the schedule's own.

    Returns:
      (hparams, step) -> hparams as they are at that step.

    Raises:
      InputError: no such schedule, an argument it does not take or cannot use, or a warm-up that
        leaves it no step; or there is no step at all.
    """
    build = _lookup("schedule", name, SCHEDULES)
    check_arguments("schedule", name, arguments)
    for argument in ("rate", "transitions", "power", "factor", "start", "cycles", "growth"):
        _positive(f"schedule {name}: {argument}", arguments.get(argument))
    if not 0 <= arguments.get("end", 0.0) < math.inf:
        raise InputError(f"schedule {name}: end={arguments['end']}: it must be at least 0, finite")
    if steps < 1:
        raise InputError(f"schedule {name}: steps={steps}: it must be at least 1")
    if not 0 <= warmup_steps < steps:
        raise InputError(f"a warm-up of {warmup_steps} steps does not fit in {steps} steps")
    factor = warm = build(max(steps - warmup_steps, 1), **arguments)
    if warmup_steps:
        # The first step learns too: it takes 1/(n+1) of the rate, not 0.
        rise = optax.linear_schedule(1 / (warmup_steps + 1), 1.0, warmup_steps)
        factor = optax.join_schedules([lambda step: rise(step) * warm(0), warm], [warmup_steps])

    def scheduled(hparams, step):
        now = factor(step)
        moved = {"learning_rate": hparams["learning_rate"] * now}
        if least_momentum is not None:
            if "momentum" not in hparams:
                raise InputError("least_momentum moves the hyperparameter momentum: there is none")
            momentum = hparams["momentum"]
            moved["momentum"] = momentum + (least_momentum - momentum) * now
        return {**hparams, **moved}

    return scheduled


def check_arguments(
    kind: Literal["optimizer", "schedule"], name: str, given: Mapping[str, Any]
) -> None:
    """Raises InputError when an optimizer or a schedule does not take one of the given arguments.

    Args:
      kind: which of the two `name` is.
      name: a key of `OPTIMIZERS` or `SCHEDULES`.
      given: arguments by name; their values do not matter.
    """
    accepted = arguments(name) if kind == "optimizer" else schedule_arguments(name)
    for argument in given:
        if argument not in accepted:
            takes = ", ".join(accepted) or "no argument of its own"
            raise InputError(f"{kind} {name} takes no {argument}; it takes {takes}")


def reduce_on_plateau(state: State, *, patience: Any, factor: Any = 0.1, least: Any = 0.0) -> State:
    """Cuts the learning rate when evaluations have not improved for a while.

    It reads `state.monitor`, which evaluations keep, and multiplies with any schedule.

    Args:
      state: after an evaluation.
      patience: how many evaluations, since the last better one or the last cut, call for a cut.
      factor: what the learning rate is multiplied with.
      least: the learning rate below which it is not cut.

    Returns:
      The state, with `hparams["learning_rate"]` cut and `monitor.since_cut` at 0 where it was due.
    """
    due = state.monitor.since_cut >= patience
    rate = state.hparams["learning_rate"]
    # A rate that is below the least already stays where it is.
    cut = jnp.maximum(rate * factor, jnp.minimum(rate, least))
    hparams = {**state.hparams, "learning_rate": jnp.where(due, cut, rate)}
    monitor = state.monitor._replace(since_cut=jnp.where(due, 0, state.monitor.since_cut))
    return state._replace(hparams=hparams, monitor=monitor)


def ema_update(shadow: Any, value: Any, decay: Any, num_updates: Any = None) -> Any:
    """One step of an exponential moving average: shadow + (1 - decay) (value - shadow).

    With `num_updates` early averages follow faster, as in TensorFlow's
    tf.train.ExponentialMovingAverage: the decay is min(decay, (1 + n) / (10 + n)).

    Args:
      shadow: the averages, a pytree. What is not floating (counts, keys) takes the new value.
      value: the new values, a pytree alike.
      decay: in [0, 1); may be traced.
      num_updates: n, how many updates were made before; None for a constant decay.

    Returns:
      The new averages, of the types of `shadow`.
    """
    if num_updates is not None:
        decay = jnp.minimum(decay, (1 + num_updates) / (10 + num_updates))

    def average(old, new):
        if not jnp.issubdtype(jnp.result_type(old), jnp.inexact):
            return new
        return (old + (1 - decay) * (new - old)).astype(old.dtype)

    return jax.tree.map(average, shadow, value)


def averaged(task: Task) -> Task:
    """Keeps moving averages of what a Task trains, and evaluates them beside the raw values.

    After each update `State.average` moves towards `params` and `extra` (batch statistics belong to
    the weights that made them) with the decay of the hyperparameter `ema_decay`, which is less at
    first (`ema_update` with `num_updates`). `eval` reports each metric of the averages as
    `ema_name` beside `name`.
    """
    trained = lambda state: {"params": state.params, "extra": state.extra}

    def init(key, hparams):
        state = task.init(key, hparams)
        return state._replace(average=trained(state))

    def train(state, batch):
        new, metrics = task.train(state, batch)
        decay = state.hparams["ema_decay"]
        average = ema_update(state.average, trained(new), decay, state.step)
        return new._replace(average=average), metrics

    def evaluate(state, batch):
        of_average = task.eval(state._replace(**state.average), batch)
        return task.eval(state, batch) | {f"ema_{k}": mean for k, mean in of_average.items()}

    return task._replace(init=init, train=train, eval=evaluate)


def _lookup(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    if name not in table:
        close = difflib.get_close_matches(name, table, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"no {kind} {name!r}; there are {', '.join(sorted(table))}{hint}")
    return table[name]
