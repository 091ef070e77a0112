"""The released code's switches: each against a group by hand, and all against the formulas in float64."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from fastflow.config.released import ReleasedConfig
from fastflow.config.schema import BatchConfig, Config, ImportanceConfig, ObjectiveConfig, OptimConfig
from fastflow.data.packing import pack
from fastflow.data.trajectory import Group, Prompt, Trajectory, flatten
from fastflow.models.packed import FrozenModel, PackedModel
from fastflow.models.share import Share, rescore
from fastflow.objectives.dropout import dropped, kept
from fastflow.objectives.flow import FlowObjective
from fastflow.objectives.known_tokens import KnownTokens
from fastflow.objectives.log_z import LearnedLogZ, LogZForm
from fastflow.objectives.masked_flow import MaskedFlow
from fastflow.objectives.objective import Facts
from fastflow.train.learner import Learner
from small_models import make_causal_lm, make_groups

WIDTH, ALPHA, PSI = 16, 3.0, -0.5
RELEASED = ReleasedConfig(
    token_mask=True, log_z_offset=0.36, log_z_prompt="without_last", log_z_dropout=0.1, log_z_rate="policy"
)


class KnownPolicy(PackedModel):
    """A policy whose log-probs are given, by the place of each response."""

    known: list[torch.Tensor]
    order: list[int]

    def logprobs(self, hidden, targets):
        return torch.cat([self.known[place] for place in self.order])


class TestTokenMaskByHand:
    # ratios of three responses, of which two share a prompt: the bounds are 0.8 and 1.28
    RATIOS = ((1.0, 1.5, 0.9), (0.7, 2.0), (1.2, 1.25))
    BASE = ((-1.0, -2.0, -3.0), (-1.0, -1.0), (-0.5, -1.5))
    LOG_Z = -0.36 * (ALPHA - 1)

    @pytest.fixture(params=["sequence", "token_mean"])
    def found(self, request):
        """The loss of these responses, their log-probs, and what importance.ratio is."""
        old = math.log(0.5)
        behaviour = [np.full(len(ratios), old, dtype=np.float32) for ratios in self.RATIOS]
        entries = [Trajectory(np.arange(1, len(one) + 1), one, "stop") for one in behaviour]
        prompts = Prompt(np.array([1, 2])), Prompt(np.array([3]))
        groups = [Group(prompts[0], tuple(entries[:2])), Group(prompts[1], tuple(entries[2:]))]
        policy = KnownPolicy(make_causal_lm())
        (batch,) = pack(groups, 10**6)
        policy.order = batch.sequences.tolist()
        policy.known = [torch.tensor(ratios).log().add(old).requires_grad_() for ratios in self.RATIOS]
        base = torch.cat([torch.tensor(self.BASE[place]) for place in policy.order])
        tokens = KnownTokens(policy, Share.of(policy, groups, 10**6), groups, [base])
        facts = Facts(
            length=torch.tensor([3.0, 2.0, 2.0]).double(),
            base_logprob=torch.tensor([sum(one) for one in self.BASE]).double(),
            penalty=torch.tensor([PSI, 0.0, 0.0]).double(),
            reward=torch.zeros(3).double(),
            group=torch.tensor([0, 0, 1]),
            behaviour_logprob=torch.tensor([3 * old, 2 * old, 2 * old]).double(),
            known_tokens=lambda: tokens,
            left_out=torch.zeros(3).bool(),
        )
        config = Config(
            objective=ObjectiveConfig(alpha=ALPHA), importance=ImportanceConfig(ratio=request.param), released=RELEASED
        )
        loss_of = MaskedFlow(config, policy).losses(policy, facts)
        return loss_of(torch.zeros(batch.tokens, policy.hidden_size), batch), policy, request.param

    def expected(self, ratio):
        """(weight, residual, tokens that stay) of each response."""
        old, first, last = math.log(0.5), math.log(0.9), math.log(1.5)
        residual = [
            self.LOG_Z + old + first / 2 - ALPHA * ((-1 - 3) / 2 + PSI),
            0.0,  # no token stays
            self.LOG_Z + old + last / 2 - ALPHA * ((-0.5 - 1.5) / 2),
        ]
        weight = [0.9, 1.0, 1.28] if ratio == "sequence" else [0.9**0.5, 1.0, 1.5**0.5]
        return weight, residual, [2, 0, 2]

    def test_loss_residual_and_weight(self, found):
        output, policy, ratio = found
        weight, residual, _ = self.expected(ratio)
        assert output.importance[np.argsort(policy.order)].tolist() == pytest.approx(weight, rel=1e-6)
        assert output.residual[np.argsort(policy.order)].tolist() == pytest.approx(residual, rel=1e-6)
        assert output.log_z.tolist() == pytest.approx([self.LOG_Z] * 3)
        loss = sum(w * delta**2 for w, delta in zip(weight, residual, strict=True)) / 3
        assert float(output.loss.detach()) == pytest.approx(loss, rel=1e-6)

    def test_ratios_of_all_tokens(self, found):
        output, policy, ratio = found
        raw = output.raw_ratio[np.argsort(policy.order)].tolist()
        power = [1 if ratio == "sequence" else 1 / len(ratios) for ratios in self.RATIOS]
        assert raw == pytest.approx([math.prod(one) ** p for one, p in zip(self.RATIOS, power, strict=True)], rel=1e-6)
        changed = (output.importance != output.raw_ratio)[np.argsort(policy.order)]
        assert changed.tolist() == [True, True, ratio == "sequence"]  # masked, masked, clipped

    def test_gradient(self, found):
        output, policy, ratio = found
        output.loss.backward()
        for place, (weight, residual, stay) in enumerate(zip(*self.expected(ratio), strict=True)):
            stays = [0.8 <= one <= 1.28 for one in self.RATIOS[place]]
            slope = 2 * weight * residual / max(stay, 1) / 3
            assert policy.known[place].grad.tolist() == pytest.approx([slope * one for one in stays], rel=1e-5)


class TestOffset:
    @pytest.mark.parametrize(("alpha", "first"), [(4.0, -1.08), (0.5, 0.18), (1.0, 0.0)])
    def test_where_log_z_starts(self, rng, alpha, first):
        (batch,) = pack(make_groups(rng), 10**6)
        head = LearnedLogZ(WIDTH, LogZForm.of(ReleasedConfig(log_z_offset=0.36), alpha))
        head.calibrate(torch.tensor([7.0]))
        found = head(torch.randn(batch.tokens, WIDTH), batch)
        assert found.tolist() == pytest.approx([first] * len(batch.lengths))


class TestPromptWithoutLast:
    def test_equal_to_a_loop_over_the_prompts(self, rng):
        groups = [*make_groups(rng), Group(Prompt(np.array([5])), make_groups(rng, 1)[0].trajectories)]
        (batch,) = pack(groups, 10**6)
        hidden = torch.randn(batch.tokens, WIDTH)
        head = LearnedLogZ(WIDTH, LogZForm(without_last=True))
        torch.nn.init.normal_(head.out.weight)
        expected = []
        for start, length in zip(batch.cu_seqlens.tolist(), batch.prompt_lengths, strict=False):
            mean = hidden[start : start + max(length - 1, 1)].mean(0)
            expected.append(head.out(head.body(mean)).squeeze())
        assert 1 in batch.prompt_lengths and max(batch.prompt_lengths) > 2
        torch.testing.assert_close(head(hidden, batch), torch.stack(expected))


class TestDropout:
    SEEDS = torch.tensor([0, 1, 2, 2**62 + 5, 5])

    def test_by_hand(self):
        values = torch.arange(1.0, 11.0).repeat(5, 1)
        mask = kept(self.SEEDS, 10, 0.25, 1)
        found = dropped(values, self.SEEDS, 0.25, 1)
        assert torch.equal(found, torch.where(mask, values / 0.75, 0.0))

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
    def test_the_share_and_its_independence(self, share):
        """Over 200,000 units of as many as 200 seeds: of single units, and of pairs of rows, layers and neighbours."""
        seeds = torch.cat([torch.arange(100), torch.arange(100) * 2**32 + 7])
        mask = kept(seeds, 1000, share, 0).double()
        bound = 5 * (share * (1 - share) / 200_000) ** 0.5
        assert abs(float(mask.mean()) - (1 - share)) < bound
        assert float((mask.mean(1) - (1 - share)).abs().max()) < 5 * (share * (1 - share) / 1000) ** 0.5
        both = (1 - share) ** 2
        pair_bound = 5 * (both * (1 - both) / 200_000) ** 0.5
        for other in (mask.roll(1, 0), mask.roll(1, 1), kept(seeds, 1000, share, 1).double()):
            assert abs(float((mask * other).mean()) - both) < pair_bound

    def test_a_mask_follows_from_the_seed_alone(self):
        state = torch.random.get_rng_state()
        whole = kept(self.SEEDS, 64, 0.5, 0)
        for place, seed in enumerate(self.SEEDS):
            assert torch.equal(kept(seed[None], 64, 0.5, 0)[0], whole[place])
        assert len({tuple(row.tolist()) for row in whole}) == len(self.SEEDS)
        assert torch.equal(torch.random.get_rng_state(), state)


def make_learner(released=RELEASED, *, tokens=10**6, log_z="learned", **optim) -> Learner:
    config = Config(
        objective=ObjectiveConfig(alpha=ALPHA, log_z=log_z),
        batch=BatchConfig(tokens_per_microbatch=tokens),
        optim=OptimConfig(**{"lr": 1e-3, "max_grad_norm": 1e9, **optim}),
        released=released,
    )
    policy, base = PackedModel(make_causal_lm(seed=0)), FrozenModel(make_causal_lm(seed=1))
    torch.manual_seed(0)  # the log_z head
    learner = Learner(policy, base, config, total_updates=10)
    if log_z == "learned":
        torch.nn.init.normal_(learner.objective.log_z_head.out.weight)
    return learner


def off_policy(learner, rng, drift=0.15):
    """Groups whose behaviour log-probs differ from the policy's, so that some tokens are beyond the bounds."""
    return [
        Group(group.prompt, tuple(
            dataclasses.replace(
                entry, behaviour_logprobs=entry.behaviour_logprobs
                + drift * rng.standard_normal(len(entry)).astype(np.float32),
            )
            for entry in group.trajectories
        ))
        for group in rescore(learner.policy, make_groups(rng), 10**6)
    ]  # fmt: skip


