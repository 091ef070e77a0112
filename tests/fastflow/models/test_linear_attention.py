"""Layers of linear attention: packed sequences, autocast, and checkpoints that also hold a model for images."""

from __future__ import annotations

import functools
import inspect
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastflow.config.schema import ModelConfig
from fastflow.data.packing import pack
from fastflow.demo.small_model import make_tokenizer
from fastflow.models.layers import linear_attention
from fastflow.models.packed import PackedModel
from fastflow.models.weights.expert_names import parts_of
from fastflow.models.weights.hollow import BESIDE_IMAGES, open_causal_lm
from fastflow.models.weights.loading import load_causal_lm, read_config
from fastflow.models.weights.stored import Reader
from fastflow.rollout.decoding import _cache_argument
from fastflow.train.saves.export import Exporter
from passes import alone_hidden, packed_hidden
from small_models import OWN_SETTINGS, VOCABULARY, make_causal_lm, make_groups

FAMILY = "qwen3_5_text"


@pytest.fixture
def batch(rng):
    (batch,) = pack(make_groups(rng), tokens_per_microbatch=10**6)
    return batch


def test_sequences_do_not_see_each_other(batch):
    """Changing one sequence of a batch leaves the hidden states of the others bitwise alone."""
    model = PackedModel(make_causal_lm(FAMILY))
    before = model.hidden_states(batch)
    start, end = batch.cu_seqlens[2:4].tolist()
    batch.input_ids[start:end] = (batch.input_ids[start:end] + 1) % VOCABULARY
    after = model.hidden_states(batch)
    assert not torch.equal(before[start:end], after[start:end])
    assert torch.equal(before[:start], after[:start]) and torch.equal(before[end:], after[end:])


def test_a_token_sees_all_before_it():
    """Through a state that lasts: beyond the chunk of 64 tokens over which the rule sums at once."""
    model = PackedModel(make_causal_lm(FAMILY, layer_types=["linear_attention"]))
    with torch.no_grad(), model.decoding() as plain:
        ids = torch.randint(1, VOCABULARY, (1, 100), generator=torch.Generator().manual_seed(0))
        other = ids.clone()
        other[0, 30] = (other[0, 30] + 1) % VOCABULARY
        one, two = (plain.model(row, use_cache=False).last_hidden_state[0] for row in (ids, other))
    moved = (one - two).norm(dim=-1)
    assert (moved[:30] == 0).all() and (moved[30:] > 1e-4).all()


@pytest.mark.parametrize("autocast", [False, True])
def test_the_rule_runs_without_autocast(autocast, batch, monkeypatch):
    model = PackedModel(make_causal_lm(FAMILY), autocast=autocast)
    (mixer,) = linear_attention.linear_attentions(model.causal_lm)
    module = linear_attention.sys.modules[type(mixer).__module__]
    rule, seen = getattr(module, linear_attention.RULE), []

    def spy(query, *arguments, **options):
        seen.append((query.dtype, torch.is_autocast_enabled("cpu")))
        return rule(query, *arguments, **options)

    monkeypatch.setattr(module, linear_attention.RULE, linear_attention.Fitted(spy, autocast=False))
    model.hidden_states(batch)
    with model.decoding() as plain:
        plain(batch.input_ids[None])
    assert set(seen) == {(torch.bfloat16 if autocast else torch.float32, False)}


def test_a_second_model_of_the_family_wraps_nothing_again():
    models = [PackedModel(make_causal_lm(FAMILY)) for _ in range(2)]
    (mixer,) = linear_attention.linear_attentions(models[1].causal_lm)
    rule = getattr(linear_attention.sys.modules[type(mixer).__module__], linear_attention.RULE)
    assert isinstance(rule, linear_attention.Fitted)
    assert not isinstance(rule.__wrapped__, linear_attention.Fitted)


@pytest.mark.parametrize(
    "name", [linear_attention.RULE, linear_attention.RULE_OF_A_TOKEN, *linear_attention.CONVOLUTIONS]
)
def test_kernels_of_other_packages_do_not_serve_a_cpu(name, batch, monkeypatch):
    """transformers takes them on every device. What it puts around its own functions leads to these."""
    model = PackedModel(make_causal_lm(FAMILY))
    (mixer,) = linear_attention.linear_attentions(model.causal_lm)
    module = linear_attention.sys.modules[type(mixer).__module__]
    own = inspect.unwrap(getattr(module, name))

    @functools.wraps(own)
    def kernel(*_, **__):
        raise RuntimeError("0 active drivers")

    monkeypatch.setattr(module, name, linear_attention.Fitted(kernel, autocast=False))
    with torch.no_grad(), model.decoding() as plain:
        cache = plain(batch.input_ids[None, :5], use_cache=True)
        cache = getattr(cache, "cache", None) or cache.past_key_values
        plain(batch.input_ids[None, 5:6], **{_cache_argument(plain.model): cache})
    model.hidden_states(batch)
    with pytest.raises(RuntimeError, match="0 active drivers"):  # packed sequences, which its own code would mix
        getattr(module, name)(torch.zeros(1), cu_seqlens=torch.zeros(1))


