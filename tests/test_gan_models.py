"""The players of GANs, held to torch, to their papers' numbers and to hand-worked ones."""

from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from golden.weights import weight
from networks import slow

import jaxdl
from jaxdl.conv import double
from jaxdl.models import gan

GOLDEN = Path(__file__).parent / "golden" / "gan.npz"
LABELS = jnp.array([2, 0, 2])
CLASSES = 3


def noise(seed, *shape):
    """Return uniform values in [-1, 1), as `golden/record_gan.py` does."""
    return np.random.RandomState(seed).uniform(-1, 1, shape).astype(np.float32)


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def init(model, inputs, labels=LABELS):
    """Return fresh variables, as NumPy has them, by which nothing is compiled to compare them."""
    init = jax.jit(partial(model.init, train=False))
    return jax.device_get(init(jax.random.key(0), inputs, labels))


@partial(jax.jit, static_argnums=0)
def training(model, variables, inputs, labels=LABELS, key=None):
    """Return the outputs of a training call, and the batch statistics after it."""
    rngs = {"dropout": jax.random.key(1) if key is None else key}
    outputs, updates = model.apply(
        variables, inputs, labels, train=True, mutable=["batch_stats"], rngs=rngs
    )
    return outputs, updates.get("batch_stats", {})


def gradient(model, variables, inputs, direction, labels=LABELS):
    """Return the gradient, of all parameters, of the outputs' product with a direction.

    Beside it the outputs of that training call, and the batch statistics after it.
    """

    def product(params):
        outputs, stats = training(model, variables | {"params": params}, inputs, labels)
        return jnp.sum(outputs * direction.reshape(outputs.shape)), (outputs, stats)

    return jax.device_get(jax.jit(jax.grad(product, has_aux=True))(variables["params"]))


def largest_error(got, expected):
    """Return the largest difference, as a fraction of the largest expected magnitude."""
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())


# Equality to torch.

generator = partial(gan.dcgan_generator, image_size=16, channels=2, width=3)
discriminator = partial(gan.dcgan_discriminator, width=3)
maxout = partial(gan.mlp_discriminator, width=4, pieces=3, dropout=0.0, input_dropout=0.0)

RECORDED: dict[str, tuple[Any, np.ndarray]] = {
    "transposed_16": (generator(channels=3), noise(0, 3, 5)),
    "transposed_32": (generator(image_size=32, channels=1, width=2), noise(0, 3, 5)),
    "resize_16": (generator(upsampling="resize", num_classes=CLASSES), noise(0, 3, 5)),
    "pixel_shuffle_16": (generator(upsampling="pixel_shuffle"), noise(0, 3, 5)),
    "plain_16": (generator(norm="none"), noise(0, 3, 5)),
    "batch_16": (discriminator(), noise(0, 3, 16, 16, 3)),
    "batch_32": (discriminator(width=2), noise(0, 3, 32, 32, 1)),
    "mlp": (
        gan.mlp_generator(output_shape=(3, 3, 2), width=6, num_classes=CLASSES),
        noise(0, 3, 5),
    ),
    **{
        f"{norm}_16": (discriminator(norm=norm, num_classes=CLASSES), noise(0, 3, 16, 16, 2))
        for norm in ("layer", "spectral", "none")
    },
    **{
        f"mlp_{norm}": (maxout(norm=norm, num_classes=CLASSES), noise(0, 3, 3, 3, 2))
        for norm in ("layer", "spectral", "none")
    },
}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def torch_name(path: str) -> str:
    """Return torch's name of what we have at that path: conv1.weight of conv1/kernel."""
    layer, parameter = path.split("/")
    buffers = {"bias": "bias", "mean": "running_mean", "var": "running_var"}
    return f"{layer}.{buffers.get(parameter, 'weight')}"


