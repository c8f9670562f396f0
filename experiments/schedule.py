"""Draws schedules of the learning rate, from the flags that training takes.

    python -m experiments.schedule --schedule=cosine --steps=1000 --warmup_steps=50
    python -m experiments.schedule --schedule=step,exponential,one_cycle --learning_rate=0.4

An argument goes to those of the schedules that take it.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from experiments.harness import cli
from experiments.harness.cli import flag, require
from experiments.harness.method import ScheduleArguments
from jaxdl import InputError, figures, schedules


@dataclasses.dataclass(frozen=True)
class Config:
    """Draws one schedule, or several on the same axes."""

    schedule: tuple[str, ...] = flag(("cosine",), "which to draw", tuple(schedules.SCHEDULES))
    learning_rate: float = flag(0.1, "its peak")
    steps: int = flag(1000, "of the whole training")
    warmup_steps: int = flag(0, "steps over which the learning rate rises in a line")
    log_scale: bool = flag(False, "draw the learning rate on a logarithmic axis")
    arguments: ScheduleArguments = ScheduleArguments()
    output: str = flag("schedule.png", "the file to write: .png, .pdf or .svg")

    def __post_init__(self) -> None:
        require(self, "schedule", len(self.schedule) > 0, f"among {', '.join(schedules.SCHEDULES)}")
        require(self, "learning_rate", 0 < self.learning_rate < float("inf"), "more than 0")
        require(self, "steps", self.steps >= 1, "at least 1")
        suffix = Path(self.output).suffix
        require(self, "output", suffix in (".png", ".pdf", ".svg"), "a .png, .pdf or .svg file")
        accepted = {name: schedules.arguments(name) for name in self.schedule}
        for argument in self.arguments.schedule_arguments:
            if not any(argument in takes for takes in accepted.values()):
                schedules.check_arguments(self.schedule[0], {argument: None})


def rates(config: Config) -> dict[str, jax.Array]:
    """The learning rate at each step [steps], by the schedule's name."""
    curves = {}
    for name in config.schedule:
        takes = schedules.arguments(name)
        arguments = {k: v for k, v in config.arguments.schedule_arguments.items() if k in takes}
        scheduled = schedules.schedule(name, config.steps, config.warmup_steps, **arguments)
        hparams = {"learning_rate": config.learning_rate}
        rate = lambda step, scheduled=scheduled, hparams=hparams: jnp.asarray(
            scheduled(hparams, step)["learning_rate"]
        )
        curves[name] = jax.vmap(rate)(jnp.arange(config.steps))
    return curves


@figures.styled
def draw(config: Config) -> Figure:
    """The picture of the schedules."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, curve in rates(config).items():
        axes.plot(curve, label=name)
    axes.set(xlabel="step", ylabel="learning rate", yscale="log" if config.log_scale else "linear")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def run(argv: list[str]) -> None:
    """Writes the picture that was asked for."""
    config, rest = cli.parse(Config, argv)
    if rest:
        raise InputError(f"{rest[0]!r} is no flag; see --help")
    draw(config).savefig(config.output, dpi=150)
    print(f"wrote {config.output}")


if __name__ == "__main__":
    cli.main(run)
