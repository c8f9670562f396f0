"""Language models: truncated back-propagation, evaluation in windows, samples, and the command."""

import functools
import gzip
import itertools
import json
import lzma
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import slow

from experiments import char_rnn
from experiments.harness import cli, run_folder
from jaxdl import InputError, checkpoint, losses, models, optim, parallel
from jaxdl.data.text import TextPipeline
from jaxdl.models.language_model import generate, language_model
from jaxdl.task import supervised
from jaxdl.writers import read_rows

ROOT = Path(__file__).parent.parent
SMALL = {"vocabulary_size": 11, "features": 8, "embedding": 5}


def model_of(kind="lstm", **changes):
    return language_model(**{**SMALL, "kind": kind, **changes})


def params_of(model, seed=0):
    tokens = jnp.zeros((1, 1), jnp.int32)
    init = jax.jit(functools.partial(model.init, train=False))
    return init(jax.random.key(seed), tokens)["params"]


def text_of(count, seed=0):
    return np.random.default_rng(seed).integers(0, 11, count)


@functools.partial(jax.jit, static_argnames="model")
def nats(model, params, tokens):
    """-log p of tokens [B, N] after the first, all in one forward pass; [B, N - 1]."""
    logits, _ = model.apply({"params": params}, tokens[:, :-1], train=False)
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, tokens[:, 1:, None], -1)[..., 0]


def test_parameters_and_shapes():
    model = language_model()
    shapes = jax.eval_shape(lambda: params_of(model))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 936_192
    # One-hot vectors: the embedding's 16,384 go, and the first kernel grows from 64 rows to 256.
    one_hot = jax.eval_shape(lambda: params_of(language_model(embedding=0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(one_hot))
    assert count == 936_192 - 16_384 + 192 * 1024
    bfloat16 = model_of(dtype=jnp.bfloat16)
    logits, carry = bfloat16.apply(
        {"params": params_of(bfloat16)}, jnp.ones((2, 3), int), train=False
    )
    assert logits.shape == (2, 3, 11)
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, carry))} == {np.dtype("float32")}


def test_a_one_hot_token_is_a_row_of_the_first_kernel():
    one_hot, embedded = model_of(embedding=0), model_of(embedding=11)
    params = params_of(one_hot)
    tokens = jnp.asarray(text_of(12).reshape(2, 6))
    expected, _ = one_hot.apply({"params": params}, tokens, train=False)
    logits, _ = embedded.apply(
        {"params": params | {"embedding": {"embedding": jnp.eye(11)}}}, tokens, train=False
    )
    np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_dropout_is_for_training_alone():
    model = model_of(dropout=0.5)
    variables, tokens = {"params": params_of(model)}, jnp.ones((2, 6), int)
    apply = lambda train, seed: model.apply(
        variables, tokens, train=train, rngs={"dropout": jax.random.key(seed)}
    )[0]
    np.testing.assert_array_equal(apply(False, 0), apply(False, 1))
    assert (apply(True, 0) != apply(True, 1)).any()


# The loss: carried state and where it may flow.


@pytest.mark.parametrize("kind", [slow("rnn"), "lstm", slow("gru")])
def test_steps_with_carried_state_are_one_long_forward_pass(kind):
    model = model_of(kind, layers=2)
    init, loss = losses.language_modeling(model, 3)
    loss = jax.jit(loss, static_argnums=5)
    params, extra = init(jax.random.key(1))
    pipeline = TextPipeline({"train": text_of(100)}, 3, 5)
    assert pipeline.steps_per_epoch == 6
    batches, total, counted = pipeline.train(), 0.0, 0.0
    seen = []
    for _ in range(6):
        batch = next(batches)
        mean, extra, reported = loss(params, extra, batch, jax.random.key(0), {}, True)
        total, counted = total + mean.total, counted + mean.count
        assert float(reported["bits_per_character"].value) == pytest.approx(
            float(mean.value) / math.log(2)
        )
        seen.append(batch["token"][:, :-1])
    tokens = jnp.concatenate([*seen, batch["token"][:, -1:]], axis=1)
    assert tokens.shape == (3, 31)
    assert counted == 90
    assert float(total) == pytest.approx(float(nats(model, params, tokens).sum()), rel=1e-6)
    # The next epoch starts from zeros: the same as with no state at all.
    batch = next(batches)
    mean, *_ = loss(params, extra, batch, jax.random.key(0), {}, True)
    assert float(mean.total) == pytest.approx(
        float(nats(model, params, batch["token"]).sum()), rel=1e-6
    )


