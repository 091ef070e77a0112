"""End responses by their text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastflow.data.response_text import INCOMPLETE, spell

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class StopTexts:
    """Finds stop texts in what the tokens of a response spell, special tokens included."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...]):
        self._tokenizer = tokenizer
        self._texts = texts

    def end(self, ids: np.ndarray, at_least: int) -> bool:
        """Return whether a stop text ends after the first `at_least` tokens, which cannot end a response."""
        if len(ids) <= at_least:
            return False
        text, before = (spell(self._tokenizer, part.tolist()) for part in (ids, ids[:at_least]))
        if text.endswith(INCOMPLETE):  # the rest of a character may follow; vLLM waits for it too
            return False
        return any(text.find(stop, max(0, len(before) - len(stop) + 1)) >= 0 for stop in self._texts)
