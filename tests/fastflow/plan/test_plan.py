"""`fastflow plan`: its counts against models that are really built, run and stepped; its verdict and its remedies."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from fastflow import cli
from fastflow.config.reader import read_config
from fastflow.data.packing import pack
from fastflow.data.trajectory import Group, Prompt, Trajectory
from fastflow.models.packed import load_models
from fastflow.plan import device as plan_device
from fastflow.plan import trainer_rows
from fastflow.plan.activations import SHARING_VARLEN, WIDE_SDPA, Numbers, checkpoint_bytes, layer_bytes, outer_bytes
from fastflow.plan.device import GIB, Device, find_device
from fastflow.plan.estimate import estimate
from fastflow.plan.remedies import changed, combination, remedies
from fastflow.plan.rows import ALWAYS, BACKWARD, FORWARD, LOSS, PHASES, SAMPLING, size
from fastflow.plan.sizes import count_adapters, read_sizes
from fastflow.plan.table import verdict
from fastflow.plan.trainer_rows import microbatch_tokens, numbers_of
from fastflow.rollout.vllm.weights import SharedWeights
from fastflow.train.learner import Learner
from small_models import FAMILIES, VOCABULARY, make_causal_lm, make_groups, save_model

CPU = Device("cpu", 64 * GIB, "a test")
GPU = Device("cuda", 80 * GIB, "a test")
LARGE = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8, "head_dim": 64, "vocab_size": 4096,
         "max_position_embeddings": 16384}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Saved models by name; read only. "large" has a config.json alone."""
    home = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        save_model(home / family, family=family, head_dim=16)
        save_model(home / f"{family}-untied", family=family, tied=False)
    save_model(home / "larger", vocab_size=VOCABULARY + 8)
    make_causal_lm("llama", **LARGE).config.save_pretrained(home / "large")
    return home


def configure(path, **changes):
    settings = {"model.device": "cpu", **{name.replace("__", "."): value for name, value in changes.items()}}
    return read_config([f"--model.path={path}", *(f"--{name}={value}" for name, value in settings.items())])[0]


def rows_of(config, device=CPU):
    return {(row.side, row.name): row for row in estimate(config, device).rows}


