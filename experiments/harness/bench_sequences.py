"""Measures what works on sequences beside torch's LSTM and gensim's word vectors, by turns."""

import contextlib
import importlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import bench, catalogue, cli, training
from jaxdl import InputError, parallel, recurrent
from jaxdl.data import words

Sides = Mapping[str, Callable[[int], int]]
"""What is compared: by name, what runs so many steps and returns how many tokens these had."""


def measure_lstm(config: Any) -> None:
    """Times the forward and backward pass of two layers of 256 here and in torch, by turns.

    Beside them it times its products alone, in the form they have here, each waiting for the last.
    """
    torch = _import("torch", "lstm")
    layers, size, batch, time_steps = 2, 256, 32, 64
    ours = recurrent.Recurrent("lstm", size, layers)
    theirs = torch.nn.LSTM(size, size, layers, batch_first=True)
    weights = {name: value.detach().numpy() for name, value in theirs.named_parameters()}
    params = jax.device_put(recurrent.from_torch(weights, "lstm", layers))
    x_torch = torch.randn(batch, time_steps, size, requires_grad=True)
    x = jnp.asarray(x_torch.detach().numpy())

    @jax.jit
    def gradients(params, x):
        loss = lambda params, x: jnp.sum(ours.apply({"params": params}, x, train=True)[0] ** 2)
        return jax.value_and_grad(loss, argnums=(0, 1))(params, x)

    def here(steps):
        for _ in range(steps):
            jax.block_until_ready(gradients(params, x))
        return steps * batch * time_steps

    def there(steps):
        for _ in range(steps):
            theirs.zero_grad()
            x_torch.grad = None
            (theirs(x_torch)[0] ** 2).sum().backward()
        return steps * batch * time_steps

    bare = jax.jit(_products_of_lstm)

    def products(steps):
        for _ in range(steps):
            jax.block_until_ready(bare(params, x))
        return steps * batch * time_steps

    with torch.no_grad():
        wanted = (theirs(x_torch)[0] ** 2).sum().item()
    np.testing.assert_allclose(gradients(params, x)[0], wanted, rtol=1e-5)
    speeds = _by_turns({"here": here, "its products": products, "torch": there}, config)
    del speeds["here"]
    bench.ratios(speeds, ["its products"])


def _products_of_lstm(params: Any, x: jax.Array) -> list[jax.Array]:
    """The products of an LSTM's forward and backward pass, with next to nothing between them."""
    outputs, results = x.swapaxes(0, 1), []
    for layer in params.values():
        outputs, of_layer = _products_of_layer(layer, outputs)
        results += of_layer
    return results


def _products_of_layer(layer: Any, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    """Its outputs [T, B, H], if it had no gates, and what else has to be computed."""
    input_kernel, hidden_kernel = layer["input_kernel"], layer["hidden_kernel"]

    def forward(h, projected):
        gates = projected + h @ hidden_kernel
        after = sum(jnp.split(gates, 4, axis=-1))
        return after, (after, gates)

    def backward(d_h, gates):
        return (gates + jnp.tile(d_h, 4)) @ hidden_kernel.T, None

    zeros = jnp.zeros((x.shape[1], len(hidden_kernel)))
    projected = jnp.einsum("tbf,fg->tbg", x, input_kernel)
    _, (outputs, gates) = jax.lax.scan(forward, zeros, projected)
    d_h, _ = jax.lax.scan(backward, zeros, gates, reverse=True)
    d_x = jnp.einsum("tbg,fg->tbf", gates, input_kernel)
    d_kernels = [jnp.einsum("tbf,tbg->fg", a, gates) for a in (x, outputs)]
    return outputs, [d_h, d_x, *d_kernels]


def measure_char_rnn(config: Any) -> None:
    """Times a whole training step of char_rnn's recipe here and in torch, by turns."""
    torch = _import("torch", "char_rnn")
    recipe, problem, task, state = _recipe("char_rnn", "--flagfile=char_rnn_stdlib")
    with contextlib.closing(problem.feed.train(0)) as batches:
        ready = next(batches)
    network, method = recipe.network, recipe.method

    def here(steps):
        nonlocal state
        for _ in range(steps):
            state, _ = task.train(state, ready)
        jax.block_until_ready(state)
        return steps * inputs.numel()

    vocabulary = state.params["output"]["bias"].size
    embedding = torch.nn.Embedding(vocabulary, network.embedding)
    lstm = torch.nn.LSTM(network.embedding, network.features, network.layers, batch_first=True)
    output = torch.nn.Linear(network.features, vocabulary)
    parameters = [p for module in (embedding, lstm, output) for p in module.parameters()]
    optimizer = torch.optim.Adam(parameters, method.learning_rate)
    shape = recipe.run.batch_size, recipe.text.sequence_length
    inputs, targets = torch.randint(vocabulary, (2, *shape))
    carry = None

    def there(steps):
        nonlocal carry
        for _ in range(steps):
            outputs, carry = lstm(embedding(inputs), carry)
            carry = tuple(part.detach() for part in carry)
            logits = output(outputs).flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits, targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, method.clip_global_norm)
            optimizer.step()
        return steps * inputs.numel()

    _by_turns({"here": here, "torch": there}, config)


