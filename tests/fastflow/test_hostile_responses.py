"""What a response contains stays text: in the page, on the console, in text files, in TensorBoard, in messages."""

from __future__ import annotations

import ast
import io
import json
import logging
from pathlib import Path

import pytest

import fastflow
from command_line import invoke
from evaluations import row, write_evaluation
from fastflow import cli
from fastflow.config.schema import Config, DataConfig
from fastflow.report import command as report
from fastflow.report.text import printable
from fastflow.run import console as run_console
from fastflow.run.logs import show_warnings
from fastflow.run.recorder import TensorBoardSink
from fastflow.run.samples import write_samples
from fastflow.visible import CONTROL, one_sentence, visible
from html_page import Page
from run_directories import sample_record, step_record, write_run

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "attribute": '" onmouseover="alert(1)',
    "closing": "</style></title></textarea><img src=x onerror=alert(1)>",
    "entity": "&lt;b&gt;&#60;script&#62;",
    "template": "{{ 7 * 7 }}{% include '/etc/passwd' %}",
    "colour": "\x1b[31;5mred",
    "link": "\x1b]8;;http://example.invalid\x07click\x1b]8;;\x07",
    "title": "\x1b]0;title\x07\x1b]52;c;Y2xpcA==\x07",
    "c1": "\x9b31m\x9d0;x\x9c",
    "overwrite": "fine\rbad\x08\x08",
    "bidi": "\u202egnp.exe\u2066x\u2069",
    "nul": "a\x00b",
    "markup": "[bold red]loud[/] [link=http://x]y[/link]",
    "formula": "=HYPERLINK(\"http://x\")",
    "separators": "a\u2028b\x85c\x1ed",
}  # fmt: skip
each = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


@each
def test_in_the_report(tmp_path, text):
    sample = sample_record("x", prompt=text, response=text, tokens=[text, text], finish_reason=text)
    bare = sample_record("x", prompt=text, response=text, tokens=[])
    evaluation = {text: {"accuracy": 0.5, text: 0.5, "pass_at": {"1": 0.5, "2": 0.75}}, "base": {"accuracy": text}}
    steps = [step_record(step, alarms=[f"alarm {text}"]) for step in (1, 2)]
    run = write_run(tmp_path / "run", steps=steps, samples=[sample, bare], evaluation=evaluation)
    (run / "config.yaml").write_text(fastflow_yaml({"model": {"path": text, text[:40]: [text]}, text: {"a": 1}}))
    page = Page(report.write_report(run))
    assert not page.open
    tags = {name for name, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "base", "form"}
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    images = [attributes for name, attributes in page.tags if name == "img"]
    assert not images
    assert not CONTROL.search(page.source)
    assert " ".join(printable(text).split()) in page.text


def test_in_the_report_of_an_evaluation(tmp_path):
    pytest.importorskip("pyarrow")
    texts = list(HOSTILE.values())
    every = " ".join(texts)
    rows = [row(question, sample, right=False, response=text, prompt=text, gold=text, answer=text)
            for question, text in enumerate(texts) for sample in range(2)]  # fmt: skip
    directory = write_evaluation(tmp_path / "math", {every: rows, f"{every} 2": rows})
    results = json.loads((directory / "results.json").read_text())
    results["tasks"][0] |= {"title": every, "source": every, "licence": every}
    results["settings"] |= {"system": every, every: every}
    results["conventions"] |= {every: every}
    (directory / "results.json").write_text(json.dumps(results))
    page = Page(report.write_evaluation(directory))
    assert not page.open
    tags = [name for name, _ in page.tags]
    assert tags.count("script") == 1 and not set(tags) & {"iframe", "object", "embed", "base", "form", "img"}
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert not CONTROL.search(page.source)
    for text in texts:
        assert page.text.count(" ".join(printable(text).split())) > 5


def fastflow_yaml(tree) -> str:
    import yaml

    return yaml.safe_dump(tree)


@each
def test_in_the_text_files_of_samples(tmp_path, text):
    write_samples(tmp_path, 1, [{**sample_record("x"), "prompt": text, "response": text}])
    for file in (tmp_path / "samples.jsonl", tmp_path / "samples" / "step-000001.txt"):
        assert not CONTROL.search(file.read_bytes().decode())
    if not CONTROL.search(text):
        assert f"[response] {text}\n" in (tmp_path / "samples" / "step-000001.txt").read_text()


@each
def test_on_the_console(monkeypatch, text):
    terminal = io.StringIO()
    monkeypatch.setattr("sys.stdout", terminal)
    run_console.say(run_console.make_console(), text)
    show_warnings(logging.StreamHandler(terminal))
    logging.getLogger("fastflow.data").warning("a record holds %s", text)
    assert not CONTROL.search(terminal.getvalue())
    assert visible(text).splitlines()[0][:10] in terminal.getvalue()


@each
def test_in_a_refusal(monkeypatch, capsys, text):
    def refuse(arguments):
        raise cli.FastflowError(f"p.jsonl:1: {text}; remove the record")

    monkeypatch.setitem(cli.READ_SETTINGS, "train", refuse)
    code, _, err = invoke(capsys, "train")
    assert code == 2 and err.count("\n") == 1
    assert not CONTROL.search(err)
    assert err.endswith("; remove the record\n")


@each
def test_in_the_dry_run(tmp_path, capsys, text):
    from fastflow.config.reader import read_config, to_yaml

    config = Config(data=DataConfig(suffix=text.replace("\0", ""), prompt_field=text.replace("\0", "")))
    (tmp_path / "c.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert not CONTROL.search((tmp_path / "c.yaml").read_bytes().decode())
    assert read_config(["--config", str(tmp_path / "c.yaml")])[0] == config


@each
def test_in_tensorboard(tmp_path, text):
    pytest.importorskip("tensorboard")
    sink = TensorBoardSink(tmp_path)
    sink.write(1, {"loss": 0.5, "sample": text, "alarms": [text], "flag": True})
    sink.close()
    (events,) = tmp_path.glob("events*")
    assert text.encode("utf-8", "replace") not in events.read_bytes()


def test_nothing_of_fastflow_writes_csv_whose_cells_a_spreadsheet_would_run():
    """Whoever adds it says here how a cell that begins with =, +, - or @ stays text."""
    for file in Path(fastflow.__file__).parent.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert not any(isinstance(node, ast.ImportFrom) and node.module == "csv" for node in ast.walk(tree)), file
        writing = ("writer", "DictWriter", "to_csv")
        assert not any(isinstance(node, ast.Attribute) and node.attr in writing for node in ast.walk(tree)), file


def test_a_long_message_keeps_its_beginning_and_its_end():
    words = one_sentence("p.jsonl:1: " + "x" * 100_000 + "; remove it")
    assert words.startswith("p.jsonl:1: x") and words.endswith("x; remove it") and len(words) < 2100


def test_what_is_visible_stays():
    assert visible("é 日本 \u200f שלום\tb\n") == "é 日本 \u200f שלום\tb\n"
