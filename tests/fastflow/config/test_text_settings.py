"""Settings that are no text or have no end are refused in one short sentence."""

from __future__ import annotations

import pytest

from fastflow.cli import main
from fastflow.config.schema import DataConfig, RolloutConfig
from fastflow.errors import FastflowError


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: DataConfig(suffix="a\udcff"), "data.suffix"),
        (lambda: DataConfig(path="\ud83d.jsonl"), "data.path"),
        (lambda: RolloutConfig(stop=("fine", "\udc00")), "rollout.stop"),
    ],
)
def test_half_of_a_character(make, name):
    with pytest.raises(FastflowError, match=rf"{name} holds '\\u.*', which is not text; write it in UTF-8"):
        make()


@pytest.mark.parametrize("opened", ["[", "{a: "])
def test_values_without_end(tmp_path, capsys, opened):
    (tmp_path / "run.yaml").write_text(f"data: {opened * 20_000}")
    for arguments in (["--config", str(tmp_path / "run.yaml")], ["--rollout.stop", opened * 20_000]):
        assert main(["train", "--dry-run", *arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith("fastflow: error: ") and len(said) < 1000
