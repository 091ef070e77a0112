"""The code blocks of the pages run, but for those that say why they cannot; a command's options exist in any case.

A block is run by sybil. Where it cannot be run in the tests, the comment in front of it says why:

    <!--- skip: next "needs a GPU" -->

The blocks of an example's README are run by test_examples.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import typing
from pathlib import Path
from unittest import SkipTest

import pytest
import torch
from sybil import Example
from sybil.document import Document
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from fastflow.config.reader import read_config
from fastflow.config.schema import sections
from fastflow.sweep.request import read_request
from page_commands import check, commands, fenced, shims

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*/README.md"))
CI = ROOT / ".ci" / "run"
SECTIONS = sections()
SETTING = re.compile(r"`(?:--)?(" + "|".join(SECTIONS) + r")\.(\w+)(?:(?: = |: | )([^`]+))?`")
OURS = "train|demo|doctor|evaluate|grade|plan|report|sweep|verify"
INLINE = re.compile(rf"`((?:fastflow (?:{OURS})|python examples/)[^`]*)`")
LANGUAGES = {"bash", "python", "text", "yaml", "json"}


def evaluate_bash(example: Example) -> None:
    """Run a shell block in the document's folder, with this interpreter's `fastflow` and `python`."""
    environment = os.environ | {"PATH": os.pathsep.join([str(example.namespace["bin"]), os.environ["PATH"]])}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", example.parsed], cwd=example.namespace["folder"], env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


PARSERS = (PythonCodeBlockParser(), CodeBlockParser("bash", evaluate_bash), SkipParser())


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code_of(page: Path) -> list:
    document = Document.parse(str(page), *PARSERS)
    return [pytest.param(example, id=f"{name_of(page)}:{example.line}") for example in document.examples()]


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> Path:
    return shims(tmp_path_factory.mktemp("programs") / "bin")


@pytest.mark.parametrize("example", [example for page in PAGES for example in code_of(page)])
def test_blocks_run(example, tmp_path_factory, programs, monkeypatch):
    """In order: a mark skips the block after it. The blocks of a page share names and a folder, in which the
    examples lie as in the repository.
    """
    folder = tmp_path_factory.getbasetemp() / name_of(Path(example.path)).replace("/", "-")
    if not folder.exists():
        folder.mkdir()
        (folder / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    for name, value in {"bin": programs, "folder": folder}.items():
        example.namespace.setdefault(name, value)
    try:
        example.evaluate()
    except SkipTest as skipped:
        pytest.skip(f"{name_of(Path(example.path))}:{example.line}: {skipped}")


def test_what_ci_is_said_to_run_it_runs():
    for page in PAGES:
        said = len(re.findall(r"skip: next .*\.ci/run runs this block as it stands", page.read_text(encoding="utf-8")))
        run = re.findall(rf"^ *(?:.* )?run_page_command {name_of(page)} ", CI.read_text(encoding="utf-8"), re.MULTILINE)
        assert said == len(run), page
    readme, index = (fenced(page.read_text(encoding="utf-8"), "bash")[0] for page in (PAGES[0], ROOT / "docs/index.md"))
    assert index == readme


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=name_of)
def test_commands_are_well_formed(page):
    text = page.read_text(encoding="utf-8")
    inline = [f"{found}\n" for found in INLINE.findall(text) if "..." not in found]
    for block in [*fenced(text, "bash"), *inline]:
        for command in commands(block):
            check(command)


def test_commands_in_the_examples_docstrings_are_well_formed():
    for file in sorted((ROOT / "examples").glob("*.py")):
        documentation = file.read_text(encoding="utf-8").split('"""')[1].replace("\\\n", " ")
        lines = [line for line in documentation.splitlines() if re.match(r" *python ", line)]
        assert lines, file
        for line in lines:
            (command,) = commands(re.split(r"\s{3,}(?=[a-z])", line.strip())[0])
            check(command)


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=name_of)
def test_every_block_has_a_language_that_is_checked(page):
    opened = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)[::2]
    assert set(opened) <= LANGUAGES


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=name_of)
def test_settings_in_the_text_exist(page):
    for section, name, value in SETTING.findall(page.read_text(encoding="utf-8")):
        hints = typing.get_type_hints(SECTIONS[section])
        assert name in hints, f"{section}.{name}"
        if value and typing.get_origin(hints[name]) is typing.Literal:
            assert value in typing.get_args(hints[name]), f"{section}.{name} = {value}"


def test_configurations_are_read(tmp_path):
    blocks = [block for page in [*PAGES, *EXAMPLES] for block in fenced(page.read_text(encoding="utf-8"), "yaml")]
    for block in blocks:
        (tmp_path / "run.yaml").write_text(block, encoding="utf-8")
        if "\ngrid:" in block:
            read_request(["--config", str(tmp_path / "run.yaml")])
        else:
            read_config(["--config", str(tmp_path / "run.yaml")])
    assert blocks


def test_every_example_is_run():
    run = (ROOT / "tests" / "test_examples.py").read_text(encoding="utf-8")
    names = [file.stem for file in (ROOT / "examples").glob("*.py")] + [page.parent.name for page in EXAMPLES]
    assert [name for name in names if name not in run and name != "tiny_model"] == []


class TestWhatIsWrongIsSeen:
    @pytest.mark.parametrize(
        "line",
        [
            "fastflow train --preset demo --optim.rate 1",
            "fastflow train --preset demo --optim.lr fast",
            "fastflow train --preset demos",
            "fastflow plan --preset demo --memories 48",
            "fastflow demo --sed 1",
            "fastflow doctor --vllms",
            "fastflow sweep --preset demo --grid objective.alphas=1,2",
            "fastflow sweep --preset figure-4",
            "fastflow evaluation",
            "python examples/none.py",
            "python examples/one_file_loop.py --alphas 2",
            "python -m bench.none",
            'pip install ".[tests]"',
            'pip install "fastflow[data,loras]"',
            "pip install -c constraint.txt .",
            "pytest -m vlm",
            "somebody-elses --program",
        ],
    )
    def test_commands(self, line):
        (command,) = commands(line)
        with pytest.raises((Exception, SystemExit)):
            check(command)

    def test_settings(self):
        assert SETTING.findall("`optim.rate`, `--rollout.engine vllms`, `objective.name = flowrl`") == [
            ("optim", "rate", ""), ("rollout", "engine", "vllms"), ("objective", "name", "flowrl"),
        ]  # fmt: skip
