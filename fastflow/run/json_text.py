"""JSON as the files of fastflow hold it: indented, without numbers and halves of characters that no file may hold."""

from __future__ import annotations

import json
import math
from typing import Any


def json_text(tree: Any) -> str:
    """Write a tree as a whole file of JSON, with a newline at the end. A number that is not finite becomes null."""
    text = json.dumps(finite(tree), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode()  # half of a character becomes JSON's own \udNNN


def finite(tree: Any) -> Any:
    """Replace the numbers that JSON lacks, nan and the infinities, by None."""
    if isinstance(tree, dict):
        return {name: finite(value) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
