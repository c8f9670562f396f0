"""Comparisons: the table is what the runs' own rows say, and no run is run twice."""

import dataclasses
import json
import shutil
import statistics
from pathlib import Path

import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from experiments import compare, mlp
from experiments.harness import catalogue, cli, study, training
from jaxdl import InputError, checkpoint, parallel
from jaxdl.writers import Writer

# A perceptron on digits: 30 steps, of which 10, 20 and 30 are reported and evaluated.
TINY = (
    *("--experiment=mlp", "--width=8", "--image_size=8", "--augment=", "--warmup_epochs=0"),
    *("--steps=30", "--log_every=10", "--eval_every=10", "--learning_rate=0.02"),
    *("--dropout=0", "--label_smoothing=0", "--nohistograms"),
)
ACTIVATIONS = (*TINY, "--flag=activation", "--values=tanh,sigmoid", "--seeds=2")
all_devices = parallel.data_mesh
BY = compare.Compared("eval/accuracy", "train/loss", "eval/accuracy", "test")


pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A folder to work in, and curves undrawn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Writer, "curves", lambda self: None)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The folder of a finished comparison."""
    folder = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "curves", lambda self: None)
        compare.run([*ACTIVATIONS, f"--workdir={folder}", "--target_loss=1.6"])
    return folder


@pytest.fixture
def trained(monkeypatch):
    """The folders of the runs that were trained, or gone on with."""
    folders = []
    train = training.train

    def counted(config, build):
        folders.append(config.run.workdir)
        return train(config, build)

    monkeypatch.setattr(training, "train", counted)
    return folders


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def by_hand(folder):
    """What a person would read off a run's rows."""
    rows = rows_of(folder)
    accuracies = [row["eval/accuracy"] for row in rows if "eval/accuracy" in row]
    losses = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "final": accuracies[-1],
        "best": max(accuracies),
        "train_loss": losses[30],
        "steps_to_target": next((step for step in (10, 20, 30) if losses[step] <= 1.6), None),
        "seconds": summary["wall_seconds"],
    }


def test_table_is_what_the_rows_say(compared):
    record = json.loads((compared / "table.json").read_text())
    assert (record["metric"], record["flag"], record["seeds"]) == ("eval/accuracy", "activation", 2)
    assert (record["best"], record["split"]) == ("eval/accuracy", "test")
    assert list(record["results"]) == ["tanh", "sigmoid"]
    counts = []
    for value, figures in record["results"].items():
        runs = [by_hand(compared / f"activation={value}" / f"seed{seed}") for seed in (0, 1)]
        assert figures.pop("diverged") == {}
        for name, figure in figures.items():
            seeds = [run[name] for run in runs]
            known = [number for number in seeds if number is not None]
            assert figure["seeds"] == seeds, (value, name)
            if known:
                assert figure["mean"] == pytest.approx(sum(known) / len(known), rel=1e-12)
            if len(known) == 2:
                deviation = abs(known[0] - known[1]) / 2**0.5
                assert figure["std"] == pytest.approx(deviation, rel=1e-9, abs=1e-12)
        counts.append(sum(s is not None for s in figures["steps_to_target"]["seeds"]))
    assert counts == [2, 0]  # sigmoid is too slow

    lines = (compared / "table.md").read_text().splitlines()
    assert lines[0].startswith("`python -m experiments.compare --experiment=mlp")
    cells = {line.split("|")[1].strip(): line for line in lines if line.startswith("|")}
    assert "steps to train/loss 1.6" in cells["activation"]
    assert "not reached" in cells["sigmoid"]
    final = record["results"]["tanh"]["final"]
    assert f"| {final['mean']:.4g} ± {final['std']:.2g} " in cells["tanh"]


def test_pictures_show_the_means(compared):
    with Image.open(compared / "compare.png") as picture:
        assert picture.size == (1210, 495)
        assert len(picture.convert("RGB").getcolors(100000) or []) > 20
    board = compared / "tensorboard"
    assert sorted(path.name for path in board.iterdir()) == ["sigmoid", "tanh"]
    found = {}
    for path in (board / "tanh").glob("events*"):
        data, place = path.read_bytes(), 0
        while place < len(data):
            length = int.from_bytes(data[place : place + 8], "little")
            event = Event.FromString(data[place + 12 : place + 12 + length])
            found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
            place += 16 + length
    for name in ("train/loss", "eval/accuracy"):
        for step in (10, 20, 30):
            seeds = [
                next(row[name] for row in rows_of(run) if row["step"] == step and name in row)
                for run in sorted((compared / "activation=tanh").iterdir())
            ]
            assert found[name, step] == pytest.approx(statistics.mean(seeds), rel=1e-6)


