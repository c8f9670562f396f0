"""Word vectors: the loss by hand, what is drawn, what is learned, and the command."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments import word2vec
from jaxdl import InputError, optim, parallel
from jaxdl.data import pipeline, words
from jaxdl.data.words import WordPipeline, WordVocabulary
from jaxdl.losses import negative_sampling, word_prediction
from jaxdl.models.word2vec import Word2Vec, analogy, nearest
from jaxdl.task import supervised


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# The model and its loss.


def test_vectors_begin_as_in_word2vec_c():
    ids = jnp.zeros((1, 1), jnp.int32)
    params = Word2Vec(200, 50).init(jax.random.key(0), ids, jnp.ones((1, 1)), ids)["params"]
    assert params["input"].shape == params["output"].shape == (200, 50)
    assert not params["output"].any()
    greatest = np.abs(params["input"]).max()
    assert 0.99 * 0.5 / 50 < greatest <= 0.5 / 50
    np.testing.assert_allclose(np.mean(params["input"]), 0, atol=1e-3)


def test_the_negative_sampling_loss_of_numbers():
    logits = np.array([[0.3, -1.2, 2.0], [40.0, 200.0, -90.0]])
    by_hand = -np.log(sigmoid(0.3)) - np.log(sigmoid(1.2)) - np.log(sigmoid(-2.0))
    losses = negative_sampling(jnp.array(logits), jnp.ones((2, 3)))
    np.testing.assert_allclose(losses, [by_hand, 200.0], rtol=1e-6)
    losses = negative_sampling(jnp.array(logits), jnp.array([[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]]))
    np.testing.assert_allclose(
        losses, [-np.log(sigmoid(0.3)) - np.log(sigmoid(-2.0)), 0.0], rtol=1e-6, atol=1e-6
    )


VOCABULARY, FEATURES = 7, 3


def test_half_precision_is_for_the_products_alone():
    params, full = params_of(), Word2Vec(VOCABULARY, FEATURES)
    targets = np.concatenate([BATCH["word"][:, None], BATCH["negative"]], 1)
    inputs = {"params": params}, BATCH["context"], BATCH["context_mask"], targets
    expected, _ = full.apply(*inputs)
    logits, pairs = full.clone(dtype=jnp.bfloat16).apply(*inputs)
    assert logits.dtype == pairs.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, atol=0.03 * np.abs(expected).max())
    assert (logits != expected).any()


BATCH = {
    "word": [2, 0, 5, 0],
    "context": [[1, 3, 0, 0], [2, 2, 6, 4], [0, 5, 0, 0], [0, 0, 0, 0]],
    "context_mask": [[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]],
    "negative": [[4, 2], [1, 6], [5, 5], [3, 1]],  # the words themselves do not count
    "mask": [1, 1, 1, 0],
}
BATCH = {k: np.array(v, np.float32 if "mask" in k else np.int32) for k, v in BATCH.items()}


def params_of(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda: rng.normal(size=(VOCABULARY, FEATURES)).astype(np.float32)
    return {"input": draw(), "output": draw()}


def by_hand(params, batch, cbow):
    """The total loss and its gradient, pair by pair, as word2vec.c goes about it."""
    total, pairs = 0.0, 0
    gradient = {name: np.zeros(table.shape) for name, table in params.items()}
    for b in range(len(batch["word"])):
        around = [
            w for w, m in zip(batch["context"][b], batch["context_mask"][b], strict=True) if m
        ]
        for group in [around] if cbow and around else [[w] for w in around]:
            hidden = np.mean([params["input"][w] for w in group], axis=0, dtype=float)
            error = np.zeros(FEATURES)
            pairs += 1
            for place, target in enumerate([batch["word"][b], *batch["negative"][b]]):
                if place > 0 and target == batch["word"][b]:
                    continue
                label = float(place == 0)
                share = sigmoid(hidden @ params["output"][target])
                total -= np.log(share if label else 1 - share)
                error += (share - label) * params["output"][target]
                gradient["output"][target] += (share - label) * hidden
            for w in group:
                gradient["input"][w] += error / len(group)
    return total, pairs, gradient


@pytest.mark.parametrize(("cbow", "begun"), [(False, False), (False, True), (True, True)])
def test_loss_and_gradient_are_those_of_the_loops_by_hand(cbow, begun):
    params = params_of()
    params["output"] *= begun  # all scores are 0 at the start
    _, loss = word_prediction(Word2Vec(VOCABULARY, FEATURES, cbow))
    total, pairs, gradient = by_hand(params, BATCH, cbow)

    def whole(params):
        mean, extra, metrics = loss(params, {}, BATCH, None, {}, True)
        return mean.total, (mean.count, extra, metrics["pair_loss"])

    (ours, (count, extra, pair_loss)), grads = jax.value_and_grad(whole, has_aux=True)(params)
    assert (count, extra) == (3, {})
    assert pairs == pair_loss.count == (3 if cbow else 7)
    np.testing.assert_allclose([ours, pair_loss.total], total, rtol=1e-6)
    for name in gradient:
        np.testing.assert_allclose(grads[name], gradient[name], rtol=1e-5, atol=1e-6)


def test_a_step_of_sgd_moves_each_vector_by_the_rate_of_each_pair():
    """With a rate of 0.025 times the number of words, word2vec.c's 0.025 for each pair."""
    init, loss = word_prediction(Word2Vec(VOCABULARY, FEATURES))
    task = supervised(init, loss, optim.optimizer("sgd"))
    state = task.init(jax.random.key(0), {"learning_rate": jnp.float32(0.025 * 3)})
    params = params_of()
    state, metrics = jax.jit(task.train)(state._replace(params=params), BATCH)
    gradient = by_hand(params, BATCH, False)[2]
    for name, table in params.items():
        expected = table - 0.025 * gradient[name]
        np.testing.assert_allclose(state.params[name], expected, rtol=1e-5, atol=1e-6)
    assert metrics["loss"].count == 3


