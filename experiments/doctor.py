"""Says in one screen what JAX sees of this machine, what is amiss, and the command that mends it.

    python -m experiments.doctor
    python -m experiments.doctor --json

Nothing that is broken ends it: JAX is asked in a process of its own, which may fail or hang. So
this file imports nothing beyond Python's own library. The exit code is 1 where JAX cannot run.
"""

import argparse
import glob
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

PATIENCE = 120
"""Seconds that JAX has to start and to measure."""
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin", "libtpu")
CUDA_DRIVERS = {"13": 580, "12": 525}
"""The least driver for each CUDA, by NVIDIA's release notes of the toolkits."""


class Line(NamedTuple):
    """A line of the report.

    Attributes:
      state: `ok`, `note` for what costs speed, or `BAD` for what does not work.
      topic: what it is about.
      text: what was found.
      cure: what mends it; empty where nothing has to.
    """

    state: str
    topic: str
    text: str
    cure: str = ""


def version(package: str) -> str | None:
    """The version that is installed; None for none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> Iterator[Line]:
    """Python and the packages, and whether they go together."""
    found = {name: version(name) for name in PACKAGES}
    text = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    yield Line("ok", "versions", f"Python {platform.python_version()}, {text}")
    missing = [name for name, number in found.items() if number is None]
    if missing:
        yield Line("BAD", "versions", f"not installed: {', '.join(missing)}", "pip install -e .")
    jax, jaxlib = found["jax"], found["jaxlib"]
    if jax and jaxlib and _numbers(jaxlib) > _numbers(jax):
        # jax accepts an older jaxlib down to a bound of its own, and no newer one.
        cure = f"pip install jax=={jax} jaxlib=={jax}"
        yield Line("BAD", "versions", f"jaxlib {jaxlib} is newer than jax {jax}", cure)
    yield from _unmet()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text)[:3])


def _unmet() -> Iterator[Line]:
    """What jaxdl asks for and is not there as asked."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return
    for text in importlib.metadata.requires("jaxdl") or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        there = version(wanted.name)
        if there is not None and not wanted.specifier.contains(there, prereleases=True):
            cure = f"pip install '{wanted.name}{wanted.specifier}'"
            yield Line("BAD", "versions", f"{wanted.name} {there} is not {wanted.specifier}", cure)


# What the process that may fail does; it prints one line of JSON for each thing it has found.
PROBE = r"""
import json, os, time
say = lambda **found: print(json.dumps(found), flush=True)
import jax, jax.numpy as jnp
say(platform=jax.default_backend(), devices=[d.device_kind for d in jax.devices()],
    version=getattr(jax.devices()[0].client, "platform_version", ""))
stats = jax.devices()[0].memory_stats() or {}
say(memory=stats.get("bytes_limit"))
try:
    from jaxdl import cost
    say(peak=cost.peak_flops(jax.devices()[0]))
except Exception:
    pass
on_cpu = jax.default_backend() == "cpu"
dtype, n = (jnp.float32, 2048) if on_cpu else (jnp.bfloat16, 8192)
def rate(function, flops, *args):
    jax.block_until_ready(function(*args))
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        best = max(best, flops / (time.perf_counter() - start))
    return best
x = jnp.ones((n, n), dtype)
say(matmul=rate(jax.jit(jnp.dot), 2 * n**3, x, x), dtype=str(jnp.dtype(dtype)))
b, size, c = (8, 28, 128) if on_cpu else (256, 28, 256)
images, kernel = jnp.ones((b, size, size, c), dtype), jnp.ones((3, 3, c, c), dtype)
conv = jax.jit(lambda i, k: jax.lax.conv_general_dilated(
    i, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
say(conv=rate(conv, 2 * b * size**2 * c**2 * 9, images, kernel))
"""


