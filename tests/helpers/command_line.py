"""One command of fastflow in this process, and what is expected of a refusal."""

from __future__ import annotations

import json

from fastflow import cli


def invoke(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    capsys.readouterr()
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    return (code, *capsys.readouterr())


def check_refused(outcome: tuple[int, str, str], *words: str) -> None:
    code, out, err = outcome
    assert code == 2, (out, err)
    assert err.count("\n") == 1, err
    assert err.startswith("fastflow"), err
    assert "error: " in err
    assert "Traceback" not in out + err
    for word in words:
        assert str(word) in err, (word, err)


def write(path, *lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path
