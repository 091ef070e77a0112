"""verl's fused linear cross-entropy (Triton)."""

import functools
import importlib.machinery
import importlib.util
import sys
import types

from torch import Tensor

from bench.ops import TokenLogprob
from bench.providers.provider import BFLOAT16, CUDA, Provider, Unavailable, from_tokens, recomputing
from bench.shapes import Group


@functools.cache
def _import_kernel() -> types.ModuleType:
    """verl's kernel module without what `import verl` pulls in (ray, tensordict, tokenizers).

    The packages above it are entered as empty ones with the folders of the installed files, so that its own
    imports, of verl.utils.device and verl.plugin.platform, find their modules.
    """
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("verl is not installed")
    root = next(iter(spec.submodule_search_locations))
    for name, folder in (("verl", root), ("verl.utils", f"{root}/utils")):
        empty = importlib.machinery.ModuleSpec(name, loader=None, is_package=True)
        empty.submodule_search_locations = [folder]
        sys.modules.setdefault(name, importlib.util.module_from_spec(empty))
    return importlib.import_module("verl.utils.kernel.linear_cross_entropy")


def _load() -> TokenLogprob:
    kernel = _import_kernel()

    def logprob(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return kernel.linear_cross_entropy(hidden, weight, targets, 1.0, "none", None)[0]

    return logprob


def _needs_width(group: Group) -> str | None:
    return None if group.shape.width % 128 == 0 else "D is no multiple of 128"


PROVIDERS = (
    Provider(
        "verl",
        from_tokens(_load),
        flops=recomputing(),
        note="linear_cross_entropy, which gives the entropy too, with its default backward: it splits the vocabulary "
        "and sums d_hidden in bfloat16.",
        devices=CUDA,
        dtypes=BFLOAT16,
        packages=("verl",),
        refuses=_needs_width,
    ),
)
