"""What the compared methods ask about the answers that responses give; whoever reads answers can serve them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

NO_ANSWER = -1


@runtime_checkable
class AnswerReader(Protocol):
    """Finds the answers in responses, and compares them."""

    def are_right(self, texts: Sequence[str], records: Sequence[Mapping[str, Any]]) -> list[bool]:
        """Whether each response gives its record's answer: not so without one, or where comparing takes too long."""

    def classes(self, texts: Sequence[str], sizes: Sequence[int]) -> list[int]:
        """Number the answers of each group: equal ones have equal numbers, and NO_ANSWER has none.

        sizes: responses of each group, in flat order.
        """

    def close(self) -> None:
        """Release what it runs on."""
