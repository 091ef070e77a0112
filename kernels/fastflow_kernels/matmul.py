"""Multiplies the three matrix products around a block of logits, and decides the types they multiply in.

By the type of the inputs:

    float64             float64
    float32             float32
    bfloat16 on CUDA    bfloat16 factors, float32 accumulators and results (tensor cores). Logits that a projector keeps
                        as the library multiplied them are rounded once, on their way into its block
    bfloat16 on a CPU   bfloat16 factors where the CPU multiplies them (AVX-512 BF16, AMX); torch's CPU products
                        have no wider result, so one product rounds its entries once, as an eager head's does.
                        Sums of products stay in float32. On other CPUs float32: the head is upcast, once a call
                        (4 V D bytes while the call runs)
    float16 on CUDA     float16 factors for the logits, float32 accumulators and results (tensor cores). The gradient's
                        two products in bfloat16: float16 keeps no entry below 6e-8 of the largest and overflows at
                        65,504, where bfloat16 rounds every entry by 2^-9 and has float32's range, so that they need
                        no loss scale; gradients that are handed out in float16 may. A copy of the head in bfloat16
                        (2 V D bytes) stands while the call runs.
                        Only where hidden and weight are both float16, or autocast says so: other types have more
                        range, and with them it is float32
    float16 elsewhere   float32: on a CPU it is far slower, and devices before 8.0 have no bfloat16 tensor cores

float32 factors are rounded to TF32 on CUDA where torch.set_float32_matmul_precision asks for that, and on a CPU to
what torch.backends.mkldnn.matmul.fp32_precision asks for.

Which library multiplies float32 on an x86 CPU: oneDNN where the weight is the right factor of a large product, else
torch.mm (MKL). GF/s on two EPYC cores with AVX-512 at D = 1024, V = 152,000, with 128, 256 and 512 rows:

                                             MKL              oneDNN
    hidden @ weight^T                        94  109  158     162  177  171
    direction @ weight                       155 172  163     168  193  169
    direction^T @ hidden, onto a sum         177 156  155     78   115  117

Without AVX-512, MKL also takes direction @ weight. GF/s of one such core, oneDNN held to AVX2 (MKL uses no more on an
AMD processor anyway), with 64 and 512 rows at V = 32,000, and 512 at 152,000:

                                             MKL              oneDNN
    hidden @ weight^T                        44  69   64      67   79   75
    direction @ weight                       62  81   72      50   72   69
    direction^T @ hidden, onto a sum         87  88   76

A rule and not a timer at first use: what a busy machine would choose must not decide the last digits of a run.

bfloat16 products are oneDNN's in torch.mm already: 340 to 390.
"""

import functools
import platform

import torch
from torch import Tensor

