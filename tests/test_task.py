"""The train step, against arithmetic done by hand."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from jaxdl import losses, optim, parallel, task
from jaxdl.metrics import accuracy
from jaxdl.task import Mean, State

KEY = jax.random.key(7)


def linear_task(**options):
    """Least squares with a plain gradient step; `noise` sums a draw from each example's key."""

    def init(key):
        return {"w": jnp.ones(2)}, {"seen": jnp.float32(0)}

    def loss(params, extra, batch, key, hparams, train):
        error = batch["x"] @ params["w"] - batch["y"]
        mean = losses.masked_mean(hparams["weight"] * jnp.square(error), batch["mask"])
        noise = Mean(jnp.sum(jax.vmap(jax.random.uniform)(batch["key"])), 1.0) if train else mean
        extra = {"seen": extra["seen"] + jnp.sum(batch["mask"])}
        return mean, extra, {"noise": noise, "train": Mean(jnp.float32(train), 1.0)}

    return task.supervised(
        init,
        loss,
        lambda h: optax.sgd(h["learning_rate"]),
        lambda h, step: h | {"learning_rate": h["learning_rate"] / jnp.float32(1 + step)},
        **options,
    )


HPARAMS = {"learning_rate": jnp.float32(0.1), "weight": jnp.float32(2.0)}
X = np.arange(8, dtype=np.float32).reshape(4, 2) / 8
BATCH = {"x": X, "y": np.float32([1, 0, 2, 9]), "mask": np.float32([1, 1, 1, 0])}


def test_step_by_hand():
    run = linear_task()
    state = run.init(KEY, HPARAMS)
    w = np.ones(2)
    for step in range(3):
        state, metrics = run.train(state, BATCH)
        error = X @ w - BATCH["y"]
        rate = 0.1 / (1 + step)
        gradient = 2 * 2 * (X * (error * BATCH["mask"])[:, None]).sum(0) / 3
        assert float(metrics["loss"].total) == pytest.approx(2 * np.sum(error[:3] ** 2), rel=1e-5)
        assert float(metrics["loss"].count) == 3
        assert float(metrics["learning_rate"].value) == pytest.approx(rate)
        assert float(metrics["gradient_norm"].value) == pytest.approx(
            np.linalg.norm(gradient), rel=1e-5
        )
        w = w - rate * gradient
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-5)
    assert int(state.step) == 3
    assert float(state.extra["seen"]) == 9
    assert float(run.eval(state, BATCH)["train"].value) == 0


def test_a_step_is_a_pure_function_of_state_and_batch():
    run = linear_task()
    state = run.init(KEY, HPARAMS)
    first, metrics = run.train(state, BATCH)
    again, same = run.train(state, BATCH)
    np.testing.assert_array_equal(first.params["w"], again.params["w"])
    assert metrics["noise"].total == same["noise"].total
    _, later = run.train(first, BATCH)
    assert later["noise"].total != metrics["noise"].total  # another step, another key
    other = run.init(jax.random.key(8), HPARAMS)
    assert run.train(other, BATCH)[1]["noise"].total != metrics["noise"].total


def test_state_holds_only_arrays():
    state = tiny.build().init(KEY, tiny.hparams())
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert isinstance(state, State)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_equals_the_large_batch(parts):
    """Exact though the parts hold unequal numbers of examples that count."""
    whole, parted = linear_task(), linear_task(accumulate=parts)
    state = whole.init(KEY, HPARAMS)
    a, of_whole = whole.train(state, BATCH)
    b, of_parts = parted.train(state, BATCH)
    np.testing.assert_allclose(a.params["w"], b.params["w"], rtol=1e-6)
    assert float(a.extra["seen"]) == float(b.extra["seen"]) == 3
    for name in ("loss", "noise"):  # each example keeps its own key
        assert float(of_whole[name].total) == pytest.approx(float(of_parts[name].total), rel=1e-6)


def test_accumulation_on_eight_devices_keeps_every_examples_key():
    """So an augmentation draws the same however the batch is cut up and spread."""
    repeated = {k: np.concatenate([v] * 4) for k, v in BATCH.items()}
    results = []
    for parts, devices in ((1, 1), (2, 8)):
        mesh = parallel.data_mesh(jax.devices()[:devices])
        run = parallel.jit(linear_task(accumulate=parts), mesh)
        state, metrics = run.train(run.init(KEY, HPARAMS), repeated)
        results.append((np.asarray(state.params["w"]), float(metrics["noise"].total)))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-6)


