"""Word vectors from the command line: what is learned, what is asked, mistakes."""

import functools
import itertools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import word2vec
from experiments.harness import cli, run_folder
from jaxdl import InputError, checkpoint, optim, parallel
from jaxdl.data import words
from jaxdl.data.words import WordPipeline, WordVocabulary
from jaxdl.losses import word_prediction
from jaxdl.models.word2vec import Word2Vec
from jaxdl.task import supervised
from jaxdl.writers import read_rows

ROOT = Path(__file__).parent.parent

ANIMALS, TOOLS = ("cat", "dog", "cow", "hen"), ("saw", "axe", "file", "drill")


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """Animals do what animals do, and tools what tools do; within each kind, all do the same."""
    rng = np.random.default_rng(0)
    does = {ANIMALS: ("eats", "sleeps", "runs"), TOOLS: ("cuts", "breaks", "rusts")}
    lines = []
    for _ in range(2500):
        group = ANIMALS if rng.random() < 0.5 else TOOLS
        a, b = rng.choice(group, 2)
        first, second = rng.choice(does[group], 2)
        lines.append(f"The {a} {first} and the {b} {second}.\n")
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text("".join(lines))
    return path


def told(done, message):
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert done.stdout == ""


FLAGS = ("--features=16", "--window=3", "--subsample=0.02", "--batch_size=64", "--steps=300")
FLAGS = (*FLAGS, "--learning_rate=0.2", "--checkpoint_every=100", "--log_every=100")
FLAGS = (*FLAGS, "--eval_every=300", "--words=cat,saw", "--neighbours=3")


def names_after(line):
    return {pair.split()[0] for pair in line.split(": ")[1].split(", ")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, book, run_in):
    """The folder of a run on the book, not to be changed, its flags, and what it printed."""
    folder = tmp_path_factory.mktemp("word2vec")
    (folder / "questions.txt").write_text(": kinds\ncat dog saw axe\ncat dog saw horse\n")
    flags = (*FLAGS, f"--text={book}", f"--analogies={folder / 'questions.txt'}")
    done = run_in(folder, "word2vec", *flags, "--workdir=run")
    assert done.stderr == ""
    return folder / "run", flags, done.stdout


def flags_of(run, *flags):
    return cli.parse(word2vec.Config, [f"--flagfile={run / 'flags.txt'}", *flags])[0]


def test_it_learns(finished):
    run, _, printed = finished
    lines = {line.split(":")[0]: line for line in printed.splitlines()}
    assert names_after(lines["cat"]) == set(ANIMALS) - {"cat"}
    assert names_after(lines["saw"]) == set(TOOLS) - {"saw"}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["vocabulary_size"] == 16
    # Where all scores are 0, each of the 6 words of a pair costs log 2.
    assert summary["eval/pair_loss"] < 0.9 * 6 * np.log(2)
    assert summary["eval/loss"] > summary["eval/pair_loss"]
    first = read_rows(run)[0]
    assert {"words_per_second", "train/pair_loss", "train/learning_rate"} <= set(first)
    # The mean over steps 0 to 99 of a line from 0.2 to 0 in 300 steps.
    expected = 0.2 * np.mean([1 - step / 300 for step in range(100)])
    assert first["train/learning_rate"] == pytest.approx(expected, rel=1e-5)


