"""The three ops that are measured, and how a provider that only gives log-probs is made to do them.

    flow_loss       forward and backward of the whole sequence loss: 6 N D V flops
    linear_logprob  forward and backward of per-token log-probs for a given upstream gradient: 8 N D V, since an
                    op that does not hold the logits must project twice; one that holds them all needs 6 and can
                    go below this limit
    logprob         per-token log-probs alone: 2 N D V

A step runs an op once and returns what it computed, detached: `token_logprob`, `loss`, `d_hidden`, `d_weight`,
`d_log_z`, as far as the op has them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.problem import Problem, sequence_loss, sum_by_sequence
from bench.shapes import Group

LIMIT_FLOPS = {"flow_loss": 6, "linear_logprob": 8, "logprob": 2}  # multiples of N D V

Step = Callable[[Problem], dict[str, Tensor]]
TokenLogprob = Callable[[Tensor, Tensor, Tensor], Tensor]  # hidden, weight, targets -> (N,), differentiable
SequenceLogprob = Callable[[Problem], Tensor]  # -> (S,), differentiable


def bytes_moved(group: Group) -> int:
    """The least an op reads and writes: each input once, each output once."""
    rows, width, vocabulary = group.shape
    item = {"float32": 4, "bfloat16": 2}[group.dtype]
    tensors = (rows + vocabulary) * width * item
    return (1 if group.op == "logprob" else 2) * tensors + rows * (8 + 4)


def bytes_returned(group: Group) -> int:
    """What an op hands out, which no implementation can do without: log-probs, or gradients of head and rows."""
    rows, width, vocabulary = group.shape
    item = {"float32": 4, "bfloat16": 2}[group.dtype]
    return rows * 4 + (0 if group.op == "logprob" else (rows + vocabulary) * width * item)


def token_step(op: str, logprob: TokenLogprob) -> Step:
    """The step of a provider that gives differentiable log-probs of tokens."""
    return {"flow_loss": _loss_step, "linear_logprob": _linear_step, "logprob": _forward_step}[op](logprob)


def _forward_step(logprob: TokenLogprob) -> Step:
    def step(problem: Problem) -> dict[str, Tensor]:
        with torch.no_grad():  # and detached: some providers work for a gradient as soon as a tensor wants one
            return {"token_logprob": logprob(problem.hidden.detach(), problem.weight.detach(), problem.targets)}

    return step


def _linear_step(logprob: TokenLogprob) -> Step:
    def step(problem: Problem) -> dict[str, Tensor]:
        value = logprob(problem.hidden, problem.weight, problem.targets)
        gradients = torch.autograd.grad(value, (problem.hidden, problem.weight), problem.upstream.to(value.dtype))
        return {"token_logprob": value.detach(), "d_hidden": gradients[0], "d_weight": gradients[1]}

    return step


def _loss_step(logprob: TokenLogprob) -> Step:
    def step(problem: Problem) -> dict[str, Tensor]:
        value = logprob(problem.hidden, problem.weight, problem.targets)
        loss = sequence_loss(sum_by_sequence(value, problem), problem)
        return {"token_logprob": value.detach()} | loss_outputs(loss, problem)

    return step


def sequence_step(logprob: SequenceLogprob) -> Step:
    """flow_loss from log-probs of whole sequences, as reduction="sum" gives them."""

    def step(problem: Problem) -> dict[str, Tensor]:
        value = logprob(problem).double()
        return {"logprob": value.detach()} | loss_outputs(sequence_loss(value, problem), problem)

    return step


def loss_outputs(loss: Tensor, problem: Problem) -> dict[str, Tensor]:
    """The loss and its gradients, which the caller drops as a training step would."""
    gradients = torch.autograd.grad(loss, (problem.hidden, problem.weight, problem.log_z))
    names = ("d_hidden", "d_weight", "d_log_z")
    return {"loss": loss.detach()} | dict(zip(names, gradients, strict=True))
