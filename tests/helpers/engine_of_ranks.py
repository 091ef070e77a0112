"""A stand-in for the vLLM process of each of several ranks, in the rank's own process, and what the ranks do with it.

It really takes the weights that it is given, into a model of its own, and answers the probe with them. Responses are a
function of prompt and seed.
"""

from __future__ import annotations

import logging
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastflow.config.schema import LoraConfig
from fastflow.data.trajectory import Prompt, flatten
from fastflow.errors import FastflowError
from fastflow.models.cut.parallel import part
from fastflow.models.cut.sharding import shard
from fastflow.models.opening import with_adapters
from fastflow.models.packed import PackedModel
from fastflow.models.ranks import FailedElsewhere, Ranks
from fastflow.models.weights.merging import adapted_layers
from fastflow.rollout import probe
from fastflow.rollout.sampler import Request, SamplingParams
from fastflow.rollout.schedule import OneAhead
from fastflow.rollout.vllm import kept_engine, messages
from fastflow.rollout.vllm import sampler as vllm_sampler
from fastflow.rollout.vllm import weights as vllm_weights
from fastflow.rollout.vllm.process import EngineLost
from fastflow.rollout.vllm.sampler import VllmSampler
from small_models import make_causal_lm

PARAMS = SamplingParams(max_response_tokens=4)
LORA = LoraConfig(rank=2, dropout=0.0)


class StandIn:
    """lost: commands at which the process dies, refused: at which vLLM refuses, each once and on this rank. made: all
    there were. asked: the names of the commands that it got.
    """

    lost: ClassVar[list[type]] = []
    refused: ClassVar[list[type]] = []
    made: ClassVar[list[StandIn]] = []
    tied: ClassVar[bool] = True

    def __init__(self, settings, **options):
        self.settings, self.on_progress = settings, options["on_progress"]
        self.asked: list[str] = []
        self.model = PackedModel(make_causal_lm(seed=9, tied=self.tied))
        self.weights: dict[str, torch.Tensor] = {}
        self.blocks, self.rounds, self.last = (), (), None
        self.made.append(self)
        self._fail(messages.Ready)

    def _fail(self, kind: type) -> None:
        if kind in self.lost:
            self.lost.remove(kind)
            raise EngineLost(f"it died at {kind.__name__}")
        if kind in self.refused:
            self.refused.remove(kind)
            raise FastflowError(f"it refuses {kind.__name__}")

    def send(self, message) -> None:
        number = {messages.Load: "round", messages.Commit: "is_partial"}.get(type(message))
        self.asked.append(type(message).__name__ + (f" {getattr(message, number)}" if number else ""))
        self._fail(type(message))
        self.last = message
        if isinstance(message, messages.Attach):
            self.blocks, self.rounds = message.blocks, message.rounds
        elif isinstance(message, messages.Load):
            for place in self.rounds[message.round]:
                weight = self.blocks[place.block][place.offset : place.offset + place.shape.numel()]
                self.weights[place.name] = weight.view(place.shape).clone()
        elif isinstance(message, messages.Adopt):
            self._adopt(load_file(f"{message.directory}/adapter_model.safetensors"))
        elif isinstance(message, messages.Commit):
            names = {name for name, _ in self.model.causal_lm.named_parameters()}
            assert message.is_partial or {name for name in self.weights if ".lora_" not in name} == {
                name.replace(".base_layer", "") for name in names if ".lora_" not in name
            }
            self.model.causal_lm.load_state_dict(
                {name if name in names else name.replace(".weight", ".base_layer.weight"): tensor
                 for name, tensor in self.weights.items()}, strict=False,
            )  # fmt: skip

    def _adopt(self, tensors) -> None:
        if self.model.model is self.model.causal_lm:
            self.model = PackedModel(with_adapters(self.model.causal_lm, LORA))
            self.model.model.eval()
        for name, layer in adapted_layers(self.model.causal_lm):
            for side in ("lora_A", "lora_B"):
                weight = getattr(layer, side)[layer.active_adapters[0]].weight
                weight.data.copy_(tensors[f"base_model.model.{name}.{side}.weight"])

    def wait_for(self, kind):
        if kind is messages.Probed:
            return messages.Probed(self._logprobs(self.last.ids))
        if kind is not messages.Sampled:
            return kind()
        self._fail(messages.Sampled)
        self.on_progress(len(self.last.seed))
        ids = [
            self.last.prompts[owner][-1] * 7 + seed for owner, seed in zip(self.last.owner, self.last.seed, strict=True)
        ]
        return messages.Sampled(
            np.array(ids, np.int64) % 40, np.full(len(ids), -1, np.float32), np.ones(len(ids), int),
            np.zeros(len(ids), bool), self._logprobs(self.last.probe),
        )  # fmt: skip

    def _logprobs(self, ids):
        return tuple(probe.logprobs_of(self.model, np.array(ids)))

    def end(self) -> None:
        self.asked.append("end")


