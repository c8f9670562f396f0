"""The flags of optimizers and schedules, and the Task that they make of a network's loss."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from experiments.harness import cli, run_folder
from experiments.harness.cli import flag, require
from jaxdl import InputError, optim
from jaxdl.task import Init, Loss, Optimizer, Schedule, Task, supervised

GREATEST = 3e38
GRADIENT_DESCENT = ("sgd", "momentum", "nesterov")
"""Gradient descent, with momentum or without: the penalty that suits one suits the others."""


def _method(values: Mapping[str, Any]) -> str:
    optimizer = values["optimizer"]
    return GRADIENT_DESCENT[0] if optimizer in GRADIENT_DESCENT else optimizer


_of_schedule = functools.partial(flag, belongs_to=lambda values: values["schedule"])
_of_method = functools.partial(flag, belongs_to=_method)


@dataclasses.dataclass(frozen=True)
class ScheduleArguments:
    """The arguments of schedules; what is not given is as the schedule has it."""

    schedule_boundaries: tuple[float, ...] = _of_schedule((), "of step: shares of the training")
    schedule_factor: float | None = _of_schedule(None, "of step: at each boundary")
    schedule_rate: float | None = _of_schedule(
        None, "of exponential, inverse_time: of each transition"
    )
    schedule_transitions: float | None = _of_schedule(None, "of exponential, inverse_time: in all")
    schedule_staircase: bool | None = _of_schedule(
        None, "of exponential, inverse_time: in whole steps"
    )
    schedule_power: float | None = _of_schedule(None, "of polynomial")
    schedule_peak: float | None = _of_schedule(
        None, "of one_cycle: share of the training that rises"
    )
    schedule_start: float | None = _of_schedule(None, "of one_cycle: the first factor")
    schedule_cycles: int | None = _of_schedule(None, "of restarts")
    schedule_growth: float | None = _of_schedule(
        None, "of restarts: of each cycle's length over the last"
    )
    schedule_end: float | None = _of_schedule(
        None, "of linear, polynomial, cosine, one_cycle, restarts: the last factor"
    )

    @property
    def schedule_arguments(self) -> dict[str, Any]:
        """Those given, by the names that `optim.SCHEDULES` has for them."""
        values = {
            field.name.removeprefix("schedule_"): getattr(self, field.name)
            for field in dataclasses.fields(ScheduleArguments)
        }
        return {k: v for k, v in values.items() if v is not None and v != ()}


_RANGES: list[tuple[str, Callable[[float], bool], tuple[str, ...]]] = [
    (
        "at least 0 and less than 1",
        lambda value: 0 <= value < 1,
        ("momentum", "least_momentum", "b1", "b2", "decay", "rho"),
    ),
    (
        "at least 0",
        lambda value: value >= 0,
        (
            *("learning_rate", "weight_decay", "l1_penalty", "l2_penalty"),
            *("eps", "eps_root", "initial_scale", "l1", "l2", "l2_shrinkage", "beta"),
        ),
    ),
    (
        "more than 0",
        lambda value: value > 0,
        (
            *("clip_value", "clip_norm", "clip_global_norm", "initial_accumulator_value"),
            *("eta_minus", "eta_plus", "min_step_size", "max_step_size", "trust_coefficient"),
        ),
    ),
    ("at most 0", lambda value: value <= 0, ("learning_rate_power",)),
]


@dataclasses.dataclass(frozen=True)
class MethodFlags(ScheduleArguments):
    """How to minimize, and at what rate; what is not given is as the method has it."""

    optimizer: str = flag("nesterov", "the method", tuple(optim.OPTIMIZERS))
    learning_rate: float = flag(0.1, "its peak")
    momentum: float | None = _of_method(None, "share of the last update kept; 0.9, 0 for rmsprop")
    b1: float | None = _of_method(None, "of adam and its kin: decay of the averaged gradient")
    b2: float | None = _of_method(None, "of adam and its kin: decay of the averaged squares")
    eps: float | None = _of_method(None, "what keeps a denominator from 0")
    eps_root: float | None = _of_method(None, "of adam and its kin: the same, inside the root")
    decay: float | None = _of_method(None, "of rmsprop: decay of the averaged squares")
    initial_scale: float | None = _of_method(None, "of rmsprop: where the averaged squares start")
    rho: float | None = _of_method(None, "of adadelta: decay of both averages")
    eta_minus: float | None = _of_method(
        None, "of rprop: factor on a step size after a change of sign"
    )
    eta_plus: float | None = _of_method(None, "of rprop: factor on a step size otherwise")
    min_step_size: float | None = _of_method(None, "of rprop")
    max_step_size: float | None = _of_method(None, "of rprop")
    trust_coefficient: float | None = _of_method(None, "of lars")
    initial_accumulator_value: float | None = _of_method(
        None, "of adagrad, adagrad_da, proximal_adagrad, ftrl: where the sum of squares starts"
    )
    l1: float | None = _of_method(
        None, "of adagrad_da, proximal_*, ftrl: weight of their own L1 penalty"
    )
    l2: float | None = _of_method(
        None, "of adagrad_da, proximal_*, ftrl: weight of their own L2 penalty"
    )
    l2_shrinkage: float | None = _of_method(
        None, "of ftrl: weight of an L2 penalty in the gradient"
    )
    learning_rate_power: float | None = _of_method(None, "of ftrl: at most 0")
    beta: float | None = _of_method(None, "of ftrl: smoothing of the rate")
    l1_penalty: float | None = _of_method(None, "weight of |params| in what is minimized")
    l2_penalty: float | None = flag(
        None,
        "weight of |params|^2 / 2 in what is minimized; a flagfile's is left out where the command "
        "line has another --optimizer or --weight_decay",
        belongs_to=lambda values: (_method(values), values["weight_decay"]),
    )
    weight_decay: float | None = _of_method(
        None,
        "share of the parameters, times the learning rate, taken off past the method; a flagfile's "
        "is left out where the command line has another --optimizer",
    )
    decay_all: bool = flag(False, "penalties and decay act on biases and norm scales too")
    schedule: str = flag("cosine", "of the learning rate after warm-up", tuple(optim.SCHEDULES))
    least_momentum: float | None = _of_method(
        None, "what momentum falls to as the learning rate rises to its peak"
    )
    clip_value: float | None = flag(None, "greatest absolute value in the gradient")
    clip_norm: float | None = flag(None, "greatest norm of the gradient of each array")
    clip_global_norm: float | None = flag(None, "greatest norm of the whole gradient")

    @property
    def optimizer_arguments(self) -> dict[str, float]:
        """The given ones of those that only some methods take."""
        known = {a for method in optim.OPTIMIZERS for a in optim.arguments(method)}
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: v for k, v in values.items() if k in known and v is not None}

    def __post_init__(self) -> None:
        """Raises InputError for an argument of another method, or a value that cannot be."""
        optim.check_arguments("optimizer", self.optimizer, self.optimizer_arguments)
        optim.check_arguments("schedule", self.schedule, self.schedule_arguments)
        for accepted, fits, names in _RANGES:
            for name in names:
                value = getattr(self, name)
                require(self, name, value is None or fits(value), accepted)
                finite = value is None or abs(value) < GREATEST
                require(self, name, finite, f"less than {GREATEST:g}, to be finite in float32")
        ftrl_moves = self.optimizer != "ftrl" or self.learning_rate > 0  # it divides by the rate
        require(self, "learning_rate", ftrl_moves, "more than 0 for ftrl")
        if self.least_momentum is not None and "momentum" not in self.hparams:
            raise InputError(f"--least_momentum: optimizer {self.optimizer} has no momentum")

    @property
    def hparams(self) -> dict[str, float]:
        """The hyperparameters that were given, and momentum where the method has one."""
        common = {
            name: getattr(self, name)
            for name in ("learning_rate", "l1_penalty", "l2_penalty", "weight_decay")
        }
        given = {k: v for k, v in common.items() if v is not None} | self.optimizer_arguments
        defaults = optim.arguments(self.optimizer)
        return {k: v for k, v in defaults.items() if k == "momentum"} | given

    def in_words(self, warmup_steps: int = 0) -> str:
        """The optimizer, what decays and the warm-up, in words."""
        decays = optim.decay_of(self.optimizer, self.hparams).items()
        parts = [f"{name} {value:g}" for name, value in decays] or ["no decay"]
        if warmup_steps:
            parts.append(f"{warmup_steps} step{'s' * (warmup_steps > 1)} of warm-up")
        return f"{self.optimizer} with {' and '.join(parts)}"

    def make_optimizer(self) -> Optimizer:
        """The optimizer that the flags describe."""
        return optim.optimizer(
            self.optimizer,
            clip_value=self.clip_value,
            clip_norm=self.clip_norm,
            clip_global_norm=self.clip_global_norm,
            decay_all=self.decay_all,
        )

    def make_schedule(self, steps: int, warmup_steps: int) -> Schedule:
        """The schedule that the flags describe."""
        return optim.schedule(
            self.schedule,
            steps,
            warmup_steps,
            least_momentum=self.least_momentum,
            **self.schedule_arguments,
        )


def supervised_task(
    config: Any,
    init: Init,
    loss: Loss,
    optimizer: Optimizer,
    schedule: Schedule,
    axis_name: str | None,
) -> Task:
    """The Task of one network, with batches in the parts and numbers of the precision of a run.

    Args:
      config: a run's flags.
      init: of the network, see `jaxdl.task.supervised`; as the other parts.
      loss: of the network.
      optimizer: what minimizes it.
      schedule: of the hyperparameters.
      axis_name: the mapped axis that is the devices; None for one program over all.
    """
    return supervised(
        init,
        loss,
        optimizer,
        schedule,
        accumulate=config.run.grad_accum,
        loss_scaling=config.run.precision == "float16",
        axis_name=axis_name,
    )


def warmup_steps(config: Any, name: str, steps: int, unit: float = 1.0) -> int:
    """The steps of the warm-up that a flag asks for; its default gives way to a shorter run.

    Args:
      config: the flags of a run with a method.
      name: the flag of the warm-up.
      steps: of the whole run.
      unit: how many steps the flag counts as one.

    Raises:
      InputError: the warm-up that was given leaves no step after it, in a new run.
    """
    asked = cli.to_dict(config)[name]
    goes_on = config.run.workdir != "" and run_folder.holds_run(config.run.workdir)
    fits = round(asked * unit) < steps or name not in config.run.given or goes_on
    require(config, name, fits, f"less than {steps / unit:.3g}, the {steps} steps of the run")
    return min(round(asked * unit), steps - 1)
