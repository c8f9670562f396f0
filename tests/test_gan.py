"""Generative adversarial networks from the command line: learning, pictures, measures, mistakes."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import gan, lenet
from experiments.harness import artist, cli, run_folder, yardstick
from experiments.harness.run import RunFlags
from jaxdl import InputError, checkpoint, data, fidelity, parallel
from jaxdl.writers import read_rows

TINY = ("--image_size=16", "--width=4", "--discriminator_width=4", "--batch_size=16")
# By plain gradient descent: Adam makes much of rounding where a gradient is nearly zero.
DESCENT = ("--optimizer=sgd", "--learning_rate=0.1")
FEW = (*TINY, "--steps=4", "--eval_every=2", "--checkpoint_every=2", "--log_every=1")
FEW = (*FEW, "--nohistograms")
# Of the ten digits, three: a third of the time to train and to measure.
THREE = ("--classes=0,1,4",)
DIGITS = (*FEW, *THREE, "--per_class=20")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, run_in):
    """A LeNet-5 of a few seconds, to measure with."""
    folder = tmp_path_factory.mktemp("classifier")
    flags = (*THREE, "--steps=60", "--eval_every=10000", "--nohistograms", "--workdir=digits")
    run_in(folder, "lenet", *flags)
    return f"--classifier={folder / 'digits'}"


def summary_of(experiment, run="run"):
    return json.loads((experiment.folder / run / "summary.json").read_text())


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def assert_same_state(a, b, tolerance=0.0):
    a, b = (jax.tree.leaves_with_path(checkpoint.load(folder)) for folder in (a, b))
    for (path, x), (_, y) in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance, err_msg=jax.tree_util.keystr(path))


@dataclasses.dataclass(frozen=True)
class Hasty(lenet.Config):
    """Of a tenth of the epochs."""

    run: RunFlags = RunFlags("lenet", epochs=8.0)


@pytest.mark.slow
def test_digits_are_drawn_measured_and_shown_with_no_classifier_named(experiment, monkeypatch):
    """Seconds of a narrow network: what it draws is far from noise, and of all kinds."""
    monkeypatch.setattr(lenet, "Config", Hasty)
    flags = ("--image_size=16", "--width=12", "--discriminator_width=12", "--workdir=run")
    flags += ("--steps=120", "--eval_every=60", "--batch_size=32", "--learning_rate=2e-3")
    flags += (*THREE, "--ema_decay=0.95", "--nohistograms")
    done = experiment("gan", *flags)
    assert done.stderr == ""
    assert "training the classifier to measure with, once: runs/classifier_digits_" in done.stdout
    summary = summary_of(experiment)
    for prefix in ("eval", "test"):
        distance, floor, ceiling = (
            summary[f"{prefix}/frechet_distance{which}"] for which in ("", "_floor", "_ceiling")
        )
        assert 0 < floor < distance < ceiling / 2
        assert summary[f"{prefix}/modes_covered"] == 3
        assert summary[f"{prefix}/class_divergence"] < 1  # of noise 2.3; 0.2 to 0.45 were seen
        assert summary[f"{prefix}/modes_covered_floor"] == 3
        assert summary[f"{prefix}/precision"] > 0.1  # noise may have more, where features are few
    assert summary["measured_in"].startswith("lenet5 of runs/classifier_digits_")
    assert 0.3 < summary["nearest_distance_ratio"] < 3
    run = experiment.folder / "run"
    with Image.open(run / "samples.gif") as animation:
        assert animation.n_frames == 2
        assert animation.size == (171, 171)  # ten by ten of 16 pixels and a border
    for name in ("samples/000060.png", "samples/000120.png", "samples.png", "walk.png"):
        assert size_of(run / name) == (171, 171)
    last = (run / "samples" / "000120.png").read_bytes()
    assert (run / "samples.png").read_bytes() == last != (run / "walk.png").read_bytes()
    width, height = size_of(run / "nearest.png")
    assert height == 4 * 17 + 1
    assert 171 < width < 171 + 60  # and what each row is
    row = next(row for row in read_rows(run) if "eval/frechet_distance" in row)
    for name in ("loss", "gradient_norm", "learning_rate"):
        assert {f"train/generator_{name}", f"train/discriminator_{name}"} <= row.keys() | set(
            read_rows(run)[0]
        )
    tables = [line for line in done.stdout.splitlines() if line.startswith(("training d", "noise"))]
    assert len(tables) == 6  # beside each of two evaluations, and at the end

    evaluated = experiment("gan", "--mode=eval", "--workdir=run", devices=4).stdout
    distance = float(re.search(r"frechet_distance (\S+)", evaluated).group(1))
    assert distance == pytest.approx(summary["test/frechet_distance"], rel=1e-3)
    assert "training the classifier" not in evaluated
    assert [line[:13].strip() for line in evaluated.splitlines()[-2:]] == ["training data", "noise"]
    experiment("gan", "--mode=sample", "--workdir=run", "--sample_seed=5")
    for name in ("samples.png", "walk.png", "nearest.png"):
        anew = run / "samples_of_seed_5" / name
        assert size_of(anew) == size_of(run / name)
        assert anew.read_bytes() != (run / name).read_bytes()
    done = experiment("predict", "--workdir=run", "--images=run/walk.png", check=False)
    assert done.stderr == "error: run holds a run of experiments.gan: no classifier\n"


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(
            (
                *("--loss=hinge", "--discriminator_norm=spectral", "--discriminator_steps=2"),
                *("--conditional", "--upsampling=resize", "--discriminator_optimizer=sgd"),
            ),
            marks=pytest.mark.slow,
            id="conditional",
        ),
        pytest.param(
            (
                *("--loss=wasserstein", "--penalty=gradient"),
                *("--discriminator_norm=layer", "--model=mlp"),
            ),
            marks=pytest.mark.slow,
            id="wasserstein",
        ),
    ],
)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(experiment, classifier, flags):
    """Bit for bit, both players and the averages, from the checkpoint in the middle."""
    if "--model=mlp" in flags:
        flags = (*DIGITS, *flags, "--image_size=8", "--width=16", "--discriminator_width=8")
        flags += (classifier,)
    else:
        flags = (*DIGITS, *flags, classifier)
    experiment("gan", *flags, "--workdir=whole")
    whole, parts = experiment.folder / "whole", experiment.folder / "parts"
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "4")
    (parts / "summary.json").unlink()
    last = parts / "samples" / "000004.png"
    last.unlink()
    experiment("gan", *flags, "--workdir=parts")
    assert_same_state(whole, parts)
    assert last.read_bytes() == (whole / "samples" / "000004.png").read_bytes()
    state = checkpoint.load(whole)
    assert set(state["params"]) == set(state["opt_state"]) == {"generator", "discriminator"}
    of_raw = jax.tree.leaves(state["params"]["generator"])
    of_average = jax.tree.leaves(state["average"]["params"])
    assert any((a != b).any() for a, b in zip(of_raw, of_average, strict=True))


@pytest.fixture(scope="module")
def one(tmp_path_factory, run_in, classifier):
    """The folder of a run on one device."""
    folder = tmp_path_factory.mktemp("one")
    run_in(folder, "gan", *DIGITS, *DESCENT, classifier, "--workdir=run")
    return folder / "run"


@pytest.mark.slow
def test_eight_devices_learn_and_measure_what_one_does(experiment, classifier, one):
    begun, ended = (checkpoint.load(one, step)["params"]["generator"]["project"] for step in (2, 4))
    moved = np.abs(begun["kernel"] - ended["kernel"]).max()
    assert moved > 50 * 1e-5  # far beyond the tolerance
    flags = (*DIGITS, *DESCENT, classifier)
    for way in ("jit", "pmap"):
        experiment("gan", *flags, f"--parallel={way}", f"--workdir={way}", devices=8)
        assert_same_state(one, experiment.folder / way, 1e-5)
        assert_same_summary(experiment.folder / way, one)


def assert_same_summary(*folders):
    a, b = (json.loads((folder / "summary.json").read_text()) for folder in folders)
    for name in ("frechet_distance", "generator_loss", "real_accuracy", "diversity"):
        assert a[f"test/{name}"] == pytest.approx(b[f"test/{name}"], rel=1e-2)
    assert a["test/frechet_distance_floor"] == b["test/frechet_distance_floor"]


@pytest.mark.slow
def test_two_hosts_learn_and_measure_what_one_does(tmp_path, classifier, one, two_hosts):
    """Real processes: each reads its rows, both measure, and the first alone shows."""
    first, second = two_hosts("gan", *DIGITS, *DESCENT, classifier, "--workdir=two")
    assert "4 cpu devices" in first
    assert second == ""
    assert_same_state(one, tmp_path / "two", 1e-5)
    assert_same_summary(tmp_path / "two", one)


@pytest.mark.slow
def test_early_stopping_goes_back_and_shows_that_state(experiment, classifier):
    """At a rate of nothing no evaluation is better than the first."""
    flags = (*TINY, *THREE, "--steps=50", "--eval_every=2", "--learning_rate=0")
    flags += ("--validation=0.2",)
    flags += ("--early_stop=1", "--ema_decay=0", "--workdir=run")
    done = experiment("gan", *flags, classifier)
    assert "samples vary" in done.stdout
    summary = summary_of(experiment)
    assert summary["step"] < 50
    run = experiment.folder / "run"
    assert size_of(run / "samples.gif") == (171, 171)
    assert (run / "walk.png").is_file()
    assert "nearest_distance_ratio" in summary
    # What the test images are measured beside is told too.
    assert done.stdout.splitlines()[-1].startswith("noise")
    assert summary["test/frechet_distance_floor"] != summary["eval/frechet_distance_floor"]


@pytest.mark.slow
def test_bfloat16_and_a_finished_run_given_again(experiment, classifier):
    """Parameters stay float32, and what a run came to is written anew where it is missing."""
    flags = (*DIGITS, classifier, "--precision=bfloat16", "--workdir=run")
    experiment("gan", *flags)
    leaves = jax.tree.leaves(checkpoint.load(experiment.folder / "run")["params"])
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
    before = summary_of(experiment)
    assert np.isfinite(before["test/frechet_distance"])
    for name in ("samples.gif", "summary.json"):
        (experiment.folder / "run" / name).unlink()
    experiment("gan", *flags)
    after = summary_of(experiment)
    same = [k for k in before if k.startswith(("eval/", "test/"))]
    assert {k: after[k] for k in same} == {k: before[k] for k in same}
    assert (experiment.folder / "run" / "samples.gif").is_file()


@pytest.mark.slow
def test_the_ring_by_compare(experiment):
    """Two losses on points: a table, and an animation of each."""
    flags = ("--dataset=ring", "--width=16", "--discriminator_width=8", "--steps=6")
    done = experiment(
        "compare",
        "--experiment=gan",
        "--flag=loss",
        "--values=minimax,hinge",
        "--metric=eval/modes_covered",
        "--workdir=both",
        "--eval_every=3",
        "--nohistograms",
        *flags,
    )
    assert "| loss " in done.stdout
    assert "final train/discriminator_loss" in done.stdout
    for value in ("minimax", "hinge"):
        run = experiment.folder / "both" / f"loss={value}" / "seed0"
        assert (run / "samples.gif").is_file()
        assert not (run / "walk.png").exists()
        summary = json.loads((run / "summary.json").read_text())
        assert summary["eval/modes_covered_floor"] == 8
        assert summary["eval/modes_covered_ceiling"] <= 1
        assert summary["measured_in"] == "the plane"


def paint(path, count, value=0):
    path.mkdir(parents=True)
    rng = np.random.default_rng(value)
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(path / f"{i}.png")


@pytest.mark.slow
def test_unlabeled_folders_are_measured_by_pixels(experiment):
    paint(experiment.folder / "set", 20)
    flags = ("--dataset=folder:set", "--validation=0.3", *FEW, "--batch_size=4", "--workdir=run")
    done = experiment("gan", *flags)
    assert "14 train, 6 validation images" in done.stdout
    summary = summary_of(experiment)
    assert summary["measured_in"] == "8x8 pixels"
    assert "eval/modes_covered" not in summary
    assert summary["eval/frechet_distance_floor"] > 0
    assert (experiment.folder / "run" / "nearest.png").is_file()


@pytest.mark.slow
def test_folders_with_classes_and_no_test_split(experiment):
    """The classifier is trained on what is not held out, once for two folds each; RGB; conditional.

    Random pixels have no classes to find: what is tested is that it all fits together.
    """
    for label in range(2):
        paint(experiment.folder / "set" / "train" / f"class{label}", 8 + 8 * label, label)
    flags = ("--dataset=folder:set", *FEW, "--batch_size=4", "--conditional", "--folds=2")
    done = experiment("gan", *flags, "--workdir=run")
    assert done.stdout.count("training the classifier to measure with, once") == 2
    record = summary_of(experiment)
    assert np.isfinite(record["eval/frechet_distance"])
    assert (
        record["folds"]["eval/frechet_distance"][0] != record["folds"]["eval/frechet_distance"][1]
    )
    fold = json.loads((experiment.folder / "run" / "fold0" / "summary.json").read_text())
    assert 0 <= fold["eval/class_accuracy_floor"] <= 1
    assert fold["unreadable_images"] == 0


def test_the_classifier_sees_a_large_set_in_few_passes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = []
    monkeypatch.setattr(yardstick.training, "train", lambda config, _: trained.append(config))
    mesh, config = parallel.data_mesh(jax.devices()[:1]), gan.Config()
    folder = yardstick.trained_classifier(config, mesh)
    monkeypatch.setattr(yardstick, "CLASSIFIER_STEPS", 1000)
    assert yardstick.trained_classifier(config, mesh) == folder
    usual, fewer = trained
    assert usual.run.epochs == 80
    assert fewer.run.epochs * 1437 / fewer.run.batch_size == pytest.approx(1000)
    assert cli.replace(fewer, epochs=80.0) == usual


def test_classes_are_asked_for_as_often_as_the_data_have_them(tmp_path):
    paint(tmp_path / "set" / "train" / "a", 12)
    paint(tmp_path / "set" / "train" / "b", 4, 1)
    paint(tmp_path / "set" / "test" / "a", 4)
    paint(tmp_path / "set" / "test" / "b", 4, 1)
    flags = [f"--dataset=folder:{tmp_path / 'set'}", "--image_size=16", "--batch_size=4"]
    config, _ = cli.parse(gan.Config, flags)
    source = artist.image_source(config, parallel.data_mesh(jax.devices()[:1]))
    assert np.bincount(source.labels(100)).tolist() == [12, 4]
    images = source.real("train", 100)
    assert images.shape == (16, 16, 16, 3)
    train = data.load(config.images.dataset).splits["train"]
    stored = source.pipeline.images("train", range(16))
    first = next(i for i in range(16) if (stored[i] == images[0]).all())
    assert train[first]["label"] == source.labels(100)[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--image_size=20",), "takes image_size out of 16, 32, 64, not 20"),
        (("--latent_size=0",), "--latent_size=0: it must be at least 1"),
        (("--upsampling=resize", "--model=mlp"), "--upsampling=resize: it must be left out with"),
        (("--upsampling=cubic",), "cubic"),
        (("--dataset=ring", "--model=dcgan"), "--model=dcgan: it must be mlp for the ring"),
        (("--loss=hinge", "--label_smoothing=0.1"), "0 with --loss=hinge, which has no target"),
        (("--penalty=r1",), "--penalty=r1: it must be left out with batch norms"),
        (("--loss=wasserstein",), "--loss=wasserstein: it must be given with --penalty"),
        (("--plateau=2",), "--plateau=2: it must be left out"),
        (("--precision=float16",), "float16"),
        (("--discriminator_learning_rate=-1",), "learning_rate"),
        (("--discriminator_steps=0",), "--discriminator_steps=0: it must be at least 1"),
        (("--model=mlp", "--discriminator_norm=batch"), "mlp_discriminator takes norm out of"),
        (("--samples=3",), "--samples=3: it must be at least 4"),
        (("--dataset=ring", "--folds=2"), "--folds=2: it must be left out with the ring"),
        (("--batch_size=800", "--discriminator_steps=2"), "at most the 1437 training images"),
        (
            ("--dataset=folder:one", "--validation=0.5"),
            "validation share 0.5 of 1 train examples leaves a part empty",
        ),
        (
            ("--dataset=folder:one",),
            "the train split of folder:one holds 1; expected at least 4 images",
        ),
        (("--dataset=folder:flat",), "has no images to measure by; give --validation=0.1, say"),
        (
            ("--dataset=folder:flat", "--validation=0.5", "--conditional", "--batch_size=2"),
            "--conditional: folder:flat has no classes",
        ),
        (("--classifier=nowhere",), "no run in nowhere"),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(tmp_path, monkeypatch, flags, message):
    paint(tmp_path / "one", 1)
    paint(tmp_path / "flat", 4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(InputError, match=re.escape(message)):
        gan.build(cli.parse(gan.Config, [*FEW, *flags])[0], parallel.data_mesh(jax.devices()[:1]))
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_classifier_of_other_classes_or_none_at_all_is_refused(experiment, classifier):
    experiment("lenet", "--classes=3,8", "--steps=2", "--nohistograms", "--workdir=two")
    (experiment.folder / "drawn").mkdir()
    (experiment.folder / "drawn" / run_folder.FLAGS_FILE).write_text("--experiment=gan\n")
    for run, message in {
        "two": "the classifier in two knows the classes 3, 8; the data has 0, 1, 4\n",
        "drawn": "drawn holds a run of experiments.gan: no classifier",
    }.items():
        done = experiment("gan", *DIGITS, f"--classifier={run}", "--workdir=run", check=False)
        assert done.returncode == 1
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_generator_that_cannot_learn_is_told_of(experiment, classifier):
    """The discriminator alone learns, and soon knows all that stands still."""
    flags = (*TINY, *THREE, "--steps=60", "--eval_every=60", "--log_every=20")
    flags += ("--learning_rate=0", "--discriminator_learning_rate=0.01")
    done = experiment("gan", *flags, classifier, "--workdir=run")
    lines = [line for line in done.stdout.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 2
    assert lines[0].startswith("warning: the discriminator has won: it tells 100.0% of real and")
    assert lines[1].startswith("warning: the generator has collapsed: its samples vary 0.")


def test_warnings_only_where_they_are_due():
    well = {"train/real_accuracy": 0.8, "train/fake_accuracy": 1.0, "eval/diversity": 0.9}
    assert artist.warnings(well, 0) == []
    assert artist.warnings(well | {"eval/modes_covered": 6, "eval/recall": 0.3}, 10) == []
    assert artist.warnings(well | {"eval/modes_covered": 3, "eval/recall": 0.9}, 10) == []  # a blur
    (line,) = artist.warnings(well | {"eval/modes_covered": 3, "eval/recall": 0.3}, 10)
    assert "cover 3 of 10 classes" in line
    (line,) = artist.warnings(well | {"train/real_accuracy": 0.995}, 0)
    assert "99.5% of real and 100.0% of generated" in line
    assert artist.warnings({}, 0) == []  # a critic decides nothing


def test_a_reference_measures_against_what_no_player_saw():
    """On a yardstick of two numbers, where every metric can be had directly."""
    rng = np.random.default_rng(0)
    held_out, train = rng.normal(size=(2, 300, 2)).astype(np.float32)
    noise = rng.uniform(-9, 9, (300, 2)).astype(np.float32)
    look = lambda samples: (samples, (samples[:, 0] > 0).astype(int))
    reference = yardstick.Reference(yardstick.Yardstick("plane", look, 2), held_out, train, noise)
    measured = reference.measure(held_out)
    assert measured["frechet_distance"] == pytest.approx(0, abs=1e-9)
    assert (measured["precision"], measured["recall"]) == (1, 1)
    assert (measured["modes_covered"], measured["class_divergence"]) == (2, 0)
    gaussians = map(fidelity.fit_gaussian, (train, held_out))
    assert reference.floor["frechet_distance"] == fidelity.frechet_distance(*gaussians)
    assert reference.ceiling["frechet_distance"] > 10 * reference.floor["frechet_distance"]
    half = held_out[held_out[:, 0] > 0]
    measuring = yardstick.Yardstick("plane", look, 2)
    asked = yardstick.Reference(measuring, held_out, half, half, np.zeros(len(half), int))
    collapsed = asked.measure(half)
    assert collapsed["modes_covered"] == 1
    assert collapsed["class_divergence"] == pytest.approx(-np.log(np.mean(held_out[:, 0] > 0)))
    assert collapsed["class_accuracy"] == 0
    assert collapsed.keys() == {*yardstick.measures(2, conditional=True)}
    table = reference.table(measured).splitlines()
    assert [line[:14].strip() for line in table] == ["", "generated", "training data", "noise"]


def test_samples_are_looked_at_in_chunks_of_one_size():
    shapes = []

    def double(a, b):
        shapes.append((a.shape, b.shape))
        return a * 2, b + 1

    a, b = np.arange(600.0).reshape(300, 2), np.arange(300)
    doubled, more = yardstick.in_chunks(double, a, b)
    np.testing.assert_array_equal(doubled, a * 2)
    np.testing.assert_array_equal(more, b + 1)
    assert set(shapes) == {((yardstick.CHUNK, 2), (yardstick.CHUNK,))}


def test_each_player_has_a_method_of_its_own():
    def methods(*flags):
        return cli.parse(gan.Config, flags)[0].methods

    generator, discriminator = methods(
        "--discriminator_optimizer=nesterov", "--discriminator_learning_rate=0.1"
    )
    assert generator.hparams == {"learning_rate": 2e-4, "b1": 0.5}
    assert discriminator.hparams == {"learning_rate": 0.1, "momentum": 0.9}
    generator, discriminator = methods(
        "--b1=0.2", "--discriminator_optimizer=sgd", "--discriminator_schedule=cosine"
    )
    assert generator.hparams == {"learning_rate": 2e-4, "b1": 0.2}
    assert discriminator.hparams == {"learning_rate": 2e-4}
    assert (generator.schedule, discriminator.schedule) == ("constant", "cosine")
    # Every flag of the method is there for the discriminator alone.
    generator, discriminator = methods("--discriminator_b1=0.9", "--discriminator_l2_penalty=0.1")
    assert generator.hparams == {"learning_rate": 2e-4, "b1": 0.5}
    assert discriminator.hparams == {"learning_rate": 2e-4, "b1": 0.9, "l2_penalty": 0.1}
    with pytest.raises(InputError, match=r"sgd takes no b2"):
        methods("--optimizer=sgd", "--b2=0.5")
    with pytest.raises(InputError, match=r"^discriminator: optimizer sgd takes no b2"):
        methods("--discriminator_optimizer=sgd", "--discriminator_b2=0.5")
    with pytest.raises(InputError, match=r"^--discriminator_learning_rate=-1.0: it must be at"):
        methods("--discriminator_learning_rate=-1")
