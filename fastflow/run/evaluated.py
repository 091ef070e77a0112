"""How an evaluation's scores are called among a run's metrics, and how they read in a line of the console.

`eval/sums/avg@4` is the score avg@4 on the task sums, and `eval/sums/avg@4_error` its standard error over prompts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fastflow.config.sections import EVALUATED

SECONDS = "seconds_eval"
REWARD = "reward"
_AVERAGE = re.compile(rf"{EVALUATED}.+/(avg@\d+|{REWARD})")
_COUNTED = ("unparsed", "timed_out")  # verdicts that make scores doubtful
_PLAIN = ("tokens", "truncated", "well_formed", "distinct")


def names_of(tasks: Sequence[str], samples: int, rewarded: Sequence[str] = ()) -> list[str]:
    """The metrics of an evaluation on these tasks, but for errors: what may choose the best save. rewarded: further
    tasks, whose responses a function gives numbers.
    """
    measures = [
        f"avg@{samples}", *(f"pass@{k}" for k in shown_ks(samples)), f"maj@{samples}", *_PLAIN,
        *(f"{verdict}_share" for verdict in _COUNTED),
    ]  # fmt: skip
    found = [f"{EVALUATED}{task}/{measure}" for task in tasks for measure in measures]
    return found + [f"{EVALUATED}{task}/{measure}" for task in rewarded for measure in (REWARD, *_PLAIN)]


def metrics_of(task: str, scores: Mapping[str, Any]) -> dict[str, float | None]:
    """The scores of one task, as `evaluate/scores.py` gives them, as flat metrics."""
    samples, found = scores["samples"], {}
    graded = REWARD not in scores
    names = (f"avg@{samples}", f"maj@{samples}") if graded else (REWARD,)
    measures = {name: scores[name] for name in (*names, *_PLAIN)}
    measures |= {f"pass@{k}": scores["pass_at"][str(k)] for k in shown_ks(samples)} if graded else {}
    for name in sorted(measures):
        found[f"{EVALUATED}{task}/{name}"] = measures[name]["value"]
        found[f"{EVALUATED}{task}/{name}_error"] = measures[name]["error"]
    if not graded:
        return found
    responses = sum(scores["verdicts"].values())
    for verdict in _COUNTED:
        found[f"{EVALUATED}{task}/{verdict}_share"] = scores["verdicts"][verdict] / responses
    return found


def averages_of(names: Collection[str]) -> list[str]:
    """Those of a run's metrics that are the avg@n or the reward of a task, sorted."""
    return sorted(name for name in names if _AVERAGE.fullmatch(name))


def split_name(metric: str) -> tuple[str, str] | None:
    """(task, measure) of an evaluation's metric; None for any other.

    >>> split_name("eval/sums/avg@4"), split_name("length_mean")
    (('sums', 'avg@4'), None)
    """
    if not metric.startswith(EVALUATED):
        return None
    task, _, measure = metric.removeprefix(EVALUATED).rpartition("/")
    return task, measure


def is_share(measure: str) -> bool:
    """Whether a measure of an evaluation, or its error, is a share. Length and reward are none."""
    return measure.removesuffix("_error") not in ("tokens", REWARD)


def is_evaluated(metrics: Mapping[str, Any]) -> bool:
    """Whether an evaluation's scores are among the metrics."""
    return SECONDS in metrics


def lines_of(metrics: Mapping[str, Any]) -> list[str]:
    """A line for each task whose scores are among the metrics."""
    measures: dict[str, dict[str, Any]] = {}
    for name, value in metrics.items():
        if (parts := split_name(name)) is not None:
            task, measure = parts
            measures.setdefault(task, {})[measure] = value
    return [f"eval {task}  {_line(found)}" for task, found in measures.items()]


def _line(found: Mapping[str, Any]) -> str:
    averages = [name for name in found if name.startswith(("avg@", "maj@")) and not name.endswith("_error")]
    passed = [name for name in found if name.startswith("pass@") and not name.endswith("_error")]
    shown = [*averages[:1], *sorted(passed, key=lambda name: int(name[5:]))[-1:], *averages[1:]]
    fields = [f"{name} {100 * found[name]:.1f}%{_error(found[f'{name}_error'])}" for name in shown]
    if REWARD in found:
        error = found[f"{REWARD}_error"]
        fields.append(f"{REWARD} {found[REWARD]:.4g}" + ("" if error is None else f"±{error:.2g}"))
    fields += [f"tokens {found['tokens']:.1f}", f"cut {found['truncated']:.0%}"]
    fields += [f"well-formed {found['well_formed']:.0%}"]
    fields += [f"unparsed {found['unparsed_share']:.0%}"] if found.get("unparsed_share") else []
    return "  ".join(fields)


def _error(error: float | None) -> str:
    return "" if error is None else f"±{100 * error:.1f}"


def shown_ks(samples: int) -> list[int]:
    """The k of pass@k beside 1, which is avg: powers of 2, and all samples."""
    return sorted({*(2**power for power in range(1, samples.bit_length()) if 2**power <= samples), samples} - {1})
