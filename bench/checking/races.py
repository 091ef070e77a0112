"""The addresses that each program of a launch touched, and pairs of programs between which nothing gives an order."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_NOTHING = np.zeros(0, np.uint64)


def distinct(addresses: np.ndarray) -> np.ndarray:
    """Sorted, each once. np.unique hashes, which evenly spaced addresses make slow."""
    addresses = np.sort(addresses, axis=None)
    return addresses[np.concatenate([[True], addresses[1:] != addresses[:-1]])] if len(addresses) else addresses


class Accesses:
    """What one program touched: addresses in memory, so that two arguments over one tensor meet."""

    def __init__(self):
        self._parts: dict[str, list[np.ndarray]] = {"loads": [], "stores": [], "atomics": []}

    def add(self, how: str, addresses: np.ndarray) -> None:
        self._parts[how].append(addresses)

    def all(self, how: str) -> np.ndarray:
        """Sorted, each once."""
        return distinct(np.concatenate([_NOTHING, *self._parts[how]]))

    def has_stored(self, addresses: np.ndarray) -> bool:
        """Whether any of these sorted addresses is among the stores so far."""
        return any(_overlap(addresses, part) for part in self._parts["stores"])


def _overlap(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two sorted arrays share an address."""
    if not len(left) or not len(right) or left[0] > right[-1] or left[-1] < right[0]:
        return False
    at = np.minimum(np.searchsorted(right, left), len(right) - 1)
    return bool((right[at] == left).any())


class Race(NamedTuple):
    """Two programs by their number in the log, and at how many addresses they meet."""

    first: int
    second: int
    what: str
    count: int


def races(log: list[Accesses]) -> Iterator[Race]:
    """At most one race of each sort. Atomic operations race with loads and stores, not with each other."""
    stores = [program.all("stores") for program in log]
    atomics = [program.all("atomics") for program in log]
    sorts = {
        "both store to": (stores, stores),
        "load and store": ([program.all("loads") for program in log], stores),
        "load and update": ([program.all("loads") for program in log], atomics),
        "store and update": (stores, atomics),
    }
    for what, (left, right) in sorts.items():
        race = _meeting(left, right)
        if race is not None:
            yield Race(*race[:2], what, race[2])


def _meeting(left: list[np.ndarray], right: list[np.ndarray]) -> tuple[int, int, int] | None:
    """The first program whose left addresses are among another's right ones, that other, and how many they are."""
    addresses = np.concatenate([_NOTHING, *right])
    if not len(addresses):
        return None
    owner = np.repeat(np.arange(len(right)), [len(part) for part in right])
    order = np.argsort(addresses, kind="stable")
    addresses, owner = addresses[order], owner[order]
    for number, part in enumerate(left):
        first, last = (np.searchsorted(addresses, part, side) for side in ("left", "right"))
        # an owner's addresses are distinct: at most one of the range first to last is this program's own
        has_other = (last - first > 1) | ((last - first == 1) & (owner[np.minimum(first, len(owner) - 1)] != number))
        if has_other.any():
            at = np.flatnonzero(has_other)[0]
            others = owner[first[at] : last[at]]
            return number, int(others[others != number][0]), int(has_other.sum())
    return None
