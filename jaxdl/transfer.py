"""Transfer learning: new heads on trained networks, frozen layers, rates and turns of their own.

All of it is functions around the parts of `jaxdl.task.supervised`, so the step, the loop and the
checkpoints know nothing of it:

    net = outline(lambda num_classes: models.create("resnet50", num_classes=num_classes), shape)
    init = start_from(init, variables, net.head, old_classes, new_classes)
    init, loss = freeze(init, loss, net.up_to("layer2"))
    optimizer = layer_rates(optimizer, discriminative(net.stages, 0.5))
    task = supervised(init, loss, optimizer, schedule)

Layers are named by patterns. A pattern is a regular expression for the beginning of an array's
path, such as `layer1_0/conv1/kernel`, up to the end of a name or to an underscore in it: `layer1`
matches all blocks of that stage, `conv1` is not `conv10`, and `conv1|layer1` is either.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from jaxdl import InputError
from jaxdl.task import Init, Loss, Mean, Optimizer, Schedule

FROZEN = "frozen"
"""The entry of `State.extra` that holds the parameters that are not trained."""

# --- Paths.


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern matches the beginning of a path, of an array or of a module.

    Raises:
      InputError: the pattern is no regular expression.
    """
    try:
        return re.match(rf"(?:{pattern})(?=[/_]|$)", path) is not None
    except re.error as error:
        raise InputError(f"pattern {pattern!r} is no regular expression ({error})") from None


def _exactly(layers: Collection[str]) -> str:
    """The pattern of whole layers, without those that continue their names after an underscore."""
    return f"(?:{'|'.join(map(re.escape, layers))})(?=/|$)"


def _flat(tree: Any) -> dict[str, Any]:
    """{path: array}, in the order of the dicts."""
    return traverse_util.flatten_dict(tree, sep="/")


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def _map_with_path(function: Callable[..., Any], *trees: Any) -> Any:
    """`function` of the path and the leaves at it."""
    named = lambda path, *leaves: function(
        jax.tree_util.keystr(path, simple=True, separator="/"), *leaves
    )
    return jax.tree_util.tree_map_with_path(named, *trees)


