"""The native library's sweeps over logits, as functions of tensors: the same two as in row_sweeps.py."""

import ctypes
from ctypes import c_char_p, c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

ELEMENTS = {torch.float32: 0, torch.bfloat16: 1}  # fastflow_element in csrc/cpu/row_pass.h


class RowInputs(ctypes.Structure):
    """fastflow_row_inputs of csrc/cpu/row_pass.h."""

    _fields_ = [(name, c_void_p) for name in ("reference", "target", "constant", "slope")]


class RowOutputs(ctypes.Structure):
    """fastflow_row_outputs of csrc/cpu/row_pass.h."""

    _fields_ = [(name, c_void_p) for name in ("sum_of_others", "target_logit", "weighted_sum", "logit_sum")]


class NativeRowPass:
    """Runs on torch.get_num_threads() threads. Autograd sees nothing of it."""

    def __init__(self, shared: ctypes.CDLL) -> None:
        shared.fastflow_instruction_set.argtypes = ()
        shared.fastflow_instruction_set.restype = c_char_p
        matrix = (c_void_p, c_int, c_int64, c_int64, c_int64)  # data, element, rows, columns, row stride
        shared.fastflow_row_maximum.argtypes = (*matrix, c_void_p, c_void_p, c_int)
        shared.fastflow_row_maximum.restype = None
        inputs, outputs = ctypes.POINTER(RowInputs), ctypes.POINTER(RowOutputs)
        shared.fastflow_row_exponentials.argtypes = (
            *matrix, c_void_p, c_float, c_float, c_int, inputs, outputs, c_int
        )  # fmt: skip
        shared.fastflow_row_exponentials.restype = None
        self._shared = shared

    @property
    def instruction_set(self) -> str:
        """avx512, avx2, neon or portable: what this processor runs."""
        return self._shared.fastflow_instruction_set().decode()

    def row_maximum(self, logits: Tensor, bias: Tensor | None) -> Tensor:
        """(R,) float32, largest logit + bias of each row; NaN where there is one, -inf where C is 0.

        logits: (R, C) on the CPU, float32 or bfloat16, the last dimension contiguous. bias: (C,) or None.

        Raises:
            ValueError: tensors of another kind or shape.
        """
        bias = _bias(bias, logits)
        maximum = logits.new_empty(logits.shape[0], dtype=torch.float32)
        self._shared.fastflow_row_maximum(*_matrix(logits), _pointer(bias), maximum.data_ptr(), torch.get_num_threads())
        return maximum

    def row_exponentials_(
        self,
        logits: Tensor,
        bias: Tensor | None,
        *,
        softcap: float | None,
        scale: float,
        reference: Tensor,
        columns: Tensor,
        store: bool,
        with_moments: bool = False,
        affine: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """Sums of exp((z - reference) * scale) over the columns other than the target's, and the targets' z.

        z = cap(logits + bias), where cap(x) = softcap * tanh(x / softcap), or x for None.

        logits: (R, C) on the CPU, float32 or bfloat16, the last dimension contiguous. bias: (C,) or None. reference:
        (R,), at least the row's largest z up to rounding. columns: (R,), the targets'; one outside of [0, C) is in
        another part of the vocabulary.

        Returns sum_of_others (R,) and target_logit (R,), 0 where the target is not here; both float32. With `store`
        the logits become exp((z - reference) * scale) times the soft-cap's slope, 0 at the target; without, they stay.

        with_moments: returns two more, sums of exponential times exponent (z - reference) * scale over the columns
        other than the target's, and sums of z over all columns, (R,) float32 each. affine: (constant, slope), (R,)
        each; what is stored is multiplied by constant + slope * exponent.

        Raises:
            ValueError: tensors of another kind or shape.
        """
        bias = _bias(bias, logits)
        reference = _vector("reference", reference, logits.shape[0], torch.float32)
        columns = _vector("columns", columns, logits.shape[0], torch.int64)
        tilt = () if affine is None else (_vector("affine", part, logits.shape[0], torch.float32) for part in affine)
        inputs = (reference, columns, *tilt)
        outputs: tuple[Tensor, ...] = (torch.empty_like(reference), torch.zeros_like(reference))
        outputs += tuple(torch.empty_like(reference) for _ in range(2 if with_moments else 0))
        self._shared.fastflow_row_exponentials(
            *_matrix(logits), _pointer(bias), scale, softcap or 0.0, store,
            RowInputs(*map(_pointer, inputs)), RowOutputs(*map(_pointer, outputs)), torch.get_num_threads(),
        )  # fmt: skip
        return outputs


def _matrix(logits: Tensor) -> tuple[int, int, int, int, int]:
    rows, columns = logits.shape
    if logits.device.type != "cpu" or logits.dtype not in ELEMENTS or (columns > 1 and logits.stride(1) != 1):
        kind = f"{logits.dtype} on {logits.device} with strides {logits.stride()}"
        raise ValueError(
            f"logits must be float32 or bfloat16 on the CPU, contiguous along the last dimension; got {kind}."
        )
    return logits.data_ptr(), ELEMENTS[logits.dtype], rows, columns, logits.stride(0)


def _bias(bias: Tensor | None, logits: Tensor) -> Tensor | None:
    return None if bias is None else _vector("bias", bias, logits.shape[1], torch.float32)


def _vector(name: str, values: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """As the library reads it, which takes the length on trust."""
    if values.shape != (length,) or values.device.type != "cpu":
        raise ValueError(f"{name} must be ({length},) on the CPU, got {tuple(values.shape)} on {values.device}.")
    return values.to(dtype).contiguous()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
