"""The tasks that come along, on rows with the fields of their data sets; own tasks and what is refused of them."""

import dataclasses
import json
import re

import pytest

from fastflow.config.schema import DataConfig
from fastflow.errors import FastflowError
from fastflow.evaluate.graders.grader import GRADERS
from fastflow.evaluate.questions import read_questions
from fastflow.evaluate.task import find_task, names

ROWS = {
    "math500": {"problem": "What is 1/2 + 1/4?", "answer": "\\frac{3}{4}", "solution": "", "subject": "", "level": 1},
    "aime24": {"id": 60, "problem": "Find n.", "solution": "", "answer": "204", "url": "", "year": "2024"},
    "aime25": {"problem": "Find n.", "answer": "70", "id": "0"},
    "amc23": {"id": 0, "question": "Find n.", "answer": 27.0, "url": ""},
    "olympiadbench": {"id": 1, "question": "Solve.", "final_answer": ["2", "5"], "is_multiple_answer": True},
    "gsm8k": {"question": "How many?", "answer": "4+5=9\n#### 1,009"},
    "gpqa_diamond": {
        "Question": "Which?", "Correct Answer": "right", "Incorrect Answer 1": "w1", "Incorrect Answer 2": "w2",
        "Incorrect Answer 3": "w3",
    },
    "mmlu_pro": {"question": "Which?", "options": [f"option {n}" for n in range(10)], "answer": "I", "answer_index": 8},
    "numina_holdout": {"problem": "Find n.", "solution": "So \\boxed{1}, no: \\boxed{\\frac{7}{2}}.", "source": ""},
}  # fmt: skip
GOLDS = {"math500": "\\frac{3}{4}", "amc23": "27.0", "olympiadbench": "2, 5", "gsm8k": "1,009", "mmlu_pro": "I",
         "numina_holdout": "\\frac{7}{2}"}  # fmt: skip


def test_there_is_a_row_for_each_task():
    assert {name for name in names() if not find_task(name).is_creative} == set(ROWS)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_task_reads_the_fields_of_its_data_set(name, tmp_path):
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(ROWS[name]) + "\n" for _ in range(5)))
    task = find_task(name)
    questions = read_questions(task, folder=str(tmp_path), limit=3)
    assert len(questions) == 3 and task.grader in GRADERS and task.licence and task.title and task.dataset
    assert "\\boxed{}" in questions[0].prompt and "{question}" not in questions[0].prompt
    assert questions[0].gold == GOLDS.get(name, questions[0].gold)
    if task.grader == "choice":
        assert questions[0].gold in questions[0].choices
        assert all(f"{letter}. {text}" in questions[0].prompt for letter, text in questions[0].choices.items())


