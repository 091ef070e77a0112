"""Reads a batch that a run has kept because its update was skipped. Nothing of the file is executed or trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastflow.data.trajectory import Group, Prompt
from fastflow.data.update import UpdateResult
from fastflow.errors import FastflowError, message_of
from fastflow.train.bad_updates import FORMAT, HEADER
from fastflow.train.state import result_of, trajectories_of

MOST = 2**31 - 1  # of any count or token id
_COUNTED = {  # what a tensor has an entry for -> the type of each
    "prompt": {"prompts/length": torch.int64, "prompts/responses": torch.int64},
    "prompt token": {"prompts/ids": torch.int64},
    "response": {
        "penalty": torch.float64, "reward": torch.float64, "responses/length": torch.int64,
        "responses/seed": torch.int64, "responses/version": torch.int64, "responses/stopped": torch.bool,
        "result/group": torch.int64,
        **{f"result/{name}": torch.float64 for name in (
            "length", "logprob", "base_logprob", "behaviour_logprob", "residual", "log_z", "importance", "raw_ratio")},
    },
    "response token": {
        "responses/ids": torch.int64, "responses/logprobs": torch.float32, "result/token_logprobs": torch.float32,
        "result/base_token_logprobs": torch.float32,
    },
}  # fmt: skip
_OPTIONAL = "responses/sampler_logprobs"


class _Broken(Exception):
    """What is wrong with the file."""


@dataclass(frozen=True)
class BadUpdate:
    """A batch whose update was skipped. penalty, reward: (n,) float64. result: what that update computed. about: which
    one it was, see bad_updates.Place, with the objective's name and the digest of the settings.
    """

    groups: list[Group]
    penalty: torch.Tensor
    reward: torch.Tensor
    result: UpdateResult
    about: Mapping[str, Any]


def read_bad_update(path: Path) -> BadUpdate:
    """Read and check a file of RUN/bad. Raises FastflowError where it is anything else, or damaged."""
    if not path.is_file():
        raise FastflowError(f"{path} is no file; give one of RUN/bad, such as runs/train/bad/step-3.safetensors")
    try:
        return _read(path)
    except _Broken as error:
        raise FastflowError(
            f"{path} is no batch that this fastflow has kept, or it is damaged ({error}); give a file of RUN/bad"
        ) from error


def _read(path: Path) -> BadUpdate:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = _parse((file.metadata() or {}).get(HEADER))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise _Broken(message_of(error)) from error
    _check_tensors(tensors)
    prompts = np.split(tensors["prompts/ids"].numpy(), tensors["prompts/length"].cumsum(0)[:-1].numpy())
    responses = iter(trajectories_of(_under("responses/", tensors)))
    groups = [
        Group(Prompt(ids), tuple(next(responses) for _ in range(count)))
        for ids, count in zip(prompts, tensors["prompts/responses"].tolist(), strict=True)
    ]
    if not isinstance(about["result"].get("skipped"), str):
        raise _Broken("its header does not say in words why the update was skipped")
    try:
        result = result_of(_under("result/", tensors), about["result"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _Broken("its header lacks numbers of the update") from error
    return BadUpdate(groups, tensors["penalty"], tensors["reward"], result, about)


def _parse(text: str | None) -> dict[str, Any]:
    if text is None:
        raise _Broken(f"it has no {HEADER} in its header")
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Broken("its header is no JSON") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise _Broken(f"its header is not of format {FORMAT}")
    for name in ("step", "update", "of", "updates"):
        if type(about.get(name)) is not int or not 0 <= about[name] <= MOST:
            raise _Broken(f"{name} in its header is no count")
    if not isinstance(about.get("result"), dict):
        raise _Broken("its header lacks numbers of the update")
    for name in ("objective", "settings"):
        if not isinstance(about.get(name), str):
            raise _Broken(f"{name} in its header is no text")
    return about


def _check_tensors(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise _Broken where a tensor is missing, superfluous, or has another type or length than the others imply."""
    wanted = {name: (kind, dtype) for kind, names in _COUNTED.items() for name, dtype in names.items()}
    if _OPTIONAL in tensors:
        wanted[_OPTIONAL] = ("response token", torch.float32)
    if odd := sorted(tensors.keys() ^ wanted.keys()):
        raise _Broken(f"the tensor {odd[0]} is {'superfluous' if odd[0] in tensors else 'missing'}")
    for name, (_, dtype) in wanted.items():
        tensor = tensors[name]
        if tensor.dtype != dtype or tensor.dim() != 1:
            raise _Broken(f"the tensor {name} is {tensor.dtype} of {tensor.dim()} dimensions")
    for name, least in (("prompts/length", 1), ("prompts/responses", 1), ("responses/length", 0), ("prompts/ids", 0),
                        ("responses/ids", 0)):  # fmt: skip
        if not bool(((tensors[name] >= least) & (tensors[name] <= MOST)).all()):
            raise _Broken(f"the tensor {name} holds numbers below {least} or over {MOST}")
    counts = {
        "prompt": len(tensors["prompts/length"]),
        "prompt token": int(tensors["prompts/length"].sum()),
        "response": int(tensors["prompts/responses"].sum()),
        "response token": int(tensors["responses/length"].sum()),
    }
    if not all(counts.values()):
        raise _Broken("it holds no response")
    for name, (kind, _) in wanted.items():
        if len(tensors[name]) != counts[kind]:
            raise _Broken(f"the tensor {name} has {len(tensors[name])} entries for {counts[kind]} {kind}s")
    if not torch.equal(tensors["result/length"], tensors["responses/length"].double()):
        raise _Broken("its lengths contradict each other")


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
