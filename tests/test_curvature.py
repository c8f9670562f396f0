"""`jaxdl.curvature` against NumPy's eigenvalues, and the tool and the study that stand on it."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from scipy.special import softmax

from experiments import curvature as tool
from experiments.harness import classification, study
from experiments.studies import descent
from jaxdl import InputError, curvature, parallel
from jaxdl.models.language_model import language_model
from jaxdl.models.mlp import mlp
from jaxdl.recurrent import Recurrent
from jaxdl.task import Mean

CLOSE = functools.partial(np.testing.assert_allclose, rtol=1e-4)
RNG = np.random.default_rng(0)


def symmetric(eigenvalues):
    """A matrix with these eigenvalues, along any axes."""
    size = len(eigenvalues)
    axes, _ = np.linalg.qr(np.random.default_rng(size).standard_normal((size, size)))
    return (axes * np.asarray(eigenvalues)) @ axes.T


def quadratic(matrix):
    """(params) -> x^T matrix x / 2, of x in two parts."""

    def f(params):
        x = jnp.concatenate([params["a"].ravel(), params["b"]])
        return 0.5 * x @ jnp.asarray(matrix, jnp.float32) @ x

    return f, {"a": jnp.ones((2, 2)), "b": jnp.ones(len(matrix) - 4)}


class Convolutional(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Conv(3, (3, 3), strides=2)(x))
        return nn.Dense(3)(x.reshape(len(x), -1))


class Sequential(nn.Module):
    kind: str
    forward_mode: bool = False

    @nn.compact
    def __call__(self, x):
        cells = Recurrent(self.kind, 3, forward_mode=self.forward_mode)
        outputs, _ = cells(x, train=False, lengths=jnp.array([4, 2, 3, 4, 1, 4]))
        return nn.Dense(3)(outputs.mean(1))


class Perceptron(nn.Module):
    @nn.compact
    def __call__(self, x):
        return mlp(num_classes=3, width=3, depth=2, activation="tanh")(x, train=False)


INPUTS = {
    "mlp": (Perceptron(), (6, 3)),
    "cnn": (Convolutional(), (6, 5, 5, 1)),
    "lstm": (Sequential("lstm"), (6, 4, 2)),
    "gru": (Sequential("gru"), (6, 4, 2)),
}
LSTM = pytest.param("lstm", marks=pytest.mark.slow)
GRU = pytest.param("gru", marks=pytest.mark.slow)
networks = pytest.mark.parametrize("name", ["mlp", "cnn", LSTM, GRU])
LABELS = np.array([0, 1, 2, 2, 1, 0])


def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


@functools.cache
def network(name):
    """(loss of the parameters, parameters, logits of the parameters) of a network on noise."""
    model, shape = INPUTS[name]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    logits = lambda params: model.apply({"params": params}, x)
    return (lambda params: cross_entropy(logits(params))), params, logits


@functools.cache
def dense(name):
    """The Hessian of a network."""
    f, params, _ = network(name)
    return curvature.hessian(f, params)


# The library


def test_a_quadratic_has_the_eigenvalues_it_was_made_of():
    """As often as they occur, and where some are negative and zero."""
    matrix = symmetric([5, 5, 5, 1, -7, 0, 0, 0.5])
    f, params = quadratic(matrix)
    np.testing.assert_allclose(curvature.hessian(f, params), matrix, atol=2e-6)
    found = curvature.top_eigenvalues(f, params, 4)
    CLOSE(found.values, [5, 5, 5, 1])
    assert found.errors.max() < 1e-4
    flat = jax.vmap(lambda tree: ravel_pytree(tree)[0])(found.vectors)
    np.testing.assert_allclose(flat @ flat.T, np.eye(4), atol=1e-5)
    np.testing.assert_allclose(flat @ matrix, found.values[:, None] * flat, atol=1e-5)
    spectrum = curvature.spectrum(f, params, probes=3)
    CLOSE(spectrum.weights.sum(1), np.ones(3))
    assert spectrum.values.shape == (3, 8)
    product = curvature.hvp(f, params, jax.tree.map(jnp.zeros_like, params) | {"b": jnp.ones(4)})
    np.testing.assert_allclose(ravel_pytree(product)[0], matrix[:, 4:].sum(1), atol=2e-6)


def test_nothing_is_curved_where_a_loss_is_a_line():
    line, params = lambda x: jnp.sum(3 * x), jnp.ones(5)
    assert not curvature.hessian(line, params).any()
    np.testing.assert_array_equal(curvature.top_eigenvalues(line, params, 2).values, [0, 0])
    assert curvature.trace(line, params) == (0, 0)


def test_the_trace_of_a_diagonal_matrix_is_exact():
    f, params = quadratic(np.diag([1.0, 2, 3, 4, -5, 6]))
    value, error = curvature.trace(f, params, probes=20)
    assert value == pytest.approx(11)
    assert error == pytest.approx(0, abs=1e-6)


def test_logistic_regression_by_hand():
    """X^T D X, which is its Gauss-Newton matrix too: the logit is linear."""
    x = RNG.standard_normal((40, 4)).astype(np.float32)
    y = (RNG.random(40) < 0.5).astype(np.float32)
    params = jnp.asarray(RNG.standard_normal(4), jnp.float32)
    outputs = lambda params: x @ params
    loss = lambda logits: optax.sigmoid_binary_cross_entropy(logits, y).mean()
    p = 1 / (1 + np.exp(-x @ np.asarray(params, np.float64)))
    wanted = x.T @ np.diag(p * (1 - p)) @ x / 40
    f = lambda params: loss(outputs(params))
    CLOSE(curvature.hessian(f, params), wanted, atol=1e-7)
    product = lambda v: curvature.gauss_newton_product(outputs, loss, params, v)
    CLOSE(jax.jit(jax.vmap(product))(jnp.eye(4)), wanted, atol=1e-7)
    CLOSE(curvature.top_eigenvalues(f, params, 4).values, np.linalg.eigvalsh(wanted)[::-1])


@pytest.mark.slow
def test_a_hessian_by_differences():
    """Of a perceptron that NumPy computes in float64."""
    f, params, _ = network("mlp")
    flat, _ = ravel_pytree(params)
    x = np.random.default_rng(1).standard_normal(INPUTS["mlp"][1]).astype(np.float32)

    def loss(flat):
        arrays, start = [], 0
        for leaf in jax.tree.leaves(params):
            arrays.append(flat[start : start + leaf.size].reshape(leaf.shape))
            start += leaf.size
        bias, kernel, bias1, kernel1, bias2, kernel2 = arrays  # fc, fc1, fc2
        logits = np.tanh(np.tanh(x @ kernel1 + bias1) @ kernel2 + bias2) @ kernel + bias
        picked = logits[np.arange(6), LABELS]
        return (np.log(np.exp(logits).sum(1)) - picked).mean()

    start, step = np.asarray(flat, np.float64), 1e-4
    assert loss(start) == pytest.approx(float(f(params)), rel=1e-6)
    axes, size = step * np.eye(len(start)), len(start)
    wanted = np.zeros((size, size))
    for i in range(size):
        for j in range(i + 1):
            both, apart = axes[i] + axes[j], axes[i] - axes[j]
            second = loss(start + both) + loss(start - both)
            second -= loss(start + apart) + loss(start - apart)
            wanted[i, j] = wanted[j, i] = second / (4 * step**2)
    np.testing.assert_allclose(dense("mlp"), wanted, atol=1e-6)
    eigenvalues = np.linalg.eigvalsh(wanted)[::-1]
    CLOSE(curvature.top_eigenvalues(f, params, 5).values, eigenvalues[:5])


@networks
def test_eigenvalues_are_those_of_numpy(name):
    f, params, _ = network(name)
    eigenvalues = np.linalg.eigvalsh(dense(name).astype(np.float64))[::-1]
    found = curvature.top_eigenvalues(f, params, 3)
    CLOSE(found.values, eigenvalues[:3])
    assert (np.abs(found.values - eigenvalues[:3]) <= found.errors + 1e-6).all()
    value, error = curvature.trace(f, params, probes=320)
    off_diagonal = dense(name) - np.diag(np.diag(dense(name)))
    wanted = np.sqrt(2 * np.square(off_diagonal).sum() / 320)  # of signs, exactly
    assert error == pytest.approx(wanted, rel=0.2)
    assert abs(value - eigenvalues.sum()) < 3 * wanted


@networks
def test_a_quadrature_is_exact_for_powers_up_to_twice_its_nodes(name):
    matrix = dense(name).astype(np.float64)
    start = RNG.standard_normal((1, len(matrix)))
    start /= np.linalg.norm(start)
    found = curvature.lanczos(lambda rows: rows @ matrix, start, steps=4)
    moment = start[0]
    for power in range(8):
        quadrature = found.coordinates[0] ** 2 @ found.values**power
        assert quadrature == pytest.approx(start[0] @ moment, rel=1e-9, abs=1e-14), power
        moment = matrix @ moment
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(4), atol=1e-12)


def test_a_spectrum_has_its_eigenvalues_where_they_are():
    """Three of twenty-four away from all others, and their share; a density is of all."""
    matrix = symmetric([*np.linspace(-0.1, 0.1, 21), 3, 4, 5])
    f, params = quadratic(matrix)
    spectrum = curvature.spectrum(f, params, probes=60, steps=12)
    share = spectrum.weights[spectrum.values > 1].sum() / 60
    assert share == pytest.approx(3 / 24, rel=0.15)
    mean = (spectrum.values * spectrum.weights).sum(1).mean()
    assert mean * 24 == pytest.approx(12, rel=0.15)
    points = np.linspace(-2, 7, 2000)
    density = spectrum.density(points, 0.1)
    assert density.sum() * (points[1] - points[0]) == pytest.approx(1, abs=1e-3)
    peak = points[points > 4.5][density[points > 4.5].argmax()]
    assert peak == pytest.approx(5, abs=0.01)


@networks
def test_gauss_newton_by_the_jacobian(name):
    _, params, logits = network(name)
    if name in ("lstm", "gru"):
        model, shape = INPUTS[name]
        x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        with pytest.raises(TypeError, match="forward-mode"):
            curvature.gauss_newton_product(logits, cross_entropy, params, params)
        model = model.clone(forward_mode=True)
        logits = lambda params: model.apply({"params": params}, x)
    flat, unravel = ravel_pytree(params)
    jacobian = jax.jit(jax.jacrev(lambda flat: logits(unravel(flat)).ravel()))(flat)
    outputs = jax.jit(logits)(params)
    of_loss = curvature.hessian(lambda z: cross_entropy(z.reshape(outputs.shape)), outputs.ravel())
    product = lambda v: curvature.gauss_newton_product(
        lambda flat: logits(unravel(flat)), cross_entropy, flat, v
    )
    found = jax.jit(jax.vmap(product))(jnp.eye(len(flat)))
    np.testing.assert_allclose(found, jacobian.T @ of_loss @ jacobian, atol=1e-6)
    assert np.linalg.eigvalsh(found).min() > -1e-6


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_a_recurrent_layer_differentiates_twice_either_way(kind):
    """Its own derivative, differentiated, is the plain loop's."""
    model, shape = INPUTS[kind]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    _, params, logits = network(kind)
    plain = model.clone(forward_mode=True)
    of_plain = jax.jit(lambda params: plain.apply({"params": params}, x))
    CLOSE(of_plain(params), jax.jit(logits)(params), atol=1e-6)
    f = lambda params: cross_entropy(of_plain(params))
    np.testing.assert_allclose(curvature.hessian(f, params), dense(kind), atol=1e-6)
    assert np.abs(dense(kind)).max() > 1e-2


