"""Spells the text of a response: one text for everything that reads it, and it is what the model wrote.

Stop texts, format_pattern, format_check, rewards, samples and the report all read the same text:

- It spells special and added tokens like any other token, wherever they stand. Nothing is cleaned up.
- It leaves out one token: the end-of-sequence token that closes a response, where that is a special token. A pattern
  such as `\\d$` therefore sees the last thing that the model said. A format_pattern that names that token sees it too.
- A special token's text in a format_pattern stands for itself, escaped or not: `<|im_end|>` is that token, and not
  `<` or `im_end` or `>`.
- A stop text may be a special token, contain one, or take several tokens. It belongs to the response. The sampler looks
  for it in the text, so a stop text that equals a special token also stops where other tokens spell it.
- A character that takes several tokens counts when it is complete.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, cast

from fastflow.errors import FastflowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

INCOMPLETE = "\ufffd"  # a tokenizer's spelling of an incomplete character


def spell(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Spell the tokens, special ones included."""
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return cast(str, text)  # a list for a batch only


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the text of each special token by its id, also of those for which the tokenizer has no role."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {token: entry.content for token, entry in added.items() if entry.special}
    roles = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return {**found, **{token: str(text) for token, text in roles if token is not None}}


def check_spelling(tokenizer: PreTrainedTokenizerBase, setting: str, text: str) -> None:
    """Raise FastflowError for a text with a special token that the tokenizer spells in another way: it never matches.

    Some tokenizers change the spaces of such a token.
    """
    held = {token: written for token, written in special_tokens(tokenizer).items() if written in text}
    for token, written in held.items():
        first = spell(tokenizer, [token])
        later = spell(tokenizer, [token, token])[len(first) :]
        if not (written in first and written in later):
            raise FastflowError(
                f"{setting} holds the special token {written}, which the tokenizer spells {later!r} within a response; "
                "write it that way, or use a text without it"
            )


class ResponseText:
    """Spells responses without the special token that ends them.

    end_ids: tokens that end a response.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: Collection[int]):
        self._tokenizer = tokenizer
        special = special_tokens(tokenizer)
        self._ends = {token: special[token] for token in end_ids if token in special}

    def of(self, ids: Sequence[int], *, naming: str = "") -> str:
        """Spell a response. naming: the text of a rule; the closing token stays where the rule names it."""
        if len(ids) and int(ids[-1]) in self._ends and self._ends[int(ids[-1])] not in naming:
            ids = ids[:-1]
        return spell(self._tokenizer, ids)


def with_literal_tokens(pattern: str, tokens: Collection[str]) -> str:
    """Escape the texts of these tokens in a regular expression, and warn where they did not stand for themselves.

    >>> with_literal_tokens("42<|end|>$", ["<|end|>"])
    '42<\\\\|end\\\\|>$'
    """
    for token in sorted(tokens, key=len, reverse=True):
        if len(token) > 1 and token in pattern and not _matches_itself(token):
            pattern = pattern.replace(token, re.escape(token))
            logger.warning(
                "objective.format_pattern holds the special token %s, whose characters have another meaning in a "
                "regular expression; fastflow takes it as the token: write %s", token, re.escape(token),
            )  # fmt: skip
    return pattern


def unescaped(pattern: str) -> str:
    """Remove the backslashes before punctuation from a regular expression: what is left, it names literally."""
    return re.sub(r"\\([^\w\s])", r"\1", pattern)


def _matches_itself(token: str) -> bool:
    try:
        return re.fullmatch(token, token) is not None
    except re.error:
        return False
