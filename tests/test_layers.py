"""Arrows point down only: which room of the house may import which."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the ground up. A room may import those on the lines above its own, and those beside it that
# are named behind the bar.
FLOORS = """
jaxdl
published sharding figures
lowering
conv pooling features_first attention hosts files
nn recurrent
data.order data.rows data.images data.sources data.folders data.idx data.noise data.subsets data.digits | data
data.tables
data.reading data.pipeline data.image_pipeline data.ring data.text data.pairs data.words | data
data.lanes
branches
models
task decoding
methods proximal curvature
metrics augment optim schedules transfer fidelity pictures trees lifting drawing | lifting
losses | metrics
adversarial
parallel saved graph cost planning pretrained bottleneck forms
writers checkpoint calls
loop
arrays
"""  # noqa: E501


# The same of what experiments share. On it stand the files that are run, which do not import one
# another; studies stand on those.
HARNESS = """
recipes problem bench catalogue
cli bench_torch
run run_folder augmentation devices
image_data table_data corpus method summaries translation
training classification lanes
group
sweep
study serving yardstick bench_training bench_input bench_runs bench_sequences
bench_layers
claim
artist
"""


def rooms(floors):
    """{room: (floor, the rooms beside it that it may import)}"""
    found = {}
    for floor, line in enumerate(floors.strip().splitlines()):
        names, _, beside = line.partition("|")
        for name in names.split():
            found[name] = floor, beside.split()
    return found


def room_of(path):
    parts = path.relative_to(ROOT / "jaxdl").with_suffix("").parts
    if parts[0] == "data" and parts[1] != "__init__":
        return ".".join(parts)
    return "jaxdl" if parts[0] == "__init__" else parts[0]


def imports(path):
    """The jaxdl and experiments modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(folder):
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", files("jaxdl"), ids=lambda p: str(p.relative_to(ROOT)))
def test_library_imports_point_down(path):
    known = rooms(FLOORS)
    here = room_of(path)
    if here == "data":
        return  # the face of its own rooms
    floor, beside = known[here]
    for name in imports(path):
        assert not name.startswith("experiments"), name
        if not name.startswith("jaxdl."):
            continue
        parts = name.split(".")[1:]
        there = ".".join(parts[:2]) if parts[0] == "data" else parts[0]
        if there not in known:
            there = "jaxdl"  # a name that jaxdl/__init__.py defines
        if there == here or there.split(".")[0] in beside or there in beside:
            continue
        assert known[there][0] < floor, f"{here} imports {name}, which is not below it"


@pytest.mark.parametrize("path", files("experiments"), ids=lambda p: str(p.relative_to(ROOT)))
def test_experiments_imports_point_down(path):
    floors = rooms(HARNESS)
    here = path.parent.name  # experiments, harness or studies
    for name in imports(path):
        if not name.startswith("experiments."):
            continue
        room, *inside = name.split(".")[1:]
        if room == "studies":
            assert here == "studies", f"{path} imports {name}"
        elif room == "harness":
            above = here != "harness" or path.stem == "__init__"
            assert above or floors[inside[0]][0] < floors[path.stem][0], f"{path} imports {name}"
        else:
            assert here == "studies", f"{path} imports {name}, which is run"


def test_models_do_not_import_one_another():
    for path in files("jaxdl/models"):
        if path.name != "__init__.py":
            assert not [n for n in imports(path) if n.startswith("jaxdl.models")], path


def test_only_cli_knows_flags_and_only_checkpoints_know_orbax():
    for path in files("jaxdl") + files("experiments"):
        names = list(imports(path))
        # What reads ahead marks a flag of Grain's own as parsed, which Grain forgets to ask.
        if path.name not in ("cli.py", "reading.py"):
            assert not [n for n in names if n.startswith("absl")], path
        if path.name not in ("checkpoint.py", "saved.py"):
            assert not [n for n in names if n.startswith("orbax")], path


def test_importing_models_is_light():
    """No TensorFlow, no data or checkpoint library, no device, and little time."""
    code = """
import sys, time
import flax.linen
began = time.perf_counter()
import jaxdl.models
seconds = time.perf_counter() - began
heavy = {"tensorflow", "tensorflow_datasets", "grain", "orbax", "matplotlib", "sklearn"}
loaded = heavy & set(sys.modules)
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
assert seconds < 2, seconds
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["jaxdl.augment", "jaxdl.data"])
def test_a_package_gives_what_it_says_it_gives(name):
    package = importlib.import_module(name)
    assert [one for one in package.__all__ if not hasattr(package, one)] == []
