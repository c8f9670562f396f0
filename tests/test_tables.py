"""Data that are no images: rows by their schema, through the order and the backends of all data."""

import contextlib
import itertools
import pickle

import image_sets
import jax
import numpy as np
import pytest

from jaxdl import InputError
from jaxdl.data import (
    Field,
    Pipeline,
    Preprocess,
    Ring,
    RowPipeline,
    Table,
    Unreadable,
    from_arrays,
)
from jaxdl.data.order import EvalOrder, TrainOrder
from jaxdl.data.pairs import PairPipeline, SubwordVocabulary, numbers
from jaxdl.data.rows import Indexed
from jaxdl.data.text import TextPipeline
from jaxdl.data.words import WordPipeline

BACKENDS = ["grain", "resident"]


def regression(count, seed=0):
    """Five features and two targets a row; the first feature tells which row it is."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((count, 5)).astype(np.float32)
    features[:, 0] = np.arange(count)
    target = np.stack([features @ np.arange(1, 6), features[:, 1] ** 2], 1)
    return Table({"features": features, "target": target.astype(np.float32)})


SPLITS = {"train": regression(50), "test": regression(21, seed=1)}


def pipeline(batch_size=16, splits=SPLITS, **options):
    return RowPipeline(splits, batch_size, **{"seed": 3} | options)


def take(pipeline, count, start=0):
    with contextlib.closing(pipeline.train(start)) as batches:
        return [jax.device_get(batch) for batch in itertools.islice(batches, count)]


def evaluated(pipeline, split="test"):
    return [jax.device_get(batch) for batch in pipeline.evaluate(split)]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
            assert one[name].dtype == other[name].dtype


def joined(*hosts):
    return [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*hosts, strict=True)
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_takes_the_rows_of_its_order(backend):
    order, columns = TrainOrder(50, 16, 3), SPLITS["train"].columns
    expected = [
        {name: column[order(step)] for name, column in columns.items()}
        | {"mask": np.ones(16, np.float32)}
        for step in range(10)  # three epochs
    ]
    batches = take(pipeline(backend=backend), 10)
    assert_same(batches, expected)
    epochs = np.concatenate([batch["features"][:, 0] for batch in batches])[:150].reshape(3, 50)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(50), (3, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_is_a_function_of_seed_and_step(backend):
    batches = take(pipeline(backend="grain"), 9)
    sharding = image_sets.over_eight_devices()
    make = lambda **options: pipeline(backend=backend, **options)
    assert_same(take(make(), 9), batches)
    assert_same(take(make(), 3, start=6), batches[6:])
    assert_same(take(make(sharding=sharding), 9), batches)
    hosts = [take(make(rows=rows), 9) for rows in (slice(0, 6), slice(6, 16))]
    assert_same(joined(*hosts), batches)
    assert (take(make(seed=4), 1)[0]["features"] != batches[0]["features"]).any()
    for value in next(make(sharding=sharding).train()).values():
        assert value.sharding.is_equivalent_to(sharding, value.ndim)


@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluation_sees_every_row_once_and_pads(backend):
    whole, made = evaluated(pipeline(backend=backend)), pipeline(backend=backend)
    assert [len(batch["mask"]) for batch in whole] == [16, 16]
    assert made.examples("test") == 21
    assert made.splits == ("train", "test")
    seen = {name: np.concatenate([batch[name] for batch in whole]) for name in whole[0]}
    np.testing.assert_array_equal(seen["mask"], np.arange(32) < 21)
    for name, column in SPLITS["test"].columns.items():
        np.testing.assert_array_equal(seen[name][:21], column)
        assert not seen[name][21:].any()
    sharding = image_sets.over_eight_devices()
    assert_same(evaluated(pipeline(backend=backend, sharding=sharding)), whole)
    hosts = [
        evaluated(pipeline(backend=backend, rows=rows)) for rows in (slice(0, 4), slice(4, 16))
    ]
    assert_same(joined(*hosts), whole)


def test_workers_get_copies_of_tables():
    assert pipeline(workers=1).backend == "grain"
    stream = Indexed(SPLITS["train"], TrainOrder(50, 16, 3))
    copy = pickle.loads(pickle.dumps(stream))
    places = np.arange(4, 9)
    assert_same([copy(7, places)], [stream(7, places)])


def test_auto_keeps_small_tables_resident(monkeypatch):
    assert pipeline().backend == "resident"
    row = 4 * (5 + 2 + 1)
    monkeypatch.setattr("jaxdl.data.pipeline.RESIDENT_LIMIT", 71 * row)
    assert pipeline().backend == "resident"
    monkeypatch.setattr("jaxdl.data.pipeline.RESIDENT_LIMIT", 71 * row - 1)
    assert pipeline().backend == "grain"


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_what_the_schema_says(backend):
    columns = {"token": np.arange(1, 13, dtype=np.int32).reshape(4, 3)}
    splits = {"train": Table(columns, {"token": [7, 0, 0]})}
    first, last = evaluated(pipeline(3, splits, backend=backend), "train")
    np.testing.assert_array_equal(first["token"], columns["token"][:3])
    assert last["token"].tolist() == [[10, 11, 12], [7, 0, 0], [7, 0, 0]]
    assert last["mask"].tolist() == [1, 0, 0]


class Noisy:
    """Rows of one's own: numbers with noise in training, of which every fifth is unreadable."""

    schema = {"x": Field((), np.float32)}  # noqa: RUF012

    def __init__(self, random):
        self.random = random

    def __len__(self):
        return 20

    def read(self, index, rng):
        if index % 5 == 0:
            raise Unreadable(f"{self.name(index)} is damaged")
        return {"x": index + (0 if rng is None else rng.uniform(0, 0.5))}

    def name(self, index):
        return f"line {index}"


