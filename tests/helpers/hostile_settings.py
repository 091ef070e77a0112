"""Settings as nobody should write them: on the command line, and in files of every kind."""

from __future__ import annotations

import dataclasses
import json
import os
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from fastflow.config.presets import PRESETS
from fastflow.config.reader import known_settings
from fastflow.config.schema import Config, sections

NUMBERS = [
    "0", "-0", "-1", "1", "2", "3.5", "1e309", "-1e309", "nan", ".nan", ".inf", "-.inf", "inf", "1e-400", "1e-46", "9" * 5000,
    "0x10", "0o7", "1_000", "1:30", "010", "+5", "1e5", "2147483648", "9223372036854775808", "1" + "0" * 40, "١٢",
]  # fmt: skip
YAML = [
    "!!python/object/apply:os.getcwd []", "!!python/name:os.system", "!!timestamp x", "!!bool x", "!!int ''", "!!float ''",
    "!!int x", "!!binary x", "!!binary aGk=", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!null x", "!unknown x",
    "&a [*a]", "{k: &x {k: *x}}", "*undefined", "&a", "2024-13-01", "2024-01-01", "0001-01-01T00:00:00+23:59", "2024-01-01T99:99:99",
    "? [a]\n: b", "{? {a: b} : c}", "{<<: {a: 1}}", "{<<: 3}", "{a: 1, a: 2}", "{1: 2}", "{null: 1}", "{1.5: x}", "[", "]", "{", "'", '"',
    "|", ">-", "@x", "`x`", "%YAML 9.9", "---", "...", "- a", "a: b: c", "\t", "#", "~", "null", "Null", "yes", "off", "True",
    '"\\ud800"', '"\\x00"', '"\\e]8;;http://x\\a"', "\ufeff", "\u2028", "\x85", "\u202e", "[[[[[[[[[[", "{a: " * 50, "[" * 20_000,
    "[a, b]", "[0.9, 0.95]", "[0.9]", "{a: 1}", "{a: {b: [1, {c: .nan}]}}", "''", "a" * 5000, "/", ".", "..", "~/x", "-", "--", "=", "\\",
]  # fmt: skip
TEXTS = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(YAML), st.text(max_size=12))
PLAIN = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.dates(), st.datetimes(),
        st.binary(max_size=4), st.sampled_from([10**40, -(2**63), "a" * 3000, "\x00", "\x1b[31m", "\ud800", ""]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=6), st.integers(), st.booleans(), st.none()), inner, max_size=3),
    ),
    max_leaves=6,
)  # fmt: skip
NAMES = known_settings()
CHOICES = {
    f"{name}.{entry}": [str(choice) for choice in typing.get_args(hint)]
    for name, section in sections().items()
    for entry, hint in typing.get_type_hints(section).items()
    if typing.get_origin(hint) is typing.Literal
}


@dataclass(frozen=True)
class SettingsCase:
    """Arguments of `fastflow train`. FILE in them stands for a file of these bytes, otherwise for that path."""

    arguments: tuple[str, ...]
    file: bytes | None = None
    path: str = ""


FILE = "@FILE@"
PLACES = [
    "directory",
    "pipe",
    "loop",
    "missing",
    "device",
    "endless",
    "error",
    "long",
    "empty name",
    "not UTF-8",
    "socket",
]


def make_places(home: Path) -> dict[str, str]:
    """What `--config` may be pointed to, and is no file of settings."""
    import socket

    (home / "directory").mkdir()
    os.mkfifo(home / "pipe")
    (home / "loop").symlink_to(home / "loop")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(home / "socket"))
    return {
        "directory": str(home / "directory"), "pipe": str(home / "pipe"), "loop": str(home / "loop"),
        "missing": str(home / "missing"), "device": "/dev/null", "endless": "/dev/zero", "error": "/proc/self/mem",
        "long": "a" * 5000, "empty name": "", "not UTF-8": str(home / "\udcff.yaml"), "socket": str(home / "socket"),
    }  # fmt: skip


@st.composite
def options(draw: st.DrawFn) -> list[str]:
    name = draw(
        st.one_of(st.sampled_from(NAMES), st.sampled_from([*NAMES, "data.template_arguments.key", "preset", "lr"]))
    )
    if name == "preset":
        value = draw(st.one_of(st.sampled_from(list(PRESETS)), TEXTS))
    elif name in CHOICES and draw(st.booleans()):
        value = draw(st.sampled_from(CHOICES[name]))
    elif name in NAMES and draw(st.integers(0, 2)):
        value = _default(name)
    else:
        value = draw(TEXTS)
    form = draw(st.integers(0, 9))
    if form == 0:
        return [f"--{name}"]
    if form == 1:
        return [f"--{name}", value, value]
    if form == 2:
        return [f"--{name}={value}", f"--{name}={draw(TEXTS)}"]
    return [f"--{name}={value}"] if form % 2 else [f"--{name}", value]


