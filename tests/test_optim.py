"""Optimizers and schedules by name, penalties and decay, averages."""

import json
import typing
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import InputError, optim, schedules
from jaxdl.task import Monitor, State

GOLDEN = {
    framework: np.load(Path(__file__).parent / "golden" / f"optim_{framework}.npz")
    for framework in ("tf", "torch")
}
CASES = [
    pytest.param(framework, number, id=f"{framework}-{name}-{number}")
    for framework, arrays in GOLDEN.items()
    for number, (name, *_) in enumerate(json.loads(str(arrays["cases"])))
]
OWN = ("rprop", "ftrl", "adagrad_da", "proximal_sgd", "proximal_adagrad")

PARAMS = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0]), "scale": jnp.float32(2)}
GRADS = {"kernel": jnp.array([[0.5, 0.25]]), "bias": jnp.array([-1.0]), "scale": jnp.float32(4)}


def descend(transform, grads=GRADS, params=PARAMS, steps=3):
    """The parameters after some steps with constant gradients."""
    state = transform.init(params)
    for _ in range(steps):
        updates, state = transform.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def run(name, steps=3, options=None, **hparams):
    transform = optim.optimizer(name, **options or {})({"learning_rate": 0.1} | hparams)
    return descend(transform, steps=steps)


def assert_same(a, b, rtol=0.0):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol), a, b)


@pytest.mark.parametrize(("framework", "number"), CASES)
def test_trajectories_are_those_of_the_original(framework, number):
    """TensorFlow's kernels for the methods optax lacks, torch's methods for the rest.

    Adam's bias correction is torch's in float64 and optax's in float32, which tells at b2=0.999.
    """
    arrays = GOLDEN[framework]
    name, arguments, changing = json.loads(str(arrays["cases"]))[number]
    rates = jnp.asarray(arrays["rates"])
    rate = (lambda count: rates[count]) if changing else rates[0]
    transform = optim.OPTIMIZERS[name](rate, **arguments)
    params = jnp.asarray(arrays["start"])
    state, update = transform.init(params), jax.jit(transform.update)
    tolerance = 1e-4 if name in ("adam", "adamw", "nadam") else 1e-5
    for grad, expected in zip(arrays["gradients"], arrays["paths"][number], strict=True):
        updates, state = update(jnp.asarray(grad), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, expected, atol=tolerance, rtol=0)
        if framework == "tf":
            np.testing.assert_array_equal(params == 0, expected == 0)


def test_goldens_cross_zero_and_stop_there():
    """So that the trajectories above can tell a wrong shrinking from a right one."""
    arrays = GOLDEN["tf"]
    cases, paths = json.loads(str(arrays["cases"])), arrays["paths"]
    assert {name for name, *_ in cases} == set(OWN) - {"rprop"}
    assert np.all(np.any(paths[:, :, :5] > 0, (1, 2)) & np.any(paths[:, :, :5] < 0, (1, 2)))
    moving = [i for i, (_, arguments, _) in enumerate(cases) if "l1" in arguments]
    assert all(np.any(paths[i, :, :5] == 0) for i in moving)


def test_amsgrad_by_hand():
    grads = np.array([2.0, -0.5, 0.1, 0.1, -0.1])
    m = v = greatest = 0.0
    weight, expected = 1.0, []
    for t, grad in enumerate(grads, 1):
        m, v = 0.9 * m + 0.1 * grad, 0.8 * v + 0.2 * grad**2
        greatest = max(greatest, v / (1 - 0.8**t))
        weight -= 0.1 * (m / (1 - 0.9**t)) / np.sqrt(greatest)
        expected.append(weight)
    transform = optim.optimizer("amsgrad")({"learning_rate": 0.1, "b2": 0.8})
    param = jnp.float32(1)
    state, measured = transform.init(param), []
    for grad in grads:
        updates, state = transform.update(jnp.float32(grad), state, param)
        param = optax.apply_updates(param, updates)
        measured.append(param)
    np.testing.assert_allclose(measured, expected, rtol=1e-5)


