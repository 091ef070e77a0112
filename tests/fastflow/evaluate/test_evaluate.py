"""`fastflow evaluate`, whole: on the demo's sums, killed and gone on with, refused in words."""

import json
import os
import re
import shutil
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest

import cli_runs
from fastflow.cli import main
from fastflow.demo import command as demo
from fastflow.demo.sums import is_boxed
from fastflow.demo.tasks import SUMS
from fastflow.errors import FastflowError
from fastflow.evaluate.command import _conditions, _store
from fastflow.evaluate.graders import grader
from fastflow.evaluate.models import ModelSource
from fastflow.evaluate.responses import requests_of
from fastflow.evaluate.results import check_earlier
from fastflow.evaluate.settings import read_settings
from fastflow.evaluate.task import BOX

parquet = pytest.importorskip("pyarrow.parquet")
HELD_OUT = 12
ONE_THREAD = "import torch; torch.set_num_threads(1)"


def arguments(sums, output, *more):
    base, file, _ = sums
    return ["evaluate", str(base), "--tasks", str(file), "--output", str(output), "--grader", "numeric",
            "--max_tokens", "48", "--prompts_per_part", "4", "--model.device", "cpu", *more]  # fmt: skip


def results_of(output):
    return json.loads((output / "results.json").read_text())


def test_the_figures_are_the_demos_own(sums, tmp_path, monkeypatch):
    base, _, held_out = sums

    def seeds_of_the_task(prompts, samples, *, seed, step):
        return requests_of(prompts, samples, seed, "held_out")

    monkeypatch.setattr("fastflow.demo.measures.requests_for", seeds_of_the_task)  # the same draws
    assert main(arguments(sums, tmp_path)) == 0
    (task,) = results_of(tmp_path)["tasks"]
    (entry,) = task["models"]
    scores = entry["scores"]
    expected = demo.evaluate_model(SUMS, base, temperature=1.0, held_out=held_out, seed=0)
    assert scores["prompts"] == len(held_out) and scores["samples"] == 16
    assert 0.02 < expected["accuracy"] < 0.9  # a base that knows something and not everything
    boxless = scores["well_formed"]["value"] < 1  # the demo counts a number in a box only
    assert boxless and scores["avg@16"]["value"] >= expected["accuracy"]
    assert scores["avg@16"]["value"] == pytest.approx(expected["accuracy"], abs=2 * scores["avg@16"]["error"] + 0.05)
    assert scores["tokens"]["value"] == pytest.approx(expected["mean_length"], abs=0.05)
    assert scores["truncated"]["value"] == pytest.approx(expected["truncated_share"], abs=0.011)
    texts = [row["response"] for row in parquet.read_table(tmp_path / entry["responses"]).to_pylist()]
    boxed, opened = (np.mean([bool(test(text)) for text in texts]) for test in (is_boxed, re.compile(BOX).search))
    assert boxed == pytest.approx(expected["boxed_share"], abs=0.011)
    assert scores["well_formed"]["value"] == pytest.approx(opened)  # a box may hold no number, or not end
    assert (
        f"This page shows all of {len(held_out)} prompts, and the first 4 of 16"
        in (tmp_path / "report.html").read_text()
    )


def test_with_the_box_alone_accuracy_and_pass_at_k_are_equal(sums, tmp_path):
    """The grader math, which takes the box first; numbers outside of boxes that it also takes are named."""
    pytest.importorskip("math_verify")
    base, _, held_out = sums
    assert main([*arguments(sums, tmp_path), "--grader", "math"]) == 0
    scores = results_of(tmp_path)["tasks"][0]["models"][0]["scores"]
    expected = demo.evaluate_model(SUMS, base, temperature=1.0, held_out=held_out, seed=0)
    assert scores["avg@16"]["value"] == pytest.approx(expected["accuracy"], abs=0.011)
    for k, value in expected["pass_at"].items():
        assert scores["pass_at"][k]["value"] == pytest.approx(value, abs=0.03)


