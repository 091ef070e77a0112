"""Prove after each weight load that another engine holds the trainer's weights: compare log-probs of a few tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fastflow.data.packing import pack
from fastflow.data.trajectory import Group, Prompt, Trajectory
from fastflow.errors import FastflowError
from fastflow.models.packed import PackedModel
from fastflow.models.scoring import token_logprobs

PROBE_TOKENS = 16
# Nats, mean over the tokens. Measured on a CPU, on models of 20,000 to 20 million parameters: 1e-5 and 0.03. The bound
# finds other weights; it does not find a missing small update.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3}
MAY_MEAN = (
    "a large difference points to other weights (an incomplete load, another model) or another vocabulary (another "
    "tokenizer, another padding of the head); a small difference points to another dtype than the trainer's {dtype}, a "
    "quantised engine, or other position embeddings or attention (rope scaling, sliding window)"
)


def probe_for(policy: PackedModel, context: int) -> np.ndarray:
    """Return the probe's token ids (P,): always the same, spread over the vocabulary."""
    return np.random.default_rng(0).integers(0, policy.vocab_size, max(2, min(PROBE_TOKENS, context - 1)))


def logprobs_of(policy: PackedModel, probe: np.ndarray) -> np.ndarray:
    """Return the trainer's log-probs (P - 1,) float64 of the probe's tokens after the first."""
    rest = Trajectory(probe[1:], np.zeros(len(probe) - 1, dtype=np.float32), "length")
    (batch,) = pack([Group(Prompt(probe[:1]), (rest,))], tokens_per_microbatch=10**9)
    with policy.eval_mode():
        return token_logprobs(policy, batch.to(policy.device)).double().cpu().numpy()


def check_agreement(
    theirs: Sequence[float], ours: np.ndarray, *, dtype: torch.dtype, engine: str, version: int
) -> float:
    """Return the mean difference in nats. Raises FastflowError with both numbers above the dtype's tolerance."""
    difference = np.abs(np.asarray(theirs, dtype=np.float64) - ours)
    worst = int(np.nan_to_num(difference, nan=np.inf).argmax())
    if not difference.mean() <= TOLERANCE[dtype]:
        raise FastflowError(
            f"after weight load {version}, {engine} gives token {worst + 1} of a probe the log-prob "
            f"{theirs[worst]:.4f} and the trainer {ours[worst]:.4f} (on average {difference.mean():.3g} nats apart, "
            f"{TOLERANCE[dtype]:g} are allowed); they do not hold the same model: {MAY_MEAN.format(dtype=_name(dtype))}"
            "; find out what differs, or sample with --rollout.engine local"
        )
    return float(difference.mean())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
