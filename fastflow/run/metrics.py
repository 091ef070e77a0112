"""What is measured each step: from update results to one flat dictionary of named numbers."""

from __future__ import annotations

import dataclasses
import itertools
import math
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastflow.data.trajectory import Group, flatten
from fastflow.data.update import UpdateResult
from fastflow.run.mismatch import Mismatch, mismatch

LARGEST_LOG = 20.0  # of a ratio: one rare token would be the whole mean beyond
GRAM = 4  # tokens of the stretches whose repetition is counted


def measure(
    groups: Sequence[Group],
    results: Sequence[UpdateResult],
    *,
    judged: Sequence[Group] | None = None,
    well_formed: Sequence[bool] | None,
    scores: Sequence[float] | None = None,
    penalties: Sequence[torch.Tensor] | None = None,
    alpha: float | None,
    samples_the_policy: bool = True,
    seconds: dict[str, float],
    device: torch.device,
) -> dict[str, Any]:
    """The metrics of one step: its rollout (`groups`) and its updates (`results`).

    judged: the groups that well_formed and scores are of; None is those of the rollout. well_formed, scores: None where
    no format or reward is asked for.
    penalties: psi of the trajectories of each update; None is zeros. alpha: where slope ends, None where elsewhere.
    samples_the_policy: whether tokens were drawn from the policy's own distribution, over which base_kl is a mean.

    Entropies are Monte Carlo estimates from the sampler's own log-probs: nats per token and nats per response. slope is
    that of mean log pi on mean log p_base within groups, among responses without a penalty: at the fixed point of
    powerflow it equals alpha. Updates that were skipped count in no mean; where all of a step were, what updates
    compute is NaN.
    """
    flat = flatten(groups)
    lengths = np.array([len(trajectory) for trajectory in flat])
    behaviour = np.array([trajectory.own_logprobs.sum(dtype=np.float64) for trajectory in flat])

    done = [result for result in results if not result.skipped] or [_without_numbers(result) for result in results]

    def joined(name: str) -> torch.Tensor:
        return torch.cat([getattr(result, name) for result in done])

    per_token = joined("length").clamp(min=1)
    residual, importance, raw_ratio = (joined(name) for name in ("residual", "importance", "raw_ratio"))
    sampled = int(lengths.sum())
    trained = sum(result.tokens for result in results)
    phase = {name: seconds.get(name, 0.0) + sum(result.seconds.get(name, 0.0) for result in results)
             for name in ("sample", "reward", "score", "train")}  # fmt: skip
    return {
        "loss": float(np.mean([result.loss for result in done])),
        "residual_mean": float(residual.mean()),
        "residual_std": float(residual.std(correction=0)),
        "log_z": float(joined("log_z").mean()),
        "length_mean": float(lengths.mean()),
        **{f"length_p{q}": float(np.percentile(lengths, q)) for q in (10, 50, 90)},
        "length_max": int(lengths.max()),
        "truncated_share": float(np.mean([trajectory.finish_reason == "length" for trajectory in flat])),
        **rewards(scores, groups if judged is None else judged),
        "malformed_share": None if well_formed is None else 1 - float(np.mean(well_formed)),
        "token_entropy": float(-behaviour.sum() / max(sampled, 1)),
        "sequence_entropy": float(-behaviour.mean()),
        "logprob_mean": float((joined("logprob") / per_token).mean()),
        "sequence_logprob_mean": float(joined("logprob").mean()),
        "base_logprob_mean": float((joined("base_logprob") / per_token).mean()),
        "base_kl": kl_to_base([result for result in results if not result.skipped]) if samples_the_policy else None,
        **{f"ratio_p{q:02d}": float(torch.quantile(raw_ratio, q / 100)) for q in (1, 50, 99)},
        "clipped_share": float((importance != raw_ratio).double().mean()),
        "effective_sample_size": effective_sample_size(raw_ratio),
        "slope": slope_within_groups(results, penalties),
        "alpha": alpha,
        "grad_norm": float(np.mean([result.grad_norm for result in done])),
        "lr": results[-1].lr,
        "repetition": repetition([trajectory.response_ids for trajectory in flat]),
        **{f"seconds_{name}": spent for name, spent in phase.items()},
        "seconds": seconds["total"],
        "sample_tokens_per_second": sampled / max(phase["sample"], 1e-9),
        "score_tokens_per_second": trained / max(phase["score"], 1e-9),
        "train_tokens_per_second": trained / max(phase["train"], 1e-9),
        "peak_memory_bytes": peak_memory(device),
        "microbatches": sum(result.microbatches for result in results),
        "tokens": trained,
        "responses": len(flat),
        "skipped_updates": sum(bool(result.skipped) for result in results),
    }


