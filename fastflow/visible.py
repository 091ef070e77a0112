"""Makes text from outside fit for a terminal: what a model, a data file or a path says stays text."""

from __future__ import annotations

import re

# ESC and its kin begin commands to a terminal; a carriage return or backspace overwrites; bidi controls reorder.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
LONGEST_SENTENCE = (1600, 400)  # characters that are kept of a long one, at its beginning and at its end


def visible(text: str) -> str:
    """Replace control characters, bidi controls and lone surrogates by their names. Keeps tabs and line feeds.

    >>> visible("a\\x1b[31m\\u202e")
    'a<1B>[31m<202E>'
    """
    return CONTROL.sub(lambda match: f"<{ord(match[0]):02X}>", text)


def one_sentence(text: str) -> str:
    """Bring a message onto one line, cut in its middle where it is very long."""
    text = visible(" ".join(text.split()))
    head, tail = LONGEST_SENTENCE
    return text if len(text) <= head + tail else f"{text[:head]} (cut here) {text[-tail:]}"
