"""Decode a batch of rows with a KV cache: prompts are run once, then one token after the other."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from fastflow.data.trajectory import Prompt
from fastflow.errors import FastflowError
from fastflow.models.packed import PackedModel

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel


@dataclass
class DecodingBatch:
    """The rows decoded together: the item of each row (B,), its cache, and the logits (B, V) of its next token."""

    items: torch.Tensor
    alive: torch.Tensor
    mask: torch.Tensor
    next_position: torch.Tensor
    cache: DynamicCache
    logits: torch.Tensor

    @classmethod
    def prefill(cls, policy: PackedModel, prompts: Sequence[Prompt]) -> DecodingBatch:
        """Run each distinct prompt once, then give each row its copy of the cache."""
        distinct = {id(prompt): prompt for prompt in prompts}
        place = {key: row for row, key in enumerate(distinct)}
        device, longest = policy.device, max(len(prompt.ids) for prompt in distinct.values())
        padded = np.zeros((len(distinct), longest), dtype=np.int64)  # any token will do
        is_token = np.zeros((len(distinct), longest), dtype=np.int64)
        for row, prompt in enumerate(distinct.values()):
            padded[row, longest - len(prompt.ids) :] = prompt.ids
            is_token[row, longest - len(prompt.ids) :] = 1
        ids, mask = torch.from_numpy(padded).to(device), torch.from_numpy(is_token).to(device)
        cache = _make_cache(policy.causal_lm)
        logits = _next_logits(
            policy,
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            cache=cache,
        )
        owner = torch.tensor([place[id(prompt)] for prompt in prompts], device=device)
        _take_rows(cache, owner)
        return cls(
            items=torch.arange(len(prompts), device=device),
            alive=torch.ones(len(prompts), dtype=torch.bool, device=device),
            mask=mask[owner],
            next_position=mask.sum(1)[owner],
            cache=cache,
            logits=logits[owner],
        )

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order; a row may stand there more than once."""
        _take_rows(self.cache, rows)
        for name in ("items", "mask", "next_position", "alive"):
            setattr(self, name, getattr(self, name)[rows])

    def keep_alive(self) -> None:
        """Leave out the rows that have ended."""
        self.select(self.alive.nonzero().squeeze(1))

    def advance(self, policy: PackedModel, token: torch.Tensor) -> None:
        """Append a token (B,) to each row, and compute the logits that follow it."""
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        self.logits = _next_logits(
            policy,
            input_ids=token.unsqueeze(1),
            attention_mask=self.mask,
            position_ids=self.next_position.unsqueeze(1),
            cache=self.cache,
        )
        self.next_position = self.next_position + 1


def _make_cache(model: PreTrainedModel) -> DynamicCache:
    """Return a KV cache that holds keys in the values' dtype: under autocast, rotary embeddings leave them float32."""
    from transformers import DynamicCache

    class EvenCache(DynamicCache):
        def update(
            self, key_states: torch.Tensor, value_states: torch.Tensor, *arguments: Any, **options: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return super().update(key_states.to(value_states.dtype), value_states, *arguments, **options)

    return EvenCache(config=model.config)


def _take_rows(cache: DynamicCache, rows: torch.Tensor) -> None:
    """Keep these rows of a cache by the method of it that states of linear attention have, too."""
    cache.reorder_cache(cast("torch.LongTensor", rows))


def _next_logits(
    policy: PackedModel,
    *,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor,
    cache: DynamicCache,
) -> torch.Tensor:
    """Return the logits (B, V) float32 of the next token; the head reads the last position only."""

    def forward() -> torch.Tensor:
        decoder = policy.causal_lm.get_decoder()
        output = decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=True,
            **{_cache_argument(decoder): cache},
        )
        return policy.logits(output.last_hidden_state[:, -1])

    logits = policy.run(forward)
    if not torch.isfinite(logits).all():
        raise FastflowError(
            "the policy's logits are NaN or infinite; its weights are damaged: restart from a saved policy"
        )
    return logits


def _cache_argument(decoder: torch.nn.Module) -> str:
    """Name the argument that takes a KV cache. Newer releases of transformers, but not all models, call it `cache`."""
    return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"
