"""Adapters reach vLLM whole: merged where that loses nothing, applied by vLLM where bfloat16 would round them away."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cli_runs import settings
from fastflow.config.reader import read_config
from fastflow.config.schema import LoraConfig
from fastflow.errors import FastflowError
from fastflow.models.opening import load_models, with_adapters
from fastflow.models.packed import AdaptersOff, PackedModel
from fastflow.models.weights.merging import adapted_layers
from fastflow.plan.device import Device
from fastflow.plan.sizes import count_adapters, read_sizes
from fastflow.plan.vllm_rows import shared_bytes, vllm_rows
from fastflow.rollout import probe
from fastflow.rollout.server.weights import WeightFolder
from fastflow.rollout.vllm import kept_engine, messages
from fastflow.rollout.vllm import sampler as vllm_sampler
from fastflow.rollout.vllm.adapters import applies_adapters, remedy_of, room_for, write_adapters
from fastflow.rollout.vllm.weights import SharedWeights
from fastflow.train.digests import digest_of_base
from small_models import make_causal_lm
from vllm_runs import HEAD_DIM, PARAMS, assert_agrees, make_requests, needs_vllm, start


def make(family: str = "qwen3", dtype: torch.dtype = torch.float32, *, scale: float = 0.0, **lora) -> PackedModel:
    """A policy with adapters; scale: of their random weights, 0 for fresh ones."""
    causal_lm = make_causal_lm(family, hidden_size=128, head_dim=HEAD_DIM).to(dtype)
    model = PackedModel(with_adapters(causal_lm, LoraConfig(**{"rank": 4, "dropout": 0.0, **lora})))
    set_adapters(model, scale)
    return model


def set_adapters(model: PackedModel, scale: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if scale:
                parameter.normal_(std=scale)
    model.version += 1


@needs_vllm
@pytest.mark.parametrize(
    ("family", "lora"), [("qwen3", {}), ("qwen2", {"rank": 9}), ("llama", {"targets": "q_proj,down_proj"})]
)
def test_vllm_applies_the_adapters_of_the_moment(family, lora, rng):
    """Fresh ones, and two updates, against the live policy; biases, ranks between vLLM's, a part of the layers."""
    model = make(family, **lora)
    sampler = start(model, adapters="apply")
    try:
        for scale in (0.0, 0.05, 0.1):
            set_adapters(model, scale)
            sampler.load_weights(model)
            assert_agrees(sampler.sample(make_requests(rng), PARAMS), model)
    finally:
        sampler.close()


@needs_vllm
def test_a_new_process_gets_the_adapters_again(rng):
    model = make(scale=0.05)
    sampler = start(model, adapters="apply")
    try:
        sampler._engine.process._process.kill()
        assert_agrees(sampler.sample(make_requests(rng), PARAMS), model)
    finally:
        sampler.close()


@needs_vllm
def test_in_bfloat16_vllm_samples_what_was_learned(rng):
    """With adapters whose merge loses nearly all of them: log-probs follow the live policy, not its base."""
    model = make(dtype=torch.bfloat16, scale=0.0)
    with torch.no_grad():
        for _, layer in adapted_layers(model.causal_lm):  # one direction, small in each weight and large in the sum
            layer.lora_A["default"].weight.fill_(1.0)
            layer.lora_B["default"].weight.copy_(torch.linspace(-1, 1, len(layer.base_layer.weight))[:, None] * 2e-5)
    distance = {}
    for adapters in ("merge", "apply"):
        sampler = start(model, adapters=adapters)
        try:
            ids = probe.probe_for(model, 40)
            sampler._engine.process.send(messages.Probe(tuple(ids.tolist())))
            theirs = np.array(sampler._engine.process.wait_for(messages.Probed).logprobs)
        finally:
            sampler.close()
        distance[adapters] = float(np.abs(theirs - probe.logprobs_of(model, ids)).mean())
    assert distance["apply"] < distance["merge"], distance


