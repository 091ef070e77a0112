"""What is said of settings that are refused."""

from __future__ import annotations

import pytest

from fastflow.config.reader import read_config
from fastflow.errors import FastflowError


def refusal(arguments: list[str]) -> str:
    """The message with which the arguments are refused; it is one line."""
    with pytest.raises(FastflowError) as caught:
        read_config(arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message
