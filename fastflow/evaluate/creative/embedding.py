"""Sentence embeddings, from a sentence-transformers model or from a plain transformers encoder with mean pooling."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from fastflow.errors import FastflowError, need
from fastflow.models.weights.loading import loading

SENTENCE_TRANSFORMERS = "modules.json"  # the file that makes a directory one of that package
LONGEST = 512  # tokens, where an encoder names no limit of its own
BATCH = 32
SETTING = "eval.embedding"


class Encoder(Protocol):
    """Turns texts into vectors. description: what a reader of the results must know to repeat it."""

    @property
    def description(self) -> str:
        """Name of the model, how it pools, how much of a text it reads."""

    def encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "n d"]:
        """Embed each text."""


@dataclass(frozen=True)
class MeanPooling:
    """A transformers encoder; the mean of its last hidden states over a text's tokens."""

    name: str
    model: Any
    tokenizer: Any
    longest: int

    @property
    def description(self) -> str:
        return f"{self.name} (mean pooling, first {self.longest} tokens)"

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "n d"]:
        vectors: list[Tensor] = [torch.empty(0)] * len(texts)
        for places in _by_length(texts):
            tokens = self.tokenizer(
                [texts[place] for place in places], padding=True, truncation=True, max_length=self.longest,
                return_tensors="pt",
            )  # fmt: skip
            mask = tokens["attention_mask"].to(self.model.device)
            if not mask.shape[1]:  # empty texts, and a tokenizer that adds nothing
                pooled = torch.zeros(len(places), self.model.config.hidden_size)
            else:
                ids = tokens["input_ids"].to(self.model.device).long()
                hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
                pooled = mean_pool(hidden.float(), mask).cpu()
            for place, vector in zip(places, pooled, strict=True):
                vectors[place] = vector
        return torch.stack(vectors).numpy()


def mean_pool(hidden: Float[Tensor, "n T D"], mask: Int[Tensor, "n T"]) -> Float[Tensor, "n D"]:
    """Average hidden states over the tokens that the mask keeps; zeros where it keeps none."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


@dataclass(frozen=True)
class SentenceTransformers:
    """A model of the sentence-transformers package, which knows how it pools."""

    name: str
    model: Any

    @property
    def description(self) -> str:
        return f"{self.name} (sentence-transformers, first {self.model.max_seq_length} tokens)"

    def encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "n d"]:
        found = self.model.encode(list(texts), batch_size=BATCH, show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(found, dtype=np.float32)


def load_encoder(name: str, device: torch.device) -> Encoder:
    """Load an encoder by the name of a directory or a hub id.

    A directory without the file modules.json is a plain encoder and needs no further package; everything else is loaded
    by sentence-transformers. Code that comes with a model is not run. Raises FastflowError where loading fails.
    """
    if not needs_package(name):
        return _load_plain(name, device)
    package = need("sentence_transformers", extra="creative", purpose=f"{SETTING} = {name}")
    with loading(name, "embedding model"):
        return SentenceTransformers(
            name, package.SentenceTransformer(name, device=str(device), trust_remote_code=False)
        )


def needs_package(name: str) -> bool:
    """Whether the package sentence-transformers loads this encoder."""
    return not Path(name).is_dir() or (Path(name) / SENTENCE_TRANSFORMERS).is_file()


def identity(name: str) -> str:
    """Return what identifies an encoder in a cache: of a directory its files, of a hub id itself."""
    if not Path(name).is_dir():
        return name
    files = sorted(file for file in Path(name).rglob("*") if file.is_file())
    facts = [(str(file.relative_to(name)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _load_plain(name: str, device: torch.device) -> MeanPooling:
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    with loading(name, "embedding model"):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if getattr(config, "is_encoder_decoder", False):
            raise FastflowError(f"{name} is an encoder with a decoder; {SETTING} needs an encoder alone")
        tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model: Any = AutoModel.from_pretrained(
            name, config=config, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise FastflowError(f"the tokenizer in {name} has no pad_token; set one in its tokenizer_config.json")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    limits = (tokenizer.model_max_length, getattr(config, "max_position_embeddings", LONGEST), LONGEST)
    return MeanPooling(name, model.to(device).eval(), tokenizer, min(int(limit) for limit in limits))


def _by_length(texts: Sequence[str]) -> Iterator[list[int]]:
    """Yield places of texts of similar length, so that little is padded."""
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    for start in range(0, len(order), BATCH):
        yield order[start : start + BATCH]