def make_policy(ranks: Ranks, *, lora: bool = False, tied: bool = True) -> PackedModel:
    model = make_causal_lm(tied=tied)
    if lora:
        model = with_adapters(model, LORA)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    policy = PackedModel(model)
    shard(policy, ranks)
    return policy


def change(policy: PackedModel) -> None:
    """What an update does to this rank's part of the weights, whichever part that is."""
    for parameter in policy.parameters():
        part(parameter.data).mul_(1.5)
    policy.version += 1


def start(policy: PackedModel, **options) -> VllmSampler:
    StandIn.made, StandIn.lost, StandIn.refused = [], [], []
    StandIn.tied = policy.causal_lm.config.tie_word_embeddings
    return VllmSampler(policy, eos_ids=[0], context=40, **options)


def make_requests(count: int = 3, responses: int = 3) -> list[Request]:
    return [Request(Prompt(np.arange(1, 2 + n)), tuple(range(10 * n, 10 * n + responses))) for n in range(count)]


def responses_of(groups) -> list[tuple[int | None, int]]:
    return [(one.seed, int(one.response_ids[0])) for one in flatten(groups)]


def expected(requests) -> list[tuple[int, int]]:
    return [(seed, (int(one.prompt.ids[-1]) * 7 + seed) % 40) for one in requests for seed in one.seeds]


def fails(act, ranks: Ranks, *, rank: int, says: str) -> None:
    """All ranks end with what one of them was refused, which is named."""
    kind = FastflowError if ranks.rank == rank else FailedElsewhere
    with pytest.raises(kind, match=f"rank {rank}: .*{says}") as caught:
        act()
    assert caught.value.on_all_ranks


def all_of_vllm(ranks: Ranks) -> None:
    kept_engine.EngineProcess = StandIn
    vllm_sampler.check_installed = lambda: None
    for check in (gathers, loads_what_changes, samples_shares, replaces, refuses, sleeps, samples_ahead):
        check(ranks)
        ranks.max(0)


def gathers(ranks: Ranks) -> None:
    """The stand-in's log-probs agree, whatever is trained and however small the bucket; and its weights are those."""
    for options in ({}, {"tied": False}, {"lora": True}):
        for adapters in ("merge", "apply") if options.get("lora") else ("auto",):
            alone = PackedModel(make_policy(Ranks(), **options).model)
            policy = make_policy(ranks, **options)
            sampler = start(policy, adapters=adapters)
            for _ in range(2):
                for one in (alone, policy):
                    change(one)
                sampler.load_weights(policy)
                groups = sampler.sample(make_requests(), PARAMS)
                found, right = (probe.logprobs_of(one, np.arange(1, 20)) for one in (StandIn.made[0].model, alone))
                np.testing.assert_allclose(found, right, atol=1e-4)
                assert {one.weight_version for one in flatten(groups)} == {policy.version}
            sampler.close()


def loads_what_changes(ranks: Ranks) -> None:
    """A bucket never holds more than its bytes or one weight; frozen weights are gathered once."""
    vllm_weights.SharedWeights.__init__.__defaults__ = (10_000,)
    try:
        policy = make_policy(ranks, lora=True)
        for adapters in ("merge", "apply"):
            sampler = start(policy, adapters=adapters)
            weights, engine = sampler._engine.weights, StandIn.made[0]
            largest = max(one.numel() for one in policy.causal_lm.parameters()) * 4
            assert weights.rounds > 3
            assert sum(block.nbytes for block in weights.attach.blocks) <= max(10_000, largest)
            engine.asked.clear()
            change(policy)
            sampler.load_weights(policy)
            rounds = [name for name in engine.asked if name.startswith("Load")]
            assert (0 < len(rounds) < weights.rounds) if adapters == "merge" else not rounds
            assert engine.asked[-1] == "Commit True" and engine.asked[-2] == ("Adopt" if not rounds else rounds[-1])
            sampler.close()
    finally:
        vllm_weights.SharedWeights.__init__.__defaults__ = (vllm_weights.BUCKET_BYTES,)


def samples_shares(ranks: Ranks) -> None:
    finished: list[int] = []
    sampler = start(make_policy(ranks), on_progress=finished.append)
    for requests in (make_requests(), make_requests(1, 1), make_requests(5, 2)):
        finished.clear()
        assert responses_of(sampler.sample(requests, PARAMS)) == expected(requests)
        assert sum(finished) == sum(len(one.seeds) for one in requests)
    sampler.close()
    assert StandIn.made[0].asked[-1] == "end"