def test_a_language_model_has_a_forward_mode():
    model = language_model(5, kind="gru", features=3, layers=1, forward_mode=True)
    tokens = jnp.zeros((2, 3), jnp.int32)
    params = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), tokens)
    logits = lambda params: model.apply(params, tokens, train=False)[0]
    _, tangents = jax.jit(lambda params: jax.jvp(logits, (params,), (params,)))(params)
    assert float(jnp.abs(tangents).max()) > 0


def regression(params, batch):
    """The total and count of squared errors, with rows masked out."""
    errors = (jnp.tanh(batch["x"] @ params["w"]) - batch["y"]) ** 2
    return Mean((errors * batch["mask"]).sum(), batch["mask"].sum())


def rows(size, seed):
    rng = np.random.default_rng(seed)
    batch = {"x": rng.standard_normal((size, 6)), "y": rng.standard_normal(size)}
    batch["mask"] = (np.arange(size) < 5 + seed).astype(float)
    return {name: values.astype(np.float32) for name, values in batch.items()}


def test_batches_sum_to_the_whole_on_any_devices():
    """Unequal ones, spread over eight devices, and all rows at once on one."""
    params = {"w": jnp.linspace(-1, 1, 6)}
    batches = [rows(16, seed) for seed in range(3)]
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    alone = lambda params: regression(params, whole).value
    spread = parallel.batch_sharding(parallel.data_mesh())
    sharded = [jax.device_put(batch, spread) for batch in batches]
    assert len(sharded[0]["x"].sharding.device_set) == 8
    wanted = curvature.hessian(alone, params)
    for given in (batches, sharded):
        of_batches = {"batches": lambda given=given: iter(given)}
        np.testing.assert_allclose(
            curvature.hessian(regression, params, **of_batches), wanted, atol=1e-6
        )
        found = curvature.top_eigenvalues(regression, params, 2, **of_batches)
        CLOSE(found.values, np.linalg.eigvalsh(wanted)[:-3:-1])
        of_spread = curvature.trace(regression, params, probes=16, **of_batches)
        CLOSE(of_spread, curvature.trace(alone, params, probes=16))
    # A mean of the batches' means is another.
    means = [curvature.hessian(lambda p, b=b: regression(p, b).value, params) for b in batches]
    assert np.abs(np.mean(means, 0) - wanted).max() > 1e-3


