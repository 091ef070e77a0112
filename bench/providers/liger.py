"""Liger kernels: fused linear CE (Triton), scaled CE (CuTe DSL on Hopper), the log-probs of its chunked GRPO loss."""

import torch
from torch import Tensor

from bench.ops import Step, TokenLogprob
from bench.problem import Problem
from bench.providers.provider import ANYWHERE, BFLOAT16, CUDA, Provider, from_tokens, is_installed, recomputing
from bench.shapes import Group


def _fused_linear(reduction: str):
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(reduction=reduction, accum_dtype=torch.float32)


def _linear_ce() -> TokenLogprob:
    loss = _fused_linear("none")
    return lambda hidden, weight, targets: -loss(weight, hidden, targets)


def _make_sum(op: str, problem: Problem) -> Step:
    loss = _fused_linear("sum")

    def step(problem: Problem) -> dict[str, Tensor]:
        torch.autograd.grad(loss(problem.weight, problem.hidden, problem.targets), (problem.hidden, problem.weight))
        return {}

    return step


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
PROVIDERS = (
    Provider(
        "liger_linear_ce",
        from_tokens(_linear_ce),
        flops=recomputing(),
        note='LigerFusedLinearCrossEntropyLoss, reduction="none", which projects again in the backward pass; '
        "accum_dtype=float32, since its default sums the head's gradient in bfloat16.",
        devices=CUDA,
        packages=LIGER,
    ),
    Provider(
        "liger_sum",
        _make_sum,
        flops={"flow_loss": 6},
        note='The same with reduction="sum": gradient in the forward pass, but of the plain sum over tokens. '
        "No answer to this problem; a time to compare with.",
        devices=CUDA,
        packages=LIGER,
        has_answer=False,
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
