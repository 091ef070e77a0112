"""Prompts and verified answers of reasoning-gym: how they are named, made, refused and scored."""

from __future__ import annotations

import json

import pytest

from fastflow.cli import main
from fastflow.config.schema import Config, DataConfig
from fastflow.data import gym, read_records
from fastflow.errors import FastflowError
from fastflow.evaluate.graders.grader import Item, grade
from fastflow.evaluate.graders.gym import as_gold, extract
from fastflow.evaluate.graders.verdict import Verdict
from fastflow.evaluate.questions import read_questions
from fastflow.evaluate.task import find_task
from fastflow.grade.records import read_items
from fastflow.train.answers import GradedAnswers
from small_models import save_model


@pytest.fixture(scope="module")
def records():
    pytest.importorskip("reasoning_gym", reason='needs pip install "fastflow[gym]"')
    return read_records(DataConfig(path="gym:leg_counting+word_ladder", gym={"size": 3, "leg_counting": {"size": 2}}))


class TestNames:
    @pytest.mark.parametrize("path", ["gym:", "gym:a+", "gym:a+a"])
    def test_empty_or_twice(self, path):
        with pytest.raises(FastflowError, match="empty data set or one twice"):
            gym.names_in(path)

    def test_settings_without_a_data_set(self):
        with pytest.raises(FastflowError, match=r"data\.gym is set but data\.path"):
            Config(data=DataConfig(path="prompts.jsonl", gym={"size": 2}))

    @pytest.mark.parametrize("task", ["grader: gym\npath: a.jsonl", "grader: math\ngym: a", "gym: a\npath: a.jsonl"])
    def test_a_task_that_mixes_it(self, tmp_path, task):
        (tmp_path / "own.yaml").write_text(task)
        with pytest.raises(FastflowError, match="task own: "):
            find_task(str(tmp_path / "own.yaml"))

    def test_without_the_package(self, monkeypatch):
        monkeypatch.setattr(gym, "find_spec", lambda name: None)
        with pytest.raises(FastflowError, match=r"pip install \"fastflow\[gym\]\""):
            gym.make_entries("gym:leg_counting", None)


class TestRecords:
    def test_the_data_sets_take_turns(self, records):
        names = [record[gym.ENTRY]["name"] for _, record in records]
        assert names == ["leg_counting", "word_ladder"] * 2 + ["word_ladder"]

    def test_the_instruction_follows_the_question(self, records):
        for _, record in records:
            assert record["prompt"] == record[gym.ENTRY]["question"] + gym.INSTRUCTION

    def test_a_suffix_replaces_the_instruction(self, records):
        found = read_records(DataConfig(path="gym:leg_counting", suffix=" Think.", prompt_field="problem", limit=1))
        assert found[0][1]["problem"] == records[0][1][gym.ENTRY]["question"]

    def test_another_process_makes_the_same(self, records, monkeypatch):
        monkeypatch.setenv("PYTHONHASHSEED", "12345")  # word_ladder depends on the order of a set
        again = list(gym.make_entries("gym:leg_counting+word_ladder", {"size": 3, "leg_counting": {"size": 2}}))
        assert json.dumps(again) == json.dumps([record[gym.ENTRY] for _, record in records])

    def test_an_unknown_name(self, records):
        with pytest.raises(FastflowError, match="has no 'leg_countin': did you mean leg_counting"):
            gym.make_entries("gym:leg_countin", None)

    @pytest.mark.parametrize("own", [{"min_animal": 2}, {"min_animals": 0}])
    def test_settings_that_the_library_refuses(self, records, own):
        with pytest.raises(FastflowError, match=r"refuses leg_counting \(.*min_animal.*it takes .*max_animals"):
            gym.make_entries("gym:leg_counting", own)

    @pytest.mark.parametrize("own", [{"size": 0}, {"size": True}, {"seed": -1}, {"seed": "a"}])
    def test_size_and_seed(self, records, own):
        with pytest.raises(FastflowError, match="must be a whole number of at least"):
            gym.make_entries("gym:leg_counting", own)


