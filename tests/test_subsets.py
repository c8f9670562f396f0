"""Parts of sets of images: what is held out, folds, classes, so many of each; and fingerprints."""

import os

import image_sets
import numpy as np
import pytest
from image_sets import Stored, Witness, encode, names_and_labels, numbered, take
from PIL import Image
from sklearn.datasets import load_digits

from jaxdl import InputError
from jaxdl.data import (
    Dataset,
    Pipeline,
    Preprocess,
    fingerprint,
    fold,
    from_arrays,
    hold_out,
    labels,
    load,
    require_classes,
    select_classes,
    subsample,
)

DIGITS = Preprocess(size=8, channels=1)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return image_sets.digits(tmp_path_factory)


@pytest.fixture
def folder(tmp_path):
    return image_sets.write_folder(tmp_path)


@pytest.fixture
def marked():
    """The labels of the digits, on images that take no time to read."""
    labels = load_digits(return_X_y=True)[1]
    images = np.zeros((1797, 1, 1, 1), np.uint8)
    return from_arrays(images[:1437], labels[:1437], test=(images[1437:], labels[1437:]))


def test_what_needs_classes_says_so(folder):
    dataset = load(f"folder:{image_sets.without_classes(folder)}")
    for use in (
        require_classes,
        lambda dataset: select_classes(dataset, ("cat", "dog")),
        lambda dataset: subsample(dataset, 2, seed=0),
    ):
        with pytest.raises(InputError, match=f"^folder:{folder} has no classes; expected a set"):
            use(dataset)
    require_classes(numbered(5))


def test_a_fingerprint_reads_no_file(folder, digits, monkeypatch):
    def of(path, split="train", **kwargs):
        return fingerprint(load(f"folder:{path}").splits[split])

    before = of(folder)
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.read_bytes", None)
        assert of(folder) == before != of(folder, "validation")
    moved = folder.rename(folder.with_name("moved"))
    assert of(moved) == before
    path = moved / "train/cat/a.jpg"
    os.utime(path, (1, 1))
    seen = {before, of(moved)}
    path.write_bytes(path.read_bytes()[:-1])
    os.utime(path, (1, 1))
    seen.add(of(moved))
    path.rename(moved / "train/cat/aa.jpg")
    seen.add(of(moved))
    (moved / "train/cat/aa.jpg").rename(moved / "train/dog/aa.jpg")
    seen.add(of(moved))
    for part in (
        subsample(digits, 3, 0),
        subsample(digits, 3, 1),
        select_classes(digits, "37"),
        select_classes(digits, "73"),
    ):
        seen.add(fingerprint(part.splits["train"]))
    for name in digits.splits:
        seen.add(fingerprint(digits.splits[name]))
    seen.add(fingerprint(Witness()))
    images = numbered(3).splits["train"]
    seen.add(fingerprint(images))
    images.images[1, 2, 3, 0] ^= 1
    seen.add(fingerprint(images))
    assert len(seen) == 14
    with monkeypatch.context() as patch:
        records = digits.splits["train"].records
        patch.setattr(type(records), "__getitem__", None)
        assert fingerprint(digits.splits["train"]) in seen


def test_arrays_are_checked():
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.arange(4)
    dataset = from_arrays(images, labels, test=(images[:2], labels[:2]), name="mine")
    assert dataset.class_names == ("0", "1", "2", "3")
    assert (len(dataset.splits["train"]), len(dataset.splits["test"])) == (4, 2)
    with pytest.raises(InputError, match=r"train images are float32 \[4, 8, 8, 3\]; expected uin"):
        from_arrays(images.astype(np.float32), labels)
    with pytest.raises(InputError, match="test images have 1 channels; expected 3 as in train"):
        from_arrays(images, labels, test=(images[..., :1], labels))
    with pytest.raises(InputError, match=r"train labels are int64 \[3\]; expected integers \[4\]"):
        from_arrays(images, labels[:3])
    with pytest.raises(InputError, match=r"train labels span 0\.\.3; expected 0\.\.1"):
        from_arrays(images, labels, class_names=["a", "b"])


