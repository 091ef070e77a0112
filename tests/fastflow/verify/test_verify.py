"""`fastflow verify`: what it prints, writes and returns, and that it notices a wrong trainer."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from fastflow.errors import FastflowError
from fastflow.verify import checks, distillation, policy_gradients, power_sampling
from fastflow.verify import command as verify
from fastflow.verify.exact import SequenceSpace

SPACE = SequenceSpace(3, 3)
TINY = replace(checks.QUICK, table_updates=5, updates=2, responses=16, learned=(2.0,))
GRADIENTS = len(policy_gradients.VARIANTS) + 2 * len(policy_gradients.TARGETS)
POWER = 4  # of the samplers of p^alpha
DISTIL = 5  # three gradients, the optimum, and training
FINE = checks.Check("fine", 0.0, 1.0, "")
MANY = POWER + GRADIENTS + DISTIL + len(checks.TABLE_BOUNDS) * 6 + (len(checks.TRANSFORMER_BOUNDS) + 1) * 3


def arguments(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    verify.add_arguments(parser)
    return parser.parse_args(options)


@pytest.fixture
def measured_elsewhere(monkeypatch):
    """Leaves out what test_power_sampling.py and test_distillation.py measure."""
    monkeypatch.setattr(checks, "power_checks", lambda make_models, seed: [FINE] * POWER)
    monkeypatch.setattr(checks, "distillation_checks", lambda make_models, seed: [FINE] * DISTIL)


@pytest.mark.slow
def test_quick_verification_passes_and_writes_json(measured_elsewhere, monkeypatch, tmp_path, capsys):
    """With one of the three transformers; `.ci/run` verifies them all."""
    monkeypatch.setattr(checks, "TRANSFORMER_BOUNDS", {2.0: checks.TRANSFORMER_BOUNDS[2.0]})
    file, threads = tmp_path / "made" / "verify.json", torch.get_num_threads()
    assert verify.run(arguments("--quick", "--json", str(file))) == 0
    assert torch.get_num_threads() == threads
    written = json.loads(file.read_text())
    assert written["passed"] and written["seconds"] > 0
    assert (
        len(written["checks"])
        == 4 + POWER + GRADIENTS + DISTIL + len(checks.TABLE_BOUNDS) * 6 + len(checks.TRANSFORMER_BOUNDS) * 3
    )
    assert all(check["passed"] and check["value"] <= check["bound"] for check in written["checks"])
    printed = capsys.readouterr().out
    assert printed.startswith("check ") and "all checks passed" in printed and "FAIL" not in printed
    assert all(check["name"] in printed for check in written["checks"])  # nothing is cut at 80 columns


def test_a_missed_bound_exits_with_one(measured_elsewhere, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(checks, "QUICK", TINY)
    monkeypatch.setattr(checks, "SAMPLER_BOUND", -1.0)
    file = tmp_path / "verify.json"
    assert verify.run(arguments("--quick", "--json", str(file))) == verify.FAILED == 1
    written = json.loads(file.read_text())
    assert not written["passed"] and len(written["checks"]) == 4 + MANY
    assert [check["passed"] for check in written["checks"] if check["name"] == "sampled log-prob"] == [False]
    printed = capsys.readouterr().out
    assert "FAIL" in printed
    assert written["scope"] == power_sampling.SCOPE and power_sampling.SCOPE in " ".join(printed.split())


def test_the_widest_rows_fit_80_columns():
    exact = [power_sampling.kept_check(checks.make_models, 1), distillation.optimum_check(checks.make_models, 1)]
    widest = checks.Check("table alpha 0.5 group mean: log_z", 1.5e-6, 0.0001, "nats/token")
    console = Console(width=80)
    with console.capture() as capture:
        console.print(verify._table_of([*exact, widest]))
    assert capture.get().count("pass") == 3 and "…" not in capture.get()


def test_json_has_no_nan(monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "run_checks", lambda size, seed, **_: [checks.Check("broken", math.nan, 1.0, "")])
    file = tmp_path / "verify.json"
    assert verify.run(arguments("--json", str(file))) == 1
    assert json.loads(file.read_text())["checks"][0] == {
        "name": "broken", "value": None, "bound": 1.0, "unit": "", "note": "", "passed": False,
    }  # fmt: skip


def test_an_unwritable_file_is_an_error_before_the_checks(monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "run_checks", lambda size, seed, **_: pytest.fail("the checks ran"))
    with pytest.raises(FastflowError, match="cannot be written"):
        verify.run(arguments("--json", str(tmp_path)))


def test_a_disk_that_is_full_is_an_error(monkeypatch):
    monkeypatch.setattr(checks, "run_checks", lambda size, seed, **_: [FINE])
    with pytest.raises(FastflowError, match=r"cannot write to /dev/full .*make room"):
        verify.run(arguments("--json", "/dev/full"))


@pytest.mark.slow
def test_under_a_wrong_loss_the_transformer_misses_the_target():
    """The right loss reaches it in the quick verification, from the same settings and seed."""
    config = checks.transformer_config(SPACE, 2.0, "group_mean", checks.QUICK, seed=0)
    config = replace(config, objective=replace(config.objective, name="tb_trajectory"))
    assert not checks.transformer_checks(SPACE, config, lambda: None)[0].passed


def test_a_wrong_gradient_is_noticed(monkeypatch):
    import fastflow_kernels

    def forgets_length(*inputs, length_scale, **others):
        return right(*inputs, length_scale=length_scale * 1.001, **others)

    right = fastflow_kernels.flow_loss
    assert checks.gradient_check("sequence", seed=1).passed
    monkeypatch.setattr(checks, "flow_loss", forgets_length)
    assert not checks.gradient_check("sequence", seed=1).passed


def test_averaging_over_the_micro_batch_is_noticed(monkeypatch):
    from fastflow.models import packed

    def averages_locally(*inputs, normaliser, log_z, **others):
        return right(*inputs, normaliser=len(log_z), log_z=log_z, **others)

    right = packed.flow_loss
    assert checks.microbatch_check(seed=1).passed
    monkeypatch.setattr(packed, "flow_loss", averages_locally)
    assert not checks.microbatch_check(seed=1).passed


def test_a_sampler_that_reports_other_log_probs_is_noticed(monkeypatch):
    from fastflow.rollout import local

    right = local.draw
    assert checks.sampler_check(SPACE, seed=1).passed

    def reports_another(*inputs):
        token, logprob = right(*inputs)
        return token, logprob + 1e-3

    monkeypatch.setattr(local, "draw", reports_another)
    assert not checks.sampler_check(SPACE, seed=1).passed


def test_importing_the_command_loads_no_heavy_package():
    heavy = ("torch", "transformers", "rich")
    code = f"import sys, fastflow.verify.command; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
