"""Experiments from the command line: learning, stopping, going on, predicting, and mistakes."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from networks import SHALLOW, SHALLOW_GOOGLENET, slow
from PIL import Image
from sklearn.datasets import load_digits

from experiments import lenet, transfer
from experiments.harness import classification, cli, image_data
from jaxdl import InputError, augment, checkpoint, data, models
from jaxdl.models import googlenet
from jaxdl.writers import read_rows

# A small run: LeNet-5 on digits, a second of training.
SMALL = ("--eval_every=40", "--checkpoint_every=20", "--log_every=10", "--nohistograms")
LONGER = (*SMALL, "--epochs=3")  # for a kill to come before its end
SMALL = (*SMALL, "--epochs=2")
SMALL_MLP = ("--width=16", "--image_size=8")

# A quick method, without what slows learning down.
QUICKLY = ("--optimizer=adam", "--learning_rate=0.003", "--l2_penalty=0", "--warmup_epochs=0")
QUICKLY = (*QUICKLY, "--augment=", "--eval_every=100000", "--nohistograms")


def assert_same_state(a, b):
    a, b = checkpoint.load(a), checkpoint.load(b)
    for name in a:
        assert_same_tree(a[name], b[name], name)


def assert_same_tree(a, b, path):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same_tree(a[key], b[key], f"{path}/{key}")
    else:
        np.testing.assert_array_equal(a, b, err_msg=path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run_in):
    """The folder of a small run that is done; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    run_in(folder, "lenet", *SMALL, "--workdir=run")
    return folder / "run"


@pytest.fixture
def done(finished, experiment):
    """A copy of that run, at `run` where experiments run."""
    shutil.copytree(finished, experiment.folder / "run")
    return experiment.folder / "run"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, environment):
    """The folder of a run by a process that nothing stops, as those below are stopped."""
    folder = tmp_path_factory.mktemp("whole")
    arguments = [sys.executable, "-m", "experiments.lenet", *LONGER, "--workdir=run"]
    subprocess.run(arguments, cwd=folder, env=environment, check=True, capture_output=True)
    return folder / "run"


def test_lenet_learns_and_leaves_the_whole_record(command, experiment):
    """The one real command that trains in the fast part; what it left is looked at from here."""
    done = command("lenet", "--epochs=2", "--workdir=run", "--eval_every=30")
    assert done.stderr == ""
    first, *_, last = done.stdout.splitlines()
    by = "by nesterov with l2_penalty 0.0005 and 45 steps of warm-up"
    start = f"lenet5 learning digits {by} on 1 cpu device: 61,706 parameters"
    assert first.startswith(start)
    assert "1437 train, 360 test images, 90 steps, in run" in first
    assert last.startswith("test: loss")
    run = command.folder / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["test/accuracy"] == summary["eval/accuracy"] >= 0.7
    assert summary["step"] == 90
    assert summary["versions"]["jax"]
    assert summary["wall_seconds"] > 0
    assert summary["best_step"] in (30, 60, 90)
    assert summary["best_split"] == "test"
    best = f"best checkpoint, by accuracy on the test split: step {summary['best_step']}"
    assert done.stdout.splitlines()[-2] == best
    rows = read_rows(run)
    assert {"train/loss", "train/accuracy", "train/learning_rate", "images_per_second"} <= set(
        rows[0]
    )
    assert [r["step"] for r in rows if "eval/accuracy" in r] == [30, 60, 90]
    assert (run / "curves.png").is_file()
    assert list((run / "tensorboard").glob("events*"))
    assert "--model=lenet5\n" in (run / "flags.txt").read_text()
    assert (run / "checkpoints" / "90").is_dir()

    flags = ("--mode=eval", "--workdir=run", "--split=train", "--parallel=pmap")
    evaluated = experiment("lenet", *flags, devices=2).stdout
    assert evaluated.startswith("train at step 90: ")
    assert "(1437 images)" in evaluated


@pytest.mark.slow
@pytest.mark.parametrize("model", ["lenet5", "lenet5_1998"])
def test_lenet_learns(experiment, model):
    flags = (*QUICKLY, f"--model={model}", "--epochs=3", "--validation=0.1", "--workdir=run")
    experiment("lenet", *flags)
    summary = json.loads((experiment.folder / "run" / "summary.json").read_text())
    assert summary["test/accuracy"] > 0.75
    assert summary["examples"] == {"train": 1293, "validation": 144, "test": 360}
    assert summary["eval/loss"] != summary["test/loss"]