def test_one_device_eight_pmap_and_parts_train_the_same():
    init, loss = word_prediction(Word2Vec(20, 4))

    def train(runner):
        task = runner(
            lambda **how: supervised(init, loss, optim.optimizer("sgd"), **how),
        )
        state = task.init(jax.random.key(0), {"learning_rate": jnp.float32(1.0)})
        for batch in itertools.islice(pipeline_of(size=100, batch_size=16).train(), 9):
            state, metrics = task.train(state, batch)
        return jax.device_get((state.params, metrics, task.eval(state, batch)))

    mesh = lambda count: parallel.data_mesh(jax.devices()[:count])
    one = train(lambda build: parallel.jit(build(), mesh(1)))
    assert np.abs(one[0]["output"]).max() > 0.01  # it has moved
    for name, runner in {
        "eight": lambda build: parallel.jit(build(), mesh(8)),
        "parts": lambda build: parallel.jit(build(accumulate=4), mesh(2)),
        "pmap": lambda build: parallel.pmap(build(axis_name=parallel.DATA), mesh(8)),
    }.items():
        differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), one, train(runner))
        assert max(jax.tree.leaves(differences)) < 2e-5, name


# Words and what is drawn of them.


def test_words_and_their_order():
    text = "def Read_file2(ÉTÉ): return x1 # don't"
    assert words.tokenize(text) == ["def", "read", "file", "été", "return", "x", "don", "t"]
    vocabulary = WordVocabulary.of(["b", "a", "c", "b", "a", "b", "d"], min_count=1)
    assert vocabulary.words == ("b", "a", "c", "d")
    assert vocabulary.counts.tolist() == [3, 2, 1, 1]
    assert WordVocabulary.of(["b", "a", "c", "b", "a", "b", "d"], min_count=2).words == ("b", "a")
    assert vocabulary.encode(["a", "z", "d"]).tolist() == [1, 3]
    assert vocabulary.id("c") == 2
    assert "c" in vocabulary
    assert "z" not in vocabulary
    with pytest.raises(InputError, match="no word 'z' in the vocabulary of 4 lower-case words"):
        vocabulary.id("z")
    with pytest.raises(InputError, match="1 of the text's 4 different words occur min_count=3"):
        WordVocabulary.of(["b", "a", "c", "b", "a", "b", "d"], min_count=3)


