"""Scaled position embeddings: packed equals alone for every kind and length, or a refusal names the kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from fastflow.data.trajectory import Prompt, flatten
from fastflow.errors import FastflowError
from fastflow.models.layers import rope
from fastflow.models.packed import PackedModel
from fastflow.models.share import rescore
from fastflow.rollout.admission import check_room
from fastflow.rollout.local import LocalSampler
from fastflow.rollout.sampler import SamplingParams, requests_for
from passes import alone_hidden, packed_hidden
from small_models import CARRYING, FAMILIES, make_causal_lm

THETA = {"rope_theta": 10000.0}
ORIGINAL = {"original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "factor": 4.0, **THETA}
YARN = {"rope_type": "yarn", "factor": 4.0, **ORIGINAL, **THETA}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL, **THETA}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, **THETA}
LONGROPE = {
    "rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0], **ORIGINAL,
    **THETA,
}  # fmt: skip
CONTEXT = 128


def make_model(kind: dict, family: str = "llama", **changes):
    scaled: dict = dict(kind)
    if family in ("olmo3", "gemma3_text"):
        scaled = {"full_attention": scaled, "sliding_attention": {"rope_type": "default", **THETA}}
    if family in CARRYING:
        scaled["partial_rotary_factor"] = 1.0  # these kinds name factors for all of a head
    return make_causal_lm(family, rope_parameters=scaled, max_position_embeddings=CONTEXT, **changes)


def random_sequences(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 40, length) for length in lengths]


KINDS = [
    (LINEAR, (300, 5, 60)),
    (YARN, (128, 5, 60)),
    (LLAMA3, (128, 5, 60)),
    (DYNAMIC, (128, 5, 60)),
    (LONGROPE, (32, 5, 30)),
]
OF_PHI3 = LONGROPE  # its configuration takes no other


@pytest.mark.parametrize(
    ("family", "kind", "lengths"),
    [(family, *one) for family in FAMILIES for one in KINDS if family != "phi3" or one[0] is OF_PHI3],
)
def test_packed_equals_alone(family, kind, lengths):
    model = PackedModel(make_model(kind, family))
    sequences = random_sequences(*lengths)
    for packed, ids in zip(packed_hidden(model, sequences), sequences, strict=True):
        torch.testing.assert_close(packed, alone_hidden(model, ids), rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from([LINEAR, YARN, LLAMA3, DYNAMIC, LONGROPE]),
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=5),
)
def test_packed_equals_alone_or_is_refused(kind, lengths):
    model = PackedModel(make_model(kind))
    sequences = random_sequences(*lengths)
    limit = rope.constant_up_to(model.causal_lm.config)
    if limit is not None and max(lengths) > limit:
        with pytest.raises(FastflowError, match=rf"\({kind['rope_type']}\) depend on the longest sequence"):
            packed_hidden(model, sequences)
        return
    for packed, ids in zip(packed_hidden(model, sequences), sequences, strict=True):
        torch.testing.assert_close(packed, alone_hidden(model, ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("entries", "context"),
    [
        ({}, 128),
        ({"rope_parameters": LINEAR}, 512),
        ({"rope_parameters": YARN}, 128),
        ({"rope_parameters": {**YARN, "original_max_position_embeddings": 128}}, 512),  # as Qwen2.5 is extended
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, **THETA}}, 512),
        ({"rope_parameters": LLAMA3}, 128),
        ({"rope_parameters": LONGROPE}, 128),
        ({"rope_parameters": DYNAMIC}, 128),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 256),  # as older configurations say it
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128}}, 256),
    ],
)
def test_a_context_reaches_as_far_as_its_factor(entries, context):
    config = AutoConfig.for_model("qwen2", max_position_embeddings=128, **entries)
    assert rope.context_of(config) == context


def test_a_configuration_of_gemma_names_the_scaled_length():
    """As the 4B model's part for text: 131,072 tokens and a factor of 8."""
    config = AutoConfig.for_model("gemma3_text", max_position_embeddings=128, rope_scaling={**LINEAR})
    assert rope.kinds(config) == "linear"
    assert rope.context_of(config) == 128


def test_a_configuration_without_a_length_has_no_end():
    assert rope.context_of(type("Config", (), {})()) is None


def test_prompts_may_use_an_extended_context():
    model = PackedModel(make_model({**YARN, "original_max_position_embeddings": CONTEXT}))
    prompt = Prompt(np.ones(400, dtype=np.int64))
    check_room(model, [prompt], 112)
    with pytest.raises(FastflowError, match="context of 512;"):
        check_room(model, [prompt], 113)


def test_dynamic_scaling_ends_where_lengths_would_change_it():
    with pytest.raises(FastflowError, match=r"context of 128, up to which its position embeddings \(dynamic\)"):
        check_room(PackedModel(make_model(DYNAMIC)), [Prompt(np.ones(100, dtype=np.int64))], 29)


