"""What a compiled step asks of the chips it runs on, told without them.

    devices = planning.topology_devices("v5e:4x4")
    compiled = task.train.lower(state, batch).compile()      # of shapes, on a mesh of those devices
    needs = planning.needs_of(compiled, mesh)
    planning.estimate(needs, planning.CHIPS["v5e"])

Counted is what XLA compiled: memory by kind, operations, bytes moved, and each message between
chips with the axes of the mesh that it goes along. A message in the body of a loop is counted once.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from jaxdl import InputError

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


class Chip(NamedTuple):
    """What one chip can do, by its data sheet.

    Attributes:
      flops: dense bfloat16 FLOP/s.
      memory: bytes.
      bandwidth: bytes/s of the memory.
      links: bytes/s that it can send over all of its links to other chips at once.
      source: where this stands.
    """

    flops: float
    memory: float
    bandwidth: float
    links: float
    source: str


_DOCS = "https://cloud.google.com/tpu/docs/"
# The documents quote links in both directions together, or in bits; here are bytes in one.
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9, _DOCS + "v4"),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, _DOCS + "v5e"),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, _DOCS + "v5p"),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 400e9, _DOCS + "v6e"),
}


class Collective(NamedTuple):
    """Messages of one kind along the same axes.

    Attributes:
      kind: one of `COLLECTIVES`.
      axes: of the mesh, along which they go, such as `data`; `all` where the groups are those of
        no axes.
      chips: how many take part in each.
      messages: how many there are.
      bytes: that each chip holds of their results, in all; of a reduce-scatter of what goes in.
    """

    kind: str
    axes: str
    chips: int
    messages: int
    bytes: int

    @property
    def sent(self) -> float:
        """The bytes that each chip sends at least, with the best algorithm: a ring's."""
        share = (self.chips - 1) / self.chips
        if self.kind == "collective-permute":
            return self.bytes
        return self.bytes * share * (2 if self.kind == "all-reduce" else 1)


class Needs(NamedTuple):
    """What a step needs of each chip.

    Attributes:
      arguments: bytes of state and batch.
      temporary: bytes of what is computed between.
      outputs: bytes of results that do not take the place of arguments.
      program: bytes of the code.
      flops: that the compiled program does; None where XLA does not tell.
      bytes_accessed: that it reads and writes; likewise.
      collectives: its messages.
    """

    arguments: int
    temporary: int
    outputs: int
    program: int
    flops: float | None
    bytes_accessed: float | None
    collectives: tuple[Collective, ...]

    @property
    def memory(self) -> int:
        """Bytes in all."""
        return self.arguments + self.temporary + self.outputs + self.program


class Estimate(NamedTuple):
    """The seconds that a step takes at least, if all three went on at once.

    Attributes:
      compute: for its operations at the chip's peak.
      memory: for the bytes it moves at the memory's peak.
      network: for the bytes it sends, over all links.
    """

    compute: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        """Of the longest."""
        return max(self)

    @property
    def bound(self) -> str:
        """What that is."""
        return self._fields[int(np.argmax(self))]


def topology_devices(topology: str) -> list[jax.Device]:
    """The devices of machines that are not here.

    Args:
      topology: `cpu:N` for N devices of this host, or a chip and the grid of a slice, such as
        `v5e:4x4`, for which libtpu has to be installed (the extra `tpu`).

    Raises:
      InputError: there is none of that name, or what compiles for it is missing.
    """
    chip, _, grid = topology.partition(":")
    if chip == "cpu" and grid.isdecimal() and int(grid) > 0:
        devices = jax.devices("cpu")
        if len(devices) < int(grid):
            raise InputError(
                f"topology {topology}: this process has {len(devices)} CPU devices; set "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={grid} before it starts"
            )
        return devices[: int(grid)]
    if chip not in CHIPS or not re.fullmatch(r"\d+x\d+(x\d+)?", grid):
        raise InputError(
            f"topology {topology!r}: expected cpu:N, or one of {', '.join(CHIPS)} with a grid, "
            "such as v5e:4x4"
        )
    with _quiet_libtpu():
        try:
            described = topologies.get_topology_desc(topology, "tpu")
        except Exception as error:  # whatever a plugin raises
            text = " ".join(str(error).split())
            if "TPU support not installed" in text or "libtpu" in text:
                raise InputError(
                    f"topology {topology}: libtpu, which compiles for it, is missing or of another "
                    "version than JAX; pip install 'jaxdl[tpu]'"
                ) from error
            raise InputError(f"topology {topology}: libtpu has no such ({text[:120]})") from error
    return list(described.devices)


