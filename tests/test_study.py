"""`experiments.harness.study`: what it trains, what it refuses, and how it tells what was found."""

import dataclasses
import json
import math
import statistics

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import mlp
from experiments.harness import cli, run_folder, study, training
from experiments.harness.cli import flag
from experiments.harness.study import Run, StudyFlags
from jaxdl import InputError, figures, loop


@dataclasses.dataclass(frozen=True)
class Config:
    """A study of nothing."""

    study: StudyFlags = StudyFlags("runs/nothing", seeds=2)
    sizes: tuple[int, ...] = flag((1, 2), "something")


def of(folder):
    """The study in a folder."""
    return Config(StudyFlags(str(folder), seeds=2))


@pytest.fixture(autouse=True)
def trained(monkeypatch):
    """The runs that would have been trained; each leaves what a run leaves."""
    found = []

    def train(config, build):
        found.append(config.run.workdir)
        folder = training.Path(config.run.workdir)
        folder.mkdir(parents=True)
        (folder / run_folder.FLAGS_FILE).write_text(cli.to_flags(config))
        if cli.to_dict(config)["seed"] == 7:
            raise loop.Diverged("loss is nan at step 3")
        (folder / run_folder.SUMMARY_FILE).write_text('{"step": 4, "test/accuracy": 0.5}')

    monkeypatch.setattr(training, "prepare_jax", lambda *config, **how: None)
    monkeypatch.setattr(training, "train", train)
    return found


def runs_of(folder, *seeds, arguments=("--width=8",)):
    return [Run("some", seed, folder / "some", mlp, arguments) for seed in seeds]


def test_what_is_done_is_not_trained_again(tmp_path, trained, capsys):
    runs = runs_of(tmp_path, 3, 4)  # first one seed, then one more
    assert cli.to_dict(runs[1].config)["seed"] == 4
    study.train(runs[:1])
    study.train(runs)
    assert trained == [str(tmp_path / "some" / f"seed{seed}") for seed in (3, 4)]
    lines = capsys.readouterr().out.splitlines()
    first = tmp_path / "some" / "seed3"
    assert lines[:2] == [f"run 1 of 1: {first}", f"run 1 of 2: {first}, which is done"]
    assert runs[1].summary()["test/accuracy"] == 0.5
    assert runs[1].diverged == ""


def test_divergence_is_a_result_where_it_is_asked_for(tmp_path, trained):
    runs = runs_of(tmp_path, 7, 0)
    with pytest.raises(loop.Diverged):
        study.train(runs)
    assert len(trained) == 1
    runs = runs_of(tmp_path / "other", 7, 0)
    for _ in range(2):
        study.train(runs, divergence_is_a_result=True)
        assert len(trained) == 3
    assert [run.diverged for run in runs] == ["loss is nan at step 3", ""]


def test_a_signal_ends_the_study_too(tmp_path, monkeypatch, capsys):
    def stopped(config, build):
        raise cli.Interrupted(15)

    monkeypatch.setattr(training, "train", stopped)
    with pytest.raises(cli.Interrupted):
        study.train(runs_of(tmp_path, 0, 1))
    assert capsys.readouterr().out.endswith("and with the study: the same command\n")


PAGE = study.Page(
    "a", "The finding", "What it is of.", "Command: `python -m experiments.studies.a`"
)


def finish(config):
    study.finish(config, {"found": [1.0, math.inf]}, "Title.", "a table", {}, PAGE)


def test_a_folder_is_of_one_study(tmp_path, trained):
    config = of(tmp_path / "of_study")
    study.begin(config, runs_of(tmp_path, 0))
    finish(config)
    study.begin(cli.replace(config, seeds=5, first_seed=1))
    other = cli.replace(config, sizes=(1, 3))
    study.begin(other, apart_from=["sizes"])
    with pytest.raises(InputError, match=r"holds a study with --sizes=\[1, 2\], not \[1, 3\]"):
        study.begin(other)
    fields = [("study", StudyFlags, config.study), ("width", int, flag(3, "of it"))]
    another = dataclasses.make_dataclass("Another", fields)
    with pytest.raises(InputError, match="of_study holds another study; take another --workdir"):
        study.begin(another())
    study.train(runs_of(tmp_path, 0))
    with pytest.raises(InputError, match="seed0 holds a run with --width=8, not 9"):
        study.begin(config, runs_of(tmp_path, 0, arguments=("--width=9",)))
    with pytest.raises(InputError, match="seed0 holds a run and no study"):
        study.begin(of(trained[0]))
    (tmp_path / "of_study" / "table.json").write_text("{")
    with pytest.raises(InputError, match=r"table\.json is damaged; remove it"):
        study.begin(config)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--workdir=.*file is no folder"):
        study.begin(of(tmp_path / "file"))


