"""Serves prompts in an order that can be resumed."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from fastflow.counted import counted
from fastflow.data.trajectory import Prompt

logger = logging.getLogger(__name__)


def warn_of_few(prompts: Sequence[Prompt], per_step: int) -> None:
    """Warn where a step takes more prompts than there are."""
    if len(prompts) < per_step:
        logger.warning(
            "batch.prompts_per_step = %d, but data.path holds only %s: each appears up to %s in a step, as separate "
            "groups; lower it and raise batch.responses_per_prompt, or give more prompts",
            per_step, counted(len(prompts), "prompt"), counted(-(-per_step // len(prompts)), "time"),
        )  # fmt: skip


class PromptStream:
    """Serves prompts without end. (seed, epoch) alone decides the order of an epoch, so a run can resume it."""

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, shuffle: bool = True):
        self._prompts = list(prompts)
        self._seed = seed
        self._shuffle = shuffle
        self._epoch, self._position = 0, 0

    @property
    def all(self) -> Sequence[Prompt]:
        """Those of one epoch, in the order of the file."""
        return self._prompts

    def take(self, count: int) -> list[Prompt]:
        """Return the next `count` prompts. Continues with the next epoch at the end of one."""
        taken: list[Prompt] = []
        while len(taken) < count:
            order = self._order()
            chosen = order[self._position : self._position + count - len(taken)]
            taken.extend(self._prompts[index] for index in chosen)
            self._position += len(chosen)
            if self._position == len(order):
                self._epoch, self._position = self._epoch + 1, 0
        return taken

    def turns(self, count: int) -> list[int]:
        """Say how many turns each of the next `count` prompts had before."""
        return [self._epoch + (self._position + place) // len(self._prompts) for place in range(count)]

    def state(self) -> dict[str, int]:
        """Return where the stream stands, for `load_state` of a stream with the same prompts and seed."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state(self, state: dict[str, int]) -> None:
        self._epoch, self._position = state["epoch"], state["position"]

    def _order(self) -> range | np.ndarray:
        if not self._shuffle:
            return range(len(self._prompts))
        return np.random.default_rng([self._seed, self._epoch]).permutation(len(self._prompts))
