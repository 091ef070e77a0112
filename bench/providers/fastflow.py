"""Our ops, by the implementation they choose themselves and by each of the others, at any size of their blocks.

A provider's name with `@SIZE` is the same with blocks of that size: `fastflow@2048` for rows, `fastflow_rows@512MiB`
or `fastflow@4GiB` for bytes, where the ops take a budget. These are points on one curve of time against memory.
"""

import contextlib
import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Iterator

import torch

from bench.ops import Step, loss_outputs, token_step
from bench.problem import Problem
from bench.providers.provider import ANYWHERE, CUDA, Provider, Unavailable
from bench.shapes import Group
from fastflow_kernels.implementation import FORCE, NAMES

UNITS = {"MiB": 2**20, "GiB": 2**30}


@contextlib.contextmanager
def forced(implementation: str | None) -> Iterator[None]:
    """Every call inside takes this implementation; None leaves the choice to the op."""
    before = os.environ.get(FORCE)
    if implementation is not None:
        os.environ[FORCE] = implementation
    try:
        yield
    finally:
        if implementation is not None and before is None:
            del os.environ[FORCE]
        elif implementation is not None:
            os.environ[FORCE] = before


def _step(op: str, blocks: dict[str, int]) -> Step:
    """blocks: block_rows or block_bytes for the ops, or nothing."""
    import fastflow_kernels

    for op_name in ("flow_loss", "linear_logprob"):
        for name in blocks.keys() - inspect.signature(getattr(fastflow_kernels, op_name)).parameters.keys():
            raise Unavailable(f"{op_name} has no setting {name}")
    if op != "flow_loss":
        return token_step(op, functools.partial(fastflow_kernels.linear_logprob, **blocks))

    def step(problem: Problem) -> dict:
        result = fastflow_kernels.flow_loss(
            problem.hidden, problem.weight, problem.targets, problem.cu_seqlens, **problem.loss_inputs, **blocks
        )
        values = {"token_logprob": result.token_logprob.detach(), "logprob": result.logprob.detach()}
        return values | loss_outputs(result.loss, problem)

    return step


def _maker(implementation: str | None, blocks: dict[str, int]) -> Callable[[str, Problem], Step]:
    def make(op: str, problem: Problem) -> Step:
        step = _step(op, blocks)

        def run(problem: Problem) -> dict:
            with forced(implementation):
                return step(problem)

        return run

    return make


def parse_blocks(size: str) -> dict[str, int]:
    """The ops' keyword argument for a size of blocks; raises ValueError where it is none.

    >>> parse_blocks("2048"), parse_blocks("4GiB")
    ({'block_rows': 2048}, {'block_bytes': 4294967296})
    """
    number, unit = (size[:-3], size[-3:]) if size[-3:] in UNITS else (size, "")
    if not number.isdigit() or int(number) < 1:
        raise ValueError(f"{size!r} is no size of blocks; write rows (2048) or bytes (512MiB, 4GiB)")
    return {"block_bytes": int(number) * UNITS[unit]} if unit else {"block_rows": int(number)}


def at_size(name: str) -> Provider | None:
    """The provider NAME@SIZE; None where NAME is none of ours. Raises ValueError for a SIZE that is none."""
    stem, _, size = name.partition("@")
    for provider in PROVIDERS:
        if provider.name == stem:
            implementation = IMPLEMENTATIONS[stem]
            return dataclasses.replace(
                provider,
                name=name,
                make=_maker(implementation, parse_blocks(size)),
                note=f"{provider.note} Blocks of {size}.",
                refuses=functools.partial(_obstacle, implementation),
            )
    return None


def _explain(problem: Problem) -> str:
    import fastflow_kernels

    return fastflow_kernels.explain(problem.hidden, problem.weight)


def _obstacle(implementation: str | None, group: Group) -> str | None:
    """Why an implementation that needs certain hardware or sizes cannot serve the group, in the ops' own words."""
    if implementation not in PARTICULAR:
        return None
    with forced(implementation):
        try:
            _choice(group)
        except RuntimeError as refusal:
            return str(refusal)
    return None


def _obstacle_or_default(implementation: str, group: Group) -> str | None:
    """The same; also where the ops take this implementation unasked, and its row would stand there twice."""
    is_default = _choice(group).startswith(f"{implementation}:")
    return "what fastflow takes here unasked" if is_default else _obstacle(implementation, group)


def _choice(group: Group) -> str:
    import fastflow_kernels

    _, width, vocabulary = group.shape
    one_row = torch.empty(1, width, dtype=getattr(torch, group.dtype), device=group.device)
    return fastflow_kernels.explain(one_row, one_row.expand(vocabulary, width))


def _provider(name: str, note: str, devices: tuple[str, ...], **more) -> Provider:
    flops = {"flow_loss": 6, "linear_logprob": 8, "logprob": 2}
    make = _maker(IMPLEMENTATIONS[name], {})
    return Provider(name, make, flops, note, devices=devices, is_ours=True, **more)


def _forced_provider(name: str) -> Provider:
    refuses = functools.partial(_obstacle_or_default, name)
    return _provider(f"fastflow_{name}", f"The same with {FORCE}={name}.", CUDA, refuses=refuses)


FORCED = tuple(name for name in ("fused", "hopper", "rows", "cuda", "torch") if name in NAMES)
PARTICULAR = ("hopper", "cuda")  # not for every CUDA device, or only where something is installed
IMPLEMENTATIONS = {"fastflow": None} | {f"fastflow_{name}": name for name in FORCED}
PROVIDERS = (
    _provider(
        "fastflow",
        "flow_loss in one call, its gradient taken in the forward pass; linear_logprob projects twice.",
        ANYWHERE,
        explain=_explain,
    ),
    *(_forced_provider(name) for name in FORCED),
)