class TestScoring:
    @pytest.mark.parametrize(
        ("response", "answer"),
        [
            ("\\boxed{1} no, \\boxed{\\text{two words}}", "two words"),
            ("<answer>a\nb</answer>", "a\nb"),
            ("The answer is 12.", "12"),
            ("nothing of the kind", ""),
        ],
    )
    def test_which_part_is_the_answer(self, response, answer):
        assert extract(response) == answer

    @pytest.mark.parametrize(
        "text", ["__import__('os').system('true')", "open(1)", "[].pop", "(lambda: 1)()", "(a)(b)"]
    )
    def test_what_could_run_as_a_program_reaches_no_verifier_that_executes(self, text, monkeypatch):
        def refuse(name, settings):
            raise AssertionError("the verifier was made")

        monkeypatch.setattr("fastflow.evaluate.graders.gym._verifier", refuse)
        gold = as_gold({"name": "countdown", "answer": "1", "metadata": {}})
        assert grade(Item("gym", gold, f"<answer>{text}</answer>")) is Verdict.UNPARSED

    @pytest.mark.parametrize(("answer", "verdict"), [("true", "right"), ("False", "wrong"), ("qqq", "wrong")])
    def test_a_verifier_that_takes_any_text_is_not_asked(self, answer, verdict):
        gold = as_gold({"name": "game_of_life_halting", "answer": "True", "metadata": {}})
        assert grade(Item("gym", gold, f"\\boxed{{{answer}}}")).value == verdict

    def test_right_and_wrong(self, records):
        chosen = [record for _, record in records][:2]
        answers = GradedAnswers("gym", "answer")
        try:
            own = [f"\\boxed{{{record['answer']}}}" for record in chosen]
            assert answers.are_right(own, chosen) == [True, True]
            assert answers.are_right(["\\boxed{-1}", "hm"], chosen) == [False, False]
        finally:
            answers.close()

    def test_questions_of_an_evaluation_are_not_those_of_training(self, records):
        task = find_task("gym:leg_counting")
        questions = read_questions(task, folder=None, limit=2)
        assert len(questions) == 2
        assert {question.prompt for question in questions}.isdisjoint(record["prompt"] for _, record in records)
        assert grade(questions[0].item(task, f"\\boxed{{{json.loads(questions[0].gold)['answer']}}}")) is Verdict.RIGHT


class TestGradeLines:
    def test_entries_of_the_library_and_ours(self, tmp_path):
        ours = {"name": "leg_counting", "answer": "4", "metadata": {}}
        theirs = {"answer": "4", "metadata": {"source_dataset": "leg_counting"}}
        lines = [{"entry": ours}, {"entry": theirs}, {"gold": json.dumps(ours)}]
        path = tmp_path / "lines.jsonl"
        path.write_text("\n".join(json.dumps({"grader": "gym", "response": "4", **line}) for line in lines))
        assert {json.loads(item.gold)["name"] for _, _, item in read_items(path)} == {"leg_counting"}

    @pytest.mark.parametrize("line", [{}, {"gold": "4"}, {"entry": {"answer": "4", "metadata": {}}}, {"entry": 3}])
    def test_no_entry(self, tmp_path, line):
        path = tmp_path / "lines.jsonl"
        path.write_text(json.dumps({"grader": "gym", "response": "4", **line}))
        with pytest.raises(FastflowError, match=r"lines\.jsonl:1: .*(entry|JSON)"):
            read_items(path)


def test_train_and_evaluate(records, tmp_path):
    """A step of GRPO on the data set's own verifier, asked its questions before and after, then by `evaluate`."""
    settings = {
        "model.path": save_model(tmp_path / "model", max_position_embeddings=1024), "model.device": "cpu",
        "data.path": "gym:coin_flip", "data.gym": "{size: 3}", "objective.name": "grpo", "objective.reward": "answer",
        "rollout.max_response_tokens": 6, "batch.prompts_per_step": 2, "batch.responses_per_prompt": 2,
        "run.steps": 1, "run.output": tmp_path / "run", "run.report": "false",
        "eval.every": 1, "eval.tasks": "gym:coin_flip", "eval.limit": 2, "eval.samples": 2,
    }  # fmt: skip
    assert main(["train", *(f"--{name}={value}" for name, value in settings.items())]) == 0
    (step,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert step["reward_mean"] == step["eval/gym_coin_flip/avg@2"] == 0  # it spells no answer, and both know that

    options = ["--samples", "2", "--limit", "2", "--max-tokens", "6", "--model.device", "cpu"]
    output = tmp_path / "evaluation"
    run = str(tmp_path / "run")
    assert main(["evaluate", run, "--tasks", "gym:coin_flip", *options, "--output", str(output)]) == 0
    (task,) = json.loads((output / "results.json").read_text())["tasks"]
    (model,) = task["models"]
    assert model["scores"]["avg@2"]["value"] == 0 and task["grader"] == "gym"