def test_other_products_are_summed_over_batches_too():
    params, v = {"w": jnp.linspace(-1, 1, 6)}, {"w": jnp.arange(6.0)}
    batches = [rows(16, seed) for seed in range(3)]

    @jax.jit
    def product(batch):
        outputs = lambda params: jnp.tanh(batch["x"] @ params["w"])
        loss = lambda z: ((z - batch["y"]) ** 2 * batch["mask"]).sum()
        total = curvature.gauss_newton_product(outputs, loss, params, v)
        return Mean(total, batch["mask"].sum())

    found = curvature.mean_over(product, lambda: batches)["w"]
    parts = [product(batch) for batch in batches]
    CLOSE(found, np.sum([part.total["w"] for part in parts], 0) / (5 + 6 + 7))


def test_a_loss_is_compiled_once():
    traced = []

    def f(x):
        traced.append(x)
        return jnp.sum(x**4)

    values = [curvature.top_eigenvalues(f, jnp.full(3, x)).values[0] for x in (1.0, 2.0)]
    CLOSE(values, [12, 48])
    assert len(traced) == 1


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_range_of_rates_is_that_of_the_iteration_matrix(momentum, nesterov):
    """On a quadratic a step is a matrix, which converges if its eigenvalues are less than 1."""
    greatest = 3.0
    least, limit = curvature.step_size_range(greatest, momentum, nesterov=nesterov)
    assert least == 0

    def radius(rate, eigenvalue):
        # (x, m) -> (x - rate u, m'), with m' = b m + g and u = m', or with Nesterov g + b m'
        gradient, memory = eigenvalue, momentum
        after = np.array([gradient, memory])
        step = np.array([gradient, 0]) + momentum * after if nesterov else after
        matrix = np.array([np.array([1, 0]) - rate * step, after])
        return np.abs(np.linalg.eigvals(matrix)).max()

    for eigenvalue in (3.0, 1.0, 0.1):
        assert radius(0.999 * limit, eigenvalue) < 1
        assert radius(1e-3 * limit, eigenvalue) < 1
    assert radius(1.001 * limit, greatest) > 1
    assert radius(limit, greatest) == pytest.approx(1)


