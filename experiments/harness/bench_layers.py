"""The convolutions of a network one by one: forward, and both gradients, here, by XLA and in torch.

They say what bounds a step: what a network's convolutions take by the best program that there is
for each, a step cannot do without. XLA's are by its defaults, or by what XLA_FLAGS say.
"""

import collections
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, jaxprs_in_params

from experiments.harness import bench, bench_training, study
from experiments.harness.cli import require
from jaxdl import conv, models, parallel

SECONDS = 0.05
"""What an operation is to run for in a round."""
PAUSE = 0.2
"""After torch's part of a round, whose threads wait for more in a loop that takes a core."""
SIDES = ("here", "XLA", "torch")
OPERATIONS = ("forward", "image gradient", "kernel gradient")


class Convolution(NamedTuple):
    """One of a network, for a batch.

    Attributes:
      image: [B, H, W, C].
      kernel: [kh, kw, C, O].
      geometry: strides, padding and sizes.
    """

    image: tuple[int, ...]
    kernel: tuple[int, ...]
    geometry: conv.Geometry

    def __str__(self) -> str:
        """`56x56, 64 to 256, 1x1`, with the strides where there are any."""
        (_, height, width, inputs), (rows, columns, _, outputs) = self.image, self.kernel
        strides = self.geometry.strides
        by = "" if strides == (1, 1) else f", strides {strides[0]}x{strides[1]}"
        return f"{height}x{width}, {inputs} to {outputs}, {rows}x{columns}{by}"


def measure(config: Any) -> dict[str, Any]:
    """Prints what each convolution of a step takes, times how often it is there, and the sums."""
    require(config, "model", config.model in models.names(), "a name of jaxdl.models.names()")
    torch = bench.import_torch()
    image = bench_training.batch_of(config)["image"].shape
    found = convolutions(models.create(config.model), image)
    require(config, "model", bool(found), "a network of convolutions")
    print(
        f"{bench.machine(torch)}\n{config.model} on {image[1]}x{image[2]} images, batch {image[0]}"
    )
    sides = SIDES if torch is not None else SIDES[:2]
    head = [f"{side}: {operation}" for operation in OPERATIONS for side in sides[:2]]
    torch_head = ["torch: forward", "torch: gradients"] if torch is not None else []
    rows = [["ms of a step", "times", *head, *torch_head]]
    sums: dict[str, float] = collections.defaultdict(float)
    for place, (one, times) in enumerate(found.items()):
        milliseconds = _times(one, config.rounds, torch, of_the_images=place == 0)
        cells = [times * milliseconds.get(name, 0.0) for name in (*head, *torch_head)]
        rows.append([str(one), str(times), *(f"{cell:.2f}" for cell in cells)])
        print(f"{one}: measured", flush=True)
        for name, cell in zip((*head, *torch_head), cells, strict=True):
            sums[name.split(":")[0]] += cell
        sums["the best of both"] += times * sum(
            min(milliseconds.get(f"{side}: {operation}", 0.0) for side in SIDES[:2])
            for operation in OPERATIONS
        )
    print(study.table(rows))
    for name, total in sums.items():
        print(f"{name}: {total:.1f} ms")
    return {"milliseconds": dict(sums)}


def convolutions(model: Any, image: tuple[int, ...]) -> dict[Convolution, int]:
    """How often each is in a network that is trained on such a batch, in their order."""
    batch = jax.ShapeDtypeStruct(image, jnp.float32)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    apply = functools.partial(model.init, train=True)  # which runs it, too
    counted: dict[Convolution, int] = collections.Counter()
    for x, kernel, geometry in _found(jax.make_jaxpr(apply)(keys, batch).jaxpr):
        counted[Convolution(x, kernel, geometry)] += 1
    return dict(counted)


def _found(jaxpr: Jaxpr) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], conv.Geometry]]:
    for equation in jaxpr.eqns:
        if equation.primitive is conv.forward_p:
            operands: Any = [operand.aval for operand in equation.invars]
            x, kernel = (operand.shape for operand in operands)
            yield x, kernel, equation.params["geometry"]
        for inner in jaxprs_in_params(equation.params):
            yield from _found(inner)


def _times(one: Convolution, rounds: int, torch: Any, of_the_images: bool) -> dict[str, float]:
    """By side and operation the median of the rounds, in ms; images need no gradient."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)
    x, kernel = draw(*one.image), draw(*one.kernel)
    dy = draw(one.image[0], *one.geometry.output, one.kernel[3])
    of = {
        "forward": (conv.forward_p, x, kernel),
        "image gradient": (conv.image_gradient_p, dy, kernel),
        "kernel gradient": (conv.kernel_gradient_p, x, dy),
    }
    if of_the_images:
        del of["image gradient"]
    options = parallel.compiler_options(parallel.data_mesh(jax.devices()[:1]))
    steps = functools.partial(jax.jit, compiler_options=options)
    runs: dict[str, Callable[[], Any]] = {}
    for name, (primitive, *operands) in of.items():
        bind = functools.partial(primitive.bind, geometry=one.geometry)
        arrays = jax.device_put(operands)
        runs[f"here: {name}"] = functools.partial(steps(bind).lower(*arrays).compile(), *arrays)
        with bench_training.stock_programs():
            another = functools.partial(bind)  # of the same one JAX has the program of before
            stock = jax.jit(another).lower(*arrays).compile()
        runs[f"XLA: {name}"] = functools.partial(stock, *arrays)
    if torch is not None:
        runs |= _in_torch(one, torch, x, kernel, dy, of_the_images)
    sides = [bench.Side(name, functools.partial(_repeated, run)) for name, run in runs.items()]
    for side in sides:
        side.run(2)  # memory is made room for
    counts = [bench.steps_of(side, SECONDS) for side in sides]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for side, count in zip(sides, counts, strict=True):
            began = time.perf_counter()
            side.run(count)
            seconds[side.name].append((time.perf_counter() - began) / count)
        time.sleep(PAUSE if torch is not None else 0)
    return {name: 1e3 * float(np.median(found)) for name, found in seconds.items()}


def _repeated(run: Callable[[], Any], steps: int) -> None:
    for _ in range(steps):
        result = run()
    jax.block_until_ready(result)


def _in_torch(
    one: Convolution, torch: Any, x: Any, kernel: Any, dy: Any, of_the_images: bool
) -> dict[str, Callable[[], Any]]:
    """torch's forward pass, and both gradients at once, in its own layout."""
    nchw = lambda array: torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))
    weight = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
    (top, bottom), (left, right) = one.geometry.padding
    images = torch.nn.functional.pad(nchw(x), (0, right - left, 0, bottom - top))
    padding = [top, left]  # what the other sides have more is in the images
    strides = [*one.geometry.strides]
    forward = functools.partial(torch.conv2d, images, weight, None, strides, padding)
    backward = functools.partial(
        torch.ops.aten.convolution_backward,
        *(nchw(dy), images, weight, None, strides, padding, [1, 1], False, [0, 0], 1),
        [not of_the_images, True, False],
    )
    return {"torch: forward": forward, "torch: gradients": backward}
