"""What a save needs beside the training: no second copy of the weights, and a first rank that holds back nobody."""

from __future__ import annotations

import gc

import pytest
import torch

from fastflow.models.packed import PackedModel
from fastflow.train.saves.checkpoint import Skeleton
from small_models import make_causal_lm


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_that_an_engine_moves_are_held_once(frozen):
    """vLLM's process reads the weights from memory that it shares: there, each parameter gets new memory."""
    model = make_causal_lm("qwen2")
    model.requires_grad_(not frozen)
    skeleton = Skeleton(PackedModel(model))
    left = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    for parameter in model.parameters():
        parameter.data = parameter.detach().clone()
    left -= {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held = [one for one in gc.get_objects() if isinstance(one, torch.Tensor) and not one.is_meta]
    assert left and not left & {one.untyped_storage().data_ptr() for one in held}
    assert skeleton
