import contextlib
import dataclasses
import io
import itertools
import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image, JpegImagePlugin
from sklearn.datasets import load_digits

import jaxdl.data.digits
from experiments import benchmark
from experiments.harness import cli, image_data
from jaxdl import InputError
from jaxdl.data import (
    CorruptImage,
    Dataset,
    Example,
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
from jaxdl.data.pipeline import EvalOrder, TrainOrder, local_rows, make_global

DIGITS = Preprocess(size=8, channels=1)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def digits(data_dir):
    return load("digits", str(data_dir))


@pytest.fixture(scope="module")
def over_eight_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("data"))


def take(pipeline, count, start=0):
    with contextlib.closing(pipeline.train(start)) as batches:
        return [to_numpy(batch) for batch in itertools.islice(batches, count)]


def to_numpy(batch):
    return {key: np.asarray(value) for key, value in batch.items()}


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        for key, dtype in {"image": np.uint8, "label": np.int32, "mask": np.float32}.items():
            assert batch[key].dtype == other[key].dtype == dtype
            np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


def encode(array, format="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format)
    return buffer.getvalue()


def numbered(count, size=24, channels=3, **splits):
    """Images of noise whose label is their number, so that a label tells which one it is."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, channels), np.uint8)
    return from_arrays(images, np.arange(count), **splits)


# Sources: digits.


def test_digits_are_sklearns_in_order(digits):
    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8)
    assert {name: len(split) for name, split in digits.splits.items()} == {
        "train": 1437,
        "test": 360,
    }
    assert digits.class_names == tuple("0123456789")
    assert digits.channels == 1
    examples = [split[i] for split in digits.splits.values() for i in range(len(split))]
    np.testing.assert_array_equal([example["label"] for example in examples], labels)
    np.testing.assert_array_equal([DIGITS(example["image"]) for example in examples], images)
    assert images.min() == 0
    assert images.max() == 255
    assert examples[1440]["name"] == "digits test[3]"


def run_python(code, *args):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_digits_prepare_silently_without_tensorflow_and_twice_at_once(tmp_path):
    code = """
    import sys
    import jaxdl.data
    heavy = {"jax", "grain", "tensorflow_datasets", "sklearn", "tensorflow"} & set(sys.modules)
    assert not heavy, heavy
    dataset = jaxdl.data.load("digits", sys.argv[1])
    pipeline = jaxdl.data.Pipeline(dataset, jaxdl.data.Preprocess(8, 1), 360)
    (batch,) = pipeline.evaluate("test")
    assert batch["mask"].sum() == 360
    assert "tensorflow" not in sys.modules
    """
    both = [run_python(code, tmp_path / "new") for _ in range(2)]
    for process in both:
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["digits"]


def test_an_interrupted_preparation_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(self, images, labels):
        yield 0, {"image": Image.fromarray(images[0]), "label": 0}
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(jaxdl.data.digits.Digits, "_generate_examples", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load("digits", str(tmp_path))
    assert not list(tmp_path.iterdir())
    assert len(load("digits", str(tmp_path)).splits["train"]) == 1437


def test_a_data_dir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=f"data_dir {tmp_path}/file cannot hold the set 'digits'"):
        load("digits", str(tmp_path / "file"))


# Sources: sets that TFDS prepared.


class _TinyBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set prepared as TFDS would: four noise images per split, in one of its feature layouts."""

    VERSION = tfds.core.Version("3.0.1")
    SPLITS = ("train", "test")
    FORMAT = "PNG"
    SHAPE = (28, 28)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.SPLITS}

    def _generate_examples(self, split):
        for i in range(4):
            image = io.BytesIO(encode(self.image(split, i), self.FORMAT))
            label = -1 if split == "test" and "validation" in self.SPLITS else i % 2
            yield i, {"image": image, "label": label} | self.extra(split, i)

    def image(self, split, i):
        rng = np.random.default_rng([len(split), i])
        return rng.integers(0, 256, self.SHAPE, np.uint8)

    def extra(self, split, i):
        return {}

    def _describe(self, **features):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )


