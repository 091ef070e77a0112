"""bench/gpu.sh without a GPU: all that it starts is there, takes these options, and finds its packages."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import kernels, options, providers, row_pass, sanitize, step, tune

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "gpu.sh"
TESTS = ("kernels", "csrc", "bench", "fastflow")
# An interpreter that notes its arguments, separated by \037 and ended by \036, and knows two answers.
SHIM = r"""#!/bin/sh
for word in "$@"; do printf '%s\037' "$word" >>"$NOTES"; done
printf '\036' >>"$NOTES"
case "$*" in
    *get_device_name*) echo no-such-card ;;
    *"import xdist"*) exit 1 ;;
esac
"""
BROUGHT = {
    "mpmath": "torch", "packaging": "pytest", "tokenizers": "transformers", "tqdm": "transformers", "yaml": "pyyaml",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What it starts, in order, and the report."""
    folder = tmp_path_factory.mktemp("gpu")
    shim, notes, wheels = folder / "python", folder / "notes", folder / "wheels"
    shim.write_text(SHIM)
    shim.chmod(0o755)
    wheels.mkdir()
    (wheels / "one-1.0-py3-none-any.whl").touch()
    settings = {
        "PYTHON": str(shim),
        "WHEELS": str(wheels),
        "NOTES": str(notes),
        "COMMIT": "none",
        "TMPDIR": str(folder),
    }
    command = ["bash", str(SCRIPT), str(folder / "results")]
    found = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    (report,) = (folder / "results").glob("*-no-such-card.md")
    calls = [call.split("\x1f")[:-1] for call in notes.read_text().split("\x1e")[:-1]]
    return calls, report.read_text()


def arguments_of(run, *start: str) -> list[list[str]]:
    """Of all calls that begin so."""
    return [call[len(start) :] for call in run[0] if tuple(call[: len(start)]) == start]


def test_all_sections_are_reported(run):
    rows = re.findall(r"^\| (.+) \| passed \| \d+ s \|$", run[1], re.MULTILINE)
    assert rows == [
        "Installing the wheels", "CUDA library", "Tests", "Benchmark", "One update",
        "The same, bfloat16 residual stream", "Peaked logits", "compute-sanitizer memcheck",
        "compute-sanitizer racecheck", "Row pass", "Tuning",
    ]  # fmt: skip


def test_what_it_starts_is_there(run):
    for call in run[0]:
        if call[0] == "-m" and call[1].startswith("bench."):
            assert ROOT.joinpath(*call[1].split(".")).with_suffix(".py").exists(), call
        elif call[0] not in ("-m", "-c"):
            assert (ROOT / call[0]).exists(), call


def test_the_tests_are_those_of_all_folders_that_have_some_for_a_gpu(run):
    (arguments,) = arguments_of(run, "-m", "pytest")
    assert arguments[: len(TESTS)] == [f"tests/{folder}" for folder in TESTS]
    assert arguments[len(TESTS) : len(TESTS) + 2] == ["-m", "gpu"]
    for file in (ROOT / "tests").rglob("test_*.py"):
        if "mark.gpu" in file.read_text(encoding="utf-8"):
            assert file.relative_to(ROOT / "tests").parts[0] in TESTS, file


def test_the_benchmarks_take_their_options(run, monkeypatch, capsys):
    (ops, peaked), updates = arguments_of(run, "-m", "bench.kernels"), arguments_of(run, "-m", "bench.step")
    assert options.make_parser().parse_args(peaked).deviation == 8
    asked = options.make_parser().parse_args(ops)
    assert asked.device == "cuda" and asked.budget > 0
    assert [one.name for one in providers.select(asked.also, quick=False)] == asked.also
    assert [step.make_parser().parse_args(update).device for update in updates] == ["cuda", "cuda"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        kernels.main(ops)
    assert "--device cuda: torch sees no CUDA device" in capsys.readouterr().err


def test_the_tools_take_their_options(run, monkeypatch, capsys):
    tools = []
    monkeypatch.setattr(sanitize, "run_under", lambda tool, device: tools.append((tool, device)) or 0)
    assert [sanitize.main(arguments) for arguments in arguments_of(run, "-m", "bench.sanitize")] == [0, 0]
    assert tools == [("memcheck", "cuda"), ("racecheck", "cuda")]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (of_rows,), (of_tiles,) = arguments_of(run, "-m", "bench.row_pass"), arguments_of(run, "-m", "bench.tune")
    assert tune.main(of_tiles) == 2
    assert "bench.tune needs a CUDA device, and torch sees none" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        row_pass.main(of_rows)
    assert "error: torch sees no CUDA device" in capsys.readouterr().err


def test_the_snippets_run(run, capsys):
    (snippet,) = [call[1] for call in run[0] if call[0] == "-c" and "bench.report" in call[1]]
    exec(compile(snippet.replace('"cuda"', '"cpu"'), "gpu.sh", "exec"), {})
    assert "torch" in capsys.readouterr().out


def test_the_packages_that_it_names_are_those_that_are_imported():
    """As soon as a module of ours is imported: by the tests, which are all collected, and by the benchmarks."""
    text = re.sub(r"\n# ?", " ", SCRIPT.read_text(encoding="utf-8").partition("set -uo")[0])
    machine = re.search(r"\$PYTHON must have ([\w ,]+?)\.", text)
    assert machine is not None
    named = {*re.findall(r"\w+", machine[1].replace(" and ", " ")), *re.findall(r"([\w-]+)==[\d.]+", text)}
    assert {"torch", "hypothesis", "jaxtyping", "wadler-lindig", "beartype", "quack-kernels"} <= named
    helpers = {file.stem for file in (ROOT / "tests" / "helpers").glob("*.py")}
    files = [ROOT / "tests" / "conftest.py"]
    for folder in (
        "bench",
        "kernels/fastflow_kernels",
        "fastflow",
        "tests/helpers",
        *(f"tests/{one}" for one in TESTS),
    ):
        files += (ROOT / folder).rglob("*.py")
    for file in files:
        if file.name not in ("epilogue.py", "transfer_engine.py"):  # of QuACK's projector, of a server's process
            missing = (
                imported_at_once(file) - sys.stdlib_module_names - helpers - {"bench", "fastflow", "fastflow_kernels"}
            )
            assert {BROUGHT.get(name, name) for name in missing} <= named, file


def imported_at_once(file: Path) -> set[str]:
    """Top-level names of what the module's own statements import."""
    names: set[str] = set()
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Import):
            names |= {alias.name.split(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and not statement.level and statement.module:
            names.add(statement.module.split(".")[0])
    return names
