"""The one form of JSON in fastflow's files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastflow.errors import FastflowError
from fastflow.run.durable import replace_json
from fastflow.run.json_text import json_text
from fastflow.run.output_file import write_json

TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(TREES)
def test_a_tree_is_read_as_it_was(tree):
    assert json.loads(json_text(tree)) == tree


def test_numbers_that_json_lacks_are_null():
    text = json_text({"a": [math.nan, (1.5, -math.inf)]})
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [None, [1.5, None]]}


@pytest.mark.parametrize("write", [write_json, replace_json])
def test_both_writers_agree(write, tmp_path):
    """Half of a character, as a path may hold it, is no text in UTF-8; other letters stay readable."""
    write(tmp_path / "file", {"é": "\udc80"})
    assert (tmp_path / "file").read_bytes() == '{\n "é": "\\udc80"\n}\n'.encode()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_one_sentence():
    with pytest.raises(FastflowError, match=r"cannot write to /dev/full \(No space left on device\); make room there"):
        write_json(Path("/dev/full"), {})
