"""The checks of the policy gradients: each gradient against float64, and the optimum of rl_trajectory and rl_token.

The gradient of a Learner's update is compared with autograd through the full softmax of the same models in float64,
where every method's formula stands once more, in loops over responses.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastflow.config.loss_sections import SurrogateConfig
from fastflow.config.methods import Method
from fastflow.config.schema import BatchConfig, Config, ImportanceConfig, ObjectiveConfig, OptimConfig, RolloutConfig
from fastflow.data.trajectory import Group, Prompt, Trajectory
from fastflow.models.packed import PackedModel
from fastflow.objectives.label_free_rewards import empo, random_reward, ttrl
from fastflow.objectives.objective import Evidence
from fastflow.objectives.policy_gradient import surrogate
from fastflow.objectives.trajectory_balance import OBJECTIVES
from fastflow.train.learner import Learner
from fastflow.verify.check import Check
from fastflow.verify.distances import distribution_checks, gradient_error
from fastflow.verify.exact import (
    TABLE_LR,
    SequenceSpace,
    policy_mean,
    table_distribution,
)

GRADIENT_BOUND = 1e-4  # of the largest entry
OPTIMUM_BOUND = 0.002  # total variation, and KL in nats
ALPHA = 4.0  # beta = 1 / (alpha - 1) = 1/3
RESPONSES, LIMIT, DRIFT = 4, 12, 0.3  # nats between the policy and what sampled, so that ratios are clipped
TARGETS: dict[Method, str] = {"rl_trajectory": "tb_trajectory", "rl_token": "tb_token"}  # which have the same optimum


@dataclass(frozen=True)
class Variant:
    """A method with its switches. reward: of each response, where text decides it; None where the models do."""

    name: Method
    objective: Mapping[str, Any] = field(default_factory=dict)
    surrogate: Mapping[str, Any] = field(default_factory=dict)
    clip: tuple[float, float] = (0.2, 0.28)
    title: str = ""
    reward: Sequence[float] | None = None


_CLASSES, _SIZES = [0, 0, 1, -1, 0, 0, 0, 2, 0, 1, 2, 3], [RESPONSES] * 3  # answers of three groups
_RIGHT = [1.0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
VARIANTS = (
    Variant("grpo", reward=_RIGHT),
    Variant("grpo", title="Dr. GRPO", reward=_RIGHT, surrogate={"divide_by_std": False, "average": "length_limit"}),
    Variant("grpo", title="GRPO, k3", reward=_RIGHT, surrogate={"average": "sequence_mean", "kl": 0.1}),
    Variant("grpo", title="GRPO, k2", reward=_RIGHT, surrogate={"kl": 0.1, "kl_estimator": "k2"}),
    Variant("empo", reward=empo(_CLASSES, _SIZES)),
    Variant("empo", title="EMPO, GSPO", reward=empo(_CLASSES, _SIZES), clip=(3e-4, 4e-4),
            surrogate={"ratio": "token_mean", "average": "sequence_mean"}),
    Variant("ttrl", reward=ttrl(_CLASSES, _SIZES)),
    Variant("intuitor", surrogate={"kl": 0.005}),
    Variant("rent", surrogate={"kl": 0.001}),
    Variant("random_reward", reward=random_reward(range(len(_CLASSES)))),
    Variant("format_reward", reward=[1.0, 1, 0, 1, 1, 1, 1, 1, 0, 0, 0, 1]),
    Variant("rl_trajectory"),
    Variant("rl_trajectory", title="rl trajectory, ratio", surrogate={"ratio": "sequence"}),
    Variant("rl_token"),
)  # fmt: skip


def policy_gradient_checks(
    space: SequenceSpace, make_models: Callable[[SequenceSpace, int], tuple[PackedModel, PackedModel]], *, updates: int,
    seed: int,
) -> list[Check]:  # fmt: skip
    """Run all of them. make_models: a policy and its base with the head that a space needs, from a seed."""
    checks = [gradient_check(variant, make_models, seed) for variant in VARIANTS]
    return [*checks, *(check for name in TARGETS for check in optimum_checks(space, name, updates, seed))]


def gradient_check(
    variant: Variant, make_models: Callable[[SequenceSpace, int], tuple[PackedModel, PackedModel]], seed: int
) -> Check:
    """Compare the gradient of one update in float32 with that of the formulas in float64."""
    space = SequenceSpace(5, LIMIT)
    policy, _ = make_models(space, seed)
    _, base = make_models(space, seed + 1)
    exact, exact_base = in_float64(policy), in_float64(base)
    config = variant_config(variant)
    groups = make_groups(space, exact, seed)
    reward = None if variant.reward is None else torch.tensor(variant.reward, dtype=torch.float64)
    Learner(policy, base, config, total_updates=1).update(groups, reward=reward)
    loss_in_float64(exact, exact_base, groups, config, variant.reward).backward()
    error = gradient_error(policy.causal_lm.parameters(), exact.parameters())
    return Check(f"gradient, {variant.title or variant.name}", error, GRADIENT_BOUND, "relative", "float64")


def in_float64(model: PackedModel) -> torch.nn.Module:
    """Copy the model to float64, to be called on one sequence. Its norms compute in float32 nevertheless."""
    exact = copy.deepcopy(model.causal_lm).double()
    exact.config._attn_implementation = "eager"
    return exact


def variant_config(variant: Variant) -> Config:
    reward = "answer" if variant.name == "grpo" else None
    pattern = "." if variant.name == "format_reward" else None
    return Config(
        objective=ObjectiveConfig(
            name=variant.name, alpha=ALPHA, reward=reward, format_pattern=pattern, **variant.objective
        ),
        importance=ImportanceConfig(clip_low=variant.clip[0], clip_high=variant.clip[1]),
        surrogate=SurrogateConfig(**variant.surrogate),
        rollout=RolloutConfig(max_response_tokens=LIMIT),
        batch=BatchConfig(responses_per_prompt=RESPONSES, tokens_per_microbatch=40),
        optim=OptimConfig(max_grad_norm=1e9),  # none is clipped
    )


def make_groups(space: SequenceSpace, model: torch.nn.Module, seed: int) -> list[Group]:
    """Make random responses of 1 to LIMIT tokens, as if drawn from a policy at a distance of DRIFT from `model`."""
    rng, groups = np.random.default_rng(seed), []
    for _ in _SIZES:
        prompt, trajectories = Prompt(rng.integers(0, space.vocab_size, 3)), []
        for length in rng.integers(1, LIMIT + 1, RESPONSES):
            ids = rng.integers(0, space.tokens, length)
            with torch.no_grad():
                logprob = _token_logprobs(model, prompt, ids)[0].numpy()
            behaviour = (logprob + DRIFT * rng.standard_normal(length)).astype(np.float32)
            trajectories.append(Trajectory(ids, behaviour, "stop"))
        groups.append(Group(prompt, tuple(trajectories)))
    return groups


def loss_in_float64(
    model: torch.nn.Module,
    base: torch.nn.Module,
    groups: Sequence[Group],
    config: Config,
    text_rewards: Sequence[float] | None,
) -> Tensor:
    """The loss that config.objective.name names, by its formula: response by response, over the full softmax."""
    settings, name = config.surrogate, config.objective.name
    bounds = 1 - config.importance.clip_low, 1 + config.importance.clip_high
    responses = sum(len(group.trajectories) for group in groups)
    tokens = sum(len(entry) for group in groups for entry in group.trajectories)
    loss, rewarded = torch.zeros((), dtype=torch.float64), 0
    for group in groups:
        passes = [_token_logprobs(model, group.prompt, entry.response_ids) for entry in group.trajectories]
        with torch.no_grad():
            bases = [_token_logprobs(base, group.prompt, entry.response_ids)[0] for entry in group.trajectories]
        if text_rewards is None:
            rewards = [
                _own_reward(name, config.objective.alpha, logits.detach(), b, entry)
                for (_, logits), b, entry in zip(passes, bases, group.trajectories, strict=True)
            ]
        else:
            rewards = list(text_rewards[rewarded : rewarded + len(passes)])
        rewarded += len(passes)
        mean = sum(rewards) / len(rewards)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in rewards) / (len(rewards) - 1)) + 1e-6
        divisor = deviation if settings.divide_by_std and name not in TARGETS else 1.0
        for (logprob, _), b, entry, reward in zip(passes, bases, group.trajectories, rewards, strict=True):
            advantage = (reward - mean) / divisor
            ratio = (logprob - torch.from_numpy(entry.behaviour_logprobs).double()).exp()
            if settings.ratio == "token_mean":  # GSPO: one ratio, of which every token has the same part
                ratio = ratio.log().mean().exp().expand(len(entry))
            if settings.ratio == "sequence":
                ratio = ratio.log().sum().exp().expand(len(entry))
            cost = -torch.minimum(ratio * advantage, ratio.clamp(*bounds) * advantage)
            if settings.ratio == "sequence":  # which has the gradient of every token already
                cost = cost / len(entry)
            d = b - logprob
            cost = cost + settings.kl * (d.square() / 2 if settings.kl_estimator == "k2" else d.exp() - d - 1)
            weights = {
                "token_mean": 1 / tokens,
                "sequence_mean": 1 / (responses * len(entry)),
                "length_limit": 1 / (responses * config.rollout.max_response_tokens),
            }
            loss = loss + weights[settings.average] * cost.sum()
    return loss


def _own_reward(name: str, alpha: float, logits: Tensor, base: Tensor, trajectory: Trajectory) -> float:
    """The reward of a method that the models decide. logits: (|y|, V) of the policy. base: (|y|,) log-probs."""
    if name == "intuitor":
        return float((logits.logsumexp(1) - logits.mean(1)).mean())
    if name == "rent":
        return float((logits.softmax(1) * logits.log_softmax(1)).sum(1).mean())
    own = float(trajectory.behaviour_logprobs.sum(dtype=np.float64))
    likelihood = float(base.sum() if name == "rl_trajectory" else base.mean())
    return (alpha - 1) * likelihood - (own - float(base.sum()))  # (E[likelihood] - beta KL) / beta


def _token_logprobs(model: torch.nn.Module, prompt: Prompt, response: np.ndarray) -> tuple[Tensor, Tensor]:
    """Log-probs (|y|,) and logits (|y|, V) of a response's tokens, by a forward pass of this sequence alone."""
    ids = torch.from_numpy(np.concatenate([prompt.ids, response]).astype(np.int64))
    logits = model(input_ids=ids[None], use_cache=False).logits[0, len(prompt.ids) - 1 : -1]
    return logits.log_softmax(1).gather(1, ids[len(prompt.ids) :, None])[:, 0], logits


