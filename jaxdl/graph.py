"""A function's operations as the graph that TensorBoard draws, without TensorFlow.

Operations stand under the names of the modules that they come of, so that TensorBoard folds them.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Jaxpr, Literal, jaxprs_in_params
from tensorboardX.proto.attr_value_pb2 import AttrValue
from tensorboardX.proto.graph_pb2 import GraphDef
from tensorboardX.proto.node_def_pb2 import NodeDef
from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboardX.proto.versions_pb2 import VersionDef

INLINED = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint")
"""What only calls: its operations stand in its place."""
COLLECTIONS = ("params", "batch_stats")


def graph(function: Callable[..., Any], *args: Any) -> GraphDef:
    """The graph of a function, such as a network's `apply` with `train=False`.

    Nothing is computed.

    Args:
      function: what to draw.
      args: its arguments, arrays or `jax.ShapeDtypeStruct`s; what is under `params` in one of them
        stands beside the module that it is of.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    drawn = _Drawn()
    roots = {str(equation.source_info.name_stack).split("/")[0] for equation in jaxpr.eqns} - {""}
    root = roots.pop() if len(roots) == 1 else ""
    names: dict[Any, str] = {}
    paths = [path for path, _ in jax.tree.leaves_with_path(args)]
    for path, variable in zip(paths, jaxpr.invars, strict=True):
        keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
        if len(keys) > 2 and keys[1] in COLLECTIONS:
            drawn.add([root, *keys[2:]], "Parameter", [], [variable], names)
        else:
            drawn.add(["input", *keys], "Placeholder", [], [variable], names)
    drawn.operations(jaxpr, "", names)
    return GraphDef(node=drawn.nodes, versions=VersionDef(producer=22))


class _Drawn:
    """The nodes of a graph that is being drawn."""

    def __init__(self) -> None:
        self.nodes: list[NodeDef] = []
        self._taken: dict[str, int] = {}

    def add(
        self, path: list[str], op: str, inputs: list[Any], outputs: list[Any], names: dict[Any, str]
    ) -> None:
        """Adds a node, and says in `names` what its outputs are called."""
        name = "/".join(filter(None, path))
        number = self._taken[name] = self._taken.get(name, -1) + 1
        name = f"{name}_{number}" if number else name
        shapes = [_shape(variable.aval) for variable in outputs]
        attributes = {"_output_shapes": AttrValue(list=AttrValue.ListValue(shape=shapes))}
        known = [names[v] for v in inputs if not isinstance(v, Literal) and v in names]
        self.nodes.append(NodeDef(name=name, op=op, input=known, attr=attributes))
        names |= {v: f"{name}:{place}" if place else name for place, v in enumerate(outputs)}

    def operations(self, jaxpr: Jaxpr, scope: str, names: dict[Any, str]) -> None:
        """Adds those of a jaxpr under a scope; `names` says what its variables are called."""
        for equation in jaxpr.eqns:
            kind, inner = equation.primitive.name, list(jaxprs_in_params(equation.params))
            here = "/".join(filter(None, [scope, str(equation.source_info.name_stack)]))
            inputs, outputs = list(equation.invars), list(equation.outvars)
            if kind not in INLINED or not inner:
                self.add([here, kind], kind, inputs, outputs, names)
                continue
            body = inner[0]
            own = {  # a body that is called twice has variables of the same names
                of_body: names[v]
                for of_body, v in zip(body.invars, inputs[-len(body.invars) :], strict=False)
                if not isinstance(v, Literal) and v in names
            }
            self.operations(body, here, own)
            for outer, of_body in zip(outputs, body.outvars, strict=True):
                if not isinstance(of_body, Literal) and of_body in own:
                    names[outer] = own[of_body]


def _shape(aval: Any) -> TensorShapeProto:
    sizes = [size if isinstance(size, int) else -1 for size in getattr(aval, "shape", ())]
    return TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in sizes])
