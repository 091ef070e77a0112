"""The examples in the docstrings say what happens."""

import doctest
import importlib

import pytest
import torch

MODULES = ["blocks", "flow_loss", "implementation", "linear_logprob", "memory", "sampling", "tiles", "torch_projector"]


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module):
    outcome = doctest.testmod(importlib.import_module(f"fastflow_kernels.{module}"), extraglobs={"torch": torch})
    assert outcome.attempted > 0 and outcome.failed == 0
