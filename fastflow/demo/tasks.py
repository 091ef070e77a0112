"""The demo's two tasks: additions to sharpen and stories to flatten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastflow.data.trajectory import Prompt
from fastflow.demo import stories, sums
from fastflow.evaluate import metrics as evaluate
from fastflow.rollout.sampler import Sampler, SamplingParams

EVALUATION_SAMPLES = 16


@dataclass(frozen=True)
class Task:
    """One direction of the knob.

    topics: (seed, held_out) -> topics to train on, topics held out. prompt, respond: the corpus on one topic.
    judge: see judge_sums. settings: what differs from the `demo` preset.
    labels: names in the comparison of the base, of the base at token-wise temperature 1/alpha, and of the policy.
    """

    name: str
    title: str
    alpha: float
    labels: tuple[str, str, str]
    pieces: Sequence[str]
    topics: Callable[[int, int], tuple[list[Any], list[Any]]]
    prompt: Callable[[Any], str]
    respond: Callable[[Any, np.random.Generator], str]
    judge: Callable[..., dict[str, Any]]
    pretraining_steps: int
    settings: dict[str, Any]
    max_response_tokens: int
    held_out: int = 64


def judge_sums(
    sampler: Sampler, tokenizer, prompts: list[Prompt], params: SamplingParams, seed: int, *, greedy: bool
) -> dict[str, Any]:
    """Accuracy, greedy accuracy, pass@k, boxed share, length and entropies on held-out additions."""

    def correct(text: str, prompt: Prompt) -> bool:
        return sums.is_correct(text, tuple(prompt.record["topic"]))

    groups, texts = evaluate.sample_texts(
        sampler, tokenizer, prompts, samples=EVALUATION_SAMPLES, params=params, seed=seed
    )
    metrics = {
        "accuracy": evaluate.share(groups, texts, correct),
        "pass_at": evaluate.pass_at(groups, texts, correct),
        "boxed_share": evaluate.share(groups, texts, lambda text, _: sums.is_boxed(text)),
        **evaluate.common_metrics(groups),
    }
    if greedy:
        params = SamplingParams(temperature=0, max_response_tokens=params.max_response_tokens)
        greedy_groups, greedy_texts = evaluate.sample_texts(
            sampler, tokenizer, prompts, samples=1, params=params, seed=seed
        )
        metrics["greedy_accuracy"] = evaluate.share(greedy_groups, greedy_texts, correct)
    return metrics


def judge_stories(
    sampler: Sampler, tokenizer, prompts: list[Prompt], params: SamplingParams, seed: int, *, greedy: bool
) -> dict[str, Any]:
    """Valid share, distinct responses, length and entropies on held-out topics. Greedy decoding says nothing here."""
    groups, texts = evaluate.sample_texts(
        sampler, tokenizer, prompts, samples=EVALUATION_SAMPLES, params=params, seed=seed
    )
    return {
        "valid_share": evaluate.share(groups, texts, lambda text, prompt: stories.is_valid(text, prompt.record)),
        "distinct_share": evaluate.distinct_share(texts),
        **evaluate.common_metrics(groups),
    }


SUMS = Task(
    name="sums",
    title="Reasoning: two-digit additions, sharpened",
    alpha=4.0,
    labels=("base", "low_temperature", "alpha_4"),
    pieces=sums.PIECES,
    topics=sums.all_pairs,
    prompt=sums.prompt,
    respond=sums.write_response,
    judge=judge_sums,
    pretraining_steps=700,
    max_response_tokens=48,
    settings={"run.steps": 100},
)

STORIES = Task(
    name="stories",
    title="Creativity: one-line stories, flattened",
    alpha=0.5,
    labels=("story_base", "story_high_temperature", "story_alpha_0.5"),
    pieces=stories.PIECES,
    topics=stories.all_topics,
    prompt=stories.prompt,
    respond=stories.write_response,
    judge=judge_stories,
    pretraining_steps=550,
    max_response_tokens=24,
    settings={
        "objective.format_pattern": "null",
        "objective.format_check": "fastflow.demo.stories:is_valid",
        "objective.format_penalty": -3.0,
        "run.steps": 80,
    },
)
