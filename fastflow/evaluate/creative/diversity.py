"""All measures of diversity of one prompt's responses, and their means over prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from fastflow.evaluate.creative.bleu import self_bleu
from fastflow.evaluate.creative.lexical import compression_ratio, distinct_n, vocabulary
from fastflow.evaluate.creative.rouge import rouge_l_redundancy
from fastflow.evaluate.creative.semantic import semantic_diversity
from fastflow.evaluate.creative.words import words

Measures = dict[str, float]
VERSION = 2  # of the formulas; a cached value of another version is computed anew

CONVENTIONS = {
    "semantic": "1 - mean pairwise cosine of sentence embeddings of a prompt's responses",
    "semantic_clipped": "the same with negative cosines as 0, as the paper has it",
    "rouge_l": "mean pairwise ROUGE-L F1 over words, without stemming; low is diverse",
    "self_bleu": "mean BLEU-4 of each response against the others, exp smoothing; low is diverse",
    "distinct_1": "distinct words over all words of a prompt's responses",
    "distinct_2": "the same with pairs of words",
    "compression": "bytes over deflated bytes of a prompt's responses; low is diverse",
    "vocabulary": "distinct words of a prompt's responses",
}


def measure(texts: Sequence[str], vectors: Float32[np.ndarray, "n d"] | None = None) -> Measures:
    """Measure the responses to one prompt. vectors: their embeddings; without them the semantic measures are left out.

    Raises ValueError for fewer than two responses.
    """
    cut = [words(text) for text in texts]
    found = {
        "rouge_l": rouge_l_redundancy(cut),
        "self_bleu": self_bleu(cut),
        "distinct_1": distinct_n(cut, 1),
        "distinct_2": distinct_n(cut, 2),
        "compression": compression_ratio(texts),
        "vocabulary": float(vocabulary(cut)),
    }
    if vectors is None:
        return found
    clipped = semantic_diversity(vectors, clip=True)
    return {"semantic": semantic_diversity(vectors), "semantic_clipped": clipped, **found}
