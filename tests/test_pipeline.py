"""The data rule, told of images: the batch of step n is a pure function of (seed, n)."""

import contextlib
from typing import Any

import image_sets
import jax
import numpy as np
import pytest
from image_sets import assert_same, numbered, take, to_numpy
from sklearn.datasets import load_digits

from jaxdl import InputError
from jaxdl.data import Pipeline, Preprocess, subsample
from jaxdl.data.order import TrainOrder
from jaxdl.data.pipeline import local_rows, make_global

DIGITS = Preprocess(size=8, channels=1)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return image_sets.digits(tmp_path_factory)


@pytest.fixture(scope="module")
def over_eight_devices():
    return image_sets.over_eight_devices()


def test_a_batch_depends_on_the_seed_and_the_step_alone(digits, over_eight_devices, monkeypatch):
    some = subsample(digits, 20, seed=0)

    def pipeline(seed=3, **options: Any):
        return Pipeline(some, DIGITS, 32, seed=seed, **options)

    batches = take(pipeline(backend="grain"), 16)  # 2.6 epochs
    assert_same(take(pipeline(backend="grain"), 16), batches)
    assert_same(take(pipeline(backend="resident"), 16), batches)
    assert_same(take(pipeline(backend="grain", sharding=over_eight_devices), 16), batches)
    assert_same(take(pipeline(backend="resident", sharding=over_eight_devices), 16), batches)
    assert_same(take(pipeline(backend="grain"), 5, start=11), batches[11:])
    assert_same(take(pipeline(backend="resident"), 5, start=11), batches[11:])
    monkeypatch.setattr("jaxdl.data.pipeline.TOGETHER_LIMIT", 0)  # each batch gathered by itself
    assert_same(take(pipeline(backend="resident"), 16), batches)
    for other in (pipeline(seed=4), pipeline(seed=3 + 2**32)):
        assert (take(other, 1)[0]["label"] != batches[0]["label"]).any()


@pytest.mark.parametrize("backend", ["grain", "resident"])
def test_every_epoch_is_a_permutation_of_its_own(backend: Any):
    pipeline = Pipeline(numbered(50, size=4), Preprocess(4, 3), 8, seed=1, backend=backend)
    labels = np.concatenate([batch["label"] for batch in take(pipeline, 25)])
    epochs = labels.reshape(4, 50)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(50), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    # No epoch of a seed is an epoch of the next seed.
    other = Pipeline(numbered(50, size=4), Preprocess(4, 3), 8, seed=2, backend=backend)
    others = np.concatenate([batch["label"] for batch in take(other, 25)]).reshape(4, 50)
    assert not {tuple(epoch) for epoch in epochs} & {tuple(epoch) for epoch in others}


def test_the_images_belong_to_their_labels():
    dataset = numbered(50, size=4)
    for backend in ("grain", "resident"):
        for batch in take(Pipeline(dataset, Preprocess(4, 3), 16, backend=backend), 7):
            expected = [dataset.splits["train"][label]["image"] for label in batch["label"]]
            np.testing.assert_array_equal(batch["image"], expected)
            assert batch["mask"].min() == 1


@pytest.mark.parametrize("preprocess", [Preprocess(24, 3), Preprocess(16, 3, random_crop=True)])
def test_hosts_partition_the_batch_of_one_host(preprocess):
    dataset = numbered(50)
    whole = take(Pipeline(dataset, preprocess, 12, backend="grain"), 6)
    backends: Any = ["grain"] if preprocess.random_crop else ["grain", "resident"]
    for backend in backends:
        hosts = [
            take(Pipeline(dataset, preprocess, 12, backend=backend, rows=rows), 6)
            for rows in (slice(0, 6), slice(6, 12))
        ]
        joined = [
            {key: np.concatenate([first[key], second[key]]) for key in first}
            for first, second in zip(*hosts, strict=True)
        ]
        assert_same(joined, whole)


def test_a_host_reads_the_rows_of_its_devices_and_no_other(over_eight_devices, monkeypatch):
    class OfAHost:
        """The sharding as a host sees it that has devices 0, 1, 4 and 5."""

        device_set = over_eight_devices.device_set

        def addressable_devices_indices_map(self, shape):
            everywhere = over_eight_devices.addressable_devices_indices_map(shape)
            return {device: everywhere[device] for device in jax.devices()[:2] + jax.devices()[4:6]}

    host: Any = OfAHost()
    rows = local_rows(32, host)
    assert rows.tolist() == [*range(8), *range(16, 24)]
    monkeypatch.setattr(
        jax,
        "make_array_from_callback",
        lambda shape, sharding, shard: {
            device.id: shard(index)
            for device, index in sharding.addressable_devices_indices_map(shape).items()
        },
    )
    shards: Any = make_global(10 * rows, rows, 32, host)
    first = jax.devices()[0]
    assert {number - first.id: shard.tolist() for number, shard in shards.items()} == {
        place: [10 * (4 * place + i) for i in range(4)] for place in (0, 1, 4, 5)
    }
    dataset = numbered(40, size=4)
    labels_of = lambda **options: next(
        Pipeline(dataset, Preprocess(4, 3), 32, backend="grain", **options).train()
    )["label"]
    whole = np.asarray(labels_of())
    spread = labels_of(sharding=host)
    assert {number - first.id: shard.tolist() for number, shard in spread.items()} == {
        place: whole[4 * place : 4 * place + 4].tolist() for place in (0, 1, 4, 5)
    }


