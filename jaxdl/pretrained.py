"""Weights that torchvision and timm publish, in and out of jaxdl's networks, strictly.

    variables = pretrained.load("resnet50", "resnet50.safetensors")
    logits = jaxdl.models.create("resnet50").apply(variables, images, train=False)
    pretrained.save("mine.safetensors", pretrained.to_torch("resnet50", variables))

Each family's file in `jaxdl.models` has a table that says where its layers stand in the published
files (`WEIGHTS`). A file that does not fit a network to the last array is refused in one error that
names all that is wrong with it.

`preprocessing(name)` tells how the images have to be prepared that the weights were trained on.
"""

import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from jaxdl import InputError, models
from jaxdl.data.images import Preprocess
from jaxdl.published import NORM, Images, Permutation, Rows, Weights

StateDict = dict[str, np.ndarray]

# Here and there, by collection and leaf. torch's BatchNorm also counts the batches it has seen,
# which only a norm without a momentum would use: ignored when read, and not written.
LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
COUNTER = re.compile(r"(.*\.)?num_batches_tracked")

# What DataParallel and torch.compile put before every name.
WRAPPERS = re.compile(r"((module|_orig_mod)\.)+")

# torch has since forbidden the dots in module names with which the DenseNets were published.
OLD_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)")


class Preprocessing(Images):
    """What is done to an image before a network sees it; `Images` names the attributes.

    `host()` resizes and cuts, and `jaxdl.augment.normalize` does the rest.
    """

    def host(self) -> Preprocess:
        """Return the host's part, from encoded images to uint8 [crop, crop, 3]."""
        share = self.crop / self.resize
        return Preprocess(self.crop, 3, share, interpolation=self.interpolation)


