"""The networks: one file per family, and the table of their names.

Use a family directly, `from jaxdl.models import resnet`, or by a name that a user gave:

    model = jaxdl.models.create("resnet50", num_classes=10)

A new family is a new file and its rows here.
"""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np

from jaxdl import InputError
from jaxdl.models import alexnet, densenet, googlenet, inception, lenet, mlp, nin, resnet, vgg

MODELS: dict[str, Callable[..., nn.Module]] = {
    "alexnet": alexnet.alexnet,
    "alexnet_paper": alexnet.alexnet_paper,
    "densenet121": densenet.densenet121,
    "densenet161": densenet.densenet161,
    "densenet169": densenet.densenet169,
    "densenet201": densenet.densenet201,
    "densenet40_bc_cifar": densenet.densenet40_bc_cifar,
    "densenet100_bc_cifar": densenet.densenet100_bc_cifar,
    "googlenet": googlenet.googlenet,
    "googlenet_paper": googlenet.googlenet_paper,
    "inception_v2": inception.inception_v2,
    "inception_v3": inception.inception_v3,
    "inception_v4": inception.inception_v4,
    "inception_resnet_v2": inception.inception_resnet_v2,
    "lenet5": lenet.lenet5,
    "lenet5_1998": lenet.lenet5_1998,
    "mlp": mlp.mlp,
    "nin": nin.nin,
    "nin_cifar": nin.nin_cifar,
    "plain18": resnet.plain18,
    "plain34": resnet.plain34,
    "plain20_cifar": resnet.plain20_cifar,
    "plain32_cifar": resnet.plain32_cifar,
    "plain44_cifar": resnet.plain44_cifar,
    "plain56_cifar": resnet.plain56_cifar,
    "plain110_cifar": resnet.plain110_cifar,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnet152": resnet.resnet152,
    "resnet18_v2": resnet.resnet18_v2,
    "resnet34_v2": resnet.resnet34_v2,
    "resnet50_v2": resnet.resnet50_v2,
    "resnet101_v2": resnet.resnet101_v2,
    "resnet152_v2": resnet.resnet152_v2,
    "resnet20_cifar": resnet.resnet20_cifar,
    "resnet32_cifar": resnet.resnet32_cifar,
    "resnet44_cifar": resnet.resnet44_cifar,
    "resnet56_cifar": resnet.resnet56_cifar,
    "resnet110_cifar": resnet.resnet110_cifar,
    "resnet20_cifar_v2": resnet.resnet20_cifar_v2,
    "resnet32_cifar_v2": resnet.resnet32_cifar_v2,
    "resnet44_cifar_v2": resnet.resnet44_cifar_v2,
    "resnet56_cifar_v2": resnet.resnet56_cifar_v2,
    "resnet110_cifar_v2": resnet.resnet110_cifar_v2,
    "vgg11": vgg.vgg11,
    "vgg11_lrn": vgg.vgg11_lrn,
    "vgg13": vgg.vgg13,
    "vgg16_c": vgg.vgg16_c,
    "vgg16": vgg.vgg16,
    "vgg19": vgg.vgg19,
    "vgg11_bn": vgg.vgg11_bn,
    "vgg13_bn": vgg.vgg13_bn,
    "vgg16_bn": vgg.vgg16_bn,
    "vgg19_bn": vgg.vgg19_bn,
}


def names() -> tuple[str, ...]:
    """Return the names of all models, sorted."""
    return tuple(sorted(MODELS))


def create(name: str, **kwargs: Any) -> nn.Module:
    """Return the model of that name, built with the keyword arguments of its own function.

    Args:
        name: one of `names()`.
        kwargs: what the function of that name takes, such as `num_classes`: how many logits it
            gives, or 0 for what else goes into the last layer, the `features` [B, F].

    Raises InputError for a name that is not in the table, for a keyword the model does not take,
    for a rate of dropout outside of [0, 1), and for a number of classes that is below 0 or none.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=5)
        hint = f"near it: {', '.join(near)}; " if near else ""
        raise InputError(f"no model {name!r}; {hint}jaxdl.models.names() lists all")
    takes = inspect.signature(MODELS[name]).parameters
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
