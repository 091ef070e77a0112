"""Measures of responses: per prompt first, then the mean over prompts with its standard error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import comb
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float64

from fastflow.counted import counted
from fastflow.errors import FastflowError
from fastflow.evaluate.estimates import estimate, over_prompts, with_interval
from fastflow.evaluate.graders.verdict import Verdict
from fastflow.evaluate.majority import NO_ANSWER
from fastflow.evaluate.task import GRADED, REWARDED

# One response and its grade, by the names in responses.COLUMNS; a measure reads some of them.
ResponseRow = Mapping[str, Any]
ByPrompt = Sequence[Sequence[ResponseRow]]
AnyRow = TypeVar("AnyRow", bound=ResponseRow)

CONVENTIONS = {
    "avg": "mean over prompts of the share of right responses",
    "pass_at": "unbiased 1 - C(n - c, k) / C(n, k) per prompt, then the mean; what is not right counts as wrong",
    "maj": "whether the largest class of equal answers is right; no answer, no vote; ties averaged",
    "error": "standard deviation of the prompts' values over the root of the number of prompts",
}

REWARD_CONVENTION = {"reward": "mean over prompts of the mean of the function's numbers"}


def conventions(kinds: Collection[str]) -> dict[str, str]:
    """How tasks of these kinds are counted."""
    graded = {name: text for name, text in CONVENTIONS.items() if GRADED in kinds or name == "error"}
    return (REWARD_CONVENTION if REWARDED in kinds else {}) | graded


def pass_at(right: int, samples: int, k: int) -> float:
    """The unbiased estimate of pass@k from `right` of `samples` responses. Raises FastflowError for k above samples."""
    if not 1 <= k <= samples:
        raise FastflowError(
            f"pass@{k} needs k from 1 to the {counted(samples, 'sample')} of a prompt; sample more, or lower k"
        )
    return 1 - comb(samples - right, k) / comb(samples, k)


def pass_at_each(right: int, samples: int) -> Float64[np.ndarray, " samples"]:
    """Estimate pass@k as `pass_at` does, for every k from 1 to samples, in one pass over them."""
    drawn = np.arange(samples)  # before the one that the factor is of
    return 1 - np.cumprod((samples - right - drawn).clip(min=0) / (samples - drawn))


def majority(responses: Sequence[ResponseRow]) -> float:
    """Whether the largest class of answers is right; the mean over the largest where several are."""
    counts = Counter(row["vote_class"] for row in responses if row["vote_class"] != NO_ANSWER)
    if not counts:
        return 0.0
    largest = [name for name, count in counts.items() if count == max(counts.values())]
    return float(np.mean([_is_right_class(responses, name) for name in largest]))


def _is_right_class(responses: Sequence[ResponseRow], name: int) -> bool:
    verdicts = [is_right(row) for row in responses if row["vote_class"] == name]
    return sum(verdicts) * 2 > len(verdicts)


def by_question(rows: Iterable[AnyRow]) -> dict[int, list[AnyRow]]:
    """The rows of each question by its number, in the questions' order."""
    groups: dict[int, list[AnyRow]] = {}
    for row in rows:
        groups.setdefault(row["question"], []).append(row)
    return dict(sorted(groups.items()))


def by_prompt(rows: Iterable[AnyRow]) -> list[list[AnyRow]]:
    """The rows of each question, in the questions' order."""
    return list(by_question(rows).values())


_PLAIN: dict[str, Callable[[Sequence[ResponseRow]], float]] = {
    "tokens": lambda responses: float(np.mean([row["tokens"] for row in responses])),
    "sampled_tokens": lambda responses: float(np.mean([row["sampled_tokens"] for row in responses])),
    "read_tokens": lambda responses: float(np.mean([row["read_tokens"] for row in responses])),
    "truncated": lambda responses: float(np.mean([row["finish_reason"] == "length" for row in responses])),
    "well_formed": lambda responses: float(np.mean([row["well_formed"] for row in responses])),
    "distinct": lambda responses: len({row["response"] for row in responses}) / len(responses),
}


def is_rewarded(rows: Sequence[ResponseRow]) -> bool:
    """Whether a function gave the responses numbers."""
    return rows[0].get("reward") is not None


def main_measure(scores: Mapping[str, Any]) -> str:
    """Return the name of the measure by which models are compared."""
    return "reward" if "reward" in scores else f"avg@{scores['samples']}"


def score(rows: Sequence[ResponseRow]) -> dict[str, Any]:
    """All measures of one model on one task, each as {"value", "error"}; counts of verdicts besides.

    Where a function gave the responses numbers, there are no verdicts and nothing that is made of them.
    """
    prompts = by_prompt(rows)
    samples = len(prompts[0])
    if is_rewarded(rows):
        measured = {name: estimate([of(responses) for responses in prompts]) for name, of in _PLAIN.items()}
        return {"prompts": len(prompts), "samples": samples, "reward": estimate([*map(_mean, prompts)]), **measured}
    rights = [sum(map(is_right, responses)) for responses in prompts]
    curves = np.stack([pass_at_each(right, samples) for right in rights])  # (prompts, k)
    per_prompt = {f"maj@{samples}": majority, **_PLAIN}
    return {
        "prompts": len(prompts),
        "samples": samples,
        f"avg@{samples}": estimate([right / samples for right in rights]),
        "pass_at": {str(k): estimate(values) for k, values in enumerate(curves.T, start=1)},
        **{name: estimate([measure(responses) for responses in prompts]) for name, measure in per_prompt.items()},
        "verdicts": {verdict.value: sum(row["verdict"] == verdict.value for row in rows) for verdict in Verdict},
    }


def score_creative(rows: Sequence[ResponseRow]) -> dict[str, Any]:
    """The measures of one model on a creative task that need neither encoder nor judge."""
    prompts = by_prompt(rows)
    return {
        "prompts": len(prompts),
        "samples": len(prompts[0]),
        "tokens": over_prompts([sum(row["tokens"] for row in group) / len(group) for group in prompts]),
        "truncated": over_prompts(
            [sum(row["finish_reason"] == "length" for row in group) / len(group) for group in prompts]
        ),
        "distinct": over_prompts([len({row["response"] for row in group}) / len(group) for group in prompts]),
    }


def difference(rows: Sequence[ResponseRow], base: Sequence[ResponseRow]) -> dict[str, float | None]:
    """avg@n, or the reward, of one model less that of another on the same prompts: paired, with a 95 % interval."""
    ours, theirs = ({question: _mean(group) for question, group in by_question(part).items()} for part in (rows, base))
    if ours.keys() != theirs.keys():
        raise FastflowError("two models were asked different questions, so that they cannot be compared in pairs")
    return with_interval(estimate([ours[question] - theirs[question] for question in ours]))


def _mean(responses: Sequence[ResponseRow]) -> float:
    """The mean reward of a prompt's responses; where they have none, the share of right ones."""
    if is_rewarded(responses):
        return float(np.mean([row["reward"] for row in responses]))
    return float(np.mean([is_right(row) for row in responses]))


def is_right(row: ResponseRow) -> bool:
    """Whether the grader took a response for right."""
    return row["verdict"] == Verdict.RIGHT.value