def test_an_empty_batch_changes_nothing():
    run = linear_task()
    state = run.init(KEY, HPARAMS)
    after, _ = run.train(state, BATCH | {"mask": np.zeros(4, np.float32)})
    np.testing.assert_array_equal(after.params["w"], state.params["w"])


@functools.cache
def classifier():
    """Compiled once for all tests."""
    return task.Task(*map(jax.jit, tiny.build(augmented=False)))


def test_classification_learns_and_moves_statistics_in_training_only():
    run = classifier()
    state, start = run.init(KEY, tiny.hparams()), run.init(KEY, tiny.hparams())
    for batch in tiny.batches():
        state, _ = run.train(state, batch)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state.extra, start.extra)
    assert all(jax.tree.leaves(moved))
    metrics = run.eval(state, tiny.batches()[0])
    assert float(metrics["loss"].value) < float(run.eval(start, tiny.batches()[0])["loss"].value)
    assert float(metrics["loss"].count) == 14


def test_label_smoothing_is_in_the_training_loss_alone():
    run = classifier()
    low = run.init(KEY, tiny.hparams(label_smoothing=0.0))
    high = run.init(KEY, tiny.hparams(label_smoothing=0.9))
    batch = tiny.batches()[0]
    assert run.train(low, batch)[1]["loss"].total != run.train(high, batch)[1]["loss"].total
    assert run.eval(low, batch)["loss"].total == run.eval(high, batch)["loss"].total


