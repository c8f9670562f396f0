"""Says what a run would need of machines that are not here: memory, messages, least time of a step.

    python -m experiments.plan --experiment=resnet --topology=v5e:4x4 \\
        --dataset=noise:224x224x3:1000 --image_size=224 --model=resnet50 --batch_size=2048
    python -m experiments.plan --experiment=char_rnn --topology=cpu:8 --shard=fsdp

It compiles the very step of the experiment for each --topology, which takes a minute or so, and
runs nothing. Of several, the batch grows with the number of chips: --batch_size is the first's.
`cpu:N` needs nothing; TPUs need the extra `tpu`, but no TPU. All other flags are the experiment's.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure

from experiments.harness import catalogue, cli, devices, training
from experiments.harness.cli import flag, require
from jaxdl import InputError, calls, figures, parallel, planning, sharding
from jaxdl.planning import CHIPS, Estimate, Needs


@dataclasses.dataclass(frozen=True)
class Config:
    """What is planned, and for what; the other flags are those of the experiment."""

    experiment: str = flag("resnet", "the experiment whose step is compiled")
    topology: tuple[str, ...] = flag(
        ("cpu:8",), f"machines: cpu:N, or one of {', '.join(CHIPS)} with a grid, such as v5e:4x4"
    )
    json: str = flag("", "a file to write all figures to")
    picture: str = flag("", "a PNG file to draw the growth over several --topology to")

    def __post_init__(self) -> None:
        if not catalogue.is_experiment(self.experiment):
            require(self, "experiment", False, f"one of {', '.join(catalogue.names())}")
        require(self, "topology", len(self.topology) >= 1, "one or more")
        require(
            self,
            "picture",
            not self.picture or len(self.topology) > 1,
            "given with several --topology",
        )
        for name in ("json", "picture"):
            folder = Path(getattr(self, name)).parent
            require(self, name, folder.is_dir(), "a file in a folder that there is")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A step on one topology.

    Attributes:
      topology: the flag.
      chips: how many.
      mesh: their axes.
      batch_size: examples a step.
      parameters: how many the network has.
      state_bytes: of the state on one chip.
      model_flops: of the products of a step, over all chips; None where they cannot be counted.
      needs: of one chip.
    """

    topology: str
    chips: int
    mesh: dict[str, int]
    batch_size: int
    parameters: int
    state_bytes: int
    model_flops: float | None
    needs: Needs

    @property
    def chip(self) -> planning.Chip | None:
        """The data sheet; a CPU has none."""
        return CHIPS.get(self.topology.partition(":")[0])

    @property
    def estimate(self) -> Estimate | None:
        """The least time of a step."""
        return None if self.chip is None else planning.estimate(self.needs, self.chip)

    def record(self) -> dict[str, Any]:
        """All figures, for JSON."""
        found = dataclasses.asdict(self)
        found["needs"] = self.needs._asdict() | {
            "memory": self.needs.memory,
            "collectives": [c._asdict() | {"sent": c.sent} for c in self.needs.collectives],
        }
        if self.chip is not None and self.estimate is not None:
            estimate = self.estimate
            found["chip"] = self.chip._asdict() | {"fits": self.needs.memory <= self.chip.memory}
            found["estimate"] = estimate._asdict() | {
                "seconds": estimate.seconds,
                "bound": estimate.bound,
                "examples_per_second": self.batch_size / estimate.seconds,
            }
        return found


def plan(config: Any, experiment: Any, topology: str) -> Plan:
    """Compiles the step of an experiment for a topology.

    Raises:
      InputError: the topology is not known here, or the flags do not fit it.
    """
    mesh = devices.mesh_of(config, planning.topology_devices(topology))
    parallel.check_batch_size(config.run.batch_size, mesh, config.run.grad_accum)
    problem = training.make_problem(config, experiment.build, mesh)
    rules = devices.sharding_rules(config, problem)
    task, hparams = training.task_of(config, problem)
    task = parallel.jit(task, mesh, rules=rules)

    shapes: Any = jax.eval_shape(task.init, jax.random.key(config.run.seed), hparams)
    placed = sharding.shardings(shapes, rules, mesh)
    state = jax.tree.map(_on, shapes, placed)
    spread = parallel.batch_sharding(mesh)
    batch = jax.tree.map(lambda leaf: _on(leaf, spread), batch_shapes(config, experiment, problem))
    train: Any = task.train  # as jax.jit makes it
    compiled = train.lower(state, batch).compile()
    return Plan(
        topology,
        mesh.size,
        dict(mesh.shape),
        config.run.batch_size,
        sum(leaf.size for leaf in jax.tree.leaves(shapes.params)),
        sharding.bytes_per_device(shapes, placed),
        calls.step_flops(task.train, state, batch),
        planning.needs_of(compiled, mesh),
    )


def batch_shapes(config: Any, experiment: Any, problem: Any) -> Any:
    """The shapes of a training batch, which may have to be read for that: for one device here."""
    if training.has_schema(problem):
        return training.batch_shapes(problem)[0]
    mesh = parallel.data_mesh(jax.devices()[:1])
    alone = experiment.build(cli.replace(config, mesh="data:-1"), mesh)
    return training.batch_shapes(alone)[0]


def _on(leaf: Any, placed: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)


