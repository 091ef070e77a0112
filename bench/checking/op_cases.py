"""Both ops with forward and backward as cases: their kernels are checked, their answers compared with float64."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

import torch

import fastflow_kernels
from bench.checking.findings import Findings
from bench.checking.forcing import as_on_cuda
from bench.checking.interpreter import checked
from bench.checking.launch import ORDERS, Rules
from bench.checking.subjects import WHOLLY_WRITTEN, hopper_tile, hopper_tiles
from bench.errors import errors_of
from bench.problem import make_problems
from bench.sanitize import answers
from bench.shapes import Shape
from fastflow_kernels import reference
from fastflow_kernels.tiles import FLOAT32_TILE, INTERPRETER_TILE, UNALIGNED_TILE, Tile

OPS = ("linear_logprob", "flow_loss")
BOUNDS = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (1e-2, 2e-2)}  # relative 2-norms of log-probs and gradients
# Standard deviations; of large logits some stand so far above the target's that their tiles are taken once more.
USUAL_LOGITS, LARGE_LOGITS = 3.0, 60.0


@dataclass(frozen=True)
class OpCase:
    """One problem, solved by one implementation in one or more orders of its programs."""

    name: str
    implementation: str  # as FASTFLOW_KERNELS names it
    lengths: tuple[int, ...]  # of the sequences, rows
    width: int
    vocabulary: int
    dtype: torch.dtype
    has_bias: bool = False
    softcap: float | None = None
    temperature: float = 0.8
    logit_size: float = USUAL_LOGITS
    tile: Tile | None = None  # of the projection; None for the interpreter's
    multiprocessors: int = 2
    block_rows: int | None = None
    orders: tuple[str, ...] = ("forward", "random")
    ops: tuple[str, ...] = OPS
    launches: Counter[str] = field(default_factory=Counter, compare=False)  # of each kernel, in all runs

    def run(self) -> Findings:
        findings = Findings()
        shape = Shape(sum(self.lengths), self.width, self.vocabulary)
        problem = make_problems(shape, self.dtype, "cpu", lengths=list(self.lengths))[0]
        with torch.no_grad():
            problem.weight.mul_(self.logit_size)
            problem.targets[-1] = self.vocabulary - 1
        bias = torch.linspace(-1, 1, self.vocabulary, dtype=self.dtype) if self.has_bias else None
        more = {"bias": bias, "softcap": self.softcap, "temperature": self.temperature}
        for op in self.ops:
            exact = answers(getattr(reference, op), problem, more, "cpu", torch.float64)
            found = []
            for order in self.orders:
                forced = as_on_cuda(self.implementation, self.dtype, self.tile, self.multiprocessors)
                rules = Rules(order=order, wholly_written=WHOLLY_WRITTEN)
                with forced, checked(rules, findings, self.launches):
                    function = getattr(fastflow_kernels, op)
                    found.append(answers(function, problem, more | {"block_rows": self.block_rows}, "cpu", self.dtype))
            self._judge(op, found, exact, findings)
        return findings

    def _judge(self, op: str, found: list[dict], exact: dict, findings: Findings) -> None:
        forward, backward = BOUNDS[self.dtype]
        for name, error in errors_of(found[0], exact).items():
            bound = backward if name.startswith("d_") else forward
            if name.endswith("_norm") and error > bound:
                findings.add("answer", op, f"{name} is off by {error:.1e}, bound {bound}, with {self}", name)
        for order, other in zip(self.orders[1:], found[1:], strict=True):
            changed = [name for name in found[0] if not torch.equal(found[0][name], other[name])]
            if changed:
                words = f"{order} and {self.orders[0]} order of programs differ in {', '.join(changed)}, with {self}"
                findings.add("order", op, words)


def op_cases() -> tuple[OpCase, ...]:
    """Each kernel of the two implementations in Triton, both types, both ways to load, ragged in every dimension."""
    bfloat16, float32 = torch.bfloat16, torch.float32
    settings = {"has_bias": True, "softcap": 5.0, "logit_size": LARGE_LOGITS}
    return (
        OpCase(
            *("fused TMA", "fused", (130, 0, 3), 72, 515, bfloat16),
            **settings,
            tile=hopper_tile(),
            multiprocessors=1,
            block_rows=70,
        ),
        OpCase("fused unaligned", "fused", (33, 5), 70, 300, bfloat16, has_bias=True, tile=UNALIGNED_TILE),
        OpCase("fused excess", "fused", (20, 1), 17, 130, float32, has_bias=True, logit_size=LARGE_LOGITS),
        OpCase("fused float32", "fused", (20, 1), 17, 130, float32, **settings, block_rows=16),
        OpCase("rows float32", "rows", (20, 0, 1), 17, 1100, float32, **settings, block_rows=16),
        OpCase("rows bfloat16", "rows", (3,), 1100, 70, bfloat16),
    )


def thorough_op_cases() -> Iterator[OpCase]:
    """Every shape with every type and setting, then every tile of sm_90, those that a search tries among them."""
    shapes = (
        ((1,), 1, 1),
        ((1,), 64, 70),
        ((2, 0, 1), 17, 63),
        ((5, 1, 0, 66), 72, 129),
        ((33, 64), 70, 515),
        ((3,), 1500, 2100),
    )
    settings = (
        {"temperature": 1.0},
        {"has_bias": True, "softcap": 5.0},
        {"has_bias": True, "temperature": 1.0, "logit_size": LARGE_LOGITS},
    )
    for dtype, shape, name, setting in product(BOUNDS, shapes, ("fused", "rows"), settings):
        block_rows = 16 if sum(shape[0]) > 20 else None
        words = f"{name} {shape} {str(dtype).removeprefix('torch.')} {setting}"
        yield OpCase(words, name, *shape, dtype, **setting, block_rows=block_rows, orders=ORDERS)
    shapes = (((130, 0, 3), 200, 515), ((257,), 72, 1157), ((1,), 70, 300))
    settings = ({}, {"has_bias": True, "softcap": 5.0, "logit_size": LARGE_LOGITS})
    tiles = (*hopper_tiles(), UNALIGNED_TILE, FLOAT32_TILE, INTERPRETER_TILE)
    for tile, shape, setting in product(tiles, shapes, settings):
        for dtype in (torch.bfloat16,) if tile.tma else BOUNDS:
            words = f"fused {shape} {str(dtype).removeprefix('torch.')} {setting} {tile}"
            once = {"orders": ("forward",), "ops": ("linear_logprob",), "multiprocessors": 132 if tile.tma else 1}
            yield OpCase(words, "fused", *shape, dtype, **setting, tile=tile, **once)
