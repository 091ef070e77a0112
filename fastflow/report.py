"""`fastflow report`: one self-contained HTML file about a run, from the files in its directory and nothing else."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

from fastflow.errors import FastflowError

TOKENS_SHOWN = (900, 100)  # of a long response: its first and its last tokens
COLOUR_LIMIT = 3.0  # nats; log pi - log p_base beyond it has the full colour
COLOUR_LEVELS = 8
HIGHER_IS_BETTER = ("accuracy", "greedy_accuracy", "pass_at", "boxed_share", "valid_share", "distinct_share")
LOWER_IS_BETTER = ("truncated_share", "malformed_share", "repetition")
LABELS = {  # metric -> words and unit; others are shown under their own name
    "accuracy": ("Accuracy, sampled", "%"),
    "greedy_accuracy": ("Accuracy, greedy", "%"),
    "boxed_share": ("Answer in a box", "%"),
    "valid_share": ("Valid responses", "%"),
    "distinct_share": ("Distinct responses", "%"),
    "truncated_share": ("Cut at the length limit", "%"),
    "malformed_share": ("Malformed", "%"),
    "repetition": ("Repeated 4-grams", "%"),
    "mean_length": ("Mean length", "tokens"),
    "length_mean": ("Mean length", "tokens"),
    "token_entropy": ("Entropy per token", "nats"),
    "sequence_entropy": ("Entropy per response", "nats"),
    "logprob_mean": ("Mean log π", "nats per token"),
    "base_logprob_mean": ("Mean log p_base", "nats per token"),
    "slope": ("Slope of log π on log p_base", "target: alpha"),
}
TRAINED = (  # the before/after table of a run without an evaluation
    *("slope", "logprob_mean", "base_logprob_mean", "token_entropy", "sequence_entropy"),
    *("length_mean", "truncated_share", "malformed_share", "repetition"),
)


@dataclasses.dataclass
class RunFiles:
    """A run directory's content; `notes` are what the reader should know about missing or broken parts."""

    config: dict[str, dict[str, Any]]
    steps: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    evaluation: dict[str, dict[str, Any]]
    notes: list[str] = dataclasses.field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastflow report`."""
    parser.add_argument("directory", metavar="RUN", type=Path, help="run directory that training wrote (run.output)")
    parser.add_argument("--output", metavar="FILE", type=Path, help="page to write (default: RUN/report.html)")


def run(arguments: argparse.Namespace) -> int:
    """Write the report, print its path. Returns the exit code."""
    print(write_report(arguments.directory, arguments.output))
    return 0


def write_report(run: Path, output: Path | None = None) -> Path:
    """Write the report of one run directory, by default to its report.html. Returns the file.

    Raises FastflowError if the directory, or its metrics.jsonl, is missing, empty or broken before its last line.
    """
    page = render(run.resolve().name, [("", read_run(run))])
    return _write(page, output or run / "report.html")


def write_combined(title: str, runs: list[tuple[str, Path]], output: Path) -> Path:
    """Write one report of several runs: (heading, run directory) each. Returns the file. Raises as write_report."""
    return _write(render(title, [(name, read_run(path)) for name, path in runs]), output)


def render(title: str, runs: list[tuple[str, RunFiles]]) -> str:
    """The page as HTML; each run with its heading, which may be empty if there is only one."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    sections = [_section(f"run{index}", heading, files) for index, (heading, files) in enumerate(runs)]
    template = environment.get_template("report.html.j2")
    return template.render(title=printable(title), sections=sections, levels=COLOUR_LEVELS, limit=COLOUR_LIMIT)


def read_run(run: Path) -> RunFiles:
    """Read a run directory. Raises FastflowError as write_report."""
    if not run.is_dir():
        raise FastflowError(f"{run}: no such run directory; give the one that training wrote (run.output)")
    if not (run / "metrics.jsonl").is_file():
        raise FastflowError(f"{run} has no metrics.jsonl; give the directory that training wrote (run.output)")
    notes: list[str] = []
    # a resumed run may repeat steps: the later line counts
    steps = {record["step"]: record for record in _read_lines(run / "metrics.jsonl", notes)}
    if not steps:
        raise FastflowError(f"{run / 'metrics.jsonl'} holds no complete step yet; wait for the first, or train again")
    if not (run / "config.yaml").is_file():
        notes.append("There is no config.yaml, so the settings are not shown.")
    samples = _read_lines(run / "samples.jsonl", notes) if (run / "samples.jsonl").is_file() else []
    return RunFiles(
        config=_read_tree(run / "config.yaml"),
        steps=[steps[step] for step in sorted(steps)],
        samples=samples,
        evaluation=_read_tree(run / "evaluation.json"),
        notes=notes,
    )


def _read_lines(file: Path, notes: list[str]) -> list[dict[str, Any]]:
    lines = [(at, line) for at, line in enumerate(_read_text(file).split("\n"), start=1) if line.strip()]
    records = []
    for at, line in lines:
        try:
            record = json.loads(line, parse_constant=lambda _: None)
            if not isinstance(record, dict) or not is_number(record.get("step")):
                raise ValueError("not an object with a step")
            records.append(record)
        except ValueError as error:
            if at != lines[-1][0]:
                raise FastflowError(f"{file}, line {at} is broken ({error}); mend or remove that line") from error
            notes.append(f"The last line of {file.name} is incomplete, as when a run is killed; it was left out.")
    return records


def _read_tree(file: Path) -> dict[str, dict[str, Any]]:
    """A YAML or JSON file of named tables; {} if it is missing."""
    import yaml

    if not file.is_file():
        return {}
    try:
        tree = json.loads(_read_text(file)) if file.suffix == ".json" else yaml.safe_load(_read_text(file))
    except (ValueError, yaml.YAMLError) as error:
        raise FastflowError(f"{file} is broken ({' '.join(str(error).split())}); mend or remove it") from error
    if not isinstance(tree, dict) or not all(isinstance(table, dict) for table in tree.values()):
        raise FastflowError(f"{file} must hold named tables of values; mend or remove it")
    return tree


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise FastflowError(f"cannot read {file}: {error.strerror}; check its permissions") from error


def _section(prefix: str, heading: str, files: RunFiles) -> dict[str, Any]:
    """What the template shows of one run; `prefix` keeps ids apart."""
    from fastflow.report_plots import MOST_POINTS, pass_at_plot, training_plots

    objective = str(files.config.get("objective", {}).get("name"))
    groups = training_plots(files.steps, objective, prefix)
    curves = _pass_at_curves(files.evaluation)
    return {
        "id": prefix,
        "heading": printable(heading),
        "facts": _facts(files),
        "alarms": _alarms(files.steps),
        "notes": files.notes,
        "table": _evaluation_table(files.evaluation) if files.evaluation else _training_table(files.steps),
        "pass_at": [pass_at_plot(curves, prefix)] if curves else [],
        "plots": groups,
        "averaged": math.ceil(len(files.steps) / MOST_POINTS),
        "samples": _chosen_samples(files.samples),
        "settings": _settings(files.config),
    }


def _facts(files: RunFiles) -> list[tuple[str, str]]:
    """What stands under the heading: (name, value)."""
    last, column = files.steps[-1], functools.partial(_column, files.steps)
    minutes, seconds = divmod(round(sum(column("seconds"))), 60)
    facts = {"Model": files.config.get("model", {}).get("path"), "Steps": str(len(files.steps))}
    if is_number(last.get("slope")) and is_number(last.get("alpha")):
        facts["Slope, last step"] = f"{number(last['slope'])} of {number(last['alpha'])}"
    facts |= {name.capitalize(): number(sum(column(name))) for name in ("responses", "tokens") if column(name)}
    if column("seconds"):
        facts["Time"] = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"
    if column("peak_memory_bytes"):
        facts["Peak memory"] = f"{max(column('peak_memory_bytes')) / 2**30:.1f} GiB"
    return [(name, printable(str(value))) for name, value in facts.items() if value]


def _column(steps: list[dict[str, Any]], name: str) -> list[float]:
    return [record[name] for record in steps if is_number(record.get(name))]


def _alarms(steps: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(steps, text) of each kind of alarm; those that differ only in figures are one kind, told by the latest."""
    kinds: dict[str, tuple[list[int], str]] = {}
    for record in steps:
        for text in record.get("alarms") or []:
            kind = re.sub(r"\d[\d.,]*", "#", str(text))
            kinds[kind] = ([*kinds.get(kind, ([], ""))[0], record["step"]], str(text))
    return [(f"Step{'s'[: len(at) - 1]} {', '.join(map(str, at))}", printable(text)) for at, text in kinds.values()]


def _evaluation_table(evaluation: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Rows of metrics, columns of models; every cell is (value, difference to the first column, whether it is best)."""
    flat = {model: _flatten(metrics) for model, metrics in evaluation.items()}
    names = dict.fromkeys(name for metrics in flat.values() for name in metrics)
    rows = [_row(name, [metrics.get(name) for metrics in flat.values()]) for name in names]
    return {"title": "Before and after", "columns": [_model_name(model) for model in flat], "rows": rows,
            "note": "Small figures: change from the first column. Bold: best."}  # fmt: skip


def _training_table(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """As _evaluation_table, from the first and last few steps."""
    count = max(1, min(5, len(steps) // 2))
    rows = []
    for name in TRAINED:
        ends = [_column(part, name) for part in (steps[:count], steps[-count:])]
        means = [sum(values) / len(values) if values else None for values in ends]
        if any(mean is not None for mean in means):
            rows.append(_row(name, means))
    some = f"{count} steps" if count > 1 else "step"
    note = f"Measured on training prompts; {len(steps)} steps in all. Small figures: change. Bold: better."
    return {"title": "First and last steps", "columns": [f"First {some}", f"Last {some}"], "rows": rows, "note": note}


def _flatten(metrics: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for name, value in metrics.items():
        flat |= {f"{name}@{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _row(name: str, values: list[Any]) -> tuple[str, str, list[tuple[str, str, bool]]]:
    key = name.split("@")[0]
    label, unit = LABELS.get(key, (key.replace("_", " ").capitalize(), "%" if key.endswith("_share") else ""))
    if key == "pass_at":
        label, unit = name.replace("pass_at", "pass"), "%"
    known = [value for value in values if is_number(value)]
    best = max(known) if key in HIGHER_IS_BETTER and known else min(known) if key in LOWER_IS_BETTER and known else None
    best = None if len(set(known)) < 2 else best
    cells = []
    for at, value in enumerate(values):
        if not is_number(value):
            cells.append(("–" if value is None else printable(str(value)), "", False))  # noqa: RUF001
            continue
        scale, digits = (100, 1) if unit == "%" else (1, 2)
        change = scale * (value - values[0]) if at and is_number(values[0]) else None
        shown = [f"{scale * value:.{digits}f}", "" if change is None else f"{change:+.{digits}f}"]
        cells.append((*(text.replace("-", "−") for text in shown), value == best))  # noqa: RUF001
    return printable(label), unit, cells


def _model_name(name: str) -> str:
    if match := re.search(r"alpha_([\d.]+)$", name):
        return f"PowerFlow, alpha {match[1]}"
    if match := re.search(r"(low|high)_temperature$", name):
        return f"Base, {match[1]} temperature"
    return "Base model" if name.endswith("base") else printable(name.replace("_", " "))


def _pass_at_curves(evaluation: dict[str, dict[str, Any]]) -> dict[str, dict[int, float]]:
    curves = {}
    for model, metrics in evaluation.items():
        found = metrics.get("pass_at") if isinstance(metrics.get("pass_at"), dict) else {}
        curve = {int(k): value for k, value in found.items() if str(k).isdigit() and is_number(value)}
        curves |= {_model_name(model): curve} if len(curve) > 1 else {}
    return curves


def _chosen_samples(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Best and worst (under the base) and longest of the last dump; one that is several of these is shown once."""
    last = [sample for sample in samples if sample["step"] == samples[-1]["step"]]
    well_formed = [sample for sample in last if sample.get("well_formed") is not False] or last

    def order(name: str, missing: float) -> Any:
        return lambda sample: sample[name] if is_number(sample.get(name)) else missing

    roles: dict[int, tuple[list[str], dict[str, Any]]] = {}
    if last:
        for role, sample in (
            ("best", max(well_formed, key=order("mean_base_logprob", -math.inf))),
            ("worst", min(last, key=order("mean_base_logprob", math.inf))),
            ("longest", max(last, key=order("length", -math.inf))),
        ):
            roles.setdefault(id(sample), ([], sample))[0].append(role)
    return [_sample(" and ".join(names).capitalize(), sample) for names, sample in roles.values()]


def _sample(role: str, sample: dict[str, Any]) -> dict[str, Any]:
    tokens = sample.get("tokens") or []
    policy, base = ((sample.get(name) or [])[: len(tokens)] for name in ("logprobs", "base_logprobs"))
    spans = [_span(*entry) for entry in itertools.zip_longest(tokens, policy, base)]
    head, tail = TOKENS_SHOWN
    endings = {"stop": "ended by itself", "length": "cut at the length limit"}
    facts = [("step", sample["step"]), ("length", f"{sample.get('length', len(tokens))} tokens"),
             ("", endings.get(sample.get("finish_reason"), "")),
             ("", {True: "well-formed", False: "malformed"}.get(sample.get("well_formed"), ""))]  # fmt: skip
    measured = {"mean log π": "mean_logprob", "mean log p_base": "mean_base_logprob"}
    measured |= {"residual": "residual", "weight": "weight"}
    facts += [(label, number(sample[name])) for label, name in measured.items() if is_number(sample.get(name))]
    return {
        "role": role,
        "prompt": printable(str(sample.get("prompt", ""))),
        "response": printable(str(sample.get("response", ""))),
        "head": spans[:head] if len(spans) > head + tail else spans,
        "tail": spans[-tail:] if len(spans) > head + tail else [],
        "left_out": max(0, len(spans) - head - tail),
        "facts": [(label, value) for label, value in facts if value != ""],
    }


def _span(token: str, policy: Any, base: Any) -> tuple[str, str, str]:
    """(text, CSS class, tooltip) of a token: u1 to u8 where the policy likes it better than the base, else d1 to d8."""
    if not (is_number(policy) and is_number(base)):
        return printable(str(token)), "", "log-probs not recorded"
    level = round(max(-1.0, min(1.0, (policy - base) / COLOUR_LIMIT)) * COLOUR_LEVELS)
    colour = f"{'u' if level > 0 else 'd'}{abs(level)}" if level else ""
    told = f"log π {policy:.2f}, log p_base {base:.2f}, difference {policy - base:+.2f}"
    return printable(str(token)), colour, told.replace("-", "−")  # noqa: RUF001


def _settings(config: dict[str, dict[str, Any]]) -> list[tuple[str, list[tuple[str, str, bool, str]]]]:
    """(section, [(name, value, whether it differs from the default, help)])."""
    from fastflow.config import sections

    known = {(name, entry.name): entry for name, section in sections().items() for entry in dataclasses.fields(section)}
    words = {"None": "none", "": "–", "True": "yes", "False": "no"}  # noqa: RUF001
    shown = []
    for section, values in config.items():
        rows = []
        for name, value in values.items():
            entry = known.get((section, name))
            plain = tuple(value) if isinstance(value, list) else value
            text = ", ".join(map(str, value)) if isinstance(value, list) else words.get(str(value), str(value))
            changed = entry is not None and plain != entry.default
            rows.append((printable(str(name)), printable(text), changed, entry.metadata["help"] if entry else ""))
        shown.append((printable(str(section)), rows))
    return shown


def printable(text: str) -> str:
    """The text with control characters and lone surrogates, which HTML cannot hold, as visible stand-ins."""
    text = re.sub("[\x00-\x08\x0b-\x1f]", lambda match: chr(0x2400 + ord(match[0])), text)
    return re.sub("[\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: float, digits: int = 3) -> str:
    """A number for people: so many significant digits (but whole below 10k), thousands as k, a real minus sign."""
    if abs(value) >= 1e4:
        text = f"{value / 1e6:.{digits}g}M" if abs(value) >= 1e6 else f"{value / 1e3:.{digits}g}k"
    elif 0 < abs(value) < 1e-3:
        text = re.sub(r"\.?0*e-0*", "e-", f"{value:.{digits - 1}e}")
    else:
        text = f"{value:.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"
    return text.replace("-", "−")  # noqa: RUF001


def _write(page: str, output: Path) -> Path:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise FastflowError(f"cannot write {output}: {error.strerror}; choose another --output") from error
    return output