class TestLongrope:
    def test_a_short_run_keeps_the_short_factors(self):
        model = make_model(LONGROPE)
        before = model.model.rotary_emb.inv_freq.clone()
        rope.fix_frequencies(model, 32)
        assert torch.equal(model.model.rotary_emb.inv_freq, before)
        assert model.model.rotary_emb.rope_type == "longrope"

    def test_a_long_run_takes_the_long_factors_at_every_length(self, caplog):
        caplog.set_level("INFO")
        model = PackedModel(make_model(LONGROPE))
        (long,) = random_sequences(60)
        expected = alone_hidden(model, long)  # transformers takes the long factors from its length
        rope.fix_frequencies(model.causal_lm, 33)
        assert "longrope's long factors for all sequences" in caplog.text
        sequences = [long, long[:20], *random_sequences(3, 40)]
        packed = packed_hidden(model, sequences)
        torch.testing.assert_close(packed[0], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(packed[1], expected[:20], rtol=1e-4, atol=1e-5)  # a prefix is a prefix
        for hidden, ids in zip(packed, sequences, strict=True):
            torch.testing.assert_close(hidden, alone_hidden(model, ids), rtol=1e-4, atol=1e-5)

    def test_the_sampler_and_the_trainer_agree_across_the_limit(self, rng):
        model = PackedModel(make_model(LONGROPE))
        requests = requests_for([Prompt(rng.integers(1, 40, length)) for length in (2, 30, 31)], 3, seed=0, step=0)
        params = SamplingParams(max_response_tokens=30)
        sampler = LocalSampler(model, eos_ids=[0])
        with pytest.raises(FastflowError, match=r"\(longrope\) depend on the longest sequence"):
            sampler.sample(requests, params)
        rope.fix_frequencies(model.causal_lm, 61)
        groups = sampler.sample(requests, params)
        for sampled, trained in zip(flatten(groups), flatten(rescore(model, groups, 10**6)), strict=True):
            np.testing.assert_allclose(sampled.behaviour_logprobs, trained.behaviour_logprobs, atol=1e-4)

    def test_an_export_keeps_its_configuration(self, tmp_path):
        model = make_model(LONGROPE)
        rope.fix_frequencies(model, 100)
        model.save_pretrained(tmp_path)
        assert AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_type"] == "longrope"


def test_vllm_is_told_of_no_dynamic_scaling():
    """It would scale at every length, where transformers does so beyond the context alone."""
    config = make_model(DYNAMIC).config
    told = rope.for_vllm(config)
    assert told.rope_parameters == {"rope_type": "default", **THETA}
    assert config.rope_parameters["rope_type"] == "dynamic"
    plain = PackedModel(make_causal_lm(rope_parameters=told.rope_parameters, max_position_embeddings=CONTEXT))
    (ids,) = random_sequences(CONTEXT)
    expected = alone_hidden(PackedModel(make_model(DYNAMIC)), ids)
    torch.testing.assert_close(alone_hidden(plain, ids), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "longest", "words"),
    [
        (LINEAR, 500, None),
        (YARN, 128, None),
        ({**YARN, "original_max_position_embeddings": CONTEXT}, 129, '{"max_position_embeddings": 512}'),
        (DYNAMIC, 100, '--hf-overrides \'{"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}\''),
        (LONGROPE, 32, "--max-model-len 32 or less"),
        (LONGROPE, 33, None),  # the server's context is no shorter, so that it takes the long factors as well
    ],
)
def test_servers_are_to_be_started_accordingly(kind, longest, words):
    advice = rope.advice_for_servers(make_model(kind).config, longest)
    assert advice is None if words is None else words in advice


@pytest.mark.parametrize("kind", [LINEAR, YARN, LLAMA3, LONGROPE])
def test_vllm_is_told_of_every_other_scaling(kind):
    config = make_model(kind).config
    told = rope.for_vllm(config)
    assert config.rope_parameters.items() <= told.rope_parameters.items()
    assert told.max_position_embeddings == CONTEXT


def test_vllm_is_told_the_scale_of_longropes_attention():
    """It would take it from the lengths alone, and not from a factor that says otherwise."""
    model = make_model({**LONGROPE, "factor": 9.0})
    told = rope.for_vllm(model.config).rope_parameters
    assert told["short_mscale"] == told["long_mscale"] == model.model.rotary_emb.attention_scaling


def test_vllm_is_told_where_a_yarn_context_ends():
    config = make_model({**YARN, "original_max_position_embeddings": CONTEXT}).config
    assert rope.for_vllm(config).max_position_embeddings == 512
    assert config.max_position_embeddings == CONTEXT


def test_windows_and_scaling_together(rng):
    """A sampler with a cache of the window's size against packed attention with the same window."""
    model = PackedModel(make_model(YARN, "qwen3", use_sliding_window=True, sliding_window=8, max_window_layers=1))
    requests = requests_for([Prompt(rng.integers(1, 40, length)) for length in (1, 7, 40)], 3, seed=0, step=0)
    groups = LocalSampler(model, eos_ids=[0], max_sequences=5).sample(requests, SamplingParams(max_response_tokens=30))
    for sampled, trained in zip(flatten(groups), flatten(rescore(model, groups, 10**6)), strict=True):
        np.testing.assert_allclose(sampled.behaviour_logprobs, trained.behaviour_logprobs, atol=1e-4)
