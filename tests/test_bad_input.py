"""Each row of docs/bad-input.md names its test, and that test exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "bad-input.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| input")]


@pytest.mark.parametrize("row", ROWS, ids=[row.split("|")[1].strip() for row in ROWS])
def test_a_row_has_its_test(row):
    (found,) = re.findall(r"<!-- test: ([\w/.]+\.py)::([\w:]+) -->", row)
    body = ast.parse((ROOT / found[0]).read_text(encoding="utf-8")).body
    *classes, function = found[1].split("::")
    for name in classes:
        (inside,) = [node for node in body if isinstance(node, ast.ClassDef) and node.name == name]
        body = inside.body
    assert function in [node.name for node in body if isinstance(node, ast.FunctionDef)]


def test_every_kind_is_there():
    assert len(ROWS) >= 45