def test_the_shares_that_are_kept_and_drawn():
    counts = np.array([9000, 900, 90, 10])
    # With t = 1e-3: t / f is 1/900, 1/90, 1/9 and 1.
    expected = [1 / 30 + 1 / 900, 90**-0.5 + 1 / 90, 1 / 3 + 1 / 9, 1]
    np.testing.assert_allclose(words.keep_probability(counts, 1e-3), expected, rtol=1e-12)
    assert words.keep_probability(counts, 0).tolist() == [1, 1, 1, 1]
    drawn = words.noise_distribution(np.array([10_000, 16, 1]))
    np.testing.assert_allclose(drawn, np.array([1000, 8, 1]) / 1009, rtol=1e-12)


def corpus(size, seed=0):
    """Words 0 to 19, the first the most frequent, and their counts."""
    weights = 1 / np.arange(1, 21)
    ids = np.random.default_rng(seed).choice(20, size, p=weights / weights.sum()).astype(np.int32)
    ids[:20] = np.arange(20)
    return ids, np.bincount(ids, minlength=20)


def pipeline_of(size=1000, batch_size=32, **changes):
    ids, counts = corpus(size)
    splits = {"train": ids, "test": corpus(77, seed=1)[0]}
    return WordPipeline(splits, counts, batch_size, **{"subsample": 0.01, "window": 3, **changes})


def epoch_of(pipeline, number=0):
    steps = pipeline.steps_per_epoch
    batches = list(itertools.islice(pipeline.train(number * steps), steps))
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    real = joined["mask"] == 1
    assert not joined["context_mask"][~real].any()
    return {name: values[real] for name, values in joined.items()}


def test_windows_are_the_words_around():
    """Each word of the text once, with those on both sides up to some distance, and no others."""
    text = np.random.default_rng(0).permutation(500).astype(np.int32)  # each word occurs once
    pipeline = WordPipeline(
        {"train": text}, np.ones(500, int), 64, window=4, negatives=2, subsample=0
    )
    assert pipeline.steps_per_epoch == 8
    epoch = epoch_of(pipeline)
    assert sorted(epoch["word"]) == list(range(500))
    assert epoch["word"].tolist() != text.tolist()  # in another order
    reaches = []
    for word, context, mask in zip(
        epoch["word"], epoch["context"], epoch["context_mask"], strict=True
    ):
        place = int(np.flatnonzero(text == word)[0])
        window = lambda reach, place=place: [
            *text[max(place - reach, 0) : place],
            *text[place + 1 : place + reach + 1],
        ]
        found = [window(reach) == context[mask == 1].tolist() for reach in (1, 2, 3, 4)]
        if 4 <= place < 496:
            assert sum(found) == 1
            reaches.append(found.index(True) + 1)
        else:
            assert any(found)
    counts = np.bincount(reaches, minlength=5)[1:]
    assert stats.chisquare(counts).pvalue > 0.001  # each reach as likely
    evaluated = np.concatenate([b["word"][b["mask"] == 1] for b in pipeline.evaluate("train")])
    assert evaluated.tolist() == text.tolist()


