"""Eight CPU devices for every test, JAX at its strictest, and experiments as commands."""

import os
import socket
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


HOST = """
import os, sys
process = int(sys.argv[1])
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
name = sys.argv[3]
sys.argv[1:] = [*sys.argv[4:], f"--coordinator=localhost:{sys.argv[2]}", "--num_processes=2",
                f"--process_id={process}"]
import runpy
runpy.run_module(f"experiments.{name}", run_name="__main__")
"""


@pytest.fixture
def two_hosts(tmp_path, environment):
    """Runs an experiment as two processes of two devices each; returns what each printed."""

    def start(name, *flags):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = str(probe.getsockname()[1])
        return [
            subprocess.Popen(
                [sys.executable, "-c", HOST, str(process), port, name, *flags],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for process in range(2)
        ]

    def end(hosts, codes=(0, 0)):
        """What each printed, on stdout and on stderr."""
        said = [host.communicate(timeout=240) for host in hosts]
        codes_and_errors = [(h.returncode, err) for h, (_, err) in zip(hosts, said, strict=True)]
        assert [code for code, _ in codes_and_errors] == list(codes), codes_and_errors
        # Gloo tells of its connections, from several threads at once.
        own = lambda line: "[Gloo]" not in line and "peer ranks" not in line
        return [("".join(filter(own, out.splitlines(True))), err) for out, err in said]

    def run(name, *flags):
        return [out for out, _ in end(start(name, *flags))]

    run.start, run.end = start, end
    return run