def test_random_crops_are_a_function_of_seed_and_step():
    dataset, preprocess = numbered(50), Preprocess(16, 3, random_crop=True)

    def pipeline(seed=5):
        return Pipeline(dataset, preprocess, 10, seed=seed)

    batches = take(pipeline(), 12)
    assert_same(take(pipeline(), 4, start=8), batches[8:])
    crops = {}
    for batch in batches:  # the same image is cut differently in the next epoch
        for label, image in zip(batch["label"], batch["image"], strict=True):
            crops.setdefault(int(label), set()).add(image.tobytes())
    assert sum(map(len, crops.values())) == 120
    # The crop has its own randomness: with another seed it is not the same at the same place.
    assert (take(pipeline(seed=6), 1)[0]["image"] != batches[0]["image"]).any()
    centre = Preprocess(16, 3)(dataset.splits["train"][7]["image"])
    (first, *_) = pipeline().evaluate("train")
    np.testing.assert_array_equal(first["image"][7], centre)


def test_every_row_of_every_step_draws_apart():
    order = TrainOrder(50, 10, seed=5)
    drawn = {
        (step, row): order.generators(step)(row).random(3).tolist()
        for step in range(4)
        for row in range(10)
    }
    assert len(set(map(tuple, drawn.values()))) == 40
    of_row = order.generators(2)
    for row in (7, 3, 3, 0):  # whichever were read before, and however much they drew
        assert of_row(row).random(3).tolist() == drawn[2, row]
        of_row(row).integers(10, size=5, dtype=np.uint16)
    assert TrainOrder(50, 10, seed=6).generators(2)(7).random(3).tolist() != drawn[2, 7]


@pytest.mark.parametrize("batch_size", [8, 40, 64, 360])
@pytest.mark.parametrize(
    "options", [{"backend": "grain"}, {"backend": "resident"}], ids=["grain", "resident"]
)
def test_evaluation_sees_every_example_once(digits, over_eight_devices, batch_size, options):
    labels = load_digits(return_X_y=True)[1][1437:]
    for sharding in (None, over_eight_devices):
        pipeline = Pipeline(digits, DIGITS, batch_size, sharding=sharding, **options)
        batches = [to_numpy(batch) for batch in pipeline.evaluate("test")]
        assert {batch["image"].shape for batch in batches} == {(batch_size, 8, 8, 1)}
        seen = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
        assert len(seen["mask"]) == -(-360 // batch_size) * batch_size
        np.testing.assert_array_equal(seen["mask"], np.arange(len(seen["mask"])) < 360)
        np.testing.assert_array_equal(seen["label"][:360], labels)
        assert seen["image"][:360].any(axis=(1, 2, 3)).all()
        assert not seen["image"][360:].any()
        assert not seen["label"][360:].any()
    assert pipeline.examples("test") == 360
    assert pipeline.image_shape == (8, 8, 1)


def test_sharded_batches_lie_on_all_devices(digits, over_eight_devices):
    for backend in ("grain", "resident"):
        pipeline = Pipeline(digits, DIGITS, 64, sharding=over_eight_devices, backend=backend)
        with contextlib.closing(pipeline.train()) as batches:
            for value in next(batches).values():
                assert isinstance(value, jax.Array)
                assert value.sharding.is_equivalent_to(over_eight_devices, value.ndim)
                assert {shard.data.shape[0] for shard in value.addressable_shards} == {8}


def test_auto_keeps_small_sets_resident(digits, monkeypatch):
    assert Pipeline(digits, DIGITS, 10).backend == "resident"
    assert Pipeline(digits, DIGITS, 10, workers=1).backend == "grain"
    assert Pipeline(digits, DIGITS._replace(random_crop=True), 10).backend == "grain"
    monkeypatch.setattr("jaxdl.data.pipeline.RESIDENT_LIMIT", 1797 * 64 - 1)
    assert Pipeline(digits, DIGITS, 10).backend == "grain"
    assert Pipeline(digits, DIGITS, 10, backend="resident").backend == "resident"


def test_wrong_arguments_are_named(digits, over_eight_devices):
    def refused(match, preprocess=DIGITS, batch_size=8, **options):
        with pytest.raises(InputError, match=match):
            Pipeline(digits, preprocess, batch_size, **options)

    refused("batch size 0: expected 1 to 1437, the number of train examples", batch_size=0)
    refused("batch size 1438: expected 1 to 1437", batch_size=1438)
    refused("size 12 does not divide over the 8", batch_size=12, sharding=over_eight_devices)
    refused("data seed -1: expected at least 0", seed=-1)
    refused("-2 data workers: expected at least 0", workers=-2)
    refused("data backend 'tpu': expected auto, resident or grain", backend="tpu")
    refused("on_corrupt 'drop': expected fail or skip", on_corrupt="drop")
    refused("'resident' with random crops or workers", backend="resident", workers=1)
    refused("image size 0: expected at least 1", DIGITS._replace(size=0))
    refused("2 image channels: expected 1 or 3", DIGITS._replace(channels=2))
    refused(r"crop share 1.5: expected \(0, 1\]", DIGITS._replace(crop_share=1.5))
    with pytest.raises(InputError, match="split 'validation' of digits: expected train or test"):
        Pipeline(digits, DIGITS, 8).evaluate("validation")
    with pytest.raises(InputError, match="start step -1: expected at least 0"):
        Pipeline(digits, DIGITS, 8).train(-1)
