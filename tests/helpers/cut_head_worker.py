"""What each of several gloo ranks does with a head that stays cut, beside the same with a whole one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fastflow.config.model_sections import ResidualStream
from fastflow.config.schema import BatchConfig, Config, ImportanceConfig, ObjectiveConfig, OptimConfig
from fastflow.data.packing import pack
from fastflow.data.trajectory import Group, Trajectory
from fastflow.models.cut.head import rows_of_each
from fastflow.models.cut.parallel import part, whole
from fastflow.models.cut.rows import OwnPart, RowsOfRanks
from fastflow.models.cut.sharding import shard_models
from fastflow.models.packed import AdaptersOff, FrozenModel, PackedModel
from fastflow.models.ranks import Ranks
from fastflow.models.scoring import token_logprobs
from fastflow.models.self_check import check_head
from fastflow.models.share import rescore
from fastflow.models.weights.frozen_weights import hold_in_bfloat16
from fastflow.train.learner import Learner
from rank_worker import GRADIENT, WEIGHTS, adapted, assert_close, few, gradient_of, state_of
from small_models import make_causal_lm, make_groups

VOCABULARY = 41  # which neither 2 nor 3 ranks cut evenly


def make_learner(
    ranks: Ranks, head: str = "cut", *, name: str = "powerflow", log_z: str = "learned", rank: int = 0,
    tokens: int = 40, autocast: bool = False, residual_stream: ResidualStream = "float32", bias: bool = False,
    tied: bool = False, family: str = "llama", held: bool = False,
) -> Learner:  # fmt: skip
    """held: the base is held in bfloat16, whose numbers are those of its weights."""
    alpha = 2.0 if name == "powerflow" else 1.0
    objective = ObjectiveConfig(name=name, alpha=alpha, log_z=log_z, reward="answer" if name == "grpo" else None)
    config = Config(
        objective=objective,
        batch=BatchConfig(tokens_per_microbatch=tokens),
        importance=ImportanceConfig(ratio="token_mean") if name == "powerflow" else ImportanceConfig(),
        optim=OptimConfig(lr=1e-3, max_grad_norm=1.0),
    )
    model = make_causal_lm(family, tied=tied, vocab_size=VOCABULARY)
    if bias:
        model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, VOCABULARY))
    if rank:
        model = adapted(model, rank)
    types: dict[str, Any] = {"autocast": autocast, "residual_stream": residual_stream}
    policy = PackedModel(model, **types)
    base: FrozenModel | AdaptersOff | None = AdaptersOff(policy) if rank else None
    if not rank and name != "distil":
        frozen = make_causal_lm(family, tied=tied, vocab_size=VOCABULARY, seed=1)
        if held:
            hold_in_bfloat16(frozen, torch.Tensor.bfloat16)
        base = FrozenModel(frozen, **types)
    shard_models(policy, base, ranks, head=head)
    torch.manual_seed(0)  # the log_z head
    return Learner(policy, base, config, total_updates=10)


def check_updates(ranks: Ranks, *, groups: list[Group], updates: int = 1, reward=None, **options) -> None:
    """Updates with a head that is cut equal those on one rank: gradient, weights, and all that the result says."""
    one, several = make_learner(Ranks(), **options), make_learner(ranks, **options)
    for number in range(updates):
        expected, result = one.update(groups, reward=reward), several.update(groups, reward=reward)
        assert not result.skipped
        if number == 0:
            assert_close(state_of(several)["gradient"], state_of(one)["gradient"], GRADIENT)
        assert np.isclose(result.loss, expected.loss, rtol=1e-4, atol=1e-7), (result.loss, expected.loss)
        assert np.isclose(result.grad_norm, expected.grad_norm, rtol=1e-4)
        for field in ("logprob", "base_logprob", "residual", "log_z", "importance", "raw_ratio"):
            pair = getattr(result, field), getattr(expected, field)
            torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4, equal_nan=True)
        for mine, theirs in zip(result.token_logprobs, expected.token_logprobs, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
    assert_close(state_of(several)["weights"], state_of(one)["weights"], WEIGHTS)


def all_cut_heads(ranks: Ranks) -> None:
    """Every kind of learner with a head that is cut, and every kind of share."""
    groups = make_groups(np.random.default_rng(0), vocab_size=VOCABULARY)
    check_what_is_held(ranks)
    check_updates(ranks, groups=groups, updates=5)
    check_updates(ranks, groups=groups, rank=2, updates=2)
    check_updates(ranks, groups=groups, tokens=1)  # a micro-batch for each trajectory, uneven for most counts
    check_updates(ranks, groups=few(groups, 1))  # all ranks but one have nothing
    check_updates(ranks, groups=with_an_empty_response(groups), bias=True)
    reward = torch.linspace(-1, 1, 12, dtype=torch.float64)
    check_updates(ranks, groups=groups, name="grpo", reward=reward)
    check_updates(ranks, groups=few(groups, 2), name="grpo", reward=reward[:2])
    check_updates(ranks, groups=groups, name="distil")
    check_updates(ranks, groups=groups, name="rent")  # from the statistics of each token
    check_updates(ranks, groups=groups, updates=5, tied=True)
    check_updates(ranks, groups=groups, rank=2, tied=True)
    check_updates(ranks, groups=few(groups, 1), tied=True)
    check_updates(ranks, groups=groups, updates=2, tied=True, family="gemma3_text")
    for family in ("llama", "gemma3_text"):
        check_lookups(ranks, family)
        check_a_base_that_is_held(ranks, groups, family)
    check_logits(ranks)
    check_statistics(ranks)
    check_upstream(ranks)
    check_autocast(ranks, groups)
    several, one = make_learner(ranks), make_learner(Ranks())
    expected, found = (rescore(learner.policy, groups, 40) for learner in (one, several))
    for mine, theirs in zip(found, expected, strict=True):
        for left, right in zip(mine.trajectories, theirs.trajectories, strict=True):
            np.testing.assert_allclose(left.behaviour_logprobs, right.behaviour_logprobs, rtol=1e-5, atol=1e-5)


def replicated_cut_heads(ranks: Ranks) -> None:
    """Two replicas, each with a head cut over its two ranks, whose gradients are summed over the replicas."""
    ranks, groups = replace(ranks, replicas=2), make_groups(np.random.default_rng(0), vocab_size=VOCABULARY)
    check_updates(ranks, groups=groups, updates=5)
    check_updates(ranks, groups=groups, rank=2)
    check_updates(ranks, groups=groups, tokens=1, bias=True)
    check_updates(ranks, groups=few(groups, 1))  # one replica has nothing at all
    check_updates(ranks, groups=groups, name="rent")
    check_updates(ranks, groups=groups, updates=2, tied=True)
    check_updates(replace(ranks, replicas=ranks.count), groups=groups, tied=True)  # nothing is cut
    check_logits(ranks)
    learner, sizes = make_learner(ranks), rows_of_each(VOCABULARY, 2)
    own = [len(part(one.lm_head.weight)) for one in (learner.policy.causal_lm, learner.base.causal_lm)]
    assert own == [sizes[ranks.rank % 2]] * 2


def with_an_empty_response(groups: list[Group]) -> list[Group]:
    nothing = Trajectory(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32), "length")
    return [replace(groups[0], trajectories=(nothing, *groups[0].trajectories[1:])), *groups[1:]]


def check_what_is_held(ranks: Ranks) -> None:
    """A rank holds its rows of head, gradient and moments, and no more; the root group has the head no longer."""
    learner = make_learner(ranks)
    head, sizes = learner.policy.causal_lm.lm_head, rows_of_each(VOCABULARY, ranks.count)
    learner.update(make_groups(np.random.default_rng(0), vocab_size=VOCABULARY))
    row, own = 32 * 4, sizes[ranks.rank]
    assert len(set(sizes)) == 2 and sum(sizes) == VOCABULARY
    state = learner.optimizer.state[head.weight]
    for tensor in (head.weight, head.weight.grad, state["exp_avg"], state["exp_avg_sq"]):
        assert tensor.shape == (VOCABULARY, 32)
        assert tensor.to_local().untyped_storage().nbytes() == own * row
    base_head = learner.base.causal_lm.lm_head.weight
    assert base_head.to_local().untyped_storage().nbytes() == own * row
    seen: list[int] = []

    def look() -> None:
        seen.append(head.weight.to_local().untyped_storage().nbytes())
        assert isinstance(learner.policy.causal_lm.get_input_embeddings().weight, torch.nn.Parameter)
        assert len(learner.policy.causal_lm.get_input_embeddings().weight) == VOCABULARY

    with torch.no_grad():
        learner.policy.run(look)
    assert seen == [own * row]


def random_rows(ranks: Ranks) -> tuple[torch.Tensor, torch.Tensor, slice]:
    """Hidden states and targets of all ranks, and the place of this rank's: none, 3, 6 and so on."""
    starts = [3 * rank * (rank - 1) // 2 for rank in range(ranks.count + 1)]
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(starts[-1], 32, generator=generator)
    targets = torch.randint(VOCABULARY, (starts[-1],), generator=generator)
    return hidden, targets, slice(starts[ranks.rank], starts[ranks.rank + 1])


def check_lookups(ranks: Ranks, family: str) -> None:
    """A tied embedding gives the rows of a whole one, for any number of tokens, and so does its gradient."""
    one, several = (make_learner(of, tied=True, family=family).policy.causal_lm for of in (Ranks(), ranks))
    assert several.get_input_embeddings().weight is several.lm_head.weight
    for count in (0, 5):  # the first rank has as many, the others more
        of_ranks = [torch.arange(count + 3 * rank).mul(7) % VOCABULARY for rank in range(ranks.count)]
        own = of_ranks[ranks.rank].view(1, -1)
        found, right = several.get_input_embeddings()(own), one.get_input_embeddings()(own)
        assert torch.equal(found, right)
        upstream = torch.linspace(-1, 1, 32)
        (found * upstream).sum().backward()
        (one.get_input_embeddings()(torch.cat(of_ranks)) * upstream).sum().backward()
        torch.testing.assert_close(whole(several.lm_head.weight.grad), one.lm_head.weight.grad)


def check_a_base_that_is_held(ranks: Ranks, groups: list[Group], family: str) -> None:
    """A cut embedding puts out float32 rows of bfloat16 weights, as a whole one does."""
    options = {"tied": True, "family": family, "autocast": True, "held": True}
    one, several = (make_learner(of, **options).base for of in (Ranks(), ranks))
    assert several.causal_lm.get_input_embeddings().weight.dtype == torch.bfloat16
    (batch,) = pack(groups, tokens_per_microbatch=10**6)
    found = several.run(lambda: several.logprobs(several.hidden_states(batch)[batch.rows], batch.targets))
    torch.testing.assert_close(found, token_logprobs(one, batch), rtol=1e-5, atol=1e-5)


def check_logits(ranks: Ranks) -> None:
    one, several = make_learner(Ranks(), bias=True).policy, make_learner(ranks, bias=True).policy
    for policy in (several, make_learner(ranks, tied=True).policy, make_learner(ranks, autocast=True).policy):
        assert check_head(policy, longest=64, name="it") < 0.01
    hidden, _, own = random_rows(ranks)
    with torch.no_grad():
        found = several.run(lambda: several.logits(hidden[own]))
        torch.testing.assert_close(found, one.logits(hidden[own]), rtol=1e-5, atol=1e-5)


def check_statistics(ranks: Ranks) -> None:
    """Entropy and logsumexp have the gradient that they have with a whole head."""
    one, several = make_learner(Ranks()).policy, make_learner(ranks).policy
    hidden, targets, own = random_rows(ranks)
    gradients = []
    for policy, place in ((one, slice(0, len(hidden))), (several, own)):
        rows = hidden[place].clone().requires_grad_()
        found = policy.statistics(rows, targets[place])
        upstream = torch.linspace(-1, 1, len(hidden))[place]
        (found.entropy * upstream + found.logsumexp * upstream.square()).sum().backward()
        weight = policy.causal_lm.lm_head.weight
        gradients.append((found, rows.grad, whole(weight.grad)))
    (expected, of_all, of_head), (found, of_own, cut) = gradients
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach()[own], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(of_own, of_all[own], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cut, of_head, rtol=1e-4, atol=1e-5)


def check_upstream(ranks: Ranks) -> None:
    """A sum's gradient is what the ranks that have rows pass, and NaN where they differ."""
    shard = make_learner(ranks).policy.cut_head.shard
    for counts, upstream, expected in (((3, 0, 2), 2.0, 2.0), ((1, 1, 1), float(ranks.rank + 1), torch.nan)):
        (rows,) = RowsOfRanks.ask(counts[ranks.rank], shard=shard)
        total = torch.tensor(7.0, requires_grad=True)
        part = OwnPart.apply(total, torch.tensor(3.0), rows)
        assert part == 3
        (part * (upstream if counts[ranks.rank] else 0)).backward()
        assert np.array_equal(total.grad.numpy(), np.float32(expected), equal_nan=True)


def check_autocast(ranks: Ranks, groups: list[Group]) -> None:
    """In bfloat16 the ranks differ from one by less than one differs from float32; the head's gradient is float32."""
    exact = gradient_of(make_learner(Ranks()), groups)
    for stream in ("float32", "bfloat16"):
        learner = make_learner(ranks, autocast=True, residual_stream=stream)
        one = gradient_of(make_learner(Ranks(), autocast=True, residual_stream=stream), groups)
        several = gradient_of(learner, groups)
        assert whole(learner.policy.causal_lm.lm_head.weight.grad).dtype == torch.float32
        assert (several - one).norm() <= (one - exact).norm(), ((several - one).norm(), (one - exact).norm())
