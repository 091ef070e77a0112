"""Plants a defect in a kernel of this process: the launchers stay, and launch the kernel of a changed source."""

import contextlib
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from unittest import mock

from triton.runtime.interpreter import InterpretedFunction

from bench.checking.cases import Case
from bench.checking.defects import Defect
from bench.checking.op_cases import OpCase
from bench.checking.subjects import FOLDER
from fastflow_kernels import triton as kernels


def caught(defect: Defect, cases: dict[str, Case]) -> str | None:
    """What the defect's case says of it, or None where it sees nothing."""
    case = cases[defect.case]
    if isinstance(case, OpCase):
        case = replace(case, orders=case.orders[:1])
    with planted(defect):
        try:
            findings = list(case.run())
        except Exception as error:  # a kernel that cannot run was seen, too
            return f"{type(error).__name__}: {error}"
    return str(findings[0]) if findings else None


@contextlib.contextmanager
def planted(defect: Defect) -> Iterator[None]:
    """Within it every module of fastflow_kernels/triton uses the changed functions in place of its own.

    Raises:
        LookupError: the file has no such line.
    """
    source = (FOLDER / defect.file).read_text(encoding="utf-8")
    if defect.line not in source:
        raise LookupError(
            f"fastflow_kernels/triton/{defect.file} has no {defect.line!r} any more: bench/checking/defects.py must "
            "plant this defect in the kernel as it is now."
        )
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        changed = _load(Path(folder) / "triton" / defect.file, source.replace(defect.line, defect.instead))
        own = importlib.import_module(f"{kernels.__name__}.{Path(defect.file).stem}")
        for name, function in _functions(own).items():
            if function.fn.__module__ == own.__name__:
                _replace(function, getattr(changed, name), stack)
        yield


def _load(path: Path, source: str) -> ModuleType:
    """A module outside of the package; the interpreter reads functions from their files."""
    path.parent.mkdir()
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"planted_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _functions(module: ModuleType) -> dict[str, InterpretedFunction]:
    return {name: value for name, value in vars(module).items() if isinstance(value, InterpretedFunction)}


def _replace(function: InterpretedFunction, by: InterpretedFunction, stack: contextlib.ExitStack) -> None:
    for module in [module for name, module in sys.modules.items() if name.startswith(kernels.__name__)]:
        for name, value in _functions(module).items():
            if value is function:
                stack.enter_context(mock.patch.object(module, name, by))
