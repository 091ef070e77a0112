"""Check the optional packages: each by its purpose, and whether it can be imported where it is installed."""

from __future__ import annotations

from typing import NamedTuple

from fastflow.doctor import probes
from fastflow.doctor.check import BROKEN, MISSING, OK, Check


class Extra(NamedTuple):
    """An optional package. distribution: pip's name. statement: imports the part in use. purpose: what needs it."""

    distribution: str
    statement: str
    extra: str
    purpose: str
    needs_cuda: bool = False


EXTRAS = (
    Extra("datasets", "import datasets", "data", "Hugging Face dataset ids"),
    Extra("pyarrow", "import pyarrow.parquet", "data", "parquet files"),
    Extra("peft", "from peft import get_peft_model", "lora", "lora.rank"),
    Extra("tensorboard", "from torch.utils.tensorboard import SummaryWriter", "tensorboard", "run.tensorboard"),
    Extra("wandb", "import wandb", "wandb", "run.wandb"),
    Extra("httpx", "import httpx", "server", "rollout.engine = vllm-server"),
    Extra("math-verify", "import math_verify", "grade", "fastflow grade and evaluate, the grader math"),
    Extra("flash-attn", "from flash_attn import flash_attn_varlen_func", "flash-attn", "model.attention = flash_attn",
          needs_cuda=True),
    Extra("liger-kernel", "from liger_kernel.transformers import apply_liger_kernel_to_qwen2", "liger",
          "model.fused_layers = liger", needs_cuda=True),
    Extra("flash-linear-attention", "from fla.ops.gated_delta_rule import chunk_gated_delta_rule", "linear-attention",
          "linear attention of Qwen3.5", needs_cuda=True),
)  # fmt: skip


def check_extra(extra: Extra, cuda: bool) -> Check:
    """Check whether an optional package is installed and works. cuda: whether torch sees a GPU."""
    version, command = probes.version_of(extra.distribution), f'pip install "fastflow[{extra.extra}]"'
    if version is None:
        if extra.needs_cuda and not cuda:
            return Check(extra.distribution, OK, f"not installed; only a GPU can use it ({extra.purpose})")
        return Check(extra.distribution, MISSING, f"optional: {extra.purpose}", command)
    outcome = probes.run_python(extra.statement)
    if outcome.worked:
        return Check(extra.distribution, OK, f"{version} ({extra.purpose})")
    remedy = f"pip install --force-reinstall {extra.distribution}, or pip uninstall -y {extra.distribution}"
    return Check(extra.distribution, BROKEN, f"{version}: {outcome.error}", remedy)
