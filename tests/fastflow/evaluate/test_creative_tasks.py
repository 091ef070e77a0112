"""Creative tasks: those that come along, prompts from a file, and what is none."""

import pytest

from fastflow.errors import FastflowError
from fastflow.evaluate.creative.rubric import find_rubric
from fastflow.evaluate.questions import read_questions
from fastflow.evaluate.task import find_task


@pytest.mark.parametrize("name", ["poem", "story", "joke"])
def test_those_that_come_along(name):
    task = find_task(name)
    asked = read_questions(task, folder=None, limit=0)
    assert task.is_creative and len({question.prompt for question in asked}) == len(asked) >= 10
    assert find_rubric(task.rubric)
    assert len(read_questions(task, folder="nowhere", limit=3)) == 3


def test_prompts_from_a_file(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "Write a limerick."}\n')
    (tmp_path / "limerick.yaml").write_text("kind: creative\npath: mine.jsonl\nrubric: poem\n")
    (question,) = read_questions(find_task(str(tmp_path / "limerick.yaml")), folder=None, limit=0)
    assert question.prompt == "Write a limerick." and question.gold == ""


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("kind: creativ\nprompts: [a]", "did you mean creative"),
        ("kind: creative", "needs either prompts, dataset or path"),
        ("kind: creative\nprompts: [a]\npath: b", "needs either prompts, dataset or path"),
        ("kind: creative\nprompts: [a]\ngrader: math", "has no gold answer"),
        ("kind: creative\nprompts: [a: b]", "prompts must be a list of texts"),
        ("kind: creative\nprompts: a", "prompts is 'a'"),
        ("grader: math\npath: a\nrubric: poem", "belong to kind: creative"),
    ],
)
def test_what_is_none(tmp_path, text, complaint):
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(FastflowError, match=complaint):
        find_task(str(tmp_path / "odd.yaml"))
