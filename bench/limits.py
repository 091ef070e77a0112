"""The time below which an op cannot go on this machine, from rates measured in the same run.

    limit = max(flops / matmul rate, bytes / copy bandwidth)

with the flops of ops.py and each input read and each output written once. On CUDA the matmul rate is that of an
8192^3 product in the op's type, large enough to be the device's best. On the CPU a rate depends on the shape, so
it is that of the op's own products over all rows (the provider `gemms`), timed in the same rounds.
"""

import functools
from dataclasses import asdict, dataclass

import torch

from bench.ops import LIMIT_FLOPS, Step, bytes_moved
from bench.problem import Problem
from bench.shapes import Group
from bench.timing import seconds_of, summarise

SQUARE = 8192
COPY_BYTES = {"cuda": 2**32, "cpu": 2**27}
COPIES = 7


@dataclass(frozen=True)
class Limit:
    """The limit of one group and what it was computed from."""

    op: str
    shape: str
    dtype: str
    flops: int
    bytes: int
    matmul_flops_per_s: float
    matmul_measured_on: str
    this_shape_flops_per_s: float
    copy_bytes_per_s: float

    @property
    def seconds(self) -> float:
        return max(self.flops / self.matmul_flops_per_s, self.bytes / self.copy_bytes_per_s)

    def as_json(self) -> dict:
        return asdict(self) | {"limit_s": self.seconds}


@functools.cache
def copy_bytes_per_s(device: str) -> float:
    """Bytes read plus bytes written, by a copy too large for the caches; the median of a few."""
    source = torch.ones(COPY_BYTES[device] // 4, device=device)
    target = torch.empty_like(source)
    times = [seconds_of(lambda: target.copy_(source), device) for _ in range(COPIES + 1)]
    return 2 * COPY_BYTES[device] / summarise(times[1:]).median


def square_product(dtype: torch.dtype) -> Step:
    """The 8192^3 product as a step, to run in the same rounds as the providers."""
    left, right = (torch.randn(SQUARE, SQUARE, device="cuda", dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)

    def step(problem: Problem) -> dict:
        torch.mm(left, right, out=out)
        return {}

    return step


def limit_of(group: Group, gemms_s: float, square_s: float | None, copy_rate: float) -> Limit:
    """gemms_s: time of the op's own products; square_s: of the 8192^3 product, on CUDA."""
    flops = LIMIT_FLOPS[group.op] * group.shape.products
    here = flops / gemms_s
    return Limit(
        op=group.op,
        shape=str(group.shape),
        dtype=group.dtype,
        flops=flops,
        bytes=bytes_moved(group),
        matmul_flops_per_s=here if square_s is None else 2 * SQUARE**3 / square_s,
        matmul_measured_on="the products of this shape" if square_s is None else f"{SQUARE}x{SQUARE}x{SQUARE}",
        this_shape_flops_per_s=here,
        copy_bytes_per_s=copy_rate,
    )
