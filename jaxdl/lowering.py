"""Operations that have a program of their own on CPUs, and XLA's own everywhere else.

An operation is a JAX primitive: it is differentiated, batched and counted as one, and only where a
program is made for a platform is it decided what it becomes. So the programs of GPUs and TPUs are
those of the `jax.lax` functions that it stands for, whatever machine they are made on.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import mlir
from jax.interpreters import partial_eval as pe

Operation = Callable[..., Any]


def operation(
    name: str, reference: Operation, on_cpu: Operation, on_cpus: Operation | None = None
) -> Primitive:
    """Return a primitive of one output that is `reference`, and `on_cpu` on a single CPU device.

    Across several CPU devices it is `on_cpus`, and so it is for types that are narrower than
    float32. For shapes that are not known when it is compiled it is the reference. Derivatives and
    batching are the caller's to define.

    Args:
      name: what jaxprs call it.
      reference: (*arrays, geometry) -> array, by functions of `jax.lax`; the geometry is hashable.
      on_cpu: the same, equal to rounding.
      on_cpus: the same again, which the partitioner knows how to split; by default the reference.
    """
    primitive = Primitive(name)

    @functools.partial(jax.jit, static_argnums=0)
    def compiled(geometry, *arrays):
        return primitive.bind(*arrays, geometry=geometry)

    primitive.def_impl(lambda *arrays, geometry: compiled(geometry, *arrays))

    def abstract(*avals, geometry):
        traced = jax.make_jaxpr(functools.partial(reference, geometry=geometry))(*avals)
        return traced.out_avals[0]

    primitive.def_abstract_eval(abstract)

    def alive(*arrays, geometry):
        """The reference without what derivatives leave behind of the values they are of."""
        traced = jax.make_jaxpr(functools.partial(reference, geometry=geometry))(*arrays)
        used, _ = pe.dce_jaxpr(traced.jaxpr, [True], instantiate=True)
        return jaxpr_as_fun(ClosedJaxpr(used, traced.consts))(*arrays)

    by_reference = mlir.lower_fun(alive, multiple_results=True)
    by_own = mlir.lower_fun(on_cpu, multiple_results=False)
    by_several = mlir.lower_fun(on_cpus, multiple_results=False) if on_cpus else by_reference

    def lower(context, *operands, geometry):
        devices = getattr(context.module_context.axis_context, "num_devices", 1)
        wide = all(aval.dtype in (np.float32, np.float64) for aval in context.avals_in)
        own = by_own if devices in (None, 1) and wide else by_several
        known = all(map(has_known_shape, context.avals_in))
        return (own if known else by_reference)(context, *operands, geometry=geometry)

    mlir.register_lowering(primitive, by_reference)
    mlir.register_lowering(primitive, lower, platform="cpu")
    return primitive


def computed(x: jax.Array) -> jax.Array:
    """Return x, which XLA on CPUs then computes once, and not anew in each place that it is used.

    There it drops `jax.lax.optimization_barrier` before it fuses: what is read nine times is
    computed nine times, and what is transposed is read in the transpose's order. It fuses nothing
    across a conditional. This one always takes its first branch, which the compiler cannot know: a
    number times the next is even.

    Args:
      x: numbers of any shape; under `jax.vmap` it is a select, and promises nothing.
    """
    if not x.size:
        return x
    bits = np.dtype(f"int{8 * x.dtype.itemsize}")
    number = jax.lax.bitcast_convert_type(x[(0,) * x.ndim], bits)
    return jax.lax.cond(number * (number + 1) % 2 == 0, lambda x: x, lambda x: -x, x)


def has_known_shape(aval: Any) -> bool:
    """Whether it is known how large an operand is, so that a program can be made for it."""
    return all(isinstance(size, int) for size in aval.shape)
