"""What the harness knows of a provider."""

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.ops import Step, TokenLogprob, token_step
from bench.problem import Problem
from bench.shapes import Group

ANYWHERE = ("cpu", "cuda")
CUDA = ("cuda",)
BOTH = ("float32", "bfloat16")
BFLOAT16 = ("bfloat16",)


class Unavailable(Exception):
    """A provider cannot run here; the message says why. It becomes a row "skipped: why"."""


@dataclass(frozen=True)
class Provider:
    """One way to do some of the ops.

    make(op, problem) returns the step that is timed; it imports what it needs and may raise. `problem` is one of
    the problems to come, for steps that keep buffers of its size.
    """

    name: str
    make: Callable[[str, Problem], Step]
    flops: Mapping[str, int]  # op -> what it spends, in multiples of N D V; the keys are the ops it serves
    note: str  # how a user must run it, and what it does not do
    devices: tuple[str, ...] = ANYWHERE
    dtypes: tuple[str, ...] = BOTH
    packages: tuple[str, ...] = ()  # import names
    refuses: Callable[[Group], str | None] = field(default=lambda group: None)  # why this group is beyond it
    explain: Callable[[Problem], str] = field(default=lambda problem: "")  # how it runs here, for the notes
    is_ours: bool = False
    has_answer: bool = True  # False: a time to compare with, not an answer
    in_quick: bool = True
    cpu_peak: bool = True  # False where loading the provider would count as its memory


def why_not(provider: Provider, group: Group) -> str | None:
    """The reason for which a provider that serves the op cannot serve this group here, or None."""
    if group.device not in provider.devices:
        return f"does not run on {group.device}"
    if group.dtype not in provider.dtypes:
        return f"not for {group.dtype}"
    for package in provider.packages:
        if not is_installed(package):
            return f"{package} is not installed"
    return provider.refuses(group)


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def from_tokens(load: Callable[[], TokenLogprob]) -> Callable[[str, Problem], Step]:
    """A maker from a function that imports what it needs and returns (hidden, weight, targets) -> log-probs."""

    def make(op: str, problem: Problem) -> Step:
        return token_step(op, load())

    return make


def summing(load: Callable[[], TokenLogprob]) -> Callable[[str, Problem], Step]:
    """A maker from a function that imports what it needs and returns (hidden, weight, targets) -> the sum of all
    log-probs: a step of its gradients, to compare times with.
    """

    def make(op: str, problem: Problem) -> Step:
        total = load()

        def step(problem: Problem) -> dict[str, Tensor]:
            inputs = problem.hidden, problem.weight
            d_hidden, d_weight = torch.autograd.grad(total(*inputs, problem.targets), inputs)
            return {"d_hidden": d_hidden, "d_weight": d_weight}

        return step

    return make


def import_below(package: str, folder: str, module: str) -> types.ModuleType:
    """Import a module of a package without what importing the package and its folder pulls in: both are entered as
    empty ones with the places of the installed files. Raises Unavailable where the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable(f"{package} is not installed")
    root = next(iter(spec.submodule_search_locations))
    for name, place in ((package, root), (f"{package}.{folder}", f"{root}/{folder}")):
        empty = importlib.machinery.ModuleSpec(name, loader=None, is_package=True)
        empty.submodule_search_locations = [place]
        sys.modules.setdefault(name, importlib.util.module_from_spec(empty))
    return importlib.import_module(module)


def recomputing(*ops: str) -> dict[str, int]:
    """The work of a provider that does not hold the logits: it projects again in the backward pass."""
    every = {"flow_loss": 8, "linear_logprob": 8, "logprob": 2}
    return {op: every[op] for op in ops or every}


MATERIALISING = {"flow_loss": 6, "linear_logprob": 6, "logprob": 2}
