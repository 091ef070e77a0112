"""What a model's files say that fastflow refuses: quantised weights, pickles, a tie that is none."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastflow.errors import FastflowError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

HEAD = "lm_head.weight"
EMBEDDING = "embed_tokens.weight"
CONVERT = (
    "import sys, transformers; "
    'transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto").save_pretrained(sys.argv[1])'
)


def check_files(path: str) -> None:
    """Raise FastflowError for a local directory whose weights are quantised or pickles. Reads no weights; a path that
    is no local directory is left to whoever loads it."""
    directory = Path(path)
    if not directory.is_dir():
        return
    check_quantisation(path, _config_entry(directory, "quantization_config"))
    pickles = sorted(file.name for file in directory.glob("pytorch_model*.bin"))
    if pickles and not any(directory.glob("*.safetensors")):
        raise FastflowError(
            f"cannot load the model {path}: its weights are pickles ({pickles[0]}), which can run any code when they "
            "are read, so that fastflow takes safetensors only; if you trust their source, convert them with python -c "
            f"{shlex.quote(CONVERT)} {shlex.quote(path)}"
        )


def check_quantisation(path: str, settings: Any) -> None:
    """Raise FastflowError where a configuration has a quantization_config."""
    if not settings:
        return
    raise FastflowError(
        f"{path} holds quantised weights ({_method(settings)}, the quantization_config of its config.json), which can "
        "be neither trained nor scored exactly; take the model that it was made from, in float32, bfloat16 or float16 "
        "(to save memory: lora.rank and model.dtype = bfloat16)"
    )


def check_tie(path: str, config: PretrainedConfig) -> None:
    """Raise FastflowError where tie_word_embeddings contradicts the weights of a loaded model's files."""
    files = {name: file for file in _weight_files(path) for name in _names(file)}
    embedding = next((name for name in files if name.endswith(EMBEDDING)), None)
    if embedding is None:
        return
    if not config.tie_word_embeddings and HEAD not in files:
        raise FastflowError(
            f"the config.json of {path} says tie_word_embeddings = false, but its weights have no {HEAD}; set it to "
            f"true if the head is meant to be the embedding ({embedding}), or add the missing weight"
        )
    if config.tie_word_embeddings and HEAD in files:
        head, rows = _read(files[HEAD], HEAD), _read(files[embedding], embedding)
        if not _same(head, rows):
            raise FastflowError(
                f"the config.json of {path} says tie_word_embeddings = true, but its weights have a {HEAD} that "
                f"differs from {embedding}; set it to false if the checkpoint is right, or remove {HEAD} from it"
            )


def _config_entry(directory: Path, name: str) -> Any:
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # whoever loads the model says so
    return config.get(name) if isinstance(config, dict) else None


def _method(settings: Any) -> str:
    """What a quantization_config calls its method, in a word or two."""
    entries = settings if isinstance(settings, dict) else getattr(settings, "__dict__", {})
    method = entries.get("quant_method") or next(
        (f"bitsandbytes, {bits} bits" for bits in (4, 8) if entries.get(f"load_in_{bits}bit")), "of an unnamed method"
    )
    return str(getattr(method, "value", method))


def _weight_files(path: str) -> list[Path]:
    """The safetensors files of a directory, or of a hub id that was loaded before."""
    directory = Path(path)
    if not directory.is_dir():
        from transformers.utils import cached_file

        directory = Path(cached_file(path, "config.json", local_files_only=True)).parent
    return sorted(directory.glob("model*.safetensors"))


def _names(file: Path) -> Iterator[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        yield from tensors.keys()


def _read(file: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        return tensors.get_tensor(name)


def _same(head: torch.Tensor, embedding: torch.Tensor) -> bool:
    """Equal to the precision of the narrower of the two."""
    narrow = min(head.dtype, embedding.dtype, key=lambda dtype: dtype.itemsize)
    return head.shape == embedding.shape and bool((head.to(narrow) == embedding.to(narrow)).all())