SQUARES = lambda params: jnp.sum(params**2)
SQUARED = lambda params, batch: Mean(jnp.sum(params**2) * batch["n"], batch["n"])


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: curvature.hessian(SQUARES, jnp.ones(20_000)), "1,600,000,000 bytes.*top_eigenv"),
        (lambda: curvature.hessian(SQUARES, {}), "parameters without a number"),
        (lambda: curvature.top_eigenvalues(SQUARES, jnp.ones(3), 0), "k=0: expected 1 to 3"),
        (lambda: curvature.top_eigenvalues(SQUARES, jnp.ones(3), 4), "k=4: expected 1 to 3"),
        (lambda: curvature.top_eigenvalues(SQUARES, jnp.ones(3), steps=0), "steps=0"),
        (lambda: curvature.top_eigenvalues(SQUARES, jnp.ones(3), tolerance=0), "tolerance=0"),
        (lambda: curvature.spectrum(SQUARES, jnp.ones(3), probes=0), "probes=0"),
        (lambda: curvature.spectrum(SQUARES, jnp.ones(3), steps=0), "steps=0"),
        (
            lambda: curvature.Spectrum(np.zeros((1, 1)), np.ones((1, 1))).density(np.zeros(1), 0),
            "width=0",
        ),
        (lambda: curvature.trace(SQUARES, jnp.ones(3), probes=1), "probes=1: expected at least 2"),
        (lambda: curvature.trace(SQUARED, jnp.ones(3), batches=list), "hold no example"),
        (lambda: curvature.trace(SQUARED, jnp.ones(3), batches=lambda: [{"n": 0.0}]), "no example"),
        (lambda: curvature.step_size_range(0.0), "greatest_eigenvalue=0.0"),
        (lambda: curvature.step_size_range(np.nan), "greatest_eigenvalue=nan"),
        (lambda: curvature.step_size_range(1.0, 1.0), "momentum=1.0: expected at least 0 and less"),
    ],
)
def test_what_cannot_be_measured_is_told(measure, message):
    with pytest.raises(InputError, match=message):
        measure()


