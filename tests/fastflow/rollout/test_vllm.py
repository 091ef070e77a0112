"""Rollouts by the real vLLM in its own process: samples, log-probs and weights; marked vllm."""

from __future__ import annotations

from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch

from engine_contract import assert_no_shorter, assert_stopped, check_that_weights_are_followed
from fastflow.config.schema import LoraConfig
from fastflow.data.response_text import spell
from fastflow.data.trajectory import Prompt, flatten
from fastflow.demo.small_model import make_tokenizer
from fastflow.errors import FastflowError
from fastflow.models.layers import rope
from fastflow.models.opening import with_adapters
from fastflow.models.packed import PackedModel
from fastflow.models.share import rescore
from fastflow.rollout.local import LocalSampler
from fastflow.rollout.sampler import Request, SamplingParams
from fastflow.rollout.vllm import weights as vllm_weights
from small_models import CARRYING, MIXTURES, make_causal_lm
from special_tokens import TURN, TURN_ID, make_chat_tokenizer
from stand_in_torchvision import put_torchvision_on_the_path
from vllm_runs import (
    HEAD_DIM,
    PARAMS,
    assert_agrees,
    assert_equal,
    make_model,
    make_requests,
    needs_vllm,
    perturb,
    start,
)

PIECES = "abcdefghijklmnopqrstuvwxyz0123456789"


@needs_vllm
@pytest.mark.parametrize(
    ("family", "tied"),
    [("qwen3", True), ("llama", False), ("mistral", True), ("gemma3_text", True), ("qwen3_moe", False)],
)
def test_samples_and_logprobs_follow_the_weights(family, tied, rng):
    model = make_model(family, tied=tied)
    finished = []
    with closing(start(model, on_progress=finished.append)) as sampler:
        check_that_weights_are_followed(sampler, model, make_requests(rng), finished, assert_equal)


@needs_vllm
@pytest.mark.parametrize("family", CARRYING)
def test_linear_attention_in_bfloat16(family, rng, monkeypatch, tmp_path):
    """With the widths that vLLM takes on a CPU; there it computes linear attention in bfloat16 alone."""
    put_torchvision_on_the_path(monkeypatch, tmp_path)
    widths = {"head_dim": HEAD_DIM, "linear_key_head_dim": 128, "linear_value_head_dim": 128}
    of_experts = {"moe_intermediate_size": 32} if family in MIXTURES else {}
    model = make_causal_lm(family, **widths, **of_experts)
    policy, exact = PackedModel(model, autocast=True), PackedModel(model)
    with closing(start(policy)) as sampler:
        for _ in range(2):
            groups = sampler.sample(make_requests(rng), PARAMS)
            sampled, trained, true = (
                np.concatenate([one.behaviour_logprobs for one in flatten(found)])
                for found in (groups, rescore(policy, groups, 10**6), rescore(exact, groups, 10**6))
            )
            apart, rounded = (float(np.sqrt(np.mean((one - trained) ** 2))) for one in (sampled, true))
            assert apart < 2 * rounded < 0.2
            perturb(policy, 0.02)
            sampler.load_weights(policy)


@needs_vllm
@pytest.mark.parametrize("family", ["qwen3", "qwen2", "qwen3_moe"])  # without and with biases, and beside experts
def test_adapters_are_merged_bucket_by_bucket(family, rng, monkeypatch):
    monkeypatch.setattr(vllm_weights.SharedWeights.__init__, "__defaults__", (10_000,))  # bytes: several buckets
    model = PackedModel(
        with_adapters(make_causal_lm(family, hidden_size=128, head_dim=HEAD_DIM), LoraConfig(rank=2, dropout=0.0))
    )
    with closing(start(model)) as sampler:
        assert sampler._engine.weights.rounds > 3
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.05)
        sampler.load_weights(model)
        assert_agrees(sampler.sample(make_requests(rng), PARAMS), model)


HALF = HEAD_DIM // 2
SCALINGS = {
    "longrope": {"factor": 4.0, "original_max_position_embeddings": 32, "short_factor": [1.0] * HALF,
                 "long_factor": np.linspace(1, 8, HALF).tolist()},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "dynamic": {"factor": 4.0},
}  # fmt: skip


@needs_vllm
@pytest.mark.parametrize(("kind", "longest"), [("longrope", 60), ("yarn", 100), ("dynamic", 60)])
def test_scaled_position_embeddings_are_the_trainers(kind, longest, rng):
    """longrope beyond its short factors, yarn beyond the configuration's length, dynamic where it changes nothing."""
    parameters = {"rope_type": kind, "rope_theta": 10000.0, **SCALINGS[kind]}
    model = make_model("llama", rope_parameters=parameters, max_position_embeddings=64)
    rope.fix_frequencies(model.causal_lm, longest)
    with closing(start(model, context=longest)) as sampler:
        half = longest // 2
        requests = [Request(Prompt(rng.integers(1, 40, length)), tuple(range(6))) for length in (2, half)]
        groups = sampler.sample(requests, SamplingParams(max_response_tokens=half))
        assert max(len(trajectory) for trajectory in flatten(groups)) > half // 2
        assert_agrees(groups, model)


@needs_vllm
def test_a_special_token_is_a_stop_text(rng):
    """As for the embedded sampler: nothing stands behind it, and it is the end."""
    model, tokenizer = make_model(), make_chat_tokenizer()
    requests = make_requests(rng, responses=24)
    with closing(start(model, tokenizer=tokenizer)) as sampler:
        params = SamplingParams(max_response_tokens=20, stop=(TURN,))
        for made_by in (sampler, LocalSampler(model, eos_ids=[0], tokenizer=tokenizer)):
            stopped = made_by.sample(requests, params)
            assert_stopped(stopped, partial(spell, tokenizer), (TURN,))
            assert any(trajectory.response_ids[-1] == TURN_ID for trajectory in flatten(stopped))


