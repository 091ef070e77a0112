"""Wrong uses of `fastflow evaluate`: exit code 2, and one line that says what happened and what to do."""

from __future__ import annotations

import json
import shutil

import pytest

from command_line import check_refused, invoke, write
from small_models import save_model

pytest.importorskip("pyarrow")
QUESTIONS = ({"prompt": "a", "answer": "a"}, {"prompt": "b", "answer": "b"})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A saved model; read only."""
    return save_model(tmp_path_factory.mktemp("evaluated") / "model")


@pytest.fixture
def evaluate(model, tmp_path, capsys, monkeypatch):
    """A function that evaluates the small model on two questions, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "letters.jsonl", *QUESTIONS)

    def run(*more, models=(model,), tasks="letters.jsonl", output="out"):
        grader = ["--grader", "exact"] if tasks.endswith(".jsonl") else []
        fixed = [*grader, "--samples", "2", "--max_tokens", "4", "--model.device", "cpu"]
        return invoke(capsys, "evaluate", *models, "--tasks", tasks, "--output", output, *fixed, *more)

    return run


class TestTasks:
    @pytest.mark.parametrize("content", ["", "\n\n"])
    def test_an_empty_file(self, evaluate, tmp_path, content):
        (tmp_path / "empty.jsonl").write_text(content)
        check_refused(evaluate(tasks="empty.jsonl"), "empty.jsonl holds no records", "one question a line", '"answer"')

    def test_no_field_with_the_answer(self, evaluate, tmp_path):
        write(tmp_path / "bare.jsonl", QUESTIONS[0], {"prompt": "a", "solution": "a"})
        outcome = evaluate(tasks="bare.jsonl")
        check_refused(outcome, "bare.jsonl:2: no field 'answer'", "solution", "rename it", "YAML that names the fields")

    def test_no_field_with_the_question(self, evaluate, tmp_path):
        write(tmp_path / "bare.jsonl", {"question": "a", "answer": "a"})
        outcome = evaluate(tasks="bare.jsonl")
        check_refused(outcome, "bare.jsonl:1: no field 'prompt'", "question", "rename it", "YAML that names the fields")
        assert "data.prompt_field" not in outcome[2]

    def test_a_data_set_that_cannot_be_had(self, evaluate, monkeypatch):
        datasets = pytest.importorskip("datasets")

        def offline(*_, **__):
            raise ConnectionError("no network")

        monkeypatch.setattr(datasets, "load_dataset", offline)
        outcome = evaluate(tasks="gsm8k,letters.jsonl")
        check_refused(outcome, "'openai/gsm8k' (no network)", "--data_folder DIR that holds gsm8k.jsonl")
        assert "data.path" not in outcome[2]

    @pytest.mark.parametrize("answer", [None, " ", True, {"value": 1}])
    def test_an_answer_that_is_none(self, evaluate, tmp_path, answer):
        write(tmp_path / "bare.jsonl", {"prompt": "a", "answer": answer})
        check_refused(evaluate(tasks="bare.jsonl"), "bare.jsonl:1: field 'answer' is", "fill it in, or remove the row")

    @pytest.mark.parametrize(
        ("entries", "words"),
        [
            ({"qestion": "prompt"}, ("task.yaml: unknown entry qestion", "did you mean question?")),
            ({"format": "("}, ("the entry format, '('", "no regular expression", "correct it")),
            ({"name": "../task"}, ("the entry name is '../task'", "names its files", "write letters")),
            ({"name": ""}, ("the entry name is ''", "write letters")),
            ({"prompt": "{questoin}"}, ("letters.jsonl:1", "names 'questoin', which the row lacks")),
            ({"grader": "exactly"}, ("grader is 'exactly'", "did you mean exact?")),
        ],
    )
    def test_a_mistake_in_yaml(self, evaluate, tmp_path, entries, words):
        (tmp_path / "task.yaml").write_text(json.dumps({"grader": "exact", "path": "letters.jsonl", **entries}))
        check_refused(evaluate(tasks="task.yaml"), *words)

    def test_two_of_one_name(self, evaluate, tmp_path):
        (tmp_path / "sub").mkdir()
        write(tmp_path / "sub" / "letters.jsonl", *QUESTIONS)
        check_refused(evaluate(tasks="letters.jsonl,sub/letters.jsonl"), "two tasks are called letters", "rename one")


