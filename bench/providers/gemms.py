"""The matrix products of an op alone, their outputs made beforehand: what no implementation can beat by much."""

import torch
from torch import Tensor

from bench.ops import LIMIT_FLOPS, Step
from bench.problem import Problem
from bench.providers.provider import Provider, Unavailable


def _products(problem: Problem, blocks: list[slice], op: str) -> Step:
    vocabulary, largest = problem.weight.shape[0], max(rows.stop - rows.start for rows in blocks)
    logits = problem.weight.new_zeros(largest, vocabulary, requires_grad=False)
    d_hidden, d_weight = (torch.zeros_like(tensor, requires_grad=False) for tensor in (problem.hidden, problem.weight))

    @torch.no_grad()
    def step(problem: Problem) -> dict[str, Tensor]:
        hidden, weight = problem.hidden.detach(), problem.weight.detach()
        for number, rows in enumerate(blocks):
            block = logits[: rows.stop - rows.start]
            torch.mm(hidden[rows], weight.t(), out=block)
            if op == "logprob":
                continue
            if op == "linear_logprob":
                torch.mm(hidden[rows], weight.t(), out=block)
            torch.mm(block, weight, out=d_hidden[rows])
            d_weight.addmm_(block.t(), hidden[rows], beta=min(number, 1))
        return {}

    return step


def _over_all_rows(op: str, problem: Problem) -> Step:
    return _products(problem, [slice(0, problem.hidden.shape[0])], op)


def _in_our_blocks(op: str, problem: Problem) -> Step:
    try:
        from fastflow_kernels.blocks import default_block_rows, sequence_blocks
    except ImportError as missing:
        raise Unavailable(f"fastflow_kernels.blocks: {missing}") from missing
    rows = default_block_rows(problem.weight.shape[0], problem.hidden.device.type)
    blocks = [block.rows for block in sequence_blocks(problem.cu_seqlens.tolist(), rows)]
    return _products(problem, blocks, op)


PROVIDERS = (
    Provider(
        "gemms",
        _over_all_rows,
        flops=LIMIT_FLOPS,
        note="The products of the op alone, over all rows. No answer.",
        has_answer=False,
    ),
    Provider(
        "gemms_blocked",
        _in_our_blocks,
        flops={"flow_loss": 6},
        note="The same products in the row blocks of flow_loss. No answer.",
        devices=("cpu",),
        has_answer=False,
    ),
)
