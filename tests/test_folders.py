"""Sets of images in folders."""

import io

import image_sets
import numpy as np
import pytest
from image_sets import names_and_labels, numbered
from PIL import Image

from experiments.harness import classification, cli, image_data
from jaxdl import InputError
from jaxdl.data import (
    CorruptImage,
    Pipeline,
    Preprocess,
    fingerprint,
    fold,
    hold_out,
    labels,
    load,
)


@pytest.fixture
def folder(tmp_path):
    return image_sets.write_folder(tmp_path)


@pytest.fixture
def loose(folder):
    return image_sets.without_classes(folder)


def test_folder(folder):
    dataset = load(f"folder:{folder}")
    assert dataset.class_names == ("cat", "dog")
    assert dataset.channels == 3
    train = dataset.splits["train"]
    names = [train[i]["name"].removeprefix(f"{folder}/train/") for i in range(len(train))]
    assert names == ["cat/a.jpg", "cat/b.png", "cat/c.PNG", "dog/d.bmp", "dog/e.webp", "dog/f.jpeg"]
    assert [train[i]["label"] for i in range(len(train))] == [0, 0, 0, 1, 1, 1]
    assert train[1]["image"] == (folder / "train/cat/b.png").read_bytes()
    assert len(dataset.splits["validation"]) == 2
    assert "test" not in dataset.splits


def test_unusable_folders_are_named(folder):
    with pytest.raises(
        InputError, match=f"folder {folder}/none has no images and no directory 'train'; expected"
    ):
        load(f"folder:{folder}/none")
    (folder / "tests/val/cat").mkdir(parents=True)
    with pytest.raises(InputError, match=f"{folder}/tests has 'val' but no directory 'train'"):
        load(f"folder:{folder}/tests")
    (folder / "test").mkdir()
    with pytest.raises(InputError, match=f"{folder}/test holds no classes and no images; expected"):
        load(f"folder:{folder}")
    (folder / "test/cow").mkdir()
    with pytest.raises(InputError, match=r"test/cow is not one of the classes .*expected cat, dog"):
        load(f"folder:{folder}")
    (folder / "test/cow").rename(folder / "test/cat")
    with pytest.raises(InputError, match=r"test/cat holds no images; expected files ending in \.j"):
        load(f"folder:{folder}")
    (folder / "test").rename(folder / "validation")
    (folder / "val/cat/x.png").rename(folder / "validation/cat/x.png")
    with pytest.raises(InputError, match="both 'validation' and 'val'"):
        load(f"folder:{folder}")


def test_a_folder_without_classes(loose):
    dataset = load(f"folder:{loose}")
    assert dataset.class_names == ()
    assert names_and_labels(dataset, "train") == {
        f"{loose}/train/{name}": 0
        for name in ("a.jpg", "b.png", "c.PNG", "d.bmp", "e.webp", "f.jpeg")
    }
    assert names_and_labels(dataset, "validation").keys() == {
        f"{loose}/val/{name}" for name in ("x.png", "y.png")
    }
    assert dataset.splits["train"][1]["image"] == (loose / "train/b.png").read_bytes()
    for batch in Pipeline(dataset, Preprocess(8, 3), 3).evaluate("train"):
        assert batch["mask"].all()
        assert not batch["label"].any()
    # A share and a fold of train are drawn without regard to classes.
    assert len(hold_out(load(f"folder:{loose}/train"), 0.5, 0).splits["validation"]) == 3
    assert len(fold(load(f"folder:{loose}/train"), 3, 0, 0).splits["validation"]) == 2


def test_images_in_the_folder_itself_are_the_train_split(loose):
    dataset = load(f"folder:{loose}/train")
    assert list(dataset.splits) == ["train"]
    assert dataset.class_names == ()
    assert names_and_labels(dataset, "train") == names_and_labels(load(f"folder:{loose}"), "train")
    # Beside splits they are no split.
    (loose / "stray.png").write_bytes((loose / "train/b.png").read_bytes())
    assert len(load(f"folder:{loose}").splits["train"]) == 6


def test_folders_half_with_classes_are_named(folder):
    stray = folder / "train/stray.png"
    stray.write_bytes((folder / "train/cat/b.png").read_bytes())
    with pytest.raises(
        InputError, match=f"^{folder}/train holds images and directories, such as 'stray.png' and"
    ):
        load(f"folder:{folder}")
    with pytest.raises(InputError, match="train holds images and directories"):
        load(f"folder:{folder}/train")  # not a set of the stray image alone
    (folder / "test").mkdir()
    stray.rename(folder / "test/stray.png")
    with pytest.raises(
        InputError, match=f"^{folder}/test has no classes, unlike train; expected {folder}/test/CL"
    ):
        load(f"folder:{folder}")
    (folder / "train").rename(folder / "old")
    (folder / "test").rename(folder / "train")
    with pytest.raises(
        InputError, match=rf"^{folder}/val has classes, unlike train; expected {folder}/val/\*\.jpg"
    ):
        load(f"folder:{folder}")
    # The name of a directory makes it no image.
    (folder / "old/cat").rename(folder / "old/cat.png")
    assert load(f"folder:{folder}/old").class_names == ("cat.png", "dog")
    (folder / "train/stray.png").unlink()
    for name in ("cat.png", "dog"):
        (folder / "old" / name).rename(folder / "train" / name)
    with pytest.raises(InputError, match=r"val/cat is not one of .*expected cat\.png, dog"):
        load(f"folder:{folder}")


