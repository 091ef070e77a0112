"""What a sweep that comes along consists of: its settings, the inputs that it makes, and what it claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastflow.sweep.results import RunResult

if TYPE_CHECKING:
    from rich.console import Console

Unfinished = Mapping[str, Sequence[str]]  # runs of a sweep that failed or wrote nothing, by their group


@dataclass(frozen=True)
class StudyVerdict:
    """One claim that a study makes, and whether its figures meet it. found, bar: the figure and what it is held to, in
    words.
    """

    claim: str
    found: str
    bar: str
    met: bool

    def __str__(self) -> str:
        return f"{'met' if self.met else 'MISSED'}: {self.claim}: {self.found} (bar: {self.bar})"


@dataclass(frozen=True)
class Study:
    """A whole sweep by its name.

    settings: of every run, by dotted name. variants: what differs. seeds: of the runs. inputs: model and data of the
    runs in a sweep's directory. make_inputs: writes them there. measure: evaluates the policy of a run that is done.
    judge: what the study claims of its results, and of runs that did not finish.
    """

    title: str
    settings: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    inputs: Callable[[Path], dict[str, Any]]
    make_inputs: Callable[[Path, Console], None]
    measure: Callable[[Path, Path], None]
    judge: Callable[[Sequence[RunResult], Unfinished], list[StudyVerdict]]