class TestChoice:
    @pytest.mark.parametrize(
        ("choice", "dtype", "applied"),
        [
            ("auto", torch.float32, False),
            ("auto", torch.bfloat16, True),
            ("merge", torch.bfloat16, False),
            ("apply", torch.float32, True),
        ],
    )
    def test_auto_applies_where_a_merge_is_rounded(self, choice, dtype, applied):
        assert applies_adapters(make(dtype=dtype), choice, dtype) == applied
        assert not applies_adapters(PackedModel(make_causal_lm()), choice, dtype)

    def test_ranks_that_vllm_has_no_room_for(self):
        assert [room_for(rank) for rank in (1, 2, 8, 9, 300, 512)] == [1, 8, 8, 16, 320, 512]
        model = make(rank=513)
        assert not applies_adapters(model, "auto", torch.bfloat16)
        with pytest.raises(FastflowError, match=r"lora\.rank = 513 .* 512 .*rollout\.adapters merge"):
            applies_adapters(model, "apply", torch.bfloat16)


class TestWhatIsHandedOver:
    @pytest.mark.parametrize(
        ("family", "remedy"),
        [
            ("qwen3_moe", "set --model.autocast false and --model.dtype float32"),
            ("qwen3_5_moe_text", "train all weights with --lora.rank 0"),  # vLLM has it in bfloat16 alone there
        ],
    )
    def test_a_mixture_of_experts_on_a_cpu_gets_merged_weights(self, family, remedy):
        model = make(family, torch.bfloat16)
        assert not applies_adapters(model, "auto", torch.bfloat16)
        with pytest.raises(FastflowError, match=r"mixture of experts on a GPU only.* --rollout\.adapters merge"):
            applies_adapters(model, "apply", torch.bfloat16)
        assert (remedy_of(model), remedy_of(make())) == (remedy, "set --rollout.adapters apply")

    def test_the_weights_under_the_adapters_stand_there_unmerged(self):
        model = make("qwen2", torch.bfloat16, scale=0.1)
        names = {name for name, _ in make_causal_lm("qwen2").named_parameters()}
        before = {
            name.replace(".base_layer", ""): weight.clone()
            for name, weight in model.causal_lm.named_parameters()
            if ".lora_" not in name
        }
        weights = SharedWeights(model, merge=False)
        seen = {}
        for number in range(weights.rounds):
            weights.prepare(number)
            for place in weights.attach.rounds[number]:
                block = weights.attach.blocks[place.block]
                seen[place.name] = block[place.offset : place.offset + place.shape.numel()].view(place.shape)
        assert set(seen) == names
        assert all(torch.equal(seen[name], before[name]) for name in names)

    def test_the_adapters_are_those_of_peft(self, tmp_path):
        model = make(scale=0.1, alpha=7.0)
        model.model.save_pretrained(tmp_path / "peft")
        write_adapters(model, tmp_path / "ours")
        ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "peft"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        settings = [json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("ours", "peft")]
        for key in ("peft_type", "r", "lora_alpha", "bias"):
            assert settings[0][key] == settings[1][key]


class TestMergesThatLose:
    """Where adapters are merged all the same, a merge that rounds them away is told once."""

    def load(self, weights: SharedWeights) -> None:
        for number in range(weights.rounds):
            weights.prepare(number)

    @pytest.mark.parametrize(("scale", "loses"), [(1e-2, True), (0.2, False)])
    def test_shared_weights(self, scale, loses, caplog):
        model = make(dtype=torch.bfloat16, scale=scale)
        weights = SharedWeights(model, engine_dtype=torch.bfloat16)
        self.load(weights)
        told = "vLLM samples from merged weights in bfloat16"
        assert caplog.text.count(told) == loses
        self.load(weights)
        assert caplog.text.count(told) == loses
        if loses:
            assert "rollout.adapters apply" in caplog.text

    def test_fresh_adapters_lose_nothing(self, caplog):
        weights = SharedWeights(make(dtype=torch.bfloat16), engine_dtype=torch.bfloat16)
        self.load(weights)
        assert "rounding" not in caplog.text

    def test_an_engine_that_is_narrower_than_the_policy(self, caplog):
        self.load(SharedWeights(make(scale=1e-3), engine_dtype=torch.bfloat16))
        assert "merged weights in bfloat16" in caplog.text
        caplog.clear()
        self.load(SharedWeights(make(scale=1e-3), engine_dtype=torch.float32))
        assert not caplog.text

    def test_servers(self, caplog, tmp_path):
        folder, model = WeightFolder(str(tmp_path)), make(dtype=torch.bfloat16, scale=1e-2)
        folder.write(model)
        folder.write(model)
        assert caplog.text.count("vLLM samples from merged weights in bfloat16") == 1
        folder.close()


