"""Settings of the models: which ones, in what types they are held and multiplied, and their adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastflow.config.setting import Section, setting

HeadPlace = Literal["gathered", "cut"]
ResidualStream = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class ModelConfig(Section):
    """Which model is trained, and how memory holds it."""

    path: str = setting(
        "",
        "Local directory or Hugging Face id of the model to train (Llama, Qwen2, Qwen3 or Qwen3.5, dense or MoE, "
        "Mistral, OLMo 2 or 3, SmolLM3, Phi-3, Granite, or Gemma 3 of text alone)",
    )
    base: str | None = setting(None, "Frozen base, where it differs from model.path")
    device: str = setting("auto", "Device of policy and base: auto, cpu, cuda or cuda:N")
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32",
        "Type of the parameters; bfloat16 halves the memory and rounds small updates away: prefer it with LoRA",
    )
    autocast: bool = setting(False, "Run the transformer body in bfloat16 while float32 parameters are kept")
    residual_stream: ResidualStream = setting(
        "float32",
        "Under autocast, the type of the sum that every layer adds to. bfloat16 saves memory and traffic on a GPU, and "
        "rounds it at each layer: log-probs of policy and base are then 1.1 to 1.7 times as far from exact ones",
    )
    attention: Literal["auto", "sdpa", "varlen", "flash_attn"] = setting(
        "auto",
        "Packed attention: per-sequence SDPA, torch's varlen_attn (CUDA), flash-attn (CUDA), or the best available",
    )
    fused_layers: Literal["auto", "liger", "off"] = setting(
        "auto",
        "RMSNorm, SwiGLU and rotary embeddings by Liger's kernels (CUDA): where installed (auto), always (liger) or "
        "never (off)",
    )
    compile: Literal["off", "layers"] = setting(
        "off",
        "layers: compile each decoder layer (torch.compile), once for all lengths; the first update waits for it",
    )
    head: HeadPlace = setting(
        "gathered",
        "On several ranks, gathered: each has the whole head for a micro-batch; cut: each keeps a part of it, and the "
        "hidden states of all responses travel instead",
    )
    checkpoint_share: float = setting(
        0.0,
        "Share of the decoder layers that recompute their activations in the backward pass to save memory; 1 means all",
        at_least=0, at_most=1,
    )  # fmt: skip
    trust_remote_code: bool = setting(False, "Run Python code that comes with the model; only for sources you trust")


@dataclass(frozen=True)
class LoraConfig(Section):
    """Low-rank adapters. With them, the base is the policy with its adapters switched off."""

    rank: int = setting(0, "Adapter rank; 0 trains all parameters", at_least=0)
    alpha: float = setting(32.0, "Adapter scale; the update is multiplied by alpha / rank", above=0)
    dropout: float = setting(0.0, "Dropout rate on the adapters' input", at_least=0, below=1)
    targets: str = setting("all-linear", "Modules that get adapters: all-linear, or names separated by commas")
