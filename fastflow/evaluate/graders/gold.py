"""The gold answer of a record: the text of its field, and the answer within a text that is a whole solution."""

from __future__ import annotations

import math
import re
from typing import Any

from fastflow.evaluate.graders.boxes import last_contents

_MARKED = re.compile(r"\S\s*\n[ \t]*####[ \t]*(\S[^\n]*?)\s*\Z")


def gold_text(value: Any) -> str | None:
    """The text of a field's value; None where it is no answer. The entries of a list are joined by commas."""
    if isinstance(value, list):
        texts = [None if isinstance(entry, list) else gold_text(entry) for entry in value]
        return None if None in texts or not texts else ", ".join(filter(None, texts))
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value).strip() or None


def in_solution(gold: str) -> str:
    """The answer of a gold that may be a whole solution: what its last box says, otherwise as `behind_mark`.

    What stands behind the box is a remark: nobody graded the gold.
    """
    boxed = last_contents(gold)
    return ", ".join(boxed) if boxed else behind_mark(gold)


def behind_mark(gold: str) -> str:
    """What the last of several lines says behind ####, as GSM8K's solutions end; otherwise the gold as it stands."""
    marked = _MARKED.search(gold)
    return marked.group(1) if marked else gold
