"""Gold answers of records: what counts as one, and that a response can give it."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from fastflow.config.schema import ObjectiveConfig
from fastflow.data.trajectory import Prompt
from fastflow.errors import FastflowError
from fastflow.evaluate.questions import read_questions
from fastflow.evaluate.task import find_task
from fastflow.train.answers import read_answers

GSM8K = "In April she sold 48, in May 48/2 = <<48/2=24>>24.\nTogether 48+24 = <<48+24=72>>72 clips.\n#### 72"
GRADERS = ("math", "numeric", "exact")


def prompts(*answers) -> list[Prompt]:
    return [Prompt(np.array([1]), record={"answer": answer}, source=f"line {number}")
            for number, answer in enumerate(answers, start=1)]  # fmt: skip


def reader(grader, *answers):
    settings = ObjectiveConfig(name="grpo", reward="answer", grader=grader)
    return read_answers(settings, prompts(*answers))


@pytest.mark.parametrize("grader", GRADERS)
@pytest.mark.parametrize("answer", [["72"], [72], "72", " 72\n", GSM8K])
def test_a_right_response_is_right_whatever_the_answers_form(grader, answer):
    made = reader(grader, answer)
    texts = [r"\boxed{72}", "So it is.\n#### 72", r"\boxed{24}"]
    assert made.are_right(texts, [{"answer": answer}] * 3) == [True, True, False]
    made.close()


def test_several_answers_are_one_with_commas():
    made = reader("math", ["1", "-1"])
    assert made.are_right([r"\boxed{-1, 1}", r"\boxed{1}"], [{"answer": ["1", "-1"]}] * 2) == [True, False]
    made.close()


@pytest.mark.parametrize("answer", [None, "", " ", [], [""], ["1", ""], [["1"]], True, float("nan")])
def test_what_is_no_answer_is_refused_with_its_place(answer):
    with pytest.raises(FastflowError, match=r"line 2: field 'answer' is .*, which is no answer"):
        reader("exact", "1", answer)


def test_a_mapping_is_no_answer_and_its_fields_are_named():
    with pytest.raises(FastflowError, match=r"line 2: answer holds a mapping \(value\).* = answer\.value"):
        reader("exact", "1", {"value": 1})


@pytest.mark.parametrize("answer", [None, "", [], ["1", ""], [["1"]], True, {"value": 1}])
def test_an_evaluation_refuses_the_same(tmp_path, answer):
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"prompt": "a", "answer": answer}) + "\n")
    with pytest.raises(FastflowError, match="which is no gold answer"):
        read_questions(find_task(str(file)), folder=None, limit=0)


def test_answers_that_no_response_can_give(caplog):
    with caplog.at_level(logging.WARNING, "fastflow"):
        reader("numeric", "4", "many", "few", "5").close()
    assert "2 of 4 answers in answer (objective.answer_field) do not equal themselves" in caplog.text
    assert "(first: 'many' at line 2)" in caplog.text
    with pytest.raises(FastflowError, match=r"2 of 2 answers.*no response can be right"):
        reader("numeric", "many", "few")
    caplog.clear()
    with caplog.at_level(logging.WARNING, "fastflow"):
        reader("math", r"We get $x = 3$, so it is $\boxed{\frac{1}{2}}$.").close()
    assert not caplog.text
