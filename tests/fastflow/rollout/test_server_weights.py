"""The checkpoints through which servers get the policy's weights."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from fastflow.config.schema import LoraConfig
from fastflow.errors import FastflowError
from fastflow.models.opening import with_adapters
from fastflow.models.packed import PackedModel
from fastflow.rollout.server import weights
from fastflow.rollout.server.weights import WeightFolder
from small_models import CARRYING, MIXTURES, make_causal_lm


def load(directory) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype="auto").state_dict()


@pytest.mark.parametrize(
    ("family", "tied"),
    [("qwen3", True), ("llama", False), ("qwen2", True), *((family, False) for family in MIXTURES)],
)
@pytest.mark.parametrize("bucket_bytes", [2**30, 6000])
def test_a_version_is_a_checkpoint_of_the_policy(family, tied, bucket_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "BUCKET_BYTES", bucket_bytes)
    model = PackedModel(make_causal_lm(family, tied=tied))
    folder = WeightFolder(str(tmp_path / "shared"))
    directory = folder.write(model)
    expected, found = model.causal_lm.state_dict(), load(directory)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())

    from safetensors import safe_open

    names = []
    for file in directory.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            names += opened.keys()
    assert (len(list(directory.glob("*.safetensors"))) > 1) == (bucket_bytes == 6000)
    assert ("lm_head.weight" in names) is not tied
    per_expert = 2 * (4 * 3 - 2) if family in MIXTURES else 0  # layers, experts, weights of each
    assert len(names) == len(set(names)) == len(expected) - tied + per_expert
    assert model.causal_lm.config._attn_implementation == "fastflow_packed"


def test_old_versions_go_and_nothing_remains(model, tmp_path):
    (tmp_path / "version-0").mkdir()  # somebody else's
    folder = WeightFolder(str(tmp_path))
    first = folder.write(model)
    second = folder.write(model)
    assert first != second
    assert first.exists()
    folder.keep_only(second)
    assert [path.name for path in folder.path.iterdir()] == ["version-1"]
    folder.close()
    assert [path.name for path in tmp_path.iterdir()] == ["version-0"]


@pytest.mark.parametrize(("umask", "of_file", "of_directory"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)])
def test_a_server_of_another_user_may_read_them_where_the_umask_allows(umask, of_file, of_directory, model, tmp_path):
    before = os.umask(umask)
    try:
        directory = WeightFolder(str(tmp_path)).write(model)
    finally:
        os.umask(before)
    assert stat.S_IMODE(directory.stat().st_mode) == of_directory
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()}
    assert modes.keys() >= {"config.json", "model.safetensors"}
    assert set(modes.values()) == {of_file}


def test_the_path_keeps_the_links_that_servers_may_need(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    folder = WeightFolder("link")
    assert folder.path.parent == tmp_path / "link"
    folder.close()


def test_a_program_that_ends_early_leaves_no_weights(tmp_path):
    program = "import sys; from fastflow.rollout.server.weights import WeightFolder as F; f = F(sys.argv[1]); 1 / 0"
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert "ZeroDivisionError" in ended.stderr
    assert not list(tmp_path.iterdir())


def test_adapters_are_merged_on_the_way(tmp_path):
    model = PackedModel(with_adapters(make_causal_lm("qwen3"), LoraConfig(rank=2, dropout=0.0)))
    with torch.no_grad():
        for name, parameter in model.causal_lm.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    found = load(WeightFolder(str(tmp_path)).write(model))
    merged = model.model.merge_and_unload().state_dict()
    assert found.keys() == merged.keys()
    for name, value in merged.items():
        torch.testing.assert_close(found[name], value)


def test_under_autocast_the_weights_are_bfloat16(tmp_path):
    model = PackedModel(make_causal_lm(), autocast=True)
    directory = WeightFolder(str(tmp_path)).write(model)
    assert json.loads((directory / "config.json").read_text())["dtype"] == "bfloat16"
    expected = model.causal_lm.state_dict()
    assert all(torch.equal(expected[name].bfloat16(), value) for name, value in load(directory).items())


@pytest.mark.parametrize("family", CARRYING)
def test_the_rates_of_a_decay_keep_their_type(family, tmp_path):
    """vLLM holds them in float32, as a trainer under autocast does; rounded they would be another model's."""
    model = PackedModel(make_causal_lm(family), autocast=True)
    directory = WeightFolder(str(tmp_path / "shared")).write(model)
    found = load_file(directory / "model.safetensors")
    types = {name.endswith(".A_log"): found[name].dtype for name in found}
    assert types == {True: torch.float32, False: torch.bfloat16}


def test_a_folder_that_cannot_be_written_is_named(model, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(FastflowError, match=r"cannot write to rollout\.shared_folder = .*/file: .*; choose another"):
        WeightFolder(str(tmp_path / "file"))
    folder = WeightFolder(str(tmp_path / "shared"))

    def fail(policy, directory):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "write_checkpoint", fail)
    with pytest.raises(FastflowError, match=r"No space left on device; set rollout\.shared_folder to a directory"):
        folder.write(model)
    assert not list(folder.path.iterdir())
