"""What an evaluation asks: a task with its questions, whose gold answers were tried."""

from __future__ import annotations

from dataclasses import dataclass

from fastflow.config.program import NO_PROGRAM, Program
from fastflow.errors import FastflowError
from fastflow.evaluate.graders.pool import GraderPool
from fastflow.evaluate.questions import Question, read_questions
from fastflow.evaluate.task import Task
from fastflow.objectives.own_function import OwnFunction


@dataclass(frozen=True)
class Work:
    """One task and its questions. reward: what gives responses their numbers, where the task names it."""

    task: Task
    questions: list[Question]
    reward: OwnFunction | None = None


def read_work(task: Task, *, folder: str | None, limit: int, program: Program = NO_PROGRAM) -> Work:
    """A task with its questions and, where it names one, its function. folder, limit: see read_questions."""
    reward = OwnFunction("eval.reward", task.reward, program) if task.is_rewarded else None
    return Work(task, read_questions(task, folder=folder, limit=limit), reward)


def check_golds(work: Work, pool: GraderPool) -> None:
    """Raise FastflowError where the task's grader does not take each of its gold answers for right."""
    if work.task.is_creative or work.task.is_rewarded:
        return
    items = [question.item(work.task, "") for question in work.questions]
    bad = [work.questions[place] for place in pool.unequal_golds(items)]
    if bad:
        raise FastflowError(
            f"task {work.task.name}: {len(bad)} of {len(items)} gold answers do not equal themselves for the grader "
            f"{work.task.grader} (first: {bad[0].gold!r} at {bad[0].source}); mend them, or choose another grader"
        )
