"""The package beside Hugging Face's `kernels`, whose name our folder has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_folder_shadows_no_package(tmp_path):
    """A package called kernels is found from the repository's root, as `python -m` has it on its path."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '1.2.3'\n")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import kernels, fastflow_kernels as ours; "
    code += "print(kernels.__version__, ours.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "1.2.3 fastflow_kernels", done.stderr
