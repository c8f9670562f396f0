"""Sets in MNIST's own format."""

import gzip
import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from jaxdl import InputError
from jaxdl.data import Pipeline, Preprocess, hold_out, idx, labels, load

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it


def encode(array, kind=8):
    return (
        struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()
    )


def arrays(count, seed=0, classes=10):
    """Images of noise, and each class in turn."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), np.uint8)
    return images, np.arange(count, dtype=np.uint8) % classes


def write(folder, spell=lambda name: name, pack=lambda stored: stored, **sets):
    for start, (images, classes) in sets.items():
        names = (f"{start}-images-idx3-ubyte", f"{start}-labels-idx1-ubyte")
        for name, array in zip(names, (images, classes), strict=True):
            (folder / spell(name)).write_bytes(pack(encode(array)))


SPELLINGS = {
    "plain": {},
    "dotted": {"spell": lambda name: name.replace("-idx", ".idx")},
    "gzipped": {"spell": lambda name: f"{name}.gz", "pack": gzip.compress},
    "unpacked but named .gz": {"spell": lambda name: f"{name}.gz"},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_what_is_written_is_read(tmp_path, spelling):
    train, test = arrays(30), arrays(20, seed=1)
    write(tmp_path, train=train, t10k=test, **SPELLINGS[spelling])
    dataset = load(f"idx:{tmp_path}")
    assert dataset.class_names == tuple("0123456789")
    assert dataset.channels == 1
    for split, (images, classes) in {"train": train, "test": test}.items():
        source = dataset.splits[split]
        np.testing.assert_array_equal(labels(source), classes)
        found = np.stack([source[i]["image"] for i in range(len(source))])
        np.testing.assert_array_equal(found, images[..., None])
    assert dataset.splits["test"][3]["name"] == f"idx:{tmp_path} test[3]"


def test_bytes_are_as_the_format_has_them(tmp_path):
    """Two images of three rows and two columns, written by hand."""
    header = "00000803 00000002 00000003 00000002"
    pixels = "000102030405 060708090aff"
    (tmp_path / "train-images.idx3-ubyte").write_bytes(bytes.fromhex(header + pixels))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(bytes.fromhex("00000801 00000002 0100"))
    dataset = load(f"idx:{tmp_path}")
    assert list(dataset.splits) == ["train"]
    assert dataset.splits["train"][0]["image"][..., 0].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert dataset.splits["train"][1]["image"][2, 1, 0] == 255
    assert [dataset.splits["train"][i]["label"] for i in range(2)] == [1, 0]


def test_images_of_their_own_size_reach_the_device_as_they_are(tmp_path):
    images, classes = arrays(40)
    write(tmp_path, train=(images, classes))
    dataset = hold_out(load(f"idx:{tmp_path}"), 0.25, seed=0)
    pipeline = Pipeline(dataset, Preprocess(28, 1), 10)
    assert pipeline.backend == "resident"
    parts = {split: list(pipeline.evaluate(split)) for split in ("train", "validation")}
    found = [image for part in parts.values() for batch in part for image in batch["image"]]
    found = [np.asarray(image).tobytes() for image in found[:40]]
    assert sorted(found) == sorted(image.tobytes() for image in images)
    Preprocess(28, 1)(images[0, ..., None])[:] = 0
    assert images[0].any()  # what was written into is a copy
    for cut in (Preprocess(28, 1, 0.875), Preprocess(28, 1, random_crop=True)):
        assert (cut(images[0], np.random.default_rng(0))[..., 0] != images[0]).any()


def test_fashion_is_known_by_its_labels(tmp_path, monkeypatch):
    images, classes = arrays(20)
    write(tmp_path, train=(images, classes))
    digest = hashlib.sha256(classes.tobytes()).hexdigest()
    monkeypatch.setattr(idx, "FASHION_DIGEST", digest)
    assert load(f"idx:{tmp_path}").class_names[8:] == ("Bag", "Ankle boot")
    write(tmp_path, train=(images, classes[::-1]))
    assert load(f"idx:{tmp_path}").class_names == tuple("0123456789")


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_the_real_fashion_mnist():
    dataset = load(f"idx:{FASHION_MNIST}")
    assert dataset.class_names[6] == "Shirt"
    for split, count in {"train": 60_000, "test": 10_000}.items():
        np.testing.assert_array_equal(np.bincount(labels(dataset.splits[split])), count // 10)
    train = dataset.splits["train"]
    assert dataset.class_names[train[0]["label"]] == "Ankle boot"
    pixels = np.stack([train[i]["image"] for i in range(60_000)])
    assert pixels.mean() / 255 == pytest.approx(0.2860, abs=1e-4)  # what its users normalize by


IMAGES, LABELS = encode(arrays(20)[0]), encode(arrays(20)[1])
FLOATS = encode(arrays(20)[0].astype(">f4"), kind=13)
# name: (the file, what it holds, None for no such file; what the error says of it)
MISTAKES = {
    "no images": (
        "train-images-idx3-ubyte",
        None,
        "has no train-images-idx3-ubyte; expected train-images-idx3-ubyte and "
        "train-labels-idx1-ubyte, gzipped (.gz) or not, with a dash or a dot before idx",
    ),
    "no labels": ("train-labels-idx1-ubyte", None, "has no train-labels-idx1-ubyte; expected"),
    "half a test split": ("t10k-labels-idx1-ubyte", None, "has no t10k-labels-idx1-ubyte"),
    "cut": (
        "train-images-idx3-ubyte",
        IMAGES[:-1],
        "train-images-idx3-ubyte holds 15679 values, and its header says [20, 28, 28]: "
        "expected as many as that, and at least one",
    ),
    "too long": ("train-labels-idx1-ubyte", LABELS + b"\0", "holds 21 values, and its header says"),
    "cut in the header": (
        "t10k-images-idx3-ubyte",
        IMAGES[:9],
        "t10k-images-idx3-ubyte ends within its header: expected 16 bytes of it",
    ),
    "no bytes": ("train-images-idx3-ubyte", b"", "begins with the bytes of an empty file"),
    "gzipped and cut": (
        "train-images-idx3-ubyte",
        gzip.compress(IMAGES)[:-99],
        "train-images-idx3-ubyte cannot be read (",
    ),
    "gzipped and damaged": (
        "train-labels-idx1-ubyte",
        gzip.compress(LABELS)[:10] + b"\xff" * 99,
        "train-labels-idx1-ubyte cannot be read (",
    ),
    "labels for images": (
        "train-images-idx3-ubyte",
        LABELS,
        "train-images-idx3-ubyte begins with the bytes 00 00 08 01: expected 00 00 08 03, which "
        "say uint8 [N, H, W] in the idx format",
    ),
    "images of floats": ("t10k-images-idx3-ubyte", FLOATS, "begins with the bytes 00 00 0d 03"),
    "a text": ("train-labels-idx1-ubyte", b"<html>", "bytes 3c 68 74 6d: expected 00 00 08 01"),
    "images of no pixels": (
        "train-images-idx3-ubyte",
        encode(np.zeros((20, 0, 28), np.uint8)),
        "header says [20, 0, 28]: expected as many as that, and at least one",
    ),
    "unequal counts": (
        "train-labels-idx1-ubyte",
        encode(arrays(19)[1]),
        "the train labels are uint8 [19]; expected integers [20]",
    ),
    "a label out of range": (
        "t10k-labels-idx1-ubyte",
        encode(arrays(20, classes=20)[1]),
        "the test labels span 0..19; expected 0..9",
    ),
}


@pytest.fixture
def mistaken(tmp_path):
    def make(name):
        write(tmp_path, train=arrays(20), t10k=arrays(20))
        file, holds, message = MISTAKES[name]
        (tmp_path / file).unlink()
        if holds is not None:
            (tmp_path / file).write_bytes(holds)
        return tmp_path, message

    return make


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_name_the_file_and_what_is_accepted(mistaken, name):
    folder, message = mistaken(name)
    with pytest.raises(InputError) as error:
        load(f"idx:{folder}")
    assert message in str(error.value)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_there_and_one_without_its_prefix(tmp_path):
    with pytest.raises(InputError, match="no/such has no train-images-idx3-ubyte; expected train-"):
        load("idx:no/such")
    write(tmp_path, **SPELLINGS["gzipped"], train=arrays(20))
    with pytest.raises(InputError, match=f"did you mean idx:{tmp_path}[?]$"):
        load(str(tmp_path))


def test_an_experiment_learns_from_them_and_tells_a_mistake(experiment, mistaken):
    # Softmax regression has 784 weights a class, more than there are images to tell apart.
    write(experiment.folder, train=arrays(100), t10k=arrays(20, seed=1))
    flags = (f"--dataset=idx:{experiment.folder}", "--image_size=28", "--depth=0", "--augment=")
    flags = (*flags, "--batch_size=20", "--epochs=20", "--validation=0.2", "--warmup_epochs=0")
    experiment("mlp", *flags, "--workdir=run", "--nohistograms")
    summary = json.loads((experiment.folder / "run/summary.json").read_text())
    assert summary["train/accuracy"] > 0.9
    assert 0 <= summary["test/accuracy"] <= 1
    mistaken("cut")
    done = experiment("mlp", *flags, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "train-images-idx3-ubyte holds 15679 values" in done.stderr
