"""Recurrent networks against torch's, and what padding and transformations may not change."""

import sys
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from jaxdl import InputError, features_first, parallel
from jaxdl.cost import cost
from jaxdl.recurrent import GATES, Recurrent, from_torch, initial_carry, to_torch

sys.path.append(str(Path(__file__).parent / "golden"))
from weights import weight

GOLDEN = np.load(Path(__file__).parent / "golden" / "recurrent.npz")
BATCH, TIME, INPUTS, SIZE = 3, 6, 4, 5
LENGTHS = jnp.array([4, 6, 1])
KINDS = tuple(GATES)
ABSOLUTE = partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
kinds = pytest.mark.parametrize("kind", KINDS)
# The GRU has a bias and a gate more that may go wrong, so it goes first.
slow = partial(pytest.param, marks=pytest.mark.slow)
slow_kinds = pytest.mark.parametrize("kind", [slow("rnn"), slow("lstm"), "gru"])


def array(name, *shape):
    """The array that record_recurrent.py has under this name."""
    return weight(f"{name}.weight" if len(shape) > 1 else name, shape)


def torch_weights(kind, layers, bidirectional):
    """The state dict that the goldens were recorded with."""
    width, weights = GATES[kind] * SIZE, {}
    for i in range(layers):
        entering = SIZE * (1 + bidirectional) if i else INPUTS
        for end in (f"l{i}", f"l{i}_reverse")[: 1 + bidirectional]:
            shapes = {"weight_ih": (width, entering), "weight_hh": (width, SIZE)}
            shapes |= {"bias_ih": (width,), "bias_hh": (width,)}
            weights |= {f"{k}_{end}": array(f"{k}_{end}", *s) for k, s in shapes.items()}
    return weights


def network(kind, layers=1, bidirectional=False, **kwargs):
    """A network with torch's recorded weights."""
    model = Recurrent(kind, SIZE, layers, bidirectional, **kwargs)
    return model, from_torch(
        torch_weights(kind, layers, bidirectional), kind, layers, bidirectional
    )


@cache
def drawn(kind, layers=1, bidirectional=False, inputs=SIZE, **kwargs):
    """A network as it is initialized, with biases that are not zero."""
    model = Recurrent(kind, SIZE, layers, bidirectional, **kwargs)
    init = jax.jit(partial(model.init, train=False))
    params = init(jax.random.key(0), jnp.zeros((1, 1, inputs)))["params"]
    return model, jax.tree.map(
        lambda p: p if p.ndim > 1 else jnp.asarray(array("bias", *p.shape)), params
    )


def sequences(inputs=SIZE, batch=BATCH):
    return jnp.asarray(array("x", batch, TIME, inputs))


@cache
def compiled(model, train):
    return jax.jit(partial(model.apply, train=train))


def applied(model, params, x, train=False, **kwargs):
    return compiled(model, train)({"params": params}, x, **kwargs)


def weighted(outputs, carry):
    """A number that depends on every output and state, each in its own way."""
    leaves = jax.tree.leaves((outputs, carry))
    return sum(jnp.sum(array(str(i), *leaf.shape) * leaf) for i, leaf in enumerate(leaves))


def assert_close(found, wanted, atol=1e-5):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=atol), found, wanted)


CASES = sorted({name.split("/")[0] for name in GOLDEN.files})


@pytest.mark.parametrize("case", [c if c.endswith("2-1-1") else slow(c) for c in CASES])
def test_torch(case):
    kind, *numbers = case.split("-")
    layers, bidirectional, packed = map(int, numbers)
    golden = {n.removeprefix(f"{case}/"): GOLDEN[n] for n in GOLDEN.files if n.startswith(case)}
    model, params = network(kind, layers, bool(bidirectional))
    parts = ("h", "c") if kind == "lstm" else ("h",)
    count = layers * (1 + bidirectional)
    states = {name: array(name, count, BATCH, SIZE) for name in parts}
    cotangents = {name: array(f"d_{name}", count, BATCH, SIZE) for name in parts}

    def loss(params, x, states):
        carry = tuple(zip(*(states[name] for name in parts), strict=True))
        carry = carry if kind == "lstm" else tuple(h for (h,) in carry)
        lengths = LENGTHS if packed else None
        outputs, last = applied(model, params, x, carry=carry, lengths=lengths)
        last = zip(*last, strict=True) if kind == "lstm" else [last]
        last = {name: jnp.stack(value) for name, value in zip(parts, last, strict=True)}
        total = jnp.sum(outputs * array("d_outputs", *outputs.shape))
        total += sum(jnp.sum(last[name] * cotangents[name]) for name in last)
        return total, {"outputs": outputs, **last}

    run = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    (d_params, d_x, d_states), found = run(params, sequences(INPUTS), states)
    found |= {"grad/x": d_x, **{f"grad/{name}": value for name, value in d_states.items()}}
    for layer, leaves in d_params.items():
        end = layer.replace("layer", "l")
        found[f"grad/weight_ih_{end}"] = leaves["input_kernel"].T
        found[f"grad/weight_hh_{end}"] = leaves["hidden_kernel"].T
        found[f"grad/bias_ih_{end}"] = leaves["bias"]
        second = leaves["bias"]  # torch's other bias has the same gradient, but for the GRU's n
        if kind == "gru":
            second = jnp.concatenate([second[: 2 * SIZE], leaves["hidden_bias"]])
        found[f"grad/bias_hh_{end}"] = second
    assert found.keys() == golden.keys()
    assert_close(found, golden)


