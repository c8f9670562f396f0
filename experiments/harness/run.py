"""The flags of any training run."""

import dataclasses
import re

from experiments.harness.cli import flag, require
from jaxdl import InputError, sharding

SHARDS = ("fsdp", "model")


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """How long a run trains, what it leaves behind, and on which devices.

    Attributes:
      modes: the values that --mode may have.
      given: the names of the flags that were given. What a run wrote down was all given to it, so
        that nothing that depends on this changes when it goes on.
    """

    experiment: str = flag("", "which experiment this is; kept in flags.txt")
    mode: str = flag("train", "what to do with a run", "modes", part_of_run=False)
    split: str = flag(
        "test",
        "what --mode=eval measures",
        ("train", "validation", "test"),
        part_of_run=False,
    )
    workdir: str = flag("", "the run's folder; empty for a new one in runs/", part_of_run=False)
    resume: str = flag(
        "auto",
        "go on with the run in --workdir if there is one, never, refuse to start without one, or "
        "train it further than it was meant to go, by more --steps or --epochs",
        ("auto", "never", "must", "extend"),
        part_of_run=False,
    )
    seed: int = flag(0, "of the weights, the order of the data and all noise")
    batch_size: int = flag(32, "examples a step, over all devices")
    grad_accum: int = flag(1, "parts that a batch is computed in, to save memory")
    epochs: float = flag(30.0, "passes over the training set, unless --steps is given")
    steps: int | None = flag(None, "updates in all")
    precision: str = flag(
        "float32",
        "of the computation; parameters stay float32; float16 scales its loss",
        ("float32", "bfloat16", "float16"),
    )
    ema_decay: float | None = flag(
        None, "of moving averages of the parameters, evaluated beside them, such as 0.999"
    )
    plateau: int | None = flag(
        None, "cut the learning rate after so many evaluations without a better one"
    )
    plateau_factor: float = flag(0.1, "what --plateau multiplies the learning rate with")
    early_stop: int | None = flag(
        None, "stop after so many evaluations without a better one, and go back to the best"
    )
    folds: int | None = flag(
        None,
        "cross-validate: train once for each of so many folds of the training split, which that "
        "run is tested on in place of the test split",
    )
    fold: int | None = flag(None, "with --folds: which to hold out; all in turn when not given")
    parallel: str = flag(
        "jit",
        "one program over all devices, or one program a device",
        ("jit", "pmap"),
        part_of_run=False,
    )
    mesh: str = flag(
        "data:-1",
        "the devices as a grid of named axes, such as data:4,model:2; one length may be -1",
        part_of_run=False,
    )
    shard: tuple[str, ...] = flag(
        (),
        "how the state is cut: by fsdp every large array over the axis data, by model what the "
        "network says over the axis model; every device holds all of it when empty",
        SHARDS,
        part_of_run=False,
    )
    coordinator: str = flag(
        "", "several hosts: host:port of process 0, or auto on a cluster", part_of_run=False
    )
    num_processes: int | None = flag(None, "several hosts: of how many", part_of_run=False)
    process_id: int | None = flag(None, "several hosts: which this is", part_of_run=False)
    log_every: int = flag(50, "steps between reports of the training metrics", part_of_run=False)
    eval_every: int = flag(200, "steps between evaluations", part_of_run=False)
    checkpoint_every: int = flag(200, "steps between checkpoints", part_of_run=False)
    keep: int = flag(2, "how many of the latest checkpoints stay, and the best", part_of_run=False)
    histograms: bool = flag(
        True,
        "show those of weights and gradients after evaluations, by a program more",
        part_of_run=False,
    )
    profile_steps: int = flag(0, "trace so many steps for TensorBoard", part_of_run=False)
    debug_nans: bool = flag(False, "name the operation that makes a nan (slow)", part_of_run=False)
    modes: tuple[str, ...] = dataclasses.field(default=("train", "eval"), compare=False)
    given: frozenset[str] = dataclasses.field(default=frozenset(), compare=False, repr=False)

    def __post_init__(self) -> None:
        """Raises InputError for a value, or a pair of values, that cannot be."""
        for name in ("batch_size", "log_every", "eval_every", "checkpoint_every", "keep"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        divides = self.grad_accum >= 1 and self.batch_size % self.grad_accum == 0
        accepted = f"at least 1 and a divisor of the batch_size {self.batch_size}"
        require(self, "grad_accum", divides, accepted)
        require(self, "profile_steps", self.profile_steps >= 0, "at least 0")
        # Beyond 32 bits seeds would be those of smaller ones, and steps would not be counted.
        require(self, "seed", 0 <= self.seed < 2**32, "at least 0 and less than 2**32")
        require(self, "epochs", self.epochs > 0, "more than 0")
        counted = self.steps is None or 1 <= self.steps < 2**31
        require(self, "steps", counted, "at least 1 and less than 2**31")
        decay = self.ema_decay
        require(self, "ema_decay", decay is None or 0 <= decay < 1, "at least 0 and less than 1")
        require(self, "workdir", "://" not in self.workdir, "a folder of this machine")
        require(self, "debug_nans", not self.debug_nans or self.parallel == "jit", "off with pmap")
        self._check_choices()
        self._check_mesh()
        self._check_hosts()

    @property
    def mesh_axes(self) -> dict[str, int]:
        """The axes of the mesh, by name: their lengths."""
        pairs = [axis.partition(":") for axis in self.mesh.split(",")]
        return {name: int(length) for name, _, length in pairs}

    def _check_mesh(self) -> None:
        axes = "|".join(sharding.AXES)
        form = rf"({axes}):(-1|[1-9]\d{{0,5}})"
        known = re.fullmatch(rf"{form}(,{form})*", self.mesh) is not None
        names = self.mesh_axes if known else {}
        once = known and len(names) == self.mesh.count(":") and sharding.DATA in names
        accepted = f"data:N, or data:N,model:M with the axes {' and '.join(sharding.AXES)}"
        require(self, "mesh", once, accepted)
        lengths = [*names.values()]
        require(self, "mesh", lengths.count(-1) <= 1, "of at most one length -1")
        by_model = "model" not in self.shard or sharding.MODEL in names
        require(self, "shard", by_model, "without model, or given with --mesh=data:N,model:M")
        whole = self.parallel == "jit" or (names == {sharding.DATA: -1} and not self.shard)
        require(self, "parallel", whole, "jit with --mesh and --shard")
        require(self, "debug_nans", not (self.debug_nans and self.shard), "off with --shard")

    def _check_choices(self) -> None:
        for name in ("plateau", "early_stop"):
            value = getattr(self, name)
            require(self, name, value is None or value >= 1, "at least 1")
        require(self, "plateau_factor", 0 < self.plateau_factor < 1, "more than 0, less than 1")
        cuts = self.plateau is not None or self.plateau_factor == RunFlags.plateau_factor
        require(self, "plateau_factor", cuts, "left out without --plateau")
        require(self, "folds", self.folds is None or self.folds >= 2, "at least 2")
        folds = range(self.folds or 0)
        fits = self.fold is None or self.fold in folds
        accepted = (
            f"at least 0 and less than --folds={self.folds}" if folds else "given with --folds"
        )
        require(self, "fold", fits, accepted)

    def _check_hosts(self) -> None:
        number, count = self.process_id, self.num_processes
        if self.coordinator in ("", "auto"):
            for name in ("num_processes", "process_id"):
                # Of runs of several hosts, older flagfiles hold them.
                alone = getattr(self, name) is None or self.mode != "train"
                require(self, name, alone, "left out without --coordinator=host:port")
        elif number is None or count is None:
            raise InputError("--coordinator=host:port needs --num_processes and --process_id")
        else:
            host, _, port = self.coordinator.rpartition(":")
            known = host != "" and port.isdecimal() and 1 <= int(port) < 2**16
            require(self, "coordinator", known, "host:port of process 0, or auto")
            require(self, "num_processes", count >= 1, "at least 1")
            require(self, "process_id", 0 <= number < count, f"at least 0 and less than {count}")
        if self.coordinator and not self.workdir:
            raise InputError(
                "a run of several hosts needs --workdir, a folder that all of them see"
            )
