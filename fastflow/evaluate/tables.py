"""Results as Markdown, one table a task: the models side by side, then their differences from the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastflow.counted import counted
from fastflow.evaluate.conditions import in_words, sampling_in_words
from fastflow.evaluate.creative.tables import added_rows, creative_rows, number
from fastflow.evaluate.methods.catalogue import CATALOGUE, PLAIN
from fastflow.evaluate.scores import HEADINGS
from fastflow.evaluate.task import CREATIVE, REWARDED
from fastflow.run.evaluated import shown_ks

Result = dict[str, Any]


def markdown(results: Result) -> str:
    """The page of all results."""
    settings = results["settings"]
    lines = [
        "# Evaluation", "",
        f"{counted(settings['samples'], 'sample')} a prompt, {sampling_in_words(settings)}, "
        f"at most {counted(settings['max_tokens'], 'token')}, engine {settings['engine']}, seed {settings['seed']}. "
        "± is the standard error over prompts.", "",
        *_paragraph(in_words(settings)), *_method(settings["method"]), *_measured_by(settings),
    ]  # fmt: skip
    for task in results["tasks"]:
        lines += [f"## {task['title']}", "", *_table(task), "", *_plot(task), *_notes(task)]
    lines += ["## How it was counted", "", *(f"- {name}: {text}" for name, text in results["conventions"].items()), ""]
    return "\n".join(lines)


def _paragraph(text: str) -> list[str]:
    return [text, ""] if text else []


def _method(method: dict[str, Any]) -> list[str]:
    """Say how answers were drawn, where they were not sampled plainly."""
    if method["name"] == PLAIN:
        return []
    kind = CATALOGUE[method["name"]]
    values = ", ".join(f"{name} {value:g}" for name, value in method.items() if name != "name" and value is not None)
    source = f" ({kind.source})" if kind.source else ""
    return [f"Method {method['name']}: {kind.text}{source}; {values}.", ""]


def _measured_by(settings: Result) -> list[str]:
    """Name the embedding model and the judge."""
    found = [f"Sentence embeddings: {settings['embedding']}."] if settings.get("embedding") else []
    if judge := settings.get("judge"):
        found.append(
            f"Judge: {judge['model']}, {counted(judge['votes'], 'vote')}, temperature {judge['temperature']:g}."
        )
    return _paragraph(" ".join(found))


def _plot(task: Result) -> list[str]:
    return [f"![{task['title']}: quality against diversity]({task['plot']})", ""] if task.get("plot") else []


def _table(task: Result) -> list[str]:
    models = task["models"]
    lines = ["| | " + " | ".join(model["name"].replace("|", "\\|") for model in models) + " |"]
    lines.append("|---|" + "---:|" * len(models))
    for heading, values in rows(task):
        lines.append(f"| {heading} | " + " | ".join(values) + " |")
    return lines


def rows(task: Result) -> list[tuple[str, list[str]]]:
    """Heading and cells of each row of a task's table."""
    if task.get("kind") == CREATIVE:
        return creative_rows(task)
    scores = [model["scores"] for model in task["models"]]
    if task.get("kind") == REWARDED:
        return _rewarded_rows(task, scores)
    samples = scores[0]["samples"]
    shown = [(f"avg@{samples}", [share(entry[f"avg@{samples}"]) for entry in scores])]
    shown += [(f"pass@{k}", [share(entry["pass_at"][str(k)]) for entry in scores]) for k in shown_ks(samples)]
    shown.append((f"maj@{samples}", [share(entry[f"maj@{samples}"]) for entry in scores]))
    shown += _plain_rows(scores)
    for verdict in ("unparsed", "timed_out"):
        shown.append((verdict.replace("_", " "), [f"{entry['verdicts'][verdict]:,}" for entry in scores]))
    if len(scores) > 1:
        shown.append(
            (
                f"avg@{samples} less the first's, 95 %",
                ["", *(_interval(model["difference"]) for model in task["models"][1:])],
            )
        )
    return shown + added_rows(task)


def _rewarded_rows(task: Result, scores: Sequence[Result]) -> list[tuple[str, list[str]]]:
    """Rows of a task whose responses a function gave numbers."""
    shown = [("reward", [_precise(entry["reward"]) for entry in scores]), *_plain_rows(scores)]
    if len(scores) > 1:
        found = [model["difference"] for model in task["models"][1:]]
        intervals = [
            f"{entry['value']:+.3g}"
            + ("" if entry["low"] is None else f" ({entry['low']:+.3g} to {entry['high']:+.3g})")
            for entry in found
        ]
        shown.append(("reward less the first's, 95 %", ["", *intervals]))
    return shown + added_rows(task)


def _plain_rows(scores: Sequence[Result]) -> list[tuple[str, list[str]]]:
    """Rows of what is measured of any response."""
    shown = [(HEADINGS["tokens"], [number(entry["tokens"], 1) for entry in scores])]
    if any(entry["sampled_tokens"] != entry["tokens"] for entry in scores):
        shown.append(("tokens sampled for it", [number(entry["sampled_tokens"], 1) for entry in scores]))
        shown.append(("tokens read for it", [number(entry["read_tokens"], 1) for entry in scores]))
    shares = ("truncated", "well_formed", "distinct")
    return shown + [(HEADINGS[name], [share(entry[name]) for entry in scores]) for name in shares]


def _notes(task: Result) -> Sequence[str]:
    known = {"Data": task["source"], "Grader": task["grader"], "Licence": task["licence"], "Note": task["note"]}
    return [f"{counted(task['models'][0]['scores']['prompts'], 'prompt')}. "
            + " ".join(f"{name}: {text}." for name, text in known.items() if text), ""]  # fmt: skip


def share(entry: dict[str, float | None]) -> str:
    """A share and its standard error in percent."""
    error = "" if entry["error"] is None else f" ± {100 * entry['error']:.1f}"
    return f"{100 * (entry['value'] or 0):.1f}{error} %"


def _precise(entry: dict[str, float | None]) -> str:
    """A number of any size, and its standard error."""
    error = "" if entry["error"] is None else f" ± {entry['error']:.2g}"
    return f"{entry['value']:.4g}{error}"


def _interval(entry: dict[str, float | None]) -> str:
    if entry["low"] is None or entry["high"] is None or entry["value"] is None:
        return f"{100 * (entry['value'] or 0):+.1f} points"
    return f"{100 * entry['value']:+.1f} ({100 * entry['low']:+.1f} to {100 * entry['high']:+.1f}) points"
