"""The one problem that every provider solves: packed responses, a head, and the sequence-level loss on them.

Hidden states and weights are normal with logits of unit scale, targets are random, response lengths are
log-normal. Then the log-prob of a token is about -(log V + 1/2) whatever the shape, and residuals and ratios are
well conditioned: an error that shows is the provider's, not that of a difference of large sums.

A trained model's logits are peaked. With another deviation, targets are drawn from the head, as a sampler draws them,
and the log-probs that they had then are those of the behaviour: residuals and ratios stay as well conditioned.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.shapes import Group, Shape

CLIP_LOW, CLIP_HIGH = 0.2, 0.28
RATIO = "token_mean"
LENGTH_SIGMA = 0.6  # of the logarithm of the response length
MEAN_LENGTH = 900
LOGIT_BYTES = 2**28  # float32 logits at a time, from which targets are drawn


@dataclass(frozen=True)
class Problem:
    """Inputs of all ops. `hidden`, `weight` and `log_z` are leaves that require a gradient."""

    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    targets: Tensor  # (N,) int64
    cu_seqlens: Tensor  # (S+1,) int32, on the CPU
    sequence_of_row: Tensor  # (N,) int64
    upstream: Tensor  # (N,) float32: what linear_logprob's backward receives
    length: Tensor  # (S,) int64
    log_z: Tensor  # (S,) float32, like those below
    log_target: Tensor
    length_scale: Tensor
    behaviour_logprob: Tensor

    @property
    def sequence_count(self) -> int:
        return self.log_z.shape[0]

    @property
    def loss_inputs(self) -> dict:
        """The keyword arguments of `fastflow_kernels.flow_loss` beside the head and the rows."""
        per_sequence = ("log_z", "log_target", "length_scale", "behaviour_logprob")
        settings = {"clip_low": CLIP_LOW, "clip_high": CLIP_HIGH, "ratio": RATIO, "normaliser": self.sequence_count}
        return {name: getattr(self, name) for name in per_sequence} | settings


def default_mean_length(rows: int, device: str) -> int:
    """900 tokens; fewer where N is small, and on the CPU a tenth of the rows, so that there are several responses."""
    return max(1, min(MEAN_LENGTH, rows // (10 if device == "cpu" else 4)))


def draw_lengths(rows: int, mean: float, generator: torch.Generator) -> list[int]:
    """Log-normal response lengths that add up to `rows`; the last is cut."""
    lengths: list[int] = []
    while sum(lengths) < rows:
        normal = torch.randn((), generator=generator).item()
        length = round(mean * math.exp(LENGTH_SIGMA * normal - LENGTH_SIGMA**2 / 2))
        lengths.append(min(max(length, 1), rows - sum(lengths)))
    return lengths


def make_problems(
    shape: Shape,
    dtype: torch.dtype,
    device: str,
    *,
    count: int = 1,
    mean_length: int | None = None,
    lengths: list[int] | None = None,
    seed: int = 0,
    deviation: float = 1.0,
) -> list[Problem]:
    """`count` problems that differ in hidden states, targets and upstream gradients and share the rest.

    deviation: of the logits. Where it is not 1, they differ in log_target and behaviour_logprob, too.
    """
    if lengths is None:
        mean_length = mean_length or default_mean_length(shape.rows, device)
        lengths = draw_lengths(shape.rows, mean_length, torch.Generator().manual_seed(seed))
    generator = torch.Generator(device).manual_seed(seed)
    options = {"device": device, "generator": generator}
    weight = torch.randn(shape.vocabulary, shape.width, dtype=dtype, **options).mul_(deviation * shape.width**-0.5)
    weight.requires_grad_()
    length = torch.tensor(lengths, device=device)
    expected = -(math.log(shape.vocabulary) + 0.5)  # log-prob of a random token under unit-normal logits
    shared = {
        "weight": weight,
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).int(),
        "sequence_of_row": torch.arange(len(lengths), device=device).repeat_interleave(length),
        "length": length,
        "log_z": torch.randn(len(lengths), **options).requires_grad_(),
        "log_target": torch.full((len(lengths),), expected + 2.0, device=device),
        "length_scale": 1.0 / length,
        "behaviour_logprob": expected * length,
    }
    problems = [
        Problem(
            hidden=torch.randn(shape.rows, shape.width, dtype=dtype, **options).requires_grad_(),
            targets=torch.randint(0, shape.vocabulary, (shape.rows,), **options),
            upstream=torch.empty(shape.rows, device=device).uniform_(-1, 1, generator=generator),
            **shared,
        )
        for _ in range(count)
    ]
    return problems if deviation == 1 else [_sampled(problem, generator) for problem in problems]


def problems_of(group: Group, *, count: int = 1, mean_length: int | None = None) -> list[Problem]:
    dtype = getattr(torch, group.dtype)
    return make_problems(
        group.shape, dtype, group.device, count=count, mean_length=mean_length, deviation=group.deviation
    )


@torch.no_grad()
def _sampled(problem: Problem, generator: torch.Generator) -> Problem:
    """The same with targets that the head draws, and what follows from their log-probs."""
    targets, logprob = torch.empty_like(problem.targets), torch.empty_like(problem.upstream)
    chunk = max(1, LOGIT_BYTES // (4 * len(problem.weight)))
    for rows in torch.arange(len(targets), device=targets.device).split(chunk):
        every = torch.log_softmax(problem.hidden[rows].float() @ problem.weight.float().t(), dim=1)
        drawn = torch.multinomial(every.exp(), 1, generator=generator)
        targets[rows], logprob[rows] = drawn.squeeze(1), every.gather(1, drawn).squeeze(1)
    behaviour_logprob = sum_by_sequence(logprob, problem).float()
    target = (behaviour_logprob * problem.length_scale + 2.0).detach()
    return replace(problem, targets=targets, behaviour_logprob=behaviour_logprob, log_target=target)


def sum_by_sequence(token_logprob: Tensor, problem: Problem) -> Tensor:
    """(N,) log-probs of tokens -> (S,) of sequences, summed in float64: the error shown is the provider's."""
    zeros = torch.zeros(problem.sequence_count, dtype=torch.float64, device=token_logprob.device)
    return zeros.index_add(0, problem.sequence_of_row, token_logprob.double())


def sequence_loss(logprob: Tensor, problem: Problem) -> Tensor:
    """The loss from (S,) log-probs, in plain torch: what a user writes around a fused cross-entropy."""
    residual = problem.log_z + problem.length_scale * logprob - problem.log_target
    ratio = ((logprob - problem.behaviour_logprob) / problem.length).exp()
    weight = ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH).detach()
    return (weight * residual.square()).sum() / problem.sequence_count
