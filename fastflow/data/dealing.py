"""Deals trajectories to ranks, so that all have about the same to compute."""

from __future__ import annotations

from collections.abc import Sequence


def costs(lengths: Sequence[int], width: int) -> list[int]:
    """Estimate what sequences cost a decoder layer, in units of 2 * width flops.

    The products of a layer take 24 width^2 flops a token, causal attention 2 width a token and token before it.
    """
    return [length * (12 * width + length) for length in lengths]


def deal(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """Give each item to the rank that has the least so far, the most expensive first. Returns each rank's indices.

    Deterministic: all ranks compute the same deal. A rank may get nothing.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        least = min(range(ranks), key=lambda rank: (loads[rank], rank))
        shares[least].append(index)
        loads[least] += costs[index]
    return [sorted(share) for share in shares]
