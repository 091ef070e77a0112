"""Makes text from a run fit for HTML."""

from __future__ import annotations

import re

HEAD, TAIL = 3000, 1000  # characters that are shown of a longer text: its beginning and its end


def printable(text: str) -> str:
    """Replace control characters and lone surrogates, which HTML cannot hold, by visible stand-ins.

    Names bidi controls, which would reorder what stands beside them.
    """
    text = re.sub("[\x00-\x08\x0b-\x1f]", lambda match: chr(0x2400 + ord(match[0])), text)
    text = re.sub("[\u202a-\u202e\u2066-\u2069]", lambda match: f"<{ord(match[0]):04X}>", text)
    return re.sub("[\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)


def cut(text: str) -> tuple[str, int, str]:
    """Return (beginning, characters left out, end) of a text, printable; a short one is its own beginning."""
    if len(text) <= HEAD + TAIL:
        return printable(text), 0, ""
    return printable(text[:HEAD]), len(text) - HEAD - TAIL, printable(text[-TAIL:])
