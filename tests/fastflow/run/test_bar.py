"""A bar counts what is done: drawn on a terminal, and told in lines elsewhere."""

import io

import pytest
from rich.console import Console

from fastflow.interrupt import RunStopped, StopRequest, stopped
from fastflow.run.bar import Bar


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=80)


@pytest.mark.parametrize(("total", "drawn"), [(7, "3/7"), (None, "3/?")])
def test_a_terminal_gets_the_bar_and_no_lines(total, drawn):
    with Bar(shown := console(terminal=True), "grading", total) as bar:
        bar.advance()
        bar.reach(3)
        bar.line("three are done")
    text = shown.file.getvalue()
    assert drawn in text and "grading" in text and "three are done" not in text


def test_elsewhere_there_are_lines_alone():
    with Bar(shown := console(terminal=False), "grading", 7) as bar:
        bar.advance(3)
        bar.line(f"{bar.done} are done")
    assert shown.file.getvalue() == "3 are done\n"


def test_lines_keep_their_distance_from_each_other_and_from_the_start(monkeypatch):
    now = 100.0
    monkeypatch.setattr("fastflow.run.bar.time.monotonic", lambda: now)
    bar = Bar(shown := console(terminal=False), "grading", None)
    for now in (109.9, 110.0, 119.0, 121.0):
        bar.line(f"{now:g}", every=10)
    assert shown.file.getvalue().split() == ["110", "121"]


def test_a_signal_ends_the_bar_and_says_how_far_it_came():
    bar = Bar(console(terminal=False), "grading", 7)
    with pytest.raises(RunStopped, match="after 2 of 7") as stop, stopped(lambda: f"after {bar.done} of 7"), bar:
        bar.advance(2)
        raise StopRequest
    assert stop.value.exit_code == 130
