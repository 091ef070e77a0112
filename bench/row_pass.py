"""The pass over rows of logits alone: Triton's kernel and the CUDA library's, in turns, against a copy's bandwidth.

    python -m bench.row_pass [--rows 4096] [--vocabulary 32000 151936 262144] [--repeats 20]

Bytes are those that a pass needs: each logit read once, each exponential written once. Triton's kernel reads logits
twice where it stores, so that it cannot pass 2/3 of the copy's bandwidth in place, and 3/5 where float32 logits leave
bfloat16 exponentials. Needs a GPU.
"""

import argparse
import functools
import sys

import torch
from torch import Tensor

from bench.timing import rounds, seconds_of, summarise

CASES = (  # type of the logits, and where their exponentials go
    (torch.float32, "in place"),
    (torch.float32, "bfloat16"),
    (torch.float32, "nothing"),
    (torch.bfloat16, "in place"),
    (torch.bfloat16, "nothing"),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.row_pass", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32000, 151936, 262144])
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device")

    from bench.limits import copy_bytes_per_s

    passes = row_passes()
    bandwidth = copy_bytes_per_s("cuda")
    print(f"copy: {bandwidth / 1e12:.2f} TB/s; {options.rows} rows\n")
    print(
        "| vocabulary | logits | stores | pass | median | quartiles | TB/s needed | of the copy |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for vocabulary in options.vocabulary:
        for dtype, store in CASES:
            logits = torch.randn(options.rows, vocabulary, device="cuda", dtype=dtype)
            stored = {"in place": dtype.itemsize, "bfloat16": 2, "nothing": 0}[store]
            bytes_needed = logits.numel() * (dtype.itemsize + stored)
            words = str(dtype).removeprefix("torch.")
            for name, times in timed(passes, logits, store, options.repeats).items():
                found = summarise(times)
                rate = bytes_needed / found.median
                spread = f"{1e3 * found.low:.3f} to {1e3 * found.high:.3f} ms"
                print(
                    f"| {vocabulary} | {words} | {store} | {name} | {1e3 * found.median:.3f} ms | {spread} "
                    f"| {rate / 1e12:.2f} | {rate / bandwidth:.2f} |",
                    flush=True,
                )
    return 0


def row_passes() -> dict:
    """By name; that of the CUDA library where it was built."""
    from fastflow_kernels.cuda import native as cuda_native
    from fastflow_kernels.triton import row

    passes = {"triton": row.row_pass}
    if reason := cuda_native.why_not():
        print(f"without the CUDA library: {reason}\n")
    else:
        passes["cuda"] = cuda_native.row_pass()
    return passes


def timed(passes: dict, logits: Tensor, store: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of every call. Logits (R, V); what is stored in place is taken as logits by the next call.

    With bfloat16 logits the targets' own are given, as the projectors do.
    """
    from fastflow_kernels.head import Head

    head = Head(logits.new_empty(logits.shape[1], 0), None)
    targets = torch.randint(logits.shape[1], (len(logits),), device=logits.device)
    narrow = torch.empty_like(logits, dtype=torch.bfloat16) if store == "bfloat16" else None
    given = logits.new_zeros(len(logits), dtype=torch.float32) if logits.dtype == torch.bfloat16 else None
    exponentials = {"in place": logits, "bfloat16": narrow, "nothing": None}[store]
    times: dict[str, list[float]] = {name: [] for name in passes}
    for number, order in zip(range(repeats + 1), rounds(list(passes)), strict=False):
        for name in order:
            call = functools.partial(passes[name], logits, head, targets, exponentials, given)
            elapsed = seconds_of(call, "cuda")
            if number:  # the first compiles
                times[name].append(elapsed)
    return times


if __name__ == "__main__":
    sys.exit(main())
