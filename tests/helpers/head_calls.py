"""Calls of linear_logprob, with and without the statistics of its rows: drawn, run by any op, and their rounding."""

from __future__ import annotations

import math
from typing import NamedTuple

import hypothesis.strategies as st
import torch
from torch import Tensor

from kernel_problems import head_tensors, largest, relative_error

HEAD = ("hidden", "weight", "bias")


class Outcome(NamedTuple):
    """outputs: log-probs (N,); with statistics also entropy, logsumexp and mean logit."""

    outputs: tuple[Tensor, ...]
    gradients: dict[str, Tensor]


def run_head(op, tensors, upstream=None, dtype=None, *, device="cpu", needs=HEAD, **options) -> Outcome:
    """On the CPU; gradients of the sum of outputs times `upstream`: one for each output, None for one without.

    upstream: from -1 to 1 for the log-probs alone, unless given. dtype: None leaves each tensor's own.
    """
    upstream = [torch.linspace(-1, 1, len(tensors["targets"]))] if upstream is None else upstream
    leaves = {
        name: tensors[name].detach().to(device=device, dtype=dtype).requires_grad_(name in needs)
        for name in HEAD
        if tensors.get(name) is not None
    }
    found = op(**leaves, targets=tensors["targets"].to(device), **options)
    outputs = (found[0], *found[1]) if options.get("statistics") else (found,)
    used = [(output, weight) for output, weight in zip(outputs, upstream, strict=False) if weight is not None]
    if any(leaf.requires_grad for leaf in leaves.values()):
        torch.autograd.backward([output for output, _ in used], [weight.to(output) for output, weight in used])
    gradients = {name: leaf.grad.cpu() for name, leaf in leaves.items() if name in needs}
    return Outcome(tuple(output.detach().cpu() for output in outputs), gradients)


def assert_head_near(got: Outcome, want: Outcome) -> None:
    """In half precision."""
    torch.testing.assert_close(got.outputs[0].double(), want.outputs[0], rtol=1e-5, atol=1e-4)
    assert got.gradients.keys() == want.gradients.keys()
    for name, gradient in want.gradients.items():
        assert relative_error(got.gradients[name], gradient) <= 0.01, name


def upstream_of(row_count: int, seed: int = 0, which=(True, True, True)) -> list[Tensor | None]:
    """Random gradients of log-prob, entropy and logsumexp, where they have one."""
    values = torch.randn(3, row_count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [row if is_there else None for row, is_there in zip(values, which, strict=True)]


@st.composite
def head_calls(draw, widths, vocabularies, row_counts, logit_limits=(0.5, 10.0, 80.0)):
    """(tensors, options). A saturated soft-cap has a slope of 1 - tanh^2, of which float32 keeps 7 digits of the 1:
    kept out of reach."""
    softcap = draw(st.sampled_from([None, None, 5.0, 30.0]))
    vocabulary, padding = draw(vocabularies), draw(st.sampled_from([0, 0, 3]))
    tensors = head_tensors(
        draw(row_counts),
        width=draw(widths),
        vocabulary=vocabulary + padding,
        seed=draw(st.integers(0, 10_000)),
        logit_limit=min(draw(st.sampled_from(logit_limits)), 3 * (softcap or math.inf)),
        with_bias=draw(st.booleans()),
    )
    tensors["targets"] %= vocabulary
    options = {"temperature": draw(st.sampled_from([1.0, 0.7, 3.0])), "softcap": softcap, "vocabulary": vocabulary}
    return tensors, options


def rounding_of(tensors, upstream, dtype, options) -> tuple[float, dict[str, float]]:
    """What log-probs of the tokens beside the likeliest lose: of an entropy near 0, and of gradients that cancel.

    Three roundings of the largest logit, in any probability: of the product, of the scale and of the exponent. A
    gradient sums that over the rows.
    """
    logits = tensors["hidden"].double() @ tensors["weight"].double().t()
    epsilon = 3 * torch.finfo(dtype).eps * (1 + largest(logits) / options.get("temperature", 1.0))
    of_rows = epsilon * sum(float(weight.abs().sum()) for weight in upstream if weight is not None)
    temperature = min(1.0, options.get("temperature", 1.0))
    sizes = {"hidden": largest(tensors["weight"]), "weight": largest(tensors["hidden"]), "bias": 1.0}
    return epsilon, {name: of_rows * size / temperature for name, size in sizes.items()}
