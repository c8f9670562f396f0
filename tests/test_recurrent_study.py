"""`experiments.studies.recurrent`: gradients by lag, clipping, gates, and the study of them."""

import json

import jax
import numpy as np
import pytest

from experiments import char_rnn
from experiments.harness import cli, training
from experiments.studies import recurrent
from jaxdl import InputError
from jaxdl.pictures import read_png
from jaxdl.recurrent import Recurrent

pytestmark = pytest.mark.usefixtures("one_device")


def test_gradients_by_lag_are_products_of_jacobians():
    """A tanh RNN in NumPy: h = tanh(x W + h' U), with U orthogonal but for its factor."""
    features, lags, factors = 6, 5, (0.5, 1.5)
    found = recurrent.gradients_by_lag("rnn", 0.0, factors, features, lags, seeds=(2, 3))
    assert found.shape == (2, 2, lags + 1)
    keys = jax.random.split(jax.random.key(3), 3)
    x = 0.3 * np.asarray(jax.random.normal(keys[0], (16, lags + 1, features)))
    layer = Recurrent("rnn", features).init(keys[2], x, train=False)["params"]["layer0"]
    inward = np.asarray(layer["input_kernel"])
    for factor, (of_another_seed, norms) in zip(factors, found, strict=True):
        feels = np.asarray(jax.random.normal(keys[1], (16, features)))
        across = factor * np.asarray(layer["hidden_kernel"])
        h, outputs = np.zeros((16, features)), []
        for t in range(lags + 1):
            h = np.tanh(x[:, t] @ inward + h @ across)
            outputs.append(h)
        expected = []
        for h in reversed(outputs):
            feels = feels * (1 - h**2)
            expected.append(np.sqrt(((feels @ inward.T) ** 2).sum()))
            feels = feels @ across.T
        np.testing.assert_allclose(norms, np.array(expected) / expected[0], rtol=1e-4)
        assert np.abs(of_another_seed - norms).max() > 1e-3


@pytest.mark.slow
def test_open_forget_gates_keep_the_gradient():
    closed, opened = (
        recurrent.gradients_by_lag("lstm", bias, [1.0], 8, 30, [0])[0, 0, -1] for bias in (0, 3)
    )
    assert closed < 1e-4 < 0.05 < opened