def invoke(capsys, *arguments):
    capsys.readouterr()
    try:
        code = cli.main(["plan", *map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    return (code, *capsys.readouterr())


def total_bytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class TestCounts:
    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_parameters_are_those_of_the_loaded_models(self, models, family, tied, dtype):
        config = configure(models / (family if tied else f"{family}-untied"), model__dtype=dtype)
        policy, base = load_models(config.model, config.lora)
        rows = rows_of(config)
        assert rows["trainer", "policy's parameters"].bytes == total_bytes(policy.parameters())
        assert rows["trainer", "frozen base"].bytes == total_bytes(base.model.parameters())

    @pytest.mark.parametrize(("rank", "log_z"), [(0, "learned"), (0, "group_mean"), (4, "learned")])
    def test_gradients_and_moments_are_those_of_a_step(self, models, rng, rank, log_z):
        config = configure(models / "qwen3", objective__log_z=log_z, lora__rank=rank)
        learner = Learner(*load_models(config.model, config.lora), config, total_updates=1)
        learner.update(make_groups(rng))
        trained, head = learner.policy.parameters(), learner.log_z_head
        own = [] if head is None else list(head.parameters())
        moments = [value for entry in trained for value in learner.optimizer.state[entry].values()]
        rows = rows_of(config)
        assert rows["trainer", "gradients"].bytes == total_bytes(trained)
        assert rows["trainer", "AdamW's moments"].bytes == total_bytes(moments)
        assert ("trainer", "log_z network") in rows or head is None
        if head is not None:
            assert rows["trainer", "log_z network"].bytes == 4 * total_bytes(own)

    @pytest.mark.parametrize("targets", ["all-linear", "q_proj,v_proj"])
    def test_adapters_are_the_only_thing_that_lora_trains(self, models, targets):
        config = configure(models / "llama", lora__rank=3, lora__targets=targets, model__dtype="bfloat16")
        policy, _ = load_models(config.model, config.lora)
        trained = policy.parameters()
        assert count_adapters(config.model.path, config.model, config.lora).tensors == len(trained)
        rows = rows_of(config)
        assert rows["trainer", "adapters"].bytes == total_bytes(trained)
        assert ("trainer", "frozen base") not in rows
        assert ("trainer", "gradient of the head") not in rows

    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("autocast", ["true", "false"])
    def test_a_bfloat16_base_under_autocast_takes_half(self, models, tmp_path, tied, autocast):
        path = save_model(tmp_path / "narrow", family="qwen2", tied=tied, dtype=torch.bfloat16)
        config = configure(path, model__autocast=autocast)
        policy, base = load_models(config.model, config.lora)
        rows = rows_of(config)
        assert rows["trainer", "policy's parameters"].bytes == total_bytes(policy.parameters())
        assert rows["trainer", "frozen base"].bytes == total_bytes(base.model.parameters())
        ratio = rows["trainer", "frozen base"].bytes / rows["trainer", "policy's parameters"].bytes
        assert 0.5 < ratio < 0.53 if autocast == "true" else ratio == 1

    def test_another_base_is_counted_for_itself(self, models, tmp_path):
        deep = save_model(tmp_path / "deep", num_hidden_layers=5, head_dim=16)
        rows = rows_of(configure(models / "llama", model__base=deep))
        assert rows["trainer", "frozen base"].bytes == 4 * read_sizes(str(deep), configure(deep).model).parameters
        assert rows["trainer", "frozen base"].bytes > rows["trainer", "policy's parameters"].bytes


CASES = [
    ({}, 1.0),
    ({"model__dtype": "bfloat16"}, 1.0),
    ({"model__autocast": "true"}, 1.0),
    ({"model__autocast": "true", "model__dtype": "bfloat16"}, 1.0),
    ({"lora__rank": 4}, 1.0),
    ({"lora__rank": 4, "model__dtype": "bfloat16"}, 1.0),
    ({"lora__rank": 4, "model__autocast": "true"}, 1.02),  # the adapters' own bfloat16 copies are left out
    ({"lora__rank": 4, "model__autocast": "true", "model__dtype": "bfloat16"}, 1.02),
    ({"lora__rank": 4, "lora__dropout": 0.1}, 1.15),  # a mask takes one byte on CUDA and four on a CPU
    ({"lora__rank": 4, "lora__dropout": 0.1, "model__autocast": "true"}, 1.15),
    ({"lora__rank": 4, "lora__dropout": 0.1, "model__dtype": "bfloat16"}, 1.15),
    ({"model__checkpoint_share": 1}, 1.0),
    ({"model__checkpoint_share": 1, "model__autocast": "true"}, 1.0),
    ({"model__checkpoint_share": 1, "lora__rank": 4}, 1.0),
]


class TestActivations:
    """Against the tensors that autograd saves in a real forward pass; layers are separated from the rest by depth."""

    @pytest.mark.parametrize("family", ["llama", "qwen3"])
    @pytest.mark.parametrize(("changes", "factor"), CASES, ids=lambda value: str(value))
    @pytest.mark.filterwarnings("ignore")
    def test_a_layer_saves_what_the_formula_says(self, tmp_path, family, changes, factor):
        saved = {}
        for layers in (2, 4):
            path = save_model(tmp_path / str(layers), family=family, num_hidden_layers=layers, **WIDTHS)
            config = configure(path, **changes)
            saved[layers], tokens = saved_bytes(config)
        model = read_sizes(str(path), config.model)
        numbers = numbers_of(config, model, CPU)
        if config.model.checkpoint_share:
            expected = tokens * checkpoint_bytes(model, numbers)
        else:
            casts = 2 * model.body_linear // model.layers if numbers.autocast and not numbers.bfloat16 else 0
            expected = tokens * layer_bytes(model, numbers) + casts
        measured = (saved[4] - saved[2]) / 2
        assert expected / factor <= measured <= expected * factor

    def test_the_whole_row_of_a_full_fine_tuning(self, tmp_path):
        path = save_model(tmp_path / "model", **WIDTHS)
        config = configure(path, data__max_prompt_tokens=9, rollout__max_response_tokens=56,
                           batch__tokens_per_microbatch=256)  # fmt: skip
        saved, tokens = saved_bytes(config)
        assert tokens == microbatch_tokens(config) == 256
        assert rows_of(config)["trainer", "activations"].bytes == saved

    @pytest.mark.parametrize(
        ("changes", "shares_heads", "kernel"),
        [({}, True, WIDE_SDPA), ({"model__autocast": "true"}, False, "varlen"),
         ({"model__dtype": "bfloat16"}, True, SHARING_VARLEN),
         ({"model__autocast": "true", "model__attention": "sdpa"}, True, "sdpa")],
    )  # fmt: skip
    def test_kernels_of_a_gpu(self, models, changes, shares_heads, kernel, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # whether or not flash-attn is installed
        monkeypatch.setattr("fastflow.models.attention.varlen_shares_heads", lambda: shares_heads)
        config = configure(models / "llama", model__device="cuda", **changes)
        assert numbers_of(config, read_sizes(config.model.path, config.model), GPU).kernel == kernel

    @pytest.mark.parametrize("changes", [{}, {"model__autocast": "true"}], ids=str)
    def test_the_row_of_a_share_that_recomputes(self, tmp_path, changes):
        path = save_model(tmp_path / "model", num_hidden_layers=4, **WIDTHS)
        config = configure(path, model__checkpoint_share=0.5, data__max_prompt_tokens=9,
                           rollout__max_response_tokens=56, batch__tokens_per_microbatch=256, **changes)  # fmt: skip
        saved, _ = saved_bytes(config)
        rows = rows_of(config)
        copies = rows.get(("trainer", "bfloat16 copies of the weights"))
        assert rows["trainer", "activations"].bytes + (copies.bytes if copies else 0) == saved
        assert ("trainer", "one layer, recomputed") not in rows
        again = rows.get(("trainer", "bfloat16 copies in recomputed layers"))
        assert (again is None) is (not changes)
        assert again is None or (again.bytes == copies.bytes and again.moments == (FORWARD,))

    def test_ligers_layers_save_less(self, models, monkeypatch):
        """By the formulas: 15 numbers of the width and the MLP's silu less in bfloat16 parameters; see test_devices."""
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "liger_kernel")
        for family, dtype in (("llama", "float32"), ("qwen3", "bfloat16")):
            config = configure(models / family, model__device="cuda", model__dtype=dtype)
            model = read_sizes(config.model.path, config.model)
            numbers = numbers_of(config, model, GPU)
            assert numbers.fused_layers
            plain = numbers_of(changed(config, "model.fused_layers", "off"), model, GPU)
            compiled = numbers_of(changed(config, "model.compile", "layers"), model, GPU)
            assert not plain.fused_layers and compiled == plain
            size, normalised = (4, 0) if dtype == "float32" else (2, model.query + model.key)
            less = 2 * 4 * model.hidden + size * model.intermediate + 4 * normalised
            assert layer_bytes(model, plain) - layer_bytes(model, numbers) == less

    def test_tokens_of_the_largest_microbatch(self, models):
        lengths = {"data__max_prompt_tokens": 10, "rollout__max_response_tokens": 91}
        assert microbatch_tokens(configure(models / "llama", batch__tokens_per_microbatch=500, **lengths)) == 500
        assert microbatch_tokens(configure(models / "llama", batch__tokens_per_microbatch=50, **lengths)) == 100
        few = {"batch__prompts_per_step": 4, "batch__responses_per_prompt": 2, "batch__updates_per_rollout": 2}
        assert microbatch_tokens(configure(models / "llama", **few, **lengths)) == 2 * 2 * 100


WIDTHS = {
    "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


def saved_bytes(config) -> tuple[int, int]:
    """Bytes that autograd saves in one forward pass, parameters and buffers aside; and the tokens of the batch."""
    policy, _ = load_models(config.model, config.lora)
    policy.model.train()
    rng = np.random.default_rng(0)
    answers = tuple(Trajectory(rng.integers(1, 40, 56), np.zeros(56, np.float32), "length") for _ in range(4))
    (batch,) = pack([Group(Prompt(rng.integers(1, 40, 9)), answers)], 10**9)
    known = {tensor.untyped_storage().data_ptr() for tensor in (*policy.model.parameters(), *policy.model.buffers())}
    saved: dict[int, torch.Tensor] = {}  # the tensors themselves, or their memory would be used again

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in known:
            saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.hidden_states(batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values()), batch.tokens


class TestLoss:
    def test_workspace_on_a_gpu(self, models):
        """One block of bfloat16 entries, the head in the products' type, its float32 gradient, twice where needed."""
        config = configure(models / "large", model__autocast="true")
        rows, head = rows_of(config, GPU), 4096 * 256
        assert rows["trainer", "a block of logits"].bytes == 16384 * 4096 * 2
        assert rows["trainer", "copy of the head"].bytes == 2 * head
        assert rows["trainer", "gradient of the head"].bytes == 4 * head
        assert ("trainer", "the same for long sequences") not in rows
        longer = rows_of(changed(config, "rollout.max_response_tokens", 17_000), GPU)
        assert longer["trainer", "the same for long sequences"].bytes == 4 * head

    def test_bfloat16_parameters_on_a_cpu_that_multiplies_them(self, models, monkeypatch):
        monkeypatch.setattr(trainer_rows, "cpu_multiplies_bfloat16", lambda: True)
        rows = rows_of(configure(models / "large", model__dtype="bfloat16"))
        assert ("trainer", "copy of the head") not in rows
        assert rows["trainer", "a block of logits"].bytes == 8192 * 4096 * 2
        assert rows["trainer", "gradient of the head"].bytes == 2 * 4096 * 256
        assert rows["trainer", "its sum over blocks"].bytes == 4 * 4096 * 256
        small = rows_of(configure(models / "large", model__dtype="bfloat16", batch__tokens_per_microbatch="4096"))
        assert ("trainer", "its sum over blocks") not in small  # there is one block

    def test_bfloat16_parameters_on_a_cpu_that_does_not(self, models, monkeypatch):
        monkeypatch.setattr(trainer_rows, "cpu_multiplies_bfloat16", lambda: False)
        rows = rows_of(configure(models / "large", model__dtype="bfloat16"))
        assert rows["trainer", "copy of the head"].bytes == 4 * 4096 * 256
        assert rows["trainer", "a block of logits"].bytes == 4096 * 4096 * 4
        assert rows["trainer", "its sum over blocks"].bytes == 4 * 4096 * 256


class TestSampling:
    def test_the_local_samplers_cache(self, models):
        lengths = {"data__max_prompt_tokens": 30, "rollout__max_response_tokens": 70, "rollout__max_sequences": 5}
        row = rows_of(configure(models / "llama", **lengths))["trainer", "KV cache of the local sampler"]
        assert row.bytes == 5 * 100 * (2 * 2 * 2 * 16 * 4)  # keys and values, layers, key heads, width, float32
        assert row.moments == (SAMPLING,)

    def test_vllm_takes_its_share_of_a_gpu_and_fills_it_with_cache(self, models):
        config = configure(models / "large", rollout__engine="vllm", model__autocast="true")
        rows = rows_of(config, GPU)
        parts = [rows["vllm", name].bytes for name in ("vLLM's weights", "vLLM's workspace", "vLLM's KV cache")]
        assert sum(parts) == int(0.4 * GPU.memory)
        assert parts[0] * 2 == rows["trainer", "policy's parameters"].bytes  # bfloat16 beside float32
        assert ("vllm", "bucket of merged weights") not in rows

    @pytest.mark.parametrize(
        ("device", "changes", "stays"),
        [
            (GPU, {}, False),
            (GPU, {"rollout__sleep": "weights-to-cpu"}, False),
            (GPU, {"rollout__sleep": "off"}, True),
            (GPU, {"rollout__ahead": 1}, True),
            (CPU, {}, True),
        ],
    )
    def test_what_vllm_keeps_while_the_policy_trains(self, models, device, changes, stays):
        result = estimate(configure(models / "large", rollout__engine="vllm", **changes), device)
        rows = {row.name: row for row in result.rows}
        for name in ("vLLM's weights", "vLLM's KV cache"):
            assert (rows[name].moments == ALWAYS) is stays
        assert ("vLLM's weights on the host" in rows) is ("rollout__sleep" in changes and not stays)
        _, training = result.peak("training")
        host = rows.get("vLLM's weights on the host")
        assert host is None or host.bytes == rows["vLLM's weights"].bytes
        trained = sum(row.bytes for row in result.rows if row.side == "trainer" and BACKWARD in row.moments)
        assert (training > trained + rows["vLLM's KV cache"].bytes) is stays

    def test_a_share_too_small_for_one_sequence_is_an_obstacle(self, models):
        config = configure(models / "large", rollout__engine="vllm", rollout__memory_fraction=0.01)
        small = Device("cuda", 8 * GIB, "a test")
        result = estimate(config, small)
        assert not result.fits and "cannot hold one sequence of 4,096 tokens" in result.obstacles[0]
        (remedy,) = [one for one in remedies(config, small, result) if one.setting == "rollout.memory_fraction"]
        assert not estimate(changed(config, remedy.setting, remedy.value), small).obstacles

    def test_merged_weights_pass_through_buckets(self, models):
        rows = rows_of(configure(models / "large", rollout__engine="vllm", lora__rank=2), GPU)
        assert rows["vllm", "bucket of merged weights"].bytes <= 256 * 2**20
        assert rows["vllm", "bucket of merged weights"].moments == ALWAYS

    @pytest.mark.parametrize("targets", ["all-linear", "q_proj,v_proj"])
    def test_shared_memory_with_adapters_is_what_the_sampler_takes(self, models, targets):
        config = configure(models / "qwen2", rollout__engine="vllm", lora__rank=2, lora__targets=targets,
                           rollout__max_response_tokens=9)  # fmt: skip
        blocks = SharedWeights(load_models(config.model, config.lora)[0]).attach.blocks
        room = total_bytes(blocks)
        assert not estimate(config, Device("cpu", 64 * GIB, "a test", shared=room)).obstacles
        assert "--shm-size" in estimate(config, Device("cpu", 64 * GIB, "a test", shared=room - 1)).obstacles[0]

    def test_copies_of_one_layers_cache(self, models):
        lengths = {"data__max_prompt_tokens": 30, "rollout__max_response_tokens": 70, "rollout__max_sequences": 5}
        row = rows_of(configure(models / "llama", **lengths))["trainer", "copies of one layer's cache"]
        assert row.bytes == 5 * 100 * (2 * 2 * 16 + 2 * 4 * 16) * 4  # keys and values of 2 heads, and of 4
        assert row.moments == (SAMPLING,)

    def test_responses_longer_than_the_models_context(self, models):
        def judged(prompt, response):
            config = configure(models / "llama", data__max_prompt_tokens=prompt, rollout__max_response_tokens=response)
            return estimate(config, CPU)

        assert not judged(28, 100).obstacles and not any("context" in remark for remark in judged(28, 100).remarks)
        assert not judged(29, 100).obstacles and any("more than 28 tokens" in text for text in judged(29, 100).remarks)
        assert not judged(1, 127).obstacles and "context of 128 tokens" in judged(1, 128).obstacles[0]

    @pytest.mark.parametrize(
        ("device", "changes", "words"),
        [
            (CPU, {"rollout__sleep": "drop-weights"}, "rollout.sleep = drop-weights"),
            (GPU, {"rollout__sleep": "drop-weights"}, None),
            (GPU, {"model__device": "cuda:1"}, "CUDA_VISIBLE_DEVICES=1"),
            (GPU, {"model__device": "cuda:0"}, None),
        ],
    )
    def test_what_the_vllm_sampler_refuses(self, models, device, changes, words):
        config = configure(models / "large", rollout__engine="vllm", **changes)
        obstacles = estimate(config, device).obstacles
        assert len(obstacles) == (words is not None) and all(words in text for text in obstacles)
        if "rollout__sleep" in changes and words:
            assert [one.option for one in remedies(config, device, estimate(config, device))] == [
                "--rollout.sleep auto"
            ]
        assert not estimate(configure(models / "large", **changes), device).obstacles  # the local sampler

    def test_the_verdict_on_a_cpu_depends_on_malloc(self, models):
        config = configure(models / "large")
        needed = max(estimate(config, CPU).peak(phase)[1] for phase in PHASES)
        for memory, words in ((needed * 2, "fits: "), (needed * 2 - 1, "fits if malloc gives back what is freed: ")):
            result = estimate(config, Device("cpu", memory, "a test"))
            assert result.fits and verdict(config, result).startswith(words)

    def test_shared_memory_must_hold_the_parameters(self, models):
        config = configure(models / "large", rollout__engine="vllm")
        assert estimate(config, Device("cpu", 64 * GIB, "a test", shared=GIB)).fits
        result = estimate(config, Device("cpu", 64 * GIB, "a test", shared=2**20))
        assert not result.fits and not result.shortfall and "--shm-size" in result.obstacles[0]

    def test_the_size_of_vllms_cache_on_a_cpu(self, models, monkeypatch):
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
        rows = rows_of(configure(models / "large", rollout__engine="vllm"))
        assert rows["vllm", "vLLM's KV cache"].bytes == 3 * GIB

    def test_servers_are_not_counted(self, models):
        config = configure(models / "large", rollout__engine="vllm-server", rollout__servers="[http://host:8000]")
        result = estimate(config, GPU)
        assert {row.side for row in result.rows} == {"trainer"} and "servers" in result.remarks[0]


class TestRemedies:
    @pytest.mark.parametrize("device_type", ["cpu", "cuda"])
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"rollout__engine": "vllm"},
            {"rollout__engine": "vllm", "rollout__sleep": "off"},
            {"rollout__engine": "vllm", "rollout__ahead": 1},
            {"lora__rank": 4},
        ],
        ids=str,
    )
    def test_each_saves_what_it_says(self, models, changes, device_type):
        config = configure(models / "large", **changes)
        device = Device(device_type, int(1.4 * GIB), "a test")
        before = estimate(config, device)
        assert not before.fits
        found = remedies(config, device, before)
        assert found
        for remedy in found:
            after = estimate(changed(config, remedy.setting, remedy.value), device)
            assert after.fits is remedy.fits
            for phase in PHASES:
                assert before.peak(phase)[1] - after.peak(phase)[1] == remedy.saves[phase]
        assert [one.fits for one in found] == sorted((one.fits for one in found), reverse=True)

    def test_all_settings_that_can_help_are_tried(self, models):
        config = configure(models / "large", rollout__engine="vllm", rollout__sleep="off")
        device = Device("cuda", GIB, "a test")
        settings = {one.setting for one in remedies(config, device, estimate(config, device))}
        assert settings >= {
            "batch.tokens_per_microbatch", "model.checkpoint_share", "model.autocast", "lora.rank",
            "rollout.sleep",
        }  # fmt: skip

    def test_several_together_where_none_is_enough(self, models):
        config, device = configure(models / "large"), Device("cpu", int(0.75 * GIB), "a test")
        before = estimate(config, device)
        assert not any(one.fits for one in remedies(config, device, before))
        chosen = combination(config, device, before)
        assert len(chosen) > 1 and len({one.setting for one in chosen}) == len(chosen)
        for remedy in chosen:
            config = changed(config, remedy.setting, remedy.value)
        assert estimate(config, device).fits is chosen[-1].fits is True


