"""The flags of optimizers and schedules, and the Task that they make of a network's loss."""

import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Any

from experiments.harness import cli, run_folder
from experiments.harness.cli import flag, require
from jaxdl import InputError, optim, schedules
from jaxdl.methods import Argument
from jaxdl.task import Init, Loss, Optimizer, Schedule, Task, supervised

GREATEST = 3e38
GRADIENT_DESCENT = ("sgd", "momentum", "nesterov")
"""Gradient descent, with momentum or without: the penalty that suits one suits the others."""


def _method(values: Mapping[str, Any]) -> str:
    optimizer = values["optimizer"]
    return GRADIENT_DESCENT[0] if optimizer in GRADIENT_DESCENT else optimizer


_of_method = functools.partial(flag, None, belongs_to=_method)
_of_schedule = functools.partial(flag, belongs_to=lambda values: values.get("schedule"))


def _fields(table: Mapping[str, Argument], make: Any, prefix: str = "") -> list[tuple]:
    """The fields of a dataclass with a flag for each argument of a table, by default not given."""
    fields = []
    for name, argument in table.items():
        is_list = typing.get_origin(argument.type) is tuple
        default, type_ = ((), argument.type) if is_list else (None, argument.type | None)
        help = f"of {', '.join(argument.defaults)}: {argument.help}"
        fields.append((f"{prefix}{name}", type_, make(default, help)))
    return fields


_ScheduleFields: Any = dataclasses.make_dataclass(
    "_ScheduleFields", _fields(schedules.ARGUMENTS, _of_schedule, "schedule_"), frozen=True
)


@dataclasses.dataclass(frozen=True)
class ScheduleArguments(_ScheduleFields):
    """The arguments of schedules; what is not given is as the schedule has it."""

    @property
    def schedule_arguments(self) -> dict[str, Any]:
        """Those given, by the names that `schedules.SCHEDULES` has for them."""
        values = {name: getattr(self, f"schedule_{name}") for name in schedules.ARGUMENTS}
        return {k: v for k, v in values.items() if v is not None and v != ()}


@dataclasses.dataclass(frozen=True)
class _Method(ScheduleArguments):
    optimizer: str = flag("nesterov", "the method", tuple(optim.OPTIMIZERS))
    learning_rate: float = flag(0.1, optim.COMMON["learning_rate"].help)


_MethodFields: Any = dataclasses.make_dataclass(
    "_MethodFields",
    _fields(optim.ARGUMENTS, functools.partial(flag, belongs_to=_method)),
    bases=(_Method,),
    frozen=True,
)


@dataclasses.dataclass(frozen=True)
class MethodFlags(_MethodFields):
    """How to minimize, and at what rate; what is not given is as the method has it."""

    l1_penalty: float | None = _of_method(optim.COMMON["l1_penalty"].help)
    l2_penalty: float | None = flag(
        None,
        f"{optim.COMMON['l2_penalty'].help}; a flagfile's is left out where the command line has "
        "another --optimizer or --weight_decay",
        belongs_to=lambda values: (_method(values), values["weight_decay"]),
    )
    weight_decay: float | None = _of_method(
        f"{optim.COMMON['weight_decay'].help}; a flagfile's is left out where the command line has "
        "another --optimizer"
    )
    decay_all: bool = flag(False, "penalties and decay act on biases and norm scales too")
    schedule: str = flag("cosine", "of the learning rate after warm-up", tuple(schedules.SCHEDULES))
    least_momentum: float | None = _of_method(schedules.LEAST_MOMENTUM.help)
    clip_value: float | None = flag(None, optim.COMMON["clip_value"].help)
    clip_norm: float | None = flag(None, optim.COMMON["clip_norm"].help)
    clip_global_norm: float | None = flag(None, optim.COMMON["clip_global_norm"].help)

    @property
    def optimizer_arguments(self) -> dict[str, float]:
        """The given ones of those that only some methods take."""
        values = {name: getattr(self, name) for name in optim.ARGUMENTS}
        return {k: v for k, v in values.items() if v is not None}

    def __post_init__(self) -> None:
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
        return schedules.schedule(
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
