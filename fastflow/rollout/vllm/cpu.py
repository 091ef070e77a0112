"""What vLLM needs on a CPU to run with weights that change."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from fastflow.rollout.vllm.messages import EngineSettings

PASS_TOKENS = 8192  # prompt tokens in one forward pass


def leave_weights_unpacked() -> None:
    """Keep vLLM, in this process, from packing weights for its kernels: they would not follow what its loader writes
    later. So linear layers take neither oneDNN's form nor AMX's, and the convolutions of linear attention not theirs.
    """
    import vllm._custom_ops as operations
    from vllm.model_executor.layers import utils

    operations._supports_onednn = False
    utils.check_cpu_sgl_kernel = lambda *_: False
    vars(operations).pop("causal_conv1d_weight_pack", None)
    for name in ("causal_conv1d_fwd_cpu", "causal_conv1d_update_cpu"):
        if (convolution := getattr(operations, name, None)) is not None:
            setattr(operations, name, functools.partial(_convolve, convolution))


def _convolve(
    convolution: Callable[..., torch.Tensor], *, weight: torch.Tensor, is_weight_packed: bool, **others: Any
) -> torch.Tensor:
    """Call one of vLLM's convolutions, which says that its weight is packed, with one that is not."""
    return convolution(weight=weight.view(weight.shape[0], -1), is_weight_packed=False, **others)


def options(settings: EngineSettings) -> dict[str, Any]:
    """Return options of the engine. Prompts are prefilled whole: in parts, a seeded one needs a GPU's generator."""
    return {
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(PASS_TOKENS, settings.context),
    }