def test_auxiliary_logits_join_the_training_loss():
    class WithHead(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = x.reshape(x.shape[0], -1)
            if train:
                self.sow("intermediates", "aux_logits1", nn.Dense(3, name="head")(x))
            else:
                nn.Dense(3, name="head")(x)
            self.sow("intermediates", "features", x)
            return nn.Dense(3, name="fc")(x)

    images, labels = (
        np.linspace(0, 1, 2 * 16, dtype=np.float32).reshape(2, 4, 4, 1),
        np.array([1, 2]),
    )
    batch = {"image": images, "label": labels, "mask": np.ones(2, np.float32), "key": None}
    values = {}
    for weight in (0.0, 0.3):
        init, loss = losses.classification(WithHead(), (4, 4, 1), lambda x: x, aux_weight=weight)
        params, extra = init(KEY)
        assert extra == {}
        hparams = {"label_smoothing": 0.0}
        values[weight] = loss(params, extra, batch, KEY, hparams, True)[0].total
        head = params["head"]
        aux = losses.cross_entropy(images.reshape(2, -1) @ head["kernel"], labels).sum()
        assert loss(params, extra, batch, KEY, hparams, False)[0].total == values[0.0]
    np.testing.assert_allclose(values[0.3] - values[0.0], 0.3 * aux, rtol=1e-5)


def test_cross_entropy_by_hand():
    logits, labels = jnp.array([[2.0, 0.0, -1.0], [1e4, 0.0, -1e4]]), jnp.array([0, 1])
    log_z = np.log(np.exp([2.0, 0.0, -1.0]).sum())
    expected = 0.9 * (log_z - 2) + 0.1 * (log_z - np.mean([2.0, 0.0, -1.0]))
    smoothed = losses.cross_entropy(logits, labels, 0.1)
    np.testing.assert_allclose(smoothed[0], expected, rtol=1e-6)
    np.testing.assert_allclose(losses.cross_entropy(logits, labels)[1], 1e4, rtol=1e-6)


def test_accuracy_counts_what_the_mask_counts():
    logits = jnp.array([[3.0, 2, 1], [1, 3, 2], [1, 2, 3], [9, 0, 0]])
    labels, mask = jnp.array([0, 2, 0, 0]), jnp.array([1.0, 1, 1, 0])
    assert accuracy(logits, labels, mask) == (1, 3)
    assert accuracy(logits, labels, mask, k=2) == (2, 3)


@pytest.mark.parametrize("name", ["nesterov", "lamb"])
def test_optimizers_take_traced_hyperparameters(name):
    """So that they can be mapped over; of every optimizer alone test_optim tells it."""
    run = task.supervised(
        lambda key: ({"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, {}),
        lambda params, extra, batch, key, hparams, train: (
            Mean(jnp.sum(batch["x"] @ params["w"] + params["b"][None]), 4.0),
            extra,
            {},
        ),
        optim.optimizer(name),
    )
    hparams = {k: jnp.stack([v, v]) for k, v in tiny.hparams().items()}
    hparams["learning_rate"] = jnp.float32([0.0, 0.01])
    mapped = parallel.vmap(run)
    state = mapped.init(jax.random.split(KEY), hparams)
    after, _ = jax.jit(mapped.train)(state, {"x": BATCH["x"]})
    for old, new in zip(jax.tree.leaves(state.params), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_array_equal(new[0], old[0])
        assert np.all(new[1] != old[1])


def test_loss_scaling_skips_what_overflows_and_changes_nothing_else():
    """Gradients are the same with the scale in and out; an overflow halves it and does no more."""
    scaled, plain = linear_task(loss_scaling=True), linear_task()
    state, other = scaled.init(KEY, HPARAMS), plain.init(KEY, HPARAMS)
    for _ in range(3):
        state, metrics = scaled.train(state, BATCH)
        other, expected = plain.train(other, BATCH)
        np.testing.assert_allclose(state.params["w"], other.params["w"], rtol=1e-6)
        assert float(metrics["loss"].total) == float(expected["loss"].total)
        assert float(metrics["loss_scale"].value) == task.INITIAL_SCALE
    np.testing.assert_allclose(
        metrics["gradient_norm"].total, expected["gradient_norm"].total, rtol=1e-6
    )

    overflowing = BATCH | {"y": np.float32([3e38, 0, 0, 0])}  # times the scale, beyond float32
    skipped, metrics = scaled.train(state, overflowing)
    assert int(skipped.step) == int(state.step) + 1
    for part in ("params", "extra", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(skipped, part), getattr(state, part))
    assert float(skipped.loss_scale.scale) == task.INITIAL_SCALE / 2
    assert int(skipped.loss_scale.good_steps) == 0
    assert [float(x) for x in metrics["gradient_norm"]] == [0, 0]

    almost = state._replace(
        loss_scale=task.LossScale(jnp.float32(8), jnp.int32(task.GROWTH_STEPS - 1))
    )
    grown, _ = scaled.train(almost, BATCH)
    assert [float(x) for x in grown.loss_scale] == [16, 0]
    lowest = state._replace(loss_scale=task.LossScale(jnp.float32(1), jnp.int32(5)))
    assert float(scaled.train(lowest, overflowing)[0].loss_scale.scale) == 1


def test_float16_gradients_survive_only_when_scaled():
    """A gradient of 1e-9 is 0 in float16; times 2**12 it is not."""

    def small(**options):
        def loss(params, extra, batch, key, hparams, train):
            half = params["w"].astype(jnp.float16) * jnp.float16(6e-5)
            value = half.astype(jnp.float32) * 1.7e-5  # what flows back: 1.7e-5, times 6e-5
            return Mean(value, jnp.float32(1)), extra, {}

        init = lambda key: ({"w": jnp.float32(1)}, {})
        return task.supervised(init, loss, lambda h: optax.sgd(h["learning_rate"]), **options)

    batch = {"x": np.zeros(4)}
    for scaling, expected in ((False, 0.0), (True, 6e-5 * 1.7e-5)):
        run = small(loss_scaling=scaling)
        _, metrics = run.train(run.init(KEY, HPARAMS), batch)
        assert float(metrics["gradient_norm"].value) == pytest.approx(expected, rel=0.02)


def test_monitor_counts_evaluations_since_the_best():
    run = linear_task()
    state = run.init(KEY, HPARAMS)
    seen = []
    for value in (0.5, 0.4, 0.5, 0.6, float("nan"), float("inf")):
        state = task.observe(state, jnp.float32(value))
        seen.append((float(state.monitor.best), int(state.monitor.since_best)))
    best = [round(value, 6) for value, _ in seen]
    assert best == [0.5, 0.5, 0.5, 0.6, 0.6, 0.6]
    assert [count for _, count in seen] == [0, 1, 2, 0, 1, 2]
    assert int(state.monitor.since_cut) == 2
