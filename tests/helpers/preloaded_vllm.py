"""What the process with vLLM imports, for a fork server that has it done once: import it there alone."""

from __future__ import annotations

import importlib
import os

from fastflow.rollout.vllm import child

FAMILIES = ("llama", "qwen2", "qwen3")
os.environ |= {
    **child.REQUIRED_ENVIRONMENT,
    **child.DEFAULT_CPU_ENVIRONMENT,
    **child.DEFAULT_ENVIRONMENT,
    **{name: os.environ[name] for name in child.DEFAULT_ENVIRONMENT if name in os.environ},
}

for name in (
    "_custom_ops",
    "entrypoints.llm",
    "v1.worker.cpu_worker",
    *(f"model_executor.models.{f}" for f in FAMILIES),
):
    importlib.import_module(f"vllm.{name}")
