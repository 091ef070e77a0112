"""`fastflow evaluate` on creative tasks and with the dial, whole: a small model, a fake judge, a tiny encoder."""

import json
import re
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import torch

import cli_runs
from fake_judge import FakeJudge, texts_in
from fastflow.cli import main
from fastflow.evaluate.creative.diversity import measure
from fastflow.evaluate.responses import read
from small_models import save_model

pytest.importorskip("pyarrow")
pytest.importorskip("httpx")


def say_length(messages):
    """Grades and compares by length, rates by the number of different solutions."""
    texts = texts_in(messages)
    if "first" in texts:
        first, second = len(texts["first"]), len(texts["second"])
        return json.dumps({"better": "tie" if first == second else "first" if first > second else "second"})
    if "problem" in texts:
        return json.dumps({"variety": min(5, len(set(texts.values())) - 1)})
    return json.dumps({"wit": min(10, 1 + len(texts["text"])), "form": 5})


@pytest.fixture
def judge():
    fake = FakeJudge(say_length)
    yield fake
    fake.close()


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """(directory of a random model, JSONL of sums)."""
    directory = tmp_path_factory.mktemp("random")
    save_model(directory / "base", pieces="0123456789+=- .", vocab_size=20, eos_token_id=0)
    lines = [{"prompt": f"{number}+1=", "answer": str(number + 1)} for number in range(6)]
    (directory / "held_out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory / "base", directory / "held_out.jsonl"


@pytest.fixture
def task(tmp_path):
    """A creative task that the sums' model can read, and its rubric."""
    (tmp_path / "rubric.yaml").write_text(
        "subject: a sum\nscale: [1, 10]\ncriteria:\n  wit: {weight: 3, question: Is it long}\n"
        "  form: {weight: 1, question: Has it the form}\n"
    )
    prompts = json.dumps(["1+2=", "30+4=", "5+16="])
    (tmp_path / "free.yaml").write_text(f"kind: creative\ntitle: Free sums\nprompts: {prompts}\n")
    return tmp_path / "free.yaml"


def arguments(models, tasks, output, *more):
    return ["evaluate", *map(str, models), "--tasks", ",".join(map(str, tasks)), "--output", str(output),
            "--samples", "4", "--max_tokens", "24", "--model.device", "cpu", *map(str, more)]  # fmt: skip


def run(models, tasks, output, *more):
    return main(arguments(models, tasks, output, *more))


def results_of(output):
    return json.loads((output / "results.json").read_text())


def texts_of(output, name):
    (file,) = (output / "responses").glob(f"{name}-*.parquet")
    groups = {}
    for row in read(file):
        groups.setdefault(row["question"], []).append(row["response"])
    return list(groups.values())


def test_creative_responses_are_measured_and_judged(sums, task, encoder, judge, tmp_path):
    base, _ = sums
    shutil.copytree(base, tmp_path / "twin")
    output = tmp_path / "out"
    options = ["--embedding", encoder, "--judge.address", judge.address, "--judge.rubric", tmp_path / "rubric.yaml",
               "--judge.pairs", "2"]  # fmt: skip
    assert run([base, tmp_path / "twin"], [task], output, *options) == 0
    results = results_of(output)
    (found,) = results["tasks"]
    first, second = found["models"]
    texts = texts_of(output, "free-" + str(base).strip("/").replace("/", "-"))
    assert len(texts) == 3 and len(texts[0]) == 4
    plain = [measure(group) for group in texts]
    for name in plain[0]:
        assert first["scores"]["diversity"][name]["value"] == pytest.approx(np.mean([entry[name] for entry in plain]))
    assert 0 < first["scores"]["diversity"]["semantic"]["value"] < 2
    grade = np.mean([min(10, 1 + len(text)) for group in texts for text in group])
    assert first["scores"]["criteria"]["wit"]["value"] == pytest.approx(grade)
    assert first["scores"]["quality"]["value"] == pytest.approx((0.75 * grade + 0.25 * 5 - 1) / 9)
    assert first["scores"]["judge"]["requests"] == 12 and first["scores"]["judge"]["ungraded"] == 0
    assert second["differences"]["quality"]["value"] == 0  # the same weights and seeds
    assert second["wins"]["win_rate"] == {"value": 0.5, "error": 0.0, "prompts": 3}
    assert results["settings"]["judge"]["model"] == "referee" and results["settings"]["embedding"] == str(encoder)
    assert "semantic" in results["conventions"] and "pass_at" not in results["conventions"]
    assert found["kind"] == "creative"
    page = (output / "results.md").read_text()
    assert "quality, 0 to 1" in page and "ROUGE-L redundancy less the first's" in page and "![Free sums" in page
    assert "judge: tokens read" in page and "pass@" not in page
    assert (output / found["plot"]).read_text().startswith("<svg")


def test_the_same_command_asks_and_samples_nothing_again(sums, task, judge, tmp_path, capsys):
    base, _ = sums
    options = ["--judge.address", judge.address, "--judge.rubric", tmp_path / "rubric.yaml"]
    assert run([base], [task], tmp_path / "out", *options) == 0
    first, asked = results_of(tmp_path / "out"), len(judge.bodies)
    (kept,) = (tmp_path / "out" / "diversity").glob("*.json")
    (replies,) = (tmp_path / "out" / "judge").glob("*.jsonl")
    written, lines = kept.stat().st_mtime_ns, replies.read_text()
    capsys.readouterr()
    assert run([base], [task], tmp_path / "out", *options) == 0
    assert "all responses are there already" in capsys.readouterr().out
    assert len(judge.bodies) == asked and judge.greetings == 1 and results_of(tmp_path / "out") == first
    assert kept.stat().st_mtime_ns == written and replies.read_text() == lines
    line = json.loads(lines.splitlines()[0])
    assert line["text"] and line["grades"]["wit"] >= 1 and line["sample"] in range(4)


def test_a_judge_that_fails_leaves_what_it_said(sums, task, judge, tmp_path, capsys, monkeypatch):
    from fastflow.rollout.server.http import Backoff

    monkeypatch.setattr(Backoff, "seconds", lambda self: 0.01)
    base, _ = sums
    judge.say = lambda messages: say_length(messages) if len(judge.bodies) <= 5 else (500, "out of memory")
    options = ["--judge.address", judge.address, "--judge.rubric", tmp_path / "rubric.yaml", "--judge.attempts", 2,
               "--judge.concurrency", 1]  # fmt: skip
    assert run([base], [task], tmp_path / "out", *options) == 2
    assert "out of memory" in (error := capsys.readouterr().err) and "Traceback" not in error
    judge.say = say_length
    assert run([base], [task], tmp_path / "out", *options) == 0
    texts = {text for group in texts_of(tmp_path / "out", "free") for text in group}
    assert len(texts) <= len(judge.bodies) <= 12 + 2  # the failed one twice


@pytest.mark.parametrize(
    ("path", "greeting", "said"),
    [
        (
            "",
            (400, "temperature must be 1"),
            r"refused a first short request.*temperature must be 1.*judge\.temperature",
        ),
        ("", (404, "no model referee"), r"no model referee.*check judge\.address and judge\.model"),
        ("", (503, "still loading"), "still loading.*2 times; check the server"),
        ("/v2", "yes", r"404.*not here.*check judge\.address"),
    ],
)
def test_a_judge_that_does_not_answer_is_found_before_anything_is_sampled(
    sums, task, judge, tmp_path, capsys, monkeypatch, path, greeting, said
):
    from fastflow.rollout.server.http import Backoff

    monkeypatch.setattr(Backoff, "seconds", lambda self: 0.01)
    base, _ = sums
    judge.greeting = greeting
    options = ["--judge.address", judge.address + path, "--judge.rubric", tmp_path / "rubric.yaml",
               "--judge.model", "referee", "--judge.attempts", 2]  # fmt: skip
    assert run([base], [task], tmp_path / "out", *options) == 2
    assert re.search(said, error := capsys.readouterr().err), error
    assert not (tmp_path / "out" / "responses").exists() and not judge.bodies


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_judgement_goes_on(sums, task, judge, tmp_path, number, code):
    base, _ = sums
    options = ["--judge.address", judge.address, "--judge.rubric", tmp_path / "rubric.yaml", "--judge.concurrency", 2]

    def start():
        command = arguments([base], [task], tmp_path / "out", *options)
        return cli_runs.start(command, program="import torch; torch.set_num_threads(1)")

    held = threading.Event()
    judge.say = lambda messages: say_length(messages) if len(judge.bodies) <= 4 else held.wait(200) and None
    process, deadline = start(), time.monotonic() + 200
    while time.monotonic() < deadline and not (len(judge.bodies) > 4 and judge.now == 2):  # both workers wait
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=200)
    held.set()
    assert process.returncode == code and "Traceback" not in error
    if number != signal.SIGKILL:
        assert "the same command goes on from what is kept" in error
    (file,) = (tmp_path / "out" / "judge").glob("*.jsonl")
    kept = len(file.read_text().splitlines())
    judge.say, judge.bodies = say_length, []
    process = start()
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    distinct = len({text for group in texts_of(tmp_path / "out", "free") for text in group})
    assert 3 <= kept <= 4 and len(judge.bodies) <= 12 - kept + (12 - distinct)
    assert results_of(tmp_path / "out")["tasks"][0]["models"][0]["scores"]["judge"]["requests"] == 12