def as_ours(model: Any, path: str, theirs: np.ndarray) -> np.ndarray:
    """Return a torch parameter, or its gradient, as the model's layer at that path has it."""
    layer, parameter = path.split("/")
    if parameter != "kernel":
        return theirs
    if layer == "project" and theirs.ndim == 4:  # a transposed convolution of one pixel
        return theirs.transpose(0, 2, 3, 1).reshape(len(theirs), -1)
    if layer.startswith("up") and model.upsampling == "transposed":
        return theirs.transpose(2, 3, 0, 1)[::-1, ::-1]
    return theirs.transpose((2, 3, 1, 0) if theirs.ndim == 4 else (1, 0))


QUICK_CASES = ("transposed_16", "batch_16", "mlp", "mlp_layer")


@pytest.mark.parametrize("case", [c if c in QUICK_CASES else slow(c) for c in RECORDED])
def test_outputs_statistics_and_gradients_are_torch_s(case, golden):
    model, inputs = RECORDED[case]
    start = f"{case}/"
    golden = {key.removeprefix(start): golden[key] for key in golden if key.startswith(start)}

    variables = init(model, inputs)
    params = flat(variables["params"])
    recorded = {key.removeprefix("grad/") for key in golden if key.startswith("grad/")}
    assert {torch_name(path) for path in params} == recorded
    for path in params:
        name = torch_name(path)
        params[path] = as_ours(model, path, weight(name, golden[f"grad/{name}"].shape))
    variables["params"] = traverse_util.unflatten_dict(params, sep="/")
    before = {
        path: weight(torch_name(path), leaf.shape)
        for path, leaf in flat(variables.get("batch_stats", {})).items()
        if path.endswith(("mean", "var"))
    }
    if before:
        variables["batch_stats"] = traverse_util.unflatten_dict(before, sep="/")
    if "spectral" in case:
        iterate = lambda _, stats: training(model, variables | {"batch_stats": stats}, inputs)[1]
        variables["batch_stats"] = jax.jit(partial(jax.lax.fori_loop, 0, 300, iterate))(
            variables["batch_stats"]
        )

    if "eval" in golden:
        evaluated = jax.jit(partial(model.apply, train=False))(variables, inputs, LABELS)
        assert largest_error(evaluated, golden["eval"]) < 3e-6
    direction = noise(1, *golden["train"].shape)
    grads, (outputs, stats) = gradient(model, variables, inputs, direction)
    assert largest_error(outputs.reshape(golden["train"].shape), golden["train"]) < 3e-6
    for path in before:
        assert largest_error(flat(stats)[path], golden[f"stats/{torch_name(path)}"]) < 1e-6, path

    for path, grad in flat(grads).items():
        expected = as_ours(model, path, golden[f"grad/{torch_name(path)}"])
        assert largest_error(grad, expected) < 1e-5, path


# The contract.

mlp_d = partial(gan.mlp_discriminator, width=6)
PLAYERS: dict[str, tuple[Any, tuple[int, ...], bool]] = {
    "transposed": (generator, (5,), True),
    "resize": (partial(generator, upsampling="resize"), (5,), True),
    "pixel_shuffle": (partial(generator, upsampling="pixel_shuffle"), (5,), True),
    "kernel_5": (partial(generator, kernel_size=5), (5,), True),
    "no_norm": (partial(generator, norm="none"), (5,), False),
    "mlp": (partial(gan.mlp_generator, output_shape=(16, 16, 2), width=6), (5,), False),
    "batch": (discriminator, (16, 16, 2), True),
    "layer": (partial(discriminator, norm="layer"), (16, 16, 2), False),
    "spectral": (partial(discriminator, norm="spectral"), (16, 16, 2), True),
    "none": (partial(discriminator, norm="none", kernel_size=5), (16, 16, 2), False),
    "mlp_none": (mlp_d, (16, 16, 2), False),
    "mlp_layer": (partial(mlp_d, norm="layer"), (16, 16, 2), False),
    "mlp_spectral": (partial(mlp_d, norm="spectral"), (16, 16, 2), True),
}


QUICK = ("mlp", "batch")


