"""The implementations of the ops, as their contract meets them: where each runs, what it takes, how exact it is."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import settings
from packaging.version import Version
from torch import Tensor

import kernel_problems
from fastflow_kernels import linear_logprob, matmul, reference, torch_projector
from fastflow_kernels.cpu import native
from fastflow_kernels.hopper.support import device_obstacle
from head_calls import Outcome, head_calls, run_head
from kernel_problems import (
    NARROW,
    SMALL,
    Problem,
    head_tensors,
    make_problem,
    norm_error,
    on_cpu,
    on_device,
    relative_error,
)

COMPILED = torch.cuda.is_available()
CPU, ACCELERATOR = torch.device("cpu"), torch.device("cuda" if COMPILED else "cpu")
# Tiles are 64 wide in the interpreter: below, at and above one tile and two, and no multiple of anything. Compiled,
# each width is another kernel, so there are few.
TILE_EDGES = st.sampled_from([17, 64, 130] if COMPILED else [1, 2, 17, 63, 64, 65, 130])
FEW, BLOCK_SIZES = st.integers(0, 20), st.sampled_from([1, 2, 3, 7, 64, None])


@dataclass(frozen=True)
class Implementation:
    """One that computes in float32.

    examples: how many of hypothesis it has the time for. result, token_logprob: relative errors of what flow_loss
    returns.
    width, vocabulary: of a head where the test needs no other. takes_all: also bias, soft-cap and statistics.
    beside_statistics: by how much what flow_loss returns may move, relative, where it reports them as well.
    """

    gradient = 1e-4  # relative error

    name: str
    device: torch.device = CPU
    examples: int = 150
    result: float = 4e-5
    token_logprob: float = 2e-6
    widths: st.SearchStrategy[int] = NARROW
    vocabularies: st.SearchStrategy[int] = SMALL
    row_counts: st.SearchStrategy[int] = FEW
    block_sizes: st.SearchStrategy[int | None] = BLOCK_SIZES
    width: int = 9
    vocabulary: int = 150
    takes_all: bool = True
    beside_statistics: float = 1e-6

    def take(self, patch: pytest.MonkeyPatch) -> None:
        """Every op takes it."""
        patch.setenv("FASTFLOW_KERNELS", self.name)

    def tries(self, examples: int | None = None):
        return settings(deadline=None, max_examples=min(examples or self.examples, self.examples))

    def problems(self) -> st.SearchStrategy[Problem]:
        return kernel_problems.problems()

    def problem(self, lengths: list[int], **options) -> Problem:
        options = {"width": self.width, "vocabulary": self.vocabulary, "with_bias": self.takes_all} | options
        return replace(found := make_problem(lengths, **options), tensors=self.inputs(found.tensors))

    def inputs(self, tensors: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
        """In the types that it is asked in."""
        return {
            name: value.float() if value is not None and value.is_floating_point() else value
            for name, value in tensors.items()
        }

    def run(self, problem: Problem, **options):
        """`Problem.run` there, brought to the CPU."""
        return on_cpu(on_device(problem, self.device).run(**options))

    def heads(self, logit_limits=(0.5, 10.0, 80.0)):
        return head_calls(self.widths, self.vocabularies, self.row_counts, logit_limits)

    def head(self, row_count: int, seed: int = 0, **options) -> dict[str, Tensor | None]:
        options = {"width": self.width, "vocabulary": self.vocabulary, "with_bias": self.takes_all} | options
        return self.inputs(head_tensors(row_count, seed=seed, **options))

    def head_with_lead(self, lead: float, columns: slice) -> dict[str, Tensor | None]:
        """20 ordinary rows over 640 tokens, and eight widths more, by which these columns' logits are higher."""
        tensors, extra = head_tensors(20, 16, 640, seed=0), torch.zeros(640, 8).double()
        extra[columns, 0] = lead
        wider = {"weight": torch.cat([tensors["weight"], extra], 1)}
        wider["hidden"] = torch.cat([tensors["hidden"], torch.eye(8)[0].double().expand(20, 8)], 1)
        return self.inputs(tensors | wider)

    def run_head(self, tensors: dict[str, Tensor | None], upstream=None, **options) -> Outcome:
        return run_head(linear_logprob, tensors, upstream, device=self.device, **options)

    def run_both(self, tensors, upstream=None, *, block_rows=None, **options) -> tuple[Outcome, Outcome]:
        """linear_logprob's, and that of the reference in float64 for the same values."""
        got = self.run_head(tensors, upstream, block_rows=block_rows, **options)
        return got, run_head(reference.linear_logprob, tensors, upstream, torch.float64, **options)

    def assert_matches(self, got, want) -> None:
        """Results of flow_loss and their gradients; logits are as large as 4."""
        kernel_problems.assert_matches(got, want, forward=1e-5, gradient=self.gradient)

    def assert_gradients_match(self, problem: Problem, got: dict, want) -> None:
        assert got.keys() == want[1].keys()
        for name, gradient in want[1].items():
            assert relative_error(got[name], gradient) <= self.gradient, f"gradient of {name}"

    def assert_logprobs_match(self, got: Tensor, want: Tensor, largest_logit: float = 4.0) -> None:
        """Of rows that are alike; a rare one beside ordinary ones would hide what they lose."""
        assert relative_error(got, want) <= 1e-6

    def assert_head_matches(self, got: Outcome, want: Outcome, largest_logit: float = 4.0) -> None:
        """Log-probs and their gradients. largest_logit: after the temperature."""
        assert relative_error(got.outputs[0], want.outputs[0]) <= 1e-5
        assert got.gradients.keys() == want.gradients.keys()
        for name, gradient in want.gradients.items():
            assert relative_error(got.gradients[name], gradient) <= self.gradient, f"gradient of {name}"


