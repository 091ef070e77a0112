"""The CUDA row pass, its own source compiled for the CPU, against float64; cuda/cuda_on_host.h says what that shows."""

from __future__ import annotations

import math
import os
import random
import struct
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

HERE = Path(__file__).parent / "cuda"
FOLDERS = (f"-I{HERE.parents[2] / 'csrc/cuda'}", f"-I{HERE}")
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
ENVIRONMENT = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}  # the search fails where processes may not be traced
ENTRY_TYPES = {None: 0, torch.float32: 1, torch.bfloat16: 2}
UNTOUCHED = b"\x42"  # what the exponentials' memory holds before
H200 = 232448  # bytes of shared memory that a block may have


@dataclass
class Problem:
    """One call, and the device that is pretended: blocks with `block_bytes` of shared memory, in clusters."""

    products: Tensor  # (R, V) float32 or bfloat16
    targets: Tensor  # (R,)
    bias: Tensor | None = None  # (V,)
    temperature: float = 1.0
    softcap: float | None = None
    absent: float = math.nan
    store: torch.dtype | None = torch.float32
    is_in_place: bool = False
    padding: int = 0  # entries between rows
    takes_target: bool = True  # the caller has no target logits from elsewhere
    offset: int = 0  # entries by which products and exponentials miss an aligned address
    bias_offset: int = 0
    block_bytes: int = H200
    largest_cluster: int = 8

    def to_bytes(self) -> bytes:
        (rows, vocabulary), stride = self.products.shape, self.products.shape[1] + self.padding
        types = (ENTRY_TYPES[self.products.dtype], ENTRY_TYPES[self.store])
        words = (rows, vocabulary, stride, stride, *types, self.is_in_place, self.bias is not None, self.takes_target)
        words += (self.offset, self.bias_offset, self.block_bytes, self.largest_cluster)
        header = struct.pack("13q3d", *words, self.temperature, self.softcap or 0.0, self.absent)
        padded = torch.nn.functional.pad(self.products, (0, self.padding)).flatten()
        arrays = [padded[: padded.numel() - self.padding], self.bias, self.targets]
        return header + b"".join(array.view(torch.uint8).numpy().tobytes() for array in arrays if array is not None)


class Answer(NamedTuple):
    """cluster: blocks that shared a row; 0: it streamed."""

    cluster: int
    target_logit: Tensor | None  # (R,)
    reference: Tensor  # (R,)
    total: Tensor  # (R,)
    exponentials: Tensor | None  # (R, V)


class Answers:
    """Reads what the program wrote, problem by problem."""

    def __init__(self, output: bytes):
        self.output = output

    def next(self, problem: Problem) -> Answer:
        rows, vocabulary = problem.products.shape
        cluster, error = self._take(2, torch.int64).tolist()
        assert error == 0
        target_logit = self._take(rows, torch.float32) if problem.takes_target else None
        statistics = [target_logit, *(self._take(rows, torch.float32) for _ in range(2))]
        if problem.store is None:
            return Answer(cluster, *statistics, None)
        memory = self._take(rows * (vocabulary + problem.padding) - problem.padding, problem.store)
        padded = torch.cat([memory, memory.new_empty(problem.padding)]).view(rows, -1)
        between = padded[:-1, vocabulary:].contiguous().view(torch.uint8).numpy().tobytes()
        before = b"\0" if problem.is_in_place else UNTOUCHED
        assert between == before * len(between), "an entry between rows was written"
        return Answer(cluster, *statistics, padded[:, :vocabulary])

    def _take(self, count: int, dtype: torch.dtype) -> Tensor:
        size = count * dtype.itemsize
        taken, self.output = self.output[:size], self.output[size:]
        return torch.frombuffer(bytearray(taken), dtype=dtype) if count else torch.empty(0, dtype=dtype)


def exact(problem: Problem) -> Answer:
    """In float64."""
    logits = problem.products.double() + (0.0 if problem.bias is None else problem.bias.double())
    slope = torch.ones_like(logits)
    if problem.softcap is not None:
        fraction = (logits / problem.softcap).tanh()
        logits, slope = problem.softcap * fraction, 1 - fraction.square()
    logits = logits / problem.temperature
    is_here = (problem.targets >= 0) & (problem.targets < logits.shape[1])
    target_logit = logits.gather(1, torch.where(is_here, problem.targets, 0).unsqueeze(1)).squeeze(1)
    target_logit = torch.where(is_here, target_logit, problem.absent)
    reference = logits.where(~logits.isnan(), -math.inf).amax(dim=1)
    exponentials = (logits - reference.where(reference != -math.inf, 0.0).unsqueeze(1)).exp()
    exponentials[torch.arange(logits.shape[1]) == problem.targets.unsqueeze(1)] = 0.0
    return Answer(0, target_logit, reference, exponentials.sum(dim=1), exponentials * slope)


