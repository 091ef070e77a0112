"""Enumerates small models: every response, the exact target, and the exact distribution that training reaches.

Convention for the length limit: a response is a leaf of the token tree. It ends in the end-of-sequence token after at
most `limit` tokens, otherwise it is cut after `limit` ordinary tokens. A cut response is a leaf like any other: its
`limit` tokens count towards |y|, and neither an end-of-sequence token nor its probability is added. A sampler with
`rollout.max_response_tokens = limit` returns the same, so the leaves' probabilities sum to one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from fastflow.config.schema import Config, ObjectiveConfig
from fastflow.data.packing import pack
from fastflow.data.trajectory import Group, Prompt, Trajectory
from fastflow.models.packed import PackedModel
from fastflow.models.scoring import sum_per_sequence, to_flat_order, token_logprobs
from fastflow.objectives.objective import Evidence
from fastflow.objectives.trajectory_balance import OBJECTIVES
from fastflow.rollout.local import LocalSampler
from fastflow.rollout.sampler import SamplingParams, requests_for
from fastflow.train.learner import Learner
from fastflow_kernels import flow_loss

TABLE_LR = 0.1
_NEWTON_STEPS = 100


@dataclass(frozen=True)
class SequenceSpace:
    """All responses over `tokens` ordinary tokens (ids 0 to tokens - 1) and an end-of-sequence token (id `tokens`).

    limit: the longest response, in tokens, end-of-sequence token included. The n responses have one fixed order, and so
    have the N response tokens of all of them. A prefix is what precedes a token; it may be empty.
    """

    tokens: int
    limit: int

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.limit < 1:
            raise ValueError(f"tokens = {self.tokens} and limit = {self.limit} must both be at least 1")

    @property
    def eos_id(self) -> int:
        return self.tokens

    @property
    def vocab_size(self) -> int:
        """Ordinary tokens and the end-of-sequence token."""
        return self.tokens + 1

    @cached_property
    def prefixes(self) -> tuple[tuple[int, ...], ...]:
        """Every prefix that a token may follow, shortest first."""
        lengths = range(self.limit)
        return tuple(itertools.chain(*(itertools.product(range(self.tokens), repeat=length) for length in lengths)))

    @cached_property
    def responses(self) -> tuple[tuple[int, ...], ...]:
        """Every response: those that end in the end-of-sequence token, then those cut at the limit."""
        ended = tuple((*prefix, self.eos_id) for prefix in self.prefixes)
        return ended + tuple(itertools.product(range(self.tokens), repeat=self.limit))

    def __len__(self) -> int:
        return len(self.responses)

    @cached_property
    def length(self) -> torch.Tensor:
        """(n,) float64 tokens of each response, |y|."""
        return torch.tensor([len(response) for response in self.responses], dtype=torch.float64)

    @cached_property
    def targets(self) -> torch.Tensor:
        """(N,) int64: the tokens of all responses."""
        return torch.tensor(list(itertools.chain.from_iterable(self.responses)))

    @cached_property
    def prefix_rows(self) -> torch.Tensor:
        """(N,) int64: for each response token, the place in `prefixes` of what precedes it."""
        place = {prefix: row for row, prefix in enumerate(self.prefixes)}
        return torch.tensor([place[response[:t]] for response in self.responses for t in range(len(response))])

    @cached_property
    def cu_seqlens(self) -> torch.Tensor:
        """(n+1,) int32 boundaries of the responses within the N tokens."""
        return torch.cat([torch.zeros(1), self.length.cumsum(0)]).to(torch.int32)

    @cached_property
    def place(self) -> dict[tuple[int, ...], int]:
        """Where each response stands in the order of `responses`."""
        return {response: index for index, response in enumerate(self.responses)}

    def group(self, prompt: Prompt) -> Group:
        """Return every response once, as a rollout that a model can score. Behaviour log-probs are zeros."""
        return Group(prompt, tuple(self._trajectory(response) for response in self.responses))

    def _trajectory(self, response: tuple[int, ...]) -> Trajectory:
        return Trajectory(
            response_ids=np.array(response, dtype=np.int64),
            behaviour_logprobs=np.zeros(len(response), dtype=np.float32),
            finish_reason="stop" if response[-1] == self.eos_id else "length",
        )


def table_distribution(table: torch.Tensor, space: SequenceSpace) -> torch.Tensor:
    """Compute the log-probability (n,) of every response under a table (prefixes, V) of next-token logits."""
    token_logprob = torch.log_softmax(table, dim=-1)[space.prefix_rows, space.targets]
    owner = torch.repeat_interleave(torch.arange(len(space)), space.length.long())
    return table.new_zeros(len(space)).index_add(0, owner, token_logprob)


@torch.no_grad()
def policy_distribution(
    model: PackedModel, prompt: Prompt, space: SequenceSpace, *, tokens_per_microbatch: int = 1 << 15
) -> torch.Tensor:
    """Compute the log-probability (n,) float64 of every response to `prompt`, from packed batches as in training.

    Raises ValueError where the model's head has rows outside the space, since their probability would be missing.
    """
    if model.vocab_size != space.vocab_size:
        raise ValueError(f"the model's head has {model.vocab_size} rows, the space {space.vocab_size} tokens")
    with model.eval_mode():
        batches = [batch.to(model.device) for batch in pack([space.group(prompt)], tokens_per_microbatch)]
        sums = [sum_per_sequence(token_logprobs(model, batch), batch) for batch in batches]
        return to_flat_order(batches, sums).cpu()


def exact_target(
    base_logprob: torch.Tensor, length: torch.Tensor, alpha: float, penalty: torch.Tensor | None = None
) -> tuple[torch.Tensor, float]:
    """Compute the target at which every PowerFlow loss is zero: p_base(y)^alpha exp(alpha psi(y) |y| - lambda |y|).

    base_logprob: (n,) log p_base(y), nats. length: (n,) |y|, tokens, at least 1. penalty: (n,) psi(y), nats per token.
    Returns the target's log-probabilities (n,) float64 and lambda, the one number for which they sum to one: the
    optimal log_z, nats per token (PowerFlow's fixed point).

    log sum_y exp(a_y - lambda |y|) is convex and falls in lambda, with slope -E|y| of at most -1. Newton's method
    therefore converges from every start: after the first step it approaches the root from the left.
    """
    base_logprob, length = base_logprob.double(), length.double()
    if base_logprob.shape != length.shape or base_logprob.dim() != 1:
        raise ValueError(
            f"base_logprob {tuple(base_logprob.shape)} and length {tuple(length.shape)} must be equal (n,)"
        )
    if not bool((length >= 1).all()):
        raise ValueError("every length must be at least 1 token")
    score = alpha * (base_logprob if penalty is None else base_logprob + penalty.double() * length)
    log_z = 0.0
    for _ in range(_NEWTON_STEPS):
        log_mass = torch.logsumexp(score - log_z * length, dim=0)
        mean_length = (torch.softmax(score - log_z * length, dim=0) * length).sum()
        step = float(log_mass / mean_length)
        log_z += step
        if abs(step) <= 1e-15 * max(1.0, abs(log_z)):
            break
    log_target = score - log_z * length
    if not abs(float(torch.logsumexp(log_target, dim=0))) < 1e-9:
        raise ValueError("the target cannot be normalised: base_logprob or penalty holds NaN or +inf, or only -inf")
    return log_target, log_z


def policy_mean(logprob: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Compute the expectation of values (n,) under the distribution with log-probabilities logprob (n,)."""
    return (logprob.exp() * values).sum()


def total_variation(log_p: torch.Tensor, log_q: torch.Tensor) -> float:
    """Compute half the sum of |p - q|: 0 for equal distributions, 1 for disjoint ones. log_p, log_q: (n,)."""
    return float((log_p.double().exp() - log_q.double().exp()).abs().sum() / 2)


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> float:
    """Compute KL(p || q) in nats; infinite where p has mass and q has none. log_p, log_q: (n,)."""
    log_p, log_q = log_p.double(), log_q.double()
    p = log_p.exp()
    return float(torch.where(p > 0, p * (log_p - log_q), 0).sum())


def train_table(
    base_table: torch.Tensor,
    space: SequenceSpace,
    settings: ObjectiveConfig,
    *,
    updates: int = 200,
    on_update: Callable[[], None] = lambda: None,
) -> tuple[torch.Tensor, float]:
    """Train a table of next-token logits under the exact expectation: public op, float64, no sampling and no model.

    base_table: (prefixes, V) float64 logits of the base, where training starts. Every response enters once, as if drawn
    uniformly from the space. Its unclipped importance weight turns the mean over the space into the expectation
    sum_y pi(y) residual(y)^2. A learned log_z starts where the Learner starts it, at the mean under the first policy.
    Adam has a short memory, since the gradient of a row falls with the probability of its prefix. Its learning rate
    falls from TABLE_LR along a half cosine.
    Returns log-probabilities (n,) of the trained table and its log_z, the mean under the policy or the learned scalar.
    """
    base_logprob, count = table_distribution(base_table, space), len(space)
    zeros = torch.zeros_like(base_logprob)
    scale, log_target = OBJECTIVES[settings.name](Evidence(space.length, base_logprob, zeros, zeros), settings)
    table = base_table.clone().requires_grad_()
    log_z = policy_mean(base_logprob, log_target - scale * base_logprob).requires_grad_()
    head = torch.eye(space.vocab_size, dtype=torch.float64)
    optimizer = torch.optim.Adam([table, log_z], lr=TABLE_LR, betas=(0.9, 0.9), eps=1e-30)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        if settings.log_z == "group_mean":
            logprob = table_distribution(table.detach(), space)
            log_z = policy_mean(logprob, log_target - scale * logprob)
        optimizer.zero_grad()
        flow_loss(
            table[space.prefix_rows], head, space.targets, space.cu_seqlens,
            log_z=log_z.expand(count), log_target=log_target, length_scale=scale,
            behaviour_logprob=torch.full_like(base_logprob, -math.log(count)),
            clip_low=1.0, clip_high=math.inf, normaliser=count,
        ).loss.backward()  # fmt: skip
        optimizer.step()
        schedule.step()
        on_update()
    return table_distribution(table.detach(), space), log_z.item()


def train_policy(
    policy: PackedModel,
    base: PackedModel,
    prompt: Prompt,
    eos_id: int,
    config: Config,
    on_update: Callable[[], None] = lambda: None,
) -> float:
    """Train `policy` in place on its own samples of one prompt, with the Learner and the sampler of `fastflow train`.

    Reads the sections objective, importance, batch, optim, rollout (length limit) and run (steps, seed).
    Returns the last update's mean log_z, nats per token.
    """
    learner = Learner(policy, base, config, total_updates=config.run.steps)
    sampler = LocalSampler(policy, eos_ids=[eos_id], max_sequences=config.rollout.max_sequences)
    params = SamplingParams(max_response_tokens=config.rollout.max_response_tokens)
    for step in range(config.run.steps):
        requests = requests_for([prompt], config.batch.responses_per_prompt, seed=config.run.seed, step=step)
        result = learner.update(sampler.sample(requests, params))
        on_update()
    return float(result.log_z.mean())