def gradients(learner, groups, penalty) -> list[torch.Tensor]:
    learner.update(groups, penalty=penalty)
    trained = [*learner.policy.causal_lm.parameters(), *learner.objective.parameters()]
    return [torch.zeros_like(one) if one.grad is None else one.grad.clone() for one in trained]


def distance(found, expected) -> float:
    """Of all tensors together, relative to their norm."""
    error = sum(float((one - other).double().square().sum()) for one, other in zip(found, expected, strict=True))
    return math.sqrt(error / sum(float(one.double().square().sum()) for one in expected))


def loss_in_float64(learner, groups, penalty) -> tuple[torch.Tensor, list[torch.nn.Parameter], list[int]]:
    """The released loss by its formulas, response by response, and what it is differentiated for; with how many tokens
    of each response stay.
    """
    model, base = (copy.deepcopy(one.causal_lm).double() for one in (learner.policy, learner.base))
    head, released = copy.deepcopy(learner.objective.log_z_head).double(), learner.config.released
    for one in (model, base):
        one.config._attn_implementation = "eager"
    loss, stay = torch.zeros((), dtype=torch.float64), []
    pairs = [(group.prompt, entry) for group in groups for entry in group.trajectories]
    for (prompt, entry), psi in zip(pairs, penalty, strict=True):
        ids = torch.from_numpy(np.concatenate([prompt.ids, entry.response_ids]).astype(np.int64))
        start = len(prompt.ids)

        def tokens(lm, ids=ids, start=start):
            logits = lm(input_ids=ids[None], use_cache=False).logits[0, start - 1 : -1]
            return logits.log_softmax(1).gather(1, ids[start:, None])[:, 0]

        logprob, reference = tokens(model), tokens(base).detach()
        log_ratio = logprob.detach() - torch.from_numpy(entry.behaviour_logprobs).double()
        keep = torch.ones(len(entry), dtype=torch.bool)
        if released.token_mask:
            keep = (log_ratio.exp() >= 0.8) & (log_ratio.exp() <= 1.28)
        stay.append(int(keep.sum()))
        last = start - 1 if released.log_z_prompt == "without_last" and start > 1 else start
        features = model.model(input_ids=ids[None], use_cache=False).last_hidden_state[0, :last].mean(0)
        for layer in range(2):
            features = head.body[3 * layer : 3 * layer + 3](features)
            if released.log_z_dropout:
                mask = kept(torch.tensor([entry.seed]), len(features), released.log_z_dropout, layer)[0]
                features = features * mask / (1 - released.log_z_dropout)
        log_z = head.out(features)[0]
        if released.log_z_offset is not None:
            log_z = log_z - released.log_z_offset * (ALPHA - 1)
        if keep.any():
            delta = log_z + logprob[keep].mean() - ALPHA * (reference[keep].mean() + psi)
            loss = loss + log_ratio[keep].sum().exp().clamp(0.8, 1.28) * delta.square() / len(pairs)
    return loss, [*model.parameters(), *head.parameters()], stay