def optimum_checks(space: SequenceSpace, name: Method, updates: int, seed: int) -> list[Check]:
    """Train a table of logits by the gradient of `name` under the exact expectation. Compare it with the optimum."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(len(space.prefixes), space.vocab_size, generator=generator, dtype=torch.float64)
    base_logprob = table_distribution(base, space)
    mean = base_logprob / (1 if name == "rl_trajectory" else space.length)
    optimum = (base_logprob + (ALPHA - 1) * mean).log_softmax(0)
    reached = train_table_by_policy_gradient(base, space, ObjectiveConfig(name=name, alpha=ALPHA), updates=updates)
    title = f"table alpha {ALPHA:g} {name.replace('_', ' ')}"
    return distribution_checks(title, reached, optimum, base_logprob, OPTIMUM_BOUND)


def train_table_by_policy_gradient(
    base_table: Tensor, space: SequenceSpace, settings: ObjectiveConfig, *, updates: int
) -> Tensor:
    """Ascend the objective of rl_trajectory or rl_token: its reward and the surrogate of `fastflow train`, no sampling.

    base_table: (prefixes, V) float64 logits of the base. As in `train_table`, every response enters once, as if drawn
    uniformly, and its unclipped ratio makes the sum over the space the expectation under the policy.
    Returns log-probabilities (n,) of the trained table.
    """
    base_logprob, zeros, count = table_distribution(base_table, space), torch.zeros(len(space)).double(), len(space)
    target = OBJECTIVES[TARGETS[settings.name]](Evidence(space.length, base_logprob, zeros, zeros), settings)[1]
    lengths = space.length.long().tolist()
    uniform = (-math.log(count) / space.length).repeat_interleave(space.length.long())
    table = base_table.clone().requires_grad_()
    optimizer = torch.optim.Adam([table], lr=TABLE_LR, betas=(0.9, 0.9), eps=1e-30)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        token_logprob = torch.log_softmax(table, dim=-1)[space.prefix_rows, space.targets]
        logprob = table_distribution(table.detach(), space)
        reward = target - logprob
        advantage = (reward - policy_mean(logprob, reward)).repeat_interleave(space.length.long())
        each = surrogate(token_logprob, uniform, advantage, lengths, "sequence", 1.0, math.inf)
        optimizer.zero_grad()
        (-each.gain.sum() / count).backward()
        optimizer.step()
        schedule.step()
    return table_distribution(table.detach(), space)
