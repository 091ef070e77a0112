r"""Words of letters that a formula would take for a product: `\text{ACB}`, `\text{IV}`, `\text{H}_2\text{O}`, (iv)."""

from __future__ import annotations

import re

WRAPPERS = (
    "underline|text|emph|mbox|textrm|textsf|textsc|textbf|textit|texttt|mathtt|mathrm|mathbf|mathit|mathsf|operatorname|"
    "hbox|bold|boldsymbol|pmb|bm"
)
_PIECE = rf"\\(?:{WRAPPERS})\*?\s*\{{\s*[A-Z][A-Za-z]*\s*\}}\s*(?:_\s*(?:\d|\{{\s*\d+\s*\}})\s*)?"
_JOINT = rf"\\(?:{WRAPPERS})\s*\{{\s*,?\s*(?:and|or)\s*\}}|«(?:and|or)»"
_ITEM = re.compile(
    rf"(?P<before>(?:^|[,;⦃=]|{_JOINT})\s*[({{\[]?\s*)(?P<word>(?:{_PIECE})+)"
    rf"(?=[)}}\]]?\s*\.?\s*(?:$|[,;⦄]|{_JOINT}))"
)
_PARTS = re.compile(r"\{\s*([A-Z][A-Za-z]*)\s*\}\s*(?:_\s*\{?\s*(\d+)\s*\}?)?")
_NUMERAL = re.compile(r"[A-F]+_\d+")  # perhaps in a base above ten
_ABBREVIATION = re.compile(r"[A-Z]{2,3}")
_SYMBOL = re.compile(r"[A-Z][A-Za-z]")
_BRACKETED = re.compile(r"(?<![\w\\})])\(([A-Za-z]{2,4})\)(?![\w^(])")


def keep_words(text: str) -> str:
    """The text with «...» around such words, where nothing but the word is an item of the answer."""
    return _ITEM.sub(lambda found: found.group("before") + _kept(found.group("word")), text)


def keep_bracketed(text: str) -> str:
    """The words between brackets in a text: (iv) is no product of i and v."""
    return _BRACKETED.sub(r"«(\1)»", text)


def is_symbol(word: str) -> bool:
    """Whether capital letters may matter in it: CO is not Co."""
    return bool(_SYMBOL.fullmatch(word)) or "_" in word


def same_spelling(word: str, other: str) -> bool:
    """Whether two words are the same but for capital letters that do not matter."""
    if word == other:
        return True
    both_symbols = is_symbol(word) and is_symbol(other)
    return word.lower() == other.lower() and not both_symbols


def _kept(word: str) -> str:
    parts = _PARTS.findall(word)
    spelled = "".join(letters + (f"_{index}" if index else "") for letters, index in parts)
    indexed = [bool(index) for _, index in parts]
    points = all(indexed) and all(len(letters) == 1 for letters, _ in parts)  # the segment from A_1 to A_2
    if _ABBREVIATION.fullmatch(spelled) and len(parts) == 1:
        return f"«{spelled}»"
    if not any(indexed) or points or _NUMERAL.fullmatch(spelled):
        return word
    return f"«{spelled}»"
