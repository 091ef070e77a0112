"""CSV: the first line names the columns, every value is a text, and each mistake is named by its line."""

from __future__ import annotations

import gzip

import pytest

from fastflow.config.schema import DataConfig
from fastflow.data import read_records
from fastflow.errors import FastflowError


def read(path, content, **changes):
    path.write_bytes(content)
    return read_records(DataConfig(path=str(path), **changes))


def test_rows_with_their_lines(tmp_path):
    path = tmp_path / "p.csv"
    content = b'\xef\xbb\xbfprompt,answer\r\n"a, b\nc",3\r\n\r\n"say ""d""",04\r\n'
    expected = [
        (f"{path}:2", {"prompt": "a, b\nc", "answer": "3"}),
        (f"{path}:5", {"prompt": 'say "d"', "answer": "04"}),
    ]
    assert read(path, content) == expected
    assert [record for _, record in read(tmp_path / "p.csv.gz", gzip.compress(content))] == [row for _, row in expected]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"prompt,answer\na,b\nc,d,e\n", ":3: 3 values, but the first line names 2 columns; put values with a comma"),
        (b"prompt,answer\na\n", ":2: 1 value, but the first line names 2 columns"),
        (b"prompt,prompt\na,b\n", ":1: more than one column 'prompt'; rename or remove one"),
        (b'prompt\n"a\n', ":2: not valid CSV (unexpected end of data); repair the line"),
        (b"prompt\na\n\xe9\n", ":3: not UTF-8"),
        (b"question\na\n", ":2: no field 'prompt' (data.prompt_field)"),
        (b'prompt,answer\n" ",b\n', ":2: the prompt is empty"),
        (b"prompt\n", "holds no records"),
        (b"", "holds no records"),
    ],
)
def test_a_mistake_is_named_by_its_line(tmp_path, content, words):
    with pytest.raises(FastflowError) as refused:
        read(tmp_path / "p.csv", content)
    assert words in str(refused.value)
