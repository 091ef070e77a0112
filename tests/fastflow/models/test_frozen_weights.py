"""A frozen base in half the memory gives the same log-probs, bit for bit."""

from __future__ import annotations

import pytest
import torch

from fastflow.config.schema import LoraConfig, ModelConfig
from fastflow.data.packing import pack
from fastflow.models.opening import load_models
from fastflow.models.packed import FrozenModel
from fastflow.models.scoring import token_logprobs
from fastflow.models.weights.frozen_weights import hold_in_bfloat16
from small_models import FAMILIES, make_causal_lm, make_groups, save_model


def representable(family: str, *, tied: bool, device="cpu"):
    """A float32 model whose weights are bfloat16 numbers; norms and biases too, and not all of them 1 or 0."""
    model = make_causal_lm(family, tied=tied)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
            parameter.copy_(parameter.bfloat16())
    return model.to(device)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_the_same_bit_for_bit(device, family, tied, rng):
    batches = [batch.to(device) for batch in pack(make_groups(rng), tokens_per_microbatch=60)]
    outputs = []
    for narrow in (False, True):
        model = representable(family, tied=tied, device=device)
        if narrow:
            hold_in_bfloat16(model)
        base = FrozenModel(model, autocast=True)
        outputs.append([(base.hidden_states(batch), token_logprobs(base, batch)) for batch in batches])
    for (hidden, logprobs), (narrow_hidden, narrow_logprobs) in zip(*outputs, strict=True):
        assert hidden.dtype == narrow_hidden.dtype == torch.float32
        assert torch.equal(hidden, narrow_hidden) and torch.equal(logprobs, narrow_logprobs)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])
def test_what_is_stored_in_bfloat16(family, tied):
    model = representable(family, tied=tied)
    stored = hold_in_bfloat16(model)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.bfloat16 if parameter.ndim == 2 else torch.float32), name
    assert stored == sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 2)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied


def test_a_weight_that_rounding_would_change_stays(rng):
    model = representable("llama", tied=False)
    finer = model.model.layers[1].mlp.up_proj
    with torch.no_grad():
        finer.weight[3, 5] = 1 + 2**-12
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    hold_in_bfloat16(model)
    assert finer.weight.dtype == torch.float32
    assert model.model.layers[1].mlp.gate_proj.weight.dtype == torch.bfloat16
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.float(), before[name]), name


def test_weights_of_a_float32_checkpoint_stay():
    model = make_causal_lm()
    assert hold_in_bfloat16(model) == 0
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize(
    ("autocast", "dtype", "narrow"), [(True, "float32", True), (False, "float32", False), (False, "bfloat16", True)]
)
def test_only_under_autocast_and_only_the_base(tmp_path, autocast, dtype, narrow):
    path = save_model(tmp_path / "model", dtype=torch.bfloat16)
    settings = ModelConfig(path=str(path), device="cpu", autocast=autocast, dtype=dtype)
    policy, base = load_models(settings, LoraConfig())
    assert {parameter.dtype for parameter in policy.parameters()} == {getattr(torch, dtype)}
    assert base.head()[0].dtype == (torch.bfloat16 if narrow else torch.float32)


def test_adapters_leave_their_base_as_it_is(tmp_path):
    """It is the policy's own: merged weights must not be rounded."""
    path = save_model(tmp_path / "model", dtype=torch.bfloat16)
    policy, _ = load_models(ModelConfig(path=str(path), device="cpu", autocast=True), LoraConfig(rank=2))
    assert {parameter.dtype for parameter in policy.model.parameters()} == {torch.float32}