@needs_vllm
def test_temperature_stop_texts_and_fewest_tokens(rng):
    """All of them at once on one engine, each against its meaning; stop texts against the embedded sampler's."""
    model, tokenizer = make_model(), make_tokenizer(list(PIECES))
    requests = make_requests(rng, responses=24)
    with closing(start(model, tokenizer=tokenizer)) as sampler:
        unhindered = flatten(sampler.sample(requests, PARAMS))
        assert any(len(trajectory) <= 4 for trajectory in unhindered)
        longer = sampler.sample(requests, SamplingParams(max_response_tokens=12, min_response_tokens=4))
        assert_no_shorter(longer, 4)
        assert any(trajectory.response_ids[-1] == 0 for trajectory in flatten(longer))

        stops = tuple(PIECES[:8])
        params = SamplingParams(max_response_tokens=12, stop=stops)
        for made_by in (sampler, LocalSampler(model, eos_ids=[0], tokenizer=tokenizer)):
            stopped = made_by.sample(requests, params)
            assert_agrees(stopped, model)
            assert_stopped(stopped, partial(tokenizer.decode, skip_special_tokens=True), stops)
            assert any(trajectory.response_ids[-1] != 0 for trajectory in flatten(stopped) if len(trajectory) < 12)

        both = SamplingParams(max_response_tokens=12, min_response_tokens=6, stop=stops)
        for made_by in (sampler, LocalSampler(model, eos_ids=[0], tokenizer=tokenizer)):
            late = flatten(made_by.sample(requests, both))
            assert min(len(trajectory) for trajectory in late) == 7  # what stands in the first six ends nothing
            assert any(
                any(stop in tokenizer.decode(trajectory.response_ids[:6]) for stop in stops) for trajectory in late
            )

        cold = flatten(sampler.sample(requests, SamplingParams(temperature=0.01, max_response_tokens=4)))
        assert np.mean([trajectory.behaviour_logprobs.mean() for trajectory in cold]) > -0.05  # of what was drawn from


@needs_vllm
def test_more_prompt_tokens_than_one_pass_takes(rng):
    model = make_model()
    with closing(start(model, max_sequences=512)) as sampler:
        requests = [Request(Prompt(rng.integers(1, 40, 35)), (2 * place, 2 * place + 1)) for place in range(150)]
        groups = sampler.sample(requests, SamplingParams(max_response_tokens=4))  # 10,500 tokens of prompts
        assert_agrees(groups, model)
        assert_equal(groups, sampler.sample(requests, SamplingParams(max_response_tokens=4)))


@needs_vllm
def test_what_ends_a_response_is_what_the_trainer_says(rng):
    """Not vLLM's own reading of the model's configuration, here two end tokens of which one counts."""
    model = make_model(eos_token_id=[0, 5])
    with closing(start(model, eos_ids=[0])) as sampler:
        responses = [entry.response_ids for entry in flatten(sampler.sample(make_requests(rng, responses=24), PARAMS))]
        assert any(5 in ids[:-1] for ids in responses) and not any(0 in ids[:-1] for ids in responses)


@needs_vllm
def test_bfloat16_under_autocast(rng):
    model = make_model()
    model.autocast = True
    with closing(start(model)) as sampler:
        assert_agrees(sampler.sample(make_requests(rng), PARAMS), model, atol=0.3)
        perturb(model)
        sampler.load_weights(model)
        assert_agrees(sampler.sample(make_requests(rng), PARAMS), model, atol=0.3)


@needs_vllm
def test_other_weights_than_the_trainers_stop_the_run(rng):
    model = make_model()
    with closing(start(model)) as sampler:
        other = make_causal_lm("qwen3", head_dim=HEAD_DIM, seed=1)
        for name, parameter in model.causal_lm.named_parameters():
            parameter.data = other.get_parameter(name).data  # no longer in the memory that vLLM reads
        model.version += 1
        sampler.load_weights(model)
        message = r"after weight load 1, .* log-prob -\d+\.\d+ and the trainer -\d+\.\d+ .*they do not hold"
        with pytest.raises(FastflowError, match=message):
            sampler.sample(make_requests(rng), PARAMS)


@needs_vllm
def test_sampling_goes_on_while_the_policy_changes(rng):
    """begin and finish: the responses are those of the weights at the last load."""
    model = make_model()
    requests = make_requests(rng)
    with closing(start(model)) as sampler:
        expected = sampler.sample(requests, PARAMS)
        sampler.begin(requests, PARAMS)
        perturb(model)
        assert_equal(sampler.finish(), expected)
        sampler.load_weights(model)
        sampler.begin(requests, PARAMS)
        assert_agrees(sampler.finish(), model)


@needs_vllm
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none")
@pytest.mark.parametrize("sleep", ["weights-to-cpu", "drop-weights"])
def test_on_a_gpu_vllm_gives_its_memory_back_while_the_policy_trains(sleep, rng):
    model = PackedModel(make_causal_lm("qwen3", head_dim=64).cuda())
    requests = make_requests(rng)
    with closing(start(model, memory_fraction=0.2, sleep=sleep)) as sampler:
        awake = torch.cuda.mem_get_info()[0]
        assert_agrees(sampler.sample(requests, PARAMS), model, atol=1e-3)
        asleep = torch.cuda.mem_get_info()[0]
        assert asleep - awake > 0.1 * torch.cuda.mem_get_info()[1]
        perturb(model)
        sampler.load_weights(model)
        assert_agrees(sampler.sample(requests, PARAMS), model, atol=1e-3)