@pytest.mark.parametrize("kind", ["lstm", pytest.param("gru", marks=pytest.mark.slow)])
def test_gates_are_those_of_the_cell(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 3)).astype(np.float32)
    shape = jax.eval_shape(
        lambda: Recurrent(kind, 4).init(jax.random.key(0), x[None], train=False)["params"]["layer0"]
    )
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shape)
    values, outputs = recurrent.gates(params, kind, x)
    sigmoid = lambda v: 1 / (1 + np.exp(-v))
    h, c = np.zeros(4), np.zeros(4)
    for t in range(5):
        inward = x[t] @ params["input_kernel"] + params["bias"]
        across = h @ params["hidden_kernel"]
        if kind == "lstm":
            i, f, g, o = np.split(inward + across, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            expected = {"input": i, "forget": f, "output": o}
        else:
            (xr, xz, xn), (hr, hz, hn) = np.split(inward, 3), np.split(across, 3)
            expected = {"reset": xr + hr, "update": xz + hz}
            r, z = sigmoid(xr + hr), sigmoid(xz + hz)
            h = (1 - z) * np.tanh(xn + r * (hn + params["hidden_bias"])) + z * h
        for name, value in expected.items():
            np.testing.assert_allclose(values[name][t], sigmoid(value), atol=1e-5)
        np.testing.assert_allclose(outputs[t], h, atol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a short run of experiments.char_rnn."""
    folder = tmp_path_factory.mktemp("char_rnn")
    (folder / "book.txt").write_text("the cat sees the dog, and the dog hears a bird.\n" * 100)
    sizes = ["--features=8", "--embedding=4", "--sequence_length=10", "--batch_size=4"]
    sizes += ["--steps=1", "--level=char", "--prompt=a", "--length=1", "--nohistograms"]
    given = [f"--workdir={folder / 'run'}", f"--text={folder / 'book.txt'}"]
    training.train(cli.parse(char_rnn.Config, [*sizes, *given])[0], char_rnn.build)
    return folder / "run"


SMALL = ["--updates=3", "--lags=4", "--features=8", "--units=3", "--seeds=2"]


def cells_of(text):
    """The cells of the tables in a text, by their lines."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_tables_by_hand_and_pictures(tmp_path):
    by_lag = {name: np.ones((4, 2, 3)) for name in recurrent.CELLS}
    by_lag["GRU"][2, :, -1] = 1e-4, 3e-4
    clipping = {
        "clipped": {"update_norm": np.array([[0.5, 0.1]]), "loss": np.array([[3.0, 2.0]])},
        "not clipped": {"update_norm": np.array([[9.0, 20.0]]), "loss": np.array([[3.0, np.nan]])},
    }
    cells = cells_of(recurrent.table(by_lag, clipping))
    assert cells[0] == ["cell", *(f"recurrent kernel x {f}" for f in recurrent.FACTORS)]
    assert cells[5] == ["GRU", *["1.0e+00 ± 0.0e+00"] * 2, "2.0e-04 ± 1.4e-04", cells[2][1]]
    assert cells[6] == ["tanh RNN on text", "greatest update", "last loss"]
    assert cells[8:] == [["clipped", "0.5", "2.00"], ["not clipped", "20", "nan"]]
    recurrent.draw_lags(by_lag, tmp_path / "lags.png")
    recurrent.draw_gates("a$b", {"forget": np.eye(3)}, 2, tmp_path / "gates.png")
    for name in ("lags", "gates"):
        assert np.ptp(read_png(tmp_path / f"{name}.png")) == 255


@pytest.mark.slow
def test_the_study_writes_what_it_measured(trained, tmp_path, capsys, monkeypatch):
    def known(kind, forget_bias, factors, features, lags, seeds):
        shape = len(factors), len(seeds), lags + 1
        return np.random.default_rng(len(kind)).uniform(0.1, 1, shape)

    monkeypatch.setattr(recurrent, "gradients_by_lag", known)  # tested above
    arguments = [*SMALL, f"--workdir={tmp_path}", f"--from_run={trained}", "--text=the cat"]
    recurrent.run(arguments)
    names = {"table.md", "table.json", "gates.png", "lags.png", "clipping.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    for name in ("gates", "lags", "clipping"):
        assert np.ptp(read_png(tmp_path / f"{name}.png")) == 255
    record = json.loads((tmp_path / "table.json").read_text())
    assert record["gates"]["text"] == "the cat"
    assert np.shape(record["gates"]["layer 0, forget"]) == (7, 8)
    assert list(record["gradients"]) == ["RNN", "LSTM", "LSTM, forget bias 3", "GRU"]
    assert list(record["gradients"]["GRU"]) == ["0.5", "1.0", "1.5", "2.0"]
    clipping = record["clipping"]
    for values in clipping.values():
        assert np.shape(values["update_norm"]) == np.shape(values["loss"]) == (2, 3)
    assert np.max(clipping["clipped"]["update_norm"]) <= 0.5 + 1e-5  # the rate times the bound
    assert np.max(clipping["not clipped"]["update_norm"]) > 0.5
    assert clipping["clipped"]["loss"][0] != clipping["clipped"]["loss"][1]  # of two seeds

    text = (tmp_path / "table.md").read_text()
    assert text in capsys.readouterr().out
    cells = cells_of(text)
    last = [seed[-1] for seed in record["gradients"]["RNN"]["1.5"]]
    spread = abs(last[0] - last[1]) / 2**0.5
    assert cells[2][3] == f"{np.mean(last):.1e} ± {spread:.1e}"
    losses = [seed[-1] for seed in clipping["not clipped"]["loss"]]
    assert cells[9][2].startswith(f"{np.mean(losses):.2f} ± ")
    with pytest.raises(InputError, match="holds a study with --lags=4, not 5"):
        recurrent.run([*arguments, "--lags=5"])


def test_bad_input_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "lenet").mkdir()
    (tmp_path / "lenet" / "flags.txt").write_text("--experiment=lenet\n")
    for flags, message in (
        (["--lags=0"], "--lags=0: it must be at least 1"),
        (["--factor=0"], "--factor=0.0: it must be more than 0"),
        (["--seeds=0"], "--seeds=0: it must be at least 1"),
        (["--output=x"], "no flag --output"),
        (["--from_run=missing"], "no run in missing: it has no flags.txt"),
        ([f"--from_run={tmp_path}/lenet"], "lenet: it must be a run of experiments.char_rnn"),
        ([f"--workdir={tmp_path}/file"], "file is no folder"),
        ([f"--workdir={tmp_path}/lenet"], "lenet holds a run and no study; take another --workdir"),
        (["more"], "'more' is no flag"),
    ):
        with pytest.raises(InputError) as error:
            recurrent.run([f"--workdir={tmp_path}/new", *flags])
        assert message in str(error.value)
        assert not (tmp_path / "new").exists()
