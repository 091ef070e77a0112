"""What a run leaves behind: the policy as a transformers directory, and the trainer's own state beside it.

Everything is safetensors or JSON; nothing is pickled.

    RUN/policy/                 loads with AutoModelForCausalLM.from_pretrained (LoRA is merged; adapters stand apart)
    RUN/adapter/                the LoRA adapters alone, when there are any: all that was learned, unrounded
    RUN/trainer/log_z.safetensors, optimizer.safetensors, state.json
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from fastflow.errors import FastflowError
from fastflow.run import swap
from fastflow.train.export import Exporter, ExportReport
from fastflow.train.learner import Learner


class SaveFailed(FastflowError):
    """A save came to nothing; an earlier one is as it was."""


def save(
    directory: Path, learner: Learner, exporter: Exporter, *, step: int, data_state: dict[str, int]
) -> tuple[Path, ExportReport]:
    """Save policy and trainer state, replacing an earlier save only once all of the new one is complete.

    Returns the policy's directory, and what became of the update in it. Raises SaveFailed whatever goes wrong.
    """
    try:
        fresh = swap.begin(directory)
        report = exporter.export(learner.policy, fresh / "policy")
        if learner.policy.model is not learner.policy.causal_lm:
            save_adapter(learner.policy.model, fresh / "adapter")
        _save_trainer(fresh / "trainer", learner, step, data_state, report)
        swap.commit(directory)
    except Exception as error:
        swap.discard(directory)
        raise SaveFailed(f"the save of step {step} in {directory} failed: {reason(error)}") from error
    except BaseException:
        swap.discard(directory)
        raise
    return directory / "policy", report


def save_adapter(model: torch.nn.Module, directory: Path) -> None:
    """Write the adapters of a peft model; their ends are never adapted, so that nobody has to look at the hub's."""
    model.save_pretrained(directory, save_embedding_layers=False)


def reason(error: Exception) -> str:
    """Why something could not be written, in one line and with a remedy where the disk is to blame."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
        return f"{text}; make room there (`df -h`, `ulimit -f`), or choose another --run.output"
    return f"{type(error).__name__}: {text}"


def _save_trainer(
    directory: Path, learner: Learner, step: int, data_state: dict[str, int], report: ExportReport
) -> None:
    from safetensors.torch import save_file

    directory.mkdir(parents=True)
    if learner.objective.log_z_head is not None:
        save_file(learner.objective.log_z_head.state_dict(), directory / "log_z.safetensors")
    tensors, settings = _flatten_optimizer(learner.optimizer.state_dict())
    save_file(tensors, directory / "optimizer.safetensors")
    state = {
        "step": step,
        "updates": learner.updates,
        "data": data_state,
        "export": dataclasses.asdict(report),
        "optimizer": settings,
    }
    (directory / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")


def _flatten_optimizer(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """AdamW's state as named tensors ("parameter index/name") and JSON-ready group settings."""
    tensors = {
        f"{index}/{name}": value.contiguous()
        for index, entry in state["state"].items()
        for name, value in entry.items()
    }
    return tensors, [dict(group) for group in state["param_groups"]]
