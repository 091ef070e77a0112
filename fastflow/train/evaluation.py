"""Evaluation during training: the policy's present weights answer the tasks' questions, by the run's own sampler.

Training does not depend on it: seeds are its own, and every random state is put back afterwards.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastflow.config.program import NO_PROGRAM, Program
from fastflow.config.schema import Config, EvalConfig
from fastflow.config.setting import suggest
from fastflow.counted import counted
from fastflow.data.response_text import ResponseText
from fastflow.data.trajectory import Prompt
from fastflow.errors import FastflowError, need
from fastflow.evaluate import responses
from fastflow.evaluate.conditions import sampling
from fastflow.evaluate.keys import key_of
from fastflow.evaluate.methods.answer import Entry, answer_of
from fastflow.evaluate.prompts import tokenize_questions
from fastflow.evaluate.questions import as_json
from fastflow.evaluate.task import Task, check_reward, find_task
from fastflow.evaluate.work import Work, check_golds, read_work
from fastflow.models.layers.rope import context_of
from fastflow.models.packed import PackedModel
from fastflow.models.ranks import Ranks
from fastflow.models.tokenizer import end_ids
from fastflow.rollout.admission import check_tokens
from fastflow.rollout.sampler import SamplingParams
from fastflow.rollout.schedule import Schedule
from fastflow.run import generators
from fastflow.run.evaluated import SECONDS, names_of
from fastflow.train.answers import grader_pool
from fastflow.train.curve import Best, Curve, best_of
from fastflow.train.progress import RunProgress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def find_tasks(config: Config) -> list[Task]:
    """The tasks that `eval.tasks` names; none where nothing is to be evaluated. Their questions are not read.

    Raises FastflowError for unknown tasks, and for a run.best_metric that no evaluation measures.
    """
    settings = config.eval
    if not settings.every:
        return []
    for module in ("pyarrow", "pyarrow.parquet"):
        need(module, extra="eval", purpose="eval.every, which keeps the responses,")
    check_reward(settings.reward, settings.tasks, has_grader=settings.grader != EvalConfig().grader)
    tasks = [find_task(name, grader=settings.grader, reward=settings.reward) for name in settings.tasks]
    for task in tasks:
        if task.is_creative:
            logger.warning(
                "eval.tasks: %s is left out, since a creative task needs a judge; `fastflow evaluate RUN --tasks %s` "
                "measures it after the run", task.name, task.name,
            )  # fmt: skip
    tasks = [task for task in tasks if not task.is_creative]
    if not tasks:
        raise FastflowError("eval.tasks names creative tasks only, which need a judge; add a task with answers")
    names = [task.name for task in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise FastflowError(f"two tasks of eval.tasks are called {twice[0]}; give each once, or rename one's file")
    best = config.run.best_metric
    rewarded = [task.name for task in tasks if task.is_rewarded]
    known = names_of([name for name in names if name not in rewarded], settings.samples, rewarded)
    if best is not None and best not in known:
        raise FastflowError(f"run.best_metric = {best} is not measured by eval.tasks: {suggest(best, known)}")
    return tasks


def read_works(
    tasks: Sequence[Task], config: Config, *, try_golds: bool = True, program: Program = NO_PROGRAM
) -> list[Work]:
    """Read the tasks' questions. try_golds: whether each gold answer is graded too. program: has functions that the
    settings cannot name.

    Raises FastflowError for rows that are no questions, and gold answers that do not equal themselves.
    """
    settings = config.eval
    folder, limit = settings.data_folder, settings.limit
    works = [read_work(task, folder=folder, limit=limit, program=program) for task in tasks]
    if works and try_golds:
        with grader_pool({work.task.grader for work in works}) as pool:
            for work in works:
                check_golds(work, pool)
    return works


class Evaluation:
    """Asks the works' questions when `eval` says so; without works, never."""

    def __init__(
        self, works: Sequence[Work], config: Config, policy: PackedModel, tokenizer: PreTrainedTokenizerBase, run: Path
    ):
        self._works, self._config, self._policy = works, config, policy
        self._text = ResponseText(tokenizer, end_ids(policy, tokenizer))
        self._prompts = [_prompts(work, tokenizer, config) for work in works]
        for prompts in self._prompts:
            check_tokens(policy, prompts)
        self._pool = grader_pool({work.task.grader for work in works})
        settings, rollout = config.eval, config.rollout
        self._params = SamplingParams.of(
            rollout,
            **sampling(settings),
            max_response_tokens=settings.max_response_tokens or rollout.max_response_tokens,
        )
        self.curve = Curve(run, [work.task for work in works], config)
        self.room = self._room()

    def _room(self) -> int:
        """Tokens of the longest question with its response. Raises FastflowError where the model has no such room."""
        if not self._works:
            return 0
        longest = max((prompt for prompts in self._prompts for prompt in prompts), key=lambda prompt: len(prompt.ids))
        room, context = len(longest.ids) + self._params.max_response_tokens, context_of(self._policy.causal_lm.config)
        if context is not None and room > context:
            raise FastflowError(
                f"{longest.source} has {counted(len(longest.ids), 'token')}; with eval.max_response_tokens = "
                f"{self._params.max_response_tokens} that exceeds the model's context of {context}; lower "
                "eval.max_response_tokens, or leave the task out"
            )
        return room

    @property
    def digest(self) -> str:
        """What all ranks must have read alike."""
        return key_of([[work.task.asked(), *map(as_json, work.questions)] for work in self._works])

    def describe(self) -> str:
        """What is asked, for the console; nothing without works."""
        each = counted(self._config.eval.samples, "response")
        return ", ".join(
            f"{work.task.name} ({counted(len(work.questions), 'question')} x {each})" for work in self._works
        )

    def take_up(self, step: int, ranks: Ranks) -> None:
        """Go on with a run whose first steps, so many, are done. A collective."""
        if not self._works:
            return
        with ranks.together():
            if ranks.is_first:
                self.curve.take_up(step)
        self.curve.evaluated = ranks.from_first(self.curve.evaluated)

    def is_due_at_start(self, updates: int) -> bool:
        """Whether the base is still to be evaluated. updates: that the run has done."""
        return bool(self._works) and self._config.eval.at_start and updates == 0 and not self.curve.evaluated

    def is_due(self, step: int) -> bool:
        """Whether an evaluation follows a step."""
        return self._config.eval.is_due(step, self._config.run.steps)

    def carry_out(
        self, step: int, schedule: Schedule, ranks: Ranks, progress: RunProgress, stop_if_asked: Callable[[], None]
    ) -> dict[str, Any]:
        """Evaluate the policy after a step. Returns its metrics, on all ranks; the first grades and writes.

        stop_if_asked: called between two tasks, where all ranks can stop.
        """
        started, states = time.perf_counter(), generators.capture()
        rows: dict[str, list[responses.Row]] = {}
        for work, prompts in zip(self._works, self._prompts, strict=True):
            stop_if_asked()
            settings = self._config.eval
            requests = responses.requests_of(prompts, settings.samples, settings.seed, work.task.name)
            progress.phase(f"asking {work.task.name}", len(prompts) * self._config.eval.samples)
            groups = schedule.draw(requests, self._params)
            answers = [[answer_of(one, self._text, sampled=len(one)) for one in group.trajectories] for group in groups]
            progress.phase(f"grading {work.task.name}", None)
            with ranks.together():
                if ranks.is_first:
                    entries: list[Entry] = list(zip(range(len(prompts)), work.questions, prompts, strict=True))
                    rows[work.task.name] = responses.grade_part(answers, self._pool, work, entries, requests)
        stop_if_asked()
        with ranks.together():
            if ranks.is_first:
                asked = {work.task.name: [as_json(question) for question in work.questions] for work in self._works}
                self.curve.add(step, rows, asked)
        self.curve.evaluated = ranks.from_first(self.curve.evaluated)
        generators.restore(states)
        return {**self.curve.evaluated[-1].metrics, SECONDS: time.perf_counter() - started}

    def is_new_best(self, step: int) -> bool:
        """Whether run.best_metric is best after this step, of all that can be saved."""
        name = self._config.run.best_metric
        if name is None or not self.curve.evaluated or self.curve.evaluated[-1].step != step:
            return False
        trained = [one for one in self.curve.evaluated if one.step > 0]
        best = best_of(trained, name, self._config.run.best_is)
        return best is not None and best.step == step

    def why_enough(self) -> str | None:
        """Why the run ends here: `eval.patience` evaluations without an improvement. None where it goes on."""
        patience, best = self._config.eval.patience, self.best()
        if not patience or best is None or best.since < patience:
            return None
        last = self.curve.evaluated[-1].step
        return (
            f"stopped early after step {last}: {self._config.run.best_metric} has not improved in "
            f"{counted(best.since, 'evaluation')} (eval.patience = {patience}) since step {best.step}, where it was "
            f"{best.value:.4g}"
        )

    def best(self) -> Best | None:
        """The best evaluation by run.best_metric."""
        name = self._config.run.best_metric
        return None if name is None else best_of(self.curve.evaluated, name, self._config.run.best_is)

    def close(self) -> None:
        """End the processes that grade."""
        self._pool.close()


def _prompts(work: Work, tokenizer: PreTrainedTokenizerBase, config: Config) -> list[Prompt]:
    """The questions as the training's prompts are put, but for data.suffix: a task has a prompt of its own."""
    data = config.data
    return tokenize_questions(
        work.questions, tokenizer, chat_template=data.chat_template, system=data.system,
        template_arguments=data.template_arguments,
    )  # fmt: skip