STRAY = st.one_of(TEXTS.map(lambda text: [text]), st.sampled_from([["--"], ["-"], ["--="], ["--dry-run=1"], ["--config"],
    ["--resume"], ["--resume", ""], ["--resume=auto"], ["--print_config"], ["-h"], ["--help"], ["--optim", "{}"],
    ["--optim.lr+", "1"], ["--cfg", "x"], ["--no-run.report"]]))  # fmt: skip


@st.composite
def yaml_bytes(draw: st.DrawFn) -> bytes:
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.binary(max_size=200))
    if kind == 1:
        return draw(st.sampled_from(_bombs()))
    if kind <= 4:  # a snippet where a value stands
        lines = []
        for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)):
            section, entry = name.split(".")
            lines.append(
                f"{section}:\n  {entry}: {draw(TEXTS)}\n" if draw(st.booleans()) else f"{name}: {draw(TEXTS)}\n"
            )
        text = "".join(lines)
    elif kind == 5:
        text = _dump(draw(PLAIN))
    else:  # a whole file, with some values changed
        tree: dict[Any, Any] = {name: {} for name in sections()}
        for name in draw(st.lists(st.sampled_from(NAMES), max_size=6, unique=True)):
            section, entry = name.split(".")
            default = getattr(getattr(Config(), section), entry)
            default = list(default) if isinstance(default, tuple) else default
            tree[section][entry] = draw(st.one_of(PLAIN, st.just(default)))
        if draw(st.booleans()):
            tree[
                draw(st.one_of(st.text(max_size=6), st.sampled_from(["preset", "config", "run.steps", "a" * 4000])))
            ] = draw(PLAIN)
        text = _dump(tree)
    content = text.encode("utf-8", "surrogatepass")
    for _ in range(draw(st.integers(0, 2))):
        content = draw(mutated(content))
    return content


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes with something inserted, removed, repeated or flipped."""
    at, length = draw(st.integers(0, len(content))), draw(st.integers(0, 40))
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return content[:at] + content[at + length :]
    if kind == 1:
        return content[: at + length] + content[at:]
    if kind == 2:
        return content[:at]
    if kind == 3 and at < len(content):
        return content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1 :]
    if kind == 4:
        return (
            draw(st.sampled_from([b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\r", b"\r\n", b"\t", b"\xed\xa0\xbd"]))
            + content
        )
    return content[:at] + draw(st.binary(max_size=6)) + content[at:]


@st.composite
def settings_cases(draw: st.DrawFn) -> SettingsCase:
    arguments: list[str] = []
    for _ in range(draw(st.integers(0, 4))):
        arguments += draw(options())
    if draw(st.integers(0, 7)) == 0:
        arguments += draw(STRAY)
    file, path = None, ""
    if draw(st.integers(0, 2)):
        arguments[:0] = ["--config", FILE]
        file = draw(yaml_bytes())
        if draw(st.integers(0, 19)) == 0:
            file, path = None, draw(st.sampled_from(PLACES))
        if draw(st.integers(0, 19)) == 0:
            arguments += ["--config", FILE]
    # what the machine's own rules exclude from any argument
    return SettingsCase(tuple(argument.replace("\0", "") for argument in arguments), file, path)


def _default(name: str) -> str:
    section, entry = name.split(".")
    return json.dumps(getattr(getattr(Config(), section), entry)).strip('"')


def _dump(value: Any) -> str:
    try:
        return yaml.safe_dump(value, allow_unicode=True)
    except (yaml.YAMLError, UnicodeError, TypeError):  # keys that do not sort
        return yaml.safe_dump(value, sort_keys=False)


def _bombs() -> list[bytes]:
    tens = 30
    lists = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, tens))
    tables = "data:\n  template_arguments:\n    a0: &a0 {x: 1}\n" + "".join(
        f"    a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}}}\n" for n in range(1, tens)
    )
    return [
        lists.encode(), tables.encode(), b"a" * 100_000, b"optim: {" + b"lr: 1, " * 5000 + b"}",
        b"".join(b"k%d: 1\n" % n for n in range(20_000)), b"optim: " + b"[" * 5000, b"- " * 5000, b"? " * 5000,
        b"run: &r {steps: *r}", b"data: {template_arguments: &t {self: *t}}", b"\n" * 100_000, b"#" * 3_000_000,
        b"run:\n  output: \"" + b"x" * 300_000 + b"\"\n", b"? " + b"k" * 3000 + b"\n: 1\n",
    ]  # fmt: skip


def plain(case: SettingsCase) -> dict[str, Any]:
    return dataclasses.asdict(case)
