"""Packed models equal separate sequences, for every family, tied and untied; LoRA's base is the policy without it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastflow.config.schema import LoraConfig, ModelConfig
from fastflow.data.packing import pack
from fastflow.data.trajectory import flatten
from fastflow.errors import FastflowError
from fastflow.models.layers import attention
from fastflow.models.layers.linear_attention import linear_attentions
from fastflow.models.opening import load_models, resolve_device, with_adapters
from fastflow.models.packed import AdaptersOff, FrozenModel, PackedModel
from fastflow.models.scoring import token_logprobs
from small_models import FAMILIES, make_causal_lm, make_groups


def separate_logits(model, groups):
    """Response-row logits of every sequence run alone with plain SDPA, in flat order."""
    rows = []
    for group in groups:
        for trajectory in group.trajectories:
            ids = np.concatenate([group.prompt.ids, trajectory.response_ids])[None]
            logits = model(torch.from_numpy(ids), use_cache=False).logits[0]
            rows.append(logits[len(group.prompt.ids) - 1 : -1])
    return rows


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_logits_and_gradients_equal_separate_ones(family, tied, rng):
    model = make_causal_lm(family, tied=tied)
    groups = make_groups(rng)
    targets = [torch.from_numpy(trajectory.response_ids) for trajectory in flatten(groups)]

    model.config._attn_implementation = "sdpa"
    expected = separate_logits(model, groups)
    sum(
        torch.nn.functional.cross_entropy(*pair, reduction="sum") for pair in zip(expected, targets, strict=True)
    ).backward()
    expected_gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()

    packed = PackedModel(model)
    for batch in pack(groups, tokens_per_microbatch=60):
        rows, weight, _ = packed.head_inputs(packed.hidden_states(batch)[batch.rows])
        logits = rows @ weight.T
        for sequence, part in zip(batch.sequences.tolist(), logits.split(batch.response_lengths), strict=True):
            torch.testing.assert_close(part, expected[sequence], rtol=1e-5, atol=1e-5)
        torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum").backward()
    for parameter, gradient in zip(model.parameters(), expected_gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_sequences_do_not_see_each_other(rng):
    """Changing one sequence of a batch leaves the hidden states of the others bitwise alone."""
    model = PackedModel(make_causal_lm())
    (batch,) = pack(make_groups(rng), tokens_per_microbatch=10**6)
    before = model.hidden_states(batch)
    start, end = batch.cu_seqlens[2:4].tolist()
    batch.input_ids[start:end] = (batch.input_ids[start:end] + 1) % 40
    after = model.hidden_states(batch)
    assert not torch.equal(before[start:end], after[start:end])
    assert torch.equal(before[:start], after[:start]) and torch.equal(before[end:], after[end:])


def test_attention_refuses_to_run_without_boundaries():
    model = PackedModel(make_causal_lm()).causal_lm
    with pytest.raises(RuntimeError, match="cu_seq_lens_q"):
        model(torch.tensor([[1, 2, 3]]), use_cache=False)


def test_attention_refuses_a_mask_and_a_cache(rng):
    packed = PackedModel(make_causal_lm())
    (batch,) = pack(make_groups(rng, 1, 1), tokens_per_microbatch=100)
    options = {
        "cu_seq_lens_q": batch.cu_seqlens,
        "sequence_lengths": attention.SequenceLengths((len(batch.input_ids) + 1,)),
    }
    with pytest.raises(RuntimeError, match="KV cache"):
        packed.causal_lm(batch.input_ids[None], use_cache=False, **options)


@pytest.mark.parametrize("block", [3, 256])  # queries of one call: less and more than a sequence has
@pytest.mark.parametrize("window", [2, 4, 100])
def test_sliding_windows_equal_those_of_transformers(window, block, rng, monkeypatch):
    """One layer sees everything, one the window; gradients too."""
    monkeypatch.setattr(attention, "WINDOW_BLOCK", block)
    model = make_causal_lm("qwen2", use_sliding_window=True, sliding_window=window, max_window_layers=1)
    groups = make_groups(rng)
    model.config._attn_implementation = "sdpa"
    expected = separate_logits(model, groups)
    sum(logits.square().sum() for logits in expected).backward()
    expected_gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()

    packed = PackedModel(model)
    (batch,) = pack(groups, tokens_per_microbatch=10**6)
    logits = packed.hidden_states(batch)[batch.rows] @ packed.head()[0].T
    for sequence, part in zip(batch.sequences.tolist(), logits.split(batch.response_lengths), strict=True):
        torch.testing.assert_close(part, expected[sequence], rtol=1e-5, atol=1e-5)
    logits.square().sum().backward()
    for parameter, gradient in zip(model.parameters(), expected_gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize(
    ("requested", "device", "dtype", "expected"),
    [
        ("auto", "cpu", torch.float32, "sdpa"),
        ("auto", "cuda", torch.float32, "sdpa"),
        ("sdpa", "cuda", torch.bfloat16, "sdpa"),
        ("varlen", "cuda", torch.bfloat16, "varlen"),
    ],
)
def test_attention_kernel_choice(requested, device, dtype, expected):
    assert attention.choose_kernel(requested, torch.device(device), dtype) == expected


def test_cuda_kernels_are_refused_on_the_cpu():
    with pytest.raises(FastflowError, match="needs a CUDA device and bfloat16"):
        attention.choose_kernel("varlen", torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("shares_heads", [True, False])
def test_varlen_sees_every_sequence_and_all_heads(shares_heads, rng, monkeypatch):
    """Against SDPA, with a stand-in for torch's CUDA kernel: of torch 2.13, or before it took fewer heads of keys."""

    def attend(
        query, key, value, cu_seqlens, cu_seqlens_k, longest, longest_k, *, scale, window_size, enable_gqa=False
    ):
        assert window_size == (-1, 0) and cu_seqlens is cu_seqlens_k and longest == longest_k
        assert enable_gqa is (query.shape[1] != key.shape[1])
        lengths = cu_seqlens.diff().tolist()
        assert max(lengths) == longest
        parts = zip(*(states.split(lengths) for states in (query, key, value)), strict=True)
        outputs = [
            torch.nn.functional.scaled_dot_product_attention(
                *(states.transpose(0, 1) for states in part), is_causal=True, scale=scale, enable_gqa=enable_gqa
            ).transpose(0, 1)
            for part in parts
        ]
        return torch.cat(outputs)

    def attend_before(query, key, value, cu_seqlens, cu_seqlens_k, longest, longest_k, *, scale, window_size):
        return attend(query, key, value, cu_seqlens, cu_seqlens_k, longest, longest_k, scale=scale,
                      window_size=window_size)  # fmt: skip

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", attend if shares_heads else attend_before)
    attention.varlen_shares_heads.cache_clear()
    try:
        assert attention.varlen_shares_heads() is shares_heads
        (batch,) = pack(make_groups(rng), tokens_per_microbatch=10**6)
        model = make_causal_lm("qwen3")
        expected, found = (PackedModel(model, kernel=kernel).hidden_states(batch) for kernel in ("sdpa", "varlen"))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    finally:
        attention.varlen_shares_heads.cache_clear()


