"""Where states lie, what of them moves, and that no way of placing them trains another network."""

import collections
import functools
import re
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxdl import (
    InputError,
    checkpoint,
    losses,
    lowering,
    models,
    optim,
    parallel,
    planning,
    sharding,
    task,
)
from jaxdl.nn import BatchNorm, LocalResponseNorm
from jaxdl.sharding import Along, fsdp

KEY = jax.random.key(3)


def mesh(**axes):
    count = int(np.prod([*axes.values()]))
    return sharding.make_mesh(axes, jax.devices()[:count])


def adam(hparams):
    return optax.adam(hparams["learning_rate"])


class Wide(nn.Module):
    """Of arrays that are cut and of some that are not, with batch statistics of both kinds."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(64, (3, 3), use_bias=False)(x)
        x = nn.BatchNorm(not train, momentum=0.9)(x)
        x = nn.relu(nn.Dense(128)(nn.relu(x).reshape(len(x), -1)))
        return nn.Dense(3)(x)


@functools.cache
def build(averaged=True, accumulate=1):
    init, loss = losses.classification(Wide(), (8, 8, 1), lambda x: x.astype(jnp.float32) / 255)
    made = task.supervised(init, loss, adam, accumulate=accumulate)
    return optim.averaged(made) if averaged else made


HPARAMS = {"learning_rate": 1e-3, "label_smoothing": 0.1, "ema_decay": 0.9}
HPARAMS = {name: jnp.float32(value) for name, value in HPARAMS.items()}
BY_MODEL = (
    Along("Dense_0/kernel", (None, sharding.MODEL)),
    Along("Dense_0/bias", (sharding.MODEL,)),
    Along("Dense_1/kernel", (sharding.MODEL, None)),
)
WAYS = {
    "fsdp": ({"data": 8}, (fsdp,)),
    "model": ({"data": 4, "model": 2}, BY_MODEL),
    "both": ({"data": 4, "model": 2}, (*BY_MODEL, fsdp)),
}


def batches(count=3, size=16):
    rng = np.random.default_rng(0)
    for _ in range(count):
        images = rng.integers(0, 256, (size, 8, 8, 1)).astype(np.uint8)
        yield {"image": images, "label": rng.integers(0, 3, size), "mask": np.ones(size, bool)}


@functools.cache
def compiled(way):
    axes, rules = WAYS.get(way, ({"data": 8}, ()))
    return parallel.jit(build(), mesh(**axes), rules=rules), mesh(**axes), rules


@functools.cache
def trained(way):
    """Three steps, and the metrics of the last."""
    made, on, _ = compiled(way)
    state = made.init(KEY, HPARAMS)
    for batch in batches():
        state, metrics = made.train(state, jax.device_put(batch, parallel.batch_sharding(on)))
    return state, metrics


@pytest.mark.parametrize(
    "way", ["fsdp", *(pytest.param(way, marks=pytest.mark.slow) for way in ("model", "both"))]
)
def test_a_sharded_state_trains_as_a_whole_one(way):
    state, metrics = trained(way)
    whole, expected = trained("whole")
    for name in ("params", "extra", "average"):
        for ours, theirs in zip(
            jax.tree.leaves(getattr(state, name)),
            jax.tree.leaves(getattr(whole, name)),
            strict=True,
        ):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-5)
    for name, mean in expected.items():
        assert float(metrics[name].value) == pytest.approx(float(mean.value), rel=1e-4)
    made, on, _ = compiled(way)
    (batch,) = batches(1)
    batch = jax.device_put(batch, parallel.batch_sharding(on))
    assert float(made.eval(state, batch)["loss"].value) == pytest.approx(
        float(compiled("whole")[0].eval(whole, batch_on_eight())["loss"].value), rel=1e-4
    )


def batch_on_eight():
    (batch,) = batches(1)
    return jax.device_put(batch, parallel.batch_sharding(mesh(data=8)))


@pytest.mark.parametrize("way", WAYS)
def test_arrays_stay_where_the_rules_put_them(way):
    made, on, rules = compiled(way)
    for state in (made.init(KEY, HPARAMS), trained(way)[0]):
        wanted = sharding.shardings(state, rules, on)
        for (path, leaf), place in zip(
            jax.tree.leaves_with_path(state), jax.tree.leaves(wanted), strict=True
        ):
            assert leaf.sharding.is_equivalent_to(place, leaf.ndim), jax.tree_util.keystr(path)
        # A parameter, its moments and its average lie alike.
        specs = sharding.specs(state, rules, on)
        of_adam = specs.opt_state[0]
        assert specs.params == of_adam.mu == of_adam.nu == specs.average["params"]
        assert P() != specs.params["Dense_0"]["kernel"]


@pytest.mark.parametrize("way", ["fsdp", "both"])
def test_a_parameter_is_gathered_once_and_its_gradient_reduced_once(way):
    made, on, rules = compiled(way)
    state, batch = trained(way)[0], next(batches(1))
    lowered = made.train.lower(state, jax.device_put(batch, parallel.batch_sharding(on)))
    found = planning.collectives_of(lowered.compile().as_text(), on)
    gathered = [c for c in found if c.kind == "all-gather" and "data" in c.axes]
    specs = sharding.specs(state, rules, on)
    cut = [
        leaf.nbytes // (2 if sharding.MODEL in spec else 1)
        for leaf, spec in zip(
            jax.tree.leaves(state.params), jax.tree.leaves(specs.params), strict=True
        )
        if "data" in spec
    ]
    assert sum(c.bytes for c in gathered) == sum(cut)
    assert sum(c.messages for c in gathered) <= len(cut)
    # A CPU's compiler makes a sum and a slice of each scatter; both are one message.
    reduced = [c for c in found if c.kind in ("all-reduce", "reduce-scatter") and "data" in c.axes]
    networks = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    assert sum(c.bytes for c in reduced) <= 1.05 * networks


def test_fsdp_takes_the_largest_axis_that_divides():
    on = mesh(data=8)
    assert fsdp("params/kernel", (3, 3, 64, 256), P(), on) == P(None, None, None, "data")
    assert fsdp("params/kernel", (512, 10), P(), on) == P("data")
    assert fsdp("params/kernel", (64, 64), P(), on) == P(None, "data")
    assert fsdp("params/scale", (2048,), P(), on) == P()  # not worth a message
    assert fsdp("params/kernel", (101, 99), P(), on) == P()  # nothing divides
    cut = P(None, "model")
    assert fsdp("params/kernel", (64, 256), cut, mesh(data=4, model=2)) == P("data", "model")


def test_adam_of_resnet152_takes_an_eighth_on_each_of_eight_devices():
    on = mesh(data=8)
    init, loss = losses.classification(
        models.create("resnet152"), (224, 224, 3), lambda x: x.astype(jnp.float32)
    )
    hparams = {name: HPARAMS[name] for name in ("learning_rate", "label_smoothing")}
    made = task.supervised(init, loss, adam)
    state = jax.eval_shape(made.init, KEY, hparams)
    whole = sharding.bytes_per_device(state, sharding.shardings(state, (), on))
    cut = sharding.bytes_per_device(state, sharding.shardings(state, (fsdp,), on))
    assert whole > 3 * 4 * 60_192_808
    assert 0.125 < cut / whole < 0.14


def test_the_compiled_step_holds_what_was_computed():
    made, on, rules = compiled("fsdp")
    state, batch = trained("fsdp")[0], next(batches(1))
    batch = jax.device_put(batch, parallel.batch_sharding(on))
    needs = planning.needs_of(made.train.lower(state, batch).compile(), on)
    held = sharding.bytes_per_device(state, sharding.shardings(state, rules, on))
    of_batch = sum(leaf.nbytes for leaf in jax.tree.leaves(batch)) // 8
    assert needs.arguments == pytest.approx(held + of_batch, abs=64)
    whole = planning.needs_of(
        compiled("whole")[0].train.lower(trained("whole")[0], batch).compile(), on
    )
    assert needs.arguments < 0.2 * whole.arguments


@pytest.mark.parametrize(
    "saved",
    ["fsdp", *(pytest.param(way, marks=pytest.mark.slow) for way in ("model", "both", "whole"))],
)
def test_checkpoints_go_from_mesh_to_mesh(saved, tmp_path):
    state = trained(saved)[0]
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
    for way, ((axes, rules)) in (WAYS | {"alone": ({"data": 1}, ())}).items():
        on = mesh(**axes)
        template = parallel.jit(build(), on, rules=rules).init(jax.random.key(9), HPARAMS)
        restored = checkpoint.restore(tmp_path, template)
        for (path, leaf), old in zip(
            jax.tree.leaves_with_path(restored._replace(key=0)),
            jax.tree.leaves(state._replace(key=0)),
            strict=True,
        ):
            np.testing.assert_array_equal(leaf, old, jax.tree_util.keystr(path))
        assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(
            lambda x: x.sharding, template
        ), way
    loaded = checkpoint.load(tmp_path)
    kernel = state.params["Dense_0"]["kernel"]
    np.testing.assert_array_equal(loaded["params"]["Dense_0"]["kernel"], kernel)


@pytest.mark.slow
def test_the_step_after_a_change_of_mesh_is_the_same_step(tmp_path):
    """8 -> 4 -> 1 -> 8, each under other rules."""
    expected, state = trained("whole")[0], compiled("fsdp")[0].init(KEY, HPARAMS)
    ways = [({"data": 4}, (fsdp,)), ({"data": 1}, ()), ({"data": 4, "model": 2}, BY_MODEL)]
    for step, ((axes, rules), batch) in enumerate(zip(ways, batches(), strict=True)):
        folder = tmp_path / str(step)
        with checkpoint.Checkpoints(folder) as checkpoints:
            checkpoints.save(state._replace(step=jnp.int32(step)))
        on = mesh(**axes)
        made = parallel.jit(build(), on, rules=rules)
        with checkpoint.Checkpoints(folder) as checkpoints:
            state = checkpoints.restore(made.init(KEY, HPARAMS))
        state, _ = made.train(state, jax.device_put(batch, parallel.batch_sharding(on)))
    for ours, theirs in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"data": 3}, "does not fit 8 devices"),
        ({"data": 4, "model": 4}, "multiply to 8"),
        ({"data": -1, "model": -1}, "of which one may be -1"),
        ({"data": 0}, "1 device or more"),
        ({"data": -1, "model": 3}, "does not fit 8 devices"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_line(axes, message):
    with pytest.raises(InputError, match=message):
        sharding.make_mesh(axes)


def test_one_length_may_be_left_open():
    assert dict(sharding.make_mesh({"data": -1, "model": 2}).shape) == {"data": 4, "model": 2}


def test_rules_that_fit_nothing_are_refused():
    state = jax.eval_shape(build().init, KEY, HPARAMS)
    with pytest.raises(InputError, match=r"'Conv_7/kernel' .* fits no array"):
        sharding.specs(state, (Along("Conv_7/kernel", (None, None, None, "data")),), mesh(data=8))
    with pytest.raises(InputError, match=r"has no axis 'model'.*it has data"):
        sharding.specs(state, BY_MODEL, mesh(data=8))
    rule = Along("Conv_0/kernel", (None, None, None, "model"))
    with pytest.raises(InputError, match=r"cannot be cut in 3 .* 64 does not divide by it"):
        sharding.specs(state, (rule,), mesh(data=1, model=3))
    with pytest.raises(InputError, match="fsdp fits no array"):
        sharding.specs({"bias": jnp.zeros(8)}, (fsdp,), mesh(data=8))


def test_batches_go_over_the_data_axis_alone():
    parallel.check_batch_size(4, mesh(data=4, model=2))
    with pytest.raises(InputError, match="the 4 devices along the mesh axis 'data'; take 4 or 8"):
        parallel.check_batch_size(6, mesh(data=4, model=2))


# Batch norms.


def statistics(groups, x, **kwargs):
    module = BatchNorm(use_running_average=False, momentum=0.9, groups=groups, **kwargs)
    variables = module.init(KEY, x)
    return module.apply(variables, x, mutable=["batch_stats"])


def test_norms_of_groups_are_norms_of_their_own():
    x = jax.random.normal(KEY, (12, 5, 5, 3)) * 3 + 1
    y, updated = statistics(4, x, epsilon=1e-5)
    parts = [statistics(1, part, epsilon=1e-5) for part in jnp.split(x, 4)]
    np.testing.assert_allclose(y, jnp.concatenate([part for part, _ in parts]), atol=2e-5)
    for name in ("mean", "var"):
        each = jnp.stack([part["batch_stats"][name] for _, part in parts])
        np.testing.assert_allclose(updated["batch_stats"][name], each.mean(0), rtol=1e-5)
    assert jnp.abs(y - statistics(1, x, epsilon=1e-5)[0]).max() > 0.01


def test_a_group_of_one_is_flax_s():
    x = jax.random.normal(KEY, (12, 5, 5, 3))
    theirs = nn.BatchNorm(use_running_average=False, momentum=0.9)
    variables = theirs.init(KEY, x)
    ours = BatchNorm(use_running_average=False, momentum=0.9)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, ours.init(KEY, x))
    text = lambda module: str(
        jax.make_jaxpr(lambda v, x: module.apply(v, x, mutable=["batch_stats"]))(variables, x)
    )
    assert text(ours) == text(theirs)
    with pytest.raises(InputError, match="12 does not divide into 5 norm groups"):
        statistics(5, x)


@pytest.mark.slow
def test_norms_of_devices_need_no_message():
    """Of the whole batch each layer has one in each direction, of each device's rows none has."""

    def messages(groups):
        model = models.create("resnet20_cifar", num_classes=3, width=8).clone(norm_groups=groups)
        init, loss = losses.classification(model, (8, 8, 3), lambda x: x.astype(jnp.float32))
        hparams = {name: HPARAMS[name] for name in ("learning_rate", "label_smoothing")}
        on = mesh(data=4)
        made = parallel.jit(task.supervised(init, loss, adam), on)
        state = jax.eval_shape(made.init, KEY, hparams)
        batch = {
            "image": jax.ShapeDtypeStruct((16, 8, 8, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((16,), jnp.int32),
            "mask": jax.ShapeDtypeStruct((16,), jnp.bool_),
        }
        text = made.train.lower(state, batch).compile().as_text()
        assert sum(leaf.size for leaf in jax.tree.leaves(state.extra)) > 0
        found = planning.collectives_of(text, on)
        return sum(c.messages for c in found if c.kind == "all-reduce"), len(
            jax.tree.leaves(state.params)
        )

    whole, arrays = messages(1)
    apart, _ = messages(4)
    norms = 19
    assert whole >= apart + 2 * norms
    assert apart <= arrays + 2 * norms + 8  # the gradients, the running averages, the metrics


def test_collectives_are_read_from_a_program():
    text = """
  %a = f32[64]{0} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  %b = (f32[8]{0}, bf16[4,2]{1,0}) all-reduce(%x, %y), replica_groups=[4,2]<=[8], to_apply=%add
  %c = f32[16,8]{1,0} all-gather(%x), replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}
  %d = f32[4]{0} reduce-scatter(%x), replica_groups=[1,8]<=[8], dimensions={0}
  %e = f32[10]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0},{2,3},{3,2}}
  %f = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), replica_groups=[2,4]<=[4,2]T(1,0)
  %g = f32[8]{0} all-gather-done(%f)
  %e2 = (f32[9], f32[9], u32[]) collective-permute-start(%x), source_target_pairs={{0,2},{2,0}}
  %g2 = f32[100]{0} all-gather(%x), channel_id=9, replica_groups=[1,8]<=[8]
%async_computation (p: f32[4]) -> f32[100] {
  %g3 = f32[100]{0} all-gather(%x), channel_id=9, replica_groups=[1,8]<=[8]
}
%all-reduce-scatter.2 (input: f32[8,8]) -> f32[8,2] {
  %s = f32[8,8]{1,0} all-reduce(%input), channel_id=9, replica_groups=[2,4]<=[4,2]T(1,0)
}
ENTRY %main (x: f32[4]) -> f32[4] {
  %h = f32[6]{0} all-to-all(%x), replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2] {'axis_0'}
"""
    found = planning.collectives_of(text, mesh(data=4, model=2))
    table = {(c.kind, c.axes): (c.chips, c.messages, c.bytes) for c in found}
    assert table == {
        ("all-reduce", "data"): (4, 1, 256),
        ("all-reduce", "model"): (2, 1, 48),
        ("all-gather", "data"): (4, 2, 512 + 32),
        ("reduce-scatter", "data,model"): (8, 1, 128),
        ("reduce-scatter", "data"): (4, 1, 256),  # as a TPU has it
        ("all-gather", "data,model"): (8, 1, 400),  # told twice
        ("collective-permute", "model"): (2, 1, 40),
        ("all-to-all", "data"): (4, 1, 24),
        ("collective-permute", "data"): (2, 1, 36),
    }
    sent = collections.Counter({(c.kind, c.axes): c.sent for c in found})
    assert sent["all-reduce", "data"] == 2 * 0.75 * 256
    assert sent["all-gather", "data"] == 0.75 * 544


# AlexNet on two devices.


@functools.cache
def alexnet_paper(on):
    """The network of the paper, narrow, on small images, without dropout."""
    model = models.create(
        "alexnet_paper", num_classes=4, width=12, dropout=0.0, small_images=True
    ).clone(norm_within_towers=True, tower_mesh=on)
    init, loss = losses.classification(model, (32, 32, 3), lambda x: x.astype(jnp.float32) / 255)
    # By Adam what is a rounding in a gradient near 0 would be a whole step in a parameter.
    return task.supervised(init, loss, lambda hparams: optax.sgd(hparams["learning_rate"], 0.9))


def images(size=8):
    rng = np.random.default_rng(1)
    shape = (size, 32, 32, 3)
    pixels = rng.integers(0, 256, shape).astype(np.uint8)
    return {"image": pixels, "label": np.arange(size) % 4, "mask": np.ones(size, bool)}


def alexnet_begun(**axes):
    """A Task on a mesh, its first state and a batch."""
    rules = models.SHARDING["alexnet_paper"] if sharding.MODEL in axes else ()
    on = mesh(**axes)
    made = parallel.jit(alexnet_paper(on if rules else None), on, rules=rules)
    hparams = {"learning_rate": jnp.float32(1e-2), "label_smoothing": jnp.float32(0)}
    return made, made.init(KEY, hparams), jax.device_put(images(), parallel.batch_sharding(on))


@functools.cache
def alexnet_trained(**axes):
    """The state after three steps on a mesh, and the loss of the last."""
    made, state, batch = alexnet_begun(**axes)
    for _ in range(3):
        state, metrics = made.train(state, batch)
    return state, float(metrics["loss"].value)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [{"data": 1, "model": 2}, {"data": 4, "model": 2}])
def test_alexnet_s_towers_on_two_devices_are_those_on_one(axes):
    state, loss = alexnet_trained(**axes)
    whole, expected = alexnet_trained(data=1)
    assert loss == pytest.approx(expected, rel=1e-5)
    for ours, theirs in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(whole.params), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)
    for name in ("conv2", "conv5", "fc6"):
        kernel = state.params[name]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape)[-1] == kernel.shape[-1] // 2


