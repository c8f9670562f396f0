"""Two players: losses against hands, one step against plain arithmetic, and every way to run it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from jaxdl import loop, optim, parallel, schedules
from jaxdl.adversarial import LOSSES, PLAYERS, Pair, adversarial, linen_players, signed
from jaxdl.cost import cost
from jaxdl.task import Task, keyed

KEY = jax.random.key(7)
LATENTS = 3
SHAPE = (4, 4, 1)


class Generator(nn.Module):
    """Noise to images through 5 units, with batch statistics."""

    axis_name: str | None = None
    norm: bool = True

    @nn.compact
    def __call__(self, latents, labels, *, train):
        x = nn.Dense(5)(latents)
        if self.norm:
            x = nn.BatchNorm(not train, momentum=0.9, axis_name=self.axis_name)(x)
        return nn.tanh(nn.Dense(16)(nn.tanh(x))).reshape(-1, *SHAPE)


class Discriminator(nn.Module):
    """Images to logits through 7 units, with batch statistics."""

    axis_name: str | None = None
    norm: bool = True
    dropout: float = 0.0

    @nn.compact
    def __call__(self, images, labels, *, train):
        x = nn.Dense(7)(images.reshape(len(images), -1))
        if self.norm:
            x = nn.BatchNorm(not train, momentum=0.9, axis_name=self.axis_name)(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.tanh(x))
        return nn.Dense(1)(x)[:, 0]


@functools.cache
def build(axis_name=None, norm=True, loss="non_saturating", **options):
    """Compiled once for all tests that ask for the same."""
    synchronized = options.pop("synchronized", True)
    name = axis_name if synchronized else None
    players = linen_players(Generator(name, norm), Discriminator(name, norm), LATENTS, SHAPE)
    optimizers = optim.optimizer("momentum"), optim.optimizer("sgd")
    rates = (schedules.schedule("linear", steps=20),) * 2
    return compiled(
        adversarial(players, LOSSES[loss], optimizers, rates, axis_name=axis_name, **options)
    )


def compiled(task):
    """Without `parallel.jit`, which would consume the states given."""
    return Task(*(jax.jit(function) for function in task))


def hparams(generator=0.1, discriminator=0.2, **changes):
    values = {
        "generator": {"learning_rate": generator, "momentum": 0.5},
        "discriminator": {"learning_rate": discriminator},
        "ema_decay": 0.9,
        "label_smoothing": 0.1,
        "penalty_weight": 2.0,
    }
    return jax.tree.map(jnp.float32, values | changes)


@functools.cache
def batches(count=6, size=16, masked=2):
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        mask = np.ones(size, np.float32)
        mask[:masked] = 0
        image = rng.integers(0, 256, (size, *SHAPE), np.uint8)
        label = rng.integers(0, 3, size).astype(np.int32)
        made.append({"image": image, "label": label, "mask": mask})
    return made


def mesh(devices):
    return parallel.data_mesh(jax.devices()[:devices])


@functools.cache
def spread(way, devices, **options):
    """Over so many devices, compiled once for all tests that ask for the same."""
    task = build("data" if way == "pmap" else None, **options)
    return getattr(parallel, way)(task, mesh(devices))


@functools.cache
def lanes():
    return parallel.jit(parallel.vmap(build()), mesh(1), batch_spec=P())


def run(task, state, of=None):
    for batch in of or batches():
        state, metrics = task.train(state, batch)
    return state, metrics


# The losses.


def log_sigmoid(x):
    return np.log(1 / (1 + np.exp(-np.float64(x))))


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        # logits 0.5 (real) and -1.5 (generated), by hand
        ("minimax", -log_sigmoid(0.5) - log_sigmoid(1.5), log_sigmoid(1.5)),
        ("non_saturating", -log_sigmoid(0.5) - log_sigmoid(1.5), -log_sigmoid(-1.5)),
        ("least_squares", (0.5**2 + 1.5**2) / 2, 2.5**2 / 2),
        ("hinge", 0.5 + 0.0, 1.5),
        ("wasserstein", -2.0, 1.5),
    ],
)
def test_losses_by_hand(name, discriminator, generator):
    real, fake = jnp.float32([0.5]), jnp.float32([-1.5])
    np.testing.assert_allclose(LOSSES[name].discriminator(real, fake, 0.0), discriminator, 1e-6)
    np.testing.assert_allclose(LOSSES[name].generator(fake), generator, 1e-6)


def test_label_smoothing_moves_the_target_of_real_examples_alone():
    real, fake = jnp.float32([0.5]), jnp.float32([-1.5])
    by_hand = optax.sigmoid_binary_cross_entropy(real, 0.7 * jnp.ones(1)) - log_sigmoid(1.5)
    for name in ("minimax", "non_saturating"):
        np.testing.assert_allclose(LOSSES[name].discriminator(real, fake, 0.3), by_hand, 1e-6)
    by_hand = ((0.5 - 0.7) ** 2 + 1.5**2) / 2
    np.testing.assert_allclose(LOSSES["least_squares"].discriminator(real, fake, 0.3), by_hand)
    for name, loss in LOSSES.items():
        moves = not np.array_equal(
            loss.discriminator(real, fake, 0.3), loss.discriminator(real, fake, 0.0)
        )
        assert moves == loss.smooths, name


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_stable_at_logits_of_ten_thousand(name):
    """Values and slopes are finite, and those of the log-losses what their limits are."""
    loss = LOSSES[name]
    for real in (-1e4, 1e4):
        for fake in (-1e4, 1e4):
            value, slopes = jax.value_and_grad(
                lambda r, f: loss.discriminator(r, f, 0.1), argnums=(0, 1)
            )(jnp.float32(real), jnp.float32(fake))
            assert np.isfinite([value, *slopes]).all()
            value, slope = jax.value_and_grad(loss.generator)(jnp.float32(fake))
            assert np.isfinite([value, slope]).all()
            expected = {"minimax": -(fake > 0), "non_saturating": -(fake < 0)}
            if name in expected:  # slopes of the sigmoid's logarithm, 0 or 1 out there
                assert float(slope) == expected[name]


def test_only_the_minimax_loss_leaves_a_losing_generator_without_a_slope():
    """Goodfellow et al. 2014, end of section 3."""
    slopes = {name: float(jax.grad(loss.generator)(-15.0)) for name, loss in LOSSES.items()}
    assert abs(slopes.pop("minimax")) < 1e-6
    assert all(slope <= -1 + 1e-5 for slope in slopes.values())


# One step.


def test_a_step_is_algorithm_1_by_plain_arithmetic():
    """Two discriminator updates and one of the generator, worked out here from the definitions."""
    task = build(norm=False, discriminator_steps=2)
    values = hparams()
    state = task.init(KEY, values)
    g, d = state.params
    batch, _ = keyed(batches()[0], jax.random.fold_in(state.key, 0), None)
    generate = lambda params, keys: Generator(norm=False).apply(
        {"params": params},
        jax.vmap(lambda k: jax.random.normal(k, (LATENTS,)))(keys),
        None,
        train=True,
    )
    score = lambda params, x: Discriminator(norm=False).apply(
        {"params": params}, x, None, train=True
    )
    cross_entropy = optax.sigmoid_binary_cross_entropy

    def discriminator_loss(params, real, fake, mask):
        real, fake = score(params, real), score(params, fake)
        costs = cross_entropy(real, 0.9 * jnp.ones_like(real))
        costs += cross_entropy(fake, jnp.zeros_like(fake))
        return jnp.sum(costs * mask) / jnp.sum(mask)

    def generator_loss(params, critic, keys, mask):
        fake = score(critic, generate(params, keys))
        return jnp.sum(cross_entropy(fake, jnp.ones_like(fake)) * mask) / jnp.sum(mask)

    for part in ({k: v[j::2] for k, v in batch.items()} for j in range(2)):
        fake = generate(g, part["key"])
        grads = jax.grad(discriminator_loss)(d, signed(part["image"]), fake, part["mask"])
        d = jax.tree.map(lambda p, slope: p - 0.2 * slope, d, grads)
    loss, grads = jax.value_and_grad(generator_loss)(g, d, part["key"], part["mask"])
    g_new = jax.tree.map(lambda p, slope: p - 0.1 * slope, g, grads)  # the first step's momentum
    new, metrics = task.train(state, batches()[0])
    for ours, theirs in zip(new.params, (g_new, d), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, theirs)
    assert float(metrics["generator_loss"].value) == pytest.approx(float(loss), rel=1e-5)
    assert float(metrics["discriminator_loss"].count) == 14  # of 16, two are masked
    assert int(new.step) == 1

    decay = min(0.9, 1 / 10)  # as optim.ema_update begins
    average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, g, g_new)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.average["params"], average
    )


def test_schedules_and_rates_are_each_players_own():
    task = build()
    state, metrics = run(task, task.init(KEY, hparams()))
    assert float(metrics["generator_learning_rate"].value) == pytest.approx(0.1 * 15 / 20)
    assert float(metrics["discriminator_learning_rate"].value) == pytest.approx(0.2 * 15 / 20)
    start = task.init(KEY, hparams())
    still, _ = run(task, task.init(KEY, hparams(generator=0.0)))
    jax.tree.map(np.testing.assert_array_equal, still.params[0], start.params[0])
    assert tiny.distance(still, state) > 1e-3


def test_real_and_generated_batches_are_kept_apart():
    """The discriminator's statistics after a step are those of the real batch alone."""
    task = build()
    state = task.init(KEY, hparams())
    new, _ = task.train(state, batches()[0])
    _, alone = Discriminator().apply(
        {"params": state.params[1], **state.extra[1]},
        signed(batches()[0]["image"]),
        None,
        train=True,
        mutable=["batch_stats"],
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.extra[1], dict(alone)
    )
    assert not np.array_equal(
        new.extra[0]["batch_stats"]["BatchNorm_0"]["mean"], np.zeros(5, np.float32)
    )


