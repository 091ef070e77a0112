"""The error bounds that csrc/cpu/row_pass.h states, over dense sweeps of the arguments."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

EXP, TANH, SLOPE, SUM, USUAL_SUM = 8.5e-8, 2.0e-7, 3.5e-7, 5.0e-7, 1e-7


def floats_between(smallest: float, largest: float, step: int) -> torch.Tensor:
    """Every step-th float32 number from smallest on, in order."""
    first, last = torch.tensor([smallest, largest]).view(torch.int32).tolist()
    return torch.arange(first, last, step, dtype=torch.int32).view(torch.float32)


def largest_error(found: torch.Tensor, true: torch.Tensor) -> float:
    return ((found.double() - true) / true).abs().max().item()


def exponentials(row_pass, z: torch.Tensor) -> torch.Tensor:
    """exp(z), computed in place of the logits of one row."""
    entries, nowhere = z.clone().unsqueeze(0), torch.tensor([-1])
    row_pass.row_exponentials_(
        entries, None, softcap=None, scale=1.0, reference=torch.zeros(1), columns=nowhere, store=True
    )
    return entries[0]


def tanh_and_slope(row_pass, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """From rows of one column under a soft-cap of 1: the target's logit, and exp(0) * slope."""
    entries, columns = x.clone().unsqueeze(1), torch.zeros(len(x), dtype=torch.int64)

    def run(reference: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        options = {"softcap": 1.0, "scale": 1.0, "reference": reference, "columns": columns, "store": True}
        return row_pass.row_exponentials_(entries, None, **options)[1]

    tanh = run(torch.ones(len(x)), columns)
    entries.copy_(x.unsqueeze(1))
    run(tanh, columns - 1)
    return tanh, entries[:, 0]


def test_exp(row_pass):
    x = -floats_between(2.0**-30, 87.0, step=101)
    assert len(x) > 3_000_000
    assert largest_error(exponentials(row_pass, x), x.double().exp()) <= EXP


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_tanh_and_its_slope(row_pass, sign):
    x = sign * floats_between(2.0**-20, 43.0, step=401)
    tanh, slope = tanh_and_slope(row_pass, x)
    assert largest_error(tanh, x.double().tanh()) <= TANH
    assert largest_error(slope, 1 / x.double().cosh().square()) <= SLOPE


def test_tanh_beyond_what_float32_can_tell_from_one(row_pass):
    tanh, slope = tanh_and_slope(row_pass, torch.tensor([0.0, -0.0, 44.0, 3e38, -3e38, torch.inf, -torch.inf]))
    assert tanh.tolist() == [0, 0, 1, 1, -1, 1, -1] and slope.tolist() == [1, 1, 0, 0, 0, 0, 0]


ROWS: dict[str, Callable[[int], torch.Tensor]] = {
    "spread": lambda columns: -10 * torch.rand(columns, generator=torch.Generator().manual_seed(0)),
    "ordered": lambda columns: torch.linspace(-20, 0, columns),
    "one of weight": lambda columns: torch.cat([torch.zeros(1), torch.full((columns - 1,), -25.0)]),
}


@pytest.mark.parametrize("columns", [1000, 300_000])
@pytest.mark.parametrize("name", ROWS)
def test_sum(row_pass, name, columns):
    z = ROWS[name](columns)
    options = {"softcap": None, "scale": 1.0, "reference": torch.zeros(1), "columns": torch.tensor([-1])}
    found, _ = row_pass.row_exponentials_(z.clone().unsqueeze(0), None, store=False, **options)
    assert largest_error(found, z.double().exp().sum()) <= USUAL_SUM


def test_sum_at_its_worst(row_pass):
    """Equal exponentials are rounded alike in every lane, so that nothing averages out."""
    options = {"softcap": None, "scale": 1.0, "reference": torch.zeros(1), "columns": torch.tensor([-1])}
    for value in torch.linspace(-1, 0, 101):
        z = value.expand(1, 5000).contiguous()
        found, _ = row_pass.row_exponentials_(z, None, store=False, **options)
        assert largest_error(found, 5000 * value.double().exp()) <= SUM
