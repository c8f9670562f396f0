"""Tables and the regressions on them: reading, standardizing, measuring, and what is refused."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import regression
from experiments.harness import table_data
from experiments.harness.study import read
from jaxdl import InputError, data, parallel
from jaxdl.data import tables
from jaxdl.data.tables import Standardization

QUIET = ("--workdir=run", "--histograms=false", "--log_every=1000", "--eval_every=1000")

HOUSES = """\ufeffarea;town ; price

50; Ulm ;100
70;"Bonn; north";150
?;Ulm;120
60;NA;130
90;"Bonn; north";
"""


@pytest.fixture
def houses(tmp_path):
    path = tmp_path / "houses.csv"
    path.write_text(HOUSES, encoding="utf-8")
    return path


def test_a_csv_becomes_numbers(houses):
    table = tables.read_csv(houses)
    assert list(table.columns) == ["area", "town", "price"]
    numbers = tables.design(table, "price")
    assert numbers.input_names == ("area", "town=Bonn; north", "town=Ulm")
    nan = np.nan
    expected = [[50, 0, 1], [70, 1, 0], [nan, 0, 1], [60, nan, nan], [90, 1, 0]]
    np.testing.assert_array_equal(numbers.inputs, expected)
    np.testing.assert_array_equal(numbers.targets, [[100], [150], [120], [130], [nan]])
    np.testing.assert_array_equal(numbers.lacking, [False, False, True, True, True])
    assert numbers.describe_missing() == (
        f"3 of the 5 rows of {houses} lack values: 1 in 'area' (first in line 5), 1 in 'town' "
        "(first in line 6), 1 in 'price' (first in line 7)"
    )
    chosen = tables.design(table, "price", ["town", "area"], ["town"])
    np.testing.assert_array_equal(chosen.inputs, numbers.inputs[:, :1])


def test_missing_values_are_dropped_or_filled_in(houses, capsys):
    flags = [f"--dataset=csv:{houses}", "--target=price", "--test=0"]
    dropped = table_data.load(read(regression.Config, [*flags, "--missing=drop"]))
    np.testing.assert_array_equal(dropped.targets[:, 0], [100, 150])
    assert not dropped.lacking.any()
    assert capsys.readouterr().err.endswith("(first in line 7); rows left out: 3\n")
    filled = table_data.load(read(regression.Config, [*flags, "--missing=mean"]))
    np.testing.assert_array_equal(filled.targets[:, 0], [100, 150, 120, 130])
    assert capsys.readouterr().err.endswith("; means fill in; rows left out: 1\n")
    standard = Standardization.of(filled.inputs)
    np.testing.assert_allclose(standard.mean, [60, 1 / 3, 2 / 3])
    # The mean of what is known, and of a category its shares.
    whole = standard.undo(standard.apply(filled.inputs))
    np.testing.assert_allclose(whole[2:], [[60, 0, 1], [60, 1 / 3, 2 / 3]], atol=1e-6)


def test_standardized_rows_have_mean_0_and_variance_1_and_come_back():
    rows = np.random.default_rng(0).normal(1e4, [1, 100, 1e-3], (50, 3))
    rows[:, 1] = 0.1  # whose computed variance is not 0
    standard = Standardization.of(rows)
    there = np.float64(standard.apply(rows))
    np.testing.assert_allclose(there.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(there.std(0), [1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(standard.undo(there), rows, atol=1e-3, rtol=0)
    assert standard.apply(np.array([[0, 1.1, 0]]))[0, 1] == pytest.approx(1)


def make_data(*flags):
    config = read(regression.Config, ["--batch_size=8", *flags])
    return table_data.make_data(config, parallel.data_mesh(jax.devices()[:1]))


def test_splits_are_drawn_of_all_rows_and_standardized_by_the_training_rows():
    table = make_data("--validation=0.25", "--seed=3")
    sizes = {name: len(part.targets) for name, part in table.splits.items()}
    assert sizes == {"train": 354 - 88, "test": 88, "validation": 88}
    lines = np.concatenate([part.lines for part in table.splits.values()])
    np.testing.assert_array_equal(np.sort(lines), np.arange(1, 443))
    train = table.splits["train"]
    for given, found in ((train.inputs, table.inputs), (train.targets, table.targets)):
        np.testing.assert_allclose(found.mean, given.mean(0), atol=1e-12)
        np.testing.assert_allclose(found.scale, given.std(0))
    fed = [batch["input"][batch["mask"] == 1] for batch in table.pipeline.evaluate("test")]
    test = table.splits["test"].inputs
    expected = (test - train.inputs.mean(0)) / train.inputs.std(0)
    np.testing.assert_allclose(np.concatenate(fed), expected, atol=1e-5)
    others = make_data("--validation=0.25", "--seed=4").splits["test"].lines
    assert set(others) != set(table.splits["test"].lines)
    # An image set of as many examples without classes is cut at the same places.
    images = data.Dataset("images", {"train": list(range(442))}, (), 1)
    held_out = data.hold_out(images, 0.2, 3, "test").splits["test"]
    expected = [1 + held_out[i] for i in range(len(held_out))]
    np.testing.assert_array_equal(table.splits["test"].lines, expected)


def test_every_row_is_tested_on_in_one_fold():
    tested = []
    for fold in range(4):
        splits = make_data("--folds=4", f"--fold={fold}").splits
        assert not set(splits["train"].lines) & set(splits["test"].lines)
        tested += list(splits["test"].lines)
    assert sorted(tested) == list(range(1, 443))


def test_losses_by_their_flags():
    outputs, targets = np.float32([[3.0]]), np.float32([[0.0]])
    found = {}
    for name, *flags in (["mse"], ["mae"], ["huber"], ["huber", "--huber_delta=2"]):
        config = read(regression.Config, [f"--loss={name}", *flags])
        found[name, *flags] = float(config.minimized.elementwise(outputs, targets)[0, 0])
    assert [*found.values()] == [9, 3, 2.5, 4]


def test_the_recipe_is_what_no_flags_are():
    recipe = Path(__file__).parent.parent / "experiments" / "flags" / "regression_diabetes.flags"
    config = read(regression.Config, [f"--flagfile={recipe}"])
    assert config == read(regression.Config, [f"--workdir={config.run.workdir}"])


def least_squares(table):
    """A table's closed form: (slopes and intercept, rmse, mae and r2 of its test rows)."""
    train, test = (table.splits[name] for name in ("train", "test"))
    ones = lambda rows: np.c_[rows, np.ones(len(rows))]
    solution = np.linalg.lstsq(ones(train.inputs), train.targets[:, 0], rcond=None)[0]
    truth = test.targets[:, 0]
    errors = ones(test.inputs) @ solution - truth
    r2 = 1 - (errors**2).sum() / ((truth - truth.mean()) ** 2).sum()
    return solution, (np.sqrt((errors**2).mean()), np.abs(errors).mean(), r2)


