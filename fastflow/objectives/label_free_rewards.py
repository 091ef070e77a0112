"""Rewards that need no label: what the responses to one prompt say about each other, chance, and format alone.

Each takes flat lists and the number of responses of each group (`sizes`), and returns one reward per response.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fastflow.objectives.answers import NO_ANSWER


def empo(classes: Sequence[int], sizes: Sequence[int], *, unparsed: str = "zero") -> list[float]:
    """EMPO: the share of the group's responses that give the same answer (the likelihood of a semantic cluster).

    classes: see AnswerReader. unparsed: a response without an answer gets 0 (zero), or the share of a cluster of its
    own (own_cluster). A group in which no two answers agree says nothing: all its rewards are 0.

    >>> empo([0, 0, 1, NO_ANSWER], [4])
    [0.5, 0.5, 0.25, 0.0]
    """
    rewards: list[float] = []
    for group in _groups(classes, sizes):
        counts = Counter(entry for entry in group if entry != NO_ANSWER)
        agrees = max(counts.values(), default=0) > 1
        alone = 1 if unparsed == "own_cluster" else 0
        rewards += [agrees * (counts[entry] if entry != NO_ANSWER else alone) / len(group) for entry in group]
    return rewards


def ttrl(classes: Sequence[int], sizes: Sequence[int]) -> list[float]:
    """TTRL: 1 where the answer is the group's most common one, otherwise 0. Of equally common ones the first counts.

    A group without any answer gets zeros.

    >>> ttrl([0, 1, 1, NO_ANSWER], [4])
    [0.0, 1.0, 1.0, 0.0]
    """
    rewards: list[float] = []
    for group in _groups(classes, sizes):
        votes = Counter(entry for entry in group if entry != NO_ANSWER)
        elected = votes.most_common(1)[0][0] if votes else None
        rewards += [float(entry == elected) for entry in group]
    return rewards


def random_reward(seeds: Sequence[int]) -> list[float]:
    """A control: 0 or 1 with equal chances, whatever the response says. seeds: of the responses' requests.

    The coin depends on the seed alone, so that a resumed run sees the same one.
    """
    return [float(np.random.default_rng([seed, 1]).integers(2)) for seed in seeds]


def format_reward(well_formed: Sequence[bool]) -> list[float]:
    """A control: 1 for a well-formed response, right or wrong."""
    return [float(fine) for fine in well_formed]


def unanswered(classes: Sequence[int], reward: float) -> list[float]:
    """`reward` where a response gives no answer, 0 elsewhere; for rent."""
    return [reward if entry == NO_ANSWER else 0.0 for entry in classes]


def _groups(values: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    ends = np.cumsum(sizes).tolist()
    return [values[end - size : end] for end, size in zip(ends, sizes, strict=True)]
