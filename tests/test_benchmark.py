"""Benchmarks are programs, no speed is asserted: each runs at a tiny size and says its lines."""

import functools
import importlib.util
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import benchmark
from experiments.harness import bench, bench_layers, bench_training, training
from jaxdl import InputError, models

NUMBER = r"[\d.,]+"
SPREAD = rf"{NUMBER} \({NUMBER} to {NUMBER}\)"
TORCH = importlib.util.find_spec("torch") is not None


@pytest.fixture
def told(capsys, monkeypatch):
    """Runs a benchmark in this process, on one device; the lines that it prints."""
    device = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: device)
    monkeypatch.setattr(training, "prepare_jax", lambda *config, **how: None)

    def run(*flags):
        benchmark.run([*flags])
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


def test_training_is_measured_beside_plain_flax(told, no_torch, tmp_path):
    file = tmp_path / "results.jsonl"
    flags = ["--what=train", "--model=lenet5", "--channels=1", "--batch_size=4", "--rounds=3"]
    without, machine, what, *lines = told(*flags, "--steps=1", f"--json={file}")
    assert without == "torch is not installed: without it"
    assert re.match(r"1 cpu, \d+ cores, jax ", machine)
    assert what.startswith("lenet5 on 32x32x1 images, batch 4, float32: 0.00")
    assert [line.split(":")[0] for line in lines[:3]] == ["round 1", "round 2", "round 3"]
    assert re.fullmatch(rf"matrix products reach {NUMBER} GFLOP/s", lines[3])
    for name, line in zip(("here", "plain Flax"), lines[4:6], strict=True):
        shape = rf"{name}: {SPREAD} images/s, {NUMBER} GFLOP/s, {NUMBER}% of the peak(, \d+ MiB)?"
        assert re.fullmatch(shape, line), line
    assert re.fullmatch(rf"here over plain Flax: {SPREAD}", lines[6])
    row = json.loads(file.read_text())
    assert row["model"] == "lenet5"
    assert len(row["speeds"]["here"]) == len(row["speeds"]["plain Flax"]) == 3


def test_convolutions_are_measured_one_by_one(told, no_torch, monkeypatch):
    monkeypatch.setattr(bench_layers, "SECONDS", 0)
    flags = ["--model=lenet5", "--channels=1", "--batch_size=4", "--rounds=1"]
    _, _, what, *lines = told("--what=layers", *flags)
    assert what == "lenet5 on 32x32 images, batch 4"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    head, _, first, second, _ = rows
    assert head[2:] == [
        f"{side}: {operation}"
        for operation in ("forward", "image gradient", "kernel gradient")
        for side in ("here", "XLA")
    ]
    assert first[:2] == ["32x32, 1 to 6, 5x5", "1"]
    assert second[:2] == ["14x14, 6 to 16, 5x5", "1"]
    assert first[4:6] == ["0.00", "0.00"]  # of the images themselves
    assert "0.00" not in second
    sums = {
        name: float(ms) for name, ms in re.findall(r"^(.*): ([\d.]+) ms$", "\n".join(lines), re.M)
    }
    assert list(sums) == ["here", "XLA", "the best of both"]
    cells = np.array([row[2:] for row in rows[2:]], float)
    assert sums["here"] == pytest.approx(cells[:, ::2].sum(), abs=0.1)
    assert sums["the best of both"] <= min(sums["here"], sums["XLA"])


def test_convolutions_are_counted():
    found = bench_layers.convolutions(models.create("resnet20_cifar"), (2, 32, 32, 3))
    assert sum(found.values()) == 19  # twenty layers, of which one is dense
    assert next(iter(found)).image == (2, 32, 32, 3)
    assert [str(one) for one in found][1] == "32x32, 16 to 16, 3x3"
    assert "32x32, 16 to 32, 3x3, strides 2x2" in map(str, found)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp"])
def test_training_is_measured_of_networks_that_are_not_convolutions(told, model):
    flags = ["--nocompile", "--batch_size=2", "--rounds=1", "--steps=1", "--image_size=8"]
    lines = told("--what=train", f"--model={model}", *flags, "--precision=bfloat16")
    assert f"{model} on " in "\n".join(lines)
    assert re.fullmatch(rf"here over (plain Flax|torch): {SPREAD}", lines[-1])


