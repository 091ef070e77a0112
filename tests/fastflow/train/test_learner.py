"""One update: the same gradient however it is packed, the right residuals, and no step on a NaN."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import pytest
import torch

from fastflow.config.schema import BatchConfig, Config, ImportanceConfig, ObjectiveConfig, OptimConfig
from fastflow.data.trajectory import Group, flatten
from fastflow.models.packed import FrozenModel, PackedModel
from fastflow.models.scoring import behaviour_logprob
from fastflow.models.share import rescore
from fastflow.train.finite import NonFiniteError
from fastflow.train.learner import Learner, lr_factor
from small_models import make_causal_lm, make_groups


def make_learner(*, log_z="group_mean", tokens=10**6, policy_seed=0, updates=10, **changes) -> Learner:
    config = Config(
        objective=ObjectiveConfig(alpha=2.0, log_z=log_z),
        batch=BatchConfig(tokens_per_microbatch=tokens),
        importance=ImportanceConfig(ratio="token_mean"),
        optim=OptimConfig(lr=1e-3, max_grad_norm=1e9),
    )
    config = replace(config, **changes)
    policy, base = PackedModel(make_causal_lm(seed=policy_seed)), FrozenModel(make_causal_lm(seed=1))
    torch.manual_seed(0)  # the log_z head
    return Learner(policy, base, config, total_updates=updates)


def gradient(learner: Learner, groups) -> list[torch.Tensor]:
    """The gradient that an update sees."""
    learner.update(groups)
    parameters = [p for entry in learner.optimizer.param_groups for p in entry["params"]]
    return [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]


def assert_same_gradient(one, other, tolerance=1e-5):
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in one))
    error = math.sqrt(sum(float((a.double() - b.double()).square().sum()) for a, b in zip(one, other, strict=True)))
    assert norm > 0
    assert error <= tolerance * norm


@pytest.mark.parametrize("log_z", ["learned", "group_mean"])
@pytest.mark.parametrize("tokens", [1, 17, 40, 64, 200])
def test_gradient_does_not_depend_on_micro_batches(log_z, tokens, rng):
    groups = make_groups(rng)
    whole = gradient(make_learner(log_z=log_z), groups)
    packed = gradient(make_learner(log_z=log_z, tokens=tokens), groups)
    assert_same_gradient(whole, packed)


def test_the_fused_optimiser_steps_as_the_plain_one(device, rng):
    groups, weights = make_groups(rng), []
    for fused in (True, False):
        config = Config(optim=OptimConfig(lr=1e-2, weight_decay=0.1), batch=BatchConfig(tokens_per_microbatch=100))
        policy, base = PackedModel(make_causal_lm().to(device)), FrozenModel(make_causal_lm(seed=1).to(device))
        torch.manual_seed(0)  # the log_z head
        learner = Learner(policy, base, config, total_updates=10)
        assert all(group["fused"] for group in learner.optimizer.param_groups)
        if not fused:
            for group in learner.optimizer.param_groups:
                group["fused"] = group["foreach"] = False
        for _ in range(3):
            learner.update(groups)
        weights.append([parameter.detach().clone() for parameter in policy.parameters()])
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)
    assert any(
        (one - other).abs().max() > 1e-3
        for one, other in zip(weights[0], make_causal_lm().to(device).parameters(), strict=True)
    )


def test_matrices_decay_and_biases_and_norms_do_not():
    """Without a gradient, AdamW does nothing but decay."""
    lr, decay = 0.1, 0.5
    learner = make_learner(optim=OptimConfig(lr=lr, log_z_lr=lr, weight_decay=decay), log_z="learned")
    trained = [*learner.policy.parameters(), *learner.objective.parameters()]
    before = [parameter.detach().clone() for parameter in trained]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    learner.optimizer.step()
    assert {parameter.ndim for parameter in trained} == {1, 2}
    for parameter, old in zip(trained, before, strict=True):
        torch.testing.assert_close(parameter.detach(), old * (1 - lr * decay) if parameter.ndim == 2 else old)


@pytest.mark.parametrize("log_z", ["learned", "group_mean"])
def test_a_gradient_is_clipped_as_a_whole_with_and_without_decay(log_z, rng):
    """Groups of the optimiser are no bounds: the policy's gradient has one norm, and log_z's another."""
    groups, found = make_groups(rng), []
    for decay in (0.0, 0.1):
        learner = make_learner(log_z=log_z, optim=OptimConfig(lr=1e-3, max_grad_norm=1e-3, weight_decay=decay))
        result = learner.update(groups)
        policy = [parameter.grad for parameter in learner.policy.parameters()]
        assert float(torch.nn.utils.get_total_norm(policy)) == pytest.approx(1e-3, rel=1e-3)
        found.append((result.grad_norm, policy))
    assert found[0][0] == found[1][0] > 1e-3
    assert all(torch.equal(*pair) for pair in zip(found[0][1], found[1][1], strict=True))


@pytest.mark.parametrize("log_z", ["learned", "group_mean"])
def test_gradient_does_not_depend_on_packing_order(log_z, rng):
    groups = make_groups(rng)
    reordered = [Group(group.prompt, group.trajectories[::-1]) for group in reversed(groups)]
    assert_same_gradient(
        gradient(make_learner(log_z=log_z, tokens=50), groups),
        gradient(make_learner(log_z=log_z, tokens=50), reordered),
    )


def test_update_equals_the_formula(rng):
    """Residuals, weights and loss against the paper's formula on log-probs from a plain forward pass."""
    learner = make_learner()
    groups = make_groups(rng)
    logprob = behaviour_logprob(rescore(learner.policy, groups, 10**6))
    base = behaviour_logprob(rescore(learner.base, groups, 10**6))
    behaviour = behaviour_logprob(groups)
    length = torch.tensor([len(entry) for entry in flatten(groups)], dtype=torch.float64)
    penalty = torch.where(torch.arange(len(length)) % 3 == 0, -0.5, 0.0).double()
    result = learner.update(groups, penalty=penalty)

    target = 2.0 * (base / length + penalty)
    log_z = (target - behaviour / length).view(3, 4).mean(1).repeat_interleave(4)
    residual = log_z + logprob / length - target
    weight = ((logprob - behaviour) / length).exp().clamp(0.8, 1.28)
    torch.testing.assert_close(result.log_z, log_z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.residual, residual, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.importance, weight, rtol=1e-5, atol=1e-5)
    assert result.loss == pytest.approx(float((weight * residual**2).mean()), rel=1e-4)
    torch.testing.assert_close(result.logprob, logprob, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.base_logprob, base, rtol=1e-5, atol=1e-5)
    sums = torch.tensor([float(tokens.sum()) for tokens in result.base_token_logprobs], dtype=torch.float64)
    torch.testing.assert_close(sums, base, rtol=1e-4, atol=1e-4)