class TestDevice:
    def test_a_size_means_a_gpu_unless_the_cpu_is_asked_for(self, models):
        assert find_device(configure(models / "llama", model__device="auto").model, 24).type == "cuda"
        assert find_device(configure(models / "llama", model__device="cuda:1").model, 24).memory == 24 * GIB
        assert find_device(configure(models / "llama").model, 24).type == "cpu"

    def test_this_machine(self, models):
        found = find_device(configure(models / "llama").model, None)
        assert found.type == "cpu" and found.memory == plan_device.ram() > 0

    def test_a_containers_limit_counts(self, tmp_path, monkeypatch):
        (tmp_path / "max").write_text("1000\n")
        monkeypatch.setattr(plan_device, "CGROUP_LIMITS", (str(tmp_path / "max"), str(tmp_path / "absent")))
        assert plan_device.ram() == 1000
        (tmp_path / "max").write_text("max\n")
        assert plan_device.ram() > 1000

    def test_a_gpu_that_is_here(self, models, monkeypatch):
        properties = namedtuple("properties", "total_memory name")(80 * GIB, "a large GPU")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        found = find_device(configure(models / "llama", model__device="auto").model, None)
        assert (found.type, found.memory, found.origin) == ("cuda", 80 * GIB, "a large GPU")

    def test_no_shared_memory(self, tmp_path, monkeypatch):
        monkeypatch.setattr(plan_device, "SHARED_MEMORY", tmp_path / "absent")
        assert plan_device.shared_memory() is None


