"""Sequence to sequence from the command line: the record, resuming, translating, mistakes."""

import io
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import seq2seq
from experiments.harness import cli, run_folder, training, translation
from jaxdl import InputError, checkpoint
from jaxdl.data.pairs import GO, SubwordVocabulary
from jaxdl.writers import read_rows

pytestmark = pytest.mark.usefixtures("one_device")  # quicker to compile for than eight
SMALL = ["--dataset=dates", "--level=char", "--count=300", "--features=16", "--embedding=8"]
SMALL += ["--batch_size=16", "--steps=12", "--eval_every=6", "--checkpoint_every=6", "--buckets=1"]
SMALL += ["--log_every=3", "--keep=3"]


def run(*flags):
    """Trains in this process."""
    config, _ = cli.parse(seq2seq.Config, [*SMALL, *flags])
    return training.train(config, seq2seq.build)


def mode(name, workdir, *flags):
    saved = f"--flagfile={workdir / run_folder.FLAGS_FILE}"
    config, _ = cli.parse(seq2seq.Config, [saved, f"--mode={name}", *flags])
    {"translate": seq2seq.translate, "eval": training.evaluate}[name](config, seq2seq.build)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small run, its folder, and what it printed."""
    workdir = tmp_path_factory.mktemp("seq2seq") / "run"
    printed = io.StringIO()
    before, sys.stdout = sys.stdout, printed
    try:
        summary = run(f"--workdir={workdir}")
    finally:
        sys.stdout = before
    return workdir, summary, printed.getvalue()


@pytest.mark.slow
def test_a_run_leaves_the_whole_record(trained):
    workdir, _, printed = trained
    summary = json.loads((workdir / "summary.json").read_text())
    assert 0 <= summary["eval/exact_match"] <= 1
    assert 0 <= summary["eval/bleu"] <= 100
    assert 0 <= summary["eval/chrf"] <= 100
    np.testing.assert_allclose(summary["eval/perplexity"], np.exp(summary["eval/loss"]), rtol=1e-4)
    assert sum(summary["pairs"].values()) == 300
    assert 0 < summary["padding_share"] < 0.6
    assert summary["pairs_too_long"] == {"train": 0, "validation": 0, "test": 0}
    assert all(0 <= share <= 1 for share in summary["exact_match_by_source_length"].values())
    assert " -> " in printed
    rows = read_rows(workdir)
    assert [row["step"] for row in rows if "eval/bleu" in row] == [6, 12]
    inputs = json.loads((workdir / "inputs.json").read_text())
    vocabulary = SubwordVocabulary.from_json(inputs["target_vocabulary"])
    assert vocabulary.decode(vocabulary.encode(["1999-12-31"])[0]) == "1999-12-31"
    assert (workdir / seq2seq.PICTURE_FILE).is_file()
    shown = b"".join(path.read_bytes() for path in (workdir / "tensorboard").glob("events*"))
    assert "│ source_embedding".encode() in shown  # the table of its layers
    assert b"\x1b[0m" not in shown  # as a page shows it, not a terminal


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit(trained, tmp_path):
    workdir, _, _ = trained
    again = tmp_path / "again"
    again.mkdir()
    for name in (run_folder.FLAGS_FILE, "inputs.json", "metrics.jsonl"):
        shutil.copy(workdir / name, again)
    shutil.copytree(workdir / "checkpoints" / "6", again / "checkpoints" / "6")
    run(f"--workdir={again}", "--resume=must")
    one, other = checkpoint.load(workdir), checkpoint.load(again)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    rows = lambda folder: [
        {k: v for k, v in row.items() if "per_second" not in k} for row in read_rows(folder)
    ]
    assert rows(workdir) == rows(again)


@pytest.mark.slow
def test_other_pairs_are_another_run(trained, tmp_path):
    workdir, _, _ = trained
    inputs = json.loads((workdir / "inputs.json").read_text())
    shutil.copytree(workdir, tmp_path / "run")
    inputs["pairs_sha256"] = "0"
    (tmp_path / "run" / "inputs.json").write_text(json.dumps(inputs))
    with pytest.raises(InputError, match=r"has another pairs_sha256 than .*another --w"):
        run(f"--workdir={tmp_path / 'run'}")


@pytest.mark.slow
def test_evaluation_of_a_run_under_pmap(trained, capsys):
    workdir, summary, _ = trained
    mode("eval", workdir, "--parallel=pmap")
    assert f"loss {summary['test/loss']:.4g}" in capsys.readouterr().out


@pytest.mark.slow
def test_lines_are_translated(trained, capsys, monkeypatch):
    workdir, _, _ = trained
    (workdir / seq2seq.PICTURE_FILE).unlink()
    text = "April 3, 2005\n\n3. April 2005\nApril ♠, 2005\n" + "9" * 80 + "\nApril "
    stdin = io.TextIOWrapper(io.BytesIO(text.encode() + b"\xe9, 2005\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(InputError, match="2 of the lines were empty or too long"):
        mode("translate", workdir, "--beam=3")
    out, err = capsys.readouterr()
    lines = out.split("\n")
    assert len(lines) == 7
    assert [bool(line) for line in lines] == [True, False, True, True, False, True, False]
    assert err.splitlines() == [
        "error: line 2: empty",
        "line 4: read as <unk>: '♠'",
        "error: line 5: 81 tokens, more than --max_length=64",
        "line 6: read as <unk>: '\N{REPLACEMENT CHARACTER}'",
        f"wrote {workdir / seq2seq.PICTURE_FILE}: what the translations above attend to",
    ]
    assert (workdir / seq2seq.PICTURE_FILE).is_file()


@pytest.mark.slow
def test_a_picture_that_cannot_be_written_costs_no_translation(trained, tmp_path, capsys):
    workdir, _, _ = trained
    shutil.copytree(workdir, tmp_path / "run")
    picture = tmp_path / "run" / seq2seq.PICTURE_FILE
    picture.unlink()
    picture.mkdir()
    (tmp_path / "lines.txt").write_text("April 3, 2005\n")
    mode("translate", workdir, f"--workdir={tmp_path / 'run'}", f"--input={tmp_path / 'lines.txt'}")
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert err.startswith(f"warning: {picture} not written: ")


@pytest.mark.slow
def test_attention_is_drawn_with_its_labels(trained, monkeypatch):
    workdir, _, _ = trained
    config, _ = cli.parse(seq2seq.Config, [f"--flagfile={workdir / run_folder.FLAGS_FILE}"])
    vocabularies = [SubwordVocabulary.learn([text], "char", 20) for text in ("abc", "xyz")]
    model = seq2seq.build_model(config, *vocabularies)
    source, target = (
        np.array(v.encode([text])[0]) for v, text in zip(vocabularies, ("cab", "zy"), strict=True)
    )
    params = model.init(jax.random.key(0), source[None], np.array([4]), target[None], train=False)
    drawn = []
    monkeypatch.setattr(translation, "Figure", lambda **_: drawn.append(Figure(**_)) or drawn[-1])
    picture = seq2seq.heat_maps(model, params["params"], vocabularies, [source], [target])
    assert picture.shape == (450, 450, 3)
    ((axes,),) = (figure.axes for figure in drawn)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["c", "a", "b", "<eos>"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["z", "y", "<eos>"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("source", "translation")
    assert "attention" in drawn[0].get_suptitle()
    inputs = np.array([[GO, *target[:-1]]])
    _, weights = model.apply(params, source[None], np.array([4]), inputs, train=False)
    np.testing.assert_allclose(axes.images[0].get_array(), weights[0], atol=1e-5)


@pytest.mark.slow
def test_the_n_best_come_with_scores(trained, capsys, tmp_path):
    workdir, _, _ = trained
    (tmp_path / "lines.txt").write_text("April 3, 2005\n3 avril 2005\n")
    flags = [f"--input={tmp_path / 'lines.txt'}", "--beam=4", "--coverage_penalty=0.2"]
    mode("translate", workdir, *flags, "--n_best=3")
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["1", "1", "1", "2", "2", "2"]
    for start in (0, 3):
        scores = [float(row[1]) for row in rows[start : start + 3]]
        assert scores == sorted(scores, reverse=True)
        assert len({row[2] for row in rows[start : start + 3]}) == 3
    mode("translate", workdir, *flags)
    assert capsys.readouterr().out.splitlines() == [rows[0][2], rows[3][2]]


@pytest.mark.slow
def test_a_vocabulary_of_another_run_is_named(trained, tmp_path):
    workdir, _, _ = trained
    shutil.copytree(workdir, tmp_path / "run")
    path = tmp_path / "run" / "inputs.json"
    inputs = json.loads(path.read_text())
    inputs["source_vocabulary"] = SubwordVocabulary.learn(["abc"], "char", 20).to_json()
    path.write_text(json.dumps(inputs))
    with pytest.raises(InputError, match=r"a source vocabulary of 7 tokens that is not its check"):
        mode("translate", tmp_path / "run", f"--workdir={tmp_path / 'run'}")
    (tmp_path / "latin").write_bytes(b"\xe9t\xe9\n")
    with pytest.raises(InputError, match="it is no UTF-8 text"):
        mode("translate", workdir, f"--input={tmp_path / 'latin'}")
    for flag, held in (("features=32", "features=16"), ("reverse_source=true", "reverse_source=f")):
        with pytest.raises(InputError, match=f"holds a run with --{held}"):
            mode("translate", workdir, f"--{flag}")


@pytest.mark.slow
def test_reversed_sources_sampled_inputs_and_half_precision_go_together(tmp_path, capsys):
    summary = run(
        f"--workdir={tmp_path / 'run'}",
        *("--reverse_source", "--scheduled_sampling=0.5", "--precision=bfloat16"),
        *("--attention=bahdanau", "--max_length=20", "--ema_decay=0.9", "--kind=gru"),
        *("--steps=2", "--grad_accum=2", "--eval_every=2", "--dropout=0.1"),
    )
    out = capsys.readouterr().out
    assert "left out, with more than --max_length=20 tokens: " in out
    assert summary["pairs_too_long"]["train"] > 0
    assert {"eval/ema_exact_match", "eval/bleu"} <= summary.keys()
    averages = checkpoint.load(tmp_path / "run")["average"]["params"]
    jax.tree.map(
        np.testing.assert_array_equal, run_folder.trained_params(tmp_path / "run"), averages
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--features=7"], "--features=7: it must be even"),
        (["--beam=2", "--n_best=3"], "--n_best=3: it must be 1 to --beam=2"),
        (["--attention=none", "--coverage_penalty=1"], "--coverage_penalty=1.0: .* 0 with --atten"),
        (["--scheduled_sampling=2"], "--scheduled_sampling=2.0: it must be at least 0"),
        (["--folds=3"], "--folds=3: it must be left out"),
        (["--grad_accum=5"], "--grad_accum=5: .* divisor of the batch_size 16"),
        (["--dropout=1"], "--dropout=1.0: .* less than 1"),
        (["--count=0"], "--count=0: it must be at least 1"),
        (["--length_penalty=-1"], "--length_penalty=-1.0: it must be at least 0"),
        (["--attention=self"], "--attention=self: value should be one of"),
    ],
)
def test_flags_that_cannot_be_are_named(flags, message):
    with pytest.raises(InputError, match=message):
        cli.parse(seq2seq.Config, [*SMALL, *flags])


def test_the_recipe_is_a_config():
    recipe = Path(seq2seq.__file__).parent / "flags" / "seq2seq_numbers.flags"
    config, rest = cli.parse(seq2seq.Config, [f"--flagfile={recipe}"])
    assert rest == []
    assert config.pairs.dataset == "numbers"