def test_the_gradient_ends_at_the_step_before():
    model = model_of()
    init, loss = losses.language_modeling(model, 2)
    params, extra = init(jax.random.key(1))
    first, second = itertools.islice(TextPipeline({"train": text_of(60)}, 2, 7).train(), 2)
    after = lambda params, extra, batch: loss(params, extra, batch, key, {}, True)
    key = jax.random.key(0)
    truncated = jax.jit(jax.grad(lambda params, extra: after(params, extra, second)[0].total))
    whole = jax.jit(
        jax.grad(lambda params: after(params, after(params, extra, first)[1], second)[0].total)
    )
    extra_after = jax.jit(after)(params, extra, first)[1]
    ours = truncated(params, extra_after)

    task = supervised(init, loss, optim.optimizer("sgd"))
    state = task.init(jax.random.key(3), {"learning_rate": jnp.float32(0)})
    state = state._replace(params=params, extra=extra_after)
    from_task = jax.tree.map(lambda g: 14 * g, jax.jit(task.gradient)(state, second))
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, from_task, ours)
    # What would flow back further is not nothing.
    with pytest.raises(AssertionError):
        jax.tree.map(close, whole(params), ours)


def train(build, runner, steps=7):
    pipeline = TextPipeline({"train": text_of(8 * 5 * 4 + 3)}, 8, 5, seed=2)
    assert pipeline.steps_per_epoch == 4
    task = runner(build)
    state = task.init(jax.random.key(0), {"learning_rate": jnp.float32(0.5)})
    for batch in itertools.islice(pipeline.train(), steps):
        state, metrics = task.train(state, batch)
    return jax.device_get((state.params, state.extra, state.opt_state, metrics))


@pytest.mark.slow
def test_one_device_eight_pmap_and_parts_train_the_same():

    def build(axis_name=None, accumulate=1, dtype=jnp.float32):
        model = model_of(dtype=dtype)
        init, loss = losses.language_modeling(model, 8, axis_name)
        return supervised(
            init,
            loss,
            optim.optimizer("momentum", clip_global_norm=1.0),
            accumulate=accumulate,
            axis_name=axis_name,
        )

    mesh = lambda count: parallel.data_mesh(jax.devices()[:count])
    one = train(build, lambda build: parallel.jit(build(), mesh(1)))
    others = {
        "eight": lambda build: parallel.jit(build(), mesh(8)),
        "parts": lambda build: parallel.jit(build(accumulate=4), mesh(1)),
        "parts of two": lambda build: parallel.jit(build(accumulate=4), mesh(2)),
        "pmap": lambda build: parallel.pmap(build(parallel.DATA), mesh(8)),
        "pmap parts": lambda build: parallel.pmap(build(parallel.DATA, 2), mesh(4)),
    }
    for name, runner in others.items():
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5, err_msg=name)
        jax.tree.map(close, train(build, runner), one)
    params, extra, *_ = train(build, lambda build: parallel.jit(build(dtype=jnp.bfloat16), mesh(1)))
    roughly = functools.partial(np.testing.assert_allclose, atol=0.05)
    jax.tree.map(roughly, (params, extra), one[:2])
    carry = one[1]["carry"][0][0]
    assert carry.shape == (8, 8)
    assert (np.abs(carry).max(axis=1) > 0).all()  # every stream has left something