class Target(NamedTuple):
    """Where an array of a network's variables comes from, and what it has to be."""

    key: str
    permutation: Permutation
    leaf: jax.ShapeDtypeStruct

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape it is published in; a dense layer's kernel may be one of 1x1."""
        ones = (1,) * (len(self.permutation) - len(self.leaf.shape))
        here = (*ones, *self.leaf.shape)
        return tuple(here[axis] for axis in np.argsort(self.permutation))

    def to_flax(self, array: np.ndarray) -> np.ndarray:
        """Return a published array as a new one that fits here."""
        array = array.transpose(self.permutation).reshape(self.leaf.shape)
        return np.array(array, self.leaf.dtype, order="C")

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Return an array from here as a new one that fits there."""
        order = np.argsort(self.permutation)
        here = [self.shape[axis] for axis in self.permutation]
        return np.array(array.reshape(here).transpose(order), order="C")


def preprocessing(name: str) -> Preprocessing:
    """Return how images are prepared for a network's published weights.

    A network may have been published again with other preprocessing, which nothing in a file tells:
    torchvision's IMAGENET1K_V2 weights of resnet50, 101 and 152 take `_replace(resize=232)`.

    Raises:
      InputError: the network is not among `names()`.
    """
    return Preprocessing(*_published(name).images)


def names() -> tuple[str, ...]:
    """Return the names of the models whose published weights can be read, sorted."""
    return tuple(sorted(models.WEIGHTS))


def from_torch(
    name: str,
    state_dict: Mapping[str, Any],
    *,
    num_classes: int | None = None,
    key: jax.Array | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """Return the variables of a network with weights as torchvision or timm name them.

    timm's names are those of `inception_v4`, `inception_resnet_v2` and the `resnet*_v2`, which it
    calls `resnetv2_*`; torchvision's those of all others, with both spellings of the DenseNets.
    Batch counters are ignored, and auxiliary heads if the network is built without them.

    Args:
      name: one of `names()`.
      state_dict: arrays by name. It is left as it is, and no memory is shared with it.
      num_classes: number of logits; the network's default when None. See `num_classes_of`. With
        0 the network has no last layer, and that of the weights is ignored.
      key: draws anew what the weights do not offer: the last layers, if they are for another
        number of classes, and auxiliary heads, if they have none. Without a key that is an
        error like any other.
      kwargs: what else `models.create` takes for this name, such as `aux_logits`. What changes
        shapes, as `small_images` does in some networks, will not fit.

    Returns:
      The variables as `init` gives them, as numpy arrays of the network's types.

    Raises:
      InputError: the weights do not fit. The one message counts the arrays that are missing, that
        the network does not have, that have another shape, that are not of floating point and
        that a DenseNet's file has in both spellings, and names the first ten of each.
    """
    published = _published(name)
    source = {OLD_DENSENET_KEY.sub(r"\1\2", k): np.asarray(v) for k, v in state_dict.items()}
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    init, targets = _network(name, kwargs)

    wanted = {target.key: target.shape for target in targets.values()}
    ignored = {k for k in source if COUNTER.fullmatch(k)}
    if not any(map(published.is_auxiliary, wanted)):
        ignored |= {k for k in source if published.is_auxiliary(k)}
    if num_classes == 0:
        ignored |= {k for k in source if k.rpartition(".")[0] == published.heads[0]}
    given = {k: array for k, array in source.items() if k not in ignored}
    anew = _heads_of_other_classes(published, given, wanted)
    if not any(map(published.is_auxiliary, given)):
        anew |= {k for k in wanted if published.is_auxiliary(k)}
    if key is not None:
        given = {k: array for k, array in given.items() if k not in anew}
        wanted = {k: shape for k, shape in wanted.items() if k not in anew}

    wrong = _differences({k: array.shape for k, array in given.items()}, wanted)
    wrong["not of floating point"] = [
        f"{k} {array.dtype}"
        for k, array in given.items()
        if not jnp.issubdtype(array.dtype, jnp.floating)
    ]
    wrong["there in both spellings"] = [
        k for k in state_dict if k not in source and OLD_DENSENET_KEY.sub(r"\1\2", k) in state_dict
    ]
    if any(wrong.values()):
        hint = "; give key=jax.random.key(0) to draw new heads" if anew and key is None else ""
        added = WRAPPERS.match(next(iter(source), ""))
        if added and all(k.startswith(added[0]) for k in source):
            hint = f"; all names begin with {added[0]!r}, which torch's wrappers add: take it off"
        raise InputError(f"the weights do not fit {name}: {_listing(wrong)}{hint}")

    variables = {
        path: target.to_flax(given[target.key])
        for path, target in targets.items()
        if target.key in given
    }
    if len(variables) < len(targets):

        @jax.jit  # which leaves out what is not returned: all but the new heads
        def draw(key):
            return {path: leaf for path, leaf in init(key).items() if path not in variables}

        variables |= jax.device_get(draw(key))
    return traverse_util.unflatten_dict(variables)


def num_classes_of(name: str, state_dict: Mapping[str, Any]) -> int:
    """Return the number of classes that weights are for.

    That is the network's default if they have no last layer, as `from_torch` will then tell.

    Raises:
      InputError: the network is not among `names()`.
    """
    bias = np.asarray(state_dict.get(f"{_published(name).heads[0]}.bias", 0))
    default: Any = models.create(name)
    return len(bias) if bias.ndim == 1 else default.num_classes


def to_torch(name: str, variables: Mapping[str, Any], **kwargs: Any) -> StateDict:
    """Return the weights of a network as torchvision or timm name them: undoes `from_torch`.

    The batch counters of torch's norms are not among them: torch's own strict loading of such a
    dictionary sets them to zero.

    Args:
      name: one of `names()`.
      variables: those of the network, of any number of classes, with or without auxiliary heads.
      kwargs: what else the network was created with, where that changes its shapes, among it
        `num_classes=0`.

    Returns:
      New arrays, of the types that the variables have.

    Raises:
      InputError: the variables are not those of that network; the message is as `from_torch`'s.
    """
    published = _published(name)
    arrays = {path: np.asarray(leaf) for path, leaf in _flat(variables).items()}
    by_key = {_place(published.rows, path)[0]: array for path, array in arrays.items()}
    kwargs.setdefault("num_classes", num_classes_of(name, by_key))
    if published.heads[1:]:
        kwargs["aux_logits"] = any(map(published.is_auxiliary, by_key))
    _, targets = _network(name, kwargs)
    wrong = _differences(
        {"/".join(path): array.shape for path, array in arrays.items()},
        {"/".join(path): target.leaf.shape for path, target in targets.items()},
    )
    if any(wrong.values()):
        raise InputError(f"the variables are not those of {name}: {_listing(wrong)}")
    return {target.key: target.to_torch(arrays[path]) for path, target in targets.items()}


def _published(name: str) -> Weights:
    if name not in models.WEIGHTS:
        raise InputError(f"no published weights for {name!r}; there are for {', '.join(names())}")
    return models.WEIGHTS[name]


def _flat(tree: Any) -> dict[tuple[str, ...], Any]:
    return traverse_util.flatten_dict(tree)


def _network(
    name: str, kwargs: dict[str, Any]
) -> tuple[Callable[[jax.Array], Any], dict[tuple[str, ...], Target]]:
    """Return the network's initializer, (key) -> {path: array}, and its targets by path."""
    model = models.create(name, **kwargs)
    rows, _, images = models.WEIGHTS[name]

    def init(key):
        return _flat(model.init(key, jnp.zeros((1, images.crop, images.crop, 3)), train=False))

    targets = {}
    for path, leaf in jax.eval_shape(lambda: init(jax.random.key(0))).items():
        key, permutation = _place(rows, path)
        targets[path] = Target(key, permutation, leaf)
    return init, targets


def _place(rows: Rows, path: tuple[str, ...]) -> tuple[str, Permutation]:
    """Return the published name of the array at this path, and the permutation of its axes.

    What no row covers keeps its own name, under which it will be missing.
    """
    collection, *layers, leaf = path
    for pattern, target, permutation in rows:
        match = re.fullmatch(pattern, "/".join(layers))
        if match and (collection, leaf) in LEAVES:
            key = f"{match.expand(target)}.{LEAVES[collection, leaf]}"
            return key, permutation if leaf == "kernel" else NORM
    return "/".join(path), NORM


