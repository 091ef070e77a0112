"""What both ops do with the arguments that describe a head: check them, and put them as an operator takes them."""

from typing import Any

from torch import Tensor

from fastflow_kernels.matmul import factor_dtype
from fastflow_kernels.shard import VocabularyShard
from fastflow_kernels.validate import check_count, check_head, check_logit_options


def checked_head_arguments(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    vocabulary: int | None,
    shard: VocabularyShard | None,
    block_rows: int | None,
    block_bytes: int | None,
) -> dict[str, Any]:
    """Keyword arguments of either operator. Raises TypeError, ValueError: one has the wrong type, shape or range."""
    check_head(hidden, weight, targets, bias)
    check_logit_options(temperature, softcap, vocabulary, weight)
    check_count("block_rows", block_rows)
    check_count("block_bytes", block_bytes)
    return {
        "hidden": hidden,
        "weight": weight,
        "bias": bias,
        "targets": targets,
        "temperature": float(temperature),
        "softcap": None if softcap is None else float(softcap),
        "vocabulary": vocabulary,
        "block_rows": block_rows,
        "block_bytes": block_bytes,
        "product_dtype": factor_dtype(hidden, weight),
        "shard_start": 0 if shard is None else shard.start,
        "shard_group": None if shard is None else shard.group.group_name,
        "shard_largest": None if shard is None else shard.largest,
    }