def test_what_is_not_finite_is_told():
    with pytest.raises(FloatingPointError, match="not finite"):
        curvature.top_eigenvalues(lambda x: jnp.sum(x**4), jnp.array([1.0, np.nan]))


# The tool


@pytest.fixture(scope="module")
def regression_run(tmp_path_factory, run_in):
    """A run of softmax regression on digits of 8x8, whose Hessian is known."""
    folder = tmp_path_factory.mktemp("curvature")
    flags = ["--workdir=run", "--depth=0", "--image_size=8", "--optimizer=momentum"]
    flags += ["--schedule=constant", "--warmup_epochs=0", "--learning_rate=0.05", "--steps=60"]
    run_in(folder, "mlp", *flags, "--batch_size=200", "--per_class=30", "--nohistograms")
    return folder


def softmax_hessian(workdir):
    """By hand: the mean over the training images of (diag(p) - p p^T) by x x^T."""
    trained = classification.load_trained(workdir)
    pipeline = classification.make_pipeline(trained.config, parallel.data_mesh(jax.devices()[:1]))
    images = np.concatenate([b["image"][b["mask"] > 0] for b in pipeline.evaluate("train")])
    x = (images.reshape(len(images), -1) / 255 - 0.5) / 0.5
    x = np.concatenate([np.ones((len(x), 1)), x], 1)  # the bias comes first
    fc = trained.variables["params"]["fc"]
    p = softmax(x @ np.concatenate([fc["bias"][None], fc["kernel"]]), -1)
    of_logits = np.eye(10) * p[:, None] - p[:, :, None] * p[:, None]
    hessian = np.einsum("ni,nab,nj->iajb", x, of_logits, x, optimize=True) / len(x)
    return hessian.reshape(650, 650)


@pytest.mark.slow
def test_the_tool_measures_a_run(regression_run, run_in):
    """All of the training set, against the Hessian by hand."""
    few = ["--eigenvalues=3", "--probes=1", "--steps=40", "--trace_probes=32"]
    done = run_in(regression_run, "curvature", "--workdir=run", *few)
    folder = regression_run / "run"
    assert (folder / "curvature.png").stat().st_size > 10_000
    found = json.loads((folder / "curvature.json").read_text())
    wanted = np.linalg.eigvalsh(softmax_hessian(folder))[::-1]
    CLOSE(found["eigenvalues"], wanted[:3])
    assert found["sharpness"] == found["eigenvalues"][0]
    assert abs(found["trace"] - wanted.sum()) < 4 * found["trace_error"]
    assert (found["examples"], found["parameters"], found["step"]) == (300, 650, 60)
    of_greatest = {"rate": 0.05, "two_over_rate": 40, "limit": 76}
    assert found["rates"]["greatest"] == pytest.approx(of_greatest)
    said = (
        f"sharpness {wanted[0]:.4g}; of the last learning rate, 0.05: 2 / rate is 40, and momentum"
    )
    assert f"{said} converges on a quadratic below 76" in done.stdout


