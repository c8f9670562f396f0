"""Holds a run of experiments.word2vec against gensim on the same words; prints figures as JSON.

Run it by a Python that has gensim 4, numpy and pillow, where `--mode=export` has been run:

    PYTHONPATH=. python tests/golden/compare_word2vec.py WORKDIR

Neighbours are those of the 1,000 most frequent words; `overlap` is the mean share of a word's ten
nearest that two sets of vectors have in common. gensim reads a text in its order; what two seeds
of it share by that alone is left out where one of them reads the text in stretches of 100 words,
shuffled.
"""

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
from gensim.models import KeyedVectors, Word2Vec

from jaxdl.data import words
from jaxdl.data.text import read_corpus

PROBES, NEIGHBOURS = 1000, 10


def flags_of(workdir):
    return dict(re.findall(r"^--(\w+)=(.*)$", (workdir / "flags.txt").read_text(), re.MULTILINE))


def train(flags, vocabulary, ids, seed, stretch, shuffled):
    """gensim's vectors, `input` and `output` [V, D], and its words a second on two threads."""
    sentences = [
        [vocabulary.words[i] for i in ids[start : start + stretch]]
        for start in range(0, len(ids), stretch)
    ]
    if shuffled:
        np.random.default_rng(seed).shuffle(sentences)
    skipgram = flags["model"] == "skipgram"
    model = Word2Vec(
        vector_size=int(flags["features"]),
        window=int(flags["window"]),
        negative=int(flags["negatives"]),
        sample=float(flags["subsample"]),
        sg=int(skipgram),
        alpha=0.025 if skipgram else 0.05,
        min_count=1,
        workers=2,
        seed=seed,
    )
    model.build_vocab(sentences)
    began = time.perf_counter()
    trained, _ = model.train(
        sentences, total_examples=len(sentences), epochs=int(float(flags["epochs"]))
    )
    seconds = time.perf_counter() - began
    order = [model.wv.key_to_index[word] for word in vocabulary.words]
    return model.wv.vectors[order], model.syn1neg[order], trained / seconds


def pair_loss(inputs, outputs, batches, cbow):
    """The loss of held-out pairs, as jaxdl defines it, in NumPy."""
    total = pairs = 0.0
    for batch in batches:
        source, mask = inputs[batch["context"]], batch["context_mask"]
        if cbow:
            count = np.maximum(mask.sum(1, keepdims=True), 1)
            source = np.einsum("bcd,bc->bd", source, mask / count)[:, None]
            mask = mask.max(1, keepdims=True)
        targets = np.concatenate([batch["word"][:, None], batch["negative"]], 1)
        counted = targets != batch["word"][:, None]
        counted[:, 0] = True
        scores = np.einsum("bpd,bnd->bpn", source, outputs[targets])
        scores[..., 0] *= -1
        losses = (np.logaddexp(0, scores) * counted[:, None]).sum(-1)
        total, pairs = total + (losses * mask).sum(), pairs + mask.sum()
    return float(total / pairs)


def neighbours(vectors):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit[:PROBES] @ unit.T
    cosines[np.arange(len(cosines)), np.arange(len(cosines))] = -np.inf
    return np.argsort(-cosines, axis=1)[:, :NEIGHBOURS]


def overlap(a, b):
    pairs = zip(neighbours(a), neighbours(b), strict=True)
    return float(np.mean([len(np.intersect1d(x, y)) / NEIGHBOURS for x, y in pairs]))


def main():
    workdir = Path(sys.argv[1])
    flags = flags_of(workdir)
    tokens = {split: words.tokenize(text) for split, text in read_corpus(flags["text"]).items()}
    vocabulary = words.WordVocabulary.of(tokens["train"], int(flags["min_count"]))
    splits = {split: vocabulary.encode(each) for split, each in tokens.items()}
    ours = KeyedVectors.load_word2vec_format(str(workdir / "vectors.txt"))
    assert tuple(ours.index_to_key) == vocabulary.words

    gensims = {
        name: train(flags, vocabulary, splits["train"], seed, stretch, shuffled)
        for name, seed, stretch, shuffled in (
            ("in order", 0, 10_000, False),
            ("in order, another seed", 1, 10_000, False),
            ("shuffled", 2, 100, True),
        )
    }
    pipeline = words.WordPipeline(
        splits,
        vocabulary.counts,
        1024,
        window=int(flags["window"]),
        negatives=int(flags["negatives"]),
        subsample=float(flags["subsample"]),
        seed=int(flags["seed"]),
    )
    held_out = list(pipeline.evaluate("validation"))
    cbow = flags["model"] == "cbow"
    summary = json.loads((workdir / "summary.json").read_text())
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    speeds = [row["words_per_second"] for row in rows if "words_per_second" in row]
    first = gensims["in order"][0]
    figures = {
        "overlap of jaxdl": {name: overlap(ours.vectors, g[0]) for name, g in gensims.items()},
        "overlap of gensim": {
            n: overlap(first, g[0]) for n, g in gensims.items() if n != "in order"
        },
        "held-out pair loss of jaxdl": summary["eval/pair_loss"],
        "held-out pair loss of gensim": {
            name: pair_loss(g[0], g[1], held_out, cbow) for name, g in gensims.items()
        },
        "words a second of jaxdl": float(np.median(speeds)),
        "words a second of gensim": {name: g[2] for name, g in gensims.items()},
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
