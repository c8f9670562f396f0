"""Classifying images from the command line with published weights."""

import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.weights import weight
from networks import contents
from PIL import Image

from experiments import predict
from jaxdl import InputError, models, pretrained


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The files of a ResNet-18 for ten classes, with weights that tell images apart."""
    shapes = contents("resnet18") | {"fc.weight": (10, 512), "fc.bias": (10,)}
    state_dict = {key: weight(key, shape) for key, shape in shapes.items() if shape}
    folder = tmp_path_factory.mktemp("weights")
    for suffix in (".safetensors", ".npz"):
        pretrained.save(folder / f"resnet18{suffix}", state_dict)
    return folder


@pytest.fixture
def photos(tmp_path):
    """A folder of three images, and of what is none."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.PNG", "more/c.jpeg")):
        tone = np.random.RandomState(i).randint(0, 256, (5, 7, 3), np.uint8)
        Image.fromarray(tone).resize((70 + i, 50)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    return folder


def five_best(weights: Path, image: Path, resize: int) -> list[tuple[str, float]]:
    """Return the classes of an image and their probabilities, step by step."""
    variables = pretrained.load("resnet18", weights / "resnet18.npz", num_classes=10)
    how = pretrained.preprocessing("resnet18")._replace(resize=resize)
    pixels = jnp.asarray(how.host()(image.read_bytes()))[None] / 255
    mean, std = (jnp.array(values)[None, None, None] for values in (how.mean, how.std))
    model: Any = models.create("resnet18", num_classes=10)
    apply = jax.jit(functools.partial(model.apply, train=False))
    probabilities = np.asarray(jax.nn.softmax(apply(variables, (pixels - mean) / std))[0])
    return [(str(i), probabilities[i]) for i in np.argsort(probabilities)[:-6:-1]]


def test_predict(weights, photos, capsys):
    file = weights / "resnet18.safetensors"
    predict.run(["--model=resnet18", f"--weights={file}", f"--images={photos}"])
    out, err = capsys.readouterr()
    lines = [line.split("\t") for line in out.splitlines()]
    paths = [str(photos / name) for name in ("a.png", "b.PNG", "more/c.jpeg")]
    assert [line[0] for line in lines] == [path for path in paths for _ in range(5)]
    assert err == ""  # no bar where nobody watches
    expected = five_best(weights, photos / "b.PNG", 256)
    assert [line[1] for line in lines[5:10]] == [name for name, _ in expected]
    for line, (_, probability) in zip(lines[5:10], expected, strict=True):
        assert float(line[2]) == pytest.approx(probability, abs=1e-4)
    assert len({tuple(line[2] for line in lines[i : i + 5]) for i in (0, 5, 10)}) == 3


def test_predict_with_labels_and_a_bar(weights, photos, capsys, monkeypatch):
    labels = photos / "labels.txt"
    labels.write_text("".join(f"class {i}\n" for i in range(10)))
    (photos / "bad.png").write_text("no image")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    flags = ["--model=resnet18", f"--weights={weights / 'resnet18.npz'}", f"--labels={labels}"]
    images = [str(photos / "bad.png"), str(photos / "b.PNG")]
    with pytest.raises(InputError, match="1 of 2 images could not be read"):
        predict.run([*flags, "--resize=300", "--images", *images])
    out, err = capsys.readouterr()
    expected = five_best(weights, photos / "b.PNG", 300)
    assert [line.split("\t")[1] for line in out.splitlines()] == [f"class {i}" for i, _ in expected]
    assert f"error: {images[0]} is not an image" in err
    assert "2/2" in err


@pytest.mark.parametrize(
    "flags",
    [
        "--images=a.png",
        "--model=resnet18 --images=a.png",
        "--weights=a.npz --images=a.png",
        "--workdir=run --model=resnet18 --weights=a.npz --images=a.png",
        "--workdir=run --labels=labels.txt --images=a.png",
        "--workdir=run --resize=256 --images=a.png",
    ],
)
def test_predict_flags_that_do_not_go_together(flags):
    with pytest.raises(
        InputError, match=r"^give --workdir=RUN, .*, or --model=NAME --weights=FILE"
    ):
        predict.run(flags.split())


@pytest.mark.parametrize("flags", ["--workdir=run", "--model=resnet18 --weights=a.npz"])
def test_predict_wants_images(flags):
    with pytest.raises(InputError, match=r"--images=: it must be a\.png b\.jpg"):
        predict.run(flags.split())


def test_predict_refuses(weights, photos, tmp_path):
    def refused(match, *flags, model="resnet18", file="resnet18.npz"):
        with pytest.raises(InputError, match=match):
            predict.run(
                [f"--model={model}", f"--weights={weights / file}", f"--images={photos}", *flags]
            )

    labels = photos / "labels.txt"
    labels.write_text("cat\ndog\n")
    refused(r"labels\.txt: it must be of 10 lines", f"--labels={labels}")
    refused("--resize=100: it must be at least 224", "--resize=100")
    refused("no published weights for 'lenet5'", model="lenet5")
    refused(r"the weights do not fit resnet34: \d+ missing: layer1", model="resnet34")
    refused("absent.npz: there is no such file", file="absent.npz")
    (tmp_path / "empty").mkdir()
    refused(r"no file in .*empty ends in \.jpg", f"--images={tmp_path / 'empty'}")