def test_the_record_is_json_and_the_end_is_told(tmp_path, capsys):
    config = of(tmp_path / "new")
    drawn = []
    found = {"found": {"b": [1.0, math.inf], "a": math.nan}}
    study.finish(
        config, found, "Title.", "a table", {"a.png": drawn.append, "b/": drawn.append}, PAGE
    )
    record = json.loads((tmp_path / "new" / "table.json").read_text(), parse_constant=pytest.fail)
    assert list(record["found"]) == ["b", "a"]
    assert record["found"] == {"b": [1.0, None], "a": None}
    assert (record["sizes"], record["seeds"]) == ([1, 2], 2)
    assert (tmp_path / "new" / "table.md").read_text() == "Title.\n\na table\n"
    assert drawn == [tmp_path / "new" / "a.png", tmp_path / "new" / "b"]
    told = f"\nTitle.\n\na table\n\nin {tmp_path}/new: table.md, table.json, a.png, b/\n"
    assert capsys.readouterr().out == told


def test_a_page_has_the_pictures_beside_it(tmp_path):
    drawn = []
    pictures = {"a.png": drawn.append, "b.png": drawn.append, "a.gif": drawn.append}
    (tmp_path / "pages").mkdir()
    config = cli.replace(of(tmp_path / "new"), page=str(tmp_path / "pages"))
    study.finish(config, {}, "Title.", "a table", pictures, PAGE)
    assert (tmp_path / "pages" / "a.md").read_text() == (
        "# The finding\n\nWhat it is of.\n\n![The finding](a.png)\n\n![The finding](a_b.png)\n\n"
        "a table\n\nCommand: `python -m experiments.studies.a`\n"
    )
    assert drawn[3:] == [tmp_path / "pages" / "a.png", tmp_path / "pages" / "a_b.png"]
    with pytest.raises(InputError, match=r"--page=.*no: it must be a folder that there is"):
        cli.replace(config, page=str(tmp_path / "no"))


def test_spreads_and_cells_by_hand():
    values = [8, 3, None, 6]
    assert study.spread(values) == {
        "mean": pytest.approx(17 / 3),
        "std": pytest.approx(statistics.stdev([8, 3, 6])),
        "seeds": values,
    }
    assert study.spread([None])["mean"] is None
    assert study.spread([0.1] * 3)["std"] == 0
    show = "{:.1f}".format
    assert study.cell(values, show) == "5.7 ± 2.5"
    assert study.cell(values, show, "{:.3f}".format) == "5.7 ± 2.517"
    assert study.cell([7], show) == "7.0"
    assert study.cell([math.inf, 2.0], show) == "inf"
    assert study.cell([None, None], show) == ""
    assert study.significant(1234567.0, 4) == "1235000"
    assert study.significant(0.00012345, 2) == "0.00012"


def test_a_table_is_markdown_in_columns():
    text = study.table([["", "head"], ["first", "1"], ["2nd", "12345"]])
    assert text.splitlines() == [
        "|       | head  |",
        "| ----- | ----- |",
        "| first | 1     |",
        "| 2nd   | 12345 |",
    ]


def test_a_band_is_from_the_least_to_the_greatest():
    axes = Figure().subplots()
    figures.band(axes, [1, 2], [[1.0, 3.0], [2.0, 8.0, None]], "name")
    (line,) = axes.lines
    assert line.get_label() == "name"
    np.testing.assert_array_equal(line.get_xydata(), [[1, 2], [2, 5]])
    (area,) = axes.collections
    corners = {tuple(point) for point in area.get_paths()[0].vertices}
    assert corners == {(1, 1), (1, 3), (2, 2), (2, 8)}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds=0"], "--seeds=0: it must be at least 1"),
        (["--first_seed=-1"], "--first_seed=-1: it must be at least 0"),
        (["--first_seed=2147483647"], "it must be at least 0, 31 bits"),
        (["more"], "'more' is no flag"),
    ],
)
def test_bad_flags_are_named(flags, message):
    with pytest.raises(InputError, match=message):
        study.read(Config, flags)
    assert study.seeds_of(Config(StudyFlags(seeds=2, first_seed=3))) == range(3, 5)
