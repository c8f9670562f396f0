"""Networks as TensorBoard draws them."""

import functools

import jax
import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.graph_pb2 import GraphDef
from test_writers import events

from jaxdl import models
from jaxdl.graph import graph
from jaxdl.writers import Writer


def network(name, **kwargs):
    model = models.create(name, **kwargs)
    image = jax.ShapeDtypeStruct((1, *models.IMAGE_SHAPES[name]), jnp.float32)
    apply = functools.partial(model.apply, train=False)
    init = functools.partial(model.init, train=False)
    return apply, jax.eval_shape(init, jax.random.key(0), image), image


def shape_of(node):
    (shape,) = node.attr["_output_shapes"].list.shape
    return [dim.size for dim in shape.dim]


@pytest.mark.parametrize("name", ["lenet5", "resnet20_cifar"])
def test_nodes_stand_under_their_modules_and_know_their_inputs(name):
    apply, variables, image = network(name, num_classes=7)
    nodes = {node.name: node for node in graph(apply, variables, image).node}
    for node in nodes.values():
        for given in node.input:
            assert given.split(":")[0] in nodes, (node.name, given)
    parameters = [node for node in nodes.values() if node.op == "Parameter"]
    assert len(parameters) == len(jax.tree.leaves(variables))
    kernel = next(node for node in parameters if len(shape_of(node)) == 4)
    module = kernel.name.removesuffix("/kernel")
    own = variables["params"][module.split("/")[-1]]["kernel"]
    assert shape_of(kernel) == list(own.shape)
    # The convolution stands beside its kernel, and takes it and the images.
    inside = [node for node in nodes.values() if node.name.startswith(f"{module}/")]
    convolutions = [node for node in inside if "conv" in node.op]
    assert len(convolutions) == 1
    assert kernel.name in convolutions[0].input

    # From the last node one comes to the images and to every parameter that is read.
    seen, waiting = set(), [list(nodes)[-1]]
    while waiting:
        at = waiting.pop().split(":")[0]
        if at not in seen:
            seen.add(at)
            waiting += nodes[at].input
    assert any(nodes[at].op == "Placeholder" for at in seen)
    assert {node.name for node in parameters} <= seen
    assert shape_of(nodes[list(nodes)[-1]]) == [1, 7]


def test_what_is_called_twice_is_drawn_twice():
    relu = jax.jit(lambda x: jnp.maximum(x, 0))
    found = graph(lambda x: relu(relu(x) + 1), jnp.ones(3))
    kinds = [node.op for node in found.node]
    assert kinds.count("max") == 2
    nodes = {node.name: node for node in found.node}
    first, second = (node for node in found.node if node.op == "max")
    (added,) = (node for node in found.node if node.op == "add")
    assert list(first.input) == ["input/0"]
    assert list(added.input) == [first.name]
    assert list(second.input) == [added.name]
    assert len(nodes) == len(found.node)


def test_the_graph_is_among_the_events(tmp_path):
    apply, variables, image = network("lenet5")
    with Writer(tmp_path, draws=False) as writer:
        writer.graph(apply, variables, image)
        writer.scalars(1, {"loss": 0.5})
    found = [Event.FromString(event.SerializeToString()) for event in events(tmp_path)]
    (drawn,) = [GraphDef.FromString(event.graph_def) for event in found if event.graph_def]
    assert len(drawn.node) == len(graph(apply, variables, image).node) > 20