@pytest.mark.slow
@kinds
def test_padding_changes_no_result(kind):
    model, params = drawn(kind, 2, bidirectional=True)
    x, lengths = sequences(batch=4), [3, 6, 3, 0]
    padding = np.arange(TIME)[None, :, None] >= np.array(lengths)[:, None, None]
    x = jnp.where(padding, jnp.nan, x)
    start = jax.tree.map(lambda s: s + 0.3, model.initial_carry(4))

    def loss(params, x, start):
        outputs, last = applied(model, params, x, carry=start, lengths=jnp.array(lengths))
        return weighted(outputs, last), (outputs, last)

    grad = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
    (d_params, d_x, d_start), (outputs, last) = jax.jit(grad)(params, x, start)
    assert np.all(np.where(padding, outputs, 0) == 0)
    assert np.all(np.where(padding, d_x, 0) == 0)

    # Sequences of one length by themselves, without padding.
    d_alone = jax.tree.map(jnp.zeros_like, d_params)
    for length in (3, 6):
        rows = jnp.array([i for i, n in enumerate(lengths) if n == length])
        take = lambda tree, rows=rows: jax.tree.map(lambda a: a[rows], tree)

        def loss_alone(params, x, start, rows=rows, length=length):
            alone, after = applied(model, params, x, carry=start)
            place = lambda leaf: jnp.zeros((4, *leaf.shape[1:])).at[rows].set(leaf)
            padded = jnp.pad(alone, [(0, 0), (0, TIME - length), (0, 0)])
            return weighted(place(padded), jax.tree.map(place, after)), (alone, after)

        grad = jax.jit(jax.grad(loss_alone, argnums=(0, 1, 2), has_aux=True))
        (d_some, d_x_some, d_start_some), found = grad(params, x[rows, :length], take(start))
        assert_close((outputs[rows, :length], take(last)), found)
        assert_close((d_x[rows, :length], take(d_start)), (d_x_some, d_start_some))
        d_alone = jax.tree.map(jnp.add, d_alone, d_some)
    assert_close(d_params, d_alone)
    empty = lambda tree: jax.tree.map(lambda a: a[3], tree)
    assert_close(empty(last), empty(start), atol=0)


@slow_kinds
def test_one_step_at_a_time(kind):
    model, params = drawn(kind, 2)
    x = sequences()
    whole, last = applied(model, params, x)
    carry = initial_carry(kind, SIZE, 2, False, BATCH)
    step = jax.jit(lambda carry, x: applied(model, params, x, carry=carry))
    for t in range(TIME):
        outputs, carry = step(carry, x[:, t : t + 1])
        assert_close(outputs, whole[:, t : t + 1], atol=1e-6)
    assert_close(carry, last, atol=1e-6)


def test_state_shapes():
    states = initial_carry("lstm", 7, 2, True, 3)
    assert len(states) == 4
    assert jax.tree.map(jnp.shape, states) == (((3, 7), (3, 7)),) * 4
    for kind in ("rnn", "gru"):
        assert jax.tree.map(jnp.shape, initial_carry(kind, 7, 2, False, 3)) == ((3, 7),) * 2
    narrow = jax.tree.map(lambda s: s.astype(jnp.bfloat16), initial_carry("lstm", SIZE, 1, True, 3))
    _, last = applied(*drawn("lstm", 1, True, dtype=jnp.bfloat16), sequences(), carry=narrow)
    assert {leaf.dtype for leaf in jax.tree.leaves((states, last))} == {jnp.dtype("float32")}


