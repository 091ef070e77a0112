"""What each of several gloo ranks does in the tests, beside the same on one."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.multiprocessing

from fastflow.config.methods import OFFLINE
from fastflow.config.model_sections import ResidualStream
from fastflow.config.schema import (
    BatchConfig,
    Config,
    ImportanceConfig,
    LoraConfig,
    ObjectiveConfig,
    OptimConfig,
    ReleasedConfig,
    SurrogateConfig,
)
from fastflow.config.setting import Section
from fastflow.data.trajectory import Group
from fastflow.models.cut.parallel import part, whole
from fastflow.models.cut.sharding import mesh_of, shard_models
from fastflow.models.opening import with_adapters
from fastflow.models.packed import AdaptersOff, FrozenModel, PackedModel
from fastflow.models.ranks import PATIENCE, Ranks, join, leave
from fastflow.models.share import rescore
from fastflow.objectives.answers import NO_ANSWER
from fastflow.objectives.label_free_rewards import empo
from fastflow.train.finite import NonFiniteError
from fastflow.train.learner import Learner
from small_models import CARRYING, MIXTURES, make_causal_lm, make_groups

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

GRADIENT = 1e-5  # relative, of the whole gradient
WEIGHTS = 1e-5  # relative, after five updates


def spawn(count: int, work: Callable[[Ranks], None]) -> None:
    """Do the work on `count` ranks, each in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(run_rank, args=(count, port, work), nprocs=count)


