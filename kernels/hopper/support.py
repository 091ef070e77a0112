"""What the path serves, and why not where it does not."""

import importlib.util

import torch

from fastflow_kernels.head import Head

PACKAGES = ("quack", "cutlass")
VOCABULARY_MULTIPLE, WIDTH_MULTIPLE = 128, 8


def device_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why it cannot serve factors of this type there, or None. Triton's interpreter serves the CPU, for tests."""
    if dtype != torch.bfloat16:
        return f"its products take bfloat16, not {dtype}"
    if device.type == "cpu":
        return None
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        return "its products need compute capability 9.0"
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed (pip install 'fastflow[hopper]')" if missing else None


def head_obstacle(head: Head) -> str | None:
    """Why it cannot serve this head, or None."""
    vocabulary, width = head.weight.shape
    if vocabulary % VOCABULARY_MULTIPLE:
        return f"it takes a vocabulary that is a multiple of {VOCABULARY_MULTIPLE}, not {vocabulary}"
    if width % WIDTH_MULTIPLE:
        return f"it takes a width that is a multiple of {WIDTH_MULTIPLE}, not {width}"
    settings = {"bias": head.bias, "softcap": head.softcap, "shard": head.shard}
    given = [name for name, value in settings.items() if value is not None]
    return f"it takes no {' and no '.join(given)}" if given else None
