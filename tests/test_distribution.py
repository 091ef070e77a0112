"""What pyproject.toml declares is what the tree holds: packages, files that go along, commands and plug-ins.

tests/csrc/test_build.py builds wheels; nothing is built here.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"fastflow": ROOT / "fastflow", "fastflow_kernels": ROOT / "kernels" / "fastflow_kernels"}
NOT_PACKED = {".py", ".pyc", ".so"}  # modules go with their package, libraries with the build


@pytest.fixture(scope="module")
def declared() -> dict:
    """pyproject.toml, as setuptools reads it."""
    pytest.importorskip("setuptools", minversion="77")
    from setuptools.config.pyprojecttoml import load_file

    return load_file(str(ROOT / "pyproject.toml"))


def found_packages(declared: dict) -> set[str]:
    """The packages that setuptools will find."""
    from setuptools import PackageFinder

    finding = declared["tool"]["setuptools"]["packages"]["find"]
    assert finding["namespaces"] is False
    return {
        name for where in finding["where"] for name in PackageFinder.find(str(ROOT / where), include=finding["include"])
    }


def folders_with_modules() -> set[str]:
    """Every folder of the two packages that holds a module, as a dotted name."""
    return {
        ".".join((package, *module.parent.relative_to(folder).parts))
        for package, folder in FOLDERS.items()
        for module in folder.rglob("*.py")
    }


def test_every_folder_with_a_module_is_a_package_that_is_installed(declared):
    """One without an `__init__.py` would work in the checkout and be missing in the wheel."""
    assert found_packages(declared) == folders_with_modules()


def test_every_other_file_goes_along(declared):
    patterns = declared["tool"]["setuptools"]["package-data"]
    assert declared["tool"]["setuptools"]["include-package-data"] is False  # the patterns alone decide
    folders = {name: FOLDERS[name.partition(".")[0]].joinpath(*name.split(".")[1:]) for name in patterns}
    along = {file for name, wanted in patterns.items() for pattern in wanted for file in folders[name].glob(pattern)}
    others = {
        file
        for folder in FOLDERS.values()
        for file in folder.rglob("*")
        if file.is_file() and file.suffix not in NOT_PACKED
    }
    assert not {str(file.relative_to(ROOT)) for file in others - along}
    assert all(list(folders[name].glob(pattern)) for name, wanted in patterns.items() for pattern in wanted)


def test_commands_and_plug_ins_lead_to_functions(declared):
    project = declared["project"]
    entries = [*project["scripts"].values(), *project["entry-points"]["vllm.general_plugins"].values()]
    for entry in entries:
        module, _, function = entry.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_versions_of_python_agree(declared):
    """pyproject.toml, its classifiers and what the doctor accepts."""
    from packaging.specifiers import SpecifierSet

    from fastflow.doctor.libraries import OLDEST, TOO_NEW

    project = declared["project"]
    accepted = {f"3.{minor}" for minor in range(30) if f"3.{minor}" in SpecifierSet(project["requires-python"])}
    named = {entry.rpartition(" ")[2] for entry in project["classifiers"] if ":: Python :: 3." in entry}
    assert accepted == named == {f"3.{minor}" for minor in range(OLDEST[1], TOO_NEW[1])}


def test_each_dependency_has_its_reason():
    """A comment on its line or on the line above."""
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    start, end = lines.index("dependencies = ["), lines.index("[tool.setuptools]")
    bare = [
        line.strip()
        for above, line in zip(lines[start - 1 : end], lines[start:end], strict=False)
        if re.search(r'"[\w\-\[\]]+[<>=]=', line) and "#" not in line and "#" not in above
    ]
    assert bare == []
