"""The examples in the docstrings say what happens."""

import doctest
import importlib

import pytest
import torch


@pytest.mark.parametrize(
    "module", ["blocks", "exponentials", "flow_loss", "implementation", "linear_logprob", "tiles", "torch_projector"]
)
def test_docstring_examples(module):
    outcome = doctest.testmod(importlib.import_module(f"fastflow_kernels.{module}"), extraglobs={"torch": torch})
    assert outcome.attempted > 0 and outcome.failed == 0
