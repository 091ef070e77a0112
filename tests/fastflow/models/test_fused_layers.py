"""Liger's layers: when they are taken, what they change and leave, and on a GPU that they equal the plain ones."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from dataclasses import replace
from types import MethodType, ModuleType

import numpy as np
import pytest
import torch
from rich.console import Console

from fastflow.config.reader import read_config
from fastflow.config.schema import LoraConfig, ModelConfig
from fastflow.data.packing import pack
from fastflow.data.trajectory import Group, Prompt, Trajectory
from fastflow.errors import FastflowError
from fastflow.models.layers.decoder_layers import arrange_layers
from fastflow.models.layers.fused_layers import FAMILIES, RotaryByDevice, choose_layers, fits, fuse_layers
from fastflow.models.opening import load_models, with_adapters
from fastflow.models.packed import FrozenModel, PackedModel
from fastflow.models.scoring import token_logprobs
from fastflow.models.weights.frozen_weights import hold_in_bfloat16
from fastflow.plan.activations import Numbers, count_saved
from fastflow.plan.sizes import read_sizes
from fastflow.train.command import train
from saved_bytes import saved_bytes
from small_models import assert_near, hidden_and_gradients, make_causal_lm, make_groups

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none"),
    pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="needs liger-kernel"),
]


def modeling(family):
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")


@pytest.fixture(autouse=True)
def rotary_as_before(monkeypatch):
    """fuse_layers changes a function of transformers' modules for the whole process."""
    for family in FAMILIES:
        monkeypatch.setattr(modeling(family), "apply_rotary_pos_emb", modeling(family).apply_rotary_pos_emb)


@pytest.fixture
def installed(monkeypatch):
    """Whether liger-kernel is installed, as the test says."""

    def pretend(there: bool) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda name: there or None if name == "liger_kernel" else find(name)
        )

    return pretend


class TestChoice:
    @pytest.mark.parametrize(
        ("requested", "device", "there", "options", "expected"),
        [
            ("auto", CUDA, True, {}, "liger"),
            ("auto", CUDA, False, {}, "plain"),
            ("auto", CPU, True, {}, "plain"),
            ("auto", CUDA, True, {"suitable": False}, "plain"),
            ("auto", CUDA, True, {"compiled": True}, "plain"),
            ("off", CUDA, True, {}, "plain"),
            ("liger", CUDA, True, {}, "liger"),
        ],
    )
    def test_what_serves(self, installed, requested, device, there, options, expected):
        installed(there)
        assert choose_layers(requested, device, **options) == expected

    @pytest.mark.parametrize(
        ("device", "there", "suitable", "words"),
        [
            (CPU, True, True, "needs a CUDA device, and the model is on cpu"),
            (CUDA, False, True, r"pip install \"fastflow\[liger\]\""),
            (CUDA, True, False, "with the activation silu"),
        ],
    )
    def test_what_is_refused(self, installed, device, there, suitable, words):
        installed(there)
        with pytest.raises(FastflowError, match=words):
            choose_layers("liger", device, suitable=suitable)

    def test_which_models_are_suitable(self):
        for family in FAMILIES:
            assert fits(make_causal_lm(family).config)
        assert not fits(make_causal_lm(hidden_act="gelu").config)
        own_code = make_causal_lm().config
        own_code.auto_map = {"AutoModelForCausalLM": "modeling_own.Own"}
        assert not fits(own_code)

    def test_not_together_with_torch_compile(self):
        with pytest.raises(FastflowError, match=r"model\.fused_layers = liger and model\.compile = layers"):
            read_config(["--model.fused_layers=liger", "--model.compile=layers"])

    def test_a_cpu_has_plain_layers(self, installed, model_directory):
        installed(True)
        policy, base = load_models(ModelConfig(path=str(model_directory), device="cpu"), LoraConfig())
        assert policy.layers == base.layers == "plain"
        with pytest.raises(FastflowError, match=r"model\.fused_layers = liger needs a CUDA device"):
            load_models(ModelConfig(path=str(model_directory), device="cpu", fused_layers="liger"), LoraConfig())


class LigerNorm(torch.nn.Module):
    """Of the stand-in below: computes something that plain norms do not."""

    def forward(self, hidden):
        return 2 * hidden