def test_masked_rows_count_for_nothing():
    task = build(norm=False, penalty="gradient")
    batch = batches()[0]
    other = dict(batch, image=batch["image"].copy())
    other["image"][:2] = 255 - other["image"][:2]
    one, two = (task.train(task.init(KEY, hparams()), b)[0] for b in (batch, other))
    assert tiny.distance(one, two) == 0


@pytest.mark.parametrize("penalty", ["gradient", "r1"])
def test_penalties_of_a_linear_critic_are_those_of_its_weights(penalty):
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, images, labels, *, train):
            return nn.Dense(1, use_bias=False)(images.reshape(len(images), -1))[:, 0]

    players = linen_players(Generator(norm=False), Linear(), LATENTS, SHAPE)
    optimizers = (optim.optimizer("sgd"),) * 2
    task = compiled(adversarial(players, LOSSES["wasserstein"], optimizers, penalty=penalty))
    state = task.init(KEY, hparams(penalty_weight=3.0))
    kernel = state.params[1]["Dense_0"]["kernel"]
    norm = float(jnp.linalg.norm(kernel))
    _, metrics = task.train(state, batches()[0])
    by_hand = (norm - 1) ** 2 if penalty == "gradient" else norm**2 / 2
    assert float(metrics["penalty"].value) == pytest.approx(by_hand, rel=1e-5)
    plain = compiled(adversarial(players, LOSSES["wasserstein"], optimizers))
    slope = 2 * (norm - 1) / norm * kernel if penalty == "gradient" else kernel
    difference = jax.tree.map(
        jnp.subtract,
        task.gradient(state, batches()[0])[1],
        plain.gradient(state, batches()[0])[1],
    )
    np.testing.assert_allclose(difference["Dense_0"]["kernel"], 3 * slope, atol=1e-5)