def run_rank(rank: int, count: int, port: int, work: Callable[[Ranks], None]) -> None:
    """Be one of `count` ranks, as torchrun would start it, and do the work."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    ranks = join(on_cuda=False, timeout=60)
    try:
        work(ranks)
        ranks.max(0)  # nobody leaves before the others are done
    finally:
        leave()
    os._exit(0)  # torch's threads may abort a rank at exit, where another ended first


def adapted(model: PreTrainedModel, rank: int) -> PeftModel:
    """Add adapters that are not the base: LoRA starts them at zero."""
    found = with_adapters(model, LoraConfig(rank=rank))
    for name, parameter in found.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return found


def make_learner(
    ranks: Ranks,
    *,
    family: str = "llama",
    log_z: str = "group_mean",
    tied: bool = True,
    rank: int = 0,
    tokens: int = 40,
    checkpointed: bool = False,
    autocast: bool = False,
    residual_stream: ResidualStream = "float32",
    method: dict[str, Section] | None = None,
) -> Learner:
    sections = method or {
        "objective": ObjectiveConfig(alpha=2.0, log_z=log_z), "importance": ImportanceConfig(ratio="token_mean")
    }  # fmt: skip
    config = Config(
        **sections,  # type: ignore[arg-type]
        batch=BatchConfig(tokens_per_microbatch=tokens),
        optim=OptimConfig(lr=1e-3, max_grad_norm=1.0),
    )
    model = make_causal_lm(family, tied=tied)
    if checkpointed:
        from fastflow.models.layers.decoder_layers import arrange_layers

        arrange_layers(model, checkpoint_share=0.5)
    if rank:
        model = adapted(model, rank)
    types: dict[str, Any] = {"autocast": autocast, "residual_stream": residual_stream}
    policy = PackedModel(model, **types)
    base = AdaptersOff(policy) if rank else FrozenModel(make_causal_lm(family, tied=tied, seed=1), **types)
    if config.objective.name in OFFLINE:
        base = None
    shard_models(policy, base, ranks)
    torch.manual_seed(0)  # the log_z head
    return Learner(policy, base, config, total_updates=10)


def state_of(learner: Learner) -> dict[str, list[torch.Tensor]]:
    """Whole gradients and weights of all that is trained."""
    trained = [one for group in learner.optimizer.param_groups for one in group["params"]]
    return {
        "gradient": [whole(one.grad).clone() for one in trained if one.grad is not None],
        "weights": [whole(one).clone() for one in trained],
    }


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    """The distance of all tensors together, relative to their norm."""
    assert len(found) == len(expected)
    pairs = [(one.double(), other.double()) for one, other in zip(found, expected, strict=True)]
    norm = torch.stack([other.norm() for _, other in pairs]).norm()
    error = torch.stack([(one - other).norm() for one, other in pairs]).norm()
    assert norm > 0
    assert error <= tolerance * norm, float(error / norm)


def few(groups: list[Group], count: int) -> list[Group]:
    """The first trajectories only, as many as `count`."""
    return [replace(groups[0], trajectories=groups[0].trajectories[:count])]


def check_updates(
    ranks: Ranks, *, groups: list[Group], updates: int = 1, reward: torch.Tensor | None = None, **options
) -> None:
    """Updates on all ranks equal those on one: gradient, weights and all that the result says, on every rank."""
    one, several = make_learner(Ranks(), **options), make_learner(ranks, **options)
    for number in range(updates):
        expected, result = one.update(groups, reward=reward), several.update(groups, reward=reward)
        if number == 0:
            assert_close(state_of(several)["gradient"], state_of(one)["gradient"], GRADIENT)
        assert np.isclose(result.loss, expected.loss, rtol=1e-4), (result.loss, expected.loss)
        assert np.isclose(result.grad_norm, expected.grad_norm, rtol=1e-4)
        assert result.tokens == expected.tokens
        for name in ("logprob", "base_logprob", "residual", "log_z", "importance", "raw_ratio", "length", "group"):
            torch.testing.assert_close(getattr(result, name), getattr(expected, name), rtol=1e-4, atol=1e-4,
                                       equal_nan=True)  # fmt: skip
        for name in ("token_logprobs", "base_token_logprobs"):
            for mine, theirs in zip(getattr(result, name), getattr(expected, name), strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
    assert_close(state_of(several)["weights"], state_of(one)["weights"], WEIGHTS)
    digests = ranks.gather([float(tensor.double().sum()) for tensor in state_of(several)["weights"]])
    assert all(digest == digests[0] for digest in digests)


def all_learners(ranks: Ranks) -> None:
    """Every kind of learner, and every kind of share."""
    rng = np.random.default_rng(0)
    groups = make_groups(rng)
    for log_z in ("group_mean", "learned"):
        for tied in (True, False):
            check_updates(ranks, groups=groups, log_z=log_z, tied=tied)
    check_updates(ranks, groups=groups, log_z="learned", updates=5)
    check_updates(ranks, groups=groups, log_z="learned", rank=2, updates=5)
    check_updates(ranks, groups=groups, tokens=1)  # a micro-batch for each trajectory, uneven for most counts
    check_updates(ranks, groups=few(groups, 1), log_z="learned")  # all ranks but one have nothing
    check_updates(ranks, groups=few(groups, 2), log_z="learned", tied=False)
    check_updates(ranks, groups=groups, checkpointed=True)
    check_updates(ranks, groups=groups, family="qwen3_5_text", updates=2)
    for family in MIXTURES:
        check_updates(ranks, groups=groups, checkpointed=True, family=family)
    check_methods(ranks, groups)
    check_autocast(ranks, groups)
    for family in MIXTURES:
        check_autocast(ranks, groups, family=family)
    check_decay(ranks, groups)
    check_recomputed(ranks, groups)
    check_non_finite(ranks, groups)


def replicated_learners(ranks: Ranks) -> None:
    """Two replicas: what differs from one is where gradients are summed, and where weights are."""
    ranks, groups = replace(ranks, replicas=2), make_groups(np.random.default_rng(0))
    check_updates(ranks, groups=groups, log_z="learned", tied=False, updates=5)
    check_updates(ranks, groups=groups, log_z="learned", rank=2)
    check_updates(ranks, groups=few(groups, 1))  # one replica has nothing at all
    check_updates(replace(ranks, replicas=ranks.count), groups=groups)  # nothing is cut
    weight = make_learner(ranks).policy.parameters()[0]
    assert len(part(weight)) == len(weight) // (ranks.count // 2)
    check_autocast(ranks, groups)
    check_patience(ranks)


def check_patience(ranks: Ranks) -> None:
    """The groups of replicas wait as long as the watch wants, not as long as torch's default."""
    mesh = mesh_of(ranks, torch.device("cpu"))
    for dimension in range(mesh.ndim):
        backend = mesh.get_group(dimension)._get_backend(torch.device("cpu"))
        assert backend.options._timeout.total_seconds() == PATIENCE


def near_policy(groups: list[Group]) -> list[Group]:
    """The same responses, drawn from distributions near the policy's."""
    rng = np.random.default_rng(1)
    return [
        replace(group, trajectories=tuple(
            replace(one, behaviour_logprobs=one.behaviour_logprobs + rng.normal(0, 0.2, len(one)).astype(np.float32))
            for one in group.trajectories
        ))
        for group in rescore(make_learner(Ranks()).policy, groups, 40)
    ]  # fmt: skip


