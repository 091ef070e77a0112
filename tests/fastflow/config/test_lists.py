"""Settings of several values: every spelling of a list that people write, and what is refused."""

from __future__ import annotations

import pytest

from fastflow.config.lists import WHOLE, list_settings
from fastflow.config.reader import read_config
from fastflow.config.schema import sections
from fastflow.errors import FastflowError
from fastflow.evaluate.settings import SECTIONS as EVALUATE
from fastflow.evaluate.settings import read_settings

TRAIN = list_settings(sections())
NAMES = sorted(name for name, entry in TRAIN.items() if entry.item is str and name not in WHOLE)


def trained(name: str, *arguments: str):
    section, entry = name.split(".")
    return getattr(getattr(read_config(arguments)[0], section), entry)


def evaluated(name: str, *arguments: str):
    section, entry = name.split(".")
    config = read_settings(["m", *([] if name == "eval.tasks" else ["--tasks", "t"]), *arguments])
    return getattr(getattr(config, section), entry)


def test_these_are_the_lists():
    assert sorted(TRAIN) == ["eval.tasks", "optim.betas", "rollout.servers", "rollout.stop"]
    assert sorted(list_settings(EVALUATE)) == [
        "eval.adapter_scale", "eval.models", "eval.tasks", "rollout.servers", "rollout.stop"
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("own.jsonl", ("own.jsonl",)),
        ("aime24,own.jsonl", ("aime24", "own.jsonl")),
        ("aime24, own.jsonl,", ("aime24", "own.jsonl")),
        ("[aime24,own.jsonl]", ("aime24", "own.jsonl")),
        ("['a,b.jsonl']", ("a,b.jsonl",)),
        ("gym:chain_sum", ("gym:chain_sum",)),
        ("localhost:8000,other:8000", ("localhost:8000", "other:8000")),
        ("24.jsonl", ("24.jsonl",)),
        ("", ()),
    ],
)
def test_names_with_and_without_brackets(yaml_file, name, written, values):
    section, entry = name.split(".")
    quoted = written if written.startswith("[") else f'"{written}"'
    assert trained(name, f"--{name}", written) == values
    assert trained(name, f"--{name}={written}") == values
    assert trained(name, *yaml_file(f"{section}:\n  {entry}: {quoted}\n")) == values
    assert trained(name, *yaml_file(f"{name}: {quoted}\n")) == values
    if values:
        assert evaluated(name, f"--{name}", written) == values
        assert evaluated(name, *yaml_file(f"{section}:\n  {entry}: {quoted}\n")) == values


def test_the_models_of_an_evaluation(yaml_file):
    assert read_settings(["--models=a,b", "--tasks=t"]).eval.models == ("a", "b")
    assert read_settings(yaml_file("eval: {models: a, tasks: own.jsonl}\n")).eval.models == ("a",)


@pytest.mark.parametrize("text", ["END", "a, b", "</answer>", "\n\n", ",", "24"])
def test_a_stop_text_without_brackets_is_one_text(text):
    assert trained("rollout.stop", "--rollout.stop", text) == (text,)
    assert evaluated("rollout.stop", f"--rollout.stop={text}") == (text,)


def test_stop_texts_in_a_file(yaml_file):
    assert trained("rollout.stop", *yaml_file('rollout:\n  stop: "[END]"\n')) == ("[END]",)
    assert trained("rollout.stop", *yaml_file("rollout:\n  stop: [END, 'a, b']\n")) == ("END", "a, b")


@pytest.mark.parametrize("written", ["0.8,0.9", "0.8, 0.9", "[0.8,0.9]", "[8e-1, 9.0e-1]", "8e-1,.9"])
def test_numbers(yaml_file, written):
    quoted = written if written.startswith("[") else f'"{written}"'
    assert trained("optim.betas", "--optim.betas", written) == (0.8, 0.9)
    assert trained("optim.betas", *yaml_file(f"optim:\n  betas: {quoted}\n")) == (0.8, 0.9)
    assert evaluated("eval.adapter_scale", "--adapter-scale", written) == (0.8, 0.9)


def test_one_number_where_any_count_will_do(yaml_file):
    assert evaluated("eval.adapter_scale", "--adapter-scale=0.5") == (0.5,)
    assert evaluated("eval.adapter_scale", *yaml_file("eval: {adapter_scale: 0.5}\n")) == (0.5,)


@pytest.mark.parametrize(
    ("name", "written", "words"),
    [
        ("eval.tasks", "[aime24, 25]", r"eval.tasks holds 25, which is no text; put it into quotes"),
        ("eval.tasks", "[a: b]", r"eval.tasks holds \{.*\}, which is no text"),
        ("rollout.servers", "[localhost:8000", r"rollout.servers = \[localhost:8000 is no list; write \["),
        ("optim.betas", "0.9", r"optim.betas must hold 2 numbers, not 1; write them as in 0.9,0.95"),
        ("optim.betas", "[0.9,0.9,0.9]", r"optim.betas must hold 2 numbers, not 3"),
        ("optim.betas", "0.9,high", r"optim.betas holds 'high', which is no number"),
        ("optim.betas", "[true,0.9]", r"optim.betas holds True, which is no number"),
    ],
)
def test_refused_with_the_right_spelling(yaml_file, name, written, words):
    section, entry = name.split(".")
    with pytest.raises(FastflowError, match=words):
        read_config([f"--{name}={written}"])
    if written.endswith("]"):
        with pytest.raises(FastflowError, match=rf"\.yaml: {words}"):
            read_config(yaml_file(f"{section}:\n  {entry}: {written}\n"))


@pytest.mark.parametrize("name", sorted(TRAIN))
def test_an_option_in_its_values_place_is_none(name):
    with pytest.raises(FastflowError, match=name):
        read_config([f"--{name}", "--run.steps", "3"])


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("tasks: a\n", "eval.tasks"), ("eval:\n  task: a\n", "eval.tasks"), ("eval: [1]\n", "eval")],
)
def test_an_unknown_name_in_a_file_of_an_evaluation(yaml_file, text, nearest):
    with pytest.raises(FastflowError, match=rf"\.yaml: unknown setting .*{nearest}"):
        read_settings(["m", *yaml_file(text)])


def test_off_without_quotes_in_a_file_of_an_evaluation(yaml_file):
    assert evaluated("model.fused_layers", *yaml_file("model:\n  fused_layers: off\n")) == "off"


@pytest.mark.parametrize("file_first", [True, False])
def test_the_command_line_of_an_evaluation_wins_wherever_its_file_stands(yaml_file, file_first):
    file, option = yaml_file("eval: {samples: 3, limit: 2, tasks: own.jsonl}\n"), ["--samples", "5"]
    found = read_settings(["m", *file, *option] if file_first else ["m", *option, *file]).eval
    assert (found.samples, found.limit, found.tasks) == (5, 2, ("own.jsonl",))
