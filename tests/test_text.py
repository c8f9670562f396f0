"""Texts: where they come from, their tokens, and which batch belongs to which step."""

import hashlib
import sysconfig

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxdl import InputError, parallel
from jaxdl.data import text
from jaxdl.data.text import CharVocabulary, TextPipeline, read_corpus


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def split_of(name):
    """The rule once more: 64 bits of SHA-256, modulo 20."""
    number = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) % 20
    return "validation" if number == 0 else "test" if number == 1 else "train"


def numbered(count, sub="part"):
    return {f"{sub}/{n}.txt": f"text of {n}\n" for n in range(count)}


# Where texts come from.


def test_a_folder_is_dealt_out_by_path_in_order(tmp_path):
    files = numbered(60) | numbered(60, "other") | {"alone.txt": "alone\n"}
    corpus = read_corpus(str(write(tmp_path, files)))
    for split, content in corpus.items():
        names = sorted(name for name in files if split_of(name) == split)
        assert content == "".join(files[name] for name in names)
        assert names
    # What comes beside them, and what is hidden, moves no file.
    more = {"a new.txt": "new\n", ".hidden": b"\xff", ".git/config": b"\xff", "empty.txt": ""}
    again = read_corpus(str(write(tmp_path, more)))
    new = split_of("a new.txt")
    assert again == corpus | {new: "new\n" + corpus[new]}


def test_the_standard_library_without_its_tests(tmp_path, monkeypatch):
    files = {f"m{n}.py": f"m{n}\n" for n in range(60)} | {"package/tests.py": "kept\n"}
    others = {
        "site-packages/numpy.py": b"no",
        "test/bad.py": b"\xff",
        "json/tests/bad.py": b"\xff",
        "README.txt": b"no",
        "__pycache__/m.pyc": b"\xff",
    }
    write(tmp_path, files | others)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: {"stdlib": str(tmp_path)}[name])
    corpus = read_corpus()
    expected = {
        split: "".join(files[name] for name in sorted(files) if split_of(name) == split)
        for split in ("train", "validation", "test")
    }
    assert corpus == expected


def test_the_standard_library_that_is_here():
    corpus = read_corpus()
    assert list(corpus) == ["train", "validation", "test"]
    sizes = {split: len(content) for split, content in corpus.items()}
    assert sizes["train"] > 5_000_000
    assert min(sizes.values()) > 100_000
    zen = "Gur Mra bs Clguba"  # this.py, which only that file has
    assert [zen in content for content in corpus.values()].count(True) == 1
    assert zen in corpus[split_of("this.py")]


def test_a_file_is_cut_by_position(tmp_path):
    content = "".join(chr(0x100 + n) for n in range(1000))
    write(tmp_path, {"a.txt": content})
    expected = {"train": content[:900], "validation": content[900:950], "test": content[950:]}
    assert read_corpus(str(tmp_path / "a.txt")) == expected
    # So is a folder of too few files to deal out.
    (tmp_path / "b.txt").write_text("!" * 20)
    corpus = read_corpus(str(tmp_path))
    assert "".join(corpus.values()) == content + "!" * 20
    assert len(corpus["test"]) == len(corpus["validation"]) == 51


