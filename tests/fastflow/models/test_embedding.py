"""Gemma's embedding multiplies its rows by a factor, rounded where vLLM rounds it; an embedding of other code stays."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch

from fastflow.data.packing import pack
from fastflow.errors import FastflowError
from fastflow.models.cut.sharding import cut_head_of
from fastflow.models.layers.embedding import factor_of
from fastflow.models.packed import PackedModel
from fastflow.models.weights.frozen_weights import hold_in_bfloat16
from small_models import make_causal_lm, make_groups

ROOT, ROUNDED = 40**0.5, 6.3125  # 6.3246, which bfloat16 does not have


class Own(torch.nn.Embedding):
    """May compute anything."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) / 2


@pytest.mark.parametrize(
    ("types", "dtype", "factor"),
    [
        ({}, torch.float32, ROOT),
        ({"autocast": True}, torch.float32, ROUNDED),
        ({"autocast": True, "residual_stream": "bfloat16"}, torch.float32, ROUNDED),
        ({}, torch.bfloat16, ROUNDED),
    ],
    ids=str,
)
def test_the_factor_is_that_of_the_type_in_which_a_run_computes(types, dtype, factor, rng):
    (batch,) = pack(make_groups(rng), tokens_per_microbatch=10**6)
    model = PackedModel(make_causal_lm("gemma3_text", hidden_size=40).to(dtype), **types)
    embedding = model.causal_lm.get_input_embeddings()
    before, seen = factor_of(embedding).clone(), []
    embedding.register_forward_hook(lambda *given: seen.append(given[-1].flatten(0, 1)))
    model.hidden_states(batch)
    with model.decoding() as plain, torch.no_grad():
        plain(batch.input_ids[None], use_cache=True)
    expected = (embedding.weight[batch.input_ids].float() * torch.tensor(factor)).to(dtype)
    assert len(seen) == 2 and all(torch.equal(rows, expected) for rows in seen)
    assert torch.equal(factor_of(embedding), before)


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_of_other_code_is_neither_narrowed_nor_cut(tied):
    model = make_causal_lm(tied=tied)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    model.get_input_embeddings().__class__ = Own
    hold_in_bfloat16(model)
    assert model.get_input_embeddings().weight.dtype == torch.float32
    assert model.lm_head.weight.dtype == (torch.float32 if tied else torch.bfloat16)
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    if tied:
        with pytest.raises(FastflowError, match="rows of Own, whose code may compute more than rows"):
            cut_head_of(model, Mock())
