"""States as trees of plain arrays, in which form they are saved, and the fingerprints of trees."""

from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import InputError
from jaxdl.task import State


def from_state(state: State) -> dict[str, Any]:
    """A State as nested dicts of plain arrays: no named tuples, no typed PRNG keys."""
    plain = state._replace(key=jax.random.key_data(state.key))
    return flax.serialization.to_state_dict(plain)


def to_state(tree: dict[str, Any], template: State, name: str) -> State:
    """The reverse of `from_state`; types, structure and shardings are the template's.

    Args:
      tree: what was a State.
      template: a State with the structure, shapes, dtypes and shardings wanted.
      name: what an error calls the tree.

    Raises:
      InputError: they differ, and where they first do.
    """
    check_same_shapes(tree, from_state(template), name)
    plain = template._replace(key=jax.random.key_data(template.key))
    state = flax.serialization.from_state_dict(plain, tree)
    state = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), state, plain)
    impl = jax.random.key_impl(template.key)
    return state._replace(key=jax.random.wrap_key_data(state.key, impl=impl))


def check_same_shapes(saved: Any, wanted: Any, name: str) -> None:
    """Raises InputError where a tree of arrays, or of their shapes, is not like another."""
    there, here = _shapes(saved), _shapes(wanted)
    for leaf in sorted(there.keys() | here.keys()):
        if there.get(leaf) != here.get(leaf):
            raise InputError(
                f"{name} is of another model or optimizer: {leaf} is "
                f"{there.get(leaf, 'absent')} there and {here.get(leaf, 'absent')} here"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def to_words(pair: tuple[float, float]) -> np.ndarray:
    """Two doubles as uint32 [4], which JAX does not round."""
    return np.asarray(pair, np.float64).view(np.uint32)


def from_words(words: np.ndarray) -> tuple[float, float]:
    """The reverse of `to_words`."""
    total, count = np.asarray(words, np.uint32).view(np.float64)
    return float(total), float(count)


def fingerprint(tree: Any) -> Any:
    """uint32 [] that changes with any change of a single word of any array.

    Words are summed modulo 2^32 with odd weights: exact, and the same in whatever order, on however
    many devices, and on the host: numpy arrays are summed there, and take no room on a device, and
    so are arrays of a CPU, for which the program would take seconds to compile.
    """
    leaves = [(path, _in_place(leaf)) for path, leaf in jax.tree.leaves_with_path(tree)]
    if all(leaf is not None for _, leaf in leaves):
        return _fingerprint_on_host(leaves)
    return _fingerprint_on_device(tree)


def _in_place(leaf: Any) -> Any:
    """A leaf as NumPy reads it with no copy; None for what is on a device or in shards."""
    if isinstance(leaf, jax.Array):
        devices: Any = leaf.sharding.device_set
        of_cpu = all(device.platform == "cpu" for device in devices)
        # Of the array itself a view would be kept, and what has a view cannot be donated.
        leaf = leaf.addressable_data(0) if of_cpu and leaf.is_fully_replicated else None
        return leaf if leaf is None else np.asarray(leaf)
    return leaf


@jax.jit
def _fingerprint_on_device(tree: Any) -> jax.Array:
    total = jnp.uint32(0)
    for place, (path, leaf) in enumerate(jax.tree.leaves_with_path(tree)):
        if leaf.dtype == jnp.bool_:
            leaf = leaf.astype(jnp.uint8)
        words = jax.lax.bitcast_convert_type(leaf, _word(leaf.dtype)).astype(jnp.uint32).ravel()
        weights = jax.lax.iota(jnp.uint32, words.size) * 2 + jnp.uint32(_first_weight(path, place))
        total += jnp.sum(words * weights, dtype=jnp.uint32)
    return total


def _fingerprint_on_host(leaves: list[tuple[Any, Any]]) -> np.ndarray:
    total = sum(
        fingerprint_of_array(path, place, leaf) for place, (path, leaf) in enumerate(leaves)
    )
    return np.asarray(total % 2**32, np.uint32)


def fingerprint_of_array(path: Any, place: int, array: np.ndarray) -> int:
    """What one array of a tree adds to its `fingerprint`, before the modulus.

    Args:
      path: its path in the tree, as `jax.tree.leaves_with_path` gives it.
      place: of how many it comes after there.
      array: on the host.
    """
    total, chunk = 0, 1 << 22
    words = np.ascontiguousarray(array).ravel().view(_word(array.dtype))
    for start in range(0, words.size, chunk):
        part = words[start : start + chunk].astype(np.uint32)
        weights = np.arange(start, start + part.size, dtype=np.uint32) * np.uint32(2)
        weights += np.uint32(_first_weight(path, place))
        total += int(np.sum(part * weights, dtype=np.uint32))
    return total


def _word(dtype: Any) -> Any:
    """The unsigned integers that an array's bytes are summed as; 8 bytes are two of them."""
    return np.dtype(f"uint{8 * min(np.dtype(dtype).itemsize, 4)}")


def _first_weight(path: Any, place: int) -> int:
    name = sum(map(ord, jax.tree_util.keystr(path))) + place
    return (2 * name + 1) % 2**32
