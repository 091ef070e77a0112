"""The tokenizer of a model, and the tokens that end its responses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastflow.config.schema import ModelConfig
from fastflow.errors import FastflowError
from fastflow.models.weights.files import check_files, check_tokenizer_files
from fastflow.models.weights.loading import loading, read_generation

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from fastflow.models.packed import PackedModel


def load_tokenizer(settings: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of `model.path`. Raises FastflowError where that fails, or it has no end-of-sequence token."""
    from transformers import AutoTokenizer

    check_files(settings.path)
    check_tokenizer_files(settings.path)
    with loading(settings.path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(settings.path, trust_remote_code=settings.trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise FastflowError(f"the tokenizer in {settings.path} has no eos_token; set one in its tokenizer_config.json")
    return tokenizer


def end_ids(policy: PackedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end a response: those of the tokenizer and of the model."""
    return _ends(policy.causal_lm.generation_config, tokenizer)


def end_ids_in_files(path: str, tokenizer: PreTrainedTokenizerBase, *, fetch: bool) -> list[int]:
    """Return the same before the model is loaded. fetch: ask the hub for a model that is not here; without that, its
    tokenizer's alone.
    """
    try:
        with loading(path, "generation settings of", fetch=fetch):
            return _ends(read_generation(path, fetch=fetch), tokenizer)
    except FastflowError:
        if fetch or Path(path).is_dir():
            raise
        return _ends(None, tokenizer)


def _ends(generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    configured = generation.eos_token_id if generation else None
    configured = [configured] if isinstance(configured, int) else list(configured or [])
    return sorted({tokenizer.eos_token_id, *configured})
