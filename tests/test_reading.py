"""Images read ahead of time: damaged ones, and worker processes."""

import multiprocessing
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import image_sets
import numpy as np
import pytest
from image_sets import Stored, Witness, assert_same, encode, take, to_numpy

from jaxdl import InputError
from jaxdl.data import CorruptImage, Dataset, Pipeline, Preprocess, load
from jaxdl.data.order import EvalOrder, TrainOrder


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return image_sets.digits(tmp_path_factory)


@pytest.fixture
def folder(tmp_path):
    return image_sets.write_folder(tmp_path)


@pytest.fixture(scope="module")
def over_eight_devices():
    return image_sets.over_eight_devices()


@pytest.mark.parametrize("options", [{}, {"backend": "grain"}], ids=str)
def test_a_damaged_image_fails_or_is_skipped(folder, capfd, options):
    for damaged in (folder / "train/dog/f.jpeg", folder / "val/cat/x.png"):
        damaged.write_bytes(damaged.read_bytes()[:100])
    dataset, preprocess = load(f"folder:{folder}"), Preprocess(16, 3)
    capfd.readouterr()

    pipeline = Pipeline(dataset, preprocess, 3, **options)
    with pytest.raises(
        CorruptImage, match=f"^{folder}/train/dog/f.jpeg .*expected a whole"
    ) as line:
        take(pipeline, 4)
    assert "\n" not in str(line.value)
    with pytest.raises(CorruptImage, match=f"^{folder}/val/cat/x.png "):
        list(pipeline.evaluate("validation"))
    assert capfd.readouterr() == ("", "")

    pipeline = Pipeline(dataset, preprocess, 3, on_corrupt="skip", **options)
    # The next image that can be read stands in, the first after the last; batch norms see no other.
    whole = [preprocess(dataset.splits["train"][i]["image"]) for i in range(5)]
    order = TrainOrder(6, 3, 0)
    for step, batch in enumerate(take(pipeline, 4)):  # two epochs
        expected = [whole[i % 5] for i in order(step)]
        np.testing.assert_array_equal(batch["image"], expected)
        assert batch["label"].tolist() == [0 if i % 5 < 3 else 1 for i in order(step)]
        assert batch["mask"].tolist() == [1, 1, 1]
    (batch,) = map(to_numpy, pipeline.evaluate("validation"))
    assert batch["mask"].tolist() == [0, 1, 0]
    assert batch["label"].tolist() == [0, 1, 0]
    assert batch["image"].any(axis=(1, 2, 3)).tolist() == [False, True, False]
    assert pipeline.skipped == 2
    assert capfd.readouterr().err.splitlines() == [
        f"skipped an image that cannot be decoded: {folder}/{name}"
        for name in ("train/dog/f.jpeg", "val/cat/x.png")
    ]


@pytest.mark.parametrize("backend", ["grain", "resident"])
def test_what_stands_in_is_the_same_everywhere(backend, over_eight_devices):
    whole = [encode(np.full((4, 4), 10 * i, np.uint8)) for i in range(20)]
    damaged = [b"damaged" if i in (0, 6, 7, 8, 18, 19) else image for i, image in enumerate(whole)]
    source = Stored(damaged, [i % 3 for i in range(20)])
    dataset = Dataset("mine", {"train": source}, ("a", "b", "c"), 1)

    def pipeline(**options):
        options = {"backend": backend, "on_corrupt": "skip"} | options
        return Pipeline(dataset, Preprocess(4, 1), 8, **options)

    stands_in = {0: 1, 6: 9, 7: 9, 8: 9, 18: 1, 19: 1}
    order = TrainOrder(20, 8, 0)
    expected = []
    for step in range(5):
        numbers = np.array([stands_in.get(int(i), int(i)) for i in order(step)])
        image = np.broadcast_to(10 * numbers[:, None, None, None], (8, 4, 4, 1)).astype(np.uint8)
        rows = {"image": image, "label": (numbers % 3).astype(np.int32)}
        expected.append(rows | {"mask": np.ones(8, np.float32)})
    one = pipeline()
    assert_same(take(one, 5), expected)
    assert one.skipped == 6
    assert_same(take(pipeline(), 2, start=3), expected[3:])
    assert_same(take(pipeline(sharding=over_eight_devices), 5), expected)
    halves = [take(pipeline(rows=rows), 5) for rows in (slice(0, 4), slice(4, 8))]
    joined = [
        {key: np.concatenate([first[key], second[key]]) for key in first}
        for first, second in zip(*halves, strict=True)
    ]
    assert_same(joined, expected)
    # In evaluation, each example counts once or not at all; also after training in one process.
    assert sum(np.asarray(batch["mask"]).sum() for batch in one.evaluate("train")) == 14
    assert EvalOrder(20, 8).steps == 3


