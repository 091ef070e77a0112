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
PerPrompt = Callable[[Sequence[ResponseRow]], float]  # a measure of one prompt's responses

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


def _mean_of(value: Callable[[ResponseRow], float]) -> PerPrompt:
    return lambda responses: float(np.mean([value(row) for row in responses]))


def is_right(row: ResponseRow) -> bool:
    """Whether the grader took a response for right."""
    return bool(row["verdict"] == Verdict.RIGHT.value)


right_share = _mean_of(is_right)
PLAIN: dict[str, PerPrompt] = {  # of any response, by their names in the results
    "tokens": _mean_of(lambda row: row["tokens"]),
    "sampled_tokens": _mean_of(lambda row: row["sampled_tokens"]),
    "read_tokens": _mean_of(lambda row: row["read_tokens"]),
    "truncated": _mean_of(lambda row: row["finish_reason"] == "length"),
    "well_formed": _mean_of(lambda row: row["well_formed"]),
    "distinct": lambda responses: len({row["response"] for row in responses}) / len(responses),
}
HEADINGS = {"tokens": "tokens", "truncated": "cut off", "well_formed": "well-formed", "distinct": "distinct"}


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
        measured = {name: estimate([of(responses) for responses in prompts]) for name, of in PLAIN.items()}
        return {"prompts": len(prompts), "samples": samples, "reward": estimate([*map(_mean, prompts)]), **measured}
    rights = [sum(map(is_right, responses)) for responses in prompts]
    curves = np.stack([pass_at_each(right, samples) for right in rights])  # (prompts, k)
    per_prompt = {f"maj@{samples}": majority, **PLAIN}
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
        **{
            name: over_prompts([PLAIN[name](responses) for responses in prompts])
            for name in ("tokens", "truncated", "distinct")
        },
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
    return right_share(responses)
