"""Our ops, by the implementation they choose themselves and by each of the others."""

import contextlib
import os
from collections.abc import Callable, Iterator

from bench.ops import Step, loss_outputs, token_step
from bench.problem import Problem
from bench.providers.provider import ANYWHERE, CUDA, Provider
from bench.shapes import Group

FORCE = "FASTFLOW_KERNELS"


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


def _step(op: str) -> Step:
    import fastflow_kernels

    if op != "flow_loss":
        return token_step(op, fastflow_kernels.linear_logprob)

    def step(problem: Problem) -> dict:
        result = fastflow_kernels.flow_loss(
            problem.hidden, problem.weight, problem.targets, problem.cu_seqlens, **problem.loss_inputs
        )
        values = {"token_logprob": result.token_logprob.detach(), "logprob": result.logprob.detach()}
        return values | loss_outputs(result.loss, problem)

    return step


def _maker(implementation: str | None) -> Callable[[str, Problem], Step]:
    def make(op: str, problem: Problem) -> Step:
        step = _step(op)

        def run(problem: Problem) -> dict:
            with forced(implementation):
                return step(problem)

        return run

    return make


def _explain(problem: Problem) -> str:
    import fastflow_kernels

    return fastflow_kernels.explain(problem.hidden, problem.weight)


def _cuda_refuses(group: Group) -> str | None:
    from fastflow_kernels.gpu import cuda_native

    return cuda_native.why_not()


def _provider(name: str, implementation: str | None, note: str, devices: tuple[str, ...], **more) -> Provider:
    flops = {"flow_loss": 6, "linear_logprob": 8, "logprob": 2}
    return Provider(name, _maker(implementation), flops, note, devices=devices, is_ours=True, **more)


PROVIDERS = (
    _provider(
        "fastflow",
        None,
        "flow_loss in one call, its gradient taken in the forward pass; linear_logprob projects twice.",
        ANYWHERE,
        explain=_explain,
    ),
    _provider("fastflow_rows", "rows", f"The same with {FORCE}=rows.", CUDA),
    _provider("fastflow_cuda", "cuda", f"The same with {FORCE}=cuda.", CUDA, refuses=_cuda_refuses),
    _provider("fastflow_torch", "torch", f"The same with {FORCE}=torch.", CUDA),
)