def test_frozen_base_has_no_gradient(rng):
    base = FrozenModel(make_causal_lm())
    assert base.parameters() == []
    (batch,) = pack(make_groups(rng), tokens_per_microbatch=10**6)
    assert not base.hidden_states(batch).requires_grad


def test_a_policy_without_adapters_has_none_to_switch_off():
    with pytest.raises(TypeError, match="no adapters"):
        AdaptersOff(PackedModel(make_causal_lm()))


def test_lora_base_is_the_policy_without_adapters(model_directory, rng):
    settings, lora = ModelConfig(path=str(model_directory), device="cpu"), LoraConfig(rank=4)
    policy, base = load_models(settings, lora)
    plain, _ = load_models(settings, LoraConfig())
    (batch,) = pack(make_groups(rng, vocab_size=38), tokens_per_microbatch=10**6)
    with torch.no_grad():  # adapters start as the identity; make them matter
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    torch.testing.assert_close(token_logprobs(base, batch), token_logprobs(plain, batch))
    assert (token_logprobs(policy, batch) - token_logprobs(plain, batch)).abs().max() > 0.01
    assert len(policy.parameters()) < len(plain.parameters()) * 3
    assert all("lora" in name for name, entry in policy.model.named_parameters() if entry.requires_grad)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ("q_prj,v_proj", r"names 'q_prj'.* did you mean q_proj\?"),  # peft adapts v_proj alone, without a word
        ("nope", "names 'nope'.* known are down_proj, gate_proj, k_proj"),
        ("q_proj,", "names ''.* known are"),
    ],
)
def test_lora_targets_that_do_not_exist_are_named(targets, words):
    with pytest.raises(FastflowError, match=words):
        with_adapters(make_causal_lm(), LoraConfig(rank=2, targets=targets))


def test_lora_targets_may_name_a_module_of_one_layer():
    adapted = with_adapters(make_causal_lm(), LoraConfig(rank=2, targets="layers.0.self_attn.q_proj, v_proj"))
    assert [name for name, _ in adapted.named_parameters() if "q_proj.lora_A" in name and "layers.1." in name] == []


@pytest.mark.parametrize(
    ("held", "autocast", "dtype"),
    [("float32", True, "bfloat16"), ("float32", False, "float32"), ("bfloat16", False, "bfloat16")],
)
def test_the_type_of_the_products(held, autocast, dtype):
    model = make_causal_lm().to(getattr(torch, held))
    assert PackedModel(model, autocast=autocast).dtype == getattr(torch, dtype)


def test_autocast_gives_the_ops_bfloat16(rng):
    model = PackedModel(make_causal_lm(), autocast=True)
    (batch,) = pack(make_groups(rng), tokens_per_microbatch=10**6)
    hidden, weight, bias = model.head_inputs(model.hidden_states(batch))
    assert hidden.dtype == torch.bfloat16 and bias is None
    assert weight is model.head()[0]  # float32, so that its gradient is not rounded
    exact = token_logprobs(PackedModel(model.causal_lm), batch)
    torch.testing.assert_close(token_logprobs(model, batch), exact, rtol=0, atol=0.3)


def test_autocast_gives_every_kernel_one_dtype(rng, monkeypatch):
    """Under autocast, rotary embeddings leave query and key in float32; varlen kernels do not cast by themselves."""
    seen, sdpa = [], attention._KERNELS["sdpa"]

    def spy(query, key, value, *arguments, **options):
        seen.append({query.dtype, key.dtype, value.dtype})
        return sdpa(query, key, value, *arguments, **options)

    monkeypatch.setitem(attention._KERNELS, "sdpa", spy)
    (batch,) = pack(make_groups(rng), tokens_per_microbatch=10**6)
    attending = 0
    for family in FAMILIES:
        model = PackedModel(make_causal_lm(family), autocast=True)
        attending += 2 - len(linear_attentions(model.causal_lm))
        model.hidden_states(batch)
    assert seen == [{torch.bfloat16}] * attending and attending > len(FAMILIES)


def test_adapters_on_the_head_are_refused():
    with pytest.raises(FastflowError, match="names lm_head"):
        with_adapters(make_causal_lm(tied=False), LoraConfig(rank=2, targets="q_proj,lm_head"))


def test_unknown_device_and_family():
    with pytest.raises(FastflowError, match="is not a device"):
        resolve_device("tpu9")
