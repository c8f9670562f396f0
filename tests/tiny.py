"""A convolutional network with batch statistics, small enough to compile in a second."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import augment, losses, optim, parallel, schedules, task

HPARAMS = {"learning_rate": 0.1, "momentum": 0.9, "l2_penalty": 1e-3, "label_smoothing": 0.1}


class Net(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(8, (3, 3), use_bias=False)(x)
        x = nn.BatchNorm(not train, momentum=0.9, axis_name=self.axis_name)(x)
        return nn.Dense(3)(nn.relu(x).mean((1, 2)))


def build(axis_name=None, accumulate=1, augmented=True, optimizer="nesterov", synchronized=True):
    """The Task of training `Net` on 6x6 images of three classes, with all the trimmings."""
    init, loss = losses.classification(
        Net(axis_name if synchronized else None),
        (6, 6, 1),
        functools.partial(augment.normalize, mean=(0.5,), std=(0.5,)),
        augment.compose(augment.flip, augment.padded_crop(1), augment.warp(10, 0.1, 0.1))
        if augmented
        else lambda key, images: images,
    )
    return task.supervised(
        init,
        loss,
        optim.optimizer(optimizer, clip_global_norm=1.0),
        schedules.schedule("cosine", steps=20, warmup_steps=3),
        accumulate=accumulate,
        axis_name=axis_name,
    )


@functools.cache
def jitted(devices=1):
    """The Task under jit on so many devices, compiled once for all tests of a process."""
    return parallel.jit(build(), parallel.data_mesh(jax.devices()[:devices]))


def hparams(**changes):
    return {k: jnp.float32(v) for k, v in {**HPARAMS, **changes}.items()}


@functools.cache
def batches(count=10, size=16, seed=0):
    """Batches whose classes differ in brightness, with two examples masked out of each."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        label = rng.integers(0, 3, size).astype(np.int32)
        noise = rng.integers(0, 100, (size, 6, 6, 1))
        image = (noise + 70 * label[:, None, None, None]).astype(np.uint8)
        mask = np.ones(size, np.float32)
        mask[:2] = 0
        made.append({"image": image, "label": label, "mask": mask})
    return made


def distance(a, b):
    """The greatest difference between the trained parts of two states."""
    pairs = zip(
        jax.tree.leaves((a.params, a.extra, a.opt_state)),
        jax.tree.leaves((b.params, b.extra, b.opt_state)),
        strict=True,
    )
    return max(float(np.max(np.abs(np.asarray(x) - np.asarray(y)))) for x, y in pairs)
