"""Runs on every device: saved beside sampling, and resumed from the state that the whole run had there."""

from __future__ import annotations

import pytest

from resumed_runs import configure, metrics_of, run_to_the_end, run_until_killed

COMMON = {"run__steps": 5, "run__save_every": 1, "run__samples_every": 0}
# Of the step after a save: its numbers follow from the saved weights and seeds. A GPU may add in another order.
FOLLOWING = ("loss", "residual_mean", "token_entropy", "length_mean", "grad_norm", "log_z")


@pytest.mark.parametrize("rank", [0, 4])
def test_a_resumed_run_goes_on_from_the_same_state(device, rank, tmp_path):
    changes = {**COMMON, "model__device": device.type, "model__autocast": "true", "lora__rank": rank}
    whole = run_to_the_end(configure(tmp_path, run__output=tmp_path / "whole", **changes))
    config = configure(tmp_path, run__output=tmp_path / "cut", **changes)
    run_until_killed(config, before=3)
    cut = run_to_the_end(config, resume="yes")
    lines, again = metrics_of(whole), metrics_of(cut)
    assert [line["step"] for line in again] == [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    for name in FOLLOWING:
        assert again[2][name] == pytest.approx(lines[2][name], rel=1e-2, abs=1e-3), name
    assert all(line["skipped_updates"] == 0 for line in again)
