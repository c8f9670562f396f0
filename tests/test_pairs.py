"""Pairs of sentences: where they come from, their vocabularies, and the batches of each step."""

import contextlib
import datetime
import io
import itertools
import json

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxdl import InputError, parallel
from jaxdl.data.pairs import (
    EOS,
    LEVELS,
    PAD,
    SPECIAL,
    UNK,
    PairPipeline,
    Pairs,
    SubwordVocabulary,
    dates,
    encode_sources,
    load,
    numbers,
    read_file,
    split_by_source,
)


def sides(pairs):
    return {pair for part in pairs.splits.values() for pair in part}


def assert_apart(splits):
    sources = [{source for source, _ in part} for part in splits.values()]
    for one, other in itertools.combinations(sources, 2):
        assert not one & other


def test_numbers_are_said_in_both_languages():
    made = numbers(500, ("en", "fr"))
    assert {
        ("seven", "sept"),
        ("zero", "zéro"),
        ("four", "quatre"),
    } <= sides(made)
    assert len(sides(made)) == 500
    assert_apart(made.splits)
    assert made == load("numbers", count=500)
    german = {source for source, _ in sides(numbers(500, ("en", "de")))}
    assert german == {source for source, _ in sides(made)}
    longest = max(len(source.split()) for source in german)
    assert longest > 12


def test_dates_are_said_in_many_languages():
    made = dates(3000)
    assert len(sides(made)) == 3000
    assert_apart(made.splits)
    assert made == load("dates", count=3000)
    months = {"Januar", "January", "janvier", "gennaio", "enero", "января"}
    found = {month for month in months for source, _ in sides(made) if month in source.split()}
    assert found == months
    for source, target in sides(made):
        day = datetime.date.fromisoformat(target)
        assert str(day.year) in source
        assert str(day.day) in source


def test_a_source_keeps_its_split_whatever_else_there_is():
    pairs = [(f"source {n}", "x") for n in range(4000)]
    all_of_them, some = split_by_source(pairs), split_by_source(pairs[1::3])
    for split, part in some.items():
        assert set(part) <= set(all_of_them[split])
    assert 140 < len(all_of_them["test"]) < 260
    assert 140 < len(all_of_them["validation"]) < 260
    twice = split_by_source([("a", "x"), ("a", "y")])
    assert sorted(map(len, twice.values())) == [0, 0, 2]


def test_a_file_is_read(tmp_path):
    path = tmp_path / "pairs.tsv"
    lines = [f"source {n}\tcible numéro {n}" for n in range(200)]
    path.write_bytes("\r\n".join(lines).encode() + b"\n")
    made = read_file(path)
    assert made.name == "pairs.tsv"
    assert sides(made) == {tuple(line.split("\t")) for line in lines}
    assert_apart(made.splits)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected lines of source, tab, target"),
        (b"\n", "is empty"),
        (b"a\tb\nc d\ne\tf\n", "line 2: no tab; expected source, one tab, target"),
        (b"a\tb\n\ne\tf\n", "line 2: no tab"),
        (b"a\tb\tc\n", "line 1: 2 tabs"),
        (b"a\tb\nc\t \n", "line 2: an empty side"),
        (b"a\tb\n\xff\xfe\x00", r"no UTF-8 text \(byte 4\)"),
        (b"a\tb\nc\0\td\n", "is no text: character 5 is NUL"),
        (b"a\tb\n", "1 lines leave .* empty; expected more"),
    ],
)
def test_unusable_files_are_named(content, message, tmp_path):
    (tmp_path / "pairs.tsv").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_file(tmp_path / "pairs.tsv")
    assert "\n" not in str(error.value)
    assert "pairs.tsv" in str(error.value)


def test_unknown_names_are_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read \(No such file or directory\)"):
        read_file(tmp_path / "none.tsv")
    with pytest.raises(InputError, match=r"no language 'xx'; num2words has .*, en, .*, fr,"):
        load("numbers", languages=("en", "xx"))
    with pytest.raises(InputError, match="'wmt' is not prepared in"):
        load("wmt", data_dir=str(tmp_path))


