"""Where a measurement was taken: date, hardware, versions, commit."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

DISTRIBUTIONS = (
    "torch",
    "triton",
    "transformers",
    "liger-kernel",
    "cut-cross-entropy",
    "trl",
    "quack-kernels",
    "nvidia-cutlass-dsl",
    "verl",
)

# Of whoever multiplies with torch: float32 with all its bits, not rounded to TF32. Our own kernels have no other way.
FLOAT32_PRODUCTS = "highest"


def pin_float32_products() -> None:
    """Set it, against what an environment variable or a package that was imported has set."""
    import torch

    torch.set_float32_matmul_precision(FLOAT32_PRODUCTS)


def describe(device: str) -> dict:
    """Plain values, fit for JSON."""
    import torch

    found = {name: _version(name) for name in DISTRIBUTIONS} | {"torch": torch.__version__}  # with its CUDA build
    described = {
        "date": datetime.date.today().isoformat(),
        "device": device,
        "hardware": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "python": platform.python_version(),
        "versions": {name: version for name, version in found.items() if version},
        "commit": os.environ.get("COMMIT") or _output("git", "rev-parse", "--short", "HEAD") or "unknown",
        "threads": torch.get_num_threads(),
    }
    if device == "cuda":
        described |= {
            "memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30),
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "unknown",
            "cuda": torch.version.cuda,
            "float32_products": FLOAT32_PRODUCTS,
        }
    return described


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name where the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown processor")


def _output(*command: str) -> str | None:
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None