def test_hold_out_is_a_disjoint_share_of_train(marked):
    def names(dataset, split):
        source = dataset.splits[split]
        return {source[i]["name"] for i in range(len(source))}

    parts = hold_out(marked, 0.1, seed=0)
    assert {name: len(split) for name, split in parts.splits.items()} == {
        "train": 1293,
        "validation": 144,
        "test": 360,
    }
    assert not names(parts, "train") & names(parts, "validation")
    assert names(parts, "train") | names(parts, "validation") == names(marked, "train")
    assert names(parts, "validation") == names(hold_out(marked, 0.1, seed=0), "validation")
    assert names(parts, "validation") != names(hold_out(marked, 0.1, seed=1), "validation")
    with pytest.raises(InputError, match="has a validation split of its own"):
        hold_out(parts, 0.1, seed=0)
    for share in (-0.1, 0.0, 0.0001, 1.0, 1.5):
        with pytest.raises(InputError, match=f"validation share {share} of 1437"):
            hold_out(marked, share, seed=0)


def counts_of(dataset, split):
    return np.bincount(labels(dataset.splits[split]), minlength=len(dataset.class_names))


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.25, 0.5, 0.9])
def test_hold_out_keeps_the_shares_of_classes(share, split):
    counts = np.array([400, 130, 37, 9, 4, 3, 2, 1, 1, 1])
    images = np.zeros((counts.sum(), 1, 1, 1), np.uint8)
    which = np.random.default_rng(0).permutation(np.repeat(np.arange(10), counts))
    parts = hold_out(from_arrays(images, which), share, 3, split)
    taken = counts_of(parts, split)
    np.testing.assert_array_equal(taken + counts_of(parts, "train"), counts)
    assert (taken >= np.minimum(np.floor(share * counts), counts - 1)).all()
    assert (taken <= np.ceil(share * counts)).all()
    assert counts_of(parts, "train").min() >= 1
    if share <= 0.5:
        assert taken.sum() == round(share * counts.sum())
    # The rest is drawn at random: another seed takes others of the same classes.
    other = hold_out(from_arrays(images, which), share, 4, split)
    np.testing.assert_array_equal(counts_of(other, split), taken)
    assert names_and_labels(other, split) != names_and_labels(parts, split)


def test_folds_keep_the_shares_of_classes():
    counts = np.array([50, 33, 11, 4, 1])
    dataset = from_arrays(np.zeros((99, 1, 1, 1), np.uint8), np.repeat(np.arange(5), counts))
    found = [counts_of(fold(dataset, 4, number, seed=1), "validation") for number in range(4)]
    np.testing.assert_array_equal(np.sum(found, axis=0), counts)
    assert np.ptp(found, axis=0).max() <= 1
    assert np.ptp(np.sum(found, axis=1)) <= 1


def test_a_share_of_images_without_classes_is_drawn_of_all(tmp_path):
    for number in range(10):
        Image.new("L", (4, 4)).save(tmp_path / f"{number}.png")
    parts = hold_out(load(f"folder:{tmp_path}"), 0.3, 5)
    names = [parts.splits["validation"][i]["name"] for i in range(3)]
    expected = np.sort(np.random.default_rng(5).permutation(10)[:3])
    assert names == [f"{tmp_path}/{number}.png" for number in expected]


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_label_of_no_class_is_named(wrong):
    source = Stored([encode(np.zeros((4, 4), np.uint8))] * 5, [0, 2, wrong, 1, 0])
    dataset = Dataset("mine", {"train": source, "test": source}, ("a", "b", "c"), 1)
    line = rf"the {{}} split of mine, stored\[2\], has the label {wrong}; expected 0 to 2"
    for use in (
        lambda: hold_out(dataset, 0.5, 0),
        lambda: fold(dataset, 2, 0, 0),
        lambda: subsample(dataset, 1, 0),
        lambda: select_classes(dataset, ("a", "b")),
        lambda: take(Pipeline(dataset, Preprocess(4, 1), 5), 1),
        lambda: take(Pipeline(dataset, Preprocess(4, 1), 5, backend="grain"), 1),
    ):
        with pytest.raises(InputError, match="^example 2 of " + line.format("train")) as error:
            use()
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="^example 2 of " + line.format("test")):
        list(Pipeline(dataset, Preprocess(4, 1), 5).evaluate("test"))