def _heads_of_other_classes(
    published: Weights, given: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]]
) -> set[str]:
    """Return the names of the last layers' arrays that differ in the number of classes alone."""
    last = {f"{head}.{leaf}" for head in published.heads for leaf in ("weight", "bias")}
    return {
        key
        for key in last & given.keys() & wanted.keys()
        if given[key].shape[:1] != wanted[key][:1] and given[key].shape[1:] == wanted[key][1:]
    }


def _differences(
    given: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, list[str]]:
    """Return how two sets of shapes by name differ: what is wrong, by the kind of difference."""
    return {
        "missing": [f"{k} {list(shape)}" for k, shape in wanted.items() if k not in given],
        "not of this network": [f"{k} {list(s)}" for k, s in given.items() if k not in wanted],
        "of another shape": [
            f"{k} {list(given[k])} instead of {list(shape)}"
            for k, shape in wanted.items()
            if k in given and given[k] != shape
        ],
    }


def _listing(wrong: Mapping[str, list[str]]) -> str:
    """Return one line with the number and the first ten of each kind."""
    return "; ".join(
        f"{len(found)} {kind}: {', '.join(found[:10])}{', ...' if len(found) > 10 else ''}"
        for kind, found in wrong.items()
        if found
    )


def load(name: str, path: str | Path, **kwargs: Any) -> dict[str, Any]:
    """Return the variables of a network from a file of published weights; see `read`, `from_torch`.

    Raises:
      InputError: as those do, with the path before the message.
    """
    _published(name)  # an unknown name should not cost the reading of a large file
    state_dict = read(path)
    try:
        return from_torch(name, state_dict, **kwargs)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read(path: str | Path) -> StateDict:
    """Return the arrays in a file, by name. No file can make it run code.

    Args:
      path: ends in .safetensors, .npz, or .pth or .pt, which are torch's own and need torch.

    Raises:
      InputError: there is no such file, or it is truncated, damaged or of another kind, or holds
        objects that are not arrays, or it is torch's and there is no torch or an old one.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise InputError(f"{path}: weights are in files that end in {', '.join(READERS)}")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        return READERS[path.suffix](path)
    except InputError:
        raise
    except Exception as error:  # each library has its own for each way in which a file is broken
        # The first sentence: the next are on how to load the file unsafely.
        reason = re.split(r"\.\s|\n", str(error).strip() or type(error).__name__)[0]
        raise InputError(
            f"{path} is no whole {path.suffix} file of arrays alone ({reason})"
        ) from error


def _read_npz(path: Path) -> StateDict:
    # numpy leaves a broken file open if it has opened it.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def _read_torch(path: Path) -> StateDict:
    try:
        torch = importlib.import_module("torch")  # so that type checkers need not have it
    except ImportError:
        raise InputError(
            f"{path} is torch's own kind of file, which takes torch to read: install it, or get "
            "the weights as .safetensors, which takes nothing more"
        ) from None
    # Before 2.6 weights_only could be got around (CVE-2025-32434).
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        raise InputError(f"reading {path} safely takes torch 2.6 or newer, not {torch.__version__}")
    state_dict = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state_dict, Mapping):
        raise InputError(f"{path} holds a {type(state_dict).__name__} instead of arrays by name")
    others = [k for k, value in state_dict.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise InputError(f"{path} holds more than arrays: {', '.join(map(str, others[:10]))}")
    # numpy knows no bfloat16, which float32 holds to the last bit.
    tensors = {k: t.float() if t.dtype == torch.bfloat16 else t for k, t in state_dict.items()}
    return {k: t.detach().numpy() for k, t in tensors.items()}


READERS: dict[str, Callable[[Path], StateDict]] = {
    ".safetensors": safetensors.numpy.load_file,
    ".npz": _read_npz,
    ".pth": _read_torch,
    ".pt": _read_torch,
}


def save(path: str | Path, state_dict: Mapping[str, Any]) -> None:
    """Write arrays by name, such as `to_torch` returns.

    Args:
      path: ends in .safetensors or .npz.
      state_dict: the arrays. In .npz they cannot be bfloat16.

    Raises:
      InputError: the path ends otherwise, or the file cannot hold the arrays.
    """
    path = Path(path)
    # safetensors writes the memory of an array in whatever order it lies.
    arrays = {k: np.asarray(array, order="C") for k, array in state_dict.items()}
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(arrays, path)
    elif path.suffix == ".npz":
        unknown = [k for k, array in arrays.items() if array.dtype.kind == "V"]
        if unknown:
            raise InputError(f"{path}: {unknown[0]} is bfloat16, which only .safetensors holds")
        # mypy takes an array's name for the keyword `allow_pickle`.
        np.savez(path, **arrays)  # type: ignore[arg-type]  # none is called `allow_pickle`
    else:
        raise InputError(f"{path}: weights are saved to files that end in .safetensors or .npz")