@pytest.mark.slow
def test_the_gradient_penalty_is_taken_between_each_pair():
    """Of a critic |x|^2 / 2 the slope is x itself, so the penalty tells where it was taken."""

    class Square(nn.Module):
        @nn.compact
        def __call__(self, images, labels, *, train):
            scale = self.param("scale", nn.initializers.ones, ())
            return scale * jnp.sum(images.reshape(len(images), -1) ** 2, 1) / 2

    class Zero(nn.Module):
        @nn.compact
        def __call__(self, latents, labels, *, train):
            nn.Dense(1)(latents)
            return jnp.zeros((len(latents), *SHAPE))

    players = linen_players(Zero(), Square(), LATENTS, SHAPE)
    optimizers = (optim.optimizer("sgd"),) * 2
    task = compiled(adversarial(players, LOSSES["wasserstein"], optimizers, penalty="gradient"))
    norms = np.arange(1, 5, dtype=np.float32)
    image = np.zeros((4, *SHAPE), np.float32)
    image[:, 0, 0, 0] = norms
    one = lambda row: {"image": image, "label": np.zeros(4, np.int32), "mask": np.eye(4)[row]}
    state = task.init(KEY, hparams())
    taken = [float(task.train(state, one(row))[1]["penalty"].value) for row in range(4)]
    # (u |x| - 1)^2 with a share u of its own for each row
    keys = keyed(one(0), jax.random.fold_in(state.key, 0), None)[0]["key"]
    shares = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(keys)
    assert len(set(map(float, shares))) == 4
    np.testing.assert_allclose(taken, ((1 - shares) * norms - 1) ** 2, rtol=1e-4, atol=1e-5)