class Talks(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Shaped as TFDS's translation sets are."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = ("train", "validation", "test")
    name = "talks"
    url_infos = None

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.Translation(["en", "pt"]), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.SPLITS}

    def _generate_examples(self, split):
        for n in range(60):
            yield n, {"en": f"word {n} {split}", "pt": f"palavra {n} é {split}"}


class OnlyTrain(Talks, skip_registration=True):
    SPLITS = ("train",)
    name = "only_train"


class OnlyTest(Talks, skip_registration=True):
    SPLITS = ("test",)
    name = "only_test"


def test_prepared_tfds_sets(tmp_path):
    for builder_class in (Talks, OnlyTrain, OnlyTest):
        builder = builder_class(data_dir=str(tmp_path), file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            builder.download_and_prepare()
    made = load("talks", languages=("pt", "en"), data_dir=str(tmp_path))
    assert made.name == "talks from pt to en"
    assert {split: len(part) for split, part in made.splits.items()} == {
        "train": 60,
        "validation": 60,
        "test": 60,
    }
    assert made.splits["test"][3] == ("palavra 3 é test", "word 3 test")
    cut = load("only_train", languages=("pt", "en"), data_dir=str(tmp_path))
    assert set(cut.splits) > {"train"}
    assert sum(map(len, cut.splits.values())) == 60
    with pytest.raises(InputError, match="features en, pt; expected a language 'fr'"):
        load("talks", languages=("en", "fr"), data_dir=str(tmp_path))
    with pytest.raises(InputError, match="has the splits test; expected train, and another"):
        load("only_test", languages=("en", "pt"), data_dir=str(tmp_path))
    info = tmp_path / "talks" / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(InputError, match="is prepared as tfrecord; expected array_record: pip ins"):
        load("talks", languages=("en", "pt"), data_dir=str(tmp_path))


TEXTS = ["the cat sat", "the dog sat", "a cat and a dog", "Zoë's  naïve 猫 <eos> cat"]


@pytest.mark.parametrize("level", LEVELS)
def test_text_comes_back_from_its_tokens(level):
    vocabulary = SubwordVocabulary.learn(TEXTS, level, 200)
    for text, tokens in zip(TEXTS, vocabulary.encode(TEXTS), strict=True):
        assert tokens[-1] == EOS
        assert min(tokens[:-1]) >= UNK, "words of a text are not marks"
        expected = text
        if level == "word":
            expected = " ".join(text.split()).replace("<eos>", "<unk>")
        assert vocabulary.decode([*tokens, EOS, 7, PAD]) == expected
        assert vocabulary.decode([PAD, *tokens]) == expected
        assert len(vocabulary.tokens(tokens)) == len(tokens)
        assert vocabulary.unknown(text) == ["<eos>"] * expected.count("<unk>")
    again = SubwordVocabulary.from_json(vocabulary.to_json())
    assert again.encode(TEXTS) == vocabulary.encode(TEXTS)
    assert len(again) == len(vocabulary)
    assert SubwordVocabulary.learn(TEXTS, level, 200).to_json() == vocabulary.to_json()


def test_the_levels_cut_texts_as_they_say():
    tokens = {}
    for level in LEVELS:
        vocabulary = SubwordVocabulary.learn(TEXTS * 3, level, 40)
        tokens[level] = vocabulary.tokens(vocabulary.encode(["the cat"])[0])
        assert len(vocabulary) <= 40
    assert tokens["word"] == ["the", "cat", "<eos>"]
    assert tokens["char"] == [*"the cat", "<eos>"]
    assert len(tokens["subword"]) < len(tokens["char"])


def test_what_a_vocabulary_lacks_is_told():
    words = SubwordVocabulary.learn(TEXTS, "word", 200)
    assert words.encode(["the cow sat"])[0][1] == UNK
    assert words.unknown("the cow sat down") == ["cow", "down"]
    assert words.decode(words.encode(["the cow"])[0]) == "the <unk>"
    letters = SubwordVocabulary.learn(TEXTS, "char", 200)
    assert letters.unknown("the 犬,") == ["犬", ","]
    # The most frequent are kept where there is no room for all.
    few = SubwordVocabulary.learn(["b b b a a c"], "word", len(SPECIAL) + 2)
    assert few.unknown("a b c") == ["c"]
    with pytest.raises(InputError, match="no vocabulary of 'sentence'; there are word, char"):
        SubwordVocabulary.learn(TEXTS, "sentence", 200)
    with pytest.raises(InputError, match="a vocabulary of 4; expected more than the 4 marks"):
        SubwordVocabulary.learn(TEXTS, "word", 4)
    with pytest.raises(InputError, match="no vocabulary of the tokenizers library"):
        SubwordVocabulary.from_json("{}")


def made_pairs(train=101, held_out=13, longest=9):
    """Sources of 1 to `longest` words, each unlike any other, whose targets are twice as long."""
    rng = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", train), ("validation", held_out), ("test", held_out)):
        splits[split] = []
        for n in range(count):
            words = [f"{split[0]}{n}", *rng.choice(list("abcdef"), rng.integers(0, longest))]
            splits[split].append((" ".join(words), " ".join(words * 2)))
    return Pairs("made", splits)


def make(pairs=None, batch_size=8, max_length=64, **options):
    pairs = pairs or made_pairs()
    vocabularies = [
        SubwordVocabulary.learn(
            [pair[side] for part in pairs.splits.values() for pair in part], "word", 999
        )
        for side in (0, 1)
    ]
    pipeline = PairPipeline(pairs, *vocabularies, batch_size, max_length=max_length, **options)
    return pipeline, *vocabularies


def read(batches, source, target):
    """The pairs in some batches, as text; rows that only fill a batch are checked and left out."""
    found = []
    for batch in batches:
        for row in range(len(batch["mask"])):
            tokens, length = batch["source"][row], int(batch["source_length"][row])
            assert tokens[length - 1] == EOS
            assert not tokens[length:].any()
            if batch["mask"][row]:
                found.append((source.decode(tokens), target.decode(batch["target"][row])))
            else:
                assert length == 1
                assert not batch["target"][row].any()
    return found


def test_every_epoch_has_every_pair_once_and_an_order_of_its_own():
    pairs = made_pairs()
    pipeline, *vocabularies = make(pairs)
    epochs = []
    batches = pipeline.train()
    for _ in range(2):
        epoch = list(itertools.islice(batches, pipeline.steps_per_epoch))
        epochs.append(read(epoch, *vocabularies))
        assert sorted(epochs[-1]) == sorted(pairs.splits["train"])
    assert epochs[0] != epochs[1]
    assert pipeline.steps_per_epoch == 13
    other, *_ = make(pairs, seed=1)
    seen = read(itertools.islice(other.train(), 13), *vocabularies)
    assert seen != epochs[0]


def test_a_batch_is_a_function_of_seed_and_step():
    straight = list(itertools.islice(make()[0].train(), 30))
    for start in (0, 5, 13, 29):
        resumed = next(make()[0].train(start))
        assert resumed.keys() == straight[start].keys()
        for name in resumed:
            np.testing.assert_array_equal(resumed[name], straight[start][name])
    with pytest.raises(InputError, match="start step -1"):
        next(make()[0].train(-1))


def test_evaluation_has_every_pair_once_and_fills_up():
    pairs = made_pairs()
    pipeline, *vocabularies = make(pairs)
    for split in ("validation", "test"):
        batches = list(pipeline.evaluate(split))
        assert sorted(read(batches, *vocabularies)) == sorted(pairs.splits[split])
        assert pipeline.examples(split) == 13
        counted = sum(np.count_nonzero(b["target"] * b["mask"][:, None]) for b in batches)
        assert counted == pipeline.tokens(split)
        assert counted == sum(len(target.split()) + 1 for _, target in pairs.splits[split])
    with pytest.raises(InputError, match="split 'dev' of made: expected train or validation or"):
        list(pipeline.evaluate("dev"))


def test_batches_have_few_shapes_and_little_padding():
    pairs = made_pairs(train=400)
    for buckets in (1, 4):
        pipeline, *_ = make(pairs, buckets=buckets)
        epoch = list(itertools.islice(pipeline.train(), pipeline.steps_per_epoch))
        shapes = {(b["source"].shape[1], b["target"].shape[1]) for b in epoch}
        assert shapes <= set(pipeline.shapes)
        assert len(pipeline.shapes) <= buckets
        places = sum(b["source"].size + b["target"].size for b in epoch)
        filled = sum(
            np.count_nonzero(b["source"] * b["mask"][:, None]) + np.count_nonzero(b["target"])
            for b in epoch
        )
        assert pipeline.padding_share == pytest.approx(1 - filled / places)
        assert pipeline.padding_share < {1: 0.5, 4: 0.2}[buckets]
    assert pipeline.shapes == sorted(pipeline.shapes)
    widths = [b["source"].shape[1] for b in epoch]
    assert widths != sorted(widths), "short and long batches come mixed"


def test_both_sides_of_a_pair_have_room():
    words = [" ".join(["a", "b"][n % 2] for n in range(length)) for length in range(1, 11)]
    texts = [(f"s{n} {words[n % 10]}", words[9 - n % 10]) for n in range(80)]
    pairs = Pairs("crossed", {"train": texts, "test": [("s0 a", "b")]})
    pipeline, *vocabularies = make(pairs, buckets=4)
    epoch = itertools.islice(pipeline.train(), pipeline.steps_per_epoch)
    assert sorted(read(epoch, *vocabularies)) == sorted(texts)


def test_what_is_too_long_is_left_out_and_counted():
    pairs = made_pairs()
    pipeline, *vocabularies = make(pairs, max_length=11)  # five words, twice, and the end
    short = {k: [p for p in v if len(p[0].split()) <= 5] for k, v in pairs.splits.items()}
    for split, part in short.items():
        assert pipeline.examples(split) == len(part)
        assert pipeline.too_long[split] == len(pairs.splits[split]) - len(part)
        assert sorted(read(pipeline.evaluate(split), *vocabularies)) == sorted(part)
    assert max(max(shape) for shape in pipeline.shapes) <= 11
    with pytest.raises(InputError, match=r"no pair of train has at most 2 tokens .* max_length"):
        make(pairs, max_length=2)


def test_unknown_tokens_are_counted():
    pairs = made_pairs()
    vocabulary = SubwordVocabulary.learn(["a b c d e f"], "word", 99)
    pipeline = PairPipeline(pairs, vocabulary, vocabulary, 8, max_length=64)
    test = pairs.splits["test"]
    tokens = sum(len(source.split()) + len(target.split()) + 2 for source, target in test)
    assert pipeline.unknown["test"] == pytest.approx(3 * len(test) / tokens)  # one, and it twice


def test_sources_can_be_read_from_their_end():
    pairs = made_pairs()
    plain, source, _ = make(pairs)
    backward, *_ = make(pairs, reverse_source=True)
    for one, other in zip(plain.evaluate("test"), backward.evaluate("test"), strict=True):
        np.testing.assert_array_equal(one["target"], other["target"])
        np.testing.assert_array_equal(one["source_length"], other["source_length"])
        for row, length in enumerate(one["source_length"]):
            words = one["source"][row, : length - 1]
            np.testing.assert_array_equal(other["source"][row, : length - 1], words[::-1])
            assert other["source"][row, length - 1] == EOS
    assert encode_sources(source, ["a b c"], True)[0] == [
        *source.encode(["c b a"])[0][:-1],
        EOS,
    ]


def test_eight_devices_get_the_same_batches():
    mesh = parallel.data_mesh()
    plain, *_ = make()
    spread, *_ = make(sharding=parallel.batch_sharding(mesh))
    streams = [
        (plain.train(3), spread.train(3)),
        (plain.evaluate("test"), spread.evaluate("test")),
    ]
    for one, other in streams:
        for a, b in zip(itertools.islice(one, 15), itertools.islice(other, 15), strict=True):
            for name in a:
                assert isinstance(b[name], jax.Array)
                assert len(b[name].sharding.device_set) == 8
                np.testing.assert_array_equal(a[name], b[name])
                assert a[name].dtype == b[name].dtype
    with pytest.raises(InputError, match="batch size 6 does not divide over the 8 devices"):
        make(batch_size=6, sharding=parallel.batch_sharding(mesh))


@pytest.mark.parametrize("option", ["batch_size", "buckets"])
def test_mistakes_are_named(option):
    with pytest.raises(InputError, match="0: expected at least 1"):
        make(**{option: 0})


def test_more_dates_than_there_are():
    with pytest.raises(InputError, match="100000000 dates are too many; at most "):
        dates(10**8)
