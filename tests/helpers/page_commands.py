"""What the command lines of a page say, held against what there is: options, files, extras, markers, programs."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from fastflow.cli import _parser
from fastflow.config.parser import take_option
from fastflow.config.reader import read_config
from fastflow.evaluate.settings import read_settings
from fastflow.plan.command import read_arguments
from fastflow.sweep.request import STUDIES
from fastflow.sweep.request import read_request as read_sweep

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    "bash",
    "mkdocs",
    "lint-imports",
    "ruff",
    "mypy",
    "pre-commit",
    "torchrun",
    "vllm",
}  # programs that are not ours


def fenced(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[list[str]]:
    """The simple commands of a shell block as words, assignments in front of them left out."""
    lines = block.replace("\\\n", " ").splitlines()
    found: list[list[str]] = []
    for line in lines:
        words = shlex.split(line, comments=True)
        found.append([])
        for word in words:
            if word in ("&&", "|", ";"):
                found.append([])
            elif found[-1] or not re.fullmatch(r"[A-Z_0-9]+=.*", word):
                found[-1].append(word)
    return [command for command in found if command]


def check(command: list[str]) -> None:
    """Raise for an option, file, extra, marker, setting or program that is not there."""
    program, arguments = Path(command[0]).name, command[1:]
    if program == "fastflow":
        _check_fastflow(*arguments)
    elif re.fullmatch(r"python[\d.]*", program):
        _check_python(arguments)
    elif program == "pip":
        _check_pip(arguments)
    elif program == "pytest":
        _check_pytest(arguments)
    elif command[0] in (".ci/run", "bench/gpu.sh"):
        assert (ROOT / command[0]).exists(), command
    else:
        assert program in ELSEWHERE, f"no check for the program {program}: {shlex.join(command)}"


def _check_fastflow(name: str, *arguments: str) -> None:
    settings = [str(ROOT / word) if word.startswith("examples/") else word for word in arguments]
    if "--config" in settings and not Path(file := settings[settings.index("--config") + 1]).exists():
        settings = [word for word in settings if word not in ("--config", file)]  # a reader's own
    if name in ("train", "plan"):
        _, settings = take_option("--resume", settings)  # a reader's own run
        settings = ["--model.path=MODEL", *settings]  # which a page may leave out
        (read_config if name == "train" else read_arguments)([word for word in settings if word != "--help"])
    elif name == "sweep":
        left_out = [] if STUDIES.keys() & {*settings} else ["--model.path=MODEL", "--data.path=DATA"]
        read_sweep([*left_out, *(word for word in settings if word != "--help")])
    elif name == "evaluate":
        named = [word for word in arguments if word != "--help"] or ["MODEL"]
        read_settings(named if "--tasks" in named else [*named, "--tasks=gsm8k"])  # which a page may leave out
    else:
        _parser([name]).parse_args([name, *(word for word in arguments if word != "--help")])


def _check_python(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        module = arguments[1]
        in_tree = module.split(".")[0] in ("bench", "fastflow", "tests")
        path = ROOT.joinpath(*module.split("."))
        assert not in_tree or path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
        assert in_tree or module == "venv" or module.split(".")[0] in ELSEWHERE, module
        return
    assert (ROOT / arguments[0]).exists(), arguments[0]
    if arguments[0] in ("examples/custom_objective.py", "examples/compare_on_sums.py"):
        start = next((place for place, word in enumerate(arguments) if word.startswith("--")), len(arguments))
        _check_fastflow("train", *arguments[start:])  # what is before names a folder and methods
        return
    known = set(re.findall(r"add_argument\(\"(--[\w\-]+)\"", (ROOT / arguments[0]).read_text(encoding="utf-8")))
    assert {word.partition("=")[0] for word in arguments[1:] if word.startswith("--")} <= known, arguments


def _check_pip(arguments: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for word in arguments:
        asked = re.fullmatch(r"(?:\.|fastflow)\[([\w,\-]+)\]", word)
        assert asked is None or set(asked[1].split(",")) <= set(extras), word
        assert not word.endswith(".txt") or (ROOT / word).exists(), word


def _check_pytest(arguments: list[str]) -> None:
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    names = {entry.partition(":")[0] for entry in markers["markers"]}
    for option, word in zip(["", *arguments], arguments, strict=False):
        if option == "-m":
            assert set(re.findall(r"\w+", word)) - {"not", "and", "or"} <= names, word
        elif not word.startswith("-"):
            assert (ROOT / word).exists(), word


def shims(directory: Path) -> Path:
    """A folder with the programs `fastflow` and `python` of this interpreter, for the PATH of a shell."""
    directory.mkdir()
    for name, module in (("fastflow", "-m fastflow.cli "), ("python", "")):
        program = directory / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module}"$@"\n')
        program.chmod(0o755)
    return directory
