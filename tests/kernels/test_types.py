"""Every function is typed but those that Triton and QuACK compile, whose annotations they would read as their own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

import fastflow_kernels
from kernel_problems import make_problem
from shape_checks import checked

PACKAGE = Path(__file__).parents[2] / "kernels" / "fastflow_kernels"
COMPILERS = {"triton.jit", "gemm_epilogue"}


def untyped(source: str) -> Iterator[str]:
    """Names of functions with a parameter or a result that says no type, those of the compilers apart."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or COMPILERS & {
            called(decorator) for decorator in node.decorator_list
        }:
            continue
        given = node.args
        parameters = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        named = [parameter for parameter in parameters if parameter and parameter.arg not in ("self", "cls")]
        has_result = node.returns is not None or node.name == "__init__"
        if not has_result or any(parameter.annotation is None for parameter in named):
            yield node.name


def called(decorator: ast.expr) -> str:
    return ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)


def test_every_function_is_typed():
    found = {str(file.relative_to(PACKAGE)): [*untyped(file.read_text("utf-8"))] for file in PACKAGE.rglob("*.py")}
    assert len(found) > 40
    assert not {file: names for file, names in found.items() if names}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def f(x: int): ...", ["f"]),
        ("def f(x) -> None: ...", ["f"]),
        ("def f(*x) -> None: ...", ["f"]),
        ("class C:\n    def f(self, *, x=1) -> None: ...", ["f"]),
        ("class C:\n    def f(self, x: int) -> None: ...", []),
        ("@triton.jit(do_not_specialize=['x'])\ndef f(x): ...", []),
    ],
)
def test_a_function_without_types_is_found(source, names):
    assert [*untyped(source)] == names


def shaped(op):
    """The op with its annotations checked. The import hook leaves it alone: it checks its arguments by itself."""
    return jaxtyping.jaxtyped(op, typechecker=checked)


@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("options", [{}, {"with_bias": True, "padding": 3}], ids=["plain", "padded, with bias"])
def test_the_shapes_of_the_ops_are_as_annotated(options, statistics):
    problem = make_problem([3, 0, 2], **options).cast(torch.float32)
    tensors, named = dict(problem.tensors), problem.options | {"statistics": statistics}
    head = [tensors.pop(name) for name in ("hidden", "weight", "targets")]
    found = shaped(fastflow_kernels.flow_loss)(*head, problem.cu_seqlens, **tensors, **named)
    loss = found[0] if statistics else found
    assert loss.loss.shape == () and loss.logprob.shape == (3,) and loss.token_logprob.shape == (5,)
    named = {name: named[name] for name in named.keys() & {"vocabulary", "statistics"}}
    shaped(fastflow_kernels.linear_logprob)(*head, bias=tensors["bias"], **named)


def test_a_shape_that_differs_is_refused():
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'weight'"):
        shaped(fastflow_kernels.linear_logprob)(torch.zeros(2, 4), torch.zeros(3, 5), torch.zeros(2).long())
