"""Adds diversity, judged quality, wins, variety of solutions and effective alpha to the results of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastflow.drawing.pareto import Point, pareto_plot
from fastflow.drawing.picture import standalone
from fastflow.drawing.plot import styles
from fastflow.errors import FastflowError, need
from fastflow.evaluate.creative import diversity
from fastflow.evaluate.creative.effective_alpha import CONVENTION, effective_alpha
from fastflow.evaluate.creative.embedding import Encoder, identity, load_encoder, needs_package
from fastflow.evaluate.creative.judge import JudgeModel
from fastflow.evaluate.creative.judging import Quality, compare_pairs, grade_quality, rate_solutions
from fastflow.evaluate.creative.reply_log import ReplyLog
from fastflow.evaluate.creative.rubric import Rubric, find_rubric
from fastflow.evaluate.creative.settings import JudgeConfig
from fastflow.evaluate.estimates import over_prompts, paired
from fastflow.evaluate.graders.verdict import Verdict
from fastflow.evaluate.keys import key_of
from fastflow.evaluate.scores import ByPrompt
from fastflow.evaluate.task import Task
from fastflow.interrupt import stopped
from fastflow.models.opening import resolve_device
from fastflow.run.bar import Bar
from fastflow.run.console import say
from fastflow.run.durable import replace_json, replace_text
from fastflow.run.output_file import writing

if TYPE_CHECKING:
    from rich.console import Console

    from fastflow.evaluate.settings import EvaluateConfig

DIVERSITY, JUDGED = "diversity", "judge"  # folders of the output
OnStep = Callable[[], None]


@dataclass
class ModelResponses:
    """What one model answered to one task. entry: its part of the results, which ExtraMeasures completes."""

    name: str
    label: str
    prompts: ByPrompt
    entry: dict[str, Any]


class ExtraMeasures:
    """Measures what the settings ask for. The encoder is loaded when it is first needed."""

    def __init__(self, config: EvaluateConfig, console: Console):
        self._settings, self._judging, self._device = config.eval, config.judge, config.model.device
        self._output, self._console = Path(config.eval.output), console
        self._encoder: Encoder | None = None
        self._judge: JudgeModel | None = None

    def check(self, tasks: Sequence[Task]) -> None:
        """Refuse, before anything is sampled, what could not be measured afterwards."""
        creative = [task for task in tasks if task.is_creative]
        if self._settings.samples < 2 and (creative or self._measures_all):
            raise FastflowError("diversity needs several responses to a prompt; set --samples 2 or more")
        if self._settings.embedding is not None and needs_package(self._settings.embedding):
            need("sentence_transformers", extra="creative", purpose=f"eval.embedding = {self._settings.embedding}")
        if self._judging.address is None:
            return
        need("httpx", extra="creative", purpose="judge.address")
        if not creative and not self._judging.solutions:
            raise FastflowError(
                "judge.address is set, but no task is creative and judge.solutions is 0; add --tasks poem, or set "
                "--judge.solutions 8"
            )
        graded = [task for task in tasks if not task.is_creative]
        for name, serves, there in (
            *((name, "creative tasks", creative) for name in ("rubric", "responses", "pairs")),
            ("solutions", "graded tasks", graded),
        ):
            value = getattr(self._judging, name)
            if value != getattr(JudgeConfig(), name) and not there:
                raise FastflowError(f"judge.{name} = {value} serves {serves}, and --tasks names none; leave it out")
        for task in creative:
            self._rubric(task)

    def reach_judge(self) -> None:
        """Have the judge answer once, before hours of sampling that it would have to judge."""
        if self._judging.address is not None:
            say(self._console, f"asking the judge at {self._judging.address} whether it answers")
            self._get_judge().greet()

    def conventions(self, tasks: Sequence[Task]) -> dict[str, str]:
        """How what is measured of these tasks is counted."""
        found = dict(diversity.CONVENTIONS) if self._measures_all or any(task.is_creative for task in tasks) else {}
        if self._settings.embedding is None:
            found = {name: text for name, text in found.items() if not name.startswith("semantic")}
        if self._settings.adapter_scale:
            found["alpha"] = CONVENTION
        return found

    @property
    def _measures_all(self) -> bool:
        settings = self._settings
        return bool(settings.diversity or settings.adapter_scale or settings.embedding is not None)

    def complete(self, task: Task, models: Sequence[ModelResponses]) -> None:
        """Add what is asked for to the entries of all models; the others are compared with the first."""
        compared: list[dict[str, list[float | None]]] = [{} for _ in models]
        if task.is_creative or self._measures_all:
            for model, values in zip(models, compared, strict=True):
                found = self._diversity(task, model)
                columns: dict[str, list[float | None]] = {name: [of[name] for of in found] for name in found[0]}
                model.entry["scores"]["diversity"] = {name: over_prompts(column) for name, column in columns.items()}
                values |= columns
        for model in models:
            rows = model.prompts
            if all(row["base_logprob"] is not None for of_prompt in rows for row in of_prompt):
                model.entry["scores"]["alpha"] = effective_alpha(rows)
        if self._judging.address is not None:
            if task.is_creative:
                for model, values in zip(models, compared, strict=True):
                    values["quality"] = self._quality(task, model).quality
                self._compare(task, models)
            elif self._judging.solutions:
                for model, values in zip(models, compared, strict=True):
                    values["variety"] = self._variety(task, model)
        for model, values in list(zip(models, compared, strict=True))[1:]:
            model.entry["differences"] = {name: paired(values[name], compared[0][name]) for name in values}

    def plot(self, task: Task, models: Sequence[ModelResponses]) -> str | None:
        """Write the plot of quality, otherwise accuracy, against diversity. Returns its name, or None for one point."""
        points = []
        accuracy = f"avg@{self._settings.samples}"
        for model in models:
            scores = model.entry["scores"]
            measured = scores.get("diversity", {})
            x = measured.get("semantic") or measured.get("rouge_l")
            y = scores.get("quality") or scores.get(accuracy)
            if x is None or y is None or x["value"] is None or y["value"] is None:
                continue
            across = x["value"] if "semantic" in measured else 1 - x["value"]
            points.append(Point(model.name, across, y["value"], x["error"] or 0.0, y["error"] or 0.0))
        if len(points) < 2:
            return None
        x_label = "semantic diversity" if self._settings.embedding else "1 - ROUGE-L redundancy"
        y_label = "quality" if task.is_creative else accuracy
        title = f"{task.title or task.name}: {y_label} against {x_label}"
        looks = styles([point.name for point in points])
        plot = pareto_plot(points, looks, "pareto", title=title, unit="", x_label=x_label, numbered=True)
        file = self._output / f"pareto-{task.name}.svg"
        with writing(file):
            replace_text(file, standalone(plot))
        return file.name

    @property
    def facts(self) -> dict[str, Any]:
        """What the results say about the measuring: the embedding model, the judge, its settings."""
        found: dict[str, Any] = {}
        if self._settings.embedding is not None:
            found["embedding"] = self._settings.embedding
        if self._judging.address is not None:
            names = ("address", "rubric", "votes", "temperature", "max_tokens", "responses", "pairs", "solutions")
            model = self._judge.model if self._judge else self._judging.model
            found["judge"] = {"model": model, **{name: getattr(self._judging, name) for name in names}}
            found["judge"] |= {"extra": self._judging.extra} if self._judging.extra else {}
        return found

    def _diversity(self, task: Task, model: ModelResponses) -> list[diversity.Measures]:
        texts = [[row["response"] for row in rows] for rows in model.prompts]
        name = self._settings.embedding
        key = key_of([diversity.VERSION, name and identity(name), texts])
        file = self._output / DIVERSITY / f"{task.name}-{model.label}-{key[:12]}.json"
        if file.is_file():
            try:
                kept: list[diversity.Measures] = json.loads(file.read_text(encoding="utf-8"))["prompts"]
                if len(kept) == len(texts):
                    return kept
            except (OSError, ValueError, KeyError, TypeError):
                pass  # made anew
        if name is not None and self._encoder is None:
            self._encoder = load_encoder(name, resolve_device(self._device))
        with self._steps(f"{model.name}: diversity of {task.name}", len(texts)) as step:
            found = []
            for of_prompt in texts:
                found.append(diversity.measure(of_prompt, self._encoder.encode(of_prompt) if self._encoder else None))
                step()
        about = {"embedding": self._encoder.description if self._encoder else None, "prompts": found}
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_json(file, about)
        return found

    def _quality(self, task: Task, model: ModelResponses) -> Quality:
        judge, rubric = self._get_judge(), self._rubric(task)
        asked = sum(len(rows[: self._judging.responses or None]) for rows in model.prompts) * self._judging.votes
        with self._steps(f"{model.name}: judging {task.name}", asked) as step:
            found = grade_quality(
                judge, rubric, model.prompts, self._replies(task, model.label, "quality"), on_answer=step
            )
        scores = model.entry["scores"]
        scores |= {
            "quality": over_prompts(found.quality),
            "criteria": {name: over_prompts(values) for name, values in found.criteria.items()},
            "judge": found.cost.as_json(),
        }
        return found

    def _compare(self, task: Task, models: Sequence[ModelResponses]) -> None:
        if not self._judging.pairs:
            return
        first = models[0]
        for model in models[1:]:
            asked = 2 * sum(min(self._judging.pairs, len(rows)) for rows in model.prompts)
            replies = self._replies(task, model.label, f"against-{first.label}")
            with self._steps(f"{model.name}: comparing {task.name} with {first.name}", asked) as step:
                found = compare_pairs(
                    self._get_judge(), self._rubric(task), model.prompts, first.prompts, replies, on_answer=step
                )
            model.entry["wins"] = {
                "win_rate": over_prompts(found.win_rate), "first_preferred": found.first_preferred,
                "contradicted": found.contradicted, "judge": found.cost.as_json(),
            }  # fmt: skip

    def _variety(self, task: Task, model: ModelResponses) -> list[float | None]:
        replies = self._replies(task, model.label, "solutions")
        with self._steps(f"{model.name}: comparing solutions of {task.name}", None) as step:
            found = rate_solutions(self._get_judge(), model.prompts, Verdict.RIGHT.value, replies, on_answer=step)
        model.entry["scores"] |= {"variety": over_prompts(found.rating), "variety_judge": found.cost.as_json()}
        return found.rating

    def _rubric(self, task: Task) -> Rubric:
        name = self._judging.rubric or task.rubric
        if not name:
            raise FastflowError(f"task {task.name} names no rubric; set --judge.rubric to a name or a YAML file")
        return find_rubric(name)

    def _get_judge(self) -> JudgeModel:
        if self._judge is None:
            self._judge = JudgeModel(self._judging)
        return self._judge

    def _replies(self, task: Task, label: str, what: str) -> ReplyLog:
        return ReplyLog(self._output / JUDGED / f"{task.name}-{label}-{what}.jsonl")

    @contextmanager
    def _steps(self, title: str, total: int | None) -> Iterator[OnStep]:
        """Show progress. After a signal, raises RunStopped with how far it came."""
        bar, of = Bar(self._console, title, total), "" if total is None else f" of {total}"
        goes_on = "the same command goes on from what is kept"
        with stopped(lambda: f"stopped at {title}, {bar.done}{of} done; {goes_on}"), bar:
            yield bar.advance
        bar.line(f"{title}: {bar.done} done")