def test_frequent_words_are_thinned_out_and_negatives_drawn_by_count():
    ids, counts = corpus(20_000)
    pipeline = WordPipeline({"train": ids}, counts, 256, window=2, negatives=4, subsample=0.01)
    epochs = [epoch_of(pipeline, number) for number in range(3)]
    kept = sum(np.bincount(epoch["word"], minlength=20) for epoch in epochs)
    expected = counts * words.keep_probability(counts, 0.01)
    assert expected[0] < 0.3 * counts[0]
    deviation = (kept / 3 - expected) / np.sqrt(expected / 3)
    assert np.abs(deviation).max() < 4
    assert len({len(epoch["word"]) for epoch in epochs}) > 1
    # What is around was thinned out alike.
    around = epochs[0]["context"][epochs[0]["context_mask"] == 1]
    shares = np.bincount(around, minlength=20) / len(around)
    np.testing.assert_allclose(shares, expected / expected.sum(), atol=0.01)
    drawn = np.bincount(np.concatenate([e["negative"].ravel() for e in epochs]), minlength=20)
    expected = drawn.sum() * counts**0.75 / (counts**0.75).sum()
    assert stats.chisquare(drawn, expected).pvalue > 0.001
    assert stats.chisquare(drawn, drawn.sum() * counts / counts.sum()).pvalue < 1e-9


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_a_batch_is_a_pure_function_of_seed_and_step():
    pipeline = pipeline_of()
    steps = pipeline.steps_per_epoch
    first = list(itertools.islice(pipeline.train(), 2 * steps + 2))
    for step in (0, 1, steps - 1, steps, 2 * steps + 1):
        assert same(next(pipeline_of().train(step)), first[step])
    goes_on = itertools.islice(pipeline_of().train(1), 2 * steps)  # over the seams of two epochs
    assert all(same(a, b) for a, b in zip(goes_on, first[1:], strict=False))
    for other in (first[1], first[steps], next(pipeline_of(seed=1).train())):
        assert not same(first[0], other)
        assert not np.array_equal(first[0]["negative"], other["negative"])
    for a, b in zip(pipeline.evaluate("test"), pipeline_of().evaluate("test"), strict=True):
        assert same(a, b)
    assert pipeline.examples("test") == 77
    assert pipeline.examples("train") == 1000


def test_devices_and_processes_share_the_same_batch(monkeypatch):
    expected = next(pipeline_of().train(3))
    sharding = parallel.batch_sharding(parallel.data_mesh())
    spread = next(pipeline_of(sharding=sharding).train(3))
    assert all(value.sharding == sharding for value in spread.values())
    assert same(jax.device_get(spread), expected)
    # A process that holds the third quarter makes those rows.
    monkeypatch.setattr(pipeline, "local_rows", lambda size, sharding: np.arange(16, 24))
    part = next(pipeline_of().train(3))
    assert same(part, {name: value[16:24] for name, value in expected.items()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size 0: expected at least 1"),
        ({"window": 0}, "window 0: expected at least 1"),
        ({"negatives": 0}, "negatives 0: expected at least 1"),
        ({"subsample": -0.1}, "subsample -0.1: expected 0 to 1"),
        ({"seed": -1}, "data seed -1: expected at least 0"),
    ],
)
def test_mistakes_in_the_pipeline_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        pipeline_of(**changes)


def test_splits_that_cannot_be():
    counts = np.array([2, 1])
    with pytest.raises(InputError, match="the test split has 1 words of the vocabulary"):
        WordPipeline({"train": np.array([0, 1, 0]), "test": np.array([1])}, counts, 2)
    with pytest.raises(InputError, match="split 'dev' of the text: expected train or test"):
        next(pipeline_of().evaluate("dev"))
    with pytest.raises(InputError, match="start step -1"):
        next(pipeline_of().train(-1))
    # Thinned out to nothing, an epoch is one masked batch.
    tiny = WordPipeline({"train": np.zeros(2, np.int32)}, np.array([2, 1]), 2, subsample=1e-12)
    assert not next(tiny.train())["mask"].any()
    assert list(tiny.evaluate("train")) == []


# Asking vectors.


def test_nearest_words_are_those_of_scipy():
    vectors = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    found, cosines = nearest(vectors, vectors[[3, 8]], np.array([[3, 20], [8, 21]]), 5)
    for query, excluded, near, values in zip([3, 8], [20, 21], found, cosines, strict=True):
        from scipy.spatial.distance import cdist

        expected = 1 - cdist(vectors[[query]], vectors, "cosine")[0]
        expected[[query, excluded]] = -np.inf
        assert near.tolist() == np.argsort(-expected)[:5].tolist()
        np.testing.assert_allclose(values, np.sort(expected)[::-1][:5], atol=1e-6)
    with pytest.raises(InputError, match="50 nearest words: there are 1 to 49 to give"):
        nearest(vectors, vectors[:1], np.array([[0]]), 50)