def test_chat_messages_are_asked_as_a_training_asks_them(sums, tmp_path, capsys):
    """With a template that writes nothing else, their responses are those of the bare texts."""
    base, texts, _ = sums
    chat = shutil.copytree(base, tmp_path / "chat")
    (chat / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    file = tmp_path / "held_out.jsonl"
    rows = map(json.loads, texts.read_text().splitlines())
    asked = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in asked))

    found = []
    for output, task, more in [("text", sums, ()), ("messages", (chat, file, None), ("--chat_template", "true"))]:
        assert main([*arguments(task, tmp_path / output, *more), "--samples", "2"]) == 0
        entry = results_of(tmp_path / output)["tasks"][0]["models"][0]
        found.append(parquet.read_table(tmp_path / output / entry["responses"]))
    for column in ("prompt", "response", "gold", "verdict"):
        assert found[0].column(column).to_pylist() == found[1].column(column).to_pylist()

    capsys.readouterr()
    assert main(arguments((chat, file, None), tmp_path / "refused")) == 2
    assert "holds chat messages; set eval.chat_template = true" in capsys.readouterr().err


def start(sums, output):
    """The command in a process of its own, which the tests' threads and settings do not reach."""
    return cli_runs.start(arguments(sums, output, "--prompts_per_part", "1", "--samples", "4"), program=ONE_THREAD)


def parts_of(output):
    return list(output.glob("responses/*.parts/*.parquet"))


