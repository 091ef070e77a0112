"""JSON in all the shapes that users bring, and what is said of those that cannot be read."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fastflow.config.schema import DataConfig
from fastflow.data import is_file, read_records
from fastflow.data.json_file import DEEPEST
from fastflow.errors import FastflowError

ROWS = [{"prompt": "one", "answer": 1}, {"prompt": "zwei — ü", "answer": [2, None]}, {"prompt": "three"}]
LINES = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in ROWS)


def write(path, content: str | bytes):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path) -> list[tuple[str, dict]]:
    return read_records(DataConfig(path=str(path)))


def refusal(path) -> str:
    with pytest.raises(FastflowError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestShapes:
    @pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.ndjson", "P.JSONL"])
    @pytest.mark.parametrize(
        "content",
        [
            LINES,
            "\ufeff" + LINES,
            LINES.replace("\n", "\r\n"),
            LINES.rstrip("\n"),
            json.dumps(ROWS),
            json.dumps(ROWS, indent=2),
            "\ufeff" + json.dumps(ROWS, indent=4, ensure_ascii=False) + "\n\n",
            "\n".join(json.dumps(row, indent=1) for row in ROWS),
            " [\n" + ",\n".join(json.dumps(row) for row in ROWS) + "\n]",
        ],
        ids=["lines", "mark", "crlf", "no end", "array", "indented", "marked array", "objects", "a line an entry"],
    )
    def test_the_same_records(self, tmp_path, name, content):
        assert [record for _, record in read(write(tmp_path / name, content))] == ROWS

    def test_a_mark_where_two_files_were_joined(self, tmp_path):
        path = write(tmp_path / "p.jsonl", ("\ufeff" + LINES) * 2)
        assert [record for _, record in read(path)] == ROWS * 2

    def test_places(self, tmp_path):
        indented = write(tmp_path / "a.json", json.dumps(ROWS, indent=1))
        assert [place for place, _ in read(indented)] == [f"{indented}: entry {n} of the array" for n in (1, 2, 3)]
        objects = write(tmp_path / "b.json", '{\n"prompt": "a"\n}\n\n{\n"prompt": "b"}')
        assert [place for place, _ in read(objects)] == [f"{objects}:1", f"{objects}:5"]

    @pytest.mark.parametrize(
        ("ending", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)]
    )
    @pytest.mark.parametrize("named", [True, False])
    def test_compressed(self, tmp_path, ending, compress, named):
        """By its first bytes, whatever it is called."""
        path = write(tmp_path / (f"p.jsonl.{ending}" if named else "p.jsonl"), compress(LINES.encode()))
        assert is_file(DataConfig(path=str(path)))
        assert [record for _, record in read(path)] == ROWS

    @hypothesis_settings(deadline=None, max_examples=50)
    @given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=4), st.sampled_from([None, 0, 3]))
    def test_any_text_survives(self, tmp_path_factory, texts, indent):
        rows = [{"prompt": text.encode(errors="replace").decode()} for text in texts]
        path = tmp_path_factory.mktemp("any") / "p.json"
        for content in (json.dumps(rows, indent=indent), "\n".join(json.dumps(row) for row in rows)):
            assert [record for _, record in read(write(path, content))] == rows


class TestRefused:
    @pytest.mark.parametrize("escaped", ["\\ud83d", "\\udc00", "\\uDBFF\\ud83d"])
    @pytest.mark.parametrize(
        "record",
        ['{"prompt": "ab %s cd"}', '{"prompt": "a", "answer": "%s"}', '{"prompt": "a", "meta": [{"x%s": 1}]}'],
    )
    def test_half_of_a_character(self, tmp_path, record, escaped):
        path = write(tmp_path / "p.jsonl", '{"prompt": "fine"}\n' + record % escaped)
        words = refusal(path)
        assert words.startswith(f"{path}:2: field '")
        assert "half of a character (a lone surrogate)" in words

    def test_a_whole_pair_is_a_character(self, tmp_path):
        ((_, record),) = read(write(tmp_path / "p.jsonl", '{"prompt": "\\ud83d\\ude00"}'))
        assert record == {"prompt": "\U0001f600"}

    @pytest.mark.parametrize("depth", [DEEPEST + 1, 900, 100_000])
    @pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"a":', "}")])
    @pytest.mark.parametrize("template", ['{"prompt": "a", "b": %s}', '[\n{"prompt": "a", "b": %s}\n]'])
    def test_nested_without_end(self, tmp_path, depth, opened, closed, template):
        nested = opened * depth + "1" + closed * depth
        path = write(tmp_path / "p.json", template % nested)
        words = refusal(path)
        assert words.startswith(str(path))
        assert "levels deep" in words

    def test_as_deep_as_is_allowed(self, tmp_path):
        depth = DEEPEST - 1
        read(write(tmp_path / "p.jsonl", '{"prompt": "a", "b": ' + "[" * depth + "]" * depth + "}"))

    def test_a_number_beyond_reading(self, tmp_path):
        path = write(tmp_path / "p.jsonl", '{"prompt": "a", "b": %s}' % ("9" * 5000))
        assert refusal(path).startswith(f"{path}:1: not readable as JSON")

    @pytest.mark.parametrize(
        ("content", "place", "reason"),
        [
            ('[{"prompt": "a"},\n {"prompt": }\n]', ":2", "not valid JSON"),
            ('[{"prompt": "a"},\n "b"]', ": entry 2 of the array", "a str, but each record must be one JSON object"),
            ('{\n "prompt": "a",\n "b"\n}', ":4", "not valid JSON"),
            ('{\n "prompt": "a"\n}\n{\n "prompt": \n}', ":6", "not valid JSON"),
            ('{"prompt": "a"}\n{"prompt": \n', ":2", "not valid JSON"),
            ('["a"]\n["b"]', ":1", "a list, but each line must be one JSON object"),
            ("7", ":1", "a int, but each line must be one JSON object"),
        ],
    )
    def test_broken_json_is_named_by_its_line(self, tmp_path, content, place, reason):
        path = write(tmp_path / "p.json", content)
        words = refusal(path)
        assert words.startswith(f"{path}{place}: ")
        assert reason in words

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (LINES.encode("utf-16"), "is UTF-16; save it as UTF-8"),
            (b"PK\x03\x04rest", "is a zip archive; unpack it first"),
            (b"\x28\xb5\x2f\xfdrest", "is compressed with zstd"),
            (b"PAR1rest", "is a parquet file; give it the ending .parquet"),
            (gzip.compress(LINES.encode())[:-9], "the file is damaged"),
            (lzma.compress(LINES.encode())[:-9], "the file is damaged"),
            (b'{"prompt": "a"}\n{"prompt": "\xe9"}', ":2: not UTF-8"),
        ],
    )
    def test_other_bytes(self, tmp_path, content, words):
        assert words in refusal(write(tmp_path / "p.jsonl", content))

    @pytest.mark.parametrize("name", ["p.jsonl.gz", "p.json.xz", "p.parquet"])
    def test_a_missing_file_is_no_hub_id(self, tmp_path, name):
        assert refusal(tmp_path / name) == f"data file {tmp_path / name} does not exist; check data.path"

    def test_a_file_of_another_kind_is_no_hub_id(self, tmp_path):
        assert "ends in '.txt', but fastflow reads .jsonl" in refusal(write(tmp_path / "p.txt", "prompt\na\n"))

    def test_a_directory_with_the_ending_of_a_file(self, tmp_path):
        (tmp_path / "p.jsonl").mkdir()
        assert "is a directory; name the file in it" in refusal(tmp_path / "p.jsonl")
