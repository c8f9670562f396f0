"""Sequence to sequence: a recurrent encoder and decoder, with or without attention between them.

model = Seq2Seq(source_vocabulary=200, target_vocabulary=300, attention="luong")
variables = model.init(key, source, source_length, inputs, train=False)
logits, weights = model.apply(variables, source, source_length, inputs, train=False)

# The same parameters, a token at a time, as `jaxdl.decoding` wants it:
encoded, carry = model.apply(variables, source, source_length, train=False, method="encode")
step = functools.partial(model.apply, variables, encoded, method="step")
decoding.greedy(step, carry, go=1, eos=2, max_length=20)
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from jaxdl import InputError
from jaxdl.attention import Attention
from jaxdl.recurrent import Carry, Recurrent

ATTENTIONS = ("none", "bahdanau", "luong")

LUONG_SCORES = {"dot": "dot", "general": "general", "concat": "additive"}
"""The scores by the paper's names, as `Attention` calls them."""


class Encoded(NamedTuple):
    """What the decoder attends to.

    Attributes:
      memory: the encoder's outputs [B, S, features].
      keys: what `Attention.keys` makes of them.
      mask: bool [B, S], which of them count.
    """

    memory: jax.Array
    keys: jax.Array
    mask: jax.Array


class Seq2Seq(nn.Module):
    """An encoder's last state starts a decoder, which gives the target a token at a time.

    - `none`: the decoder has nothing else (Sutskever et al. 2014, arXiv:1409.3215).
    - `luong`: its state attends to the encoder's states, and both make the next token (Luong et al.
      2015, arXiv:1508.04025, section 3.1, global, without feeding what was attended to back in). So
      the recurrence does not wait for attention, and a whole target is one call of it.
    - `bahdanau`: what its state before attends to goes into the next state (Bahdanau et al. 2014,
      arXiv:1409.0473), so training goes step by step, too. The paper's maxout is a tanh here.

    In all of them a tanh layer stands before the logits. In both directions the encoder has half
    the features in each, so that its states and its memory have the decoder's size, and the last
    states of the two directions, end to end, start the decoder (the paper takes a layer of the
    reverse one's).

    Args:
      source_vocabulary, target_vocabulary: numbers of tokens; 0 is padding.
      kind: 'lstm', 'gru' or 'rnn'.
      features: length of the decoder's state and of the encoder's outputs.
      layers: of the encoder, and of the decoder.
      embedding: length of the vectors of tokens.
      bidirectional: whether the encoder reads both ways.
      attention: one of `ATTENTIONS`.
      score: of `luong`, one of `LUONG_SCORES`.
      dropout: rate on embeddings, between layers and before the logits.
      never: the tokens that `step` rules out, padding and what a target starts from.
      dtype, param_dtype: the compute type, and the type parameters are stored in. States,
        attention weights and logits are float32.

    State: `params` alone. Dropout draws from the stream `dropout` in training.

    Raises:
      InputError: no such attention or score, or an odd number of features in two directions.
    """

    source_vocabulary: int
    target_vocabulary: int
    kind: str = "lstm"
    features: int = 128
    layers: int = 1
    embedding: int = 64
    bidirectional: bool = True
    attention: str = "luong"
    score: str = "general"
    dropout: float = 0.0
    never: tuple[int, ...] = (0, 1)
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Define the layers."""
        if self.attention not in ATTENTIONS:
            known = ", ".join(ATTENTIONS)
            raise InputError(f"no attention {self.attention!r}; there are {known}")
        if self.score not in LUONG_SCORES:
            known = ", ".join(LUONG_SCORES)
            raise InputError(f"no score {self.score!r} of luong attention; there are {known}")
        if self.bidirectional and self.features % 2:
            raise InputError(
                f"{self.features} features; expected an even number for two directions"
            )
        types: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        recurrent = {"kind": self.kind, "layers": self.layers, "dropout": self.dropout, **types}
        self.source_embedding = nn.Embed(self.source_vocabulary, self.embedding, **types)
        self.target_embedding = nn.Embed(self.target_vocabulary, self.embedding, **types)
        half = self.features // 2 if self.bidirectional else self.features
        self.encoder = Recurrent(features=half, bidirectional=self.bidirectional, **recurrent)
        self.decoder = Recurrent(features=self.features, **recurrent)
        if self.attention != "none":
            score = "additive" if self.attention == "bahdanau" else LUONG_SCORES[self.score]
            bias = self.attention == "bahdanau"
            self.attend = Attention(score, self.features, use_bias=bias, **types)
        self.readout = nn.Dense(self.features, **types)
        self.output = nn.Dense(self.target_vocabulary, **types)
        self.drop = nn.Dropout(self.dropout)

    def encode(
        self, source: jax.Array, source_length: jax.Array, *, train: bool
    ) -> tuple[Encoded | None, Carry]:
        """Read sources, int [B, S], of so many tokens each, int [B], at least 1.

        Returns:
          What the decoder attends to, None without attention, and the state that it starts from.
        """
        embedded = self.drop(self.source_embedding(source), deterministic=not train)
        memory, carry = self.encoder(embedded, train=train, lengths=source_length)
        if self.bidirectional:
            joined = lambda *both: jnp.concatenate(both, -1)
            carry = tuple(
                jax.tree.map(joined, ahead, back)
                for ahead, back in zip(carry[::2], carry[1::2], strict=True)
            )
        if self.attention == "none":
            return None, carry
        mask = jnp.arange(source.shape[1])[None] < source_length[:, None]
        return Encoded(memory, self.attend.keys(memory), mask), carry

    def decode(
        self,
        encoded: Encoded | None,
        carry: Carry,
        inputs: jax.Array,
        *,
        train: bool,
        keys: jax.Array | None = None,
        sampling_rate: Any = 0.0,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Give the logits of all tokens of targets, each seeing those before it.

        Args:
          encoded, carry: of `encode`.
          inputs: int [B, T], the targets one place later: the token they start from comes first.
          train: whether dropout acts.
          keys: PRNG keys [B], one a target, for scheduled sampling (Bengio et al. 2015,
            arXiv:1506.03099): each input but the first gives way, with a probability of
            `sampling_rate`, to a token drawn from what the model itself has just predicted.
            None for teacher forcing.
          sampling_rate: float [].

        Returns:
          Logits, float32 [B, T, target_vocabulary], and the attention weights [B, T, S] or None.
        """
        if keys is None and self.attention != "bahdanau":
            logits, _, weights = self._advance(encoded, carry, inputs, train)
            return logits, weights

        def body(self, loop, now):
            carry, logits = loop
            tokens, t = now
            if keys is not None:
                draws = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
                coin = jax.vmap(jax.random.uniform)(draws)
                guess = jax.vmap(jax.random.categorical)(
                    jax.vmap(jax.random.fold_in, (0, None))(draws, 1), logits
                )
                tokens = jnp.where((coin < sampling_rate) & (t > 0), guess, tokens)
            logits, carry, weights = self._advance(encoded, carry, tokens[:, None], train)
            weights = None if weights is None else weights[:, 0]
            return (carry, logits[:, 0]), (logits[:, 0], weights)

        scan = nn.scan(
            body,
            variable_broadcast="params",
            split_rngs={"params": False, "dropout": True},
            out_axes=1,
        )
        start = jnp.zeros((len(inputs), self.target_vocabulary))
        _, (logits, weights) = scan(
            self, (carry, start), (inputs.swapaxes(0, 1), jnp.arange(inputs.shape[1]))
        )
        return logits, weights

    def step(
        self, encoded: Encoded | None, carry: Carry, tokens: jax.Array
    ) -> tuple[jax.Array, Carry, jax.Array | None]:
        """Go on by one token, int [B], without dropout: a step of `jaxdl.decoding`.

        Returns:
          The log-probabilities of the next token, float32 [B, target_vocabulary], in which those
          of `never` are minus infinity; the state; the attention [B, S] or None.
        """
        logits, carry, weights = self._advance(encoded, carry, tokens[:, None], False)
        logits = logits[:, 0].at[:, jnp.array(self.never)].set(-jnp.inf)
        return nn.log_softmax(logits), carry, None if weights is None else weights[:, 0]

    def __call__(
        self,
        source: jax.Array,
        source_length: jax.Array,
        inputs: jax.Array,
        *,
        train: bool,
        keys: jax.Array | None = None,
        sampling_rate: Any = 0.0,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Return the logits and the attention of whole targets; arguments as of the two halves."""
        encoded, carry = self.encode(source, source_length, train=train)
        return self.decode(
            encoded, carry, inputs, train=train, keys=keys, sampling_rate=sampling_rate
        )

    def _advance(
        self, encoded: Encoded | None, carry: Carry, tokens: jax.Array, train: bool
    ) -> tuple[jax.Array, Carry, jax.Array | None]:
        """Feed tokens [B, T]; with Bahdanau's attention T is 1, for each state needs the last."""
        embedded = self.drop(self.target_embedding(tokens), deterministic=not train)
        x, weights = embedded, None
        if self.attention == "bahdanau":
            hidden = carry[-1][0] if self.kind == "lstm" else carry[-1]
            context, weights = self._context(hidden[:, None], encoded)
            x = jnp.concatenate([embedded, context], -1)
        outputs, carry = self.decoder(x, train=train, carry=carry)
        if self.attention == "bahdanau":
            outputs = jnp.concatenate([outputs, context, embedded], -1)
        elif self.attention == "luong":
            context, weights = self._context(outputs, encoded)
            outputs = jnp.concatenate([outputs, context], -1)
        read = self.drop(jnp.tanh(self.readout(outputs)), deterministic=not train)
        return self.output(read).astype(jnp.float32), carry, weights

    def _context(self, queries: jax.Array, encoded: Encoded | None) -> tuple[jax.Array, jax.Array]:
        assert encoded is not None
        return self.attend(queries, encoded.keys, encoded.memory, encoded.mask)
