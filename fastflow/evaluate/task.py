"""What is asked in an evaluation: a small file that says where questions come from, how they are put and graded."""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fastflow.config.sections import GYM
from fastflow.config.setting import suggest
from fastflow.data.gym import INSTRUCTION
from fastflow.errors import FastflowError, message_of
from fastflow.evaluate.graders.grader import GRADERS

FOLDER = Path(__file__).parent / "tasks"
GYM_GRADER = "gym"
OWN = (".jsonl", ".json", ".ndjson", ".parquet")  # endings of files with a user's own questions
BOX = r"\\boxed\{[^}]"
_NO_FILE_NAME = set("/\\\0\n")
GRADED, CREATIVE = KINDS = ("graded", "creative")  # of task files
REWARDED = "rewarded"


@dataclass(frozen=True)
class Task:
    """One benchmark.

    dataset, subset, split: where its rows are; or path, a file; or gym, names of reasoning-gym's data sets joined by +,
    with their settings. question, gold: fields of a row. gold_after: the gold
    answer stands behind this mark. gold_box: it stands in the last box. choices: a field with a list of options, or
    the fields of the options, the right one first. shuffle: seed that orders the options. prompt: what the model
    reads, with {question}, {choices} and fields of the row. format: regular expression that a well-formed response
    contains. licence, note: what a reader of the results should know. kind: `graded` has gold answers; `creative` has
    none, and its responses are measured for diversity and judged by `rubric`; `rewarded` has none either, and `reward`,
    a function of the user's that no task file can name, gives each response a number. prompts: those of a creative
    task, where they stand in its file.
    """

    name: str
    grader: str = ""
    prompt: str = "{question}"
    question: str = "prompt"
    gold: str = "answer"
    title: str = ""
    dataset: str = ""
    path: str = ""
    subset: str | None = None
    split: str = "test"
    gold_after: str = ""
    gold_box: bool = False
    choices: str | tuple[str, ...] = ()
    shuffle: int | None = None
    format: str = BOX
    licence: str = ""
    note: str = ""
    kind: str = GRADED
    rubric: str = ""
    prompts: tuple[str, ...] = ()
    gym: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    reward: str = ""

    def __post_init__(self) -> None:
        where = f"task {self.name}"
        if not self.name or self.name.startswith(".") or set(self.name) & _NO_FILE_NAME:
            raise FastflowError(
                f"{where}: the entry name is {self.name!r}, which names its files too; write letters, digits, - and _"
            )
        if self.kind not in KINDS and not self.reward:
            raise FastflowError(f"{where}: kind is {self.kind!r}: {suggest(self.kind, KINDS)}")
        try:
            re.compile(self.format)
        except (re.error, RecursionError, OverflowError) as error:
            raise FastflowError(
                f"{where}: the entry format, {self.format!r}, is no regular expression ({error}); correct it"
            ) from error
        if self.kind == CREATIVE:
            self._check_creative(where)
        if self.kind != GRADED:
            return
        if self.rubric or self.prompts:
            raise FastflowError(f"{where}: rubric and prompts belong to kind: creative")
        if self.grader not in GRADERS:
            raise FastflowError(f"{where}: grader is {self.grader!r}: {suggest(self.grader, GRADERS)}")
        if sum(map(bool, (self.dataset, self.path, self.gym))) != 1:
            raise FastflowError(f"{where}: needs either dataset, path or gym")
        if bool(self.gym) != (self.grader == GYM_GRADER) or (self.settings and not self.gym):
            raise FastflowError(f"{where}: the entry gym, its settings and the grader gym belong together")
        if (self.grader == "choice") != bool(self.choices):
            raise FastflowError(f"{where}: the grader choice and the entry choices belong together")
        try:
            list(string.Formatter().parse(self.prompt))
        except ValueError as error:
            raise FastflowError(f"{where}: prompt is no template ({error}); write a brace as {{{{ or }}}}") from error

    def _check_creative(self, where: str) -> None:
        if self.grader or self.choices or self.gold_after or self.gold_box:
            raise FastflowError(f"{where}: a creative task has no gold answer; leave out grader, choices and gold")
        if sum(map(bool, (self.prompts, self.dataset, self.path))) != 1:
            raise FastflowError(f"{where}: needs either prompts, dataset or path")

    def asked(self) -> dict[str, Any]:
        """What decides the responses and their verdicts, beside the questions: not what is said of the task, where its
        rows come from, or how creative responses are judged.
        """
        asked = {name: getattr(self, name) for name in ("name", "kind", "grader", "format")}
        return asked | ({"reward": self.reward} if self.is_rewarded else {})

    def facts(self) -> dict[str, Any]:
        """What the results say of it beside its measures."""
        source = " ".join(filter(None, (self.dataset or self.path, self.subset, self.split if self.dataset else "")))
        return {
            "name": self.name, "title": self.title or self.name, "source": source,
            "grader": self.grader or self.reward, "licence": self.licence, "note": self.note, "kind": self.kind,
            "rubric": self.rubric,
        }  # fmt: skip

    @property
    def is_creative(self) -> bool:
        return self.kind == CREATIVE

    @property
    def is_rewarded(self) -> bool:
        return self.kind == REWARDED