def test_rmsprop_with_a_large_epsilon_is_tensorflows():
    """TensorFlow's ResourceApplyRMSProp: epsilon inside the root, the rate inside the momentum."""
    settings = {"decay": 0.9, "eps": 1.0, "momentum": 0.9, "initial_scale": 1.0}
    param, grad = (np.asarray(tree["kernel"], np.float64) for tree in (PARAMS, GRADS))
    squares, moment = np.ones_like(param), np.zeros_like(param)
    for _ in range(3):
        squares = 0.9 * squares + 0.1 * grad**2
        moment = 0.9 * moment + 0.1 * grad / np.sqrt(squares + 1.0)
        param = param - moment
    np.testing.assert_allclose(run("rmsprop", 3, **settings)["kernel"], param, rtol=1e-6)


def test_lion_lars_and_lamb_by_hand():
    kernel, grad = np.asarray(PARAMS["kernel"]), np.asarray(GRADS["kernel"])
    lion = run("lion", 1, weight_decay=0.5)["kernel"]
    np.testing.assert_allclose(lion, kernel - 0.1 * (np.sign(grad) + 0.5 * kernel), rtol=1e-6)
    direction = grad + 0.5 * kernel
    ratio = 0.001 * np.linalg.norm(kernel) / np.linalg.norm(direction)
    lars = run("lars", 1, weight_decay=0.5)
    np.testing.assert_allclose(lars["kernel"], kernel - 0.1 * ratio * direction, rtol=1e-6)
    np.testing.assert_allclose(lars["bias"], 3.1, rtol=1e-6)  # no trust ratio
    direction = np.sign(grad) + 0.5 * kernel
    ratio = np.linalg.norm(kernel) / np.linalg.norm(direction)
    lamb = run("lamb", 1, weight_decay=0.5)["kernel"]
    np.testing.assert_allclose(lamb, kernel - 0.1 * ratio * direction, rtol=1e-5)


FIRST = ("sgd", "nesterov", "rprop", "adam", "lars", "ftrl")
"""One of each kind; the rest of the contract is long."""


