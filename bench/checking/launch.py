"""One launch of a kernel: its programs one after the other, in an order of choice, over a checked memory."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, TensorHandle
from triton.tools.tensor_descriptor import TensorDescriptor

from bench.checking.findings import Findings, place_in_kernel, short_place
from bench.checking.memory import Memory
from bench.checking.races import Accesses, races

ORDERS = ("forward", "reversed", "random")
GRID_LIMITS = (2**31 - 1, 2**16 - 1, 2**16 - 1)  # of CUDA


@dataclass(frozen=True)
class Rules:
    """How a launch runs, and what is asked of its outputs."""

    order: str = "forward"  # of ORDERS
    sample: int | None = None  # run about so many programs of a grid; None for all
    wholly_written: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # kernel: its arguments without gaps
    seed: int = 0


class Launch:
    """A kernel with its arguments bound; `memory` is what its loads and stores go to."""

    def __init__(self, executor: GridExecutor, arguments: tuple, named: dict, rules: Rules, findings: Findings):
        self.kernel = executor.fn.__name__
        self._executor, self._rules, self._findings = executor, rules, findings
        self._random = np.random.default_rng(rules.seed)
        self.memory = Memory(self.report, self._random)
        names = inspect.signature(executor.fn).parameters
        self._bound = inspect.getcallargs(
            executor.fn, *arguments, **{name: value for name, value in named.items() if name in names}
        )
        missing = set(rules.wholly_written.get(self.kernel, ())) - set(names)
        if missing:
            raise ValueError(f"{self.kernel} has no arguments {', '.join(sorted(missing))}; correct wholly_written.")

    def report(self, kind: str, words: str) -> None:
        """At the statement that runs now."""
        self._findings.add(kind, self.kernel, words, place_in_kernel())

    def run(self) -> None:
        function = self._executor.fn
        patched = interpreter._patch_lang(function)
        try:
            values = {
                name: value if name in self._executor.constexprs else self._as_interpreted(name, value)
                for name, value in self._bound.items()
            }
            grid = self._executor.grid(values) if callable(self._executor.grid) else self._executor.grid
            grid = (*grid, 1, 1)[:3]
            if any(not 1 <= size <= limit for size, limit in zip(grid, GRID_LIMITS, strict=True)):
                self._report_launch("grid", f"a grid of {grid}; the limits are {GRID_LIMITS}")
            interpreter.interpreter_builder.set_grid_dim(*grid)
            programs, log = list(self._programs(grid)), []
            for program in programs:
                interpreter.interpreter_builder.set_grid_idx(*program)
                self.memory.program = Accesses()
                function(**values)
                log.append(self.memory.program)
        finally:
            patched.restore()
        for race in races(log):
            both = f"programs {programs[race.first]} and {programs[race.second]} {race.what}"
            self._report_launch("race", f"{both} the same {race.count} addresses")
        self._report_gaps(is_complete=len(programs) == grid[0] * grid[1] * grid[2])

    def _report_launch(self, kind: str, words: str) -> None:
        """At the kernel's definition."""
        code = self._executor.fn.__code__
        self._findings.add(kind, self.kernel, words, short_place(code.co_filename, code.co_firstlineno))

    def _report_gaps(self, is_complete: bool) -> None:
        for argument in self.memory.arguments.values():
            asked = argument.name in self._rules.wholly_written.get(self.kernel, ())
            if asked and is_complete and argument.has_memory and not argument.written.all():
                gaps = int((~argument.written).sum())
                self._report_launch("gap", f"no program writes {gaps} elements of {argument.name}")

    def _programs(self, grid: tuple[int, int, int]) -> Iterator[tuple[int, int, int]]:
        """Those that run; of a sample, the first two, one in the middle and the last are always among them."""
        total, sample = grid[0] * grid[1] * grid[2], self._rules.sample
        if sample is None or total <= sample:
            numbers = np.arange(total)
        else:
            always = [0, 1, total // 2, total - 1]
            numbers = np.unique([*always, *self._random.integers(total, size=sample)])
        if self._rules.order == "reversed":
            numbers = numbers[::-1]
        elif self._rules.order == "random":
            numbers = self._random.permutation(numbers)
        for number in numbers.tolist():
            yield number // (grid[1] * grid[2]), number // grid[2] % grid[1], number % grid[2]

    def _as_interpreted(self, name: str, value):
        """As Triton's interpreter takes an argument, but with addresses of the checked memory."""
        if isinstance(value, torch.Tensor):
            argument = self.memory.add(name, value)
            kind = tl.str_to_ty(triton.runtime.jit.mangle_type(value), None)
            return tl.tensor(TensorHandle(np.array([argument.base], np.uint64), kind), kind)
        if isinstance(value, TensorDescriptor):
            return interpreter.interpreter_semantic.make_tensor_descriptor(
                base=self._as_interpreted(name, value.base),
                shape=[interpreter._implicit_cvt(size) for size in value.shape],
                strides=[*(interpreter._implicit_cvt(stride) for stride in value.strides[:-1]), tl.constexpr(1)],
                block_shape=[tl.constexpr(size) for size in value.block_shape],
                padding_option=value.padding,
            )
        return interpreter._implicit_cvt(value)