ONEDNN_PRODUCTS = 2**23  # multiply-adds from which oneDNN's float32 product is the faster one, by its call's overhead
# cuBLAS may split a product with a smaller result among multiprocessors, and sums their bfloat16 parts in bfloat16.
SPLIT_ENTRIES = 2**24
PIECE_BYTES = 8 * 2**20  # of a bfloat16 product on its way into a float32 sum: it stays in the cache


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type of log-probs and gradient sums for inputs of this type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def product_dtype(factor_dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the type of the logits, before any arithmetic on them, for factors of this type."""
    return (
        torch.bfloat16 if factor_dtype == torch.bfloat16 and device.type == "cpu" else accumulator_dtype(factor_dtype)
    )


def direction_dtype(factor_dtype: torch.dtype) -> torch.dtype:
    """Return the type in which a direction is kept and multiplied, for factors of this type; not of more bytes."""
    return torch.bfloat16 if factor_dtype == torch.float16 else factor_dtype


def factor_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Return the type in which the two enter their first product, the logits, by the table above.

    `direction_dtype` has that of the other two products.

    The narrower type counts where they differ, float16 before bfloat16, and autocast's where that is on and the inputs
    are float32.
    """
    device = hidden.device.type
    dtype = min(hidden.dtype, weight.dtype, key=lambda dtype: (dtype.itemsize, dtype != torch.float16))
    autocast = _autocast_dtype(device)
    if dtype == torch.float32 and autocast is not None:
        dtype = autocast
    if dtype == torch.bfloat16 and (device == "cuda" or (device == "cpu" and cpu_multiplies_bfloat16())):
        return torch.bfloat16
    if device == "cuda" and dtype == torch.float16 and cuda_multiplies_float16(hidden.device.index):
        is_all_float16 = hidden.dtype == weight.dtype == torch.float16
        if is_all_float16 or autocast == torch.float16:
            return torch.float16
    return accumulator_dtype(dtype)


def _autocast_dtype(device: str) -> torch.dtype | None:
    """Return the type that autocast asks for; None where it is off, or where a device, such as meta, has none."""
    return torch.get_autocast_dtype(device) if _has_autocast(device) and torch.is_autocast_enabled(device) else None


@torch.compiler.assume_constant_result  # torch 2.11 cannot trace what it asks
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


@torch.compiler.assume_constant_result
def cpu_multiplies_bfloat16() -> bool:
    """Tell whether this CPU has instructions for bfloat16 products, and torch a library that uses them."""
    has_instructions = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and has_instructions and _has_avx512()


@torch.compiler.assume_constant_result
def cuda_multiplies_float16(index: int) -> bool:
    """Tell whether this CUDA device has tensor cores for float16 and bfloat16, as NVIDIA's have from 8.0 on."""
    return torch.version.hip is None and torch.cuda.get_device_capability(index) >= (8, 0)


def project(hidden: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """Return hidden (R, D) @ weight (V, D)^T, (R, V) in the product type; into `out` and in its type where given.

    out: of the product type or the factors', to which sums in float32 are rounded once.
    """
    if out is None and _is_for_onednn(hidden, weight):
        return _onednn_product(hidden, weight)
    dtype = product_dtype(hidden.dtype, hidden.device) if out is None else out.dtype
    if out is not None and _may_be_split(out):
        return out.copy_(torch.mm(hidden, weight.t(), out_dtype=torch.float32))
    if hidden.dtype == dtype:
        return torch.mm(hidden, weight.t(), out=out)
    return torch.mm(hidden, weight.t(), out_dtype=dtype, out=out)


def back_project_(total: Tensor, direction: Tensor, weight: Tensor, *, overwrite: bool) -> Tensor:
    """Add direction (R, V) @ weight (V, D) to total (R, D); with `overwrite`, replace it."""
    if _is_for_onednn(direction, weight) and _has_avx512():
        product = _onednn_product(direction, weight.t())
        return total.copy_(product) if overwrite else total.add_(product)
    return _multiply_(total, direction.to(weight.dtype), weight, overwrite=overwrite)


def accumulate_(total: Tensor, direction: Tensor, rows: Tensor, *, overwrite: bool) -> Tensor:
    """Add direction (R, V)^T @ rows (R, D) to total (V, D); with `overwrite`, replace it."""
    return _multiply_(total, direction.to(rows.dtype).t(), rows, overwrite=overwrite)


def _multiply_(total: Tensor, left: Tensor, right: Tensor, *, overwrite: bool) -> Tensor:
    """Add left @ right to total; with `overwrite`, replace it."""
    if overwrite and _may_be_split(total):
        return total.copy_(torch.mm(left, right, out_dtype=torch.float32))
    if total.dtype == right.dtype:
        return torch.addmm(total, left, right, beta=0 if overwrite else 1, out=total)
    if total.device.type != "cpu":
        if overwrite:
            return torch.mm(left, right, out_dtype=total.dtype, out=total)
        return torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    rows = max(1, PIECE_BYTES // (right.shape[1] * right.itemsize))
    for part, piece in zip(total.split(rows), left.split(rows), strict=True):
        product = torch.mm(piece, right)
        part.copy_(product) if overwrite else part.add_(product)
    return total


def _may_be_split(result: Tensor) -> bool:
    """Tell whether a library might sum parts of this product in bfloat16, the result's own type."""
    return result.dtype == torch.bfloat16 and result.device.type != "cpu" and result.numel() < SPLIT_ENTRIES


def _is_for_onednn(left: Tensor, weight: Tensor) -> bool:
    is_large = left.shape[0] * weight.numel() >= ONEDNN_PRODUCTS
    is_on = torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
    return left.dtype == torch.float32 and left.device.type == "cpu" and is_large and is_on and _has_onednn()


@functools.cache
def _has_onednn() -> bool:
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")  # elsewhere nothing was measured
    return is_x86 and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@functools.cache
def _has_avx512() -> bool:
    """As ATen sees it, which ATEN_CPU_CAPABILITY=avx2 holds to less."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _onednn_product(left: Tensor, weight: Tensor) -> Tensor:
    """left @ weight^T."""
    return torch.ops.mkldnn._linear_pointwise(left, weight, None, "none", [], "")