@pytest.fixture(scope="module")
def compile_on_host(compile_cpp):
    """A function of sanitizers that returns the program under them."""

    def run(sanitizers: str) -> Path:
        checks = ["-O1", "-g1", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
        try:
            return compile_cpp(*checks, *WARNINGS, *FOLDERS, HERE / "row_pass_on_host.cpp")
        except AssertionError as error:
            if "cannot find" not in str(error):
                raise
            pytest.skip(f"needs a compiler with the libraries of -fsanitize={sanitizers}")

    return run


@pytest.fixture(scope="module")
def program(compile_on_host) -> Path:
    return compile_on_host("address,undefined")


def run(program: Path, problems: list[Problem]) -> list[Answer]:
    given = b"".join(problem.to_bytes() for problem in problems)
    done = subprocess.run([program], input=given, capture_output=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr.decode()
    answers = Answers(done.stdout)
    found = [answers.next(problem) for problem in problems]
    assert not answers.output
    return found


def assert_right(answer: Answer, problem: Problem) -> None:
    """To float32 roundings of the logits; what is stored also to those of its type."""
    want = exact(problem)
    near = {"rtol": 2e-6, "atol": 2e-6 * min(problem.softcap or 0.0, 5.0) / problem.temperature, "equal_nan": True}
    if problem.takes_target:
        torch.testing.assert_close(answer.target_logit.double(), want.target_logit, **near)
    torch.testing.assert_close(answer.reference.double(), want.reference, **near)
    near = {"rtol": 2e-5, "atol": 1e-6, "equal_nan": True}
    torch.testing.assert_close(answer.total.double(), want.total, **near)
    if answer.exponentials is not None:
        if problem.store == torch.bfloat16:
            near["rtol"] = 2**-8 + 2e-5
        torch.testing.assert_close(answer.exponentials.double(), want.exponentials, **near)


def random_problem(seed: int) -> Problem:
    """Some absent targets and entries of -inf; aligned rows or not; of one block up to eight, or none that fits."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    rows, vocabulary = draw.choice([1, 3]), draw.choice([1, 2, 3, 63, 64, 257, 515, 1024, 2051])
    products = draw.choice([1.0, 20.0]) * torch.randn(rows, vocabulary, generator=generator)
    products[torch.rand(rows, vocabulary, generator=generator) < draw.choice([0.0, 0.1])] = -math.inf
    products[:, draw.randrange(vocabulary)] = 1.0
    store = draw.choice([None, torch.float32, torch.float32, torch.bfloat16, torch.bfloat16])
    if store != torch.float32 and draw.random() < 0.7:
        products = products.bfloat16()
    return Problem(
        products,
        torch.randint(-1, vocabulary + 1, (rows,), generator=generator),
        bias=torch.randn(vocabulary, generator=generator) if draw.random() < 0.5 else None,
        temperature=draw.choice([1.0, 0.7]),
        softcap=draw.choice([None, None, 5.0, 1e5]),
        absent=draw.choice([0.0, math.nan]),
        store=store,
        is_in_place=store == products.dtype and draw.random() < 0.5,
        takes_target=draw.random() < 0.7,
        padding=draw.choice([-vocabulary % 8, -vocabulary % 8, 0, 1]),
        offset=draw.choice([0, 0, 0, 1]),
        bias_offset=draw.choice([0, 0, 1]),
        block_bytes=draw.choice([400, 600, 1500, 6000, H200]),
        largest_cluster=draw.choice([8, 8, 8, 1]),
    )


def checked(program: Path, problems: list[Problem]) -> list[Answer]:
    """The answers, if all are right."""
    answers = run(program, problems)
    for index, (problem, answer) in enumerate(zip(problems, answers, strict=True)):
        try:
            assert_right(answer, problem)
        except AssertionError as error:
            raise AssertionError(f"problem {index}, {problem}: {error}") from error
    return answers


def test_against_float64(program):
    answers = checked(program, [random_problem(seed) for seed in range(80)])
    assert {answer.cluster for answer in answers if answer.exponentials is not None} == {0, 1, 2, 4, 8}


@pytest.mark.parametrize("largest_cluster", [8, 1])
def test_bfloat16_in_place_as_rows_of_models_are(program, largest_cluster):
    """Aligned, the target's logit from elsewhere: packs of 8, which leave some entries behind them."""
    products = torch.randn(2, 1029, generator=torch.Generator().manual_seed(1)).bfloat16()
    problem = Problem(products, torch.tensor([1028, 515]), store=torch.bfloat16, is_in_place=True, takes_target=False)
    problem = replace(problem, padding=3, block_bytes=1000, largest_cluster=largest_cluster)
    (answer,) = checked(program, [problem])
    assert answer.cluster == (8 if largest_cluster == 8 else 0)
    wide = replace(problem, products=products.float(), store=torch.float32)
    (exact_type,) = checked(program, [wide])
    assert torch.equal(answer.reference, exact_type.reference)
    torch.testing.assert_close(answer.total, exact_type.total, rtol=1e-6, atol=0)
    assert torch.equal(answer.exponentials, exact_type.exponentials.bfloat16())


def test_no_two_threads_race(compile_on_host):
    """ThreadSanitizer takes every CUDA thread for a thread, and barriers for all that orders them."""
    checked(compile_on_host("thread"), [random_problem(seed) for seed in range(25)])


LAYOUTS = pytest.mark.parametrize("block_bytes", [100, 1000, H200], ids=["streaming", "cluster", "one block"])
TYPES = pytest.mark.parametrize(
    ("product", "store"),
    [(torch.float32, store) for store in (torch.float32, torch.bfloat16, None)]
    + [(torch.bfloat16, store) for store in (torch.bfloat16, None)],
    ids=str,
)


@LAYOUTS
@TYPES
def test_nan_spreads_in_its_row(program, block_bytes, product, store):
    """To the total, or to the target's logit; the other rows stay as they are."""
    products = torch.linspace(-2, 2, 3 * 500).view(3, 500)
    targets = torch.tensor([7, 8, 9])
    products[0, 450] = products[1, 8] = math.nan
    problem = Problem(products.to(product), targets, store=store, block_bytes=block_bytes)
    (answer,) = run(program, [problem])
    assert answer.total.isnan().tolist() == [True, False, False]
    assert answer.target_logit.isnan().tolist() == [False, True, False]
    assert_right(answer, problem)


@LAYOUTS
@TYPES
def test_infinite_entries(program, block_bytes, product, store):
    """-inf everywhere but for one entry, at the target, and everywhere; an entry of +inf makes the log-prob nan."""
    products = torch.full((4, 500), -math.inf)
    products[0, 499] = products[1, 3] = 2.0
    products[3] = torch.linspace(-2, 2, 500)
    products[3, 9] = math.inf
    targets = torch.tensor([3, 3, 3, 3])
    problem = Problem(products.to(product), targets, store=store, block_bytes=block_bytes)
    (answer,) = run(program, [problem])
    assert answer.reference.tolist() == [2.0, 2.0, -math.inf, math.inf]
    assert answer.total[:3].tolist() == [1.0, 0.0, 0.0] and answer.total[3].isnan()
    assert_right(answer, problem)


@LAYOUTS
def test_a_soft_cap_gives_infinite_logits_a_place(program, block_bytes):
    """The target's entry stays 0 where its slope would be infinite times that."""
    products = torch.linspace(-2, 2, 2 * 500).view(2, 500)
    products[0, 3], products[0, 9], products[1, 7] = -math.inf, -math.inf, math.inf
    problem = Problem(products, torch.tensor([3, 7]), softcap=2.5, block_bytes=block_bytes)
    (answer,) = run(program, [problem])
    assert answer.target_logit.tolist() == [-2.5, 2.5]
    assert answer.exponentials[0, [3, 9]].tolist() == [0.0, 0.0]
    assert answer.exponentials[1, 7] == 0.0
    assert_right(answer, problem)


@LAYOUTS
def test_twice_the_same_bits(program, block_bytes):
    problem = Problem(torch.randn(2, 500), torch.tensor([1, 2]), block_bytes=block_bytes)
    first, second = run(program, [problem, problem])
    assert torch.equal(first.total, second.total) and torch.equal(first.exponentials, second.exponentials)