def adapters(base, directory, **more):
    """Adapters that change the model."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **more)
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(directory)
    return directory


def test_adapters_in_a_pickle_are_refused(sums, tmp_path, capsys):
    base, task = sums
    adapter = adapters(base, tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert main(["evaluate", str(adapter), "--tasks", str(task), "--output", str(tmp_path / "out")]) == 2
    assert "have no adapter_model.safetensors; save them with peft's save_pretrained" in capsys.readouterr().err


def test_the_dial_goes_from_the_base_to_the_adapters(sums, judge, tmp_path):
    base, file = sums
    adapter = adapters(base, tmp_path / "adapter")
    output = tmp_path / "out"
    options = ["--grader", "numeric", "--limit", "6", "--judge.address", judge.address, "--judge.solutions", "3"]
    assert run([base, adapter], [file], output, "--adapter-scale", "0,0.5,1", *options) == 0
    (found,) = results_of(output)["tasks"]
    plain, *dial = found["models"]
    assert [model["name"].rpartition(" at ")[2] for model in dial] == ["0", "0.5", "1"]
    off, half, full = (model["scores"] for model in dial)
    assert off["avg@4"] == plain["scores"]["avg@4"] and off["diversity"] == plain["scores"]["diversity"]
    assert "alpha" not in plain["scores"]
    assert off["alpha"]["value"] == pytest.approx(1) and off["alpha"]["r2"] == pytest.approx(1)
    assert abs(full["alpha"]["value"] - 1) > 1e-3 and half["alpha"] != full["alpha"]
    assert all(name in off["diversity"] for name in ("rouge_l", "self_bleu", "vocabulary"))
    assert "variety" in off and "effective alpha" in (output / "results.md").read_text()
    assert found["plot"] == "pareto-held_out.svg"
    assert run([adapter], [file], tmp_path / "one", *options) == 0  # as trained, without the dial
    (alone,) = results_of(tmp_path / "one")["tasks"][0]["models"]
    assert alone["scores"]["avg@4"] == full["avg@4"]


def test_a_run_with_adapters_is_dialled_too(sums, tmp_path):
    base, file = sums
    run_directory = tmp_path / "run"
    run_directory.mkdir()
    (run_directory / "config.yaml").write_text("model: {}\n")
    (run_directory / "policy").symlink_to(base)
    adapters(base, run_directory / "adapter")
    options = ["--grader", "numeric", "--limit", "2", "--adapter_scale=[0, 2]"]
    assert run([run_directory], [file], tmp_path / "out", *options) == 0
    names = [model["name"] for model in results_of(tmp_path / "out")["tasks"][0]["models"]]
    assert names == [f"{run_directory} at 0", f"{run_directory} at 2"]


class TestRefused:
    @pytest.mark.parametrize(
        ("more", "complaint"),
        [
            (["--samples", "1"], "set --samples 2"),
            (["--judge.address", "http://127.0.0.1:9/v1"], "names no rubric"),
            (["--judge.address", "http://127.0.0.1:9/v1", "--judge.rubric", "poems"], "did you mean poem"),
            (["--judge.address", "nowhere"], "is no address"),
            (["--adapter-scale", "0,1"], "has no LoRA adapters"),
            (["--adapter-scale", "0,x"], "adapter_scale"),
            (["--adapter-scale", "-1"], "must be at least 0"),
            (["--judge.pairs", "2"], "judge.address is not"),
            (
                ["--judge.address", "http://127.0.0.1:9/v1", "--judge.solutions", "2"],
                "judge.solutions = 2 serves graded tasks, and --tasks names none",
            ),
            (["--grader", "numeric"], "eval.grader = numeric grades own JSONL files, and --tasks names none"),
            (["--data_folder", "."], "eval.data_folder = . stands in for data sets of the hub"),
        ],
    )
    def test_in_words_before_sampling(self, sums, task, tmp_path, capsys, more, complaint):
        base, _ = sums
        assert run([base], [task], tmp_path / "out", *more) == 2
        error = capsys.readouterr().err
        assert complaint in error and "Traceback" not in error
        assert not (tmp_path / "out" / "responses").exists()

    def test_a_judge_without_anything_to_judge(self, sums, tmp_path, capsys):
        base, file = sums
        options = ["--grader", "numeric", "--judge.address", "http://127.0.0.1:9/v1"]
        assert run([base], [file], tmp_path / "out", *options) == 2
        assert "no task is creative" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["pairs", "responses"])
    def test_a_judge_of_creative_tasks_where_there_is_none(self, sums, tmp_path, capsys, name):
        base, file = sums
        options = ["--grader", "numeric", "--judge.address", "http://127.0.0.1:9/v1", "--judge.solutions", "2"]
        assert run([base], [file], tmp_path / "out", *options, f"--judge.{name}", "2") == 2
        assert f"judge.{name} = 2 serves creative tasks, and --tasks names none" in capsys.readouterr().err

    def test_an_embedding_model_that_is_none(self, sums, task, tmp_path, capsys):
        base, _ = sums
        (tmp_path / "empty").mkdir()
        assert run([base], [task], tmp_path / "out", "--embedding", tmp_path / "empty") == 2
        assert "cannot load the embedding model" in (error := capsys.readouterr().err) and "Traceback" not in error

    def test_adapters_that_no_factor_scales(self, sums, tmp_path, capsys):
        base, file = sums
        adapter = adapters(base, tmp_path / "adapter", modules_to_save=["lm_head"])
        assert run([adapter], [file], tmp_path / "out", "--grader", "numeric", "--adapter-scale", "0,1") == 2
        assert "which no factor scales" in capsys.readouterr().err
