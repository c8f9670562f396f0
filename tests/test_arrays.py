"""Models fitted to arrays: the runs of flags, rows and targets of every kind, every mistake."""

import functools
import os
import re
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot
import numpy as np
import pytest
import sklearn.datasets
import sklearn.metrics

from jaxdl import InputError, arrays, augment, calls, checkpoint, data, forms, losses
from jaxdl.data import RowPipeline
from jaxdl.models.mlp import mlp
from jaxdl.writers import Writer

DIGITS = sklearn.datasets.load_digits()
IMAGES = DIGITS.images.astype(np.uint8) * 16
LABELS = DIGITS.target
ONE = jax.devices()[:1]
FEW = slice(0, 64)


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """No curves in folders: to draw them takes a second."""
    monkeypatch.setattr(Writer, "curves", lambda self: None)


class Line(nn.Module):
    """Least squares."""

    outputs: int = 1

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(self.outputs, name="fc")(x)


class Tokens(nn.Module):
    """The mean of the vectors of what is in a sequence."""

    outputs: int = 2

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(self.outputs)(nn.Embed(16, 8)(x).mean(1))


class Shapes(nn.Module):
    """Refuses rows of another rank."""

    rank: int

    @nn.compact
    def __call__(self, x, *, train):
        assert x.ndim == self.rank
        return nn.Dense(2)(x.reshape(len(x), -1).astype(jnp.float32))


TRIMMED = mlp(num_classes=10, width=16, batch_norm=True, dropout=0.2)
quickly = functools.partial(arrays.fit, quiet=True, devices=ONE)


def described(model, inputs, y):
    return forms.describe(
        *(model, "cross_entropy", inputs, y), channel=True, scale=(None, None), transform=None
    )


def assert_same_arrays(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# The same run as by flags

FLAGS = {
    **{"steps": 12, "batch_size": 32, "learning_rate": 0.002, "l2_penalty": 1e-3, "seed": 3},
    **{"label_smoothing": 0.1, "schedule": "cosine", "schedule_end": 0.01, "validation": 0.2},
    **{"log_every": 4, "eval_every": 6, "clip_global_norm": 1.0, "b1": 0.8},
}


def by_arrays(images, labels, **changes):
    """The run of `FLAGS`."""
    transform = augment.compose(augment.warp(10.0, 0.1, 0.1, 0.0))
    given = {**FLAGS, "warmup_steps": 4, "mean": 0.5, "std": 0.5, "augment": transform, **changes}
    return quickly(TRIMMED, images, labels, **given)


@pytest.mark.slow
def test_a_run_by_flags_and_one_by_arrays_end_alike(experiment, environment):
    flags = [f"--{name}={value}" for name, value in FLAGS.items()]
    network = ["--width=16", "--batch_norm", "--image_size=8", "--nohistograms"]
    experiment("mlp", "--workdir=run", *network, "--warmup_epochs=0.11", *flags)
    flagged = checkpoint.load(experiment.folder / "run")
    digits = data.load("digits", environment["TFDS_DATA_DIR"])
    train = digits.splits["train"]
    images = data.Pipeline(digits, data.Preprocess(8, 1), 32).images("train", range(len(train)))
    fitted = by_arrays(images[..., 0], data.labels(train), workdir=experiment.folder / "arrays")
    ours = checkpoint.load(experiment.folder / "arrays")
    assert ours["step"] == flagged["step"] == 12
    for part in ("params", "extra", "opt_state", "key"):
        assert_same_arrays(ours[part], flagged[part])
    assert_same_arrays(ours["params"], fitted.variables["params"])
    theirs = arrays.read_rows(experiment.folder / "run")
    evaluated = [row["eval/loss"] for row in theirs if "eval/loss" in row]
    assert [v for v in fitted.history["eval/loss"] if not np.isnan(v)] == evaluated
    assert fitted.history["step"] == [4, 6, 8, 12]


@pytest.mark.slow
def test_a_fit_that_was_stopped_goes_on_to_the_same_end(tmp_path, monkeypatch, capsys):
    fit = functools.partial(by_arrays, IMAGES[:200], LABELS[:200], quiet=False)
    whole = fit()
    batches = RowPipeline.train

    def interrupted(feed, start):
        for step, batch in enumerate(batches(feed, start), start + 1):
            if step == 7:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(RowPipeline, "train", interrupted)
        part = fit(workdir=tmp_path)
    assert part.stopped == signal.SIGINT
    step = int(part.state.step)
    assert 7 <= step < 7 + calls.TOGETHER  # of the call that was to be made of that batch
    assert f"stopped at step {step} of 12\n" in capsys.readouterr().err
    again = fit(workdir=tmp_path)
    assert not again.stopped
    for name in ("params", "extra", "opt_state"):
        assert_same_arrays(getattr(again.state, name), getattr(whole.state, name))
    metrics = [name for name in whole.history if "second" not in name]
    assert {n: repr(again.history[n]) for n in metrics} == {
        n: repr(whole.history[n]) for n in metrics
    }


@pytest.mark.slow
def test_eight_devices_are_one():
    model = TRIMMED.clone(dropout=0.0)
    method = {"optimizer": "momentum", "steps": 2, "learning_rate": 0.1}
    fits = [quickly(model, IMAGES[FEW], LABELS[FEW], **method, devices=d) for d in (ONE, None)]
    assert len(fits[1].state.step.sharding.device_set) == 8
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, *(jax.device_get(fitted.variables) for fitted in fits))
    close(*(fitted.probabilities(IMAGES[:13]) for fitted in fits))


