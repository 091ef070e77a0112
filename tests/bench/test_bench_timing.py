"""Statistics, order of calls, limits and memory of the harness."""

from __future__ import annotations

import doctest
import importlib

import pytest

from bench import limits, memory, providers
from bench.ops import LIMIT_FLOPS, bytes_moved
from bench.shapes import Group, Shape
from bench.timing import interleaved, summarise

GROUP = Group("flow_loss", Shape(100, 10, 1000), "bfloat16", "cpu")


@pytest.mark.parametrize(
    "name", ["bench.shapes", "bench.timing", "bench.providers", "bench.providers.fastflow", "bench.step"]
)
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted and not result.failed


def test_one_call_has_no_spread():
    assert summarise([2.0]) == (2.0, 2.0, 2.0, 2.0, 1)


def test_calls_are_interleaved_and_problems_rotate():
    calls = []

    def step(name):
        return lambda problem: calls.append((name, problem))

    times, failed = interleaved({name: step(name) for name in "abc"}, [0, 1], "cpu", repeats=3, seconds=60)
    assert "".join(name for name, _ in calls) == "abcbcacababc"  # the first round is not timed
    assert [problem for name, problem in calls if name == "a"] == [0, 1, 1, 1]
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3} and not failed


def test_rounds_end_with_the_time_but_there_are_three():
    times, _ = interleaved({"a": lambda problem: None}, [0], "cpu", repeats=50, seconds=0)
    assert len(times["a"]) == 3


def test_a_step_that_fails_is_not_called_again():
    calls = []

    def fails(problem):
        calls.append(problem)
        raise ValueError("once")

    times, failed = interleaved({"a": fails, "b": lambda problem: None}, [0], "cpu", repeats=3, seconds=60)
    assert len(calls) == 1 and str(failed["a"]) == "once"
    assert times["a"] == [] and len(times["b"]) == 3


def test_the_limit_is_the_slower_of_arithmetic_and_memory():
    limit = limits.limit_of(GROUP, gemms_s=0.01, square_s=None, copy_rate=1e12)
    assert limit.flops == 6 * 100 * 10 * 1000
    assert limit.seconds == pytest.approx(0.01)
    assert limits.limit_of(GROUP, 0.01, square_s=2 * 8192**3 / 6e6, copy_rate=1e12).seconds == pytest.approx(1.0)
    slow_memory = limits.limit_of(GROUP, 0.01, None, copy_rate=1e3)
    assert slow_memory.seconds == pytest.approx(bytes_moved(GROUP) / 1e3)
    assert bytes_moved(GROUP) == 2 * 2 * (100 + 1000) * 10 + 100 * 12


def test_work_is_counted_for_every_op_a_provider_serves():
    for provider in providers.ALL:
        assert provider.flops.keys() <= LIMIT_FLOPS.keys()
        assert set(provider.flops.values()) <= {2, 6, 8} and provider.note.endswith(".")


def test_peak_memory_sees_the_logits():
    """1024 rows of 8192 logits are 32 MiB in float32; eager holds two to three such tensors, ours one block."""
    group = Group("logprob", Shape(1024, 8, 8192), "float32", "cpu")
    (eager,) = providers.select(["eager"], quick=False)
    peak = memory.cpu_peak(eager, group, None)
    if peak is None:
        pytest.skip("this system does not tell the resident maximum")
    assert 32 * 2**20 <= peak <= 128 * 2**20
