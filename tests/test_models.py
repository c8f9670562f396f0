"""The contract that every model keeps; what each family must match is in files of its own."""

import functools
from typing import Any

import flax.linen as linen
import jax
import jax.nn as nn
import jax.numpy as jnp
import numpy as np
import pytest
from networks import (
    DEEPER,
    MODELS,
    SHALLOW,
    SHALLOW_GOOGLENET,
    compile_quickly,
    count,
    each,
    flat,
    init,
    init_shapes,
    largest_error,
    slow,
)

import jaxdl
from jaxdl import models
from jaxdl.models import googlenet, mlp
from jaxdl.nn import initializer, redraw


def test_every_model_has_its_row():
    assert list(models.names()) == sorted(MODELS)
    # Each name is of one family.
    assert len(models.MODELS) == sum(len(family.MODELS) for family in models.FAMILIES)
    assert {name: family.image for name, (_, family) in MODELS.items()} == models.IMAGE_SHAPES
    assert models.PUBLISHED.keys() | models.WEIGHTS.keys() <= set(models.names())
    assert set(MODELS) > DEEPER


@pytest.mark.parametrize("name", each(MODELS))
def test_parameters_shapes_and_types(name):
    parameters, family = MODELS[name]
    model: Any = models.create(name, dtype=jnp.bfloat16, param_dtype=jnp.float16)
    variables = init_shapes(model, family.image)
    assert count(variables["params"]) == parameters
    assert all(leaf.dtype == jnp.float16 for leaf in jax.tree.leaves(variables["params"]))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables.get("batch_stats")))
    # `redraw` knows the weights of layers by this name.
    for path, leaf in flat(variables["params"]).items():
        assert path.endswith("kernel") == (leaf.ndim > 1), path
    redrawn = functools.partial(redraw, jax.random.key(0), initializer=initializer("normal"))
    assert jax.eval_shape(redrawn, variables["params"]) == variables["params"]

    x = jax.ShapeDtypeStruct((2, *family.image), jnp.float32)
    apply = functools.partial(model.apply, train=False, mutable=["intermediates"])
    logits, state = jax.eval_shape(apply, variables, x)
    assert logits.shape == (2, 1000 if family.image[0] > 32 else 10)
    assert logits.dtype == jnp.float32
    (features,) = state["intermediates"]["features"]
    assert features.ndim == 2
    assert features.dtype == jnp.bfloat16


@pytest.mark.parametrize("name", each(name for name in MODELS if name not in DEEPER))
def test_contract(name, monkeypatch):
    for stage, rows in SHALLOW_GOOGLENET.items():
        monkeypatch.setattr(googlenet, stage, rows)
    keeps_the_contract(name)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        *(slow("mlp", {"activation": activation}) for activation in mlp.ACTIVATIONS),
        slow("resnet20_cifar", {"shortcut": "B"}),
        slow("resnet20_cifar_v2", {"shortcut": "B"}),
    ],
)
def test_contract_of_variants(name, kwargs):
    keeps_the_contract(name, **kwargs)


def keeps_the_contract(name: str, **kwargs: Any) -> None:
    """What training and evaluation need of every model, from one compiled function."""
    _, family = MODELS[name]
    build: Any = SHALLOW.get(name, functools.partial(models.create, name))
    model = build(**family.small, **kwargs)
    half = build(**family.small, **kwargs, dtype=jnp.bfloat16)
    classes = family.small.get("num_classes", 10)
    x = np.random.default_rng(0).standard_normal((8, *family.small_image), np.float32)
    labels = np.arange(8) % classes
    variables = init(model, x)

    def everything(variables):
        def loss(params):
            logits, state = model.apply(
                {**variables, "params": params},
                x,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(1, impl="unsafe_rbg")},
            )
            log_likelihoods = jnp.take_along_axis(nn.log_softmax(logits), labels[:, None], axis=-1)
            return -log_likelihoods.mean(), (logits, state)

        grads, (logits, state) = jax.grad(loss, has_aux=True)(variables["params"])
        trained = {**variables, **state}
        eval_logits, eval_state = model.apply(trained, x, train=False, mutable=["batch_stats"])
        half_logits = half.apply(trained, x, train=False)
        return logits, grads, state, eval_logits, eval_state, half_logits

    run = compile_quickly(everything, variables)
    # By NumPy, which compiles nothing, from here on.
    outputs, again, variables = jax.device_get((run(variables), run(variables), variables))
    logits, grads, state, eval_logits, eval_state, half_logits = outputs
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(outputs))
    assert logits.shape == eval_logits.shape == (8, classes)
    assert (again[3] == eval_logits).all()

    for path, grad in flat(grads).items():
        assert np.abs(grad).max() > 0, f"{path} has no gradient"

    before, moved, kept = (
        flat(tree.get("batch_stats", {})) for tree in (variables, state, eval_state)
    )
    for path in before:
        assert (moved[path] != before[path]).any(), f"{path} did not move in training"
        assert (moved[path] == kept[path]).all(), f"{path} moved in evaluation"

    # A rounding to bfloat16 is off by 0.4% at most, and the deepest network here gathers 1.3%.
    assert half_logits.dtype == jnp.float32
    assert largest_error(half_logits, eval_logits) < 0.03


