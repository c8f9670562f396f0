"""From arrays in memory to a run that can be stopped, gone on with, looked at and taken apart."""

import tempfile

import jax
import numpy as np
from sklearn.datasets import load_digits

from jaxdl import arrays, checkpoint, curvature, losses, models

# 1. Arrays. Any shape [N, ...], float or uint8; classes are integers.
images, labels = load_digits(return_X_y=True)
images = (images.reshape(-1, 8, 8, 1) * 15.9).astype(np.uint8)
train, test = slice(0, 1437), slice(1437, None)

# 2. A model is a Linen module; nothing is registered anywhere.
model = models.mlp.mlp(num_classes=10, width=64)

# 3. Fit it. With a folder it keeps checkpoints, metrics and curves there.
folder = tempfile.mkdtemp()
settings = {"epochs": 6, "optimizer": "adam", "learning_rate": 3e-3, "validation": 0.1}
fitted = arrays.fit(model, images[train], labels[train], workdir=folder, **settings)
measured = fitted.evaluate(images[test], labels[test])
print(measured)
assert measured["accuracy"] > 0.8

# 4. The same call finds what was trained, bit for bit, and trains nothing again.
again = arrays.fit(model, images[train], labels[train], workdir=folder, **settings)
same = jax.tree.map(lambda a, b: bool((a == b).all()), fitted.variables, again.variables)
assert all(jax.tree.leaves(same))

# 5. The checkpoint is nested dicts of NumPy arrays, which need none of this code.
saved = checkpoint.load(folder)
print({name: kernel["kernel"].shape for name, kernel in saved["params"].items()})

# 6. And the loss is a function of the parameters like any other: how sharp is the minimum?
inputs = images[train][:256].astype(np.float32) / 255


def loss(params):
    """The mean loss on 256 images."""
    logits = model.apply({"params": params}, inputs, train=False)
    costs = losses.cross_entropy(logits, labels[train][:256], 0.0)
    return costs.mean()


top = curvature.top_eigenvalues(loss, fitted.variables["params"], k=2)
print("the greatest eigenvalues of the Hessian:", top.values)
assert np.isfinite(top.values).all()