def probe() -> tuple[dict[str, Any], str]:
    """What JAX tells in a process of its own, and why it told no more; empty where it told all."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=environment,
        )
        output, error = done.stdout, done.stderr if done.returncode else ""
        if done.returncode < 0:
            error = error or f"ended by signal {-done.returncode}"
    except subprocess.TimeoutExpired as late:
        output, error = _text(late.stdout), f"no answer within {PATIENCE} s"
    found: dict[str, Any] = {}
    for line in output.splitlines():
        try:
            found |= json.loads(line)
        except (ValueError, TypeError):
            continue
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return found, lines[-1][:300] if lines else ""


def _text(output: Any) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def devices(found: dict[str, Any], error: str) -> Iterator[Line]:
    """What JAX runs on, and how fast it is."""
    if "platform" not in found:
        cure = "pip install -e ."
        if os.environ.get("JAX_PLATFORMS"):
            cure = f"unset JAX_PLATFORMS, which is {os.environ['JAX_PLATFORMS']!r}"
        yield Line("BAD", "devices", f"JAX does not start: {error or 'it said nothing'}", cure)
        return
    kinds = found["devices"]
    named = " and ".join(f"{kinds.count(kind)} x {kind}" for kind in sorted({*kinds}))
    memory = found.get("memory")
    size = f", {memory / 2**30:.1f} GiB each" if memory else ""
    yield Line("ok", "devices", f"{found['platform']}: {named}{size}")
    if error:
        yield Line(
            "BAD", "devices", f"JAX fails at its first programs: {error}", "pip install -e ."
        )
    if "matmul" in found:
        yield from _speeds(found)


def _speeds(found: dict[str, Any]) -> Iterator[Line]:
    on_cpu = found["platform"] == "cpu"
    peak = cpu_peak() if on_cpu else found.get("peak")
    for name, topic in (("matmul", "matrix product"), ("conv", "convolution")):
        if name not in found:
            continue
        text = f"{found[name] / 1e9:,.0f} GFLOP/s in {found['dtype']}"
        if peak is None:
            yield Line("ok", topic, f"{text}; what to expect is not known of this device")
            continue
        share = found[name] / peak
        source = "that its clock allows" if on_cpu else "of its data sheet"
        text += f", {share:.0%} of the {peak / 1e9:,.0f} {source}"
        enough = 0.4 if name == "matmul" else 0.15
        cure = "" if share >= enough else "look for what else runs on it: top, nvidia-smi"
        yield Line("note" if cure else "ok", topic, text, cure)


def cpu_peak() -> float | None:
    """The most float32 FLOP/s of the cores that this process may use; None if not known."""
    info = _read("/proc/cpuinfo")
    speeds = [float(mhz) for mhz in re.findall(r"cpu MHz\s*:\s*([\d.]+)", info)]
    if not speeds:
        return None
    # Two fused multiply-adds a cycle, of as many floats as a register holds.
    width = 16 if "avx512f" in info else 8 if "avx2" in info else 4
    return len(os.sched_getaffinity(0)) * 1e6 * max(speeds) * width * 4


def accelerators(found: dict[str, Any]) -> Iterator[Line]:
    """Accelerators that are there and not used, and why."""
    used, chosen = found.get("platform"), os.environ.get("JAX_PLATFORMS", "")
    installed = {name: number for name in PLUGINS if (number := version(name))}
    if chosen:
        yield Line("note", "JAX_PLATFORMS", f"is {chosen!r}: JAX looks for nothing else", "")
    for name, number in installed.items():
        if name.startswith("jax-") and number != version("jaxlib"):
            cure = f"pip install '{name}=={version('jaxlib')}'"
            text = f"{name} {number} does not fit jaxlib {version('jaxlib')}"
            yield Line("BAD", "plugin", text, cure)
    driver = nvidia_driver()
    if driver is not None:
        text = f"NVIDIA driver {driver or 'of unknown version'}"
        plugin = next((name for name in installed if "cuda" in name), None)
        major = int(driver.split(".")[0]) if driver else 0
        least = CUDA_DRIVERS[plugin[8:10]] if plugin else 0
        if plugin is None:
            yield Line("BAD", "GPU", f"{text}, and no CUDA plugin of JAX", _cuda_extra(major))
        elif major and major < least:
            text += f": {plugin} needs {least} or newer"
            yield Line("BAD", "GPU", text, "install a newer driver, or the plugin of an older CUDA")
        elif used not in ("gpu", "cuda"):
            cure = "unset JAX_PLATFORMS" if chosen else "nvidia-smi, whether the GPU answers"
            yield Line("BAD", "GPU", f"{text} and {plugin}, but JAX runs on {used}", cure)
        else:
            yield Line("ok", "GPU", f"{text}, {plugin} {installed[plugin]}; {found.get('version')}")
    if glob.glob("/dev/accel*") and used != "tpu":
        cure = "unset JAX_PLATFORMS" if chosen else "pip install -e '.[tpu]'"
        text = f"a TPU is there, but JAX runs on {used}"
        if "libtpu" in installed and not chosen:
            cure = "end the other process that holds the TPU"
        yield Line("BAD", "TPU", text, cure)
    if used == "cpu" and driver is None and not glob.glob("/dev/accel*"):
        yield Line("ok", "accelerator", "none is there")


def _cuda_extra(driver: int) -> str:
    if 0 < driver < CUDA_DRIVERS["13"]:
        return "pip install 'jax[cuda12]'"
    return "pip install -e '.[cuda13]'"


def nvidia_driver() -> str | None:
    """The driver's version, empty where it does not tell; None where there is no GPU."""
    found = re.search(r"Module\s+(\d+\.[\d.]+)", _read("/proc/driver/nvidia/version"))
    if found:
        return found[1]
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(query, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.split("\n")[0].strip() if done.returncode == 0 else ""
    return "" if glob.glob("/dev/nvidia[0-9]*") else None


def host() -> Iterator[Line]:
    """Cores, threads and memory of this host, and what limits them."""
    cores, allowed = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    text = f"{allowed} of {cores} cores may be used"
    limited = len(quota) == 2 and quota[0] != "max" and int(quota[0]) < allowed * int(quota[1])
    if limited:
        text += f", for the time of {int(quota[0]) / int(quota[1]):.3g}"
    free = re.search(r"MemAvailable:\s*(\d+) kB", _read("/proc/meminfo"))
    if free:
        text += f"; {int(free[1]) / 2**20:.1f} GiB of memory are free"
    cure = "give the container as many cores as threads will run" if limited else ""
    yield Line("note" if limited else "ok", "host", text, cure)
    load = os.getloadavg()[0]
    if load > 0.5 * allowed:
        text = f"{load:.1f} processes want to run at once: what is timed now is slower"
        yield Line("note", "host", text, "wait, or end them: top")
    for name in ("XLA_FLAGS", "OMP_NUM_THREADS", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        if os.environ.get(name):
            yield Line("note", name, f"is {os.environ[name]!r}")


def cache() -> Iterator[Line]:
    """Where compiled programs are kept."""
    kept = os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/jaxdl/compiled")
    folder = Path(kept).expanduser()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK):
        cure = "export JAX_COMPILATION_CACHE_DIR=FOLDER"
        yield Line("note", "compile cache", f"{folder} cannot be written", cure)
        return
    sizes = [path.stat().st_size for path in folder.glob("*") if path.is_file()]
    free = shutil.disk_usage(there).free
    text = f"{folder}: {len(sizes)} programs, {sum(sizes) / 1e6:,.0f} MB; {free / 1e9:,.0f} GB free"
    cure = f"rm -r {folder}, or make room" if free < 1e9 else ""
    yield Line("note" if cure else "ok", "compile cache", text, cure)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def examine() -> list[Line]:
    """The whole report; what cannot be looked at is a line of it."""
    lines: list[Line] = []
    found, error = probe()
    parts: tuple[tuple[str, Callable[[], Iterator[Line]]], ...] = (
        ("versions", versions),
        ("devices", lambda: devices(found, error)),
        ("accelerator", lambda: accelerators(found)),
        ("host", host),
        ("compile cache", cache),
    )
    for topic, part in parts:
        try:
            lines += part()
        except Exception as unforeseen:  # a doctor does not faint
            text = f"could not be looked at: {type(unforeseen).__name__}: {unforeseen}"
            lines.append(Line("note", topic, " ".join(text.split())[:300]))
    return lines


def main(arguments: list[str]) -> int:
    """Prints the report; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.doctor", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    asked = parser.parse_args(arguments)
    lines = examine()
    for line in lines:
        if asked.json:
            print(json.dumps(line._asdict()))
            continue
        print(f"{line.state:<5} {line.topic:<15} {line.text}")
        if line.cure:
            print(f"      {'':<15} -> {line.cure}")
    return int(any(line.state == "BAD" and line.topic == "devices" for line in lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