FULL_BATCH = (
    *("--columns=bmi,bp,s5", "--batch_size=354", "--schedule=constant", "--steps=300"),
    *("--optimizer=momentum", "--learning_rate=0.2"),
)


def summary_in(folder):
    return json.loads((folder / "summary.json").read_text())


def test_full_batch_descent_ends_at_least_squares(experiment):
    """In the columns' own units, and what is measured too, with the run and afterwards."""
    printed = experiment("regression", *QUIET, *FULL_BATCH).stdout
    summary = summary_in(experiment.folder / "run")
    solution, expected = least_squares(make_data(*FULL_BATCH))
    assert list(summary["coefficients"]) == ["bmi", "bp", "s5"]
    found = [*summary["coefficients"].values(), summary["intercept"]]
    np.testing.assert_allclose(found, solution, rtol=1e-5)
    measured = [summary[f"test/{name}"] for name in ("rmse", "mae", "r2")]
    np.testing.assert_allclose(measured, expected, rtol=1e-5)
    assert "best checkpoint, by rmse on the test split: step 300" in printed
    assert (experiment.folder / "run" / "predictions.png").stat().st_size > 10_000
    again = experiment("regression", "--mode=eval", "--workdir=run").stdout
    assert f"  rmse {expected[0]:.4g}  r2 {expected[2]:.4g}  (88 rows)\n" in again


