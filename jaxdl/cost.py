"""What a function costs: its multiply-adds and activations, counted from its jaxpr.

    cost(resnet_apply, variables, images).multiply_adds
    cost(task.train, state, batch)                   # a whole train step, under jit or not
    layers(resnet50(), (224, 224, 3))                # one row a layer

Nothing is computed: arguments may be `jax.ShapeDtypeStruct`s, and counting a VGG makes no array.

Counted are convolutions and matrix products, whatever they serve; elementwise operations,
reductions, pooling and normalization are not multiply-adds. One multiply-add is two FLOPs.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, jaxprs_in_params

from jaxdl import InputError


class Cost(NamedTuple):
    """What a function costs, over all devices that it runs on.

    Attributes:
      multiply_adds: of its convolutions and matrix products.
      activation_bytes: of all that these write. For a forward pass these are the "activations" of
        Radosavovic et al. (2020, arXiv:2003.13678), which tell more of memory and of running time
        than multiply-adds do.
    """

    multiply_adds: int
    activation_bytes: int


class Layer(NamedTuple):
    """What one module of a network holds and does itself, not in a module inside it.

    Attributes:
      path: its names from the outermost module to its own, joined by dots; empty for the outermost.
      type: the name of its class.
      output_shape: of its last call, for a batch of one; where that gave several arrays, the last.
      parameters: how many numbers it learns.
      multiply_adds, activation_bytes: as in `Cost`, of all its calls.
    """

    path: str
    type: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    activation_bytes: int


def cost(function: Callable[..., Any], *args: Any) -> Cost:
    """Counts what one call of a function costs.

    A convolution has the textbook's count, in which padding is as good as pixels: output positions
    x kernel size x input channels of a group x output channels. Where there are more output than
    input positions, as in a transposed convolution, the inputs are counted instead, for each tap of
    the kernel meets an input position only once. So the zeros that dilation puts between pixels or
    taps cost nothing, and either gradient of a convolution costs as much as the convolution.

    A scan counts as often as it runs, a conditional as its costliest branch, and a program that
    runs on each device (shard_map, pmap) once for each. Work that `jax.checkpoint` does again
    counts again.

    Args:
      function: what to count, transformed in whatever way: jit, grad, vmap, pmap ... Give values
        that must not be traced, such as `train`, by `functools.partial`. Of what `jit` gave the
        trace is kept for its next call.
      args: its arguments, as arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      InputError: a `while` loop holds a product; how often it runs only running it would tell.
    """
    trace = getattr(function, "trace", None)
    traced = trace(*args).jaxpr if trace else jax.make_jaxpr(function)(*args)
    products = list(_products(traced.jaxpr))
    return Cost(sum(p.multiply_adds for p in products), sum(p.written for p in products))


def layers(model: nn.Module, image_shape: tuple[int, ...]) -> list[Layer]:
    """The layers of a network in the order they are entered, each with what it costs for one image.

    The rows add up to the parameters of the network and to its `cost` with `train=False`. Modules
    that neither learn nor multiply (containers, dropout) have none.

    Args:
      model: a network that is applied as `model.apply(variables, images, train=False)`.
      image_shape: (height, width, channels).
    """
    types: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def record(call, args, kwargs, context):
        path = ".".join(context.module.path)
        types.setdefault(path, type(context.module).__name__)
        # Every equation that the call leaves in the jaxpr, however deep, bears the module's path.
        with jax.named_scope(f"@{path}"):
            output = call(*args, **kwargs)
        arrays = [leaf for leaf in jax.tree.leaves(output) if isinstance(leaf, jax.Array)]
        if arrays:
            shapes[path] = arrays[-1].shape
        return output

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    key = jax.eval_shape(partial(jax.random.key, 0))
    variables: Any = jax.eval_shape(partial(model.init, train=False), key, images)
    with nn.intercept_methods(record):
        jaxpr = jax.make_jaxpr(partial(model.apply, train=False))(variables, images).jaxpr

    parameters, multiply_adds, written = (dict.fromkeys(types, 0) for _ in range(3))
    for keys, leaf in jax.tree.leaves_with_path(variables.get("params", {})):
        names = [key.key for key in keys]
        owners = (".".join(names[:depth]) for depth in reversed(range(len(names))))
        # A module that is not called without training, as an auxiliary head, has no row: its
        # parameters are then those of the module around it.
        parameters[next(owner for owner in owners if owner in types)] += leaf.size
    for product in _products(jaxpr):
        path = re.findall(r"@([^/()]*)", product.scope)[-1]
        multiply_adds[path] += product.multiply_adds
        written[path] += product.written
    return [
        Layer(at, name, shapes.get(at, ()), parameters[at], multiply_adds[at], written[at])
        for at, name in types.items()
        if parameters[at] or multiply_adds[at]
    ]


class _Product(NamedTuple):
    """A convolution or matrix product: the named scopes around it, its work, the bytes written."""

    scope: str
    multiply_adds: int
    written: int


def _products(jaxpr: Jaxpr, scope: str = "") -> Iterator[_Product]:
    """The products of a jaxpr and of all jaxprs inside it."""
    for eqn in jaxpr.eqns:
        here = f"{scope}/{eqn.source_info.name_stack}"
        kind = eqn.primitive.name
        if kind in _MULTIPLY_ADDS:
            avals: list[Any] = [variable.aval for variable in (*eqn.invars, *eqn.outvars)]
            lhs, rhs, output = avals
            multiply_adds = _MULTIPLY_ADDS[kind](lhs, rhs, output, eqn.params)
            yield _Product(here, multiply_adds, output.size * output.dtype.itemsize)
            continue
        inside = [list(_products(inner, here)) for inner in jaxprs_in_params(eqn.params)]
        if kind == "cond":
            inside = [max(inside, key=lambda branch: sum(p.multiply_adds for p in branch))]
        elif kind == "while" and any(inside):
            raise InputError(
                "a while loop that multiplies cannot be counted, for its length is unknown; "
                "use lax.scan, or lax.fori_loop between Python integers"
            )
        times = _times(kind, eqn.params)
        for product in (product for found in inside for product in found):
            yield _Product(product.scope, times * product.multiply_adds, times * product.written)


def _times(kind: str, params: Mapping[str, Any]) -> int:
    """How often an equation runs the jaxprs inside it."""
    if kind == "scan":
        return params["length"]
    if kind == "shard_map":  # pmap is one, too
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    if kind == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1


def _convolution(lhs: Any, kernel: Any, output: Any, params: Mapping[str, Any]) -> int:
    lhs_spec, kernel_spec, output_spec = params["dimension_numbers"]
    batch, features, *output_dims = output_spec
    _, group_channels, *kernel_dims = kernel_spec
    count = output.shape[batch] * output.shape[features] * kernel.shape[group_channels]
    for i, o, k in zip(lhs_spec[2:], output_dims, kernel_dims, strict=True):
        count *= min(lhs.shape[i], output.shape[o]) * kernel.shape[k]
    return count


def _ours(images: Any, kernel: Any, params: Mapping[str, Any]) -> int:
    """Of an operation of `jaxdl.conv`: whichever of its three arrays are the kernel and images."""
    g = params["geometry"]
    positions = math.prod(map(min, g.image, g.output))
    return math.prod(images.shape[:-3]) * positions * math.prod(kernel.shape[-4:])


def _dot(lhs: Any, rhs: Any, output: Any, params: Mapping[str, Any]) -> int:
    (contracted, _), _ = params["dimension_numbers"]
    return output.size * math.prod(lhs.shape[axis] for axis in contracted)


_MULTIPLY_ADDS: dict[str, Callable[[Any, Any, Any, Mapping[str, Any]], int]] = {
    "conv_general_dilated": _convolution,
    "convolution": lambda x, kernel, y, params: _ours(x, kernel, params),
    "convolution_image_gradient": lambda dy, kernel, dx, params: _ours(dy, kernel, params),
    "convolution_kernel_gradient": lambda x, dy, kernel, params: _ours(x, kernel, params),
    "dot_general": _dot,
}


# Dense FLOP/s in bfloat16 (float16 on the V100 and T4, which lack it) of one JAX device, from the
# vendors' data sheets, halved where NVIDIA quotes the sparse figure. A device of TPU v3 is one of a
# chip's two cores. The first name found in the device_kind holds.
_PEAK_FLOPS = {
    "MIG": None,  # a part of a GPU
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "V100-PCIE": 112e12,
    "V100": 125e12,
    "T4": 65e12,
    "L4": 121e12,
    "TPU v3": 123e12 / 2,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """The most dense FLOP/s a device can do in bfloat16, by its data sheet; None if not known."""
    kind = device.device_kind
    return next((f for name, f in _PEAK_FLOPS.items() if re.search(rf"\b{name}\b", kind)), None)
