"""The pages stay true: files, names, links and options that they mention are there."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from fastflow.cli import main
from fastflow.config.reader import read_config
from step_files import step_files

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FILE = re.compile(r"`((?:fastflow|kernels|bench|csrc|tests|examples)/[\w/.\-]+\.\w+)`(?: · `([\w.]+)`)?")
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([\w\-]+))?\)")
ANATOMIES = [page for page in PAGES if page.name.startswith("anatomy")]


def ids(page: Path) -> str:
    return page.name


def names_in(file: Path) -> set[str]:
    """Functions, classes, methods and values of a module."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_and_names_are_there(page):
    for path, name in FILE.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), path
        assert not name or name in names_in(ROOT / path), (path, name)


@pytest.mark.parametrize("page", ANATOMIES, ids=ids)
def test_an_anatomy_leads_to_the_code(page):
    assert len(FILE.findall(page.read_text(encoding="utf-8"))) >= 12


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith("images/"):  # which docs/hooks.py adds
            continue
        file = page if not target else (page.parent / target)
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def command_lines(page: Path) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("fastflow ")]


@pytest.mark.parametrize("line", [line for page in PAGES for line in command_lines(page)])
def test_commands_have_options_that_exist(line):
    _, command, *arguments = shlex.split(line, comments=True)
    if command in ("train", "plan"):
        own = ("--memory", "--json")
        places = [place for place, word in enumerate(arguments) if word in own]
        read_config([word for place, word in enumerate(arguments) if not {place, place - 1} & set(places)])
    else:
        with pytest.raises(SystemExit) as ended:
            main([command, *arguments, "--help"])
        assert ended.value.code == 0


def test_every_setting_and_op_has_its_page():
    import importlib.util

    specification = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hooks)
    settings, ops = (hooks.on_page_markdown(f"{{{{ {name} }}}}") for name in ("settings", "ops"))
    assert "| `optim.lr` | `float` | `5e-07` | Peak learning rate" in settings
    assert all("{{" not in page and len(page) > 2000 for page in (settings, ops))
    assert "## `flow_loss`" in ops


def test_the_anatomy_of_a_step_lists_the_files_of_a_real_one(tmp_path):
    page = (ROOT / "docs" / "anatomy-of-a-step.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\d+\. `(fastflow/[\w/.]+)`: \S", page, re.MULTILINE)
    assert listed == [file for file in step_files(tmp_path) if file.startswith("fastflow/")]
    assert f"runs through {len(listed)} files of `fastflow`" in page
