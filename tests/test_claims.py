"""Studies of claims: each finds, in its smallest form, the direction of what it is about."""

import functools
import importlib
import itertools
import json
import pkgutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from networks import SHALLOW_GOOGLENET, resized_resnet

import experiments.studies.__main__ as studies_main
from experiments import studies
from experiments.harness import catalogue, claim, study
from experiments.harness.claim import Claim, Verdict
from experiments.studies import (
    approximation,
    batch_size,
    checkerboard,
    decoding,
    descent,
    memory,
    mode_collapse,
    multiply_adds,
    paths,
    perceptron,
    recurrent,
    transfer,
)
from jaxdl import InputError, models, writers
from jaxdl.models import densenet, googlenet, resnet

CLAIMS = {
    name: module.CLAIM
    for name in sorted(m.name for m in pkgutil.iter_modules(studies.__path__))
    if isinstance(
        getattr(module := importlib.import_module(f"experiments.studies.{name}"), "CLAIM", None),
        Claim,
    )
}


@pytest.fixture(autouse=True)
def at_little_cost(one_device, monkeypatch):
    monkeypatch.setattr(writers.Writer, "curves", lambda self: None)


def measured(name, tmp_path, setups, *quickly, seeds=1):
    """What some setups of a claim measure in a form smaller than the quick one."""
    whole = CLAIMS[name]
    few = tuple(setup for setup in whole.setups if setup.name in setups)
    assert len(few) == len(setups)
    small = whole._replace(setups=few, quickly=(*whole.quickly, *quickly), quick_setups=())
    small = small._replace(judge=unjudged, draw=lambda figure, found: None)
    flags = ["--quick", f"--seeds={seeds}", f"--workdir={tmp_path / name}"]
    return claim.run(small, flags)


def unjudged(found):
    return Verdict("holds", "As far as it goes.")


def of(found, setup, metric):
    return claim.mean(found[setup][metric])


@pytest.mark.slow
def test_depth(tmp_path, monkeypatch):
    for layers, blocks in ((56, 3), (20, 1)):  # of 20 and of 8 layers, which compile sooner
        fewer = resized_resnet(resnet.plain56_cifar, (blocks,) * 3)
        monkeypatch.setitem(models.MODELS, f"plain{layers}_cifar", fewer)
    setups = ("plain, 56 layers", "plain, 20 layers")
    found = measured("depth", tmp_path, setups, "--steps=60")
    assert of(found, setups[0], "train/loss") > of(found, setups[1], "train/loss")


@pytest.mark.slow
def test_vanishing(tmp_path):
    setups = ("sigmoid, Xavier", "sigmoid, Xavier and batch norms", "relu, Kaiming")
    found = measured("vanishing", tmp_path, setups, "--epochs=8")
    assert of(found, setups[0], "test/accuracy") < 0.3
    assert of(found, setups[1], "test/accuracy") > 0.7
    assert of(found, setups[2], "test/accuracy") > 0.6
    gradients = [of(found, setups[0], place) for place in claim.GRADIENTS]
    assert gradients[-1] == 1
    assert all(earlier < later for earlier, later in itertools.pairwise(gradients))


@pytest.mark.slow
def test_batch_norm(tmp_path):
    setups = ("without, rate 1", "with, rate 1")
    found = measured("batch_norm", tmp_path, setups, "--epochs=3", seeds=2)
    assert of(found, setups[1], "test/accuracy") > 0.6
    without = of(found, setups[0], "test/accuracy")
    assert np.isnan(without) or without < 0.5


@pytest.mark.slow
def test_batch_statistics(tmp_path):
    setups = ("with, 2", "with, 64")
    found = measured("batch_statistics", tmp_path, setups, "--epochs=2")
    assert of(found, setups[0], "train/loss") > 1.2 * of(found, setups[1], "train/loss")


@pytest.mark.slow
def test_regularization(tmp_path):
    setups = ("nothing, 10 a class", "augmentation, 10 a class")
    found = measured("regularization", tmp_path, setups, seeds=2)
    assert of(found, setups[0], "train/accuracy") > 0.99 > of(found, setups[0], "test/accuracy")
    gaps = [of(found, s, "train/accuracy") - of(found, s, "test/accuracy") for s in setups]
    assert gaps[1] < gaps[0]


