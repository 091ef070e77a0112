"""A residual stream in bfloat16: who reads it, how far it takes results from exact ones, and what it leaves alone."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch

from fastflow.config.schema import LoraConfig, ModelConfig
from fastflow.data.packing import pack
from fastflow.evaluate.models import ModelSource, load
from fastflow.models.opening import load_models, with_adapters
from fastflow.models.packed import AdaptersOff, FrozenModel, PackedModel
from fastflow.models.scoring import token_logprobs
from fastflow.models.weights.frozen_weights import hold_in_bfloat16
from small_models import CARRYING, FAMILIES, WITHOUT_CHOICE, make_causal_lm, make_groups

NARROW = {"autocast": True, "residual_stream": "bfloat16"}
DEEP = {"num_hidden_layers": 6, "hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.1}


# Their norms put out the type that they read, whatever their weight is
ROUND_AFTER_NORMS = ("olmo2", "olmo3", "gemma3_text", *CARRYING)
NORMS_AROUND_ONE = ("Gemma3RMSNorm", "Qwen3_5RMSNorm", "Qwen3_5MoeRMSNorm")  # they multiply by 1 + weight


@contextlib.contextmanager
def watching(model):
    """Collects the types of what each layer reads: of the hidden states, and of the cosines."""
    seen = set()

    def look(layer, inputs, options):
        hidden = inputs[0] if inputs else options["hidden_states"]
        seen.add((hidden.dtype, options["position_embeddings"][0].dtype))

    hooks = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in model.causal_lm.get_decoder().layers]
    yield seen
    for hook in hooks:
        hook.remove()


def exact_logprobs(model, batch):
    """In float64: norms too, which transformers computes in float32."""
    model = copy.deepcopy(model).double()

    def normalise(norm, hidden):
        epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
        unit = type(norm).__name__ in NORMS_AROUND_ONE
        return (norm.weight + unit) * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + epsilon)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = normalise.__get__(module)
    packed = PackedModel(model)
    with torch.no_grad():
        rows, weight, _ = packed.head_inputs(packed.hidden_states(batch)[batch.rows])
        logits = rows @ weight.T
    assert logits.dtype == torch.float64
    return logits.log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]


@pytest.fixture
def batch(rng, device):
    (batch,) = pack(make_groups(rng, 8, 6), tokens_per_microbatch=10**6)
    return batch.to(device)


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ({}, torch.float32),
        ({"residual_stream": "bfloat16"}, torch.float32),  # without autocast
        ({"autocast": True}, torch.float32),
        (NARROW, torch.bfloat16),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_layers_read_in_packed_and_in_cached_passes(family, types, expected, batch, device):
    model = PackedModel(make_causal_lm(family).to(device), **types)
    with watching(model) as seen:
        last = model.hidden_states(batch).dtype
        assert last == (expected if family in ROUND_AFTER_NORMS else torch.float32)  # its weight is float32
        with model.decoding() as plain, torch.no_grad():
            plain(batch.input_ids[None], use_cache=True)
    assert seen == {(expected, torch.float32)}


def test_the_model_is_as_before(batch, device):
    """The same weights serve another PackedModel with other types, also after a pass that failed."""
    model = make_causal_lm().to(device)
    before = token_logprobs(PackedModel(model), batch)
    narrow = PackedModel(model, **NARROW)
    with pytest.raises(RuntimeError, match="no such pass"), narrow.decoding():
        raise RuntimeError("no such pass")
    assert not torch.equal(token_logprobs(narrow, batch), before)
    assert torch.equal(token_logprobs(PackedModel(model), batch), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_beside_exact_ones(family, batch, device):
    """A bfloat16 stream takes them less than twice as far as autocast alone, and about as far as a bfloat16 model."""
    model = make_causal_lm(family, **DEEP, **WITHOUT_CHOICE.get(family, {})).to(device)
    exact = exact_logprobs(model, batch)

    def error(model, **types):
        return float((token_logprobs(PackedModel(model, **types), batch) - exact).square().mean().sqrt())

    single, wide, narrow = error(model), error(model, autocast=True), error(model, **NARROW)
    assert single < 1e-5 < 1e-3 < 0.9 * wide < narrow < min(2 * wide, 0.03)
    assert narrow < 1.2 * error(copy.deepcopy(model).bfloat16())


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_parameter_in_float32(family, lora, batch, device):
    """They are less than twice as far from those of float32 as autocast alone takes them."""

    def outcome(**types):
        model = make_causal_lm(family, **DEEP, **WITHOUT_CHOICE.get(family, {}))
        torch.manual_seed(0)
        if lora is not None:
            model = with_adapters(model, lora)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.01)
        policy = PackedModel(model.to(device), **types)
        policy.logprobs(policy.hidden_states(batch)[batch.rows], batch.targets).mean().backward()
        gradients = [parameter.grad for parameter in policy.parameters()]
        assert all(gradient.dtype == torch.float32 and gradient.norm() > 0 for gradient in gradients)
        return torch.cat([gradient.flatten() for gradient in gradients])

    exact, wide, narrow = outcome(), outcome(autocast=True), outcome(**NARROW)
    assert not torch.equal(wide, narrow)
    assert (narrow - exact).norm() < min(2 * (wide - exact).norm(), 0.05 * exact.norm())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("held", ["not", "before", "after"])
def test_a_base_held_in_bfloat16_changes_no_bit(held, tied, batch, device):
    """Before it becomes a FrozenModel, as on one rank, or after it, as when ranks read it from its files."""
    model = make_causal_lm(tied=tied).to(device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    expected = token_logprobs(FrozenModel(copy.deepcopy(model), **NARROW), batch)
    assert held != "before" or hold_in_bfloat16(model) > 0
    base = FrozenModel(model, **NARROW)
    assert held != "after" or hold_in_bfloat16(model) > 0
    with watching(base) as seen:
        assert torch.equal(token_logprobs(base, batch), expected)
    assert seen == {(torch.bfloat16, torch.float32)}


def test_policy_base_and_evaluation_take_the_setting(model_directory, batch):
    settings = ModelConfig(path=str(model_directory), device="cpu", **NARROW)
    policy, base = load_models(settings, LoraConfig())
    assert torch.equal(token_logprobs(policy, batch), token_logprobs(base, batch))
    adapted, off = load_models(settings, LoraConfig(rank=2))
    evaluated, _ = load(ModelSource("it", str(model_directory)), settings)
    wide, _ = load_models(ModelConfig(path=str(model_directory), device="cpu", autocast=True), LoraConfig())
    assert isinstance(off, AdaptersOff) and off.policy is adapted
    for other in (off, evaluated):
        assert torch.equal(token_logprobs(other, batch), token_logprobs(policy, batch))
    assert not torch.equal(token_logprobs(wide, batch), token_logprobs(policy, batch))
