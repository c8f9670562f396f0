"""Record optim_tf.npz or optim_torch.npz: weights under fixed gradients, step by step.

TensorFlow's are of the kernels themselves (`tf.raw_ops.ResourceApply...`), torch's of
`torch.optim`. The gradients change their signs and are zero now and then, and one weight never has
any; where `changing`, so does the learning rate.

Run in an environment that has the framework; the tests never import this file:

    python tests/golden/record_optim.py tf
    python tests/golden/record_optim.py torch

Recorded with tensorflow 2.21.0 and torch 2.13.0, on a CPU.
"""

import json
import sys
from pathlib import Path

import numpy as np

STEPS = 12
START = np.float32([1.0, -2.0, 0.3, -0.05, 0.0, 0.7])
GRADIENTS = np.random.default_rng(0).normal(size=(STEPS, 6)).astype(np.float32)
GRADIENTS[:, 0] = np.abs(GRADIENTS[:, 0])  # one weight goes one way, through zero
GRADIENTS[3:6, 2] = 0
GRADIENTS[:, 5] = 0
RATES = np.float32(0.3) * np.float32(0.8) ** np.arange(STEPS, dtype=np.float32)

# (method, arguments, whether the rate changes)
TF_CASES = [
    ("ftrl", {}, False),
    ("ftrl", {}, True),
    ("ftrl", {"l1": 0.4}, True),
    ("ftrl", {"l2": 0.3, "beta": 0.5}, True),
    ("ftrl", {"l2_shrinkage": 0.2}, False),
    ("ftrl", {"learning_rate_power": -0.7, "initial_accumulator_value": 0.5}, False),
    ("ftrl", {"learning_rate_power": 0.0, "l1": 0.1, "l2_shrinkage": 0.1}, False),
    ("ftrl", {"l1": 0.2, "l2": 0.1, "l2_shrinkage": 0.05, "learning_rate_power": -0.6}, True),
    ("adagrad_da", {}, True),
    ("adagrad_da", {"l1": 0.1}, False),
    ("adagrad_da", {"l2": 0.2, "initial_accumulator_value": 1.0}, True),
    ("adagrad_da", {"l1": 0.05, "l2": 0.1}, True),
    ("proximal_sgd", {}, True),
    ("proximal_sgd", {"l1": 0.5}, False),
    ("proximal_sgd", {"l2": 0.5}, True),
    ("proximal_sgd", {"l1": 0.2, "l2": 0.3}, True),
    ("proximal_adagrad", {}, True),
    ("proximal_adagrad", {"l1": 0.5}, False),
    ("proximal_adagrad", {"l2": 0.5, "initial_accumulator_value": 1.0}, True),
    ("proximal_adagrad", {"l1": 0.2, "l2": 0.3}, True),
]


def tf_trajectory(name, initial_accumulator_value=0.1, l1=0.0, l2=0.0, beta=0.0, rates=(), **more):
    import tensorflow as tf

    variable, squares, linear = (
        tf.Variable(np.broadcast_to(np.float32(value), START.shape))
        for value in (START, initial_accumulator_value, 0.0)
    )
    path = []
    for step, (grad, rate) in enumerate(zip(GRADIENTS, rates, strict=True)):
        common = {"var": variable.handle, "l1": l1, "l2": l2}
        if name == "ftrl":
            tf.raw_ops.ResourceApplyFtrlV2(
                **common | {"l2": l2 + beta / (2 * rate)},
                accum=squares.handle,
                linear=linear.handle,
                grad=grad,
                lr=rate,
                l2_shrinkage=more.get("l2_shrinkage", 0.0),
                lr_power=more.get("learning_rate_power", -0.5),
            )
        elif name == "adagrad_da":
            tf.raw_ops.ResourceApplyAdagradDA(
                **common,
                gradient_accumulator=linear.handle,
                gradient_squared_accumulator=squares.handle,
                grad=grad,
                lr=rate,
                global_step=tf.constant(step + 1, tf.int64),
            )
        elif name == "proximal_sgd":
            tf.raw_ops.ResourceApplyProximalGradientDescent(**common, delta=grad, alpha=rate)
        else:
            tf.raw_ops.ResourceApplyProximalAdagrad(
                **common, accum=squares.handle, grad=grad, lr=rate
            )
        path.append(variable.numpy())
    return path


