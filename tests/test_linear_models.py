"""Linear models by the house's Task: closed forms, scikit-learn's, and the perceptron's theory."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from experiments.studies import perceptron
from experiments.studies.perceptron import clouds, logic
from jaxdl import InputError, losses, optim
from jaxdl.data.tables import Standardization
from jaxdl.models import linear
from jaxdl.task import supervised


def descend(init, loss, batch, optimizer, steps, **hparams):
    """The parameters after so many steps on all rows at once."""
    task = supervised(init, loss, optim.optimizer(optimizer))

    @jax.jit
    def run(hparams):
        state = task.init(jax.random.key(0), hparams)
        train = lambda state, _: (task.train(state, batch)[0], None)
        return jax.lax.scan(train, state, length=steps)[0].params

    return run({name: jnp.float32(value) for name, value in hparams.items()})


@functools.cache
def diabetes():
    x, y = load_diabetes(return_X_y=True)
    x, y = (Standardization.of(z).apply(z) for z in (x, y[:, None]))
    return {"input": x, "target": y, "mask": np.ones(len(x), np.float32)}


@pytest.mark.parametrize("l2_penalty", [0.0, 0.1])
def test_least_squares_and_ridge_are_their_closed_forms(l2_penalty):
    batch = diabetes()
    x, y = np.float64(batch["input"]), np.float64(batch["target"])
    init, loss = losses.prediction(linear.linear(1), (10,))
    decay = {"l2_penalty": l2_penalty} if l2_penalty else {}
    # The greatest eigenvalue of the Hessian is 8, the least 0.017.
    found = descend(init, loss, batch, "momentum", 2000, learning_rate=0.2, momentum=0.95, **decay)[
        "fc"
    ]
    if l2_penalty:
        # mean((Xw + b - y)^2) + l2 |w|^2 / 2 is 1 / N of |Xw + b - y|^2 + alpha |w|^2.
        ridge = Ridge(alpha=len(x) * l2_penalty / 2).fit(x, y)
        expected = np.append(ridge.coef_, ridge.intercept_)
    else:
        expected = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0][:, 0]
    found = np.append(found["kernel"], found["bias"])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected).max() > 0.1


def test_softmax_regression_reaches_the_loss_of_scikit_learn():
    images, labels = load_digits(return_X_y=True)
    x, count, l2_penalty = images / 16, len(images), 1e-2
    batch = {
        "image": np.float32(x).reshape(-1, 8, 8, 1),
        "label": labels.astype(np.int32),
        "mask": np.ones(count, np.float32),
    }
    init, loss = losses.classification(linear.linear(), (8, 8, 1), lambda images: images)
    rates = {"learning_rate": 1.0, "momentum": 0.95}
    params = descend(
        init, loss, batch, "nesterov", 150, l2_penalty=l2_penalty, label_smoothing=0.0, **rates
    )
    by_descent = np.float64(params["fc"]["kernel"]), np.float64(params["fc"]["bias"])
    known = LogisticRegression(C=1 / (count * l2_penalty), tol=1e-8, max_iter=10_000)
    with threadpool_limits(1):  # many threads beside other work take a hundred times as long
        known.fit(x, labels)

    def minimized(kernel, bias):
        logits = x @ kernel + bias
        top = logits.max(1, keepdims=True)
        log_likelihoods = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
        return l2_penalty / 2 * (kernel**2).sum() - log_likelihoods[np.arange(count), labels].mean()

    best = minimized(known.coef_.T, known.intercept_)
    assert minimized(*by_descent) == pytest.approx(best, abs=1e-4)
    assert minimized(*map(np.zeros_like, by_descent)) > best + 1


def test_the_perceptron_criterion_by_hand():
    outputs = np.float32([[2, -2], [0.5, 0]])
    targets = np.float32([[1, 1], [-1, 1]])
    np.testing.assert_allclose(losses.perceptron(outputs, targets), [[0, 2], [0.5, 0]])
    slopes = jax.grad(lambda x: losses.perceptron(x, targets).sum())(outputs)
    np.testing.assert_allclose(slopes, [[0, -1], [1, -1]])
    with pytest.raises(InputError, match=r"^targets of shape \(2,\): expected \(2, 2\)"):
        losses.perceptron(outputs, targets[0])


@pytest.mark.parametrize("name", ["and", "or", "xor", "clouds"])
def test_descending_the_criterion_is_rosenblatts_rule(name):
    """Of two trainings at once, each on rows of its own."""
    both = [clouds(0.1, 30, seed) if name == "clouds" else logic(name, seed) for seed in (0, 3)]
    course = perceptron.train(both, passes=6)
    for examples, weights, wrong in zip(both, course.weights, course.mistakes, strict=True):
        rows = np.c_[examples.inputs, np.ones(len(examples.inputs), np.float32)]
        by_hand, expected, mistakes = np.zeros(3, np.float32), [], []
        for _ in range(6):
            for row, sign in zip(rows, examples.classes, strict=True):
                expected.append(by_hand)
                mistakes.append(sign * (row @ by_hand) <= 0)
                if mistakes[-1]:
                    by_hand = by_hand + sign * row
        np.testing.assert_allclose(weights.reshape(-1, 3), expected, atol=1e-6)
        np.testing.assert_array_equal(wrong.ravel(), mistakes)
        assert np.any(mistakes)
    assert (course.weights[0] != course.weights[1]).any()


def test_margins_and_bounds_by_hand():
    found = logic("and", 0)
    assert found.margin == pytest.approx(0.5 / np.sqrt(4.25))
    assert found.bound == pytest.approx(3 * 4.25 / 0.25)
    assert logic("or", 0).margin == pytest.approx(1 / 3)
    assert logic("xor", 0).bound == np.inf
    for seed in range(4):
        found = clouds(0.2, 50, seed)
        assert len(found.inputs) == 50
        assert set(found.classes) == {-1, 1}
        assert 0.2 <= found.margin < 0.3
        assert np.abs(found.inputs).max() <= 1
        svm = SVC(kernel="linear", C=1e6).fit(found.inputs, found.classes)
        assert svm.score(found.inputs, found.classes) == 1


def test_mistakes_on_what_is_separable_are_within_novikoffs_bound():
    setups = [[clouds(margin, 40, seed) for seed in range(3)] for margin in (0.4, 0.15)]
    setups += [[logic(name, seed) for seed in range(3)] for name in ("and", "or")]
    for examples in setups:
        bound = max(each.bound for each in examples)
        course = perceptron.train(examples, int(bound) + 1)
        for each, wrong in zip(examples, course.mistakes, strict=True):
            assert 0 < wrong.sum() <= each.bound
        assert not course.mistakes[:, -1].any()


def test_the_perceptron_goes_in_circles_on_xor():
    examples = [logic("xor", seed) for seed in range(4)]
    course = perceptron.train(examples, passes=20)
    assert course.mistakes.any(2).all()
    for weights in course.weights:
        every = perceptron.period(weights)
        assert every is not None
        np.testing.assert_array_equal(weights[10 + every], weights[10])
    starts = np.float32([0, 1, 2, 3, 1, 2, 3, 1]).reshape(-1, 1, 1)
    assert perceptron.period(starts) == 3
    assert perceptron.period(starts[:4]) is None


def test_the_study_tells_what_it_counted(experiment):
    flags = ["--workdir=study", "--seeds=2", "--points=12", "--margins=0.4", "--passes=5"]
    printed = experiment("studies.perceptron", *flags).stdout
    record = json.loads((experiment.folder / "study" / "table.json").read_text())["measured"]
    assert list(record) == ["and", "or", "xor", "margin 0.4"]
    examples = [logic("and", seed) for seed in (0, 1)]
    course = perceptron.train(examples, 52)
    assert record["and"]["mistakes"] == [int(wrong.sum()) for wrong in course.mistakes]
    last = [int(np.flatnonzero(wrong.any(1)).max()) + 1 for wrong in course.mistakes]
    assert record["and"]["passes"] == last
    assert record["xor"]["mistakes"] == [None, None]
    assert re.search(r"\| xor +\| none +\| none +\| no end +\| all; weights repeat", printed)
    assert (experiment.folder / "study" / "perceptron.png").stat().st_size > 10_000
    refused = experiment("studies.perceptron", *flags, "--points=13", check=False)
    assert "holds a study with --points=12, not 13" in refused.stderr
    refused = experiment("studies.perceptron", "--margins=0.9", check=False)
    assert refused.stderr == "error: --margins=0.9: it must be from 0.01 to 0.5\n"


def test_a_perceptron_classifies_by_the_sign():
    model = linear.Perceptron(2)
    params = {"fc": {"kernel": np.float32([[1, -1]]), "bias": np.float32([0, 1])}}
    found = model.apply({"params": params}, np.float32([[2], [0], [-3]]), method="classify")
    np.testing.assert_array_equal(found, [[1, -1], [1, 1], [-1, 1]])
    fresh = model.init(jax.random.key(0), np.zeros((1, 5)), train=False)["params"]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(fresh))
