"""What `accumulate_into` spares: time and peak memory of a micro-batch whose head has a gradient already.

    python -m bench.accumulate [--device cpu|cuda] [--shape NxDxV] [--dtype float32|bfloat16] [--repeats N]

One way is flow_loss and backward, which makes a gradient of the head and adds it to weight.grad; the other adds to it
in flow_loss. Of a bfloat16 head, the first has its .grad in bfloat16, the second a float32 tensor beside it. Each way
runs in a process of its own, its peak above what stands before the call. Exits with 1 where the peak with
`accumulate_into` is not the smaller one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from typing import Any

import torch

from bench.options import count, parse_shape
from bench.peak import peak_of
from bench.problem import Problem, make_problems
from bench.shapes import Shape

WAYS = ("ordinary", "accumulate_into")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.accumulate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", type=parse_shape, default=Shape(512, 1024, 151936), metavar="NxDxV")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=count, default=5, help="timed calls (default: 5)")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    measured = {way: in_a_process(way, options) for way in WAYS}
    if any(peak is None for _, peak in measured.values()):
        parser.error("--device cpu: this system does not tell a process's peak memory; Linux does")
    head = options.shape.vocabulary * options.shape.width
    print(f"{options.shape}, {options.dtype}, {options.device}: 4 V D = {4 * head / 2**20:.0f} MiB")
    for way, (seconds, peak) in measured.items():
        print(f"{way:16} {statistics.median(seconds):7.3f} s (least {min(seconds):.3f})   peak {peak / 2**20:7.0f} MiB")
    spared = measured["ordinary"][1] - measured["accumulate_into"][1]
    print(f"{'spared':33} {spared / 2**20:21.0f} MiB, {spared / (4 * head):.2f} of 4 V D")
    return int(spared <= 0)


def in_a_process(way: str, options: argparse.Namespace) -> tuple[list[float], int | None]:
    """Seconds of each call, and bytes of the first beyond inputs and gradients."""
    receive, send = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=measure, args=(way, options, send))
    process.start()
    send.close()
    try:
        return receive.recv()
    finally:
        process.join()


def measure(way: str, options: argparse.Namespace, pipe: Any) -> None:
    torch.set_num_threads(1)
    dtype = getattr(torch, options.dtype)
    tiny = make_problems(Shape(8, 8, 8), dtype, options.device)[0]
    micro_batch(tiny, make_gradients(tiny, way))  # loads the libraries' code
    problem = make_problems(options.shape, dtype, options.device)[0]
    total = make_gradients(problem, way)
    if options.device == "cuda":
        micro_batch(problem, total)  # the vendor's library takes memory of its own
    peak = peak_of(lambda: micro_batch(problem, total), torch.device(options.device))
    seconds = []
    for _ in range(options.repeats):
        started = time.perf_counter()
        micro_batch(problem, total)
        if options.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    pipe.send((seconds, peak))


def make_gradients(problem: Problem, way: str) -> torch.Tensor | None:
    """As earlier micro-batches have left them: the caller's sum; None where backward adds to weight.grad."""
    for leaf in (problem.hidden, problem.weight, problem.log_z):
        leaf.grad = torch.full_like(leaf, 0.0)
    if way == "ordinary":
        return None
    if problem.weight.dtype == torch.float32:
        return problem.weight.grad
    problem.weight.grad = None
    return torch.full_like(problem.weight, 0.0, dtype=torch.float32, requires_grad=False)


def micro_batch(problem: Problem, total: torch.Tensor | None) -> dict:
    from fastflow_kernels import flow_loss

    inputs = (problem.hidden, problem.weight, problem.targets, problem.cu_seqlens)
    flow_loss(*inputs, **problem.loss_inputs, accumulate_into=total).loss.backward()
    return {}


if __name__ == "__main__":
    sys.exit(main())
