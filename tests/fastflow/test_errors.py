"""What an exception says, in one line."""

from __future__ import annotations

import pytest

from fastflow.errors import message_of


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (ValueError("two\n  lines"), {}, "two lines"),
        (ValueError("two\n  lines"), {"typed": True}, "ValueError: two lines"),
        (MemoryError(), {}, "MemoryError"),
        (MemoryError(" \n"), {"typed": True}, "MemoryError"),
        (ValueError("a" * 999), {}, "a" * 300),
        (ValueError("a" * 999), {"most": 13, "typed": True}, "ValueError: a"),
    ],
)
def test_the_message_is_short_and_never_empty(error, options, message):
    assert message_of(error, **options) == message
