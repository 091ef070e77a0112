"""Measures of the words that all responses to a prompt use together."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from fastflow.evaluate.creative.words import Words, ngrams


def distinct_n(responses: Sequence[Words], n: int) -> float:
    """Compute the share of distinct n-grams among all n-grams of the responses, in [0, 1].

    distinct-n = |set of n-grams| / number of n-grams, over all responses together. 0 where no response has n words.
    It falls with length: compare models whose responses are about as long. Source: Li et al., "A diversity-promoting
    objective function for neural conversation models", 2016.
    """
    every = [ngram for response in responses for ngram in ngrams(response, n)]
    return len(set(every)) / len(every) if every else 0.0


def vocabulary(responses: Sequence[Words]) -> int:
    """Count the distinct words of all responses together."""
    return len({word for response in responses for word in response})


def compression_ratio(texts: Sequence[str]) -> float:
    """Compute the bytes of all responses over their bytes after compression; high is redundant.

    ratio = |UTF-8 of the texts joined by newlines| / |the same after DEFLATE at level 9|, headers left out. The texts
    are sorted first, so that their order does not count. 1 where there is no text. Short texts can be below 1.
    Source: Shaib et al., "Standardizing the measurement of text diversity", 2024 (with gzip, in the given order).
    """
    data = "\n".join(sorted(texts)).encode("utf-8", "surrogatepass")
    if not data.strip(b"\n"):
        return 1.0
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return len(data) / len(compressor.compress(data) + compressor.flush())