@pytest.fixture
def liger(monkeypatch):
    """A stand-in that patches as Liger does; the list holds the options of each call."""
    package, transformers, calls = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers"), []

    def apply(model, **options):
        calls.append(options)
        modeling("llama").LlamaRMSNorm = LigerNorm
        modeling("llama").apply_rotary_pos_emb = lambda query, key, cos, sin, unsqueeze_dim: "rotated by Liger"
        model.model.norm.forward = MethodType(LigerNorm.forward, model.model.norm)

    transformers.apply_liger_kernel_to_llama = apply
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", transformers)
    return calls


class TestPatching:
    def test_only_this_models_norms_change(self, liger, rng):
        (batch,) = pack(make_groups(rng), 10**6)
        expected = PackedModel(make_causal_lm()).hidden_states(batch)
        plain_norm = modeling("llama").LlamaRMSNorm
        fused = make_causal_lm()
        fuse_layers(fused)
        assert liger == [{"rope": True, "rms_norm": True, "swiglu": True, "cross_entropy": False,
                          "fused_linear_cross_entropy": False}]  # fmt: skip
        assert not torch.equal(PackedModel(fused).hidden_states(batch), expected)
        assert modeling("llama").LlamaRMSNorm is plain_norm
        assert torch.equal(PackedModel(make_causal_lm()).hidden_states(batch), expected)

    def test_the_rotary_embedding_is_chosen_by_device(self, liger):
        plain = modeling("llama").apply_rotary_pos_emb
        for _ in range(2):  # policy and base
            fuse_layers(make_causal_lm())
        rotary = modeling("llama").apply_rotary_pos_emb
        assert isinstance(rotary, RotaryByDevice) and rotary.plain is plain
        query, cos = torch.randn(1, 2, 3, 4), torch.randn(1, 3, 4)
        expected = plain(query, query, cos, cos)
        assert all(map(torch.equal, rotary(query, query, cos, cos), expected))
        on_cuda = type("OnCuda", (), {"is_cuda": True})()
        assert rotary(on_cuda, query, cos, cos) == "rotated by Liger"

    def test_a_broken_installation_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "liger_kernel.transformers", None)
        with pytest.raises(FastflowError, match=r'pip install "fastflow\[liger\]"'):
            fuse_layers(make_causal_lm())

    def test_liger_itself_where_it_is_installed(self, rng):
        """Its patching functions take these options and change what this module expects; its kernels need a GPU."""
        pytest.importorskip("liger_kernel.transformers")
        for family in FAMILIES:
            before = dict(vars(modeling(family)))
            model = make_causal_lm(family)
            fuse_layers(model)
            changed = {name for name, value in vars(modeling(family)).items() if before.get(name) is not value}
            assert changed == {"apply_rotary_pos_emb"}
            layer = model.model.layers[0]
            fused = [model.model.norm, layer.input_layernorm, layer.post_attention_layernorm, layer.mlp]
            fused += [layer.self_attn.q_norm, layer.self_attn.k_norm] if family == "qwen3" else []
            assert all("forward" in vars(module) for module in fused)


TYPES = ({}, {"autocast": True}, {"autocast": True, "residual_stream": "bfloat16"})
WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 64, "num_hidden_layers": 3, "max_position_embeddings": 1024}  # fmt: skip


def make_model(family, *, fused, lora=None, share=0.0, **changes):
    model = make_causal_lm(family, **{**WIDE, "initializer_range": 0.05, **changes}).cuda()
    with torch.no_grad():
        for parameter in model.parameters():  # norms that are not all one
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    if fused:
        fuse_layers(model)
    arrange_layers(model, checkpoint_share=share)
    if lora is not None:
        torch.manual_seed(0)
        model = with_adapters(model, lora)
    return model.train()


def outcome(model, batch, **options):
    return hidden_and_gradients(PackedModel(model, **options), [batch])


