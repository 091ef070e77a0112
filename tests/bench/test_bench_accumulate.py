"""`python -m bench.accumulate`: both ways do the same work, and it says which took more memory."""

from __future__ import annotations

import pytest
import torch

from bench import accumulate
from bench.problem import make_problems
from bench.shapes import Shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_leave_the_same_gradients(dtype):
    gradients = []
    for way in accumulate.WAYS:
        problem = make_problems(Shape(40, 8, 50), dtype, "cpu")[0]
        total = accumulate.make_gradients(problem, way)
        for _ in range(2):
            accumulate.micro_batch(problem, total)
        gradients.append([problem.weight.grad if total is None else total, problem.hidden.grad, problem.log_z.grad])
    for ordinary, accumulated in zip(*gradients, strict=True):
        torch.testing.assert_close(
            accumulated.to(ordinary.dtype), ordinary, rtol=1e-2 if dtype.itemsize == 2 else 1e-6, atol=1e-6
        )


@pytest.mark.parametrize(("peaks", "code"), [((300 * 2**20, 100 * 2**20), 0), ((100, 100), 1)])
def test_it_fails_where_nothing_is_spared(peaks, code, monkeypatch, capsys):
    found = dict(zip(accumulate.WAYS, peaks, strict=True))
    monkeypatch.setattr(accumulate, "in_a_process", lambda way, options: ([2.0, 1.0], found[way]))
    assert accumulate.main(["--shape", "512x1024x51200"]) == code
    said = capsys.readouterr().out
    assert "4 V D = 200 MiB" in said
    assert code or "200 MiB, 1.00 of 4 V D" in said


def test_it_says_where_no_peak_is_told(monkeypatch, capsys):
    monkeypatch.setattr(accumulate, "in_a_process", lambda way, options: ([1.0], None))
    with pytest.raises(SystemExit):
        accumulate.main(["--shape", "8x8x8"])
    assert "does not tell a process's peak memory" in capsys.readouterr().err
