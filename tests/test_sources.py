"""Sets that TFDS prepared, the digits among them."""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import image_sets
import numpy as np
import pytest
import tensorflow_datasets as tfds
from image_sets import encode
from PIL import Image
from sklearn.datasets import load_digits

import jaxdl.data.digits
from jaxdl import InputError
from jaxdl.data import Preprocess, labels, load

DIGITS = Preprocess(size=8, channels=1)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return image_sets.digits(tmp_path_factory)


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


@pytest.mark.slow  # starts processes
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


def test_an_interrupted_preparation_leaves_nothing_behind(tmp_path, monkeypatch, capfd):
    def interrupted(self, images, labels):
        yield 0, {"image": Image.fromarray(images[0]), "label": 0}
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(jaxdl.data.digits.Digits, "_generate_examples", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load("digits", str(tmp_path))
    assert not list(tmp_path.iterdir())
    assert len(load("digits", str(tmp_path)).splits["train"]) == 1437
    assert capfd.readouterr() == ("", "")


def test_a_data_dir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=f"data_dir {tmp_path}/file cannot hold the set 'digits'"):
        load("digits", str(tmp_path / "file"))


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


def test_noise_is_the_same_each_time_and_of_the_size_asked_for():
    dataset = load("noise:6x8x3:5:12")
    assert (len(dataset.class_names), dataset.channels) == (5, 3)
    train, test = dataset.splits["train"], dataset.splits["test"]
    assert (len(train), len(test)) == (12, 12)
    example = train[7]
    assert example["image"].shape == (6, 8, 3)
    assert example["image"].dtype == np.uint8
    assert example["label"] == 2
    np.testing.assert_array_equal(example["image"], train[7]["image"])
    for other in (train[8], test[7]):
        assert (other["image"] != example["image"]).any()
    assert len(load("noise:224x224x3:1000").splits["train"]) == 1_281_167
    for wrong in ("noise:6x8:5", "noise:6x8x2:5", "noise:0x8x1:5", "noise:6x8x1:5:0", "noise:"):
        with pytest.raises(InputError, match="such as noise:224x224x3:1000"):
            load(wrong)
