"""Mixtures of experts: how their products run, and what their files call them."""

from __future__ import annotations

import copy
import functools
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastflow.config.schema import LoraConfig, ModelConfig
from fastflow.data.packing import pack
from fastflow.errors import FastflowError
from fastflow.models.layers import decoder_layers, experts
from fastflow.models.layers.experts import check_device, expert_weights, multiply
from fastflow.models.opening import with_adapters
from fastflow.models.packed import PackedModel
from fastflow.models.weights.expert_names import join_experts, parts_of
from fastflow.models.weights.hollow import open_causal_lm
from fastflow.models.weights.loading import load_causal_lm
from fastflow.models.weights.merging import adapted_layers
from fastflow.models.weights.stored import OtherFiles, StoredWeight
from fastflow.rollout.vllm.weights import SharedWeights
from fastflow.train.saves.split_weights import write_split
from passes import packed_hidden
from resumed_runs import configure, newest_save, run_to_the_end, run_until_killed, tensors_of
from small_models import (
    CARRYING,
    MIXTURES,
    VOCABULARY,
    assert_near,
    hidden_and_gradients,
    make_causal_lm,
    make_groups,
    save_model,
)

NARROW = {"autocast": True, "residual_stream": "bfloat16"}


@pytest.fixture(scope="module", params=MIXTURES)
def family(request):
    return request.param


@pytest.fixture
def batches(rng):
    return pack(make_groups(rng), tokens_per_microbatch=60)


@pytest.mark.parametrize("width", [16, 10])  # 10: rows that no grouped product takes
def test_hidden_states_and_gradients_are_those_of_transformers(family, width, batches):
    policy = PackedModel(make_causal_lm(family, moe_intermediate_size=width))
    found = hidden_and_gradients(policy, batches)
    policy.causal_lm.config._experts_implementation = "eager"
    assert_near(found, hidden_and_gradients(policy, batches), tolerance=1e-5)