def agreement(
    groups: Sequence[Group], result: UpdateResult, *, version: int, samples_the_policy: bool
) -> dict[str, float | None]:
    """How far sampler and trainer are apart in a step's first update that was done, in weights and in log-probs.

    version: of the policy before that update. weight_lag: updates that the sampling weights were behind it, mean over
    the responses. mismatch_*: see Mismatch; None where tokens were drawn from another distribution than the policy's.
    With a lag they hold the update in between as well. They are None for an update that was skipped.
    """
    flat = flatten(groups)
    found: Sequence[float | None] = [None] * len(Mismatch._fields)
    if samples_the_policy and not result.skipped:
        found = mismatch([entry.own_logprobs for entry in flat], result.token_logprobs)
    return {
        "weight_lag": float(np.mean([version - trajectory.weight_version for trajectory in flat])),
        **{f"mismatch_{name}": value for name, value in zip(Mismatch._fields, found, strict=True)},
    }


def _without_numbers(result: UpdateResult) -> UpdateResult:
    """The result of a skipped update with NaN for what it computed, so that no mean tells of it."""
    computed = ("logprob", "base_logprob", "residual", "log_z", "importance", "raw_ratio")
    unknown: dict[str, Any] = {name: torch.full_like(getattr(result, name), math.nan) for name in computed}
    return dataclasses.replace(result, loss=math.nan, grad_norm=math.nan, **unknown)


def rewards(scores: Sequence[float] | None, groups: Sequence[Group]) -> dict[str, float | None]:
    """Mean and deviation of the rewards, and the share of groups whose rewards are all equal: they teach a policy
    gradient nothing. scores: of the groups' trajectories; None where there are none.
    """
    if scores is None:
        return {"reward_mean": None, "reward_std": None, "flat_group_share": None}
    group = np.repeat(np.arange(len(groups)), [len(one.trajectories) for one in groups])
    lowest, highest = np.full(group.max() + 1, np.inf), np.full(group.max() + 1, -np.inf)
    np.minimum.at(lowest, group, scores)
    np.maximum.at(highest, group, scores)
    return {
        "reward_mean": float(np.mean(scores)),
        "reward_std": float(np.std(scores)),
        "flat_group_share": float(np.mean(lowest == highest)),
    }


def kl_to_base(results: Sequence[UpdateResult]) -> float:
    """KL(pi || p_base) in nats per token, by the estimator k3 on the sampled tokens; NaN without tokens or base."""
    pairs = [pair for result in results for pair in zip(result.token_logprobs, result.base_token_logprobs, strict=True)]
    if not sum(len(own) for own, _ in pairs):
        return math.nan
    d = np.concatenate([base.astype(np.float64) - own for own, base in pairs]).clip(max=LARGEST_LOG)
    return float(np.mean(np.expm1(d) - d))


def effective_sample_size(raw_ratio: torch.Tensor) -> float:
    """(sum w)^2 / (n sum w^2) of the raw importance ratios: 1 on-policy, towards 1/n when one response dominates.

    NaN where the largest has under- or overflowed.
    """
    weights = raw_ratio / raw_ratio.max()  # whose squares do neither
    return float(weights.sum() ** 2 / (len(weights) * (weights**2).sum()))


def slope_within_groups(results: Sequence[UpdateResult], penalties: Sequence[torch.Tensor] | None = None) -> float:
    """Least-squares slope of mean log pi on mean log p_base, each centred in its group; NaN without variation.

    penalties: psi of the trajectories of each result. Those that have one are left out: the target shifts them. So are
    updates that were skipped.
    """
    covariance = variance = 0.0
    for result, penalty in itertools.zip_longest(results, penalties or ()):
        if result.skipped:
            continue
        free = torch.ones_like(result.group, dtype=torch.bool) if penalty is None else penalty == 0
        group, per_token = result.group[free], result.length[free].clamp(min=1)
        x = _centred(result.base_logprob[free] / per_token, group)
        y = _centred(result.logprob[free] / per_token, group)
        covariance += float((x * y).sum())
        variance += float((x * x).sum())
    return covariance / variance if variance > 1e-12 else math.nan


def _centred(values: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Subtract the mean of its group from each value."""
    count = torch.bincount(group).double()
    return values - (torch.zeros_like(count).index_add(0, group, values) / count)[group]


def repetition(responses: Sequence[np.ndarray]) -> float:
    """Mean share of 4-grams that occurred before in the same response; responses of 4 tokens or fewer count as 0."""
    return float(np.mean([_repeated_share(ids) for ids in responses]))


def _repeated_share(ids: np.ndarray) -> float:
    if len(ids) <= GRAM:
        return 0.0
    grams = np.lib.stride_tricks.sliding_window_view(ids.astype(np.uint64), GRAM)
    hashes = grams @ (np.uint64(0x9E3779B97F4A7C15) ** np.arange(GRAM, dtype=np.uint64))  # modulo 2^64
    return 1 - len(np.unique(hashes)) / len(grams)


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: allocated on a GPU, the process's resident set on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # where getrusage would also count what the parent held when it started this process
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