def replaces(ranks: Ranks) -> None:
    """A process that dies on one rank, on the other or on both is replaced there, whatever it was doing."""
    said: list[str] = []
    kept_engine.logger.setLevel(logging.WARNING)
    kept_engine.logger.warning = lambda form, *values: said.append(form % values)
    for kind in (messages.Load, messages.Commit, messages.Sample, messages.Sampled):
        for who in ((0,), (1,), (0, 1)):
            policy = make_policy(ranks)
            sampler = start(policy)
            said.clear()
            StandIn.lost = [kind] if ranks.rank in who else []
            if kind is messages.Sample and who == (1,) and ranks.rank == 1:
                StandIn.lost.append(messages.Ready)  # and once more while it starts
            change(policy)
            sampler.load_weights(policy)
            requests = make_requests()
            groups = sampler.sample(requests, PARAMS)
            assert responses_of(groups) == expected(requests) and not StandIn.lost
            assert (len(StandIn.made) > 1) == (ranks.rank in who), "a process was replaced that lived"
            restarts = [f"rank {rank}: it died at" in text for text in said for rank in who]
            assert bool(restarts) == ranks.is_first and len(said) >= len(who) * ranks.is_first
            sampler.close()
    del kept_engine.logger.warning


def refuses(ranks: Ranks) -> None:
    """Trouble that stays ends all ranks, and says on which it was."""
    policy = make_policy(ranks)
    sampler = start(policy, restarts=1)
    StandIn.lost = [messages.Sampled, messages.Ready] if ranks.rank == 1 else []
    again = "that was loss 2 in a row, and rollout.restarts = 1"
    fails(lambda: sampler.sample(make_requests(), PARAMS), ranks, rank=1, says=again)
    sampler.close()
    sampler = start(policy)
    StandIn.refused = [messages.Load] if ranks.rank == 0 else []
    fails(lambda: sampler.load_weights(policy), ranks, rank=0, says="it refuses Load")
    requests = make_requests()
    assert responses_of(sampler.sample(requests, PARAMS)) == expected(requests)
    if ranks.rank == 1:
        weight = next(iter(StandIn.made[0].model.causal_lm.parameters())).data
        weight.add_(torch.randn_like(weight))
    fails(lambda: sampler.sample(requests, PARAMS), ranks, rank=1, says="they do not hold the same model")
    sampler.close()
    StandIn.refused = []
    with pytest.raises(FastflowError, match="frees nothing on a CPU"):
        start(policy, sleep="drop-weights")


def sleeps(ranks: Ranks) -> None:
    """What is dropped is gathered whole again, and a process that dies asleep is replaced by one that sleeps."""
    policy = make_policy(ranks, lora=True)
    for level, again in ((1, "Commit True"), (2, "Commit False")):
        sampler = start(policy)
        sampler._sleep_level = level  # a CPU would refuse it at the door
        requests = make_requests()
        StandIn.lost = [messages.Sleep] if ranks.rank == 1 else []
        sampler.sample(requests, PARAMS)
        engine = StandIn.made[-1]
        assert engine.asked[-1] == "Sleep" and sampler._engine.is_asleep
        engine.asked.clear()
        assert responses_of(sampler.sample(requests, PARAMS)) == expected(requests)
        assert [name for name in engine.asked if not name.startswith("Load")] == [
            "Wake", again, "Wake", "Sample", "Sleep"
        ]  # fmt: skip
        sampler.close()


def samples_ahead(ranks: Ranks) -> None:
    """The next step is sampled from the weights before this one's updates; where a process was lost meanwhile, its
    share comes from those of the moment.
    """
    policy = make_policy(ranks)
    sampler = start(policy)
    requests = {step: make_requests(2 + step, 2) for step in (1, 2, 3)}
    schedule = OneAhead(sampler, policy, requests.__getitem__, PARAMS, steps=3)
    for step in (1, 2, 3):
        StandIn.lost = [messages.Sampled] if (step, ranks.rank) == (3, 1) else []
        groups = schedule.groups(step)
        assert responses_of(groups) == expected(requests[step])
        versions = [one.weight_version for one in flatten(groups)]
        of_first = len(versions) // 2
        newest = step - 1 if step == 3 else max(step - 2, 0)
        assert set(versions[:of_first]) == {max(step - 2, 0)} and set(versions[of_first:]) == {newest}
        change(policy)
    assert schedule.ahead() is None
    sampler.close()
