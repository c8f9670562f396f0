"""Recurrent language models, which predict each token of a text from those before it.

    model = language_model(vocabulary_size=256, kind="lstm", features=256, layers=2)
    params = model.init(jax.random.key(0), tokens, train=False)["params"]     # tokens int [B, T]
    logits, carry = model.apply({"params": params}, tokens, train=False)
    continued = generate(model, params, tokens, jax.random.key(1), length=100)

Mikolov, Karafiat, Burget, Cernocky, Khudanpur, "Recurrent neural network based language model",
Interspeech 2010 (not on arXiv); Graves 2013, arXiv:1308.0850; dropout between the layers alone as
Zaremba, Sutskever, Vinyals 2014, arXiv:1409.2329.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl import InputError
from jaxdl.nn import Typed
from jaxdl.recurrent import GATES, Carry, Recurrent, initial_carry


class LanguageModel(Typed):
    """An embedding, recurrent layers, and a dense layer that makes logits of their outputs.

    Args:
      vocabulary_size: number of tokens V.
      kind: of the cells, "rnn", "lstm" or "gru".
      features: numbers in each layer's output.
      layers: number of recurrent layers.
      embedding: numbers that stand for a token; 0 for one-hot vectors. They are drawn with
        variance 1.
      dropout: rate on the embedding, between the layers and before the logits.
      forward_mode: as of `jaxdl.recurrent.Recurrent`.
      dtype, param_dtype: see `jaxdl.nn.Typed`. The carry is float32.

    Shapes: tokens int [B, T], and the carry of the tokens before them (None for none: zeros), to
    float32 logits [B, T, V] of the token after each, and the carry after the last.

    State: `params`. Dropout draws from the stream `dropout` in training.

    Parameters at the defaults: 936,192 (embedding 16,384, recurrent layers 328,704 and 525,312,
    output 65,792).

    Raises:
      InputError: a kind of cell that there is not, or a size that cannot be.
    """

    vocabulary_size: int = 256
    _: dataclasses.KW_ONLY
    kind: str = "lstm"
    features: int = 256
    layers: int = 2
    embedding: int = 64
    dropout: float = 0.0
    forward_mode: bool = False

    def __post_init__(self) -> None:
        """Refuse what makes no language model."""
        if self.kind not in GATES:
            raise InputError(f"no recurrent cell {self.kind!r}; there are {', '.join(GATES)}")
        least = {"vocabulary_size": 1, "features": 1, "layers": 1, "embedding": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value < bound:
                raise InputError(f"language_model takes {name} of at least {bound}, not {value}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"language_model takes a dropout in [0, 1), not {self.dropout}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, tokens: jax.Array, *, train: bool, carry: Carry | None = None
    ) -> tuple[jax.Array, Carry]:
        """Return the logits of the next tokens, and the carry."""
        drop = nn.Dropout(self.dropout, deterministic=not train)
        if self.embedding:
            init = nn.initializers.normal(1.0)
            embed = nn.Embed(
                self.vocabulary_size,
                self.embedding,
                embedding_init=init,
                name="embedding",
                **self.types,
            )
            x = drop(embed(tokens))
        else:
            x = jax.nn.one_hot(tokens, self.vocabulary_size, dtype=self.dtype)
        recurrent = Recurrent(
            self.kind,
            self.features,
            self.layers,
            dropout=self.dropout,
            forward_mode=self.forward_mode,
            name="recurrent",
            **self.types,
        )
        x, carry = recurrent(x, train=train, carry=carry)
        logits = nn.Dense(self.vocabulary_size, name="output", **self.types)(drop(x))
        return logits.astype(jnp.float32), carry

    def initial_carry(self, batch_size: int) -> Carry:
        """Return the carry that a text starts from: zeros."""
        return initial_carry(self.kind, self.features, self.layers, False, batch_size)


language_model = LanguageModel


@functools.partial(jax.jit, static_argnames=("model", "length", "top_k"))
def generate(
    model: LanguageModel,
    params: Any,
    prompt: jax.Array,
    key: jax.Array,
    *,
    length: int,
    temperature: float | jax.Array = 1.0,
    top_k: int | None = None,
) -> jax.Array:
    """Draw the tokens that go on from a prompt, one after another, in one compiled loop.

    Args:
      model: the model.
      params: its parameters.
      prompt: int [B, P], P at least 1.
      key: of the draws.
      length: how many tokens to draw.
      temperature: what logits are divided by, more than 0: below 1 for the likelier tokens.
      top_k: draw from so many tokens with the greatest logits, at most V; all when None, and with
        1 the likeliest each time (of equals the lower).

    Returns:
      int32 [B, length].
    """

    def step(state, key):
        logits, carry = state
        greatest, tokens = jax.lax.top_k(logits, top_k or model.vocabulary_size)
        drawn = jax.random.categorical(key, greatest / temperature)
        token = jnp.take_along_axis(tokens, drawn[:, None], axis=1)
        logits, carry = model.apply({"params": params}, token, train=False, carry=carry)
        return (logits[:, -1], carry), token[:, 0]

    logits, carry = model.apply({"params": params}, prompt, train=False)
    _, tokens = jax.lax.scan(step, (logits[:, -1], carry), jax.random.split(key, length))
    return tokens.T