def test_the_picture_is_of_predictions_beside_the_truth_or_over_the_only_input():
    for flags, inputs in (((), 10), (("--columns=bmi",), 1)):
        table = make_data(*flags)
        truth = {name: part.targets[:, 0] for name, part in table.splits.items()}
        axes = regression.draw(table, {name: y / 2 for name, y in truth.items()}).axes[0]
        for dots, name in zip(axes.collections, ("train", "test"), strict=True):
            x = table.splits[name].inputs[:, 0]
            pairs = (x, truth[name]) if inputs == 1 else (truth[name], truth[name] / 2)
            np.testing.assert_allclose(dots.get_offsets(), np.stack(pairs, 1))
        x = axes.lines[0].get_xdata()
        assert (np.diff(x) >= 0).all()
        assert len(x) == (442 if inputs == 1 else 2)
        assert axes.get_xlabel() == ("bmi" if inputs == 1 else "progression, as it is")


TABLES = {
    "good.csv": "x,y\n1,2\n2,3\n3,5\n4,4\n",
    "empty.csv": "",
    "names.csv": "x,y\n",
    "one.csv": "x,y\n1,2\n",
    "mixed.csv": "x,y\n1,2\ntwo,3\n3,4\n",
    "category.csv": "x,y\n1,red\n2,blue\n3,red\n",
    "constant.csv": "x,z,y\n1,7,2\n2,7,3\n",
    "flat.csv": "x,y\n1,7\n2,7\n",
    "nan.csv": "x,y\n1,2\nnan,3\n3,4\n,5\n",
    "nothing.csv": "x,z,y\n1,,2\n2,?,3\n",
    "inf.csv": "x,y\n1,2\n-inf,3\n3,4\n",
    "ragged.csv": "x,y\n1,2\n1,2,3\n",
    "twice.csv": "x,x\n1,2\n1,3\n",
    "unnamed.csv": ",y\n1,2\n1,3\n",
    "quote.csv": 'x,y\n1,"2\n3,4\n',
    "many.csv": "x,y\n" + "".join(f"name{i},{i}\n" for i in range(101)),
}
MISTAKES = [
    ("good", "--target=z", "column 'z' of good.csv: expected one of x, y"),
    ("good", "", "--target=: it must be a column of the file"),
    ("good", "--target=y --columns=x,z", "column 'z' of good.csv: expected one of x, y"),
    ("good", "--target=y --leave_out=z", "column 'z' of good.csv: expected one of x, y"),
    ("good", "--target=y --columns=x,y", "inputs x, y: expected none of them the target y"),
    ("good", "--target=y --leave_out=x", "no column of good.csv to predict 'y' from"),
    ("good", "--target=y --test=1", "--test=1.0: it must be at least 0 and less than 1"),
    ("good", "--target=y --test=0.01", "test share 0.01 of 4 train examples leaves a part empty"),
    ("good", "--target=y --test=0 --batch_size=2", "there is nothing to evaluate by"),
    ("good", "--target=y", "batch size 32: expected 1 to 3, the number of train examples"),
    ("good", "--target=y --folds=2 --test=0.5", "--test=0.5: it must be left out with --folds"),
    ("good", "--target=y --width=8", "linear does not take width; it takes num_classes"),
    ("good", "--target=y --huber_delta=0", "--huber_delta=0.0: it must be more than 0"),
    ("empty", "--target=y", "empty.csv, which is empty: expected a line of names"),
    ("names", "--target=y", "0 rows of values in names.csv: expected at least 2"),
    ("one", "--target=y", "1 row of values in one.csv: expected at least 2"),
    ("mixed", "--target=y", "column 'x' of mixed.csv has the text 'two' in line 3 and the number"),
    ("category", "--target=y", "target 'y' of category.csv, which is of names: expected one of"),
    ("constant", "--target=y", "column 'z' of constant.csv, 7.0 throughout: expected two values"),
    ("flat", "--target=y", "column 'y' of flat.csv, 7.0 throughout: expected two values"),
    ("nan", "--target=y", "2 of the 4 rows of nan.csv lack values: 2 in 'x' (first in line 3); "),
    ("nothing", "--target=y", "column 'z' of nothing.csv, which is empty: expected some values"),
    ("inf", "--target=y", "column 'x' of inf.csv has -inf in line 3: expected finite numbers"),
    ("ragged", "--target=y", "3 values in line 3 of ragged.csv: expected 2, one for each name"),
    ("twice", "--target=x", "column 2 of twice.csv called 'x' again: expected another name"),
    ("unnamed", "--target=y", "column 1 of unnamed.csv without a name: expected one in the first"),
    ("quote", "--target=y", "quote.csv is no csv file in UTF-8 (unexpected end of data)"),
    ("many", "--target=y", "column 'x' of many.csv, of 101 names: expected at most 100, or to be"),
    ("gone", "--target=y", "gone.csv cannot be read (No such file or directory)"),
    ("binary", "--target=y", "binary.csv is no csv file in UTF-8 ("),
]


