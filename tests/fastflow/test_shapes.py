"""Shapes in the types of public functions: refused where they are wrong, in tests alone."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastflow.config.schema import ObjectiveConfig
from fastflow.data.packing import pack
from fastflow.data.trajectory import Prompt, Trajectory
from fastflow.models.packed import PackedModel
from fastflow.models.scoring import sum_per_sequence, to_flat_order
from fastflow.objectives.judging import Judgement, normalise_rewards
from fastflow.objectives.known_tokens import Certainty
from fastflow.objectives.log_z import LearnedLogZ, group_mean
from fastflow.objectives.objective import Evidence, Facts, MicrobatchLoss
from fastflow.objectives.policy_gradient import advantages, surrogate
from fastflow.objectives.policy_rewards import rent
from fastflow.objectives.trajectory_balance import powerflow
from small_models import make_causal_lm, make_groups


@pytest.fixture
def batch():
    (batch,) = pack(make_groups(np.random.default_rng(0)), 10**9)
    return batch


def wrong_calls(batch):
    """One call for each checked module that only its shapes or types make wrong."""
    ids, one, two, three = np.arange(3), *(torch.ones(size, dtype=torch.float64) for size in (1, 2, 3))
    sequences = torch.ones(len(batch.lengths))
    policy = PackedModel(make_causal_lm())
    hidden = torch.ones(batch.tokens, policy.hidden_size)
    loss = dict.fromkeys(("logprob", "residual", "importance", "raw_ratio"), sequences)
    return {
        "rows and targets": lambda: replace(batch, rows=batch.rows[:-1]),
        "boundaries and sequences": lambda: replace(batch, cu_seqlens=batch.cu_seqlens[:-1]),
        "type of boundaries": lambda: replace(batch, cu_seqlens=batch.cu_seqlens.long()),
        "prompt of floats": lambda: Prompt(np.ones(3)),
        "tokens and log-probs": lambda: Trajectory(ids, np.zeros(2, dtype=np.float32), "stop"),
        "hidden states in a batch": lambda: policy.head_inputs(hidden[None]),
        "a column to sum": lambda: sum_per_sequence(torch.ones(len(batch.rows), 1), batch),
        "a column to order": lambda: to_flat_order([batch], [sequences[:, None]]),
        "trajectories": lambda: Evidence(three, three, three, two),
        "groups of trajectories": lambda: Facts(
            two, two, two, two, torch.zeros(3).long(), two, lambda: None, torch.zeros(2).bool()
        ),
        "means over tokens": lambda: Certainty(two, three),
        "rewards and groups": lambda: advantages(three, torch.zeros(2).long(), divide_by_std=True),
        "log-probs and advantages": lambda: surrogate(three, three, two, (3,), "token", 0.2, 0.28),
        "rewards of the policy": lambda: rent("facts", ObjectiveConfig()),
        "loss of a batch": lambda: MicrobatchLoss(loss=one, token_logprob=three, log_z=sequences, **loss),
        "sequences of a batch": lambda: MicrobatchLoss(loss=one[0], token_logprob=three, log_z=sequences[1:], **loss),
        "rewards": lambda: normalise_rewards(torch.ones(2, 1), [2]),
        "float32 evidence": lambda: powerflow(Evidence(*[two.float()] * 4), ObjectiveConfig()),
        "log_z of one token": lambda: LearnedLogZ(policy.hidden_size)(hidden[0], batch),
        "members of groups": lambda: group_mean(three, torch.zeros(2).long()),
        "judged responses": lambda: Judgement(["a"], None, one, two, None),
    }


def test_a_wrong_shape_is_refused_while_tests_run(batch):
    for name, call in wrong_calls(batch).items():
        with pytest.raises(TypeError, match="Type-check error"):
            call()
            pytest.fail(f"{name} passed")


def test_a_plain_process_checks_nothing():
    """Neither the hook nor beartype is there, so that a run pays nothing."""
    code = (
        "import sys, numpy as np, fastflow.objectives.flow, fastflow.models.scoring\n"
        "from fastflow.data.trajectory import Trajectory\n"
        "Trajectory(np.arange(3), np.zeros(2), 'stop')\n"
        "sys.exit('beartype is loaded' if 'beartype' in sys.modules else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
