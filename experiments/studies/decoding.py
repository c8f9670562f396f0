"""Greedy decoding, beam search, and training on the model's own guesses.

python -m experiments.studies.decoding --quick
"""

from typing import Any

import jax
import numpy as np
import sacrebleu

from experiments import seq2seq
from experiments.harness import claim, translation
from experiments.harness.claim import Claim, Measured, Setup, Verdict, clearly_greater, mean
from experiments.harness.study import Run
from experiments.studies.attention import LETTERS
from jaxdl import figures
from jaxdl.data.pairs import encode_sources

BEAMS = (1, 2, 4, 8)
TRAININGS = {"teacher forcing": 0.0, "scheduled sampling": 0.5}


def read(run: Run) -> dict[str, float]:
    """By the width of the beam: the share of test sentences that is right, and BLEU."""
    config = run.config
    model, params, (source, target) = seq2seq.trained(config)
    texts, references = zip(*seq2seq.read_pairs(config).splits["test"], strict=True)
    encoded = encode_sources(source, texts, config.pairs.reverse_source)
    rows, lengths = translation.padded(encoded, len(encoded)), np.array([*map(len, encoded)])
    found = {}
    for beam in BEAMS:
        decode = translation.search(model, beam, length_penalty=config.search.length_penalty)
        best = jax.device_get(decode(params, rows, lengths, config.pairs.max_length).tokens[:, 0])
        said = [target.decode(tokens) for tokens in translation.without_padding(best)]
        right = [a == b for a, b in zip(said, references, strict=True)]
        found[f"right, beam {beam}"] = float(np.mean(right))
        found[f"BLEU, beam {beam}"] = sacrebleu.corpus_bleu(said, [list(references)]).score
    return found


def judge(measured: Measured) -> Verdict:
    """By sentences without a mistake: beams against greedy, own guesses against the truth."""
    forced, sampled = measured.values()
    wider = clearly_greater(forced["right, beam 4"], forced["right, beam 1"])
    guesses = clearly_greater(sampled["right, beam 1"], forced["right, beam 1"])
    word = claim.word([wider, guesses])
    shares = ", ".join(f"{mean(forced[f'right, beam {b}']):.3f} with {b}" for b in BEAMS)
    return Verdict(
        word,
        f"By the width of the beam the share without a mistake is {shares}; BLEU is "
        f"{mean(forced['BLEU, beam 1']):.1f} with 1 and {mean(forced['BLEU, beam 4']):.1f} with 4. "
        "Trained on its own guesses, too, the share is "
        f"{mean(sampled['right, beam 1']):.3f} by greedy decoding.",
    )


def draw(figure: Any, measured: Measured) -> None:
    """What is right, and BLEU, by the width of the beam."""
    for axes, metric in zip(figure.subplots(1, 2), ("right", "BLEU"), strict=True):
        for name, found in measured.items():
            figures.band(axes, BEAMS, [found[f"{metric}, beam {beam}"] for beam in BEAMS], name)
        axes.set(xscale="log", xlabel="width of the beam")
        axes.set_xticks(BEAMS, list(map(str, BEAMS)), minor=False)
        axes.minorticks_off()
    figure.axes[0].set_ylabel("share translated without a mistake")
    figure.axes[1].set_ylabel("BLEU")
    figure.axes[1].legend()
    figure.suptitle("Training on one's own guesses brings more than a wider beam")


CLAIM = Claim(
    name="decoding",
    title="Greedy decoding, beams and teacher forcing",
    claim="A beam finds translations that greedy decoding misses, most of it with a width of two "
    "to four; a model that in training meets its own guesses is misled less by them.",
    source="Sutskever et al. 2014, arXiv:1409.3215, 3.6; Bengio et al. 2015, Scheduled Sampling, "
    "arXiv:1506.03099",
    varied="the width of the beam; in training the share of the model's own guesses among the "
    "decoder's inputs, which rises in a line to a half, or is none",
    held="3,000 numbers from English words to French ones, letter by letter, an LSTM of 96 with "
    "Luong's attention, Adam at a rate of 0.002, 14 passes in batches of 64",
    experiment="seq2seq",
    common=(*LETTERS, "--epochs=14"),
    setups=tuple(
        Setup(name, (f"--scheduled_sampling={share}",)) for name, share in TRAININGS.items()
    ),
    metrics=tuple(f"{metric}, beam {beam}" for metric in ("right", "BLEU") for beam in BEAMS),
    judge=judge,
    draw=draw,
    seeds=3,
    minutes=8,
    quickly=("--level=subword", "--count=2000", "--epochs=4"),
    read=read,
)

if __name__ == "__main__":
    claim.main(CLAIM)
