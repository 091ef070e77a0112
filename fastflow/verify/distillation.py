"""Checks of distil: its gradient against float64, the loss's optimum, and where training on p^alpha's samples ends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from fastflow.config.methods import Average
from fastflow.config.schema import BatchConfig, Config, ObjectiveConfig, OptimConfig, RolloutConfig, RunConfig
from fastflow.data.recorded import RecordedPrompt
from fastflow.data.trajectory import Group, Prompt, Trajectory
from fastflow.models.packed import PackedModel
from fastflow.objectives.policy_gradient import token_share
from fastflow.rollout.recorded import RecordedResponses
from fastflow.rollout.sampler import SamplingParams, requests_for
from fastflow.train.learner import Learner
from fastflow.verify.check import Check
from fastflow.verify.distances import gradient_error
from fastflow.verify.exact import SequenceSpace, kl_divergence, policy_distribution, total_variation

GRADIENT_BOUND = 1e-4  # of the largest entry
KL_BOUND = 0.02  # nats; sampling alone leaves about responses / (2 x samples) of it
OPTIMUM_BOUND = 1e-9  # total variation; summed in float64
ALPHA = 2.0
AVERAGES: tuple[Average, ...] = get_args(Average)
FEW = 2  # responses of an update, of which every one is enumerated
SPACE = SequenceSpace(tokens=2, limit=3)
SAMPLES, RESPONSES, UPDATES = 4096, 128, 120

MakeModels = Callable[[SequenceSpace, int], tuple[PackedModel, PackedModel]]


def distillation_checks(make_models: MakeModels, seed: int) -> list[Check]:
    """Check all averages' gradients, find the optimum, and train on samples of the enumerated p^alpha."""
    gradients = [gradient_check(make_models, average, seed) for average in AVERAGES]
    return [*gradients, optimum_check(make_models, seed), training_check(make_models, seed)]


def gradient_check(make_models: MakeModels, average: Average, seed: int) -> Check:
    """Compare the gradient of one update in float32 with that of the formula in float64."""
    from fastflow.verify.policy_gradients import in_float64

    space = SequenceSpace(5, 12)
    policy, _ = make_models(space, seed)
    exact, groups = in_float64(policy), random_groups(space, seed)
    config = settings(average, max_response_tokens=space.limit)
    Learner(policy, None, config, total_updates=1).update(groups)
    loss_in_float64(exact, groups, average, space.limit).backward()
    error = gradient_error(policy.causal_lm.parameters(), exact.parameters())
    return Check(f"gradient, distil {average}", error, GRADIENT_BOUND, "relative", "float64")


def optimum_check(make_models: MakeModels, seed: int) -> Check:
    """Compare p^alpha with the optimum of the loss over updates of few responses that are drawn from it."""
    _, base = make_models(SPACE, seed)
    prompt = Prompt(np.array([SPACE.eos_id]), source="fastflow verify")
    target = torch.log_softmax(ALPHA * policy_distribution(base, prompt, SPACE), 0)
    distances = {average: total_variation(optimum(target, average, FEW), target) for average in AVERAGES}
    note = f"token mean {distances['token_mean']:.2f}"
    return Check(f"distil, {FEW} an update: TV", distances["length_limit"], OPTIMUM_BOUND, "", note)


def optimum(log_q: Tensor, average: Average, responses: int) -> Tensor:
    """Compute the log-probabilities (n,) that minimise the loss's mean over every update of so many responses of q.

    The loss is linear in the log-probs of whole responses, so that a response's probability is its mean weight.
    """
    mass = torch.zeros_like(log_q)
    for places in itertools.product(range(len(log_q)), repeat=responses):
        drawn = torch.tensor(places)
        share = token_share(SPACE.length[drawn], average, SPACE.limit)
        mass.index_add_(0, drawn, log_q[drawn].sum().exp() * share)
    return (mass / mass.sum()).log()


def training_check(make_models: MakeModels, seed: int) -> Check:
    """Train on samples drawn from the enumerated p^alpha, as a run does, and measure KL(p^alpha || policy)."""
    policy, base = make_models(SPACE, seed)
    prompt = Prompt(np.array([SPACE.eos_id]), source="fastflow verify")
    target = torch.log_softmax(ALPHA * policy_distribution(base, prompt, SPACE), 0)
    before = kl_divergence(target, policy_distribution(policy, prompt, SPACE))
    drawn = np.random.default_rng(seed).choice(len(SPACE), SAMPLES, p=target.exp().numpy())
    every = SPACE.group(prompt).trajectories
    recorded = RecordedPrompt(
        prompt.ids, source=prompt.source, responses=tuple(every[at] for at in drawn), weights=(1.0,) * SAMPLES
    )
    config = settings("length_limit", max_response_tokens=SPACE.limit)
    learner, source = Learner(policy, None, config, total_updates=UPDATES), RecordedResponses(seed)
    params = SamplingParams(max_response_tokens=SPACE.limit)
    for step in range(UPDATES):
        requests = requests_for([recorded], RESPONSES, seed=seed, step=step, turns=[step])
        learner.update(source.sample(requests, params))
    after = kl_divergence(target, policy_distribution(policy, prompt, SPACE))
    return Check(f"distil of p^{ALPHA:g}: KL", after, KL_BOUND, "nats", f"{before:.2g} before")


def settings(average: Average, *, max_response_tokens: int) -> Config:
    return Config(
        objective=ObjectiveConfig(name="distil", distil_average=average),
        rollout=RolloutConfig(max_response_tokens=max_response_tokens),
        batch=BatchConfig(prompts_per_step=1, responses_per_prompt=RESPONSES, tokens_per_microbatch=2048),
        optim=OptimConfig(lr=3e-3, schedule="cosine", max_grad_norm=1e9),
        run=RunConfig(steps=UPDATES),
    )


def random_groups(space: SequenceSpace, seed: int) -> list[Group]:
    """Make random responses of 1 to `space.limit` tokens, of which nothing is known but their tokens."""
    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(3):
        lengths = rng.integers(1, space.limit + 1, 4)
        responses = [rng.integers(0, space.tokens, length) for length in lengths]
        unknown = [np.full(len(ids), math.nan, dtype=np.float32) for ids in responses]
        taken = [Trajectory(*pair, "length") for pair in zip(responses, unknown, strict=True)]
        groups.append(Group(Prompt(rng.integers(0, space.vocab_size, 3)), tuple(taken)))
    return groups


def loss_in_float64(model: torch.nn.Module, groups: Sequence[Group], average: Average, limit: int) -> Tensor:
    """The loss by its formula: response by response, over the full softmax."""
    entries = [(group.prompt.ids, entry.response_ids) for group in groups for entry in group.trajectories]
    tokens = sum(len(ids) for _, ids in entries)
    loss = torch.zeros((), dtype=torch.float64)
    for prompt, ids in entries:
        inputs = torch.from_numpy(np.concatenate([prompt, ids]))[None]
        logits = model(inputs).logits[0, len(prompt) - 1 : -1]
        total = torch.log_softmax(logits, -1).gather(1, torch.from_numpy(ids)[:, None]).sum()
        divisors = {
            "token_mean": tokens,
            "sequence_mean": len(entries) * len(ids),
            "length_limit": len(entries) * limit,
        }
        loss = loss - total / divisors[average]
    return loss