@pytest.mark.parametrize(
    "name",
    [
        name if name in FIRST else pytest.param(name, marks=pytest.mark.slow)
        for name in optim.OPTIMIZERS
    ],
)
def test_contract(name):
    """Traced or not, mapped or not, a step is the same; it compiles once and its state is saved.

    A first step at a rate of zero leaves all as it was, but for the two methods that compute
    weights anew from sums over all gradients.
    """
    build = optim.optimizer(name, clip_global_norm=100.0)
    hparams = {"learning_rate": 0.1, **optim.arguments(name), "weight_decay": 0.01}
    hparams |= {"l1_penalty": 0.01, "l2_penalty": 0.01}
    traced = jax.tree.map(jnp.float32, hparams)
    compiled = 0

    @jax.jit
    def step(hparams, state, params):
        nonlocal compiled
        compiled += 1
        updates, state = build(hparams).update(GRADS, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, build(traced).init(PARAMS)
    template = state
    for _ in range(3):
        params, state = step(traced, state, params)
    assert compiled == 1
    assert_same(params, descend(build(hparams)), rtol=2e-4)
    for old, new in zip(jax.tree.leaves(PARAMS), jax.tree.leaves(params), strict=True):
        assert np.all(np.isfinite(new))
        assert np.all(old != new)

    lane = lambda rate: descend(build(traced | {"learning_rate": rate}))
    mapped = jax.jit(jax.vmap(lane))(jnp.float32([0.1, 0.2]))
    assert_same(jax.tree.map(lambda x: x[0], mapped), params, rtol=2e-4)
    if name not in ("ftrl", "adagrad_da"):
        assert_same(descend(build(traced | {"learning_rate": jnp.float32(0)}), steps=1), PARAMS)
    if name != "lars":  # whose ratio makes small steps of everything
        assert np.all(np.abs(mapped["kernel"][0] - mapped["kernel"][1]) > 1e-5)

    stored = flax.serialization.msgpack_serialize(flax.serialization.to_state_dict(state))
    restored = flax.serialization.from_state_dict(
        template, flax.serialization.msgpack_restore(stored)
    )
    assert_same(restored, state)
    assert_same(step(traced, restored, params), step(traced, state, params))


@pytest.mark.parametrize("name", [pytest.param("rprop", marks=pytest.mark.slow), *OWN[1:]])
def test_own_methods_compose(name):
    """With injected hyperparameters, schedules, masks, chains and other types of parameters."""
    method = optim.OPTIMIZERS[name]
    plain = descend(method(0.1))
    assert_same(descend(optax.inject_hyperparams(method)(learning_rate=0.1)), plain, rtol=1e-6)
    assert_same(descend(method(optax.constant_schedule(0.1))), plain, rtol=1e-6)
    if name != "rprop":  # of which a schedule gives the first step's size
        rates = jnp.array([0.3, 0.1, 0.2])
        injected = optax.inject_hyperparams(method)(learning_rate=lambda count: rates[count])
        assert_same(descend(injected), descend(method(lambda count: rates[count])), rtol=1e-6)
        assert np.any(np.abs(descend(injected)["kernel"] - plain["kernel"]) > 1e-3)

    masked = descend(optax.masked(method(0.1), optim.decay_mask))
    assert_same(masked["kernel"], plain["kernel"])
    np.testing.assert_allclose(masked["bias"], 3 - 3, atol=1e-6)  # the gradient passes as it is
    nothing = lambda params: jax.tree.map(lambda _: False, params)
    assert_same(descend(optax.masked(method(0.1), nothing))["kernel"], [[2.5, -1.25]])

    doubled = optax.chain(method(0.1), optax.scale(2.0))
    ours, once = descend(doubled, steps=1), descend(method(0.1), steps=1)
    assert_same(jax.tree.map(lambda p, q: p + 2 * (q - p), PARAMS, once), ours, rtol=1e-6)

    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    transform = method(jnp.float32(0.1))
    with jax.numpy_dtype_promotion("standard"):
        updates, state = transform.update(GRADS, transform.init(half), half)
    types = {leaf.dtype for leaf in jax.tree.leaves((updates, state.sums))}
    assert types == {jnp.dtype(jnp.bfloat16)}
    with pytest.raises(InputError, match="give update the present ones"):
        transform.update(GRADS, state)


def test_ftrl_of_a_weight_without_gradient_is_zero_not_nan():
    stays = descend(
        optim.ftrl(0.1, initial_accumulator_value=0.0), jax.tree.map(jnp.zeros_like, GRADS)
    )
    assert_same(stays, jax.tree.map(jnp.zeros_like, PARAMS))


def test_arguments_are_those_of_the_method():
    assert optim.arguments("sgd") == {}
    assert optim.arguments("nesterov") == {"momentum": 0.9}
    assert optim.arguments("adamw") == {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 0.0}
    assert optim.arguments("rmsprop")["momentum"] == 0.0
    assert optim.arguments("lars")["momentum"] == 0.9
    assert optim.arguments("ftrl") == {
        "learning_rate_power": -0.5,
        "initial_accumulator_value": 0.1,
        **dict.fromkeys(("l1", "l2", "l2_shrinkage", "beta"), 0.0),
    }


def test_the_tables_of_arguments_are_those_of_the_signatures():
    for table, taken in (
        (optim.ARGUMENTS, {name: optim.arguments(name) for name in optim.OPTIMIZERS}),
        (schedules.ARGUMENTS, {name: schedules.arguments(name) for name in schedules.SCHEDULES}),
    ):
        assert set(table) == {argument for own in taken.values() for argument in own}
        for name, argument in table.items():
            assert argument.defaults == {m: own[name] for m, own in taken.items() if name in own}
            for default in argument.defaults.values():
                assert argument.bound is None or argument.bound.holds(default)
                of_type = typing.get_origin(argument.type) or argument.type
                assert of_type(default) == default


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (
            lambda: optim.check_arguments("momentum", {"momentum": 2.0}),
            r"^optimizer momentum: momentum=2.0: expected at least 0 and less than 1, finite$",
        ),
        (
            lambda: optim.check_arguments("ftrl", {"learning_rate_power": float("-inf")}),
            "learning_rate_power=-inf: expected at most 0, finite",
        ),
        (lambda: optim.check_arguments("sgd", {"momentum": None}), "sgd takes no momentum"),
        (lambda: schedules.check_arguments("cosine", {"end": float("nan")}), "end=nan: expected"),
        (lambda: schedules.check_arguments("linear", {"power": 2}), "linear takes no power"),
    ],
)
def test_arguments_are_checked(check, message):
    optim.check_arguments("momentum", {"momentum": 0.0})
    optim.check_arguments("momentum", {"momentum": None})
    schedules.check_arguments("step", {"boundaries": (0.2,), "factor": 0.5})
    with pytest.raises(InputError, match=message):
        check()