def _layers(paths: Collection[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(path.split("/")[0] for path in paths))


def _check_matches(patterns: Collection[str], paths: Collection[str]) -> None:
    for pattern in patterns:
        if not any(matches(pattern, path) for path in paths):
            raise InputError(
                f"pattern {pattern!r} matches nothing; the layers are {', '.join(_layers(paths))}"
            )


class Outline(NamedTuple):
    """What a network is made of, from its first layer to its last.

    Attributes:
      paths: of its parameters, in the order in which its layers are called.
      head: the paths of the arrays with an entry for each class, those of auxiliary heads too, and
        the axis along which the classes lie.
    """

    paths: tuple[str, ...]
    head: Mapping[str, int]

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of its outermost layers."""
        return _layers(self.paths)

    @property
    def all_but_head(self) -> str:
        """The pattern of all that could stay when the classes are others.

        Raises:
          InputError: the network has no head: nothing in it depends on the number of classes.
        """
        if not self.head:
            raise InputError("the network has no head: no array in it has an entry for each class")
        heads = {path.rpartition("/")[0] for path in self.head}
        return f"(?!{_exactly(heads)}).+"

    def up_to(self, name: str) -> str:
        """The pattern of the layers from the first to the last that the pattern `name` matches.

        Heads are never among them, nor those auxiliary ones that branch off before it.

        Raises:
          InputError: there is no such layer.
        """
        _check_matches([name], self.layers)
        last = max(i for i, layer in enumerate(self.layers) if matches(name, layer))
        heads = _layers(self.head)
        return _exactly([layer for layer in self.layers[: last + 1] if layer not in heads])

    @property
    def stages(self) -> tuple[str, ...]:
        """Patterns of the stages, from the lowest to the highest, which is that of the heads.

        Layers in turn whose names differ only in a last number are one stage (`layer1_0`,
        `layer1_1`), and one without a kernel, such as a norm, belongs to the stage below it.
        """
        heads = [layer for layer in self.layers if layer in _layers(self.head)]
        kernels = _layers([path for path in self.paths if path.endswith("/kernel")])
        stages: list[list[str]] = []
        current = None
        for layer in self.layers:
            if layer in heads:
                continue
            name = re.sub(r"_[a-z]*\d+$", "", layer)
            if stages and (name == current or layer not in kernels):
                stages[-1].append(layer)
            else:
                stages.append([layer])
                current = name
        return tuple(_exactly(stage) for stage in [*stages, heads] if stage)

    def without(self, pattern: str) -> "Outline":
        """The outline of what a frozen pattern leaves to be trained."""
        return self._replace(paths=tuple(p for p in self.paths if not matches(pattern, p)))


def outline(build: Callable[[int], nn.Module], image_shape: tuple[int, int, int]) -> Outline:
    """Finds the layers of a network and its head: whatever changes its shape with the classes.

    Nothing is computed.

    Args:
      build: (num_classes) -> the network.
      image_shape: (height, width, channels).
    """

    def shapes(num_classes):
        order: list[str] = []

        def init(key, images):
            params: Any = build(num_classes).init(key, images, train=False)["params"]
            order.extend(_flat(params))  # JAX sorts the dicts that it returns
            return params

        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        params = jax.eval_shape(init, jax.eval_shape(partial(jax.random.key, 0)), images)
        flat = _flat(params)
        return {path: flat[path].shape for path in order}

    here, there = shapes(2), shapes(3)
    head = {
        path: next(axis for axis, size in enumerate(shape) if size != there[path][axis])
        for path, shape in here.items()
        if shape != there[path]
    }
    return Outline(tuple(here), head)


# --- Starting points.


def merged(params: Any, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of a network from a state's `params` and `extra`, with what was frozen.

    Args:
      params: `State.params`, or as `checkpoint.load` reads them.
      extra: likewise.

    Returns:
      What the network is applied with: `params`, and `batch_stats` where it has them.
    """
    extra = dict(extra)
    whole = _flat(params) | _flat(extra.pop(FROZEN, {}))
    return {"params": _nested(whole), **extra}


def replace_head(
    variables: Mapping[str, Any],
    template: Mapping[str, Any],
    head: Mapping[str, int],
    old_classes: Sequence[str] = (),
    new_classes: Sequence[str] = (),
) -> dict[str, Any]:
    """Puts trained variables under a fresh head; classes that both know keep their outputs.

    Args:
      variables: the trained ones, of the same network with any number of classes.
      template: freshly initialized ones of the network to make.
      head: `Outline.head`.
      old_classes: the names of the classes of `variables`, in their order; none to carry over none.
      new_classes: those of `template`.

    Returns:
      Variables like `template`.

    Raises:
      InputError: the two are not of the same network, or the names are not one for each class.
    """
    given, wanted = _flat(variables), _flat(template)
    axes = {f"params/{path}": axis for path, axis in head.items()}
    carried = [name for name in new_classes if name in old_classes]
    old = np.array([old_classes.index(name) for name in carried], np.int32)
    new = np.array([new_classes.index(name) for name in carried], np.int32)

    def shape_of(arrays, path, classes):
        """Of the head, all but the classes' axis; where names are given, that too must fit."""
        if path not in arrays:
            return "absent"
        shape = list(np.shape(arrays[path]))
        if path in axes and (not classes or shape[axes[path]] == len(classes)):
            shape[axes[path]] = -1
        return str(shape).replace("-1", "classes")

    wrong = []
    for path in sorted(given.keys() | wanted.keys()):
        there = shape_of(given, path, old_classes)
        here = shape_of(wanted, path, new_classes)
        if there != here:
            wrong.append(f"{path} is {there} there and {here} here")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(f"the weights are not this network's: {'; '.join(wrong[:5])}{more}")

    def take(path, fresh):
        if path not in axes:
            return jnp.asarray(given[path], fresh.dtype)
        rows = (slice(None),) * axes[path]
        return fresh.at[(*rows, new)].set(jnp.asarray(given[path], fresh.dtype)[(*rows, old)])

    return _nested({path: take(path, fresh) for path, fresh in wanted.items()})


def start_from(
    init: Init,
    variables: Mapping[str, Any],
    head: Mapping[str, int],
    old_classes: Sequence[str] = (),
    new_classes: Sequence[str] = (),
) -> Init:
    """An `init` that begins with trained variables, and with a fresh head that the key draws.

    Args:
      init: (key) -> (params, extra) of the network to train.
      variables, head, old_classes, new_classes: see `replace_head`, which also says what `init`
        will raise.
    """

    def started(key):
        params, extra = init(key)
        template = {"params": params, **extra}
        begun = replace_head(variables, template, head, old_classes, new_classes)
        return begun.pop("params"), begun

    return started


# --- Freezing.

Held = Callable[[str], Any]
"""(path) -> whether what is there holds still: a bool, or an array that decides in each step"""


def _held_still(loss: Loss, held: Held) -> Loss:
    """A loss that leaves state alone where `held` says so, and there normalizes as in evaluation.

    It does so for the norms of any network, which need not know.
    """

    def normalize(call, args, kwargs, context):
        module = context.module
        still = isinstance(module, nn.BatchNorm) and held("/".join(module.path))
        if still is False:
            return call(*args, **kwargs)
        alone = module.clone(parent=None, use_running_average=None)
        evaluated: Any = alone.apply(module.variables, args[0], use_running_average=True)
        return evaluated if still is True else jnp.where(still, evaluated, call(*args, **kwargs))

    def keep(path, before, after):
        still = held(path.partition("/")[2])  # without the collection's name
        return after if still is False else jnp.where(still, before, after)

    def held_loss(params, extra, batch, key, hparams, train):
        if not train:
            return loss(params, extra, batch, key, hparams, train)
        with nn.intercept_methods(normalize):
            mean, after, metrics = loss(params, extra, batch, key, hparams, train)
        return mean, _map_with_path(keep, dict(extra), after), metrics

    return held_loss


def freeze(init: Init, loss: Loss, pattern: str) -> tuple[Init, Loss]:
    """Takes parameters out of training: no gradient, no update, no decay, no optimizer state.

    They move from `State.params` to `State.extra["frozen"]`, so nothing is differentiated below the
    lowest layer that is trained. A batch norm whose path matches normalizes with its running
    averages, which do not change; that holds where the norm or a layer around it is named, not
    where only its scale and bias are. Dropout in frozen layers goes on.

    Args:
      init: (key) -> (params, extra).
      loss: as `task.supervised` takes it.
      pattern: of what is frozen.

    Returns:
      (init, loss). `init` raises InputError if the pattern matches nothing or everything.
    """

    def frozen_init(key):
        params, extra = init(key)
        flat = _flat(params)
        _check_matches([pattern], flat)
        frozen = {path: array for path, array in flat.items() if matches(pattern, path)}
        if len(frozen) == len(flat):
            raise InputError(
                f"pattern {pattern!r} freezes everything; leave some of {', '.join(_layers(flat))}"
            )
        trained = {path: array for path, array in flat.items() if path not in frozen}
        return _nested(trained), {**extra, FROZEN: _nested(frozen)}

    still = _held_still(loss, lambda path: matches(pattern, path))

    def frozen_loss(params, extra, batch, key, hparams, train):
        rest = merged(params, extra)
        mean, rest, metrics = still(rest.pop("params"), rest, batch, key, hparams, train)
        return mean, {**rest, FROZEN: extra[FROZEN]}, metrics

    return frozen_init, frozen_loss


# --- A rate of its own for each layer.

Rates = Sequence[tuple[str, float]]
"""(pattern, factor); the first that matches counts"""


def layer_rates(optimizer: Optimizer, rates: Rates) -> Optimizer:
    """Multiplies the updates of each layer by a factor: its share of the learning rate.

    What an update holds of decoupled weight decay is multiplied too. For methods whose update is
    not proportional to the learning rate (the proximal ones, FTRL, dual averaging) the factor is on
    the update all the same.

    Args:
      optimizer: (hparams) -> optax transformation.
      rates: what no pattern matches has the factor 1.

    Returns:
      An optimizer whose `init` raises InputError for a pattern that matches nothing.
    """

    def scaled(path, update):
        return update * next((factor for pattern, factor in rates if matches(pattern, path)), 1.0)

    def init(params):
        _check_matches([pattern for pattern, _ in rates], _flat(params))
        return optax.EmptyState()

    def update(updates, state, params=None):
        return _map_with_path(scaled, updates), state

    factors = optax.GradientTransformation(init, update)
    return lambda hparams: optax.chain(optimizer(hparams), factors)


def discriminative(stages: Sequence[str], factor: float) -> Rates:
    """Rates that fall by a factor from each stage to the one below it; the highest has 1.

    Discriminative fine-tuning, Howard and Ruder 2018 (arXiv:1801.06146), with a factor of 1/2.6.

    Args:
      stages: patterns from the lowest to the highest, such as `Outline.stages`.
      factor: more than 0 and at most 1.
    """
    return [(stage, factor**depth) for depth, stage in enumerate(reversed(stages))]


# --- Gradual unfreezing.


def gradual(
    loss: Loss, optimizer: Optimizer, schedule: Schedule, stages: Sequence[str], every: int
) -> tuple[Loss, Optimizer, Schedule]:
    """Trains the highest stage first, and one stage more below it after every so many steps.

    Gradual unfreezing, Howard and Ruder 2018 (arXiv:1801.06146). Until its turn nothing of a stage
    changes, be it parameters, batch statistics or optimizer state; its norms use their running
    averages; and its optimizer, which is one of its own, counts from its own first step.

    How many stages are trained is the hyperparameter `thawed` of a step, so one program serves the
    whole training. The price is that gradients of held stages are computed and thrown away;
    `freeze` saves them. What an optimizer does over all arrays, such as clipping to a global norm,
    it does in each stage by itself; put that before, as `optax.chain(clip, optimizer(hparams))`.

    Args:
      loss, optimizer, schedule: as `task.supervised` takes them.
      stages: patterns from the lowest to the highest, such as `Outline.stages`; together they
        match every parameter, and the first that matches counts.
      every: steps.

    Returns:
      (loss, optimizer, schedule). `loss` also reports `thawed`. `optimizer`'s `init` raises
      InputError for a pattern that matches nothing and a parameter that no pattern matches.
    """

    def depth(path):
        found = [i for i, stage in enumerate(reversed(stages)) if matches(stage, path)]
        return found[-1] if found else None

    def thawing_schedule(hparams, step):
        thawed = jnp.minimum(1 + step // every, len(stages))
        return {**schedule(hparams, step), "thawed": thawed.astype(jnp.float32)}

    def thawing_loss(params, extra, batch, key, hparams, train):
        if not train:
            return loss(params, extra, batch, key, hparams, train)

        def held(path):
            return False if depth(path) is None else hparams["thawed"] <= depth(path)

        def stop(path, array):
            return jnp.where(held(path), jax.lax.stop_gradient(array), array)

        still = _held_still(loss, held)
        params = _map_with_path(stop, params)
        mean, extra, metrics = still(params, extra, batch, key, hparams, train)
        return mean, extra, metrics | {"thawed": Mean(hparams["thawed"], 1.0)}

    def labels(params):
        _check_matches(stages, _flat(params))
        for path in _flat(params):
            if depth(path) is None:
                raise InputError(f"no stage matches {path}; every parameter must be of one")
        return _map_with_path(lambda path, _: str(depth(path)), params)

    def thawing_optimizer(hparams):
        def from_its_turn(depth):
            return optax.conditionally_mask(optimizer(hparams), lambda _: hparams["thawed"] > depth)

        return optax.partition({str(d): from_its_turn(d) for d in range(len(stages))}, labels)

    return thawing_loss, thawing_optimizer, thawing_schedule
