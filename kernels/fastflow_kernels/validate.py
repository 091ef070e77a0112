"""Checks the arguments of both ops: every error says what was wrong, what was given, and what to do.

Nothing here waits for a CUDA device. One check would, that targets lie within the vocabulary: it is made on the CPU
only. On CUDA an out-of-range target makes its log-prob nan, and all gradients through it. Checks of shapes and types
also run when torch.compile traces a call. Checks of values (check_target_range, check_boundaries) run inside the
operators, when they are executed.
"""

import difflib
import itertools
import math
from collections.abc import Sequence
from numbers import Rational, Real
from typing import Any, cast

import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch.autograd import forward_ad

from fastflow_kernels.head import factors_of
from fastflow_kernels.matmul import accumulator_dtype, factor_dtype
from fastflow_kernels.shard import VocabularyShard

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int32, torch.int64)


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
    """Check what describes a head, and return it as the keyword arguments of either operator.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or range.
    """
    check_head(hidden, weight, targets, bias)
    check_logit_options(temperature, softcap, vocabulary, weight)
    check_count("block_rows", block_rows)
    check_count("block_bytes", block_bytes)
    return {
        "hidden": hidden,
        "weight": weight,
        "bias": bias,
        "targets": targets,
        "factors": factors_of(weight, factor_dtype(hidden, weight), vocabulary),
        "softcap": None if softcap is None else float(softcap),
        "block_rows": block_rows,
        "block_bytes": block_bytes,
        "shard_start": 0 if shard is None else shard.start,
        "shard_group": None if shard is None else shard.group.group_name,
        "shard_largest": None if shard is None else shard.largest,
    }


