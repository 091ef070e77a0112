"""What the cases know of fastflow_kernels/triton: its kernels, the outputs they owe, the tiles they run with."""

import re
from pathlib import Path

from fastflow_kernels import triton as kernels
from fastflow_kernels.tiles import CANDIDATES, TILES, Tile

FOLDER = Path(kernels.__file__).parent

# Outputs that a kernel must not leave gaps in, by their names in the kernel's signature.
WHOLLY_WRITTEN = {
    "project_kernel": ("tile_total", "exponentials"),
    "combine_kernel": ("reference", "total"),
    "row_kernel": ("reference", "total", "exponentials"),  # target_logit only where none is given
    "row_tilt_kernel": ("direction",),
    "target_logit_kernel": ("out",),
    "rebase_kernel": ("logprob", "factor"),
    "finish_kernel": ("logprob", "factor"),
    "upstream_kernel": ("out",),
}


def defined_kernels() -> set[str]:
    """Names of all kernels in fastflow_kernels/triton."""
    sources = (path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py"))
    return {name for source in sources for name in re.findall(r"^def (\w+_kernel)\(", source, re.MULTILINE)}


def hopper_tile() -> Tile:
    """That of sm_90 for a plain head, which loads through TMA."""
    return next(tile for key, tile in TILES.items() if key.architecture == 90 and not key.has_softcap)


def hopper_tiles() -> tuple[Tile, ...]:
    """All of sm_90, then those that a search tries there."""
    table = sorted({tile for key, tile in TILES.items() if key.architecture == 90}, key=str)
    return tuple(dict.fromkeys([*table, *CANDIDATES[90]]))
