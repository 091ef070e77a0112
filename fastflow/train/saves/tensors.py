"""Named tensors on the disk, by PyTorch's distributed checkpoint in safetensors: nothing of it is a pickle.

Several ranks can write and read the same layout, each its shards; today one process writes whole tensors.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

FILE_BYTES = 2**30  # of one file


def write_tensors(directory: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors of the host to a directory of their own, as files of about FILE_BYTES. Raises OSError."""
    from torch.distributed import checkpoint as dcp

    from fastflow.train.saves.tensor_files import TensorFilesWriter

    directory.mkdir()
    if not tensors:
        return
    state = {name: tensor.contiguous() for name, tensor in tensors.items()}
    writer = TensorFilesWriter(str(directory), fqn_to_index_mapping=_files_of(state))
    with _alone():
        _raising_causes(lambda: dcp.save(state, storage_writer=writer, no_dist=True))


def read_tensors(directory: Path, targets: Mapping[str, torch.Tensor]) -> None:
    """Fill tensors, of any device, in place from those of the same names. Raises KeyError or ValueError for what is
    missing or of another shape or type.
    """
    from torch.distributed import checkpoint as dcp

    found = catalogue(directory)
    for name, target in targets.items():
        if name not in found:
            raise KeyError(name)
        dtype, shape = found[name]
        if (dtype, shape) != (target.dtype, target.shape):
            raise ValueError(f"{name} is {dtype} {tuple(shape)}, not {target.dtype} {tuple(target.shape)}")
    if targets:
        reader = dcp.HuggingFaceStorageReader(str(directory))
        state = {name: target.detach() for name, target in targets.items()}
        with _alone():
            _raising_causes(lambda: dcp.load(state, storage_reader=reader, no_dist=True))


def catalogue(directory: Path) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Type and shape of every tensor in a directory's safetensors files; empty where there are none."""
    from safetensors import safe_open

    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                part = tensors.get_slice(name)
                found[name] = (_DTYPES[part.get_dtype()], torch.Size(part.get_shape()))
    return found


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of the host are equal to the bit, with 0 and -0 and all kinds of NaN told apart."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(_bytes_of(one), _bytes_of(other))


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.contiguous().reshape(-1)
    whole = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[flat.element_size()]
    return flat.view(whole)


def _files_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Number of the file that each tensor goes to, from 1."""
    places, number, size = {}, 1, 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > FILE_BYTES:
            number, size = number + 1, 0
        places[name] = number
        size += tensor.nbytes
    return places


def _raising_causes(act: Callable[[], object]) -> None:
    """Raise what went wrong on this rank, a full disk for example, instead of its report to the others."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        act()
    except CheckpointException as error:
        cause, *_ = error.failures.values()
        raise cause[0] from error


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Without the remark that there is one process only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
