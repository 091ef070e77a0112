"""What the tests of vLLM share: a marker, small models that it takes, requests, and a look for orphans."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fastflow.data.trajectory import Prompt, flatten
from fastflow.models.packed import PackedModel
from fastflow.models.share import rescore
from fastflow.rollout.sampler import Request, SamplingParams
from fastflow.rollout.vllm.sampler import VllmSampler
from small_models import make_causal_lm

HEAD_DIM = 32  # the smallest that vLLM's attention takes on a CPU
PARAMS = SamplingParams(max_response_tokens=12)


def needs_vllm(test):
    skip = pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="needs vllm: see `fastflow doctor` for the command"
    )
    return pytest.mark.vllm(pytest.mark.slow(skip(test)))


def make_model(family: str = "qwen3", **changes) -> PackedModel:
    return PackedModel(make_causal_lm(family, head_dim=HEAD_DIM, **changes))


def make_requests(rng, prompts: int = 4, responses: int = 6) -> list[Request]:
    ids = [rng.integers(1, 40, length) for length in (1, 3, 9, 20)[:prompts]]
    return [
        Request(Prompt(prompt), tuple(range(100 * place, 100 * place + responses))) for place, prompt in enumerate(ids)
    ]


def start(model: PackedModel, **options) -> VllmSampler:
    return VllmSampler(model, **{"eos_ids": [0], "context": 40, "max_sequences": 32, **options})


def perturb(model: PackedModel, scale: float = 0.1) -> None:
    """What an optimiser step does: every parameter changed in place, and the version counted up."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    model.version += 1


def assert_agrees(groups, model: PackedModel, atol: float = 1e-4) -> None:
    for sampled, trained in zip(flatten(groups), flatten(rescore(model, groups, 10**6)), strict=True):
        np.testing.assert_allclose(sampled.behaviour_logprobs, trained.behaviour_logprobs, atol=atol)


def assert_equal(groups, others) -> None:
    for one, two in zip(flatten(groups), flatten(others), strict=True):
        assert np.array_equal(one.response_ids, two.response_ids)
        assert np.array_equal(one.behaviour_logprobs, two.behaviour_logprobs)


def descendants(pid: int | None = None) -> dict[int, str]:
    """Living processes under this one, with their commands; multiprocessing's own tracker, which stays, left out."""
    parents: dict[int, tuple[int, str]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            line, command = status.read_text(), status.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it ended meanwhile
        state, parent = line.rpartition(")")[2].split()[:2]
        if state != "Z":
            parents[int(status.parent.name)] = (int(parent), command)
    found: dict[int, str] = {}
    wanted = {os.getpid() if pid is None else pid}
    while wanted:
        children = {child for child, (parent, _) in parents.items() if parent in wanted}
        found |= {child: parents[child][1] for child in children}
        wanted = children
    return {child: command for child, command in found.items() if "resource_tracker" not in command}
