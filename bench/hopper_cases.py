"""Every kernel that fastflow_kernels/hopper takes from QuACK, as a call on small tensors: sizes are no constants."""

from collections.abc import Callable
from functools import partial

import torch

ROWS, WIDTH = 200, 64  # rows that fill no tile
TILES = (192, 128, 64)


def cases() -> dict[str, Callable[[], None]]:
    """By name, in the variants of a call on sm_90."""
    return {
        f"projection, {'stored' if stores else 'not stored'}, tile {tile}": partial(project, tile, stores)
        for stores in (True, False)
        for tile in TILES
    }


def project(tile: int, stores: bool) -> None:
    from fastflow_kernels.hopper.project import project
    from fastflow_kernels.hopper.tiles import Part

    vocabulary = tile * 2
    project(
        torch.zeros(ROWS, WIDTH, dtype=torch.bfloat16),
        torch.zeros(vocabulary, WIDTH, dtype=torch.bfloat16),
        [Part(0, vocabulary, tile, 0)],
        torch.zeros(1, ROWS, dtype=torch.int32),
        1.44,
        torch.zeros(ROWS),
        torch.zeros(ROWS, 2),
        torch.zeros(ROWS),
        torch.zeros(ROWS, vocabulary, dtype=torch.bfloat16) if stores else None,
    )
