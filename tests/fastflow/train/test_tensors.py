"""Named tensors on the disk: what is written is what is read, and no file is put together in memory."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from fastflow.train.saves import tensors
from fastflow.train.saves.tensors import catalogue, read_tensors, same_bits, write_tensors

STATE = {
    "a/weight": torch.arange(12.0).reshape(3, 4).T,  # not contiguous
    "b": torch.tensor([float("nan"), -0.0], dtype=torch.bfloat16),
    "c/step": torch.tensor(7),
    "nothing": torch.zeros(0, 3),
}


@pytest.mark.parametrize(("most", "files"), [(2**30, 1), (50, 2), (1, 4)])
def test_what_is_written_is_read(most, files, tmp_path, monkeypatch):
    def whole_file(*arguments, **settings):
        raise AssertionError("a file was put together in memory, and held up all threads meanwhile")

    monkeypatch.setattr(safetensors.torch, "save", whole_file)
    monkeypatch.setattr(tensors, "FILE_BYTES", most)
    write_tensors(tmp_path / "state", STATE)
    names = {file.name for file in (tmp_path / "state").glob("*.safetensors")}
    index = json.loads((tmp_path / "state" / "model.safetensors.index.json").read_text())
    assert names == set(index["weight_map"].values()) and index["weight_map"].keys() == STATE.keys()
    assert len(names) == files
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in STATE.values())
    assert catalogue(tmp_path / "state") == {name: (one.dtype, one.shape) for name, one in STATE.items()}
    found = {name: torch.full_like(tensor, 1) for name, tensor in STATE.items()}
    read_tensors(tmp_path / "state", found)
    assert all(same_bits(found[name], tensor) for name, tensor in STATE.items())


def test_what_is_missing_or_of_another_shape_is_refused(tmp_path):
    write_tensors(tmp_path / "state", STATE)
    with pytest.raises(KeyError, match="d"):
        read_tensors(tmp_path / "state", {"d": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"c/step is torch.int64 \(\), not torch.int64 \(1,\)"):
        read_tensors(tmp_path / "state", {"c/step": torch.zeros(1, dtype=torch.int64)})