class Sayings(tfds.core.GeneratorBasedBuilder):
    """Texts without a validation split."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(80), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for n in range(count):
            yield n, {"text": f"saying {n:02}"}


def test_a_tfds_set(tmp_path, capfd):
    Sayings(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    corpus = read_corpus("tfds:sayings", str(tmp_path))
    lines = "".join(f"saying {n:02}\n" for n in range(80))
    assert corpus["test"] == "saying 00\nsaying 01\n"
    assert corpus["train"] + corpus["validation"] == lines
    assert len(corpus["validation"]) == len(lines) // 20
    with pytest.raises(InputError, match="TFDS lists no set of that name"):
        read_corpus("tfds:nosuch", str(tmp_path))


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        ({}, "nowhere", "no text '.*nowhere'; expected a file, a folder, or tfds:NAME"),
        ({}, "", "holds no files of text"),
        ({"a": b"abc\xff"}, "a", r"a is not UTF-8 text \(byte 3 is 0xff\)"),
        ({"in/a": b"abc\xff"}, "in", "in/a is not UTF-8 text"),
        ({"a": b"P\0E"}, "a", "a is not text: character 1 is NUL"),
        ({"a": ""}, "a", "a' has 0 characters; expected at least 20"),
        ({"a": "x" * 19}, "a", "a' has 19 characters; expected at least 20"),
        ({"in/a": "", "in/b": ""}, "in", "in' has 0 characters"),
    ],
)
def test_texts_that_are_none_are_told_in_one_line(tmp_path, files, name, message):
    write(tmp_path, files)
    with pytest.raises(InputError, match=message) as line:
        read_corpus(str(tmp_path / name))
    assert "\n" not in str(line.value)


# Vocabularies.


def test_bytes():
    vocabulary = CharVocabulary.of("byte", {"train": "x"})
    tokens = vocabulary.encode("aé")
    assert tokens.tolist() == [0x61, 0xC3, 0xA9]
    assert vocabulary.size == 256
    assert vocabulary.decode(tokens) == "aé"
    assert vocabulary.decode(np.array([0x61, 0xC3])) == "a\N{REPLACEMENT CHARACTER}"


def test_characters():
    corpus = {"train": "ba\n", "validation": "é", "test": "\N{GRINNING FACE}b"}
    vocabulary = CharVocabulary.of("char", corpus)
    assert vocabulary.characters == "\nabé\N{GRINNING FACE}"
    assert vocabulary.size == 5
    content = "abé\n\N{GRINNING FACE}a"
    tokens = vocabulary.encode(content)
    assert tokens.tolist() == [1, 2, 3, 0, 4, 1]
    assert vocabulary.decode(tokens) == content
    for strange in ("c", "\0", "\N{PILE OF POO}", "\udcff"):
        with pytest.raises(InputError, match=r"--prompt has the character .* not among the 5") as e:
            vocabulary.encode(f"ab{strange}", "--prompt")
        assert repr(strange) in str(e.value)


# The pipeline.


def ring(count=1000):
    """A text whose every token tells its place."""
    return {"train": np.arange(count), "validation": np.arange(count)}


def take(pipeline, count, start=0):
    batches = pipeline.train(start)
    return [{k: np.asarray(v) for k, v in next(batches).items()} for _ in range(count)]


def assert_same(left, right):
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
            assert one[key].dtype == other[key].dtype


def test_streams_go_on_from_step_to_step():
    pipeline = TextPipeline(ring(), 4, 30, seed=1)
    assert pipeline.steps_per_epoch == 8  # streams of 250 tokens
    batches = take(pipeline, 24)
    starts = []
    for step, batch in enumerate(batches):
        token = batch["token"]
        assert token.shape == (4, 31)
        np.testing.assert_array_equal(np.diff(token, axis=1) % 1000, 1)
        np.testing.assert_array_equal(batch["row"], np.arange(4))
        np.testing.assert_array_equal(batch["fresh"], np.full(4, step % 8 == 0))
        np.testing.assert_array_equal(batch["mask"], np.ones((4, 30)))
        if step % 8:
            np.testing.assert_array_equal(token[:, 0], batches[step - 1]["token"][:, -1])
        else:
            np.testing.assert_array_equal(np.diff(token[:, 0]) % 1000, 250)
            starts.append(int(token[0, 0]))
    assert len(set(starts)) == 3


def test_no_token_is_predicted_twice_in_an_epoch():
    batches = take(TextPipeline(ring(), 4, 30, seed=1), 8)
    predicted = np.concatenate([batch["token"][:, 1:].ravel() for batch in batches])
    assert len(set(predicted.tolist())) == len(predicted) == 960


def test_a_batch_is_a_function_of_seed_and_step_alone():
    sharding = parallel.batch_sharding(parallel.data_mesh())
    make = lambda seed=3, **options: TextPipeline(ring(), 8, 20, seed=seed, **options)
    batches = take(make(), 15)
    assert_same(take(make(), 4, start=11), batches[11:])
    assert_same(take(make(sharding=sharding), 15), batches)
    hosts = [take(make(rows=rows), 15) for rows in (slice(0, 6), slice(6, 8))]
    joined = [
        {key: np.concatenate([first[key], second[key]]) for key in first}
        for first, second in zip(*hosts, strict=True)
    ]
    assert_same(joined, batches)
    for other in (make(seed=4), make(seed=3 + 2**32)):
        assert (take(other, 1)[0]["token"] != batches[0]["token"]).any()
    value = next(make(sharding=sharding).train())["token"]
    assert isinstance(value, jax.Array)
    assert value.sharding.is_equivalent_to(sharding, 2)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 100, 1000])
@pytest.mark.parametrize(("window", "context"), [(16, 0), (16, 5), (5, 16), (64, 64)])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_evaluation_counts_every_token_once_and_warms_up(count, window, context, batch_size):
    tokens = np.arange(1, count + 1)
    pipeline = TextPipeline(
        {"train": np.zeros(8), "test": tokens}, batch_size, 1, window=window, context=context
    )
    assert pipeline.examples("test") == count
    counted = []
    for batch in pipeline.evaluate("test"):
        assert batch["token"].shape == (batch_size, context + window + 1)
        for token, mask in zip(batch["token"], batch["mask"], strict=True):
            places = np.flatnonzero(mask)
            if len(places):
                first, last = places[0], places[-1]
                assert len(places) == last - first + 1 <= window
                # Up to the last that counts it is the text, from the context's start on; before
                # the first token stands a 0.
                begin = max(0, int(token[first + 1]) - 1 - context)
                assert token[1] == begin + 1
                np.testing.assert_array_equal(token[: last + 2], begin + np.arange(last + 2))
            counted += token[1:][mask == 1].tolist()
    assert counted == tokens.tolist()


def test_evaluation_over_devices_and_hosts():
    sharding = parallel.batch_sharding(parallel.data_mesh())
    make = lambda **options: TextPipeline(ring(), 8, 20, window=50, context=10, **options)
    numpy = lambda batches: [{k: np.asarray(v) for k, v in b.items()} for b in batches]
    whole = numpy(make().evaluate("validation"))
    assert_same(numpy(make(sharding=sharding).evaluate("validation")), whole)
    hosts = [numpy(make(rows=rows).evaluate("validation")) for rows in (slice(0, 4), slice(4, 8))]
    for batch, first, second in zip(whole, *hosts, strict=True):
        joined = np.concatenate([first["token"], second["token"]])
        np.testing.assert_array_equal(joined, batch["token"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch size 0: expected at least 1"),
        ({"length": 0}, "length 0: expected at least 1"),
        ({"window": 0}, "window 0: expected at least 1"),
        ({"context": -1}, "context -1: expected at least 0"),
        ({"seed": -1}, "seed -1: expected at least 0"),
        ({"batch_size": 11}, "1000 tokens; 11 streams of steps of 100 need at least 1100"),
    ],
)
def test_wrong_sizes_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        TextPipeline(ring(), **{"batch_size": 10, "length": 100, **changes})


def test_the_module_needs_no_jax():
    assert not hasattr(text, "jax")
