"""Recurrent networks: tanh RNN, LSTM and GRU, in stacks, in one direction or both.

    model = Recurrent("lstm", features=256, layers=2)
    variables = model.init(jax.random.key(0), x, train=False)  # x float [B, T, F]
    outputs, carry = model.apply(variables, x, train=False, lengths=lengths)
    outputs, carry = model.apply(variables, x[:, :1], train=False, carry=carry)  # one step more

`from_torch` and `to_torch` take weights from and to torch.nn.RNN, torch.nn.LSTM and torch.nn.GRU.

The input's part of the gates is one product for the whole sequence, before the loop over time. The
loop's own derivative is written here (`recur`), so that the gradient of the weights is one product
as well, after the loop backward; automatic differentiation would add it up step by step. That
derivative is of reverse mode, and may itself be differentiated in any mode, as products with a
Hessian are (`jaxdl.curvature.hvp`); for forward mode there is `Recurrent.forward_mode`.
On one CPU device wide LSTMs without a mask go by `jaxdl.features_first` instead.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from jaxdl import InputError, features_first, require

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
"""The kinds of cell, and how many vectors of `features` numbers each computes at a step."""

Carry = tuple[Any, ...]
"""The state of each cell, layer by layer, forward before reverse: h [B, H], or (h, c) for lstm."""


def initial_carry(
    kind: str, features: int, layers: int, bidirectional: bool, batch_size: int
) -> Carry:
    """Return the state that sequences start from: zeros, float32.

    Args:
      kind, features, layers, bidirectional: as of `Recurrent`.
      batch_size: number of sequences.

    Raises:
      InputError: no such kind.
    """
    _check_kind(kind)
    zeros = jnp.zeros((batch_size, features), jnp.float32)
    state = (zeros, zeros) if kind == "lstm" else zeros
    return (state,) * (layers * (1 + bidirectional))


class Recurrent(nn.Module):
    """A stack of recurrent layers over a batch of sequences.

    With x_t the input of a layer at step t, h its output, U and W its input and hidden kernels, b
    its bias, s the logistic sigmoid and * the product by elements, a layer computes

    - `rnn` (Elman, "Finding structure in time", 1990, with tanh):
      h_t = tanh(x_t U + h_{t-1} W + b);
    - `lstm` (Hochreiter and Schmidhuber, "Long short-term memory", 1997, with the forget gate of
      Gers, Schmidhuber and Cummins 2000, and no peepholes): of x_t U + h_{t-1} W + b in four parts
      i, f, g, o,
      c_t = s(f) * c_{t-1} + s(i) * tanh(g),
      h_t = s(o) * tanh(c_t);
    - `gru` (Cho et al. 2014, arXiv:1406.1078): of x_t U + b in r, z, n and h_{t-1} W in r', z', n',
      m = tanh(n + s(r + r') * (n' + b')),
      h_t = (1 - s(z + z')) * m + s(z + z') * h_{t-1}.
      This is the variant of torch and cuDNN, in which the reset gate acts after the product with W
      and on a bias b' of its own; in the paper it acts on h_{t-1} before that product.

    Weights start as those of Flax's cells: U LeCun normal, W orthogonal for each gate, biases zero,
    the forget gate's too.

    Args:
      kind: "rnn", "lstm" or "gru".
      features: H, the size of h in each direction.
      layers: number of layers, each over the outputs of the one before.
      bidirectional: each layer has a second half that reads from the last step to the first, and
        the outputs of both are joined.
      residual: a layer's input is added to its output where their sizes agree (Wu et al. 2016,
        arXiv:1609.08144, section 3.1).
      dropout: rate of the dropout between layers, on the input of all but the first, as torch's;
        what `residual` adds is not dropped.
      dtype, param_dtype: the type of the products and outputs, and the type parameters are stored
        in. Gates and states are float32.
      forward_mode: leaves the derivative of the loop over time to JAX, so that `jax.jvp` and what
        is built on it (`jaxdl.curvature.gauss_newton_product`) work on the network itself. The
        results are the same, and gradients slower; without it derivatives begin by reverse mode.

    State: `params`, in `layer0` and so on, and for the other direction `layer0_reverse` ...:
    `input_kernel` [F, G x H], `hidden_kernel` [H, G x H] and `bias` [G x H], of the G gates in the
    order above, and b' as `hidden_bias` [H]. Dropout draws from the stream `dropout` in training.
    """

    kind: str
    features: int
    layers: int = 1
    bidirectional: bool = False
    residual: bool = False
    dropout: float = 0.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    forward_mode: bool = False

    def initial_carry(self, batch_size: int) -> Carry:
        """Return the state that sequences start from: zeros, float32."""
        return initial_carry(self.kind, self.features, self.layers, self.bidirectional, batch_size)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        carry: Carry | None = None,
        lengths: jax.Array | None = None,
    ) -> tuple[jax.Array, Carry]:
        """Apply the network.

        Args:
          x: sequences, float [B, T, F].
          train: whether to apply dropout.
          carry: the state that each sequence starts from; None for `initial_carry`.
          lengths: int [B], how many steps of each sequence are true, from 0 to T; None for all.
            What comes after them has no part in any result, and the reverse direction starts at
            the last true step.

        Returns:
          The outputs [B, T, H], or [B, T, 2 H] of both directions, which are 0 after a sequence's
          end, and the carry after its last true step (in reverse, after its first).

        Raises:
          InputError: no such kind, or arguments of another shape.
        """
        zeros = self.initial_carry(x.shape[0])
        states = zeros if carry is None else carry
        _check_shapes(x, zeros, states, lengths)
        states = jax.tree.map(lambda s: jnp.asarray(s, jnp.float32), states)
        x = x.astype(self.dtype).swapaxes(0, 1)
        mask = None
        if lengths is not None:
            mask = (jnp.arange(len(x))[:, None] < lengths[None])[..., None]
            x = jnp.where(mask, x, 0)  # a nan there would spread through a product with 0
        after: list[Any] = []
        for i in range(self.layers):
            entered = x
            if i > 0:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
            outputs = []
            for reverse in (False, True)[: 1 + self.bidirectional]:
                layer = Layer(
                    self.kind,
                    self.features,
                    reverse,
                    self.dtype,
                    self.param_dtype,
                    self.forward_mode,
                    name=f"layer{i}{'_reverse' if reverse else ''}",
                )
                output, state = layer(x, states[len(after)], mask)
                outputs.append(output)
                after.append(state)
            x = jnp.concatenate(outputs, -1)
            if self.residual and x.shape == entered.shape:
                x += entered
        return x.swapaxes(0, 1), tuple(after)


def _check_kind(kind: str) -> None:
    if kind not in GATES:
        raise InputError(f"no recurrent cell {kind!r}; there are {', '.join(GATES)}")


def _check_shapes(x: jax.Array, zeros: Carry, carry: Carry, lengths: jax.Array | None) -> None:
    require(x.ndim == 3, f"sequences {list(x.shape)}", "[batch, time, features]")
    given, wanted = (jax.tree.map(jnp.shape, tree) for tree in (tuple(carry), zeros))
    require(given == wanted, f"a carry of the shapes {given}", f"{wanted}")
    if lengths is not None:
        alike = lengths.shape == x.shape[:1]
        require(alike, f"lengths {list(lengths.shape)}", f"one for each of {len(x)} sequences")


class Layer(nn.Module):
    """One direction of a layer; the arguments are those of `Recurrent`."""

    kind: str
    features: int
    reverse: bool
    dtype: Dtype
    param_dtype: Dtype
    forward_mode: bool

    @nn.compact
    def __call__(self, x: jax.Array, state: Any, mask: jax.Array | None) -> tuple[jax.Array, Any]:
        """Return the outputs [T, B, H] of inputs [T, B, F], where `mask` [T, B, 1], and a state."""
        width = GATES[self.kind] * self.features
        shapes = {
            "input_kernel": (nn.initializers.lecun_normal(), (x.shape[-1], width)),
            "hidden_kernel": (orthogonal_gates, (self.features, width)),
            "bias": (nn.initializers.zeros, (width,)),
        }
        if self.kind == "gru":
            shapes["hidden_bias"] = (nn.initializers.zeros, (self.features,))
        params = {
            name: self.param(name, initializer, shape, self.param_dtype)
            for name, (initializer, shape) in shapes.items()
        }
        before = state if self.kind == "lstm" else (state,)
        arguments = self.kind, self.reverse, self.dtype, params, x, before, mask
        if self.forward_mode:
            states, last = recur_forward(*arguments)[0]
        elif (
            self.kind == "lstm"
            and mask is None
            and features_first.is_quicker(self.features, self.dtype, x)
        ):
            states, last = jax.lax.platform_dependent(
                params,
                x,
                before,
                cpu=partial(features_first.recur, self.reverse),
                default=lambda *given: recur(*arguments[:3], *given, None),
            )
        else:
            states, last = recur(*arguments)
        outputs = states if mask is None else jnp.where(mask, states, 0)
        return outputs.astype(self.dtype), last if self.kind == "lstm" else last[0]


def orthogonal_gates(key: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
    """Return a kernel [H, G x H] of which each of the G parts is orthogonal."""
    size, width = shape
    draw = nn.initializers.orthogonal()
    parts = [draw(k, (size, size)) for k in jax.random.split(key, width // size)]
    return jnp.concatenate(parts, -1).astype(dtype)  # drawn in float32: there is no narrower form


def product(subscripts: str, a: jax.Array, b: jax.Array, dtype: Dtype) -> jax.Array:
    """Return the einsum of two arrays rounded to a type, in float32."""
    return jnp.einsum(
        subscripts, a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def recur(kind, reverse, dtype, params, x, state, mask):
    """Run a layer over time.

    Args:
      kind, reverse, dtype: as of `Layer`.
      params: its parameters, by name.
      x: inputs [T, B, F].
      state: a tuple of float32 [B, H], of which the first is the cell's output.
      mask: bool [T, B, 1], false where the state stays as it is; None for true everywhere.

    Returns:
      The output after each step, float32 [T, B, H], and the last state.
    """
    return recur_forward(kind, reverse, dtype, params, x, state, mask)[0]


def recur_forward(kind, reverse, dtype, params, x, state, mask):
    """Return what `recur` does, and what its derivative needs."""
    projected = product("tbf,fg->tbg", x, params["input_kernel"], dtype)
    bias = params["bias"].astype(jnp.float32)[None]

    # The bias is added in the loop: before it that would be another pass through memory.
    def step(before, inputs):
        projected, mask = inputs
        projected += bias
        hidden = product("bh,hg->bg", before[0], params["hidden_kernel"], dtype)
        gates = combine(kind, projected, hidden, params)
        after = advance(kind, mask, gates, before)
        return after, (after[0], before, gates)

    last, (outputs, before, gates) = jax.lax.scan(step, state, (projected, mask), reverse=reverse)
    return (outputs, last), (params, x, before, gates, mask)


def _recur_backward(kind, reverse, dtype, saved, cotangents):
    """Return the cotangents of the arguments of `recur`."""
    params, x, before, gates, mask = saved
    d_outputs, d_last = cotangents
    transposed = params["hidden_kernel"].T  # once, and not at each step

    # Little is saved and much computed again, and the gates' cotangents take the gates' own place:
    # memory costs more than arithmetic.
    def step(carry, inputs):
        d_after, buffer = carry
        t, before, mask, d_output = inputs
        gates = jax.lax.dynamic_index_in_dim(buffer, t, keepdims=False)
        _, pull = jax.vjp(partial(advance, kind, mask), gates, before)
        d_gates, d_before = pull((d_after[0] + d_output, *d_after[1:]))
        _, d_hidden = _spread(kind, d_gates)
        d_hidden = product("bg,gh->bh", d_hidden, transposed, dtype)
        d_before = (d_before[0] + d_hidden, *d_before[1:])
        return (d_before, jax.lax.dynamic_update_index_in_dim(buffer, d_gates, t, 0)), None

    inputs = (jnp.arange(len(gates)), before, mask, d_outputs)
    (d_state, d_gates), _ = jax.lax.scan(step, (d_last, gates), inputs, reverse=not reverse)
    d_projected, d_hidden = _spread(kind, d_gates)
    # Of matrices, for which XLA need not copy the gates' cotangents, as it does of [T, B, ...].
    flat = lambda a: a.reshape(-1, a.shape[-1])
    d_params = {
        "input_kernel": product("nf,ng->fg", flat(x), flat(d_projected), dtype),
        "hidden_kernel": product("nh,ng->hg", flat(before[0]), flat(d_hidden), dtype),
        "bias": d_projected.sum((0, 1)),
    }
    if kind == "gru":
        d_params["hidden_bias"] = d_hidden.sum((0, 1))[-params["hidden_bias"].size :]
    d_params = jax.tree.map(lambda d, p: d.astype(p.dtype), d_params, dict(params))
    d_x = product("tbg,fg->tbf", d_projected, params["input_kernel"], dtype).astype(x.dtype)
    return d_params, d_x, d_state, None


recur.defvjp(recur_forward, _recur_backward)


def combine(kind, projected, hidden, params):
    """Return the gates before their nonlinearities: [B, G x H], or of the GRU's r, z, n, n' 4 H."""
    if kind != "gru":
        return projected + hidden
    both = 2 * projected.shape[-1] // 3  # r and z; what the reset gate parts stays apart
    sums = projected[:, :both] + hidden[:, :both]
    hidden_n = hidden[:, both:] + params["hidden_bias"].astype(jnp.float32)[None]
    return jnp.concatenate([sums, projected[:, both:], hidden_n], -1)


def _spread(kind, d_gates):
    """Return the cotangents of `projected` and `hidden` of `combine`, with any axes in front."""
    if kind != "gru":
        return d_gates, d_gates
    sums, d_n, d_hidden_n = jnp.split(d_gates, np.array([2, 3]) * (d_gates.shape[-1] // 4), -1)
    return jnp.concatenate([sums, d_n], -1), jnp.concatenate([sums, d_hidden_n], -1)


def advance(kind, mask, gates, before):
    """Return the state after a step, which is that before it where the mask is false."""
    after = cell(kind, gates, before)
    if mask is None:
        return after
    return tuple(jnp.where(mask, new, old) for new, old in zip(after, before, strict=True))


def cell(kind, gates, state):
    """Return the state after a step.

    A sigmoid is 1/2 + tanh(x / 2) / 2, of all gates at once: XLA makes of a sigmoid of each part
    code for the CPU that takes several times as long.
    """
    if kind == "rnn":
        return (jnp.tanh(gates),)
    size = gates.shape[-1] // 4
    if kind == "lstm":
        halves = np.repeat(features_first.HALVES[:, 0], size)
        tangents = jnp.split(jnp.tanh(gates * halves[None]), 4, -1)
        return features_first.advance(tangents, state[1])
    r, z = jnp.split(0.5 + 0.5 * jnp.tanh(0.5 * gates[..., : 2 * size]), 2, -1)
    n, hidden_n = jnp.split(gates[..., 2 * size :], 2, -1)
    n = jnp.tanh(n + r * hidden_n)
    return (n + z * (state[0] - n),)


def from_torch(
    state_dict: Mapping[str, Any], kind: str, layers: int = 1, bidirectional: bool = False
) -> dict[str, Any]:
    """Return the parameters of a `Recurrent` with the weights of torch.nn.RNN, LSTM or GRU.

    torch has two biases where one does; here they are added, all but those of the GRU's n, between
    which the reset gate stands. torch.nn.RNN is that with tanh, which its weights cannot tell.

    Args:
      state_dict: arrays by torch's names, `weight_ih_l0` and so on. It is left as it is.
      kind, layers, bidirectional: as of `Recurrent`.

    Returns:
      What goes under `params`, as float32 numpy arrays of their own.

    Raises:
      InputError: the weights do not fit; the one message names all that are missing, that have no
        place here and that have another shape.
    """
    _check_kind(kind)
    given = {key: np.asarray(array) for key, array in state_dict.items()}
    first = given.get("weight_hh_l0")
    size = first.shape[-1] if first is not None and first.ndim else 0
    inputs = given["weight_ih_l0"].shape[-1] if np.ndim(given.get("weight_ih_l0", 0)) else 0
    width = GATES[kind] * size
    names = {
        f"layer{i}{suffix}": f"l{i}{suffix}"
        for i in range(layers)
        for suffix in ("", "_reverse")[: 1 + bidirectional]
    }
    wanted: dict[str, tuple[int, ...]] = {}
    for name, ending in names.items():
        entering = inputs if name in ("layer0", "layer0_reverse") else size * (1 + bidirectional)
        wanted[f"weight_ih_{ending}"] = (width, entering)
        wanted[f"weight_hh_{ending}"] = (width, size)
        wanted[f"bias_ih_{ending}"] = wanted[f"bias_hh_{ending}"] = (width,)
    wrong = [f"{key} {list(shape)} is missing" for key, shape in wanted.items() if key not in given]
    wrong += [
        f"{key} {list(a.shape)} has no place" for key, a in given.items() if key not in wanted
    ]
    wrong += [
        f"{key} is {list(given[key].shape)} instead of {list(shape)}"
        for key, shape in wanted.items()
        if key in given and given[key].shape != shape
    ]
    if wrong:
        ways = "both directions" if bidirectional else "one direction"
        raise InputError(
            f"the weights do not fit {layers} layers of {kind} in {ways}: {'; '.join(wrong)}"
        )
    params = {}
    for name, ending in names.items():
        weight_ih, weight_hh, bias, bias_hh = (
            np.array(given[f"{leaf}_{ending}"], np.float32)
            for leaf in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        added = 2 * size if kind == "gru" else width
        bias[:added] += bias_hh[:added]
        params[name] = {
            "input_kernel": np.array(weight_ih.T, order="C"),
            "hidden_kernel": np.array(weight_hh.T, order="C"),
            "bias": bias,
        }
        if kind == "gru":
            params[name]["hidden_bias"] = bias_hh[added:]
    return params


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the parameters of a `Recurrent` as torch.nn.RNN, LSTM or GRU name them.

    Each bias goes to `bias_ih`, and `bias_hh` is zero but for the GRU's n; `from_torch` gives the
    same parameters back.

    Raises:
      InputError: the parameters are not those of a `Recurrent`.
    """
    state_dict = {}
    for name, layer in params.items():
        leaves = {leaf: np.asarray(array) for leaf, array in layer.items()}
        if not LAYER_LEAVES <= leaves.keys() <= LAYER_LEAVES | {"hidden_bias"}:
            raise InputError(f"{name} with {', '.join(leaves)} is no layer of a recurrent network")
        ending = name.replace("layer", "l", 1)
        bias_hh = np.zeros_like(leaves["bias"])
        if "hidden_bias" in leaves:
            bias_hh[-leaves["hidden_bias"].size :] = leaves["hidden_bias"]
        state_dict[f"weight_ih_{ending}"] = np.array(leaves["input_kernel"].T, order="C")
        state_dict[f"weight_hh_{ending}"] = np.array(leaves["hidden_kernel"].T, order="C")
        state_dict[f"bias_ih_{ending}"] = np.array(leaves["bias"])
        state_dict[f"bias_hh_{ending}"] = bias_hh
    return state_dict


LAYER_LEAVES = {"input_kernel", "hidden_kernel", "bias"}
