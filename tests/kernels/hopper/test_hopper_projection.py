"""What the projection leaves: its emulation against float64, and on sm_90 QuACK's product against the emulation."""

from __future__ import annotations

import pytest
import torch

from fastflow_kernels.head import Head
from fastflow_kernels.hopper import emulation
from fastflow_kernels.hopper.projector import HopperProjector
from fastflow_kernels.hopper.tiles import TILE
from fastflow_kernels.triton.logit import bits_per_logit

COMPILED = torch.cuda.is_available()
pytestmark = [pytest.mark.gpu] if COMPILED else []
ROUNDING = 1e-4 if COMPILED else 1e-5  # of a float32 sum of products, and what its exponential makes of it


def block(row_count: int, vocabulary: int, width: int = 64) -> tuple[torch.Tensor, Head, torch.Tensor]:
    generator = torch.Generator().manual_seed(row_count)
    hidden, weight = (torch.randn(count, width, generator=generator) for count in (row_count, vocabulary))
    head = Head((weight / width**0.5).bfloat16(), None, temperature=0.8)
    return hidden.bfloat16(), head, torch.randint(0, vocabulary, (row_count,), generator=generator)


def totals_of(hidden: torch.Tensor, head: Head, targets: torch.Tensor, device: torch.device):
    """(totals, exponentials) of a block against the targets' logits, on the CPU."""
    there = Head(head.weight.to(device), None, temperature=head.temperature)
    matrix = torch.full((len(hidden), head.vocabulary), torch.nan, dtype=torch.bfloat16, device=device)
    projector = HopperProjector(there, most_rows=len(hidden))
    rows = hidden.to(device), targets.to(device)
    target_logit, found = projector._totals(*rows, matrix, with_moments=False)
    reference, without = projector._totals(*rows, None, with_moments=False)
    assert torch.equal(reference, target_logit)
    exact = (hidden.double() * head.weight[targets].double()).sum(1) * bits_per_logit(head)
    torch.testing.assert_close(target_logit.double().cpu(), exact, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(without.total, found.total, rtol=1e-6, atol=0)
    torch.testing.assert_close(without.target_product, found.target_product, rtol=1e-6, atol=1e-6)
    return found._replace(total=found.total.cpu(), target_product=found.target_product.cpu()), matrix.cpu()


@pytest.mark.parametrize(("row_count", "vocabulary"), [(1, 128), (37, 384), (130, 640), (200, 1152)])
def test_totals_and_exponentials(device, row_count, vocabulary):
    hidden, head, targets = block(row_count, vocabulary)
    totals, matrix = totals_of(hidden, head, targets, device)
    products = hidden.double() @ head.weight.double().mT
    target_product = products.gather(1, targets.unsqueeze(1))
    powers = ((products - target_product) * bits_per_logit(head)).exp2()
    expected = torch.stack([part.sum(1) for part in powers.split(TILE, 1)])
    assert totals.width == TILE and totals.total.shape == expected.shape
    torch.testing.assert_close(totals.total.double(), expected, rtol=ROUNDING, atol=0)
    torch.testing.assert_close(totals.target_product.double(), target_product.squeeze(1), rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(matrix.double(), powers, rtol=2.0**-8 * 1.01 + ROUNDING, atol=0)


def test_the_emulation_serves_the_cpu_alone():
    from fastflow_kernels.hopper.projector import _project_on

    assert _project_on(torch.device("cpu")) is emulation.project
