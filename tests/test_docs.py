"""The pages stay true: files, names, links and options that they mention are there."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from fastflow.models.weights.loading import FAMILIES
from fastflow.run.alarms import ALARMS
from step_files import trace_step

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FILE = re.compile(r"`((?:fastflow|kernels|bench|csrc|tests|examples)/[\w/.\-]+\.\w+)`(?: · `([\w.]+)`)?")
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([\w\-]+))?\)")
ANATOMIES = [page for page in PAGES if page.name.startswith("anatomy")]


def ids(page: Path) -> str:
    return page.name


def module_of(name: str) -> Any:
    """A module that stands beside the pages."""
    specification = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


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


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> set[str]:
    """The names of the plots, none of them empty."""
    files = module_of("figures").draw(tmp_path_factory.mktemp("figures"))
    assert all(file.stat().st_size > 10_000 for file in files)
    return {file.name for file in files}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page, drawn):
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith("images/"):  # which docs/figures.py draws
            assert target.removeprefix("images/") in drawn
            continue
        file = page if not target else (page.parent / target)
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_family_is_named():
    page = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    assert [family for family in FAMILIES if f"`{family}`" not in page] == []


def test_every_setting_and_op_has_its_page():
    hooks = module_of("hooks")
    settings, ops = (
        hooks.on_page_markdown((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8"))
        for name in ("settings", "ops")
    )
    assert "| `optim.lr` | `float` | `5e-07` | Peak learning rate" in settings
    assert all("<!-- made" not in page and len(page) > 2000 for page in (settings, ops))
    assert "## `flow_loss`" in ops


@pytest.fixture(scope="module")
def step(tmp_path_factory) -> tuple[list[str], dict[str, Any]]:
    """Files and metrics of a real step."""
    return trace_step(tmp_path_factory.mktemp("step"))


def test_the_anatomy_of_a_step_lists_the_files_of_a_real_one(step):
    page = (ROOT / "docs" / "anatomy-of-a-step.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\d+\. `(fastflow/[\w/.]+)`: \S", page, re.MULTILINE)
    assert listed == [file for file in step[0] if file.startswith("fastflow/")]
    assert f"runs through {len(listed)} files of `fastflow`" in page


def table_under(page: Path, heading: str) -> list[list[str]]:
    """The rows of the first table of a section; every cell must say something."""
    section = page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    assert len(rows) > 2
    return rows[2:]


def test_every_metric_is_explained(step):
    rows = table_under(ROOT / "docs" / "reading-a-run.md", "The metrics")
    assert all(len(row) == 3 and row[2] for row in rows)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(listed) == sorted(["step", *step[1]])


def test_every_metric_of_an_evaluation_is_explained():
    from fastflow.run.evaluated import SECONDS, names_of

    rows = table_under(ROOT / "docs" / "reading-a-run.md", "The metrics of an evaluation")
    listed = [name for row in rows for name in re.findall(r"`([\w/@]+)`", row[0])]
    names = [re.sub(r"(avg|maj)@8", r"\1@n", re.sub(r"pass@\d+", "pass@k", name)) for name in names_of(["TASK"], 8)]
    assert sorted(listed) == sorted({SECONDS, *names, *names_of([], 8, rewarded=["TASK"])})


def test_every_alarm_has_its_remedy(step):
    rows = table_under(ROOT / "docs" / "reading-a-run.md", "The alarms")
    assert all(len(row) == 3 and row[1] and row[2] for row in rows)
    assert [row[0] for row in rows] == [alarm.name for alarm in ALARMS]


def test_words_of_other_trainers_mean_what_the_table_says():
    from fastflow.config.reader import known_settings
    from fastflow.config.settings_file import suggest_setting

    for *words, here in table_under(ROOT / "docs" / "compared-methods.md", "From TRL and verl"):
        named = re.findall(r"`([^`]+)`", here)
        for word in re.findall(r"`([\w.]+)`", " ".join(words)):
            assert any(name in suggest_setting(word, known_settings()) for name in named), word


def test_each_word_that_fastflow_does_not_offer_is_answered_so():
    from fastflow.config.synonyms import advice

    text = (ROOT / "docs" / "compared-methods.md").read_text(encoding="utf-8")
    words = re.findall(r"`(\w+)`", text.split("fastflow does not:")[1].split("##")[0])
    assert {"num_iterations", "delta"} < set(words)
    assert all("no such setting" in str(advice(word)) for word in words)
