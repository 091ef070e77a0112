"""The search over tiles, with the clock replaced: what is fastest, what does not fit, and when it runs at all."""

from __future__ import annotations

import pytest
import torch

from fastflow_kernels import linear_logprob
from implementations import needs_cuda

pytest.importorskip("triton", reason="needs triton: pip install 'fastflow[triton]'")

from fastflow_kernels.tiles import CANDIDATES, TILES, UNALIGNED_TILE, Tile, table_tile
from fastflow_kernels.triton import autotune

SLOW, FAST, TOO_LARGE = Tile(1, 1, 1, warps=1, stages=1), Tile(2, 2, 2, 1, 1), Tile(3, 3, 3, 1, 1)


@pytest.fixture
def clock(monkeypatch):
    """do_bench that reads its time off the tile."""
    launched = []

    def do_bench(launch, return_mode):
        launch()
        if launched[-1] == TOO_LARGE:
            raise autotune.OutOfResources(2, 1, "shared memory")
        return {SLOW: 3.0, FAST: 1.0}[launched[-1]]

    monkeypatch.setattr(autotune.triton.testing, "do_bench", do_bench)
    monkeypatch.setattr(autotune, "_found", {})
    return launched


def test_the_fastest_tile_that_fits_is_found_once(clock):
    timings = autotune.time_tiles(clock.append, [TOO_LARGE, SLOW, FAST])
    assert timings == [(FAST, 1e-3), (SLOW, 3e-3), (TOO_LARGE, None)]
    assert [autotune.fastest("key", clock.append, [SLOW, FAST]) for _ in range(2)] == [FAST, FAST]
    assert len(clock) == 3 + 2


@needs_cuda
def test_nothing_is_searched_unasked(monkeypatch):
    monkeypatch.delenv(autotune.REQUEST, raising=False)

    def search(*_):
        raise AssertionError("searched")

    monkeypatch.setenv("FASTFLOW_KERNELS", "fused")
    monkeypatch.setattr(autotune, "fastest", search)
    linear_logprob(torch.ones(3, 4, device="cuda"), torch.ones(5, 4, device="cuda"), torch.arange(3, device="cuda"))


def test_every_architecture_has_its_tiles_and_candidates():
    assert {key.architecture for key in TILES} == set(CANDIDATES)
    assert not any(tile.tma for key, tile in TILES.items() if key.architecture == 80)


def test_a_tile_for_aligned_rows_needs_both_factors_aligned():
    def factors(hidden_padding: int, weight_padding: int) -> list[torch.Tensor]:
        padded = ((30, 1536, hidden_padding), (900, 1536, weight_padding))
        return [
            torch.empty(rows, width + padding, dtype=torch.bfloat16, device="meta")[:, :width]
            for rows, width, padding in padded
        ]

    key = next(key for key, tile in TILES.items() if tile.tma)
    assert table_tile(key, *factors(0, 8)) == TILES[key]
    assert {table_tile(key, *factors(*padding)) for padding in ((0, 1), (1, 0), (1, 1))} == {UNALIGNED_TILE}
