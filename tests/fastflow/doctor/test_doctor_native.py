"""What `fastflow doctor` says of the native code."""

from __future__ import annotations

import pytest

from fastflow.doctor import native, probes
from fastflow.doctor.check import BROKEN, NOTE, OK
from fastflow.doctor.probes import Outcome
from fastflow_kernels.cpu import native as library


@pytest.fixture
def answers(monkeypatch):
    """A function that makes up what a fresh interpreter finds."""

    def make(description, is_worth_mending=False):
        output = f"some package's greeting\n{is_worth_mending} {description}"
        monkeypatch.setattr(probes, "run_python", lambda code: Outcome(True, output))

    return make


def test_loaded(answers):
    answers("avx2, loaded from /somewhere/_native.so")
    check = native.check_native()
    assert (check.state, check.found, check.remedy) == (OK, "avx2, loaded from /somewhere/_native.so", "")


def test_missing_is_a_note_with_a_remedy(answers):
    reason = "fastflow was installed without it; install a compiler and run pip, or set FASTFLOW_NATIVE=0."
    answers(reason, is_worth_mending=True)
    check = native.check_native()
    assert check.state == NOTE and not check.is_fault
    assert check.found == "fastflow was installed without it: the ops run without it, slower on a CPU"
    assert check.remedy == "install a compiler and run pip, or set FASTFLOW_NATIVE=0."


def test_left_unused_on_purpose_needs_no_remedy(answers):
    answers("FASTFLOW_NATIVE=0 leaves it unused; unset it.")
    check = native.check_native()
    assert check.state == OK and not check.remedy and "FASTFLOW_NATIVE=0" in check.found


def test_a_crash_is_a_fault(monkeypatch):
    monkeypatch.setattr(probes, "run_python", lambda code: Outcome(False, error="it died with exit code -4"))
    check = native.check_native()
    assert check.state == BROKEN and "exit code -4" in check.found and "FASTFLOW_NATIVE=0" in check.remedy


def test_this_machine(monkeypatch):
    check = native.check_native()
    assert check.state == (NOTE if library.is_worth_mending() else OK)
    monkeypatch.setenv("FASTFLOW_NATIVE", "0")
    assert "unused" in native.check_native().found
