"""Greedy, sampled and beam decoding, against loops and enumerations written out by hand."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from jaxdl import InputError, decoding

GO, EOS = 1, 2
V, LENGTH, STATES, PLACES = 5, 4, 97, 3
MASK = np.array([[1, 1, 1], [1, 1, 0]])


@functools.cache
def tables(seed):
    """Log-probabilities [STATES, V] and attention [STATES, PLACES] of a model without structure."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(STATES, V))
    logits[:, [decoding.PAD, GO]] = -np.inf
    attention = rng.dirichlet(np.ones(PLACES), STATES)
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return log_probs.astype(np.float32), attention.astype(np.float32)


def follow(state, token):
    """The state is a hash of all tokens so far, so no two beginnings are alike."""
    return (state * 31 + token * 7 + 3) % STATES


def model(log_probs, attention=None):
    def step(state, tokens):
        state = follow(state, tokens)
        return log_probs[state], state, None if attention is None else attention[state]

    return step


START = jnp.array([5, 40], jnp.int32)


@jax.jit
def greedy(seed_tables, start):
    return decoding.greedy(model(*seed_tables), start, GO, EOS, LENGTH)


@functools.partial(jax.jit, static_argnames=("beam", "n_best", "coverage_penalty"))
def beam_search(seed_tables, start, **arguments):
    return decoding.beam_search(model(*seed_tables), start, GO, EOS, LENGTH, **arguments)


def by_hand(seed, start, length=LENGTH):
    """Every sequence from a state: [(tokens, sum of log-probabilities, coverage)]"""
    log_probs, attention = tables(seed)
    found = []
    for tokens in itertools.product(range(V), repeat=length):
        if EOS in tokens and any(tokens[tokens.index(EOS) + 1 :]):
            continue  # what stands behind the end is padding
        state, last, total, coverage = int(start), GO, 0.0, np.zeros(PLACES)
        for token in tokens:
            state = follow(state, last)
            total += float(log_probs[state, token])
            coverage += attention[state]
            last = token
            if token == EOS:
                break
        if np.isfinite(total):
            found.append((tokens, total, coverage))
    return found


def likeliest(seed, start):
    log_probs, _ = tables(seed)
    state, tokens = int(start), [GO]
    while len(tokens) <= LENGTH and tokens[-1] != EOS:
        state = follow(state, tokens[-1])
        tokens.append(int(log_probs[state].argmax()))
    return tuple(tokens[1:] + [decoding.PAD] * (LENGTH + 1 - len(tokens)))


@pytest.mark.parametrize("seed", range(5))
def test_greedy_takes_the_likeliest_token_each_time(seed):
    found = greedy(tables(seed), START)
    for row, start in enumerate(START):
        tokens = tuple(found.tokens[row].tolist())
        assert tokens == likeliest(seed, start)
        total = next(total for other, total, _ in by_hand(seed, start) if other == tokens)
        np.testing.assert_allclose(found.log_probs[row], total, rtol=1e-5)


@pytest.mark.parametrize("penalties", [{}, {"length_penalty": 1.0}, {"coverage_penalty": 0.5}])
@pytest.mark.parametrize("seed", range(5))
def test_a_beam_of_one_is_greedy(seed, penalties):
    likely = greedy(tables(seed), START)
    beam = beam_search(tables(seed), START, beam=1, source_mask=MASK, **penalties)
    np.testing.assert_array_equal(beam.tokens[:, 0], likely.tokens)
    np.testing.assert_allclose(beam.log_probs[:, 0], likely.log_probs, rtol=1e-6)


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (0.6, 0.0), (0.6, 0.4), (2.0, 0.0)])
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_wide_enough_is_exhaustive_search(seed, alpha, beta):
    found = beam_search(
        tables(seed),
        START,
        beam=V**LENGTH,
        n_best=5,
        length_penalty=alpha,
        coverage_penalty=beta,
        source_mask=MASK,
    )
    for row, start in enumerate(START):
        scored = []
        for tokens, total, coverage in by_hand(seed, start):
            length = tokens.index(EOS) + 1 if EOS in tokens else LENGTH
            covered = np.minimum(coverage, 1)[MASK[row] == 1]
            score = total / ((5 + length) / 6) ** alpha + beta * np.log(covered).sum()
            scored.append((score, tokens, total))
        scored.sort(reverse=True)
        for place, (score, tokens, total) in enumerate(scored[:5]):
            assert tuple(found.tokens[row, place].tolist()) == tokens
            np.testing.assert_allclose(found.scores[row, place], score, rtol=1e-5)
            np.testing.assert_allclose(found.log_probs[row, place], total, rtol=1e-5)


def test_a_beam_finds_what_greedy_misses():
    better = 0
    for seed in range(20):
        beam = beam_search(tables(seed), START, beam=4)
        better += int((beam.scores[:, 0] > greedy(tables(seed), START).log_probs + 1e-5).sum())
    assert better >= 5


def test_each_row_is_decoded_as_if_alone():
    many = jnp.arange(16, dtype=jnp.int32)
    together = beam_search(tables(0), many, beam=3, n_best=3)
    for row in range(16):
        alone = beam_search(tables(0), many[row : row + 1], beam=3, n_best=3)
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])


def chain(probabilities):
    """A model of token probabilities by step, [T, V]; its state counts steps."""
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.array(probabilities, np.float32))
    return lambda state, tokens: (jnp.asarray(log_probs)[state], state + 1, None)