class InTiles(Implementation):
    """By Triton's kernels, interpreted on a CPU."""

    def problems(self) -> st.SearchStrategy[Problem]:
        """A sum over many rows has few digits left after subtraction: long sequences come with normalised lengths."""
        sizes = {"widths": self.widths, "vocabularies": self.vocabularies}
        short = kernel_problems.problems(**sizes, lengths=st.sampled_from([0, 1, 2, 9]), most=3)
        long = kernel_problems.problems(
            **sizes,
            lengths=st.sampled_from([0, 1, 70]),
            most=3,
            ratios=st.just("token_mean"),
            length_aware=st.just(True),
        )
        return st.one_of(short, long)

    def assert_gradients_match(self, problem: Problem, got: dict, want) -> None:
        kernel_problems.assert_gradients_match(problem, got, *want)


class Hopper(Implementation):
    """With factors in bfloat16: values of that type enter, hidden states in float32, so that their gradient leaves
    unrounded. What is compared is of the same values in float64."""

    logprob = 2e-4 if COMPILED else 3e-6  # nats, at logits near one
    gradient = 0.01 if COMPILED else 3e-3  # of the norm
    rounded = 0.01 if COMPILED else 3.9e-3  # the same, of a gradient that leaves in bfloat16
    sums = 1e-3 if COMPILED else 1e-5  # of the loss, relative

    def take(self, patch: pytest.MonkeyPatch) -> None:
        """Whatever this CPU multiplies. Products of the gradient leave in float32, as a tensor core's do, where the
        CPU's would round."""
        if obstacle := device_obstacle(self.device, torch.bfloat16):
            pytest.skip(f"the Hopper path cannot run here: {obstacle}")
        super().take(patch)
        patch.setattr(matmul, "cpu_multiplies_bfloat16", lambda: True)
        if not COMPILED:
            patch.setattr(matmul, "_multiply_", multiplied)
            round_in_the_interpreter(patch)

    def inputs(self, tensors: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
        tensors = super().inputs(tensors)
        return tensors | {"hidden": tensors["hidden"].bfloat16().float(), "weight": tensors["weight"].bfloat16()}

    def within(self, largest_logit: float) -> float:
        """Of a log-prob: float32 rounds a difference of two such logits."""
        return self.logprob + 2.0**-22 * 2 * largest_logit

    def assert_matches(self, got, want, largest_logit: float = 4.0) -> None:
        (result, gradients), (exact, exact_gradients) = got, want
        error = (result.token_logprob - exact.token_logprob.detach()).abs().max()
        assert error <= self.within(largest_logit)
        assert relative_error(result.loss, exact.loss.detach()) <= self.sums
        bounds = {"hidden": self.gradient, "weight": self.rounded, "log_z": self.sums}
        assert gradients.keys() == exact_gradients.keys()
        for name, gradient in exact_gradients.items():
            assert norm_error(gradients[name], gradient) <= bounds[name], f"gradient of {name}"

    def assert_logprobs_match(self, got: Tensor, want: Tensor, largest_logit: float = 4.0) -> None:
        assert (got.double() - want).abs().max() <= self.within(largest_logit)

    def assert_head_matches(self, got: Outcome, want: Outcome, largest_logit: float = 4.0) -> None:
        within = self.within(largest_logit)
        self.assert_logprobs_match(got.outputs[0], want.outputs[0], largest_logit)
        assert (got.outputs[0] <= 0).all()
        assert got.gradients.keys() == want.gradients.keys()
        for name, gradient in want.gradients.items():
            bound = self.gradient if name == "hidden" else self.rounded
            assert norm_error(got.gradients[name], gradient) <= bound + within, f"gradient of {name}"


def multiplied(total: Tensor, left: Tensor, right: Tensor, *, overwrite: bool) -> Tensor:
    product = left.float() @ right.float()
    return total.copy_(product if overwrite else total + product)


def round_in_the_interpreter(patch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter cuts float32 off to bfloat16, where its compiler rounds: here it rounds."""
    import triton
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounding(values, source, target, mode):
        if (source, target) != (triton.language.float32, triton.language.bfloat16):
            return convert(values, source, target, mode)
        rounded = torch.from_numpy(np.ascontiguousarray(values)).bfloat16()
        return rounded.view(torch.int16).numpy().view(np.uint16)

    patch.setattr(interpreter, "_convert_float", rounding)


@contextlib.contextmanager
def panels_of(byte_count: int) -> Iterator[None]:
    """Inside, implementations on a CPU cut a block's logits into panels of this size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_projector, "KEPT_PANEL_BYTES", byte_count)
        patch.setattr(torch_projector, "PASSING_PANEL_BYTES", byte_count)
        yield


def triton_obstacle() -> str | None:
    """Why no Triton kernel can run here."""
    if importlib.util.find_spec("triton") is None:
        return "needs triton: pip install 'fastflow[triton]'"
    is_old = Version(importlib.metadata.version("triton")) < Version("3.7")
    if not COMPILED and is_old and Version(np.__version__) >= Version("2.4"):
        return "the interpreter of triton 3.6 needs numpy < 2.4: pip install 'numpy<2.4'"
    return None


needs_native = pytest.mark.skipif(native.library() is None, reason=f"needs the native library: {native.why_not()}")
needs_triton = pytest.mark.skipif(triton_obstacle() is not None, reason=triton_obstacle() or "")


def needs_cuda(test):
    return pytest.mark.gpu(pytest.mark.skipif(not COMPILED, reason="needs a CUDA device, and torch sees none")(test))


def param(implementation: Implementation, *marks):
    return pytest.param(implementation, marks=marks, id=implementation.name)


IN_TILES = {
    "device": ACCELERATOR,
    "result": 1e-5,
    "token_logprob": 1e-5,
    "widths": TILE_EDGES,
    "vocabularies": TILE_EDGES,
    "row_counts": st.sampled_from([0, 1, 3, 66]),
    "block_sizes": st.sampled_from([None, None, 16, 50]),
    "examples": 6 if COMPILED else 20,
    "beside_statistics": 0.0,
}
OF_TRITON = [needs_triton, *([pytest.mark.gpu] if COMPILED else [])]
ON_THE_CPU = [param(Implementation("torch")), param(Implementation("native"), needs_native)]
BY_TRITON = [param(InTiles(name, **IN_TILES), *OF_TRITON) for name in ("rows", "fused")]
HOPPER = Hopper("hopper", **IN_TILES | {"width": 64, "vocabulary": 640, "takes_all": False})


def by(*implementations):
    """Runs a test with each of them, as its argument `implementation`."""
    return pytest.mark.parametrize("implementation", implementations, indirect=True)


by_those_on_the_cpu = by(*ON_THE_CPU)
by_those_in_float32 = by(*ON_THE_CPU, *BY_TRITON)
by_those_of_triton_in_float32 = by(*BY_TRITON)
by_those_of_triton = by(*BY_TRITON, param(HOPPER, *OF_TRITON))
by_every_implementation = by(*ON_THE_CPU, *BY_TRITON, param(HOPPER, *OF_TRITON))
