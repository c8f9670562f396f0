"""A wide LSTM layer for CPUs: the loop of `jaxdl.recurrent` with features before sequences.

Of a product XLA packs the right side, and does so anew at each step. That side is the hidden kernel
where states are [B, H], and where they are [H, B] it is the state, which is 4 H / B times smaller.
So a step is W.T @ h here. What is done to each number is done to vectors of H x B: an inner loop
over B alone, of 32 and fewer, the compiler unrolls and then computes number by number, a hyperbolic
tangent in six times the time.
"""

from collections.abc import Iterable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from jaxdl.lowering import computed

LEAST_FEATURES, LEAST_STEPS = 512, 16
"""Below these the gain, which is of products, does not pay for what is transposed for them."""

HALVES = np.array([0.5, 0.5, 1, 0.5], np.float32)[:, None]
"""A sigmoid is 1/2 + tanh(x / 2) / 2: of which part each gate of i, f, g, o is the tangent."""


def is_quicker(features: int, dtype: DTypeLike, x: jax.Array) -> bool:
    """Whether a layer without a mask is better trained so where it is compiled for a CPU.

    Of several devices it is not: they divide the sequences, which lie side by side in vectors here.
    That is asked here and not by `jaxdl.lowering.operation`, whose operations have one output.

    Args:
      features: H.
      dtype: of the layer's products.
      x: its inputs [T, B, F].
    """
    alone = jax.default_backend() == "cpu" and jax.device_count() == 1
    wide = features >= LEAST_FEATURES and len(x) >= LEAST_STEPS
    return alone and wide and np.dtype(dtype) == np.float32


def advance(tangents: Iterable[jax.Array], c: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return h and c after a step of an LSTM, in any layout.

    Args:
      tangents: tanh of the gates i, f, g, o times `HALVES`, each of the shape of c.
      c: before the step.
    """
    i, f, g, o = tangents
    c = (0.5 + 0.5 * f) * c + (0.5 + 0.5 * i) * g
    return (0.5 + 0.5 * o) * jnp.tanh(c), c


def recur(
    reverse: bool, params: Mapping[str, jax.Array], x: jax.Array, state: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Run an LSTM layer over time, as `jaxdl.recurrent.recur` does, to rounding.

    Args:
      reverse: whether from the last step to the first.
      params: `input_kernel` [F, 4 H], `hidden_kernel` [H, 4 H] and `bias` [4 H].
      x: inputs [T, B, F].
      state: h and c, float32 [B, H].

    Returns:
      The output after each step, float32 [T, B, H], and the last state.
    """
    params = {name: leaf.astype(jnp.float32) for name, leaf in params.items()}
    outputs, last = _recur(reverse, params, x.transpose(2, 0, 1), tuple(s.T for s in state))
    return outputs.transpose(1, 2, 0), tuple(s.T for s in last)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recur(reverse, params, x, state):
    """What `recur` does, of x [F, T, B] and states [H, B] to outputs [H, T, B]."""
    return _forward(reverse, params, x, state)[0]


def _forward(reverse, params, x, state):
    (size, batch), steps = state[0].shape, x.shape[1]
    projected = computed(params["input_kernel"].T) @ x.reshape(len(x), -1)
    transposed, bias = params["hidden_kernel"].T, params["bias"][:, None]
    back = -1 if reverse else 1

    # What is picked out of rows is so one step ahead, that all which is computed is whole vectors;
    # beyond the last it is some row that nothing comes of. The gates take the projections' place,
    # and later their cotangents that of the gates.
    def step(carry, t):
        h, c, entered, buffer, outputs = carry
        gates = entered + transposed @ h
        buffer = _put(buffer, gates, t)
        (h, after), before = advance(jnp.tanh(gates.reshape(4, -1) * HALVES), c), c
        h = h.reshape(size, batch)
        return (h, after, _at(buffer, t + back) + bias, buffer, _put(outputs, h, t)), before

    h, c = state
    buffer = projected.reshape(4 * size, steps, batch)
    entered = _at(buffer, steps - 1 if reverse else 0) + bias
    outputs = jnp.zeros((size, steps, batch), h.dtype)
    carry = h, c.reshape(-1), entered, buffer, outputs
    carry, cells = lax.scan(step, carry, jnp.arange(steps), reverse=reverse)
    h, c, _, gates, outputs = carry
    saved = params, x, state[0], outputs, cells, gates
    return (outputs, (h, c.reshape(size, batch))), saved


def _backward(reverse, saved, cotangents):
    params, x, first, outputs, cells, gates = saved
    d_outputs, (d_h, d_c) = cotangents
    (size, batch), steps = first.shape, x.shape[1]
    back = -1 if reverse else 1

    def step(carry, inputs):
        d_h, d_c, d_output, gates, buffer = carry
        t, cell = inputs
        tangents = jnp.tanh(gates.reshape(4, -1) * HALVES)
        _, pull = jax.vjp(advance, tuple(tangents), cell)
        d_tangents, d_c = pull(((d_h + d_output).reshape(-1), d_c))
        d_gates = jnp.stack(d_tangents) * (1 - tangents**2) * HALVES
        d_gates = d_gates.reshape(4 * size, batch)
        buffer = _put(buffer, d_gates, t)
        d_h = params["hidden_kernel"] @ d_gates
        return (d_h, d_c, _at(d_outputs, t - back), _at(buffer, t - back), buffer), None

    end = 0 if reverse else steps - 1
    carry = d_h, d_c.reshape(-1), _at(d_outputs, end), _at(gates, end), gates
    inputs = jnp.arange(steps), cells
    (d_h, d_c, _, _, d_gates), _ = lax.scan(step, carry, inputs, reverse=not reverse)
    d_gates = d_gates.reshape(4 * size, -1)
    between = outputs[:, 1:] if reverse else outputs[:, :-1]
    parts = (between, first[:, None]) if reverse else (first[:, None], between)
    before = jnp.concatenate(parts, 1)
    d_params = {
        "input_kernel": x.reshape(len(x), -1) @ d_gates.T,
        "hidden_kernel": before.reshape(size, -1) @ d_gates.T,
        "bias": d_gates.sum(1),
    }
    d_x = (params["input_kernel"] @ d_gates).reshape(x.shape)
    return d_params, d_x, (d_h, d_c.reshape(size, batch))


def _at(rows, t):
    """Of [n, T, B] the step t."""
    return lax.dynamic_index_in_dim(rows, t, 1, keepdims=False)


def _put(rows, now, t):
    """[n, T, B] with a step that is [n, B]."""
    return lax.dynamic_update_index_in_dim(rows, now, t, 1)


_recur.defvjp(_forward, _backward)