def test_class_folders_without_a_split_are_the_train_split(folder):
    dataset = load(f"folder:{folder}/train")
    assert list(dataset.splits) == ["train"]
    assert dataset.class_names == ("cat", "dog")
    assert names_and_labels(dataset, "train") == names_and_labels(load(f"folder:{folder}"), "train")
    flags = [f"--dataset=folder:{folder}/train", "--test=0.34", "--validation=0.5"]
    parts = image_data.load(cli.parse(classification.Config, flags)[0])
    assert {split: sorted(labels(source)) for split, source in parts.splits.items()} == {
        "train": [0, 1],
        "test": [0, 1],
        "validation": [0, 1],
    }
    with pytest.raises(InputError, match="arrays has a test split of its own"):
        hold_out(numbered(4, test=(np.zeros((1, 24, 24, 3), np.uint8), [0])), 0.5, 0, "test")
    for flag in ("--test=1", "--test=-0.1"):
        with pytest.raises(InputError, match=r"--test=.* at least 0 and less than 1"):
            cli.parse(image_data.ImageDataFlags, [flag])


def test_the_first_of_several_pictures_is_read(folder):
    first, second = (Image.new("L", (30, 20), level) for level in (40, 200))
    for name in ("g.gif", "h.tif", "i.TIFF"):
        format = "GIF" if name == "g.gif" else "TIFF"
        path = folder / "train/cat" / name
        first.save(path, format, save_all=True, append_images=[second])
    train = load(f"folder:{folder}").splits["train"]
    found = {train[i]["name"][-5:]: Preprocess(4, 1)(train[i]["image"]) for i in range(len(train))}
    for name in ("g.gif", "h.tif", ".TIFF"):
        assert set(found[name].ravel().tolist()) == {40}
    buffer = io.BytesIO()
    Image.new("F", (4, 4), 0.5).save(buffer, "TIFF")
    with pytest.raises(CorruptImage, match=r"x\.tif cannot be decoded \(its pixels are floating"):
        Preprocess(4, 1)(buffer.getvalue(), name="x.tif")


def test_what_is_no_image_is_counted_once(folder, capfd):
    (folder / "train/dog/more").mkdir()
    (folder / "val/labels.csv").write_text("")
    load(f"folder:{folder}")
    load(f"folder:{folder}")
    (line,) = capfd.readouterr().err.splitlines()
    assert line == (
        f"folder:{folder}: left out for not being named like images: 3, such as "
        f"{folder}/train/cat/notes.txt; "
        "expected .jpg, .jpeg, .png, .bmp, .gif, .tif, .tiff, .webp"
    )


def test_a_gray_folder_is_gray(tmp_path, capfd, monkeypatch):
    for number in range(5):
        Image.new("L", (4, 4), 50 * number).save(tmp_path / f"{number}.png")
    (tmp_path / "9.png").write_bytes(b"damaged")
    assert load(f"folder:{tmp_path}").channels == 1
    assert capfd.readouterr().err == ""
    monkeypatch.setattr("jaxdl.data.folders.HEADERS", 3)  # the first, the last and one between
    assert load(f"folder:{tmp_path}").channels == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line == (
        f"{tmp_path}: the 6 images are taken to be gray, as are all 2 that were looked at"
    )
    Image.new("RGB", (4, 4)).save(tmp_path / "2.png")
    assert load(f"folder:{tmp_path}").channels == 3
    for path in tmp_path.iterdir():
        path.write_bytes(b"damaged")
    assert load(f"folder:{tmp_path}").channels == 3
    assert capfd.readouterr().err == ""


def test_names_in_any_script(tmp_path):
    classes = ("a, b", "chat noir", "кот", "猫")
    for name in classes:
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(tmp_path / "train" / name / f"{name} é.PNG")
    dataset = load(f"folder:{tmp_path}")
    assert dataset.class_names == classes
    batches = Pipeline(dataset, Preprocess(8, 3), 4, backend="grain").evaluate("train")
    assert [batch["label"].tolist() for batch in batches] == [[0, 1, 2, 3]]
    assert dataset.splits["train"][3]["name"] == f"{tmp_path}/train/猫/猫 é.PNG"
    assert len(fingerprint(dataset.splits["train"])) == 64