def test_a_package_that_does_not_load_is_none(monkeypatch):
    monkeypatch.setitem(linear_attention.sys.modules, "fla.ops.gated_delta_rule", None)
    linear_attention.has_fused_rule.cache_clear()
    assert not linear_attention.has_fused_rule()
    linear_attention.has_fused_rule.cache_clear()


@pytest.fixture(
    scope="module",
    params=[("qwen3_5_text", False), ("qwen3_5_moe_text", False), ("qwen3_5_moe_text", True)],
    ids=["dense", "each expert for itself", "experts of a layer in one"],
)
def with_images(request, tmp_path_factory):
    """A checkpoint as the hub has them: the text model beside one for images and heads for further tokens, and the type
    and the tie said by the configuration of the whole. Of a mixture, files hold experts in two ways.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    family, joined = request.param
    text = make_causal_lm(family)
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32,
        "num_position_embeddings": 16,
    }  # fmt: skip
    of_text = {**text.config.to_dict(), "dtype": None, "tie_word_embeddings": False}
    config = AutoConfig.for_model(
        family.removesuffix("_text"), text_config=of_text, vision_config=vision, tie_word_embeddings=True
    )
    whole = AutoModelForImageTextToText.from_config(config)
    whole.model.language_model.load_state_dict(text.model.state_dict())
    directory = tmp_path_factory.mktemp("with_images")
    whole.save_pretrained(directory)
    weights = load_file(directory / "model.safetensors")
    if joined:
        weights = {name: one.clone() for name, one in whole.state_dict().items() if name != "lm_head.weight"}
    first = f"{BESIDE_IMAGES}layers.0"
    weights |= {name.replace(first, "mtp.layers.0"): one + 1 for name, one in weights.items() if first in name}
    assert any(name.endswith(".experts.gate_up_proj") for name in weights) is joined
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    assert OWN_SETTINGS[family]["layer_types"] == text.config.layer_types
    return str(directory), text


def test_the_text_model_of_a_checkpoint_with_images(with_images, tmp_path):
    path, text = with_images
    model = load_causal_lm(path, ModelConfig(path=path))
    assert model.config.model_type == text.config.model_type
    assert read_config(path, trust_remote_code=False).dtype == torch.float32
    again = {name: weight.clone() for name, weight in model.state_dict().items()}
    Exporter(make_tokenizer(list("abc"))).write(model, tmp_path)
    names = {part.name for name, one in again.items() for part in parts_of(model.config, name, one.shape)}
    assert set(load_file(tmp_path / "model.safetensors")) == names - {"lm_head.weight"}
    exported = load_causal_lm(str(tmp_path), ModelConfig(path=str(tmp_path)))
    for name, weight in text.state_dict().items():
        assert torch.equal(again[name], weight) and torch.equal(exported.state_dict()[name], weight)
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        assert torch.equal(exported(ids).logits, text.eval()(ids).logits)


def test_ranks_read_their_rows_of_it(with_images, caplog):
    """Nothing is loaded whole, and what is for images is no leftover."""
    path, text = with_images
    with caplog.at_level(logging.INFO):
        model, unread = open_causal_lm(path, ModelConfig(path=path), torch.device("cpu"))
    assert unread is not None and not caplog.records
    expected = dict(text.named_parameters())
    with Reader().closing() as reader:
        for name, parameter in model.named_parameters():
            stored = unread.places[parameter]
            assert torch.equal(reader.rows(stored, 0, stored.shape[0]), expected[name])
            assert torch.equal(reader.rows(stored, 1, stored.shape[0]), expected[name][1:])


def test_lengths_of_one_token_and_of_many(rng):
    model = PackedModel(make_causal_lm(FAMILY))
    sequences = [rng.integers(1, VOCABULARY, length) for length in (1, 200, 1, 65, 64)]
    for packed, ids in zip(packed_hidden(model, sequences), sequences, strict=True):
        np.testing.assert_allclose(packed, alone_hidden(model, ids), rtol=1e-4, atol=1e-5)
