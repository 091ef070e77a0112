"""Responses with their grades, in parquet: written part by part, so that a killed evaluation goes on where it was.

A part holds a fixed number of prompts and depends on nothing but the settings; the finished file is its parts joined.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastflow.data.trajectory import Prompt
from fastflow.errors import FastflowError, need
from fastflow.evaluate.creative.effective_alpha import LogprobScorer
from fastflow.evaluate.graders.pool import GraderPool
from fastflow.evaluate.keys import key_of
from fastflow.evaluate.majority import NO_ANSWER, votes
from fastflow.evaluate.methods.answer import Answer, Entry
from fastflow.evaluate.work import Work
from fastflow.rollout.sampler import Request, requests_for
from fastflow.run.durable import publish_file
from fastflow.run.output_file import writing

COLUMNS = (
    "question", "source", "prompt", "gold", "sample", "seed", "response", "tokens", "finish_reason", "logprob",
    "answer", "verdict", "well_formed", "vote_class", "sampled_tokens", "read_tokens", "written",
    "policy_logprob", "base_logprob", "prompt_ids", "response_ids", "reward",
)  # fmt: skip
SEEDS = "by task and place"  # what the seeds of requests_of depend on, beside eval.seed
Row = dict[str, Any]


@dataclass(frozen=True)
class Store:
    """The file of one model's responses to one task, and its parts while it is being made.

    key: digest of everything that decides its content, the version of the graders included.
    """

    directory: Path
    name: str
    key: str

    @property
    def file(self) -> Path:
        return self.directory / f"{self.name}-{self.key[:12]}.parquet"

    def part(self, number: int) -> Path:
        return self.directory / f"{self.name}-{self.key[:12]}.parts" / f"{number:05d}.parquet"

    def rows(self) -> list[Row] | None:
        """All rows, if the file is finished."""
        return read(self.file) if self.file.is_file() else None


def grade_part(
    found: Sequence[Sequence[Answer]], pool: GraderPool, work: Work, questions: Sequence[Entry],
    requests: Sequence[Request], scorer: LogprobScorer | None = None,
) -> list[Row]:  # fmt: skip
    """Grade the answers that were found to some prompts, and count their classes.

    A reward of the work gives each response a number in place of a grade. scorer: scores whole trajectories under the
    policy and under its base.
    """
    task, reward = work.task, work.reward
    rows: list[Row] = []
    for (index, question, prompt), request, answers in zip(questions, requests, found, strict=True):
        for sample, (seed, answer) in enumerate(zip(request.seeds, answers, strict=True)):
            rows.append({
                "question": index, "source": question.source, "prompt": prompt.text, "gold": question.gold,
                "sample": sample, "seed": seed, **dataclasses.asdict(answer),
                "well_formed": re.search(task.format, answer.response) is not None,
                "prompt_ids": prompt.ids.tolist(), "reward": None,
            })  # fmt: skip
    _add_logprobs(rows, questions, scorer)
    by_index = {index: question for index, question, _ in questions}
    if reward is not None:
        asked = [by_index[row["question"]] for row in rows]
        numbers = reward.numbers([row["response"] for row in rows], [(one.source, one.record) for one in asked])
        rows = [row | {"reward": number} for row, number in zip(rows, numbers, strict=True)]
    if task.is_creative or reward is not None:
        return [row | {"answer": "", "verdict": "", "vote_class": NO_ANSWER} for row in rows]
    judged = pool.judge([by_index[row["question"]].item(task, row["response"]) for row in rows])
    for row, (verdict, extracted) in zip(rows, judged, strict=True):
        row |= {"answer": extracted, "verdict": verdict.value}
    for row, vote in zip(rows, votes(rows, task.grader, pool), strict=True):
        row["vote_class"] = vote
    return rows


def _add_logprobs(rows: Sequence[Row], questions: Sequence[Entry], scorer: LogprobScorer | None) -> None:
    ids = [row["response_ids"] for row in rows]
    scores: Sequence[tuple[float | None, float | None]] = [(None, None)] * len(rows)
    if scorer is not None and all(ids):
        prompts = {index: prompt for index, _, prompt in questions}
        scores = scorer.score([prompts[row["question"]] for row in rows], ids)
    for row, (policy, base) in zip(rows, scores, strict=True):
        row |= {"policy_logprob": policy, "base_logprob": base}


def complete(
    store: Store,
    parts: Sequence[Sequence[Entry]],
    make: Callable[[Sequence[Entry]], list[Row]],
    on_part: Callable[[int], None],
) -> list[Row]:
    """Make the parts that are missing, then the whole file. on_part: called with the prompts that are done."""
    for number, part in enumerate(parts):
        if not store.part(number).is_file():
            write(store.part(number), make(part))
        on_part(len(part))
    rows = [row for number in range(len(parts)) for row in read(store.part(number))]
    write(store.file, rows)
    shutil.rmtree(store.part(0).parent, ignore_errors=True)
    return rows


def requests_of(prompts: Sequence[Prompt], samples: int, seed: int, task: str) -> list[Request]:
    """Requests for all prompts of a task, whose seeds depend on its name and do not depend on the parts.

    Other tasks have other seeds, so that their sampling noise is independent. All models have the same.
    """
    return requests_for(prompts, samples, seed=seed, step=int(key_of(task)[:16], 16))


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write a parquet file that is there whole or not at all, also after a power cut."""
    pyarrow = need("pyarrow", extra="eval", purpose="keeping the responses")
    parquet = need("pyarrow.parquet", extra="eval", purpose="keeping the responses")
    table = pyarrow.table({name: [row[name] for row in rows] for name in COLUMNS}, schema=_schema(pyarrow))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        parquet.write_table(table, unfinished, compression="zstd")
        publish_file(unfinished, path)


def read(path: Path) -> list[Row]:
    """The rows of a file that `write` made. Raises FastflowError where it is damaged."""
    parquet = need("pyarrow.parquet", extra="eval", purpose="reading the responses")
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise FastflowError(f"cannot read {path}: {error}; remove it, and it will be made anew") from error
    if absent := [name for name in COLUMNS if name not in table.column_names]:
        raise FastflowError(f"{path} has no column {absent[0]}; remove it, and it will be made anew")
    rows: list[Row] = table.to_pylist()
    return rows


def _schema(pyarrow: Any) -> Any:
    kinds = {
        "question": "int32", "sample": "int32", "seed": "int64", "tokens": "int32", "logprob": "float64",
        "well_formed": "bool_", "vote_class": "int32", "sampled_tokens": "int64", "read_tokens": "int64",
        "policy_logprob": "float64", "base_logprob": "float64", "reward": "float64",
    }  # fmt: skip
    lists = dict.fromkeys(("prompt_ids", "response_ids"), pyarrow.list_(pyarrow.int32()))
    return pyarrow.schema(
        [(name, lists.get(name) or getattr(pyarrow, kinds.get(name, "string"))()) for name in COLUMNS]
    )
