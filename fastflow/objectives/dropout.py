"""Dropout whose masks follow from seeds: the same on every device, in every micro-batch, order and rank."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

_WORD = 0xFFFFFFFF


def dropped(values: Float[Tensor, "S D"], seeds: Int64[Tensor, " S"], share: float, layer: int) -> Float[Tensor, "S D"]:
    """Set a share of each row to zero, and scale the rest by 1 / (1 - share). layer: has masks of its own."""
    return values * kept(seeds, values.shape[1], share, layer) / (1 - share)


def kept(seeds: Int64[Tensor, " S"], width: int, share: float, layer: int) -> Bool[Tensor, "S D"]:
    """Decide which of `width` units of each row stay: each does with probability 1 - share, rounded to 2^-32."""
    units = torch.arange(layer * width, (layer + 1) * width, device=seeds.device)
    row = _mixed(_mixed(seeds & _WORD) ^ (seeds >> 32 & _WORD))
    return _mixed(row.unsqueeze(1) ^ _mixed(units)) >= round(share * 2**32)


def _mixed(words: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """A bijection of 32-bit words that looks random (two rounds of multiply and shift); no product overflows int64."""
    words = (words ^ words >> 16) * 0x21F0AAAD & _WORD
    words = (words ^ words >> 15) * 0x735A2D97 & _WORD
    return words ^ words >> 15