def table(found: Plan, shard: Sequence[str]) -> str:
    """What a plan says, for a person."""
    needs, rows = found.needs, []
    state = f"cut by {' and '.join(shard)}" if shard else "whole on each"
    axes = sharding.in_words(found.mesh)
    head = (
        f"{found.topology}: {found.chips} chips, mesh {axes}, state {state}, "
        f"{found.batch_size:,} examples a step"
    )
    kinds = ("arguments", "temporary", "outputs", "program")
    memory = " + ".join(f"{name} {_size(getattr(needs, name))}" for name in kinds)
    rows.append(
        ("memory", f"{_size(needs.memory)} a chip: {memory}; the state {_size(found.state_bytes)}")
    )
    if found.chip is not None:
        left = found.chip.memory - needs.memory
        fits = "fits, with" if left >= 0 else "does NOT fit, by"
        left_or_lacking = "to spare" if left >= 0 else "too much"
        rows.append(
            ("", f"{fits} {_size(abs(left))} {left_or_lacking} of {_size(found.chip.memory)}")
        )
    of_model = (
        "not counted" if found.model_flops is None else f"{found.model_flops / found.chips:.3g}"
    )
    of_chip = "not told" if needs.flops is None else f"{needs.flops:.3g}"
    rows.append(("FLOPs", f"{of_model} a chip of the model's products; {of_chip} as compiled"))
    moved = "not told" if needs.bytes_accessed is None else _size(needs.bytes_accessed)
    rows.append(("moved", f"{moved} a chip, to and from memory"))
    for c in needs.collectives:
        rows.append(
            (
                "messages",
                f"{c.messages} {c.kind} along {c.axes} ({c.chips} chips): {_size(c.bytes)}",
            )
        )
    if not needs.collectives:
        rows.append(("messages", "none"))
    if found.estimate is not None and found.chip is not None:
        e = found.estimate
        parts = ", ".join(f"{name} {1e3 * value:.3g} ms" for name, value in e._asdict().items())
        speed = f"{found.batch_size / e.seconds:,.0f} examples/s"
        rows.append(
            ("at least", f"{1e3 * e.seconds:.3g} ms a step ({speed}), bound by {e.bound}: {parts}")
        )
        rows.append(("", f"peaks of {found.chip.source}; nothing was run"))
    return "\n".join([head, *(f"  {name:<10}{text}" for name, text in rows)])


def _size(count: float) -> str:
    """Bytes in the unit that leaves three digits."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


@figures.styled
def draw(plans: Sequence[Plan], title: str) -> Figure:
    """How speed, the bounds and memory of a step grow with the number of chips."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    speed, times, memory = figure.subplots(1, 3)
    chips = [found.chips for found in plans]
    known = [(n, found, found.estimate) for n, found in zip(chips, plans, strict=True)]
    estimates = [(n, found, e) for n, found, e in known if e is not None]
    if estimates:
        at = [n for n, _, _ in estimates]
        rates = [found.batch_size / e.seconds for _, found, e in estimates]
        speed.plot(at, rates, "o-", label="at most, by the bounds")
        speed.plot(at, [rates[0] * n / at[0] for n in at], "k:", label="as many times as chips")
        for name in Estimate._fields:
            times.plot(at, [1e3 * getattr(e, name) for _, _, e in estimates], "o-", label=name)
        speed.legend()
        times.legend()
    memory.plot(chips, [found.needs.memory / 1e9 for found in plans], "o-", label="needed")
    if plans[0].chip is not None:
        memory.axhline(plans[0].chip.memory / 1e9, color="k", linestyle=":", label="there is")
    memory.set_ylim(bottom=0)
    memory.legend()
    for axes, label in (
        (speed, "examples a second"),
        (times, "ms a step"),
        (memory, "GB a chip"),
    ):
        axes.set(xscale="log", xlabel="chips", ylabel=label)
        axes.set_xticks(chips, map(str, chips), minor=False)
        axes.minorticks_off()
    speed.set(yscale="log")
    times.set_ylim(bottom=0)
    figure.suptitle(title)
    return figure


def run(argv: list[str]) -> None:
    """Plans for each topology."""
    own, others = cli.apart(Config, argv)
    config, _ = cli.parse(Config, own)
    _prepare(config)
    experiment = catalogue.load(config.experiment)
    planned, rest = cli.parse(experiment.Config, others)
    if rest:
        raise InputError(f"{rest[0]!r} is no flag; see --help")
    planned = cli.replace(planned, mode="eval")  # nothing is made ready for a training
    require(planned, "parallel", planned.run.parallel == "jit", "jit, for which is planned")
    plans: list[Plan] = []
    for topology in config.topology:
        if sys.stderr.isatty():
            print(f"compiling for {topology} ...", file=sys.stderr)
        one = planned
        if plans:  # as many examples a chip as on the first
            chips = len(planning.topology_devices(topology))
            size = planned.run.batch_size * chips // plans[0].chips
            one = cli.replace(planned, batch_size=size)
        plans.append(plan(one, experiment, topology))
        print(table(plans[-1], planned.run.shard), flush=True)
    if config.json:
        text = json.dumps([found.record() for found in plans], indent=2)
        Path(config.json).write_text(text + "\n", encoding="utf-8")
    if config.picture:
        name = f"{config.experiment} of {plans[0].parameters:,} parameters"
        title = f"{name}, {planned.run.batch_size // plans[0].chips} examples a chip"
        draw(plans, title).savefig(config.picture, dpi=100)


def _prepare(config: Config) -> None:
    """Has JAX use the CPU, with as many devices as a topology asks for."""
    counts = [text.partition(":")[2] for text in config.topology if text.startswith("cpu:")]
    count = max((int(n) for n in counts if n.isdecimal()), default=1)
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    if count > 1 and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", count)
    training.prepare_jax()


if __name__ == "__main__":
    cli.main(run)
