"""Attention over the states of an encoder: Bahdanau's additive form, and Luong's dot and general.

attention = Attention("general", features=128)
keys = attention.keys(memory)                               # once for a source
context, weights = attention(queries, keys, memory, mask)   # at every step, or all at once

>>> memory, mask = jnp.ones((1, 3, 4)), jnp.array([[1, 1, 0]])
>>> call = jnp.ones((1, 2, 4)), memory, memory, mask  # of "dot" the keys are the memory
>>> (context, weights), _ = Attention("dot", features=4).init_with_output(jax.random.key(0), *call)
>>> context.shape, weights[0, 0].tolist()
((1, 2, 4), [0.5, 0.5, 0.0])
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from jaxdl import InputError

SCORES = ("additive", "dot", "general")


class Attention(nn.Module):
    """Weighted means of a memory, whose weights are a softmax over its match with each query.

    Between a query q and a place m of the memory the score is

    - `additive`: v . tanh(W q + U m + b) (Bahdanau et al. 2014, arXiv:1409.0473, appendix A.1.2).
      Luong's `concat`, v . tanh(W [q; m]), is the same function but for the bias b, for a matrix
      over two vectors end to end is a matrix over each;
    - `dot`: q . m, and `general`: q . W m (Luong et al. 2015, arXiv:1508.04025, equation 8).

    Args:
      score: one of `SCORES`.
      features: the length of W q + U m for `additive`, of a query for `general`. `dot` has no
        parameters, and takes queries and memories of this length.
      use_bias: b of `additive`.
      dtype, param_dtype: of the computation, and of the parameters. The softmax is in float32.

    State: `params`.

    Raises:
      InputError: no such score, or `dot` between vectors of different lengths.
    """

    score: str
    features: int
    use_bias: bool = True
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Define the layers that the score has."""
        if self.score not in SCORES:
            raise InputError(f"no attention score {self.score!r}; there are {', '.join(SCORES)}")
        types: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if self.score != "dot":
            bias = self.use_bias and self.score == "additive"
            self.memory_layer = nn.Dense(self.features, use_bias=bias, **types)
        if self.score == "additive":
            self.query_layer = nn.Dense(self.features, use_bias=False, **types)
            self.v = nn.Dense(1, use_bias=False, **types)

    def keys(self, memory: jax.Array) -> jax.Array:
        """Return the part of the scores that a memory [B, S, M] alone decides, [B, S, features]."""
        return memory if self.score == "dot" else self.memory_layer(memory)

    def __call__(
        self, queries: jax.Array, keys: jax.Array, memory: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Apply the layer.

        Args:
          queries: [B, T, Q], each of which attends by itself.
          keys: [B, S, features], what `keys` made of the memory.
          memory: [B, S, M].
          mask: [B, S], true or 1 where the memory counts; at least one place of each row does.

        Returns:
          The contexts [B, T, M], and the weights, float32 [B, T, S], which sum to 1 over S and
          are 0 where the memory does not count.
        """
        if self.score == "additive":
            together = self.query_layer(queries)[:, :, None] + keys[:, None]
            scores = self.v(jnp.tanh(together))[..., 0]
        elif queries.shape[-1] != keys.shape[-1]:
            raise InputError(
                f"{self.score} attention takes queries and keys of one length, not "
                f"{queries.shape[-1]} and {keys.shape[-1]}"
            )
        else:
            scores = jnp.einsum("btf,bsf->bts", queries.astype(self.dtype), keys)
        counts = mask.astype(bool)[:, None]
        weights = nn.softmax(jnp.where(counts, scores.astype(jnp.float32), -jnp.inf))
        return jnp.einsum("bts,bsm->btm", weights.astype(self.dtype), memory), weights