def names() -> list[str]:
    """The tasks that come with fastflow."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def is_own_file(name: str) -> bool:
    """Whether a name in `--tasks` is a file of a user's own questions, which `--grader` grades."""
    return not name.startswith(GYM) and Path(name).suffix in OWN


def check_reward(reward: str | None, names: Sequence[str], *, has_grader: bool) -> None:
    """Raise FastflowError where a function is to reward responses, and no task of these names takes it."""
    if reward is None:
        return
    if has_grader:
        raise FastflowError(f"eval.reward = {reward} and eval.grader are both set; keep one of them")
    if not any(map(is_own_file, names)):
        raise FastflowError(
            f"eval.reward = {reward} serves own JSONL files, and the tasks name none: others have graders; leave it out"
        )


def find_task(name: str, *, grader: str = "math", reward: str | None = None) -> Task:
    """A task by its name, from a YAML file, or over a user's own file of `prompt` and `answer`.

    grader: of the own file. reward: the function that stands in for grader and answers there. Raises FastflowError for
    unknown tasks and files that are no tasks.
    """
    path = Path(name)
    if name.startswith(GYM):
        return Task(name=name.replace(":", "_"), gym=name.removeprefix(GYM), title=name, **_of_gym())
    if name in names():
        return _read(FOLDER / f"{name}.yaml", name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise FastflowError(f"task file {path} does not exist; check --tasks")
        return _read(path, path.stem)
    if is_own_file(name) and reward is not None:
        return Task(name=path.stem, path=name, kind=REWARDED, reward=reward, title=path.name)
    if is_own_file(name):
        choices = "choices" if grader == "choice" else ()
        return Task(name=path.stem, path=name, grader=grader, title=path.name, choices=choices)
    raise FastflowError(
        f"task {name!r} is unknown: {suggest(name, names())}; a file needs the ending .jsonl or .yaml, and a data set "
        "of reasoning-gym is gym:NAME"
    )


def _of_gym() -> dict[str, Any]:
    return {"grader": GYM_GRADER, "prompt": "{question}" + INSTRUCTION.replace("{", "{{").replace("}", "}}")}


def _read(path: Path, name: str) -> Task:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise FastflowError(f"{path} is no task: {message_of(error)}") from error
    if not isinstance(tree, dict):
        raise FastflowError(f"{path} is no task: it must hold entries such as grader: math")
    known = {entry.name: entry for entry in dataclasses.fields(Task) if entry.name != "reward"}
    tree = {**(_of_gym() if "gym" in tree else {}), **tree}
    for key, value in tree.items():
        if key not in known:
            raise FastflowError(f"{path}: unknown entry {key}: {suggest(str(key), known)}")
        _check_type(path, key, value)
    if "grader" not in tree and tree.get("kind", GRADED) == GRADED:
        raise FastflowError(f"{path}: the entry grader is missing: one of {', '.join(GRADERS)}")
    if isinstance(tree.get("choices"), list):
        tree["choices"] = tuple(tree["choices"])
    if "prompts" in tree:
        tree["prompts"] = tuple(tree["prompts"])
    if tree.get("path") and not Path(tree["path"]).is_absolute():
        tree["path"] = str(path.parent / tree["path"])
    return Task(**{"name": name, **tree})


def _check_type(path: Path, key: str, value: Any) -> None:
    types = {"gold_box": bool, "shuffle": int, "choices": (str, list), "prompts": list, "settings": dict}
    wanted: Any = types.get(key, str)
    if key == "prompts" and isinstance(value, list) and not all(isinstance(entry, str) and entry for entry in value):
        raise FastflowError(f"{path}: prompts must be a list of texts; put one with a colon into quotation marks")
    if not isinstance(value, wanted) and not (key == "subset" and value is None):
        raise FastflowError(f"{path}: {key} is {value!r}, a {type(value).__name__}; see the tasks that come along")
