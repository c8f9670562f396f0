"""Sequences from a model, a token at a time: greedy, sampled, and by beam search.

Each is one compiled loop that ends as soon as every sequence has ended, and knows a model only as
a `Step`.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxdl import InputError

PAD = 0
"""What stands behind the end of a sequence."""


class Step(Protocol):
    """A model, as decoding sees it.

    What does not change from step to step, such as an encoder's output, is best closed over; for
    beam search as `repeat` gives it.
    """

    def __call__(self, state: Any, tokens: jax.Array, /) -> tuple[jax.Array, Any, jax.Array | None]:
        """Takes the last tokens [N], and gives what it holds for the next.

        Args:
          state: every array of it has N as its first axis.
          tokens: int32 [N].

        Returns:
          (log_probs [N, V], state, attention [N, S] or None)
        """


class _Choose(Protocol):
    def __call__(self, t: jax.Array, log_probs: jax.Array, /) -> jax.Array:
        """The tokens [B] of step t, by log_probs [B, V]."""


class Sequences(NamedTuple):
    """What was decoded.

    Attributes:
      tokens: int32 [..., max_length], with the closing `eos` where there is one, then `PAD`.
      log_probs: float32 [...], the sum of the tokens' own, in nats.
      scores: float32 [...], by what they are ranked: `log_probs` but for beam search.
    """

    tokens: jax.Array
    log_probs: jax.Array
    scores: jax.Array


def greedy(step: Step, state: Any, go: int, eos: int, max_length: int) -> Sequences:
    """Takes the likeliest token at each step.

    Args:
      step: the model; see `Step`.
      state: what it starts from, arrays [B, ...].
      go: the token that it is given first.
      eos: the token that ends a sequence.
      max_length: the most tokens of a sequence, `eos` included; one that is not done is cut there.

    Returns:
      Sequences [B].
    """
    return _decode(step, state, go, eos, max_length, lambda t, log_probs: log_probs.argmax(-1))


def sample(
    step: Step, state: Any, key: Any, go: int, eos: int, max_length: int, temperature: Any = 1.0
) -> Sequences:
    """Draws each token from the model's distribution, sharpened or flattened by a temperature.

    Args:
      step, state, go, eos, max_length: as of `greedy`.
      key: a PRNG key.
      temperature: what the log-probabilities are divided by, more than 0: the model's own at 1,
        greedy towards 0, uniform towards infinity.

    Returns:
      Sequences [B]; their `log_probs` are the model's own, at a temperature of 1.
    """

    def draw(t, log_probs):
        return jax.random.categorical(jax.random.fold_in(key, t), log_probs / temperature)

    return _decode(step, state, go, eos, max_length, draw)


def _decode(
    step: Step, state: Any, go: int, eos: int, max_length: int, choose: _Choose
) -> Sequences:
    """One sequence from each state."""
    _check(max_length)
    batch = jax.tree.leaves(state)[0].shape[0]

    def goes_on(loop):
        t, _, _, _, done, _ = loop
        return (t < max_length) & ~done.all()

    def advance(loop):
        t, tokens, last, total, done, state = loop
        log_probs, state, _ = step(state, last)
        chosen = jnp.where(done, PAD, choose(t, log_probs)).astype(jnp.int32)
        gained = jnp.take_along_axis(log_probs, chosen[:, None], 1)[:, 0]
        total += jnp.where(done, 0.0, gained.astype(jnp.float32))
        tokens = tokens.at[:, t].set(chosen)
        return t + 1, tokens, chosen, total, done | (chosen == eos), state

    tokens = jnp.full((batch, max_length), PAD, jnp.int32)
    first = jnp.full(batch, go, jnp.int32)
    start = jnp.int32(0), tokens, first, jnp.zeros(batch), jnp.zeros(batch, bool), state
    _, tokens, _, total, _, _ = jax.lax.while_loop(goes_on, advance, start)
    return Sequences(tokens, total, total)


def repeat(tree: Any, beam: int) -> Any:
    """Arrays [B, ...] as beam search of so many beams hands them to a step: [B * beam, ...]."""
    return jax.tree.map(lambda x: jnp.repeat(x, beam, 0), tree)


class _Beams(NamedTuple):
    """The loop's state. B sentences have K beams each; the model sees them as one axis B * K."""

    t: jax.Array
    tokens: jax.Array  # int32 [B, K, max_length]
    last: jax.Array  # int32 [B, K]
    log_probs: jax.Array  # [B, K]
    scores: jax.Array  # [B, K]
    lengths: jax.Array  # int32 [B, K]
    done: jax.Array  # bool [B, K]
    coverage: jax.Array | None  # [B, K, S], the attention that each place of the source had so far
    state: Any


def _first_beams(
    state: Any, coverage: jax.Array | None, go: int, max_length: int, beam: int
) -> _Beams:
    """How all sentences begin, from states [B * K, ...]."""
    batch = jax.tree.leaves(state)[0].shape[0] // beam
    # All beams of a sentence begin alike, so only the first may go on.
    alone = jnp.where(jnp.arange(beam) == 0, 0.0, -jnp.inf)
    alone = jnp.broadcast_to(alone, (batch, beam))
    return _Beams(
        t=jnp.int32(0),
        tokens=jnp.full((batch, beam, max_length), PAD, jnp.int32),
        last=jnp.full((batch, beam), go, jnp.int32),
        log_probs=alone,
        scores=alone,
        lengths=jnp.zeros((batch, beam), jnp.int32),
        done=jnp.zeros((batch, beam), bool),
        coverage=coverage,
        state=state,
    )


