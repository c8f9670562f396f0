"""word2vec: vectors of words that predict the words around them, and what to ask of such vectors.

Mikolov et al. 2013, "Efficient Estimation of Word Representations in Vector Space",
arXiv:1301.3781, and "Distributed Representations of Words and Phrases and their Compositionality",
arXiv:1310.4546.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl import InputError


def _uniform(key: Any, shape: tuple[int, int], dtype: Any) -> jax.Array:
    """Uniform in +-0.5 / features, as in word2vec.c."""
    return jax.random.uniform(key, shape, dtype, -0.5, 0.5) / shape[-1]


class Word2Vec(nn.Module):
    """Skip-gram or CBOW: scores of a middle word given the words around it.

    Mikolov et al. 2013, arXiv:1301.3781. As in the authors' word2vec.c, skip-gram predicts the
    middle word from each word around it; the paper says it the other way round, and over a whole
    text the pairs are the same. CBOW predicts it from the mean of their vectors. Where word2vec.c
    adds the gradient of that mean in full to each of the vectors, here each gets its share.

    Attributes:
      vocabulary_size: number of words, V.
      features: size of a vector, D.
      cbow: CBOW when True, skip-gram when False.
      dtype: of the computation.
      param_dtype: of the vectors as they are stored.
    """

    vocabulary_size: int
    features: int
    cbow: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, context: jax.Array, context_mask: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The scores of target words given a context.

        Args:
          context: int [B, C], the words around each middle word.
          context_mask: [B, C], 0 for those that are none.
          targets: int [B, N], the middle word and others to tell it from.

        Returns:
          Logits float32 [B, P, N], the inner products of `input` and `output` vectors, and the
          mask [B, P] of the pairs they score. P is C for skip-gram and 1 for CBOW. Parameters are
          `input` and `output` [V, D]: 2 V D in all.
        """
        shape = (self.vocabulary_size, self.features)
        inputs = self.param("input", _uniform, shape, self.param_dtype)
        outputs = self.param("output", nn.initializers.zeros, shape, self.param_dtype)
        source = inputs[context].astype(self.dtype)
        mask = context_mask.astype(self.dtype)
        if self.cbow:
            count = jnp.maximum(mask.sum(1, keepdims=True), 1)
            source = jnp.einsum("bcd,bc->bd", source, mask / count)[:, None]
            mask = mask.max(1, keepdims=True)
        target = outputs[targets].astype(self.dtype)
        logits = jnp.einsum("bpd,bnd->bpn", source, target, preferred_element_type=jnp.float32)
        return logits, mask.astype(jnp.float32)


def normalize(vectors: jax.Array) -> jax.Array:
    """Vectors [..., D] scaled to length 1, so that inner products are cosines; 0 stays 0."""
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def nearest(
    vectors: jax.Array, queries: jax.Array, excluded: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
    """The words whose vectors have the greatest cosine with each query.

    Args:
      vectors: [V, D].
      queries: [Q, D].
      excluded: int [Q, E], words that are no answer, such as the query itself.
      count: how many to give.

    Returns:
      Words int32 [Q, count], the nearest first, and their cosines [Q, count].

    Raises:
      InputError: there are not so many words.
    """
    possible = len(vectors) - excluded.shape[1]
    if not 1 <= count <= possible:
        raise InputError(f"{count} nearest words: there are 1 to {possible} to give")
    cosines = normalize(queries) @ normalize(vectors).T
    cosines = cosines.at[jnp.arange(len(queries))[:, None], excluded].set(-jnp.inf)
    values, words = jax.lax.top_k(cosines, count)
    return words, values


def analogy(vectors: jax.Array, questions: jax.Array) -> jax.Array:
    """The word that is to c as b is to a: nearest to b - a + c, and none of the three.

    Mikolov et al. 2013, arXiv:1301.3781, section 4; vectors are normalized before they are added.

    Args:
      vectors: [V, D].
      questions: int [Q, 3], the words a, b, c of each question.

    Returns:
      int32 [Q].
    """
    a, b, c = jnp.moveaxis(normalize(vectors)[questions], 1, 0)
    return nearest(vectors, b - a + c, questions, 1)[0][:, 0]