def test_dropout_between_layers_in_training_only():
    x, keys = sequences(), {"dropout": jax.random.key(1)}
    single, params = drawn("gru", 1, dropout=1.0)
    first, _ = applied(single, params, x)
    assert_close(applied(single, params, x, train=True, rngs=keys)[0], first, atol=0)

    double, params = drawn("gru", 2, dropout=1.0)
    kept = applied(double.clone(dropout=0.0), params, x)
    assert_close(applied(double, params, x), kept, atol=0)
    outputs, last = applied(double, params, x, train=True, rngs=keys)
    # With everything dropped the second layer sees zeros, and nothing else changes.
    second = {"layer0": params["layer1"]}
    assert_close(outputs, applied(single, second, jnp.zeros_like(first))[0], atol=1e-6)
    assert_close(last[0], kept[1][0], atol=0)

    half = double.clone(dropout=0.5)
    draws = [
        applied(half, params, x, train=True, rngs={"dropout": jax.random.key(i)})[0] for i in (1, 2)
    ]
    assert np.abs(draws[0] - draws[1]).max() > 1e-3
    assert np.all(draws[0] != 0)


@pytest.mark.slow
def test_residual():
    model, params = drawn("lstm", 3, bidirectional=True, inputs=3, residual=True)
    single = Recurrent("lstm", SIZE, bidirectional=True)
    y = sequences(3)
    for i in range(3):
        layer = {k.replace(str(i), "0"): p for k, p in params.items() if str(i) in k}
        outputs, _ = applied(single, layer, y)
        y = outputs + y if i else outputs  # the input, of three features, does not fit
    assert_close(applied(model, params, sequences(3))[0], y, atol=1e-6)

    model, params = drawn("lstm", 1, residual=True)
    plain, _ = applied(model.clone(residual=False), params, sequences())
    assert_close(applied(model, params, sequences())[0], plain + sequences(), atol=1e-6)


