"""The CUDA library's pass over rows of logits, called with tensors; csrc/cuda/row_pass.cu has its contract."""

import ctypes

import torch
from torch import Tensor

from fastflow_kernels.head import Head

STORE_TYPES = {torch.float32: 1, torch.bfloat16: 2}  # 0 for nothing
SIGNATURE = (
    *(ctypes.c_void_p, ctypes.c_int64),  # products, their stride
    *[ctypes.c_void_p] * 5,  # bias, targets, target_logit, reference, total
    *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_int),  # exponentials, their stride and type
    *(ctypes.c_int64, ctypes.c_int64),  # R, V
    *[ctypes.c_float] * 3,  # temperature, soft-cap, absent
    ctypes.c_void_p,  # stream
)


class CudaRowPass:
    """Same contract as gpu/row.py's row_pass, to a few roundings of float32."""

    def __init__(self, library: ctypes.CDLL):
        self._launch = library.fastflow_cuda_row_pass
        self._launch.argtypes, self._launch.restype = SIGNATURE, ctypes.c_int
        self._words_for = library.fastflow_cuda_error
        self._words_for.argtypes, self._words_for.restype = (ctypes.c_int,), ctypes.c_char_p

    def __call__(
        self, logits: Tensor, head: Head, targets: Tensor, exponentials: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(target_logit, reference, total), each (R,) float32; fills `exponentials` (R, V), which may be `logits`.

        On the current device and its current stream. logits: (R, V) float32, hidden @ weight^T alone. targets: (R,)
        int64. exponentials: float32 or bfloat16.

        Raises:
            RuntimeError: CUDA refused the launch.
        """
        row_count, vocabulary = logits.shape
        outputs = tuple(torch.empty(row_count, dtype=torch.float32, device=logits.device) for _ in range(3))
        targets = targets.contiguous()
        has_store = exponentials is not None
        error = self._launch(
            logits.data_ptr(),
            logits.stride(0),
            None if head.bias is None else head.bias.data_ptr(),
            targets.data_ptr(),
            *(output.data_ptr() for output in outputs),
            exponentials.data_ptr() if has_store else None,
            exponentials.stride(0) if has_store else 0,
            STORE_TYPES[exponentials.dtype] if has_store else 0,
            row_count,
            vocabulary,
            head.temperature,
            head.softcap or 0.0,
            head.absent_logit,
            torch.cuda.current_stream(logits.device).cuda_stream,
        )
        if error:
            raise RuntimeError(f"fastflow's CUDA row pass was not launched: {self._words_for(error).decode()}.")
        return outputs