class Mnist(_TinyBuilder, skip_registration=True):
    def _info(self):
        return self._describe(
            image=tfds.features.Image(shape=(28, 28, 1)),
            label=tfds.features.ClassLabel(num_classes=10),
        )


class Cifar10(_TinyBuilder, skip_registration=True):
    SHAPE = (32, 32, 3)

    def _info(self):
        return self._describe(
            id=tfds.features.Text(),
            image=tfds.features.Image(shape=(32, 32, 3)),
            label=tfds.features.ClassLabel(names=["airplane", "automobile"]),
        )

    def extra(self, split, i):
        return {"id": f"{split}_{i:05}"}


class Imagenet2012(_TinyBuilder, skip_registration=True):
    SPLITS = ("train", "validation", "test")
    FORMAT = "JPEG"
    SHAPE = (40, 50, 3)

    def _info(self):
        return self._describe(
            image=tfds.features.Image(encoding_format="jpeg"),
            label=tfds.features.ClassLabel(names=["n01440764", "n01443537"]),
            file_name=tfds.features.Text(),
        )

    def extra(self, split, i):
        return {"file_name": f"{split}_{i}.JPEG"}


class Boxes(_TinyBuilder, skip_registration=True):
    def _info(self):
        return self._describe(
            image=tfds.features.Image(shape=(28, 28, 1)),
            objects=tfds.features.Sequence(tfds.features.BBoxFeature()),
            label=tfds.features.Scalar(np.int64),
        )

    def extra(self, split, i):
        return {"objects": []}


def prepare(builder_class, data_dir):
    builder = builder_class(data_dir=str(data_dir), file_format="array_record")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        builder.download_and_prepare()
    return builder


@pytest.mark.parametrize(
    ("builder_class", "splits", "class_names", "name_of_second"),
    [
        (Mnist, {"train", "test"}, tuple("0123456789"), "mnist train[1]"),
        (Cifar10, {"train", "test"}, ("airplane", "automobile"), "cifar10 train[1]"),
        # The labels of ImageNet's test split are not public: -1 in TFDS, no split here.
        (
            Imagenet2012,
            {"train", "validation"},
            ("n01440764", "n01443537"),
            "imagenet2012 train[1] (train_1.JPEG)",
        ),
    ],
)
def test_prepared_tfds_sets(builder_class, splits, class_names, name_of_second, tmp_path):
    builder = prepare(builder_class, tmp_path)
    dataset = load(builder.name, str(tmp_path))
    assert set(dataset.splits) == splits
    assert dataset.class_names == class_names
    assert dataset.channels == (1 if builder_class is Mnist else 3)
    assert dataset.splits["train"][1]["name"] == name_of_second
    for split, source in dataset.splits.items():
        assert [source[i]["label"] for i in range(len(source))] == [0, 1, 0, 1]
        stored = Image.open(io.BytesIO(encode(builder.image(split, 3), builder.FORMAT)))
        image = source[3]["image"]
        assert isinstance(image, bytes)
        np.testing.assert_array_equal(Image.open(io.BytesIO(image)), stored)


def test_the_newest_version_is_read_unless_one_is_named(tmp_path):
    class Newer(Mnist, skip_registration=True):
        VERSION = tfds.core.Version("10.0.0")
        SPLITS = ("train",)
        name = "mnist"

    prepare(Mnist, tmp_path)
    prepare(Newer, tmp_path)
    assert set(load("mnist", str(tmp_path)).splits) == {"train"}
    assert set(load("mnist:3.0.1", str(tmp_path)).splits) == {"train", "test"}
    assert set(load("mnist:3.*.*", str(tmp_path)).splits) == {"train", "test"}
    with pytest.raises(InputError, match=r"'mnist:2.0.0' is not prepared .*10\.0\.0, 3\.0\.1"):
        load("mnist:2.0.0", str(tmp_path))


