"""verl's fused linear cross-entropy (Triton)."""

from torch import Tensor

from bench.ops import TokenLogprob
from bench.providers.provider import BFLOAT16, CUDA, Provider, from_tokens, import_below, recomputing
from bench.shapes import Group


def _load() -> TokenLogprob:
    kernel = import_below("verl", "utils", "verl.utils.kernel.linear_cross_entropy")  # no ray, tensordict, tokenizers

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
