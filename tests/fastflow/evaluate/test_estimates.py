"""Means over prompts, and differences in pairs."""

import pytest

from fastflow.evaluate.estimates import over_prompts, paired


def test_estimates_leave_out_prompts_without_a_value():
    assert over_prompts([1.0, None, 3.0]) == {"value": 2.0, "error": pytest.approx(1.0), "prompts": 2}
    assert over_prompts([None]) == {"value": None, "error": None, "prompts": 0}
    found = paired([1.0, 2.0, None, 5.0], [0.0, 3.0, 1.0, None])
    assert found["value"] == 0 and found["prompts"] == 2 and found["high"] == pytest.approx(1.959964)
    assert paired([1.0], [None])["low"] is None