def measure_cbow(config: Any) -> None:
    """Times CBOW by word2vec's recipe, with its data and without, and gensim's, by turns.

    The words are those that thinning out leaves, each once a middle word.
    """
    word2vec = _import("gensim.models.word2vec", "cbow")
    flags = "--flagfile=word2vec_stdlib", "--model=cbow"
    recipe, problem, task, state = _recipe("word2vec", *flags)
    asked, size = recipe.words, recipe.run.batch_size
    text = words.tokenize(recipe.corpus.read()["train"])
    stretch = 10_000  # the longest sentence that gensim takes
    sentences = [text[start : start + stretch] for start in range(0, len(text), stretch)]
    cores = len(os.sched_getaffinity(0))
    theirs = word2vec.Word2Vec(
        vector_size=asked.features,
        window=asked.window,
        negative=asked.negatives,
        sample=asked.subsample,
        min_count=asked.min_count,
        sg=0,
        alpha=0.05,
        workers=cores,
    )
    theirs.build_vocab(sentences)

    def train(batches: Iterator[Any], steps: int) -> int:
        nonlocal state
        for batch in itertools.islice(batches, steps):
            state, _ = task.train(state, batch)
        jax.block_until_ready(state)
        return steps * size

    def there(steps):
        some = sentences[: 1 + steps * size // stretch]
        return theirs.train(some, total_examples=len(some), epochs=1)[0]

    with contextlib.closing(problem.feed.train(0)) as batches:
        ready = next(batches)
        sides = {
            "here": lambda steps: train(batches, steps),
            "here, the data ready": lambda steps: train(itertools.repeat(ready), steps),
            f"gensim, {cores} workers": there,
        }
        _by_turns(sides, config)


def _by_turns(sides: Sides, config: Any) -> dict[str, list[float]]:
    """Runs the sides by turns and prints their speeds, and those of the first over the others'.

    Returns:
      The speeds by round.
    """
    for run in sides.values():
        run(1)  # which compiles
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(config.rounds):
        for name, run in sides.items():
            began = time.perf_counter()
            tokens = run(config.steps)
            speeds[name].append(tokens / (time.perf_counter() - began))
        print(", ".join(f"{name} {speed[-1]:,.0f} tokens/s" for name, speed in speeds.items()))
    print(f"{jax.devices()[0].platform}, {len(os.sched_getaffinity(0))} cores: medians, quartiles")
    bench.ratios(speeds, [next(iter(speeds))])
    return speeds


def _import(name: str, what: str) -> Any:
    """A module that is no dependency, nor seen by type checkers."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.split(".")[0]
        raise InputError(f"--what={what} compares with {package}, which is not installed") from None


def _recipe(experiment: str, *flags: str) -> tuple[Any, Any, Any, Any]:
    """The config of an experiment with these flags, its Problem, its Task, and a first State."""
    module = catalogue.load(experiment)
    config, _ = cli.parse(module.Config, [*flags])
    mesh = parallel.data_mesh()
    problem = module.build(config, mesh)
    task, hparams = training.task_of(config, problem)
    task = parallel.jit(task, mesh)
    return config, problem, task, task.init(jax.random.key(config.run.seed), hparams)