@pytest.mark.slow
def test_what_is_done_is_not_run_again(compared, tmp_path, trained):
    folder = tmp_path / "compared"
    shutil.copytree(compared, folder)
    again = [*ACTIVATIONS, f"--workdir={folder}", "--target_loss=1.6"]
    before = json.loads((folder / "table.json").read_text())
    compare.run(again)
    assert trained == []
    assert json.loads((folder / "table.json").read_text()) == before | {"workdir": str(folder)}

    # One run is cut short; `tests/test_study.py` asks for more seeds.
    cut = folder / "activation=tanh" / "seed1"
    whole = checkpoint.load(cut)["params"]["fc1"]["kernel"]
    (cut / "summary.json").unlink()
    shutil.rmtree(cut / "checkpoints" / "30")
    summaries = {path: path.stat().st_mtime_ns for path in folder.rglob("summary.json")}
    compare.run(again)
    assert (cut / "summary.json").exists()
    assert {path: path.stat().st_mtime_ns for path in summaries} == summaries
    assert (checkpoint.load(cut)["params"]["fc1"]["kernel"] == whole).all()
    after = json.loads((folder / "table.json").read_text())["results"]["tanh"]["final"]
    assert after == before["results"]["tanh"]["final"]


def test_a_stopped_run_stops_the_comparison(monkeypatch, capsys):
    seen = []

    def stopped(config, build):
        seen.append(config)
        raise cli.Interrupted(15)

    monkeypatch.setattr(training, "train", stopped)
    with pytest.raises(cli.Interrupted):
        compare.run([*ACTIVATIONS, "--vectorize=never", "--workdir=half"])
    assert len(seen) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("and with the study: python -m experiments.compare --exp")
    assert last.endswith("--workdir=half")
    assert not Path("half/table.md").exists()


@pytest.mark.slow
def test_divergence_is_a_result(trained, capsys):
    flags = (*TINY, "--flag=learning_rate", "--values=0.02,1e30", "--seeds=1", "--optimizer=sgd")
    compare.run([*flags, "--vectorize=never", "--workdir=rates"])
    assert len(trained) == 2
    figures = json.loads(Path("rates/table.json").read_text())["results"]
    assert figures["0.02"]["diverged"] == {}
    assert figures["1e30"]["final"] == {"mean": None, "std": None, "seeds": [None]}
    assert " at step " in figures["1e30"]["diverged"]["0"]
    text = Path("rates/table.md").read_text()
    assert "| 1, 1 diverged |" in text
    assert "\nlearning_rate=1e30, seed 0: loss is " in text
    compare.run([*flags, "--vectorize=never", "--workdir=rates"])
    assert len(trained) == 2
    assert "seed0, which is done" in capsys.readouterr().out


def test_recipes_and_learning_rates_reach_their_runs():
    for name, optimizer in (("slow", "sgd"), ("quick", "adam")):
        text = f"--optimizer={optimizer}\n--width=30\n--batch_size=16\n--seed=7\n--workdir=x\n"
        Path(f"{name}.flags").write_text(text)
    config = compare.Config(
        experiment="mlp",
        flag="flagfile",
        values=("slow.flags", "quick.flags"),
        learning_rates=(0.5, 0.01),
        study=study.StudyFlags("both", seeds=2),
    )
    runs = compare.plan(config, mlp, ["--width=8"])
    flags = [cli.to_dict(run.config) for run in runs]
    assert [
        (run.setup, of_run["optimizer"], of_run["learning_rate"], of_run["workdir"])
        for run, of_run in zip(runs, flags, strict=True)
    ] == [
        ("slow", "sgd", 0.5, "both/flagfile=slow/seed0"),
        ("slow", "sgd", 0.5, "both/flagfile=slow/seed1"),
        ("quick", "adam", 0.01, "both/flagfile=quick/seed0"),
        ("quick", "adam", 0.01, "both/flagfile=quick/seed1"),
    ]
    assert [of_run["seed"] for of_run in flags] == [0, 1, 0, 1]
    # The command line wins over a recipe, and the value compared over the command line.
    assert {(of_run["width"], of_run["batch_size"]) for of_run in flags} == {(8, 16)}
    config = dataclasses.replace(config, flag="width", values=("9", "10"), learning_rates=())
    first = compare.plan(config, mlp, ["--width=8"])[0]
    assert cli.to_dict(first.config)["width"] == 9
    Path("other").mkdir()
    config = dataclasses.replace(config, flag="flagfile", values=("quick.flags", "other/quick.txt"))
    Path("other/quick.txt").write_text("")
    with pytest.raises(InputError, match=r"two of --values=.* would share a folder"):
        compare.plan(config, mlp, [])


