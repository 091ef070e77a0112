"""Both ops, forward and backward, on small odd shapes against the reference; alone or under compute-sanitizer.

    python -m bench.sanitize                                       compare, and exit with 1 on a wrong answer
    python -m bench.sanitize --tool memcheck --tool racecheck      the same under each tool of compute-sanitizer

The reference runs in float64 on the CPU, so that a tool only watches our kernels and the library products.
"""

import argparse
import os
import shutil
import subprocess
import sys
from typing import NamedTuple

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
LIBRARY_PRODUCTS = "nvjet"  # kernels of cuBLAS
FOUND = 9  # exit status that compute-sanitizer is told to use for its findings
BOUNDS = {"float32": (1e-5, 1e-4), "bfloat16": (2e-3, 0.02)}  # log-probs (float32: relative, else nats), gradients
BOUNDS_OF_ROUNDED = BOUNDS | {"bfloat16": (2e-2, 0.02)}
ROUNDING = ("rows", "cuda")  # implementations that keep bfloat16 logits; on a CPU every one does


class Case(NamedTuple):
    """Lengths of the sequences, width, vocabulary, type of the head, bias and soft-cap."""

    lengths: tuple[int, ...]
    width: int
    vocabulary: int
    dtype: str
    with_bias: bool = False
    softcap: float | None = None


CASES = (
    Case((5, 1, 0, 130), 72, 1157, "bfloat16", with_bias=True),  # an empty sequence, a width no multiple of 64
    Case((1,), 64, 50257, "bfloat16"),  # one row, several blocks of CUDA; a vocabulary with a remainder
    Case((33, 64), 70, 515, "bfloat16"),  # rows that are not aligned to 16 bytes
    Case((300,), 128, 4096, "bfloat16", softcap=5.0),  # a sequence longer than a tile
    Case((40, 0, 7), 72, 1157, "float32", with_bias=True),
)
TEMPERATURE = 0.8


def implementations(device: str) -> tuple[str, ...]:
    """Those of ours that can run there; that of the CUDA library only where it was built."""
    if device == "cpu":
        from fastflow_kernels.cpu import native

        return ("torch", "native") if native.library() else ("torch",)
    from fastflow_kernels.cuda import native as cuda_native

    return ("fused", "rows") if cuda_native.why_not() else ("fused", "rows", "cuda")


def run_cases(device: str) -> list[str]:
    """One line for each wrong answer."""
    from bench.providers.fastflow import forced

    wrong = []
    for implementation in implementations(device):
        bounds = BOUNDS_OF_ROUNDED if device == "cpu" or implementation in ROUNDING else BOUNDS
        with forced(implementation):
            wrong += [f"{implementation}, {case}: {line}" for case in CASES for line in _check(case, device, bounds)]
    return wrong


def _check(case: Case, device: str, bounds_by_type: dict[str, tuple[float, float]]) -> list[str]:
    import torch

    import fastflow_kernels
    from bench.errors import errors_of
    from bench.problem import make_problems
    from bench.shapes import Shape
    from fastflow_kernels import reference

    dtype = getattr(torch, case.dtype)
    shape = Shape(sum(case.lengths), case.width, case.vocabulary)
    problem = make_problems(shape, dtype, "cpu", lengths=list(case.lengths))[0]
    bias = torch.linspace(-1, 1, case.vocabulary, dtype=dtype) if case.with_bias else None
    more = {"bias": bias, "softcap": case.softcap, "temperature": TEMPERATURE}
    forward, backward = bounds_by_type[case.dtype]
    wrong = []
    for name in ("flow_loss", "linear_logprob"):
        exact = answers(getattr(reference, name), problem, more, "cpu", torch.float64)
        found = errors_of(answers(getattr(fastflow_kernels, name), problem, more, device, dtype), exact)
        bounds = {key: backward for key in found if key.startswith("d_") and key.endswith("_norm")}
        bounds["token_logprob_max" if case.dtype == "float32" else "token_logprob_abs"] = forward
        wrong += [f"{name}: {key} {found[key]:.1e}, bound {most}" for key, most in bounds.items() if found[key] > most]
    return wrong


def answers(op, problem, more: dict, device: str, dtype) -> dict:
    """Log-probs and gradients of one of the ops, its head cast to this type, back on the CPU."""
    import torch

    head = {"d_hidden": problem.hidden, "d_weight": problem.weight, "d_bias": more["bias"]}
    leaves = {
        name: tensor.detach().to(device, dtype).requires_grad_() for name, tensor in head.items() if tensor is not None
    }
    more = more | {"bias": leaves.get("d_bias")}
    inputs = (leaves["d_hidden"], leaves["d_weight"], problem.targets.to(device))
    if op.__name__ == "linear_logprob":
        output = logprob = op(*inputs, **more)
        upstream = problem.upstream.to(device, logprob.dtype)
    else:
        moved = {
            name: value.detach().to(device) if isinstance(value, torch.Tensor) else value
            for name, value in problem.loss_inputs.items()
        }
        result = op(*inputs, problem.cu_seqlens, **moved, **more)
        output, logprob, upstream = result.loss, result.token_logprob, None
    gradients = torch.autograd.grad(output, list(leaves.values()), upstream)
    outputs = {"token_logprob": logprob.detach()} | dict(zip(leaves, gradients, strict=True))
    return {name: value.cpu() for name, value in outputs.items()}


def run_under(tool: str, device: str) -> int:
    """The cases under one tool of compute-sanitizer; its exit status, 0 where it is not installed."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        print(f"{tool}: skipped, compute-sanitizer is not on the PATH")
        return 0
    command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20"]
    if tool == "racecheck":  # it takes the barriers of the vendor library's products for none
        command += ["--kernel-name-exclude", f"kernel_substring={LIBRARY_PRODUCTS}"]
    command += [sys.executable, "-m", "bench.sanitize", "--device", device]
    # every tensor an allocation of its own, or an access behind its end still lies within the allocator's block
    status = subprocess.run(command, env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}).returncode
    print(f"{tool}: {'clean' if status == 0 else 'findings' if status == FOUND else f'failed, status {status}'}")
    return status


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sanitize", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where our ops run (default: cuda)")
    parser.add_argument("--tool", choices=TOOLS, action="append", help="run under this tool; may be repeated")
    options = parser.parse_args(arguments)
    if options.tool:
        return max([run_under(tool, options.device) for tool in options.tool], key=abs)
    wrong = run_cases(options.device)
    count = 2 * len(CASES) * len(implementations(options.device))
    print("\n".join(f"WRONG: {line}" for line in wrong) or f"{count} answers agree with the reference")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
