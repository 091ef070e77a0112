"""Parquet with columns of other types than text, and files that only begin like one."""

from __future__ import annotations

import datetime

import pytest

from fastflow.config.schema import DataConfig
from fastflow.data import read_records
from fastflow.errors import FastflowError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
USER = [{"role": "user", "content": "ab"}]


@pytest.fixture
def written(tmp_path):
    def write(names: list[str], *columns):
        parquet.write_table(pa.Table.from_arrays(list(columns), names=names), tmp_path / "p.parquet")
        return tmp_path / "p.parquet"

    return write


def read(path, **changes):
    return [record for _, record in read_records(DataConfig(path=str(path), **changes))]


def refusal(path, **changes) -> str:
    with pytest.raises(FastflowError) as caught:
        read(path, **changes)
    return str(caught.value)


@pytest.mark.parametrize(
    "column", [pa.array([USER]), pa.array([USER], pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})))]
)
def test_a_list_column_of_messages(written, column):
    assert read(written(["prompt"], column), chat_template=True) == [{"prompt": USER}]


@pytest.mark.parametrize(
    "column",
    [pa.array(["ab"], pa.large_string()), pa.array(["ab"]).dictionary_encode(), pa.array(["ab"], pa.string_view())],
)
def test_other_types_of_text(written, column):
    assert read(written(["prompt"], column)) == [{"prompt": "ab"}]


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([["a", "b"]]), "but entry 1 is a str"),
        (pa.array([[USER]]), "but entry 1 is a list"),
        (pa.array([b"ab"]), "not bytes"),
        (pa.array([3]), "not int"),
        (pa.array([float("nan")]), "not float"),
        (pa.nulls(1), "not NoneType"),
        (pa.array([datetime.datetime(2024, 1, 1)]), "not datetime"),
        (pa.array([b"\xff\xfe"]).view(pa.string()), "cannot read"),
    ],
)
def test_a_column_that_is_no_prompt(written, column, words):
    message = refusal(written(["prompt"], column))
    assert words in message
    assert "p.parquet" in message


@pytest.mark.parametrize("kind", [pa.duration("s"), pa.timestamp("ms")])
def test_a_time_beyond_pythons(written, kind):
    assert "cannot read" in refusal(written(["prompt", "when"], pa.array(["ab"]), pa.array([2**62], kind)))


def test_two_columns_of_one_name(written):
    assert "more than one column 'prompt'" in refusal(written(["prompt", "prompt"], pa.array(["a"]), pa.array(["b"])))


def test_no_rows(written):
    assert "holds no records" in refusal(written(["prompt"], pa.array([], pa.string())))


@pytest.mark.parametrize("keep", [4, 50, -4, -1])
def test_a_file_that_is_cut_short(written, keep):
    path = written(["prompt"], pa.array(["ab"] * 100))
    path.write_bytes(path.read_bytes()[:keep])
    assert "needs a parquet file" in refusal(path)
