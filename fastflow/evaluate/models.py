"""What is evaluated: a model from a directory, a hub id, a run of `fastflow train`, or adapters; and its digest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fastflow.config.schema import ModelConfig
from fastflow.errors import FastflowError, message_of, need
from fastflow.models.layers.rope import context_of
from fastflow.models.opening import prepare_layers, resolve_device
from fastflow.models.packed import PackedModel
from fastflow.models.self_check import check_head
from fastflow.models.tokenizer import load_tokenizer
from fastflow.models.vocabulary import check_tokenizer_fits
from fastflow.models.weights.loading import load_causal_lm, read_config
from fastflow.models.weights.merging import scale_adapters
from fastflow.run.directory import CONFIG_FILE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ADAPTER_FILE = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_READ = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py")


@dataclass(frozen=True)
class ModelSource:
    """One model. name: as it was given. path: weights and tokenizer. adapter: a peft directory, where there is one.

    scale: factor of what the adapters add, where it is not as they were trained.
    """

    name: str
    path: str
    adapter: str | None = None
    scale: float | None = None

    @property
    def label(self) -> str:
        """A name that a file may have."""
        kept = "".join(character if character.isalnum() or character in "-_." else "-" for character in self.name)
        return kept.strip("-.") or "model"


def find_model(name: str) -> ModelSource:
    """The model behind a name. Raises FastflowError for runs without policy, adapters without base or weights."""
    directory = Path(name)
    if (directory / CONFIG_FILE).is_file():
        if not (directory / "policy").is_dir():
            raise FastflowError(f"the run {name} has saved no policy yet; give a model, or wait for run.save_every")
        return ModelSource(name, str(directory / "policy"))
    if (directory / _ADAPTER_FILE).is_file():
        base = _base_of(directory / _ADAPTER_FILE)
        if not (directory / _ADAPTER_WEIGHTS).is_file():
            raise FastflowError(
                f"the adapters {name} have no {_ADAPTER_WEIGHTS}; save them with peft's save_pretrained, which writes "
                "it (fastflow reads no pickles, such as adapter_model.bin)"
            )
        return ModelSource(name, base, name)
    return ModelSource(name, name)


def _base_of(file: Path) -> str:
    """The model that adapters were trained on."""
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise FastflowError(f"{file} cannot be read as JSON ({error}); copy the adapters again") from error
    if not isinstance(base, str) or not base:
        raise FastflowError(
            f"{file} names no base_model_name_or_path; write there the directory or hub id of the model that the "
            "adapters were trained on"
        )
    if base.startswith(("/", ".")) and not Path(base).is_dir():
        raise FastflowError(
            f"the adapters {file.parent} belong to {base}, which does not exist; write the base's place into {file}, "
            "base_model_name_or_path"
        )
    return base


def digest(source: ModelSource, settings: ModelConfig) -> str:
    """What identifies the weights and the tokenizer: of files their content, of a hub id its revision."""
    parts = []
    for place in filter(None, (source.path, source.adapter)):
        if Path(place).is_dir():
            parts.append(_content(Path(place)))
        else:
            config = read_config(place, trust_remote_code=settings.trust_remote_code)
            parts.append(f"{place}@{getattr(config, '_commit_hash', None)}")
    if source.scale is not None:
        parts.append(f"scale {source.scale!r}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def load(source: ModelSource, settings: ModelConfig) -> tuple[PackedModel, PreTrainedTokenizerBase]:
    """The model on its device, in evaluation mode, and its tokenizer."""
    settings = replace(settings, path=source.path)
    tokenizer = load_tokenizer(settings)
    device = resolve_device(settings.device)
    model: Any = load_causal_lm(source.path, settings)
    model.to(device)
    layers = prepare_layers(model, settings)
    if source.adapter is not None:
        peft = need("peft", extra="lora", purpose=f"the adapters {source.adapter}")
        try:
            model = peft.PeftModel.from_pretrained(model, source.adapter)
        except Exception as error:  # a damaged file, adapters of another model
            raise FastflowError(
                f"cannot load the adapters {source.adapter} on {source.path}: {message_of(error)}"
            ) from error
        if source.scale is not None:
            scale_adapters(model, source.scale)
    model.requires_grad_(False).eval()
    packed = PackedModel(model, autocast=settings.autocast, residual_stream=settings.residual_stream, layers=layers)
    check_tokenizer_fits(tokenizer, packed, settings)
    if settings.trust_remote_code:  # its code may scale or cap the logits
        context = context_of(packed.causal_lm.config)
        check_head(packed, longest=96 if context is None else context, name=source.name)
    return packed, tokenizer


def _content(directory: Path) -> str:
    total = hashlib.sha256()
    for file in sorted({file for pattern in _READ for file in directory.glob(pattern)}):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256") if hasattr(hashlib, "file_digest") else _slow_digest(stream)
        total.update(f"{file.name} {content.hexdigest()}\n".encode())
    return total.hexdigest()


def _slow_digest(stream: BinaryIO) -> Any:  # Python 3.10
    content = hashlib.sha256()
    while block := stream.read(2**20):
        content.update(block)
    return content