# What it costs. The generator multiplies 3x5 + 5x16 times for an image, the discriminator 16x7 + 7.
G_FIRST, G_REST, D_FIRST, D_REST = 15, 80, 112, 7
G, D = G_FIRST + G_REST, D_FIRST + D_REST


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("penalty", ["", "gradient", "r1"])
def test_nothing_is_computed_twice(steps, penalty):
    """Counted multiply-adds of a step are those that the mathematics needs, for each example.

    A backward pass costs as much as the forward pass for the weights, and as much again for the
    inputs of all layers but the first, whose inputs nobody learns.
    """
    task = build(norm=False, discriminator_steps=steps, penalty=penalty)
    state, batch = task.init(KEY, hparams()), batches(masked=0)[0]
    size = 48
    batch = jax.tree.map(lambda x: np.concatenate([x, x, x]), batch)
    generated = steps * G + (G + G_REST)
    told = steps * 2 * (D + D + D_REST)  # real and generated, each forward and backward
    tricked = D + D  # forward with the new weights, and the slopes by the images alone
    # The slopes by the images go back through both layers, and their derivative through those two
    # passes again: for both factors of the product with the first weights, and for the second
    # weights. Between the pairs of images there is a forward pass more, and its derivative.
    second = 2 * D_FIRST + D_REST
    extra = {"": 0, "r1": D + second, "gradient": D + D + second + D_FIRST}[penalty]
    counted = cost(task.train, state, batch).multiply_adds / (size / steps)
    assert counted == generated + told + tricked + steps * extra


# Every way to run it.


@functools.cache
def solo(rate=0.1, seed=7, **options):
    task = build(**options)
    return run(task, task.init(jax.random.key(seed), hparams(generator=rate)))


def assert_same(state, expected, tolerance=2e-6):
    assert tiny.distance(state, expected) < tolerance
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance),
        *jax.device_get((state.average, expected.average)),
    )


