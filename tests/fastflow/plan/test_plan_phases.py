"""The plan's bytes of the loss and of sampling against those that are really taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastflow.data.trajectory import Prompt
from fastflow.models.layers.experts import expert_weights
from fastflow.models.opening import load_models
from fastflow.plan import trainer_rows
from fastflow.plan.device import GIB, Device
from fastflow.plan.estimate import estimate
from fastflow.plan.remedies import changed, remedies
from fastflow.plan.rows import ALWAYS, BACKWARD, PHASES, SAMPLING
from fastflow.plan.table import verdict
from fastflow.rollout.decoding import DecodingBatch
from fastflow.rollout.vllm.weights import SharedWeights
from plans import CPU, GPU, configure, rows_of, total_bytes
from small_models import CARRYING, MIXTURES, VOCABULARY

EVALUATION = {
    "data__max_prompt_tokens": 30, "rollout__max_response_tokens": 70, "rollout__max_sequences": 12,
    "batch__prompts_per_step": 2, "batch__responses_per_prompt": 4, "eval__tasks": "own.jsonl",
}  # fmt: skip
OF_SAMPLER = ("KV cache of the local sampler", "copies of one layer's cache", "logits and cumulative sums")


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

    @pytest.mark.parametrize("family", MIXTURES)
    def test_experts_are_rounded_while_a_batch_is_decoded(self, family, models):
        name, autocast = ("trainer", "experts in bfloat16"), {"model__autocast": "true"}
        policy, _ = load_models((config := configure(models / family, **autocast)).model, config.lora)
        weights = [one for module in policy.model.modules() for one in expert_weights(module)]
        assert rows_of(config)[name].bytes == total_bytes(weights) // 2 > 0
        assert name not in rows_of(configure(models / family))
        assert name not in rows_of(configure(models / family, model__dtype="bfloat16", **autocast))
        assert name not in rows_of(configure(models / "qwen3", **autocast))

    @pytest.mark.parametrize("family", CARRYING)
    def test_the_state_of_linear_attention(self, family, models):
        """One of two layers has keys and values; the other a state that no token makes longer."""
        config = configure(models / family, data__max_prompt_tokens=30, rollout__max_response_tokens=70,
                           rollout__max_sequences=5, model__autocast="true")  # fmt: skip
        policy, _ = load_models(config.model, config.lora)
        with torch.no_grad(), policy.decoding():
            ids = np.arange(1, 10)
            cache = DecodingBatch.prefill(policy, [Prompt(ids, "x")] * 5).cache
        states = [one for layer in cache.layers if not hasattr(layer, "keys")
                  for one in (*layer.conv_states.values(), *layer.recurrent_states.values())]  # fmt: skip
        keys = [one for layer in cache.layers if hasattr(layer, "keys") for one in (layer.keys, layer.values)]
        rows = rows_of(config)
        assert rows["trainer", "state of linear attention"].bytes == total_bytes(states)
        assert rows["trainer", "KV cache of the local sampler"].bytes == total_bytes(keys) * 100 // len(ids)
        assert (
            f"{total_bytes(states) // 5:,} B a sequence"
            in rows_of(changed(config, "rollout.engine", "vllm"), GPU)["vllm", "vLLM's KV cache"].how
        )
        assert ("trainer", "state of linear attention") not in rows_of(configure(models / "llama"))

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

    def test_what_lies_in_the_host_s_memory_takes_none_of_the_gpu_s(self, models):
        peaks = {}
        for sleep in ("drop-weights", "weights-to-cpu"):
            result = estimate(configure(models / "large", rollout__engine="vllm", rollout__sleep=sleep), GPU)
            peaks[sleep] = {phase: result.peak(phase) for phase in PHASES}
        assert peaks["weights-to-cpu"] == peaks["drop-weights"]

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
        ("changes", "sequences", "length", "drawing"),
        [
            ({}, 8, 100, 20),  # training alone
            ({"every": 0, "max_response_tokens": 500}, 8, 100, 20),
            ({"every": 5}, 12, 100, 20),  # as many questions as are decoded at once
            ({"every": 5, "max_response_tokens": 500}, 12, 530, 20),
            ({"every": 5, "max_response_tokens": 500, "limit": 1, "samples": 4}, 4, 530, 20),
            ({"every": 5, "max_response_tokens": 20, "limit": 1, "samples": 4}, 8, 100, 20),  # shorter: training's
            ({"every": 5, "top_p": 0.9}, 12, 100, 36),
            ({"every": 5, "top_k": 20, "min_p": 0.1}, 12, 100, 20),  # no order of the whole vocabulary
            ({"every": 5, "top_p": 0.9, "temperature": 0, "samples": 1}, 12, 100, 20),  # greedy orders nothing
        ],
    )
    def test_an_evaluation_counts_where_it_needs_more(self, models, changes, sequences, length, drawing):
        config = configure(models / "llama", **EVALUATION, **{f"eval__{name}": to for name, to in changes.items()})
        rows = rows_of(config)
        cache, copies, logits = (rows["trainer", name].bytes for name in OF_SAMPLER)
        assert cache == sequences * length * (2 * 2 * 2 * 16 * 4)
        assert copies == sequences * length * (2 * 2 * 16 + 2 * 4 * 16) * 4
        evaluated = max(sequences, 8) if "limit" in changes else sequences  # training draws for 8
        assert logits == evaluated * VOCABULARY * drawing
        plain = rows_of(configure(models / "llama", **EVALUATION))
        assert [row for key, row in rows.items() if key[1] not in OF_SAMPLER] == [
            row for key, row in plain.items() if key[1] not in OF_SAMPLER
        ]  # an evaluation's responses are never trained on

    def test_vllm_has_room_for_an_evaluations_longest(self, models):
        def judged(**changes):
            config = configure(models / "large", rollout__engine="vllm", rollout__memory_fraction=0.2, **changes)
            return estimate(config, Device("cuda", 11 * GIB // 2, "a test"))

        evaluation = {"eval__every": 5, "eval__tasks": "own.jsonl", "eval__max_response_tokens": 15000}
        assert not judged().obstacles
        (obstacle,) = judged(**evaluation).obstacles
        assert "one sequence of 16,024 tokens" in obstacle and "lower eval.max_response_tokens" in obstacle

    def test_an_evaluations_responses_longer_than_the_models_context(self, models):
        def judged(limit, **changes):
            asked = {"eval__every": 5, "eval__max_response_tokens": limit}
            return estimate(configure(models / "llama", **(EVALUATION | asked | changes)), CPU)

        assert not judged(98).obstacles and not any("context" in remark for remark in judged(98).remarks)
        assert any("eval.max_response_tokens = 99, a prompt of more than 29" in text for text in judged(99).remarks)
        assert "eval.max_response_tokens = 128 leaves no room" in judged(128).obstacles[0]
        told = [remark for remark in judged(0, data__max_prompt_tokens=100).remarks if "context" in remark]
        assert len(told) == 1 and "rollout.max_response_tokens = 70, a prompt of more than 58" in told[0]  # for both

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


def test_a_policy_gradient_may_go_without_a_base(models):
    method = {"objective__name": "ttrl", "batch__responses_per_prompt": 8}
    usual, without = (
        estimate(configure(models / "large", surrogate__score_base=scored, **method), GPU)
        for scored in ("true", "false")
    )
    assert {row.name for row in usual.rows} - {row.name for row in without.rows} == {"frozen base"}
    assert "loads no base" in " ".join(without.remarks)
    config, small = configure(models / "large", **method), Device("cpu", GIB // 2, "a test")
    assert "--surrogate.score_base false" in [one.option for one in remedies(config, small, estimate(config, small))]


def test_distil_counts_neither_base_nor_sampler_nor_log_z(models):
    usual, offline = (
        estimate(configure(models / "large", objective__name=name), GPU) for name in ("powerflow", "distil")
    )
    gone = {row.name for row in usual.rows} - {row.name for row in offline.rows}
    assert {"frozen base", "log_z network", "KV cache of the local sampler"} <= gone
    assert "samples nothing and reads no base" in " ".join(offline.remarks)
    small = Device("cpu", GIB // 2, "a test")
    tried = remedies(
        configure(models / "large", objective__name="distil"),
        small,
        estimate(configure(models / "large", objective__name="distil"), small),
    )
    assert not any(remedy.setting.startswith("rollout") for remedy in tried)
