"""An installation that is made up."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement

from fastflow.doctor import probes, vllm
from fastflow.doctor.probes import Outcome
from outcomes import FAILS


@pytest.fixture
def installation(monkeypatch):
    """A function that makes up which distributions there are, and which code fails in a fresh interpreter."""

    def make(versions=None, fails=(), output="", requirements=()):
        def run_python(code, seconds=0.0):
            return FAILS if any(text in code for text in fails) else Outcome(True, output)

        monkeypatch.setattr(probes, "version_of", (versions or {}).get)
        monkeypatch.setattr(probes, "run_python", run_python)
        monkeypatch.setattr(probes, "requirements_of", lambda name: [Requirement(line) for line in requirements])
        monkeypatch.setattr(vllm, "has_module", lambda: "vllm" in (versions or {}))

    return make