@pytest.mark.slow
def test_alexnet_s_towers_meet_where_the_paper_has_them_meet():
    """Forward: the maps before conv3, and what goes into each dense layer. And nowhere else.

    So it is where convolutions are those of `jax.lax`; on CPUs conv3's kernel gradient gathers the
    maps once more.
    """
    made, state, batch = alexnet_begun(data=1, model=2)
    with mock.patch.object(lowering, "has_known_shape", return_value=False):
        program = made.train.lower(state, batch).compile().as_text()
    met = collections.Counter()
    kinds = "|".join(planning.COLLECTIVES)
    for line in program.splitlines():
        found = re.search(rf"= (.*) ({kinds})(-start)?\(", line)
        # Along data there is but one device, and what is summed for metrics is smaller.
        sizes = [c.bytes for c in planning.collectives_of(line, mesh(data=1, model=2))]
        if found is None or sum(sizes) < 128:
            continue
        layers = set(re.findall(r"\b(?:conv\d|fc\d|LocalResponseNorm_\d)\b", line))
        assert len(layers) == 1, line
        backward = "transpose" in re.search(r'op_name="([^"]*)"', line)[1]
        met[layers.pop(), "backward" if backward else "forward", found[2]] += 1
    assert met == {
        ("conv3", "forward", "all-gather"): 1,
        ("fc6", "forward", "all-gather"): 1,
        ("fc7", "forward", "all-gather"): 1,
        ("fc8", "forward", "all-reduce"): 1,
        ("conv3", "backward", "all-reduce"): 1,
        ("fc6", "backward", "all-reduce"): 1,
        ("fc7", "backward", "all-reduce"): 1,
    }


def test_response_norms_of_towers_take_no_neighbours_from_each_other():
    x = jax.random.normal(KEY, (2, 3, 3, 8)) * 10
    norm = functools.partial(LocalResponseNorm, 5, alpha=0.5, beta=0.75, k=2.0)
    apart = norm(groups=2).apply({}, x)
    halves = [norm().apply({}, half) for half in jnp.split(x, 2, axis=-1)]
    np.testing.assert_allclose(apart, jnp.concatenate(halves, -1), rtol=1e-6)
    assert jnp.abs(apart - norm().apply({}, x)).max() > 0.01
