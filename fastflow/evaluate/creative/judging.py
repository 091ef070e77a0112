"""Questions to the judge about whole sets of responses, and what the replies make of them per prompt."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fastflow.evaluate.creative import questions
from fastflow.evaluate.creative.judge import Ask, Cost, JudgeModel
from fastflow.evaluate.creative.parse_reply import find_choice, find_grades
from fastflow.evaluate.creative.reply_log import ReplyLog
from fastflow.evaluate.creative.rubric import Rubric
from fastflow.evaluate.scores import ByPrompt

PerPrompt = list[float | None]  # None for a prompt without any grade
BOTH_ORDERS = ((0, 1), (1, 0))


@dataclass(frozen=True)
class Quality:
    """quality: 0 to 1. criteria: grades on the rubric's scale. Both are per prompt, means over responses and votes."""

    quality: PerPrompt
    criteria: dict[str, PerPrompt]
    cost: Cost


@dataclass(frozen=True)
class Wins:
    """win_rate: per prompt, the share of pairs that the second model's response wins, a tie counting half.

    first_preferred: share of decided replies that chose the text shown first; far from a half, the judge looks at the
    order. contradicted: share of pairs whose two orders named different winners.
    """

    win_rate: PerPrompt
    first_preferred: float | None
    contradicted: float | None
    cost: Cost


@dataclass(frozen=True)
class Variety:
    """rating: per prompt, 1 to 5; None for a prompt with fewer than two right solutions, or without a grade."""

    rating: PerPrompt
    cost: Cost


def grade_quality(judge: JudgeModel, rubric: Rubric, prompts: ByPrompt, replies: ReplyLog, **more: Any) -> Quality:
    """Grade each response by the rubric, with as many votes as the settings say. more: on_answer."""
    limit = judge.settings.responses or None
    asks, owner = [], []
    for place, rows in enumerate(prompts):
        for row in rows[:limit]:

            def read(reply: str, response: str = row["response"]) -> dict[str, float] | None:
                return find_grades(reply, rubric.names, rubric.lowest, rubric.highest, response)

            messages = questions.grade_one(rubric, row["prompt"], row["response"])
            about = {"question": row["question"], "sample": row["sample"]}
            for vote in range(judge.settings.votes):
                asks.append(Ask(messages, read, vote, about))
                owner.append((place, row["sample"]))
    values, cost = judge.ask(asks, replies, **more)
    by_response: dict[tuple[int, int], list[dict[str, float]]] = {}
    for key, grades in zip(owner, values, strict=True):
        if grades is not None:
            by_response.setdefault(key, []).append(grades)

    def per_prompt(value: Any) -> PerPrompt:
        means: list[list[float]] = [[] for _ in prompts]
        for (place, _), grades in by_response.items():
            means[place].append(fmean(map(value, grades)))
        return [fmean(entries) if entries else None for entries in means]

    criteria = {name: per_prompt(lambda grades, name=name: grades[name]) for name in rubric.names}
    return Quality(per_prompt(rubric.quality), criteria, cost)


def compare_pairs(
    judge: JudgeModel, rubric: Rubric, ours: ByPrompt, theirs: ByPrompt, replies: ReplyLog,
    **more: Any,
) -> Wins:  # fmt: skip
    """Compare responses of two models to the same prompts, each pair in both orders. more: on_answer."""
    asks, owner = [], []
    for place, (left, right) in enumerate(zip(ours, theirs, strict=True)):
        for pair in list(zip(left, right, strict=False))[: judge.settings.pairs]:
            texts = [row["response"] for row in pair]

            def read(reply: str, judged: str = "\n".join(texts)) -> str | None:
                return find_choice(reply, "better", questions.CHOICES, judged)

            for order in BOTH_ORDERS:
                messages = questions.compare_two(rubric, pair[0]["prompt"], *(texts[index] for index in order))
                about = {"question": pair[0]["question"], "sample": pair[0]["sample"], "ours_first": order[0] == 0}
                asks.append(Ask(messages, read, 0, about))
                owner.append((place, order[0] == 0))
    values, cost = judge.ask(asks, replies, **more)
    scores = [_score(choice, ours_first) for choice, (_, ours_first) in zip(values, owner, strict=True)]
    per_prompt: list[list[float]] = [[] for _ in ours]
    contradicted = []
    for at in range(0, len(scores), len(BOTH_ORDERS)):
        both = [score for score in scores[at : at + len(BOTH_ORDERS)] if score is not None]
        if len(both) < len(BOTH_ORDERS):
            continue  # one order alone would count the judge's liking of a place
        per_prompt[owner[at][0]].append(fmean(both))
        contradicted.append(set(both) == {0.0, 1.0})
    decided = [choice == "first" for choice in values if choice in ("first", "second")]
    return Wins(
        [fmean(entries) if entries else None for entries in per_prompt],
        fmean(decided) if decided else None, fmean(contradicted) if contradicted else None, cost,
    )  # fmt: skip


def rate_solutions(judge: JudgeModel, prompts: ByPrompt, right: str, replies: ReplyLog, **more: Any) -> Variety:
    """Rate how much the right solutions of each question differ. right: the verdict of those. more: on_answer."""
    asks, owner = [], []
    for place, rows in enumerate(prompts):
        solutions = [row["response"] for row in rows if row["verdict"] == right][: judge.settings.solutions]
        if len(solutions) < 2:
            continue

        def read(reply: str, judged: str = "\n".join(solutions)) -> dict[str, float] | None:
            return find_grades(reply, ("variety",), questions.LOWEST_VARIETY, questions.HIGHEST_VARIETY, judged)

        messages = questions.rate_variety(rows[0]["prompt"], solutions)
        for vote in range(judge.settings.votes):
            asks.append(Ask(messages, read, vote, {"question": rows[0]["question"], "solutions": len(solutions)}))
            owner.append(place)
    values, cost = judge.ask(asks, replies, **more)
    found: list[list[float]] = [[] for _ in prompts]
    for place, value in zip(owner, values, strict=True):
        if value is not None:
            found[place].append(value["variety"])
    return Variety([fmean(entries) if entries else None for entries in found], cost)


def _score(choice: str | None, ours_first: bool) -> float | None:
    if choice is None or choice == "tie":
        return None if choice is None else 0.5
    return float((choice == "first") == ours_first)
