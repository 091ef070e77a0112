"""What a save says of a step that is under way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastflow.errors import FastflowError
from fastflow.train.state import read_result


def test_an_update_as_another_fastflow_wrote_it(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "update-1.safetensors")
    with pytest.raises(FastflowError, match=r"update-1\.safetensors says other things .*: go on with that one"):
        read_result(tmp_path, 1, {"loss": 0.5})
