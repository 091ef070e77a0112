"""Prints the kernels that are compiled anew where a block's rows start at an odd row of the caller's tensors."""

from __future__ import annotations

import torch

from bench.dry_launch import compiling_for
from fastflow_kernels.head import Head
from fastflow_kernels.triton.row import row_pass
from fastflow_kernels.triton.row_tilt import tilt_rows
from fastflow_kernels.triton.target_logit import target_logits

ROWS, WIDTH, VOCABULARY = 16, 64, 512


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


if __name__ == "__main__":
    hidden, logits, rows = empty(ROWS, WIDTH), empty(ROWS, VOCABULARY), empty(ROWS)
    head = Head(empty(VOCABULARY, WIDTH), None)
    all_targets, all_slopes = empty(3 * ROWS, dtype=torch.int64), empty(3 * ROWS)
    launches = {
        "row": lambda part: row_pass(logits, head, all_targets[part], logits),
        "target_logit": lambda part: target_logits(hidden, head, all_targets[part]),
        "row_tilt": lambda part: tilt_rows(logits, head, rows, (rows, all_slopes[part]), logits),
    }
    for name, launch in launches.items():
        with compiling_for(90) as compiled:
            for start in (0, ROWS + 1):
                launch(slice(start, start + ROWS))
        if compiled[0].kernel is not compiled[1].kernel:
            print(name)
