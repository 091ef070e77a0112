r"""Rarer LaTeX in the usual one: `^1/_2`, `{}_5C_2`, `0.\bar{3}`, `\not\ge`, `67^\circ 30'`, aligned formulas."""

from __future__ import annotations

import re

_NOT = {
    "=": "\\ne ",
    "<": "\\ge ",
    ">": "\\le ",
    "\\le": ">",
    "\\leq": ">",
    "\\ge": "<",
    "\\geq": "<",
    "\\in": "\\notin ",
}
_ALIGNED = re.compile(r"\\(?:begin|end)\s*\{(?:aligned|align|gathered|split|equation)\*?\}")
_MINUTES = re.compile(
    r"(\d+)\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree)\s*(\d{1,2})\s*(?:'(?!')|\^\s*\{?\s*\\prime\s*\}?(?!\\prime))\s*$"
)


def usual_forms(text: str) -> str:
    """The text with the usual macros in place of the rarer ones."""
    text = re.sub(r"(?<![A-Za-z\\])frac(?=\s*\{)", r"\\frac", text)
    text = re.sub(r"(?<![\w)}\]])\^\s*\{?\s*(\d+)\s*\}?\s*/\s*_\s*\{?\s*(\d+)\s*\}?", r"\\frac{\1}{\2}", text)
    text = re.sub(r"_\s*\{?\s*(\d+)\s*\}?\s*C\s*_\s*\{?\s*(\d+)\s*\}?", r"\\binom{\1}{\2}", text)
    text = re.sub(r"\\textsuperscript\s*\{([^{}]*)\}", r"^{\1}", text)
    text = re.sub(r"(?<=\.)(\d*)\\bar\s*\{\s*(\d+)\s*\}", r"\1\\overline{\2}", text)
    text = re.sub(r"\\not\s*(=|<|>|\\[lg]eq?\b|\\in\b)", lambda found: _NOT[found.group(1)], text)
    text = re.sub(r"\\cr\b", r"\\\\", _ALIGNED.sub(" ", text))
    return _MINUTES.sub(lambda found: rf"\frac{{{int(found.group(1)) * 60 + int(found.group(2))}}}{{60}}\degree ", text)
