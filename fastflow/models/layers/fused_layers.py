"""Runs RMSNorm, SwiGLU and rotary embeddings of the decoder by Liger's kernels, on CUDA (`model.fused_layers`).

In transformers each of them takes several launches and copies of its input; as a kernel it takes one launch. Liger's
own functions, such as apply_liger_kernel_to_llama, put them in place. Its loss stays out, since `fastflow_kernels` has
the head.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fastflow.errors import FastflowError, need

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

LIGER, PLAIN = "liger", "plain"
FAMILIES = ("llama", "qwen2", "qwen3")
ACTIVATIONS = ("silu", "swish")  # Liger computes silu, whatever the model's config.json says


def fits(config: PretrainedConfig) -> bool:
    """Whether Liger computes what the layers of this model compute."""
    own_code = getattr(config, "auto_map", None)  # the model's own code may compute anything
    return config.model_type in FAMILIES and getattr(config, "hidden_act", None) in ACTIVATIONS and not own_code


def choose_layers(requested: str, device: torch.device, *, suitable: bool = True, compiled: bool = False) -> str:
    """Choose the layers that serve `model.fused_layers` on this device: "liger" or "plain".

    auto takes Liger's on CUDA where they are installed and the model is suitable (`fits`), unless torch.compile fuses
    the layers itself. Raises FastflowError where the setting is liger and they cannot serve.
    """
    installed = importlib.util.find_spec("liger_kernel") is not None
    if requested == "auto":
        return LIGER if device.type == "cuda" and installed and suitable and not compiled else PLAIN
    if requested == "off":
        return PLAIN
    if device.type != "cuda":
        raise FastflowError(
            f"model.fused_layers = liger needs a CUDA device, and the model is on {device.type}; use auto or off"
        )
    if not installed:
        raise FastflowError(
            'model.fused_layers = liger needs liger-kernel: pip install "fastflow[liger]", or use auto or off'
        )
    if not suitable:
        raise FastflowError(
            f"model.fused_layers = liger serves {', '.join(FAMILIES)} with the activation silu; by its config.json, "
            "this model is something else: use auto or off"
        )
    return requested


def fuse_layers(model: PreTrainedModel) -> None:
    """Give this model Liger's layers. Parameters and their names stay.

    Norms and MLPs change in this model alone. The rotary embedding is a function of transformers' module, so it changes
    for all models of the family in this process, but only for tensors on CUDA.
    """
    family = model.config.model_type
    logging.getLogger("liger_kernel").setLevel(logging.ERROR)  # it warns of kernels for other hardware
    liger = need("liger_kernel.transformers", extra="liger", purpose="model.fused_layers = liger")
    module: Any = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    before = dict(vars(module))
    getattr(liger, f"apply_liger_kernel_to_{family}")(
        rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False, model=model
    )
    fused_rotary = module.apply_rotary_pos_emb
    for name, value in before.items():  # Liger also replaces the classes of later models
        setattr(module, name, value)
    if not isinstance(module.apply_rotary_pos_emb, RotaryByDevice):
        module.apply_rotary_pos_emb = RotaryByDevice(before["apply_rotary_pos_emb"], fused_rotary)


@dataclass(frozen=True)
class RotaryByDevice:
    """Calls a fused rotary embedding on CUDA, and that of transformers elsewhere."""

    plain: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    fused: Callable[..., tuple[torch.Tensor, torch.Tensor]]

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rotate = self.fused if query.is_cuda else self.plain
        return rotate(query, key, cos, sin, unsqueeze_dim=unsqueeze_dim)
