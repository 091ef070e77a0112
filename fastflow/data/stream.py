"""The order in which prompts are served."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastflow.data.trajectory import Prompt


class PromptStream:
    """Serves prompts for ever, each epoch in an order that (seed, epoch) alone decides, so that it can be resumed."""

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, shuffle: bool = True):
        self._prompts = list(prompts)
        self._seed = seed
        self._shuffle = shuffle
        self._epoch, self._position = 0, 0

    def take(self, count: int) -> list[Prompt]:
        """The next `count` prompts; runs on into the next epoch."""
        taken: list[Prompt] = []
        while len(taken) < count:
            order = self._order()
            chosen = order[self._position : self._position + count - len(taken)]
            taken.extend(self._prompts[index] for index in chosen)
            self._position += len(chosen)
            if self._position == len(order):
                self._epoch, self._position = self._epoch + 1, 0
        return taken

    def state(self) -> dict[str, int]:
        """Where the stream stands, for `load_state` of a stream over the same prompts and seed."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state(self, state: dict[str, int]) -> None:
        self._epoch, self._position = state["epoch"], state["position"]

    def _order(self) -> range | np.ndarray:
        if not self._shuffle:
            return range(len(self._prompts))
        return np.random.default_rng([self._seed, self._epoch]).permutation(len(self._prompts))