@pytest.mark.parametrize("kind", [slow("rnn"), "lstm", slow("gru")])
def test_windows_with_enough_context_equal_one_forward_pass(kind):
    model = model_of(kind)
    init, loss = losses.language_modeling(model, 4)
    loss = jax.jit(loss, static_argnums=5)
    params, extra = init(jax.random.key(1))
    extra = jax.tree.map(jnp.ones_like, extra)  # evaluation must not see it
    tokens = text_of(101)
    expected = float(nats(model, params, np.concatenate([[0], tokens])[None]).sum())

    def measure(window, context):
        pipeline = TextPipeline(
            {"train": tokens, "test": tokens}, 4, 1, window=window, context=context
        )
        sums = np.zeros(2)
        for batch in pipeline.evaluate("test"):
            mean, kept, _ = loss(params, extra, batch, jax.random.key(0), {}, False)
            jax.tree.map(np.testing.assert_array_equal, kept, extra)
            sums += np.array([mean.total, mean.count])
        return sums

    total, count = measure(window=10, context=101)
    assert count == 101
    assert float(total) == pytest.approx(expected, rel=1e-6)
    assert measure(window=10, context=0)[0] != pytest.approx(expected, rel=1e-6)


# Samples.


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_of_one_choice_samples_are_greedy(kind):
    """Token after token, the whole text read anew each time."""
    model = model_of(kind, layers=2)
    params = params_of(model)
    prompt = text_of(6).reshape(2, 3)
    text = prompt
    for _ in range(9):
        logits, _ = model.apply({"params": params}, text, train=False)
        text = np.concatenate([text, np.argmax(logits[:, -1:], -1)], axis=1)
    sampled = generate(model, params, prompt, jax.random.key(0), length=9, top_k=1)
    np.testing.assert_array_equal(sampled, text[:, 3:])
    assert len(set(text[0].tolist())) > 2  # not one token over and over


@pytest.mark.parametrize(("temperature", "top_k"), [slow(1.0, None), slow(0.5, None), (2.0, 4)])
def test_frequencies_are_those_of_the_softmax(temperature, top_k):
    """A model that always has the same logits."""
    model = model_of()
    logits = np.random.default_rng(0).normal(size=11).astype(np.float32)
    params = jax.tree.map(jnp.zeros_like, params_of(model))
    params["output"]["bias"] = jnp.asarray(logits)
    options = {"length": 1000, "temperature": temperature, "top_k": top_k}
    drawn = generate(model, params, jnp.zeros((20, 1), int), jax.random.key(0), **options)
    assert drawn.shape == (20, 1000)
    weights = np.exp(logits / temperature)
    weights[np.argsort(-logits)[top_k or 11 :]] = 0
    counts = np.bincount(np.ravel(drawn), minlength=11)
    np.testing.assert_allclose(counts / 20_000, weights / weights.sum(), atol=0.01)
    # No two rows, and no two keys, draw the same.
    assert len({row.tobytes() for row in np.asarray(drawn)}) == 20
    other = generate(model, params, jnp.zeros((20, 1), int), jax.random.key(1), **options)
    assert (other != drawn).any()


def test_mistakes_in_the_model_are_named():
    for given, message in (
        ({"kind": "elman"}, "no recurrent cell 'elman'; there are rnn, lstm, gru"),
        ({"features": 0}, "features of at least 1, not 0"),
        ({"embedding": -1}, "embedding of at least 0, not -1"),
        ({"dropout": 1.0}, r"dropout in \[0, 1\), not 1.0"),
    ):
        with pytest.raises(InputError, match=message):
            model_of(**given)
    assert not hasattr(models, "LanguageModel")


