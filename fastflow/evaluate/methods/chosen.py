"""Methods that sample several candidates for each answer and choose one: best of n, and the majority vote."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fastflow.data.response_text import ResponseText
from fastflow.data.trajectory import Group
from fastflow.evaluate.graders.pool import GraderPool
from fastflow.evaluate.majority import NO_ANSWER, votes
from fastflow.evaluate.methods.answer import Answer, Entry, Method, answer_of
from fastflow.evaluate.task import Task
from fastflow.models.packed import PackedModel
from fastflow.rollout.power.proposal import score
from fastflow.rollout.sampler import OnProgress, Request, Sampler, SamplingParams


@dataclass(frozen=True)
class Choice:
    """Chooses among candidates. place_in: the place of the chosen one in each group, whose question is in the entry.

    reads: whether it scores the candidates, so that the model reads each again.
    """

    place_in: Callable[[Task, Sequence[Entry], Sequence[Group]], list[int]]
    reads: bool = False


def chosen_of_several(
    sampler: Sampler,
    text: ResponseText,
    params: SamplingParams,
    *,
    candidates: int,
    choice: Choice,
    on_progress: OnProgress,
) -> Method:
    """Make a method that chooses each answer from `candidates` samples of its own, whose seeds come from the answer's.

    An answer costs all of its candidates.
    """

    def answer(group: Group, place: int) -> Answer:
        tokens = sum(map(len, group.trajectories))
        read = tokens + len(group.prompt.ids) * len(group.trajectories) if choice.reads else 0
        return answer_of(group.trajectories[place], text, sampled=tokens, read=read)

    def answers(task: Task, entries: Sequence[Entry], requests: Sequence[Request]) -> list[list[Answer]]:
        owners = [entry for entry, request in zip(entries, requests, strict=True) for _ in request.seeds]
        wider = [
            Request(request.prompt, candidate_seeds(seed, candidates)) for request in requests for seed in request.seeds
        ]
        groups = sampler.sample(wider, params)
        chosen = choice.place_in(task, owners, groups)
        found = [answer(group, place) for group, place in zip(groups, chosen, strict=True)]
        on_progress(len(found))
        left = iter(found)
        return [list(itertools.islice(left, len(request.seeds))) for request in requests]

    return answers


def candidate_seeds(seed: int, count: int) -> tuple[int, ...]:
    """Return different seeds for the candidates of an answer, from that of the answer."""
    states = np.random.SeedSequence([seed, count]).generate_state(count, np.uint64) >> np.uint64(1)  # fits int64
    return tuple(states.tolist())


def likeliest(policy: PackedModel, params: SamplingParams, engine: str) -> Choice:
    """Choose the candidate of largest total log-probability under the model at temperature 1, the first of several.

    What the local engine draws from the model's own distribution has its score already. The log-probs of any other
    engine are its own, and not the model's to the last bit.
    """
    reads = engine != "local" or bool(params.drawn_otherwise)

    def place_in(task: Task, entries: Sequence[Entry], groups: Sequence[Group]) -> list[int]:
        if reads:
            totals = [[float(array.sum()) for array in arrays] for arrays in score(policy, groups)]
        else:
            totals = [
                [float(entry.behaviour_logprobs.sum(dtype=np.float64)) for entry in group.trajectories]
                for group in groups
            ]
        return [int(np.argmax(values)) for values in totals]

    return Choice(place_in, reads)


def most_frequent(text: ResponseText, pool: GraderPool) -> Choice:
    """Choose a candidate that gives the most frequent answer, where answers that are equal to the grader are one.

    No gold answer is looked at. The first of the largest class is taken, and the first class where several are largest;
    the first candidate where none gives an answer.
    """

    def place_in(task: Task, entries: Sequence[Entry], groups: Sequence[Group]) -> list[int]:
        items, rows = [], []
        for number, ((_, question, _), group) in enumerate(zip(entries, groups, strict=True)):
            for entry in group.trajectories:
                items.append(question.item(task, text.of(entry.response_ids.tolist())))
                rows.append({"question": number, "answer": ""})
        for row, (_, answer) in zip(rows, pool.judge(items), strict=True):
            row["answer"] = answer
        classes = iter(votes(rows, task.grader, pool))
        return [_first_of_largest([next(classes) for _ in group.trajectories]) for group in groups]

    return Choice(place_in)


def _first_of_largest(classes: Sequence[int]) -> int:
    counts = Counter(name for name in classes if name != NO_ANSWER)
    return classes.index(counts.most_common(1)[0][0]) if counts else 0
