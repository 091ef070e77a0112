"""Refuses files of a model: no tokenizer, quantised weights, pickles, weights that contradict tie_word_embeddings."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastflow.errors import FastflowError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

CONFIG = "config.json"
POLICY = "policy"  # in a run's directory, and in each of its saves
HEAD = "lm_head.weight"
EMBEDDING = "embed_tokens.weight"
ROWS = 4096  # that are compared at once
QUANTISED = re.compile(  # GPTQ and AWQ, compressed-tensors and fp8, bitsandbytes, mxfp4
    r"\.(qweight|qzeros|weight_packed|weight_scale(_inv)?|absmax|quant_map|quant_state\..*|SCB|\w+_blocks)$"
)
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
TOKENIZER_FILES = (*VOCABULARY_FILES, "*token*", "vocab*", "*.model", "*.py")  # every kind of tokenizer has one of them
CONVERT = (
    "import sys, transformers; "
    'transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto").save_pretrained(sys.argv[1])'
)


def check_files(path: str) -> None:
    """Raise FastflowError for a local directory whose weights are quantised or pickles. Reads only names.

    Accepts every path that is not a local directory; loading it says whether it exists.
    """
    directory = Path(path)
    if not directory.is_dir():
        return
    check_quantisation(path, _config_entry(directory, "quantization_config"))
    pickles = sorted(file.name for file in directory.glob("pytorch_model*.bin"))
    if pickles and not any(directory.glob("*.safetensors")):
        raise FastflowError(
            f"cannot load the model {path}: its weights are pickles ({pickles[0]}), which can run any code when "
            "something reads them, so fastflow takes safetensors alone; if you trust their source, convert them with "
            f"python -c {shlex.quote(CONVERT)} {shlex.quote(path)}"
        )
    check_names(path, _weights(directory))


def check_is_model(path: str) -> None:
    """Raise FastflowError for a local directory without a model: it names the model beside it, as a run has one.

    Accepts every path that is not a local directory.
    """
    directory = Path(path)
    if not directory.is_dir() or (directory / CONFIG).is_file():
        return
    beside = next((one for one in (directory / POLICY, directory.parent / POLICY) if (one / CONFIG).is_file()), None)
    remedy = "check the path" if beside is None else f"give {beside}, which holds the trained model"
    raise FastflowError(f"cannot load the model {path}: the directory has no {CONFIG}; {remedy}")


def check_tokenizer_files(path: str) -> None:
    """Raise FastflowError for a local directory without a model, and for a model without a tokenizer. Reads only names.

    Accepts every path that is not a local directory.
    """
    directory = Path(path)
    if not directory.is_dir():
        return
    check_is_model(path)
    if not any(file for pattern in TOKENIZER_FILES for file in directory.glob(pattern)):
        raise FastflowError(
            f"cannot load the tokenizer {path}: the model's directory holds none; copy tokenizer.json and "
            "tokenizer_config.json of the model that it was trained from into it"
        )


def check_names(path: str, names: Iterable[str]) -> None:
    """Raise FastflowError where a quantised model has such names of weights, whatever its config.json says."""
    if quantised := next(filter(QUANTISED.search, sorted(names)), None):
        raise _refusal(path, f"it has a {quantised}")


def check_quantisation(path: str, settings: Any) -> None:
    """Raise FastflowError where a configuration has a quantization_config."""
    if settings:
        raise _refusal(path, f"{_method(settings)}, the quantization_config of its config.json")


def check_tie(path: str, config: PretrainedConfig, missing: Collection[str]) -> None:
    """Raise FastflowError where tie_word_embeddings contradicts the weights of a loaded model's files.

    missing: names of weights that the model has and its files lack.
    """
    tied = getattr(config, "tie_word_embeddings", None)
    if tied is False and HEAD in missing:
        raise FastflowError(
            f"the config.json of {path} says tie_word_embeddings = false, but its weights have no {HEAD}; set it to "
            "true if the head is meant to be the embedding, or add the missing weight"
        )
    if not tied or (directory := _directory(path)) is None:
        return
    files = _weights(directory)
    embedding = next((name for name in files if name.endswith(EMBEDDING)), None)
    if HEAD in files and embedding and not _same(_read(files[HEAD], HEAD), _read(files[embedding], embedding)):
        raise FastflowError(
            f"the config.json of {path} says tie_word_embeddings = true, but its weights have a {HEAD} that differs "
            f"from {embedding}; set it to false if the checkpoint is right, or remove {HEAD} from it"
        )


def _refusal(path: str, found: str) -> FastflowError:
    return FastflowError(
        f"{path} holds quantised weights ({found}), which can be neither trained nor scored exactly; take the "
        "original model in float32, bfloat16 or float16 (to save memory: lora.rank and model.dtype = bfloat16)"
    )


def _config_entry(directory: Path, name: str) -> Any:
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # loading the model says so
    return config.get(name) if isinstance(config, dict) else None


def _method(settings: Any) -> str:
    """Name the method of a quantization_config, in a word or two."""
    if isinstance(settings, str):
        return settings
    entries = settings if isinstance(settings, dict) else getattr(settings, "__dict__", {})
    method = entries.get("quant_method") or next(
        (f"bitsandbytes, {bits} bits" for bits in (4, 8) if entries.get(f"load_in_{bits}bit")), "of an unnamed method"
    )
    return str(getattr(method, "value", method))


def _directory(path: str) -> Path | None:
    """Find the files of a loaded model: its local directory, or that of a hub id in the cache."""
    if Path(path).is_dir():
        return Path(path)
    from transformers.utils import cached_file

    try:
        file = cached_file(path, "config.json", local_files_only=True)
    except OSError:
        return None
    return Path(file).parent if file else None


def _weights(directory: Path) -> dict[str, Path]:
    """Return the file of each weight. Leaves damaged files out; loading them says what is wrong."""
    index = directory / "model.safetensors.index.json"
    with contextlib.suppress(OSError, ValueError, RecursionError, KeyError, AttributeError):
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: directory / file for name, file in places.items()}
    from safetensors import SafetensorError, safe_open

    found: dict[str, Path] = {}
    for file in sorted(directory.glob("model*.safetensors")):
        with contextlib.suppress(OSError, SafetensorError), safe_open(file, framework="np") as tensors:
            found |= dict.fromkeys(tensors.keys(), file)
    return found


def damaged(path: str) -> Path | None:
    """Name the first weight file of a local directory that cannot be opened, as one whose download was cut; or None."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(Path(path).glob("*.safetensors")):
        try:
            with safe_open(file, framework="np"):
                pass
        except (OSError, SafetensorError):
            return file
    return None


def _read(file: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        return tensors.get_tensor(name)


def _same(head: torch.Tensor, embedding: torch.Tensor) -> bool:
    """Compare in the narrower type of the two."""
    narrow = min(head.dtype, embedding.dtype, key=lambda dtype: dtype.itemsize)
    if head.shape != embedding.shape:
        return False
    parts = zip(head.split(ROWS), embedding.split(ROWS), strict=True)  # a copy of the whole would take gigabytes
    return all(bool((one.to(narrow) == other.to(narrow)).all()) for one, other in parts)
