"""`fastflow plan --devices N`: what one of N ranks holds, and the largest model that fits them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from command_line import invoke
from fastflow.config.schema import LoraConfig
from fastflow.counted import sized
from fastflow.models.opening import with_adapters
from fastflow.models.packed import PackedModel
from fastflow.plan import device as plan_device
from fastflow.plan.device import GIB, Device, find_device
from fastflow.plan.estimate import estimate, estimate_sizes, sizes_of
from fastflow.plan.largest import MOST_LAYERS, largest, with_layers
from fastflow.plan.rank_rows import DIVIDED, layer_parameters, outer_parameters
from fastflow.plan.remedies import remedies
from fastflow.plan.rows import PHASES
from fastflow.plan.trainer_rows import microbatch_tokens
from fastflow.rollout.vllm.weights import SharedWeights
from plans import GPU, LARGE, configure, rows_of
from small_models import make_causal_lm

TWO = Device("cuda", 80 * GIB, "a test", count=2)
SMALL_BATCH = {"batch__prompts_per_step": 8, "batch__responses_per_prompt": 4}
SHORT = {"data__max_prompt_tokens": 64, "rollout__max_response_tokens": 64, "batch__tokens_per_microbatch": 128}


@pytest.mark.parametrize("changes", [{}, {"lora__rank": 4}], ids=["all parameters", "lora"])
def test_what_is_divided_is_as_fsdp_cuts_it(models, changes):
    """FSDP2 cuts each tensor along its first dimension; the first rank keeps the longer part."""
    config = configure(models / "large", **changes)
    one, two = rows_of(config, GPU), rows_of(config, TWO)
    model = make_causal_lm("llama", **LARGE)
    kept = sum(-(-len(tensor) // 2) * tensor[0].numel() * 4 for tensor in model.parameters())
    assert two["trainer", "policy's parameters"].bytes == pytest.approx(kept, rel=1e-3)
    for name in DIVIDED:
        if ("trainer", name) in one:
            assert two["trainer", name].bytes == -(-one["trainer", name].bytes // 2), name
    outer = {id(tensor): tensor for tensor in (model.lm_head.weight, model.get_input_embeddings().weight)}
    outer_bytes = 4 * (sum(tensor.numel() for tensor in outer.values()) + LARGE["hidden_size"])
    assert two["trainer", "embedding and head, gathered"].bytes == outer_bytes
    layer = sum(tensor.numel() for tensor in model.model.layers[0].parameters())
    assert two["trainer", "layers, gathered"].bytes == 2 * layer * 4
    assert ("trainer", "gradient of one layer, before it is divided") in two or changes


def test_a_head_that_stays_cut(tmp_path):
    """All that has the head's size is a part of it, and the hidden states are those of all ranks."""
    make_causal_lm("llama", **LARGE, tied=False).config.save_pretrained(tmp_path / "untied")
    config, cut = (configure(tmp_path / "untied", model__head=head) for head in ("gathered", "cut"))
    three = replace(TWO, count=3)
    before, after = (rows_of(one, three) for one in (config, cut))
    most, tokens = -(-LARGE["vocab_size"] // 3), microbatch_tokens(config)
    head = LARGE["vocab_size"] * LARGE["hidden_size"] * 4
    assert before["trainer", "gradient of the head"].bytes == head
    assert after["trainer", "gradient of the head"].bytes == most * LARGE["hidden_size"] * 4
    gathered = before["trainer", "embedding and head, gathered"].bytes
    assert after["trainer", "embedding, gathered"].bytes == gathered - head
    rows = sum(
        row.bytes for (_, name), row in after.items() if name.endswith(("of all ranks", "all ranks' hidden states"))
    )
    assert rows == 3 * tokens * LARGE["hidden_size"] * (4 + 4)
    own, whole = (named["trainer", "hidden states and their gradient"].bytes for named in (after, before))
    assert whole - own == tokens * LARGE["hidden_size"] * 4
    for name in DIVIDED:
        assert before.get(("trainer", name)) == after.get(("trainer", name))
    (remark,) = [one for one in estimate(cut, three).remarks if "model.head" in one]
    assert f"at most {most:,} of the head's {LARGE['vocab_size']:,} rows" in remark
    assert rows_of(cut, GPU) == rows_of(config, GPU)


def test_a_tied_head_that_stays_cut_gathers_no_embedding(models):
    config, cut = (configure(models / "large", model__head=head) for head in ("gathered", "cut"))
    before, after = (rows_of(one, TWO) for one in (config, cut))
    assert after["trainer", "last norm, gathered"].bytes == LARGE["hidden_size"] * 4
    assert not any(name.startswith("embedding") for _, name in after)
    for name in ("gradient of the head", "gradient of the embedding"):
        assert after["trainer", name].bytes * 2 == before["trainer", name].bytes
    travelling = after["trainer", "rows of the embedding on their way"].bytes
    assert travelling == 3 * microbatch_tokens(cut) * LARGE["hidden_size"] * 4


def test_replicas_share_no_head(tmp_path):
    """Each cuts it over its own ranks: two replicas of two ranks keep what two ranks keep."""
    make_causal_lm("llama", **LARGE, tied=False).config.save_pretrained(tmp_path / "untied")
    alone, two = (configure(tmp_path / "untied", model__head="cut", run__replicas=count) for count in (1, 2))
    expected, found = rows_of(alone, TWO), rows_of(two, replace(TWO, count=4))
    for name in ("gradient of the head", "a block of logits", "hidden states of all ranks", "embedding, gathered"):
        assert found["trainer", name].bytes == expected["trainer", name].bytes
    (remark,) = [one for one in estimate(two, replace(TWO, count=4)).remarks if "model.head" in one]
    assert f"at most {LARGE['vocab_size'] // 2:,} of the head's" in remark


def test_under_autocast_layers_are_gathered_in_bfloat16_and_not_copied(models):
    config = configure(models / "large", model__autocast="true")
    rows = rows_of(config, TWO)
    layer = layer_parameters(sizes_of(config).model)
    assert rows["trainer", "layers, gathered"].bytes == 2 * layer * 2
    assert not any("bfloat16 copies" in name for _, name in rows)


def test_a_rank_samples_its_share(models):
    config = configure(models / "large", batch__prompts_per_step=8, batch__responses_per_prompt=4)
    name = "trainer", "KV cache of the local sampler"
    assert rows_of(config, TWO)[name].bytes * 2 == rows_of(config, GPU)[name].bytes


@pytest.mark.parametrize("changes", [{}, {"lora__rank": 4}], ids=["all parameters", "lora"])
def test_each_rank_has_a_vllm_of_its_own(models, changes):
    """Whole on each device, with a share of the responses; what is gathered for it goes through one bucket."""
    config = configure(models / "large", rollout__engine="vllm", **SMALL_BATCH, **changes)
    one, two = rows_of(config, GPU), rows_of(config, TWO)
    for name in ("vLLM's weights", "vLLM's KV cache"):
        assert two["vllm", name].bytes == one["vllm", name].bytes
    policy = make_policy(changes)
    weights = SharedWeights(policy, gather=True)
    assert two["vllm", "bucket of gathered weights"].bytes == sum(block.nbytes for block in weights.attach.blocks)
    largest = max(one.nbytes for one in policy.causal_lm.parameters())
    assert two["trainer", "one weight, gathered"].bytes == largest
    assert not any(name == "bucket of merged weights" for _, name in two)
    cpu = Device("cpu", 80 * GIB, "a test", shared=1, count=2)
    needed = sized(2 * two["vllm", "bucket of gathered weights"].bytes)
    assert any(f"must hold {needed}" in obstacle for obstacle in estimate(config, cpu).obstacles)
    remarks = {count: estimate(config, replace(TWO, count=count)).remarks for count in (1, 2)}
    wanted = {count: next(one for one in remarks[count] if "need" in one).split()[0] for count in remarks}
    assert int(wanted[1].replace(",", "")) == 2 * int(wanted[2].replace(",", ""))


def make_policy(changes) -> PackedModel:
    model = make_causal_lm("llama", **LARGE)
    return PackedModel(with_adapters(model, LoraConfig(rank=4)) if changes else model)


@pytest.mark.parametrize("changes", [{}, {"lora__rank": 4}], ids=["all parameters", "lora"])
def test_a_model_with_other_layers_has_the_sizes_that_are_computed(models, tmp_path, changes):
    make_causal_lm("llama", **{**LARGE, "num_hidden_layers": 3}).config.save_pretrained(tmp_path / "three")
    found = with_layers(sizes_of(configure(models / "large", **changes)), 3)
    assert found == sizes_of(configure(tmp_path / "three", **changes))
    assert outer_parameters(found.model) + 3 * layer_parameters(found.model) == found.model.parameters


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_largest_model_fits_and_the_next_does_not(models, count):
    config, device = configure(models / "large", **SHORT), Device("cuda", 3 * GIB, "a test", count=count)
    sizes = sizes_of(config)
    found = largest(config, sizes, device)
    assert found is not None and 0 < found.layers < MOST_LAYERS
    assert estimate_sizes(config, with_layers(sizes, found.layers), device).fits
    assert not estimate_sizes(config, with_layers(sizes, found.layers + 1), device).fits
    alone = largest(config, sizes, Device("cuda", 3 * GIB, "a test"))
    assert alone is not None and (found.layers > alone.layers) == (count > 1)


def test_none_fits(models):
    config = configure(models / "large")
    found = largest(config, sizes_of(config), Device("cuda", GIB // 4, "a test"))
    assert found is not None and found.layers == 0 and "no model of these widths fits" in str(found)


def test_models_with_code_of_their_own_are_loaded_whole_first(models):
    plain = estimate(configure(models / "large"), TWO)
    assert not any("whole" in said for said in (*plain.remarks, *plain.obstacles))
    config = configure(models / "large", model__trust_remote_code="true")
    whole = sum(rows_of(config, GPU)["trainer", name].bytes for name in ("policy's parameters", "frozen base"))
    result = estimate(config, Device("cuda", whole - 1, "a test", count=64))
    assert any("each rank loads it whole" in obstacle for obstacle in result.obstacles)
    assert any("each rank loads it whole" in remark for remark in estimate(config, TWO).remarks)


def test_replicas_are_divided_among_their_own_ranks(models):
    """Two replicas of two ranks hold what two ranks hold, and sample as four."""
    config = configure(models / "large", **SMALL_BATCH)
    replicated = configure(models / "large", run__replicas=2, **SMALL_BATCH)
    four = replace(TWO, count=4)
    two, found = rows_of(config, TWO), rows_of(replicated, four)
    for name in DIVIDED:
        if ("trainer", name) in two:
            assert found["trainer", name].bytes == two["trainer", name].bytes, name
    cache = "trainer", "KV cache of the local sampler"
    assert found[cache].bytes == rows_of(config, four)[cache].bytes
    needed = max(estimate(config, four).peak(phase)[1] for phase in PHASES)
    small = replace(four, memory=needed + GIB // 100)
    (remedy,) = [
        one for one in remedies(replicated, small, estimate(replicated, small)) if one.setting == "run.replicas"
    ]
    assert remedy.value == 1 and remedy.fits


def test_ranks_share_the_ram_and_have_a_gpu_each(models, monkeypatch):
    settings = configure(models / "large").model
    alone, shared = find_device(settings, None), find_device(settings, None, 4)
    assert shared.memory == alone.memory // 4 and shared.count == 4
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    gpu = configure(models / "large", model__device="cuda").model
    assert find_device(gpu, 24, 4) == plan_device.Device("cuda", 24 * GIB, "--memory", count=4)


def test_the_command(capsys, models, tmp_path):
    file = tmp_path / "plan.json"
    arguments = ["--model.path", models / "large", "--memory", 80, "--json", file]
    code, out, err = invoke(capsys, "plan", *arguments, "--devices", 4)
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert "80.00 GiB (--memory, each of 4 ranks)" in text and "the largest model of these widths that fits" in text
    plan = json.loads(file.read_text())
    assert plan["device"]["count"] == 4 and plan["largest"]["layers"] > LARGE["num_hidden_layers"]


def test_what_several_ranks_cannot_do_is_refused(capsys, models):
    code, _, err = invoke(capsys, "plan", "--model.path", models / "large", "--devices=2", "--model.compile=layers")
    assert code == 2 and "does not work on 2 ranks yet" in err
    code, _, err = invoke(capsys, "plan", "--model.path", models / "large", "--devices=3", "--run.replicas=2")
    assert code == 2 and "run.replicas = 2 does not divide 3 ranks" in err
    code, _, err = invoke(capsys, "plan", "--model.path", models / "large", "--devices", "none")
    assert code == 2 and "--devices needs a number of devices" in err
