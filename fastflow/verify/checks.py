"""The checks of `fastflow verify`: each measures the distance from an exact answer, and names its bound."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastflow.config.loss_sections import LogZ, Ratio
from fastflow.config.schema import (
    BatchConfig,
    Config,
    ObjectiveConfig,
    OptimConfig,
    RolloutConfig,
    RunConfig,
)
from fastflow.data.trajectory import Prompt
from fastflow.models.packed import FrozenModel, PackedModel
from fastflow.rollout.local import LocalSampler
from fastflow.rollout.sampler import SamplingParams, requests_for
from fastflow.train.learner import Learner
from fastflow.verify.check import Check
from fastflow.verify.distances import distribution_checks, gradient_error
from fastflow.verify.distillation import distillation_checks
from fastflow.verify.exact import (
    SequenceSpace,
    exact_target,
    policy_distribution,
    table_distribution,
    train_policy,
    train_table,
)
from fastflow.verify.policy_gradients import policy_gradient_checks
from fastflow.verify.power_sampling import power_checks
from fastflow_kernels import flow_loss, reference

# The largest values that pass. One bound for tables or transformers holds for the total variation, for
# KL(policy || target) in nats, and for |log_z - lambda| in nats per token.
GRADIENT_BOUND = 1e-4
MICROBATCH_BOUND = 1e-5
SAMPLER_BOUND = 1e-4
TABLE_BOUNDS = {0.5: 0.002, 2.0: 0.002, 4.0: 0.002}
TRANSFORMER_BOUNDS = {0.5: 0.02, 2.0: 0.02, 4.0: 0.06}


@dataclass(frozen=True)
class Size:
    """How much the checks do. learned: alphas at which the transformer is also trained with the learned log_z."""

    tokens: int = 5
    limit: int = 5
    table_updates: int = 200
    updates: int = 240
    responses: int = 512
    learned: tuple[float, ...] = (2.0,)

    def tables(self) -> list[tuple[float, LogZ]]:
        """Return (alpha, log_z) of every table to train."""
        choices: tuple[LogZ, ...] = ("group_mean", "learned")
        return [(alpha, log_z) for alpha in TABLE_BOUNDS for log_z in choices]

    def transformers(self) -> list[tuple[float, LogZ]]:
        """Return (alpha, log_z) of every transformer to train."""
        group_mean: list[tuple[float, LogZ]] = [(alpha, "group_mean") for alpha in TRANSFORMER_BOUNDS]
        return [*group_mean, *((alpha, "learned") for alpha in self.learned)]

    def total_updates(self) -> int:
        return len(self.tables()) * self.table_updates + len(self.transformers()) * self.updates


QUICK = Size(tokens=3, limit=3, table_updates=200, updates=150, responses=256, learned=())


def run_checks(size: Size, seed: int, *, on_phase: Callable[[str], None], on_update: Callable[[], None]) -> list[Check]:
    """Run all checks in order. Calls `on_phase` with the name of what it trains, and `on_update` after each update."""
    space = SequenceSpace(size.tokens, size.limit)
    checks = [gradient_check("sequence", seed), gradient_check("token_mean", seed)]
    checks += [microbatch_check(seed), sampler_check(space, seed)]
    checks += power_checks(make_models, seed)
    checks += policy_gradient_checks(space, make_models, updates=size.table_updates, seed=seed)
    checks += distillation_checks(make_models, seed)
    for alpha, log_z in size.tables():
        on_phase(title("table", alpha, log_z))
        checks += table_checks(space, alpha, log_z, size, seed, on_update)
    for alpha, log_z in size.transformers():
        on_phase(title("model", alpha, log_z))
        checks += transformer_checks(space, transformer_config(space, alpha, log_z, size, seed), on_update)
    return checks


def gradient_check(ratio: Ratio, seed: int) -> Check:
    """Compare the fused loss in float32 with float64 autograd of its definition, on a random packed batch.

    Lengths are 0 to 39. Importance weights are clipped at both ends. Errors are shares of the largest entry.
    """

    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    length = torch.cat([torch.tensor([0, 1]), torch.randint(1, 40, (38,), generator=generator)])
    rows, width, vocabulary = int(length.sum()), 64, 1000
    hidden, weight, log_z = normal(rows, width), normal(vocabulary, width) / width**0.5, normal(len(length))
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    boundaries = torch.cat([torch.zeros(1), length.cumsum(0)]).to(torch.int32)
    logprob = reference.linear_logprob(hidden, weight, targets)
    assert isinstance(logprob, torch.Tensor)  # alone, since no statistics are asked for
    spread = 0.4 * (length.clamp(min=1) if ratio == "token_mean" else torch.ones(len(length)))
    known = {
        "log_target": -7 + normal(len(length)),
        "length_scale": 1 / length.double().clamp(min=1),
        "behaviour_logprob": torch.stack([part.sum() for part in logprob.split(length.tolist())])
        + spread * normal(len(length)),
    }

    def differentiated(op: Callable[..., Any], dtype: torch.dtype) -> list[torch.Tensor]:
        inputs = [tensor.to(dtype).requires_grad_() for tensor in (hidden.clone(), weight.clone(), log_z.clone())]
        op(
            *inputs[:2], targets, boundaries,
            log_z=inputs[2], **{name: value.to(dtype) for name, value in known.items()},
            clip_low=0.2, clip_high=0.28, ratio=ratio, normaliser=len(length),
        ).loss.backward()  # fmt: skip
        return inputs

    exact = differentiated(reference.flow_loss, torch.float64)
    value = gradient_error(differentiated(flow_loss, torch.float32), exact)
    return Check(f"gradient, {ratio.replace('_', ' ')} ratio", value, GRADIENT_BOUND, "relative", "float64")


def microbatch_check(seed: int) -> Check:
    """Compare a gradient of the Learner from one micro-batch with the same from many."""

    space, updated = SequenceSpace(5, 12), []
    for tokens in (1 << 20, 24):
        policy, base = make_models(space, seed)
        sampler = LocalSampler(policy, eos_ids=[space.eos_id])
        requests = requests_for([_prompt(space)] * 4, 8, seed=seed, step=0)
        groups = sampler.sample(requests, SamplingParams(max_response_tokens=space.limit))
        config = Config(
            objective=ObjectiveConfig(alpha=2.0, log_z="group_mean"),
            batch=BatchConfig(tokens_per_microbatch=tokens),
            optim=OptimConfig(max_grad_norm=1e9, max_skips=0),  # none is clipped
        )
        Learner(policy, base, config, total_updates=1).update(groups)
        updated.append(policy.parameters())
    value = gradient_error(*updated)
    return Check("gradient, micro-batches", value, MICROBATCH_BOUND, "relative", "one batch")


def sampler_check(space: SequenceSpace, seed: int) -> Check:
    """Compare the sampler's log-probs, from a KV cache, with those of the enumeration, from packed batches."""

    policy, _ = make_models(space, seed)
    exact, sampler = policy_distribution(policy, _prompt(space), space), LocalSampler(policy, eos_ids=[space.eos_id])
    requests = requests_for([_prompt(space)], 256, seed=seed, step=0)
    [group] = sampler.sample(requests, SamplingParams(max_response_tokens=space.limit))
    places = [space.place[tuple(entry.response_ids.tolist())] for entry in group.trajectories]
    reported = torch.tensor([entry.behaviour_logprobs.sum(dtype="float64") for entry in group.trajectories])
    error = float((reported - exact[places]).abs().max())
    return Check("sampled log-prob", error, SAMPLER_BOUND, "nats", "enumeration")