@pytest.mark.slow
def test_the_tool_draws_examples(regression_run, run_in):
    """The run's first ones in training, here spread over two devices."""
    few = ["--eigenvalues=1", "--probes=1", "--steps=3", "--trace_probes=2"]
    few += ["--workdir=run", "--out=few", "--examples=230"]
    run_in(regression_run, "curvature", *few, devices=2)
    found = json.loads((regression_run / "few" / "curvature.json").read_text())
    config, problem, state = tool.restore(regression_run / "run")
    batches = problem.feed.train()
    first, second = next(batches), next(batches)
    images = np.concatenate([first["image"], second["image"][:30]])
    labels = np.concatenate([first["label"], second["label"][:30]])
    logits = (images.reshape(230, -1) / 255 - 0.5) / 0.5 @ state.params["fc"]["kernel"]
    logits += state.params["fc"]["bias"][None]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    assert found["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert found["examples"] == 230
    assert tool.edges_of(config, state, regression_run / "run").keys() == {"greatest", "last"}


def test_a_method_with_steps_of_its_own_has_no_edge():
    found = {"loss": 0.1, "examples": 5, "parameters": 3, "step": 2, "sharpness": 4.0}
    found |= {"eigenvalues": [4.0], "errors": [0.01], "trace": 6.0, "trace_error": 0.5}
    assert tool.tell(found, "adam", {}).splitlines() == [
        "loss 0.1 over 5 training examples, of 3 parameters at step 2",
        "greatest eigenvalues: 4 (± 0.01)",
        "trace: 6 ± 0.5",
        "sharpness 4; the steps of adam are none that 2 / rate bounds",
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--workdir=: it must be a run's"),
        (("--workdir=none",), "no run in none"),
        (("--workdir=text",), "holds a run of experiments.word2vec: no classifier"),
        (("--workdir=folds",), "folds holds folds; give the --workdir of one of them"),
        pytest.param(("--workdir=empty",), "no checkpoint", marks=pytest.mark.slow),
        (("--workdir=text", "--out=file"), "--out=file: it must be a folder"),
        (("--workdir=text", "--eigenvalues=0"), "--eigenvalues=0: it must be at least 1"),
        (("--workdir=text", "--trace_probes=1"), "--trace_probes=1: it must be at least 2"),
        (("--workdir=text", "--tolerance=0"), "--tolerance=0.0: it must be more than 0"),
        (("--workdir=text", "more"), "'more' is no flag"),
    ],
)
def test_what_the_tool_refuses(flags, message, tmp_path, experiment):
    (tmp_path / "file").touch()
    for name, of_run in {
        "text": "--experiment=word2vec",
        "folds": "--experiment=mlp\n--folds=3",
        "empty": "--experiment=mlp",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "flags.txt").write_text(f"{of_run}\n")
    done = experiment("curvature", *flags, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_tool_refuses_more_than_there_is(regression_run, run_in):
    for flag, accepted in (("--examples=301", "1 to 300"), ("--eigenvalues=651", "1 to 650")):
        done = run_in(regression_run, "curvature", "--workdir=run", flag, check=False)
        assert done.returncode == 1
        assert accepted in done.stderr
        assert done.stderr.count("\n") == 1


# The study


@pytest.mark.slow
def test_the_study_finds_what_the_textbooks_say(experiment):
    """Small: a hundred digits, at a rate that reaches the edge and at one that does not."""
    few = ["--workdir=new", "--seeds=1", "--examples=100", "--width=16"]
    experiment("studies.descent", *few, "--learning_rates=0.5,1.75", "--steps=800", "--every=80")
    record = json.loads((experiment.folder / "new" / "table.json").read_text())
    for of_method in record["quadratics"].values():
        last = {share: distances[0][-1] for share, distances in of_method.items()}
        half = {
            share: distances[0][len(distances[0]) // 2] for share, distances in of_method.items()
        }
        assert last["0.5"] < 1e-4
        assert last["0.99"] < 0.3 * half["0.99"]
        assert last["1.0"] == pytest.approx(half["1.0"], rel=1e-2)
        assert last["1.01"] > 3 * half["1.01"]
    kinds = {
        name: [point["kind"] for point in f] for name, f in record["stationary_points"].items()
    }
    assert kinds["x² - y²"] == ["saddle"]
    assert kinds["x³ - 3xy²"] == ["undecided"]
    assert kinds["Rosenbrock"] == ["minimum"]
    slow, fast = record["digits"]["0.5"], record["digits"]["1.75"]
    assert slow["greatest"][0] < 0.5
    assert slow["rises"] == [0]
    assert fast["start"][0] < 1
    assert fast["last"][0] == pytest.approx(1, abs=0.1)
    assert fast["rises"][0] > 0
    assert fast["loss"][0] < slow["loss"][0]
    folder = experiment.folder / "new"
    assert all((folder / f"{name}.png").stat().st_size > 10_000 for name in ("quadratic", "edge"))
    assert (
        "| Himmelblau        | 4       | 4      | 1       | 0         | 9 of 9"
        in (folder / "table.md").read_text()
    )


def test_stationary_points_are_told_by_their_eigenvalues():
    found = descent.stationary_points(descent.FUNCTIONS["Himmelblau"], starts=60)
    kinds = [point.kind for point in found]
    assert {kind: kinds.count(kind) for kind in kinds} == {"minimum": 4, "saddle": 4, "maximum": 1}
    assert all(map(descent.agrees, found))
    # Himmelblau 1972, "Applied nonlinear programming": one of its minima, and its maximum.
    places = np.array([point.place for point in found])
    for place, kind in (((3, 2), "minimum"), ((-0.270845, -0.923039), "maximum")):
        nearest = np.abs(places - place).sum(1).argmin()
        np.testing.assert_allclose(places[nearest], place, atol=1e-4)
        assert kinds[nearest] == kind


def test_kinds_by_hand():
    kinds = {(1, 2): "minimum", (-1, 2): "saddle", (-2, -1): "maximum", (0, 2): "undecided"}
    for eigenvalues, kind in kinds.items():
        assert descent.kind_of(np.array(eigenvalues)) == kind
    agrees = lambda kind, lower: descent.agrees(descent.Point([0, 0], kind, [], lower))
    assert agrees("minimum", 0)
    assert agrees("maximum", 1)
    assert agrees("saddle", 0.5)
    assert agrees("undecided", 0)
    assert not agrees("minimum", 0.1)
    assert not agrees("saddle", 1)
    assert not agrees("maximum", 0.9)


def test_an_edge_by_hand():
    sharpness = np.array([[1.0, 2, 3, 5, 4, 4, 4, 4]])
    losses = np.array([[9.0, 8, 7, 6, 5, 4, 3, 4]])
    assert descent.edge(0.5, descent.Descent(sharpness, losses)) == {
        "start": [0.25],
        "greatest": [1.25],
        "last": [1.0],
        "rises": [1.0],
        "loss": [4.0],
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--learning_rates=",), "--learning_rates=: it must be one or more numbers above 0"),
        (("--learning_rates=1,1",), "it must be one or more numbers above 0, each once"),
        (("--steps=70",), "--steps=70: it must be a multiple of --every=50"),
        (("--examples=2000",), "--examples=2000: it must be 1 to 1437"),
        (("--width=0",), "--width=0: it must be at least 1"),
        (("--depth=-1",), "--depth=-1: it must be at least 0"),
    ],
)
def test_what_the_study_refuses(flags, message):
    with pytest.raises(InputError, match=message):
        study.read(descent.Config, flags)


def test_a_descent_that_diverges_is_told():
    flags = ["--learning_rates=1000", "--examples=20", "--width=2", "--steps=50", "--seeds=1"]
    config = study.read(descent.Config, flags)
    with pytest.raises(InputError, match=r"--learning_rates=1000.0: seed 0 diverged; take less"):
        descent.on_digits(config)
