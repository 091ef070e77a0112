"""Self-BLEU: how well the other responses to a prompt predict the n-grams of each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from fastflow.evaluate.creative.words import Words, check_several, ngrams

ORDER = 4


def self_bleu(responses: Sequence[Words]) -> float:
    """Compute the mean BLEU-4 of each response against all others as references, in [0, 1]; high is redundant.

    BLEU = BP exp(mean over n of log p_n). p_n is the share of a response's n-grams that stand in a reference, each at
    most as often as in the reference that has most of them. BP = min(1, exp(1 - r / c)) for c words and the r of the
    reference nearest in length (the shorter of two). n goes to the largest order that the response has, at most 4; the
    k-th p_n without a match counts as 1 / (2^k N) for N n-grams (sacrebleu's `exp` smoothing with `effective_order`).
    Without any match it is 0. An empty response has 1 where another is empty, otherwise 0.
    Source: Zhu et al., "Texygen", 2018; Papineni et al., "BLEU", 2002. Raises ValueError for fewer than two responses.
    """
    check_several(responses)
    counts = [[Counter(ngrams(response, n)) for response in responses] for n in range(1, ORDER + 1)]
    most = [_two_largest(of_order) for of_order in counts]
    lengths = [len(response) for response in responses]
    total = 0.0
    for place, length in enumerate(lengths):
        others = lengths[:place] + lengths[place + 1 :]
        if not length:
            total += float(0 in others)
            continue
        matches = [_matches(counts[n][place], most[n], place) for n in range(min(ORDER, length))]
        nearest = min(others, key=lambda other: (abs(other - length), other))
        total += _bleu(matches, length, nearest)
    return total / len(responses)


def _two_largest(counts: Sequence[Counter[Words]]) -> dict[Words, tuple[int, int, int]]:
    """Return for each n-gram its largest count, the response that has it, and the largest count of the others."""
    found: dict[Words, tuple[int, int, int]] = {}
    for place, of_response in enumerate(counts):
        for ngram, count in of_response.items():
            first, owner, second = found.get(ngram, (0, -1, 0))
            found[ngram] = (count, place, first) if count > first else (first, owner, max(second, count))
    return found


def _matches(counts: Counter[Words], most: dict[Words, tuple[int, int, int]], place: int) -> int:
    total = 0
    for ngram, count in counts.items():
        first, owner, second = most[ngram]
        total += min(count, second if owner == place else first)
    return total


def _bleu(matches: Sequence[int], length: int, reference: int) -> float:
    if not any(matches):
        return 0.0
    logs, missed = 0.0, 0
    for order, matched in enumerate(matches):
        available = length - order
        missed += not matched
        logs += math.log(matched / available if matched else 1 / (2**missed * available))
    brevity = min(1.0, math.exp(1 - reference / length))
    return brevity * math.exp(logs / len(matches))
