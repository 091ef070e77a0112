"""Processes with vLLM in the tests: forked from one that has imported it, which takes 9 CPU seconds."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import sys

import pytest
import torch.multiprocessing

NEW = torch.multiprocessing.get_context


@pytest.fixture(scope="session")
def vllm_forks():
    """A context of multiprocessing."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", path)
        environment.setenv("OPENBLAS_NUM_THREADS", "1")  # no thread: a fork would lose it
        context = NEW("forkserver")
        context.set_forkserver_preload(["preloaded_vllm"])
        multiprocessing.forkserver.ensure_running()
    return context


@pytest.fixture(autouse=True)
def forked_engines(request, monkeypatch):
    """For tests of the real vLLM that run on a CPU; `new_engines` gives a test new processes instead."""
    if request.node.get_closest_marker("vllm") and not torch.cuda.is_available():
        context = request.getfixturevalue("vllm_forks")
        monkeypatch.setattr(
            torch.multiprocessing, "get_context", lambda method: context if method == "spawn" else NEW(method)
        )


@pytest.fixture
def new_engines(forked_engines, monkeypatch):
    """Processes as users have them: their environment is the one of the moment."""
    monkeypatch.setattr(torch.multiprocessing, "get_context", NEW)