@pytest.mark.slow
def test_the_loop_is_measured_over_its_step(told):
    lines = told("--what=loop", "--model=mlp", "--rounds=2", "--steps=60")
    assert len(lines) == 4
    assert re.fullmatch(rf"a step takes {SPREAD} ms, in the loop {SPREAD} times as long", lines[-1])


@pytest.mark.slow
def test_images_of_a_folder_are_measured(told, no_torch):
    flags = ["--batch_size=16", "--images=300", "--rounds=2", "--steps=2", "--image_size=16"]
    lines = told("--what=data", *flags)
    assert re.fullmatch(rf"{NUMBER} s to list 300 images", lines[2])
    assert [line.split(":")[0] for line in lines[3:5]] == ["round 1", "round 2"]
    assert re.fullmatch(rf"threads on \d+ cores: {SPREAD} images/s a core", lines[5])
    assert re.fullmatch(rf"\d+ workers on \d+ cores: {SPREAD} images/s a core", lines[6])


@pytest.mark.slow
def test_the_start_is_measured_cold_and_warm(told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cold, warm, *both = told("--what=start", "--rounds=1")
    assert re.fullmatch(rf"cold: {NUMBER} s to the first step, {NUMBER} s of CPU", cold)
    assert re.fullmatch(rf"warm: {NUMBER} s to the first step, {NUMBER} s of CPU", warm)
    assert [line.split(":")[0] for line in both] == ["cold compile cache", "warm compile cache"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--what=speed"], "train"),
        (["--rounds=0"], "--rounds=0: it must be at least 1"),
        (["--what=train", "--model=lenet6"], "a name of jaxdl.models.names()"),
        (["--what=train", "--model=lenet5", "--image_size=8"], "32"),
        (["--what=layers", "--model=mlp"], "a network of convolutions"),
        (["--what=data", "--images=255"], "--images=255: it must be at least 256, a batch"),
        (["--what=sweep", "--runs=10"], "--runs=10: it must be a multiple of 16"),
        (["--channels=2"], "--channels=2: it must be 1 or 3"),
        (["everything"], "'everything' is no flag"),
    ],
)
def test_mistakes_are_told_in_one_line(flags, said):
    with pytest.raises(InputError) as refused:
        benchmark.run(flags)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_ratios_are_of_the_same_round(capsys):
    speeds = {"here": [1.0, 2.0, 30.0], "there": [2.0, 4.0, 10.0]}
    assert bench.ratios(speeds, ["here"]) == {"here over there": (0.5, 0.5, 1.75)}
    assert capsys.readouterr().out == "here over there: 0.500 (0.500 to 1.75)\n"


def test_sides_take_turns_and_begin_in_turn(capsys):
    ran = []
    sides = [bench.Side(name, lambda steps, name=name: ran.append((name, steps))) for name in "ab"]
    speeds = bench.by_turns(sides, 2, 7, "steps/s", 1)
    assert ran == [("a", 7), ("b", 7), ("b", 7), ("a", 7)]
    assert [len(speed) for speed in speeds.values()] == [2, 2]


def test_the_peak_of_memory_is_what_a_step_touched():
    """64 MiB more than it began with; elsewhere than on Linux nothing tells."""
    side = bench.Side("side", lambda steps: np.ones(2**23), held=5)
    found = bench.peak_bytes(side)
    assert found is None or 0.9 * 2**26 < found < 1.5 * 2**26


def test_plain_flax_is_compiled_of_what_jax_has():
    image, model = jnp.zeros((2, 32, 32, 1)), models.create("lenet5", num_classes=10)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)

    def convolutions():
        apply = jax.jit(functools.partial(model.apply, train=False))
        return apply.lower(variables, image).as_text().count("stablehlo.convolution")

    with bench_training.stock_programs():
        assert convolutions() == 3
    assert convolutions() == 2  # the first is a product of rows
