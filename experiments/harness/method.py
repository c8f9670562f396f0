"""The flags of optimizers and schedules, for the dataclasses of experiments to inherit."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from experiments.harness import training
from experiments.harness.cli import flag, require
from jaxdl import InputError, optim, schedules
from jaxdl.task import Optimizer, Schedule


@dataclasses.dataclass(frozen=True)
class ScheduleArguments:
    """The arguments of schedules; what is not given is as the schedule has it."""

    schedule_boundaries: tuple[float, ...] = flag((), "of step: shares of the training")
    schedule_factor: float | None = flag(None, "of step: at each boundary")
    schedule_rate: float | None = flag(None, "of exponential, inverse_time: of each transition")
    schedule_transitions: float | None = flag(None, "of exponential, inverse_time: in all")
    schedule_staircase: bool | None = flag(None, "of exponential, inverse_time: in whole steps")
    schedule_power: float | None = flag(None, "of polynomial")
    schedule_peak: float | None = flag(None, "of one_cycle: share of the training that rises")
    schedule_start: float | None = flag(None, "of one_cycle: the first factor")
    schedule_cycles: int | None = flag(None, "of restarts")
    schedule_growth: float | None = flag(None, "of restarts: of each cycle's length over the last")
    schedule_end: float | None = flag(
        None, "of linear, polynomial, cosine, one_cycle, restarts: the last factor"
    )

    @property
    def schedule_arguments(self) -> dict[str, Any]:
        """Those given, by the names that `schedules.SCHEDULES` has for them."""
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


GREATEST = 3e38
GRADIENT_DESCENT = ("sgd", "momentum", "nesterov")
"""Gradient descent, with momentum or without: the penalty that suits one suits the others."""


def _method(values: Any) -> str:
    return GRADIENT_DESCENT[0] if values.optimizer in GRADIENT_DESCENT else values.optimizer


@dataclasses.dataclass(frozen=True)
class MethodFlags(ScheduleArguments):
    """How to minimize, and at what rate; what is not given is as the method has it."""

    # What a flagfile says of these, it says of its own method: see cli.parse.
    BELONGS_TO: ClassVar[dict[str, Callable[[Any], Any]]] = {
        **{name: _method for method in optim.OPTIMIZERS for name in optim.arguments(method)},
        **dict.fromkeys(("least_momentum", "l1_penalty", "weight_decay"), _method),
        "l2_penalty": lambda values: (_method(values), values.weight_decay),
        **{
            field.name: lambda values: values.schedule
            for field in dataclasses.fields(ScheduleArguments)
        },
    }

    optimizer: str = flag("nesterov", "the method", tuple(optim.OPTIMIZERS))
    learning_rate: float = flag(0.1, "its peak")
    momentum: float | None = flag(None, "share of the last update kept; 0.9, 0 for rmsprop")
    b1: float | None = flag(None, "of adam and its kin: decay of the averaged gradient")
    b2: float | None = flag(None, "of adam and its kin: decay of the averaged squares")
    eps: float | None = flag(None, "what keeps a denominator from 0")
    eps_root: float | None = flag(None, "of adam and its kin: the same, inside the root")
    decay: float | None = flag(None, "of rmsprop: decay of the averaged squares")
    initial_scale: float | None = flag(None, "of rmsprop: where the averaged squares start")
    rho: float | None = flag(None, "of adadelta: decay of both averages")
    eta_minus: float | None = flag(None, "of rprop: factor on a step size after a change of sign")
    eta_plus: float | None = flag(None, "of rprop: factor on a step size otherwise")
    min_step_size: float | None = flag(None, "of rprop")
    max_step_size: float | None = flag(None, "of rprop")
    trust_coefficient: float | None = flag(None, "of lars")
    initial_accumulator_value: float | None = flag(
        None, "of adagrad, adagrad_da, proximal_adagrad, ftrl: where the sum of squares starts"
    )
    l1: float | None = flag(None, "of adagrad_da, proximal_*, ftrl: weight of their own L1 penalty")
    l2: float | None = flag(None, "of adagrad_da, proximal_*, ftrl: weight of their own L2 penalty")
    l2_shrinkage: float | None = flag(None, "of ftrl: weight of an L2 penalty in the gradient")
    learning_rate_power: float | None = flag(None, "of ftrl: at most 0")
    beta: float | None = flag(None, "of ftrl: smoothing of the rate")
    l1_penalty: float | None = flag(None, "weight of |params| in what is minimized")
    l2_penalty: float | None = flag(
        None,
        "weight of |params|^2 / 2 in what is minimized; a flagfile's is left out where the command "
        "line has another --optimizer or --weight_decay",
    )
    weight_decay: float | None = flag(
        None,
        "share of the parameters, times the learning rate, taken off past the method; a flagfile's "
        "is left out where the command line has another --optimizer",
    )
    decay_all: bool = flag(False, "penalties and decay act on biases and norm scales too")
    schedule: str = flag("cosine", "of the learning rate after warm-up", tuple(schedules.SCHEDULES))
    least_momentum: float | None = flag(
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

    def check_method(self) -> None:
        """Raises InputError for an argument of another method, or a value that cannot be."""
        optim.check_arguments(self.optimizer, dict.fromkeys(self.optimizer_arguments))
        schedules.check_arguments(self.schedule, dict.fromkeys(self.schedule_arguments))
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

    def method_in_words(self, warmup_steps: int = 0) -> str:
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
        return schedules.schedule(
            self.schedule,
            steps,
            warmup_steps,
            least_momentum=self.least_momentum,
            **self.schedule_arguments,
        )


def warmup_steps(config: Any, name: str, steps: int, unit: float = 1.0) -> int:
    """The steps of the warm-up that a flag asks for; its default gives way to a shorter run.

    Args:
      config: the flags of a run with a method.
      name: the flag of the warm-up.
      steps: of the whole run.
      unit: how many steps the flag counts as one.

    Raises:
      InputError: another warm-up than the default leaves no step after it, in a new run.
    """
    asked, is_default = getattr(config, name), getattr(config, name) == getattr(type(config), name)
    goes_on = config.workdir != "" and training.holds_run(config.workdir)
    fits = round(asked * unit) < steps or is_default or goes_on
    require(config, name, fits, f"less than {steps / unit:.3g}, the {steps} steps of the run")
    return min(round(asked * unit), steps - 1)