def test_the_environment_names_the_data_dir(tmp_path, monkeypatch):
    prepare(Mnist, tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert len(load("mnist").splits["train"]) == 4


def test_unusable_tfds_sets_say_what_to_do(tmp_path):
    with pytest.raises(InputError) as missing:
        load("mnist", str(tmp_path))
    assert str(missing.value) == (
        f"dataset 'mnist' is not prepared in {tmp_path}; prepare it with: "
        "pip install 'jaxdl[tensorflow]' && "
        f"tfds build mnist --data_dir={tmp_path} --file_format=array_record"
    )
    prepare(Boxes, tmp_path)
    with pytest.raises(InputError, match="features image, label, objects; expected an 'image'"):
        load("boxes", str(tmp_path))
    with pytest.raises(InputError, match="'no set' is not a name; expected digits, folder:PATH"):
        load("no set", str(tmp_path))

    version_dir = pathlib.Path(prepare(Mnist, tmp_path).data_dir)
    (version_dir.parent / "config").mkdir()
    version_dir.rename(version_dir.parent / "config" / "3.0.1")
    with pytest.raises(InputError, match=r"'mnist' is not prepared .*there is mnist/config"):
        load("mnist", str(tmp_path))
    assert len(load("mnist/config", str(tmp_path)).splits) == 2
    version_dir = version_dir.parent / "config" / "3.0.1"

    info = json.loads((version_dir / "dataset_info.json").read_text())
    as_tfrecord = json.dumps(info | {"fileFormat": "tfrecord"})
    (version_dir / "dataset_info.json").write_text(as_tfrecord)
    with pytest.raises(InputError) as tfrecord:
        load("mnist/config", str(tmp_path))
    assert str(tfrecord.value) == (
        f"{version_dir} is prepared as tfrecord; expected array_record: "
        "pip install 'jaxdl[tensorflow]' && "
        f"tfds convert_format --dataset_version_dir={version_dir} --out_file_format=array_record"
    )

    (version_dir / "dataset_info.json").write_text(json.dumps(info))
    (shard,) = version_dir.glob("*-train*")
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(InputError, match="is damaged: its train split cannot be read"):
        load("mnist/config", str(tmp_path))
    shard.unlink()
    with pytest.raises(InputError, match="is damaged: its train split cannot be read"):
        load("mnist/config", str(tmp_path))


def test_a_mistyped_name_suggests_near_ones(tmp_path, monkeypatch):
    prepare(Boxes, tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name, end in {
        "digit": "and TFDS lists no set of that name; did you mean digits?",
        "mnits": "; did you mean mnist or kmnist or emnist?",
        "cifar-10": "or mnist:3.0.1; did you mean cifar10 or cifar100 or cifar10_n?",
        "CIFAR10": "; did you mean cifar10 or cifar100 or cifar10_n?",
        "": "or mnist:3.0.1",
        "boxs": "; did you mean boxes?",
        "photos": "; did you mean folder:photos?",
        "./photos": "; did you mean folder:./photos?",
        "zzzzzz": f"'zzzzzz' is not prepared in {tmp_path}, and TFDS lists no set of that name",
    }.items():
        with pytest.raises(InputError) as error:
            load(name, str(tmp_path))
        assert str(error.value).endswith(end), error.value
        assert "tfds build" not in str(error.value)


def test_labels_of_records_are_read_once(tmp_path, monkeypatch):
    version_dir = pathlib.Path(prepare(Mnist, tmp_path).data_dir)
    source_type = type(load("mnist", str(tmp_path)).splits["train"].records)
    read = []
    read_record = source_type.__getitem__
    monkeypatch.setattr(
        source_type, "__getitem__", lambda self, i: [read.append(i), read_record(self, i)][1]
    )

    def count_reads():
        train = load("mnist", str(tmp_path)).splits["train"]
        read.clear()
        assert labels(train).tolist() == labels(train).tolist() == [0, 1, 0, 1]
        return len(read)

    assert count_reads() == 4
    assert count_reads() == 0
    (kept,) = version_dir.glob("jaxdl-labels-*")
    for damage in (b"", kept.read_bytes()[:100]):
        kept.write_bytes(damage)
        assert count_reads() == 4
        assert count_reads() == 0
    (shard,) = version_dir.glob("mnist-train*")
    os.utime(shard, (1, 1))  # other records, perhaps
    assert count_reads() == 4
    assert count_reads() == 0
    kept.unlink()

    def refuse(*args, **arrays):
        raise PermissionError("a set that may only be read")

    monkeypatch.setattr("numpy.savez", refuse)
    assert count_reads() == count_reads() == 4


# Sources: folders, arrays, and a share of train.


@pytest.fixture
def folder(tmp_path):
    """Six images of two classes to train on and two to validate on, 20 x 30 pixels."""
    paths = "train/cat/b.png train/cat/a.jpg train/cat/c.PNG train/dog/d.bmp train/dog/e.webp"
    paths += " train/dog/f.jpeg val/cat/x.png val/dog/y.png"
    for number, path in enumerate(paths.split()):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(number).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / path)
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    (tmp_path / "train/cat/._a.jpg").write_bytes(b"a macOS resource fork")
    (tmp_path / "train/.DS_Store").write_bytes(b"")
    return tmp_path


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


@pytest.fixture
def loose(folder):
    """The images of `folder` without their classes."""
    for path in sorted(folder.glob("*/*/*")):
        path.rename(path.parents[1] / path.name)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (folder / split / name).rmdir()
    return folder


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


def test_what_needs_classes_says_so(loose):
    dataset = load(f"folder:{loose}")
    for use in (
        require_classes,
        lambda dataset: select_classes(dataset, ("cat", "dog")),
        lambda dataset: subsample(dataset, 2, seed=0),
    ):
        with pytest.raises(InputError, match=f"^folder:{loose} has no classes; expected a set"):
            use(dataset)
    require_classes(numbered(5))


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
    parts = image_data.load(cli.parse(image_data.ImageDataFlags, flags)[0])
    assert {split: sorted(labels(source)) for split, source in parts.splits.items()} == {
        "train": [0, 1],
        "test": [0, 1],
        "validation": [0, 1],
    }
    with pytest.raises(InputError, match="arrays has a test split of its own"):
        hold_out(numbered(4, test=(np.zeros((1, 24, 24, 3), np.uint8), [0])), 0.5, 0, "test")
    for flag in ("--test=1", "--test=-0.1"):
        config, _ = cli.parse(image_data.ImageDataFlags, [flag])
        with pytest.raises(InputError, match=r"--test=.* at least 0 and less than 1"):
            config.check_image_data()


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
    batches = Pipeline(dataset, Preprocess(8, 3), 4, workers=1).evaluate("train")
    assert [batch["label"].tolist() for batch in batches] == [[0, 1, 2, 3]]
    assert dataset.splits["train"][3]["name"] == f"{tmp_path}/train/猫/猫 é.PNG"
    assert len(fingerprint(dataset.splits["train"])) == 64


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


def test_hold_out_is_a_disjoint_share_of_train(digits):
    def names(dataset, split):
        source = dataset.splits[split]
        return {source[i]["name"] for i in range(len(source))}

    parts = hold_out(digits, 0.1, seed=0)
    assert {name: len(split) for name, split in parts.splits.items()} == {
        "train": 1293,
        "validation": 144,
        "test": 360,
    }
    assert not names(parts, "train") & names(parts, "validation")
    assert names(parts, "train") | names(parts, "validation") == names(digits, "train")
    assert names(parts, "validation") == names(hold_out(digits, 0.1, seed=0), "validation")
    assert names(parts, "validation") != names(hold_out(digits, 0.1, seed=1), "validation")
    with pytest.raises(InputError, match="has a validation split of its own"):
        hold_out(parts, 0.1, seed=0)
    for share in (-0.1, 0.0, 0.0001, 1.0, 1.5):
        with pytest.raises(InputError, match=f"validation share {share} of 1437"):
            hold_out(digits, share, seed=0)


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


@dataclasses.dataclass
class Stored:
    """Encoded images and their labels as they are given."""

    images: list
    labels_: list

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index: int, /) -> Example:
        return Example(image=self.images[index], label=self.labels_[index], name=f"stored[{index}]")


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_label_of_no_class_is_named(wrong):
    source = Stored([encode(np.zeros((4, 4), np.uint8))] * 5, [0, 2, wrong, 1, 0])
    dataset = Dataset("mine", {"train": source, "test": source}, ("a", "b", "c"), 1)
    line = rf"the {{}} split of mine, stored\[2\], has the label {wrong}; expected 0 to 2"
    with_worker = [lambda: take(Pipeline(dataset, Preprocess(4, 1), 5, workers=1), 1)]
    for use in (
        *(with_worker if wrong > 0 else ()),
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


def names_and_labels(dataset, split):
    source = dataset.splits[split]
    return {source[i]["name"]: source[i]["label"] for i in range(len(source))}


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


def test_subsample_keeps_so_many_of_each_class(digits):
    ten = subsample(digits, 10, seed=0)
    assert np.bincount(labels(ten.splits["train"])).tolist() == [10] * 10
    assert ten.splits["test"] is digits.splits["test"]
    chosen, everything = names_and_labels(ten, "train"), names_and_labels(digits, "train")
    assert chosen.items() <= everything.items()
    assert names_and_labels(subsample(digits, 10, seed=0), "train") == chosen
    assert names_and_labels(subsample(digits, 4, seed=0), "train").items() < chosen.items()
    other = names_and_labels(subsample(digits, 10, seed=1), "train")
    assert len(other.keys() & chosen.keys()) < 20
    for wanted in (0, 143):
        with pytest.raises(InputError, match=f"^{wanted} train examples .*: expected 1 to 1"):
            subsample(digits, wanted, seed=0)


def test_folds_validate_every_example_once(digits):
    everything, seen = names_and_labels(digits, "train"), []
    for number in range(5):
        part = fold(digits, 5, number, seed=3)
        validation = names_and_labels(part, "validation")
        train = names_and_labels(part, "train")
        assert len(validation) in (287, 288)
        assert not validation.keys() & train.keys()
        assert validation | train == everything
        assert names_and_labels(fold(digits, 5, number, seed=3), "validation") == validation
        assert part.splits["test"] is digits.splits["test"]
        seen += validation
    assert sorted(seen) == sorted(everything)
    other = names_and_labels(fold(digits, 5, 0, seed=4), "validation")
    assert other != names_and_labels(fold(digits, 5, 0, seed=3), "validation")
    with pytest.raises(InputError, match="has a validation split of its own"):
        fold(part, 5, 0, seed=0)
    for folds in (1, 1438):
        with pytest.raises(InputError, match=f"^{folds} folds of 1437 .*: expected 2 to 1437"):
            fold(digits, folds, 0, seed=0)
    for number in (-1, 5):
        with pytest.raises(InputError, match=f"^fold {number} of 5: expected 0 to 4"):
            fold(digits, 5, number, seed=0)


# Images.


def test_an_image_of_the_right_size_keeps_every_bit():
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    np.testing.assert_array_equal(Preprocess(9, 3)(image), image)
    np.testing.assert_array_equal(Preprocess(9, 3)(encode(image)), image)
    np.testing.assert_array_equal(Preprocess(9, 1)(encode(image[..., 0])), image[..., :1])
    np.testing.assert_array_equal(Preprocess(9, 1)(image[..., :1]), image[..., :1])


def test_the_shorter_side_is_resized_and_the_centre_cut_out():
    image = np.random.default_rng(0).integers(0, 256, (40, 61, 3), np.uint8)
    resized = Image.fromarray(image).resize((48, 32), Image.Resampling.BILINEAR)
    expected = np.asarray(resized)[2:30, 10:38]
    np.testing.assert_array_equal(Preprocess(28, 3, crop_share=0.875)(image), expected)
    turned = image.transpose(1, 0, 2)
    resized = Image.fromarray(turned).resize((32, 48), Image.Resampling.BILINEAR)
    expected = np.asarray(resized)[10:38, 2:30]
    np.testing.assert_array_equal(Preprocess(28, 3, crop_share=0.875)(turned), expected)


def test_random_crops_lie_within_their_bounds():
    # Each pixel holds its own coordinates, so a crop tells where it came from.
    rows, columns = np.mgrid[0:200, 0:250].astype(np.uint8)
    image = np.stack([rows, columns, columns], axis=-1)
    preprocess = Preprocess(64, 3, random_crop=True)
    rng = np.random.default_rng(0)
    areas, aspects = [], []
    for _ in range(200):
        crop = preprocess(image, rng).astype(int)
        height, width = (np.ptp(crop[..., axis]) + 1 for axis in (0, 1))
        areas.append(height * width / (200 * 250))
        aspects.append(width / height)
    assert 0.07 < min(areas) < 0.15
    assert 0.85 < max(areas) <= 1
    assert 0.72 < min(aspects) < 0.8
    assert 1.25 < max(aspects) < 1.39
    np.testing.assert_array_equal(preprocess(image), Preprocess(64, 3)(image))
    assert preprocess(np.zeros((2, 999, 3), np.uint8), rng).shape == (64, 64, 3)


def test_every_kind_of_file_becomes_grey_or_rgb():
    def convert(picture, channels=3, **save):
        buffer = io.BytesIO()
        picture.save(buffer, **{"format": "PNG"} | save)
        return Preprocess(2, channels)(buffer.getvalue())[0, 0].tolist()

    red = (255, 0, 0)
    assert convert(Image.new("RGB", (2, 2), red)) == [255, 0, 0]
    assert convert(Image.new("RGB", (2, 2), red), channels=1) == [76]
    assert convert(Image.new("L", (2, 2), 7)) == [7, 7, 7]
    assert convert(Image.new("1", (2, 2), 1)) == [255, 255, 255]
    assert convert(Image.new("RGB", (2, 2), red).quantize()) == [255, 0, 0]
    assert convert(Image.new("RGBA", (2, 2), (*red, 0))) == [255, 255, 255]
    assert convert(Image.new("LA", (2, 2), (0, 0)), channels=1) == [255]
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([255, 0, 0])
    assert convert(palette, transparency=0) == [255, 255, 255]
    assert convert(Image.fromarray(np.full((2, 2), 0x1234, np.uint16))) == [0x12] * 3
    cyan = convert(Image.new("CMYK", (2, 2), (255, 0, 0, 0)), format="JPEG")
    assert np.abs(np.subtract(cyan, [0, 255, 255])).max() < 4


def photo(width, height, seed=0):
    """A picture with the smooth shapes of a photograph and a little noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return np.clip(pixels + rng.integers(-4, 5, pixels.shape), 0, 255).astype(np.uint8)


def as_stored(encoded):
    """The same pixels in a file that cannot be decoded at another size."""
    picture = Image.open(io.BytesIO(encoded))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=picture.getexif())
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("random_crop", [False, True])
def test_a_large_jpeg_is_decoded_small(orientation, random_crop, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(photo(640, 480)).save(buffer, "JPEG", quality=95, exif=exif)
    decoded = []
    load_pixels = JpegImagePlugin.JpegImageFile.load
    monkeypatch.setattr(
        JpegImagePlugin.JpegImageFile,
        "load",
        lambda self: [load_pixels(self), decoded.append(self.size)][0],
    )
    preprocess = Preprocess(28, 3, 0.875, random_crop)
    for seed in range(8):
        rngs = [np.random.default_rng(seed) for _ in range(2)]
        small = preprocess(buffer.getvalue(), rngs[0]).astype(int)
        whole = preprocess(as_stored(buffer.getvalue()), rngs[1])
        assert np.abs(small - whole).mean() < 1
        assert np.abs(small - whole).max() <= 8
        assert rngs[0].bit_generator.state == rngs[1].bit_generator.state
    assert min(decoded) <= (160, 120)


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(640, 480, 480), (640, 480, 121), (639, 481, 16), (40, 40, 40)],
)
def test_other_jpegs_keep_every_bit(width, height, size):
    encoded = encode(photo(width, height), "JPEG")
    np.testing.assert_array_equal(
        Preprocess(size, 3)(encoded), Preprocess(size, 3)(as_stored(encoded))
    )


def test_exif_orientation_is_obeyed():
    image = np.zeros((16, 16), np.uint8)
    image[:8] = 255
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise: what is stored as the top is the right
    Image.fromarray(image).save(buffer, "JPEG", exif=exif)
    upright = Preprocess(16, 1)(buffer.getvalue())
    assert upright[:, 12:].min() > 250
    assert upright[:, :4].max() < 5


def test_damaged_images_are_named():
    whole = encode(np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8), "JPEG")
    for damaged in (whole[: len(whole) // 2], whole[:10], b"", b"GIF89a"):
        with pytest.raises(CorruptImage, match=r"^cat\.jpg .*; expected a whole JPEG, PNG"):
            Preprocess(8, 3)(damaged, name="cat.jpg")
    with pytest.raises(InputError, match=r"cat is an array float32 \[8, 8\]; expected uint8"):
        Preprocess(8, 3)(np.zeros((8, 8), np.float32), name="cat")


# Pipeline: the data rule.


def test_a_batch_depends_on_the_seed_and_the_step_alone(digits, over_eight_devices):
    def pipeline(seed=3, **options: Any):
        return Pipeline(digits, DIGITS, 200, seed=seed, **options)

    batches = take(pipeline(backend="grain"), 16)  # 2.2 epochs
    assert_same(take(pipeline(backend="grain"), 16), batches)
    assert_same(take(pipeline(backend="resident"), 16), batches)
    assert_same(take(pipeline(backend="grain", sharding=over_eight_devices), 16), batches)
    assert_same(take(pipeline(backend="resident", sharding=over_eight_devices), 16), batches)
    assert_same(take(pipeline(backend="grain"), 5, start=11), batches[11:])
    assert_same(take(pipeline(backend="resident"), 5, start=11), batches[11:])
    assert_same(take(pipeline(workers=2), 5, start=11), batches[11:])
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

    def pipeline(seed=5, workers=0):
        return Pipeline(dataset, preprocess, 10, seed=seed, workers=workers)

    batches = take(pipeline(), 12)
    assert_same(take(pipeline(workers=2), 12), batches)
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


# Pipeline: damaged images and worker processes.


@pytest.mark.parametrize("options", [{}, {"backend": "grain"}, {"workers": 2}], ids=str)
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
    assert not multiprocessing.active_children()
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


@dataclasses.dataclass
class Witness:
    """A source that labels its examples with what the reading process has done to itself."""

    def __len__(self):
        return 64

    def __getitem__(self, index: int, /) -> Example:
        from jax._src import xla_bridge

        in_worker = multiprocessing.parent_process() is not None
        label = in_worker + 2 * xla_bridge.backends_are_initialized()
        label += 4 * ("tensorflow" in sys.modules)
        return Example(image=np.zeros((4, 4, 3), np.uint8), label=label, name="witness")


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


def test_the_benchmark_of_a_folder_makes_its_own(capsys):
    benchmark.run(["--what=folder", "--images=300", "--rounds=2", "--steps=2"])
    *rounds, total = capsys.readouterr().out.splitlines()
    assert len(rounds) == 2
    assert all("s to list 300 images, then" in line for line in rounds)
    assert total.startswith("threads on ")
    with pytest.raises(InputError, match="--images=255: it must be at least 256"):
        benchmark.run(["--what=folder", "--images=255"])
