"""The ring of Gaussians: what is drawn, and that it hangs on nothing but the seed and the step."""

import itertools

import jax
import numpy as np
import pytest
from scipy import stats

from jaxdl import InputError, parallel
from jaxdl.data import Ring, pipeline


def take(batches, count=None):
    return [jax.device_get(batch) for batch in itertools.islice(batches, count)]


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
            assert a[name].dtype == b[name].dtype


def test_centres_are_spread_evenly_over_the_circle():
    half = 0.7 / np.sqrt(2)
    expected = [(0.7, 0), (half, half), (0, 0.7), (-half, half)]
    expected += [(-x, -y) for x, y in expected]
    np.testing.assert_allclose(Ring(4).centres, expected, atol=1e-7)
    np.testing.assert_allclose(
        Ring(4, modes=2, radius=0.5).centres, [(0.5, 0), (-0.5, 0)], atol=1e-7
    )


def test_points_are_drawn_from_the_gaussians_of_their_labels():
    data = Ring(4096, std=0.02, seed=3)
    (batch,) = take(data.train(7), 1)
    assert {name: value.dtype.name for name, value in batch.items()} == {
        "image": "float32",
        "label": "int32",
        "mask": "float32",
    }
    assert batch["image"].shape == (4096, *data.image_shape)
    assert (batch["mask"] == 1).all()
    assert np.abs(batch["image"]).max() < 1
    counts = np.bincount(batch["label"], minlength=8)
    assert len(counts) == 8
    assert stats.chisquare(counts).pvalue > 1e-3
    offsets = (batch["image"] - data.centres[batch["label"]]) / 0.02
    for axis in (0, 1):
        assert stats.kstest(offsets[:, axis], "norm").pvalue > 1e-3
    assert abs(np.corrcoef(offsets.T)[0, 1]) < 0.06


def test_a_batch_is_a_function_of_seed_and_step_alone():
    batches = take(Ring(16, seed=1).train(), 6)
    assert_same(take(Ring(16, seed=1).train(4), 2), batches[4:])
    assert_same(take(Ring(16, seed=1, held_out=3).train(), 6), batches)
    others = [take(Ring(16, seed=seed).train(), 1)[0] for seed in (0, 2)]
    points = [batch["image"] for batch in (*batches, *others)]
    points += [Ring(16, seed=1, held_out=16).points(split) for split in ("train", "test")]
    assert len(np.unique(np.concatenate(points), axis=0)) == sum(map(len, points))


def test_evaluation_shows_every_point_once():
    data = Ring(16, seed=1, held_out=37)
    for split in ("train", "test"):
        assert data.examples(split) == 37
        batches = take(data.evaluate(split))
        assert [len(batch["image"]) for batch in batches] == [16, 16, 16]
        image, label, mask = (
            np.concatenate([batch[name] for batch in batches])
            for name in ("image", "label", "mask")
        )
        np.testing.assert_array_equal(mask, np.arange(48) < 37)
        np.testing.assert_array_equal(image[:37], data.points(split))
        assert data.points(split).dtype == np.float32
        assert not image[37:].any()
        assert not label[37:].any()
        offsets = image[:37] - data.centres[label[:37]]
        assert np.linalg.norm(offsets, axis=1).max() < 6 * 0.014
        assert_same(take(Ring(16, seed=1, held_out=37).evaluate(split)), batches)
        # The points are those of the seed, however they are dealt into batches.
        np.testing.assert_array_equal(Ring(5, seed=1, held_out=37).points(split), image[:37])
    assert len(take(Ring(16, held_out=32).evaluate("test"))) == 2
    assert (Ring(16, seed=2, held_out=37).points("test") != data.points("test")).any()


def test_devices_and_processes_share_the_same_batches(monkeypatch):
    sharding = parallel.batch_sharding(parallel.data_mesh())
    alone, spread = Ring(16, held_out=37), Ring(16, held_out=37, sharding=sharding)
    for value in next(spread.train()).values():
        assert len(value.sharding.device_set) == 8
        assert value.sharding.is_equivalent_to(sharding, value.ndim)
    assert_same(take(spread.train(2), 3), take(alone.train(2), 3))
    assert_same(take(spread.evaluate("test")), take(alone.evaluate("test")))
    # A process that holds the third quarter makes those rows.
    monkeypatch.setattr(pipeline, "local_rows", lambda size, sharding: np.arange(8, 12))
    part = Ring(16, held_out=37)
    for rows, whole in (
        (part.train(), alone.train()),
        (part.evaluate("test"), alone.evaluate("test")),
    ):
        expected = [{k: v[8:12] for k, v in batch.items()} for batch in take(whole, 3)]
        assert_same(take(rows, 3), expected)
    monkeypatch.setattr(pipeline, "make_global", lambda rows, *place: place)
    for rows, *place in next(Ring(16, sharding=sharding).train()).values():
        assert rows.tolist() == [8, 9, 10, 11]
        assert place == [16, sharding]


def test_a_point_belongs_to_the_nearest_mode_within_three_deviations():
    data = Ring(4, held_out=20000, seed=5)
    steps = 0.014 * np.array([[0, 0], [2.99, 0], [0, -2.99], [3.01, 0], [2.2, 2.2]])
    for mode, centre in enumerate(data.centres):
        assert data.mode_of(centre + steps).tolist() == [mode, mode, mode, -1, -1]
    assert data.mode_of(np.array([[0, 0], [np.nan, 0], [1e30, 0]])).tolist() == [-1, -1, -1]
    assert data.mode_of(np.zeros((0, 2))).shape == (0,)
    (batch,) = take(Ring(20000, seed=5).train(), 1)
    modes = data.mode_of(batch["image"])
    within = modes >= 0
    np.testing.assert_array_equal(modes[within], batch["label"][within])
    # A Rayleigh variable is at most 3 with probability 1 - exp(-9/2); the bound is 4 deviations.
    np.testing.assert_allclose(within.mean(), stats.rayleigh.cdf(3), atol=0.003)
    # Where Gaussians overlap the nearer counts.
    crowded = Ring(4, modes=8, radius=0.1, std=0.1)
    near = crowded.centres * 1.1
    assert crowded.mode_of(near).tolist() == list(range(8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size 0: expected at least 1"),
        ({"modes": 1}, "modes 1: expected at least 2"),
        ({"seed": -1}, "data seed -1: expected at least 0"),
        ({"held_out": 0}, "held_out 0: expected at least 1"),
        ({"radius": -0.5}, "radius -0.5 and std 0.014: expected both more than 0"),
        ({"std": 0.0}, "radius 0.7 and std 0.0: expected both more than 0"),
        ({"radius": float("nan")}, "radius nan and std 0.014: expected both more than 0"),
        ({"radius": 0.95}, "radius 0.95 and std 0.014: .* radius [+] 6 std at most 1$"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(InputError, match=f"^{message}"):
        Ring(**({"batch_size": 8} | changes))


def test_wrong_splits_steps_and_devices_are_named():
    data = Ring(8)
    for use in (data.examples, data.points, lambda split: next(data.evaluate(split))):
        with pytest.raises(InputError, match=r"^split 'validation' of the ring: expected train or"):
            use("validation")
    with pytest.raises(InputError, match=r"^start step -1: expected at least 0"):
        next(data.train(-1))
    with pytest.raises(InputError, match="size 12 does not divide over the 8 devices"):
        Ring(12, sharding=parallel.batch_sharding(parallel.data_mesh()))
