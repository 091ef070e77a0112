"""Data files as they come from the world: damaged, in other forms, of other types."""

from __future__ import annotations

import bz2
import datetime
import decimal
import gzip
import io
import json
import lzma
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from hostile_settings import mutated

TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["ab", "", " ", "\x00", "a\x00b", "\x1b]8;;http://x\x07", "\ud83d", "\ufeff", "\u202eab", "a\r\nb", "<end>"]
    ),
    st.sampled_from(["ab" * 5000, "😀", "é", "\u2028", "{{ 7 * 7 }}", "{% raise %}"]),
)
ROLES = st.sampled_from(["user", "assistant", "system", "tool", "developer", "USER", "", "bot", None, 3])
PARTS = st.one_of(
    TEXTS, st.none(), st.integers(),
    st.fixed_dictionaries({}, optional={"type": st.sampled_from(["text", "image_url", "input_text", None, 3]), "text": TEXTS,
                                        "image_url": st.just({"url": "file:///etc/passwd"})}),
)  # fmt: skip
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "role": ROLES, "content": st.one_of(TEXTS, st.none(), st.integers(), st.lists(PARTS, max_size=3), st.just({"text": "a"})),
        "from": TEXTS, "value": TEXTS, "tool_calls": st.one_of(st.none(), st.just([{"id": 1}])), "name": TEXTS,
    },
)  # fmt: skip
GOOD_MESSAGES = st.fixed_dictionaries({"role": ROLES, "content": TEXTS})
PROMPTS = st.one_of(
    TEXTS, TEXTS, st.none(), st.booleans(), st.integers(), st.floats(), st.lists(MESSAGES, max_size=3), st.lists(GOOD_MESSAGES, max_size=3),
    MESSAGES, st.lists(TEXTS, max_size=2), st.lists(st.lists(GOOD_MESSAGES, max_size=1), max_size=2),
)  # fmt: skip
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=5,
)
RECORDS = st.one_of(
    st.fixed_dictionaries({"prompt": PROMPTS}, optional={"answer": JUNK, "\x1b[31m": JUNK, "": JUNK, "a" * 2000: JUNK}),
    st.fixed_dictionaries({"prompt": st.just("ab")}),
    st.dictionaries(TEXTS, JUNK, max_size=3),
    JUNK,
)
SUFFIXES = [
    ".jsonl",
    ".json",
    ".ndjson",
    ".JSONL",
    ".jsonl.gz",
    ".json.xz",
    ".jsonl.bz2",
    ".jsonl.zst",
    "",
    ".csv",
    ".txt",
    ".parquet",
]
FIELDS = ["prompt", "prompt", "prompt", "text", "", "a.b", "\x1b[31m", "answer"]


@dataclass(frozen=True)
class DataCase:
    """A file's ending and bytes, and the settings that read it. chat: with a tokenizer that has a chat template."""

    suffix: str
    content: bytes
    options: tuple[str, ...] = ()
    chat: bool = False


@st.composite
def json_bytes(draw: st.DrawFn) -> bytes:
    records = draw(st.lists(RECORDS, max_size=4))
    ascii_only = draw(st.booleans())
    form = draw(st.integers(0, 5))
    if form == 0:
        text = json.dumps(records, ensure_ascii=ascii_only)
    elif form == 1:
        text = json.dumps(records, indent=2, ensure_ascii=ascii_only)
    elif form == 2:
        text = "\n".join(json.dumps(record, indent=1, ensure_ascii=ascii_only) for record in records)
    elif form == 3:
        text = draw(st.sampled_from(_texts()))
    else:
        text = "\n".join(json.dumps(record, ensure_ascii=ascii_only) for record in records)
    text = text.replace("\n", draw(st.sampled_from(["\n", "\n", "\r\n", "\r", "\n\n", "\n \t\n"])))
    encoding = draw(
        st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "cp1252"])
    )
    errors = "surrogatepass" if "utf" in encoding and encoding != "utf-8-sig" else "replace"
    return text.encode(encoding, errors)


@st.composite
def parquet_bytes(draw: st.DrawFn) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = draw(st.integers(0, 3))
    names = draw(
        st.lists(st.sampled_from(["prompt", "prompt", "text", "answer", "", "\x1b[31m"]), min_size=1, max_size=3)
    )
    columns = [_column(draw(st.sampled_from(KINDS)), rows) for _ in names]
    sink = io.BytesIO()
    try:
        parquet.write_table(pa.Table.from_arrays(columns, names=names), sink)
    except pa.ArrowException:
        return b"PAR1"
    return sink.getvalue()


