"""Apple's cut-cross-entropy (Triton)."""

from torch import Tensor

from bench.ops import TokenLogprob
from bench.providers.provider import BFLOAT16, CUDA, Provider, from_tokens, recomputing


def _load(filter_eps: str | None) -> TokenLogprob:
    from cut_cross_entropy import linear_cross_entropy

    def logprob(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return -linear_cross_entropy(hidden, weight, targets, reduction="none", filter_eps=filter_eps)

    return logprob


def _provider(name: str, filter_eps: str | None, note: str) -> Provider:
    return Provider(
        name,
        from_tokens(lambda: _load(filter_eps)),
        flops=recomputing(),
        note=note,
        devices=CUDA,
        dtypes=BFLOAT16,  # its backward takes half precision only
        packages=("cut_cross_entropy",),
    )


PROVIDERS = (
    _provider("cce_exact", None, 'reduction="none", filter_eps=None. Gradients are summed in bfloat16 under locks.'),
    _provider("cce_filtered", "auto", "The same with its default: blocks of small probabilities give no gradient."),
)
