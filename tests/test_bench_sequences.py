"""Speed on sequences: none is asserted, each measurement runs at a tiny size and says its lines."""

import importlib.util
import os
import re
import subprocess
import sys
import types

import pytest

from experiments import benchmark
from experiments.harness import training
from jaxdl import InputError

SPREAD = r"[\d.]+ \([\d.]+ to [\d.]+\)"


@pytest.fixture
def told(capsys, monkeypatch):
    """Runs a benchmark in this process; the lines that it prints."""
    monkeypatch.setattr(training, "prepare_jax", lambda *config, **how: None)

    def run(what):
        benchmark.run([f"--what={what}", "--rounds=2", "--steps=2"])
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
@pytest.mark.parametrize("what", ["lstm", "char_rnn"])
def test_recurrent_networks_are_measured_beside_torch(told, what):
    first, second, _, *ratios = told(what)[-6 if what == "lstm" else -4 :]
    bound = r"its products [\d,]+ tokens/s, " if what == "lstm" else ""
    for line in (first, second):
        assert re.fullmatch(rf"here [\d,]+ tokens/s, {bound}torch [\d,]+ tokens/s", line)
    assert any(re.fullmatch(f"here over torch: {SPREAD}", ratio) for ratio in ratios)
    if what == "lstm":
        assert re.fullmatch(f"its products over torch: {SPREAD}", ratios[-1])


@pytest.mark.slow
def test_cbow_is_measured_beside_gensim(told, monkeypatch):
    given = []

    class Word2Vec:
        def __init__(self, **flags):
            assert flags["sg"] == 0
            assert flags["vector_size"] == 100

        def build_vocab(self, sentences):
            assert len(sentences) > 10
            assert max(map(len, sentences)) == 10_000  # longer ones gensim would cut

        def train(self, sentences, **flags):
            given.append(sum(map(len, sentences)))
            return 7_000, given[-1]

    module = types.SimpleNamespace(Word2Vec=Word2Vec)
    monkeypatch.setitem(sys.modules, "gensim.models.word2vec", module)
    *_, ready, gensim = told("cbow")
    assert re.fullmatch(f"here over here, the data ready: {SPREAD}", ready)
    assert re.fullmatch(rf"here over gensim, \d+ workers: {SPREAD}", gensim)
    assert set(given) == {10_000}


@pytest.mark.parametrize(
    ("what", "missing"), [("lstm", "torch"), ("char_rnn", "torch"), ("cbow", "gensim")]
)
def test_what_is_not_installed_is_told_in_one_line(told, monkeypatch, what, missing):
    for name in ("torch", "gensim", "gensim.models.word2vec"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError) as refused:
        told(what)
    wanted = f"--what={what} compares with {missing}, which is not installed"
    assert str(refused.value) == wanted


FAULTS = """
import resource
from experiments.harness import training
import numpy as np
training.prepare_jax()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    before = faults()
    np.ones(2**24)  # 128 MiB: 32,768 pages
    print(faults() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.parametrize("own", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}])
def test_freed_memory_is_kept_where_nobody_said_otherwise(tmp_path, own):
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)} | own
    run = subprocess.run([sys.executable, "-c", FAULTS], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    _, *later = map(int, run.stdout.split())
    assert max(later) < 100 if own == {} else min(later) > 50
