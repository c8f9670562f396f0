"""Eight CPU devices for every test, JAX at its strictest, and experiments as commands."""

import os
import subprocess
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8"
    # Tests compile much and run little.
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax
import pytest

ROOT = Path(__file__).parent.parent

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """One CPU device, and a cache of compiled programs that all commands share."""
    shared = tmp_path_factory.getbasetemp().parent
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(shared / "compiled"),
        "TFDS_DATA_DIR": str(shared / "tfds"),
        "XLA_FLAGS": "",
        "PYTHONWARNINGS": "error",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture
def command(tmp_path, environment):
    """Runs `python -m experiments.NAME flags...` in a folder of its own."""

    def run(name, *flags, devices=1, check=True, **options):
        env = environment | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        arguments = [sys.executable, "-m", f"experiments.{name}", *flags]
        done = subprocess.run(
            arguments, cwd=tmp_path, env=env, capture_output=True, text=True, **options
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def start(name, *flags):
        arguments = [sys.executable, "-m", f"experiments.{name}", *flags]
        return subprocess.Popen(
            arguments,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    run.start = start
    run.folder = tmp_path
    return run
