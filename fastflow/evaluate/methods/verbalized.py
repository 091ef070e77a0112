"""Verbalized sampling (arXiv 2510.01171): the model writes answers with probabilities, and one is drawn by these."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from fastflow.data.response_text import ResponseText
from fastflow.evaluate.methods.answer import Answer, Entry, Method, answer_of
from fastflow.evaluate.task import Task
from fastflow.rollout.sampler import Request, Sampler, SamplingParams

VERSION = 2  # of what an answer is, for results that are kept
_STREAM = 3  # of random numbers beside the engine's
_TEXTS = ("text", "response", "answer", "content", "output")
_PROBABILITIES = ("probability", "prob", "p", "likelihood", "confidence")
_LATEX = re.compile(  # a backslash that stands for itself, though JSON wants two
    r"(?<!\\)\\(?=[bf][a-z]{2}|text|times|theta|tan|tau|tfrac|neq|not\b|right|rangle|rho"
    r"""|u(?![0-9a-fA-F]{4})|[^"\\/bfnrtu])"""
    # after a blank, a bracket or a symbol alone; elsewhere a new line may begin with the word e
    r"|(?:(?<=[\s$(){}\[\]])|(?<=\b\w))\\(?=(?:to|ne|nu)\b)"
)
_OPENING = re.compile(  # of a value, not of a formula
    r"""\{(?=\s*["}])|\[(?=\s*(?:[\[\]{"\d-]|true|false|null|NaN|Infinity))"""
)
_MOST_FAILURES = 200  # openings that open no whole value: each is read to its end, and models that loop write thousands
_PAIR = re.compile(
    rf'"(?:{"|".join(_TEXTS)})"\s*:\s*"((?:[^"\\]|\\.)*)"\s*,\s*'
    rf'"(?:{"|".join(_PROBABILITIES)})"\s*:\s*(?:"\s*)?([\d.eE+-]+)\s*(%?)',
    re.DOTALL,
)


@dataclass(frozen=True)
class Stated:
    """One answer, and the probability that the model states for it."""

    text: str
    probability: float


class _Number(NamedTuple):
    """A number as it is written. is_share: whether a % follows it."""

    value: float
    is_share: bool


_NONE = _Number(0.0, is_share=False)


def instruction(candidates: int, tail: float | None) -> str:
    """Return what asks for several answers. tail: asks for answers that are less likely than this."""
    which = (
        "Draw them at random from all the answers that you could give."
        if tail is None
        else f"Draw them at random from the unlikely ones: each with a probability below {tail:g}."
    )
    return (
        f"Give {candidates} different complete answers to the request. {which} "
        'Write one JSON object and nothing else: {"responses": [{"text": "the whole answer", "probability": 0.0}]}. '
        "The probability is the share of times that you would give this answer, a number from 0 to 1."
    )


def parse(written: str) -> list[Stated]:
    """Read the answers that a model wrote, leniently: fences, other names of fields, percentages, LaTeX whose
    backslashes are not doubled, an object that was cut off. Returns none where nothing can be read.
    """
    for candidate in _objects(written):
        found = [entry for entry in map(_read, _list_in(candidate)) if entry is not None]
        if found:
            return _on_one_scale(found)
    return _on_one_scale(
        [(_unescaped(text), _number(number + percent) or _NONE) for text, number, percent in _PAIR.findall(written)]
    )


def choose(stated: Sequence[Stated], seed: int) -> int:
    """Draw the place of an answer by the stated probabilities, uniformly where they are all 0."""
    weights = np.array([entry.probability for entry in stated])
    weights = weights if weights.sum() > 0 else np.ones_like(weights)
    return int(np.random.default_rng([seed, _STREAM]).choice(len(stated), p=weights / weights.sum()))


def verbalized_sampling(
    sampler: Sampler, text: ResponseText, params: SamplingParams, *, count: Callable[[str], int]
) -> Method:
    """Make a method that draws each answer from one list that the model writes; all of it counts as the cost.

    The prompts must ask for a list: see `instruction`. What cannot be read is the answer as it stands. The finish
    reason is that of what was written; `tokens` counts those of the answer alone, which has no log-probability and no
    tokens of its own. count: the tokens of a text.
    """

    def drawn(whole: Answer, seed: int) -> Answer:
        stated = parse(whole.response)
        if not stated:
            return replace(whole, written=whole.response)
        said = stated[choose(stated, seed)].text
        return replace(whole, response=said, tokens=count(said), written=whole.response, logprob=None, response_ids=())

    def answers(task: Task, entries: Sequence[Entry], requests: Sequence[Request]) -> list[list[Answer]]:
        groups = sampler.sample(requests, params)
        return [
            [
                drawn(answer_of(entry, text, sampled=len(entry)), seed)
                for seed, entry in zip(request.seeds, group.trajectories, strict=True)
            ]
            for request, group in zip(requests, groups, strict=True)
        ]

    return answers


def _objects(written: str) -> list[Any]:
    """The JSON values that can be read, none within another: first those that hold a list, then all as one list."""
    found, start, failures = [], 0, 0
    mended = _LATEX.sub(r"\\\\", written)
    decoder = json.JSONDecoder(strict=False)
    while failures < _MOST_FAILURES and (match := _OPENING.search(mended, start)) is not None:
        try:
            value, start = decoder.raw_decode(mended, match.start())
            found.append(value)
        except (ValueError, RecursionError):
            start = match.start() + 1
            failures += 1
    return [*(value for value in found if _list_in(value)), found]


def _list_in(value: Any) -> list[Any]:
    """The list of answers: the value, or the first list of a mapping."""
    if isinstance(value, dict):
        value = next((entry for entry in value.values() if isinstance(entry, list)), None)
    return value if isinstance(value, list) else []


def _on_one_scale(found: Sequence[tuple[str, _Number]]) -> list[Stated]:
    """The numbers of one list as probabilities: all without a % are percentages where one of them is above 1."""
    largest = max((number.value for _, number in found if not number.is_share), default=0.0)
    scale = max(100.0, largest) if largest > 1 else 1.0
    return [
        Stated(text, min(1.0, number.value / 100) if number.is_share else number.value / scale)
        for text, number in found
    ]


def _read(entry: Any) -> tuple[str, _Number] | None:
    if not isinstance(entry, dict):
        return None
    lowered = {str(key).lower(): value for key, value in entry.items()}
    text = next((lowered[name] for name in _TEXTS if isinstance(lowered.get(name), (str, int, float))), None)
    if text is None or isinstance(text, bool) or not str(text).strip():
        return None
    number = next((_number(lowered[name]) for name in _PROBABILITIES if name in lowered), None)
    return str(text), number or _NONE


def _number(value: Any) -> _Number | None:
    """A number, or a text of one, such as "0.3" or "30 %"."""
    if isinstance(value, bool):
        return None
    share = str(value).strip().endswith("%")
    try:
        number = float(str(value).strip().rstrip("%").strip())
    except ValueError:
        return None
    if not math.isfinite(number) or number < 0:
        return None
    return _Number(number, share)


def _unescaped(text: str) -> str:
    try:
        return str(json.loads(f'"{_LATEX.sub(chr(92) * 4, text)}"', strict=False))
    except ValueError:
        return text