def test_measured_is_what_the_files_say(tmp_path):
    rows = [
        {"step": 10, "train/loss": 0.9},
        {"step": 10, "eval/accuracy": 0.6},
        {"step": 20, "train/loss": 0.4},
        {"step": 20, "eval/accuracy": 0.8},
        {"step": 30, "train/loss": 0.6},
        {"step": 30, "eval/accuracy": 0.7},
    ]
    folder = tmp_path / "seed0"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"step": 30, "eval/accuracy": 0.7, "best_step": 20, "wall_seconds": 4.5}
    (folder / "summary.json").write_text(json.dumps(summary))
    run = study.Run("8", 0, tmp_path, mlp, [])
    expected = dict(zip(compare.FIGURES, (0.7, 0.8, 0.6, 20, 4.5), strict=True))
    assert compare.measure(run, BY, 0.5) == expected
    assert compare.measure(run, BY, 0.3)["steps_to_target"] is None


def test_table_by_hand():
    config = compare.Config("mlp", "width", ("4", "8"), target_loss=0.5)
    found = {
        "4": {
            "final": study.spread([0.5, None, 0.9]),
            "best": study.spread([0.75, None, 0.95]),
            "train_loss": study.spread([2.0, None, None]),
            "steps_to_target": study.spread([100, None, 300]),
            "seconds": study.spread([1.0, 2.0, 4.5]),
            "diverged": {1: "loss is nan at step 7"},
        },
        "8": {name: study.spread([None] * 3) for name in compare.FIGURES} | {"diverged": {}},
    }
    lines = compare.table(found, config, BY).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    heads = ["width", "final eval/accuracy", "best eval/accuracy", "final train/loss"]
    assert cells[0] == [*heads, "steps to train/loss 0.5", "seconds", "runs"]
    assert cells[2] == [
        *("4", "0.7 ± 0.28", "0.85 ± 0.14", "2"),
        *("200 ± 140 (2 of 3)", "2.5 ± 1.8", "3, 1 diverged"),
    ]
    assert cells[3] == ["8", "", "", "", "not reached", "", "3"]
    assert lines[-1] == "width=4, seed 1: loss is nan at step 7"
    assert lines[-3] == "eval/ is of the test split, which the best was chosen by."
    # A metric that runs do not choose by is no best.
    other = BY._replace(metric="eval/loss", split="validation")
    lines = compare.table(found, config, other).splitlines()
    assert "| final eval/loss | eval/loss at the best eval/accuracy | final train/loss " in lines[0]
    assert "eval/ is of the validation split, which the best was chosen by." in lines