class TestCommand:
    def test_it_fits(self, capsys, models, tmp_path):
        file = tmp_path / "new" / "plan.json"
        code, out, err = invoke(capsys, "--model.path", models / "large", "--memory", 80, "--json", file)
        assert (code, err) == (0, "")
        assert "fits: " in out and "not measured on a GPU yet" in out
        plan = json.loads(file.read_text())
        assert plan["fits"] and plan["remedies"] == plan["together"] == [] and plan["device"]["memory"] == 80 * GIB
        for phase, values in plan["phases"].items():
            rows = [row for row in plan["rows"] if values["moment"] in row["moments"]]
            assert values["bytes"] == sum(row["bytes"] for row in rows), phase

    def test_it_does_not_fit(self, capsys, models, tmp_path):
        file = tmp_path / "plan.json"
        code, out, err = invoke(
            capsys, "--model.path", models / "large", "--rollout.engine=vllm", "--memory=1.5", "--json", file
        )
        assert (code, err) == (1, "")
        plan = json.loads(file.read_text())
        assert "does not fit" in out and "more than 1.50 GiB (--memory)" in " ".join(out.split())
        assert plan["shortfall"] > 0 and plan["remedies"]
        assert all(f"--{remedy['setting']} " in out for remedy in plan["remedies"])

    def test_preset_and_file_are_read_as_by_train(self, capsys, models, tmp_path):
        file = tmp_path / "run.yaml"
        file.write_text(f"model:\n  path: {models / 'large'}\n")
        json_file = tmp_path / "plan.json"
        arguments = ("--preset", "paper-creative", "--config", file, "--memory", 80, "--json", json_file)
        assert invoke(capsys, *arguments)[0] == 0
        names = [row["name"] for row in json.loads(json_file.read_text())["rows"]]
        assert "one layer, recomputed" in names  # the preset's checkpoint_share

    def test_help(self, capsys):
        code, out, _ = invoke(capsys, "--help")
        assert code == 0 and "--memory GIB" in out and "fastflow train --help" in out

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], ("model.path is not set",)),
            (["--model.path=/absent/model"], ("model directory /absent/model does not exist",)),
            (["--model.path={fine}", "--memory=0"], ("--memory is 0", "above 0")),
            (["--model.path={fine}", "--memory=nan"], ("--memory is nan",)),
            (["--model.path={fine}", "--memory=1e300"], ("--memory is 1e+300", "at most 1,000,000")),
            (["--model.path={fine}", "--memory=much"], ("--memory", "much", "fastflow plan --help")),
            (["--model.path={fine}", "--dry-run"], ("--dry-run", "fastflow train")),
            (["--model.path={fine}", "--model.pth=x"], ("unknown option --model.pth", "model.path?")),
            (["--model.path={fine}", "--model.device=gpu", "--memory=4"], ("model.device = 'gpu'",)),
            (["--model.path={fine}", "--model.base={larger}"], ("different vocabularies",)),
            (["--model.path={fine}", "--model.device=cpu", "--model.attention=varlen"], ("model.attention",)),
            (["--model.path={fine}", "--lora.rank=2", "--lora.targets=nothing"], ("lora.targets",)),
            (["--model.path={fine}", "--json={fine}"], ("--json", "cannot be written")),
        ],
    )
    def test_user_errors(self, capsys, models, arguments, words):
        paths = {"fine": models / "llama", "larger": models / "larger"}
        code, out, err = invoke(capsys, *(argument.format(**paths) for argument in arguments))
        assert code == 2 and err.count("\n") == 1 and "Traceback" not in out + err
        for word in words:
            assert word in err

    def test_no_empty_file_is_left(self, capsys, tmp_path):
        file = tmp_path / "plan.json"
        assert invoke(capsys, "--model.path=/absent/model", "--json", file)[0] == 2
        assert not file.exists()
        file.write_text("kept")
        assert invoke(capsys, "--model.path=/absent/model", "--json", file)[0] == 2
        assert file.read_text() == "kept"

    def test_a_model_that_is_none_of_ours(self, capsys, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
        code, _, err = invoke(capsys, "--model.path", tmp_path)
        assert code == 2 and "'gpt2'" in err and "llama, qwen2, qwen3" in err
        (tmp_path / "config.json").write_text("{")
        code, _, err = invoke(capsys, "--model.path", tmp_path)
        assert code == 2 and "cannot load the model" in err


REAL_UPDATES = """
import sys
import numpy as np
import torch
from fastflow.config.reader import read_config
from fastflow.train.learner import Learner
from fastflow.models.packed import load_models
from fastflow.data.trajectory import Group, Prompt, Trajectory
from transformers import AutoModelForCausalLM, LlamaForCausalLM



def resident(name):  # getrusage would also count what the parent held when it started this process
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name + ":"))


torch.set_num_threads(1)
config, _ = read_config(sys.argv[1:])
before = resident("VmRSS")
learner = Learner(*load_models(config.model, config.lora), config, total_updates=2)
rng = np.random.default_rng(0)
answers = tuple(Trajectory(rng.integers(1, 4000, 449), np.full(449, -9, np.float32), "length") for _ in range(4))
for _ in range(2):
    learner.update([Group(Prompt(rng.integers(1, 4000, 64)), answers)])
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="needs /proc and glibc")
@pytest.mark.parametrize("changes", [{}, {"lora.rank": 8}], ids=str)
def test_the_peak_of_real_updates(tmp_path, changes):
    """Where malloc returns what is freed; a model and tokens that are large beside the interpreter's own needs."""
    sizes = {**LARGE, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4}
    sizes["max_position_embeddings"] = 1024
    make_causal_lm("llama", tied=False, **sizes, initializer_range=0.02).save_pretrained(tmp_path)
    arguments = [
        f"--model.path={tmp_path}", "--model.device=cpu", "--data.max_prompt_tokens=64",
        "--rollout.max_response_tokens=449", "--batch.prompts_per_step=1", "--batch.responses_per_prompt=4",
        "--batch.tokens_per_microbatch=4096", *(f"--{name}={value}" for name, value in changes.items()),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", REAL_UPDATES, *arguments], capture_output=True, text=True, timeout=300,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = estimate(read_config(arguments)[0], CPU)
    own = next(row.bytes for row in result.rows if row.name == "Python and its libraries")
    assert int(done.stdout) == pytest.approx(result.peak("training")[1] - own, rel=0.15)


def test_a_block_of_logits_exists_in_the_loss_only(models):
    assert rows_of(configure(models / "large"), GPU)["trainer", "a block of logits"].moments == (LOSS,)


def test_outer_bytes_without_trained_norms_are_fewer(models):
    model = read_sizes(str(models / "llama"), configure(models / "llama").model)
    assert outer_bytes(model, Numbers(False, False, "sdpa", lora_rank=1)) < outer_bytes(
        model, Numbers(False, False, "sdpa")
    )


@pytest.mark.parametrize(
    ("number", "text"), [(3 * GIB, "3.00 GiB"), (GIB // 2, "0.50 GiB"), (5 * 2**20, "5.0 MiB"), (2048, "2.0 KiB")]
)
def test_sizes_for_people(number, text):
    assert size(number) == text
