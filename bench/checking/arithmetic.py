"""bfloat16 as a GPU computes it: casts to nearest even, products with float32 accumulators, nothing else.

Triton's interpreter holds bfloat16 as the integers of its bits and computes with those.
"""

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


@contextlib.contextmanager
def true_bfloat16(report: Callable[[str, str], None]) -> Iterator[None]:
    """Within it kernels cast and multiply bfloat16 rightly; any other arithmetic in it is reported."""
    replaced = {
        "cast_impl": _cast,
        "create_fp_to_fp": lambda builder, source, to, _rounding: _cast(builder, source, to),
        "create_dot": _dot,
        "unary_op": _watched(InterpreterBuilder.unary_op, report),
        "binary_op": _watched(InterpreterBuilder.binary_op, report),
        "ternary_op": _watched(InterpreterBuilder.ternary_op, report),
    }
    with contextlib.ExitStack() as stack:
        for name, function in replaced.items():
            stack.enter_context(mock.patch.object(InterpreterBuilder, name, function))
        yield


def _cast(builder, source: TensorHandle, to: tl.dtype) -> TensorHandle:
    before, after = source.dtype.scalar, to.scalar
    if before == after:
        return source
    data = np.ascontiguousarray(source.data)
    if before == tl.bfloat16:
        wide = TensorHandle((data.astype(np.uint32) << 16).view(np.float32), tl.float32)
        return _cast(builder, wide, after)
    if after == tl.bfloat16:
        narrow = torch.from_numpy(np.array(data, np.float32)).to(torch.bfloat16)
        return TensorHandle(narrow.view(torch.int16).numpy().view(np.uint16).reshape(data.shape), after)
    return TensorHandle(data.astype(interpreter._get_np_dtype(to)), after)


def _dot(builder, left: TensorHandle, right: TensorHandle, total: TensorHandle, *_precision) -> TensorHandle:
    left, right = (
        _cast(builder, factor, tl.float32) if factor.dtype.scalar == tl.bfloat16 else factor for factor in (left, right)
    )
    product = np.matmul(left.data, right.data, dtype=total.data.dtype)
    return TensorHandle(product + total.data, total.dtype.scalar)


def _watched(operation, report: Callable[[str, str], None]):
    def watched(builder, *operands):
        handles, function = operands[:-1], operands[-1]
        if function is not np.where and any(handle.dtype.scalar == tl.bfloat16 for handle in handles):
            report("bfloat16", f"{getattr(function, '__name__', function)} of bfloat16")
        return operation(builder, *operands)

    return watched
