"""Judges a response by its text: the format penalty psi and, where the method has one that text decides, the reward."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fastflow.config.methods import ANSWER, POLICY_GRADIENTS
from fastflow.config.program import NO_PROGRAM, Program
from fastflow.config.schema import ObjectiveConfig
from fastflow.data.response_text import ResponseText, check_spelling, special_tokens, unescaped, with_literal_tokens
from fastflow.data.trajectory import Group, Trajectory, flatten, only
from fastflow.errors import FastflowError
from fastflow.objectives.answers import AnswerReader
from fastflow.objectives.label_free_rewards import empo, format_reward, random_reward, ttrl, unanswered
from fastflow.objectives.own_function import OwnFunction, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FormatCheck = Callable[[Sequence[str], Sequence[Source]], list[bool]]  # of texts and the records that they answer


@dataclass(frozen=True)
class Judgement:
    """What the texts of n trajectories decide, in flat order.

    text: see response_text. well_formed: None where no format is required. penalty: psi, nats. scores: each
    response's reward; None where text decides none. reward: what the objective takes: the scores, as they are for tba
    and the policy gradients, otherwise normalised within groups; zeros where there are none. seconds: that it took.
    """

    text: list[str]
    well_formed: list[bool] | None
    penalty: Float64[Tensor, " n"]
    reward: Float64[Tensor, " n"]
    scores: list[float] | None
    seconds: float = 0.0


class Judged(NamedTuple):
    """Groups, and what the texts of their trajectories decide."""

    groups: list[Group]
    judgement: Judgement

    def only(self, wanted: Sequence[bool]) -> Judged:
        """The trajectories that are wanted, in flat order, with their part of a judgement to which all have added."""
        kept = [number for number, is_wanted in enumerate(wanted) if is_wanted]
        judgement, well_formed, scores = self.judgement, self.judgement.well_formed, self.judgement.scores
        part = Judgement(
            [judgement.text[number] for number in kept],
            None if well_formed is None else [well_formed[number] for number in kept],
            judgement.penalty[kept],
            judgement.reward[kept],
            None if scores is None else [scores[number] for number in kept],
            judgement.seconds,
        )
        return Judged(only(self.groups, wanted), part)


class Judge:
    """Spells responses and judges their format and, where there is one, their reward.

    answers: reads and compares answers, where `settings.compares_answers` says so. program: has the functions that the
    settings cannot name.
    """

    def __init__(
        self,
        settings: ObjectiveConfig,
        tokenizer: PreTrainedTokenizerBase,
        answers: AnswerReader | None = None,
        program: Program = NO_PROGRAM,
    ):
        self._settings = settings
        self._answers = answers
        self._tokenizer = tokenizer
        self.end_with((tokenizer.eos_token_id,))
        self._are_well_formed = make_format_check(settings, special_tokens(tokenizer).values(), program)
        self._named = unescaped(settings.format_pattern or "")
        check_spelling(tokenizer, "objective.format_pattern", self._named)
        own_reward = settings.reward if settings.reward != ANSWER else None
        self._own_reward = OwnFunction("objective.reward", own_reward, program) if own_reward else None

    def end_with(self, end_ids: Collection[int]) -> None:
        """Set the tokens that end a response, where the model has other ones than the tokenizer."""
        self._text = ResponseText(self._tokenizer, end_ids)

    def __call__(self, groups: Sequence[Group]) -> Judgement:
        start = time.perf_counter()
        responses = flatten(groups)
        sources: list[Source] = [
            (group.prompt.source, group.prompt.record) for group in groups for _ in group.trajectories
        ]
        texts = [self._text.of(entry.response_ids.tolist()) for entry in responses]
        penalty = reward = torch.zeros(len(texts), dtype=torch.float64)
        well_formed = self._format(responses, texts, sources)
        if well_formed is not None:
            malformed = torch.tensor([not fine for fine in well_formed], dtype=torch.float64)
            penalty = self._settings.format_penalty * malformed
        scores = self._scores(groups, texts, sources, well_formed or ())
        if scores is not None:
            reward = torch.tensor(scores, dtype=torch.float64)
            if self._settings.name not in ("tba", *POLICY_GRADIENTS):
                reward = self._normalised(reward, groups)
        elif self._settings.name == "rent" and self._settings.rent_unanswered is not None:
            classes = self._reader.classes(texts, _sizes(groups))
            reward = torch.tensor(unanswered(classes, self._settings.rent_unanswered), dtype=torch.float64)
        return Judgement(texts, well_formed, penalty, reward, scores, time.perf_counter() - start)

    def close(self) -> None:
        """Release what reads the answers."""
        if self._answers is not None:
            self._answers.close()

    def _format(self, responses: list[Trajectory], texts: list[str], sources: list[Source]) -> list[bool] | None:
        """Whether each response is well-formed; None where no format is required."""
        if self._are_well_formed is None:
            return None
        if self._named:
            texts = [self._text.of(entry.response_ids.tolist(), naming=self._named) for entry in responses]
        return self._are_well_formed(texts, sources)

    def _scores(
        self, groups: Sequence[Group], texts: list[str], sources: list[Source], well_formed: Sequence[bool]
    ) -> list[float] | None:
        """Each response's reward: the user's, that of the record's answer, or what a method makes of texts itself. None
        where text decides none.
        """
        if self._own_reward is not None:
            return self._own_reward.numbers(texts, sources)
        if self._settings.reward == ANSWER:
            return [float(right) for right in self._reader.are_right(texts, [record for _, record in sources])]
        sizes = _sizes(groups)
        match self._settings.name:
            case "empo":
                return empo(self._reader.classes(texts, sizes), sizes, unparsed=self._settings.empo_unparsed)
            case "ttrl":
                return ttrl(self._reader.classes(texts, sizes), sizes)
            case "random_reward":
                return random_reward([entry.seed for entry in flatten(groups)])
            case "format_reward":
                return format_reward(well_formed)
        return None

    def _normalised(self, reward: Float64[Tensor, " n"], groups: Sequence[Group]) -> Float64[Tensor, " n"]:
        """Normalise within groups, among the responses of the loss; the others have no reward."""
        drops = self._settings.truncated == "drop"
        counts = [not drops or entry.finish_reason == "stop" for entry in flatten(groups)]
        sizes = _sizes(only(groups, counts))
        chosen, normal = torch.tensor(counts, dtype=torch.bool), torch.zeros_like(reward)
        if sizes:
            normal[chosen] = normalise_rewards(reward[chosen], sizes)
        return normal

    @property
    def _reader(self) -> AnswerReader:
        if self._answers is None:
            raise ValueError(f"objective.name = {self._settings.name} compares answers, and this Judge has no reader")
        return self._answers


def _sizes(groups: Sequence[Group]) -> list[int]:
    return [len(group.trajectories) for group in groups]


def make_format_check(
    settings: ObjectiveConfig, special_tokens: Collection[str] = (), program: Program = NO_PROGRAM
) -> FormatCheck | None:
    """Make the test for well-formed responses; None where the penalty is off.

    special_tokens: texts that stand for themselves in a format_pattern. Raises FastflowError for a broken pattern, and
    for a function that cannot be had.
    """
    if settings.format_check is not None:
        function = OwnFunction("objective.format_check", settings.format_check, program)
        return lambda texts, sources: [bool(value) for value in function.values(texts, sources)]
    if settings.format_pattern is None:
        return None
    try:
        pattern = re.compile(with_literal_tokens(settings.format_pattern, special_tokens), re.DOTALL)
    except re.error as error:
        raise FastflowError(
            f"objective.format_pattern {settings.format_pattern!r} is not a regular expression ({error}); correct it"
        ) from error
    return lambda texts, sources: [pattern.search(text) is not None for text in texts]


def normalise_rewards(reward: Float[Tensor, " n"], responses_per_group: list[int]) -> Float[Tensor, " n"]:
    """Scale rewards to zero mean and unit deviation within each group. Equal rewards, and a group of one, give zeros.

    The deviation is that of a sample (n - 1), as in FlowRL's code and in verl's.
    """
    above = [part - part.min() for part in reward.split(responses_per_group)]  # equal rewards: their mean is exact
    parts = [part - part.mean() for part in above]
    return torch.cat([part / (part.std(correction=min(len(part) - 1, 1)) + 1e-6) for part in parts])