@pytest.mark.parametrize("way", ["jit", pytest.param("pmap", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"discriminator_steps": 2}, marks=pytest.mark.slow),
        pytest.param({"penalty": "gradient"}, marks=pytest.mark.slow),
    ],
)
def test_eight_devices_equal_one(way, options):
    """With synchronized statistics, and without any where the penalty is."""
    options = {"norm": not options.get("penalty"), **options}
    task = spread(way, 8, **options)
    state, metrics = run(task, task.init(KEY, hparams()))
    expected, of_one = solo(**options)
    assert_same(state, expected)
    assert metrics.keys() == of_one.keys()
    for name, mean in of_one.items():
        assert float(metrics[name].value) == pytest.approx(float(mean.value), abs=1e-5)
    measured = build(**options).eval(expected, batches()[0])
    for name, mean in task.eval(state, batches()[0]).items():
        assert float(mean.value) == pytest.approx(float(measured[name].value), abs=1e-5), name


@pytest.mark.slow
def test_pmap_without_synchronized_statistics_differs():
    task = spread("pmap", 8, synchronized=False)
    state, _ = run(task, task.init(KEY, hparams()))
    assert tiny.distance(state, solo()[0]) > 1e-3


@pytest.mark.slow
def test_scan_over_steps_equals_calls():
    task = parallel.jit(parallel.scan(build()), mesh(8), batch_spec=P(None, "data"))
    stacked = jax.tree.map(lambda *x: np.stack(x), *batches())
    state, metrics = task.train(task.init(KEY, hparams()), stacked)
    assert_same(state, solo()[0])
    assert metrics["generator_loss"].total.shape == (6,)


@pytest.mark.slow
@pytest.mark.parametrize("lane", [0, 1])
def test_vmap_lane_equals_solo_run(lane):
    seeds, rates = [3, 5], [0.05, 0.3]
    task = lanes()
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    swept = jax.tree.map(lambda x: jnp.stack([x, x]), hparams())
    swept["generator"]["learning_rate"] = jnp.float32(rates)
    state, _ = run(task, task.init(keys, swept))
    of_lane = jax.tree.map(lambda x: x[lane], state)
    assert_same(of_lane, solo(rates[lane], seeds[lane])[0])
    assert tiny.distance(of_lane, solo(rates[1 - lane], seeds[1 - lane])[0]) > 1e-2


def test_gradients_are_those_of_the_step():
    task = build()
    state = task.init(KEY, hparams())
    gradients = task.gradient(state, batches()[0])
    _, metrics = task.train(state, batches()[0])
    for name, gradient in zip(("generator", "discriminator"), gradients, strict=True):
        norm = float(optax.tree.norm(gradient))
        assert norm == pytest.approx(float(metrics[f"{name}_gradient_norm"].value), rel=1e-5)


def test_evaluation_is_of_the_averages_and_of_the_running_statistics():
    task = build()
    state, _ = run(task, task.init(KEY, hparams()))
    batch = batches()[0]
    measured = task.eval(state, batch)
    assert all(float(mean.count) == 14 for mean in measured.values())
    variables = {"params": state.params[1], **state.extra[1]}
    real = Discriminator().apply(variables, signed(batch["image"]), None, train=False)
    by_hand = jnp.sum((real > 0)[2:]) / 14
    assert float(measured["real_accuracy"].value) == pytest.approx(float(by_hand))
    smoothed = optax.sigmoid_binary_cross_entropy(real, 0.9 * jnp.ones_like(real))
    of_fake = measured["discriminator_loss"].total - jnp.sum(smoothed[2:])
    # log(1 + e^l) and log(1 + e^-l) differ by l, so that their totals bracket the samples' logits
    assert 0 < float(of_fake) < 14 * 5
    stale = state._replace(average={"params": state.params[0], "extra": state.extra[0]})
    for name in ("generator_loss", "discriminator_loss"):
        assert float(task.eval(stale, batch)[name].value) != float(measured[name].value)


