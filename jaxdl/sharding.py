"""Where each array of a State lies on a mesh: rules from names and shapes to PartitionSpecs.

    mesh = sharding.make_mesh({"data": 4, "model": 2})
    rules = (*models.SHARDING["alexnet_paper"], sharding.fsdp)
    task = parallel.jit(task, mesh, rules=rules)

A rule sees a parameter, its moments in the optimizer and its moving average alike: it goes by the
end of an array's name, and leaves the model's code alone. Rules are asked in order, and each
refines what those before it have said, so that an array can be cut over one axis by its model and
over another by `fsdp`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdl import InputError

DATA = "data"
"""The mesh axis that batches are spread over."""
MODEL = "model"
"""The mesh axis that a model is spread over, where it brings rules for one."""
AXES = (DATA, MODEL)
SMALLEST = 4096
"""Arrays of fewer values are not worth a message: `fsdp` leaves them whole."""


class Rule(Protocol):
    """Says over which axes of a mesh an array of a State is cut."""

    def __call__(self, path: str, shape: tuple[int, ...], spec: P, mesh: Mesh, /) -> P:
        """(name such as `opt_state/0/mu/fc6/kernel`, shape, what is said already, mesh) -> spec."""
        ...


Rules = Sequence[Rule]


class Along(NamedTuple):
    """The rule that cuts the arrays of one name.

    Attributes:
      pattern: a regular expression that whole last parts of the name match, such as `fc6/kernel`.
      axes: for each axis of the array the mesh axis that it is cut over, or None.
    """

    pattern: str
    axes: tuple[str | None, ...]

    def __call__(self, path: str, shape: tuple[int, ...], spec: P, mesh: Mesh) -> P:
        """See `Rule`. What an optimizer keeps of another shape stays whole."""
        if len(shape) != len(self.axes) or not re.search(f"(^|/)({self.pattern})$", path):
            return spec
        for size, axis in zip(shape, self.axes, strict=True):
            count = 1 if axis is None else axis_size(mesh, axis)
            if size % count:
                raise InputError(
                    f"{path} of shape {list(shape)} cannot be cut in {count} over the mesh axis "
                    f"{axis!r}; {size} does not divide by it"
                )
        return P(*self.axes)

    def __str__(self) -> str:
        """What an error calls it."""
        return f"of {self.pattern!r} over {self.axes}"


def fsdp(path: str, shape: tuple[int, ...], spec: P, mesh: Mesh) -> P:
    """The rule that cuts every large array over the axis `data`, each device holding a share.

    It takes the largest axis that divides and is whole yet; the last of several. Arrays of fewer
    than `SMALLEST` values stay whole. (Rajbhandari et al. 2019, arXiv:1910.02054, call it ZeRO;
    here parameters are gathered once a step, for forward and backward pass together.)
    """
    count, axes = axis_size(mesh, DATA), [*spec, *[None] * (len(shape) - len(spec))]
    free = [i for i, axis in enumerate(axes) if axis is None and shape[i] % count == 0]
    if math.prod(shape) < SMALLEST or not free:
        return spec
    axes[max(free, key=lambda i: (shape[i], i))] = DATA
    while axes[-1] is None:  # as specs are written
        axes.pop()
    return P(*axes)


def apart(
    convolution: Callable[..., jax.Array], mesh: Mesh, axis: str = MODEL
) -> Callable[..., jax.Array]:
    """A grouped convolution of which each device along an axis does its own groups.

    The partitioner would gather the maps of all groups on every device, which needs but its own.

    Args:
      convolution: with the signature of `jax.lax.conv_general_dilated`, for maps [B, H, W, C] and
        kernels [H, W, C / groups, features].
      mesh: the devices, with the axes `data` and `axis`.
      axis: along which the channels lie.

    Raises:
      InputError: when called, groups that do not divide over the devices of the axis.
    """

    def convolve(lhs: jax.Array, rhs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        groups, count = kwargs.pop("feature_group_count"), axis_size(mesh, axis)
        if groups % count:
            raise InputError(
                f"{groups} groups of a convolution do not divide over the {count} devices along "
                f"the mesh axis {axis!r}"
            )
        own = lambda lhs, rhs: convolution(
            lhs, rhs, *args, feature_group_count=groups // count, **kwargs
        )
        rows = DATA if lhs.shape[0] % axis_size(mesh, DATA) == 0 else None  # one, to begin with
        maps, kernels = P(rows, None, None, axis), P(None, None, None, axis)
        alone = jax.shard_map(
            own, mesh=mesh, in_specs=(maps, kernels), out_specs=maps, check_vma=False
        )
        return alone(lhs, rhs)

    return convolve


def make_mesh(axes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of named axes, such as {"data": 4, "model": 2}, over all devices by default.

    Args:
      axes: the length of each axis, the slowest first; one of them may be -1, for what is left.
      devices: what it is made of, in order.

    Raises:
      InputError: the axes do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    lengths, count = dict(axes), len(devices)
    if [*lengths.values()].count(-1) > 1 or any(n < 1 and n != -1 for n in lengths.values()):
        raise InputError(
            f"a mesh takes axes of 1 device or more, of which one may be -1, not {in_words(axes)}"
        )
    known = math.prod(n for n in lengths.values() if n != -1)
    for name, length in lengths.items():
        if length == -1 and count % known == 0:
            lengths[name] = count // known
    if math.prod(lengths.values()) != count:
        raise InputError(
            f"a mesh of {in_words(axes)} does not fit {count} device{'s' * (count > 1)}; the "
            f"lengths of its axes have to multiply to {count}"
        )
    # Auto axes: the compiler places what shardings leave open.
    grid = np.asarray(devices).reshape([*lengths.values()])
    return Mesh(grid, tuple(lengths), axis_types=(AxisType.Auto,) * len(lengths))


def in_words(axes: Mapping[str, int]) -> str:
    """Axes as a flag has them: `data:4,model:2`."""
    return ",".join(f"{name}:{length}" for name, length in axes.items())


def axis_size(mesh: Mesh, axis: str) -> int:
    """How many devices a mesh has along an axis.

    Raises:
      InputError: it has no such axis.
    """
    if axis not in mesh.shape:
        raise InputError(
            f"the mesh has no axis {axis!r}, which its sharding rules ask for; "
            f"it has {', '.join(mesh.shape)}"
        )
    return mesh.shape[axis]


def specs(tree: Any, rules: Rules, mesh: Mesh) -> Any:
    """The PartitionSpec of each array of a State, or of any part of one.

    Args:
      tree: arrays, or what `jax.eval_shape` makes of them.
      rules: none for whole arrays on every device.
      mesh: the devices.

    Raises:
      InputError: a rule fits no array at all, or does not fit the mesh.
    """
    leaves, structure = jax.tree.flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    found = [P()] * len(leaves)
    for rule in rules:
        before = found
        found = [
            rule(name, leaf.shape, spec, mesh)
            for name, (_, leaf), spec in zip(names, leaves, before, strict=True)
        ]
        if found == before:
            raise InputError(f"the sharding rule {_name(rule)} fits no array of the state")
    return jax.tree.unflatten(structure, found)


def _name(rule: Rule) -> str:
    return getattr(rule, "__name__", str(rule))


def shardings(tree: Any, rules: Rules, mesh: Mesh) -> Any:
    """What `specs` says, as shardings."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(tree, rules, mesh))


def bytes_per_device(tree: Any, shardings: Any) -> int:
    """The bytes of a tree of arrays, or of their shapes, that one device holds of it."""
    of = lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return sum(jax.tree.leaves(jax.tree.map(of, tree, shardings)))
