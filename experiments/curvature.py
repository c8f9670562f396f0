"""Measures the curvature of the loss where a trained classifier stands.

    python -m experiments.curvature --workdir=runs/mlp_digits
    python -m experiments.curvature --workdir=runs/resnet_digits --examples=256

prints the greatest eigenvalues of the Hessian of the training set's loss, its trace, and the
sharpness, the greatest of the eigenvalues, beside 2 / learning rate: that up to which gradient
descent converges on a quadratic. It leaves them with the whole spectrum in curvature.json and
curvature.png, in the run's folder. `experiments.studies.descent` shows what they mean.

The loss is that of evaluations: without augmentation, dropout, label smoothing and penalties, and
batch norms by their averages. The parameters are those that descend, not their moving averages.
"""

import contextlib
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from experiments.harness import catalogue, classification, cli, run_folder, summaries, training
from experiments.harness.cli import flag, require
from experiments.harness.method import GRADIENT_DESCENT
from experiments.harness.problem import Problem
from jaxdl import Batch, InputError, curvature, figures
from jaxdl.task import State

RECORD_FILE, PICTURE_FILE = "curvature.json", "curvature.png"


@dataclasses.dataclass(frozen=True)
class Config:
    """Measures the curvature of the loss of a trained classifier: --workdir=RUN"""

    workdir: str = flag("", "the folder of the run")
    out: str = flag("", "the folder to write to; the run's own when empty")
    examples: int | None = flag(None, "training examples, drawn by the run's seed; all when empty")
    eigenvalues: int = flag(5, "how many of the greatest to find")
    tolerance: float = flag(1e-3, "of their errors, as a share of the greatest")
    probes: int = flag(2, "random vectors for the spectrum")
    steps: int = flag(60, "products for each of them, and the most for the eigenvalues")
    trace_probes: int = flag(32, "random vectors for the trace")
    seed: int = flag(0, "of the random vectors")

    def __post_init__(self) -> None:
        require(self, "workdir", self.workdir != "", "a run's")
        least = {"eigenvalues": 1, "probes": 1, "steps": 1, "trace_probes": 2, "seed": 0}
        for name, bound in least.items():
            require(self, name, getattr(self, name) >= bound, f"at least {bound}")
        require(self, "tolerance", self.tolerance > 0, "more than 0")
        folder = Path(self.out or self.workdir)
        require(self, "out", folder.is_dir() or not folder.exists(), "a folder")


class Edge(NamedTuple):
    """What gradient descent at a rate makes of sharpness.

    Attributes:
      rate: the learning rate.
      two_over_rate: the sharpness that descent without momentum converges below.
      limit: that of the run's own method.
    """

    rate: float
    two_over_rate: float
    limit: float


def restore(workdir: Path) -> tuple[Any, Problem, State]:
    """The flags of a classifier's run, its problem, and the state that it has come to.

    Raises:
      InputError: the folder holds no such run, or no checkpoint, or several folds.
    """
    config_type = type(classification.config_of(workdir))
    saved = f"--flagfile={workdir / run_folder.FLAGS_FILE}"
    config, _ = cli.parse(config_type, [saved, f"--workdir={workdir}", "--coordinator="])
    if config.run.folds and config.run.fold is None:
        raise InputError(f"{workdir} holds folds; give the --workdir of one of them")
    build = catalogue.load(config.run.experiment).build
    problem, _, state = training.restore(config, build)
    return config, problem, state


def batches_of(config: Config, problem: Problem) -> Callable[[], Iterable[Batch]]:
    """The training examples to measure with, once in each pass."""
    there = problem.feed.examples("train")
    count = there if config.examples is None else config.examples
    require(config, "examples", 1 <= count <= there, f"1 to {there}, those of the training set")
    if count == there:
        return lambda: problem.feed.evaluate("train")
    few, left = [], count
    with contextlib.closing(problem.feed.train()) as drawn:  # within a pass, each example once
        for batch in drawn:
            rows = np.arange(len(batch["mask"])) < left
            few.append(batch | {"mask": batch["mask"] * rows.astype(np.float32)})
            left -= len(rows)
            if left <= 0:
                break
    return lambda: few


@contextlib.contextmanager
def counted(
    batches: Callable[[], Iterable[Batch]], name: str, passes: int
) -> Iterator[curvature.Batches]:
    """Shows how many passes over the batches are made, of at most so many."""
    shown = sys.stderr.isatty()
    with tqdm(total=passes, desc=name, unit="pass", dynamic_ncols=True, disable=not shown) as bar:

        def one_pass():
            yield from batches()
            bar.update()

        yield one_pass


def edges_of(of_run: Any, state: State, workdir: Path) -> dict[str, Edge]:
    """What its greatest and its last rate mean for a run; nothing where it is no plain descent."""
    name = of_run.method.optimizer
    if name not in GRADIENT_DESCENT:
        return {}
    momentum = float(state.hparams.get("momentum", 0.0))
    last = summaries.last_trained(workdir).get("train/learning_rate", 0.0)
    rates = {"greatest": float(state.hparams["learning_rate"]), "last": last}
    found = {}
    for which, rate in rates.items():
        if rate > 0:  # what is bounded is rate x eigenvalue: either may take the other's place
            _, two = curvature.step_size_range(rate)
            _, limit = curvature.step_size_range(rate, momentum, nesterov=name == "nesterov")
            found[which] = Edge(rate, two, limit)
    return found