def test_options_are_shuffled_in_the_same_way_each_time(tmp_path):
    rows = [{**ROWS["gpqa_diamond"], "Question": str(number)} for number in range(40)]
    (tmp_path / "gpqa_diamond.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, again = (read_questions(find_task("gpqa_diamond"), folder=str(tmp_path), limit=0) for _ in range(2))
    assert first == again
    assert all(question.choices[question.gold] == "right" for question in first)
    counts = [sum(question.gold == letter for question in first) for letter in "ABCD"]
    assert min(counts) >= 3  # every place comes


def test_a_data_set_on_disk_stands_in_for_the_hub(tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    datasets.Dataset.from_list([ROWS["gsm8k"]] * 3).to_parquet(folder / "test.parquet")
    assert len(read_questions(find_task("gsm8k"), folder=str(tmp_path), limit=0)) == 3


def test_an_own_task_is_a_file_of_yaml(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"q": "2+2", "a": 4}\n')
    file = tmp_path / "mine.yaml"
    file.write_text('path: rows.jsonl\nquestion: q\ngold: a\ngrader: numeric\nprompt: "Compute {question}."\n')
    (question,) = read_questions(find_task(str(file)), folder=None, limit=0)
    assert (question.prompt, question.gold) == ("Compute 2+2.", "4")


def test_a_tasks_prompt_goes_around_the_last_of_chat_messages(tmp_path):
    asked = {"role": "user", "content": "2+2", "name": "Ann"}
    first = {"role": "system", "content": "{a} stays"}
    rows = [{"q": [first, asked, {"role": "assistant", "content": "4"}], "a": 4}, {"q": "3+3", "a": 6}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "mine.yaml"
    file.write_text('path: rows.jsonl\nquestion: q\ngold: a\ngrader: numeric\nprompt: "Compute {question}."\n')
    chat, text = read_questions(find_task(str(file)), folder=None, limit=0)
    assert chat.prompt == [first, {**asked, "content": "Compute 2+2."}] and text.prompt == "Compute 3+3."


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("path: x.jsonl\n", "the entry grader is missing"),
        ("path: x.jsonl\ngrader: maths\n", "grader is 'maths': did you mean math?"),
        ("path: x.jsonl\ngrader: math\ndata_set: y\n", "unknown entry data_set: did you mean dataset?"),
        ("grader: math\n", "needs either dataset, path or gym"),
        ("path: x.jsonl\ngrader: choice\n", "belong together"),
        ('path: x.jsonl\ngrader: math\nprompt: "{question"\n', "prompt is no template"),
        ("path: x.jsonl\ngrader: math\nshuffle: yes please\n", "shuffle is 'yes please'"),
        ("- a\n", "must hold entries"),
        ("a: [\n", "is no task"),
    ],
)
def test_a_file_that_is_no_task_is_refused(tmp_path, text, complaint):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(FastflowError, match=re.escape(complaint)):
        find_task(str(file))


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "1+1="}, "mine.jsonl:1: no field 'answer'"),
        ({"prompt": "1+1=", "answer": ""}, "mine.jsonl:1: field 'answer' is ''"),
        ({"prompt": "1+1=", "answer": None}, "mine.jsonl:1: field 'answer' is None"),
        ({"problem": "1+1=", "answer": "2"}, "mine.jsonl:1: no field 'prompt'"),
    ],
)
def test_a_row_that_is_no_question_is_refused(tmp_path, row, complaint):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(FastflowError, match=re.escape(complaint)):
        read_questions(find_task(str(file)), folder=None, limit=0)


def test_rows_whose_solution_has_no_box_are_left_out(tmp_path, caplog):
    rows = [ROWS["numina_holdout"], {"problem": "Prove it.", "solution": "Clear."}]
    (tmp_path / "numina_holdout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(read_questions(find_task("numina_holdout"), folder=str(tmp_path), limit=0)) == 1
    assert "rows without a gold answer in a box are left out: 1 of 2" in caplog.text


@pytest.mark.parametrize(
    ("choices", "complaint"),
    [
        (["x", None], "mine.jsonl:1: field 'choices' has the option null, but needs a text"),
        ({"a": "x", "b": "y"}, "mine.jsonl:1: field 'choices' has the option 'a', but needs capital letters"),
        (["x"], "mine.jsonl:1: field 'choices' must hold at least 2 options"),
    ],
)
def test_options_that_are_none_are_refused(tmp_path, choices, complaint):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"prompt": "Which?", "answer": "B", "choices": choices}) + "\n")
    with pytest.raises(FastflowError, match=re.escape(complaint)):
        read_questions(find_task(str(file), grader="choice"), folder=None, limit=0)


def test_an_absent_option_of_a_field_is_refused(tmp_path):
    row = ROWS["gpqa_diamond"] | {"Incorrect Answer 2": None}
    (tmp_path / "gpqa_diamond.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(FastflowError, match="field 'Incorrect Answer 2' has the option null"):
        read_questions(find_task("gpqa_diamond"), folder=str(tmp_path), limit=0)


def test_what_is_said_of_a_task_does_not_decide_its_responses():
    task = find_task("gsm8k")
    assert task.asked() == dataclasses.replace(task, note="x", title="x", licence="x", gold_after="").asked()
    assert task.asked() != dataclasses.replace(task, grader="exact").asked()


def test_own_files_of_choices_need_the_field_choices(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"prompt": "Which?", "answer": "B", "choices": ["x", "y"]}) + "\n")
    (question,) = read_questions(find_task(str(file), grader="choice"), folder=None, limit=0)
    assert question.choices == {"A": "x", "B": "y"}
    assert DataConfig().prompt_field == find_task(str(file)).question