def test_hyperparameters_reach_the_method():
    """Those given override the defaults; None, and those of other methods, do nothing."""
    assert_same(run("momentum"), run("momentum", momentum=0.9))
    assert_same(run("momentum", momentum=0.0), run("sgd"))
    assert_same(run("sgd", momentum=0.5, l2_penalty=None, label_smoothing=0.1), run("sgd"))


OTHER_VALUES = {"eps": 0.3, "eps_root": 0.3, "eta_plus": 2.0, "learning_rate_power": -0.8}
OTHER_VALUES |= {"min_step_size": 0.15, "max_step_size": 0.11, "initial_accumulator_value": 2.0}


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_every_argument_reaches_the_method(name):
    grads = GOLDEN["tf"]["gradients"].reshape(-1, 2, 3)[:6]
    start = jnp.ones((2, 3))

    def final(**hparams):
        transform = optim.optimizer(name)({"learning_rate": 0.1} | hparams)
        params, state = start, transform.init(start)
        for grad in grads:
            updates, state = transform.update(jnp.asarray(grad), state, params)
            params = optax.apply_updates(params, updates)
        return params

    default = final()
    for argument in optim.arguments(name):
        changed = final(**{argument: OTHER_VALUES.get(argument, 0.3)})
        assert np.any(np.abs(changed - default) > 1e-6), argument


def test_default_decay_of_the_methods_that_have_one():
    for name, default in (("adamw", 1e-4), ("lion", 1e-3), ("lars", 0.0), ("lamb", 0.0)):
        assert_same(run(name), run(name, weight_decay=default))
        assert np.any(run(name)["kernel"] != run(name, weight_decay=0.3)["kernel"])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in optim.OPTIMIZERS
        for kind in ("weight_decay", "l1_penalty", "l2_penalty", "l1", "l2")
        if kind.startswith(("l1_", "l2_", "weight")) or kind in optim.arguments(name)
    ],
)
def test_kernels_alone_are_shrunk_unless_asked(name, kind):
    # Rprop sees signs alone, and so a penalty only where it turns them.
    plain, shrunk = run(name), run(name, **{kind: 1.5})
    assert np.any(np.abs(plain["kernel"] - shrunk["kernel"]) > 1e-5)
    for spared in ("bias", "scale"):
        np.testing.assert_array_equal(plain[spared], shrunk[spared])
    everywhere = run(name, options={"decay_all": True}, **{kind: 3.0})
    assert np.any(np.abs(plain["bias"] - everywhere["bias"]) > 1e-5)


def test_penalties_by_hand():
    kernel = np.asarray(PARAMS["kernel"])
    plain = kernel - 0.1 * np.asarray(GRADS["kernel"])
    measured = run("sgd", 1, l1_penalty=0.3, l2_penalty=0.5)["kernel"]
    np.testing.assert_allclose(measured, plain - 0.1 * (0.5 * kernel + 0.3 * np.sign(kernel)))