def test_policy_equal_to_base_at_alpha_one_is_at_rest(rng):
    """alpha = 1 changes nothing: with the policy at the base, every residual is 0."""
    learner = make_learner(policy_seed=1, objective=ObjectiveConfig(alpha=1.0, log_z="group_mean"))
    groups = rescore(learner.policy, make_groups(rng), 10**6)
    result = learner.update(groups)
    assert float(result.residual.abs().max()) < 1e-5
    assert result.loss < 1e-10


def test_learned_log_z_starts_at_the_first_batch_mean(rng):
    learner = make_learner(log_z="learned")
    groups = rescore(learner.policy, make_groups(rng), 10**6)
    result = learner.update(groups)
    assert float(result.residual.mean()) == pytest.approx(0, abs=1e-4)


def test_updates_lower_the_residual(rng):
    learner = make_learner(updates=40, optim=OptimConfig(lr=3e-3, max_grad_norm=1e9))
    groups = rescore(learner.policy, make_groups(rng), 10**6)
    losses = [learner.update(rescore(learner.policy, groups, 10**6)).loss for _ in range(40)]
    assert losses[-1] < 0.1 * losses[0]


def test_nan_stops_before_the_step(rng):
    learner = make_learner(optim=OptimConfig(lr=1e-3, max_skips=0))
    before = [parameter.clone() for parameter in learner.policy.parameters()]
    groups = make_groups(rng)
    with pytest.raises(NonFiniteError, match=r"the penalty of 12 of 12 .*weights were left.*lower optim\.lr"):
        learner.update(groups, penalty=torch.full((12,), float("nan"), dtype=torch.float64))
    for parameter, old in zip(learner.policy.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
    learner.update(groups)  # and the learner goes on


def test_empty_responses_contribute_nothing(rng):
    groups = make_groups(rng)
    empty = dataclasses.replace(
        groups[0].trajectories[0],
        response_ids=groups[0].trajectories[0].response_ids[:0],
        behaviour_logprobs=groups[0].trajectories[0].behaviour_logprobs[:0],
    )
    groups.append(Group(groups[0].prompt, (empty,)))
    result = make_learner().update(groups)
    assert math.isfinite(result.loss)
    assert result.length[-1] == 0 and result.logprob[-1] == 0


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [0.5, 1, 1, 1, 1]), ("linear", [0.5, 1, 1, 0.775, 0.55]), ("cosine", [0.5, 1, 1, 0.868198, 0.55])],
)
def test_learning_rate_course(schedule, expected):
    settings = OptimConfig(warmup_updates=2, schedule=schedule, final_lr_ratio=0.1)
    factors = [lr_factor(update, 10, settings) for update in (0, 1, 2, 4, 6)]
    assert factors == pytest.approx(expected, abs=1e-5)
    assert lr_factor(10, 10, settings) == pytest.approx(1.0 if schedule == "constant" else 0.1)


@pytest.mark.parametrize(("schedule", "last"), [("linear", 1 / 8), ("cosine", (1 + math.cos(math.pi * 7 / 8)) / 2)])
def test_the_last_update_still_learns(schedule, last):
    """As the setting says: its rate is the one before the course's end."""
    settings = OptimConfig(warmup_updates=2, schedule=schedule, final_lr_ratio=0)
    assert [lr_factor(update, 10, settings) for update in (9, 10)] == pytest.approx([last, 0])
    told = next(entry for entry in dataclasses.fields(OptimConfig) if entry.name == "final_lr_ratio").metadata
    assert "the rate after the last update" in str(told)


def test_gradient_clipping_bounds_the_norm(rng):
    learner = make_learner(optim=OptimConfig(lr=1e-3, max_grad_norm=0.01))
    result = learner.update(make_groups(rng))
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in learner.policy.parameters() if p.grad is not None))
    assert result.grad_norm > 0.01
    assert norm == pytest.approx(0.01, rel=1e-3)
