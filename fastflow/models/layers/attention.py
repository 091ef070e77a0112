"""The one attention function of training: causal attention within each packed sequence, never across sequences.

transformers knows it by the name `fastflow_packed`. It reads the sequence boundaries that `fastflow.models.packed`
passes, and refuses to run without them: attention across sequences is the classic mistake of packed training.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from fastflow.errors import FastflowError
from fastflow.models.layers.similar_lengths import in_buckets

NAME = "fastflow_packed"
WINDOW_BLOCK = 256  # queries of one call under a sliding window that is shorter


class Kernel(Protocol):
    """Attends query (H, T, E) to key and value (H_kv, T, E), each sequence to itself; returns (T, H, E).

    cu_seqlens: (S+1,) int32; lengths: the same on the host. window: tokens before each that it sees; -1 for all.
    """

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seqlens: torch.Tensor,
        lengths: tuple[int, ...],
        *,
        scaling: float,
        window: int,
    ) -> torch.Tensor: ...


@dataclass(frozen=True)
class SequenceLengths:
    """Tokens of each packed sequence, on the host.

    This is an object because torch.compile writes new code for each value of a tuple, but not for what an object holds.
    """

    counts: tuple[int, ...]


def register() -> None:
    """Register `fastflow_packed` with transformers. A second call changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _outside_compiled_layers())


@functools.cache
def _outside_compiled_layers() -> Callable[..., tuple[torch.Tensor, None]]:
    """Keep the attention function out of torch.compile, since it reads lengths on the host."""
    return torch.compiler.disable(packed_attention)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    sequence_lengths: SequenceLengths | None = None,
    packed_kernel: str = "sdpa",
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attend query (1, H, T, E) to key and value (1, H_kv, T, E). Returns (1, T, H, E).

    cu_seq_lens_q: (S+1,) int32 boundaries; sequence_lengths: the same on the host.
    Raises RuntimeError without boundaries, with a mask, with a KV cache, and where the model caps its scores or adds
    sinks to them (s_aux), which transformers' SDPA leaves out without a word; FastflowError for dropout.
    """
    if cu_seq_lens_q is None or sequence_lengths is None:
        raise RuntimeError(
            f"{NAME} needs cu_seq_lens_q and sequence_lengths: call the model through fastflow.models, or set another "
            "attention implementation before you call it directly"
        )
    lengths = sequence_lengths.counts
    if attention_mask is not None or key.shape[2] != sum(lengths) or query.shape[0] != 1:
        raise RuntimeError(
            f"{NAME} takes one packed row without attention mask or KV cache; pass use_cache=False and no mask"
        )
    if softcap is not None or s_aux is not None:
        raise RuntimeError("its attention caps its scores or has sinks, which no kernel here computes")
    if dropout:
        raise FastflowError(
            f"the model drops {dropout:g} of its attention's scores in training, which its own code decides and no "
            "kernel here computes; set that to 0 in its config.json"
        )
    window = -1 if sliding_window is None else sliding_window - 1
    # under autocast, rotary embeddings and norms return query and key in float32; not every kernel casts them
    query, key = query.to(value.dtype), key.to(value.dtype)
    attend = _KERNELS[packed_kernel]
    output = attend(query[0], key[0], value[0], cu_seq_lens_q, lengths, scaling=scaling, window=window)
    return output.unsqueeze(0), None


def choose_kernel(requested: str, device: torch.device, dtype: torch.dtype) -> str:
    """Choose the kernel that serves `model.attention` on this device: "sdpa", "varlen" or "flash_attn".

    auto follows a rule and measures no time, so that a seed fixes the run. In half precision on CUDA it takes
    flash-attn where it is installed, since its kernels are newer, otherwise torch's varlen. Both take a whole
    micro-batch in one call and pad nothing. Elsewhere it takes SDPA over sequences of similar length, since the other
    two do not run there.
    """
    half_on_cuda = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    has_flash_attn = importlib.util.find_spec("flash_attn") is not None
    if requested == "auto":
        return ("flash_attn" if has_flash_attn else "varlen") if half_on_cuda else "sdpa"
    if requested == "sdpa":
        return requested
    if not half_on_cuda:
        raise FastflowError(f"model.attention = {requested} needs a CUDA device and bfloat16; use auto or sdpa")
    if requested == "flash_attn" and not has_flash_attn:
        raise FastflowError(
            'model.attention = flash_attn needs flash-attn: pip install "fastflow[flash-attn]", or use varlen'
        )
    return requested


def _sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    lengths: tuple[int, ...],
    *,
    scaling: float,
    window: int,
) -> torch.Tensor:
    """Pad sequences of similar length into one call. Under a causal mask no token sees the padding on its right."""
    heads = len(query)
    if query.is_cuda and query.dtype == torch.float32:  # there, the one kernel that shares heads stores all scores
        key, value = (states.repeat_interleave(heads // len(states), 0) for states in (key, value))
    buckets = in_buckets(lengths, query.device)
    attend: Callable[..., torch.Tensor] = functools.partial(
        scaled_dot_product_attention, scale=scaling, enable_gqa=query.shape[0] != key.shape[0]
    )
    outputs = []
    for positions in buckets.positions:
        batch = [states.transpose(0, 1)[positions].transpose(1, 2) for states in (query, key, value)]
        if 0 <= window < positions.shape[1] - 1:
            attended = _windowed(attend, *batch, window=window)
        else:
            attended = attend(*batch, is_causal=True)
        outputs.append(attended.transpose(1, 2))
    return buckets.packed(outputs)


def _windowed(
    attend: Callable[..., torch.Tensor], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, window: int
) -> torch.Tensor:
    """Attend each token to the `window` tokens before it, a block of queries at a time with the keys that it sees."""
    length, outputs = query.shape[2], []
    block = max(window, WINDOW_BLOCK)
    for start in range(0, length, block):
        end, first = min(start + block, length), max(0, start - window)
        distance = torch.arange(start, end, device=query.device)[:, None] - torch.arange(
            first, end, device=query.device
        )
        seen = (distance >= 0) & (distance <= window)
        part = (query[:, :, start:end], key[:, :, first:end], value[:, :, first:end])
        outputs.append(attend(*part, attn_mask=seen))
    return torch.cat(outputs, dim=2)


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    lengths: tuple[int, ...],
    *,
    scaling: float,
    window: int,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    attend: Callable[..., Any] = varlen_attn
    if query.shape[0] != key.shape[0]:
        if varlen_shares_heads():
            attend = functools.partial(attend, enable_gqa=True)
        else:
            key, value = (states.repeat_interleave(query.shape[0] // len(states), 0) for states in (key, value))
    longest = max(lengths)
    return attend(
        *(states.transpose(0, 1) for states in (query, key, value)),
        cu_seqlens, cu_seqlens, longest, longest, scale=scaling, window_size=(window, 0),
    )  # fmt: skip


@functools.cache
def varlen_shares_heads() -> bool:
    """Whether torch's varlen attention takes fewer heads of keys than of queries: from torch 2.13 on."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def _flash_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    lengths: tuple[int, ...],
    *,
    scaling: float,
    window: int,
) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func

    longest = max(lengths)
    return flash_attn_varlen_func(
        *(states.transpose(0, 1) for states in (query, key, value)),
        cu_seqlens, cu_seqlens, longest, longest,
        softmax_scale=scaling, causal=True, window_size=(window, 0),
    )  # fmt: skip


_KERNELS: dict[str, Kernel] = {"sdpa": _sdpa, "varlen": _varlen, "flash_attn": _flash_attn}