# The others are partials of these.
ONE_OF_A_CLASS = [
    *("alexnet", "alexnet_paper", "densenet121", "googlenet", "inception_v2", "lenet5"),
    *("lenet5_1998", "linear", "mlp", "nin", "nin_cifar", "resnet20_cifar", "resnet50_v2"),
    *("plain18", "vgg11_bn"),
]


@pytest.mark.parametrize("name", each(ONE_OF_A_CLASS))
def test_norms_take_their_momentum_and_epsilon(name):
    """All batch norms of a network take both; a network without such norms takes neither."""
    family = MODELS[name][1]
    norms = []

    def look(call, args, kwargs, context):
        if isinstance(context.module, linen.BatchNorm):
            norms.append((context.module.momentum, context.module.epsilon))
        return call(*args, **kwargs)

    def built(**kwargs):
        norms.clear()
        with linen.intercept_methods(look):
            init_shapes.__wrapped__(
                models.create(name, **family.small, **kwargs), family.small_image
            )
        return set(norms)

    by_default = built()
    if not by_default:
        with pytest.raises(jaxdl.InputError, match=f"{name} does not take norm_momentum"):
            models.create(name, norm_momentum=0.8)
        return
    assert by_default == {(0.9, 1e-3 if name.startswith(("googlenet", "inception")) else 1e-5)}
    assert built(norm_momentum=0.75, norm_epsilon=0.125) == {(0.75, 0.125)}


@pytest.mark.parametrize("name", each(ONE_OF_A_CLASS))
def test_without_classes_it_gives_what_goes_into_the_last_layer(name):
    family = MODELS[name][1]
    whole, bare = (
        models.create(name, **family.small | {"num_classes": classes}) for classes in (10, 0)
    )
    variables = init_shapes(bare, family.small_image)
    x = jax.ShapeDtypeStruct((2, *family.small_image), jnp.float32)
    for train in (False, True):
        apply = functools.partial(bare.apply, train=train, rngs={"dropout": jax.random.key(0)})
        features, state = jax.eval_shape(
            functools.partial(apply, mutable=["intermediates", "batch_stats"]), variables, x
        )
        (sown,) = state["intermediates"]["features"]
        assert features.shape == sown.shape
        assert features.dtype == jnp.float32
    of_whole = flat(init_shapes(whole, family.small_image))
    assert flat(variables).items() <= of_whole.items()
    head = {path.rpartition("/")[0] for path in of_whole.keys() - flat(variables).keys()}
    assert len(head) == (name != "lenet5_1998")  # whose last layer is drawn, not learned


@pytest.mark.parametrize("name", ["mlp", "nin_cifar"])
def test_features_without_classes_are_those_with(name):
    family = MODELS[name][1]
    x = np.random.default_rng(0).standard_normal((2, *family.small_image), np.float32)
    whole = models.create(name, **family.small)
    variables = init(whole, x)
    _, state = whole.apply(variables, x, train=False, mutable=["intermediates"])
    bare = models.create(name, **family.small | {"num_classes": 0})
    features = bare.apply(variables, x, train=False)
    np.testing.assert_array_equal(features, state["intermediates"]["features"][0])


def test_auxiliary_heads_need_classes():
    for name in ("googlenet", "googlenet_paper", "inception_v3"):
        model = models.create(name, num_classes=0, aux_logits=True, width=1 / 16)
        assert not [k for k in init_shapes(model, (224, 224, 3))["params"] if "aux" in k.lower()]


@pytest.mark.parametrize("classes", [-1, 2.5, "10", None])
def test_a_number_of_classes_that_cannot_be(classes):
    with pytest.raises(jaxdl.InputError) as error:
        models.create("resnet50", num_classes=classes)
    assert str(error.value) == (
        f"resnet50 takes num_classes of at least 1, or 0 for its features, not {classes!r}"
    )


def test_unknown_name():
    with pytest.raises(jaxdl.InputError, match=r"no model 'resnet51'; .*resnet50.*names\(\)"):
        models.create("resnet51")
    with pytest.raises(jaxdl.InputError, match=r"^vgg11 takes a dropout in \[0, 1\), not 1.5$"):
        models.create("vgg11", dropout=1.5)
    with pytest.raises(jaxdl.InputError, match=r"no model 'zzz'; jaxdl\.models\.names\(\)"):
        models.create("zzz")


def test_unknown_keyword():
    with pytest.raises(
        jaxdl.InputError, match=r"^lenet5 does not take width; it takes num_classes"
    ):
        models.create("lenet5", width=3)
    # What makes a resnet50 one cannot be overridden, and a plain network has no branch to zero.
    for name, keyword in (("resnet50", "stage_sizes"), ("plain18", "zero_init_last")):
        with pytest.raises(jaxdl.InputError, match=f"^{name} does not take {keyword}; it takes"):
            models.create(name, **{keyword: True})