@pytest.mark.parametrize("options", [{"backend": "grain"}, {"backend": "resident"}], ids=str)
def test_a_split_in_which_nothing_can_be_read_ends_in_one_line(options):
    readable, source = (
        Stored([encode(np.zeros((4, 4), np.uint8))], [0]),
        Stored([b"x"] * 5, [0] * 5),
    )
    for train, test in ((source, readable), (readable, source)):
        dataset = Dataset("mine", {"train": train, "test": test}, ("a",), 1)
        pipeline = Pipeline(dataset, Preprocess(4, 1), 1, on_corrupt="skip", **options)
        for split, use in {
            "train": lambda pipeline=pipeline: take(pipeline, 1),
            "test": lambda pipeline=pipeline: list(pipeline.evaluate("test")),
        }.items():
            if dataset.splits[split] is readable:
                assert use()[0]["mask"].tolist() == [1]
                continue
            with pytest.raises(
                InputError, match=f"^mine: no image of {split} could be read"
            ) as error:
                use()
            assert "\n" not in str(error.value)
    # A host may hold padding alone, and is none the wiser.
    train = Stored(readable.images * 4, [0] * 4)
    dataset = Dataset("mine", {"train": train, "test": readable}, ("a",), 1)
    host: Any = options | {"rows": slice(2, 4), "on_corrupt": "skip"}
    (batch,) = Pipeline(dataset, Preprocess(4, 1), 4, **host).evaluate("test")
    assert np.asarray(batch["mask"]).tolist() == [0, 0]


@pytest.mark.slow  # starts processes
def test_workers_give_the_batches_of_threads(digits):
    # Records are read anew in each process, and crops drawn there.
    cut = Preprocess(size=8, channels=1, random_crop=True)
    batches = take(Pipeline(digits, cut, 200, seed=3), 6, start=4)  # over the seam of two epochs
    assert_same(take(Pipeline(digits, cut, 200, seed=3, workers=2), 6, start=4), batches)
    assert not multiprocessing.active_children()


@pytest.mark.slow  # starts processes
def test_workers_tell_of_damaged_images(folder, capfd):
    path = folder / "train/dog/f.jpeg"
    damaged = path.rename(path.with_name("猫 é.jpeg"))  # comes after the others
    damaged.write_bytes(damaged.read_bytes()[:100])
    dataset, preprocess = load(f"folder:{folder}"), Preprocess(16, 3)
    capfd.readouterr()
    pipeline = Pipeline(dataset, preprocess, 3, workers=1)
    with pytest.raises(CorruptImage, match=f"^{damaged} .*expected a whole") as line:
        take(pipeline, 4)
    assert "\n" not in str(line.value)
    assert not multiprocessing.active_children()
    assert capfd.readouterr() == ("", "")
    skipping, threads = (
        Pipeline(dataset, preprocess, 3, on_corrupt="skip", **options)
        for options in ({"workers": 1}, {"backend": "grain"})
    )
    assert_same(take(skipping, 4), take(threads, 4))
    assert skipping.skipped == 1
    line = f"skipped an image that cannot be decoded: {damaged}"
    assert capfd.readouterr().err.splitlines() == [line, line]  # one from each pipeline
    assert not multiprocessing.active_children()


@pytest.mark.slow  # starts processes
def test_workers_leave_jax_alone_and_end_with_their_iterator():
    pipeline = Pipeline(
        Dataset("w", {"train": Witness()}, tuple("01234567"), 3), Preprocess(4, 3), 4, workers=2
    )
    batches = pipeline.train()
    assert not multiprocessing.active_children()  # an iterator costs nothing until it is used
    for _ in range(3):
        assert next(batches)["label"].tolist() == [1, 1, 1, 1]
    assert len(multiprocessing.active_children()) == 2
    # What comes from them is copied in a thread, beside the step.
    copying = lambda: [t for t in threading.enumerate() if "buffer_size=1" in t.name]
    assert len(copying()) == 1
    batches.close()
    assert not multiprocessing.active_children()
    assert not copying()


@pytest.mark.slow  # starts processes
def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        textwrap.dedent("""
        import multiprocessing, time
        import numpy as np
        from jaxdl.data import Pipeline, Preprocess, from_arrays

        if __name__ == "__main__":
            dataset = from_arrays(np.zeros((9, 4, 4, 3), np.uint8), np.zeros(9, int))
            batches = Pipeline(dataset, Preprocess(4, 3), 3, workers=2).train()
            next(batches)
            print(*[child.pid for child in multiprocessing.active_children()], flush=True)
            time.sleep(60)
        """)
    )
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "worker processes outlived their parent"
        time.sleep(0.05)
