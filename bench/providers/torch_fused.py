"""torch.nn.functional.linear_cross_entropy, in torch from 2.13 on."""

from torch import Tensor

from bench.ops import TokenLogprob
from bench.providers.provider import Provider, from_tokens, recomputing
from bench.shapes import Group


def _needs_torch(group: Group) -> str | None:
    import torch

    has_it = hasattr(torch.nn.functional, "linear_cross_entropy") and hasattr(torch.nn, "LinearCrossEntropyOptions")
    return None if has_it else f"torch {torch.__version__} has no chunked linear_cross_entropy"


def _load() -> TokenLogprob:
    from torch.nn import LinearCrossEntropyOptions
    from torch.nn.functional import linear_cross_entropy

    options = LinearCrossEntropyOptions()

    def logprob(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return -linear_cross_entropy(hidden, weight, targets, reduction="none", options=options)

    return logprob


PROVIDERS = (
    Provider(
        "linear_cross_entropy",
        from_tokens(_load),
        flops=recomputing(),
        note='torch\'s own, chunked, reduction="none"; its 6 N D V path takes mean and sum only.',
        refuses=_needs_torch,
        in_quick=False,  # on the CPU its chunks are of a few rows, which many threads make slower still
    ),
)
