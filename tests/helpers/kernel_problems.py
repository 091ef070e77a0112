"""Inputs for the op tests, and the comparison with float64 autograd of the reference."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import hypothesis.strategies as st
import torch
from torch import Tensor

from fastflow_kernels import FlowLoss, flow_loss, reference

GRADIENTS = ("hidden", "weight", "bias", "log_z")


@dataclass(frozen=True)
class Problem:
    """One call of flow_loss, in float64; `run` casts it."""

    tensors: dict[str, Tensor | None]
    cu_seqlens: Tensor
    options: dict = field(default_factory=dict)

    def cast(self, dtype: torch.dtype) -> Problem:
        """The head's tensors in this type; the (S,) ones stay float64 unless the type is float32."""
        per_sequence = torch.float32 if dtype != torch.float64 else torch.float64
        cast = {
            name: value.to(dtype if name in ("hidden", "weight", "bias") else per_sequence)
            if value is not None and value.is_floating_point()
            else value
            for name, value in self.tensors.items()
        }
        return replace(self, tensors=cast)

    def run(self, op=flow_loss, needs=GRADIENTS, upstream: float = 1.0, **extra) -> tuple[FlowLoss, dict]:
        """The result, and the gradient of `upstream * loss` with respect to each of `needs`."""
        tensors = {
            name: value.detach().clone().requires_grad_(name in needs) if value is not None else None
            for name, value in self.tensors.items()
        }
        positional = [tensors.pop(name) for name in ("hidden", "weight", "targets")]
        named = dict(zip(("hidden", "weight", "targets"), positional, strict=True)) | tensors
        result = op(*positional, self.cu_seqlens, **tensors, **self.options, **extra)
        if any(named[name] is not None for name in needs):
            (result.loss * upstream).backward()
        return result, {name: named[name].grad for name in GRADIENTS if named[name] is not None and name in needs}

    def oracle(self, **extra) -> tuple[FlowLoss, dict]:
        return on_device(self, "cpu").cast(torch.float64).run(op=reference.flow_loss, **extra)


def gradients_of_peaked_rows(op, device: torch.device | str = "cpu") -> Tensor:
    """(8, 1), those of entropies, for rows whose target has a log-prob of -55 to -65; the reference's in float64."""
    dtype = torch.float64 if op is reference.linear_logprob else torch.float32
    hidden = torch.linspace(0.9, 1.1, 8, dtype=torch.float64, device=device).unsqueeze(1)
    hidden = hidden.float().to(dtype).requires_grad_()
    weight = torch.tensor([[0.0], [10.0], [-3.0], [-50.0]], dtype=dtype, device=device)
    _, statistics = op(hidden, weight, torch.full((8,), 3, device=device), statistics=True)
    return torch.autograd.grad(statistics.entropy.sum(), hidden)[0]


def on_device(problem: Problem, device: torch.device | str) -> Problem:
    """The problem with all but cu_seqlens, which the host reads, on this device."""
    return replace(
        problem, tensors={name: None if value is None else value.to(device) for name, value in problem.tensors.items()}
    )


def on_cpu(outcome: tuple[FlowLoss, dict]) -> tuple[FlowLoss, dict]:
    """What `Problem.run` returned, brought to the CPU."""
    result, gradients = outcome
    return FlowLoss(*(value.cpu() for value in result)), {name: value.cpu() for name, value in gradients.items()}


# The float64 oracle takes 1 - softmax as a difference: where a probability is next to one, the ops are closer
# to the truth than it is. Differences below this are its own.
ORACLE_ROUNDING = 1e-13


def relative_error(got: Tensor, want: Tensor) -> float:
    """The larger of the max-norm and the 2-norm relative error; absolute where `want` is zero."""
    assert got.shape == want.shape
    if want.numel() == 0:
        return 0.0
    difference = ((got.double() - want.double()).abs() - ORACLE_ROUNDING).clamp(min=0.0)
    largest = want.double().abs().max().item() or 1.0
    norm = want.double().norm().item() or 1.0
    worst = max(difference.max().item() / largest, difference.norm().item() / norm)
    return worst if worst == worst else float("inf")


def norm_error(got: Tensor, want: Tensor) -> float:
    """Relative, in the 2-norm."""
    return float((got.double() - want.double()).norm() / want.double().norm().clamp(min=1e-30))


def assert_matches(got: tuple[FlowLoss, dict], want: tuple[FlowLoss, dict], forward: float, gradient: float):
    for name, value, expected in zip(FlowLoss._fields, got[0], want[0], strict=True):
        assert relative_error(value, expected.detach()) <= forward, name
    assert got[1].keys() == want[1].keys()
    for name, expected in want[1].items():
        assert relative_error(got[1][name], expected) <= gradient, f"gradient of {name}"


def assert_near(got: tuple[FlowLoss, dict], want: tuple[FlowLoss, dict], logprob: float, gradient: float) -> None:
    """In half precision: log-probs in nats, gradients relative."""
    assert (got[0].token_logprob - want[0].token_logprob.detach()).abs().max() <= logprob
    assert got[1].keys() == want[1].keys()
    for name, expected in want[1].items():
        assert relative_error(got[1][name], expected) <= gradient, name


def largest(values: Tensor) -> float:
    """Largest magnitude; 0 for an empty tensor."""
    return float(values.abs().max()) if values.numel() else 0.0