@pytest.mark.parametrize(("name", "flags", "message"), MISTAKES)
def test_a_mistake_is_told_in_one_line(name, flags, message, experiment):
    for file, text in TABLES.items():
        (experiment.folder / file).write_text(text)
    (experiment.folder / "binary.csv").write_bytes(b"x,y\n1,\xff\n2,3\n")
    given = [f"--dataset=csv:{name}.csv", "--workdir=run", *flags.split()]
    done = experiment("regression", *given, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert not (experiment.folder / "run" / "summary.json").exists()


def test_a_column_that_is_left_out_may_hold_anything(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("id,x,y\n7,1,2\nb,2,3\n,3,4\n")
    table = tables.read_csv(path)
    assert tables.design(table, "y", left_out=["id"]).input_names == ("x",)
    assert tables.design(table, "y", ["x"]).input_names == ("x",)
    with pytest.raises(InputError, match=r"'id' of .* has the text 'b' in line 3 and the number 7"):
        tables.design(table, "y")


@pytest.mark.slow
def test_eight_devices_and_a_run_that_goes_on_end_alike(experiment):
    flags = [*QUIET[1:], "--model=mlp", "--width=8", "--depth=1", "--batch_norm"]
    flags += ["--validation=0.2", "--steps=8", "--loss=huber", "--ema_decay=0.9"]
    flags += ["--schedule=constant"]  # which knows of no last step
    experiment("regression", *flags, "--workdir=one")
    experiment("regression", *flags, "--workdir=eight", devices=8)
    experiment("regression", *flags, "--steps=4", "--workdir=longer")
    experiment("regression", *flags, "--workdir=longer", "--resume=extend")
    one, eight, longer = (
        summary_in(experiment.folder / name) for name in ("one", "eight", "longer")
    )
    names = [f"{split}/{name}" for split in ("test", "eval") for name in ("rmse", "mae", "r2")]
    names += [name.replace("/", "/ema_") for name in names]
    assert set(names) < set(one)
    for name in names:
        assert eight[name] == pytest.approx(one[name], rel=1e-3), name
        assert longer[name] == one[name], name
    assert longer["step"] == 8
    assert one["examples"] == {"train": 283, "test": 88, "validation": 71}
    assert one["test/rmse"] != one["test/ema_rmse"]


@pytest.mark.slow
def test_hidden_layers_learn_what_no_line_does(experiment):
    x = np.random.default_rng(0).uniform(-1, 1, 400)
    rows = "".join(f"{v:.6f},{100 + 50 * abs(v):.6f}\n" for v in x)
    (experiment.folder / "roof.csv").write_text("x,y\n" + rows)
    flags = [*QUIET[1:], "--dataset=csv:roof.csv", "--target=y", "--epochs=40"]
    experiment("regression", *flags, "--workdir=line")
    hidden = ["--model=mlp", "--width=16", "--optimizer=adam"]
    experiment("regression", *flags, *hidden, "--workdir=mlp")
    line, mlp = (summary_in(experiment.folder / name) for name in ("line", "mlp"))
    assert line["test/r2"] < 0.1
    assert mlp["test/r2"] > 0.98
    assert "coefficients" in line
    assert "coefficients" not in mlp


@pytest.mark.slow
def test_folds_and_compare(experiment):
    done = experiment("regression", *QUIET, "--folds=2", "--steps=20")
    assert "test/rmse: " in done.stdout
    folds = summary_in(experiment.folder / "run")["folds"]["test/rmse"]
    assert len(set(folds)) == 2
    compared = ["--experiment=regression", "--flag=loss", "--values=mse,mae", "--seeds=1"]
    printed = experiment("compare", *compared, *QUIET[1:], "--steps=20", "--workdir=losses").stdout
    assert "eval/rmse" in printed
