"""Sweeps that come along: their settings, the inputs that they make, and what they claim."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastflow.sweep import figure_3
from fastflow.sweep.verdict import StudyVerdict, Unfinished

if TYPE_CHECKING:
    from rich.console import Console

    from fastflow.sweep.results import RunResult


@dataclass(frozen=True)
class Study:
    """A whole sweep by its name.

    settings: of every run, by dotted name. variants: what differs. seeds: of the runs. inputs: model and data of the
    runs in a sweep's directory. make_inputs: writes them there. measure: evaluates the policy of a run that is done.
    judge: what the study claims of its results, and of runs
    that did not finish.
    """

    title: str
    settings: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    inputs: Callable[[Path], dict[str, Any]]
    make_inputs: Callable[[Path, Console], None]
    measure: Callable[[Path, Path], None]
    judge: Callable[[Sequence[RunResult], Unfinished], list[StudyVerdict]]

    def tree(self) -> dict[str, Any]:
        """Return the sweep as its YAML file would have it."""
        variants = {name: dict(changes) for name, changes in self.variants.items()}
        return {**self.settings, "variants": variants, "seeds": list(self.seeds)}


STUDIES: dict[str, Study] = {
    "figure-3": Study(
        title="The paper's stability figure, in miniature",
        settings=figure_3.SETTINGS,
        variants=figure_3.METHODS,
        seeds=figure_3.SEEDS,
        inputs=figure_3.inputs,
        make_inputs=figure_3.make_inputs,
        measure=figure_3.measure,
        judge=figure_3.judge,
    ),
}
