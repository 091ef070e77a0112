"""A package in the place of torchvision, for processes of vLLM on a CPU.

The code of Qwen3.5 in vLLM imports torchvision for images, which these tests have none of. Package indexes may have no
build of it for a CPU: docs/vllm.md removes the one that comes along, since it does not load there.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

SOURCE = """
import sys, types
from unittest.mock import MagicMock

__version__ = "0.0"

def anything(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return MagicMock(name=name)

for name in ("io", "transforms", "transforms.functional", "transforms.v2", "transforms.v2.functional"):
    module = sys.modules[f"{__name__}.{name}"] = types.ModuleType(f"{__name__}.{name}")
    module.__path__, module.__getattr__ = [], anything
"""


def put_torchvision_on_the_path(monkeypatch, folder: Path) -> None:
    """For processes that are started from here on; nothing where torchvision is installed."""
    if importlib.util.find_spec("torchvision") is None:
        (folder / "torchvision").mkdir()
        (folder / "torchvision" / "__init__.py").write_text(SOURCE, encoding="utf-8")
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)  # vLLM looks at a model in a process anew
