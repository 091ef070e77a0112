"""The text for a bug report: everything that was found, and nothing private."""

from __future__ import annotations

import getpass
import socket

import pytest

from fastflow import cli
from fastflow.doctor import examination, report
from fastflow.doctor.check import BROKEN, OK, Check
from fastflow.doctor.report import as_report, without_privacy

FOUND = [
    Check("torch", OK, "2.13.0+cpu, 8 threads"),
    Check("native", OK, "avx512, loaded from /home/ada.l/secret-project/.venv/lib/python3.11/_native.so"),
    Check("peft", BROKEN, "OSError: ~/private/models/thing.bin on box7.example: no", "pip install x", required=True),
]


def test_paths_and_names_are_left_out(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "box7.example")
    monkeypatch.setattr(getpass, "getuser", lambda: "ada.l")
    said = as_report(FOUND)
    assert said.startswith("```text\nfastflow ") and said.endswith("\n```")
    for private in ("ada", "secret", "private", "box7", "/home", "~"):
        assert private not in said
    assert "torch: ok, 2.13.0+cpu, 8 threads\n" in said
    assert "native: ok, avx512, loaded from <path>/_native.so\n" in said
    assert "peft: broken, OSError: <path>/thing.bin on <name>: no\n" in said


@pytest.mark.parametrize(
    "text", ["https://example.org/a/b", "1/2 of it", "and/or", "fastflow[hopper]", "CUDA 13.0, 80 GiB", "a /tmp b"]
)
def test_what_is_no_path_stays(text):
    assert without_privacy(text) == text


def test_names_of_every_machine_stay(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    monkeypatch.setattr(getpass, "getuser", lambda: "root")
    monkeypatch.setattr(report.Path, "home", lambda: report.Path("/root"))
    assert report._private_names() == []


def test_the_command_prints_it_alone(capsys, monkeypatch):
    monkeypatch.setattr(examination, "examine", lambda *, on_check, start_vllm: FOUND)
    assert cli.main(["doctor", "--report"]) == 1
    out = capsys.readouterr().out
    assert out == as_report(FOUND) + "\n"