def test_the_validation_share_is_what_hold_out_draws():
    dataset = data.from_arrays(IMAGES[..., None], LABELS)
    held = data.hold_out(dataset, 0.2, 5).splits
    inputs = forms.to_inputs("x", IMAGES, True)
    form = described(TRIMMED, inputs, LABELS)
    ours = forms.splits_of(form, inputs, LABELS, 0.2, 5)
    for split, source in held.items():
        np.testing.assert_array_equal(ours[split].columns["label"], data.labels(source))
        theirs = np.stack([source[i]["image"] for i in range(len(source))])
        np.testing.assert_array_equal(ours[split].columns["image"], theirs)


# What is fitted


def test_descent_on_a_line_is_that_by_hand():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=40), rng.normal(size=40)
    y = 3 * x - 1 + 0.1 * noise
    fitted = quickly(
        *(Line(), x, y), loss="mse", steps=50, batch_size=40, optimizer="sgd", learning_rate=0.1
    )
    init = Line().init(jax.random.split(jax.random.key(0))[0], np.zeros((1, 1)), train=False)
    slope, height = float(init["params"]["fc"]["kernel"][0, 0]), 0.0
    for _ in range(50):
        error = slope * x + height - y
        slope, height = slope - 0.2 * np.mean(error * x), height - 0.2 * np.mean(error)
    predicted = fitted.predict(x)
    assert predicted.shape == x.shape
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, slope * x + height, atol=1e-5)
    measured = fitted.evaluate(x, y)
    assert measured["loss"] == pytest.approx(sklearn.metrics.mean_squared_error(y, predicted), 1e-5)
    assert measured["mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(y, predicted), 1e-5)
    with pytest.raises(InputError, match=r"^probabilities of a model fitted by 'mse': expected"):
        fitted.probabilities(x)


@pytest.fixture(scope="module")
def classifier():
    """A perceptron with batch norms and dropout that has learnt a little of the digits."""
    return quickly(TRIMMED, IMAGES[:500], LABELS[:500], epochs=4, learning_rate=0.01)


def test_classes_are_predicted_and_measured(classifier):
    x, y = IMAGES[500:777], LABELS[500:777]  # no multiple of a batch
    probabilities, predicted = classifier.probabilities(x), classifier.predict(x)
    logits = TRIMMED.apply(classifier.variables, jnp.float32(x / 255)[..., None], train=False)
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), atol=1e-5)
    np.testing.assert_array_equal(predicted, logits.argmax(-1))
    measured = classifier.evaluate(x, y)
    assert measured["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(y, predicted))
    loss = sklearn.metrics.log_loss(y, probabilities / probabilities.sum(1, keepdims=True))
    assert measured["loss"] == pytest.approx(loss, rel=1e-4)
    assert measured["accuracy"] > 0.6
    assert {"params", "batch_stats"} == classifier.variables.keys()


def test_history_and_its_plot(classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    history = classifier.history
    assert history["step"] == [16, 32, 48, 62]  # 500 rows are 15.6 batches, of which 4 epochs
    assert len(history["train/loss"]) == 4
    assert history["train/loss"][-1] < history["train/loss"][0]
    assert "eval/loss" not in history
    titles = [axes.get_title() for axes in classifier.plot().axes]
    assert titles[:2] == ["accuracy", "loss"]
    assert not matplotlib.pyplot.get_fignums()
    assert not [*tmp_path.iterdir()]


def test_several_labels_at_once():
    y = np.stack([LABELS[FEW] > 4, LABELS[FEW] % 2 == 0], 1)
    model = mlp(num_classes=2, width=8)
    fitted = quickly(model, IMAGES[FEW], y, loss="sigmoid_cross_entropy", steps=30)
    predicted, probabilities = fitted.predict(IMAGES[FEW]), fitted.probabilities(IMAGES[FEW])
    np.testing.assert_array_equal(predicted, probabilities > 0.5)
    measured = fitted.evaluate(IMAGES[FEW], y)
    assert measured["accuracy"] == pytest.approx(np.mean(predicted == y))
    columns = zip(y.T, np.float64(probabilities.T), strict=True)
    expected = np.mean([sklearn.metrics.log_loss(*column) for column in columns])
    assert measured["loss"] == pytest.approx(expected, rel=1e-4)


def test_few_rows_on_many_devices():
    """The exclusive or, whose classes are no integers but yes and no."""
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], bool)
    model = mlp(num_classes=2, width=8, depth=1, activation="tanh")
    fitted = arrays.fit(model, x, x.sum(1) == 1, steps=200, learning_rate=0.05, quiet=True)
    assert fitted.predict(x).tolist() == [0, 1, 1, 0]
    assert len(fitted.state.step.sharding.device_set) == 4


