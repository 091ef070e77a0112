"""The projection of a block in plain PyTorch: what `project.py` computes, with its roundings, on any device."""

import torch
from torch import Tensor

from fastflow_kernels.hopper.tiles import Part


def project(
    hidden: Tensor,  # (R, D) bfloat16
    weight: Tensor,  # (V, D) bfloat16
    parts: list[Part],
    columns: Tensor,  # (P, R) int32: each row's target, counted from the part's first column
    scale: float,  # log2(e) / temperature
    target_logit: Tensor,  # (R,) float32, bits: what the row is measured against
    total: Tensor,  # (R, T) float32, out: the sum of 2^(product scale - target_logit), before it is rounded
    target_product: Tensor,  # (R,) float32, out: that of the target; untouched where the target is no column
    exponentials: Tensor | None,  # (R, V) bfloat16, out: 2^(product scale - target_logit)
) -> None:
    """Sums are float32; an exponent is rounded once, as that of a fused multiply-add."""
    bits = torch.tensor(scale, dtype=torch.float32)
    for part, own_columns in zip(parts, columns, strict=True):
        products = hidden.float() @ weight[part.columns].float().mT
        is_here = (own_columns >= 0) & (own_columns < products.shape[1])
        found = products.gather(1, own_columns.long().where(is_here, 0).unsqueeze(1)).squeeze(1)
        target_product.copy_(found.where(is_here, target_product))
        powers = (products.double() * bits - target_logit.unsqueeze(1)).float().exp2()
        total[:, part.tiles] = powers.unflatten(1, (-1, part.width)).sum(dim=2)
        if exponentials is not None:
            exponentials[:, part.columns] = powers