def products(jaxpr, looped=False):
    """The matrix products, and whether they stand in the body of a scan."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation, looped
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner, looped or equation.primitive.name == "scan")


@pytest.mark.slow
@kinds
def test_bfloat16(kind):
    model, params = drawn(kind, 1, True)
    narrow = model.clone(dtype=jnp.bfloat16)

    def loss(model, params, x):
        outputs, last = applied(model, params, x, lengths=LENGTHS)
        return weighted(outputs.astype(jnp.float32), last), outputs

    # The product before the loop and the one in it, and both gradients of each, in both directions.
    step = jax.make_jaxpr(jax.grad(partial(loss, narrow), argnums=(0, 1), has_aux=True))
    found = [product for product, _ in products(step(params, sequences()).jaxpr)]
    assert len(found) == 12
    assert {v.aval.dtype for product in found for v in product.invars} == {jnp.dtype("bfloat16")}
    assert {v.aval.dtype for product in found for v in product.outvars} == {jnp.dtype("float32")}

    wanted, exact = jax.jit(jax.grad(partial(loss, model), has_aux=True))(params, sequences())
    found, outputs = jax.jit(jax.grad(partial(loss, narrow), has_aux=True))(params, sequences())
    assert outputs.dtype == jnp.bfloat16
    assert_close(outputs.astype(jnp.float32), exact, atol=2e-2)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-2 * np.abs(b).max())
    stored = narrow.clone(param_dtype=jnp.bfloat16)
    variables = stored.init(jax.random.key(0), sequences(), train=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("bfloat16")}
    total = lambda v: stored.apply(v, sequences(), train=False)[0].sum()
    grads = jax.eval_shape(jax.grad(total), variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("bfloat16")}


def test_states_are_not_rounded_in_bfloat16():
    """A cell state that grows by less than bfloat16 can tell from nothing still grows."""
    model = Recurrent("lstm", 1, dtype=jnp.bfloat16)
    saturated = jnp.array([20.0, 20.0, 0.001, 0.0])  # i and f open, g nearly shut
    params = {
        "layer0": {
            "input_kernel": jnp.zeros((1, 4)),
            "hidden_kernel": jnp.zeros((1, 4)),
            "bias": saturated,
        }
    }
    start = ((jnp.zeros((1, 1)), jnp.ones((1, 1))),)
    _, (((_, c)),) = applied(model, params, jnp.zeros((1, 100, 1)), carry=start)
    np.testing.assert_allclose(c, 1.1, rtol=1e-4)


@pytest.mark.slow
@kinds
def test_transformations_agree(kind):
    """jit on one device and eight, pmap, and the lanes of a vmap, gradients and all."""
    model, params = drawn(kind, 1, True)
    x = sequences(batch=8)
    lengths = jnp.array([6, 4, 1, 0, 5, 6, 2, 3])
    scale = jnp.arange(0.1, 0.9, 0.1)[:, None, None]

    def loss(params, x, lengths, scale):
        outputs, last = applied(model, params, x, lengths=lengths)
        return jnp.sum(outputs**2 * scale) + sum(
            jnp.sum(s**2 * scale[:, 0]) for s in jax.tree.leaves(last)
        )

    grad = jax.grad(loss, argnums=(0, 1))
    d_params, d_x = jax.jit(grad)(params, x, lengths, scale)

    mesh = parallel.data_mesh()
    assert mesh.size == 8
    spread = jax.device_put((x, lengths, scale), parallel.batch_sharding(mesh))
    assert_close(jax.jit(grad)(params, *spread), (d_params, d_x))

    deal = lambda a: a.reshape(8, 1, *a.shape[1:])
    parts = jax.pmap(grad, in_axes=(None, 0, 0, 0))(params, deal(x), deal(lengths), deal(scale))
    assert_close(jax.tree.map(lambda a: a.sum(0), parts[0]), d_params)
    assert_close(parts[1].reshape(x.shape), d_x)

    two = jax.tree.map(lambda p: jnp.stack([p, -p]), params)
    lanes = jax.jit(jax.vmap(grad, (0, None, None, None)))(two, x, lengths, scale)
    assert_close(jax.tree.map(lambda a: a[0], lanes), (d_params, d_x))
    negated = jax.tree.map(jnp.negative, params)
    assert_close(jax.tree.map(lambda a: a[1], lanes), jax.jit(grad)(negated, x, lengths, scale))


def test_wide_lstms_have_features_first_on_one_cpu(monkeypatch):
    """The same outputs, states, gradients and Hessian products as by the clear loop."""
    model, params = drawn("lstm", 2, True)
    x, start = sequences(batch=4), model.initial_carry(4)
    start = jax.tree.map(lambda s: s + jnp.linspace(-1, 1, s.size).reshape(s.shape), start)

    def apply(params, x, start):
        return model.apply({"params": params}, x, train=False, carry=start)

    def loss(params, x, start):
        outputs, last = apply(params, x, start)
        return jnp.sum(outputs**3) + sum(jnp.sum(s**3) for s in jax.tree.leaves(last))

    def everything(params, x, start):
        slopes = jax.grad(loss, (0, 1, 2))
        _, curved = jax.jvp(slopes, (params, x, start), (params, x, start))
        lanes = jax.vmap(slopes, (0, None, None))(jax.tree.map(lambda p: p[None], params), x, start)
        return apply(params, x, start), slopes(params, x, start), curved, lanes

    def programs(given):
        # A function of its own, for JAX knows one that it has traced.
        traced = jax.jit(lambda *inputs: given(*inputs)).trace(params, x, start)
        texts = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda", "tpu")}
        return {platform: f"tensor<{4 * SIZE}x4xf32>" in text for platform, text in texts.items()}

    clear = jax.jit(lambda *inputs: everything(*inputs))(params, x, start)
    assert programs(loss) == {"cpu": False, "cuda": False, "tpu": False}
    monkeypatch.setattr(features_first, "is_quicker", lambda *_: True)
    assert programs(loss) == {"cpu": True, "cuda": False, "tpu": False}
    assert_close(jax.jit(lambda *inputs: everything(*inputs))(params, x, start), clear)


def test_which_lstms_have_features_first(monkeypatch):
    long, short = jnp.zeros((16, 2, 3)), jnp.zeros((1, 2, 3))
    assert not features_first.is_quicker(512, jnp.float32, long)  # of eight devices
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert features_first.is_quicker(512, jnp.float32, long)
    assert not features_first.is_quicker(256, jnp.float32, long)
    assert not features_first.is_quicker(512, jnp.bfloat16, long)
    assert not features_first.is_quicker(512, jnp.float32, short)  # as words are generated
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not features_first.is_quicker(512, jnp.float32, long)


@kinds
def test_the_loops_hold_one_product_each_way(kind):
    model, params = drawn(kind, 1, inputs=9)
    loss = lambda params, x: applied(model, params, x)[0].sum()
    step = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, sequences(9))
    width = GATES[kind] * SIZE
    shapes = lambda product: tuple(v.aval.shape for v in product.invars)
    assert [shapes(product) for product, looped in products(step.jaxpr) if looped] == [
        ((BATCH, SIZE), (SIZE, width)),
        ((BATCH, width), (width, SIZE)),
    ]
    forward = BATCH * TIME * (9 + SIZE) * width
    assert cost(partial(applied, model), params, sequences(9)).multiply_adds == forward
    assert cost(jax.grad(loss, argnums=(0, 1)), params, sequences(9)).multiply_adds == 3 * forward


@kinds
def test_initial_weights(kind):
    size, inputs = 32, 400
    model = Recurrent(kind, size, 1)
    layer = model.init(jax.random.key(0), jnp.zeros((1, 1, inputs)), train=False)["params"][
        "layer0"
    ]
    kernel = np.asarray(layer["input_kernel"])
    assert kernel.shape == (inputs, GATES[kind] * size)
    np.testing.assert_allclose(kernel.std(), inputs**-0.5, rtol=0.02)
    for gate in np.split(np.asarray(layer["hidden_kernel"]), GATES[kind], -1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(size), atol=1e-5)
    gates = np.split(np.asarray(layer["hidden_kernel"]), GATES[kind], -1)
    assert all(np.abs(gates[0] - gate).max() > 0.1 for gate in gates[1:])
    assert set(layer) - {"input_kernel", "hidden_kernel"} == (
        {"bias", "hidden_bias"} if kind == "gru" else {"bias"}
    )
    assert all(not np.any(layer[name]) for name in layer if "bias" in name)


@kinds
def test_weights_go_out_and_in_again(kind):
    _, params = drawn(kind, 2, True)
    state_dict = to_torch(params)
    shapes = {k: v.shape for k, v in torch_weights(kind, 2, True).items()}
    shapes |= {f"weight_ih_l0{end}": (GATES[kind] * SIZE, SIZE) for end in ("", "_reverse")}
    assert {k: v.shape for k, v in state_dict.items()} == shapes
    again = from_torch(state_dict, kind, 2, True)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    before = {k: v.copy() for k, v in state_dict.items()}
    again["layer0"]["bias"] += 1
    jax.tree.map(np.testing.assert_array_equal, state_dict, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("bias_hh_l1"), r"bias_hh_l1 \[20\] is missing"),
        (lambda w: w.pop("weight_hh_l0"), r"weight_hh_l0 .* is missing"),
        (lambda w: w.update(weight_hr_l0=np.zeros((2, 5))), r"weight_hr_l0 \[2, 5\] has no place"),
        (
            lambda w: w.update(weight_ih_l1=np.zeros((20, 6))),
            r"weight_ih_l1 is \[20, 6\] instead of \[20, 5\]",
        ),
        (lambda w: w.update(weight_hh_l0=np.zeros(())), "weight_hh_l0 is"),
    ],
)
def test_weights_that_do_not_fit(change, message):
    weights = torch_weights("lstm", 2, False)
    change(weights)
    with pytest.raises(InputError, match=message) as error:
        from_torch(weights, "lstm", 2)
    assert "\n" not in str(error.value)


def test_weights_of_another_network():
    weights = torch_weights("lstm", 2, False)
    with pytest.raises(InputError, match=r"2 layers of gru in one direction: .*\[20, 5\]"):
        from_torch(weights, "gru", 2)
    with pytest.raises(InputError, match=r"weight_ih_l1 .* has no place"):
        from_torch(weights, "lstm", 1)
    with pytest.raises(InputError, match=r"both directions: weight_ih_l0_reverse .* is missing"):
        from_torch(weights, "lstm", 2, True)
    with pytest.raises(InputError, match="no recurrent cell 'elman'; there are rnn, lstm, gru"):
        from_torch(weights, "elman", 2)
    with pytest.raises(InputError, match="conv1 with kernel is no layer of a recurrent network"):
        to_torch({"conv1": {"kernel": np.zeros((3, 3))}})


def test_bad_arguments():
    model, params = drawn("lstm", 2)
    x = sequences()
    with pytest.raises(InputError, match="no recurrent cell 'cnn'; there are rnn, lstm, gru"):
        applied(model.clone(kind="cnn"), params, x)
    with pytest.raises(InputError, match=r"sequences \[3, 6\]: expected \[batch, time, features\]"):
        applied(model, params, x[..., 0])
    with pytest.raises(InputError, match="a carry of the shapes"):
        applied(model, params, x, carry=model.initial_carry(2))
    with pytest.raises(InputError, match="a carry of the shapes"):
        applied(model, params, x, carry=model.initial_carry(BATCH)[:1])
    with pytest.raises(InputError, match="a carry of the shapes"):
        applied(model, params, x, carry=initial_carry("gru", SIZE, 2, False, BATCH))
    with pytest.raises(InputError, match=r"lengths \[2\]: expected one for each of 3 sequences"):
        applied(model, params, x, lengths=jnp.array([1, 2]))
