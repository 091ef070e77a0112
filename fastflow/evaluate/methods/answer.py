"""What a method gives: an answer to grade, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastflow.data.response_text import ResponseText
from fastflow.data.trajectory import Prompt, Trajectory
from fastflow.evaluate.questions import Question
from fastflow.evaluate.task import Task
from fastflow.rollout.sampler import Request

Entry = tuple[int, Question, Prompt]  # the question's place in the task, the question, its tokens


@dataclass(frozen=True)
class Answer:
    """A response to grade. tokens: its length. logprob: nats, see docs/evaluate.md; None for a part of a trajectory.

    sampled_tokens: drawn from the model for it, kept or not. read_tokens: run through the model besides, for prefixes
    and scores. written: what the model wrote, where the response is only a part of it. response_ids: the tokens of a
    response that is a whole trajectory.
    """

    response: str
    tokens: int
    finish_reason: str
    logprob: float | None
    sampled_tokens: int
    read_tokens: int = 0
    written: str | None = None
    response_ids: tuple[int, ...] = ()


# Gives an answer for each seed of each request to a task, in order. An answer depends on its seed and prompt alone.
Method = Callable[[Task, Sequence[Entry], Sequence[Request]], list[list[Answer]]]


def answer_of(trajectory: Trajectory, text: ResponseText, *, sampled: int, read: int = 0) -> Answer:
    """Return the answer that a trajectory is. sampled, read: tokens, see Answer."""
    ids = trajectory.response_ids.tolist()
    return Answer(
        response=text.of(ids),
        tokens=len(trajectory),
        finish_reason=trajectory.finish_reason,
        logprob=float(trajectory.behaviour_logprobs.sum(dtype="float64")),
        sampled_tokens=sampled,
        read_tokens=read,
        response_ids=tuple(ids),
    )
