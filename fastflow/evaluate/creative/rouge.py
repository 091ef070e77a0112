"""ROUGE-L between the responses to a prompt: how much of one stands in another, in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from fastflow.evaluate.creative.words import Words, check_several

Marks = dict[str, int]  # word -> bits at its places


def rouge_l_redundancy(responses: Sequence[Words]) -> float:
    """Compute the mean over all pairs of responses of their ROUGE-L F1, in [0, 1]; 1 where all are equal.

    F1 = 2 P R / (P + R) with P = LCS / |a|, R = LCS / |b|, which is 2 LCS / (|a| + |b|); LCS is the length of the
    longest common subsequence of words. Two empty responses have F1 = 1, an empty and another one 0.
    Source: Lin, "ROUGE: a package for automatic evaluation of summaries", 2004; the mean over pairs within a prompt is
    PowerFlow's redundancy (arXiv 2603.18363). Raises ValueError for fewer than two responses.
    """
    check_several(responses)
    marks = [_marks(response) for response in responses]
    total, pairs = 0.0, 0
    for first, second in combinations(range(len(responses)), 2):
        together = len(responses[first]) + len(responses[second])
        common = _lcs(marks[first], len(responses[first]), responses[second])
        total += 2 * common / together if together else 1.0
        pairs += 1
    return total / pairs


def _marks(response: Words) -> Marks:
    marks: Marks = {}
    for place, word in enumerate(response):
        marks[word] = marks.get(word, 0) | (1 << place)
    return marks


def _lcs(marks: Marks, length: int, other: Words) -> int:
    """Compute the length of the longest common subsequence, in words.

    A whole row of the table advances at once, as bits of one integer (Hyyrö, 2004): a zero is a step of the LCS.
    """
    everything = (1 << length) - 1
    row = everything
    for word in other:
        if word in marks:
            matched = row & marks[word]
            row = ((row + matched) | (row - matched)) & everything
    return length - row.bit_count()
