"""Finds a model's weights in its safetensors files, and reads rows of them: a rank reads what it keeps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class OtherFiles(Exception):
    """These files are not read row by row. The message says why."""


@dataclass(frozen=True)
class StoredWeight:
    """One weight of a file, and what the file says of it.

    rows: for each row, the weights that it is put together from, where the files hold these; empty where it is one.
    """

    file: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    rows: tuple[tuple[StoredWeight, ...], ...] = ()


@dataclass
class Reader:
    """Reads rows of stored weights. bytes_read: of weights so far, which the tests count."""

    bytes_read: int = 0
    _open: dict[Path, Any] = field(default_factory=dict)
    _files: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def rows(self, stored: StoredWeight, start: int, stop: int) -> torch.Tensor:
        """Read rows from `start` up to `stop` into the host's memory, in the type of the file. Raises OSError or
        SafetensorError.
        """
        if start >= stop:
            return torch.empty((0, *stored.shape[1:]), dtype=stored.dtype)
        if stored.rows:
            joined = torch.empty((stop - start, *stored.shape[1:]), dtype=stored.dtype)
            for row, parts in zip(joined, stored.rows[start:stop], strict=True):
                for target, part in zip(row.split(parts[0].shape[0]), parts, strict=True):
                    target.copy_(self.rows(part, 0, part.shape[0]))
            return joined
        if stored.file not in self._open:
            self.close()  # one file is mapped at a time
            from safetensors import safe_open

            self._open[stored.file] = self._files.enter_context(safe_open(stored.file, framework="pt"))
        rows: torch.Tensor = self._open[stored.file].get_slice(stored.name)[start:stop]
        self.bytes_read += rows.nbytes
        return rows

    def close(self) -> None:
        self._files.close()
        self._open.clear()

    @contextlib.contextmanager
    def closing(self) -> Iterator[Reader]:
        """Close the files at the end of the block."""
        try:
            yield self
        finally:
            self.close()


def find_weights(path: str) -> dict[str, StoredWeight]:
    """Find the weights of a local directory or a hub id, which is downloaded where the cache lacks it.

    Takes the files that transformers would take. Raises OtherFiles for all that is not plain, and for what is missing.
    """
    found: dict[str, StoredWeight] = {}
    for file in _files(path):
        found |= _catalogue(file)
    return found


def _files(path: str) -> list[Path]:
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
    from transformers.utils.hub import get_checkpoint_shard_files

    def find(name: str) -> str | None:
        return cached_file(
            path, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )

    try:
        if find("adapter_config.json") is not None:
            raise OtherFiles("it is an adapter")
        if (single := find(SAFE_WEIGHTS_NAME)) is not None:
            return [Path(single)]
        if (index := find(SAFE_WEIGHTS_INDEX_NAME)) is None:
            raise OtherFiles(f"it has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}")
        files, _ = get_checkpoint_shard_files(path, index)
        return [Path(file) for file in files]
    except OtherFiles:
        raise
    except Exception as error:  # a damaged index, a hub that does not answer: loading it whole says what it is
        raise OtherFiles(f"its files are not found ({type(error).__name__})") from error


def _catalogue(file: Path) -> Mapping[str, StoredWeight]:
    from safetensors import SafetensorError, safe_open

    found: dict[str, StoredWeight] = {}
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                part = tensors.get_slice(name)
                dtype, shape = part.get_dtype(), tuple(part.get_shape())
                if dtype not in DTYPES:
                    raise OtherFiles(f"{name} is of the type {dtype}")
                found[name] = StoredWeight(file, name, DTYPES[dtype], shape)
    except (OSError, SafetensorError) as error:
        raise OtherFiles(f"{file.name} cannot be read") from error
    return found
