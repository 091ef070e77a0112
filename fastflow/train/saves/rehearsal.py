"""Rehearse a save before the first step, to find what loads but cannot be saved while nothing is lost.

All small files are really written: settings, generation settings and tokenizer. The weights go through the same code
with one number in place of each tensor.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastflow.config.schema import ModelConfig
from fastflow.errors import FastflowError
from fastflow.models.layers.experts import expert_weights
from fastflow.models.packed import PackedModel
from fastflow.models.weights.expert_names import parts_of
from fastflow.models.weights.files import VOCABULARY_FILES
from fastflow.run.directory import REHEARSAL
from fastflow.run.durable import flush
from fastflow.train.saves.checkpoint import reason, save_adapter
from fastflow.train.saves.export import AnyModule, Exporter, is_strictly_valid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SAMPLE_TEXT = "It is 12 + 30 = 42,\n\n  isn't it? Ça va, Straße, 数学 <|end|> {x: [1]}\t\\boxed{7}"
_TOKENIZER_FILES = (
    *VOCABULARY_FILES, "*token*.json", "*token*.model", "vocab*", "merges.txt", "*.tiktoken", "*.model", "*.jinja",
    "*.py",
)  # fmt: skip


def rehearse(policy: PackedModel, exporter: Exporter, settings: ModelConfig, directory: Path) -> tuple[Exporter, int]:
    """Try all of a save but its size. Returns the exporter that will work, and the bytes of the small files.

    Warn where something must be saved in another way. Raises FastflowError for what cannot be saved at all.
    """
    target = directory / REHEARSAL
    shutil.rmtree(target, ignore_errors=True)
    try:
        target.mkdir()
        for name in ("tokenizer", "copied"):
            (target / name).mkdir()
            policy.causal_lm.config.to_json_file(target / name / "config.json")  # it can decide the tokenizer's class
        exporter = _with_tokenizer(exporter, settings, target)
        generation = policy.causal_lm.generation_config
        if generation is not None and not is_strictly_valid(generation):
            logger.warning(
                "the generation settings of %s contradict themselves (such as a temperature without do_sample); they "
                "are saved unchanged", settings.path,
            )  # fmt: skip
        _try(lambda: exporter.write(miniature(policy.model), target / "policy"), "policy", settings)
        if policy.model is not policy.causal_lm:
            _try(lambda: save_adapter(miniature(policy.model), target / "adapter"), "adapter", settings)
        if not settings.trust_remote_code:
            _check_names(target / "policy", settings)
        flush(target)
        return exporter, sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    except OSError as error:
        raise FastflowError(f"a save in {directory} was tried before the first step: {reason(error)}") from error
    finally:
        shutil.rmtree(target, ignore_errors=True)


def miniature(model: AnyModule) -> AnyModule:
    """Return a copy of the model with one number in place of each parameter, and two in place of each expert's, which a
    save may cut in two. Tied parameters stay tied.
    """
    shapes = {id(one): [min(1, size) for size in one.shape] for one in model.parameters()}
    shapes |= {id(one): [len(one), 2, 1] for module in model.modules() for one in expert_weights(module)}
    small: dict[int, torch.Tensor] = {
        id(one): torch.nn.Parameter(torch.zeros(shapes[id(one)], dtype=one.dtype), requires_grad=False)
        for one in model.parameters()
    }
    for buffer in model.buffers():
        small[id(buffer)] = buffer.detach().to("cpu", copy=True)
    return copy.deepcopy(model, small)


def _try(save: Callable[[], object], what: str, settings: ModelConfig) -> None:
    try:
        save()
    except OSError:
        raise
    except Exception as error:
        raise FastflowError(
            f"the {what} of {settings.path} loads but cannot be saved, as was tried before the first step: "
            f"{reason(error)}; correct its files, or save it with transformers (save_pretrained) and train that copy"
        ) from error


def _with_tokenizer(exporter: Exporter, settings: ModelConfig, target: Path) -> Exporter:
    """Return the exporter where its tokenizer reads back the same, otherwise one that copies the tokenizer's files."""
    failure = _tokenizer_failure(exporter.tokenizer, settings, target / "tokenizer")
    if failure is None:
        return exporter
    files = tuple(_files_of(settings.path))
    if files:
        for file in files:
            shutil.copyfile(file, target / "copied" / file.name)
        if _differs(exporter.tokenizer, settings, target / "copied") is None:
            logger.warning(
                "the tokenizer of %s changes when it is saved (%s); its files are copied instead",
                settings.path, failure,
            )  # fmt: skip
            return dataclasses.replace(exporter, tokenizer_files=files)
    raise FastflowError(
        f"the tokenizer of {settings.path} loads but cannot be saved, as was tried before the first step: {failure}; "
        "give it files that transformers saves (a tokenizer.json)"
    )


def _tokenizer_failure(tokenizer: PreTrainedTokenizerBase, settings: ModelConfig, directory: Path) -> str | None:
    try:
        tokenizer.save_pretrained(directory)
    except OSError:
        raise
    except Exception as error:
        return reason(error)
    return _differs(tokenizer, settings, directory)


def _differs(tokenizer: PreTrainedTokenizerBase, settings: ModelConfig, directory: Path) -> str | None:
    """Say how the tokenizer in a directory differs from this one; None where it does not."""
    from transformers import AutoTokenizer

    try:
        again = AutoTokenizer.from_pretrained(directory, trust_remote_code=settings.trust_remote_code)
    except Exception as error:
        return f"what was saved does not load: {reason(error)}"
    if len(again) != len(tokenizer):
        return f"it has {len(again)} tokens after being read back, not {len(tokenizer)}"
    if again(SAMPLE_TEXT)["input_ids"] != tokenizer(SAMPLE_TEXT)["input_ids"]:
        return "it gives other tokens after being read back"
    if again.eos_token_id != tokenizer.eos_token_id or again.chat_template != tokenizer.chat_template:
        return "its end token or chat template differs after being read back"
    return None


def _files_of(path: str) -> list[Path]:
    """Return the tokenizer's files in a local directory, or those of a hub id that the cache holds."""
    directory = Path(path)
    if not directory.is_dir():
        from huggingface_hub import snapshot_download

        try:
            directory = Path(snapshot_download(path, allow_patterns=list(_TOKENIZER_FILES), local_files_only=True))
        except Exception:
            return []
    found = {file for pattern in _TOKENIZER_FILES for file in directory.glob(pattern) if file.is_file()}
    return sorted(found)


def _check_names(directory: Path, settings: ModelConfig) -> None:
    """Refuse an export that would read back without some weights, such as one that ties two different tensors."""
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    saved: set[str] = set()
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            saved |= set(weights.keys())
    with torch.device("meta"):
        read_back = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    names: dict[tuple[int, int], set[str]] = {}
    for name, tensor in read_back.state_dict(keep_vars=True).items():
        for part in parts_of(read_back.config, name, tensor.shape):
            names.setdefault((id(tensor), part.offset), set()).add(part.name)
    missing = sorted(min(group) for group in names.values() if not group & saved)
    if missing:
        raise FastflowError(
            f"the policy of {settings.path} would be saved without {missing[0]}"
            f"{f' and {len(missing) - 1} others' if len(missing) > 1 else ''}, which its config.json asks for; correct "
            "tie_word_embeddings there"
        )
