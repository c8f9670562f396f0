"""The networks: one file per family, and the table of the names of those that classify.

Use a family directly, `from jaxdl.models import resnet`, or by a name that a user gave:

    model = jaxdl.models.create("resnet50", num_classes=10)

A family's file ends in the tables that are merged here: the names that it publishes (`MODELS`) with
the images they are for (`IMAGE_SHAPES`), and what is published of them (`PUBLISHED`, `WEIGHTS`) and
how they are cut over devices (`SHARDING`). A new family is a new file, and its name in `FAMILIES`.
"""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np

from jaxdl import InputError
from jaxdl.models import (
    alexnet,
    densenet,
    googlenet,
    inception,
    lenet,
    linear,
    mlp,
    nin,
    resnet,
    vgg,
)
from jaxdl.published import Published, Weights
from jaxdl.sharding import Rules

FAMILIES = (alexnet, densenet, googlenet, inception, lenet, linear, mlp, nin, resnet, vgg)


def _merged(table: str) -> dict[str, Any]:
    """The rows of all families that have such a table."""
    return {name: row for family in FAMILIES for name, row in getattr(family, table, {}).items()}


MODELS: dict[str, Callable[..., nn.Module]] = _merged("MODELS")

IMAGE_SHAPES: dict[str, tuple[int, int, int]] = _merged("IMAGE_SHAPES")
"""The images [H, W, C] that each was published for."""

PUBLISHED: dict[str, Published] = _merged("PUBLISHED")
"""What is said elsewhere of some of them."""

WEIGHTS: dict[str, Weights] = _merged("WEIGHTS")
"""The published form of the weights of some of them; `jaxdl.pretrained` reads it."""

SHARDING: dict[str, Rules] = _merged("SHARDING")
"""How some of them are cut over a mesh axis `model`."""


def names() -> tuple[str, ...]:
    """Return the names of all models, sorted."""
    return tuple(sorted(MODELS))


def create(name: str, **kwargs: Any) -> nn.Module:
    """Return the model of that name, built with the keyword arguments of its own function.

    Args:
      name: one of `names()`.
      kwargs: what the function of that name takes, such as `num_classes`: how many logits it
        gives, or 0 for what else goes into the last layer, the `features` [B, F].

    Raises:
      InputError: a name that is not in the table, a keyword the model does not take, a rate of
        dropout outside of [0, 1), or a number of classes that is below 0 or none.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=5)
        hint = f"near it: {', '.join(near)}; " if near else ""
        raise InputError(f"no model {name!r}; {hint}jaxdl.models.names() lists all")
    of_flax = ("parent", "name")  # which every Linen module takes too
    takes = [p for p in inspect.signature(MODELS[name]).parameters if p not in of_flax]
    unknown = [keyword for keyword in kwargs if keyword not in takes]
    if unknown:
        raise InputError(f"{name} does not take {', '.join(unknown)}; it takes {', '.join(takes)}")
    for keyword, value in kwargs.items():
        if keyword.endswith("dropout") and not 0 <= value < 1:
            raise InputError(f"{name} takes a {keyword} in [0, 1), not {value}")
        if keyword == "num_classes" and not (isinstance(value, int | np.integer) and value >= 0):
            raise InputError(
                f"{name} takes num_classes of at least 1, or 0 for its features, not {value!r}"
            )
    return MODELS[name](**kwargs)
