"""The CUDA library's pass over rows of logits, called with tensors; csrc/cuda/row_pass.cu has its contract."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from fastflow_kernels.head import Head

ENTRY_TYPES = {torch.float32: 1, torch.bfloat16: 2}  # 0 for nothing
SIGNATURE: tuple[Any, ...] = (
    *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_int),  # products, their stride and type
    *[ctypes.c_void_p] * 5,  # bias, targets, target_logit, reference, total
    *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_int),  # exponentials, their stride and type
    *(ctypes.c_int64, ctypes.c_int64),  # R, V
    *[ctypes.c_float] * 3,  # temperature, soft-cap, absent
    ctypes.c_void_p,  # stream
)


class CudaRowPass:
    """Same contract as triton/row.py's row_pass, to a few roundings of float32."""

    def __init__(self, library: ctypes.CDLL):
        self._launch = library.fastflow_cuda_row_pass
        self._launch.argtypes, self._launch.restype = SIGNATURE, ctypes.c_int
        self._words_for = library.fastflow_cuda_error
        self._words_for.argtypes, self._words_for.restype = (ctypes.c_int,), ctypes.c_char_p

    def __call__(
        self,
        logits: Tensor,
        head: Head,
        targets: Tensor,
        exponentials: Tensor | None,
        target_logit: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(target_logit, reference, total), each (R,) float32, nats; fills `exponentials` (R, V), which may be
        `logits`.

        On the current device and its current stream. logits: (R, V) float32 or bfloat16, hidden @ weight^T alone.
        targets: (R,) int64. exponentials: float32 or bfloat16, and bfloat16 for logits of that type. target_logit: (R,)
        float32, nats, where the caller has it more exactly than `logits`: it is handed back as it is.

        Raises:
            RuntimeError: CUDA refused the launch.
        """
        row_count, vocabulary = logits.shape
        own, reference, total = (logits.new_empty(row_count, dtype=torch.float32) for _ in range(3))
        targets = targets.contiguous()
        stored: tuple[int | None, int, int] = (None, 0, 0)
        if exponentials is not None:
            stored = exponentials.data_ptr(), exponentials.stride(0), ENTRY_TYPES[exponentials.dtype]
        error = self._launch(
            logits.data_ptr(),
            logits.stride(0),
            ENTRY_TYPES[logits.dtype],
            None if head.bias is None else head.bias.data_ptr(),
            targets.data_ptr(),
            own.data_ptr() if target_logit is None else None,
            reference.data_ptr(),
            total.data_ptr(),
            *stored,
            row_count,
            vocabulary,
            head.temperature,
            head.softcap or 0.0,
            head.absent_logit,
            torch.cuda.current_stream(logits.device).cuda_stream,
        )
        if error:
            raise RuntimeError(f"fastflow's CUDA row pass was not launched: {self._words_for(error).decode()}.")
        return own if target_logit is None else target_logit, reference, total