# The command.


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A text with much to learn: a grammar of twelve sentences."""
    folder = tmp_path_factory.mktemp("book")
    rng = np.random.default_rng(0)
    words = (["the", "a"], ["cat", "dog", "bird"], ["sees", "hears"])
    sentences = [" ".join(rng.choice(group) for group in words) + ".\n" for _ in range(3000)]
    (folder / "book.txt").write_text("".join(sentences))
    return folder / "book.txt"


def unigram_bits(text):
    counts = np.bincount(np.frombuffer(text.encode(), np.uint8))
    shares = counts[counts > 0] / counts.sum()
    return -(shares * np.log2(shares)).sum()


FLAGS = ("--features=32", "--embedding=8", "--sequence_length=20", "--batch_size=16", "--steps=150")
FLAGS = (*FLAGS, "--warmup_steps=10", "--learning_rate=0.02", "--checkpoint_every=50")
FLAGS = (*FLAGS, "--log_every=50", "--eval_every=150", "--length=60", "--prompt=the")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, book, run_in):
    """The folder of a run on the book, not to be changed, and what it printed."""
    folder = tmp_path_factory.mktemp("char_rnn")
    done = run_in(folder, "char_rnn", *FLAGS, f"--text={book}", "--level=char", "--workdir=run")
    assert done.stderr == ""
    return folder / "run", done.stdout


@pytest.fixture
def sample(finished, capsys):
    """What sampling from that run prints, as the command's main calls it."""

    def run(*flags):
        given = (f"--flagfile={finished[0] / run_folder.FLAGS_FILE}", f"--workdir={finished[0]}")
        config, _ = cli.parse(char_rnn.Config, [*given, "--mode=sample", *flags])
        char_rnn.sample(config, char_rnn.build)
        return capsys.readouterr().out

    return run


def test_it_learns_and_is_measured_beside_compressors(finished, book):
    run, printed = finished
    content = book.read_text()
    cut = len(content) // 20
    held_out, test = content[-2 * cut : -cut], content[-cut:]
    summary = json.loads((run / "summary.json").read_text())
    # Each sentence is one of 12, in 15 characters: below a quarter of a bit each.
    assert summary["eval/bits_per_character"] < 0.5 < 0.2 * unigram_bits(held_out)
    assert summary["eval/loss"] == pytest.approx(
        summary["eval/bits_per_character"] * math.log(2), rel=1e-6
    )
    assert summary["examples"] == {"train": len(content) - 2 * cut, "validation": cut, "test": cut}
    for prefix, text in (("", held_out), ("test_", test)):
        for name, size in (
            ("gzip", len(gzip.compress(text.encode(), 9))),
            ("xz", len(lzma.compress(text.encode(), preset=9))),
        ):
            assert summary[f"{prefix}{name}_bits_per_character"] == 8 * size / cut
    assert summary["eval/bits_per_character"] < summary["gzip_bits_per_character"]
    assert {"characters_per_second", "train/bits_per_character"} <= set(read_rows(run)[0])
    assert "sample at step 150:\n  | the" in printed


