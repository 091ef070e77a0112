"""`fastflow plan`: the update's speed, where updates of such a kind were measured."""

from __future__ import annotations

import json
import re

import pytest
from transformers import AutoConfig

from fastflow.plan import command
from fastflow.plan.device import GIB, Device
from fastflow.plan.estimate import sizes_of
from fastflow.plan.speed import MEASURED, expected_speed, update_flops
from fastflow.run.console import make_console
from plans import configure

H200 = Device("cuda", 140 * GIB, "NVIDIA H200")


@pytest.mark.parametrize("count", [1, 4])
def test_time_and_rate(models, count):
    config = configure(models / "large", model__autocast="true", batch__prompts_per_step=3)
    sizes = sizes_of(config)
    speed = expected_speed(config, sizes, Device("cuda", 140 * GIB, "NVIDIA H200", count=count))
    prompt, response = config.data.max_prompt_tokens, config.rollout.max_response_tokens
    sequences = 3 * config.batch.responses_per_prompt
    needed = sequences * update_flops(config, sizes, prompt, response)
    assert needed / speed.seconds_per_step == pytest.approx(count * MEASURED[0].flops_per_s)
    assert speed.tokens_per_s * speed.seconds_per_step == pytest.approx(sequences * (prompt + response))
    assert ("without their communication" in str(speed)) == (count > 1)


@pytest.mark.parametrize(
    ("changes", "device"),
    [
        ({}, H200),  # float32 products
        ({"model__autocast": "true", "lora__rank": 4}, H200),
        ({"model__autocast": "true", "model__checkpoint_share": 0.5}, H200),
        ({"model__autocast": "true", "model__fused_layers": "off"}, H200),
        ({"model__autocast": "true"}, Device("cuda", 80 * GIB, "NVIDIA H100 80GB HBM3")),
        ({"model__autocast": "true"}, Device("cpu", 80 * GIB, "this machine's RAM")),
    ],
)
def test_what_was_not_measured_has_no_speed(models, changes, device):
    config = configure(models / "large", **changes)
    assert expected_speed(config, sizes_of(config), device) is None


@pytest.mark.parametrize(
    ("changes", "forwards", "projections"),
    [
        ({}, 4, 4),  # the base, and the policy forward and backward, which counts twice
        ({"objective__name": "grpo", "objective__reward": "answer"}, 4, 5),
        ({"objective__name": "rl_token"}, 4, 5),
        ({"released__token_mask": "true"}, 4, 5),
        ({"importance__source": "recompute"}, 5, 5),
    ],
)
def test_arithmetic_of_a_sequence(models, changes, forwards, projections):
    config = configure(models / "large", **changes)
    sizes = sizes_of(config)
    model, rows = sizes.model, 7 + 5 - 1
    body = 2 * model.body_linear * rows + 2 * model.layers * model.query * rows**2
    head = 2 * model.hidden * model.vocab_size * 5
    assert update_flops(config, sizes, 7, 5) == forwards * body + projections * head


def test_the_command_says_it(models, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("fastflow.plan.device.find_device", lambda *_: H200)
    arguments = ["--model.path", str(models / "large"), "--model.autocast", "true"]
    request = command.read_arguments([*arguments, "--json", str(tmp_path / "plan.json")])
    assert command.run(request, make_console()) == 0
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    speed = json.loads((tmp_path / "plan.json").read_text())["speed"]
    assert f"updates of about {speed['tokens_per_s']:,.0f} tokens/s are expected" in said


def test_a_token_of_a_mixture_meets_the_experts_that_it_runs(models):
    """Two of four, with all the rest of the layer."""
    config = configure(models / "qwen3_moe")
    model, layers, width = sizes_of(config).model, 2, 32
    experts = layers * 4 * 3 * 16 * width
    assert (model.experts, model.chosen, model.expert_weights, model.intermediate) == (4, 2, experts, 2 * 16)
    attention = 2 * width * (4 + 2) * 16  # queries and output, keys and values
    router = 4 * width
    assert model.body_linear == layers * (attention + router) + experts
    assert model.active_linear == layers * (attention + router) + experts // 2
    rows = 7 + 5 - 1
    body = 2 * model.active_linear * rows + 2 * layers * model.query * rows**2
    assert update_flops(config, sizes_of(config), 7, 5) == 4 * (body + 2 * width * model.vocab_size * 5)


def test_a_token_of_a_mixture_meets_the_shared_expert_too(models):
    """With its gate; one of the two layers attends, and the other carries a state."""
    model, width = sizes_of(configure(models / "qwen3_5_moe_text")).model, 32
    attention = width * (2 * 4 + 4 + 2 * 2) * 16  # queries with gates and output, keys and values
    of_state = width * (2 * 2 * 8 + 3 * 4 * 8 + 2 * 4)  # queries and keys; values, gates and output; two numbers a head
    of_both = 2 * width * (4 + 3 * 24 + 1)  # router, shared expert and its gate
    experts = 2 * 4 * 3 * 16 * width
    assert (model.experts, model.chosen, model.expert_weights) == (4, 2, experts)
    assert model.intermediate == 2 * 16 + 24
    assert model.body_linear == attention + of_state + of_both + experts
    assert model.active_linear == model.body_linear - experts // 2


def test_the_widths_of_a_published_mixture(tmp_path):
    """Qwen3.5-35B-A3B, by transformers' defaults: its config.json tells no width of a dense MLP."""
    AutoConfig.for_model("qwen3_5_moe").save_pretrained(tmp_path)
    model = sizes_of(configure(tmp_path)).model
    assert (model.experts, model.chosen, model.layers, model.attending) == (256, 8, 40, 10)
    assert model.intermediate == (8 + 1) * 512
    assert round(model.parameters / 1e9, 1) == 34.7
    assert round((model.active_linear + model.matrices - model.body_linear) / 1e9) == 3
