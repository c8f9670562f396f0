"""Optimizers and schedules by name, with hyperparameters as data; weight-decay masks.

What optax has is used as it is. A function here takes the hyperparameters of a step, which may be
traced, and returns the optax transformation with those values (see `jaxdl.task.supervised`).
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdl import InputError
from jaxdl.task import Optimizer, Schedule

Hparams = Mapping[str, Any]


def decay_mask(params: Any) -> Any:
    """True for what weight decay shrinks: kernels, never biases or norm scales (rank 0 and 1)."""
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)


def _decayed(transform: optax.GradientTransformation, h: Hparams) -> optax.GradientTransformation:
    """Adds the gradient of an L2 penalty, w * |params|^2 / 2, before the transform sees it."""
    return optax.chain(optax.add_decayed_weights(h["weight_decay"], decay_mask), transform)


OPTIMIZERS: dict[str, Callable[[Hparams], optax.GradientTransformation]] = {
    "sgd": lambda h: _decayed(optax.sgd(h["learning_rate"]), h),
    "momentum": lambda h: _decayed(optax.sgd(h["learning_rate"], h["momentum"]), h),
    "nesterov": lambda h: _decayed(optax.sgd(h["learning_rate"], h["momentum"], nesterov=True), h),
    "rmsprop": lambda h: _decayed(optax.rmsprop(h["learning_rate"], momentum=h["momentum"]), h),
    "adam": lambda h: _decayed(optax.adam(h["learning_rate"]), h),
    "adamw": lambda h: optax.adamw(
        h["learning_rate"], weight_decay=h["weight_decay"], mask=decay_mask
    ),
    "lars": lambda h: optax.lars(
        h["learning_rate"],
        weight_decay=h["weight_decay"],
        weight_decay_mask=decay_mask,
        trust_ratio_mask=decay_mask,
        momentum=h["momentum"],
    ),
    "lamb": lambda h: optax.lamb(
        h["learning_rate"], weight_decay=h["weight_decay"], mask=decay_mask
    ),
}
"""Hyperparameters read: `learning_rate`, `weight_decay`, and `momentum` where the method has one.

`weight_decay` is an L2 penalty inside the gradient, as in the papers of its time, for all but
adamw, lars and lamb, whose papers define a decay of their own."""


def optimizer(name: str, clip_norm: float | None = None) -> Optimizer:
    """The optimizer of that name, after clipping the gradient to a global norm.

    Args:
      name: a key of `OPTIMIZERS`.
      clip_norm: the greatest global norm of the gradient (Pascanu et al. 2012, arXiv:1211.5063);
        None for no clipping.

    Raises:
      InputError: no such optimizer.
    """
    build = _lookup("optimizer", name, OPTIMIZERS)
    if clip_norm is None:
        return build
    return lambda h: optax.chain(optax.clip_by_global_norm(clip_norm), build(h))


def _step_decay(steps: int) -> optax.Schedule:
    """A tenth after one half of the training, and again after three quarters."""
    return optax.piecewise_constant_schedule(1.0, {steps // 2: 0.1, steps * 3 // 4: 0.1})


SCHEDULES: dict[str, Callable[[int], optax.Schedule]] = {
    "constant": lambda steps: optax.constant_schedule(1.0),
    "cosine": lambda steps: optax.cosine_decay_schedule(1.0, max(steps, 1)),
    "linear": lambda steps: optax.linear_schedule(1.0, 0.0, steps),
    "step": _step_decay,
}
"""(steps) -> the factor on the learning rate at each step; cosine is Loshchilov and Hutter 2016,
arXiv:1608.03983; step is the CIFAR schedule of He et al. 2015, arXiv:1512.03385."""


def schedule(name: str, steps: int, warmup_steps: int = 0) -> Schedule:
    """The schedule of that name on `learning_rate`, from 1 to its end over `steps` steps.

    Args:
      name: a key of `SCHEDULES`.
      steps: the length of the whole training.
      warmup_steps: how many of those first raise the factor from 0 in a line (Goyal et al. 2017,
        arXiv:1706.02677); the named schedule fills the rest.

    Raises:
      InputError: no such schedule, or a warm-up that leaves it no step.
    """
    build = _lookup("schedule", name, SCHEDULES)
    if not 0 <= warmup_steps < max(steps, 1):
        raise InputError(f"a warm-up of {warmup_steps} steps does not fit in {steps} steps")
    factor = build(steps - warmup_steps)
    if warmup_steps:
        # The first step learns too: it takes 1/(n+1) of the rate, not 0.
        warmup = optax.linear_schedule(1 / (warmup_steps + 1), 1.0, warmup_steps)
        factor = optax.join_schedules([warmup, factor], [warmup_steps])

    def scheduled(hparams, step):
        return {**hparams, "learning_rate": hparams["learning_rate"] * factor(step)}

    return scheduled


def _lookup(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    if name not in table:
        close = difflib.get_close_matches(name, table, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"no {kind} {name!r}; there are {', '.join(sorted(table))}{hint}")
    return table[name]
