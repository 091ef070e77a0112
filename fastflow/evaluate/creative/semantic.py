"""Semantic diversity: how far the meanings of the responses to a prompt lie apart."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from fastflow.evaluate.creative.words import check_several


def semantic_diversity(vectors: Float[np.ndarray, "n d"], *, clip: bool = False) -> float:
    """Compute 1 - mean over all pairs of the cosine of their embeddings: in [0, 2], and 0 where all are equal.

    vectors: one sentence embedding for each of n responses. clip: take negative cosines as 0, which is PowerFlow's
    form, mean of 1 - max(cos, 0), in [0, 1] (arXiv 2603.18363). A vector of zeros has cosine 0 with others, and 1 with
    another of zeros. Raises ValueError for fewer than two responses.
    """
    check_several(vectors)
    vectors = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(vectors, axis=1)
    units = np.divide(vectors, norms[:, None], out=np.zeros_like(vectors), where=norms[:, None] > 0)
    cosines = np.clip(units @ units.T, 0 if clip else -1, 1)
    cosines += np.outer(norms == 0, norms == 0)
    above = np.triu_indices(len(vectors), 1)
    return float(1 - cosines[above].mean())