def measure(config: Config, problem: Problem, state: State) -> dict[str, Any]:
    """The curvature of the loss by the parameters of a state, as curvature.json holds it."""
    task, batches, params = problem.learner.task(None), batches_of(config, problem), state.params
    loss = lambda params, batch: task.eval(state._replace(params=params), batch)["loss"]
    value = curvature.mean_over(jax.jit(functools.partial(loss, params)), batches)
    seed, chosen = config.seed, {"probes": config.probes, "steps": config.steps}
    with counted(batches, "eigenvalues", config.steps) as passes:
        top = curvature.top_eigenvalues(
            loss,
            params,
            config.eigenvalues,
            tolerance=config.tolerance,
            steps=config.steps,
            seed=seed,
            batches=passes,
        )
    probes = config.trace_probes
    with counted(batches, "trace", -(-probes // curvature.AT_ONCE)) as passes:
        trace = curvature.trace(loss, params, probes=probes, seed=seed, batches=passes)
    with counted(batches, "spectrum", config.probes * config.steps) as passes:
        spectrum = curvature.spectrum(loss, params, **chosen, seed=seed, batches=passes)
    return {
        "step": int(state.step),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "examples": config.examples or problem.feed.examples("train"),
        "loss": float(value),
        "sharpness": float(top.values[0]),
        "eigenvalues": top.values.tolist(),
        "errors": top.errors.tolist(),
        "trace": trace.value,
        "trace_error": trace.error,
        "spectrum": {name: values.tolist() for name, values in spectrum._asdict().items()},
    }


def tell(found: Mapping[str, Any], method: str, edges: Mapping[str, Edge]) -> str:
    """What was found, in lines."""
    errors = [
        f"{v:.4g} (± {e:.1g})" for v, e in zip(found["eigenvalues"], found["errors"], strict=True)
    ]
    lines = [
        f"loss {found['loss']:.4g} over {found['examples']} training examples, of "
        f"{found['parameters']:,} parameters at step {found['step']}",
        f"greatest eigenvalues: {', '.join(errors)}",
        f"trace: {found['trace']:.4g} ± {found['trace_error']:.2g}",
    ]
    for which, edge in edges.items():
        lines.append(
            f"sharpness {found['sharpness']:.4g}; of the {which} learning rate, {edge.rate:.3g}: "
            f"2 / rate is {edge.two_over_rate:.4g}, and {method} converges on a quadratic below "
            f"{edge.limit:.4g}"
        )
    if not edges:
        sharpness = f"sharpness {found['sharpness']:.4g}"
        lines.append(f"{sharpness}; the steps of {method} are none that 2 / rate bounds")
    return "\n".join(lines)


@figures.styled
def draw(found: Mapping[str, Any], edges: Mapping[str, Edge], path: Path) -> None:
    """Draws the spectrum, and the greatest eigenvalues beside the edges of the rates."""
    spectrum = curvature.Spectrum(*map(np.asarray, found["spectrum"].values()))
    least, greatest = spectrum.values.min(), max(spectrum.values.max(), found["sharpness"])
    margin = 0.05 * (greatest - least) or 1.0
    points = np.linspace(least - margin, greatest + margin, 1000)
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    density = spectrum.density(points, margin / 5)
    left.semilogy(points, density)
    left.set(xlabel="eigenvalue", ylabel="density", ylim=(1e-8 * density.max(), 3 * density.max()))
    right.plot(range(1, len(found["eigenvalues"]) + 1), found["eigenvalues"], "o")
    for which, edge in edges.items():
        if edge.limit < 10 * greatest:  # else it would be all there is to see
            right.axhline(edge.limit, linestyle="--", label=f"edge of the {which} rate")
            right.legend()
    right.set(xlabel="rank", ylabel="eigenvalue", ylim=(min(0, *found["eigenvalues"]), None))
    right.xaxis.get_major_locator().set_params(integer=True)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figures.write(path, figure)


def run(argv: list[str]) -> None:
    """Measures the run, and writes curvature.json and curvature.png."""
    config, rest = cli.parse(Config, argv)
    if rest:
        raise InputError(f"{rest[0]!r} is no flag; see --help")
    workdir = Path(config.workdir)
    training.prepare_jax()
    of_run, problem, state = restore(workdir)
    found = measure(config, problem, state)
    edges = edges_of(of_run, state, workdir)
    print(tell(found, of_run.method.optimizer, edges))
    out = Path(config.out or workdir)
    rates = {which: edge._asdict() for which, edge in edges.items()}
    record = cli.to_dict(config) | found | {"rates": rates}
    run_folder.write(out / RECORD_FILE, json.dumps(record, indent=2))
    draw(found, edges, out / PICTURE_FILE)
    print(f"in {out}: {RECORD_FILE}, {PICTURE_FILE}")


if __name__ == "__main__":
    cli.main(run)
