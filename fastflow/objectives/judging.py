"""Judges a response by its text: the format penalty psi and, for flowrl, the reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor

from fastflow.config.schema import ObjectiveConfig
from fastflow.data.response_text import ResponseText, check_spelling, special_tokens, unescaped
from fastflow.data.trajectory import Group
from fastflow.errors import FastflowError
from fastflow.objectives.trajectory_balance import load_function, make_format_check, normalise_rewards

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Judgement:
    """What the texts of n trajectories decide, in flat order.

    text: see response_text. well_formed: None where no format is required. penalty: psi, nats per token. reward:
    normalised within groups; zeros where there is none. scores: rewards before that; None where there are none.
    """

    text: list[str]
    well_formed: list[bool] | None
    penalty: Float64[Tensor, " n"]
    reward: Float64[Tensor, " n"]
    scores: list[float] | None


class Judge:
    """Spells responses and judges their format and, where one is set, their reward."""

    def __init__(self, settings: ObjectiveConfig, tokenizer: PreTrainedTokenizerBase):
        self._settings = settings
        self._tokenizer = tokenizer
        self.end_with((tokenizer.eos_token_id,))
        self._is_well_formed = make_format_check(settings, special_tokens(tokenizer).values())
        self._named = unescaped(settings.format_pattern or "")
        check_spelling(tokenizer, "objective.format_pattern", self._named)
        self._reward = load_function(settings.reward, "objective.reward") if settings.reward else None

    def end_with(self, end_ids: Collection[int]) -> None:
        """Set the tokens that end a response, where the model has other ones than the tokenizer."""
        self._text = ResponseText(self._tokenizer, end_ids)

    def __call__(self, groups: Sequence[Group]) -> Judgement:
        records = [group.prompt.record for group in groups for _ in group.trajectories]
        ids = [trajectory.response_ids.tolist() for group in groups for trajectory in group.trajectories]
        texts = [self._text.of(tokens) for tokens in ids]
        well_formed = scores = None
        penalty = reward = torch.zeros(len(texts), dtype=torch.float64)
        if self._is_well_formed is not None:
            judged = [self._text.of(tokens, naming=self._named) for tokens in ids] if self._named else texts
            well_formed = [bool(self._is_well_formed(*pair)) for pair in zip(judged, records, strict=True)]
            malformed = torch.tensor([not fine for fine in well_formed], dtype=torch.float64)
            penalty = self._settings.format_penalty * malformed
        if self._reward is not None:
            scores = [self._score(self._reward, *pair) for pair in zip(texts, records, strict=True)]
            reward = normalise_rewards(
                torch.tensor(scores, dtype=torch.float64), [len(group.trajectories) for group in groups]
            )
        return Judgement(texts, well_formed, penalty, reward, scores)

    def _score(self, reward: Callable[..., Any], text: str, record: dict[str, Any]) -> float:
        score = reward(text, record)
        try:
            number = float(score)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise FastflowError(
                f"objective.reward = {self._settings.reward} returned {score!r} for {text[:60]!r}; it must "
                "return a finite number"
            )
        return number
