"""Files of weights: exact, refused in one line when broken, and harmless."""

import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import assert_same_bits

from jaxdl import InputError, pretrained

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
