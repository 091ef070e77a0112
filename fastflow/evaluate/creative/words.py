"""Cut responses into words, the unit of all measures of overlap."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sized

# Scripts that put no blanks between words: each character is a word.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_JOINERS = "\u200c\u200d"
_LAST_MARK = 0x20000  # beyond it, marks are variation selectors alone
_VARIATIONS = range(0xFE00, 0xFE10)  # of emoji and digits

Words = tuple[str, ...]


def words(text: str) -> Words:
    """Return the runs of letters and digits, in lower case; of Chinese, Japanese and Thai each character.

    A letter keeps the marks on it: accents, and the vowel signs of Indic and Arabic scripts. For English this is the
    cut of the rouge-score package without its stemmer.
    """
    return tuple(_word().findall(unicodedata.normalize("NFC", text.lower())))


@functools.cache
def _word() -> re.Pattern[str]:
    marks = "".join(
        chr(code) for code in range(_LAST_MARK)
        if unicodedata.category(chr(code)) in ("Mn", "Mc") and code not in _VARIATIONS
    )  # fmt: skip
    letter = rf"[^\W_{_UNSPACED}]"
    return re.compile(rf"[{_UNSPACED}][{marks}]*|{letter}+(?:[{marks}{_JOINERS}]+{letter}*)*")


def ngrams(of: Words, n: int) -> list[Words]:
    """Return the n-grams in their order; none where there are fewer than n words."""
    return [of[start : start + n] for start in range(len(of) - n + 1)]


def check_several(responses: Sized) -> None:
    """Raise ValueError where there are no pairs to compare."""
    if len(responses) < 2:
        raise ValueError(f"{len(responses)} responses have no pairs; this measure needs at least 2 of one prompt")