def test_packed_numbers_in_float64_are_those_of_transformers_own_code(family, rng):
    """Which computes a softmax, norms and the rule of a state in float32."""
    model = make_causal_lm(family).double()
    theirs = copy.deepcopy(model)
    theirs.config._attn_implementation = theirs.config._experts_implementation = "eager"
    sequences = [rng.integers(1, VOCABULARY, length) for length in (1, 70, 9)]
    for packed, ids in zip(packed_hidden(PackedModel(model), sequences), sequences, strict=True):
        with torch.no_grad():
            expected = theirs.model(torch.from_numpy(ids)[None], use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(packed, expected, rtol=1e-6, atol=1e-6)


def test_an_expert_without_tokens_has_a_gradient_of_zeros(family, batches):
    policy = PackedModel(make_causal_lm(family, num_experts=64))
    policy.hidden_states(batches[0]).sum().backward()
    gradients = torch.cat([weight.grad.flatten(1) for weight in weights_of(policy) if len(weight.grad) == 64], dim=1)
    idle = (gradients == 0).all(dim=1)
    assert idle.any() and not idle.all()


def test_decoding_rounds_experts_once(family, batches, monkeypatch):
    """Where weights may change, and with gradients, each pass rounds what it reads."""
    policy, seen = PackedModel(make_causal_lm(family), autocast=True), []
    rounded = experts._in_type
    monkeypatch.setattr(experts, "_in_type", lambda *given: seen.append(rounded(*given)) or seen[-1])
    ids = batches[0].input_ids[None]
    with torch.no_grad():
        policy.hidden_states(batches[0])
        policy.hidden_states(batches[0])
        with policy.decoding() as plain:
            inside = [plain(ids, use_cache=False).logits for _ in range(2)]
    places = [weights[0].data_ptr() for weights in seen]
    assert places[4:6] == places[6:8] and not {*places[4:]} & {*places[:2]}
    assert torch.equal(*inside)
    policy.hidden_states(batches[0]).sum().backward()
    assert all(weight.grad is not None for weight in weights_of(policy))
    assert not any(hasattr(module, experts.ROUNDED) for module in policy.model.modules())


def weights_of(policy: PackedModel):
    return [weight for module in policy.model.modules() for weight in expert_weights(module)]


@pytest.mark.parametrize(("types", "expected"), [({}, torch.float32), ({"autocast": True}, torch.bfloat16),
                                                 (NARROW, torch.bfloat16)], ids=str)  # fmt: skip
def test_products_are_in_the_type_of_autocast(family, types, expected, batches, monkeypatch):
    seen = set()

    def look(rows, weights, offs):
        seen.update((rows.dtype, weights.dtype))
        return product(rows, weights, offs=offs)

    product = torch.nn.functional.grouped_mm
    monkeypatch.setattr("fastflow.models.layers.experts.grouped_mm", look)
    policy = PackedModel(make_causal_lm(family), **types)
    policy.hidden_states(batches[0]).sum().backward()
    assert seen == {expected}
    assert {weight.grad.dtype for weight in weights_of(policy)} == {torch.float32}


def test_rows_of_each_expert_meet_its_weights():
    rows, weights = torch.randn(7, 8), torch.randn(4, 12, 8)
    counts = [3, 0, 4, 0]
    ends = torch.tensor(counts).cumsum(0).int()
    expected = torch.cat([part @ one.T for part, one in zip(rows.split(counts), weights, strict=True)])
    torch.testing.assert_close(multiply(rows, weights, ends), expected)


def test_passes_keep_no_logits_of_routers(family, batches):
    """Though the configuration asks for them, for a loss that balances experts; and it still does in the export."""
    policy = PackedModel(make_causal_lm(family, output_router_logits=True))
    kept = []
    for layer in policy.causal_lm.model.layers:
        layer.mlp.gate.register_forward_hook(lambda *given: kept.append(policy.causal_lm.config.output_router_logits))
    policy.hidden_states(batches[0])
    with policy.decoding() as plain, torch.no_grad():
        assert plain(batches[0].input_ids[None]).router_logits is None
    assert kept == [False] * 4 and policy.causal_lm.config.output_router_logits


def test_compiled_layers_leave_the_experts_out(family, batches, monkeypatch):
    """Dynamo refuses grouped products in float32."""
    monkeypatch.setattr("torch.compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(decoder_layers, "_packed_forward", decoder_layers._packed_forward.__wrapped__)
    monkeypatch.setattr(decoder_layers, "_compiled_forward", decoder_layers._compiled_forward.__wrapped__)
    model = make_causal_lm(family)
    expected = PackedModel(copy.deepcopy(model)).hidden_states(batches[0])
    decoder_layers.arrange_layers(model, compiled=True)
    torch.testing.assert_close(PackedModel(model).hidden_states(batches[0]), expected)


def test_a_gpu_without_grouped_products_is_named(family, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla T4")
    cuda = torch.device("cuda")
    with pytest.raises(FastflowError, match=r"compute capability 8\.0 or later, and Tesla T4 is older"):
        check_device(make_causal_lm(family).config, cuda)
    check_device(make_causal_lm("qwen3").config, cuda)


class TestAdapters:
    def test_all_linear_is_the_attention(self, family):
        adapted = with_adapters(make_causal_lm(family), LoraConfig(rank=2))
        trained = {name.split(".")[-4] for name, one in adapted.named_parameters() if one.requires_grad}
        of_states = {"in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"} if family in CARRYING else set()
        assert trained == {"q_proj", "k_proj", "v_proj", "o_proj"} | of_states

    @pytest.mark.parametrize(
        "targets", ["q_proj,up_proj", "gate", "mlp.experts", "shared_expert_gate", "mlp.shared_expert.down_proj"]
    )
    def test_experts_and_routers_get_none(self, family, targets):
        with pytest.raises(FastflowError, match=r"but the MLPs and routers of a mixture get no adapters; leave"):
            with_adapters(make_causal_lm(family), LoraConfig(rank=2, targets=targets))

    def test_those_of_peft_are_refused_where_they_would_be_merged(self, family):
        peft = pytest.importorskip("peft")
        adapters = peft.LoraConfig(r=2, target_parameters=["mlp.experts.down_proj"], target_modules=["q_proj"])
        adapted = peft.get_peft_model(make_causal_lm(family), adapters)
        with pytest.raises(FastflowError, match=r"mlp\.experts has adapters of experts or of a router"):
            list(adapted_layers(adapted))


@pytest.fixture(scope="module")
def saved(family, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "mixture", family=family)


class TestFiles:
    def test_parts_are_the_weights_of_the_files(self, family, saved):
        model, files = make_causal_lm(family), load_file(saved / "model.safetensors")
        found = {
            part.name: part.of(one)
            for name, one in model.named_parameters()
            for part in parts_of(model.config, name, one.shape)
        }
        assert found.keys() == files.keys()
        assert all(torch.equal(found[name], files[name]) for name in files)
        for one in (weight for module in model.modules() for weight in expert_weights(module)):
            (first, *_) = parts_of(model.config, "x.mlp.experts.down_proj", one.shape)
            assert first.of(one).data_ptr() == one.data_ptr()  # no copy

    @pytest.mark.parametrize("tied", [False, True])
    def test_an_export_is_what_transformers_writes_and_copies_nothing(self, family, tied, tmp_path, monkeypatch):
        model = make_causal_lm(family, tied=tied)
        lie = [range(one.data_ptr(), one.data_ptr() + one.nbytes) for one in model.parameters()]
        written = []
        monkeypatch.setattr("safetensors.torch.save_file", lambda *given: written.append(given[0]) or save_file(*given))
        write_split(model, tmp_path / "ours")
        monkeypatch.undo()
        assert all(any(one.data_ptr() in place for place in lie) for one in written[0].values())
        model.save_pretrained(tmp_path / "theirs")
        ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        for file in ("config.json", "generation_config.json"):
            assert (tmp_path / "ours" / file).read_text() == (tmp_path / "theirs" / file).read_text()

    def test_a_large_export_has_several_files(self, family, tmp_path, monkeypatch):
        from huggingface_hub import split_torch_state_dict_into_shards

        small = functools.partial(split_torch_state_dict_into_shards, max_shard_size=4000)
        monkeypatch.setattr("huggingface_hub.split_torch_state_dict_into_shards", small)
        model = make_causal_lm(family)
        write_split(model, tmp_path)
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
        again = load_causal_lm(str(tmp_path), ModelConfig(path=str(tmp_path))).state_dict()
        assert all(torch.equal(again[name], one) for name, one in model.state_dict().items())

    def test_dense_models_have_none(self):
        config = make_causal_lm("qwen3").config
        (part,) = parts_of(config, "x.mlp.experts.down_proj", torch.Size((4, 2, 2)))
        assert part.name == "x.mlp.experts.down_proj"

    @pytest.mark.parametrize("lost", ["experts.2.up_proj", "experts.3.gate_proj"])
    def test_files_without_one_of_them_are_refused(self, saved, tmp_path, caplog, lost):
        path = shutil.copytree(saved, tmp_path / "model")
        tensors = load_file(path / "model.safetensors")
        expert = lost.rpartition(".")[0] if "3" in lost else lost  # the last one, with all that it has
        tensors = {name: one for name, one in tensors.items() if f"layers.1.mlp.{expert}." not in name}
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
        with pytest.raises(FastflowError, match=rf"have no model\.layers\.1\.mlp\.{re.escape(lost)}\.weight; dow"):
            open_causal_lm(str(path), ModelConfig(path=str(path), device="cpu"), torch.device("cpu"))
        assert "every rank loads" in caplog.text and f"its files have no model.layers.1.mlp.{lost}" in caplog.text

    def test_experts_that_differ(self, tmp_path):
        def stored(expert: int, dtype: torch.dtype) -> StoredWeight:
            return StoredWeight(tmp_path, "", dtype, (3, 2))

        pieces = ("gate_proj", "up_proj", "down_proj")
        found = {
            f"x.experts.{expert}.{piece}.weight": stored(expert, dtype)
            for expert, dtype in enumerate((torch.float32, torch.bfloat16))
            for piece in pieces
        }
        with pytest.raises(OtherFiles, match=r"the experts of x\.experts\.gate_up_proj differ in shape or type"):
            join_experts(found, 2)

    def test_more_experts_than_the_configuration_names(self, tmp_path):
        found = {"x.experts.2.up_proj.weight": StoredWeight(tmp_path, "", torch.float32, (3, 2))}
        with pytest.raises(OtherFiles, match=r"its files have x\.experts\.2, and its config\.json names 2 experts"):
            join_experts(found, 2)

    @pytest.mark.parametrize("gather", [False, True])
    def test_vllm_gets_the_names_of_the_files(self, family, gather, saved):
        policy = PackedModel(make_causal_lm(family))
        weights = SharedWeights(policy, bucket_bytes=4000, gather=gather)
        found = {}
        for number in weights.due(is_complete=False):
            weights.prepare(number)
            for place in weights.attach.rounds[number]:
                block = weights.attach.blocks[place.block]
                part = block[place.offset : place.offset + place.shape.numel()].view(place.shape)
                found[place.name] = part.detach().clone()
        files = load_file(saved / "model.safetensors")
        assert found.keys() == files.keys()
        assert all(torch.equal(found[name], files[name]) for name in files)


def test_a_run_saves_what_it_was_given_and_goes_on_to_the_bit(family, tmp_path):
    """Under the names of the files, each weight once."""
    path = save_model(tmp_path / "model", family=family)
    common = {"run__steps": 3, "run__save_every": 1}
    whole = run_to_the_end(configure(tmp_path, run__output=tmp_path / "whole", **common))
    config = configure(tmp_path, run__output=tmp_path / "cut", **common)
    run_until_killed(config, before=3)
    cut = run_to_the_end(config, resume="yes")
    one, other = (tensors_of(newest_save(run)) for run in (whole, cut))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    names = load_file(path / "model.safetensors").keys()
    assert load_file(newest_save(whole) / "policy" / "model.safetensors").keys() == names
    assert not [name for name in one if ":weights/" in name]
