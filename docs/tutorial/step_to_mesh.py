"""From one pure step to the same step on a mesh of devices, and to what it would need of a pod."""

import os

# Eight devices of this CPU stand in for eight chips. With real ones leave this line out.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from jaxdl import losses, models, optim, parallel, planning, schedules, sharding
from jaxdl.task import supervised

# 1. What is minimized, and how: two pure functions and two more.
model = models.mlp.mlp(num_classes=10, width=128)
init, loss = losses.classification(model, (8, 8, 1), normalize=lambda x: x / 16)
task = supervised(
    init, loss, optim.optimizer("adam"), schedules.schedule("cosine", steps=60, warmup_steps=5)
)
hparams = {"learning_rate": 3e-3, "l2_penalty": 0.0, "label_smoothing": 0.0}
hparams = jax.tree.map(jnp.float32, hparams | {"b1": 0.9, "b2": 0.999, "eps": 1e-8})

images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype(np.float32)


def batch(step):
    """The batch of a step: a pure function of its number."""
    rows = np.random.default_rng(step).integers(0, 1437, 64)
    mask = np.ones(64, np.float32)
    return {"image": images[rows], "label": labels[rows].astype(np.int32), "mask": mask}


def train(task, mesh):
    """Sixty steps of a task that was prepared for a mesh."""
    state = task.init(jax.random.key(0), hparams)
    for step in range(60):
        state, metrics = task.train(
            state, jax.device_put(batch(step), parallel.batch_sharding(mesh))
        )
        # Devices made of one CPU share its threads and wait for one another in each step: send no
        # many steps ahead. `jaxdl.loop.fit` keeps two in flight.
        jax.block_until_ready(metrics)
    return state, float(metrics["loss"].value)


# 2. The same step on one device, on eight, and on eight that hold an eighth of the state each.
one = parallel.data_mesh(jax.devices()[:1])
eight = parallel.data_mesh()
ways = {
    "one device": (parallel.jit(task, one), one),
    "eight": (parallel.jit(task, eight), eight),
    "eight, sharded": (parallel.jit(task, eight, rules=(sharding.fsdp,)), eight),
}
found = {name: train(*way) for name, way in ways.items()}
for name, (state, last) in found.items():
    kernel = state.params["fc1"]["kernel"]
    print(f"{name}: loss {last:.4f}, of fc1 each device holds {kernel.addressable_data(0).shape}")
losses_found = [last for _, last in found.values()]
assert np.ptp(losses_found) < 1e-3 * max(losses_found) + 1e-4

# 3. A sweep is vmap: eight learning rates as one program, all on the same batches.
rates = jnp.geomspace(1e-4, 1e-1, 8, dtype=jnp.float32)
lanes = jax.tree.map(lambda value: jnp.broadcast_to(value, rates.shape), hparams)
many = parallel.jit(parallel.vmap(task), one, batch_spec=jax.sharding.PartitionSpec())
state = many.init(jax.random.split(jax.random.key(0), 8), lanes | {"learning_rate": rates})
for step in range(60):
    state, metrics = many.train(state, batch(step))
best = int(np.argmin(metrics["loss"].total))
print(f"the best of eight rates: {rates[best]:.2g}")

# 4. What does a step ask of each device? Nothing is run for this.
sharded, state = ways["eight, sharded"][0], found["eight, sharded"][0]
placed = jax.device_put(batch(0), parallel.batch_sharding(eight))
needs = planning.needs_of(sharded.train.lower(state, placed).compile(), eight)
print(f"{needs.memory / 1e6:.1f} MB a device; messages:")
for collective in needs.collectives:
    print(f"  {collective.messages} {collective.kind} along {collective.axes}")
assert any(collective.kind == "all-gather" for collective in needs.collectives)
