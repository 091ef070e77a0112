"""The stability figure of the paper in miniature, on the demo's sums: who collapses in length, and who holds.

One small model is pretrained once. Every method then sharpens it towards alpha 4 from the same prompts, with the same
format penalty. A bare guess takes six tokens, careful work twenty. Right work is likelier, per token and as a whole;
but what begins as work is less likely on average than a guess, and a loss over whole sequences ends with the guess.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fastflow.config.presets import PRESETS
from fastflow.run.directory import EVALUATION_FILE
from fastflow.run.durable import replace_json
from fastflow.run.output_file import writing
from fastflow.sweep.results import RunResult, by_group, evaluated, seed_mean
from fastflow.sweep.study import Study, StudyVerdict, Unfinished

if TYPE_CHECKING:
    from rich.console import Console

    from fastflow.demo.tasks import DemoTask

POWERFLOW = "powerflow"
COLLAPSING = ("tb_trajectory", "rl_trajectory")  # whose length falls at once
COMPARED = (POWERFLOW, *COLLAPSING, "tb_token", "rl_token")
METHODS: dict[str, dict[str, Any]] = {name: {"objective.name": name} for name in COMPARED}
SEEDS: tuple[int, ...] = (0, 1, 2, 3, 4)
STEPS = 80
SETTINGS: dict[str, Any] = {
    **PRESETS["demo"],
    "objective.log_z": "learned",  # as in the paper
    "run.steps": STEPS,
    "run.samples_every": 0,
    "run.save_every": 20,
    "run.keep": 1,
}
PRETRAINING_SEED = 0  # of the base, which all runs share
COLLAPSED_BY, COLLAPSED = 40, 0.5  # step, and share of the base's mean length
HOLDS = (0.8, 1.4)  # shares of the base's mean length
_BASE = "base"  # among the methods of a table
BASE, PROMPTS, BASE_EVALUATION = "base", "prompts.jsonl", "base.json"


def inputs(output: Path) -> dict[str, Any]:
    """Name model and prompts of the runs."""
    return {"model.path": str(output / BASE), "data.path": str(output / PROMPTS)}


def make_inputs(output: Path, console: Console) -> None:
    """Pretrain the base, write the prompts, and evaluate the base, where they are not there yet."""
    import torch

    from fastflow.demo.command import make_base, write_prompts

    task, evaluation = _task(), output / BASE_EVALUATION
    if evaluation.exists():  # it is written last
        return
    torch.set_num_threads(1)
    topics, _ = task.topics(PRETRAINING_SEED, task.held_out)
    make_base(task, topics, output / BASE, seed=PRETRAINING_SEED, console=console)
    write_prompts(task, topics, output / PROMPTS)
    with writing(output):
        replace_json(evaluation, _evaluate(output / BASE))


def measure(run: Path, output: Path) -> None:
    """Evaluate a trained policy on sums that were held out, beside the base. Does nothing where that is done since the
    policy was saved.
    """
    file = run / EVALUATION_FILE
    saved = [weights.stat().st_mtime_ns for weights in (run / "policy").glob("*")]
    if file.exists() and file.stat().st_mtime_ns >= max(saved, default=0):
        return
    base = json.loads((output / BASE_EVALUATION).read_text(encoding="utf-8"))
    with writing(run):
        replace_json(file, {"base": base, "policy": _evaluate(run / "policy")})


def judge(results: Sequence[RunResult], unfinished: Unfinished) -> list[StudyVerdict]:
    """Check what the figure shows. A claim about a run without results, or one that did not finish, is missed."""
    groups = by_group(results)
    base = fmean([run.base["mean_length"] for run in results if run.base] or [float("nan")])
    verdicts = [
        *(_collapses(name, groups.get(name, []), base) for name in COLLAPSING),
        _holds(groups.get(POWERFLOW, []), base),
        _is_best(groups),
    ]
    subjects = [*([name] for name in COLLAPSING), [POWERFLOW], [*METHODS]]
    return [
        _with_all_runs(verdict, [run for name in names for run in unfinished.get(name, [])])
        for verdict, names in zip(verdicts, subjects, strict=True)
    ]


def _with_all_runs(verdict: StudyVerdict, unfinished: Sequence[str]) -> StudyVerdict:
    """The verdict, missed where runs that it is about did not finish."""
    if not unfinished:
        return verdict
    return replace(verdict, met=False, found=f"{verdict.found}; unfinished: {', '.join(unfinished)}")


def _collapses(name: str, runs: Sequence[RunResult], base: float) -> StudyVerdict:
    """A method's mean length is below half of the base's, around step 40 and in every seed."""
    lengths = {run.name: run.at(COLLAPSED_BY, "length_mean") for run in runs}
    shares = [length / base for length in lengths.values() if length is not None]
    short = [run for run, length in lengths.items() if length is None]
    met = bool(shares) and not short and max(shares) < COLLAPSED
    return StudyVerdict(
        f"{name} collapses in length by step {COLLAPSED_BY}",
        _spread(shares, "of the base's length") + _without(f"no step {COLLAPSED_BY}", short),
        f"below {COLLAPSED:g} in every seed",
        met,
    )


def _holds(runs: Sequence[RunResult], base: float) -> StudyVerdict:
    """PowerFlow's mean length stays near the base's: that of its policies on held-out sums, and every five steps."""
    courses = [length for run in runs for step in range(5, len(run.steps) + 1, 5)
               if (length := run.at(step, "length_mean")) is not None]  # fmt: skip
    shares = [
        length / base for length in [*courses, *(run.evaluation["mean_length"] for run in runs if run.evaluation)]
    ]
    low, high = HOLDS
    untested = [run.name for run in runs if not run.evaluation]
    met = bool(shares) and not untested and all(low <= share <= high for share in shares)
    return StudyVerdict(
        f"{POWERFLOW} keeps its length in all steps",
        _spread(shares, "of the base's length") + _without("no evaluation", untested),
        f"{low:g} to {high:g}",
        met,
    )


def _is_best(groups: Mapping[str, Sequence[RunResult]]) -> StudyVerdict:
    """PowerFlow has the best accuracy of all methods and of the base: mean over seeds."""
    runs = [run for name in METHODS for run in groups.get(name, [])]
    found = {name: entry.value for name in METHODS if (entry := evaluated(groups.get(name, []), "accuracy"))}
    if base := seed_mean([run.base["accuracy"] for run in runs if run.base]):
        found[_BASE] = base.value
    absent = [name for name in (*METHODS, _BASE) if name not in found]
    untested = [run.name for run in runs if not run.evaluation]
    others = [value for name, value in found.items() if name != POWERFLOW]
    met = not absent and not untested and found[POWERFLOW] > max(others)
    told = ", ".join(
        f"{name} {100 * value:.1f} %" for name, value in sorted(found.items(), key=lambda entry: -entry[1])
    )
    return StudyVerdict(
        f"{POWERFLOW} has the best accuracy of all",
        (told or "nothing was measured") + _without("no evaluation", [*absent, *untested] if found else []),
        "the highest",
        met,
    )


def _without(what: str, names: Sequence[str]) -> str:
    return f"; {what}: {', '.join(names)}" if names else ""


def _spread(shares: Sequence[float], of: str) -> str:
    if not shares:
        return "nothing was measured"
    return f"{fmean(shares):.2f} {of} ({min(shares):.2f} to {max(shares):.2f})"


def _evaluate(path: Path) -> dict[str, Any]:
    import torch

    from fastflow.demo.command import evaluate_model

    torch.set_num_threads(1)  # as the runs: so small a model gains nothing from more cores
    task = _task()
    _, held_out = task.topics(PRETRAINING_SEED, task.held_out)
    return evaluate_model(task, path, temperature=1.0, held_out=held_out, seed=PRETRAINING_SEED)


def _task() -> DemoTask:
    from fastflow.demo.tasks import SUMS

    return SUMS


FIGURE_3 = Study(
    title="The paper's stability figure, in miniature",
    settings=SETTINGS,
    variants=METHODS,
    seeds=SEEDS,
    inputs=inputs,
    make_inputs=make_inputs,
    measure=measure,
    judge=judge,
)
