"""Lists the tile shapes of the projection kernel by architecture, and what a search may try instead."""

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """One shape of the projection's tiles, and how programs go over them."""

    rows: int
    vocabulary: int
    width: int  # of the slices of D that are multiplied at a time
    warps: int
    stages: int  # slices in flight
    group: int = 16  # row tiles that share a pass of the weight
    tma: bool = False


@dataclass(frozen=True)
class TileKey:
    """What the choice of a tile depends on."""

    architecture: int  # 80, 90, 100 or 120
    stores: bool  # whether exponentials are stored
    has_bias: bool  # a number per column, which needs as many registers as the logits on sm_100
    has_softcap: bool  # whose slope needs registers where exponentials are stored
    has_moments: bool = False  # sums for token statistics
    has_tilt: bool = False  # of what is stored


# Shared memory that a program may have, bytes.
SHARED_MEMORY = {80: 166_912, 90: 232_448, 100: 232_448, 120: 101_376}

# For factors of two bytes. That of sm_90 was the fastest on an H200 (bench/results). The others are unmeasured: taken
# from the compiler's report, which shows no spills, tensor cores and shared memory within the limit (python -m
# bench.resources). On sm_120, descriptors cost a stack frame in triton 3.6.
_SMALL = Tile(128, 128, 32, warps=8, stages=3)
_AMPERE = Tile(128, 128, 32, warps=8, stages=4)
_WIDE = Tile(128, 256, 64, warps=8, stages=3, tma=True)
_TALL = Tile(256, 128, 64, warps=8, stages=3, tma=True)
_NARROW = Tile(128, 128, 64, warps=8, stages=3, tma=True)
_PLAIN = {80: _AMPERE, 90: _WIDE, 100: _NARROW, 120: _SMALL}
_WITH_SOFTCAP = _PLAIN | {90: _NARROW}
TILES = {
    TileKey(architecture, stores, has_bias, has_softcap, **further): tile
    for has_bias, has_softcap, tiles in (
        (False, False, _PLAIN),
        (True, False, _PLAIN),
        (False, True, _WITH_SOFTCAP),
        (True, True, _WITH_SOFTCAP),
    )
    for architecture, tile in tiles.items()
    for stores in (False, True)
    for further in ({}, {"has_moments": True}, {"has_tilt": True})
}
# Where more numbers of an entry are alive at a time.
TILES |= {key: _NARROW for key in TILES if key.architecture == 100 and (key.has_moments or key.has_tilt)}
TILES |= {
    key: _TALL for key in TILES if key.architecture == 90 and key.stores and key.has_moments and not key.has_softcap
}
# Where triton 3.6 spills a register of the wider tile.
TILES |= {TileKey(120, stores=True, has_bias=False, has_softcap=True): replace(_SMALL, vocabulary=64)}
# Rows that are not aligned are loaded entry by entry, and all the pointers need registers.
UNALIGNED_TILE = Tile(64, 128, 32, warps=8, stages=2)

# What a search tries besides the table's own (triton/autotune.py).
CANDIDATES = {
    80: (Tile(128, 256, 32, warps=8, stages=3), Tile(128, 128, 64, warps=8, stages=3)),
    90: (
        replace(_WIDE, group=8),
        replace(_WIDE, group=32),
        _TALL,
        _NARROW,
    ),
    100: (Tile(128, 128, 64, warps=4, stages=4, tma=True), _WIDE),
    120: (Tile(64, 128, 64, warps=4, stages=3), Tile(128, 64, 64, warps=4, stages=3)),
}

# Products of float32 factors run without tensor cores; one shape serves all.
FLOAT32_TILE = Tile(64, 64, 16, warps=4, stages=2)
# The interpreter's cost is per tile, not per number.
INTERPRETER_TILE = Tile(64, 64, 64, warps=4, stages=1, group=2)


def known_architecture(capability: tuple[int, int]) -> int:
    """Return the architecture of the table whose tiles suit a device of this compute capability.

    >>> [known_architecture(capability) for capability in ((8, 0), (8, 9), (9, 0), (10, 3), (12, 0))]
    [80, 120, 90, 100, 120]
    """
    if capability in ((8, 6), (8, 7), (8, 9)):
        return 120  # as little shared memory, and its tiles use no descriptors
    exact = 10 * capability[0] + capability[1]
    return max((known for known in SHARED_MEMORY if known <= exact), default=80)


@functools.cache
def _device(index: int) -> tuple[int, int]:
    """Architecture and number of multiprocessors."""
    properties = torch.cuda.get_device_properties(index)
    return known_architecture((properties.major, properties.minor)), properties.multi_processor_count


def multiprocessors(weight: Tensor) -> int:
    """Count those of this tensor's device; 2 for the interpreter, so that its programs go over several tiles, too."""
    return _device(weight.device.index)[1] if weight.is_cuda else 2


def has_aligned_rows(matrix: Tensor) -> bool:
    """Tell whether rows start at multiples of 16 bytes and their entries are contiguous, as TMA and cp.async want."""
    is_aligned = matrix.data_ptr() % 16 == 0 and matrix.stride(0) * matrix.element_size() % 16 == 0
    return is_aligned and matrix.stride(1) == 1


def has_whole_chunks(matrix: Tensor) -> bool:
    """Tell whether each row, the last one too, has memory to the end of its last chunk of 16 bytes.

    A TMA store may write such chunks as a whole, of a row that ends within one the padding behind it.
    """
    entries = 16 // matrix.element_size()
    padded = -(-matrix.shape[1] // entries) * entries
    end = matrix.storage_offset() + (matrix.shape[0] - 1) * matrix.stride(0) + padded
    return matrix.stride(0) >= padded and end * matrix.element_size() <= matrix.untyped_storage().nbytes()


def tile_for(hidden: Tensor, weight: Tensor, **use: bool) -> Tile:
    """Return the tile for these factors of the projection, in the type of the products, on their device.

    use: the rest of TileKey.
    """
    if not weight.is_cuda:
        return INTERPRETER_TILE
    architecture, _ = _device(weight.device.index)
    return table_tile(TileKey(architecture, **use), hidden, weight)


def table_tile(key: TileKey, hidden: Tensor, weight: Tensor) -> Tile:
    """Return the same for a named architecture."""
    if weight.element_size() > 2:
        return FLOAT32_TILE
    return TILES[key] if has_aligned_rows(hidden) and has_aligned_rows(weight) else UNALIGNED_TILE


def candidates_for(weight: Tensor) -> tuple[Tile, ...]:
    """Return what a search tries for this weight's device besides the table's tile."""
    return CANDIDATES[_device(weight.device.index)[0]] if weight.element_size() == 2 else ()