def host_numbers(*numbers: float) -> Tensor:
    """Return checked numbers as the operators take them: (n,) float64 on the CPU.

    As floats of a schema they would compile a graph anew for each value. A compiler keeps them open in products, and
    not in torch.tensor.
    """
    if torch.compiler.is_compiling():
        one = torch.ones((), dtype=torch.float64, device="cpu")
        return torch.stack([one * float(number) for number in numbers])
    return torch.tensor([float(number) for number in numbers], dtype=torch.float64, device="cpu")


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def check_tensor(name: str, value: object, shape: tuple[int, ...], dtypes: Sequence[torch.dtype], like: Tensor) -> None:
    """Refuse all but a tensor of this shape, of one of these types, on the device of `like`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor of shape {shape}, got {type(value).__name__}; pass a torch.Tensor.")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must have shape {shape} to match the others, got {_shape(value)}; reshape it.")
    if value.dtype not in dtypes:
        names = ", ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{name} must be one of {names}, got {value.dtype}; convert it.")
    if value.device != like.device:
        raise ValueError(f"{name} is on {value.device} but hidden is on {like.device}; move them to one device.")


def check_head(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> None:
    """Check hidden (N, D), weight (V, D), targets (N,) and bias (V,) or None; float64 goes with float64 only."""
    for name, value in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if hasattr(value, "device_mesh"):  # a DTensor, whose module is slow to import
            raise TypeError(
                f"{name} is a DTensor, of which this rank holds a part; call the op in the forward pass of the module "
                f"that FSDP wraps, pass {name}.full_tensor(), or {name}.to_local() with a VocabularyShard."
            )
    for name, value in (("hidden", hidden), ("weight", weight)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a 2-D tensor, got {type(value).__name__}; pass a torch.Tensor.")
        if value.dim() != 2:
            raise ValueError(f"{name} must be 2-D, got shape {_shape(value)}; select the response rows first.")
        if value.dtype not in FLOATS:
            raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {value.dtype}; convert it.")
    if hidden.shape[1] != weight.shape[1] or 0 in weight.shape:
        raise ValueError(
            f"hidden (N, D) and weight (V, D) must share D, with V and D at least 1, got {_shape(hidden)} "
            f"and {_shape(weight)}; pass the head weight with one row per vocabulary entry."
        )
    dtypes = FLOATS[:1] if hidden.dtype == torch.float64 else FLOATS[1:]
    check_tensor("weight", weight, tuple(weight.shape), dtypes, like=hidden)
    if bias is not None:
        check_tensor("bias", bias, (weight.shape[0],), dtypes, like=hidden)
    check_tensor("targets", targets, (hidden.shape[0],), INTEGERS, like=hidden)
    _refuse_transforms(hidden, weight, bias)


def _refuse_transforms(*tensors: Tensor | None) -> None:
    """Refuse forward-mode differentiation, which the operators would answer with zeros, and all that torch.func has."""
    if torch.compiler.is_compiling():
        return
    if forward_ad._current_level >= 0 and any(
        tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    ):
        raise RuntimeError(
            "the ops have no forward-mode derivative (torch.func.jvp, forward_ad); use fastflow_kernels.reference, "
            "which has it, or a backward pass."
        )
    if torch.is_grad_enabled() and any(tensor is not None and _is_differentiated(tensor) for tensor in tensors):
        raise RuntimeError(
            "the ops cannot be differentiated by torch.func (grad, vjp, jacrev), for which torch takes no rule of a "
            "registered operator; call torch.autograd.grad or backward on their result, or use "
            "fastflow_kernels.reference, which torch.func takes."
        )


def _is_differentiated(tensor: Tensor) -> bool:
    """Tell whether torch.func.grad, vjp or jacrev wants a gradient of the tensor, under vmap or not."""
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_gradtrackingtensor(tensor) and tensor.requires_grad:
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


def check_accumulate_into(value: object, weight: Tensor, factor_dtype: torch.dtype) -> None:
    """Refuse all but a contiguous tensor like the weight, in the type of sums, to which a gradient can be added."""
    if hasattr(value, "device_mesh"):  # a DTensor, whose module is slow to import
        raise TypeError(
            "accumulate_into is a DTensor, of which this rank holds a part; pass a tensor for the whole weight, and "
            "reduce it over the ranks afterwards, or leave accumulate_into out."
        )
    check_tensor("accumulate_into", value, tuple(weight.shape), (accumulator_dtype(factor_dtype),), like=weight)
    total = cast(Tensor, value)
    if not total.is_contiguous():
        raise ValueError(
            f"accumulate_into must be contiguous, got strides {tuple(total.stride())}; pass one that is, such as "
            "torch.zeros(weight.shape)."
        )
    if total.requires_grad:
        raise ValueError(
            "accumulate_into requires grad, but it is changed in place; pass weight.grad or a plain tensor."
        )
    if torch.is_grad_enabled() and not weight.requires_grad:
        raise ValueError(
            "accumulate_into was given, but weight does not require grad, so that there is nothing to add; "
            "leave accumulate_into out, or call weight.requires_grad_()."
        )


def check_logit_options(temperature: object, softcap: object, vocabulary: object, weight: Tensor) -> None:
    check_positive("temperature", temperature)
    if softcap is not None:
        check_positive("softcap", softcap)
    if vocabulary is None:
        return
    if isinstance(vocabulary, bool) or not isinstance(vocabulary, int):
        raise TypeError(f"vocabulary must be a whole number or None, got {type(vocabulary).__name__}; pass an int.")
    if not 1 <= vocabulary <= weight.shape[0]:
        raise ValueError(
            f"vocabulary must be from 1 to the {weight.shape[0]} rows of the weight, got {vocabulary}; "
            "pass the tokenizer's size, or leave it out."
        )


def check_target_range(targets: Tensor, vocabulary: int, shard: VocabularyShard | None) -> None:
    """Refuse targets outside of [0, vocabulary); ask on the CPU only, and of a whole head only."""
    if targets.device.type != "cpu" or not targets.numel() or shard is not None:
        return
    low, high = (int(bound) for bound in torch.aminmax(targets))
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"targets must lie in [0, {vocabulary}), got values from {low} to {high}; "
            "drop the rows that have no target (such as -100) before the call."
        )


def check_cu_seqlens(cu_seqlens: Tensor, device_cu_seqlens: Tensor | None, like: Tensor) -> None:
    """Check that both are integers of shape (S+1,), and the second, where there is one, on the device of `like`."""
    if not isinstance(cu_seqlens, Tensor):
        raise TypeError(f"cu_seqlens must be a tensor of row offsets, got {type(cu_seqlens).__name__}; pass one.")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(f"cu_seqlens must have shape (S+1,), got {_shape(cu_seqlens)}; pass S+1 row offsets.")
    if cu_seqlens.dtype not in INTEGERS:
        raise TypeError(f"cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}; convert it.")
    if device_cu_seqlens is not None:
        check_tensor("device_cu_seqlens", device_cu_seqlens, tuple(cu_seqlens.shape), INTEGERS, like=like)


def check_captured_offsets(cu_seqlens: Tensor, device_cu_seqlens: Tensor | None) -> None:
    """Demand offsets on host and device in a CUDA graph, so that nothing is copied while it is captured."""
    captured = "flow_loss is being captured in a CUDA graph, where the host can"
    if cu_seqlens.is_cuda:
        raise RuntimeError(
            f"{captured}not read cu_seqlens from {cu_seqlens.device}; pass it on the CPU, and the same offsets on the "
            "device as device_cu_seqlens."
        )
    if device_cu_seqlens is None:
        raise RuntimeError(
            f"{captured}not copy cu_seqlens to the device; pass the same offsets, copied there before the capture, "
            "as device_cu_seqlens."
        )


def check_boundaries(cu_seqlens: Tensor, row_count: int) -> list[int]:
    """Return the row offsets as a host list; they go from 0 to N and never fall."""
    boundaries = cu_seqlens.tolist()
    if boundaries[0] != 0 or boundaries[-1] != row_count:
        raise ValueError(
            f"cu_seqlens must start at 0 and end at the number of rows {row_count}, got {boundaries[0]} "
            f"to {boundaries[-1]}; count response rows only, those of hidden."
        )
    for sequence, (start, stop) in enumerate(itertools.pairwise(boundaries)):
        if stop < start:
            raise ValueError(
                f"cu_seqlens must not decrease, got {start} then {stop} at sequence {sequence}; "
                "pass cumulative lengths."
            )
    return boundaries


def check_sequence_tensors(sequence_count: int, like: Tensor, *, log_z: Tensor, **constants: Tensor) -> None:
    """Check (S,) float tensors. Gradient flows to log_z only, so the others must not ask for any."""
    check_tensor("log_z", log_z, (sequence_count,), FLOATS, like=like)
    for name, value in constants.items():
        check_tensor(name, value, (sequence_count,), FLOATS, like=like)
        if value.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires grad, but flow_loss gives gradients to hidden, weight, bias and log_z "
                f"only; pass {name}.detach()."
            )
    _refuse_transforms(log_z, *constants.values())


def check_number(name: str, value: object, rule: str, low: float, high: float) -> None:
    """Refuse all but a number with low <= value <= high; `rule` says so in words."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number {rule}, got {type(value).__name__}; pass a Python float.")
    # NumPy would round the bounds to a float32 beside them, to 0 and inf
    exact = value if isinstance(value, float | Rational) else float(value)
    if not low <= cast(float, exact) <= high:  # false for nan, too
        raise ValueError(f"{name} must be a number {rule}, got {value}; choose one that is.")


def check_positive(name: str, value: object) -> None:
    check_number(name, value, "above 0 and finite", math.ulp(0.0), math.nextafter(math.inf, 0.0))


def check_clip(clip_low: object, clip_high: object) -> None:
    check_number("clip_low", clip_low, "from 0 to 1", 0.0, 1.0)
    check_number("clip_high", clip_high, "at or above 0 (math.inf for no bound)", 0.0, math.inf)


def check_name(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.0)[0]
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}; did you mean {near!r}?")


def check_count(name: str, value: object) -> None:
    """Refuse all but a whole number above 0, and None for the default."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number or None, got {type(value).__name__}; pass an int.")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}; leave it out for the default.")