def test_a_run_goes_on_bit_for_bit(finished, experiment):
    run, flags, _ = finished
    shutil.copytree(run, experiment.folder / "run")
    shutil.rmtree(experiment.folder / "run" / "checkpoints" / "300")
    done = experiment("word2vec", *flags, "--nohistograms", "--workdir=run")
    assert "steps 200 to 300" in done.stdout
    whole, parts = map(checkpoint.load, (run, experiment.folder / "run"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_the_command_is_asked_for_neighbours(finished, experiment):
    asked = ("--mode=neighbours", f"--workdir={finished[0]}", "--neighbours=1")
    done = experiment("word2vec", *asked, "--words=axe")
    assert names_after(done.stdout.strip()) < set(TOOLS)
    unknown = experiment("word2vec", *asked, "--words=pig", check=False)
    told(unknown, "no word 'pig' in the vocabulary of 16")


def test_analogies_of_a_run(finished, capsys, monkeypatch):
    run, _, _ = finished
    monkeypatch.chdir(run.parent)
    share = read_rows(run)[-1]["eval/analogies"]
    told_scores = f"{share:.4f}  ({share:.0f} right of 1; 1 with unknown words)"
    word2vec.analogies(flags_of(run), word2vec.build)
    assert capsys.readouterr().out == f"kinds: {told_scores}\nall: {told_scores}\n"
    with pytest.raises(InputError, match="--analogies=: it must be a file of questions to score"):
        word2vec.analogies(flags_of(run, "--analogies="), word2vec.build)


def test_vectors_of_a_run_are_exported(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    word2vec.export(flags_of(run, f"--workdir={run}"), word2vec.build)
    assert "run/vectors.txt" in capsys.readouterr().out
    names, vectors = words.read_vectors(run / "vectors.txt")
    np.testing.assert_array_equal(vectors, checkpoint.load(run)["params"]["input"])
    board = run / "tensorboard"
    assert (board / "words.tsv").read_text().splitlines() == names
    projected = np.loadtxt(board / "vectors.tsv", delimiter="\t")
    np.testing.assert_allclose(projected, vectors, rtol=1e-5, atol=1e-8)
    assert 'metadata_path: "words.tsv"' in (board / "projector_config.pbtxt").read_text()


def test_what_is_not_of_the_run_is_refused(finished, book, tmp_path):
    here = f"--workdir={finished[0]}"
    with pytest.raises(InputError, match="holds a run with --features=16, not 8"):
        word2vec.export(flags_of(finished[0], here, "--features=8"), word2vec.build)
    other = tmp_path / "other.txt"
    other.write_text(book.read_text() + "The cat eats.\n")
    config = flags_of(finished[0], here, f"--text={other}")
    problem = word2vec.build(config, parallel.data_mesh(jax.devices()[:1]))
    with pytest.raises(InputError, match="has another text_sha256 than the data given now"):
        run_folder.check_inputs(config.run.workdir, problem.inputs)


@pytest.mark.slow
def test_cbow_learns_the_same_kinds(book):
    """In one process: the neighbours of each animal are animals."""
    tokens = words.tokenize(book.read_text())
    vocabulary = WordVocabulary.of(tokens)
    pipeline = WordPipeline(
        {"train": vocabulary.encode(tokens)}, vocabulary.counts, 64, window=3, subsample=0.02
    )
    init, loss = word_prediction(Word2Vec(len(vocabulary), 16, cbow=True))
    task = supervised(init, loss, optim.optimizer("adagrad"))
    hparams = {"learning_rate": 0.2, "initial_accumulator_value": 1e-9, "eps": 0.0}
    state = task.init(jax.random.key(0), jax.tree.map(jnp.float32, hparams))
    step = jax.jit(task.train)
    for batch in itertools.islice(pipeline.train(), 400):
        state, metrics = step(state, batch)
    assert metrics["loss"].value < 0.9 * 6 * np.log(2)
    assert metrics["loss"].value == metrics["pair_loss"].value
    for group in (ANIMALS, TOOLS):
        for line in word2vec.describe_neighbours(
            vocabulary, state.params["input"], group, 3
        ).splitlines():
            assert names_after(line) == set(group) - {line.split(":")[0]}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=glove"], "should be one of"),
        (["--features=0"], "--features=0: it must be at least 1"),
        (["--window=0"], "--window=0: it must be at least 1"),
        (["--negatives=0"], "--negatives=0: it must be at least 1"),
        (["--min_count=0"], "--min_count=0: it must be at least 1"),
        (["--subsample=2"], "--subsample=2.0: it must be at least 0 and at most 1"),
        (["--folds=3"], "--folds=3: it must be left out"),
        (["--grad_accum=5"], "a divisor of the batch_size 2048"),
    ],
)
def test_mistakes_in_flags_are_named(flags, message):
    with pytest.raises(InputError, match=message):
        cli.parse(word2vec.Config, flags)


def test_mistakes_that_only_the_text_shows(tmp_path, book):
    build = functools.partial(word2vec.build, mesh=parallel.data_mesh(jax.devices()[:1]))
    config = lambda *flags: cli.parse(word2vec.Config, [f"--text={book}", *flags])[0]
    for flags, message in (
        (["--words=horse"], "no word 'horse' in the vocabulary of 16"),
        (["--neighbours=16"], "--neighbours=16: it must be under 16"),
        (["--min_count=100000"], "0 of the text's 16 different words occur min_count=100000"),
        ([f"--analogies={book}"], "expected 4, or ': section'"),
        (["--text=absent.txt"], "no text 'absent.txt'"),
    ):
        with pytest.raises(InputError, match=message):
            build(config(*flags))


@pytest.mark.parametrize("flags", [["--optimizer=sgd"], ["--optimizer=adam"], ["--schedule=step"]])
def test_other_methods_take_the_other_defaults(flags):
    config, _ = cli.parse(word2vec.Config, flags)
    adagrads = {"initial_accumulator_value": 1e-9, "eps": 0.0}
    expected = {"learning_rate": 0.1} | (adagrads if config.method.optimizer == "adagrad" else {})
    assert config.hparams == expected


def test_no_flags_is_the_flagfile():
    flagfile = ROOT / "experiments" / "flags" / "word2vec_stdlib.flags"
    config, _ = cli.parse(word2vec.Config, [f"--flagfile={flagfile}"])
    default, _ = cli.parse(word2vec.Config, ["--workdir=runs/word2vec_stdlib"])
    assert config == default
