"""Recomputed and compiled layers give what plain layers give, and do so where they should."""

from __future__ import annotations

import copy
import functools
import shutil

import numpy as np
import pytest
import torch

from fastflow.config.schema import LoraConfig
from fastflow.data.packing import pack
from fastflow.data.trajectory import Prompt, flatten
from fastflow.errors import FastflowError
from fastflow.models.layers import decoder_layers
from fastflow.models.layers.decoder_layers import arrange_layers, check_compiler, recomputed_layers
from fastflow.models.opening import with_adapters
from fastflow.models.packed import AdaptersOff, PackedModel
from fastflow.models.scoring import token_logprobs
from fastflow.rollout.local import LocalSampler
from fastflow.rollout.sampler import SamplingParams, requests_for
from small_models import FAMILIES, assert_near, hidden_and_gradients, make_causal_lm, make_groups

LAYERS = 4
NARROW = {"autocast": True, "residual_stream": "bfloat16"}


def make_policy(
    family="llama", *, lora=None, autocast=False, residual_stream="float32", device="cpu", **arrangement
) -> PackedModel:
    model = make_causal_lm(family, num_hidden_layers=LAYERS).to(device)
    arrange_layers(model, **arrangement)
    if lora is not None:
        torch.manual_seed(0)
        model = with_adapters(model, lora)
    policy = PackedModel(model, autocast=autocast, residual_stream=residual_stream)
    policy.model.train()
    return policy


def batches_of(rng, device="cpu", **options):
    return [batch.to(device) for batch in pack(make_groups(rng, **options), tokens_per_microbatch=60)]


class TestRecomputation:
    @pytest.mark.parametrize("types", [{}, {"autocast": True}, NARROW], ids=str)
    @pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_it_changes_no_bit(self, device, family, share, types, rng):
        batches = batches_of(rng, device)
        plain = make_policy(family, device=device, **types)
        recomputed = make_policy(family, device=device, checkpoint_share=share, **types)
        expected, found = (hidden_and_gradients(policy, batches) for policy in (plain, recomputed))
        if device.type == "cpu":
            assert all(torch.equal(*pair) for pair in zip(expected[0], found[0], strict=True))
            assert all(torch.equal(*pair) for pair in zip(expected[1], found[1], strict=True))
        else:  # where sums have no fixed order
            assert_near(found, expected, tolerance=1e-2 if types else 1e-4)

    def test_dropout_of_adapters_is_drawn_again(self, rng):
        lora, batches = LoraConfig(rank=2, dropout=0.5), batches_of(rng)
        plain, recomputed = (make_policy(lora=lora, checkpoint_share=share) for share in (0.0, 1.0))
        expected, found = (hidden_and_gradients(policy, batches) for policy in (plain, recomputed))
        assert len(found[1]) == len(expected[1]) > 0
        torch.testing.assert_close(found, expected, rtol=0, atol=0)

    @pytest.mark.parametrize(("share", "again"), [(0.0, 0), (0.25, 1), (0.4, 2), (0.75, 3), (1.0, 4)])
    def test_the_first_layers_run_twice(self, share, again, rng):
        policy, runs = make_policy(checkpoint_share=share), [0] * LAYERS
        for index, layer in enumerate(policy.causal_lm.model.layers):
            layer.mlp.register_forward_pre_hook(lambda *_, index=index: runs.__setitem__(index, runs[index] + 1))
        (batch,) = pack(make_groups(rng), 10**6)
        policy.hidden_states(batch).sum().backward()
        assert runs == [2] * again + [1] * (LAYERS - again)
        assert recomputed_layers(LAYERS, share) == again

    def test_only_where_a_gradient_will_follow(self, rng):
        policy, kept = make_policy(checkpoint_share=1.0), []
        (batch,) = pack(make_groups(rng), 10**6)
        policy.model.eval()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            policy.hidden_states(batch)
        assert len(kept) > 20 * LAYERS  # in evaluation mode, the layers keep all

    def test_a_copy_of_the_model_runs_its_own_weights(self, rng):
        """The export and the rollout engines copy models."""
        policy = make_policy(checkpoint_share=1.0)
        (batch,) = pack(make_groups(rng), 10**6)
        before = policy.hidden_states(batch).detach()
        twin = PackedModel(copy.deepcopy(policy.model))
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.zero_()
        assert torch.equal(twin.hidden_states(batch).detach(), before)


@pytest.fixture
def compiler():
    """torch.compile as in a new process."""

    def forget():
        torch._dynamo.reset()
        decoder_layers._packed_forward.cache_clear()
        decoder_layers._compiled_forward.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture
def tracer(compiler, monkeypatch):
    """torch.compile without its code generator, which takes most of the time: the graphs run in PyTorch."""
    monkeypatch.setattr("torch.compile", functools.partial(torch.compile, backend="aot_eager"))


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_generated_code_equals_plain_layers(device, rng):
    if device.type == "cpu" and shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU, and there is none")
    plain = make_policy("qwen3", autocast=True, device=device)
    compiled = make_policy("qwen3", autocast=True, device=device, compiled=True, checkpoint_share=0.5)
    batches = batches_of(rng, device)
    found, expected, exact = (
        hidden_and_gradients(policy, batches) for policy in (compiled, plain, make_policy("qwen3", device=device))
    )
    assert_near(found, expected, exact)


@pytest.mark.slow
@pytest.mark.usefixtures("tracer")
class TestCompilation:
    def test_other_lengths_compile_nothing_new(self, rng):
        from torch._dynamo.utils import counters

        counters.clear()
        compiled, plain = (make_policy("qwen2", compiled=compiled) for compiled in (True, False))
        compare(compiled, plain, batches_of(rng))
        after_first = dict(counters["stats"])
        assert 0 < after_first["unique_graphs"] <= 6  # one set for all layers
        for prompts, responses in ((1, 2), (2, 7), (5, 3)):
            compare(compiled, plain, batches_of(rng, prompts=prompts, responses=responses))
        assert dict(counters["stats"]) == after_first

    def test_adapters_the_base_and_the_sampler(self, rng):
        lora = LoraConfig(rank=2, targets="q_proj,down_proj")
        plain, compiled = (make_policy(lora=lora, compiled=compiled) for compiled in (False, True))
        for policy in (plain, compiled):  # adapters start as the identity; make them matter
            torch.manual_seed(2)
            with torch.no_grad():
                for name, parameter in policy.model.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_(std=0.3)
        batches = batches_of(rng)
        compare(compiled, plain, batches)
        for batch in batches:
            base_expected, base_found = (token_logprobs(AdaptersOff(policy), batch) for policy in (plain, compiled))
            torch.testing.assert_close(base_found, base_expected, rtol=1e-5, atol=1e-5)
        requests = requests_for([Prompt(np.arange(1, 6))], 4, seed=0, step=0)
        params = SamplingParams(max_response_tokens=8)
        samples = [LocalSampler(policy, eos_ids=[0]).sample(requests, params) for policy in (plain, compiled)]
        for one, other in zip(*map(flatten, samples), strict=True):
            assert np.array_equal(one.response_ids, other.response_ids)


def compare(found, expected, batches):
    assert_near(hidden_and_gradients(found, batches), hidden_and_gradients(expected, batches))


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(FastflowError, match=r"C\+\+ compiler on a CPU"):
        check_compiler(torch.device("cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FastflowError, match="needs triton on CUDA"):
        check_compiler(torch.device("cuda"))
