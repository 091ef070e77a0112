"""Numbers in English words: "twenty-one", "one hundred and five", "two apples"."""

from __future__ import annotations

import re

_SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_VALUES = {word: number for number, word in enumerate(_SMALL)} | {word: 20 + 10 * n for n, word in enumerate(_TENS)}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_KNOWN = {*_VALUES, *_SCALES, "hundred"}
_TEXT = re.compile(r"[A-Za-z]+(?:\s*-\s*[A-Za-z]+|\s+[A-Za-z]+)*")
_WORD = re.compile(r"(\s*-\s*|\s*)([A-Za-z]+)")
_NO_NOUN = re.compile(
    r"hal(?:f|ves)|thirds?|quarters?|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|\w+teen|\w+tie|hundred|thousand|"
    r"million)ths?|times|point|dozen|squared|cubed|plus|minus|over|more|less|fewer|and|or|to|by|of|in|is|[a-z]",
)
LONGEST = 200  # characters


def number_in_words(text: str) -> tuple[int, str] | None:
    """The number that a text spells, and the one noun behind it, "" for none; None for any other text."""
    text = text.strip()
    if len(text) > LONGEST or not _TEXT.fullmatch(text):
        return None
    words = [(joint.strip(), word.lower()) for joint, word in _WORD.findall(text)]
    if words[0][1] == "a" and len(words) > 1 and words[1][1] in ("hundred", *_SCALES):
        words = words[1:]
    negative = words[0][1] in ("minus", "negative")
    number, used = _prefix([word for _, word in words[negative:]])
    rest = words[negative:][used:]
    if used == 0 or len(rest) > 1:
        return None
    if rest and (rest[0][0] or rest[0][1] in _KNOWN or _NO_NOUN.fullmatch(rest[0][1])):  # "two-tailed", "two thirds"
        return None
    return -number if negative else number, rest[0][1] if rest else ""


def same_noun(one: str, other: str) -> bool:
    """Whether two nouns are one, in the singular or the plural."""
    return one.removesuffix("s") == other.removesuffix("s")


def _prefix(words: list[str]) -> tuple[int, int]:
    """The number with which the words begin, and how many of them it takes."""
    total, below, scale, used = 0, 0, 10**15, 0
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        if word == "and":
            following = words[place + 1] if place + 1 < len(words) else ""
            if before not in ("hundred", *_SCALES) or following not in _VALUES:
                break
            continue
        if word in _VALUES:
            fits = below % 100 == 0 or (below % 10 == 0 and below % 100 >= 20 and 0 < _VALUES[word] < 10)
            if not fits or (before in _SMALL) or (before and _VALUES[word] == 0):
                break
            below += _VALUES[word]
        elif word == "hundred":
            if below >= 100 or (place and below == 0):
                break
            below = (below or 1) * 100
        elif word in _SCALES:
            if _SCALES[word] >= scale or (place and below == 0):
                break
            scale = _SCALES[word]
            total, below = total + (below or 1) * scale, 0
        else:
            break
        used = place + 1
    return total + below, used