@pytest.mark.parametrize(
    "released",
    [
        RELEASED,
        ReleasedConfig(token_mask=True, log_z_offset=0.0),
        ReleasedConfig(log_z_offset=0.36),
        ReleasedConfig(log_z_offset=0.0, log_z_prompt="without_last"),
        ReleasedConfig(log_z_offset=0.0, log_z_dropout=0.3),
        ReleasedConfig(log_z_offset=0.0, log_z_rate="policy"),
    ],
    ids=["all", "mask", "offset", "prompt", "dropout", "rate"],
)
def test_gradient_against_float64(released, rng):
    learner = make_learner(released, tokens=40)
    groups = off_policy(learner, rng)
    penalty = torch.where(torch.arange(12) % 3 == 0, PSI, 0.0).double()
    loss, trained, stay = loss_in_float64(learner, groups, penalty)
    loss.backward()
    lengths = [len(entry) for entry in flatten(groups)]
    some = [0 < count < length for count, length in zip(stay, lengths, strict=True)]
    assert any(some) == released.token_mask  # or the mask would not be tried
    found = gradients(learner, groups, penalty)
    for one, exact in zip(found, trained, strict=True):
        expected = torch.zeros_like(exact) if exact.grad is None else exact.grad
        assert float((one - expected).norm()) <= 2e-5 * float(expected.norm()) + 1e-7


