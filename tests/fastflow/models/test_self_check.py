"""A model whose sequences see each other in a packed batch is refused when it loads, whatever the reason."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from transformers import LlamaForCausalLM

from fastflow import cli
from fastflow.config.schema import LoraConfig, ModelConfig
from fastflow.errors import FastflowError
from fastflow.evaluate import models as evaluated
from fastflow.models.layers import attention
from fastflow.models.opening import with_adapters
from fastflow.models.packed import AdaptersOff, FrozenModel, PackedModel
from fastflow.models.self_check import TOLERANCE, check_head, check_models, check_packing, prepare_models
from small_models import FAMILIES, make_causal_lm, save_model

# A Llama of its own, as it may come with a model: attention over the whole row, boundaries or not.
CUSTOM_CODE = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnAttention(modeling_llama.LlamaAttention):
    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, {rest}):
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (layer(hidden_states).view(shape).transpose(1, 2)
                             for layer in (self.q_proj, self.k_proj, self.v_proj))
        query, key = modeling_llama.apply_rotary_pos_emb(query, key, *position_embeddings)
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.o_proj(output.transpose(1, 2).flatten(2)), None


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        for index, layer in enumerate(self.model.layers):
            layer.self_attn = OwnAttention(config, index)
        self.post_init()
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_pass_with_room_to_spare(family, dtype):
    for tied in (True, False):
        model = PackedModel(make_causal_lm(family, tied=tied).to(dtype))
        assert check_packing(model, longest=128, name="it") < TOLERANCE[dtype] / 10
        assert check_head(model, longest=128, name="it") < TOLERANCE[dtype] / 10


def test_autocast_and_adapters_pass():
    wide = PackedModel(make_causal_lm(), autocast=True)
    assert check_packing(wide, longest=128, name="it") < 0.03
    assert check_head(wide, longest=128, name="it") < 0.01
    narrow = PackedModel(make_causal_lm(), autocast=True, residual_stream="bfloat16")
    assert check_packing(narrow, longest=128, name="it") < 0.03
    adapted = PackedModel(with_adapters(make_causal_lm(), LoraConfig(rank=2)))
    check_models(adapted, AdaptersOff(adapted), longest=128, names=("policy", "base"))


@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernels_of_a_device_pass(family, window, device):
    """In half precision, with what model.attention = auto takes there."""
    changes = {} if window is None or family == "llama" else {"use_sliding_window": True, "sliding_window": window,
                                                              "max_window_layers": 1}  # fmt: skip
    kernel = attention.choose_kernel("auto", device, torch.bfloat16)
    plain = make_causal_lm(family, head_dim=64, **changes).to(device)
    for model in (PackedModel(plain, kernel=kernel, autocast=True), PackedModel(plain.bfloat16(), kernel=kernel)):
        assert check_packing(model, longest=128, name="it") < TOLERANCE[torch.bfloat16] / 2


@pytest.mark.parametrize("longest", [1, 2, 40])
def test_short_runs_are_checked_within_their_length(longest):
    model = PackedModel(make_causal_lm(max_position_embeddings=longest))
    check_packing(model, longest=longest, name="it")
    check_head(model, longest=longest, name="it")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_across_sequences_is_refused(dtype, monkeypatch):
    sdpa = attention._KERNELS["sdpa"]

    def across(query, key, value, cu_seqlens, lengths, **options):
        return sdpa(query, key, value, cu_seqlens, (sum(lengths),), **options)

    monkeypatch.setitem(attention._KERNELS, "sdpa", across)
    with pytest.raises(FastflowError, match=r"it gives hidden states in a packed batch .* model\.attention = sdpa"):
        check_packing(PackedModel(make_causal_lm().to(dtype)), longest=128, name="it")


def test_a_window_that_the_attention_does_not_keep_is_refused(monkeypatch):
    sdpa = attention._KERNELS["sdpa"]
    monkeypatch.setitem(attention._KERNELS, "sdpa", lambda *given, **options: sdpa(*given, **{**options, "window": -1}))
    model = make_causal_lm("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=0)
    with pytest.raises(FastflowError, match="depend on the other sequences"):
        check_packing(PackedModel(model), longest=128, name="it")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frequencies_that_follow_the_longest_sequence_are_refused(dtype):
    """Also where only the run's longest sequence would change them, and nobody knows the kind by name."""
    model = make_causal_lm().to(dtype)
    rotary = model.model.rotary_emb
    plain, frequencies = rotary.forward, rotary.inv_freq.clone()

    def forward(hidden, position_ids):
        rotary.inv_freq = frequencies / 4 if int(position_ids.max()) >= 100 else frequencies
        return plain(hidden, position_ids)

    rotary.forward = forward
    check_packing(PackedModel(model), longest=100, name="it")
    with pytest.raises(FastflowError, match="position embeddings depend on the other sequences"):
        check_packing(PackedModel(model), longest=101, name="it")


CHANGES = {
    "scaled": lambda logits: logits / 8,
    "capped": lambda logits: torch.tanh(logits),
    "shifted": lambda logits: logits + torch.linspace(-1, 1, logits.shape[-1]),
}


