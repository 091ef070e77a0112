"""QuACK (CuTe DSL).

Its chunked kernel gives the mean or the sum over rows only. A sequence-level loss gets its gradient from it by
one call per sequence, each of which holds a gradient of the whole head until the backward pass. Since 0.6.5 there are
two such kernels: logits that a row kernel overwrites, and exponentials out of the projection's epilogue
(`use_scaled_exp`), which QuACK takes by itself where it can.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.ops import SequenceLogprob, Step, TokenLogprob, sequence_step
from bench.problem import Problem
from bench.providers.provider import BFLOAT16, CUDA, MATERIALISING, Provider, Unavailable, from_tokens, summing
from bench.shapes import Group

CHUNK_ROWS = 4096  # QuACK's default
OTHER_CHUNK_ROWS = (4224, 2048, 1024, 512, 256, 128)  # taken in this order where that does not serve


def chunk_rows(row_count: int, width: int) -> int:
    """Return the rows of a chunk for QuACK: its default, or another where a chunk would have as many rows as D.

    With scaled exponentials QuACK 0.6.5 fails there: its epilogue cannot tell whether v is a row or a column. It pads
    the last chunk to a multiple of 128 rows.

    >>> chunk_rows(8192, width=3584), chunk_rows(8192, width=4096), chunk_rows(4000, width=4096)
    (4096, 4224, 2048)
    """
    for size in (CHUNK_ROWS, *OTHER_CHUNK_ROWS):
        chunks = min(size, row_count), row_count % size or size
        if width not in (-(-rows // 128) * 128 for rows in chunks):
            return size
    raise Unavailable(f"quack 0.6.5 fails where a chunk has as many rows as D, as one of {row_count} rows has")


@functools.cache
def _sum(scaled_exponentials: bool | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(hidden, weight, targets) -> the sum of all log-probs. None leaves the choice of the kernel to QuACK."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy as kernel

    options: dict[str, Any] = {"reduction": "sum"}
    if scaled_exponentials is not None:
        if "use_scaled_exp" not in inspect.signature(kernel).parameters:
            raise Unavailable("this quack has no scaled exponentials, which came with 0.6.5")
        options["use_scaled_exp"] = scaled_exponentials

    def total(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        size = CHUNK_ROWS if scaled_exponentials is False else chunk_rows(*hidden.shape)
        return -kernel(hidden, weight, targets, chunk_size=size, **options)

    return total


def _per_sequence() -> SequenceLogprob:
    total = _sum(None)

    def logprob(problem: Problem) -> Tensor:
        lengths = problem.cu_seqlens.diff().tolist()
        parts = zip(problem.hidden.split(lengths), problem.targets.split(lengths), strict=True)
        # a copy of the targets: a kernel may want them aligned to more than one of them
        return torch.stack([total(rows, problem.weight, targets.clone()) for rows, targets in parts])

    return logprob


def _make_per_sequence(op: str, problem: Problem) -> Step:
    return sequence_step(_per_sequence())


def _materialised() -> TokenLogprob:
    from quack.linear_cross_entropy import linear_cross_entropy_func

    def logprob(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return -linear_cross_entropy_func(hidden, weight, None, targets, reduction="none", inplace_backward=True)

    return logprob


def _forward_only() -> TokenLogprob:
    from quack.epilogue.library import lse_target_epi

    def logprob(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        out = lse_target_epi(hidden, weight.mT, store_d=False, target=targets, tuned=False)
        return out["target_logit"] - out["lse"]

    return logprob


def _needs_hopper(group: Group) -> str | None:
    """The path that takes sequences of any length is there for these only."""
    if torch.cuda.get_device_capability() != (9, 0):
        return "needs compute capability 9.0"
    return None if group.shape.vocabulary % 128 == 0 and group.shape.width % 8 == 0 else "V % 128 or D % 8 is not 0"


def _needs_alignment(group: Group) -> str | None:
    return None if all(size % 8 == 0 for size in group.shape) else "N, D or V is no multiple of 8"


def _provider(name: str, make, flops: dict[str, int], note: str, **more) -> Provider:
    needs = {"devices": CUDA, "dtypes": BFLOAT16, "packages": ("quack", "cutlass"), "refuses": _needs_alignment}
    return Provider(name, make, flops, note, **(needs | more))


PROVIDERS = (
    _provider(
        "quack_per_sequence",
        _make_per_sequence,
        {"flow_loss": 6},
        'chunked_linear_cross_entropy, reduction="sum", called once per sequence: its only way to this gradient.',
        refuses=_needs_hopper,
    ),
    _provider(
        "quack_sum",
        summing(lambda: _sum(False)),
        {"flow_loss": 6},
        "The same over all rows at once, without scaled exponentials: the gradient of the plain sum. No answer to this "
        "problem; a time to compare with.",
        has_answer=False,
    ),
    _provider(
        "quack_sum_scaled",
        summing(lambda: _sum(True)),
        {"flow_loss": 6},
        "The same with scaled exponentials, in chunks of 4096 rows (another number where a chunk of D rows makes QuACK "
        "0.6.5 fail: 4224 at 8192 x 4096). No answer to this problem; a time to compare with.",
        refuses=_needs_hopper,
        has_answer=False,
    ),
    _provider(
        "quack_materialised",
        from_tokens(_materialised),
        MATERIALISING,
        'linear_cross_entropy_func, reduction="none": all logits, in bfloat16, with a fused softmax.',
    ),
    _provider("quack_lse", from_tokens(_forward_only), {"logprob": 2}, "Its LM-head epilogue: log-probs alone."),
)