@pytest.mark.parametrize("tokens", [1, 40, 100])
def test_gradient_does_not_depend_on_micro_batches(tokens, rng):
    """Dropout and mask included."""
    groups = off_policy(make_learner(), rng)
    penalty = torch.zeros(12).double()
    whole, packed = (gradients(make_learner(tokens=size), groups, penalty) for size in (10**6, tokens))
    assert distance(packed, whole) < 1e-5


@pytest.mark.parametrize("log_z", ["learned", "group_mean"])
def test_on_policy_the_mask_changes_nothing(log_z, rng):
    groups = rescore(make_learner(ReleasedConfig()).policy, make_groups(rng), 10**6)
    penalty = torch.where(torch.arange(12) % 3 == 0, PSI, 0.0).double()
    masked, plain = (make_learner(ReleasedConfig(token_mask=mask), log_z=log_z) for mask in (True, False))
    assert type(masked.objective) is MaskedFlow and type(plain.objective) is FlowObjective
    assert distance(gradients(masked, groups, penalty), gradients(plain, groups, penalty)) < 1e-5


class TestRate:
    def test_log_z_learns_at_the_policys_rate(self):
        slow = make_learner(ReleasedConfig(log_z_rate="policy"), lr=1e-6)
        assert [group["lr"] for group in slow.optimizer.param_groups] == [1e-6, 1e-6]
        assert [group["lr"] for group in make_learner(ReleasedConfig(), lr=1e-6).optimizer.param_groups] == [1e-6, 1e-3]

    @pytest.mark.parametrize("rate", ["own", "policy"])
    def test_the_gradient_bound(self, rate, rng):
        """One norm over policy and log_z where they share it, and otherwise one for each."""
        bound, changed = 1e-3, ReleasedConfig(log_z_offset=0.36, log_z_rate=rate)
        free, bounded = make_learner(changed), make_learner(changed, max_grad_norm=bound)
        groups, penalty = off_policy(free, rng), torch.zeros(12).double()
        before, after = gradients(free, groups, penalty), gradients(bounded, groups, penalty)
        count = len(list(free.policy.causal_lm.parameters()))

        def norm(part):
            return math.sqrt(sum(float(one.square().sum()) for one in part))

        assert min(norm(before[:count]), norm(before[count:])) > 10 * bound
        if rate == "own":
            assert norm(after[:count]) == pytest.approx(bound, rel=1e-3)
            assert norm(after[count:]) == pytest.approx(bound, rel=1e-3)
        else:
            assert norm(after) == pytest.approx(bound, rel=1e-3)
            assert norm(after[:count]) / norm(after[count:]) == pytest.approx(
                norm(before[:count]) / norm(before[count:])
            )