def test_a_run_goes_on_bit_for_bit(finished, book, experiment):
    """From the state of step 100, with the carry of each stream, on to the same end."""
    shutil.copytree(finished[0], experiment.folder / "run")
    shutil.rmtree(experiment.folder / "run" / "checkpoints" / "150")
    flags = (*FLAGS, f"--text={book}", "--level=char", "--nohistograms", "--workdir=run")
    assert "steps 100 to 150" in experiment("char_rnn", *flags).stdout
    whole, parts = map(checkpoint.load, (finished[0], experiment.folder / "run"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    carry = whole["extra"]["carry"]["0"]["0"]
    assert carry.shape == (16, 32)
    assert np.abs(carry).max() > 0.1


GREEDY = ("--length=300", "--top_k=1", "--prompt=a ")


def test_the_command_samples(finished, book, experiment, sample):
    mode = ("--mode=sample", f"--workdir={finished[0]}")
    written = experiment("char_rnn", *mode, *GREEDY).stdout
    assert written.startswith("a ")
    assert len(written) == 2 + 300 + 1
    assert set(written[:-1].split()[:-1]) <= set(book.read_text().split())
    assert sample(*GREEDY, "--seed=7") == written
    assert len({sample("--temperature=3"), sample("--temperature=3", "--seed=7"), written}) == 3
    done = experiment("char_rnn", *mode, "--prompt=", check=False)
    told(done, "--prompt=: it must be one character or more to go on from")


def test_what_a_run_cannot_be_asked(finished, book, sample, tmp_path):
    for flags, message in (
        (["--prompt=the Cat"], "--prompt has the character 'C', which is not among the"),
        (["--top_k=500"], f"--top_k=500: it must be at most {len(set(book.read_text()))}"),
        (["--features=16"], "holds a run with --features=32, not 16"),
        (["--layers=2"], "holds a run with --layers=1, not 2"),
    ):
        with pytest.raises(InputError, match=message):
            sample(*flags)
    shutil.copytree(finished[0], tmp_path / "run")
    inputs = tmp_path / "run" / "inputs.json"
    inputs.write_text(json.dumps(json.loads(inputs.read_text()) | {"vocabulary": "abc"}))
    with pytest.raises(InputError, match="vocabulary of 3 tokens that is not its checkpoint's"):
        sample("--prompt=a", f"--workdir={tmp_path / 'run'}")


def told(done, message):
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt=a\nb"], "one line, without space at its ends"),
        (["--prompt=def "], "one line, without space at its ends"),
        (["--kind=transformer"], "should be one of"),
        (["--temperature=nan"], "--temperature=nan: it must be more than 0"),
        (["--top_k=0"], "--top_k=0: it must be at least 1"),
        (["--sequence_length=0"], "--sequence_length=0: it must be at least 1"),
        (["--context=-1"], "--context=-1: it must be at least 0"),
        (["--folds=3"], "--folds=3: it must be left out"),
        (["--grad_accum=5"], "a divisor of the batch_size 32"),
        (["--dropout=1"], "not 1.0"),
        (["--features=0"], "features of at least 1, not 0"),
    ],
)
def test_mistakes_in_flags_are_named(flags, message):
    with pytest.raises(InputError, match=message):
        cli.parse(char_rnn.Config, flags)


def test_a_text_that_the_run_was_not_on(tmp_path, book):
    mesh = parallel.data_mesh(jax.devices()[:1])

    def check(*flags):
        config, _ = cli.parse(char_rnn.Config, [*flags, f"--workdir={tmp_path}"])
        inputs = char_rnn.build(config, mesh).inputs
        run_folder.check_inputs(config.run.workdir, inputs)
        return inputs

    inputs = check(f"--text={book}")
    (tmp_path / "inputs.json").write_text(json.dumps(inputs))
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)  # or there would be no run yet
    check(f"--text={book}")
    copy = tmp_path / "copy.txt"
    copy.write_text(book.read_text() + "more")
    with pytest.raises(InputError, match="has another text_sha256 than the data given now"):
        check(f"--text={copy}")
    with pytest.raises(InputError, match=r"inputs.json has another vocabulary than"):
        check(f"--text={book}", "--level=char", "--prompt=a")
    config, _ = cli.parse(char_rnn.Config, [f"--text={book}", "--level=char"])
    with pytest.raises(InputError, match="--prompt has the character 'm', which is not among"):
        char_rnn.build(config, mesh)
    with pytest.raises(InputError, match="--top_k=257: it must be at most 256, the vocabulary"):
        check(f"--text={book}", "--top_k=257")


def test_no_flags_is_the_flagfile():
    flagfile = ROOT / "experiments" / "flags" / "char_rnn_stdlib.flags"
    config, _ = cli.parse(char_rnn.Config, [f"--flagfile={flagfile}"])
    assert config == cli.parse(char_rnn.Config, [f"--workdir={config.run.workdir}"])[0]
