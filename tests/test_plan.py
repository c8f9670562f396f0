"""Plans of steps that are not run, and what the doctor says of this machine."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import doctor, plan
from experiments.harness import catalogue
from jaxdl import InputError, planning, sharding

ROOT = Path(__file__).parent.parent
LONG = ("densenet", "inception", "seq2seq")  # to compile
MLP = ("--experiment=mlp", "--batch_size=64", "--augment=")


@pytest.fixture(autouse=True)
def as_set_up(monkeypatch):
    """JAX as the tests have set it up, with eight CPU devices."""
    monkeypatch.setattr(plan, "_prepare", lambda config: None)


def planned(tmp_path, capsys, *flags):
    plan.run([*flags, f"--json={tmp_path / 'plan.json'}"])
    return json.loads((tmp_path / "plan.json").read_text()), capsys.readouterr().out


def test_a_plan_says_what_the_compiled_step_needs(tmp_path, capsys):
    (found,), text = planned(tmp_path, capsys, *MLP, "--topology=cpu:4")
    assert found["chips"] == 4
    assert found["mesh"] == {"data": 4}
    needs = found["needs"]
    rows = 64 // 4 * (16 * 16 + 8)  # pixels, a label and a mask or so
    assert needs["arguments"] == pytest.approx(found["state_bytes"] + rows, rel=0.02)
    assert needs["memory"] == sum(
        needs[name] for name in ("arguments", "temporary", "outputs", "program")
    )
    reduced = [c for c in needs["collectives"] if c["kind"] == "all-reduce"]
    assert {c["axes"] for c in reduced} == {"data"}
    of_gradients = 4 * found["parameters"]
    assert of_gradients <= sum(c["bytes"] for c in reduced) < 1.05 * of_gradients + 1000
    # Two FLOPs a weight and image forward, and as many for either gradient; the first has one.
    assert 4 * 64 < found["model_flops"] / found["parameters"] < 6 * 64
    assert "estimate" not in found  # a CPU has no data sheet here
    assert f"all-reduce along data (4 chips): {of_gradients / 1e3:.3g}"[:-1] in text
    assert text.startswith("cpu:4: 4 chips, mesh data:4, state whole on each, 64 examples a step")


@pytest.mark.slow
def test_several_topologies_grow_by_the_batch_and_are_drawn(tmp_path, capsys):
    picture = tmp_path / "growth.png"
    flags = (*MLP, "--topology=cpu:2,cpu:4,cpu:8", f"--picture={picture}", "--shard=fsdp")
    found, text = planned(tmp_path, capsys, *flags)
    assert [one["batch_size"] for one in found] == [64, 128, 256]
    assert picture.stat().st_size > 10_000
    shares = [one["state_bytes"] / found[0]["state_bytes"] for one in found]
    assert shares[0] == 1
    assert shares[2] < 0.4 * shares[0]
    assert "state cut by fsdp" in text
    assert any(c["kind"] == "all-gather" for c in found[0]["needs"]["collectives"])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*catalogue.names()} - {"transfer", *LONG}))
def test_experiments_can_be_planned(name, tmp_path, capsys):
    """BUILD_NOTES has all of them, for a TPU; transfer wants a trained run."""
    flags = ("--model=mlp",) if name == "mlp" else ()
    (found,), _ = planned(tmp_path, capsys, f"--experiment={name}", "--topology=cpu:2", *flags)
    assert found["needs"]["memory"] > found["state_bytes"] > 0
    assert found["needs"]["collectives"]


def test_a_roofline_is_the_longest_of_three():
    messages = (planning.Collective("all-reduce", "data", 4, 1, 8_000_000),)
    needs = planning.Needs(1, 2, 3, 4, 197e12, 819e9 * 2, messages)
    found = planning.estimate(needs, planning.CHIPS["v5e"])
    assert found.compute == pytest.approx(1)
    assert found.memory == pytest.approx(2)
    assert found.network == pytest.approx(2 * 0.75 * 8e6 / 200e9)
    assert (found.seconds, found.bound) == (pytest.approx(2), "memory")
    assert needs.memory == 10


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--topology=v9:4x4",), "expected cpu:N, or one of v4, v5e"),
        (("--topology=v5e",), "with a grid, such as v5e:4x4"),
        (("--topology=cpu:3", "--batch_size=64"), "does not divide by the 3 devices"),
        (("--topology=cpu:64",), "this process has 8 CPU devices"),
        (("--topology=cpu:8", "--mesh=data:3"), "does not fit 8 devices"),
        (("--topology=cpu:8", "--mesh=rows:8"), "must be data:N"),
        (("--topology=cpu:8", "--shard=model"), "given with --mesh=data:N,model:M"),
        (("--topology=cpu:8", "--shard=model", "--mesh=data:4,model:2"), "says nothing of how"),
        (("--topology=cpu:8", "--experiment=doctor"), "experiment"),
        (("--topology=cpu:8", "--picture=p.png"), "several --topology"),
        (("--topology=cpu:8", "--json=no/such/folder.json"), "a folder that there is"),
    ],
)
def test_mistakes_are_one_line(flags, message):
    with pytest.raises(InputError, match=message) as told:
        plan.run(["--experiment=mlp", "--augment=", *flags])
    assert "\n" not in str(told.value)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is there")
def test_without_libtpu_one_line_says_so():
    with pytest.raises(InputError, match=r"libtpu.*pip install 'jaxdl\[tpu\]'"):
        planning.topology_devices("v5e:2x2")


@pytest.mark.slow
def test_a_command_needs_no_set_up(tmp_path):
    command = [sys.executable, "-m", "experiments.plan", "--topology=cpu:8", *MLP]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "along data (8 chips)" in done.stdout


# The doctor.


def test_the_doctor_tells_what_jax_sees(monkeypatch, capsys):
    found = {"platform": "cpu", "devices": ["cpu"] * 2, "matmul": 1e11, "conv": 5e10}
    monkeypatch.setattr(doctor, "probe", lambda: (found | {"dtype": "float32"}, ""))
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    assert f"jax {jax.__version__}" in text
    assert "cpu: 2 x cpu" in text
    assert "100 GFLOP/s in float32" in text
    assert "compile cache" in text
    assert "cores may be used" in text


@pytest.mark.parametrize(
    ("found", "error", "topic", "text"),
    [
        ({}, "ImportError: libfoo.so", "devices", "does not start: ImportError: libfoo.so"),
        ({"platform": "gpu", "devices": ["H100"]}, "out of memory", "devices", "first programs"),
    ],
)
def test_what_fails_in_jax_is_a_line_of_the_report(found, error, topic, text, monkeypatch):
    monkeypatch.setattr(doctor, "probe", lambda: (found, error))
    lines = [line for line in doctor.examine() if line.state == "BAD" and line.topic == topic]
    assert [text in line.text for line in lines] == [True]
    assert all(line.cure for line in lines)


def test_a_gpu_that_is_not_used_is_told_of_with_its_cure(monkeypatch):
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: "580.65")
    real = doctor.version
    for plugins, said, cure in (
        ({}, "no CUDA plugin of JAX", "cuda13"),
        ({"jax-cuda13-plugin": "0.1.0"}, "does not fit jaxlib", "pip install"),
        ({"jax-cuda13-plugin": doctor.version("jaxlib")}, "but JAX runs on cpu", "nvidia-smi"),
    ):
        monkeypatch.setattr(
            doctor,
            "version",
            lambda name, p=plugins: (
                p.get(name) or (real(name) if name not in doctor.PLUGINS else None)
            ),
        )
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
        bad = [line for line in doctor.accelerators({"platform": "cpu"}) if line.state == "BAD"]
        assert any(said in line.text and cure in line.cure for line in bad), (plugins, bad)
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: "535.104")
    lines = list(doctor.accelerators({"platform": "cpu"}))
    assert any("needs 580 or newer" in line.text for line in lines), lines


def test_the_doctor_does_not_faint(monkeypatch):
    def faint(*arguments):
        raise RuntimeError("no such\nfile")

    monkeypatch.setattr(doctor, "probe", lambda: ({"platform": "cpu", "devices": ["cpu"]}, ""))
    for part in ("versions", "devices", "accelerators", "host", "cache"):
        monkeypatch.setattr(doctor, part, faint)
    assert [line.text for line in doctor.examine()] == [
        "could not be looked at: RuntimeError: no such file"
    ] * 5


@pytest.mark.slow
def test_the_doctor_survives_a_broken_jax(tmp_path):
    """In a process of its own, with a jax that raises when it is imported, and with JAX."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("raise ImportError('jaxlib is broken')\n")
    command = [sys.executable, "-m", "experiments.doctor"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "JAX does not start: ImportError: jaxlib is broken" in done.stdout
    done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    rates = [line["text"] for line in lines if line["topic"] == "matrix product"]
    assert len(rates) == 1
    assert float(rates[0].split()[0].replace(",", "")) > 1


def test_meshes_in_words():
    assert sharding.in_words({"data": 4, "model": 2}) == "data:4,model:2"
    assert np.prod([*sharding.make_mesh({"data": 8}).shape.values()]) == 8