def tf_averages(decay, counted):
    """The averages of the rows of `GRADIENTS`, starting at the first row."""
    import tensorflow as tf

    variable, updates, path = tf.Variable(GRADIENTS[0]), tf.Variable(0), []
    average = tf.train.ExponentialMovingAverage(decay, updates if counted else None)
    average.apply([variable])  # the average starts at the variable's value
    for n, row in enumerate(GRADIENTS[1:]):
        updates.assign(n)
        variable.assign(row)
        average.apply([variable])
        path.append(average.average(variable).numpy())
    return path


def torch_methods():
    """(method, its arguments in optax, the optimizer in torch)."""
    from functools import partial

    from torch import optim

    return [
        ("sgd", {}, optim.SGD),
        ("momentum", {}, partial(optim.SGD, momentum=0.9)),
        ("momentum", {"momentum": 0.5}, partial(optim.SGD, momentum=0.5)),
        ("nesterov", {}, partial(optim.SGD, momentum=0.9, nesterov=True)),
        ("rprop", {}, optim.Rprop),
        ("rprop", {"max_step_size": 0.4}, partial(optim.Rprop, step_sizes=(1e-6, 0.4))),
        ("adagrad", {}, partial(optim.Adagrad, initial_accumulator_value=0.1)),
        ("adadelta", {}, optim.Adadelta),
        ("rmsprop", {"eps": 1e-12}, partial(optim.RMSprop, alpha=0.9, eps=1e-12)),
        (
            "rmsprop",
            {"eps": 1e-12, "decay": 0.7, "momentum": 0.9},
            partial(optim.RMSprop, alpha=0.7, eps=1e-12, momentum=0.9),
        ),
        (
            "rmsprop_centered",
            {"eps": 1e-12},
            partial(optim.RMSprop, alpha=0.9, eps=1e-12, centered=True),
        ),
        ("adam", {}, optim.Adam),
        ("adam", {"b1": 0.5, "b2": 0.9}, partial(optim.Adam, betas=(0.5, 0.9))),
        ("adamw", {"weight_decay": 0.1}, partial(optim.AdamW, weight_decay=0.1)),
        ("adamax", {}, optim.Adamax),
        # Torch raises the momentum to b1 by a schedule; so steep a one is over before it begins.
        ("nadam", {}, partial(optim.NAdam, momentum_decay=1e6)),
    ]


def torch_trajectory(build):
    import torch

    weights = torch.nn.Parameter(torch.tensor(START))
    optimizer, path = build([weights], lr=float(RATES[0])), []
    for grad in GRADIENTS:
        weights.grad = torch.tensor(grad)
        optimizer.step()
        path.append(weights.detach().numpy().copy())
    return path


def main(framework):
    arrays = {"start": START, "gradients": GRADIENTS, "rates": RATES}
    if framework == "tf":
        cases, paths = TF_CASES, []
        for name, arguments, changing in cases:
            rates = RATES if changing else np.full_like(RATES, RATES[0])
            paths.append(tf_trajectory(name, **arguments, rates=rates))
        for counted in (False, True):
            arrays[f"averages_{counted}"] = np.array(tf_averages(0.6, counted))
    else:
        methods = torch_methods()
        cases = [(name, arguments, False) for name, arguments, _ in methods]
        paths = [torch_trajectory(build) for _, _, build in methods]
    arrays |= {"cases": np.array(json.dumps(cases)), "paths": np.array(paths)}
    np.savez_compressed(Path(__file__).parent / f"optim_{framework}.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
