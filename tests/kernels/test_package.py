"""The package as others meet it: the names it hands out, and its place beside Hugging Face's `kernels`."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PUBLIC = {
    "fastflow_kernels",
    "fastflow_kernels.reference",
    "fastflow_kernels.sampling",
    "fastflow_kernels.memory",
    "fastflow_kernels.cpu.native",
}


def imports_in(source: str) -> Iterator[tuple[str, str | None]]:
    """(module, name) of every import from the package; name None where the module itself is imported.

    Code in strings counts, which other processes run.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "fastflow_kernels" in node.value:
            try:
                yield from imports_in(node.value) if node.value != source else ()
            except SyntaxError:  # prose
                continue


def is_public(module: str, name: str | None) -> bool:
    if name is None or f"{module}.{name}" in PUBLIC:
        return (module if name is None else f"{module}.{name}") in PUBLIC
    return module in PUBLIC and name in importlib.import_module(module).__all__


def private_imports(source: str) -> list[tuple[str, str | None]]:
    ours = (found for found in imports_in(source) if found[0].split(".")[0] == "fastflow_kernels")
    return [found for found in ours if not is_public(*found)]


@pytest.mark.parametrize("folder", ["fastflow", "examples"])
def test_others_use_only_what_the_package_hands_out(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = {str(file.relative_to(ROOT)): private_imports(file.read_text(encoding="utf-8")) for file in files}
    assert not {file: names for file, names in found.items() if names}


@pytest.mark.parametrize(
    "line",
    [
        "from fastflow_kernels.head import Head",
        "from fastflow_kernels.memory import default_block_rows",
        "from fastflow_kernels import matmul",
        "import fastflow_kernels.matmul",
        "def late():\n    from fastflow_kernels.triton.row import row_pass",
        'CODE = """\nfrom fastflow_kernels.cpu import row_pass\n"""',
    ],
)
def test_a_private_name_is_found(line):
    assert len(private_imports(line)) == 1


def test_public_modules_say_what_they_hand_out():
    import fastflow_kernels

    for module in PUBLIC:
        loaded = importlib.import_module(module)
        assert all(hasattr(loaded, name) for name in loaded.__all__)
        assert module == "fastflow_kernels" or f"`{module}`" in fastflow_kernels.__doc__


def test_the_folder_shadows_no_package(tmp_path):
    """A package called kernels is found from the repository's root, as `python -m` has it on its path."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '1.2.3'\n")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import kernels, fastflow_kernels as ours; "
    code += "print(kernels.__version__, ours.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "1.2.3 fastflow_kernels", done.stderr
