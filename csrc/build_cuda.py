"""Compiles `csrc/cuda` into `fastflow_kernels/_native_cuda.so`, where that is wanted and can be done.

    python csrc/build_cuda.py [FOLDER]     into FOLDER (default: the checkout's package)

An installation follows the same rule. FASTFLOW_CUDA in the environment decides:

    unset   built where nvcc is found and torch, importable while this runs, is a CUDA build; else left out. pip's
            isolated builds see no torch: `pip install --no-build-isolation .` does.
    1       built whatever torch is; an error without nvcc
    0       left out

nvcc is that of CUDA_HOME, else that on the PATH. It needs no GPU and no torch: the library has a plain C interface,
and links nothing but CUDA's runtime, statically.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from setuptools import Extension

SWITCH = "FASTFLOW_CUDA"
LIBRARY = "fastflow_kernels._native_cuda"
FILE = "_native_cuda.so"
SOURCES = Path(__file__).parent / "cuda"
ARCHITECTURES = (  # machine code for these, and PTX for what comes after them; clusters start with 90
    "arch=compute_80,code=sm_80",
    "arch=compute_90,code=[sm_90,compute_90]",
)
COMPILE = ("-O3", "-std=c++17", "-Xcompiler", "-Wall,-fPIC,-fvisibility=hidden")


def extension() -> Extension:
    """For setup.py, which builds it by `compile_library` unless `why_not` says otherwise."""
    from setuptools import Extension

    root = SOURCES.parents[1]
    headers = [str(path.relative_to(root)) for path in sorted(SOURCES.glob("*.h"))]
    return Extension(LIBRARY, sources=["csrc/cuda/row_pass.cu"], depends=[*headers, "csrc/build_cuda.py"])


def build_cuda(folder: Path) -> Path | None:
    """The library's path in `folder`, or None where it is left out.

    Raises:
        ValueError, RuntimeError: as `why_not`; and where nvcc fails, with what it said.
    """
    if why_not():
        return None
    compile_library(folder / FILE)
    return folder / FILE


def why_not() -> str | None:
    """Why the library is left out, or None.

    Raises:
        ValueError: FASTFLOW_CUDA is neither 0 nor 1.
        RuntimeError: it is 1, and nvcc is missing.
    """
    switch = os.environ.get(SWITCH)
    if switch not in (None, "0", "1"):
        raise ValueError(f"{SWITCH} must be 0 or 1, got {switch!r}; correct it or unset it.")
    if switch == "0":
        return f"{SWITCH}=0"
    if find_nvcc() is None:
        reason = "nvcc is neither in CUDA_HOME nor on the PATH"
        if switch == "1":
            raise RuntimeError(f"{SWITCH}=1 asks for the CUDA library, but {reason}; install it or unset {SWITCH}.")
        return reason
    if switch is None and not torch_has_cuda():
        return f"torch cannot be imported here or is no CUDA build ({SWITCH}=1 builds nevertheless)"
    return None


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return (shutil.which("nvcc", path=f"{home}/bin") if home else None) or shutil.which("nvcc")


def torch_has_cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.version.cuda is not None


def compile_library(library: Path) -> None:
    """Take about ten seconds of one core.

    Raises:
        RuntimeError: nvcc failed.
    """
    library.parent.mkdir(parents=True, exist_ok=True)
    targets = [f"-gencode={architecture}" for architecture in ARCHITECTURES]
    linking = ["-shared", "-cudart", "static", "-o", str(library)]
    command = [find_nvcc(), *COMPILE, *targets, str(SOURCES / "row_pass.cu"), *linking]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise RuntimeError(f"{command[0]} could not build {FILE}; {SWITCH}=0 installs without it. It said:\n{said}")


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0]) if arguments else SOURCES.parents[1] / "kernels" / "fastflow_kernels"
    try:
        library = build_cuda(folder)
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"built {library}" if library else f"{FILE}: skipped, {why_not()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
