"""Responses that end by their text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class StopTexts:
    """Sees a stop text in what the tokens of a response spell, special tokens left out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...]):
        self._tokenizer = tokenizer
        self._texts = texts

    def end(self, ids: np.ndarray) -> bool:
        """Whether the last token of these completes a stop text, none having stood there before."""
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        return any(stop in text for stop in self._texts)