@pytest.mark.parametrize("player", [name if name in QUICK else slow(name) for name in PLAYERS])
def test_contract(player):
    build, shape, has_statistics = PLAYERS[player]
    build = partial(build, num_classes=CLASSES)
    model = build()
    inputs = noise(0, 3, *shape)
    variables = init(model, inputs)
    is_generator = len(shape) == 1
    expected = (3, 16, 16, 2) if is_generator else (3,)
    grads, (outputs, stats) = gradient(model, variables, inputs, noise(1, *expected))
    assert outputs.shape == expected
    assert outputs.dtype == jnp.float32
    assert np.isfinite(outputs).all()

    # Statistics move in training only.
    before = flat(variables.get("batch_stats", {}))
    assert bool(before) == has_statistics
    assert set(flat(stats)) == set(before)
    for path, leaf in before.items():
        # The singular value that spectral norm estimates is 1 at first, and after.
        assert path.endswith("sigma") or (flat(stats)[path] != leaf).any(), path
    evaluate = jax.jit(partial(model.apply, train=False, mutable=["batch_stats"]))
    precise, kept = jax.device_get(evaluate(variables, inputs, LABELS))
    for path, leaf in flat(kept.get("batch_stats", {})).items():
        assert (leaf == before[path]).all(), path
    if is_generator:
        assert 0.9 < np.abs(evaluate(variables, 1e4 * inputs, LABELS)[0]).max() <= 1

    others = np.asarray(evaluate(variables, inputs, jnp.array([1, 0, 0]))[0])
    changed = (others != precise).reshape(3, -1).any(axis=1)
    assert changed.tolist() == [True, False, True]
    with pytest.raises(jaxdl.InputError, match="of 3 classes takes labels: none were given"):
        jax.eval_shape(partial(model.apply, train=False), variables, inputs)

    for path, grad in flat(grads).items():
        assert np.isfinite(grad).all(), path
        assert np.abs(grad).max() > 0, path

    half = build(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(partial(half.init, train=False), jax.random.key(0), inputs, LABELS)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    capture = jax.jit(partial(half.apply, train=False, capture_intermediates=True))
    rough, sown = jax.device_get(capture(variables, inputs, LABELS))
    assert rough.dtype == jnp.float32
    for path, (leaf,) in flat(sown["intermediates"]).items():
        # Dropout of the input comes before any layer that computes.
        if path not in ("__call__", "Dropout_0/__call__"):
            assert leaf.dtype == jnp.bfloat16, path
    assert 0 < largest_error(rough, precise) < 3e-2

    stored = build(param_dtype=jnp.float16)
    shapes = jax.eval_shape(partial(stored.init, train=False), jax.random.key(0), inputs, LABELS)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes["params"])} == {jnp.dtype("float16")}


@pytest.mark.parametrize("player", [slow("resize"), "mlp", slow("none"), slow("mlp_none")])
def test_without_classes_labels_are_ignored(player):
    build, shape, _ = PLAYERS[player]
    model, inputs = build(), noise(0, 3, *shape)
    variables = init(model, inputs, None)
    outputs = model.apply(variables, inputs, train=False)
    assert (model.apply(variables, inputs, LABELS, train=False) == outputs).all()


def count(model, *shape):
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape), train=False))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_parameter_counts():
    # torch's DCGAN example, of 64x64x3, 100 latents and a width of 64.
    assert count(gan.dcgan_generator(image_size=64, channels=3), 1, 100) == 3_576_704
    assert count(gan.dcgan_discriminator(), 1, 64, 64, 3) == 2_765_568
    # By hand: kernels, and two for each normed channel.
    upwards = 100 * 16 * 256 + 16 * (256 * 128 + 128 * 64 + 64) + 2 * (256 + 128 + 64)
    assert count(gan.dcgan_generator(), 1, 100) == upwards == 1_066_880
    downwards = 16 * (64 + 64 * 128 + 128 * 256 + 256) + 2 * (128 + 256)
    for norm in ("batch", "layer"):
        assert count(gan.dcgan_discriminator(norm=norm), 1, 32, 32, 1) == downwards == 661_248
    for norm in ("spectral", "none"):
        biases = 128 + 256
        assert count(gan.dcgan_discriminator(norm=norm), 1, 32, 32, 1) == downwards - biases
    assert count(gan.mlp_generator(), 1, 100) == 101 * 1200 + 1201 * 1200 + 1201 * 784 == 2_503_984
    assert (
        count(gan.mlp_discriminator(), 1, 28, 28, 1) == 785 * 1200 + 241 * 1200 + 241 == 1_231_441
    )


