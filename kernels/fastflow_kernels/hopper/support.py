"""Says what the path serves, and why not where it does not."""

import functools
import importlib
import importlib.util
from importlib import metadata

import torch

from fastflow_kernels.head import Head

CAPABILITY = (9, 0)
PACKAGES = ("quack", "cutlass")
QUACK = (0, 6)  # the release that epilogue.py and project.py are written for
VOCABULARY_MULTIPLE, WIDTH_MULTIPLE = 128, 8
ALIGNMENT = 16  # bytes, of what TMA loads


def device_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Say why it cannot serve factors of this type there; None where it can. Triton's interpreter serves the CPU."""
    if dtype != torch.bfloat16:
        return f"its products take bfloat16, not {dtype}"
    if device.type == "cpu":
        return None
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != CAPABILITY:
        return "its products need compute capability 9.0"
    if missing := missing_packages():
        return f"{' and '.join(missing)} not installed (pip install 'fastflow[hopper]')"
    if quack_release() != QUACK:
        return "it needs quack-kernels 0.6 (pip install 'fastflow[hopper]')"
    return import_failure()


@functools.cache
def missing_packages() -> list[str]:
    """Name the packages that are not installed. They are looked for once: on a long path that takes a while."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


@functools.cache
def quack_release() -> tuple[int, ...] | None:
    """Return the release of the installed package, such as (0, 6) for 0.6.5; None where none is known.

    Another package may have brought one that this path is not written for.
    """
    try:
        return tuple(int(part) for part in metadata.version("quack-kernels").split(".")[:2])
    except (metadata.PackageNotFoundError, ValueError):
        return None


@functools.cache
def import_failure() -> str | None:
    """Say why installed packages do not load; None where they do."""
    try:
        importlib.import_module("fastflow_kernels.hopper.project")
    except Exception as error:  # of a package with native code, anything
        remedy = "pip install --force-reinstall 'fastflow[hopper]'"
        return f"its packages do not load: {type(error).__name__}: {error} ({remedy})"
    return None


def head_obstacle(head: Head) -> str | None:
    """Say why it cannot serve this head; None where it can."""
    vocabulary, width = head.weight.shape
    if vocabulary % VOCABULARY_MULTIPLE:
        return f"it takes a vocabulary that is a multiple of {VOCABULARY_MULTIPLE}, not {vocabulary}"
    if width % WIDTH_MULTIPLE:
        return f"it takes a width that is a multiple of {WIDTH_MULTIPLE}, not {width}"
    if head.weight.data_ptr() % ALIGNMENT:
        return f"it takes a weight that starts at a multiple of {ALIGNMENT} bytes"
    settings = {"bias": head.bias, "softcap": head.softcap, "shard": head.shard}
    given = [name for name, value in settings.items() if value is not None]
    return f"it takes no {' and no '.join(given)}" if given else None
