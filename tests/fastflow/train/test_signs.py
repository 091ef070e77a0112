"""Long computations give signs of work."""

from __future__ import annotations

import pytest
import torch

from fastflow.evaluate.graders.grader import Item
from fastflow.evaluate.graders.pool import GraderPool
from fastflow.evaluate.graders.verdict import Verdict
from fastflow.models.pulse import PULSE
from fastflow.report.coverage import pass_at_plot
from fastflow.train.ranks import signs
from fastflow_kernels import blocks, linear_logprob


@pytest.fixture
def listening(monkeypatch):
    monkeypatch.setattr(blocks, "_listeners", [])
    try:
        from triton import knobs
    except ImportError:
        pass
    else:
        monkeypatch.setattr(knobs.compilation, "listener", None)
    signs.give_signs.cache_clear()
    for _ in range(2):
        signs.give_signs(compiles=True)
    yield
    signs.give_signs.cache_clear()


def test_each_block_of_rows_counts_once(listening):
    hidden, weight = torch.randn(12, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    before = PULSE.attended
    logprob = linear_logprob(hidden, weight, torch.arange(9).repeat(2)[:12], block_rows=4)
    assert PULSE.attended == before + 3
    logprob.sum().backward()
    assert PULSE.attended == before + 6


def test_each_kernel_that_is_compiled_counts(listening):
    knobs = pytest.importorskip("triton").knobs
    before = PULSE.attended
    knobs.compilation.listener(src=None, metadata={}, metadata_group={}, times=None, cache_hit=False)
    assert PULSE.attended == before + 1


def test_answers_that_are_graded_count():
    items = [Item("exact", "4", text) for text in ("4", "5", "4")]
    before = PULSE.attended
    with GraderPool(("exact",), workers=1) as pool:
        assert [verdict is Verdict.RIGHT for verdict in pool.grade(items)] == [True, False, True]
    assert PULSE.attended >= before + len(items)


def test_each_figure_of_a_report_counts():
    before = PULSE.attended
    assert pass_at_plot({"model": {1: (0.5, 0.1), 2: (0.75, 0.1)}}, "figure").svg
    assert PULSE.attended == before + 1


def test_who_listens_to_the_compiler_already_goes_on_listening():
    told = []
    signs.with_a_sign(lambda **compiled: told.append(compiled))(src="kernel", cache_hit=True)
    assert told == [{"src": "kernel", "cache_hit": True}]