@pytest.mark.parametrize("size", [16, 32, 64])
def test_maps_of_every_size(size):
    generator = gan.dcgan_generator(image_size=size, channels=3, width=4)
    discriminator = gan.dcgan_discriminator(width=4)

    def maps(model, shape):
        call = lambda: model.init_with_output(
            jax.random.key(0), jnp.zeros(shape), train=False, capture_intermediates=True
        )
        outputs, variables = jax.eval_shape(call)
        sown = flat(variables["intermediates"])
        return outputs.shape, [
            leaves[0].shape[1:]
            for path, leaves in sorted(sown.items())
            if path.startswith(("up", "conv"))
        ]

    sides = [side for side in (8, 16, 32, 64) if side <= size]
    widths = [4 * size // side // 2 for side in sides[:-1]] + [3]
    shape, up = maps(generator, [2, 7])
    assert shape == (2, size, size, 3)
    assert up == [(side, side, width) for side, width in zip(sides, widths, strict=True)]
    shape, down = maps(discriminator, [2, size, size, 3])
    assert shape == (2,)
    assert down == [(size >> i, size >> i, 4 << (i - 1)) for i in range(1, len(sides) + 1)]


def test_points():
    generator = gan.mlp_generator(output_shape=(2,), width=8)
    discriminator = gan.mlp_discriminator(width=8)
    points = generator.apply(init(generator, noise(0, 3, 4)), noise(0, 3, 4), train=False)
    assert points.shape == (3, 2)
    logits = discriminator.apply(init(discriminator, points), points, train=False)
    assert logits.shape == (3,)


# Parts.


@pytest.mark.parametrize("kernel_size", [2, 3, 4, slow(5), slow(6)])
def test_transposed_convolution_is_that_of_jax(kernel_size):
    """And so are its gradients, the kernel's being what it is written for."""
    x, kernel = noise(0, 2, 4, 6, 3), noise(1, kernel_size, kernel_size, 3, 2)
    layer = nn.ConvTranspose(2, (kernel_size,) * 2, strides=(2, 2), use_bias=False)
    of_jax, its_gradients = jax.vjp(
        lambda x, kernel: layer.apply({"params": {"kernel": kernel}}, x), x, kernel
    )
    ours, gradients = jax.vjp(double, x, kernel)
    assert ours.shape == (2, 8, 12, 2)
    direction = noise(2, *ours.shape)
    for got, expected in zip(
        (ours, *gradients(direction)), (of_jax, *its_gradients(direction)), strict=True
    ):
        assert largest_error(got, expected) < 1e-6


@pytest.mark.parametrize("kernel_size", [None, slow(5)])
def test_maps_are_doubled_by_transposed_convolutions(kernel_size):
    model = gan.dcgan_generator(image_size=16, kernel_size=kernel_size, norm="none")
    used: list[Any] = []

    def spy(call, args, kwargs, context):
        if context.module.name in ("up1", "up2"):
            used.append(context.module)
        return call(*args, **kwargs)

    with nn.intercept_methods(spy):
        init(model, noise(0, 1, 5))
    size = kernel_size or 4
    assert {(m.kernel_size, m.conv_general_dilated) for m in used} == {((size, size), double)}


@pytest.mark.slow
def test_weights_start_as_in_the_papers():
    latents, images = noise(0, 3, 100), noise(0, 3, 32, 32, 1)
    for model, inputs in (
        (gan.dcgan_generator(width=32, num_classes=10), latents),
        (gan.dcgan_generator(width=32, norm="none"), latents),
        (gan.dcgan_discriminator(width=32, num_classes=10), images),
        (gan.dcgan_discriminator(width=32, norm="none"), images),
    ):
        for path, leaf in flat(init(model, inputs)["params"]).items():
            if path.endswith(("kernel", "embedding")):
                deviations = 0.02 / np.sqrt(leaf.size)
                assert abs(leaf.mean()) < 5 * deviations, path
                assert abs(leaf.std() - 0.02) < 5 * deviations, path
            else:
                assert (leaf == (1 if path.endswith("scale") else 0)).all(), path
    images = noise(0, 3, 28, 28, 1)
    for model, inputs, bound in (
        (gan.mlp_generator(width=300, num_classes=10), latents, 0.05),
        (gan.mlp_discriminator(width=100, num_classes=10), images, 0.005),
    ):
        for path, leaf in flat(init(model, inputs)["params"]).items():
            if path.endswith("bias"):
                assert (leaf == 0).all(), path
            else:
                assert 0.95 * bound < leaf.max() < bound, path
                assert -bound <= leaf.min() < -0.95 * bound, path


def test_spectral_norm_is_one_power_iteration_a_training_call():
    model = discriminator(norm="spectral", num_classes=CLASSES)
    images = noise(0, 3, 16, 16, 2)
    variables = init(model, images)
    variables["params"] = jax.tree.map(lambda leaf: 3 * leaf, variables["params"])
    params, old = flat(variables["params"]), variables["batch_stats"]
    _, new = training(model, variables, images)
    normed = lambda vector: vector / np.linalg.norm(vector)
    wrapped = set()
    for name, layer in old.items():
        for key in layer:
            if key.endswith("/u"):
                path = key.removesuffix("/u")
                matrix = np.asarray(params[path]).reshape(-1, params[path].shape[-1])
                left = normed(matrix @ layer[key][0])
                right = normed(left @ matrix)
                assert largest_error(new[name][key][0], right) < 1e-5
                assert abs(new[name][f"{path}/sigma"] - left @ matrix @ right) < 1e-5
                wrapped.add(path)
    assert wrapped == {path for path in params if path.endswith(("kernel", "embedding"))}

    once = lambda _, stats: training(model, variables | {"batch_stats": stats}, images)[1]
    last = jax.jit(lambda stats: jax.lax.fori_loop(0, 500, once, stats))(old)
    for layer in last.values():
        ((path, sigma),) = [(k.removesuffix("/sigma"), layer[k]) for k in layer if "sigma" in k]
        matrix = np.asarray(params[path]).reshape(-1, params[path].shape[-1])
        assert abs(sigma / np.linalg.svd(matrix, compute_uv=False)[0] - 1) < 1e-5


@pytest.mark.slow
def test_layer_norm_does_not_mix_examples_and_takes_second_derivatives():
    images = noise(0, 3, 16, 16, 2)
    for build in (partial(discriminator, norm="layer"), partial(maxout, norm="layer")):
        model = build()
        variables = init(model, images)

        def slopes(params, images, model=model):
            logits = lambda images: training(model, {"params": params}, images)[0]
            return jax.jacobian(logits)(images)

        jacobian = jax.jit(slopes)(variables["params"], images)
        for i, j in np.ndindex(3, 3):
            assert bool(jnp.abs(jacobian[i, j]).max() > 0) == (i == j)
        penalty = lambda params: jnp.sum(slopes(params, images) ** 2)
        grads = jax.jit(jax.grad(penalty))(variables["params"])
        assert all(jnp.isfinite(grad).all() for grad in jax.tree.leaves(grads))
        assert any(jnp.abs(grad).max() > 0 for grad in jax.tree.leaves(grads))


def test_dropout():
    model = gan.mlp_discriminator(width=500, pieces=2)
    points = noise(0, 20, 500)
    variables = init(model, points)

    def zeros(train):
        _, sown = model.apply(
            variables,
            points,
            train=train,
            capture_intermediates=True,
            mutable=["intermediates"],
            rngs={"dropout": jax.random.key(1)},
        )
        leaves = flat(sown["intermediates"])
        return [float((leaves[f"Dropout_{i}/__call__"][0] == 0).mean()) for i in range(3)]

    assert zeros(train=True) == pytest.approx([0.2, 0.5, 0.5], abs=0.02)
    assert zeros(train=False) == [0, 0, 0]


@pytest.mark.parametrize(
    ("build", "shape"), [(generator, (5,)), (discriminator, (16, 16, 2))], ids=["up", "down"]
)
def test_batch_norm_over_a_mapped_axis(build, shape):
    inputs = noise(0, 4, *shape)
    model, mapped = build(), build(axis_name="device")
    variables = init(model, inputs)
    whole, stats = jax.jit(partial(training, model))(variables, inputs)
    of_part = lambda part: training(mapped, variables, part)
    halves = inputs.reshape(2, 2, *shape)
    parts, stats_of_each = jax.jit(jax.vmap(of_part, axis_name="device"))(halves)
    assert largest_error(parts.reshape(whole.shape), whole) < 1e-5
    for path, leaf in flat(stats).items():
        for of_each in flat(stats_of_each)[path]:
            assert largest_error(of_each, leaf) < 1e-5, path


# Bad input.


@pytest.mark.parametrize(
    ("build", "kwargs", "message"),
    [
        ("dcgan_generator", {"image_size": 28}, "image_size out of 16, 32, 64, not 28"),
        (
            "dcgan_generator",
            {"upsampling": "bilinear"},
            "upsampling out of transposed, resize, pixel_shuffle, not 'bilinear'",
        ),
        ("dcgan_generator", {"norm": "layer"}, "norm out of batch, none, not 'layer'"),
        ("dcgan_generator", {"width": 0}, "width of at least 1, not 0"),
        ("dcgan_generator", {"channels": 0}, "channels of at least 1, not 0"),
        ("dcgan_generator", {"kernel_size": 1}, "kernel_size of at least 2, not 1"),
        ("dcgan_generator", {"num_classes": -1}, "num_classes of at least 0, not -1"),
        (
            "dcgan_discriminator",
            {"norm": "group"},
            "norm out of batch, layer, spectral, none, not 'group'",
        ),
        ("dcgan_discriminator", {"width": -2}, "width of at least 1, not -2"),
        ("dcgan_discriminator", {"kernel_size": 0}, "kernel_size of at least 2, not 0"),
        ("dcgan_discriminator", {"num_classes": -1}, "num_classes of at least 0, not -1"),
        ("mlp_generator", {"output_shape": (0, 2)}, "output_shape of sizes of at least 1"),
        ("mlp_generator", {"output_shape": ()}, "output_shape of sizes of at least 1"),
        ("mlp_generator", {"depth": 0}, "depth of at least 1, not 0"),
        ("mlp_generator", {"width": 0}, "width of at least 1, not 0"),
        ("mlp_generator", {"num_classes": -1}, "num_classes of at least 0, not -1"),
        ("mlp_discriminator", {"norm": "batch"}, "norm out of none, layer, spectral, not"),
        ("mlp_discriminator", {"width": 0}, "width of at least 1, not 0"),
        ("mlp_discriminator", {"depth": 0}, "depth of at least 1, not 0"),
        ("mlp_discriminator", {"pieces": 1}, "pieces of at least 2, not 1"),
        ("mlp_discriminator", {"num_classes": -1}, "num_classes of at least 0, not -1"),
        ("mlp_discriminator", {"dropout": 1.0}, r"dropout in \[0, 1\), not 1.0"),
        ("mlp_discriminator", {"input_dropout": -0.1}, r"input_dropout in \[0, 1\), not -0.1"),
    ],
)
def test_bad_arguments(build, kwargs, message):
    with pytest.raises(jaxdl.InputError, match=f"^{build} takes {message}[^\n]*$"):
        getattr(gan, build)(**kwargs)


@pytest.mark.parametrize("size", [(28, 28), (16, 32), (8, 8), (128, 128)])
def test_images_of_another_size(size):
    model = discriminator()
    variables = init(model, noise(0, 3, 16, 16, 2))
    message = f"takes images of 16x16, 32x32, 64x64 pixels, not {size[0]}x{size[1]}"
    with pytest.raises(jaxdl.InputError, match=message):
        model.apply(variables, jnp.zeros([1, *size, 2]), train=False)