def float32_rounding_of_sums(problem: Problem, expected: FlowLoss) -> dict[str, float]:
    """What float32 may lose where rows with opposite gradients cancel: 2e-7 of the sum of their sizes."""
    tensors = problem.tensors
    coefficient = 2 * expected.residual.detach() * tensors["length_scale"] / problem.options["normaliser"]
    of_rows = 2e-7 * float((coefficient.abs() * problem.cu_seqlens.diff()).nan_to_num(0.0).sum())

    return {
        "hidden": of_rows * largest(tensors["weight"]),
        "weight": of_rows * largest(tensors["hidden"]),
        "bias": of_rows,
        "log_z": 0.0,
    }


def assert_gradients_match(problem: Problem, got: dict, expected: FlowLoss, want: dict) -> None:
    """In float32, to 1e-4 of the largest entry, and what cancels between rows."""
    rounding = float32_rounding_of_sums(problem, expected)
    for name, gradient in want.items():
        error = largest(got[name].double() - gradient)
        assert error <= 1e-4 * largest(gradient) + rounding[name], name


def head_tensors(
    row_count: int, width: int, vocabulary: int, seed: int, logit_limit: float = 4.0, with_bias: bool = False
) -> dict[str, Tensor | None]:
    """hidden, weight, targets, bias with the largest |logit| at `logit_limit`.

    The values are multiples of 1/64, which float32 holds, and bfloat16 nearly so: a comparison
    between types then measures the op, not the rounding of its inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(row_count, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    largest = (hidden @ weight.t()).abs().max().item() if row_count else 1.0
    scale = (logit_limit / max(largest, 1e-3)) ** 0.5
    bias = torch.randn(vocabulary, generator=generator, dtype=torch.float64) if with_bias else None

    def on_grid(values: Tensor | None) -> Tensor | None:
        return None if values is None else (values * 64).round() / 64

    return {
        "hidden": on_grid(hidden * scale),
        "weight": on_grid(weight * scale),
        "bias": on_grid(bias),
        "targets": torch.randint(0, vocabulary, (row_count,), generator=generator),
    }


def make_problem(
    lengths: list[int],
    *,
    width: int = 5,
    vocabulary: int = 11,
    seed: int = 0,
    ratio: str = "sequence",
    length_aware: bool = True,
    logit_limit: float = 4.0,
    with_bias: bool = False,
    padding: int = 0,
    **options,
) -> Problem:
    """A well-conditioned problem: ratios of about exp(-0.7) to exp(0.7), residuals between 0.5 and 2 in size.

    (A residual or a ratio is a difference of large sums; where they nearly cancel, float32 cannot give five
    digits of it, whatever the algorithm.)

    padding: rows of the head beyond the vocabulary, which the op is told of.
    """
    lengths_tensor = torch.tensor(lengths, dtype=torch.int64)
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths_tensor.cumsum(0)]).int()
    tensors = head_tensors(sum(lengths), width, vocabulary + padding, seed, logit_limit, with_bias)
    if padding:
        tensors["targets"] %= vocabulary
        options["vocabulary"] = vocabulary
    head = (tensors["hidden"], tensors["weight"], tensors["targets"])
    logit_options = {name: options[name] for name in ("temperature", "softcap", "vocabulary") if name in options}
    token_logprob = reference.linear_logprob(*head, bias=tensors["bias"], **logit_options)
    logprob = torch.stack([part.sum() for part in token_logprob.split(lengths)])

    generator = torch.Generator().manual_seed(seed + 1)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(lengths), generator=generator, dtype=torch.float64)

    length_scale = 1.0 / lengths_tensor.double() if length_aware else torch.ones(len(lengths)).double()
    log_z = uniform(-1, 1)
    residual = uniform(0.5, 2) * torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    log_ratio = uniform(-0.7, 0.7) * (lengths_tensor if ratio == "token_mean" else 1)
    tensors |= {
        "log_z": log_z,
        "log_target": (log_z + length_scale * logprob - residual).where(lengths_tensor > 0, torch.nan),
        "length_scale": length_scale,  # inf for an empty sequence, as 1/length gives it
        "behaviour_logprob": logprob - log_ratio,
    }
    settings = {"clip_low": 0.2, "clip_high": 0.28, "normaliser": max(len(lengths), 1), "ratio": ratio}
    return Problem(tensors, cu_seqlens, settings | options)


ORDINARY_LOGITS = st.sampled_from([0.5, 4.0, 12.0])
EITHER = st.booleans()
SHORT, NARROW, SMALL = st.integers(0, 9), st.integers(1, 9), st.integers(1, 40)
RATIOS = st.sampled_from(["sequence", "token_mean"])


@st.composite
def problems(
    draw, *, lengths=SHORT, most=6, widths=NARROW, vocabularies=SMALL, ratios=RATIOS, logit_limits=ORDINARY_LOGITS,
    length_aware=EITHER,
) -> Problem:  # fmt: skip
    """most: sequences."""
    vocabulary = draw(vocabularies)
    return make_problem(
        draw(st.lists(lengths, min_size=1, max_size=most)),
        width=draw(widths),
        vocabulary=vocabulary,
        padding=draw(st.sampled_from([0, 0, 3])),
        temperature=draw(st.sampled_from([1.0, 1.0, 0.7, 3.0])),
        softcap=draw(st.sampled_from([None, None, 5.0])),  # a larger one rounds small logits too much for 1e-5
        seed=draw(st.integers(0, 10_000)),
        ratio=draw(ratios),
        length_aware=draw(length_aware),
        logit_limit=draw(logit_limits),
        with_bias=draw(st.booleans()),
        clip_low=draw(st.sampled_from([0.0, 0.2, 1.0])),
        clip_high=draw(st.sampled_from([0.0, 0.28, float("inf")])),
        normaliser=draw(st.sampled_from([1, 0.25, 4096])),
    )