def test_experiments_are_found():
    assert {"lenet", "mlp", "resnet", "vgg"} <= set(catalogue.names())
    assert not {"classification", "compare", "training", "predict"} & set(catalogue.names())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--experiment=: it must be one of alexnet, "),
        (["--experiment=lenet", "--values=1,2"], "--flag=: it must be given"),
        (["--experiment=lenot", "--flag=x", "--values=1,2"], "--experiment=lenot: it must be one "),
        ([*TINY, "--flag=optimiser", "--values=sgd,adam"], "no flag --optimiser; did you mean --o"),
        ([*TINY, "--flag=optimizer", "--values=sgd,adan"], "should be one of"),
        ([*TINY, "--flag=optimizer", "--values=sgd"], "--values=sgd: it must be two values or"),
        ([*TINY, "--flag=optimizer", "--values=sgd,sgd"], "--values=sgd,sgd: it must be each "),
        ([*TINY, "--flag=seed", "--values=1,2"], "--flag=seed: it must be a flag that compare "),
        ([*ACTIVATIONS, "--seed=3"], "--seed=3: compare sets --seed of every run itself"),
        ([*ACTIVATIONS, "--seeds=0"], "--seeds=0: it must be at least 1"),
        ([*ACTIVATIONS, "--widht=3"], "no flag --widht; did you mean --width?"),
        ([*ACTIVATIONS, "--learning_rates=0.1"], "it must be one for each of the 2 values"),
        ([*ACTIVATIONS, "--metric=eval/bleu"], "--metric=eval/bleu: it must be one of eval/acc"),
        ([*ACTIVATIONS, "more"], "'more' is no flag"),
        ([*ACTIVATIONS, "--folds=5"], "give no --folds"),
        ([*TINY, "--flag=dataset", "--values=digits,folder:/no/such"], "/no/such"),
        ([*TINY, "--flag=batch_size", "--values=32,30"], "30 does not divide by the 8 devices"),
        ([*TINY, "--flag=depth", "--values=1,-1"], "a depth of at least 0, not -1"),
    ],
)
def test_mistakes_are_found_before_anything_trains(arguments, message, trained, monkeypatch):
    monkeypatch.setattr(parallel, "data_mesh", all_devices)
    with pytest.raises(InputError) as error:
        compare.run(["--workdir=new", *arguments])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert trained == []
    assert not Path("new").exists()


def test_a_folder_of_other_runs_is_left_alone(compared, trained):
    with pytest.raises(InputError, match="holds a run with --width=8, not 9"):
        compare.run([*ACTIVATIONS, f"--workdir={compared}", "--width=9"])
    assert trained == []


SEQUENCES = {
    "char_rnn": (
        ("--text=book.txt", "--features=8", "--embedding=4", "--sequence_length=10"),
        ("kind", "rnn", "gru", "eval/bits_per_character"),
    ),
    "word2vec": (
        ("--text=book.txt", "--features=4", "--min_count=1", "--neighbours=1"),
        ("model", "skipgram", "cbow", "eval/loss"),
    ),
    "seq2seq": (
        ("--dataset=dates", "--level=char", "--count=200", "--features=8", "--embedding=4"),
        ("attention", "none", "luong", "eval/exact_match"),
    ),
}


def sequences(name):
    """The arguments of a comparison, its values and the metric that it is by."""
    flags, (flag, *values, metric) = SEQUENCES[name]
    Path("book.txt").write_text("the cat sees the dog and the dog hears the bird.\n" * 200)
    steps = ("--steps=2", "--eval_every=1", "--log_every=1", "--batch_size=8", "--seeds=1")
    steps = (*steps, "--nohistograms")
    compared = (f"--experiment={name}", f"--flag={flag}", f"--values={','.join(values)}")
    return [*compared, *flags, *steps, "--workdir=all", "--nohistograms"], values, metric


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequence_experiments_are_compared_by_their_own_metric(name, monkeypatch):
    """Up to the training, before which all is checked."""
    arguments, values, metric = sequences(name)
    checked, check, planned = [], compare.check, []

    def recorded(runs, config):
        checked.append(check(runs, config))
        return checked[-1]

    def stopped(runs, *_, **__):
        planned.extend(runs)
        raise cli.Interrupted(15)

    monkeypatch.setattr(compare, "check", recorded)
    monkeypatch.setattr(study, "train", stopped)
    with pytest.raises(cli.Interrupted):
        compare.run(arguments)
    assert [run.setup for run in planned] == values
    assert checked == [compare.Compared(metric, "train/loss", metric, "validation")]


@pytest.mark.slow
def test_a_sequence_experiment_is_compared_too():
    arguments, values, metric = sequences("word2vec")
    compare.run(arguments)
    record = json.loads(Path("all/table.json").read_text())
    assert record["metric"] == metric
    for value in values:
        summary = json.loads(Path(f"all/model={value}/seed0/summary.json").read_text())
        assert record["results"][value]["final"]["mean"] == summary[metric]
    assert len({record["results"][v]["train_loss"]["mean"] for v in values}) == 2
