"""Which tile, and how many rows in a block, are fastest on this GPU: for tiles.py and block_budget.py.

    python -m bench.tune [--shape NxDxV ...] [--seconds 80] [--json FILE]

For each shape, in bfloat16: every candidate tile of the projection, with and without stored exponentials, then
flow_loss forward and backward in blocks of several sizes. Shapes are taken in order until the time is up. Rates
count 2 N D V for the projection and 6 N D V for flow_loss.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from bench.options import parse_shape
from bench.problem import Problem, make_problems
from bench.report import write_json
from bench.shapes import SHAPES, Shape

PROJECTED_ROWS = 4096  # of the projection that is timed: many tiles, few milliseconds
BLOCK_ROWS = (3456, 2048, 2816, 4224, 1024, 5632, 8192)


def tile_rows(shape: Shape, problem: Problem) -> Iterator[dict]:
    """A row for each candidate tile and use, those that store exponentials first."""
    from fastflow_kernels.head import Head, factors_of
    from fastflow_kernels.tiles import candidates_for, tile_for
    from fastflow_kernels.triton.autotune import time_tiles
    from fastflow_kernels.triton.project import project
    from fastflow_kernels.triton.target_logit import target_logits

    hidden, targets = problem.hidden.detach()[:PROJECTED_ROWS], problem.targets[:PROJECTED_ROWS]
    head = Head.of(factors_of(problem.weight, torch.bfloat16), None)
    target_logit = target_logits(hidden, head, targets)
    room = -(-shape.vocabulary // 8) * 8
    for stores in (True, False):
        block = hidden.new_empty(len(hidden), room)[:, : shape.vocabulary] if stores else None
        default = tile_for(hidden, head.weight, stores=stores, has_bias=False, has_softcap=False)
        for tile in (default, *candidates_for(head.weight)):

            def launch(tile, block=block):
                return project(hidden, head, targets, target_logit, tile, block)

            (timing,) = time_tiles(launch, [tile])
            row = {"what": "projection, stored" if stores else "projection", "shape": str(shape)} | asdict(tile)
            yield finished(row, timing.seconds, 2 * len(hidden) * shape.width * shape.vocabulary)


def block_rows_rows(shape: Shape, problem: Problem) -> Iterator[dict]:
    """A row for each cut into blocks, forward and backward of flow_loss."""
    import triton

    from fastflow_kernels import flow_loss
    from fastflow_kernels.blocks import sequence_blocks

    def step(block_rows: int) -> None:
        head = (problem.hidden, problem.weight, problem.targets, problem.cu_seqlens)
        loss = flow_loss(*head, **problem.loss_inputs, block_rows=block_rows).loss
        torch.autograd.grad(loss, (problem.hidden, problem.weight, problem.log_z))

    boundaries, seen = problem.cu_seqlens.tolist(), []
    for block_rows in BLOCK_ROWS:
        blocks = sequence_blocks(boundaries, block_rows)
        if blocks in seen:
            continue  # whole sequences are cut evenly: a larger limit need not give another cut
        seen.append(blocks)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        milliseconds = triton.testing.do_bench(lambda rows=block_rows: step(rows), return_mode="median")
        row = {"what": "flow_loss", "shape": str(shape), "block_rows": block_rows, "blocks": len(blocks)}
        row |= {"most_rows": max(block.row_count for block in blocks), "cuts": any(block.is_part for block in blocks)}
        row["peak_bytes"] = torch.cuda.max_memory_allocated() - before
        yield finished(row, milliseconds / 1e3, 6 * shape.products)


def finished(row: dict, seconds: float | None, flops: int) -> dict:
    return row | {"median_s": seconds, "tflops": None if seconds is None else flops / seconds / 1e12}


def line_of(row: dict) -> str:
    """One row as a line: its result, then what was tried."""
    result = (
        "does not fit" if row["median_s"] is None else f"{row['median_s'] * 1e3:8.3f} ms {row['tflops']:6.0f} TFLOP/s"
    )
    settings = {name: value for name, value in row.items() if name not in ("what", "shape", "median_s", "tflops")}
    return f"{row['shape']:<20} {row['what']:<18} {result:<26} " + " ".join(f"{k}={v}" for k, v in settings.items())


def sweep(shapes: list[Shape], seconds: float, report: Callable[[dict], None]) -> None:
    """Report each row as it is known; stop, and say so, when the time is up."""
    started = time.monotonic()
    for shape in shapes:
        (problem,) = make_problems(shape, torch.bfloat16, "cuda")
        for rows in (tile_rows(shape, problem), block_rows_rows(shape, problem)):
            for row in rows:
                report(row)
                if time.monotonic() - started > seconds:
                    print(f"The {seconds:.0f} seconds are up; raise --seconds for the rest.")
                    return


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tune", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shape", type=parse_shape, nargs="+", default=list(SHAPES["cuda"]), help="such as 8192x3584x152064"
    )
    parser.add_argument("--seconds", type=float, default=80, help="stop after this time (default: 80)")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("bench.tune needs a CUDA device, and torch sees none.", file=sys.stderr)
        return 2
    rows: list[dict] = []

    def report(row: dict) -> None:
        rows.append(row)
        print(line_of(row), flush=True)
        if options.json:
            write_json(options.json, rows)

    sweep(options.shape, options.seconds, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
