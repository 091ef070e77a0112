r"""The grader `gym`: reasoning-gym's own verifier on the answer that a response gives.

The answer is the last box, otherwise the last <answer> block, otherwise what the response states as its answer. A
score of 1 is right; partial credit is wrong. Some verifiers execute the answer as Python: those get no text that could
run as a program.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from fastflow.errors import FastflowError, need
from fastflow.evaluate.graders.boxes import find_boxes
from fastflow.evaluate.graders.exact import unwrapped
from fastflow.evaluate.graders.second_thoughts import boxed_answer, is_taken_back
from fastflow.evaluate.graders.statements import spoken, stated_answer
from fastflow.evaluate.graders.verdict import Verdict, verdict_of

_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_EXECUTED = {  # data sets whose verifier evaluates the answer, directly or by sympy's parse_expr
    "binary_matrix", "countdown", "intermediate_integration", "n_queens", "number_sorting", "polynomial_multiplication",
    "puzzle24", "simple_integration", "spiral_matrix", "string_insertion",
}  # fmt: skip
_FUNCTIONS = {
    "abs", "acos", "Abs", "asin", "atan", "cos", "cosh", "cot", "csc", "exp", "ln", "log", "sec", "sin", "sinh", "sqrt",
    "tan", "tanh",
}  # fmt: skip
_CALL = re.compile(r"([A-Za-z_]\w*)\s*\(")
_PROGRAM = re.compile(r"__|\.\s*[A-Za-z_]|\b(?:lambda|for|import|while)\b|[:;@`]|[\])]\s*\(")
_COMPARED = {"game_of_life_halting"}  # its verifier takes any text for right: bool("False") is True
_TUPLES = {"arc_agi", "rearc"}  # their verifiers compare a grid with tuples, which JSON does not have


def require() -> None:
    """Raise FastflowError, saying what to install, where reasoning-gym is missing."""
    need("reasoning_gym", extra="gym", purpose="the grader gym")


def grade(gold: str, response: str) -> Verdict:
    """The verdict on a response. gold: an entry as JSON, with name, settings, question, answer and metadata."""
    answer = extract(response)
    if not answer:
        return Verdict.UNPARSED
    entry = json.loads(gold)
    if entry["name"] in _EXECUTED and _is_program(answer):
        return Verdict.UNPARSED
    if entry["name"] in _COMPARED:
        return verdict_of(answer.casefold() == str(entry["answer"]).casefold())
    if entry["name"] in _TUPLES:
        entry["metadata"]["output"] = tuple(map(tuple, entry["metadata"]["output"]))
    verifier = _verifier(entry["name"], json.dumps(entry.get("settings") or {}, sort_keys=True))
    return verdict_of(float(verifier.score_answer(answer, entry)) >= 1)


def extract(response: str) -> str:
    """The answer as the verifier gets it; "" for none."""
    text = spoken(response)
    boxed, blocks = boxed_answer(text), _BLOCK.findall(text)
    if is_taken_back(text):  # with all that led to the box
        blocks = _BLOCK.findall(text, find_boxes(text)[-1].end)
        answer = blocks[-1] if blocks else boxed[-1] if boxed else ""
    else:
        answer = boxed[-1] if boxed else blocks[-1] if blocks else stated_answer(text) or ""
    return unwrapped(answer.strip())


def own_answer(gold: str) -> str | None:
    """The entry's own answer; None where the data set leaves all to its verifier."""
    answer = json.loads(gold)["answer"]
    return None if answer is None else str(answer)


def check_entry(place: str, entry: Any) -> str:
    """Return an entry as graders take it. Raises FastflowError, with the place, for what is none.

    Entries of the library itself are taken too: they name their data set in metadata.source_dataset.
    """
    if isinstance(entry, str):
        try:
            entry = json.loads(entry)
        except ValueError as error:
            raise FastflowError(f"{place}: field 'gold' is no entry of reasoning-gym in JSON ({error})") from error
    metadata = entry.get("metadata") if isinstance(entry, dict) else None
    if not isinstance(metadata, dict) or "answer" not in entry:
        raise FastflowError(f"{place}: the entry needs name, answer and metadata, as reasoning-gym makes them")
    name = entry.get("name") or metadata.get("source_dataset")
    if not isinstance(name, str):
        raise FastflowError(f"{place}: the entry has neither 'name' nor metadata.source_dataset, its data set's name")
    return as_gold({**entry, "name": name})


def as_gold(entry: dict[str, Any]) -> str:
    """An entry as the text that graders, caches and results hold."""
    return json.dumps(entry, ensure_ascii=False, sort_keys=True)


def _is_program(answer: str) -> bool:
    return bool(_PROGRAM.search(answer)) or not set(_CALL.findall(answer)) <= _FUNCTIONS


@lru_cache(maxsize=128)
def _verifier(name: str, settings: str) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(name, seed=0, **json.loads(settings))
