"""A rank reads the rows of the weights that it keeps. What cannot be read so is loaded whole, and a line says so."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastflow.config.schema import ModelConfig
from fastflow.errors import FastflowError
from fastflow.models.packed import PackedModel
from fastflow.models.ranks import Ranks
from fastflow.models.weights.hollow import open_causal_lm
from fastflow.models.weights.loading import load_causal_lm
from fastflow.models.weights.stored import OtherFiles, Reader, find_weights
from fastflow.train.digests import digest_of_start, digest_of_tensors
from filled_models import check_all, write_models
from rank_worker import spawn
from small_models import save_model

CPU = torch.device("cpu")


@pytest.mark.distributed
def test_models_filled_by_part_are_those_loaded_whole(tmp_path):
    write_models(tmp_path / "models")
    spawn(2, functools.partial(check_all, tmp_path / "models"))


@pytest.fixture(scope="module")
def fine(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "fine", tied=False)


@pytest.fixture
def model(fine, tmp_path):
    return shutil.copytree(fine, tmp_path / "model")


def settings_for(directory) -> ModelConfig:
    return ModelConfig(path=str(directory), device="cpu")


def open_it(directory):
    return open_causal_lm(str(directory), settings_for(directory), CPU)


def change_weights(directory, change) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def change_config(directory, **entries) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def test_a_hollow_model_takes_no_memory_and_says_device_type_and_shape(fine):
    model, unread = open_it(fine)
    whole = load_causal_lm(str(fine), settings_for(fine))
    assert unread is not None and unread.reader.bytes_read == 0
    for (name, mine), (_, theirs) in zip(model.named_parameters(), whole.named_parameters(), strict=True):
        assert (mine.shape, mine.dtype, mine.device) == (theirs.shape, theirs.dtype, theirs.device), name
        assert mine.untyped_storage().nbytes() == mine.element_size(), name
    for (name, mine), (_, theirs) in zip(model.named_buffers(), whole.named_buffers(), strict=True):
        assert torch.equal(mine, theirs), name


def test_rows_are_counted_and_do_not_keep_the_file(fine):
    (stored, *_), reader = find_weights(str(fine)).values(), Reader()
    whole = load_file(stored.file)[stored.name]
    with reader.closing():
        assert torch.equal(reader.rows(stored, 1, 3), whole[1:3])
        assert torch.equal(reader.rows(stored, 5, 5), whole[5:5])
    assert reader.bytes_read == whole[1:3].nbytes


def drop(name):
    return lambda tensors: tensors.pop(name)


def rename(tensors) -> None:
    for name in list(tensors):
        tensors[name.removeprefix("model.")] = tensors.pop(name)


def widen(tensors) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"].repeat(2, 1)


def to_float8(tensors) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (rename, "its files have no model.embed_tokens.weight"),
        (drop("model.norm.weight"), "its files have no model.norm.weight"),
        (drop("lm_head.weight"), "its files have no lm_head.weight"),
        (widen, "lm_head.weight has the shape (80, 32) in its file, not (40, 32)"),
        (to_float8, "lm_head.weight is of the type F8_E4M3"),
    ],
    ids=["odd names", "a weight is missing", "the head is missing", "another shape", "another type"],
)
def test_other_files_are_loaded_whole_and_refused_in_the_same_words(model, caplog, change, why):
    change_weights(model, change)
    found, expected = outcome(lambda: open_it(model)), outcome(lambda: load_causal_lm(str(model), settings_for(model)))
    assert f"every rank loads {model} whole before it keeps its part: {why}" in caplog.text
    assert type(found) is type(expected)
    if isinstance(expected, str):
        assert found == expected
        return
    loaded, unread = found
    assert unread is None
    for mine, theirs in zip(loaded.parameters(), expected[0].parameters(), strict=True):
        assert torch.equal(mine, theirs)


def outcome(load):
    """What loading gives, or what it says; both as (model, where its weights are)."""
    try:
        loaded = load()
    except FastflowError as error:
        return str(error)
    return loaded if isinstance(loaded, tuple) else (loaded, None)


def test_damaged_and_missing_files_are_not_read_by_part(model):
    (model / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(OtherFiles, match=r"model.safetensors cannot be read"):
        find_weights(str(model))
    (model / "model.safetensors").unlink()
    with pytest.raises(OtherFiles, match="it has neither"):
        find_weights(str(model))
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(OtherFiles, match="it is an adapter"):
        find_weights(str(model))


def test_code_of_its_own_is_loaded_whole(model, caplog):
    change_config(model, auto_map={"AutoModelForCausalLM": "own.Model"})
    assert open_it(model)[1] is not None and not caplog.records  # nobody runs that code
    with pytest.raises(FastflowError, match=r"own\.py"):  # which is not there
        open_causal_lm(str(model), ModelConfig(path=str(model), device="cpu", trust_remote_code=True), CPU)
    assert f"every rank loads {model} whole before it keeps its part: its code is its own" in caplog.text


def test_weights_without_a_place_are_named_and_those_of_old_releases_are_not(model, caplog):
    change_weights(
        model, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    )
    assert open_it(model)[1] is not None and not caplog.records
    change_weights(model, lambda tensors: tensors.update({"model.mtp.weight": torch.ones(4)}))
    assert open_it(model)[1] is not None
    assert "has 1 weights that its model has no place for (first: model.mtp.weight)" in caplog.text


def test_quantised_weights_and_a_head_that_is_not_the_embedding_are_refused(model):
    change_weights(model, lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.qweight": torch.ones(4)}))
    with pytest.raises(FastflowError, match="holds quantised weights"):
        open_it(model)
    change_weights(model, drop("model.layers.0.mlp.up_proj.qweight"))
    change_config(model, tie_word_embeddings=True)
    with pytest.raises(FastflowError, match=r"tie_word_embeddings = true, but its weights have a lm_head.weight"):
        open_it(model)


def test_the_first_rows_tell_models_apart(model, fine):
    def digest(directory) -> str:
        causal_lm, unread = open_it(directory)
        packed = PackedModel(causal_lm)
        packed.unread = unread
        return digest_of_start(packed)

    assert digest(model) == digest(fine)
    change_weights(model, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"][0, 3].add_(1e-3))
    assert digest(model) != digest(fine)


def test_ranks_that_should_hold_the_same_rows_are_compared():
    weight = torch.arange(12.0).reshape(4, 3)
    assert digest_of_tensors([("w", weight)], Told(same=True)) == digest_of_tensors([("w", weight)])
    with pytest.raises(FastflowError, match="rank 1 has other weights in w than the rank that should hold the same"):
        digest_of_tensors([("w", weight)], Told(same=False))


@dataclass(frozen=True)
class Told(Ranks):
    """Two ranks, of which the other says the same as this one, or something else."""

    same: bool = True

    def gather(self, value):
        return [value, value if self.same else [(first, checksum + 1) for first, checksum in value]]


def test_weights_of_a_hub_are_found_in_its_cache(fine, tmp_path, monkeypatch):
    home = tmp_path / "hub"
    snapshot = home / "models--some--model" / "snapshots" / ("0" * 40)
    shutil.copytree(fine, snapshot)
    (home / "models--some--model" / "refs").mkdir()
    (home / "models--some--model" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home))
    found = find_weights("some/model")
    assert found.keys() == find_weights(str(fine)).keys()
    assert all(stored.file.parent == snapshot for stored in found.values())
    with pytest.raises(OtherFiles):
        find_weights("some/other-model")
