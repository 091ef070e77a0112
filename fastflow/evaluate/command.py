"""`fastflow evaluate`: sample from each model on each task, grade, keep every response, compare."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastflow.data.trajectory import Prompt
from fastflow.errors import FastflowError, need
from fastflow.evaluate import responses, scores
from fastflow.evaluate.as_trained import unlike_training
from fastflow.evaluate.concerns import concerns
from fastflow.evaluate.conditions import drawn_by, in_key, sampling
from fastflow.evaluate.creative.effective_alpha import LogprobScorer
from fastflow.evaluate.creative.extra_measures import ExtraMeasures, ModelResponses
from fastflow.evaluate.creative.scaling import scaled
from fastflow.evaluate.graders import grader
from fastflow.evaluate.graders.pool import GraderPool
from fastflow.evaluate.keys import key_of
from fastflow.evaluate.methods.answer import Entry
from fastflow.evaluate.methods.make import made_method
from fastflow.evaluate.methods.verbalized import VERSION, instruction
from fastflow.evaluate.models import ModelSource, digest, find_model, load
from fastflow.evaluate.progress import Meter
from fastflow.evaluate.prompts import tokenize_questions
from fastflow.evaluate.questions import as_json
from fastflow.evaluate.refused_settings import own_names
from fastflow.evaluate.results import RESPONSES, RESULTS_FILE, TABLE_FILE, check_directory, check_earlier
from fastflow.evaluate.settings import BenchmarkConfig, EvaluateConfig
from fastflow.evaluate.tables import markdown, rows
from fastflow.evaluate.task import Task, check_reward, find_task, is_own_file
from fastflow.evaluate.work import Work, check_golds, read_work
from fastflow.rollout.sampler import SamplingParams
from fastflow.run.console import say
from fastflow.run.durable import replace_json, replace_text
from fastflow.run.lock import RunLock
from fastflow.run.output_file import writing

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@own_names()
def evaluate(config: EvaluateConfig, console: Console) -> dict[str, Any]:
    """Carry out an evaluation; what an earlier one has finished is taken from its files. Returns the results.

    Raises FastflowError for unknown tasks, rows that are no questions, gold answers that do not equal themselves and
    models that cannot be loaded, before anything is sampled.
    """
    settings, output = config.eval, Path(config.eval.output)
    for module in ("pyarrow", "pyarrow.parquet"):
        need(module, extra="eval", purpose="keeping the responses")
    tasks = [find_task(name, grader=settings.grader, reward=settings.reward) for name in settings.tasks]
    _refuse_equal("task", [task.name for task in tasks])
    _refuse_unread(settings, tasks)
    models = scaled([find_model(name) for name in settings.models], settings.adapter_scale)
    _refuse_equal("model", [model.label for model in models])
    extra = ExtraMeasures(config, console)
    extra.check(tasks)
    for name in settings.models:
        if unlike := unlike_training(name, config):
            logger.warning("%s", unlike)
    pool = GraderPool({task.grader for task in tasks}, workers=settings.workers, timeout=settings.timeout)
    check_directory(output)
    with pool, RunLock(output, "--output"):
        works = [read_work(task, folder=settings.data_folder, limit=settings.limit) for task in tasks]
        for work in works:
            check_golds(work, pool)
        identities = {model: digest(model, config.model) for model in models}
        stores = {model: [_store(config, model, identities[model], work) for work in works] for model in models}
        files = {work.task.name: {model.name: _file(stores[model][place]) for model in models}
                 for place, work in enumerate(works)}  # fmt: skip
        check_earlier(output, _conditions(config), files)
        if not all(store.file.is_file() for of_model in stores.values() for store in of_model):
            extra.reach_judge()
        found = {model: _respond(config, model, works, stores[model], pool, console) for model in models}
        results = _summary(config, models, works, stores, found, extra)
        with writing(output):
            replace_json(output / RESULTS_FILE, results)
            replace_text(output / TABLE_FILE, markdown(results))
    print_results(results, console)
    for concern in concerns(results, own={task.name for task in tasks if task.path}):
        logger.warning("%s", concern)
    say(console, f"results written to {output / TABLE_FILE} and {output / RESULTS_FILE}")
    return results


def _respond(
    config: EvaluateConfig,
    model: ModelSource,
    works: Sequence[Work],
    stores: Sequence[responses.Store],
    pool: GraderPool,
    console: Console,
) -> list[list[responses.Row]]:
    """Rows of one model for each task; the model is loaded only if some are missing."""
    kept = [store.rows() for store in stores]
    if all(rows is not None for rows in kept):
        say(console, f"{model.name}: all responses are there already")
        return [rows for rows in kept if rows is not None]
    policy, tokenizer = load(model, config.model)
    scorer = LogprobScorer(policy) if model.scale is not None else None
    settings = config.eval
    rollout = dataclasses.replace(config.rollout, max_response_tokens=settings.max_tokens)
    prompts = [_prompts(config, work, tokenizer) for work in works]
    params = SamplingParams.of(rollout, **sampling(settings))
    done, size = list(kept), settings.prompts_per_part
    every = [prompt for task_prompts in prompts for prompt in task_prompts]
    meter = Meter(console)
    with made_method(
        config.method, policy, tokenizer, every, rollout, params, pool, on_progress=meter.advance
    ) as method:
        for place, (work, store, task_prompts) in enumerate(zip(works, stores, prompts, strict=True)):
            if kept[place] is not None:
                continue
            entries = list(zip(range(len(task_prompts)), work.questions, task_prompts, strict=True))
            requests = responses.requests_of(task_prompts, settings.samples, settings.seed, work.task.name)
            parts = [entries[start : start + size] for start in range(0, len(entries), size)]

            def make(part: Sequence[Entry], work: Work = work, requests: Any = requests) -> list[Any]:
                asked = [requests[index] for index, _, _ in part]
                return responses.grade_part(method(work.task, part, asked), pool, work, part, asked, scorer)

            title = f"{model.name}: {work.task.name}"
            with meter.measuring(title, prompts=len(entries), samples=settings.samples):
                done[place] = responses.complete(store, parts, make, meter.kept)
    return [rows for rows in done if rows is not None]


def _prompts(config: EvaluateConfig, work: Work, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The task's questions as the method asks them: verbalized puts its instruction in front."""
    settings, system, front = config.eval, config.eval.system, ""
    if config.method.name == "verbalized":
        asked = instruction(config.method.count("candidates"), config.eval.tail)
        if settings.chat_template:
            system = "\n\n".join(filter(None, (system, asked)))
        else:
            front = f"{asked}\n\n"
    return tokenize_questions(
        work.questions, tokenizer, chat_template=settings.chat_template, system=system,
        template_arguments=settings.template_arguments, front=front,
    )  # fmt: skip


