"""The vLLM process from outside, with stand-ins for it: its messages, its death, and the memory that it shares."""

from __future__ import annotations

import logging
import re
import sys
import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fake_child
from fastflow import machine
from fastflow.errors import FastflowError
from fastflow.models.packed import PackedModel
from fastflow.rollout.vllm import child, messages
from fastflow.rollout.vllm import sampler as vllm_sampler
from fastflow.rollout.vllm.process import EngineProcess, explain
from fastflow.rollout.vllm.weights import SharedWeights
from small_models import make_causal_lm
from vllm_runs import PARAMS, descendants, make_model, make_requests, start


@pytest.fixture(autouse=True)
def no_orphans():
    before = set(descendants())
    yield
    assert not set(descendants()) - before


@pytest.fixture
def temporary(monkeypatch):
    """Where the samplers of this test alone keep folders for their processes; its path is short enough for sockets."""
    with tempfile.TemporaryDirectory() as home:
        here = partial(tempfile.TemporaryDirectory, dir=home)
        monkeypatch.setattr(vllm_sampler, "tempfile", SimpleNamespace(TemporaryDirectory=here))
        yield Path(home)


def stand_in(monkeypatch, main) -> None:
    monkeypatch.setattr(child, "main", main)
    monkeypatch.setattr(vllm_sampler, "check_installed", lambda: None)
    monkeypatch.setattr(vllm_sampler.probe, "check_agreement", lambda *_, **__: 0.0)


def engine_process(tmp_path) -> EngineProcess:
    settings = messages.EngineSettings(
        model=str(tmp_path), dtype="float32", context=8, max_sequences=1, device="cpu", threads=1, memory_fraction=0.4,
        tokenizer=False, sleeps=False, log=str(tmp_path / "log"),
    )  # fmt: skip
    return EngineProcess(settings, startup=60.0, silence=60.0, on_progress=lambda finished: None)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 always looks in the working directory first")
def test_files_named_as_modules_of_python_are_not_imported(monkeypatch, tmp_path):
    stand_in(monkeypatch, fake_child.confuses_its_replies)
    for name in sys.stdlib_module_names:
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    engine_process(tmp_path).end()


def test_a_reply_of_another_kind_is_no_reply(monkeypatch, tmp_path):
    stand_in(monkeypatch, fake_child.confuses_its_replies)
    process = engine_process(tmp_path)
    try:
        process.send(messages.Commit())
        with pytest.raises(RuntimeError, match="replied with Probed, and Done was due"):
            process.wait_for(messages.Done)
    finally:
        process.end()


def test_a_process_that_dies_at_its_start_leaves_nothing(monkeypatch, temporary):
    stand_in(monkeypatch, fake_child.dies_at_start)
    with pytest.raises(FastflowError, match=r"the vLLM process died with exit code 3; sample with --rollout\.engine"):
        start(make_model())
    assert not list(temporary.iterdir())


def test_a_process_that_dies_again_and_again_stops_the_run(monkeypatch, rng, caplog, temporary):
    stand_in(monkeypatch, fake_child.dies_when_it_samples)
    with (
        closing(start(make_model(), restarts=1)) as sampler,
        caplog.at_level(logging.WARNING),
        pytest.raises(FastflowError, match=r"loss 2 in a row, and rollout\.restarts = 1 allows no other restart"),
    ):
        sampler.sample(make_requests(rng), PARAMS)
    assert "vLLM is restarted (1 of at most 1 in a row)" in caplog.text
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (messages.Failed("starting", "no kernel", False), r"could not start: no kernel; check the model"),
        (
            messages.Failed("starting", "CUDA out of memory", True),
            r"ran out of memory while starting .*memory_fraction",
        ),
        (messages.Failed("sampling", "out of memory", True), r"while sampling .*; lower rollout\.max_sequences"),
        (messages.Failed("waking", "out of memory", True), r"while waking .*the trainer's share"),
        (messages.Failed("probing", "no", False), r"could not compute the log-probs of a probe: no; sample with"),
    ],
)
def test_a_failure_is_explained_with_a_remedy(failure, message):
    assert re.search(message, explain(failure))


def test_shared_weights_are_the_parameters():
    """The optimiser writes where the other process reads."""
    model = PackedModel(make_causal_lm())
    before = {name: value.clone() for name, value in model.causal_lm.state_dict().items()}
    attach = SharedWeights(model).attach
    assert all(block.is_shared() for block in attach.blocks)
    seen = {
        place.name: attach.blocks[place.block][place.offset : place.offset + place.shape.numel()].view(place.shape)
        for places in attach.rounds
        for place in places
    }
    assert all(torch.equal(before[name], value) for name, value in seen.items())
    with torch.no_grad():
        model.parameters()[0].add_(1)
    assert torch.equal(seen["model.embed_tokens.weight"], before["model.embed_tokens.weight"] + 1)


def test_too_little_shared_memory_is_refused_before_it_is_written(monkeypatch):
    class Full:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(machine.os, "statvfs", lambda path: Full)
    with pytest.raises(FastflowError, match=r"KiB of shared memory, and /dev/shm has 4\.0 KiB left; .*--shm-size"):
        SharedWeights(PackedModel(make_causal_lm()))


def test_without_vllm_the_package_to_install_is_named(monkeypatch):
    monkeypatch.setattr(vllm_sampler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FastflowError, match=r"needs the package vllm: pip install \"fastflow\[vllm\]\""):
        start(make_model())


def test_sleep_on_a_cpu_is_refused(monkeypatch):
    monkeypatch.setattr(vllm_sampler, "check_installed", lambda: None)
    with pytest.raises(FastflowError, match=r"rollout\.sleep = drop-weights frees nothing on a CPU"):
        start(make_model(), sleep="drop-weights")
