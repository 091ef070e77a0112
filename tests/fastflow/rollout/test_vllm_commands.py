"""What the sampler tells its process, and in which order, seen by a process that writes everything down."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastflow.config.schema import LoraConfig
from fastflow.models.opening import with_adapters
from fastflow.models.packed import PackedModel
from fastflow.rollout import probe
from fastflow.rollout.vllm import kept_engine, messages
from fastflow.rollout.vllm import sampler as vllm_sampler
from fastflow.rollout.vllm.process import EngineLost
from fastflow.rollout.vllm.sampler import VllmSampler
from fastflow.rollout.vllm.weights import SharedWeights
from small_models import make_causal_lm
from vllm_runs import PARAMS, make_requests


class Diary:
    """A process that carries everything out at once.

    lost: commands at which it dies, interrupted: replies at which the user presses Ctrl-C, each once.
    """

    entries: list[str]
    lost: list[type]
    interrupted: list[type]

    def __init__(self, settings, **options):
        self.entries.append("start")
        self.last = None

    def send(self, message):
        name = type(message).__name__
        details = [str(getattr(message, field)) for field in ("round", "tag", "level") if hasattr(message, field)]
        self.entries.append(" ".join([name, *details]))
        self.last = message
        if type(message) in self.lost:
            self.lost.remove(type(message))
            raise EngineLost(f"it died at {name}")

    def wait_for(self, kind):
        if kind in self.interrupted:
            self.interrupted.remove(kind)
            raise KeyboardInterrupt
        if kind is messages.Probed:
            return messages.Probed(self.probed(self.last.ids))
        if kind is messages.Sampled:
            count = len(self.last.seed)
            return messages.Sampled(
                np.arange(count), np.zeros(count, np.float32), np.ones(count, int), np.zeros(count, bool),
                self.probed(self.last.probe),
            )  # fmt: skip
        return kind()

    def probed(self, ids):
        return tuple(probe.logprobs_of(self.policy, np.array(ids)))

    def end(self):
        self.entries.append("end")


@pytest.fixture
def diary(monkeypatch):
    """Diary as the process of every new sampler."""
    Diary.entries, Diary.lost, Diary.interrupted = [], [], []
    Diary.policy = PackedModel(make_causal_lm())
    monkeypatch.setattr(kept_engine, "EngineProcess", Diary)
    monkeypatch.setattr(vllm_sampler, "check_installed", lambda: None)
    return Diary


def start(diary, **options) -> VllmSampler:
    sampler = VllmSampler(diary.policy, eos_ids=[0], context=40, **options)
    diary.entries.clear()
    return sampler


@pytest.mark.parametrize("level", [1, 2])
def test_memory_is_given_back_after_sampling_and_taken_in_two_steps(diary, rng, level):
    """The cache must not be taken before the weights are in: both at once may not fit beside the trainer."""
    sampler, requests = start(diary), make_requests(rng)
    sampler._sleep_level = level  # a CPU would refuse it at the door
    sampler.sample(requests, PARAMS)
    sampler.load_weights(diary.policy)
    assert diary.entries == ["Sample", f"Sleep {level}", "Wake weights", "Load 0", "Commit", "Wake kv_cache"]
    diary.entries.clear()
    sampler.sample(requests, PARAMS)
    sampler.sample(requests, PARAMS)  # asleep, and no load in between: it wakes by itself
    assert diary.entries == [
        "Sample", f"Sleep {level}",
        "Wake weights", "Load 0", "Commit", "Wake kv_cache", "Sample", f"Sleep {level}",
    ]  # fmt: skip


def test_a_process_that_dies_between_commands_is_replaced_and_told_again(diary):
    sampler = start(diary, restarts=2)
    diary.lost += [messages.Load, messages.Commit]
    sampler.load_weights(diary.policy)
    again = ["end", "start", "Attach", "Load 0", "Commit"]
    assert diary.entries == ["Load 0", *again, *again]


def test_after_ctrl_c_no_reply_is_taken_for_the_next(diary, rng):
    sampler, requests = start(diary), make_requests(rng)
    diary.interrupted.append(messages.Sampled)
    with pytest.raises(KeyboardInterrupt):
        sampler.sample(requests, PARAMS)
    assert diary.entries == ["Sample", "end"]


def test_a_process_that_dies_falling_asleep_loses_no_responses(diary, rng):
    sampler, requests = start(diary), make_requests(rng)
    sampler._sleep_level = 1
    diary.lost.append(messages.Sleep)
    assert len(sampler.sample(requests, PARAMS)) == len(requests)
    assert diary.entries == [
        "Sample", "Sleep 1", "end", "start", "Attach", "Load 0", "Commit", "Sleep 1",
    ]  # fmt: skip


def test_a_replaced_process_that_was_asleep_is_awake(diary, rng):
    sampler, requests = start(diary), make_requests(rng)
    sampler._sleep_level = 2
    sampler.sample(requests, PARAMS)
    diary.entries.clear()
    diary.lost.append(messages.Wake)
    sampler.load_weights(diary.policy)
    assert diary.entries == ["Wake weights", "end", "start", "Attach", "Load 0", "Commit"]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_buckets_are_few_and_no_larger_than_asked(family):
    model = PackedModel(with_adapters(make_causal_lm(family), LoraConfig(rank=2, dropout=0.0)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    weights = SharedWeights(model, bucket_bytes=10_000)
    plain, *rounds = weights.attach.rounds
    *_, bucket = weights.attach.blocks
    assert bucket.nbytes <= 10_000
    seen = {}
    for number in range(weights.rounds):
        weights.prepare(number)
        for place in weights.attach.rounds[number]:
            block = weights.attach.blocks[place.block]
            seen[place.name] = block[place.offset : place.offset + place.shape.numel()].view(place.shape).clone()
    merged = model.model.merge_and_unload().state_dict()
    assert set(seen) == {name for name, _ in make_causal_lm(family).named_parameters()}
    for name, value in seen.items():
        torch.testing.assert_close(value, merged[name])
    assert len(rounds) > 2 and "model.embed_tokens.weight" in {place.name for place in plain}