class TestModels:
    def test_no_tokenizer(self, evaluate, model, tmp_path):
        copy = shutil.copytree(model, tmp_path / "bare")
        for file in copy.glob("*token*"):
            file.unlink()
        outcome = evaluate(models=["bare"])
        check_refused(outcome, "the tokenizer bare: the model's directory holds none", "copy tokenizer.json")

    def test_no_model(self, evaluate, tmp_path):
        (tmp_path / "empty").mkdir()
        check_refused(evaluate(models=["empty"]), "cannot load the model empty: the directory has no config.json")

    @pytest.mark.parametrize("content", [{}, {"base_model_name_or_path": None}, {"base_model_name_or_path": ""}])
    def test_adapters_that_name_no_base(self, evaluate, tmp_path, content):
        (tmp_path / "adapter").mkdir()
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(content))
        outcome = evaluate(models=["adapter"])
        check_refused(outcome, "adapter_config.json names no base_model_name_or_path", "write there the directory")

    def test_adapters_whose_base_has_gone(self, evaluate, tmp_path):
        (tmp_path / "adapter").mkdir()
        entry = {"base_model_name_or_path": str(tmp_path / "gone")}
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(entry))
        check_refused(evaluate(models=["adapter"]), tmp_path / "gone", "does not exist", "write the base's place into")

    def test_a_run_that_has_not_saved(self, evaluate, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.yaml").write_text("model: {}\n")
        check_refused(evaluate(models=["run"]), "the run run has saved no policy yet", "wait for run.save_every")

    def test_no_room_in_the_context(self, evaluate):
        outcome = evaluate("--max_tokens", "500")
        check_refused(outcome, "letters.jsonl:1 has 1 token;", "context of 128", "lower eval.max_tokens")

    def test_no_chat_template(self, evaluate):
        check_refused(evaluate("--chat_template", "true"), "eval.chat_template is on", "eval.chat_template = false")


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value", "advice"),
        [
            ("rollout.sleep", "weights", "leave it out. Of rollout it takes engine,"),
            ("rollout.temperature", "0.5", "set eval.temperature"),
            ("rollout.max_response_tokens", "8", "set eval.max_tokens"),
            ("model.path", "other", "name the models in front"),
            ("model.checkpoint_share", "0.5", "leave it out. Of model it takes"),
            ("objective.alpha", "4", "set eval.alpha"),
            ("optim.lr", "0.1", "leave it out. It takes eval, model, rollout and judge"),
            ("eval.every", "4", "leave it out. It takes eval, model, rollout and judge"),
        ],
    )
    def test_those_of_training(self, evaluate, tmp_path, name, value, advice):
        section, entry = name.split(".")
        (tmp_path / "settings.yaml").write_text(f"{section}:\n  {entry}: {value}\n")
        said = f"{name} is a setting of fastflow train, which fastflow evaluate does not take; {advice}"
        check_refused(evaluate("--config", "settings.yaml"), f"settings.yaml: {said}", "fastflow evaluate --help")
        check_refused(evaluate(f"--{name}", value), said)

    def test_an_unknown_name_in_a_file(self, evaluate, tmp_path):
        (tmp_path / "settings.yaml").write_text("eval:\n  sample: 4\n")
        check_refused(
            evaluate("--config", "settings.yaml"), "unknown setting eval.sample", "did you mean eval.samples?"
        )

    @pytest.mark.parametrize(
        ("option", "advice"),
        [
            ("--pass_at_k", "set --samples to the largest k"),
            ("--n", "set --samples to the largest k"),
            ("--preset", "has no presets; give --config FILE"),
        ],
    )
    def test_options_of_other_commands(self, evaluate, option, advice):
        check_refused(evaluate(option, "8"), f"{option} is no option of fastflow evaluate", advice)

    @pytest.mark.parametrize("samples", ["0", "-1"])
    def test_no_samples(self, evaluate, samples):
        check_refused(evaluate("--samples", samples), f"eval.samples is {samples}, but must be at least 1")


class TestOutput:
    def test_another_evaluation_is_not_replaced(self, evaluate, model, tmp_path):
        copy = shutil.copytree(model, tmp_path / "copy")
        write(tmp_path / "others.jsonl", *QUESTIONS)
        assert evaluate()[0] == 0
        assert evaluate(models=[model, "copy"], tasks="letters.jsonl,others.jsonl")[0] == 0  # it may grow
        whole = {"models": [model, "copy"], "tasks": "letters.jsonl,others.jsonl"}
        before = (tmp_path / "out" / "results.json").read_bytes()
        remedy = ("give another --output", "remove out/results.json")
        check_refused(
            evaluate("--seed", "5", **whole), "out holds another evaluation: its seed is 0, and now 5", *remedy
        )
        check_refused(evaluate(**whole | {"tasks": "letters.jsonl"}), "its task others is not asked now", *remedy)
        check_refused(evaluate(**whole | {"models": [model]}), "its model copy is not asked now", *remedy)
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
        check_refused(evaluate(**whole), "its responses of copy to letters came from other weights", *remedy)
        assert (tmp_path / "out" / "results.json").read_bytes() == before

    @pytest.mark.parametrize(
        ("file", "words"),
        [
            ("config.yaml", ("is the directory of a run", "out/evaluations/NAME")),
            ("config.json", ("is the directory of a model", "choose another")),
            ("results.json", ("holds a results.json that no evaluation wrote", "choose another")),
        ],
    )
    def test_files_of_others_are_not_replaced(self, evaluate, tmp_path, file, words):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / file).write_text('{"runs": []}')
        check_refused(evaluate(), "--output out", *words)
        assert [entry.name for entry in (tmp_path / "out").iterdir()] == [file]

    def test_a_file(self, evaluate):
        check_refused(evaluate(output="letters.jsonl"), "--output = letters.jsonl is a file", "choose a directory")
