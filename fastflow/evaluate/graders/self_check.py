"""Gold answers against themselves: one that its grader does not take for right spoils every measurement with it."""

from __future__ import annotations

from collections.abc import Sequence

from fastflow.evaluate.graders.grader import Item, with_gold_as_response
from fastflow.evaluate.graders.pool import GraderPool
from fastflow.evaluate.graders.verdict import Verdict


def unequal_golds(items: Sequence[Item], pool: GraderPool) -> list[tuple[str, str]]:
    """(grader, gold) of those that are not right as their own responses; each is tried once."""
    answered = {(item.grader, item.gold): with_gold_as_response(item) for item in items}
    different = [(name, item) for name, item in answered.items() if item is not None]
    verdicts = pool.grade([item for _, item in different])
    return [name for (name, _), verdict in zip(different, verdicts, strict=True) if verdict is not Verdict.RIGHT]