def test_labels_are_those_of_the_examples(digits, folder):
    sets = [digits, load(f"folder:{folder}"), numbered(5), subsample(digits, 3, seed=0)]
    sets += [select_classes(digits, "73"), subsample(select_classes(digits, "739"), 4, seed=0)]
    sets += [Dataset("w", {"train": Witness()}, ("0",), 3)]  # holds no labels
    for dataset in sets:
        for source in dataset.splits.values():
            expected = [source[i]["label"] for i in range(len(source))]
            np.testing.assert_array_equal(labels(source), expected)
    (folder / "train/cat/a.jpg").write_bytes(b"")  # they take no decoding
    assert labels(load(f"folder:{folder}").splits["train"]).tolist() == [0, 0, 0, 1, 1, 1]


def test_select_classes_keeps_some_classes_in_the_order_given(digits):
    chosen = select_classes(digits, ("7", "3"))
    assert chosen.class_names == ("7", "3")
    for split, source in digits.splits.items():
        expected = {
            name: "73".index(str(label))
            for name, label in names_and_labels(digits, split).items()
            if label in (3, 7)
        }
        assert names_and_labels(chosen, split) == expected
        image = chosen.splits[split][0]
        (same,) = [source[i] for i in range(len(source)) if source[i]["name"] == image["name"]]
        assert image["image"] == same["image"]
    (batch, *_) = Pipeline(select_classes(chosen, ("3", "7")), DIGITS, 8).evaluate("test")
    assert set(np.asarray(batch["label"]).tolist()) == {0, 1}
    with pytest.raises(InputError, match="digits has no class 'cat'; it has 0, 1, 2"):
        select_classes(digits, ("7", "cat"))
    with pytest.raises(InputError, match="classes 7, 7 of digits: expected at least two, each"):
        select_classes(digits, ("7", "7"))
    with pytest.raises(InputError, match="classes 7 of digits: expected at least two"):
        select_classes(digits, ("7",))
    few_tested = numbered(4, test=(np.zeros((1, 24, 24, 3), np.uint8), np.array([0])))
    with pytest.raises(InputError, match="the test split of arrays has no example of 1, 2"):
        select_classes(few_tested, ("1", "2"))


def test_subsample_keeps_so_many_of_each_class(marked):
    ten = subsample(marked, 10, seed=0)
    assert np.bincount(labels(ten.splits["train"])).tolist() == [10] * 10
    assert ten.splits["test"] is marked.splits["test"]
    chosen, everything = names_and_labels(ten, "train"), names_and_labels(marked, "train")
    assert chosen.items() <= everything.items()
    assert names_and_labels(subsample(marked, 10, seed=0), "train") == chosen
    assert names_and_labels(subsample(marked, 4, seed=0), "train").items() < chosen.items()
    other = names_and_labels(subsample(marked, 10, seed=1), "train")
    assert len(other.keys() & chosen.keys()) < 20
    for wanted in (0, 143):
        with pytest.raises(InputError, match=f"^{wanted} train examples .*: expected 1 to 1"):
            subsample(marked, wanted, seed=0)


def test_folds_validate_every_example_once(marked):
    everything, seen = names_and_labels(marked, "train"), []
    for number in range(5):
        part = fold(marked, 5, number, seed=3)
        validation = names_and_labels(part, "validation")
        train = names_and_labels(part, "train")
        assert len(validation) in (287, 288)
        assert not validation.keys() & train.keys()
        assert validation | train == everything
        assert names_and_labels(fold(marked, 5, number, seed=3), "validation") == validation
        assert part.splits["test"] is marked.splits["test"]
        seen += validation
    assert sorted(seen) == sorted(everything)
    other = names_and_labels(fold(marked, 5, 0, seed=4), "validation")
    assert other != names_and_labels(fold(marked, 5, 0, seed=3), "validation")
    with pytest.raises(InputError, match="has a validation split of its own"):
        fold(part, 5, 0, seed=0)
    for folds in (1, 1438):
        with pytest.raises(InputError, match=f"^{folds} folds of 1437 .*: expected 2 to 1437"):
            fold(marked, folds, 0, seed=0)
    for number in (-1, 5):
        with pytest.raises(InputError, match=f"^fold {number} of 5: expected 0 to 4"):
            fold(marked, 5, number, seed=0)
