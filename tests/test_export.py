"""Classifiers that are given away: the file alone does what predict does, to the bit."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from test_predict import photos, weights  # noqa: F401 (fixtures)

from experiments import export, predict
from experiments.harness import serving
from jaxdl import InputError, pictures


@pytest.fixture(scope="module")
def given_away(weights):  # noqa: F811
    """A ResNet-18 of ten classes as a file."""
    out = weights / "resnet18.stablehlo"
    flags = ["--model=resnet18", f"--weights={weights / 'resnet18.npz'}", f"--out={out}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.training, "prepare_jax", lambda **how: None)
        export.run(flags)
    return out


def images_of(folder, server):
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpeg"))
    return [p for p in paths if not p.name.startswith(".")], server.preprocess


@pytest.mark.slow
def test_a_file_alone_gives_what_predict_gives(given_away, weights, photos, tmp_path):  # noqa: F811
    server = serving.of_weights("resnet18", str(weights / "resnet18.npz"))
    paths, preprocess = images_of(photos, server)
    images = np.stack([preprocess(p.read_bytes(), name=str(p)) for p in paths])
    np.save(tmp_path / "images.npy", images)
    code = f"""
import sys
import numpy as np
from jax import export
function = export.deserialize(open({str(given_away)!r}, "rb").read()).call
images = np.load("images.npy")
found = [np.asarray(function(images[i : i + 1]))[0] for i in range(len(images))]
np.save("found.npy", np.stack([*found, *np.asarray(function(images))]))
assert not [name for name in sys.modules if name.startswith(("jaxdl", "flax"))]
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    found = np.load(tmp_path / "found.npy")
    classify = server.classify()
    expected = np.stack([classify(str(p)) for p in paths])
    one_by_one, at_once = found[: len(paths)], found[len(paths) :]
    np.testing.assert_array_equal(one_by_one, expected)
    np.testing.assert_allclose(at_once, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(expected.sum(1), 1, rtol=1e-5)


def test_what_it_is_lies_beside_it(given_away):
    record = json.loads(given_away.with_name("resnet18.stablehlo.json").read_text())
    assert record["images"] == ["b", 224, 224, 3]
    assert record["dtype"] == "uint8"
    assert record["platforms"] == ["cpu", "cuda", "tpu"]
    assert record["classes"] == [str(i) for i in range(10)]
    exported = jax.export.deserialize(given_away.read_bytes())
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert str(exported.in_avals[0].shape) == "(b, 224, 224, 3)"


@pytest.mark.parametrize(
    "flags",
    [
        "--out=a.stablehlo",
        "--workdir=run --model=resnet18 --weights=a.npz --out=a",
        "--model=resnet18 --out=a",
    ],
)
def test_flags_that_do_not_go_together(flags):
    with pytest.raises(InputError, match=r"^give --workdir=RUN, .* and --out=FILE"):
        export.run(flags.split())


def test_what_is_no_classifier_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "flags.txt").write_text("--experiment=char_rnn\n")
    with pytest.raises(InputError, match=r"holds a run of experiments\.char_rnn: no classifier"):
        export.run([f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'a'}"])
    with pytest.raises(InputError, match="--out=: it must be a file"):
        export.run([f"--workdir={tmp_path / 'run'}"])
    with pytest.raises(InputError, match="a folder that there is"):
        export.run([f"--workdir={tmp_path / 'run'}", "--out=no/such/a"])


# What predict prints and reports.


class Fake:
    """Takes a gray image for the class of its brightness."""

    class_names = ("dark", "middle", "light")

    def classify(self):
        def probabilities(path):
            with Image.open(path) as picture:
                tone = np.asarray(picture.convert("L")).mean() / 255
            logits = -10 * np.abs(np.array([0, 0.5, 1]) - tone)
            return np.exp(logits) / np.exp(logits).sum()

        return probabilities


@pytest.fixture
def tones(tmp_path, monkeypatch):
    """Images in folders by class, of which one is in the wrong one."""
    server = Fake()
    server.preprocess = lambda stored, name: np.full((4, 4, 1), 128, np.uint8)
    monkeypatch.setattr(serving, "of_run", lambda workdir: server)
    for name, tone in {
        "dark/a": 0,
        "dark/b": 20,
        "middle/c": 128,
        "middle/d": 250,
        "light/e": 255,
    }.items():
        path = tmp_path / "tones" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), tone).save(path)
    return tmp_path / "tones"


def test_a_report_counts_what_is_taken_for_what(tones, tmp_path, capsys):
    predict.run(["--workdir=run", f"--images={tones}", f"--report={tmp_path / 'report'}"])
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 5
    assert err.startswith("4 of 5 images are right, 0.8000; in ")
    table = (tmp_path / "report" / "classes.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    assert cells == [
        ["dark", "2", "1.0000", "1.0000", ""],
        ["middle", "2", "0.5000", "1.0000", "light (1)"],
        ["light", "1", "1.0000", "0.5000", ""],
    ]
    wrong = (tmp_path / "report" / "wrong.tsv").read_text().splitlines()
    assert len(wrong) == 2
    assert wrong[1].split("\t")[1:3] == ["middle", "light"]
    for name in ("confusion.png", "wrong.png"):
        assert pictures.read_png(tmp_path / "report" / name).shape[1] > 3


def test_formats_and_the_best_classes(tones, capsys):
    flags = ["--workdir=run", f"--images={tones / 'dark' / 'a.png'}", "--top=2"]
    predict.run([*flags, "--format=json"])
    record = json.loads(capsys.readouterr().out)
    assert [row["class"] for row in record["classes"]] == ["dark", "middle"]
    assert record["classes"][0]["probability"] > 0.9
    predict.run([*flags, "--format=csv"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "image,rank,class,probability"
    assert [line.split(",")[1:3] for line in lines[1:]] == [["1", "dark"], ["2", "middle"]]


def test_a_report_wants_folders_by_class(tones):
    (tones / "dark").rename(tones / "night")
    with pytest.raises(InputError, match="folder 'night', which is no class; expected folders"):
        predict.run(["--workdir=run", f"--images={tones}", "--report=report"])