def test_sequences_of_tokens():
    x = np.random.default_rng(0).integers(0, 16, (64, 6))
    y = (x == 3).any(1).astype(int)
    fitted = quickly(Tokens(), x, y, steps=150, batch_size=64, learning_rate=0.03)
    assert fitted.evaluate(x, y)["accuracy"] == 1


@pytest.mark.slow
def test_a_function_as_the_loss(tmp_path):
    """Of targets of its own shape: classes at every place of a sequence."""

    class Tagger(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Dense(2)(nn.Embed(16, 8)(x))

    x = np.random.default_rng(0).integers(0, 16, (32, 6))
    y = x % 2
    fitted = quickly(Tagger(), x, y, loss=losses.cross_entropy, steps=60, learning_rate=0.05)
    outputs = fitted.predict(x)
    np.testing.assert_array_equal(outputs.argmax(-1), y)
    measured = fitted.evaluate(x, y)
    assert measured == {"loss": pytest.approx(float(losses.cross_entropy(outputs, y).mean()), 1e-4)}
    fitted.save(tmp_path)
    np.testing.assert_array_equal(arrays.load(tmp_path, Tagger(), devices=ONE).predict(x), outputs)
    assert arrays.load(tmp_path, Tagger(), loss=losses.cross_entropy).evaluate(x, y) == {
        "loss": pytest.approx(measured["loss"], rel=1e-5)
    }
    with pytest.raises(InputError, match=r"^this was fitted by a function; give it to load"):
        arrays.load(tmp_path, Tagger()).evaluate(x, y)


@pytest.mark.parametrize(
    ("x", "shape"),
    [
        (IMAGES[:4], (4, 8, 8, 1)),
        (IMAGES[:4, ..., None], (4, 8, 8, 1)),
        (np.zeros((4, 5)), (4, 5)),
        (np.zeros((4, 2, 3, 4, 5)), (4, 2, 3, 4, 5)),
        (np.zeros(4), (4, 1)),
        ([1, 2, 3, 4], (4, 1)),
        (np.zeros((4, 5), bool), (4, 5)),
        (jnp.zeros((4, 5), jnp.bfloat16), (4, 5)),
    ],
)
def test_rows_of_any_shape(x, shape):
    inputs = forms.to_inputs("x", x, channel=True)
    assert inputs.shape == shape
    form = described(Shapes(len(shape)), inputs, [0, 1, 1, 0])
    assert form.output_shape == (2,)
    np.testing.assert_array_equal(form.inputs("x", x), inputs)


def test_sequences_of_vectors_are_no_images():
    fitted = quickly(Shapes(3), np.zeros((4, 5, 3)), [0, 1, 1, 0], steps=1, channel=False)
    assert fitted.predict(np.zeros((2, 5, 3))).shape == (2,)
    with pytest.raises(InputError, match=r"^x of float32 \[N, 5, 4\]: expected .* \[N, 5, 3\]"):
        fitted.predict(np.zeros((2, 5, 4)))


def test_64_bits_are_cast_to_32():
    values = np.random.default_rng(0).normal(size=(32, 3))
    for kind, kept in {
        "f": "f",
        "d": "f",
        "e": "f",
        "l": "i",
        "H": "i",
        "b": "i",
        "B": "B",
    }.items():
        given = (99 * np.abs(values)).astype(kind)
        made = forms.to_numbers("x", given)
        assert made.dtype == np.dtype(kept)
        np.testing.assert_array_equal(made, given.astype(kept))


def test_validation_rows_of_ones_own_are_what_is_measured(capsys):
    x, y = IMAGES[:64], LABELS[:64]
    own = IMAGES[64:100], LABELS[64:100]
    fitted = arrays.fit(TRIMMED, x, y, steps=2, validation=own, devices=ONE)
    measured = fitted.evaluate(*own)
    assert fitted.history["eval/loss"][-1] == pytest.approx(measured["loss"], rel=1e-6)
    said = capsys.readouterr().out
    assert re.search(r"^step 2/2  eval: loss \d", said, re.MULTILINE)


# Folders


@pytest.mark.slow
def test_what_is_saved_is_loaded_and_goes_on(tmp_path):
    x, y = IMAGES[FEW], LABELS[FEW]
    settings = {"optimizer": "momentum", "learning_rate": 0.1, "validation": 0.25}
    fit = functools.partial(quickly, TRIMMED, x, y, **settings)
    fitted = fit(steps=4)
    fitted.save(tmp_path / "saved")
    loaded = arrays.load(tmp_path / "saved", TRIMMED)  # on eight devices
    assert_same_arrays(loaded.variables, fitted.variables)
    ours, theirs = loaded.evaluate(x, y), fitted.evaluate(x, y)
    assert ours == pytest.approx(theirs, rel=1e-5)
    np.testing.assert_allclose(loaded.probabilities(x), fitted.probabilities(x), atol=1e-6)
    assert repr(loaded.history) == repr(fitted.history)
    loaded.save(tmp_path / "again")
    further, whole = fit(steps=6, workdir=tmp_path / "again"), fit(steps=6)
    assert_same_arrays(further.state.params, whole.state.params)
    assert_same_arrays(further.state.opt_state, whole.state.opt_state)


@pytest.mark.slow
def test_folders_of_other_runs_are_refused(tmp_path):
    x, y = IMAGES[FEW], LABELS[FEW]
    run, fit = tmp_path / "run", functools.partial(quickly, TRIMMED, x, y, steps=3)
    fitted = fit(workdir=run)
    assert repr(fit(workdir=run).history) == repr(fitted.history)  # it was done
    (tmp_path / "file").write_text("")
    other, five = TRIMMED.clone(width=8), TRIMMED.clone(num_classes=5)
    faults = [
        (lambda: fit(workdir=run, batch_size=16), r"^batch_size 16: expected 32, as the run in"),
        (lambda: fit(workdir=run, l2_penalty=0.1), r"^l2_penalty 0.1: expected None, as the run"),
        (lambda: fit(workdir=run, mean=0.5), r"^mean \[0.5\]: expected \[\], as the run"),
        (lambda: quickly(TRIMMED, x, y[::-1], steps=3, workdir=run), "^checksum of train"),
        (lambda: fit(workdir=run, steps=2), r"^2 steps: expected at least 3, which"),
        (lambda: quickly(other, x, y, steps=3, workdir=run), "is of another model or optimizer"),
        (lambda: fitted.save(tmp_path / "file"), r"file, a file: expected a folder$"),
        (lambda: fitted.save(run), r"run, which holds a run: expected a folder without one$"),
        (
            lambda: arrays.load(run, other),
            "another model or optimizer: extra/batch_stats/bn1/mean is",
        ),
        (
            lambda: arrays.load(run, five),
            r"outputs \[N, 5\]: expected \[N, 10\]",
        ),
        (
            lambda: arrays.load(run, TRIMMED, loss=losses.mse),
            "^a loss for what was fitted by",
        ),
        (lambda: arrays.load(tmp_path, TRIMMED), "holds no run of arrays.fit: there is no"),
        (lambda: arrays.load(tmp_path / "file", TRIMMED), "holds no run of arrays.fit"),
    ]
    for act, message in faults:
        with pytest.raises(InputError, match=message) as caught:
            act()
        assert "\n" not in str(caught.value)
    for damage in ("", "[]", '{"form": 1}', '{"form": {}, "settings": {"batch_size": 1}}'):
        (run / arrays.FORM_FILE).write_text(damage)
        with pytest.raises(InputError, match=r"arrays.json is damaged: expected"):
            arrays.load(run, TRIMMED)


# Mistakes

X, Y = np.random.default_rng(0).normal(size=(8, 3)), np.arange(8) % 2
HOLED = np.where(np.arange(24).reshape(8, 3) == 10, np.nan, X)


class Bare(nn.Module):
    """Knows nothing of training."""

    @nn.compact
    def __call__(self, x):
        return x


class Pair(nn.Module):
    """Returns more than logits."""

    @nn.compact
    def __call__(self, x, *, train):
        return x, x


def cropped(key, x):
    return x[:, :1]


GIVEN = {"model": Line(2), "x": X, "y": Y, "steps": 1, "devices": ONE, "quiet": True}
MISTAKES = [
    ({"x": HOLED}, r"^x: row 3 holds nan; expected finite numbers$"),
    ({"y": np.full(8, np.inf), "loss": "mse"}, r"^y: row 0 holds inf; expected finite numbers$"),
    ({"x": X * 1e300}, r"^x: row 0 holds -?inf; expected finite numbers$"),
    ({"y": Y[:7]}, r"^y of 7 rows: expected 8, as its x has$"),
    ({"x": X[:0], "y": Y[:0]}, r"^x of shape \(0, 3\): expected at least one row$"),
    ({"x": 3.0}, r"^x of shape \(\): expected at least one row$"),
    ({"x": [[1.0], [1.0, 2.0]]}, r"^x: .*inhomogeneous.*; expected one array$"),
    ({"y": np.array(list("abababab"))}, r"^y of <U1: expected numbers; np.unique\(names, return"),
    ({"x": np.full((8, 2), 2**40)}, r"^x of 1\d+..1\d+: expected integers of at most 32 bits$"),
    ({"y": Y + 1}, r"^y with classes 1..2: expected 0..1, as the model has 2 outputs$"),
    ({"y": Y - 1}, r"^y with classes -1..0: expected 0..1, as the model has 2 outputs$"),
    ({"y": X[:, 0]}, r"^y of float32 \[N\] for the loss 'cross_entropy': expected integers \[N\]"),
    ({"y": Y[:, None]}, r"^y of int32 \[N, 1\] for .*: expected integers \[N\], classes in 0..1;"),
    ({"model": Line(3), "loss": "mse"}, r"^y of int32 \[N\] for .*: expected \[N, 3\], as the mod"),
    (
        {"model": Line(), "y": 2 * Y, "loss": "sigmoid_cross_entropy"},
        r"^y of int32 \[N\] for .*, outside of 0..1: expected 0, 1 or shares between them$",
    ),
    ({"loss": "crossentropy"}, r"^no loss 'crossentropy'; .* did you mean 'cross_entropy'\?$"),
    ({"loss": 3}, r"^loss 3: expected a name or a function$"),
    ({"optimizer": "adan"}, r"^no optimizer 'adan'; there are .* did you mean 'adam'\?$"),
    ({"schedule": "cosin"}, r"^no schedule 'cosin'; there are .* did you mean 'cosine'\?$"),
    ({"epoch": 3}, r"^no argument for the optimizer adam and .* 'epoch'; .*mean 'epochs'\?$"),
    ({"momentum": 0.9}, r"^no argument for the optimizer adam and the schedule constant 'moment"),
    ({"schedule_end": 0.9}, r"^no argument .* and the schedule constant 'schedule_end'; there"),
    ({"b1": 1.5}, r"^b1=1.5: expected at least 0 and less than 1, finite$"),
    ({"learning_rate": "1"}, r"^learning_rate='1': expected a number$"),
    ({"least_momentum": 0.8}, r"^least_momentum for adam: expected a method with momentum$"),
    ({"epochs": 1}, r"^epochs=1 and steps=1: expected one of the two$"),
    ({"steps": None}, r"^epochs=None and steps=None: expected one of the two$"),
    ({"steps": 0}, r"^steps=0: expected an integer, at least 1$"),
    ({"steps": None, "epochs": -1}, r"^epochs=-1: expected more than 0, finite$"),
    ({"seed": -1}, r"^seed=-1: expected an integer, at least 0 and less than 2\*\*32$"),
    ({"warmup_steps": 1}, r"^a warm-up of 1 steps does not fit in 1 steps$"),
    ({"batch_size": 9}, r"^batch size 9: expected 1 to 8, the number of train examples of x$"),
    ({"batch_size": 6, "devices": None}, r"^batch_size 6 does not divide by the 8 devices; take"),
    ({"label_smoothing": 1}, r"^label_smoothing=1: expected at least 0 and less than 1, finite$"),
    (
        {"model": Line(), "loss": "mse", "label_smoothing": 0.1},
        r"^label_smoothing=0.1 for the loss 'mse': expected 0$",
    ),
    ({"validation": 1.5}, r"^validation=1.5: expected at least 0 and less than 1, or \(x, y\)$"),
    ({"validation": (X,)}, r"^validation of 1 parts: expected \(x, y\)$"),
    ({"validation": 0.01}, r"^validation share 0.01 of 8 train examples leaves a part empty"),
    (
        {"validation": (X[:, :2], Y)},
        r"^the validation's x of float32 \[N, 2\]: expected float32 \[N, 3\], as what the model",
    ),
    ({"mean": (0.5, 0.5)}, r"^mean of shape \(2,\): expected one number, or one for each of 3"),
    ({"std": 0}, r"^std 0.0: expected more than 0$"),
    ({"model": Line}, r"^a model of type type: expected a flax.linen.Module, called as model"),
    ({"model": Bare()}, r"^the model cannot take x \[N, 3\]: .*'train'"),
    ({"model": nn.Conv(2, (3, 3))}, r"^the model cannot take x \[N, 3\]: "),
    ({"model": Pair()}, r"^what the model returns, .*: expected one array \[N, ...\]$"),
    ({"x": IMAGES[:8]}, r"^outputs \[N, 8, 8, 2\] of the model for the loss 'cross_entropy': exp"),
    ({"augment": augment.flip}, r"^augment cannot take \[N, 3\]: "),
    ({"augment": cropped}, r"^\[N, 1\] by augment: expected \[N, 3\]$"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[m[:28] for _, m in MISTAKES])
def test_mistakes_are_told_in_one_line(changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        arrays.fit(**{**GIVEN, "workdir": "run", **changes})
    assert "\n" not in str(caught.value)
    assert not [*tmp_path.iterdir()]


def test_later_arrays_are_as_those_of_the_fit(classifier):
    for x, message in [
        (IMAGES[:3] / 255, r"^x of float32 \[N, 8, 8, 1\]: expected uint8 \[N, 8, 8, 1\], as what"),
        (IMAGES[:3, :4], r"^x of uint8 \[N, 4, 8, 1\]: expected uint8 \[N, 8, 8, 1\]"),
        (IMAGES[:0], "expected at least one row$"),
    ]:
        for act in (classifier.predict, lambda x: classifier.evaluate(x, LABELS[: len(x)])):
            with pytest.raises(InputError, match=message):
                act(x)
    with pytest.raises(InputError, match=r"^y of 2 rows: expected 3, as its x has$"):
        classifier.evaluate(IMAGES[:3], LABELS[:2])


def test_what_diverges_is_told(capsys):
    with pytest.raises(InputError, match="nothing was saved; a lower learning_rate"):
        quickly(Line(), X, X[:, 0], loss="mse", steps=99, optimizer="sgd", learning_rate=1e9)
    assert capsys.readouterr() == ("", "")  # by `quiet`
