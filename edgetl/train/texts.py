"""Changed copies of texts, for a teacher to answer: what a student sees of a language need not be what has classes.

Half of them are texts with tokens left out (Wei & Zou 2019, EDA, arXiv 1901.11196), half the beginning of one text with
the end of another (after Luque 2019, arXiv 1909.11241, who crosses texts of one class; here the teacher says what the
copy is). TinyBERT (Jiao et al. 2020, arXiv 1909.10351) changes texts for its students too, by a language model.

Letters: N texts, T tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgetl.types import Array

LEFT_OUT = 0.2
"""Share of the tokens that a copy lacks."""

BEGINNING, REST = (0.4, 0.8), (0.3, 0.7)
"""Shares of a text's tokens that a crossed copy begins with, and of another text's that it skips."""

Texts = tuple[Array, Array]
"""Ids (N, T) and mask (N, T): the first and the last token that the mask shows are special ones."""


def changed(texts: Texts, copies: int, seed: int) -> Texts:
    """Return (N * copies, T) changed copies, ordered by text: the first with tokens left out, the next crossed, ...

    The special tokens stay in their places. A text without tokens between them stays as it is.
    """
    ids, mask = texts
    random = np.random.default_rng(seed)
    inner = [row[1 : int(shown.sum()) - 1] for row, shown in zip(ids, mask, strict=True)]
    padding = ids[mask == 0]
    made_ids = np.full((len(ids) * copies, ids.shape[1]), padding[0] if len(padding) else 0)
    made_mask = np.zeros_like(made_ids)
    for number in range(len(made_ids)):
        text, crossed = number // copies, number % copies % 2
        own = inner[text]
        found = _crossed(own, inner[random.integers(len(inner))], random) if crossed else _thinned(own, random)
        found = found[: ids.shape[1] - 2]
        whole = [ids[text, 0], *found, ids[text, int(mask[text].sum()) - 1]] if len(own) else ids[text, mask[text] > 0]
        made_ids[number, : len(whole)], made_mask[number, : len(whole)] = whole, 1
    return made_ids.astype(ids.dtype), made_mask.astype(mask.dtype)


def _thinned(tokens: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Return the tokens without about a fifth of them; one at least is left."""
    kept = random.random(len(tokens)) >= LEFT_OUT
    return tokens[kept] if kept.any() else tokens[:1]


def _crossed(tokens: NDArray[np.int64], other: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Return the beginning of the tokens and the end of the others."""
    end = max(1, int(len(tokens) * random.uniform(*BEGINNING)))
    return np.concatenate([tokens[:end], other[int(len(other) * random.uniform(*REST)) :]])