def _store(config: EvaluateConfig, model: ModelSource, identity: str, work: Work) -> responses.Store:
    conditions = in_key(_conditions(config))
    del conditions["limit"]  # the questions say it
    content: dict[str, Any] = {
        "model": identity,
        "task": work.task.asked(),
        "questions": [as_json(question) for question in work.questions],
        "conditions": conditions,
    }
    if work.reward is not None:
        content["reward"] = work.reward.digest()
    elif not work.task.is_creative:
        content["graders"] = grader.VERSION
    if config.method.name == "verbalized":
        content["form"] = str(VERSION)
    directory = Path(config.eval.output) / RESPONSES
    return responses.Store(directory, f"{work.task.name}-{model.label}", key_of(content))


def _summary(
    config: EvaluateConfig,
    models: Sequence[ModelSource],
    works: Sequence[Work],
    stores: dict[ModelSource, list[responses.Store]],
    found: dict[ModelSource, list[Any]],
    extra: ExtraMeasures,
) -> dict[str, Any]:
    tasks = []
    for place, work in enumerate(works):
        task, answers = work.task, []
        for model in models:
            rows_of = found[model][place]
            entry: dict[str, Any] = {
                "name": model.name,
                "scores": scores.score_creative(rows_of) if task.is_creative else scores.score(rows_of),
                "responses": _file(stores[model][place]),
            }
            if model is not models[0] and not task.is_creative:
                entry["difference"] = scores.difference(rows_of, found[models[0]][place])
            answers.append(ModelResponses(model.name, model.label, scores.by_prompt(rows_of), entry))
        extra.complete(task, answers)
        plotted = {"plot": extra.plot(task, answers), "models": [model.entry for model in answers]}
        tasks.append(task.facts() | plotted)
    conventions = scores.conventions({work.task.kind for work in works})
    conventions |= extra.conventions([work.task for work in works])
    return {"settings": _conditions(config) | extra.facts, "conventions": conventions, "tasks": tasks}


def _conditions(config: EvaluateConfig) -> dict[str, Any]:
    """How responses are drawn and graded, as the results say it."""
    names = (
        "samples", "max_tokens", "seed", "limit", "chat_template", "template_arguments", "system", "prompts_per_part",
        "timeout",
    )  # fmt: skip
    drawn = sampling(config.eval) | drawn_by(config.rollout, config.model)
    method = {"method": config.method.as_json(), "seeds": responses.SEEDS}
    return {name: getattr(config.eval, name) for name in names} | drawn | method


def _file(store: responses.Store) -> str:
    return f"{RESPONSES}/{store.file.name}"


def print_results(results: dict[str, Any], console: Console) -> None:
    """One table a task."""
    from rich.table import Table

    for task in results["tasks"]:
        table = Table(title=task["title"], title_justify="left")
        table.add_column("")
        for model in task["models"]:
            table.add_column(model["name"], justify="right", overflow="fold")
        for heading, values in rows(task):
            table.add_row(heading, *values)
        console.print(table)


def _refuse_equal(what: str, names: Sequence[str]) -> None:
    twice = {name for name in names if list(names).count(name) > 1}
    if twice:
        raise FastflowError(f"two {what}s are called {sorted(twice)[0]}; give each once, or rename one's file")


def _refuse_unread(settings: BenchmarkConfig, tasks: Sequence[Task]) -> None:
    """Refuse settings of tasks that no task reads."""
    check_reward(settings.reward, settings.tasks, has_grader=settings.grader != BenchmarkConfig().grader)
    if settings.method == "majority_vote" and any(task.is_rewarded for task in tasks):
        raise FastflowError(
            "method = majority_vote compares answers, and with eval.reward there are none; choose another"
        )
    if settings.grader != BenchmarkConfig().grader and not any(map(is_own_file, settings.tasks)):
        raise FastflowError(
            f"eval.grader = {settings.grader} grades own JSONL files, and --tasks names none: other tasks name their "
            "grader; leave it out"
        )
    if settings.data_folder is not None and not any(task.dataset for task in tasks):
        raise FastflowError(
            f"eval.data_folder = {settings.data_folder} stands in for data sets of the hub, and no task of --tasks "
            "comes from there; leave it out"
        )
