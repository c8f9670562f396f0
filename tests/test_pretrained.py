"""Published weights in and out: strict, exact, harmless, and with the images they know."""

import functools
import io
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from networks import assert_same_bits, contents, flat, recorded_weights, slow
from PIL import Image

from jaxdl import InputError, augment, models, pretrained

GOLDEN = Path(__file__).parent / "golden"
TRAINED_WITH_AUX = ("googlenet", "inception_v3")


@pytest.fixture(autouse=True, scope="module")
def _traced_once():
    """Each network of these tests is traced once, and not for every file that is read."""
    trace, traced = pretrained._network, {}

    def network(name, kwargs):
        key = name, tuple(sorted(kwargs.items()))
        if key not in traced:
            traced[key] = trace(name, kwargs)
        return traced[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "_network", network)
        yield


@functools.cache
def bits() -> np.ndarray:
    """Return floats no two of which are the same, in no memory of their own but once."""
    return np.arange(40_000_000, dtype=np.uint32).view(np.float32)


def distinct(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return a state dict of these shapes; arrays are unlike one another and in themselves."""
    state_dict = {}
    for key, shape in shapes.items():
        start, size = zlib.crc32(key.encode()) % 1_000_000, int(np.prod(shape))
        state_dict[key] = bits()[start : start + size].reshape(shape)
    return state_dict


def published(name: str) -> dict[str, np.ndarray]:
    """Return a state dict as published, with its counters."""
    return distinct(contents(name))


def uncounted(state_dict: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in state_dict.items() if not k.endswith("num_batches_tracked")}


# Both ways.


def test_every_published_network_is_recorded():
    recorded = {key.split("/")[0] for key in recorded_weights() if key.endswith("/contents")}
    assert recorded == set(pretrained.names()) <= set(models.names())


# A network of each table that is soon read; the others are what tells a table's numbers apart.
QUICK = ("vgg11", "vgg11_bn", "resnet18", "resnet18_v2", "googlenet")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else slow(name) for name in pretrained.names()]
)
def test_round_trip(name):
    shapes, kwargs = contents(name), {}
    if name in TRAINED_WITH_AUX:
        kwargs = {"aux_logits": True}
    if name.startswith("vgg"):  # half a gigabyte each, but for a sixteenth of the width
        kwargs = {"width": 4}
        shapes = {
            key: tuple(side // 16 if side % 64 == 0 else side for side in shape)
            for key, shape in shapes.items()
        }
    state_dict = distinct(shapes)
    variables = pretrained.from_torch(name, state_dict, **kwargs)

    expected = uncounted(state_dict)
    leaves = flat(variables)
    assert len(leaves) == len(expected)
    assert sum(a.size for a in leaves.values()) == sum(a.size for a in expected.values())
    assert_same_bits(pretrained.to_torch(name, variables, **kwargs), expected)


def test_both_spellings_of_densenet():
    state_dict = published("densenet121")
    old = {
        key.replace("norm1.", "norm.1.")
        .replace("norm2.", "norm.2.")
        .replace("conv1.", "conv.1.")
        .replace("conv2.", "conv.2."): array
        for key, array in state_dict.items()
    }
    assert "features.denseblock4.denselayer16.conv.2.weight" in old
    ours, theirs = (flat(pretrained.from_torch("densenet121", d)) for d in (state_dict, old))
    assert_same_bits(ours, theirs)
    assert_same_bits(
        pretrained.to_torch("densenet121", traverse_util.unflatten_dict(theirs, sep="/")),
        uncounted(state_dict),
    )


def test_types():
    """Arrays become the network's type, whatever theirs, and never share the file's memory."""
    shapes = contents("resnet18")
    state_dict = {k: np.ones(shape, np.float64) for k, shape in shapes.items()}
    variables = pretrained.from_torch("resnet18", state_dict, param_dtype=jnp.bfloat16)
    assert {a.dtype for a in jax.tree.leaves(variables["params"])} == {np.dtype(jnp.bfloat16)}
    assert {a.dtype for a in jax.tree.leaves(variables["batch_stats"])} == {np.dtype("float32")}
    assert pretrained.to_torch("resnet18", variables)["fc.bias"].dtype == jnp.bfloat16

    state_dict = {k: a.astype(np.float32) for k, a in state_dict.items()}
    variables = pretrained.from_torch("resnet18", state_dict)
    for leaf in jax.tree.leaves(variables):
        leaf[:] = 7
    assert all((array == 1).all() for array in state_dict.values())


# Heads.


def without_aux(state_dict: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in state_dict.items() if not k.startswith(("aux", "AuxLogits"))}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_on_either_side(name):
    both = published(name)
    neither = without_aux(both)
    load = functools.partial(pretrained.from_torch, name)
    plain = flat(load(neither))
    assert_same_bits(flat(load(both)), plain)
    assert not any("aux" in path.lower() for path in plain)

    count = len(uncounted(both)) - len(uncounted(neither))
    with pytest.raises(InputError, match=f"{count} missing: .*give key=jax.random.key"):
        load(neither, aux_logits=True)
    variables = flat(load(neither, aux_logits=True, key=jax.random.key(3)))
    assert len(variables) == len(plain) + count
    assert_same_bits({path: variables[path] for path in plain}, plain)
    new = {path: a for path, a in variables.items() if path not in plain}
    assert all("aux" in path.lower() for path in new)
    assert all(np.ptp(a) > 0 for path, a in new.items() if path.endswith("kernel"))

    # A part of a head is no head.
    part = next(key for key in both if key.startswith("aux") or key.startswith("AuxLogits"))
    with pytest.raises(InputError, match=f"{count - 1} missing: "):
        load({**neither, part: both[part]}, aux_logits=True, key=jax.random.key(3))


def test_heads_for_another_number_of_classes():
    state_dict = published("resnet18")
    with pytest.raises(InputError) as raised:
        pretrained.from_torch("resnet18", state_dict, num_classes=7)
    assert str(raised.value) == (
        "the weights do not fit resnet18: 2 of another shape: fc.bias [1000] instead of [7], "
        "fc.weight [1000, 512] instead of [7, 512]; give key=jax.random.key(0) to draw new heads"
    )

    key = jax.random.key(5)
    variables = pretrained.from_torch("resnet18", state_dict, num_classes=7, key=key)
    model: Any = models.create("resnet18", num_classes=7)
    image = jnp.zeros((1, 32, 32, 3))
    expected = jax.jit(lambda: model.init(key, image, train=False)["params"]["fc"])()
    assert_same_bits(variables["params"].pop("fc"), jax.device_get(expected))
    same = pretrained.from_torch("resnet18", state_dict, key=key)  # a head that fits is kept
    assert (same["params"].pop("fc")["bias"] == state_dict["fc.bias"]).all()
    assert_same_bits(flat(variables), flat(same))

    # Seven classes are what a file of seven classes has.
    seven = {k: a[:7] if k.startswith("fc.") else a for k, a in state_dict.items()}
    assert pretrained.num_classes_of("resnet18", seven) == 7
    assert pretrained.num_classes_of("resnet18", {}) == 1000
    variables = pretrained.from_torch("resnet18", seven, num_classes=7)
    assert_same_bits(pretrained.to_torch("resnet18", variables), uncounted(seven))


@pytest.mark.parametrize("name", ["resnet18", "googlenet"])
def test_without_classes_the_heads_are_left_out(name):
    state_dict = published(name)
    bare = pretrained.from_torch(name, state_dict, num_classes=0)
    whole = flat(pretrained.from_torch(name, state_dict))
    body = {path: array for path, array in whole.items() if not path.startswith("params/fc/")}
    assert len(body) == len(whole) - 2
    assert_same_bits(flat(bare), body)
    heads = ("fc.", "aux1.", "aux2.")
    rest = {k: a for k, a in uncounted(state_dict).items() if not k.startswith(heads)}
    assert_same_bits(pretrained.to_torch(name, bare, num_classes=0), rest)
    assert_same_bits(flat(pretrained.from_torch(name, rest, num_classes=0)), body)
    state_dict["spare.weight"] = np.zeros((2, 2), np.float32)
    with pytest.raises(
        InputError, match=r"fit \w+: 1 not of this network: spare\.weight \[2, 2\]$"
    ):
        pretrained.from_torch(name, state_dict, num_classes=0)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_wrappers_add_to_names_is_told(prefix):
    """DataParallel and torch.compile add it to every name; strict loading does not take it off."""
    state_dict = {prefix + key: array for key, array in published("resnet18").items()}
    with pytest.raises(InputError) as raised:
        pretrained.from_torch("resnet18", state_dict)
    assert str(raised.value).endswith(
        f"; all names begin with '{prefix}', which torch's wrappers add: take it off"
    )
    state_dict["fc.bias"] = state_dict.pop(f"{prefix}fc.bias")
    with pytest.raises(InputError) as raised:
        pretrained.from_torch("resnet18", state_dict)
    assert "take it off" not in str(raised.value)


def test_all_heads_are_for_another_number_of_classes():
    state_dict = published("googlenet")
    load = functools.partial(pretrained.from_torch, "googlenet", state_dict, aux_logits=True)
    variables = load(num_classes=7, key=jax.random.key(0))["params"]
    for head in (variables["fc"], variables["aux1"]["fc2"], variables["aux2"]["fc2"]):
        assert head["kernel"].shape == (1024, 7)
    assert_same_bits(variables["aux1"]["fc1"], load()["params"]["aux1"]["fc1"])


# What does not fit.


def test_all_that_does_not_fit_is_told_at_once():
    state_dict = published("resnet18")
    spoiled = dict(state_dict)
    del spoiled["bn1.weight"]
    del spoiled["layer3.1.conv2.weight"]
    spoiled["encoder.0.bias"] = np.zeros(3, np.float32)
    spoiled["conv1.weight"] = state_dict["conv1.weight"][:, :1]
    spoiled["bn1.bias"] = np.zeros(64, np.int64)
    before = {k: (a, a.copy()) for k, a in spoiled.items()}
    with pytest.raises(InputError) as raised:
        pretrained.from_torch("resnet18", spoiled)
    assert str(raised.value) == (
        "the weights do not fit resnet18: "
        "2 missing: bn1.weight [64], layer3.1.conv2.weight [256, 256, 3, 3]; "
        "1 not of this network: encoder.0.bias [3]; "
        "1 of another shape: conv1.weight [64, 1, 7, 7] instead of [64, 3, 7, 7]; "
        "1 not of floating point: bn1.bias int64"
    )
    assert spoiled.keys() == before.keys()
    assert all(spoiled[k] is a and (a == copy).all() for k, (a, copy) in before.items())


def test_weights_of_another_network():
    with pytest.raises(InputError) as raised:
        pretrained.from_torch("resnet18", published("resnet34"))
    message = str(raised.value)
    assert message.startswith("the weights do not fit resnet18: 80 not of this network: layer1.2.")
    assert message.count("layer") == 10
    assert message.endswith(", ...")
    with pytest.raises(InputError, match=r"\d+ missing: .*; \d+ not of this network: "):
        pretrained.from_torch("resnet50", published("alexnet"))
    with pytest.raises(InputError, match=r"^the weights do not fit alexnet: 16 missing: "):
        pretrained.from_torch("alexnet", {})


def test_both_spellings_in_one_file():
    state_dict = published("densenet121")
    key = "features.denseblock1.denselayer1.norm.1.weight"
    state_dict[key] = state_dict[key.replace("norm.1", "norm1")]
    with pytest.raises(InputError, match=f"121: 1 there in both spellings: {key}$"):
        pretrained.from_torch("densenet121", state_dict)


def test_variables_of_another_network():
    variables = pretrained.from_torch("resnet18", published("resnet18"))
    with pytest.raises(InputError) as raised:
        pretrained.to_torch("resnet34", variables)
    message = str(raised.value)
    assert message.startswith("the variables are not those of resnet34: 80 missing: ")
    variables["params"]["conv1"]["kernel"] = np.zeros((7, 7, 1, 64))
    variables["momentum"] = {"conv1": {"kernel": np.zeros(3)}}
    with pytest.raises(InputError) as raised:
        pretrained.to_torch("resnet18", variables)
    assert str(raised.value) == (
        "the variables are not those of resnet18: "
        "1 not of this network: momentum/conv1/kernel [3]; "
        "1 of another shape: params/conv1/kernel [7, 7, 1, 64] instead of [7, 7, 3, 64]"
    )


def test_networks_that_are_not_published(tmp_path):
    for call in (
        lambda: pretrained.from_torch("lenet5", {}),
        lambda: pretrained.to_torch("lenet5", {}),
        lambda: pretrained.load("lenet5", tmp_path / "absent.npz"),
        lambda: pretrained.preprocessing("lenet5"),
    ):
        with pytest.raises(InputError, match=r"^no published weights for 'lenet5'; .* resnet50,"):
            call()
    with pytest.raises(InputError, match="alexnet does not take aux_logits"):
        pretrained.from_torch("alexnet", {}, aux_logits=True)


def test_networks_for_small_images():
    """They take published weights where no parameter changes, and say what changes elsewhere."""
    googlenet = published("googlenet")
    small = pretrained.from_torch("googlenet", googlenet, small_images=True)
    assert_same_bits(flat(small), flat(pretrained.from_torch("googlenet", googlenet)))
    with pytest.raises(InputError, match=r"2 of another shape: .*\[4096, 9216\] instead of"):
        pretrained.from_torch("alexnet", published("alexnet"), small_images=True)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_load(tmp_path, suffix):
    state_dict = published("resnet18")
    path = tmp_path / f"resnet18{suffix}"
    pretrained.save(path, state_dict)
    expected = flat(pretrained.from_torch("resnet18", state_dict))
    assert_same_bits(flat(pretrained.load("resnet18", path)), expected)
    with pytest.raises(InputError, match=rf"^{path}: the weights do not fit alexnet: 16 missing"):
        pretrained.load("alexnet", path)


# Images.


def photograph(height: int, width: int) -> bytes:
    """Return the picture that record_pretrained.py drew."""
    noise = np.random.RandomState(width).randint(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("name", pretrained.names())
def test_images_are_those_the_weights_know(name):
    how = pretrained.preprocessing(name)
    image = augment.normalize(jnp.asarray(how.host()(photograph(301, 407))), how.mean, how.std)
    assert image.shape == (how.crop, how.crop, 3)
    # A grey level is 0.008 at least.
    np.testing.assert_allclose(image[::32, ::32], recorded_weights()[f"{name}/image"], atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(23, 37), (41, 18), (20, 20), (7, 9)])
def test_resizing_is_torchvisions_to_the_bit(interpolation, shape):
    how = pretrained.Preprocessing(17, 14, interpolation, (0, 0, 0), (1, 1, 1))
    expected = recorded_weights()[f"{interpolation}/{shape[0]}x{shape[1]}"]
    np.testing.assert_array_equal(how.host()(photograph(*shape)), expected)