KINDS = ["text", "large text", "empty text", "bytes", "bad text", "list", "messages", "number", "float", "time", "late time", "decimal",
         "words", "map", "null", "nested", "flag", "span", "half missing"]  # fmt: skip


def _column(kind: str, rows: int) -> Any:
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    made = {
        "text": lambda: pa.array(["ab"] * rows), "large text": lambda: pa.array(["cd"] * rows, pa.large_string()),
        "empty text": lambda: pa.array([" "] * rows), "bytes": lambda: pa.array([b"ab\xff"] * rows),
        "bad text": lambda: pa.array([b"\xff\xfe"] * rows, pa.binary()).view(pa.string()),
        "list": lambda: pa.array([["a", "b"]] * rows), "number": lambda: pa.array([3] * rows), "flag": lambda: pa.array([True] * rows),
        "messages": lambda: pa.array([[{"role": "user", "content": "ab"}]] * rows, pa.list_(message)),
        "float": lambda: pa.array([float("nan")] * rows), "time": lambda: pa.array([datetime.datetime(2024, 1, 1)] * rows),
        "late time": lambda: pa.array([2**62] * rows, pa.timestamp("s")), "span": lambda: pa.array([2**62] * rows, pa.duration("s")),
        "decimal": lambda: pa.array([decimal.Decimal("1.5")] * rows), "words": lambda: pa.array(["ab"] * rows).dictionary_encode(),
        "map": lambda: pa.array([[("a", 1)]] * rows, pa.map_(pa.string(), pa.int64())), "null": lambda: pa.nulls(rows),
        "nested": lambda: pa.array([[[{"role": "user", "content": "ab"}]]] * rows),
        "half missing": lambda: pa.array([None if n else "ab" for n in range(rows)]),
    }  # fmt: skip
    return made[kind]()


@st.composite
def data_cases(draw: st.DrawFn) -> DataCase:
    suffix = draw(st.sampled_from(SUFFIXES))
    kind = draw(st.integers(0, 9))
    if kind == 0:
        content = draw(st.binary(max_size=100))
    elif kind <= 2:
        content, suffix = draw(parquet_bytes()), draw(st.sampled_from([".parquet", ".parquet", ".parquet", suffix]))
    else:
        content = draw(json_bytes())
    compress = draw(st.sampled_from([None, None, None, None, gzip.compress, bz2.compress, lzma.compress]))
    content = compress(content) if compress else content
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        content = draw(mutated(content))
    chat = draw(st.booleans())
    options = [f"--data.prompt_field={draw(st.sampled_from(FIELDS))}"]
    if chat:
        options.append("--data.chat_template=true")
    more = st.sampled_from([
        "--data.final_assistant=continue", "--data.final_assistant=error", "--data.limit=1", "--data.max_prompt_tokens=3",
        "--data.overlong=error", "--data.suffix= now", "--data.system=be brief", "--data.template_arguments={x: [1, {y: ~}]}",
        "--data.template_arguments={enable_thinking: false}", "--data.template_arguments={messages: 3}",
    ])  # fmt: skip
    options += draw(st.lists(more, max_size=2))
    return DataCase(suffix, content, tuple(options), chat)


def _texts() -> list[str]:
    deep = 20_000
    return [
        "", "\n", "[]", "{}", "[[]]", "null", "nan", "[NaN]", '{"prompt": NaN}', '{"prompt": "a", "b": Infinity}', "[" * deep,
        '{"a":' * deep, '{"prompt": "' + "a" * 1_000_000 + '"}', '{"prompt": "a", "prompt": 3}', '{"prompt": "a"}{"prompt": "b"}',
        '{"prompt": "a"} trailing', '[{"prompt": "a"},]', '{"prompt": "a",}', "{'prompt': 'a'}", '{"prompt": "a" // note\n}',
        '{"prompt": ' + "9" * 5000 + "}", '{"prompt": "a", "b": 1e999}', '{"prompt": "\\ud83d"}', '{"prompt": "\\u0000"}',
        '{"prompt": "ab"}\n' * 2000, '{"data": [{"prompt": "a"}]}', '"a"', "3", '{"prompt": "a\tb"}', '\ufeff\ufeff{"prompt": "a"}',
        '{"prompt": [' + '{"role": "user", "content": "a"},' * 500 + '{"role": "user", "content": "a"}]}',
    ]  # fmt: skip
