"""The matrix products of an op alone, by the libraries that our ops use for them: what none of these can beat."""

import torch
from torch import Tensor

from bench.ops import LIMIT_FLOPS, Step
from bench.problem import Problem
from bench.providers.provider import Provider, Unavailable


def _products(op: str, problem: Problem) -> Step:
    """Over all rows at once; gradients go to new memory, as those that an op hands out."""
    try:
        from fastflow_kernels.matmul import accumulate_, back_project_, project
    except ImportError as missing:
        raise Unavailable(f"fastflow_kernels.matmul: {missing}") from missing

    def logits_of(hidden: Tensor, weight: Tensor) -> Tensor:
        """On CUDA in the type of the inputs, which is what the two other products take."""
        return torch.mm(hidden, weight.t()) if hidden.is_cuda else project(hidden, weight)

    @torch.no_grad()
    def step(problem: Problem) -> dict[str, Tensor]:
        hidden, weight = problem.hidden.detach(), problem.weight.detach()
        logits = logits_of(hidden, weight)
        if op == "logprob":
            return {}
        if op == "linear_logprob":
            logits = logits_of(hidden, weight)
        d_hidden = back_project_(torch.empty_like(hidden), logits, weight, overwrite=True)
        d_weight = accumulate_(torch.empty_like(weight), logits, hidden, overwrite=True)
        return {"d_hidden": d_hidden, "d_weight": d_weight}

    return step


PROVIDERS = (
    Provider(
        "gemms",
        _products,
        flops=LIMIT_FLOPS,
        note="The products of the op alone, over all rows. No answer.",
        has_answer=False,
    ),
)
