"""Methods of an evaluation: which settings they take, each whole on a small model, killed and gone on with."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from evaluations import row
from fastflow.cli import main
from fastflow.errors import FastflowError
from fastflow.evaluate import responses
from fastflow.evaluate.methods.catalogue import CATALOGUE, SETTINGS
from fastflow.evaluate.settings import read_settings
from small_models import save_model

pytest.importorskip("pyarrow")
SMALL = {
    "sample": (),
    "low_temperature": ("--alpha", "3"),
    "best_of_n": ("--candidates", "3"),
    "majority_vote": ("--candidates", "3"),
    "beam": ("--candidates", "3"),
    "mcmc_exact": ("--alpha", "2", "--steps", "2", "--block", "12"),
    "mcmc_published": ("--alpha", "2", "--steps", "2", "--block", "12"),
    "power_smc": ("--alpha", "2", "--particles", "3", "--block", "8"),
    "verbalized": ("--candidates", "2", "--tail", "0.3"),
}


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """(directory of a random model that spells letters and digits, JSONL of questions)."""
    directory = tmp_path_factory.mktemp("letters")
    save_model(directory / "model", max_position_embeddings=1024)
    lines = [json.dumps({"prompt": letter, "answer": str(number)}) + "\n" for number, letter in enumerate("abc")]
    (directory / "letters.jsonl").write_text("".join(lines))
    return directory / "model", directory / "letters.jsonl"


def arguments(letters, output, name, *more):
    base, file = letters
    samples = "1" if name == "beam" else "2"
    return ["evaluate", str(base), "--tasks", str(file), "--output", str(output), "--grader", "numeric",
            "--max_tokens", "24", "--limit", "3", "--prompts_per_part", "1", "--samples", samples,
            "--model.device", "cpu", "--method", name, *SMALL[name], *more]  # fmt: skip


def results_of(output):
    return json.loads((output / "results.json").read_text())


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_method_answers_and_says_what_it_cost(letters, tmp_path, name, monkeypatch):
    torch.set_num_threads(1)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert main(arguments(letters, whole, name)) == 0
    results = results_of(whole)
    assert results["settings"]["method"]["name"] == name
    entry = results["tasks"][0]["models"][0]["scores"]
    tokens, sampled = entry["tokens"]["value"], entry["sampled_tokens"]["value"]
    assert 0 < tokens <= 24
    chooses = name in ("best_of_n", "majority_vote", "beam", "mcmc_exact", "mcmc_published", "power_smc")
    assert sampled > tokens if chooses else name == "verbalized" or sampled == tokens
    page = (whole / "results.md").read_text()
    assert (f"Method {name}: " in page) == (name != "sample")
    assert ("tokens sampled for it" in page) == (sampled != tokens)
    (file,) = (whole / "responses").glob("*.parquet")
    rows = responses.read(file)
    assert [row["written"] is not None for row in rows] == [name == "verbalized"] * len(rows)

    grade_part, parts = responses.grade_part, []

    def dies(*inputs):
        parts.append(inputs)
        if len(parts) == 3:
            raise KeyboardInterrupt
        return grade_part(*inputs)

    with monkeypatch.context() as patch:
        patch.setattr(responses, "grade_part", dies)
        assert main(arguments(letters, killed, name)) == 130
    assert main(arguments(letters, killed, name)) == 0
    (resumed,) = (killed / "responses").glob("*.parquet")
    assert resumed.name == file.name and resumed.read_bytes() == file.read_bytes()
    assert results_of(killed) == results


def test_methods_and_their_settings_have_files_of_their_own(letters, tmp_path):
    for name, more in (("sample", ()), ("low_temperature", ()), ("low_temperature", ("--alpha", "2"))):
        assert main(arguments(letters, tmp_path, name, *more)) == 0
        (tmp_path / "results.json").unlink()  # or the next would be refused: it would replace these results
    assert len(list((tmp_path / "responses").glob("*.parquet"))) == 3


def test_a_file_without_a_column_names_it_and_the_way_on(tmp_path):
    import pyarrow
    from pyarrow import parquet

    file = tmp_path / "cut.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([row(0, 0, right=True)]).drop_columns("read_tokens"), file)
    with pytest.raises(FastflowError, match=r"cut\.parquet has no column read_tokens; remove it"):
        responses.read(file)


def read(*more):
    return read_settings(["model", "--tasks", "gsm8k", *more])


def test_defaults_are_filled_in():
    assert read("--method", "mcmc_exact").method.as_json() == {
        "name": "mcmc_exact", "alpha": 4.0, "steps": 10, "block": 192,
    }  # fmt: skip
    assert read("--method", "power_smc", "--max_tokens", "20").method.count("block") == 20
    assert read().method.as_json() == {"name": "sample"}
    assert set(SETTINGS) == {name for kind in CATALOGUE.values() for name in kind.defaults}


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--method", "mcmc"], "method"),
        (["--alpha", "4"], "the method sample does not read it (it reads none of the methods' settings)"),
        (["--method", "power_smc", "--steps", "3"], "set --method to one of mcmc_exact, mcmc_published"),
        (["--method", "mcmc_exact", "--temperature", "0.5"], "sets it by alpha"),
        (["--method", "low_temperature", "--temperature", "0.5"], "sets it by alpha"),
        (["--method", "beam", "--samples", "1", "--temperature", "0.5"], "takes the model's own probabilities"),
        (["--method", "power_smc", "--top_p", "0.9"], "eval.top_p is 0.9, but the method power_smc works on"),
        (["--method", "mcmc_exact", "--top_k", "20"], "eval.top_k is 20, but the method mcmc_exact works on"),
        (["--method", "beam", "--samples", "1", "--min_p", "0.1"], "eval.min_p is 0.1, but the method beam works on"),
        (["--method", "mcmc_exact", "--rollout.stop", '["x"]'], "rollout.stop"),
        (["--method", "mcmc_exact", "--rollout.min_response_tokens", "3"], "rollout.min_response_tokens is 3"),
        (["--method", "best_of_n", "--temperature", "0", "--samples", "1"], "gives equal samples"),
        (["--method", "beam"], "always gives the same answer"),
        (["--method", "mcmc_exact", "--alpha", "0"], "must be above 0"),
        (["--method", "beam", "--samples", "1", "--rollout.engine", "vllm"], "set --rollout.engine local"),
        (["--method", "verbalized", "--tail", "1.5"], "at most 1"),
    ],
)
def test_settings_that_contradict_a_method_are_refused(capsys, more, complaint):
    assert main(["evaluate", "model", "--tasks", "gsm8k", *more]) == 2
    error = capsys.readouterr().err
    assert complaint in " ".join(error.split()) and "Traceback" not in error


class Engine:
    """Gives the candidates of a list, whatever is asked."""

    def __init__(self, texts, logprobs):
        self.texts, self.logprobs = texts, logprobs

    def sample(self, requests, params):
        from fastflow.data.trajectory import Group, Trajectory

        def entry(place):
            text, logprob = self.texts[place], self.logprobs[place]
            return Trajectory(np.array([place]), np.array([logprob], dtype=np.float32), "stop" if text else "length")

        return [Group(r.prompt, tuple(entry(place) for place in range(len(r.seeds)))) for r in requests]


def chosen(texts, logprobs, choice, task=None):
    from fastflow.data.trajectory import Prompt
    from fastflow.evaluate.methods.chosen import chosen_of_several
    from fastflow.evaluate.questions import Question
    from fastflow.rollout.sampler import Request, SamplingParams

    class Text:
        def of(self, ids):
            return texts[ids[0]]

    prompt = Prompt(np.array([1]))
    told = []
    method = chosen_of_several(
        Engine(texts, logprobs), Text(), SamplingParams(), candidates=len(texts), choice=choice(Text()),
        on_progress=told.append,
    )  # fmt: skip
    ((answer,),) = method(task, [(0, Question("a:1", "1+1=", "2"), prompt)], [Request(prompt, (3,))])
    assert told == [1] and answer.sampled_tokens == len(texts)
    return answer.response


def test_best_of_n_takes_the_largest_log_probability():
    from fastflow.evaluate.methods.chosen import likeliest
    from fastflow.rollout.sampler import SamplingParams

    assert chosen(["a", "b", "c"], [-3, -1, -2], lambda text: likeliest(None, SamplingParams(), "local")) == "b"
    for way in ({"temperature": 0.5}, {"top_k": 20}, {"min_p": 0.1}):
        assert likeliest(None, SamplingParams(**way), "local").reads


@pytest.mark.parametrize("engine", ["vllm", "vllm-server"])
def test_best_of_n_scores_under_the_model_what_another_engine_draws(engine, monkeypatch):
    from fastflow.evaluate.methods import chosen as methods
    from fastflow.rollout.sampler import SamplingParams

    def score(policy, groups):
        return [
            [np.array([-1.0 if entry.response_ids[0] == 2 else -5.0]) for entry in group.trajectories]
            for group in groups
        ]

    monkeypatch.setattr(methods, "score", score)
    assert chosen(["a", "b", "c"], [-3, -1, -2], lambda text: methods.likeliest(None, SamplingParams(), engine)) == "c"


def test_the_majority_vote_takes_the_most_frequent_answer():
    from fastflow.evaluate.graders.pool import GraderPool
    from fastflow.evaluate.methods.chosen import most_frequent
    from fastflow.evaluate.task import Task

    task = Task(name="t", grader="numeric", path="t.jsonl")
    with GraderPool(("numeric",), workers=1) as pool:

        def vote(*texts):
            return chosen(list(texts), [-1] * len(texts), lambda text: most_frequent(text, pool), task)

        assert vote("it is 2", "the answer: 3", "\\boxed{3.0}", "") == "the answer: 3"
        assert vote("", "nothing", "5") == "5"
        assert vote("none", "no number") == "none"
        assert vote("7", "8") == "7"


def test_running_servers_continue_prefixes_too(model_directory, fakes, tmp_path):
    pytest.importorskip("httpx")
    file = tmp_path / "letters.jsonl"
    file.write_text(json.dumps({"prompt": "a", "answer": "a"}) + "\n")
    fake = fakes()
    assert main([
        "evaluate", str(model_directory), "--tasks", str(file), "--grader", "exact", "--samples", "2",
        "--max_tokens", "12", "--output", str(tmp_path / "out"), "--model.device", "cpu",
        "--method", "mcmc_exact", *SMALL["mcmc_exact"],
        "--rollout.engine", "vllm-server", "--rollout.servers", f"[{fake.address}]",
    ]) == 0  # fmt: skip
    asked = [body for body in fake.bodies if body.get("temperature") == 0.5]
    lengths = {(len(body["prompt"]), body["max_tokens"]) for body in asked}
    assert any(tokens > 1 for tokens, _ in lengths)
    assert all(1 <= limit <= 12 - (tokens - 1) for tokens, limit in lengths)
