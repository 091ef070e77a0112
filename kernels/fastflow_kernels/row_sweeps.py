"""The two sweeps over a panel of logits in plain PyTorch: any device, any type. cpu/row_pass.py has them compiled.

A panel holds the products hidden @ weight^T of some rows and some columns. Its logits, before the temperature, are

    z = softcap(product + bias),  softcap(x) = c tanh(x / c), or x for None

computed in float32 (float64), whatever type the products are stored in. A difference of two logits is taken before
it is scaled: next to the reference it is exact, where products with the scale would have been rounded.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fastflow_kernels.matmul import accumulator_dtype

PIECE_ENTRIES = {"cpu": 2**18}  # of a panel at a time, so that temporaries stay in the cache
PIECE_ENTRIES_ELSEWHERE = 2**24


def row_maximum(products: Tensor, bias: Tensor | None) -> Tensor:
    """(R,) largest product + bias in each row of (R, C); NaN where there is one. C is at least 1."""
    dtype = accumulator_dtype(products.dtype)
    maximum = products.new_empty(products.shape[0], dtype=dtype)
    for rows in _pieces(products):
        values = products[rows].to(dtype)
        torch.amax(values if bias is None else values + bias, dim=1, out=maximum[rows])
    return maximum


def row_exponentials_(
    products: Tensor,
    bias: Tensor | None,
    *,
    softcap: float | None,
    scale: float,
    reference: Tensor,
    columns: Tensor,
    store: bool,
    with_moments: bool = False,
    affine: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """Sums of exp((z - reference) * scale) over the columns other than the target's, and the targets' z.

    products: (R, C). bias: (C,) or None. reference: (R,), at least the row's largest z up to rounding. columns: (R,)
    int64, the targets'; one outside of [0, C) stands in another panel.

    Returns sum_of_others (R,), and target_logit (R,), 0 where the target is not here. With `store` the products
    become exp((z - reference) * scale) times the soft-cap's slope, 0 at the target; without, they stay.

    with_moments: returns two more, sums of exponential times exponent (z - reference) * scale over the columns other
    than the target's, and sums of z over all columns, (R,) each. affine: (constant, slope), (R,) each; what is stored
    is multiplied by constant + slope * exponent.
    """
    dtype, count = accumulator_dtype(products.dtype), products.shape[0]
    outputs = (products.new_empty(count, dtype=dtype) for _ in range(4 if with_moments else 2))
    sum_of_others, target_logit, *moments = outputs
    is_here = (columns >= 0) & (columns < products.shape[1])
    column = columns.clamp(0, products.shape[1] - 1)
    for rows in _pieces(products):
        values = products[rows].to(dtype, copy=not store)
        if bias is not None:
            values.add_(bias)
        slope = _soft_cap_(values, softcap, with_slope=store)
        if with_moments:
            moments[1][rows] = values.sum(dim=1)
        target_logit[rows] = _take_(values, column[rows], is_here[rows])
        values.sub_(reference[rows].unsqueeze(1))
        if scale != 1.0:
            values.mul_(scale)
        line = None if affine is None else _line(values, *(part[rows].unsqueeze(1) for part in affine))
        values.exp_()
        sum_of_others[rows] = values.sum(dim=1)
        if with_moments:
            moments[0][rows] = torch.special.xlogy(values, values).sum(dim=1)
        if line is not None:
            values.mul_(line)
        if slope is not None:
            values.mul_(slope)
        if store and values.dtype != products.dtype:
            products[rows] = values
    return sum_of_others, target_logit, *moments


def _pieces(products: Tensor) -> Iterator[slice]:
    row_count, width = products.shape
    entries = PIECE_ENTRIES.get(products.device.type, PIECE_ENTRIES_ELSEWHERE)
    step = max(1, entries // width)
    return (slice(start, min(start + step, row_count)) for start in range(0, row_count, step))


def _soft_cap_(values: Tensor, softcap: float | None, *, with_slope: bool) -> Tensor | None:
    """Soft-cap in place; the slope there, where it is asked for and not 1."""
    if softcap is None:
        return None
    fraction = values.div_(softcap).tanh_()
    slope = fraction.square().neg_().add_(1.0) if with_slope else None
    values.mul_(softcap)
    return slope


def _line(exponents: Tensor, constant: Tensor, slope: Tensor) -> Tensor:
    """constant + slope * exponent; finite where an exponential is 0, so that their product is 0, too."""
    least = math.log(torch.finfo(exponents.dtype).tiny) - 40.0
    return exponents.clamp(min=least).mul_(slope).add_(constant)


def _take_(values: Tensor, column: Tensor, is_here: Tensor) -> Tensor:
    """The entries (R,) in these columns, 0 where not `is_here`; -inf takes their place, whose exponential is 0."""
    row = torch.arange(len(column), device=column.device)
    found = values[row, column]
    values[row, column] = found.masked_fill(is_here, -torch.inf)
    return found.masked_fill(~is_here, 0.0)
