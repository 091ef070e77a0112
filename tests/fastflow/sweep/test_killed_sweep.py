"""A sweep that is killed leaves no process, and the same command goes on where its runs were."""

from __future__ import annotations

import json

import pytest

from cli_runs import lines_in, start, wait_for
from rank_runs import assert_gone
from sweep_runs import real_options

pytestmark = pytest.mark.slow  # processes that train


def test_a_killed_sweep_goes_on(tmp_path):
    home, steps = tmp_path / "sweep", 40
    words = ["sweep", *real_options(tmp_path), f"--run.steps={steps}", "--grid=objective.alpha=1,2", f"--output={home}"]
    first, second = home / "runs" / "alpha-1", home / "runs" / "alpha-2"
    process = start(words)
    wait_for(lambda: lines_in(second / "metrics.jsonl") >= 2, process, 600)
    began = (first / "metrics.jsonl").stat().st_mtime_ns
    child = json.loads((second / "status.json").read_text())["pid"]
    process.kill()
    process.communicate()
    done = start(words)
    out, err = done.communicate(timeout=900)
    assert done.returncode == 0, (out, err)
    assert "1 done already" in out and "alpha-2: started" in out
    assert (first / "metrics.jsonl").stat().st_mtime_ns == began  # left alone
    assert_gone([child], 5)
    log = (home / "logs" / "alpha-2.txt").read_text()
    assert "stopped by SIGTERM; the policy after step" in log and "going on with step" in log
    recorded = [json.loads(line)["step"] for line in (second / "metrics.jsonl").read_text().splitlines()]
    assert recorded == list(range(1, steps + 1))
    assert (home / "report.html").exists()
