"""Optimizers by name, with hyperparameters as data; penalties, decay and averages.

What optax has is used as it is. `optimizer` takes no value that a sweep may vary: it returns a
function of a step's hyperparameters, which may be traced (see `jaxdl.task.supervised`).
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdl import methods
from jaxdl.methods import NOT_NEGATIVE, NOT_POSITIVE, POSITIVE, SHARE, Argument, lookup
from jaxdl.proximal import Rate, adagrad_da, ftrl, proximal_adagrad, proximal_sgd, rprop
from jaxdl.task import Optimizer, State, Task


def decay_mask(params: Any) -> Any:
    """True for what weight decay shrinks: kernels, never biases or norm scales (rank 0 and 1)."""
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)


class Method(Protocol):
    """Makes an optax transformation from a learning rate and the method's own arguments."""

    def __call__(
        self, learning_rate: Rate, /, *args: Any, **arguments: Any
    ) -> optax.GradientTransformation:
        """The transformation; every number may be traced."""


OPTIMIZERS: dict[str, Method] = {
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
2019, arXiv:1904.00962. The others are those of `jaxdl.proximal`.
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
    parameters = inspect.signature(lookup("optimizer", name, OPTIMIZERS)).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if isinstance(p.default, int | float)
        and not isinstance(p.default, bool)
        and p.name != "weight_decay"
    }


ARGUMENTS = methods.with_defaults(
    {
        "momentum": Argument("share of the last update kept", SHARE),
        "b1": Argument("decay of the averaged gradient", SHARE),
        "b2": Argument("decay of the averaged squares", SHARE),
        "eps": Argument("what keeps a denominator from 0", NOT_NEGATIVE),
        "eps_root": Argument("the same, inside the root", NOT_NEGATIVE),
        "decay": Argument("decay of the averaged squares", SHARE),
        "initial_scale": Argument("where the averaged squares start", NOT_NEGATIVE),
        "rho": Argument("decay of both averages", SHARE),
        "eta_minus": Argument("factor on a step size after a change of sign", POSITIVE),
        "eta_plus": Argument("factor on a step size otherwise", POSITIVE),
        "min_step_size": Argument("the least step size", POSITIVE),
        "max_step_size": Argument("the greatest step size", POSITIVE),
        "trust_coefficient": Argument("share of a kernel's norm that a step moves it", POSITIVE),
        "initial_accumulator_value": Argument("where the sum of squares starts", POSITIVE),
        "l1": Argument("weight of their own L1 penalty", NOT_NEGATIVE),
        "l2": Argument("weight of their own L2 penalty", NOT_NEGATIVE),
        "l2_shrinkage": Argument("weight of an L2 penalty in the gradient", NOT_NEGATIVE),
        "learning_rate_power": Argument(
            "power of the sum of squares in the rate, at most 0", NOT_POSITIVE
        ),
        "beta": Argument("smoothing of the rate", NOT_NEGATIVE),
    },
    {name: arguments(name) for name in OPTIMIZERS},
)
"""What the methods' arguments may be, and which methods take them."""

COMMON = {
    "learning_rate": Argument("its peak", NOT_NEGATIVE),
    "l1_penalty": Argument("weight of |params| in what is minimized", NOT_NEGATIVE),
    "l2_penalty": Argument("weight of |params|^2 / 2 in what is minimized", NOT_NEGATIVE),
    "weight_decay": Argument(
        "share of the parameters, times the learning rate, taken off past the method", NOT_NEGATIVE
    ),
    "clip_value": Argument("greatest absolute value in the gradient", POSITIVE),
    "clip_norm": Argument("greatest norm of the gradient of each array", POSITIVE),
    "clip_global_norm": Argument("greatest norm of the whole gradient", POSITIVE),
}
"""What `optimizer` and its hyperparameters may be, whatever the method."""


def check_arguments(name: str, given: Mapping[str, Any]) -> None:
    """Raises InputError for an argument that a method does not take, or a value out of bounds.

    Args:
      name: a key of `OPTIMIZERS`.
      given: values by the names of arguments; with a value of None the name alone is checked.
    """
    methods.check(f"optimizer {name}", arguments(name), ARGUMENTS, given)


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
    default = inspect.signature(lookup("optimizer", name, OPTIMIZERS)).parameters
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

    >>> transform = optimizer("momentum")({"learning_rate": 0.5, "momentum": 0.9})
    >>> updates, _ = transform.update(jnp.ones(2), transform.init(jnp.zeros(2)))
    >>> updates.tolist()
    [-0.5, -0.5]

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
    method = lookup("optimizer", name, OPTIMIZERS)
    own = arguments(name)
    mask = (lambda params: jax.tree.map(lambda _: True, params)) if decay_all else decay_mask
    clips = _clips(clip_value, clip_norm, clip_global_norm)

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
        return _promoting(optax.chain(*chain))

    return build


def _promoting(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same under strict promotion of types, where optax multiplies rates with its counts."""

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return transform.update(updates, state, params)

    return optax.GradientTransformation(transform.init, update)


def _clips(
    value: float | None, norm: float | None, global_norm: float | None
) -> list[optax.GradientTransformation]:
    given = {"clip_value": value, "clip_norm": norm, "clip_global_norm": global_norm}
    for name, bound in given.items():
        if bound is not None:
            methods.check_bound(name, bound, COMMON[name].bound)
    clips = []
    if value is not None:
        clips.append(optax.clip(value))
    if norm is not None:
        to_norm = lambda grad, _: optax.projections.projection_l2_ball(grad, norm)
        clips.append(optax.stateless_with_tree_map(to_norm))
    if global_norm is not None:
        clips.append(optax.clip_by_global_norm(global_norm))
    return clips


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
        wide = np.promote_types(old.dtype, jnp.float32)
        start = old.astype(wide)
        return (start + (1 - decay) * (new.astype(wide) - start)).astype(old.dtype)

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
