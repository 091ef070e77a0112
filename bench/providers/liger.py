"""Liger kernels: fused linear CE (Triton), scaled CE (CuTe DSL on Hopper), the log-probs of its chunked GRPO loss."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from bench.ops import Step, TokenLogprob
from bench.problem import Problem
from bench.providers.provider import (
    ANYWHERE,
    BFLOAT16,
    CUDA,
    Provider,
    Unavailable,
    from_tokens,
    is_installed,
    recomputing,
    summing,
)
from bench.shapes import Group


def _fused_linear(reduction: str, chunks: int = 1, accumulate: torch.dtype | None = torch.float32) -> TokenLogprob:
    """Log-probs by LigerFusedLinearCrossEntropyFunction, of tokens ("none") or their sum.

    chunks: how many times its default number of rows, N D / V rounded up to a power of two, it projects at once. Its
    module does not hand this on, its autograd function does. accumulate: type of the sum of the head's gradient.
    """
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction as function

    names = list(inspect.signature(function.forward).parameters)[1:]
    if chunks > 1 and "chunk_mem_const" not in names:
        raise Unavailable("this liger-kernel has no knob for the size of its chunks")
    options = {"reduction": reduction, "accum_dtype": accumulate}
    defaults = {name: entry.default for name, entry in inspect.signature(function.forward).parameters.items()}
    settings = defaults | options | ({"chunk_mem_const": chunks} if chunks > 1 else {})
    rest = [settings[name] for name in names[3:]]
    return lambda hidden, weight, targets: -function.apply(hidden, weight, targets, *rest)[0]


def _scaled_ce() -> TokenLogprob:
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction as function

    return lambda hidden, weight, targets: -function.apply(hidden, weight, targets)


def _scaled_ce_refuses(group: Group) -> str | None:
    if group.device == "cuda" and torch.cuda.get_device_capability() == (9, 0) and not is_installed("cutlass"):
        return "nvidia-cutlass-dsl is not installed"
    return None


def _grpo_logprob() -> TokenLogprob:
    from liger_kernel.chunked_loss.fused_linear_ppo import LigerFusedLinearPPOBase

    def logprob(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        batch = LigerFusedLinearPPOBase.chunk_forward(hidden.unsqueeze(0), weight, targets.unsqueeze(0))
        return batch.squeeze(0)

    return logprob


LIGER = ("liger_kernel",)
LARGER_CHUNKS = (8, 16)  # 2048 and 4096 rows where the default is 256


def _provider(name: str, make: Callable[[str, Problem], Step], flops: dict[str, int], note: str, **more) -> Provider:
    return Provider(name, make, flops, note, devices=CUDA, packages=LIGER, **more)


def _sum_provider(
    name: str, chunks: int, note: str, accumulate: torch.dtype | None = torch.float32, **more
) -> Provider:
    note += " No answer to this problem; a time to compare with."
    make = summing(lambda: _fused_linear("sum", chunks, accumulate))
    return _provider(name, make, {"flow_loss": 6}, note, has_answer=False, **more)


PROVIDERS = (
    _provider(
        "liger_linear_ce",
        from_tokens(lambda: _fused_linear("none")),
        recomputing(),
        'LigerFusedLinearCrossEntropyFunction, reduction="none", which projects again in the backward pass; '
        "accum_dtype=float32, since its default sums the head's gradient in bfloat16.",
    ),
    _provider(
        f"liger_linear_ce@{LARGER_CHUNKS[-1]}",
        from_tokens(lambda: _fused_linear("none", LARGER_CHUNKS[-1])),
        recomputing("flow_loss", "linear_logprob"),
        f"The same with chunk_mem_const={LARGER_CHUNKS[-1]}: that many times the rows at once.",
    ),
    _sum_provider(
        "liger_sum",
        1,
        'The first with reduction="sum": gradient in the forward pass, but of the plain sum over tokens.',
    ),
    *(
        _sum_provider(f"liger_sum@{chunks}", chunks, f"The same with chunk_mem_const={chunks}.")
        for chunks in LARGER_CHUNKS
    ),
    _sum_provider(
        f"liger_sum_bfloat16@{LARGER_CHUNKS[-1]}",
        LARGER_CHUNKS[-1],
        "The same with its default accum_dtype: the head's gradient is summed in bfloat16, in half the memory.",
        accumulate=None,
        dtypes=BFLOAT16,
    ),
    Provider(
        "liger_scaled_ce",
        from_tokens(_scaled_ce),
        flops=recomputing(),
        note="LigerFusedLinearScaledCrossEntropyFunction: CuTe DSL on Hopper, elsewhere its chunks of plain torch.",
        devices=ANYWHERE,
        dtypes=BFLOAT16,
        packages=LIGER,
        refuses=_scaled_ce_refuses,
    ),
    Provider(
        "liger_grpo_logprob",
        from_tokens(_grpo_logprob),
        flops=recomputing(),
        note="The log-prob path of LigerFusedLinearGRPOLoss, whose loss is another; float32 products backward.",
        packages=LIGER,
    ),
)