def beam_search(
    step: Step,
    state: Any,
    go: int,
    eos: int,
    max_length: int,
    beam: int,
    *,
    n_best: int = 1,
    length_penalty: Any = 0.0,
    coverage_penalty: float = 0.0,
    source_mask: jax.Array | None = None,
) -> Sequences:
    """Finds sequences of high score by following the `beam` best beginnings of each at once.

    The score of Y is log P(Y) / ((5 + |Y|) / 6)^a + b * sum_i log(min(sum_j p_ij, 1)), with |Y|
    counted to the closing `eos`, and p_ij the attention that token j paid to place i of the source
    (Wu et al. 2016, arXiv:1609.08144, equation 14). They rank finished sequences so, and prune by
    likelihood; here every beginning is ranked by its score as far as it goes. A finished sequence
    keeps its place among the beams for as long as it is one of the best.

    The work of a step is proportional to `beam`: that of the model is, and beside it the `beam`
    greatest of beam * V numbers are found.

    Args:
      step, go, eos, max_length: as of `greedy`; the step is called with N = B * beam, the beams of
        a sentence beside one another.
      state: what it starts from, arrays [B, ...].
      beam: how many sequences are followed, at least 1. One is greedy decoding.
      n_best: how many are returned, at most `beam`.
      length_penalty: a; 0 for none, and then the likeliest is best, which favours the short.
      coverage_penalty: b; 0 for none. It needs a step that returns its attention.
      source_mask: [B, S], 1 where the source counts; with `coverage_penalty`.

    Returns:
      Sequences [B, n_best], the best first. Where there are fewer sequences than that, the rest
      have scores of minus infinity.

    Raises:
      InputError: an argument out of range, or coverage_penalty without attention or its mask.
    """
    _check(max_length)
    if not 1 <= n_best <= beam:
        raise InputError(f"n_best {n_best} with beam {beam}: expected 1 <= n_best <= beam")
    batch = jax.tree.leaves(state)[0].shape[0]
    state = repeat(state, beam)
    coverage = None
    if coverage_penalty:
        tokens = jax.ShapeDtypeStruct((batch * beam,), jnp.int32)
        if jax.eval_shape(step, state, tokens)[2] is None or source_mask is None:
            raise InputError("a coverage_penalty needs attention and the source_mask")
        coverage = jnp.zeros((batch, beam, source_mask.shape[1]))

    def score(log_probs, lengths, coverage):
        scores = log_probs / ((5.0 + lengths.astype(jnp.float32)) / 6.0) ** length_penalty
        if coverage is None or source_mask is None:
            return scores
        counts = source_mask[:, None, None].astype(bool)
        # Attention can round to nothing; a logarithm must not.
        least = jnp.finfo(jnp.float32).tiny
        covered = jnp.where(counts, jnp.clip(coverage, least, 1.0), 1.0)
        return scores + coverage_penalty * jnp.log(covered).sum(-1)

    def goes_on(beams):
        idle = beams.done | jnp.isneginf(beams.log_probs)
        return (beams.t < max_length) & ~idle.all()

    def advance(beams):
        log_probs, state, attention = step(beams.state, beams.last.reshape(-1))
        vocabulary = log_probs.shape[-1]
        log_probs = log_probs.astype(jnp.float32).reshape(batch, beam, vocabulary)
        # What is done goes on in one way only, which changes nothing: by a PAD for free.
        stays = jnp.where(jnp.arange(vocabulary) == PAD, 0.0, -jnp.inf)[None, None]
        log_probs = jnp.where(beams.done[..., None], stays, log_probs)
        totals = beams.log_probs[..., None] + log_probs
        lengths = jnp.where(beams.done, beams.lengths, beams.t + 1)
        coverage = beams.coverage
        if coverage is not None and attention is not None:
            paid = attention.astype(jnp.float32).reshape(coverage.shape)
            coverage += jnp.where(beams.done[..., None], 0.0, paid)
        places = None if coverage is None else coverage[:, :, None]
        scores = score(totals, lengths[..., None], places)
        scores, best = jax.lax.top_k(scores.reshape(batch, -1), beam)
        parent, chosen = best // vocabulary, best % vocabulary

        def follow(x):  # [B, K, ...]: each beam's own -> that of the beam it goes on from
            index = parent.reshape(parent.shape + (1,) * (x.ndim - 2))
            return jnp.take_along_axis(x, index, 1)

        rows = (jnp.arange(batch)[:, None] * beam + parent).reshape(-1)
        return _Beams(
            t=beams.t + 1,
            tokens=follow(beams.tokens).at[:, :, beams.t].set(chosen),
            last=chosen,
            log_probs=jnp.take_along_axis(totals.reshape(batch, -1), best, 1),
            scores=scores,
            lengths=follow(lengths),
            done=follow(beams.done) | (chosen == eos),
            coverage=None if coverage is None else follow(coverage),
            state=jax.tree.map(lambda x: x[rows], state),
        )

    start = _first_beams(state, coverage, go, max_length, beam)
    end = jax.lax.while_loop(goes_on, advance, start)
    # top_k leaves the beams sorted, the best first.
    return Sequences(end.tokens[:, :n_best], end.log_probs[:, :n_best], end.scores[:, :n_best])


def _check(max_length: int) -> None:
    if max_length < 1:
        raise InputError(f"max_length {max_length}: expected at least 1")