def test_analogies_are_those_of_loops_by_hand():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 5)) * np.exp(rng.normal(size=(40, 1)))
    questions = np.stack([rng.choice(40, 3, replace=False) for _ in range(30)])
    unit = vectors / np.sqrt((vectors**2).sum(1, keepdims=True))
    expected = []
    for a, b, c in questions:
        cosines = unit @ (unit[b] - unit[a] + unit[c])
        cosines[[a, b, c]] = -np.inf
        expected.append(int(np.argmax(cosines)))
    assert analogy(vectors, questions).tolist() == expected


ROYAL = {"man": (1, 0, 0), "woman": (0, 1, 0), "king": (1, 0, 3), "queen": (0, 1, 3)}
ROYAL |= {"prince": (1, 0, 2.7), "apple": (-1, -1, -1)}


def test_an_analogy_excludes_its_own_words():
    vocabulary = WordVocabulary(ROYAL)
    # The lengths of the vectors do not matter.
    lengths = np.array([[9.0], [0.1], [3.0], [5.0], [1.0], [1.0]])
    vectors = np.array(list(ROYAL.values())) * lengths
    ids = np.array([[vocabulary.id(word) for word in ("man", "king", "woman")]])
    assert vocabulary.words[int(analogy(vectors, ids)[0])] == "queen"
    ids = np.array([[vocabulary.id(word) for word in ("king", "king", "man")]])
    assert vocabulary.words[int(analogy(vectors, ids)[0])] == "prince"  # man itself is nearest


def test_scores_of_analogies(tmp_path):
    vocabulary, vectors = WordVocabulary(ROYAL), np.array(list(ROYAL.values()), np.float32)
    path = tmp_path / "questions.txt"
    path.write_text(
        ": royal\nman king Woman queen\nman king woman apple\n\n: fruit\nman pear a b\n"
    )
    questions = words.read_analogies(path)
    assert questions["royal"][0] == ("man", "king", "woman", "queen")
    assert word2vec.score(vocabulary, vectors, questions) == {
        "royal": (1, 2, 2),
        "fruit": (0, 0, 1),
    }
    many = {"royal": questions["royal"][:1] * 300 + questions["royal"][1:]}
    assert word2vec.score(vocabulary, vectors, many) == {"royal": (300, 301, 301)}
    path.write_text("a b c\n")
    with pytest.raises(InputError, match="line 1: 3 words; expected 4"):
        words.read_analogies(path)
    path.write_text(": nothing\n")
    with pytest.raises(InputError, match="holds no question"):
        words.read_analogies(path)
    with pytest.raises(InputError, match="no file"):
        words.read_analogies(tmp_path / "absent.txt")


def test_vectors_written_read_back_the_same(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    vectors[0, 0] = 1e-30
    path = tmp_path / "vectors.txt"
    words.write_vectors(path, ["été", "b", "c"], vectors)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "3 4"
    assert [line.split(" ")[0] for line in lines[1:]] == ["été", "b", "c"]
    assert np.array_equal(np.float32(lines[2].split(" ")[1:]), vectors[1])
    names, read = words.read_vectors(path)
    assert names == ["été", "b", "c"]
    np.testing.assert_array_equal(read, vectors)
    path.write_text("2 3\nthe 1 2 3 \nof -1e-3 0.5 6 \n")  # word2vec.c ends lines in a space
    names, read = words.read_vectors(path)
    assert names == ["the", "of"]
    np.testing.assert_array_equal(read, np.float32([[1, 2, 3], [-1e-3, 0.5, 6]]))
    for text, message in (
        ("the 1 2\n", "line 1: 'the 1 2'; expected two numbers"),
        ("2 2\nthe 1 2\nof 1\n", "line 3: expected a word and 2 numbers"),
        ("2 2\nthe 1 x\n", "line 2: expected a word and 2 numbers"),
        ("2 2\nthe 1 2\n", "holds 1 words; expected 2"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            words.read_vectors(path)