@pytest.mark.parametrize("way", ["shared", "gathered", "server"])
def test_the_frozen_base_is_the_same_after_100_loads(way, tmp_path):
    """Merging, and taking the merge back, would round the base in bfloat16 a little further each time."""
    model = make(dtype=torch.bfloat16, scale=0.2)
    if way == "server":
        folder = WeightFolder(str(tmp_path))

        def load() -> None:
            folder.keep_only(folder.write(model))
    else:
        weights = SharedWeights(model, engine_dtype=torch.bfloat16, gather=way == "gathered")

        def load() -> None:
            for number in weights.due(is_complete=False):
                weights.prepare(number)

    base = AdaptersOff(model)
    before = digest_of_base(base, model)
    for _ in range(100):
        set_adapters(model, 0.2)
        load()
        assert digest_of_base(base, model) == before
    if way == "server":
        folder.close()


def test_each_load_hands_the_adapters_over_before_it_counts(monkeypatch, rng):
    sent = []

    class Notes:
        def __init__(self, settings, **_):
            assert settings.lora_rank == 4 and "q_proj" in settings.lora_targets

        def send(self, message):
            if isinstance(message, messages.Adopt):
                sent.append(load_file(f"{message.directory}/adapter_model.safetensors"))
            else:
                sent.append(type(message).__name__)
            self.last = message

        def wait_for(self, kind):
            return (
                messages.Probed(tuple(probe.logprobs_of(model, np.array(self.last.ids))))
                if kind is messages.Probed
                else kind()
            )

        def end(self): ...

    monkeypatch.setattr(kept_engine, "EngineProcess", Notes)
    monkeypatch.setattr(vllm_sampler, "check_installed", lambda: None)
    model = make(dtype=torch.bfloat16)
    sampler = start(model)
    sent.clear()
    set_adapters(model, 0.1)
    sampler.load_weights(model)
    assert sent[0] == "Load" and sent[-1] == "Commit"
    adapters = sent[-2]
    live = dict(model.model.named_parameters())
    name = next(iter(adapters))
    assert torch.equal(adapters[name], live[name.replace(".weight", ".default.weight")].detach())
    sampler.close()


@pytest.mark.parametrize("changes", [{"model__dtype": "bfloat16"}, {"rollout__adapters": "apply"}, {}])
def test_the_plan_counts_what_the_sampler_takes(changes, tmp_path):
    values = settings(tmp_path, **{"lora__rank": 4, "rollout__engine": "vllm", **changes})
    config = read_config([f"--{name}={value}" for name, value in values.items()])[0]
    policy = load_models(config.model, config.lora)[0]
    dtype = next(policy.causal_lm.parameters()).dtype
    applied = applies_adapters(policy, config.rollout.adapters, dtype)
    assert applied == bool(changes)
    blocks = SharedWeights(policy, engine_dtype=dtype, merge=not applied).attach.blocks
    model, adapters = read_sizes(config.model.path, config.model), count_adapters(
        config.model.path, config.model, config.lora
    )  # fmt: skip
    assert shared_bytes(config, model, adapters) == sum(block.nbytes for block in blocks)
    names = [row.name for row in vllm_rows(config, model, adapters, Device("cpu", 2**36, "a test"))[0]]
    assert ("vLLM's adapters" in names) == applied and ("bucket of merged weights" in names) != applied


@pytest.mark.parametrize("mixture", [False, True])
def test_the_plan_refuses_what_the_sampler_refuses(mixture, tmp_path):
    values = settings(tmp_path, lora__rank=4 if mixture else 600, rollout__engine="vllm", rollout__adapters="apply")
    config = read_config([f"--{name}={value}" for name, value in values.items()])[0]
    model, adapters = read_sizes(config.model.path, config.model), count_adapters(
        config.model.path, config.model, config.lora
    )  # fmt: skip
    model = dataclasses.replace(model, experts=4 if mixture else 0)
    _, _, obstacles = vllm_rows(config, model, adapters, Device("cpu", 2**36, "a test"))
    words = "on a GPU only" if mixture else "lora.rank = 600 is more than the 512 that vLLM can apply"
    assert [words in obstacle for obstacle in obstacles] == [True]
