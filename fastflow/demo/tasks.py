"""The demo's two tasks: additions to sharpen and stories to flatten."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastflow.data.trajectory import Group, Prompt
from fastflow.demo import measures, stories, sums
from fastflow.rollout.sampler import Sampler, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EVALUATION_SAMPLES = 16


@dataclass(frozen=True)
class DemoTask:
    """One of the two demonstrations: a corpus, a power alpha, and how to measure the result.

    topics: (seed, held_out) -> topics to train on, topics held out. prompt, respond: the corpus on one topic.
    measure: metrics of sampled groups and their texts. is_correct: whether a response answers its prompt, where answers
    are right or wrong. settings: what differs from the `demo` preset.
    labels: names in the comparison: base, base at token-wise temperature 1/alpha, policy.
    """

    name: str
    title: str
    alpha: float
    labels: tuple[str, str, str]
    pieces: Sequence[str]
    topics: Callable[[int, int], tuple[list[Any], list[Any]]]
    prompt: Callable[[Any], str]
    respond: Callable[[Any, np.random.Generator], str]
    measure: Callable[[Sequence[Group], Sequence[Sequence[str]]], dict[str, Any]]
    pretraining_steps: int
    settings: dict[str, Any]
    max_response_tokens: int
    is_correct: measures.Test | None = None
    held_out: int = 64


def judge(
    task: DemoTask,
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    params: SamplingParams,
    seed: int,
    *,
    greedy: bool,
) -> dict[str, Any]:
    """Sample responses, and compute the task's own measures, length and entropies.

    greedy: also the accuracy of greedy decoding, where the task has right answers.
    """
    sample = functools.partial(measures.sample_texts, sampler, tokenizer, prompts, seed=seed)
    groups, texts = sample(samples=EVALUATION_SAMPLES, params=params)
    metrics = task.measure(groups, texts) | measures.common_metrics(groups)
    if greedy and task.is_correct is not None:
        likeliest = SamplingParams(temperature=0, max_response_tokens=params.max_response_tokens)
        metrics["greedy_accuracy"] = measures.share(*sample(samples=1, params=likeliest), task.is_correct)
    return metrics


def sum_is_correct(text: str, prompt: Prompt) -> bool:
    return sums.is_correct(text, tuple(prompt.record["topic"]))


def measure_sums(groups: Sequence[Group], texts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Compute accuracy, pass@k and the share of answers in a box."""
    return {
        "accuracy": measures.share(groups, texts, sum_is_correct),
        "pass_at": measures.pass_at(groups, texts, sum_is_correct),
        "boxed_share": measures.share(groups, texts, lambda text, _: sums.is_boxed(text)),
    }


def measure_stories(groups: Sequence[Group], texts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Compute the shares of valid and of distinct responses."""
    return {
        "valid_share": measures.share(groups, texts, lambda text, prompt: stories.is_valid(text, prompt.record)),
        "distinct_share": measures.distinct_share(texts),
    }


SUMS = DemoTask(
    name="sums",
    title="Reasoning: two-digit additions, sharpened",
    alpha=4.0,
    labels=("base", "low_temperature", "alpha_4"),
    pieces=sums.PIECES,
    topics=sums.all_pairs,
    prompt=sums.prompt,
    respond=sums.write_response,
    measure=measure_sums,
    is_correct=sum_is_correct,
    pretraining_steps=700,
    max_response_tokens=48,
    settings={"run.steps": 100},
)

STORIES = DemoTask(
    name="stories",
    title="Creativity: one-line stories, flattened",
    alpha=0.5,
    labels=("story_base", "story_high_temperature", "story_alpha_0.5"),
    pieces=stories.PIECES,
    topics=stories.all_topics,
    prompt=stories.prompt,
    respond=stories.write_response,
    measure=measure_stories,
    pretraining_steps=550,
    max_response_tokens=24,
    settings={
        "objective.format_pattern": "null",
        "objective.format_check": "fastflow.demo.stories:is_valid",
        "objective.format_penalty": -3.0,
        "run.steps": 80,
    },
)
