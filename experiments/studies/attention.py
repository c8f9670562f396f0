"""Attention: what it does for long sentences.

python -m experiments.studies.attention --quick
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments import seq2seq
from experiments.harness import claim
from experiments.harness.claim import Claim, Measured, Setup, Verdict, clearly_greater, mean
from experiments.harness.study import Run
from experiments.harness.translation import heat_maps, search, without_padding
from jaxdl import figures

SETUPS = {
    "none": ("--attention=none",),
    "none, reversed": ("--attention=none", "--reverse_source"),
    "Luong": ("--attention=luong",),
}
LETTERS = ("--level=char", "--max_length=120", "--count=3000", "--features=96", "--epochs=16")
QUARTERS = tuple(f"{place} quarter" for place in ("shortest", "second", "third", "longest"))
"""Of the sentences by their length, of which the share that is right is a metric."""
SHOWN = [10, 50]
"""Of the first batch of held-out sentences, whose attention is drawn."""


def read(run: Run) -> dict[str, Any]:
    """The summary, and in it what is right by quarters of the lengths."""
    summary = run.summary()
    shares = summary["exact_match_by_source_length"].values()
    return summary | dict(zip(QUARTERS, shares, strict=True))


def judge(measured: Measured) -> Verdict:
    """Whether attention helps at all, helps the long, and whether reading backwards does."""
    right, long = (
        {name: found[metric] for name, found in measured.items()}
        for metric in ("eval/exact_match", QUARTERS[-1])
    )
    helps = clearly_greater(right["Luong"], right["none"])
    keeps_on = clearly_greater(long["Luong"], long["none"])
    reversal = clearly_greater(right["none, reversed"], right["none"])
    shares = ", ".join(
        f"{name} {mean(found):.3f} (of the longest quarter {mean(long[name]):.3f})"
        for name, found in right.items()
    )
    return Verdict(
        claim.word([helps, keeps_on, reversal]),
        f"The share without a mistake is, by attention: {shares}.",
    )


def draw(figure: Any, measured: Measured) -> None:
    """What is right by length."""
    axes = figure.subplots()
    for name, found in measured.items():
        figures.band(axes, range(4), [found[quarter] for quarter in QUARTERS], name)
    axes.set_xticks(range(4), QUARTERS)
    axes.set(xlabel="sentences by length", ylabel="share translated without a mistake")
    axes.legend(title="attention")
    figure.suptitle("Letter by letter hardly a sentence is right without attention")


def show_alignments(runs: Sequence[Run], path: Path) -> None:
    """What the tokens of two held-out sentences attend to, by the last run with attention."""
    model, params, vocabularies = seq2seq.trained(runs[-1].config)
    problem, *_ = claim.begun(runs[-1])
    batch = next(iter(problem.feed.evaluate("test")))  # from the short to the long
    source, lengths = (np.asarray(batch[name])[SHOWN] for name in ("source", "source_length"))
    found = search(model)(params, source, lengths, batch["target"].shape[1])
    sides = without_padding(source), without_padding(np.asarray(found.tokens[:, 0]))
    picture = Image.fromarray(heat_maps(model, params, vocabularies, *sides))
    picture.quantize(64).save(path, optimize=True)


CLAIM = Claim(
    name="attention",
    title="Attention and the length of sentences",
    claim="An encoder's last state has to hold a whole sentence, however long. A decoder that "
    "looks back at each word keeps on translating long ones; reading the source backwards helps, "
    "too.",
    source="Bahdanau et al. 2014, arXiv:1409.0473, 5.2; Luong et al. 2015, arXiv:1508.04025, whose "
    "attention it is here; "
    "Sutskever et al. 2014, arXiv:1409.3215, 3.3, for the reversed source",
    varied="attention, and the direction in which the source is read",
    held="3,000 numbers from English words to French ones, letter by letter, an LSTM of 96, Adam "
    "at a rate of 0.002, 16 passes in batches of 64",
    experiment="seq2seq",
    common=LETTERS,
    setups=tuple(Setup(name, flags) for name, flags in SETUPS.items()),
    metrics=("train/loss", "eval/bleu", "eval/exact_match", *QUARTERS),
    judge=judge,
    draw=draw,
    seeds=3,
    minutes=15,
    quickly=("--level=subword", "--count=2000", "--epochs=4"),
    read=read,
    pictures={"alignments.png": show_alignments},
)

if __name__ == "__main__":
    claim.main(CLAIM)
