"""What a judge looks at: a small file of criteria with weights, and the scale of their grades."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fastflow.config.setting import suggest
from fastflow.errors import FastflowError, message_of

FOLDER = Path(__file__).parent / "rubrics"


@dataclass(frozen=True)
class Criterion:
    """One question about a text. weight: its share of the quality, of all weights together."""

    name: str
    weight: float
    question: str


@dataclass(frozen=True)
class Rubric:
    """Criteria that are graded from `lowest` to `highest`, and what the text is."""

    name: str
    subject: str
    lowest: int
    highest: int
    criteria: tuple[Criterion, ...]

    def quality(self, grades: dict[str, float]) -> float:
        """Compute the weighted mean of the grades, scaled to 0 (all lowest) to 1 (all highest)."""
        total = sum(criterion.weight for criterion in self.criteria)
        mean = sum(criterion.weight * grades[criterion.name] for criterion in self.criteria) / total
        return (mean - self.lowest) / (self.highest - self.lowest)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(criterion.name for criterion in self.criteria)


def known() -> list[str]:
    """List the rubrics that come with fastflow."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_rubric(name: str) -> Rubric:
    """Read a rubric by its name or from a YAML file. Raises FastflowError for what is no rubric."""
    path = FOLDER / f"{name}.yaml" if name in known() else Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise FastflowError(f"rubric {name!r} is unknown: {suggest(name, known())}; a file needs the ending .yaml")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError, RecursionError) as error:
        raise FastflowError(f"cannot read the rubric {path}: {message_of(error)}") from error
    return _checked(path, tree)


def _checked(path: Path, tree: Any) -> Rubric:
    if not isinstance(tree, dict):
        raise FastflowError(f"{path} is no rubric: it must hold the entries subject, scale and criteria")
    for key in tree:
        if key not in ("subject", "scale", "criteria"):
            raise FastflowError(f"{path}: unknown entry {key}: {suggest(str(key), ('subject', 'scale', 'criteria'))}")
    subject, scale, criteria = (tree.get(key) for key in ("subject", "scale", "criteria"))
    if not isinstance(subject, str) or not subject.strip():
        raise FastflowError(f"{path}: subject is {subject!r}; say what the text is, as in subject: a poem")
    if not (isinstance(scale, list) and len(scale) == 2 and all(type(end) is int for end in scale)):
        raise FastflowError(f"{path}: scale is {scale!r}; write the lowest and highest grade, as in scale: [1, 10]")
    if scale[0] >= scale[1]:
        raise FastflowError(f"{path}: the lowest grade {scale[0]} of the scale is not below the highest {scale[1]}")
    if not isinstance(criteria, dict) or not criteria:
        raise FastflowError(f"{path}: criteria must name at least one criterion with weight and question")
    found = tuple(_criterion(path, name, entry) for name, entry in criteria.items())
    return Rubric(path.stem, subject, scale[0], scale[1], found)


def _criterion(path: Path, name: Any, entry: Any) -> Criterion:
    if not isinstance(name, str) or not isinstance(entry, dict) or set(entry) != {"weight", "question"}:
        raise FastflowError(f"{path}: criterion {name!r} must hold weight and question, and nothing else")
    weight, question = entry["weight"], entry["question"]
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise FastflowError(f"{path}: the weight of {name} is {weight!r}; it must be a number above 0")
    if not isinstance(question, str) or not question.strip():
        raise FastflowError(f"{path}: the question of {name} is {question!r}; it must be a text")
    return Criterion(name, float(weight), question.strip())
