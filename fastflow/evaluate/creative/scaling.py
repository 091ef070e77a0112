"""The dial: one LoRA adapter at several strengths, each a model of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fastflow.errors import FastflowError
from fastflow.evaluate.models import ModelSource

ADAPTER = "adapter"  # where a run of `fastflow train` keeps what it has learned
SETTING = "eval.adapter_scale"


def scaled(models: Sequence[ModelSource], scales: Sequence[float]) -> list[ModelSource]:
    """Return each model with adapters once for each scale, in order, and the others as they are.

    A run of `fastflow train` counts with the adapters that it has saved. Raises FastflowError where no model has
    adapters, and for adapters that a factor does not scale.
    """
    if not scales:
        return list(models)
    if len(set(scales)) < len(scales):
        raise FastflowError(f"{SETTING} names a scale twice; give each once")
    found: list[ModelSource] = []
    any_adapters = False
    for model in models:
        directory = model.adapter or _of_run(model)
        if directory is None:
            found.append(model)
            continue
        base = check_scalable(directory)
        any_adapters = True
        found += [
            replace(model, name=f"{model.name} at {scale:g}", path=base, adapter=directory, scale=scale)
            for scale in scales
        ]
    if not any_adapters:
        names = ", ".join(model.name for model in models)
        raise FastflowError(
            f"{SETTING} is set, but {names} has no LoRA adapters; give an adapter or a run with lora.rank"
        )
    return found


def check_scalable(directory: str) -> str:
    """Return the base of adapters. Raises FastflowError for those that are more than a product of two factors."""
    file = Path(directory) / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        base, kind = str(config["base_model_name_or_path"]), config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FastflowError(f"{file} names no base_model_name_or_path and peft_type; check the adapters") from error
    reasons = {
        f"is of the kind {kind}": kind != "LORA",
        "has magnitudes (use_dora)": bool(config.get("use_dora")),
        "trains biases": config.get("bias", "none") != "none",
        f"replaces whole layers ({config.get('modules_to_save')})": bool(config.get("modules_to_save")),
    }
    for reason, holds in reasons.items():
        if holds:
            raise FastflowError(f"{directory} {reason}, which no factor scales; leave out --adapter_scale")
    return base


def _of_run(model: ModelSource) -> str | None:
    directory = Path(model.name) / ADAPTER
    return str(directory) if (directory / "adapter_config.json").is_file() else None