# Of the ten digits, three, which a network tells apart in seconds.
THREE = ("--classes=0,1,4", "--steps=60")
SMALLEST = {
    "alexnet": ("--width=8", "--dropout=0"),
    "densenet": ("--growth_rate=4", "--image_size=8"),
    "inception": ("--width=0.125", "--image_size=8", "--dropout=0"),
    "mlp": ("--width=64", "--dropout=0"),
    "resnet": ("--width=8", "--image_size=8"),
    "nin": ("--width=16", "--image_size=16", "--dropout=0", "--steps=120"),
    "vgg": ("--width=4", "--dropout=0"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_the_other_networks_learn(experiment, name, monkeypatch):
    """Far above the third of a guess; the recipes in experiments/flags/ say what they reach."""
    # Compiling the gradient of the deepest takes a minute, and of a few of their blocks seconds.
    monkeypatch.setitem(models.MODELS, "densenet40_bc_cifar", SHALLOW["densenet100_bc_cifar"])
    monkeypatch.setitem(models.MODELS, "resnet20_cifar", SHALLOW["resnet20_cifar"])
    for stage, rows in SHALLOW_GOOGLENET.items():
        monkeypatch.setattr(googlenet, stage, rows)
    experiment(name, *QUICKLY, *THREE, *SMALLEST[name], "--workdir=run")
    summary = json.loads((experiment.folder / "run" / "summary.json").read_text())
    assert summary["test/accuracy"] > 0.7
    assert summary["train/loss"] < 0.8


@pytest.mark.slow
def test_killed_and_stopped_a_run_loses_nothing(command, whole):
    """Killed at two moments, then asked to stop, and each time started by the same command."""
    run, flags = command.folder / "parts", (*LONGER, "--workdir=parts")
    marks = run / "metrics.jsonl"
    size = lambda: marks.stat().st_size if marks.exists() else 0
    killed = 0
    for attempt in range(2):
        before, process = size(), command.start("lenet", *flags)
        while process.poll() is None and size() <= before:
            time.sleep(0.01)
        time.sleep(0.1 * attempt)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
    assert killed >= 1

    process = command.start("lenet", *flags)
    for line in process.stdout:
        if line.startswith("step "):
            process.send_signal(signal.SIGTERM)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert err == ""
    assert "and saved; go on with: python -m experiments.lenet --flagfile=parts/flags.txt" in out
    stopped_at = int(checkpoint.load(run)["step"])
    assert 10 <= stopped_at < 135  # after the first report, which may be its next step
    resumed = command("lenet", "--flagfile=parts/flags.txt", "--resume=must")
    assert f"steps {stopped_at} to 135" in resumed.stdout
    assert_same_state(whole, run)
    assert [r["step"] for r in read_rows(run)] == [r["step"] for r in read_rows(whole)]


def test_damaged_newest_checkpoint_is_passed_over(experiment, finished, done):
    for path in (done / "checkpoints" / "90").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    again = experiment("lenet", *SMALL, "--workdir=run")
    assert "checkpoints/90 is damaged" in again.stderr
    assert again.stderr.count("\n") == 1
    assert "steps 80 to 90" in again.stdout
    assert_same_state(done, finished)


@pytest.mark.slow
def test_eight_devices_go_on_on_one_and_the_reverse(experiment):
    flags = ("--epochs=1", "--log_every=100", "--checkpoint_every=20", "--steps=30")
    flags = (*flags, "--optimizer=nesterov", "--learning_rate=0.05", "--dropout=0")
    experiment("mlp", *flags, "--workdir=one")
    for first, second in ((8, 1), (1, 8)):
        workdir = f"--workdir=from{first}"
        process = experiment("mlp", *flags, workdir, "--parallel=pmap", devices=first)
        assert f"{first} cpu device" in process.stdout
        newest = experiment.folder / f"from{first}" / "checkpoints" / "30"
        subprocess.run(["rm", "-r", newest], check=True)
        again = experiment("mlp", *flags, workdir, devices=second)
        assert "steps 20 to 30" in again.stdout
        ours = checkpoint.load(experiment.folder / f"from{first}")["params"]["fc2"]["kernel"]
        alone = checkpoint.load(experiment.folder / "one")["params"]["fc2"]["kernel"]
        np.testing.assert_allclose(ours, alone, atol=1e-4)


def test_predict(experiment, done, tmp_path):
    digits = load_digits()
    names = []
    for index in range(1437, 1457):
        image = Image.fromarray(np.round(digits.images[index] * 255 / 16).astype(np.uint8))
        names.append(f"{index}.png")
        image.save(tmp_path / names[-1])
    told = experiment("predict", "--workdir=run", "--images", *names)
    lines = [line.split("\t") for line in told.stdout.splitlines()]
    assert [line[0] for line in lines] == names
    hits = [int(line[1]) == digits.target[int(Path(line[0]).stem)] for line in lines]
    assert sum(hits) >= 12  # of an accuracy of 0.88; 2 by chance
    assert all(0.1 <= float(line[2]) <= 1 for line in lines)

    (tmp_path / "bad.png").write_bytes(b"no image")
    images = ("bad.png", names[0], "absent.jpg")
    told = experiment("predict", "--workdir=run", "--images", *images, check=False)
    assert told.returncode == 1
    assert told.stdout.splitlines()[0].startswith(names[0])
    errors = told.stderr.splitlines()
    assert len(errors) == 3
    assert "bad.png" in errors[0]
    assert "absent.jpg" in errors[1]


def test_files_of_a_run_that_do_not_fit_together_are_told_of(done):
    inputs = json.loads((done / "inputs.json").read_text())
    inputs["class_names"].pop()
    (done / "inputs.json").write_text(json.dumps(inputs))
    with pytest.raises(InputError, match=r"not of the network .* is \(10,\) there and \(9,\) here"):
        classification.load_trained(done)


@pytest.mark.slow
def test_default_workdir_is_new_every_time(experiment):
    flags = ("--steps=1", "--log_every=1", "--nohistograms")
    first, second = (experiment("lenet", *flags).stdout.splitlines()[0] for _ in range(2))
    assert first.split(", in ")[1] != second.split(", in ")[1]
    folders = list((experiment.folder / "runs").iterdir())
    assert len(folders) == 2
    # The flags of such a run go on with it, and make no third.
    again = experiment("lenet", f"--flagfile={folders[0] / 'flags.txt'}", "--steps=1")
    assert f"in runs/{folders[0].name}" in again.stdout
    assert len(list((experiment.folder / "runs").iterdir())) == 2


def test_a_workdir_is_not_for_two_experiments(experiment, done):
    before = (done / "flags.txt").read_text()
    for name, flags, message in (
        ("resnet", (), "holds a run of experiments.lenet"),
        (
            "lenet",
            (*SMALL, "--model=lenet5_1998"),
            "holds a run with --model=lenet5, not lenet5_1998",
        ),
        ("lenet", (*SMALL, "--resume=never"), "holds a run and --resume=never"),
    ):
        told = experiment(name, *flags, "--workdir=run", check=False)
        assert told.returncode == 1
        assert message in told.stderr
    assert (done / "flags.txt").read_text() == before
    (experiment.folder / "other").mkdir()
    (experiment.folder / "other" / "thesis.tex").write_text("mine")
    told = experiment("lenet", *SMALL, "--workdir=other", check=False)
    assert "holds other files and no run" in told.stderr
    assert (experiment.folder / "other" / "thesis.tex").read_text() == "mine"
    complete = experiment("lenet", *SMALL, "--workdir=run")
    assert complete.stdout.splitlines()[-1].startswith("test: loss")


@pytest.mark.parametrize(
    ("name", "flags", "steps"),
    [
        ("mlp", ("--width=8", "--augment=flip", "--warmup_epochs=0"), 1),
        slow("regression", ("--flagfile=regression_diabetes",), 1),
        slow(
            "gan", ("--width=8", "--discriminator_width=8", "--image_size=16", "--batch_size=8"), 2
        ),  # the other is of the classifier that judges it
    ],
)
def test_what_a_new_run_compiles_ahead_is_its_step(experiment, name, flags, steps):
    """Shapes, types and shardings are those that come; else it would be compiled again."""
    lowered = []
    listener = lambda event, seconds, fun_name="", **kw: (
        lowered.append(fun_name) if event.endswith("jaxpr_to_mlir_module_duration") else None
    )
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        experiment(name, *flags, "--steps=2", "--workdir=run")
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert sum(name in ("jit(train)", "jit(_several)") for name in lowered) == steps


def test_divergence_stops_the_run_in_one_line(experiment):
    flags = ("--steps=60", "--checkpoint_every=5", "--log_every=5", "--workdir=run")
    done = experiment("lenet", *flags, "--learning_rate=1e30", "--warmup_epochs=1", check=False)
    assert done.returncode == 1
    assert "at step" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_corrupt_image_in_a_folder(command, experiment):
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        for label in range(2):
            folder = command.folder / "set" / split / f"class{label}"
            folder.mkdir(parents=True)
            for n in range(count):
                pixels = (rng.integers(0, 60, (40, 36, 3)) + 150 * label).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{n}.jpg")
    broken = command.folder / "set" / "train" / "class1" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    flags = (
        "--dataset=folder:set",
        "--width=4",
        "--image_size=16",
        "--batch_size=16",
        "--steps=4",
        "--random_crop",
        "--workers=1",
        "--augment=flip",
    )
    failed = command("mlp", *flags, "--workdir=fail", check=False)
    assert failed.returncode == 1
    assert "class1/3.jpg" in failed.stderr.splitlines()[-1]
    assert failed.stderr.count("\n") == 1
    skipped = experiment("mlp", *flags, "--on_corrupt=skip", "--workdir=skip")
    assert skipped.stderr.count("class1/3.jpg") == 1
    summary = json.loads((command.folder / "skip" / "summary.json").read_text())
    assert summary["unreadable_images"] == 1
    assert summary["examples"] == {"train": 48, "test": 16}


def test_images_without_classes_are_not_classified(experiment):
    (experiment.folder / "set" / "train").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(experiment.folder / "set" / "train" / "a.png")
    done = experiment("lenet", "--dataset=folder:set", "--batch_size=1", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: folder:set has no classes; expected a set with classes")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_early_stopping_goes_back_to_the_best(experiment):
    """The best evaluation is three before the last, and no other is as good."""
    flags = ("--epochs=40", "--eval_every=20", "--early_stop=3", "--validation=0.2")
    flags = (*flags, "--schedule=constant", "--learning_rate=0.02", "--log_every=20", "--seed=1")
    experiment("mlp", *SMALL_MLP, *flags, "--workdir=run")
    run = experiment.folder / "run"
    summary = json.loads((run / "summary.json").read_text())
    measured = {r["step"]: r["eval/accuracy"] for r in read_rows(run) if "eval/accuracy" in r}
    last = max(measured)
    assert last < 40 * 1150 // 32
    assert max(list(measured.values())[-3:]) <= max(list(measured.values())[:-3])
    assert measured[last] < max(measured.values())
    assert summary["step"] == summary["best_step"] < last
    assert summary["eval/accuracy"] == max(measured.values())
    assert summary["train/loss"] > 0
    again = experiment("mlp", *SMALL_MLP, *flags, "--workdir=run").stdout
    assert not again.splitlines()[1].startswith("step")
    assert json.loads((run / "summary.json").read_text())["step"] == summary["step"]

    evaluated = experiment("mlp", "--mode=eval", "--split=validation", "--workdir=run").stdout
    accuracy = f"accuracy {summary['eval/accuracy']:.4g} "
    assert evaluated.startswith(f"validation at step {summary['step']}: ")
    assert accuracy in evaluated
    best = checkpoint.load(run, summary["step"])["params"]["fc1"]["kernel"]
    newest = checkpoint.load(run, last)["params"]["fc1"]["kernel"]
    assert np.any(best != newest)
    config, _ = cli.parse(transfer.Config, [f"--from_run={run}"])
    begun, _ = transfer.starting_point(config)
    np.testing.assert_array_equal(begun["params"]["fc1"]["kernel"], best)


@pytest.mark.slow
def test_the_learning_rate_is_cut_on_a_plateau_and_stays_cut(experiment):
    """By the rule, worked out from the evaluations that the run wrote down."""
    flags = ("--eval_every=10", "--log_every=10", "--validation=0.2", "--schedule=constant")
    flags = (
        *flags,
        "--warmup_epochs=0",
        "--learning_rate=0.02",
        "--plateau=1",
        "--plateau_factor=0.5",
    )
    experiment("mlp", *SMALL_MLP, *flags, "--steps=120", "--checkpoint_every=60", "--workdir=run")
    best, rate = -1.0, 0.02
    for row in read_rows(experiment.folder / "run"):
        if "train/learning_rate" in row:
            assert row["train/learning_rate"] == pytest.approx(rate)
        if "eval/accuracy" in row:
            rate *= 1 if row["eval/accuracy"] > best else 0.5
            best = max(best, row["eval/accuracy"])
    assert rate < 0.02
    saved = checkpoint.load(experiment.folder / "run")
    assert saved["hparams"]["learning_rate"] == pytest.approx(rate)


@pytest.mark.slow
def test_cross_validation_trains_each_fold_and_goes_on(experiment, monkeypatch):
    """Stopped in the second fold, when it saves."""
    flags = (*SMALL, "--folds=2", "--workdir=cv")
    save = checkpoint.Checkpoints.save

    def stop_in_the_second(self, state, *args, **kwargs):
        save(self, state, *args, **kwargs)
        if "fold1" in self.folder.parts and int(state.step) == 20:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "save", stop_in_the_second)
        stopped = experiment("mlp", *SMALL_MLP, *flags, check=False)
    assert stopped.returncode == 143, stopped.stderr
    assert "and with the folds after it: python -m experiments.mlp" in stopped.stdout
    assert not (experiment.folder / "cv" / "summary.json").exists()
    done = experiment("mlp", *SMALL_MLP, *flags, "--resume=must")
    assert done.stderr == ""
    folds = [
        json.loads((experiment.folder / "cv" / f"fold{i}" / "summary.json").read_text())
        for i in range(2)
    ]
    sizes = [{"train": 718, "test": 719}, {"train": 719, "test": 718}]
    assert [fold["examples"] for fold in folds] == sizes
    accuracies = [fold["test/accuracy"] for fold in folds]
    assert len(set(accuracies)) > 1
    summary = json.loads((experiment.folder / "cv" / "summary.json").read_text())
    assert summary["test/accuracy"] == pytest.approx(np.mean(accuracies))
    assert summary["test/accuracy_std"] == pytest.approx(np.std(accuracies, ddof=1))
    assert f"test/accuracy: {np.mean(accuracies):.4g} +- " in done.stdout
    experiment("mlp", *SMALL_MLP, *SMALL, "--folds=2", "--fold=1", "--workdir=alone")
    assert_same_state(experiment.folder / "alone", experiment.folder / "cv" / "fold1")


def test_a_fold_that_is_held_out_chooses_nothing():
    """With --validation the choices are made by a share of the other folds."""
    images = lambda source: {source[i]["image"] for i in range(len(source))}
    every, seen = images(data.load("digits").splits["train"]), []
    for fold in range(3):
        flags = ["--folds=3", f"--fold={fold}"]
        plain = image_data.load(cli.parse(lenet.Config, flags)[0]).splits
        assert list(plain) == ["train", "test"]
        flags += ["--validation=0.25", "--early_stop=2"]
        nested = image_data.load(cli.parse(lenet.Config, flags)[0]).splits
        parts = {split: images(source) for split, source in nested.items()}
        assert {split: len(part) for split, part in parts.items()} == {
            "train": 718,
            "validation": 240,
            "test": 479,
        }
        assert parts["test"] == images(plain["test"])
        assert set.union(*parts.values()) == every
        seen.append(parts["test"])
    assert set.union(*seen) == every


@pytest.mark.slow
def test_averages_are_evaluated_saved_and_predict(experiment):
    experiment("lenet", *SMALL, "--ema_decay=0.9", "--workdir=run")
    run = experiment.folder / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["eval/ema_accuracy"] > 0.5
    assert summary["eval/ema_loss"] != summary["eval/loss"]
    saved = checkpoint.load(run)
    raw, average = saved["params"], saved["average"]["params"]
    assert not np.array_equal(raw["c1"]["kernel"], average["c1"]["kernel"])

    image = Image.fromarray(np.round(load_digits().images[1500] * 255 / 16).astype(np.uint8))
    image.save(experiment.folder / "digit.png")
    printed = experiment("predict", "--workdir=run", "--images=digit.png").stdout.split()
    pixels = data.Preprocess(32, 1)((experiment.folder / "digit.png").read_bytes(), name="digit")
    flags, _ = cli.parse(lenet.Config, [f"--flagfile={run / 'flags.txt'}"])
    images = augment.normalize(pixels[None], flags.classifier.mean, flags.classifier.std)
    chances = [
        jax.nn.softmax(models.create("lenet5").apply({"params": p}, images, train=False))[0]
        for p in (average, raw)
    ]
    assert int(printed[1]) == int(chances[0].argmax())
    assert float(printed[2]) == pytest.approx(float(chances[0].max()), abs=1e-4)
    assert abs(chances[0].max() - chances[1].max()) > 1e-3
