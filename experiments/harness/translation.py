"""Translations by a sequence-to-sequence model, and pictures of what they attend to."""

import functools
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxdl import decoding, figures
from jaxdl.data.pairs import EOS, GO, PAD, SubwordVocabulary
from jaxdl.models.seq2seq import Seq2Seq


class Search(Protocol):
    """What finds translations."""

    def __call__(
        self, params: Any, source: Any, source_length: Any, max_length: int, /
    ) -> decoding.Sequences:
        """The best [B, n_best] of sources int [B, S], each of at most so many tokens."""
        ...


def search(
    model: Seq2Seq,
    beam: int = 1,
    n_best: int = 1,
    length_penalty: float = 0.0,
    coverage_penalty: float = 0.0,
) -> Search:
    """Beam search with a model, compiled once for each shape and `max_length`."""

    @functools.partial(jax.jit, static_argnums=3)
    def run(params, source, source_length, max_length):
        apply = functools.partial(model.apply, {"params": params})
        encoded, carry = apply(source, source_length, train=False, method="encode")
        step: Any = functools.partial(apply, decoding.repeat(encoded, beam), method="step")
        return decoding.beam_search(
            step,
            carry,
            GO,
            EOS,
            max_length,
            beam,
            n_best=n_best,
            length_penalty=length_penalty,
            coverage_penalty=coverage_penalty,
            source_mask=None if encoded is None else encoded.mask,
        )

    return run


@figures.styled
def heat_maps(
    model: Seq2Seq,
    params: Any,
    vocabularies: tuple[SubwordVocabulary, SubwordVocabulary],
    sources: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
) -> np.ndarray:
    """A picture of what each token of some targets attended to, uint8 [height, width, 3].

    Args:
      model: one with attention.
      params: its parameters.
      vocabularies: of the two languages.
      sources: the tokens of each source, without padding.
      targets: those of its translation.
    """
    # Padded to one shape: each of its own would be compiled on its own, an operation at a time.
    attended: Any = jax.jit(functools.partial(model.apply, train=False))
    lengths = np.array(list(map(len, sources)))
    inputs = padded([[GO, *target[:-1]] for target in targets], len(targets))
    _, weights = attended({"params": params}, padded(sources, len(sources)), lengths, inputs)
    width, height = (max(4.5, 0.14 * max(map(len, side))) for side in (sources, targets))
    figure = Figure(figsize=(width * len(sources), height), layout="constrained")
    panels = figure.subplots(1, len(sources), squeeze=False)[0]
    for axes, source, target, of in zip(panels, sources, targets, np.asarray(weights), strict=True):
        shown = of[: len(target), : len(source)]
        axes.imshow(shown, cmap="gray", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(source)), vocabularies[0].tokens(source), rotation=90, fontsize=8)
        axes.set_yticks(range(len(target)), vocabularies[1].tokens(target), fontsize=8)
        axes.grid(visible=False)
        axes.set_xlabel("source")
        axes.set_ylabel("translation")
    figure.suptitle("attention weights, from 0 (black) to 1 (white)", fontsize=10)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():  # the font may lack a script; a box stands for its letters
        warnings.filterwarnings("ignore", "Glyph")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def padded(sentences: Sequence[Sequence[int] | np.ndarray], count: int) -> np.ndarray:
    """Sentences as int32 [count, T], T a multiple of 8, for few widths are few programs.

    Rows beyond them are the sentence that is at its end.
    """
    width = -(-max(map(len, sentences)) // 8) * 8
    rows = np.full((count, width), PAD, np.int32)
    rows[:, 0] = EOS
    for row, tokens in zip(rows, sentences, strict=False):
        row[: len(tokens)] = tokens
    return rows


def without_padding(rows: Any) -> list[np.ndarray]:
    """The tokens [N, T] of sentences, each as far as it goes."""
    return [row[row != PAD] for row in np.asarray(rows)]