def test_what_is_done_stays_among_the_beams_unchanged():
    # To end at once has probability 0.4. All longer ones have at most 0.6 * 0.5 * 0.5.
    step = chain([[0, 0, 0.4, 0.6]] + [[0, 0, 0.5, 0.5]] * 5)
    search = lambda penalty: decoding.beam_search(
        step, jnp.zeros(1, jnp.int32), GO, EOS, 6, 2, n_best=2, length_penalty=penalty
    )
    search = jax.jit(search)
    found = search(0.0)
    assert found.tokens[0].tolist() == [[2, 0, 0, 0, 0, 0], [3, 2, 0, 0, 0, 0]]
    np.testing.assert_allclose(found.scores[0], np.log([0.4, 0.3]), rtol=1e-6)
    # Judged by the token, the longest of the two that remain is best.
    fair = search(5.0)
    assert fair.tokens[0, 0].tolist()[:2] == [3, 3]


def test_where_there_are_fewer_sequences_than_asked_for_the_rest_have_no_score():
    step = chain([[0, 0, 0.25, 0.75], [0, 0, 1.0, 0.0]])
    search = lambda start: decoding.beam_search(step, start, GO, EOS, 2, 4, n_best=4)
    found = jax.jit(search)(jnp.zeros(1, jnp.int32))
    np.testing.assert_allclose(found.scores[0, :2], np.log([0.75, 0.25]), rtol=1e-6)
    assert np.isneginf(found.scores[0, 2:]).all()


@pytest.mark.parametrize(
    "decode",
    [
        lambda step, state: decoding.greedy(step, state, GO, EOS, 50),
        lambda step, state: decoding.sample(step, state, jax.random.key(0), GO, EOS, 50),
        lambda step, state: decoding.beam_search(step, state, GO, EOS, 50, 2),
    ],
    ids=["greedy", "sample", "beam"],
)
def test_the_loop_ends_when_all_are_done(decode):
    calls = []
    # The only end is after the third token; with two beams both take it there.
    step = chain([[0, 0, 0, 0.5, 0.5]] * 2 + [[0, 0, 1.0, 0, 0]] * 48)

    def counted(state, tokens):
        jax.debug.callback(lambda: calls.append(1))
        return step(state, tokens)

    found = jax.jit(functools.partial(decode, counted))(jnp.zeros(3, jnp.int32))
    jax.block_until_ready(found)
    jax.effects_barrier()
    assert len(calls) == 3
    assert found.tokens.shape[-1] == 50


def work(jaxpr):
    """The numbers that a program reads and writes, operation by operation, inner ones once."""
    total = 0
    for eqn in jaxpr.eqns:
        inner = list(jaxprs_in_params(eqn.params))
        if inner:
            total += sum(map(work, inner))
        else:
            avals = [v.aval for v in (*eqn.invars, *eqn.outvars)]
            total += sum(aval.size for aval in avals if hasattr(aval, "size"))
    return total


def test_the_work_grows_with_the_beam_and_not_with_its_square():
    def cost(beam):
        search = functools.partial(beam_search, beam=beam)
        return work(jax.make_jaxpr(search)(tables(0), START).jaxpr)

    step = (cost(64) - cost(32)) / 32
    assert cost(256) - cost(64) == pytest.approx(192 * step, rel=0.01)


def test_samples_follow_the_model_and_the_temperature():
    probabilities = [0, 0, 0.5, 0.3, 0.2]
    step = chain([probabilities])
    state = jnp.zeros(20_000, jnp.int32)
    draw = lambda key, temperature: decoding.sample(step, state, key, GO, EOS, 1, temperature)
    draw = jax.jit(draw)
    for temperature in (1.0, 0.5, 2.0):
        found = draw(jax.random.key(1), temperature)
        expected = np.array(probabilities) ** (1 / temperature)
        expected /= expected.sum()
        counts = np.bincount(np.asarray(found.tokens[:, 0]), minlength=5) / len(state)
        np.testing.assert_allclose(counts, expected, atol=0.012)
        chosen = np.log(np.array(probabilities)[np.asarray(found.tokens[:, 0])])
        np.testing.assert_allclose(found.log_probs, chosen, rtol=1e-5)


def test_tokens_of_a_sample_are_drawn_independently():
    step = chain([[0, 0, 0, 0.5, 0.5]] * 2)
    state = jnp.zeros(4000, jnp.int32)
    draw = jax.jit(lambda key: decoding.sample(step, state, key, GO, EOS, 2).tokens)
    found = np.asarray(draw(jax.random.key(0)))
    assert abs(np.mean(found[:, 0] == found[:, 1]) - 0.5) < 0.04


def test_sampling_near_temperature_zero_is_greedy():
    step = model(*map(jnp.asarray, tables(3)))
    draw = jax.jit(lambda key: decoding.sample(step, START, key, GO, EOS, LENGTH, 1e-4))
    cold = draw(jax.random.key(0))
    np.testing.assert_array_equal(cold.tokens, greedy(tables(3), START).tokens)


def test_mistakes_are_named():
    step = model(jnp.asarray(tables(0)[0]))
    search = functools.partial(decoding.beam_search, step, START, GO, EOS)
    with pytest.raises(InputError, match="n_best 3 with beam 2"):
        search(LENGTH, 2, n_best=3)
    with pytest.raises(InputError, match="n_best 0 with beam 0"):
        search(LENGTH, 0, n_best=0)
    with pytest.raises(InputError, match="coverage_penalty needs attention"):
        search(LENGTH, 2, coverage_penalty=0.1, source_mask=MASK)
    with pytest.raises(InputError, match="max_length 0"):
        search(0, 2)