@contextlib.contextmanager
def _quiet_libtpu() -> Iterator[None]:
    """Keeps libtpu from looking for a machine of its own on the network, and from telling of it.

    What it has to say of that it writes to the process's stderr, past Python.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    sys.stderr.flush()
    screen = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(screen, 2)
        os.close(screen)


def needs_of(compiled: Any, mesh: Mesh) -> Needs:
    """What a compiled program needs of each chip.

    Args:
      compiled: as `jax.jit(...).lower(...).compile()` gives it.
      mesh: the devices it was compiled for.
    """
    memory, counted = compiled.memory_analysis(), compiled.cost_analysis()
    return Needs(
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        program=memory.generated_code_size_in_bytes,
        flops=counted.get("flops"),
        bytes_accessed=counted.get("bytes accessed"),
        collectives=collectives_of(compiled.as_text(), mesh),
    )


def estimate(needs: Needs, chip: Chip) -> Estimate:
    """The least time of a step by the chip's data sheet: a roofline."""
    return Estimate(
        (needs.flops or 0) / chip.flops,
        (needs.bytes_accessed or 0) / chip.bandwidth,
        sum(found.sent for found in needs.collectives) / chip.links,
    )


_INSTRUCTION = re.compile(
    rf"= (?P<shape>.*?) (?P<kind>{'|'.join(COLLECTIVES)})(?P<start>-start)?\((?P<rest>.*)"
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?[\w.-]+ \(.*\{$")
_ARRAY = re.compile(r"\b(pred|[subf]\d+\w*|bf16|c\d+)\[([\d,]*)\]")


def collectives_of(text: str, mesh: Mesh) -> tuple[Collective, ...]:
    """The messages in a program's text, summed by kind and axes.

    Args:
      text: of the compiled program.
      mesh: the devices it was compiled for.
    """
    found: dict[tuple[str, str, int], list[int]] = {}
    scatters, seen = False, set()
    for line in text.splitlines():
        if _COMPUTATION.match(line):
            # A TPU's scatter is a computation of a sum and of a slice of it.
            scatters = line.lstrip("%").startswith("all-reduce-scatter")
        match = _INSTRUCTION.search(line)
        if match is None:
            continue
        # What goes on beside other work stands where it begins and where it ends, too.
        kind, arrays = match["kind"], _ARRAY.findall(match["shape"])
        channel = re.search(r"channel_id=(\d+)", line)
        message = (kind, channel and channel[1], *arrays)
        if channel and message in seen and not scatters:
            continue
        seen.add(message)
        sizes = [_bytes(*array) for array in arrays]
        # What starts a message gives its operand, its result, and what its end needs to know.
        begins = match["start"] and len(sizes) > 1 and kind != "all-reduce"
        size = sizes[1] if begins else sum(sizes)
        axes, chips = _axes(match["rest"], kind, mesh)
        if chips == 1:
            continue
        if kind == "reduce-scatter":
            size *= chips
        elif kind == "all-reduce" and scatters:
            kind = "reduce-scatter"
        counted = found.setdefault((kind, axes, chips), [0, 0])
        counted[0] += 1
        counted[1] += size
    return tuple(Collective(*key, *counted) for key, counted in sorted(found.items()))


def _bytes(dtype: str, dims: str) -> int:
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    return int(np.prod([int(n) for n in dims.split(",") if n], dtype=np.int64)) * bits // 8


def _axes(text: str, kind: str, mesh: Mesh) -> tuple[str, int]:
    """The axes of a mesh along which a message's groups lie, and how many chips are in one."""
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", text)
        group = [int(n) for n in pairs.groups()] if pairs else []
        chips = 2
    else:
        group = _first_group(text, mesh.size)
        chips = len(group)
    places = np.asarray([np.unravel_index(n, mesh.devices.shape) for n in group])
    if not len(places):
        return "all", mesh.size
    varying = [
        name for name, along in zip(mesh.axis_names, places.T, strict=True) if len({*along}) > 1
    ]
    return ",".join(map(str, varying)) or "all", chips


def _first_group(text: str, size: int) -> list[int]:
    """The first of a message's groups of devices, by their places in the mesh."""
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        dims = [int(n) for n in iota[3].split(",")]
        order = np.arange(np.prod(dims)).reshape(dims)
        if iota[4]:
            order = order.transpose([int(n) for n in iota[4].split(",")])
        return order.reshape(int(iota[1]), int(iota[2]))[0].tolist()
    named = re.search(r"replica_groups=mesh\[([^\]]+)\]\s*\{([^}]*)\}", text)
    if named:
        grid = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", named[1])}
        order = np.arange(np.prod([*grid.values()])).reshape([*grid.values()])
        along = re.findall(r"'(\w+)'", named[2])
        return order[tuple(slice(None) if name in along else 0 for name in grid)].ravel().tolist()
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", text)
    return [int(n) for n in listed[1].split(",")] if listed else list(range(size))