@pytest.mark.slow
def test_optimizers(tmp_path):
    setups = ("sgd, 0.01", "momentum, 0.01", "adam, 0.003")
    found = measured("optimizers", tmp_path, setups)
    losses = [of(found, setup, "train/loss") for setup in setups]
    assert losses[0] > losses[1] > 0
    assert losses[0] > losses[2] > 0


@pytest.mark.slow
def test_schedules(tmp_path):
    setups = ("constant", "cosine")
    found = measured("schedules", tmp_path, setups, "--steps=100")
    assert of(found, setups[0], "train/loss") > of(found, setups[1], "train/loss")


@pytest.mark.slow
def test_batch_size(tmp_path, monkeypatch):
    asked = []
    measure = lambda run: asked.append(run.config.run.batch_size) or 0.5
    monkeypatch.setattr(claim, "seconds_of_a_step", measure)
    setups = ("constant rate, 32", "constant rate, 128", "rate in proportion, 128")
    found = measured("batch_size", tmp_path, setups, "--epochs=3")
    losses = [of(found, setup, "train/loss") for setup in setups]
    assert losses[1] > losses[2] > losses[0]
    assert asked == [32, 128]  # once for each size
    steps = [-(-3 * 1437 // size) for size in (32, 128, 128)]
    assert [of(found, s, batch_size.SECONDS) for s in setups] == pytest.approx(np.divide(steps, 2))


@pytest.mark.slow
def test_the_seconds_of_a_step_are_a_share_of_those_of_all(tmp_path, monkeypatch):
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr(claim, "time", clock)  # a second between any two looks at it
    flags = ["--width=8", "--image_size=8", "--augment="]
    run = study.Run("some", 0, tmp_path, catalogue.load("mlp"), flags)
    assert claim.seconds_of_a_step(run) == 1 / 20


@pytest.fixture
def shallow(monkeypatch):
    """Networks of a few blocks, which compile sooner."""
    few = functools.partial(densenet.DenseNet, (2,) * 3, True, num_classes=10)
    monkeypatch.setitem(models.MODELS, "densenet40_bc_cifar", few)
    for stage, rows in SHALLOW_GOOGLENET.items():
        monkeypatch.setattr(googlenet, stage, rows)


@pytest.mark.slow
def test_growth(tmp_path, shallow):
    setups = ("DenseNet-40, 2 maps a layer", "DenseNet-40, 8 maps a layer")
    found = measured("growth", tmp_path, setups)
    losses = [of(found, setup, "train/loss") for setup in setups]
    assert losses[0] > 1.5 * losses[1]


@pytest.mark.slow
def test_branches(tmp_path, shallow):
    setups = ("all four", "1x1 alone")
    flags = ("--image_size=8", "--steps=40", "--width=0.125")
    found = measured("branches", tmp_path, setups, *flags)
    losses = [of(found, setup, "train/loss") for setup in setups]
    assert losses[0] < losses[1]  # at one width, of which four have more


@pytest.mark.slow
def test_auxiliary_heads(tmp_path, shallow):
    setups = ("with batch norms, none", "with batch norms, heads")
    flags = ("--image_size=8", "--steps=10", "--width=0.03")
    found = measured("auxiliary_heads", tmp_path, setups, *flags)
    losses = [of(found, setup, "train/loss") for setup in setups]
    assert losses[1] > losses[0]  # to which the head's is added


@pytest.mark.slow
def test_response_norm(tmp_path):
    setups = ("nothing", "response norm")
    flags = ("--steps=8", "--width=4", "--dropout=0")
    found = measured("response_norm", tmp_path, setups, *flags)
    losses = [of(found, setup, "train/loss") for setup in setups]
    assert 0 < abs(losses[0] - losses[1]) < 0.1  # of pixels within 1 it changes little


@pytest.mark.slow
def test_winning(tmp_path):
    setups = ("minimax, 1 at 0.0005", "minimax, 5 at 0.008")
    found = measured(
        "winning", tmp_path, setups, "--width=16", "--discriminator_width=16", "--steps=60"
    )
    told = [of(found, setup, "train/fake_accuracy") for setup in setups]
    assert told[0] < told[1]


@pytest.mark.slow
def test_smoothing(tmp_path):
    setups = ("one update, 0", "one update, 0.4")
    flags = "--width=32", "--discriminator_width=32", "--steps=100"
    found = measured("smoothing", tmp_path, setups, *flags)
    told = [of(found, setup, "train/fake_accuracy") for setup in setups]
    assert told[0] < told[1]  # whose logits are lower


@pytest.mark.slow
def test_attention(tmp_path):
    setups = ("none", "Luong")
    found = measured("attention", tmp_path, setups, "--features=32", "--epochs=2", "--buckets=1")
    losses = [of(found, setup, "train/loss") for setup in setups]
    assert losses[0] > losses[1]


@pytest.mark.slow
def test_memory():
    recalled = functools.partial(memory.recalled, lag=15, updates=100, seeds=range(1))
    closed, opened = (recalled(memory.CELLS[name]) for name in ("LSTM", "LSTM, forget bias 3"))
    assert max(closed) < 0.5 < 0.9 < min(opened)


@pytest.mark.slow
def test_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "BEAMS", (1, 4))
    (found,) = measured("decoding", tmp_path, ("teacher forcing",), "--buckets=1").values()
    assert claim.mean(found["BLEU, beam 4"]) > claim.mean(found["BLEU, beam 1"]) > 0


def test_multiply_adds(tmp_path):
    flags = ["--quick", f"--workdir={tmp_path / 'study'}", f"--page={tmp_path}"]
    multiply_adds.run(flags)
    text = (tmp_path / "multiply_adds.md").read_text()
    assert "120.4 against 12.4 million multiply-adds" in text
    assert "take 0.72 of the multiply-adds" in text
    assert "none of NiN's" in text
    assert 5_000 < (tmp_path / "multiply_adds.png").stat().st_size < 100_000


@pytest.mark.slow
def test_paths(tmp_path):
    found = paths.measure(paths.Config(paths.StudyFlags(str(tmp_path), seeds=2), steps=300))
    steps = {name: claim.mean(of.steps) for name, of in found["ravine"].items()}
    assert steps["momentum"] < steps["sgd"] < 300
    assert found["noisy bowl"]["momentum"].rate < found["noisy bowl"]["sgd"].rate
    assert paths.verdict(found).startswith("It holds")


def test_arrivals_are_to_stay():
    values = np.array([[9.0] * 4 + [0.0] * 12, [0.0] * 12 + [9.0] * 4, [0.0] * 16])
    arrived = paths.arrivals(paths.SURFACES["ravine"], values)
    np.testing.assert_array_equal(arrived, [4, np.inf, 0])
    arrived = paths.arrivals(paths.SURFACES["noisy bowl"], values)  # ten steps are enough
    np.testing.assert_array_equal(arrived, [4, 0, 0])


@pytest.mark.slow
def test_approximation():
    forms = ((1, 2), (1, 64), (4, 10))
    narrow, wide, deep = (approximation.error(*form, seed=0, epochs=100) for form in forms)
    assert wide < 0.9 * narrow
    assert deep < 0.8 * wide


# The harness of claims


@pytest.mark.parametrize("name", CLAIMS)
def test_verdicts_are_of_what_was_measured(name, tmp_path):
    """Of equal values nothing is clearly better; a picture is drawn of all setups."""
    whole = CLAIMS[name]
    metrics = (*whole.metrics, *whole.drawn)
    equal = {s.name: {m: [0.5, 0.5] for m in metrics} for s in whole.setups}
    verdict = whole.judge(equal)
    assert verdict.word in ("holds in part", "does not hold")
    assert verdict.reason.endswith(".")
    claim._draw(whole, equal, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size < 100_000
    diverged = {s.name: {m: [None, None] for m in metrics} for s in whole.setups}
    assert whole.judge(diverged).word != "holds"
    if whole.quick_setups:  # of which the quick form is, whole setups all the same
        of_quick = {setup: equal[setup] for setup in whole.quick_setups}
        assert whole.judge(of_quick).word == "does not hold"
        claim._draw(whole, of_quick, tmp_path / "quick.png")
    assert name == whole.name


# Verdicts of what is no run by setups and seeds: for measurements that bear a claim out, or not


def test_verdict_of_transfer():
    few_and_many = lambda few, many: {5: [few, few + 0.01], 20: [0.0, 0.0], 100: [many, many]}
    found = {
        "scratch": few_and_many(0.7, 0.9),
        "head only": few_and_many(0.6, 0.6),
        "top layers": few_and_many(0.9, 0.8),
        "all layers": few_and_many(0.8, 0.9),
    }
    assert transfer.verdict(found).startswith("It holds: of 5 examples")
    assert "in part" in transfer.verdict(found | {"top layers": few_and_many(0.8, 0.8)})
    of_one_count = {way: {5: by_count[5]} for way, by_count in found.items()}
    assert "in part" in transfer.verdict(of_one_count)


def test_verdict_of_checkerboard():
    look = lambda energy: checkerboard.Look(energy, np.zeros((4, 4)), np.zeros((1, 4, 4, 1)))
    ways = {way: [(look(0.3), look(0.2))] for way in checkerboard.UPSAMPLINGS}
    nature = {"training images": look(0.01)}
    assert checkerboard.verdict(ways, nature).startswith("It does not hold: ")
    smooth = {way: [(look(0.1), look(0.02))] for way in ("resize 3x3", "pixel shuffle 3x3")}
    assert checkerboard.verdict(ways | smooth, nature).startswith("It holds: ")


def test_verdict_of_mode_collapse():
    modes = lambda plain, mended: {
        title: {"modes_covered": [mended if "+" in title else plain, 8.0]}
        for title in mode_collapse.SETUPS
    }
    assert mode_collapse.verdict(modes(3.0, 8.0), 8).startswith("It holds: ")
    assert mode_collapse.verdict(modes(3.0, 7.0), 8).startswith("It holds in part: ")
    assert mode_collapse.verdict(modes(8.0, 7.0), 8).startswith("It does not hold: ")


def test_verdict_of_recurrent():
    lags = lambda *last: np.array([[[1.0, value]] * 2 for value in last])  # by FACTORS
    by_lag = {"RNN": lags(1e-9, 1e-3, 1.0, 10.0), "LSTM": lags(0.1, 0.1, 0.1, 0.2)}
    losses = lambda last: {"loss": np.array([[9.0, last]] * 2)}
    clipping = {"clipped": losses(2.0), "not clipped": losses(5.0)}
    assert recurrent.verdict(by_lag, clipping).startswith("It holds: ")
    alike = {"clipped": losses(2.0), "not clipped": losses(2.0)}
    assert recurrent.verdict(by_lag, alike).startswith("It holds in part: ")
    worse = by_lag | {"GRU": lags(0.1, 1e-4, 0.1, 0.2)}
    assert recurrent.verdict(worse, clipping).startswith("It holds in part: ")


def test_verdict_of_memory():
    shares = lambda *means: {lag: [of, of] for lag, of in zip((5, 10, 25), means, strict=True)}
    found = dict.fromkeys(memory.CELLS, shares(1.0, 0.95, 0.3))
    plain = shares(0.95, 0.5, 0.95)  # what comes after a lag that is not bridged is luck
    found |= {"RNN": plain, "RNN, normal kernel": plain}
    assert memory.verdict(found).startswith("It holds in part: ")
    found |= {f"{gates} bias 3": shares(1, 1, 1) for gates in ("LSTM, forget", "GRU, update")}
    assert memory.verdict(found).startswith("It holds: ")
    assert "RNN 5, GRU 10, LSTM 10, GRU, update bias 3 25" in memory.verdict(found)
    none = dict.fromkeys(memory.CELLS, shares(0.1, 0.1, 0.1))
    assert memory.verdict(none).startswith("It does not hold: ")


def test_symbols_to_remember_are_of_their_own():
    batch = memory.draw_batch(jax.random.key(0), lag=3, size=64)
    tokens = np.asarray(batch["image"])
    assert tokens.shape == (64, 4)
    np.testing.assert_array_equal(tokens[:, 0], batch["label"])
    assert set(tokens[:, 0].tolist()) == set(range(memory.SYMBOLS))
    others = range(memory.SYMBOLS, 2 * memory.SYMBOLS)
    assert set(tokens[:, 1:].ravel().tolist()) == set(others)


def test_verdict_of_descent():
    distances = {"sgd": np.array([[[1.0, 0.1]], [[1.0, 0.5]], [[1.0, 0.9]], [[1.0, 9.0]]])}
    points = {"x² + 2y²": [descent.Point([0.0, 0.0], "minimum", [1.0, 2.0], 0.0)]}
    descents = {0.5: descent.Descent(np.full((1, 8), 4.0), np.ones((1, 8)))}  # at 2 / rate
    assert descent.verdict(distances, points, descents).startswith("It holds: ")
    astray = {"x² + 2y²": [descent.Point([0.0, 0.0], "minimum", [1.0, 2.0], 0.5)]}
    assert descent.verdict(distances, astray, descents).startswith("It holds in part: ")


def test_verdict_of_perceptron():
    logic = {"margin": [0.2], "bound": [50.0], "mistakes": [20.0], "period": [None]}
    xor = {"margin": [0.0], "bound": [np.inf], "mistakes": [99.0], "period": [1]}
    assert perceptron.verdict({"and": logic, "xor": xor}).startswith("It holds: ")
    assert "in part" in perceptron.verdict({"and": logic | {"bound": [9.0]}, "xor": xor})


# Pages


def test_a_page_holds_the_claim_the_verdict_and_the_table(tmp_path):
    whole = CLAIMS["batch_norm"]
    small = whole._replace(
        setups=whole.setups[:2], quickly=("--steps=2",), judge=unjudged, draw=lambda f, m: None
    )
    flags = ["--quick", "--seeds=1", f"--workdir={tmp_path / 'study'}", f"--page={tmp_path}"]
    claim.run(small, flags)
    page = (tmp_path / "batch_norm.md").read_text()
    assert page.startswith(f"# {whole.title}\n\n> {whole.claim}")
    assert "**It holds. As far as it goes.**" in page
    assert "| without, rate 0.003" in page
    assert "python -m experiments.studies.batch_norm" in page
    record = json.loads((tmp_path / "study" / "table.json").read_text())
    assert record["verdict"]["word"] == "holds"
    # Given again it trains nothing.
    before = (tmp_path / "study" / "without,_rate_0.003" / "seed0" / "metrics.jsonl").stat()
    claim.run(small, flags)
    after = (tmp_path / "study" / "without,_rate_0.003" / "seed0" / "metrics.jsonl").stat()
    assert before.st_mtime_ns == after.st_mtime_ns


def test_clearly_greater_is_seed_by_seed():
    assert claim.clearly_greater([1.0, 2.1], [0.5, 1.6])  # whatever the seeds have in common
    assert not claim.clearly_greater([1.0, 1.1], [0.9, 1.1])
    assert not claim.clearly_greater([1.0, 1.1], [0.1, 1.4])
    assert not claim.clearly_greater([None, None], [0.5, 0.5])
    assert claim.clearly_greater([1.0], [0.5])
    assert not claim.clearly_greater([1.0], [1.0])


def test_a_page_wants_a_folder(tmp_path):
    with pytest.raises(InputError, match="a folder that there is"):
        claim.run(CLAIMS["depth"], [f"--workdir={tmp_path / 'a'}", "--page=no/such"])


class Begun(Exception):
    """A study that has said how it goes on."""


@pytest.mark.parametrize(
    "name", [m.name for m in pkgutil.iter_modules(studies.__path__) if m.name != "__main__"]
)
def test_every_study_has_a_quick_form(name, tmp_path, monkeypatch):
    """In a folder of its own; flags that are given win."""

    def begin(config, *args, **kwargs):
        raise Begun(config)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "begin", begin)
    module = importlib.import_module(f"experiments.studies.{name}")
    run = functools.partial(claim.run, CLAIMS[name]) if name in CLAIMS else module.run
    found = []
    for argv in ([], ["--quick"], ["--quick", "--seeds=1", "--workdir=elsewhere"]):
        with pytest.raises(Begun) as begun:
            run(argv)
        found.append(begun.value.args[0].study)
    whole, quick, given = found
    assert quick.workdir == f"{whole.workdir}_quick"
    assert quick.seeds < whole.seeds
    assert (given.seeds, given.workdir) == (1, "elsewhere")


def test_studies_are_listed(capsys):
    assert studies_main.main([]) == 0
    out = capsys.readouterr().out
    for name in (*CLAIMS, "transfer", "mode_collapse"):
        assert f"\n{name} " in f"\n{out}"
    assert studies_main.main(["depth"]) == 1
    assert "python -m experiments.studies.depth" in capsys.readouterr().err
