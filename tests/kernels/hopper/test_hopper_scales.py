"""The scales that bring each tile's exponentials to the reference of their row."""

from __future__ import annotations

import pytest
import torch

from fastflow_kernels.hopper.tiles import STRIP, TILE, tile_count

pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []


@pytest.mark.parametrize(("row_count", "vocabulary"), [(1, 128), (70, 640), (130, 1152)])
def test_scales_bring_tiles_to_their_row(device, row_count, vocabulary):
    from fastflow_kernels.hopper.settle import strip_scales

    count = tile_count(vocabulary)
    generator = torch.Generator().manual_seed(0)
    reference = torch.randint(-20, 20, (row_count, count), generator=generator).float()
    targets = torch.randint(0, vocabulary, (row_count,), generator=generator, dtype=torch.int32)
    row_reference = reference.amax(1)
    out = torch.full((vocabulary // STRIP, 256), torch.nan, dtype=torch.bfloat16, device=device)
    strip_scales(reference.to(device), row_reference.to(device), targets.to(device), out)
    own_tile = torch.arange(0, vocabulary, STRIP) // TILE
    expected = (reference - row_reference[:, None]).exp2()[:, own_tile].mT.clone()
    expected[targets.long() // STRIP, torch.arange(row_count)] = 1.0
    assert torch.equal(out[:, :row_count].float().cpu(), expected)
    assert not out[:, row_count:].any()