def test_evaluation_does_not_depend_on_how_examples_are_batched():
    """Each example's latents are its own, at whatever step, in whatever row."""
    task = build()
    state, _ = run(task, task.init(KEY, hparams()))
    batch = batches(masked=0)[1]
    whole = task.eval(state, batch)
    parts = [{k: v[rows] for k, v in batch.items()} for rows in (slice(12, 16), slice(0, 12))]
    for name, mean in whole.items():
        total = sum(task.eval(state, part)[name].total for part in parts)
        assert float(total) == pytest.approx(float(mean.total), rel=1e-5), name
    later = task.eval(state._replace(step=state.step + 5), batch)
    assert float(later["generator_loss"].value) == float(whole["generator_loss"].value)
    same = dict(batch, image=np.repeat(batch["image"][:1], 16, 0))
    assert float(task.eval(state, same)["generator_loss"].value) != pytest.approx(
        float(whole["generator_loss"].value), rel=1e-3
    )


def test_accuracies_are_of_the_losses_own_boundary():
    assert LOSSES["least_squares"].boundary == 0.5
    task = build(loss="wasserstein")
    _, metrics = task.train(task.init(KEY, hparams()), batches()[0])
    assert not [name for name in metrics if name.endswith("accuracy")]


@pytest.mark.slow
def test_dropout_draws_anew_for_each_call_and_step():
    """A generator whose samples never change, before a discriminator that sees through masks."""

    class Still(nn.Module):
        @nn.compact
        def __call__(self, latents, labels, *, train):
            nn.Dense(1)(latents)
            return jnp.full((len(latents), *SHAPE), 0.3)

    images = np.full((16, *SHAPE), 0.3, np.float32)  # real ones look like that too
    batch = dict(batches(masked=0)[0], image=images)

    def losses(dropout):
        network = Discriminator(dropout=dropout, norm=False)
        players = linen_players(Still(), network, LATENTS, SHAPE)
        task = compiled(adversarial(players, LOSSES["hinge"], (optim.optimizer("sgd"),) * 2))
        state = task.init(KEY, hparams(generator=0.0, discriminator=0.0))
        told = []
        for step in (0, 1):
            _, metrics = task.train(state._replace(step=jnp.int32(step)), batch)
            told.append([float(metrics[f"{name}_loss"].value) for name in PLAYERS])
        return np.array(told)

    through_masks, plain = losses(0.5), losses(0.0)
    assert (plain[0] == plain[1]).all()
    assert (through_masks[0] != through_masks[1]).all()
    # relu(1 - l) + relu(1 + l') is 2 where both logits, small ones, are of the same mask
    assert plain[0, 1] == pytest.approx(2, abs=1e-5)
    assert abs(through_masks[0, 1] - 2) > 1e-3


@pytest.mark.parametrize("name", PLAYERS)
@pytest.mark.parametrize("way", ["jit", pytest.param("pmap", marks=pytest.mark.slow)])
def test_a_nan_in_either_player_stops_the_run_and_names_it(way, name):
    """Either's makes all losses nan in the same step."""
    task = spread(way, 8)  # as where eight devices equal one
    state = task.init(KEY, hparams())
    spoilt = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan), getattr(state.params, name))
    state = state._replace(params=state.params._replace(**{name: spoilt}))
    with pytest.raises(loop.Diverged, match=rf"^{name}_\w+ is nan at step 1; nothing was saved"):
        loop.fit(task, state, lambda start: again(), steps=6)


@pytest.mark.parametrize("name", PLAYERS)
def test_an_update_that_is_too_large_names_the_player_that_made_it(name):
    """The generator's loss is taken with the discriminator's new weights: not its fault."""
    task = spread("jit", 1, norm=False, loss="least_squares")
    state = task.init(KEY, hparams(**{name: np.inf}))
    with pytest.raises(loop.Diverged, match=rf"^{name}_\w+ is (nan|inf) at step"):
        loop.fit(task, state, lambda start: again(), steps=6)


def test_parameters_are_named_after_their_players():
    state = build().init(KEY, hparams())
    assert all(isinstance(pair, Pair) for pair in (state.params, state.extra, state.opt_state))
    paths = {jax.tree_util.keystr(p[:1]) for p, _ in jax.tree.leaves_with_path(state.params)}
    assert paths == {".generator", ".discriminator"}


def again():
    while True:
        yield from batches()
