"""Write what a run has learned as plain tensors where its save fails: the last resort, wherever there is room."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from fastflow.models.packed import PackedModel
from fastflow.run.directory import RESCUED
from fastflow.train.checkpoint import reason

FILE_BYTES = 2**30


def write_raw(policy: PackedModel, directory: Path) -> str:
    """Write the trained parameters to RUN/rescued, otherwise to a temporary directory. Returns what it did, as text."""
    reasons = []
    for target in (directory / RESCUED, Path(tempfile.gettempdir()) / f"fastflow-{RESCUED}-{directory.resolve().name}"):
        try:
            _write(policy, _unused(target))
        except Exception as error:
            shutil.rmtree(target, ignore_errors=True)
            reasons.append(reason(error))
            continue
        what = "LoRA adapters" if policy.model is not policy.causal_lm else "weights"
        return (
            f"the current trained {what} are in {target} as raw safetensors, under the names of the model's "
            "named_parameters()"
        )
    return f"the trained weights could not be written anywhere else ({reasons[-1]})"


def _unused(target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    return target


def _write(policy: PackedModel, target: Path) -> None:
    from safetensors.torch import save_file

    for number, bucket in enumerate(_buckets(policy.model), start=1):
        save_file(bucket, target / f"weights-{number:05d}.safetensors", metadata={"format": "pt"})


def _buckets(model: torch.nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the trained parameters on the CPU, at most FILE_BYTES at a time; a larger one comes alone."""
    bucket: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if bucket and sum(tensor.nbytes for tensor in bucket.values()) + parameter.nbytes > FILE_BYTES:
            yield bucket
            bucket = {}
        bucket[name] = parameter.detach().to("cpu", copy=True).contiguous()
    if bucket:
        yield bucket
