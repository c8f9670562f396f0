"""Attention: what it does for long sentences.

python -m experiments.studies.attention --quick
"""

from typing import Any

from experiments.harness import claim
from experiments.harness.claim import Claim, Measured, Setup, Verdict, clearly_greater, mean
from experiments.harness.study import Run
from jaxdl import figures

SETUPS = {
    "none": ("--attention=none",),
    "none, reversed": ("--attention=none", "--reverse_source"),
    "Bahdanau": ("--attention=bahdanau",),
    "Luong": ("--attention=luong",),
}
LETTERS = ("--level=char", "--max_length=120", "--count=3000", "--features=96", "--epochs=16")
QUARTERS = tuple(f"{place} quarter" for place in ("shortest", "second", "third", "longest"))
"""Of the sentences by their length, of which the share that is right is a metric."""


def read(run: Run) -> dict[str, Any]:
    """The summary, and in it what is right by quarters of the lengths."""
    summary = run.summary()
    shares = summary["exact_match_by_source_length"].values()
    return summary | dict(zip(QUARTERS, shares, strict=True))


def judge(measured: Measured) -> Verdict:
    """By the longest quarter: what attention brings there, and whether more than to the short."""
    long, short = (
        {name: found[quarter] for name, found in measured.items()}
        for quarter in (QUARTERS[-1], QUARTERS[0])
    )
    attends = [name for name in ("Bahdanau", "Luong") if clearly_greater(long[name], long["none"])]
    gains = [
        mean(of["Luong"]) - mean(of["none"]) for of in (short, long)
    ]  # where all are right nothing is gained
    word = "does not hold"
    if attends:
        word = "holds" if len(attends) == 2 and gains[1] > gains[0] else "holds in part"
    shares = ", ".join(f"{name} {mean(found):.3f}" for name, found in long.items())
    return Verdict(
        word,
        f"Of the longest quarter is right: {shares}. Luong's attention brings {gains[0]:+.3f} to "
        f"the shortest quarter and {gains[1]:+.3f} to the longest.",
    )


def draw(figure: Any, measured: Measured) -> None:
    """What is right by length."""
    axes = figure.subplots()
    for name, found in measured.items():
        figures.band(axes, range(4), [found[quarter] for quarter in QUARTERS], name)
    axes.set_xticks(range(4), QUARTERS)
    axes.set(xlabel="sentences by length", ylabel="share translated without a mistake")
    axes.legend(title="attention")
    figure.suptitle("Without attention it is the long sentences that fail")


CLAIM = Claim(
    name="attention",
    title="Attention and the length of sentences",
    claim="An encoder's last state has to hold a whole sentence, however long. A decoder that "
    "looks back at each word keeps on translating long ones; reading the source backwards helps, "
    "too.",
    source="Bahdanau et al. 2014, arXiv:1409.0473, 5.2; Luong et al. 2015, arXiv:1508.04025; "
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
)

if __name__ == "__main__":
    claim.main(CLAIM)
