"""Mistakes in arguments and settings files: exit code 2 and one line that names cause and remedy."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys

import pytest

from command_line import check_refused, invoke, write
from fastflow.cli import main


@pytest.mark.parametrize("command", ["demo", "verify", "grade", "report", "replay", "doctor", "train", "evaluate"])
def test_every_help_says_what_the_command_does(capsys, command):
    with contextlib.suppress(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    usage, description = re.split(r"\n\n", shown)[:2]
    assert usage.startswith("usage: ") and description[0].isupper() and description.rstrip().endswith(".")
    assert ".:" not in shown and "print_config" not in shown


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "words"), [(["trian"], "did you mean train?"), (["fine-tune", "x"], "known are demo, doctor")]
    )
    def test_an_unknown_command(self, capsys, arguments, words):
        check_refused(invoke(capsys, *arguments), f"unknown command '{arguments[0]}': {words}")

    def test_no_command(self, capsys):
        check_refused(invoke(capsys), "COMMAND")

    @pytest.mark.parametrize(
        ("arguments", "word"),
        [
            (["report"], "RUN"),
            (["demo", "--seed", "x"], "--seed"),
            (["demo", "--sed", "1"], "--sed"),
            (["report", "a", "b"], "b"),
        ],
    )
    def test_wrong_arguments_of_a_command(self, capsys, arguments, word):
        check_refused(invoke(capsys, *arguments), word)

    def test_a_negative_seed_of_the_demo(self, capsys, tmp_path):
        outcome = invoke(capsys, "demo", "--seed", "-1", "--output", tmp_path / "demo")
        check_refused(outcome, "--seed is -1", "at least 0")
        assert not (tmp_path / "demo").exists()

    def test_train_with_nothing_set(self, capsys):
        check_refused(invoke(capsys, "train"), "model.path is not set", "--model.path", "--preset")

    def test_a_dry_run_with_nothing_set(self, capsys):
        check_refused(invoke(capsys, "train", "--dry-run"), "model.path is not set")

    def test_an_unknown_option(self, train):
        check_refused(train(optim__learning_rat=1), "unknown option --optim.learning_rat")

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("objective.alpha", 0, ("objective.alpha is 0", "above 0")),
            ("objective.alpha", -2, ("objective.alpha is -2", "above 0")),
            ("objective.alpha", "nan", ("objective.alpha",)),
            ("run.steps", "many", ("run.steps", "many")),
            ("model.dtype", "float16", ("model.dtype", "bfloat16")),
            ("batch.updates_per_rollout", 3, ("batch.prompts_per_step", "multiple")),
            ("objective.format_pattern", "(", ("objective.format_pattern", "not a regular expression")),
            ("objective.format_check", "no.such:thing", ("objective.format_check", "package.module:function")),
            ("run.seed", 2**64, ("run.seed", "at most")),
        ],
    )
    def test_a_setting_that_cannot_be(self, train, name, value, words):
        check_refused(train(**{name.replace(".", "__"): value}), *words)


class TestSettingsFile:
    def test_a_misspelt_setting(self, capsys, tmp_path):
        file = write(tmp_path / "typo.yaml", "optim:", "  lrr: 1e-6")
        check_refused(invoke(capsys, "train", "--config", file), f"{file}: unknown setting optim.lrr", "optim.lr?")

    def test_a_missing_file(self, capsys, tmp_path):
        outcome = invoke(capsys, "train", "--config", tmp_path / "absent.yaml")
        check_refused(outcome, tmp_path / "absent.yaml", "check --config")

    def test_broken_yaml(self, capsys, tmp_path):
        file = write(tmp_path / "broken.yaml", "optim: {lr: 1", "run: [")
        check_refused(invoke(capsys, "train", "--config", file), file, "not valid YAML")

    def test_an_unknown_preset(self, capsys):
        check_refused(invoke(capsys, "train", "--preset", "demmo"), "demmo", "did you mean demo?")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_process_without_streams(closed):
    line = f'exec "{sys.executable}" -m fastflow --version {closed}'
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""


def test_an_encoding_that_lacks_a_character():
    """As ± in the line of a step: what is printed may not end the run."""
    program = r"from fastflow import cli; cli.main = lambda: print('1.2\u00b10.3') or 0; cli.command()"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (0, rb"1.2\xb10.3" + b"\n"), done.stderr


def test_a_file_that_became_a_pipe_behind_stdout(tmp_path):
    """As a program's that starts fastflow and has put another file in the place of stdout."""
    program = (
        "import os, sys; sys.stdout.write('written ahead'); sys.stdout.flush(); os.dup2(os.pipe()[1], 1); "
        "from fastflow import cli; cli.main = lambda: 0; cli.command()"
    )
    with (tmp_path / "out").open("w") as out:
        done = subprocess.run([sys.executable, "-c", program], stdout=out, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
