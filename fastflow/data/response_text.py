"""The text of a response, decided once for everything that reads text: it is what the model wrote.

Stop texts, format_pattern, format_check, rewards, samples and the report all read the same text:

- Special and added tokens are spelled like any other token, wherever they stand; nothing is cleaned up.
- Left out is one token: the end-of-sequence token that closes a response, where it is a special token. A pattern such
  as `\\d$` therefore sees the last thing that was said. A format_pattern that names the closing token sees it too.
- A special token's text in a format_pattern stands for itself, escaped or not: `<|im_end|>` is that token, and not
  `<` or `im_end` or `>`.
- A stop text may be a special token, hold one, or be spelled by several tokens. It belongs to the response. It is
  looked for in the text, so that a stop text that equals a special token also stops where other tokens spell it.
- A character of several tokens counts when it is complete.
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

INCOMPLETE = "\ufffd"  # what a tokenizer gives for bytes that are no character yet


def spell(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """What the tokens say, special ones included."""
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return cast(str, text)  # a list for a batch only


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The text of each special token by its id, those included that the tokenizer has no role for."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {token: entry.content for token, entry in added.items() if entry.special}
    roles = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return {**found, **{token: str(text) for token, text in roles if token is not None}}


def check_spelling(tokenizer: PreTrainedTokenizerBase, setting: str, text: str) -> None:
    """Raise FastflowError where a text holds a special token that the tokenizer spells otherwise, as some do with the
    spaces in it: it could never be seen."""
    held = {token: written for token, written in special_tokens(tokenizer).items() if written in text}
    for token, written in held.items():
        first = spell(tokenizer, [token])
        later = spell(tokenizer, [token, token])[len(first) :]
        if not (written in first and written in later):
            raise FastflowError(
                f"{setting} holds the special token {written}, which the tokenizer spells {later!r} within a response; "
                "write it so, or use a text without it"
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
        """The response's text. naming: a rule's own text; the closing token stays where the rule names it."""
        if len(ids) and int(ids[-1]) in self._ends and self._ends[int(ids[-1])] not in naming:
            ids = ids[:-1]
        return spell(self._tokenizer, ids)


def with_literal_tokens(pattern: str, tokens: Collection[str]) -> str:
    """A regular expression in which the texts of these tokens stand for themselves, with a warning where they did not.

    >>> with_literal_tokens("42<|end|>$", ["<|end|>"])
    '42<\\\\|end\\\\|>$'
    """
    for token in sorted(tokens, key=len, reverse=True):
        if len(token) > 1 and token in pattern and not _matches_itself(token):
            pattern = pattern.replace(token, re.escape(token))
            logger.warning(
                "objective.format_pattern holds the special token %s, whose characters mean something else in a "
                "regular expression; it is taken as the token: write %s", token, re.escape(token),
            )  # fmt: skip
    return pattern


def unescaped(pattern: str) -> str:
    """A regular expression's text without the backslashes before punctuation: what it names literally."""
    return re.sub(r"\\([^\w\s])", r"\1", pattern)


def _matches_itself(token: str) -> bool:
    try:
        return re.fullmatch(token, token) is not None
    except re.error:
        return False
