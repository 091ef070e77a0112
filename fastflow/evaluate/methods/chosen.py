"""Methods that sample several candidates for each answer and choose one: best of n, and the majority vote."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from fastflow.data.response_text import ResponseText
from fastflow.data.trajectory import Group, Trajectory
from fastflow.evaluate.graders.pool import GraderPool
from fastflow.evaluate.majority import NO_ANSWER, votes
from fastflow.evaluate.methods.answer import Answer, Entry, answer_of
from fastflow.evaluate.task import Task
from fastflow.models.packed import PackedModel
from fastflow.rollout.power.proposal import score
from fastflow.rollout.sampler import OnProgress, Request, Sampler, SamplingParams


class Choice(Protocol):
    """Chooses among candidates. read: whether it scores them, so that each is read again."""

    read: bool

    def choose(self, entries: Sequence[Entry], groups: Sequence[Group]) -> list[int]:
        """Return the place of the chosen candidate of each group. entries: the question of each group."""


class ChosenOfSeveral:
    """Each answer is the choice from `candidates` samples of its own, whose seeds come from the answer's."""

    def __init__(
        self,
        sampler: Sampler,
        text: ResponseText,
        params: SamplingParams,
        *,
        candidates: int,
        choice: Choice,
        on_progress: OnProgress,
    ):
        self._sampler, self._text, self._params = sampler, text, params
        self._candidates, self._choice, self._on_progress = candidates, choice, on_progress

    def answers(self, entries: Sequence[Entry], requests: Sequence[Request]) -> list[list[Answer]]:
        """Return the chosen candidates with the tokens of all."""
        owners = [entry for entry, request in zip(entries, requests, strict=True) for _ in request.seeds]
        wider = [
            Request(request.prompt, candidate_seeds(seed, self._candidates))
            for request in requests
            for seed in request.seeds
        ]
        groups = self._sampler.sample(wider, self._params)
        chosen = self._choice.choose(owners, groups)
        found = [self._answer(group, place) for group, place in zip(groups, chosen, strict=True)]
        self._on_progress(len(found))
        answers = iter(found)
        return [list(itertools.islice(answers, len(request.seeds))) for request in requests]

    def _answer(self, group: Group, place: int) -> Answer:
        tokens = sum(map(len, group.trajectories))
        read = tokens + len(group.prompt.ids) * len(group.trajectories) if self._choice.read else 0
        return answer_of(group.trajectories[place], self._text, sampled=tokens, read=read)


def candidate_seeds(seed: int, count: int) -> tuple[int, ...]:
    """Return different seeds for the candidates of an answer, from that of the answer."""
    states = np.random.SeedSequence([seed, count]).generate_state(count, np.uint64) >> np.uint64(1)  # fits int64
    return tuple(states.tolist())


class Likeliest:
    """Chooses the candidate of largest total log-probability under the model at temperature 1.

    engine: what draws the candidates. The log-probs of any but the local one are its own, and not the model's to the
    last bit.
    """

    def __init__(self, policy: PackedModel, params: SamplingParams, engine: str):
        self._policy = policy
        self.read = engine != "local" or bool(params.drawn_otherwise)

    def choose(self, entries: Sequence[Entry], groups: Sequence[Group]) -> list[int]:
        """Return the first of the likeliest. What the local engine draws from the model's own distribution has its
        score already.
        """
        if self.read:
            totals = [[float(array.sum()) for array in arrays] for arrays in score(self._policy, groups)]
        else:
            totals = [[_total(entry) for entry in group.trajectories] for group in groups]
        return [int(np.argmax(values)) for values in totals]


class MostFrequent:
    """Chooses a candidate that gives the most frequent answer, where answers that are equal to the grader are one.

    No gold answer is looked at. The first of the largest class is taken, and the first class where several are largest;
    the first candidate where none gives an answer.
    """

    read = False

    def __init__(self, text: ResponseText, task: Task, pool: GraderPool):
        self._text, self._task, self._pool = text, task, pool

    def choose(self, entries: Sequence[Entry], groups: Sequence[Group]) -> list[int]:
        """Return the first candidate of the largest class of each group."""
        items, rows = [], []
        for number, ((_, question, _), group) in enumerate(zip(entries, groups, strict=True)):
            for entry in group.trajectories:
                items.append(question.item(self._task, self._text.of(entry.response_ids.tolist())))
                rows.append({"question": number, "answer": ""})
        for row, (_, answer) in zip(rows, self._pool.judge(items), strict=True):
            row["answer"] = answer
        classes = iter(votes(rows, self._task.grader, self._pool))
        return [_first_of_largest([next(classes) for _ in group.trajectories]) for group in groups]


def _first_of_largest(classes: Sequence[int]) -> int:
    counts = Counter(name for name in classes if name != NO_ANSWER)
    return classes.index(counts.most_common(1)[0][0]) if counts else 0


def _total(entry: Trajectory) -> float:
    return float(entry.behaviour_logprobs.sum(dtype=np.float64))