def table_checks(
    space: SequenceSpace, alpha: float, log_z: LogZ, size: Size, seed: int, on_update: Callable[[], None]
) -> list[Check]:
    """Train a table of logits under the exact expectation, without sampling. Compare it with the exact target."""

    generator = torch.Generator().manual_seed(seed)
    shape = (len(space.prefixes), space.vocab_size)
    base = torch.randn(shape, generator=generator, dtype=torch.float64)
    base_logprob, settings = table_distribution(base, space), ObjectiveConfig(alpha=alpha, log_z=log_z)
    logprob, reached = train_table(base, space, settings, updates=size.table_updates, on_update=on_update)
    return _distances(
        title("table", alpha, log_z), base_logprob, logprob, exact_target(base_logprob, space.length, alpha), reached,
        TABLE_BOUNDS[alpha],
    )  # fmt: skip


def transformer_checks(space: SequenceSpace, config: Config, on_update: Callable[[], None]) -> list[Check]:
    """Train a small transformer on its own samples. Compare it with the exact target."""

    alpha, log_z = config.objective.alpha, config.objective.log_z
    policy, base = make_models(space, config.run.seed)
    reached = train_policy(policy, base, _prompt(space), space.eos_id, config, on_update)
    base_logprob, logprob = (policy_distribution(model, _prompt(space), space) for model in (base, policy))
    return _distances(
        title("model", alpha, log_z), base_logprob, logprob, exact_target(base_logprob, space.length, alpha),
        reached, TRANSFORMER_BOUNDS[alpha],
    )  # fmt: skip


def transformer_config(space: SequenceSpace, alpha: float, log_z: LogZ, size: Size, seed: int) -> Config:
    """Configure the transformer's training: default objective and importance weights, a large learning rate.

    The low bound of the gradient norm keeps the first updates from removing modes from the samples: a mode that is gone
    never returns.
    """

    return Config(
        objective=ObjectiveConfig(alpha=alpha, log_z=log_z),
        rollout=RolloutConfig(max_response_tokens=space.limit, max_sequences=size.responses),
        batch=BatchConfig(prompts_per_step=1, responses_per_prompt=size.responses),
        optim=OptimConfig(lr=2e-3, log_z_lr=1e-2, warmup_updates=20, schedule="cosine", max_grad_norm=0.3, max_skips=0),
        run=RunConfig(steps=size.updates, seed=seed),
    )


def make_models(space: SequenceSpace, seed: int) -> tuple[PackedModel, PackedModel]:
    """Make a random one-layer Llama whose head has exactly the space's tokens, and its frozen copy.

    Its logits have a deviation of about 1: far from uniform, and far from deterministic.
    """

    from transformers import LlamaConfig, LlamaForCausalLM

    width = 64
    config = LlamaConfig(
        vocab_size=space.vocab_size, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=2 * space.limit,
        initializer_range=0.05, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=space.eos_id, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.lm_head.weight, std=1 / width**0.5)
    return PackedModel(model), FrozenModel(copy.deepcopy(model))


def _prompt(space: SequenceSpace) -> Prompt:
    """Make a prompt of one token: the end-of-sequence token, so that no other token needs a row in the head."""

    return Prompt(np.array([space.eos_id]), source="fastflow verify")


def _distances(
    title: str,
    base_logprob: torch.Tensor,
    logprob: torch.Tensor,
    target: tuple[torch.Tensor, float],
    reached_log_z: float,
    bound: float,
) -> list[Check]:

    target_logprob, optimal_log_z = target
    checks = distribution_checks(title, logprob, target_logprob, base_logprob, bound)
    error = abs(reached_log_z - optimal_log_z)
    return [*checks, Check(f"{title}: log_z", error, bound, "nats/token", f"exact {optimal_log_z:.3g}")]


def title(model: str, alpha: float, log_z: str) -> str:
    return f"{model} alpha {alpha:g} {log_z.replace('_', ' ')}"
