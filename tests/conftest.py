"""Eight CPU devices for every test, JAX at its strictest, and experiments as commands."""

import contextlib
import functools
import gc
import io
import os
import runpy
import socket
import subprocess
import sys
import threading
import warnings
from importlib.metadata import version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # its others would wait for work in a loop
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8"
    # Tests compile much and run little.
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
)
# XLA's older emitters take half as long, and later versions have them no more. Only whole modules
# (the count of 1 above) are right: cut in parts, two augmentations of color came out wrong.
if version("jaxlib").startswith(("0.10.", "0.11.")):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
# What another worker, a command or an earlier session has compiled is not compiled anew.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.abspath(".pytest_cache/compiled"))
# What compiles sooner is read no sooner.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")

import jax
import numpy as np
import optax
import pytest
from flax import linen
from flax.core import meta
from flax.core.scope import Scope
from jax._src import compiler

from jaxdl import hosts, parallel
from jaxdl.writers import Writer

ROOT = Path(__file__).parent.parent

gc.set_threshold(200_000, 50, 1000)  # tracing makes millions of objects, of which few are garbage
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def lenient(function):
    """The same where types are mixed, as Flax and optax themselves do within."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return call


for module, name in (
    (linen, "avg_pool"),
    (linen.normalization, "_compute_stats"),
    (linen.normalization, "_normalize"),
    (optax.tree, "bias_correction"),
):
    setattr(module, name, lenient(getattr(module, name)))


@functools.cache
def shapes_of(initializer, *args):
    made = jax.eval_shape(lambda: initializer(jax.random.key(0), *args))
    return jax.tree.map(np.shape, made)


def param(self, name, initializer, *args, unbox=True, made=Scope.param, **kwargs):
    """Flax's, but an initializer is traced once for the shape that a parameter must have.

    It is else each time that a network is, which takes as long as the rest of that.
    """
    if self.has_variable("params", name) and not kwargs:
        value = self.get_variable("params", name)
        known = (tuple(given) if isinstance(given, list) else given for given in args)
        if jax.tree.map(np.shape, value) == shapes_of(initializer, *known):
            self.reserve(name, "params")
            return meta.unbox(value) if unbox else value
    return made(self, name, initializer, *args, unbox=unbox, **kwargs)


Scope.param = param


def compile_once():
    """Keeps at hand what this process compiles, however quick that was, by JAX's own key.

    Tests build the same experiment many times over, each time of functions new to `jax.jit`.
    """
    read, compile_and_write = compiler._cache_read, compiler._compile_and_write_cache
    compiled = {}

    def read_or_know(name, key, options, backend, devices):
        if (known := compiled.get((key, str(devices)))) is not None:
            return known, 0
        return read(name, key, options, backend, devices)

    def compile_and_know(backend, computation, devices, options, callbacks, name, key):
        made = compile_and_write(backend, computation, devices, options, callbacks, name, key)
        if not callbacks:
            compiled[key, str(devices)] = made
        return made

    compiler._cache_read, compiler._compile_and_write_cache = read_or_know, compile_and_know


if version("jaxlib").startswith(("0.10.", "0.11.")):  # others may have them in another form
    compile_once()


parallel.RUN_ONCE.clear()  # which asks for more than the flags above


def xla_flags(devices):
    """The flags above, but so many CPU devices."""
    return os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")


@pytest.fixture(scope="module")
def one_device():
    """For experiments in this process: JAX as the tests have set it up, but one of its devices."""
    from experiments.harness import training  # here: most tests have no use for what it imports

    made, mesh = parallel.data_mesh, parallel.data_mesh(jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "data_mesh", lambda given=None: made(given) if given else mesh)
        patch.setattr(training, "prepare_jax", lambda *config, **how: None)
        yield


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """One CPU device, and a folder of prepared data sets that all commands share."""
    shared = tmp_path_factory.getbasetemp().parent
    return os.environ | {
        "TFDS_DATA_DIR": str(shared / "tfds"),
        "XLA_FLAGS": xla_flags(1),
        "PYTHONWARNINGS": "error",
        "PYTHONFAULTHANDLER": "1",  # says where a process fell that dies of its own
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture(scope="session")
def run_in(environment):
    """(folder, name, *flags) runs `python -m experiments.NAME flags...` within this process.

    It says, returns and refuses what a command would, and costs neither a start nor its imports
    nor the drawing of its curves.
    """

    def run(folder, name, *flags, devices=1, check=True):
        out, err, shown = io.StringIO(), io.StringIO(), jax.devices()[:devices]
        with contextlib.ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.chdir(folder)
            patch.setenv("TFDS_DATA_DIR", environment["TFDS_DATA_DIR"])
            patch.setattr(sys, "argv", [name, *flags])
            patch.setattr(jax, "devices", lambda: shown)
            patch.setattr(jax, "device_count", lambda: devices)
            patch.setattr(hosts, "_last_word", threading.Lock())
            patch.setattr(Writer, "curves", lambda self: None)  # matplotlib's second
            stack.enter_context(warnings.catch_warnings())
            # Tests import experiments too; this one is to be a module of its own, as a command's.
            warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            end = stack.enter_context(pytest.raises(SystemExit))
            runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
        done = subprocess.CompletedProcess(flags, end.value.code, out.getvalue(), err.getvalue())
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture
def experiment(tmp_path, run_in):
    """Runs `python -m experiments.NAME flags...` in a folder of its own, within this process."""
    run = functools.partial(run_in, tmp_path)
    run.folder = tmp_path
    return run


@pytest.fixture
def command(tmp_path, environment):
    """Runs `python -m experiments.NAME flags...` in a folder and a process of its own."""

    def run(name, *flags, devices=1, check=True, **options):
        env = environment | {"XLA_FLAGS": xla_flags(devices)}
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
import runpy
import sys
from jaxdl.writers import Writer
Writer.curves = lambda self: None  # matplotlib's second
name, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(f"experiments.{name}", run_name="__main__")
"""


@pytest.fixture
def two_hosts(tmp_path, environment):
    """Runs an experiment as two processes of two devices each; returns what each printed.

    Or as another `count` of processes, of other `devices`, that a cluster has told who they are:
    process -> variables of the environment.
    """

    def start(name, *flags, count=2, devices=2, cluster=None):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = str(probe.getsockname()[1])

        def who(process):
            if cluster is not None:
                return ["--coordinator=auto"]
            by_hand = f"--coordinator=localhost:{port}", f"--num_processes={count}"
            return [*by_hand, f"--process_id={process}"]

        told = cluster or (lambda process: {})
        return [
            subprocess.Popen(
                [sys.executable, "-c", HOST, name, *flags, *who(process)],
                cwd=tmp_path,
                env=environment | {"XLA_FLAGS": xla_flags(devices)} | told(process),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for process in range(count)
        ]

    def end(hosts, codes=None):
        """What each printed, on stdout and on stderr."""
        codes = codes or (0,) * len(hosts)
        said = [host.communicate(timeout=240) for host in hosts]
        codes_and_errors = [(h.returncode, err) for h, (_, err) in zip(hosts, said, strict=True)]
        assert [code for code, _ in codes_and_errors] == list(codes), codes_and_errors
        # Gloo tells of its connections, from several threads at once.
        own = lambda line: "[Gloo]" not in line and "peer ranks" not in line
        return [("".join(filter(own, out.splitlines(True))), err) for out, err in said]

    def run(name, *flags, **how):
        return [out for out, _ in end(start(name, *flags, **how))]

    run.start, run.end = start, end
    return run
