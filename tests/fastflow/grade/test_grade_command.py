"""`fastflow grade`: the lines it writes, the lines it refuses, and what it keeps when it is stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastflow.cli import main
from fastflow.evaluate.graders.algebra import symbolic

PLAIN = [
    {"grader": "numeric", "gold": 65, "response": "That makes 65 rolls.", "id": 7},
    {"grader": "exact", "gold": "no", "response": "\\boxed{yes}"},
    {"grader": "choice", "gold": "B", "response": "The answer is (B).", "choices": ["one", "two"]},
    {"grader": "choice", "gold": "B", "response": "I cannot say.", "choices": {"A": "one", "B": "two"}},
]


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_each_line_comes_back_with_its_verdict(tmp_path, capsys):
    output = tmp_path / "new" / "graded.jsonl"
    assert main(["grade", write(tmp_path / "in.jsonl", PLAIN), "--output", str(output), "--workers", "1"]) == 0
    graded = [json.loads(line) for line in output.read_text().splitlines()]
    assert graded == [
        {**line, "verdict": verdict}
        for line, verdict in zip(PLAIN, ("right", "wrong", "right", "unparsed"), strict=True)
    ]
    table = capsys.readouterr().out
    assert "timed_out" in table and "50.0%" in table
    assert table.splitlines()[-1] == f"the verdict on each line is in {output}"
    assert main(["grade", str(tmp_path / "in.jsonl"), "--workers", "1"]) == 0
    assert "--output OUT for the verdict on each line" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ({"gold": "1", "response": "1"}, "in.jsonl:2: field 'grader' is missing"),
        ({"grader": "maths", "gold": "1", "response": "1"}, "in.jsonl:2: field 'grader' is 'maths': did you mean math"),
        ({"grader": "exact", "response": "1"}, "in.jsonl:2: field 'gold' is missing"),
        ({"grader": "exact", "gold": "1", "response": None}, "in.jsonl:2: field 'response' is a NoneType"),
        ({"grader": "exact", "gold": ["1"], "response": "1"}, "in.jsonl:2: field 'gold' is a list"),
        ({"grader": "choice", "gold": "A", "response": "A"}, "in.jsonl:2: field 'choices' must hold"),
        ({"grader": "choice", "gold": "E", "response": "A", "choices": ["x", "y"]}, "in.jsonl:2: field 'gold' is 'E'"),
        (
            {"grader": "choice", "gold": "A", "response": "A", "choices": {"a": "x", "B": "y"}},
            "field 'choices' has the option 'a', but needs capital letters",
        ),
    ],
)
def test_a_bad_line_is_refused_before_any_is_graded(tmp_path, capsys, line, complaint):
    output = tmp_path / "out.jsonl"
    assert main(["grade", write(tmp_path / "in.jsonl", [PLAIN[0], line]), "--output", str(output)]) == 2
    assert complaint in capsys.readouterr().err
    assert not output.exists()


def test_other_bad_input_is_refused_in_words(tmp_path, capsys):
    file = write(tmp_path / "in.jsonl", PLAIN)
    (tmp_path / "broken.jsonl").write_text('{"grader": "exact"')
    (tmp_path / "empty.jsonl").write_text("\n")
    for arguments, complaint in (
        ([str(tmp_path / "absent.jsonl")], "does not exist"),
        ([str(tmp_path / "broken.jsonl")], "broken.jsonl:1"),
        ([str(tmp_path / "empty.jsonl")], "holds no lines"),
        ([file, "--timeout", "0"], "--timeout is 0"),
        ([file, "--timeout", "nan"], "--timeout is nan"),
        ([file, "--workers", "0"], "--workers is 0"),
        ([file, "--output", file], "is the file that is read"),
        ([file, "--output", f"{file}/out.jsonl"], "cannot write"),
    ):
        assert main(["grade", *arguments]) == 2
        error = capsys.readouterr().err
        assert complaint in error and "Traceback" not in error


def test_without_math_verify_the_command_says_what_to_install(tmp_path, capsys, monkeypatch):
    def absent(module, *, extra, purpose):
        raise symbolic_error(f'{purpose} needs the package {module}: pip install "fastflow[{extra}]"')

    from fastflow.errors import FastflowError as symbolic_error

    monkeypatch.setattr(symbolic, "need", absent)
    line = {"grader": "math", "gold": "1", "response": "\\boxed{1}"}
    assert main(["grade", write(tmp_path / "in.jsonl", [line])]) == 2
    assert 'pip install "fastflow[grade]"' in capsys.readouterr().err


def test_a_gold_that_does_not_equal_itself_is_named(tmp_path, capfd):
    lines = [PLAIN[0], {"grader": "exact", "gold": "", "response": "x"}]
    assert main(["grade", write(tmp_path / "in.jsonl", lines)]) == 0
    assert "does not equal itself" in " ".join(capfd.readouterr().out.split())


def test_ctrl_c_keeps_what_was_graded(tmp_path):
    pytest.importorskip("math_verify")
    bomb = {"grader": "math", "gold": "5", "response": "\\boxed{99999999! + 1}"}
    file = write(tmp_path / "in.jsonl", [PLAIN[0], PLAIN[1], bomb, *PLAIN])
    output = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "fastflow.cli", "grade", file, "--output", str(output), "--timeout", "120"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and (not output.exists() or output.read_text().count("\n") < 2):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped after 2 of 7 lines" in error and "Traceback" not in error
    assert [json.loads(line)["verdict"] for line in output.read_text().splitlines()] == ["right", "wrong"]