def test_penalty_and_decoupled_decay_differ():
    """The same for sgd; momentum carries a penalty along, and Adam rescales it away."""
    assert_same(run("sgd", l2_penalty=0.5), run("sgd", weight_decay=0.5), rtol=1e-6)

    def momentum(penalty, decay):
        weight, velocity = 1.0, 0.0
        for _ in range(3):
            velocity = 0.9 * velocity + 0.5 + penalty * weight
            weight = weight - 0.1 * velocity - 0.1 * decay * weight
        return weight

    for penalty, decay in ((0.5, 0.0), (0.0, 0.5)):
        measured = run("momentum", l2_penalty=penalty, weight_decay=decay)["kernel"][0, 0]
        np.testing.assert_allclose(measured, momentum(penalty, decay), rtol=1e-6)
    assert abs(momentum(0.5, 0.0) - momentum(0.0, 0.5)) > 0.05

    start, grad = np.asarray(PARAMS["kernel"]), np.asarray(GRADS["kernel"])
    penalty = run("adam", 1, l2_penalty=0.5)["kernel"]
    np.testing.assert_allclose(penalty, start - 0.1 * np.sign(grad + 0.5 * start), atol=1e-6)
    expected = start - 0.1 * (np.sign(grad) + 0.5 * start)
    for name in ("adam", "adamw"):
        decoupled = run(name, 1, weight_decay=0.5)["kernel"]
        np.testing.assert_allclose(decoupled, expected, atol=1e-6)


def test_clipping_by_value_norm_and_global_norm_in_turn():
    step = lambda **options: jax.tree.map(
        lambda old, new: (old - new) / 0.1, PARAMS, run("sgd", 1, options=options)
    )
    values = step(clip_value=0.3)
    expected = {"kernel": [[0.3, 0.25]], "bias": [-0.3], "scale": 0.3}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), values, expected)
    kernel = np.array([[0.5, 0.25]])
    norms = step(clip_norm=0.8)
    np.testing.assert_allclose(norms["kernel"], kernel, rtol=1e-5)
    np.testing.assert_allclose(norms["scale"], 0.8, rtol=1e-5)
    np.testing.assert_allclose(norms["bias"], [-0.8], rtol=1e-5)
    whole = np.sqrt(0.5**2 + 0.25**2 + 1 + 16)
    np.testing.assert_allclose(step(clip_global_norm=0.1)["scale"], 4 * 0.1 / whole, rtol=1e-4)
    np.testing.assert_allclose(step(clip_global_norm=100.0)["scale"], 4, rtol=1e-5)

    every = step(clip_value=0.45, clip_norm=0.5, clip_global_norm=0.6)
    by_norm = np.array([0.45, 0.25]) * min(1, 0.5 / np.hypot(0.45, 0.25))
    whole = np.sqrt(np.sum(by_norm**2) + 2 * 0.45**2)
    np.testing.assert_allclose(every["kernel"][0], by_norm * 0.6 / whole, rtol=1e-5)