class TestOnAGpu:
    pytestmark = on_a_gpu

    @pytest.mark.parametrize("share", [0.0, 1.0])
    @pytest.mark.parametrize("types", TYPES, ids=str)
    @pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["full", "lora"])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_hidden_states_and_gradients(self, family, lora, types, share, rng):
        """In bfloat16, no further from the plain layers than twice these are from float32."""
        (batch,) = pack(make_groups(rng), 10**6)
        batch = batch.to(CUDA)
        exact = outcome(make_model(family, fused=False, lora=lora), batch)
        expected = outcome(make_model(family, fused=False, lora=lora), batch, **types)
        found = outcome(make_model(family, fused=True, lora=lora, share=share), batch, **types)
        assert_near(found, expected, exact, tolerance=2e-3 if types else 1e-4)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_many_short_rows(self, dtype, rng):
        """From 32,768 query heads of at most 256 entries on, Liger normalises blocks of rows by another kernel."""
        lengths = (300, 200, 400, 250)
        answers = [Trajectory(rng.integers(1, 40, n), np.zeros(n, np.float32), "length") for n in lengths]
        (batch,) = pack([Group(Prompt(rng.integers(1, 40, 9)), tuple(answers))], 10**6)
        assert batch.tokens * 32 >= 32768
        batch, heads = batch.to(CUDA), {"num_attention_heads": 32, "num_key_value_heads": 4}
        exact = outcome(make_model("qwen3", fused=False, **heads), batch)
        expected, found = (
            outcome(make_model("qwen3", fused=fused, **heads).to(dtype), batch) for fused in (False, True)
        )
        assert_near(found, expected, exact, tolerance=1e-4 if dtype == torch.float32 else 2e-3)

    @pytest.mark.parametrize("types", TYPES[1:], ids=str)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_bfloat16_base_changes_no_bit(self, family, types, rng):
        (batch,) = pack(make_groups(rng), 10**6)
        batch, logprobs = batch.to(CUDA), []
        for narrow in (False, True):
            model = make_model(family, fused=True)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(parameter.bfloat16())
            assert not narrow or hold_in_bfloat16(model) > 0
            logprobs.append(token_logprobs(FrozenModel(model, **types), batch))
        assert torch.equal(*logprobs)

    @pytest.mark.parametrize("types", TYPES, ids=str)
    @pytest.mark.parametrize("family", ["llama", "qwen3"])
    def test_layers_save_as_much_less_as_the_plan_says(self, family, types, rng, tmp_path):
        (batch,) = pack(make_groups(rng, 4, 8), 10**6)
        saved = {}
        for fused in (False, True):
            for layers in (2, 4):
                model = make_model(family, fused=fused, num_hidden_layers=layers)
                saved[fused, layers] = saved_bytes(PackedModel(model, **types), batch.to(CUDA))
        model.config.save_pretrained(tmp_path)
        sizes = read_sizes(str(tmp_path), ModelConfig())
        numbers = Numbers(
            bfloat16=False, autocast=bool(types), kernel="sdpa", bfloat16_stream="residual_stream" in types
        )
        plain, fused = (count_saved(sizes, replace(numbers, fused_layers=fused)).layer for fused in (False, True))
        less = (saved[False, 4] - saved[False, 2] - saved[True, 4] + saved[True, 2]) / 2
        assert less == pytest.approx(batch.tokens * (plain - fused), rel=0.05)

    def test_a_run(self, model_directory, tmp_path):
        """Trains, samples with a cache and merges as with plain layers; the announcement says whose layers they are."""
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text("".join(json.dumps({"prompt": f"ab{n}"}) + "\n" for n in range(4)))
        settings = {
            "model.path": model_directory, "model.device": "cuda", "model.fused_layers": "liger",
            "model.attention": "sdpa", "model.checkpoint_share": 0.5, "data.path": prompts,
            "rollout.max_response_tokens": 8, "batch.prompts_per_step": 4, "batch.responses_per_prompt": 4,
            "batch.tokens_per_microbatch": 40, "optim.lr": 1e-3, "run.steps": 3, "run.output": tmp_path / "run",
            "run.report": "false",
        }  # fmt: skip
        config, _ = read_config([f"--{name}={value}" for name, value in settings.items()])
        console = Console(record=True, quiet=False, width=200)
        train(config, console)
        assert "layers liger, 1 of 2 recomputed" in console.export_text()
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
            metrics = json.loads(line)
            assert metrics["grad_norm"] > 0 and metrics["ratio_p50"] == pytest.approx(1, abs=1e-3)