def check_methods(ranks: Ranks, groups: list[Group]) -> None:
    """The compared methods: what is known of each token, and of each group, is the same on all ranks.

    In a second update, ratios and certainties are those of other weights.
    """
    groups = near_policy(groups)  # or hardly any token would pass the clip
    places = range(sum(len(group.trajectories) for group in groups))
    right = [float(place % 3 == 0) for place in places]
    shares = empo([NO_ANSWER if place % 4 == 0 else place // 2 for place in places], [4] * (len(places) // 4))
    assert 0 < sum(right) < len(right) and sum(shares) > 0

    def check(objective: ObjectiveConfig, of: list[Group] = groups, **options) -> None:
        surrogate = options.pop("surrogate", SurrogateConfig())
        check_updates(ranks, groups=of, method={"objective": objective, "surrogate": surrogate}, **options)

    grpo = ObjectiveConfig(name="grpo", reward="answer")
    check(grpo, surrogate=SurrogateConfig(kl=0.1), reward=torch.tensor(right), updates=2)
    per_response = SurrogateConfig(ratio="token_mean", average="sequence_mean")
    check(ObjectiveConfig(name="empo"), surrogate=per_response, reward=torch.tensor(shares))
    check(ObjectiveConfig(name="intuitor"), updates=2)
    check(ObjectiveConfig(name="intuitor"), few(groups, 2), tokens=1)  # the third of three ranks has nothing
    released = ReleasedConfig(
        token_mask=True, log_z_offset=0.36, log_z_prompt="without_last", log_z_dropout=0.1, log_z_rate="policy"
    )
    for of in (groups, few(groups, 1)):
        method: dict[str, Section] = {"objective": ObjectiveConfig(alpha=2.0), "released": released}
        check_updates(ranks, groups=of, method=method, updates=3)
    check(ObjectiveConfig(name="distil"), updates=2)
    check(ObjectiveConfig(name="distil", distil_average="token_mean"), updates=2)
    check(ObjectiveConfig(name="distil", distil_average="sequence_mean"), few(groups, 1))


def check_recomputed(ranks: Ranks, groups: list[Group]) -> None:
    one, several = make_learner(Ranks()), make_learner(ranks)
    expected, found = (rescore(learner.policy, groups, 40) for learner in (one, several))
    for mine, theirs in zip(found, expected, strict=True):
        for left, right in zip(mine.trajectories, theirs.trajectories, strict=True):
            np.testing.assert_allclose(left.behaviour_logprobs, right.behaviour_logprobs, rtol=1e-5, atol=1e-5)


def check_autocast(ranks: Ranks, groups: list[Group], *, family: str = "llama") -> None:
    """In bfloat16 the ranks differ from one by less than one differs from float32, whatever the residual stream is."""
    exact = gradient_of(make_learner(Ranks(), family=family), groups)
    for stream in ("float32", "bfloat16"):
        one, several = (
            gradient_of(make_learner(of, autocast=True, residual_stream=stream, family=family), groups)
            for of in (Ranks(), ranks)
        )
        assert several.dtype == torch.float32
        assert (several - one).norm() <= (one - exact).norm(), ((several - one).norm(), (one - exact).norm())


def check_decay(ranks: Ranks, groups: list[Group]) -> None:
    """Ranks keep the rates of a state's decay in float32 under autocast: rounded, they would be another model's."""
    for family in CARRYING:
        one, several = (make_learner(of, family=family, autocast=True).policy for of in (Ranks(), ranks))
        expected, found = (rescore(policy, groups, 40) for policy in (one, several))
        for mine, theirs in zip(found, expected, strict=True):
            for left, right in zip(mine.trajectories, theirs.trajectories, strict=True):
                np.testing.assert_allclose(left.behaviour_logprobs, right.behaviour_logprobs, rtol=0, atol=1e-4)


def gradient_of(learner: Learner, groups: list[Group]) -> torch.Tensor:
    """The whole gradient of one update."""
    learner.update(groups)
    return torch.cat([tensor.flatten() for tensor in state_of(learner)["gradient"]])


def check_non_finite(ranks: Ranks, groups: list[Group]) -> None:
    """One bad trajectory, which one rank has, has all of them skip the update: nothing changes on any of them."""
    for bad in (torch.nan, -1e30):  # found before the policy runs, and by the loss alone
        learner = make_learner(ranks, log_z="learned")
        before = state_of(learner)["weights"]
        penalty = torch.zeros(12, dtype=torch.float64)
        penalty[3] = bad
        results = [learner.update(groups, penalty=penalty) for _ in range(3)]
        assert all(result.skipped for result in results)
        assert len(set(ranks.gather(results[0].skipped))) == 1, "the ranks say different things"
        assert learner.skips == (3, 3) and learner.updates == 0 and not learner.optimizer.state
        assert all(torch.equal(*pair) for pair in zip(state_of(learner)["weights"], before, strict=True))
        try:
            learner.update(groups, penalty=penalty)
        except NonFiniteError:
            pass
        else:
            raise AssertionError("a fourth update in a row was skipped")
        fresh = make_learner(ranks, log_z="learned")  # which never saw the bad batch
        for one in (learner, fresh):
            one.update(groups)
        pairs = zip(state_of(learner)["weights"], state_of(fresh)["weights"], strict=True)
        assert all(torch.equal(*pair) for pair in pairs) and learner.skips == (3, 0)
