"""Attention, the encoder and decoder, their loss, and the experiment's command line."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import slow

from jaxdl import InputError, decoding, losses, optim, parallel, task
from jaxdl.attention import Attention
from jaxdl.data.pairs import EOS, GO, PAD, PairPipeline, Pairs, SubwordVocabulary
from jaxdl.models.seq2seq import Seq2Seq

B, S, T, SOURCE, TARGET = 4, 5, 6, 11, 9
LENGTHS = np.array([5, 3, 1, 4])
KINDS = [("none", "dot"), ("luong", "dot"), ("luong", "general"), ("luong", "concat")]
KINDS += [("bahdanau", "dot")]
ONE_OF_KINDS = [
    pytest.param(*pair, marks=[] if pair == ("bahdanau", "dot") else pytest.mark.slow)
    for pair in KINDS
]


def tokens(seed=0):
    rng = np.random.default_rng(seed)
    source = rng.integers(3, SOURCE, (B, S)) * (np.arange(S) < LENGTHS[:, None])
    return source, LENGTHS, rng.integers(3, TARGET, (B, T))


@functools.cache
def small(attention="luong", score="general", kind="lstm", **options):
    options = {"layers": 2, "features": 12, "embedding": 7} | options
    model = Seq2Seq(SOURCE, TARGET, kind=kind, attention=attention, score=score, **options)
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(1), *tokens())
    return model, variables


@functools.partial(jax.jit, static_argnames=("model", "train", "method"))
def apply(model, variables, *arguments, **options):
    """`model.apply`, compiled: outside jit each call would compile its loops anew."""
    return model.apply(variables, *arguments, **options)


def by_hand(score, params, query, memory, count):
    """The context and the weights of one query [Q] over the first `count` of a memory [S, M]."""
    scores = []
    for place in memory[:count]:
        if score == "dot":
            scores.append(query @ place)
        elif score == "general":
            scores.append(query @ (place @ params["memory_layer"]["kernel"]))
        else:
            inner = query @ params["query_layer"]["kernel"]
            inner = inner + place @ params["memory_layer"]["kernel"]
            inner = np.tanh(inner + params["memory_layer"].get("bias", 0))
            scores.append(inner @ params["v"]["kernel"][:, 0])
    weights = np.exp(scores) / np.exp(scores).sum()
    return weights @ memory[:count], np.pad(weights, (0, len(memory) - count))


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("score", ["dot", "general", "additive"])
def test_attention_is_the_papers(score, use_bias):
    rng = np.random.default_rng(0)
    memory = rng.normal(size=(B, S, 6)).astype(np.float32)
    queries = rng.normal(size=(B, T, 6)).astype(np.float32)
    mask = np.arange(S) < LENGTHS[:, None]
    attention = Attention(score, 6, use_bias=use_bias)

    def attend(module, queries, memory):
        return module(queries, module.keys(memory), memory, mask)

    variables = attention.init(jax.random.key(0), queries, memory, method=attend)
    params = jax.tree.map(lambda x: x + 0.1, variables.get("params", {}))
    shapes = jax.tree.map(jnp.shape, params)
    bias = {"bias": (6,)} if use_bias else {}
    assert (
        shapes
        == {
            "dot": {},
            "general": {"memory_layer": {"kernel": (6, 6)}},
            "additive": {
                "memory_layer": {"kernel": (6, 6)} | bias,
                "query_layer": {"kernel": (6, 6)},
                "v": {"kernel": (6, 1)},
            },
        }[score]
    )
    run = jax.jit(functools.partial(attention.apply, {"params": params}, method=attend))
    context, weights = run(queries, memory)
    for row, step in itertools.product(range(B), range(T)):
        expected = by_hand(score, params, queries[row, step], memory[row], LENGTHS[row])
        np.testing.assert_allclose(context[row, step], expected[0], atol=1e-5)
        np.testing.assert_allclose(weights[row, step], expected[1], atol=1e-6)
    # What is masked may hold anything.
    filled = np.where(mask[..., None], memory, 1e6)
    np.testing.assert_array_equal(run(queries, filled)[1], weights)


def test_dot_attention_is_jaxs_own():
    rng = np.random.default_rng(0)
    memory, queries = (rng.normal(size=(B, n, 6)).astype(np.float32) for n in (S, T))
    mask = np.arange(S) < LENGTHS[:, None]
    context, _ = Attention("dot", 6).apply({}, queries, memory, memory, mask)
    one_head = lambda x: jnp.asarray(x)[:, :, None]
    expected = jax.nn.dot_product_attention(
        one_head(queries), one_head(memory), one_head(memory), mask=mask[:, None, None], scale=1.0
    )
    np.testing.assert_allclose(context, expected[:, :, 0], atol=1e-5)


def step_by_step(model, variables, source, lengths, inputs):
    encoded, carry = apply(model, variables, source, lengths, train=False, method="encode")
    log_probs, attention = [], []
    for t in range(inputs.shape[1]):
        now, carry, weights = apply(model, variables, encoded, carry, inputs[:, t], method="step")
        log_probs.append(now)
        attention.append(weights)
    return np.stack(log_probs, 1), attention


@pytest.mark.parametrize(
    ("attention", "score", "kind"),
    [
        *(pytest.param(*pair, "lstm", marks=pytest.mark.slow) for pair in KINDS),
        ("luong", "general", "gru"),
        pytest.param("bahdanau", "dot", "gru", marks=pytest.mark.slow),
        pytest.param("none", "dot", "rnn", marks=pytest.mark.slow),
    ],
)
def test_a_step_at_a_time_is_the_whole_target(attention, score, kind):
    options = {} if kind == "lstm" else {"layers": 1, "bidirectional": kind != "gru"}
    model, variables = small(attention, score, kind, **options)
    source, lengths, inputs = tokens()
    logits, weights = apply(model, variables, source, lengths, inputs, train=False)
    assert logits.shape == (B, T, TARGET)
    log_probs, attended = step_by_step(model, variables, source, lengths, inputs)
    assert np.isneginf(log_probs[..., [PAD, GO]]).all()
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, rtol=1e-5)
    ruled = np.array(logits)
    ruled[..., [PAD, GO]] = -np.inf
    expected = ruled - np.log(np.exp(ruled).sum(-1, keepdims=True))
    np.testing.assert_allclose(log_probs, expected, atol=1e-5)
    if attention == "none":
        assert weights is None
    else:
        np.testing.assert_allclose(weights, np.stack(attended, 1), atol=1e-6)
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
        assert not weights[np.arange(S)[None, None].repeat(T, 1) >= LENGTHS[:, None, None]].any()


@pytest.mark.parametrize(("attention", "score"), ONE_OF_KINDS)
def test_padding_changes_nothing_and_the_past_is_all_that_counts(attention, score):
    model, variables = small(attention, score)
    source, lengths, inputs = tokens()
    logits, _ = apply(model, variables, source, lengths, inputs, train=False)
    filled = np.where(source == PAD, 7, source)
    again, _ = apply(model, variables, filled, lengths, inputs, train=False)
    np.testing.assert_array_equal(logits, again)
    wider = np.pad(source, ((0, 0), (0, 3)), constant_values=5)
    again, _ = apply(model, variables, wider, lengths, inputs, train=False)
    np.testing.assert_allclose(logits, again, atol=1e-5)
    later = inputs.copy()
    later[:, 4:] = 3
    again, _ = apply(model, variables, source, lengths, later, train=False)
    np.testing.assert_allclose(logits[:, :4], again[:, :4], atol=1e-6)
    assert np.abs(logits[:, 4:] - again[:, 4:]).max() > 1e-3
    # Both ends of the source reach the first token.
    for place in (0, -1):
        changed = source.copy()
        changed[0, place] = 3 + (changed[0, place] - 2) % (SOURCE - 3)
        again, _ = apply(model, variables, changed, lengths, inputs, train=False)
        assert np.abs(logits[0, 0] - again[0, 0]).max() > 1e-5


def test_the_decoder_starts_from_both_directions():
    model, variables = small()
    source, lengths, _ = tokens()
    encoded, carry = apply(model, variables, source, lengths, train=False, method="encode")

    @jax.jit
    def encoder(variables):
        bound = model.bind(variables)
        return bound.encoder(bound.source_embedding(source), train=False, lengths=lengths)

    memory, states = encoder(variables)
    np.testing.assert_allclose(encoded.memory, memory, atol=1e-6)
    for layer in range(2):
        for part in range(2):  # h and c
            ahead, back = states[2 * layer][part], states[2 * layer + 1][part]
            both = np.concatenate([ahead, back], -1)
            np.testing.assert_allclose(carry[layer][part], both, atol=1e-6)


def test_bahdanaus_query_is_the_top_layers_last_state():
    model, variables = small("bahdanau", "dot")
    source, lengths, inputs = tokens()
    encoded, carry = apply(model, variables, source, lengths, train=False, method="encode")
    _, _, weights = apply(model, variables, encoded, carry, inputs[:, 0], method="step")
    hidden, _ = carry[-1]
    _, expected = model.bind(variables).attend(
        hidden[:, None], encoded.keys, encoded.memory, encoded.mask
    )
    np.testing.assert_allclose(weights, expected[:, 0], atol=1e-6)


@pytest.mark.parametrize(("attention", "score"), ONE_OF_KINDS)
def test_every_parameter_has_a_gradient(attention, score):
    model, variables = small(attention, score)
    source, lengths, inputs = tokens()

    def total(variables):
        logits, _ = apply(model, variables, source, lengths, inputs, train=False)
        return (logits * jax.random.normal(jax.random.key(0), logits.shape)).sum()

    for path, gradient in jax.tree.leaves_with_path(jax.jit(jax.grad(total))(variables)):
        assert np.abs(gradient).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize("attention", [slow("none"), "luong", slow("bahdanau")])
def test_bfloat16_is_close_and_its_logits_are_float32(attention):
    model, variables = small(attention)
    logits, _ = apply(model, variables, *tokens(), train=False)
    half, weights = apply(model.clone(dtype=jnp.bfloat16), variables, *tokens(), train=False)
    assert half.dtype == jnp.float32
    assert weights is None or weights.dtype == jnp.float32
    assert np.abs(half - logits).max() < 0.05 * np.abs(logits).max()


@pytest.mark.parametrize("attention", ["luong", slow("bahdanau")])
def test_dropout_acts_in_training_alone(attention):
    model, variables = small(attention, dropout=0.5)
    run = functools.partial(apply, model, variables, *tokens())
    one, two = (run(train=True, rngs={"dropout": jax.random.key(n)})[0] for n in (1, 2))
    assert np.abs(one - two).max() > 1e-3
    np.testing.assert_array_equal(run(train=False)[0], run(train=False)[0])
    # Each step has a mask of its own, also where steps are scanned: all else is made constant here.
    params = variables["params"]
    readout = {"kernel": params["readout"]["kernel"] * 0, "bias": params["readout"]["bias"] + 1}
    constant = {"params": params | {"readout": readout}}
    masked, _ = apply(model, constant, *tokens(), train=True, rngs={"dropout": jax.random.key(1)})
    assert np.abs(np.diff(masked, axis=1)).max(-1).min() > 1e-4


@pytest.mark.parametrize("attention", [slow("none"), "luong", slow("bahdanau")])
class TestScheduledSampling:
    keys = property(lambda self: jax.random.split(jax.random.key(3), B))

    def test_at_a_rate_of_zero_is_teacher_forcing(self, attention):
        model, variables = small(attention)
        forced, _ = apply(model, variables, *tokens(), train=False)
        logits, _ = apply(
            model, variables, *tokens(), train=False, keys=self.keys, sampling_rate=0.0
        )
        np.testing.assert_allclose(forced, logits, atol=1e-5)

    def test_at_a_rate_of_one_sees_no_target_but_its_start(self, attention):
        model, variables = small(attention)
        source, lengths, inputs = tokens()
        other = inputs.copy()
        other[:, 1:] = 3
        run = functools.partial(
            apply, model, variables, source, lengths, train=False, keys=self.keys, sampling_rate=1.0
        )
        np.testing.assert_array_equal(run(inputs)[0], run(other)[0])
        other[:, 0] = 3
        assert np.abs(run(inputs)[0] - run(other)[0]).max() > 1e-4

    def test_draws_by_row_and_as_often_as_the_rate_says(self, attention):
        model, variables = small(attention)
        many = 2000
        source, lengths = np.full((many, 2), 5), np.full(many, 2)
        keys = jax.random.split(jax.random.key(0), many)
        inputs = np.full((many, 3), 4)
        other = inputs.copy()
        other[:, 1] = 5

        def run(inputs, source, lengths, keys):
            options = {"train": False, "keys": keys, "sampling_rate": 0.3}
            return apply(model, variables, source, lengths, inputs, **options)[0]

        one, two = run(inputs, source, lengths, keys), run(other, source, lengths, keys)
        replaced = np.abs(one[:, 1] - two[:, 1]).max(-1) < 1e-6
        assert abs(replaced.mean() - 0.3) < 0.04
        some = run(inputs[:10], source[:10], lengths[:10], keys[:10])
        np.testing.assert_allclose(some, one[:10], atol=1e-5)


@pytest.mark.slow
def test_what_stands_in_is_drawn_from_the_models_own_guess():
    model, variables = small("none", kind="rnn", layers=1, bidirectional=False)
    # The first guess is 3 or 6, nothing else, whatever was read.
    params = jax.tree.map(jnp.zeros_like, variables["params"]["output"])
    params["bias"] = (
        jnp.full(TARGET, -jnp.inf).at[jnp.array([3, 6])].set(jnp.log(jnp.array([1, 3.0])))
    )
    variables = {"params": variables["params"] | {"output": params}}
    seen = []
    many = 1000
    keys = jax.random.split(jax.random.key(0), many)

    def spy(call, args, kwargs, context):
        is_embedding = (context.module.name, context.method_name) == (
            "target_embedding",
            "__call__",
        )
        if is_embedding and not isinstance(args[0], jax.core.Tracer):  # Flax looks at shapes first
            seen.append(np.asarray(args[0]))
        return call(*args, **kwargs)

    with jax.disable_jit(), nn.intercept_methods(spy):
        source, lengths = np.full((many, 2), 5), np.full(many, 2)
        apply(
            model,
            variables,
            source,
            lengths,
            np.full((many, 2), 4),
            train=False,
            keys=keys,
            sampling_rate=1.0,
        )
    first, second = seen
    assert (first == 4).all()
    assert set(second.ravel()) == {3, 6}
    assert abs((second == 6).mean() - 0.75) < 0.05


def batch_of(size=16, seed=0):
    """Sources and targets of different lengths; the last row only fills the batch."""
    rng = np.random.default_rng(seed)
    rows = np.arange(size)[:, None]
    source_length = 1 + rng.integers(0, S, size)
    target_length = 1 + rng.integers(0, T, size)
    target = rng.integers(3, TARGET, (size, T))
    target = np.where(np.arange(T) < target_length[:, None], target, PAD)
    target[rows[:, 0], target_length - 1] = EOS
    source = rng.integers(3, SOURCE, (size, S)) * (np.arange(S) < source_length[:, None])
    mask = np.ones(size, np.float32)
    mask[-1], target[-1] = 0, PAD
    return {"source": source, "source_length": source_length, "target": target, "mask": mask}


HPARAMS = {"learning_rate": 0.01, "label_smoothing": 0.1}


def test_the_loss_counts_tokens_and_exact_matches():
    model, variables = small()
    _, loss = losses.translation(model, GO, EOS)
    batch = batch_of()
    # What is decoded greedily is right by definition: of every other row.
    encoded, carry = apply(
        model, variables, batch["source"], batch["source_length"], train=False, method="encode"
    )
    step = functools.partial(apply, model, variables, encoded, method="step")
    decoded = np.asarray(decoding.greedy(step, carry, GO, EOS, T).tokens)
    batch["target"][::2] = decoded[::2]
    matches = sum((batch["target"][row] == decoded[row]).all() for row in range(15))
    assert 8 <= matches < 15
    run = jax.jit(
        functools.partial(loss, variables["params"], {}, key=jax.random.key(0), hparams=HPARAMS),
        static_argnames="train",
    )
    mean, extra, measured = run(batch, train=False)
    assert extra == {}
    inputs = np.concatenate([np.full((16, 1), GO), batch["target"][:, :-1]], 1)
    logits, _ = apply(
        model, variables, batch["source"], batch["source_length"], inputs, train=False
    )
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    nats, right, count = 0.0, 0, 0
    for row in range(15):
        for t in range(T):
            if (token := batch["target"][row, t]) != PAD:
                nats -= float(log_probs[row, t, token])
                right += log_probs[row, t].argmax() == token
                count += 1
    assert mean.count == measured["token_accuracy"].count == float(count)
    np.testing.assert_allclose(mean.total, nats, rtol=1e-5)
    assert measured["token_accuracy"].total == float(right)
    assert measured["exact_match"].count == 15
    assert measured["exact_match"].total == float(matches)
    # With a single other token it is no match.
    batch["target"][0, 0] = 3 + (batch["target"][0, 0] - 2) % (TARGET - 3)
    assert run(batch, train=False)[2]["exact_match"].total == float(matches - 1)
    trained, _, in_training = run(batch_with_keys(batch), train=True)
    assert "exact_match" not in in_training
    assert trained.count == count


def batch_with_keys(batch):
    return batch | {"key": jax.random.split(jax.random.key(0), len(batch["mask"]))}


def test_label_smoothing_is_for_training():
    model, variables = small()
    _, loss = losses.translation(model, GO, EOS)
    batch = batch_with_keys(batch_of())
    run = jax.jit(
        functools.partial(loss, variables["params"], {}, batch, jax.random.key(0)),
        static_argnums=1,
    )
    plain, smooth = (run({"label_smoothing": s}, True)[0].total for s in (0.0, 0.1))
    tested = run({"label_smoothing": 0.1}, False)[0].total
    np.testing.assert_allclose(plain, tested, rtol=1e-6)
    assert abs(plain - smooth) > 1e-3


def train(attention, devices=1, mapped=False, accumulate=1, steps=3):
    """The state after some steps, and what the last and an evaluation measured."""
    model, _ = small(attention, layers=1)
    mesh = parallel.data_mesh(jax.devices()[:devices])
    built = task.supervised(
        *losses.translation(model, GO, EOS),
        optim.optimizer("adam", clip_global_norm=1.0),
        accumulate=accumulate,
        axis_name=parallel.DATA if mapped else None,
    )
    built = (parallel.pmap if mapped else parallel.jit)(built, mesh)
    hparams = {"learning_rate": 0.01, "label_smoothing": 0.1, "sampling_rate": 0.4}
    state = built.init(jax.random.key(0), jax.tree.map(jnp.float32, hparams))
    for n in range(steps):
        state, metrics = built.train(state, batch_of(seed=n))
    return jax.device_get((state.params, metrics, built.eval(state, batch_of(seed=9))))


@pytest.mark.slow
def test_however_it_is_spread_it_trains_the_same():
    expected = train("luong")
    for way in ({"devices": 8}, {"devices": 8, "mapped": True}, {"accumulate": 2}):
        for one, other in zip(
            jax.tree.leaves(expected), jax.tree.leaves(train("luong", **way)), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5, err_msg=str(way))


@pytest.mark.slow
def test_it_learns_to_turn_words_around():
    words = ["".join(w) for n in (2, 3) for w in itertools.product("abcde", repeat=n)]
    pairs = [(" ".join(word), " ".join(reversed(word))) for word in words]
    order = np.random.default_rng(0).permutation(len(pairs))
    held_out, rest = [pairs[i] for i in order[:20]], [pairs[i] for i in order[20:]]
    vocabulary = SubwordVocabulary.learn([source for source, _ in pairs], "word", 20)
    pipeline = PairPipeline(
        Pairs("turned", {"train": rest, "test": held_out}),
        vocabulary,
        vocabulary,
        32,
        max_length=8,
        buckets=1,
    )
    model = Seq2Seq(len(vocabulary), len(vocabulary), features=32, embedding=16)
    built = task.supervised(*losses.translation(model, GO, EOS), optim.optimizer("adam"))
    built = parallel.jit(built, parallel.data_mesh(jax.devices()[:1]))
    hparams = {"learning_rate": jnp.float32(0.01), "label_smoothing": jnp.float32(0)}
    state = built.init(jax.random.key(0), hparams)
    for batch in itertools.islice(pipeline.train(), 150):
        state, _ = built.train(state, batch)
    measured = built.eval(state, next(pipeline.evaluate("test")))
    assert measured["exact_match"].value >= 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "all"}, "no attention 'all'; there are none, bahdanau, luong"),
        ({"score": "cosine"}, "no score 'cosine' of luong attention; there are dot, general, con"),
        ({"features": 7}, "7 features; expected an even number for two directions"),
        ({"kind": "cnn"}, "no recurrent cell 'cnn'"),
    ],
)
def test_models_that_cannot_be_are_named(options, message):
    with pytest.raises(InputError, match=message):
        small(**options)


def test_attention_that_cannot_be_is_named():
    memory, mask = jnp.ones((1, 2, 3)), jnp.ones((1, 2))
    with pytest.raises(InputError, match="no attention score 'cosine'; there are additive, dot"):
        Attention("cosine", 3).apply({}, memory, memory, memory, mask)
    with pytest.raises(InputError, match="queries and keys of one length, not 4 and 3"):
        Attention("dot", 3).apply({}, jnp.ones((1, 2, 4)), memory, memory, mask)
