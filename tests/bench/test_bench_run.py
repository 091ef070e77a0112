"""`python -m bench.kernels` from its arguments to its files and exit status."""

from __future__ import annotations

import csv
import dataclasses
import json
import math

import pytest
import torch

import fastflow_kernels
from bench import providers, report
from bench.kernels import main
from bench.shapes import OP_NAMES

SMALL = ["--shape", "40x16x96", "--repeats", "3", "--no-memory", "--in-process"]
FEW = ["--provider", "fastflow", "--provider", "eager", "--provider", "gemms"]
MEASURED = ("median_s", "fastest_s", "limit_s", "ratio_to_limit", "flops", "first_call_s")


def run(tmp_path, *arguments: str) -> tuple[int, dict]:
    file = tmp_path / "result.json"
    status = main([*SMALL, *arguments, "--json", str(file)])
    return status, json.loads(file.read_text(encoding="utf-8"))


def replace_provider(monkeypatch, name: str, **changes) -> None:
    changed = [dataclasses.replace(each, **changes) if each.name == name else each for each in providers.ALL]
    monkeypatch.setattr(providers, "ALL", tuple(changed))


def test_every_row_is_complete_and_finite(tmp_path, device):
    status, result = run(tmp_path, *FEW, "--device", device.type, "--output", str(tmp_path / "files"))
    assert status == 0
    rows = result["rows"]
    dtypes = {"cpu": 2, "cuda": 1}[device.type]
    assert len(rows) == len(OP_NAMES) * dtypes * 3
    for row in rows:
        assert row["status"] == "ok", row
        assert row["shape"] == "40x16x96" and row["op"] in OP_NAMES and row["calls"] == 3
        assert all(math.isfinite(row[name]) and row[name] > 0 for name in MEASURED)
        low, high = row["quartiles_s"]
        assert row["fastest_s"] <= low <= row["median_s"] <= high
        assert (row["error"] is None) == (row["provider"] == "gemms")
        assert all(math.isfinite(value) for value in (row["error"] or {}).values())
    assert all(row["within_bounds"] for row in rows if row["provider"] == "fastflow")
    assert result["environment"]["versions"]["torch"] == torch.__version__

    assert {path.suffix for path in (tmp_path / "files").iterdir()} == {".json", ".csv", ".md", ".png"}
    with (tmp_path / "files" / "kernels.csv").open(encoding="utf-8", newline="") as file:
        assert [row["provider"] for row in csv.DictReader(file)] == [row["provider"] for row in rows]
    table = (tmp_path / "files" / "kernels.md").read_text(encoding="utf-8")
    assert all(f"### {op} 40x16x96" in table for op in OP_NAMES)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_answer_of_ours_makes_the_exit_status_1(tmp_path, monkeypatch, capsys, dtype):
    right = fastflow_kernels.flow_loss

    def wrong(hidden, weight, *inputs, **options):
        return right(hidden, weight * 1.05, *inputs, **options)

    monkeypatch.setattr(fastflow_kernels, "flow_loss", wrong)
    status, result = run(tmp_path, *FEW, "--op", "flow_loss", "--dtype", dtype)
    assert status == 1
    assert any("d_weight" in line for line in result["wrong"])
    assert "WRONG: fastflow" in capsys.readouterr().out


def test_an_exception_of_ours_makes_the_exit_status_1(tmp_path, monkeypatch):
    monkeypatch.setattr(fastflow_kernels, "linear_logprob", lambda *inputs: torch.ones(3)[7])
    status, result = run(tmp_path, *FEW, "--op", "logprob", "--dtype", "float32")
    assert status == 1
    assert [row["status"].split(":")[0] for row in result["rows"]] == ["failed", "ok", "ok"]


def test_others_may_fail_or_be_wrong(tmp_path, monkeypatch):
    def breaks(op, problem):
        raise RuntimeError("no such kernel\nand more")

    def halves(op, problem):
        return lambda problem: {"token_logprob": torch.full_like(problem.upstream, math.nan)}

    replace_provider(monkeypatch, "eager", make=breaks)
    replace_provider(monkeypatch, "checkpoint_chunks", make=halves)
    arguments = [*FEW, "--provider", "checkpoint_chunks", "--op", "logprob", "--dtype", "float32"]
    status, result = run(tmp_path, *arguments)
    assert status == 0
    rows = {row["provider"]: row for row in result["rows"]}
    assert rows["eager"]["status"] == "failed: RuntimeError: no such kernel"
    assert rows["eager"]["median_s"] is None
    assert rows["checkpoint_chunks"]["within_bounds"] is False
    assert rows["checkpoint_chunks"]["error"]["token_logprob_abs"] == "inf"
    assert rows["fastflow"]["within_bounds"] is True


def test_providers_that_cannot_run_are_named(tmp_path, monkeypatch, capsys):
    replace_provider(monkeypatch, "eager", packages=("no_such_package",))
    status, result = run(tmp_path, "--provider", "eager", "--provider", "verl", "--op", "logprob", "--dtype", "float32")
    assert status == 0
    reasons = {row["provider"]: row["status"] for row in result["rows"]}
    assert reasons == {"eager": "skipped: no_such_package is not installed", "verl": "skipped: does not run on cpu"}
    assert "- skipped: no_such_package is not installed: eager" in capsys.readouterr().out


def test_peaked_logits_are_named_and_answered_right(tmp_path, capsys):
    status, result = run(tmp_path, *FEW, "--op", "flow_loss", "--deviation", "8")
    assert status == 0 and all(row["within_bounds"] for row in result["rows"] if row["provider"] == "fastflow")
    assert {row["deviation"] for row in result["rows"]} == {8.0}
    assert "### flow_loss 40x16x96 float32 cpu, logits of deviation 8" in capsys.readouterr().out


def test_after_the_budget_only_ours_and_the_products_run(tmp_path):
    _, result = run(tmp_path, *FEW, "--op", "logprob", "--dtype", "float32", "--budget", "0.000001")
    assert {row["provider"]: row["status"] for row in result["rows"]} == {
        "fastflow": "ok",
        "gemms": "ok",
        "eager": "skipped: out of time",
    }


def test_ours_at_another_size_joins_those_asked_for(tmp_path):
    arguments = ["--provider", "gemms", "--also", "fastflow@7", "--op", "logprob", "--dtype", "float32"]
    status, result = run(tmp_path, *arguments)
    assert status == 0
    assert {row["provider"]: row["status"] for row in result["rows"]} == {"fastflow@7": "ok", "gemms": "ok"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--shape", "3x4"], ["--provider", "nobody"], ["--also", "nobody@3"], ["--repeats", "0"],
        ["--deviation", "0"], ["--deviation", "nan"], ["--deviation", "x"],
    ],
)  # fmt: skip
def test_arguments_are_checked(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert arguments[1] in capsys.readouterr().err


def test_the_list_of_providers(capsys):
    assert main(["--list"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if not line.startswith(" ")] == [provider.name for provider in providers.ALL]


def test_every_file_of_figures_is_json(tmp_path):
    file = tmp_path / "made" / "figures.json"
    report.write_json(file, {"error": math.inf, "rows": [(1.5, math.nan)]})
    assert file.read_text(encoding="utf-8").endswith("}\n")
    written = json.loads(file.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert written == {"error": "inf", "rows": [[1.5, "nan"]]}
