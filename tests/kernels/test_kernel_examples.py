"""The examples in the docstrings say what happens."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("module", ["blocks", "flow_loss", "linear_logprob"])
def test_docstring_examples(module):
    outcome = doctest.testmod(importlib.import_module(f"fastflow_kernels.{module}"))
    assert outcome.attempted > 0 and outcome.failed == 0
