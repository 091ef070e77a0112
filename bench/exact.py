"""The float64 answer, one chunk of rows at a time: memory stays small, on the device the problem is on.

Log-probs first; then the loss is a function of (N,) numbers, whose gradient autograd gives in float64; then the
gradients of the head from the formula. The same second pass serves both ops that have a gradient.
"""

import dataclasses

import torch
from torch import Tensor

from bench.problem import Problem, sequence_loss, sum_by_sequence

LOGIT_BYTES = {"cpu": 2**28, "cuda": 2**32}  # float64 logits of one chunk


@torch.no_grad()
def exact_answer(problem: Problem, op: str, chunk_rows: int | None = None) -> dict[str, Tensor]:
    """What a step of this op returns, in float64; with `logprob`, the (S,) log-probs of sequences."""
    hidden, weight = problem.hidden.detach(), problem.weight.detach().double()
    chunk_rows = chunk_rows or max(1, LOGIT_BYTES[hidden.device.type] // (8 * weight.shape[0]))
    chunks = [slice(start, start + chunk_rows) for start in range(0, hidden.shape[0], chunk_rows)]

    def log_softmax(rows: slice) -> Tensor:
        return torch.log_softmax(hidden[rows].double() @ weight.t(), dim=1)

    def at_targets(values: Tensor, rows: slice) -> Tensor:
        return values.gather(1, problem.targets[rows].unsqueeze(1)).squeeze(1)

    token_logprob = torch.cat([at_targets(log_softmax(rows), rows) for rows in chunks])
    answer = {"token_logprob": token_logprob, "logprob": sum_by_sequence(token_logprob, problem)}
    if op == "logprob":
        return answer
    if op == "linear_logprob":
        coefficient = problem.upstream.double()
    else:
        coefficient, loss = _loss_coefficients(token_logprob, problem)
        answer |= loss

    d_hidden, d_weight = torch.empty_like(hidden, dtype=torch.float64), torch.zeros_like(weight)
    for rows in chunks:
        direction = log_softmax(rows).exp_().neg_()
        direction.scatter_add_(1, problem.targets[rows].unsqueeze(1), torch.ones_like(direction[:, :1]))
        direction.mul_(coefficient[rows].unsqueeze(1))
        torch.mm(direction, weight, out=d_hidden[rows])
        d_weight.addmm_(direction.t(), hidden[rows].double())
    return answer | {"d_hidden": d_hidden, "d_weight": d_weight}


def _loss_coefficients(token_logprob: Tensor, problem: Problem) -> tuple[Tensor, dict[str, Tensor]]:
    """d loss / d log-prob of each row; the loss and its gradient in log_z."""
    exact = dataclasses.replace(problem, log_z=problem.log_z.detach().double().requires_grad_())
    with torch.enable_grad():
        leaf = token_logprob.detach().requires_grad_()
        loss = sequence_loss(sum_by_sequence(leaf, exact), exact)
    coefficient, d_log_z = torch.autograd.grad(loss, (leaf, exact.log_z))
    return coefficient, {"loss": loss.detach(), "d_log_z": d_log_z}