@pytest.mark.parametrize("types", [{}, {"autocast": True}, {"dtype": torch.bfloat16}], ids=str)
@pytest.mark.parametrize("change", CHANGES)
def test_logits_that_a_model_changes_behind_its_head_are_refused(change, types):
    """As Cohere scales and Gemma 2 caps them: training would compute other log-probs than the model's."""
    types = dict(types)
    model = make_causal_lm().to(types.pop("dtype", torch.float32))
    forward = model.forward

    def changed(*arguments, **options):
        output = forward(*arguments, **options)
        output.logits = CHANGES[change](output.logits)
        return output

    model.forward = changed
    policy = PackedModel(model, **types)
    check_packing(policy, longest=128, name="it")
    with pytest.raises(FastflowError, match=r"^the logits of it are not its head times its hidden states"):
        check_models(policy, None, longest=128, names=("it", "base"))


def test_an_evaluation_of_own_code_refuses_them_too(tmp_path, monkeypatch):
    save_model(tmp_path / "model")
    settings = ModelConfig(device="cpu", trust_remote_code=True)
    evaluated.load(evaluated.find_model(str(tmp_path / "model")), settings)
    forward = LlamaForCausalLM.forward

    def scaled(*arguments, **options):
        output = forward(*arguments, **options)
        output.logits = output.logits * 0.0625
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", scaled)
    with pytest.raises(FastflowError, match=r"the logits of \S+/model are not its head"):
        evaluated.load(evaluated.find_model(str(tmp_path / "model")), settings)


def test_a_bias_and_a_head_of_zeros_pass():
    model = make_causal_lm(tied=False)
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, 40))
    assert check_head(PackedModel(model), longest=128, name="it") < 1e-5
    torch.nn.init.zeros_(model.lm_head.weight)
    torch.nn.init.zeros_(model.lm_head.bias)
    assert check_head(PackedModel(model), longest=128, name="it") < 1e-5


def test_attention_that_caps_its_scores_is_refused():
    """transformers' SDPA leaves the cap out without a word, so that packed and alone would agree on a wrong model."""
    model = make_causal_lm("gemma2", final_logit_softcapping=None, attn_logit_softcapping=50.0)
    with pytest.raises(FastflowError, match=r"cannot read a packed batch .* caps its scores"):
        check_packing(PackedModel(model), longest=128, name="it")


def test_damaged_weights_are_named():
    model = make_causal_lm()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(FastflowError, match="NaN or infinite; its weights are damaged"):
        check_packing(PackedModel(model), longest=128, name="it")


def test_a_damaged_head_is_named():
    model = make_causal_lm(tied=False)
    with torch.no_grad():
        model.lm_head.weight[3, 0] = torch.nan
    with pytest.raises(FastflowError, match="the logits of it are NaN or infinite; its head's weights are damaged"):
        check_head(PackedModel(model), longest=128, name="it")


def test_a_base_is_checked_too(monkeypatch):
    policy, base = PackedModel(make_causal_lm()), FrozenModel(make_causal_lm(max_position_embeddings=64))
    with pytest.raises(FastflowError, match=r"context of base is 64 tokens, but .* need 65"):
        prepare_models(policy, base, longest=65, names=("policy", "base"))
    monkeypatch.setattr(base, "hidden_states", lambda batch: torch.zeros(batch.tokens, 32))
    with pytest.raises(FastflowError, match=r"^base gives hidden states"):
        check_models(policy, base, longest=64, names=("policy", "base"))


def test_a_check_leaves_no_trace():
    model = PackedModel(make_causal_lm())
    model.model.train()
    state, before = torch.get_rng_state(), {name: weight.clone() for name, weight in model.model.state_dict().items()}
    check_packing(model, longest=128, name="it")
    assert model.model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, before[name]) for name, weight in model.model.state_dict().items())
    assert model.causal_lm.config._attn_implementation == attention.NAME
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("**kwargs", "gives hidden states in a packed batch"),
        ("position_ids=None, use_cache=False, past_key_values=None", "cannot read a packed batch (TypeError"),
    ],
)
def test_code_that_comes_with_a_model(tmp_path, capsys, monkeypatch, rest, words):
    """A whole run: refused before anything is sampled, in one sentence."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", sys.path[:])
    model = save_model(tmp_path / "model")
    (model / "own.py").write_text(CUSTOM_CODE.replace("{rest}", rest))
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"],
               "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}}  # fmt: skip
    (model / "config.json").write_text(json.dumps(config))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "ab"}\n')
    code = cli.main(
        ["train", f"--model.path={model}", "--model.device=cpu", f"--data.path={prompts}", "--run.steps=1",
         "--model.trust_remote_code=true", f"--run.output={tmp_path / 'run'}", "--rollout.max_response_tokens=40"]
    )  # fmt: skip
    error = capsys.readouterr().err
    assert code == 2, error
    assert words in error
    assert "Traceback" not in error