def stop(process, output, number, *, at):
    """Send a signal when so many parts are there. Returns the exit code and what stood on stderr."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and len(parts_of(output)) < at:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate()
    return process.returncode, error


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_ends_with_the_same_file(sums, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    code, error = stop(start(sums, killed), killed, signal.SIGINT, at=2)
    assert code == 130 and "the same command goes on from there" in error and "Traceback" not in error
    first = {file.name: file.stat().st_mtime_ns for file in parts_of(killed)}
    code, _ = stop(start(sums, killed), killed, signal.SIGKILL, at=len(first) + 2)
    assert code == -signal.SIGKILL and len(parts_of(killed)) < HELD_OUT
    assert first.items() <= {file.name: file.stat().st_mtime_ns for file in parts_of(killed)}.items()
    for output in (killed, whole):
        process = start(sums, output)
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
    (resumed,), (straight,) = (list((output / "responses").glob("*.parquet")) for output in (killed, whole))
    assert resumed.name == straight.name and resumed.read_bytes() == straight.read_bytes()
    assert results_of(killed) == results_of(whole)
    assert not parts_of(killed)


def test_a_finished_evaluation_is_not_repeated_and_another_setting_is(sums, tmp_path, capsys):
    assert main(arguments(sums, tmp_path, "--samples", "2", "--limit", "3")) == 0
    (file,) = (tmp_path / "responses").glob("*.parquet")
    written = file.stat().st_mtime_ns
    capsys.readouterr()
    assert main(arguments(sums, tmp_path, "--samples", "2", "--limit", "3")) == 0
    assert "all responses are there already" in capsys.readouterr().out
    assert file.stat().st_mtime_ns == written
    with (tmp_path / "results.json").open() as earlier:
        assert main(arguments(sums, tmp_path, "--samples", "2", "--limit", "3")) == 0
        assert json.load(earlier)["tasks"]  # replaced as a whole: a kill leaves the one or the other
        assert os.fstat(earlier.fileno()).st_ino != (tmp_path / "results.json").stat().st_ino
    other = ["--samples", "2", "--limit", "3", "--temperature", "0.5"]
    results = (tmp_path / "results.json").read_bytes()
    assert main(arguments(sums, tmp_path, *other)) == 2
    assert (tmp_path / "results.json").read_bytes() == results and file.stat().st_mtime_ns == written
    (tmp_path / "results.json").unlink()
    assert main(arguments(sums, tmp_path, *other)) == 0
    assert len(list((tmp_path / "responses").glob("*.parquet"))) == 2


def key_of_responses(tmp_path, *options, **more):
    config = read_settings(["model", "--tasks", "own.jsonl", "--output", str(tmp_path), *options])
    task = SimpleNamespace(**{"name": "own", "asked": lambda: "own", "is_creative": False} | more)
    work = SimpleNamespace(task=task, questions=[], reward=None)
    return _store(config, ModelSource("model", "model"), "digest", work).key


def test_responses_of_other_rounding_are_kept_apart(tmp_path):
    options = [("--model.autocast", "true", "--model.residual_stream", one) for one in ("float32", "bfloat16")]
    assert len({key_of_responses(tmp_path, *some) for some in [*options, ()]}) == 3


def test_responses_of_an_earlier_version_are_found(tmp_path, monkeypatch):
    now, newer = key_of_responses(tmp_path), ("top_k", "min_p", "template_arguments")

    def without_newer(config):
        return {name: value for name, value in _conditions(config).items() if name not in newer}

    monkeypatch.setattr("fastflow.evaluate.command._conditions", without_newer)
    assert key_of_responses(tmp_path) == now
    settings = read_settings(["model", "--tasks", "own.jsonl", "--output", str(tmp_path)])
    before = {"settings": without_newer(settings), "tasks": []}
    (tmp_path / "results.json").write_text(json.dumps(before))
    check_earlier(tmp_path, _conditions(settings), {})
    with pytest.raises(FastflowError, match="its top_k is 0, and now 20"):
        check_earlier(tmp_path, {**_conditions(settings), "top_k": 20}, {})


# Values other than the defaults of all settings that decide responses, beside weights, questions and method.
DECISIVE = {
    "samples": "3", "temperature": "0.5", "top_p": "0.5", "top_k": "20", "min_p": "0.1", "max_tokens": "7",
    "seed": "1", "chat_template": "true", "prompts_per_part": "5", "timeout": "9", "rollout.engine": "vllm",
    "rollout.stop": '["x"]', "rollout.min_response_tokens": "2", "model.dtype": "bfloat16", "model.autocast": "true",
    "model.attention": "sdpa", "model.fused_layers": "off",
}  # fmt: skip


@pytest.mark.parametrize("name", DECISIVE)
def test_what_keeps_responses_apart_stands_in_the_results(tmp_path, name):
    option = [f"--{name}", DECISIVE[name]]
    assert key_of_responses(tmp_path, *option) != key_of_responses(tmp_path)
    before, now = (_conditions(read_settings(["model", "--tasks", "own.jsonl", *some])) for some in ([], option))
    (changed,) = [entry for entry in now if now[entry] != before[entry]]
    assert changed == name.rpartition(".")[2] and now == json.loads(json.dumps(now))


def test_results_say_what_ends_responses_and_how_models_are_held(sums, tmp_path):
    more = ["--samples", "2", "--limit", "2", "--rollout.stop", '["}"]', "--rollout.min_response_tokens", "2"]
    assert main(arguments(sums, tmp_path, *more)) == 0
    page = (tmp_path / "results.md").read_text()
    assert "parameters in float32, attention auto, fused layers auto" in page
    assert "Responses end at '}'. They end after 2 tokens at the earliest." in page
    assert "&#39;}&#39;" in (tmp_path / "report.html").read_text()
    assert main(arguments(sums, tmp_path, *more[:-4])) == 2  # other results than those that are there


def test_responses_of_other_seeds_are_kept_apart(tmp_path, monkeypatch):
    kept = key_of_responses(tmp_path)
    monkeypatch.setattr("fastflow.evaluate.responses.SEEDS", "by place")  # as all tasks shared them
    assert key_of_responses(tmp_path) != kept


def test_verdicts_of_other_graders_are_kept_apart(tmp_path, monkeypatch):
    kept = key_of_responses(tmp_path), key_of_responses(tmp_path, is_creative=True)
    monkeypatch.setattr(grader, "VERSION", grader.VERSION + 1)
    assert key_of_responses(tmp_path) != kept[0]
    assert key_of_responses(tmp_path, is_creative=True) == kept[1]  # it has no verdicts


def test_two_models_stand_side_by_side_with_a_paired_difference(sums, tmp_path):
    import shutil

    base, _, _ = sums
    shutil.copytree(base, tmp_path / "copy")
    options = arguments(sums, tmp_path / "out", "--samples", "4")
    assert main(["evaluate", str(base), str(tmp_path / "copy"), *options[2:]]) == 0
    (task,) = results_of(tmp_path / "out")["tasks"]
    first, second = task["models"]
    assert first["scores"] == second["scores"]  # the same weights and seeds
    assert second["difference"] == {"value": 0.0, "error": 0.0, "low": None, "high": None}
    page = (tmp_path / "out" / "results.md").read_text()
    assert "avg@4 less the first's" in page and "+0.0 points" in page and "unbiased" in page
    assert "self_bleu" not in page  # what was not measured has no convention


def test_adapters_and_runs_are_models_too(sums, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base, _, _ = sums
    adapters = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(r=2, target_modules=["q_proj"])
    )
    adapters.save_pretrained(tmp_path / "adapter")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("model: {}\n")
    options = arguments(sums, tmp_path / "out", "--samples", "2", "--limit", "2")
    assert main(["evaluate", str(run), *options[2:]]) == 2  # no policy yet
    (run / "policy").symlink_to(base)
    assert main(["evaluate", str(base), str(run), str(tmp_path / "adapter"), *options[2:]]) == 0
    scores = [model["scores"] for model in results_of(tmp_path / "out")["tasks"][0]["models"]]
    assert scores[0] == scores[1] == scores[2]  # fresh adapters change nothing


def test_running_servers_are_an_engine_too(model_directory, fakes, tmp_path):
    pytest.importorskip("httpx")
    file = tmp_path / "letters.jsonl"
    file.write_text("".join(json.dumps({"prompt": letter, "answer": "a"}) + "\n" for letter in "abc"))
    fake = fakes()
    assert main([
        "evaluate", str(model_directory), "--tasks", str(file), "--grader", "exact", "--samples", "3",
        "--max_tokens", "12", "--output", str(tmp_path / "out"), "--model.device", "cpu",
        "--rollout.engine", "vllm-server", "--rollout.servers", f"[{fake.address}]",
    ]) == 0  # fmt: skip
    results = results_of(tmp_path / "out")
    assert results["settings"]["engine"] == "vllm-server"
    assert results["tasks"][0]["models"][0]["scores"]["prompts"] == 3
    assert fake.bodies


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--tasks", "math5000"], "did you mean math500?"),
        (["--tasks", "absent.jsonl"], "absent.jsonl does not exist"),
        (["--samples", "0"], "eval.samples is 0"),
        (["--temperature", "0"], "set --samples 1"),
        (["--max_response_tokens", "3"], "rollout.max_response_tokens is a setting of fastflow train"),
        (["--max_response_tokens", "3"], "set eval.max_tokens."),
        (["--sample", "3"], "unknown option --sample: did you mean"),
        (["--grader", "maths"], "but must be math, choice, exact or numeric: did you mean math?"),
        (["--samples", "x"], "eval.samples is 'x', but must be a whole number;"),
        (["--tasks", "gsm8k", "--grader", "math", "--data_folder", "nowhere"], "nowhere has neither gsm8k.jsonl"),
        (["--rollout.engine", "vllm-server"], "rollout.servers"),
        (["--eval.system", "x"], "eval.chat_template is off"),
        (["--template_arguments", "{x: 1}"], "eval.template_arguments is set but eval.chat_template is off"),
        (["stray"], "models stand in front"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_words(sums, tmp_path, capsys, more, complaint):
    assert main([*arguments(sums, tmp_path), *more]) == 2
    error = capsys.readouterr().err
    assert complaint in error and "Traceback" not in error


def test_a_gold_that_its_grader_cannot_read_is_refused_before_sampling(sums, tmp_path, capsys):
    file = tmp_path / "odd.jsonl"
    file.write_text('{"prompt": "1+1=", "answer": "several"}\n')
    assert main([*arguments(sums, tmp_path / "out"), "--tasks", str(file)]) == 2
    assert "do not equal themselves" in capsys.readouterr().err
    assert not (tmp_path / "out" / "responses").exists()
