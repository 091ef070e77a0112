"""Finds the policy's weights in policy/ and adapter/ of a save, where transformers and peft have names of their own."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastflow.models.weights.expert_names import Part, parts_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class SavedWeights:
    """The files of policy/ and adapter/, open within a `with` block. config: the policy's."""

    def __init__(self, directory: Path, config: PretrainedConfig):
        self._directory, self._config = directory, config
        self._files: dict[str, Any] = {}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> SavedWeights:
        from safetensors import safe_open

        for file in (*self._directory.glob("policy/*.safetensors"), *self._directory.glob("adapter/*.safetensors")):
            tensors = self._open.enter_context(safe_open(file, "pt"))
            self._files |= dict.fromkeys(tensors.keys(), tensors)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def find(self, name: str, shape: torch.Size) -> list[Part] | None:
        """Return what the files hold in place of a parameter; None where that is not all of it."""
        for exported in (name, name.replace(".default.", ".")):
            parts = parts_of(self._config, exported, shape)
            if all(part.name in self._files for part in parts):
                return parts
        return None

    def read(self, part: Part) -> torch.Tensor:
        tensor: torch.Tensor = self._files[part.name].get_tensor(part.name)
        return tensor

    def join(self, parts: list[Part], like: torch.Tensor) -> torch.Tensor:
        """Read a whole parameter. Raises ValueError where it is not of the shape and type of `like`."""
        joined = torch.empty(like.shape, dtype=like.dtype) if len(parts) > 1 else None
        for part in parts:
            tensor = self.read(part)
            if (tensor.dtype, tensor.shape) != (like.dtype, part.shape):
                raise ValueError(f"{part.name} is {tensor.dtype} {tuple(tensor.shape)}, not {like.dtype} here")
            if joined is None:
                return tensor.view(like.shape)
            part.of(joined).copy_(tensor)
        assert joined is not None
        return joined
