"""Judges a response by its text: the format penalty psi and, where the method has one that text decides, the reward."""

from __future__ import annotations

import functools
import logging
import math
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor

from fastflow.config.methods import ANSWER, POLICY_GRADIENTS
from fastflow.config.schema import ObjectiveConfig
from fastflow.data.response_text import ResponseText, check_spelling, special_tokens, unescaped
from fastflow.data.trajectory import Group, Prompt
from fastflow.errors import FastflowError, message_of
from fastflow.objectives.answers import AnswerReader
from fastflow.objectives.label_free_rewards import empo, format_reward, random_reward, ttrl, unanswered
from fastflow.objectives.trajectory_balance import load_function, make_format_check, normalise_rewards

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judgement:
    """What the texts of n trajectories decide, in flat order.

    text: see response_text. well_formed: None where no format is required. penalty: psi, nats per token. scores: each
    response's reward; None where text decides none. reward: what the objective takes: the scores, as they are for tba
    and the policy gradients, otherwise normalised within groups; zeros where there are none.
    """

    text: list[str]
    well_formed: list[bool] | None
    penalty: Float64[Tensor, " n"]
    reward: Float64[Tensor, " n"]
    scores: list[float] | None


def trained_on(groups: Sequence[Group], judgement: Judgement, count: int) -> tuple[list[Group], Judgement]:
    """The first `count` trajectories of each group with their part of a judgement to which the others have added."""
    places = [place for group in groups for place in range(len(group.trajectories))]
    kept = [number for number, place in enumerate(places) if place < count]
    cut = [replace(group, trajectories=group.trajectories[:count]) for group in groups]
    well_formed, scores = judgement.well_formed, judgement.scores
    return cut, Judgement(
        [judgement.text[number] for number in kept],
        None if well_formed is None else [well_formed[number] for number in kept],
        judgement.penalty[kept],
        judgement.reward[kept],
        None if scores is None else [scores[number] for number in kept],
    )


class Judge:
    """Spells responses and judges their format and, where there is one, their reward.

    answers: reads and compares answers, where `settings.compares_answers` says so.
    """

    def __init__(
        self, settings: ObjectiveConfig, tokenizer: PreTrainedTokenizerBase, answers: AnswerReader | None = None
    ):
        self._settings = settings
        self._answers = answers
        self._tokenizer = tokenizer
        self.end_with((tokenizer.eos_token_id,))
        self._is_well_formed = make_format_check(settings, special_tokens(tokenizer).values())
        self._named = unescaped(settings.format_pattern or "")
        check_spelling(tokenizer, "objective.format_pattern", self._named)
        own_reward = settings.reward if settings.reward != ANSWER else None
        self._reward = load_function(own_reward, "objective.reward") if own_reward else None

    def end_with(self, end_ids: Collection[int]) -> None:
        """Set the tokens that end a response, where the model has other ones than the tokenizer."""
        self._text = ResponseText(self._tokenizer, end_ids)

    def __call__(self, groups: Sequence[Group]) -> Judgement:
        prompts = [group.prompt for group in groups for _ in group.trajectories]
        ids = [trajectory.response_ids.tolist() for group in groups for trajectory in group.trajectories]
        texts = [self._text.of(tokens) for tokens in ids]
        well_formed = scores = None
        penalty = reward = torch.zeros(len(texts), dtype=torch.float64)
        if self._is_well_formed is not None:
            judged = [self._text.of(tokens, naming=self._named) for tokens in ids] if self._named else texts
            check = functools.partial(self._ask, "objective.format_check", self._is_well_formed)
            well_formed = [bool(check(*pair)) for pair in zip(judged, prompts, strict=True)]
            malformed = torch.tensor([not fine for fine in well_formed], dtype=torch.float64)
            penalty = self._settings.format_penalty * malformed
        sizes = [len(group.trajectories) for group in groups]
        if self._reward is not None or self._settings.reward == ANSWER:
            scores = self._rewards(texts, prompts)
        elif self._settings.name in POLICY_GRADIENTS:
            seeds = [trajectory.seed for group in groups for trajectory in group.trajectories]
            scores = self._label_free(texts, sizes, seeds, well_formed or ())
        if scores is not None:
            reward = torch.tensor(scores, dtype=torch.float64)
            if self._settings.name not in ("tba", *POLICY_GRADIENTS):
                reward = normalise_rewards(reward, sizes)
        elif self._settings.name == "rent" and self._settings.rent_unanswered is not None:
            classes = self._reader.classes(texts, sizes)
            reward = torch.tensor(unanswered(classes, self._settings.rent_unanswered), dtype=torch.float64)
        return Judgement(texts, well_formed, penalty, reward, scores)

    def close(self) -> None:
        """Release what reads the answers."""
        if self._answers is not None:
            self._answers.close()

    def _rewards(self, texts: list[str], prompts: list[Prompt]) -> list[float]:
        """What `objective.reward` makes of each response."""
        if self._reward is None:
            return [float(right) for right in self._reader.are_right(texts, [prompt.record for prompt in prompts])]
        return [self._score(self._reward, *pair) for pair in zip(texts, prompts, strict=True)]

    def _label_free(
        self, texts: list[str], sizes: list[int], seeds: list[int], well_formed: Sequence[bool]
    ) -> list[float] | None:
        """The rewards of a method that makes its own from texts; None for the other methods."""
        name = self._settings.name
        if name == "empo":
            return empo(self._reader.classes(texts, sizes), sizes, unparsed=self._settings.empo_unparsed)
        if name == "ttrl":
            return ttrl(self._reader.classes(texts, sizes), sizes)
        if name == "random_reward":
            return random_reward(seeds)
        return format_reward(well_formed) if name == "format_reward" else None

    @property
    def _reader(self) -> AnswerReader:
        if self._answers is None:
            raise ValueError(f"objective.name = {self._settings.name} compares answers, and this Judge has no reader")
        return self._answers

    def _ask(self, setting: str, function: Callable[..., Any], text: str, prompt: Prompt) -> Any:
        """Call a user's function. Raises FastflowError, with the record and the response, for whatever it raises."""
        try:
            return function(text, prompt.record)
        except (FastflowError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            logger.debug("%s raises", setting, exc_info=error)
            name = getattr(self._settings, setting.partition(".")[2])
            said = message_of(error, typed=True)
            inside = traceback.extract_tb(error.__traceback__)[1:2]  # empty where it cannot be called like this
            at = "".join(f" ({frame.filename}:{frame.lineno})" for frame in inside)
            raise FastflowError(
                f"{setting} = {name} raises {said}{at} for {_named(text, prompt)}; mend the function"
            ) from error

    def _score(self, reward: Callable[..., Any], text: str, prompt: Prompt) -> float:
        score = self._ask("objective.reward", reward, text, prompt)
        try:
            number = float(score)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise FastflowError(
                f"objective.reward = {self._settings.reward} returned {score!r:.100} for "
                f"{_named(text, prompt)}; it must return a finite number"
            )
        return number


def _named(text: str, prompt: Prompt) -> str:
    """Name a response in an error: how it begins, and the record that it answers."""
    return f"{text[:60]!r}" + (f", a response to {prompt.source}" if prompt.source else "")
