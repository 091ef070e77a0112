"""The rate of matrix products that utilisation is set against."""

from typing import NamedTuple

import torch

from bench import limits
from bench.ops import LIMIT_FLOPS
from bench.problem import make_problems
from bench.providers import select
from bench.shapes import Shape
from bench.steps.model import ModelShape
from bench.steps.settings import StepSettings
from bench.timing import seconds_of, summarise

CPU_ROWS = 128
CALLS = {"cuda": 7, "cpu": 2}


class MatrixRate(NamedTuple):
    """flops_per_s, and the product it was measured on."""

    flops_per_s: float
    measured_on: str


def matrix_rate(settings: StepSettings, shape: ModelShape) -> MatrixRate:
    """As limits.py does it: on CUDA of a large square product, on the CPU of the head's own products."""
    dtype = torch.float32 if settings.precision == "float32" else torch.bfloat16
    device = settings.device.type
    if device == "cuda":
        product = limits.square_product(dtype)
        flops, words, problem = 2 * limits.SQUARE**3, f"a product of {limits.SQUARE}^3", None
    else:
        sizes = Shape(CPU_ROWS, shape.width, shape.vocabulary)
        problem = make_problems(sizes, dtype, device)[0]
        (gemms,) = select(["gemms"], quick=False)
        product = gemms.make("flow_loss", problem)
        flops, words = LIMIT_FLOPS["flow_loss"] * sizes.products, f"the head's products, {sizes}"
    seconds = [seconds_of(lambda: product(problem), device) for _ in range(CALLS[device] + 1)]
    return MatrixRate(flops / summarise(seconds[1:]).median, f"{str(dtype).removeprefix('torch.')}, {words}")
