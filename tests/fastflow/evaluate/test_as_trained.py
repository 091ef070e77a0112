"""A run is asked as it was trained: its prompts' options are known, and a difference is said before sampling."""

import json
import shutil

import pytest

from fastflow.cli import main
from fastflow.config.reader import read_config, to_yaml
from fastflow.evaluate.as_trained import unlike_training
from fastflow.evaluate.settings import read_settings

CHAT = ["--data.chat_template=true", "--data.template_arguments={thinking: false}", "--data.system=Be brief."]
ENDS = ['--rollout.stop=["END"]', "--rollout.min_response_tokens=2", "--importance.source=recompute"]
ALIKE = ["--chat_template", "true", "--template_arguments", "{thinking: false}", "--system", "Be brief.",
         "--rollout.stop", '["END"]', "--rollout.min_response_tokens", "2"]  # fmt: skip


def run_with(directory, *options):
    config, _ = read_config(["--model.path=m", "--data.path=x.jsonl", f"--run.output={directory}", *options])
    directory.mkdir(exist_ok=True)
    (directory / "config.yaml").write_text(to_yaml(config))
    return directory


def said_of(model, *options):
    return unlike_training(str(model), read_settings([str(model), "--tasks", "own.jsonl", *options]))


def test_what_is_missing_is_said_as_options(tmp_path):
    run = run_with(tmp_path / "run", *CHAT, *ENDS)
    said = said_of(run)
    assert said.startswith(f"{run} was trained on prompts put otherwise than these questions; to put them alike, add ")
    assert said.endswith(
        """--chat_template true --template_arguments '{"thinking": false}' --system 'Be brief.' """
        """--rollout.stop '["END"]' --rollout.min_response_tokens 2"""
    )
    assert said_of(run / "policy") == said
    assert said_of(run, *ALIKE) is None


def test_what_training_did_not_have_is_to_be_left_out(tmp_path):
    run = run_with(tmp_path / "run")
    assert said_of(run) is None
    assert said_of(run, "--chat_template", "true", "--system", "x").endswith(
        "alike, leave out --chat_template, --system"
    )


@pytest.mark.parametrize("settings", [None, "run: ["], ids=["no run", "settings that cannot be read"])
def test_what_cannot_be_compared_is_not(tmp_path, settings):
    if settings is not None:
        (tmp_path / "config.yaml").write_text(settings)
    assert said_of(tmp_path, "--chat_template", "true") is None


def test_an_evaluation_says_it_and_passes_the_arguments_to_the_template(sums, tmp_path, capsys):
    pytest.importorskip("pyarrow.parquet")
    base, file, _ = sums
    run = run_with(tmp_path / "run", *CHAT[:2])
    shutil.copytree(base, run / "policy")
    (run / "policy" / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message.content if thinking is false else '' }}{% endfor %}"
    )
    given = ["evaluate", str(run), "--tasks", str(file), "--output", str(tmp_path / "out"), "--grader", "numeric",
             "--max_tokens", "4", "--samples", "1", "--limit", "2", "--model.device", "cpu"]  # fmt: skip
    assert main([*given, *ALIKE[:4]]) == 0  # without the argument, prompts would have no tokens
    assert "put otherwise" not in " ".join(capsys.readouterr().out.split())
    assert main([*given, "--output", str(tmp_path / "raw")]) == 0
    assert "add --chat_template true --template_arguments" in " ".join(capsys.readouterr().out.split())
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["settings"]["template_arguments"] == {"thinking": False}
    page = (tmp_path / "out" / "results.md").read_text()
    assert "Prompts are rendered by the chat template, thinking = False." in page
    assert "Prompts are raw text." in (tmp_path / "raw" / "results.md").read_text()