def test_rows_of_ones_own_may_draw():
    splits = {"train": Noisy(random=True)}
    made = pipeline(8, splits, skips=True)
    assert made.backend == "grain"
    batches = take(made, 6)
    assert_same(take(pipeline(8, splits, skips=True), 2, start=4), batches[4:])
    halves = [take(pipeline(8, splits, skips=True, rows=r), 6) for r in (slice(3), slice(3, 8))]
    assert_same(joined(*halves), batches)
    order = TrainOrder(20, 8, 3)
    for step, batch in enumerate(batches):
        stand_ins = np.where(order(step) % 5 == 0, order(step) + 1, order(step))
        noise = batch["x"] - stand_ins
        assert ((noise > 0) & (noise < 0.5)).all()
        assert len(set(noise.tolist())) == 8
    for batch in evaluated(pipeline(8, splits, skips=True), "train"):  # draws nothing
        assert (batch["x"] == batch["x"].round()).all()
    with pytest.raises(InputError, match="'resident' with random crops or workers"):
        pipeline(8, splits, backend="resident")


class OneByOne:
    """A table as rows of one's own."""

    random = False

    def __init__(self, table):
        self.schema, self.read, self.name = table.schema, table.read, table.name
        self.size = len(table)

    def __len__(self):
        return self.size


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_read_one_by_one_are_those_of_the_table(backend):
    rows = {split: OneByOne(table) for split, table in SPLITS.items()}
    made = pipeline(splits=rows, backend=backend)
    assert_same(take(made, 5), take(pipeline(), 5))
    assert_same(evaluated(made), evaluated(pipeline()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_cannot_be_read_fail_or_are_skipped(backend, capfd):
    splits = {"train": Noisy(random=False)}
    with pytest.raises(Unreadable, match=r"^line \d+ is damaged"):
        take(pipeline(8, splits, backend=backend), 3)
    made = pipeline(8, splits, backend=backend, skips=True)
    order = TrainOrder(20, 8, 3)
    for step, batch in enumerate(take(made, 5)):
        numbers = order(step)
        np.testing.assert_array_equal(batch["x"], np.where(numbers % 5, numbers, numbers + 1))
        assert (batch["mask"] == 1).all()
    assert made.skipped == 4
    lines = [f"skipped a row that cannot be read: line {i}" for i in (0, 10, 15, 5)]
    assert sorted(capfd.readouterr().err.splitlines()) == lines
    mask = np.concatenate([batch["mask"] for batch in evaluated(made, "train")])
    np.testing.assert_array_equal(mask, [i < 20 and i % 5 != 0 for i in range(24)])
    assert EvalOrder(20, 8).steps == 3


def all_kinds():
    """A pipeline of each kind of data, by its name."""
    pairs = numbers(200, ("en", "fr"))
    vocabulary = SubwordVocabulary.learn([s for s, _ in pairs.splits["train"]], "word", 99)
    tokens = np.arange(400, dtype=np.int32) % 50
    images = from_arrays(np.zeros((20, 4, 4, 3), np.uint8), np.arange(20))
    return {
        "images": Pipeline(images, Preprocess(4, 3), 8),
        "table": pipeline(8),
        "ring": Ring(8),
        "text": TextPipeline({"train": tokens}, 8, 5),
        "pairs": PairPipeline(pairs, vocabulary, vocabulary, 8, max_length=40),
        "words": WordPipeline({"train": tokens}, np.full(50, 8), 8),
    }


def test_all_kinds_of_data_keep_their_schema():
    for kind, made in all_kinds().items():
        for batch in take(made, 3):
            assert batch.keys() == made.schema.keys(), kind
            for name, (shape, dtype, _) in made.schema.items():
                assert batch[name].dtype == dtype, (kind, name)
                expected = (8, *shape)
                if kind == "pairs":  # the longest; a batch is cut to one of a few shapes
                    assert (np.array(batch[name].shape) <= expected).all(), name
                else:
                    assert batch[name].shape == expected, (kind, name)
        with pytest.raises(InputError, match=r"^split 'dev' of .*: expected train"):
            made.evaluate("dev")
        with pytest.raises(InputError, match=r"^start step -1: expected at least 0"):
            made.train(-1)


def test_wrong_tables_are_named():
    x = np.zeros((4, 2), np.float32)
    for columns, message in (
        ({"x": x, "y": x[:3]}, "columns of lengths {'x': 4, 'y': 3}; expected one, above 0"),
        ({"x": x[:0]}, "columns of lengths {'x': 0}; expected one, above 0"),
        ({}, "columns of lengths {}; expected one, above 0"),
        ({"x": x.astype(np.float64)}, "column 'x' is float64; expected bool, int8"),
        ({"x": np.array(["a"])}, "column 'x' is .*; expected bool, int8"),
        ({"x": x, "mask": x}, "a column 'mask'; expected another name for it"),
    ):
        with pytest.raises(InputError, match=f"^prices: {message}"):
            Table(columns, title="prices")
    other = {"train": Table({"x": x}), "test": Table({"x": x[:, 0]})}
    with pytest.raises(InputError, match=r"^table: rows of test hold .*, as those of train"):
        pipeline(2, other)
    with pytest.raises(InputError, match=r"^batch size 5: expected 1 to 4, the number of train"):
        pipeline(5, other)
