"""What a run leaves behind: the policy as a transformers directory, and the trainer's own state beside it.

Everything is safetensors or JSON; nothing is pickled.

    RUN/policy/                 loads with AutoModelForCausalLM.from_pretrained (LoRA is merged; adapters stand apart)
    RUN/adapter/                the LoRA adapters alone, when there are any
    RUN/trainer/log_z.safetensors, optimizer.safetensors, state.json
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastflow.learner import Learner
from fastflow.models import PackedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def save(
    directory: Path, learner: Learner, tokenizer: PreTrainedTokenizerBase, *, step: int, data_state: dict[str, int]
) -> Path:
    """Save policy and trainer state, replacing an earlier save only once the new one is complete.

    Returns the policy's directory.
    """
    policy = directory / "policy"
    _replace(policy, lambda target: export(learner.policy, tokenizer, target))
    if learner.policy.model is not learner.policy.causal_lm:
        _replace(directory / "adapter", lambda target: learner.policy.model.save_pretrained(target))
    _replace(directory / "trainer", lambda target: _save_trainer(target, learner, step, data_state))
    return policy


def export(policy: PackedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write the policy as an ordinary transformers model; LoRA adapters are merged."""
    model = _on_cpu(policy.model)
    if policy.model is not policy.causal_lm:
        model = model.merge_and_unload()
    model.config._attn_implementation = "sdpa"  # users of the export have no fastflow_packed
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _on_cpu(model: torch.nn.Module) -> torch.nn.Module:
    """A copy in memory of its own: what a GPU or another process holds is neither moved nor cloned there."""
    copies = {}
    for parameter in model.parameters():
        copies[id(parameter)] = torch.nn.Parameter(parameter.detach().to("cpu", copy=True), requires_grad=False)
    for buffer in model.buffers():
        copies[id(buffer)] = buffer.detach().to("cpu", copy=True)
    return copy.deepcopy(model, copies)


def _save_trainer(directory: Path, learner: Learner, step: int, data_state: dict[str, int]) -> None:
    from safetensors.torch import save_file

    directory.mkdir(parents=True)
    if learner.log_z_head is not None:
        save_file(learner.log_z_head.state_dict(), directory / "log_z.safetensors")
    tensors, settings = _flatten_optimizer(learner.optimizer.state_dict())
    save_file(tensors, directory / "optimizer.safetensors")
    state = {"step": step, "updates": learner.updates, "data": data_state, "optimizer": settings}
    (directory / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")


def _flatten_optimizer(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """AdamW's state as named tensors ("parameter index/name") and JSON-ready group settings."""
    tensors = {
        f"{index}/{name}": value.contiguous()
        for index, entry in state["state"].items()
        for name, value in entry.items()
    }
    return tensors, [dict(group) for group in state["param_groups"]]


def _replace(target: Path, write) -> None:
    """Write to a neighbour first, so that a crash leaves the earlier directory whole."""
    fresh = target.with_name(target.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    write(fresh)
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
