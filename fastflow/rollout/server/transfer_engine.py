"""Load the safetensors files that the trainer names, through vLLM's own loader: vLLM's side of a weight load.

It runs in vLLM's workers with `--weight-transfer-config '{"backend": "fastflow"}'`. The trainer announces a folder
once. An update is a start, one call per file, and a finish, which fails where a parameter got no weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from fastflow.rollout.vllm.packed_experts import pack_experts

TIED_HEAD = "lm_head.weight"


@dataclass
class Folder(WeightTransferInitInfo):
    """folder: the only place from which files are read."""

    folder: str


@dataclass
class File(WeightTransferUpdateInfo):
    """file: a safetensors file with weights under transformers' names."""

    file: str


class FileTransferEngine(WeightTransferEngine[Folder, File]):
    """Loads safetensors files in place. Its errors are ValueErrors whose text begins with "fastflow:"."""

    init_info_cls = Folder
    update_info_cls = File
    supports_draft_weight_update = False

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._folder: Path | None = None
        self._wanted: set[str] = set()
        self._updating = False

    def init_transfer_engine(self, init_info: Folder) -> None:
        folder = Path(init_info.folder)
        if not folder.is_absolute() or not folder.is_dir():
            raise ValueError(f"fastflow: this server sees no directory {init_info.folder}")
        self._folder = folder.resolve()

    def start_weight_update(self) -> None:
        if self._updating:
            self._end()  # an earlier trainer left its update unfinished, and its weights must not count
        initialize_layerwise_reload(self.model)
        self._updating = True
        self._wanted = {name for name, _ in self.model.named_parameters()}
        if self._is_tied():
            self._wanted.discard(TIED_HEAD)

    def receive_weights(self, update_info: File) -> None:
        try:
            loaded = self.model.load_weights(_tensors(self._allowed(update_info.file)))
            self._wanted = self._wanted - loaded if loaded is not None else set()  # None: this model does not say
        except BaseException:
            self._end()  # otherwise the model would have no tensors
            raise

    def finish_weight_update(self) -> None:
        self._end()
        if self.device.type == "cpu" and not any(".experts." in name for name in self._wanted):
            pack_experts(self.model)  # those that were not loaded are packed already
        if self._wanted and self.model_config.quantization is None:
            raise ValueError(
                f"fastflow: {len(self._wanted)} of the model's parameters got no weights (first: {min(self._wanted)})"
            )

    def shutdown(self) -> None:
        """Release nothing: it holds nothing between updates."""

    def _end(self) -> None:
        if not self._updating:
            return
        self._updating = False
        finalize_layerwise_reload(self.model, self.model_config)
        head = getattr(self.model, "lm_head", None)
        if self.device.type == "cpu" and self._is_tied() and head is not None and hasattr(head, "quant_method"):
            # On a CPU the head computes with a packed copy, which loading the embedding does not change.
            head.quant_method.process_weights_after_loading(head)

    def _is_tied(self) -> bool:
        return bool(getattr(self.model_config.hf_text_config, "tie_word_embeddings", False))

    def _allowed(self, name: str) -> Path:
        if self._folder is None:
            raise ValueError("fastflow: no folder was announced before the first file")
        path = Path(name).resolve()
        if not path.is_relative_to(self._folder) or path.suffix != ".safetensors":
            raise ValueError(f"fastflow: {name!r} is no safetensors file under {self._folder}")
        if not path.is_file():
            raise ValueError(f"fastflow: this server sees no file {path}")
        return path


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (safe_open is no dictionary)
            yield name, file.get_tensor(name)
