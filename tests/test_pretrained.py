"""Published weights in and out: strict, exact, harmless, and with the images they know."""

import functools
import io
import os
import pickle
import sys
import types
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from golden.weights import images, weight
from PIL import Image

from experiments import predict
from jaxdl import InputError, augment, models, pretrained

GOLDEN = Path(__file__).parent / "golden"
TRAINED_WITH_AUX = ("googlenet", "inception_v3")


@pytest.fixture(scope="module")
def golden():
    """What record_pretrained.py recorded of torchvision and timm."""
    with np.load(GOLDEN / "pretrained.npz") as arrays:
        return dict(arrays)


def contents(golden: Any, name: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all that the published network stores, by name."""
    lines = bytes(golden[f"{name}/contents"]).decode().splitlines()
    return {key: tuple(map(int, shape)) for key, *shape in map(str.split, lines)}


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


def published(golden: Any, name: str, **head: int) -> dict[str, np.ndarray]:
    """Return a state dict as published, with its counters."""
    return distinct(contents(golden, name))


def uncounted(state_dict: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in state_dict.items() if not k.endswith("num_batches_tracked")}


def flat(variables: Any) -> dict[str, Any]:
    return dict(traverse_util.flatten_dict(variables, sep="/"))


def assert_same_bits(got: Any, expected: Any) -> None:
    assert got.keys() == expected.keys()
    for key, array in got.items():
        assert array.shape == expected[key].shape, key
        assert array.dtype == expected[key].dtype, key
        assert np.ascontiguousarray(array).tobytes() == expected[key].tobytes(), key


# Both ways.


def test_every_published_network_is_recorded(golden):
    recorded = {key.split("/")[0] for key in golden if key.endswith("/contents")}
    assert recorded == set(pretrained.names()) <= set(models.names())


@pytest.mark.parametrize("name", pretrained.names())
def test_round_trip(golden, name):
    shapes, kwargs = contents(golden, name), {}
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


@pytest.mark.parametrize(
    ("file", "name", "size", "kwargs"),
    [
        ("classic", "alexnet", 224, {}),
        ("classic", "vgg16_bn", 75, {"width": 16}),
        ("classic", "densenet121", 75, {}),
        ("inception", "googlenet", 97, {}),
        ("inception", "inception_v3", 110, {}),
        ("inception", "inception_v4", 110, {}),
        ("inception", "inception_resnet_v2", 110, {}),
        ("resnet", "resnet18", 64, {}),
        ("resnet", "resnet18_v2", 64, {}),
    ],
)
def test_logits_are_those_recorded(golden, file, name, size, kwargs):
    """One network of each table: every array has to be where the published network has it."""
    shapes = without_aux(uncounted(contents(golden, name)))
    divisor = 64 // kwargs.get("width", 64)
    shapes = {
        key: tuple(side // divisor if side % 64 == 0 else side for side in shape)
        for key, shape in shapes.items()
    }
    *_, head_weight, head_bias = shapes
    shapes |= {key: (10, *shapes[key][1:]) for key in (head_weight, head_bias)}
    gain = np.float32(2**0.5 if file == "inception" else 1)  # of that recorder's convolutions
    state_dict = {
        key: gain * weight(key, shape) if len(shape) == 4 else weight(key, shape)
        for key, shape in shapes.items()
    }
    variables = pretrained.from_torch(name, state_dict, num_classes=10, **kwargs)
    model: Any = models.create(name, num_classes=10, **kwargs)
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, images(size))
    with np.load(GOLDEN / f"{file}.npz") as recorded:
        expected = recorded[f"{name}/logits/{size}"]
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


def test_both_spellings_of_densenet(golden):
    state_dict = published(golden, "densenet121")
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


def test_types(golden):
    """Arrays become the network's type, whatever theirs, and never share the file's memory."""
    shapes = contents(golden, "resnet18")
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


@pytest.mark.parametrize("name", TRAINED_WITH_AUX)
def test_auxiliary_heads_on_either_side(golden, name):
    both = published(golden, name)
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


def test_heads_for_another_number_of_classes(golden):
    state_dict = published(golden, "resnet18")
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
def test_without_classes_the_heads_are_left_out(golden, name):
    state_dict = published(golden, name)
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
def test_what_wrappers_add_to_names_is_told(golden, prefix):
    """DataParallel and torch.compile add it to every name; strict loading does not take it off."""
    state_dict = {prefix + key: array for key, array in published(golden, "resnet18").items()}
    with pytest.raises(InputError) as raised:
        pretrained.from_torch("resnet18", state_dict)
    assert str(raised.value).endswith(
        f"; all names begin with '{prefix}', which torch's wrappers add: take it off"
    )
    state_dict["fc.bias"] = state_dict.pop(f"{prefix}fc.bias")
    with pytest.raises(InputError) as raised:
        pretrained.from_torch("resnet18", state_dict)
    assert "take it off" not in str(raised.value)


def test_all_heads_are_for_another_number_of_classes(golden):
    state_dict = published(golden, "googlenet")
    load = functools.partial(pretrained.from_torch, "googlenet", state_dict, aux_logits=True)
    variables = load(num_classes=7, key=jax.random.key(0))["params"]
    for head in (variables["fc"], variables["aux1"]["fc2"], variables["aux2"]["fc2"]):
        assert head["kernel"].shape == (1024, 7)
    assert_same_bits(variables["aux1"]["fc1"], load()["params"]["aux1"]["fc1"])


# What does not fit.


def test_all_that_does_not_fit_is_told_at_once(golden):
    state_dict = published(golden, "resnet18")
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


def test_weights_of_another_network(golden):
    with pytest.raises(InputError) as raised:
        pretrained.from_torch("resnet18", published(golden, "resnet34"))
    message = str(raised.value)
    assert message.startswith("the weights do not fit resnet18: 80 not of this network: layer1.2.")
    assert message.count("layer") == 10
    assert message.endswith(", ...")
    with pytest.raises(InputError, match=r"\d+ missing: .*; \d+ not of this network: "):
        pretrained.from_torch("resnet50", published(golden, "alexnet"))
    with pytest.raises(InputError, match=r"^the weights do not fit alexnet: 16 missing: "):
        pretrained.from_torch("alexnet", {})


def test_both_spellings_in_one_file(golden):
    state_dict = published(golden, "densenet121")
    key = "features.denseblock1.denselayer1.norm.1.weight"
    state_dict[key] = state_dict[key.replace("norm.1", "norm1")]
    with pytest.raises(InputError, match=f"121: 1 there in both spellings: {key}$"):
        pretrained.from_torch("densenet121", state_dict)


def test_variables_of_another_network(golden):
    variables = pretrained.from_torch("resnet18", published(golden, "resnet18"))
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


def test_networks_for_small_images(golden):
    """They take published weights where no parameter changes, and say what changes elsewhere."""
    googlenet = published(golden, "googlenet")
    small = pretrained.from_torch("googlenet", googlenet, small_images=True)
    assert_same_bits(flat(small), flat(pretrained.from_torch("googlenet", googlenet)))
    with pytest.raises(InputError, match=r"2 of another shape: .*\[4096, 9216\] instead of"):
        pretrained.from_torch("alexnet", published(golden, "alexnet"), small_images=True)


# Files.

ARRAYS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4).T,  # not in the order of its memory
    "a.num_batches_tracked": np.array(3, np.int64),
    "b": np.array([np.nan, -0.0, np.inf], np.float16),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_files_keep_every_bit(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    pretrained.save(path, ARRAYS)
    assert_same_bits(pretrained.read(path), ARRAYS)
    assert_same_bits(pretrained.read(str(path)), ARRAYS)


def test_bfloat16_files(tmp_path):
    arrays = {"a": jnp.arange(3, dtype=jnp.bfloat16)}
    pretrained.save(tmp_path / "a.safetensors", arrays)
    assert_same_bits(pretrained.read(tmp_path / "a.safetensors"), jax.device_get(arrays))
    with pytest.raises(InputError, match=r"a\.npz: a is bfloat16, which only \.safetensors holds"):
        pretrained.save(tmp_path / "a.npz", arrays)
    assert not (tmp_path / "a.npz").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_load(golden, tmp_path, suffix):
    state_dict = published(golden, "resnet18")
    path = tmp_path / f"resnet18{suffix}"
    pretrained.save(path, state_dict)
    expected = flat(pretrained.from_torch("resnet18", state_dict))
    assert_same_bits(flat(pretrained.load("resnet18", path)), expected)
    with pytest.raises(InputError, match=rf"^{path}: the weights do not fit alexnet: 16 missing"):
        pretrained.load("alexnet", path)


def test_paths(tmp_path):
    with pytest.raises(InputError, match=r"a\.bin: weights are in files that end in \.safetensors"):
        pretrained.read(tmp_path / "a.bin")
    with pytest.raises(InputError, match=r"a\.npz: there is no such file"):
        pretrained.read(tmp_path / "a.npz")
    with pytest.raises(InputError, match=r"a\.pth: weights are saved to .*\.safetensors or \.npz"):
        pretrained.save(tmp_path / "a.pth", {})


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_truncated_files(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    pretrained.save(path, ARRAYS)
    whole = path.read_bytes()
    for size in (*range(0, 200, 7), len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=f"is no whole {suffix} file of arrays") as raised:
            pretrained.read(path)
        assert one_line(raised).startswith(str(path))


class Malicious:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_malice_is_real(tmp_path):
    pickle.loads(pickle.dumps(Malicious(tmp_path / "harm")))
    assert (tmp_path / "harm").exists()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("has_torch", [True, False])
def test_malicious_files_run_nothing(tmp_path, monkeypatch, suffix, has_torch):
    if not has_torch:
        monkeypatch.setitem(sys.modules, "torch", None)
    path, harm = tmp_path / f"weights{suffix}", tmp_path / "harm"
    path.write_bytes(pickle.dumps({"conv1.weight": Malicious(harm)}))
    with pytest.raises(InputError) as raised:
        pretrained.read(path)
    assert one_line(raised).startswith(str(path))
    assert not harm.exists()


def test_malicious_objects_in_npz(tmp_path):
    path, harm = tmp_path / "weights.npz", tmp_path / "harm"
    np.savez(path, a=np.zeros(3), b=np.array([Malicious(harm)], dtype=object))
    with pytest.raises(InputError, match=r"no whole \.npz file of arrays alone \(Object arrays"):
        pretrained.read(path)
    np.save(tmp_path / "weights.npy", np.array([Malicious(harm)], dtype=object), allow_pickle=True)
    path.write_bytes((tmp_path / "weights.npy").read_bytes())
    with pytest.raises(InputError, match=r"no whole \.npz file of arrays alone") as raised:
        pretrained.read(path)
    one_line(raised)
    assert not harm.exists()


# torch, as far as reading a file needs it: the tests have to pass without.


class Tensor:
    def __init__(self, array: Any, dtype: str = "float32"):
        self.array, self.dtype = array, dtype

    def float(self):
        return Tensor(self.array.astype(np.float32))

    def detach(self):
        return self

    def numpy(self):
        return self.array


@pytest.fixture
def torch(monkeypatch):
    """A torch that tells how it was called (`calls`) and returns what it is told to (`content`)."""
    module: Any = types.ModuleType("torch")
    module.__version__ = "2.6.0+cpu"
    module.Tensor, module.bfloat16 = Tensor, "bfloat16"
    module.calls = []

    def load(*args, **kwargs):
        module.calls.append((args, kwargs))
        if isinstance(module.content, Exception):
            raise module.content
        return module.content

    module.load = load
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


def test_torch_loads_weights_only(tmp_path, torch):
    path = tmp_path / "weights.pth"
    path.touch()
    torch.content = {"a": Tensor(np.ones(3)), "b": Tensor(np.ones(2, jnp.bfloat16), "bfloat16")}
    read = pretrained.read(path)
    assert_same_bits(read, {"a": np.ones(3), "b": np.ones(2, np.float32)})
    assert torch.calls == [((path,), {"map_location": "cpu", "weights_only": True})]


def test_torch_files_that_hold_more(tmp_path, torch):
    path = tmp_path / "weights.pt"
    path.touch()
    torch.content = {"state_dict": {"a": Tensor(np.ones(3))}, "epoch": 3}
    with pytest.raises(InputError, match=r"weights\.pt holds more than arrays: state_dict, epoch"):
        pretrained.read(path)
    torch.content = [Tensor(np.ones(3))]
    with pytest.raises(InputError, match=r"weights\.pt holds a list instead of arrays by name"):
        pretrained.read(path)
    torch.content = pickle.UnpicklingError("Weights only load failed. Be reckless.\nOr else.")
    with pytest.raises(InputError, match=r"no whole \.pt file .*\(Weights only load failed\)$"):
        pretrained.read(path)


def test_torch_that_is_not_safe(tmp_path, torch):
    path = tmp_path / "weights.pth"
    path.touch()
    torch.__version__ = "2.5.1"
    with pytest.raises(InputError, match=r"safely takes torch 2\.6 or newer, not 2\.5\.1"):
        pretrained.read(path)
    assert torch.calls == []


def test_torch_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "weights.pth"
    path.touch()
    with pytest.raises(InputError, match=r"takes torch to read: install it, or .*\.safetensors"):
        pretrained.read(path)


# Images.


def photograph(height: int, width: int) -> bytes:
    """Return the picture that record_pretrained.py drew."""
    noise = np.random.RandomState(width).randint(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("name", pretrained.names())
def test_images_are_those_the_weights_know(golden, name):
    how = pretrained.preprocessing(name)
    image = augment.normalize(jnp.asarray(how.host()(photograph(301, 407))), how.mean, how.std)
    assert image.shape == (how.crop, how.crop, 3)
    # A grey level is 0.008 at least.
    np.testing.assert_allclose(image[::32, ::32], golden[f"{name}/image"], atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(23, 37), (41, 18), (20, 20), (7, 9)])
def test_resizing_is_torchvisions_to_the_bit(golden, interpolation, shape):
    how = pretrained.Preprocessing(17, 14, interpolation, (0, 0, 0), (1, 1, 1))
    expected = golden[f"{interpolation}/{shape[0]}x{shape[1]}"]
    np.testing.assert_array_equal(how.host()(photograph(*shape)), expected)


# Classifying images from the command line.


@pytest.fixture(scope="module")
def weights(golden, tmp_path_factory):
    """The files of a ResNet-18 for ten classes, with weights that tell images apart."""
    shapes = contents(golden, "resnet18") | {"fc.weight": (10, 512), "fc.bias": (10,)}
    state_dict = {key: weight(key, shape) for key, shape in shapes.items() if shape}
    folder = tmp_path_factory.mktemp("weights")
    for suffix in (".safetensors", ".npz"):
        pretrained.save(folder / f"resnet18{suffix}", state_dict)
    return folder


@pytest.fixture
def photos(tmp_path):
    """A folder of three images, and of what is none."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.PNG", "more/c.jpeg")):
        tone = np.random.RandomState(i).randint(0, 256, (5, 7, 3), np.uint8)
        Image.fromarray(tone).resize((70 + i, 50)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    return folder


def five_best(weights: Path, image: Path, resize: int) -> list[tuple[str, float]]:
    """Return the classes of an image and their probabilities, step by step."""
    variables = pretrained.load("resnet18", weights / "resnet18.npz", num_classes=10)
    how = pretrained.preprocessing("resnet18")._replace(resize=resize)
    pixels = jnp.asarray(how.host()(image.read_bytes()))[None] / 255
    mean, std = (jnp.array(values)[None, None, None] for values in (how.mean, how.std))
    model: Any = models.create("resnet18", num_classes=10)
    apply = jax.jit(functools.partial(model.apply, train=False))
    probabilities = np.asarray(jax.nn.softmax(apply(variables, (pixels - mean) / std))[0])
    return [(str(i), probabilities[i]) for i in np.argsort(probabilities)[:-6:-1]]


def test_predict(weights, photos, capsys):
    file = weights / "resnet18.safetensors"
    predict.run(["--model=resnet18", f"--weights={file}", f"--images={photos}"])
    out, err = capsys.readouterr()
    lines = [line.split("\t") for line in out.splitlines()]
    paths = [str(photos / name) for name in ("a.png", "b.PNG", "more/c.jpeg")]
    assert [line[0] for line in lines] == [path for path in paths for _ in range(5)]
    assert err == ""  # no bar where nobody watches
    expected = five_best(weights, photos / "b.PNG", 256)
    assert [line[1] for line in lines[5:10]] == [name for name, _ in expected]
    for line, (_, probability) in zip(lines[5:10], expected, strict=True):
        assert float(line[2]) == pytest.approx(probability, abs=1e-4)
    assert len({tuple(line[2] for line in lines[i : i + 5]) for i in (0, 5, 10)}) == 3


def test_predict_with_labels_and_a_bar(weights, photos, capsys, monkeypatch):
    labels = photos / "labels.txt"
    labels.write_text("".join(f"class {i}\n" for i in range(10)))
    (photos / "bad.png").write_text("no image")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    flags = ["--model=resnet18", f"--weights={weights / 'resnet18.npz'}", f"--labels={labels}"]
    images = [str(photos / "bad.png"), str(photos / "b.PNG")]
    with pytest.raises(InputError, match="1 of 2 images could not be read"):
        predict.run([*flags, "--resize=300", "--images", *images])
    out, err = capsys.readouterr()
    expected = five_best(weights, photos / "b.PNG", 300)
    assert [line.split("\t")[1] for line in out.splitlines()] == [f"class {i}" for i, _ in expected]
    assert f"error: {images[0]} is not an image" in err
    assert "2/2" in err


@pytest.mark.parametrize(
    "flags",
    [
        "--images=a.png",
        "--workdir=run",
        "--model=resnet18 --images=a.png",
        "--weights=a.npz --images=a.png",
        "--model=resnet18 --weights=a.npz",
        "--workdir=run --model=resnet18 --weights=a.npz --images=a.png",
        "--workdir=run --labels=labels.txt --images=a.png",
        "--workdir=run --resize=256 --images=a.png",
    ],
)
def test_predict_flags_that_do_not_go_together(flags):
    with pytest.raises(
        InputError, match=r"^give --workdir=RUN, .*, or --model=NAME --weights=FILE"
    ):
        predict.run(flags.split())


def test_predict_refuses(weights, photos, tmp_path):
    def refused(match, *flags, model="resnet18", file="resnet18.npz"):
        with pytest.raises(InputError, match=match):
            predict.run(
                [f"--model={model}", f"--weights={weights / file}", f"--images={photos}", *flags]
            )

    labels = photos / "labels.txt"
    labels.write_text("cat\ndog\n")
    refused(r"labels\.txt: it must be of 10 lines", f"--labels={labels}")
    refused("--resize=100: it must be at least 224", "--resize=100")
    refused("no published weights for 'lenet5'", model="lenet5")
    refused(r"the weights do not fit resnet34: \d+ missing: layer1", model="resnet34")
    refused("absent.npz: there is no such file", file="absent.npz")
    (tmp_path / "empty").mkdir()
    refused(r"no file in .*empty ends in \.jpg", f"--images={tmp_path / 'empty'}")
