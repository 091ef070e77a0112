"""A few hundred hostile inputs in every test run; `python -m tests.fuzz` tries ten thousand."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from hostile_data import data_cases
from hostile_settings import settings_cases
from refusing import CaseJudge

few = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return CaseJudge(tmp_path_factory.mktemp("fuzz"))


@few
@given(settings_cases())
def test_settings(judge, case):
    assert judge.settings(case) is None


@few
@given(data_cases())
def test_data(judge, case):
    assert judge.data(case) is None