def test_penalties_come_after_the_clipping():
    clipped = run("sgd", 1, {"clip_global_norm": 1e-9}, l2_penalty=0.5)["kernel"]
    np.testing.assert_allclose(clipped, 0.95 * PARAMS["kernel"], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optim.optimizer("adm"), r"no optimizer 'adm'; there are .*; did you mean 'adam'"),
        (
            lambda: optim.optimizer("sgd", clip_norm=0.0),
            "clip_norm=0.0: expected more than 0, finite",
        ),
        (lambda: optim.optimizer("sgd", clip_value=float("nan")), "clip_value=nan"),
        (lambda: schedules.schedule("sine", 10), "no schedule 'sine'"),
        (lambda: schedules.schedule("cosine", 10, 10), "of 10 steps does not fit in 10 steps"),
        (
            lambda: schedules.schedule("cosine", 10, power=2),
            "schedule cosine takes no power; it takes end",
        ),
        (
            lambda: schedules.schedule("constant", 10, end=0.1),
            "schedule constant takes no end; it takes no argument of its own",
        ),
        (
            lambda: schedules.schedule("polynomial", 10, power=-1),
            "power=-1: expected more than 0",
        ),
        (
            lambda: schedules.schedule("linear", 10, end=-0.5),
            "end=-0.5: expected at least 0",
        ),
        (lambda: schedules.schedule("cosine", 10, end=float("inf")), "end=inf: expected .* finite"),
        (
            lambda: schedules.schedule("step", 10, factor=float("inf")),
            "factor=inf: expected .* finite",
        ),
        (
            lambda: schedules.schedule("step", 10, boundaries=(0.5, 2.0)),
            r"boundaries \(0.5, 2.0\): expected each more",
        ),
        (
            lambda: schedules.schedule("one_cycle", 10, peak=float("nan")),
            "peak nan of 10 steps leaves",
        ),
        (lambda: schedules.schedule("one_cycle", 2), "peak 0.3 of 2 steps leaves none to rise in"),
        (lambda: schedules.schedule("restarts", 3), "3 cycles, each 2.0 times .* do not fit in 3"),
        (
            lambda: schedules.schedule("restarts", 90, growth=1e300),
            "1e[+]300 times .* do not fit in 90",
        ),
        (
            lambda: optim.check_arguments("nesterov", {"momentum": 1, "beta": 1}),
            "optimizer nesterov takes no beta; it takes momentum",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def plateaued(since_cut, learning_rate=0.4):
    monitor = Monitor(jnp.float32(0.5), jnp.int32(7), jnp.int32(since_cut))
    hparams = {"learning_rate": jnp.float32(learning_rate), "other": jnp.float32(1)}
    return State(jnp.int32(3), jax.random.key(0), hparams, {"w": jnp.ones(2)}, {}, (), monitor)


def test_reduce_on_plateau():
    reduce = jax.jit(lambda state: optim.reduce_on_plateau(state, patience=3, factor=0.5))
    for since_cut, rate, after in ((2, 0.4, 2), (3, 0.2, 0), (4, 0.2, 0)):
        reduced = reduce(plateaued(since_cut))
        assert float(reduced.hparams["learning_rate"]) == pytest.approx(rate)
        assert reduced.monitor == (0.5, 7, after)
        assert jax.tree.map(lambda x: x.dtype, reduced) == jax.tree.map(
            lambda x: x.dtype, plateaued(since_cut)
        )
        assert_same(reduced.params, plateaued(since_cut).params)
        assert reduced.hparams["other"] == 1
    for rate, expected in ((0.4, 0.3), (0.1, 0.1)):
        least = optim.reduce_on_plateau(plateaued(3, rate), patience=3, least=0.3)
        assert float(least.hparams["learning_rate"]) == pytest.approx(expected)
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), plateaued(0), plateaued(5))
    mapped = jax.vmap(lambda state: optim.reduce_on_plateau(state, patience=3))(states)
    np.testing.assert_allclose(mapped.hparams["learning_rate"], [0.4, 0.04], rtol=1e-6)


@pytest.mark.parametrize("counted", [False, True])
def test_averages_are_those_of_tensorflow(counted):
    rows = GOLDEN["tf"]["gradients"]
    shadow, update = jnp.asarray(rows[0]), jax.jit(optim.ema_update)
    for n, expected in enumerate(GOLDEN["tf"][f"averages_{counted}"]):
        shadow = update(shadow, jnp.asarray(rows[n + 1]), 0.6, n if counted else None)
        np.testing.assert_allclose(shadow, expected, atol=1e-6)


def test_averages_by_hand_and_their_types():
    shadow = {"w": jnp.float32([0, 4]), "count": jnp.int32(3), "half": jnp.bfloat16(2)}
    value = {"w": jnp.float32([10, 4]), "count": jnp.int32(9), "half": jnp.float32(4)}
    update = jax.jit(optim.ema_update)
    after = update(shadow, value, jnp.float32(0.75), jnp.int32(98))
    np.testing.assert_allclose(after["w"], [2.5, 4])
    assert after["count"] == 9
    assert after["half"] == jnp.bfloat16(2.5)
    assert all(after[name].dtype == shadow[name].dtype for name in shadow)
    early = update(shadow, value, 0.75, 2)["w"]  # min(0.75, 3 / 12)
    np.testing.assert_allclose(early, [7.5, 4])
