"""What a run says: on one line in a file, broken between fields on a terminal, and never drawn over by bars."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from fastflow import cli
from fastflow.run.console import make_console, say_fields
from fastflow.run.logs import open_console, show_own_warnings
from fastflow.train.progress import RunProgress

LONG = "data.split = test is not read, since data.path is a file, which has one split; leave it out, or name a data set"
FIELDS = "step   3  loss 1.2188  residual -0.000±1.104  slope 1.00/4  0:00:07 left"


@pytest.fixture
def root_logger():
    """Logging as it is, also afterwards."""
    root, own = logging.getLogger(), logging.getLogger("fastflow")
    handlers, levels = list(root.handlers), (root.level, own.level)
    yield root
    root.handlers[:] = handlers
    root.setLevel(levels[0]), own.setLevel(levels[1])


@pytest.fixture
def open_stdout(monkeypatch):
    """A function that makes stdout a terminal, or a file."""

    def opened(*, terminal: bool, **environment: str) -> io.StringIO:
        out = io.StringIO()
        out.isatty = lambda: terminal  # type: ignore[method-assign]
        monkeypatch.setattr("sys.stdout", out)
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm", "COLUMNS": "60", **environment}.items():
            monkeypatch.setenv(name, value)
        return out

    return opened


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}, {"NO_COLOR": "1"}])
def test_a_warning_is_one_line_in_a_file(environment, open_stdout, root_logger):
    out = open_stdout(terminal=False, **environment)
    show_own_warnings()
    logging.getLogger("fastflow.somewhere").warning(LONG)
    assert out.getvalue() == f"WARNING  {LONG}\n"


def test_a_warning_breaks_between_words_on_a_terminal(open_stdout, root_logger):
    out = open_stdout(terminal=True, NO_COLOR="1")
    show_own_warnings()
    logging.getLogger("fastflow.somewhere").warning(LONG)
    lines = out.getvalue().splitlines()
    assert len(lines) > 1 and " ".join(out.getvalue().split()) == f"WARNING {LONG}"


@pytest.mark.parametrize("terminal", [True, False])
def test_warnings_and_bars_share_a_console(terminal, open_stdout, root_logger):
    """On another one, a bar would draw over the warning."""
    out = open_stdout(terminal=terminal)
    console = open_console()
    with RunProgress(console, label="training", steps=3):
        logging.getLogger("fastflow.somewhere").warning("a warning")
    (line,) = (line for line in out.getvalue().splitlines() if "a warning" in line)
    assert "0/3" not in line and ("0/3" in out.getvalue()) is terminal


def test_a_phase_that_knows_no_end_does_not_keep_the_last_ones(open_stdout):
    open_stdout(terminal=True)
    progress = RunProgress(open_console(), label="training", steps=3)
    progress.phase("asking", 64)
    progress.advance_phase(64)
    progress.phase("grading", None)
    progress.advance_phase(2)
    (task,) = (task for task in progress._bars.tasks if "grading" in task.description)
    assert (task.completed, task.total, len(progress._bars.tasks)) == (2, None, 2)


def test_the_command_line_trains_with_that_console(open_stdout, root_logger, monkeypatch, tmp_path):
    open_stdout(terminal=True)
    consoles = []
    monkeypatch.setattr("fastflow.train.command.train", lambda config, console, **_: consoles.append(console))
    assert cli.main(["train", "--model.path", str(tmp_path), "--data.path", str(tmp_path)]) == 0
    assert consoles == [handler.console for handler in root_logger.handlers]


@pytest.mark.parametrize(
    ("terminal", "environment", "interactive"),
    [(True, {}, True), (True, {"TERM": "dumb"}, False), (False, {}, False), (False, {"FORCE_COLOR": "1"}, False)],
)
def test_bars_are_drawn_on_terminals_that_draw_them(terminal, environment, interactive, open_stdout):
    out = open_stdout(terminal=terminal, **environment)
    with RunProgress(console := make_console(), label="training", steps=3):
        pass
    assert console.is_interactive is interactive and bool(out.getvalue()) is interactive


def test_a_printed_text_is_one_line_in_a_file(open_stdout):
    out = open_stdout(terminal=False)
    make_console().print(LONG, highlight=False)
    assert out.getvalue() == f"{LONG}\n"


@pytest.mark.parametrize("width", [25, 40, 60, 200])
def test_a_line_of_fields_breaks_between_them(width):
    shown = Console(file=io.StringIO(), force_terminal=True, width=width, no_color=True)
    say_fields(shown, FIELDS)
    lines = shown.file.getvalue().splitlines()
    assert "  ".join(line.strip() for line in lines) == FIELDS
    assert all(len(line) <= width for line in lines) and len(lines) == {25: 4, 40: 3, 60: 2, 200: 1}[width]


def test_a_line_of_fields_stays_whole_in_a_file():
    shown = Console(file=io.StringIO(), width=40)
    say_fields(shown, FIELDS)
    assert shown.file.getvalue() == f"{FIELDS}\n"
