"""What a save needs beside the training: no second copy of the weights, and a first rank that holds back nobody."""

from __future__ import annotations

import contextlib
import gc

import pytest
import torch

from fastflow.models.packed import PackedModel
from fastflow.train.saves.checkpoint import Skeleton
from small_models import make_causal_lm


def memory_of_all_tensors() -> set[int]:
    """The addresses of the memory that some tensor of this process holds."""
    found = set()
    for one in gc.get_objects():
        if type(one) in (torch.Tensor, torch.nn.Parameter) and not one.is_meta:
            with contextlib.suppress(RuntimeError):  # what a compiler has traced has none
                found.add(one.untyped_storage().data_ptr())
    return found


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
    assert left and not left & memory_of_all_tensors()
    assert skeleton
