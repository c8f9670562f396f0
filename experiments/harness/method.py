"""The flags of optimizers and schedules, for the dataclasses of experiments to inherit."""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from experiments.harness import training
from experiments.harness.cli import flag, require
from jaxdl import InputError, optim, schedules
from jaxdl.methods import Argument
from jaxdl.task import Optimizer, Schedule


def _flags_of(table: Mapping[str, Argument], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """The fields of a dataclass that has a flag for each argument, by default not given."""
    fields: list[tuple[str, Any, Any]] = []
    for name, argument in table.items():
        is_list = typing.get_origin(argument.type) is tuple
        default, type_ = ((), argument.type) if is_list else (None, argument.type | None)
        help = f"of {', '.join(argument.defaults)}: {argument.help}"
        fields.append((f"{prefix}{name}", type_, flag(default, help)))
    return fields


_ScheduleFields: Any = dataclasses.make_dataclass(
    "_ScheduleFields", _flags_of(schedules.ARGUMENTS, "schedule_"), frozen=True
)


@dataclasses.dataclass(frozen=True)
class ScheduleArguments(_ScheduleFields):
    """The arguments of schedules; what is not given is as the schedule has it."""

    @property
    def schedule_arguments(self) -> dict[str, Any]:
        """Those given, by the names that `schedules.SCHEDULES` has for them."""
        values = {name: getattr(self, f"schedule_{name}") for name in schedules.ARGUMENTS}
        return {k: v for k, v in values.items() if v is not None and v != ()}


GREATEST = 3e38
GRADIENT_DESCENT = ("sgd", "momentum", "nesterov")
"""Gradient descent, with momentum or without: the penalty that suits one suits the others."""


def _method(values: Any) -> str:
    return GRADIENT_DESCENT[0] if values.optimizer in GRADIENT_DESCENT else values.optimizer


@dataclasses.dataclass(frozen=True)
class _Method(ScheduleArguments):
    optimizer: str = flag("nesterov", "the method", tuple(optim.OPTIMIZERS))
    learning_rate: float = flag(0.1, optim.COMMON["learning_rate"].help)


_MethodFields: Any = dataclasses.make_dataclass(
    "_MethodFields", _flags_of(optim.ARGUMENTS), bases=(_Method,), frozen=True
)


@dataclasses.dataclass(frozen=True)
class MethodFlags(_MethodFields):
    """How to minimize, and at what rate; what is not given is as the method has it."""

    # What a flagfile says of these, it says of its own method: see cli.parse.
    BELONGS_TO: ClassVar[dict[str, Callable[[Any], Any]]] = {
        **dict.fromkeys(optim.ARGUMENTS, _method),
        **dict.fromkeys(("least_momentum", "l1_penalty", "weight_decay"), _method),
        "l2_penalty": lambda values: (_method(values), values.weight_decay),
        **{f"schedule_{name}": lambda values: values.schedule for name in schedules.ARGUMENTS},
    }

    l1_penalty: float | None = flag(None, optim.COMMON["l1_penalty"].help)
    l2_penalty: float | None = flag(
        None,
        f"{optim.COMMON['l2_penalty'].help}; a flagfile's is left out where the command line has "
        "another --optimizer or --weight_decay",
    )
    weight_decay: float | None = flag(
        None,
        f"{optim.COMMON['weight_decay'].help}; a flagfile's is left out where the command line has "
        "another --optimizer",
    )
    decay_all: bool = flag(False, "penalties and decay act on biases and norm scales too")
    schedule: str = flag("cosine", "of the learning rate after warm-up", tuple(schedules.SCHEDULES))
    least_momentum: float | None = flag(None, schedules.LEAST_MOMENTUM.help)
    clip_value: float | None = flag(None, optim.COMMON["clip_value"].help)
    clip_norm: float | None = flag(None, optim.COMMON["clip_norm"].help)
    clip_global_norm: float | None = flag(None, optim.COMMON["clip_global_norm"].help)

    @property
    def optimizer_arguments(self) -> dict[str, float]:
        """The given ones of those that only some methods take."""
        values = {name: getattr(self, name) for name in optim.ARGUMENTS}
        return {k: v for k, v in values.items() if v is not None}

    def check_method(self) -> None:
        """Raises InputError for an argument of another method, or a value that cannot be."""
        # By name alone: what is out of bounds is told as a flag.
        optim.check_arguments(self.optimizer, dict.fromkeys(self.optimizer_arguments))
        schedules.check_arguments(self.schedule, dict.fromkeys(self.schedule_arguments))
        known = optim.ARGUMENTS | optim.COMMON | {"least_momentum": schedules.LEAST_MOMENTUM}
        for name, argument in known.items():
            value, bound = getattr(self, name), argument.bound
            if value is not None and bound is not None:
                require(self, name, bound.holds(value), bound.accepted)
                finite = abs(value) < GREATEST
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
