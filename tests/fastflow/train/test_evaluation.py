"""Evaluation during training: what it leaves behind, and that training does not depend on it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from rich.console import Console

from evaluated_runs import QUESTIONS, SAMPLES, entries_of, evaluated, results_of, rows_of, write_task
from evaluations import row
from fastflow.config.resume import read_request
from fastflow.errors import FastflowError
from fastflow.evaluate import scores
from fastflow.evaluate.task import find_task
from fastflow.interrupt import RunStopped
from fastflow.models.packed import PackedModel
from fastflow.report.command import write_report
from fastflow.rollout.local import LocalSampler
from fastflow.rollout.sampler import Request, SamplingParams
from fastflow.train.curve import Curve
from fastflow.train.dry_run import check_inputs
from fastflow.train.evaluation import Evaluation
from fastflow.train.progress import RunProgress
from fastflow.train.trainer import Trainer
from resumed_runs import (
    check_same,
    metrics_of,
    newest_save,
    overlapping,
    run_to_the_end,
    run_until_killed,
    saves_in,
    tensors_of,
)

REAL_SCORE = scores.score


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluated")


@pytest.fixture(scope="module")
def whole(home):
    """A run with evaluations that nothing disturbed."""
    return run_to_the_end(evaluated(home, run__output=home / "whole"))


def check_same_training(one, other) -> None:
    """The same weights, moments, random states, samples and metrics, but for those of evaluations."""
    first, second = tensors_of(newest_save(one)), tensors_of(newest_save(other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        if not name.endswith("python.words"):  # from which the tests' type checker draws
            assert torch.equal(tensor, second[name]), name
    assert (one / "samples.jsonl").read_bytes() == (other / "samples.jsonl").read_bytes()
    lines = [
        [{name: value for name, value in line.items() if not name.startswith("eval/")} for line in metrics_of(run)]
        for run in (one, other)
    ]
    assert lines[0] == lines[1]


def patched_scores(monkeypatch, values) -> None:
    """Have the evaluations come to these values of avg@2, one after the other."""
    coming = iter(values)

    def score(rows):
        return REAL_SCORE(rows) | {f"avg@{SAMPLES}": {"value": next(coming), "error": 0.1}}

    monkeypatch.setattr("fastflow.train.curve.scores.score", score)


class TestWhatItLeaves:
    def test_every_second_step_the_first_and_the_last(self, whole):
        assert list(entries_of(whole)) == [0, 2, 4, 5]
        lines = {line["step"]: line for line in map(json.loads, (whole / "metrics.jsonl").read_text().splitlines())}
        assert [step for step, line in lines.items() if "seconds_eval" in line] == [2, 4, 5]
        assert {step for step, line in lines.items() if any(name.startswith("eval/") for name in line)} == {2, 4, 5}
        assert lines[4]["seconds_eval"] > 0

    def test_results_say_what_evaluation_takes_from_training(self, whole, home):
        assert results_of(whole)["settings"]["dtype"] == "float32" and results_of(whole)["settings"]["stop"] == []
        config = evaluated(
            home,
            rollout__stop='["}"]',
            rollout__min_response_tokens=2,
            model__attention="sdpa",
            importance__source="recompute",
        )
        curve = Curve(home / "lent", [find_task(config.eval.tasks[0], grader="exact")], config)
        curve.add(0, {"own": rows_of(whole, 0)}, {"own": []})
        said = results_of(home / "lent")["settings"]
        assert (said["stop"], said["min_response_tokens"], said["attention"]) == (["}"], 2, "sdpa")

    def test_metrics_are_those_of_the_kept_responses(self, whole):
        for line in metrics_of(whole):
            if "eval/own/tokens" not in line:
                continue
            rows = rows_of(whole, line["step"])
            assert len(rows) == QUESTIONS * SAMPLES
            lengths = np.array([row["tokens"] for row in rows], dtype=float).reshape(QUESTIONS, SAMPLES).mean(1)
            assert line["eval/own/tokens"] == pytest.approx(lengths.mean())
            assert line["eval/own/tokens_error"] == pytest.approx(lengths.std(ddof=1) / QUESTIONS**0.5)
            assert line[f"eval/own/avg@{SAMPLES}"] == np.mean([row["verdict"] == "right" for row in rows])
            assert line["eval/own/truncated"] == np.mean([row["finish_reason"] == "length" for row in rows])
            assert line["eval/own/unparsed_share"] == np.mean([row["verdict"] == "unparsed" for row in rows])

    def test_the_responses_are_those_of_the_policy_after_the_step(self, whole):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        policy = whole / "checkpoints" / "step-4" / "policy"
        tokenizer = AutoTokenizer.from_pretrained(policy)
        sampler = LocalSampler(
            PackedModel(AutoModelForCausalLM.from_pretrained(policy)), eos_ids=[tokenizer.eos_token_id]
        )
        rows = rows_of(whole, 4)
        requests = []
        for first in range(0, len(rows), SAMPLES):
            group = rows[first : first + SAMPLES]
            prompt = _prompt(tokenizer, group[0]["prompt"])
            requests.append(Request(prompt, tuple(row["seed"] for row in group)))
        groups = sampler.sample(requests, SamplingParams(max_response_tokens=8))
        found = [one for group in groups for one in group.trajectories]
        assert [len(one) for one in found] == [row["tokens"] for row in rows]
        logprobs = [float(one.behaviour_logprobs.sum()) for one in found]
        np.testing.assert_allclose(logprobs, [row["logprob"] for row in rows], rtol=1e-4)
        assert [row["logprob"] for row in rows_of(whole, 0)] != [row["logprob"] for row in rows]

    def test_the_table_has_the_steps_beside_each_other(self, whole):
        table = (whole / "evaluations" / "results.md").read_text()
        assert "| | step 0 | step 2 | step 4 | step 5 |" in table
        difference = entries_of(whole)[4]["difference"]
        expected = scores.difference(rows_of(whole, 4), rows_of(whole, 0))
        assert difference == expected and "difference" not in entries_of(whole)[0]

    def test_the_report_shows_them(self, whole, tmp_path):
        page = write_report(whole, tmp_path / "page.html").read_text()
        heads = [f'<th scope="col">step {step}</th>' for step in (0, 2, 4, 5)]
        assert "".join(heads) in page and "Over the training" in page
        assert page.count("<h6>step 0 ") == page.count("<h6>step 5 ") == QUESTIONS

    def test_a_wide_table_keeps_the_first_and_the_last(self, home):
        run = run_to_the_end(evaluated(home, run__output=home / "wide", run__steps=9, eval__every=1))
        (header,) = [
            line for line in (run / "evaluations" / "results.md").read_text().splitlines() if line[:3] == "| |"
        ]
        assert re.findall(r"step (\d+)", header) == ["0", "3", "4", "5", "6", "7", "8", "9"]
        assert list(entries_of(run)) == list(range(10))

    def test_a_new_run_removes_what_an_earlier_one_left(self, home):
        run_to_the_end(evaluated(home, run__output=home / "again", run__steps=1))
        run = run_to_the_end(
            evaluated(home, run__output=home / "again", run__overwrite=True, eval__every=0, run__steps=1)
        )
        assert not (run / "evaluations").exists()

    def test_without_the_start(self, home):
        run = run_to_the_end(evaluated(home, run__output=home / "unstarted", run__steps=1, eval__at_start=False))
        assert list(entries_of(run)) == [1]

    def test_the_bar_of_grading_knows_no_end(self, home, monkeypatch):
        totals = {}
        monkeypatch.setattr(RunProgress, "phase", lambda self, name, total: totals.update({name: total}))
        run_to_the_end(evaluated(home, run__output=home / "totals", run__steps=1, eval__every=1))
        assert totals["asking own"] == QUESTIONS * SAMPLES and totals["grading own"] is None


def _prompt(tokenizer, text):
    from fastflow.data.trajectory import Prompt

    return Prompt(np.array(tokenizer(text)["input_ids"]), text)


class TestTrainingDoesNotDependOnIt:
    def test_on_and_off_to_the_bit(self, whole, home):
        plain = run_to_the_end(evaluated(home, run__output=home / "plain", eval__every=0))
        check_same_training(whole, plain)
        assert not (plain / "evaluations").exists()

    def test_with_dropout_and_a_grader_that_draws(self, home, monkeypatch):
        """What draws from the global generators while it evaluates changes nothing."""
        changes = {"lora__rank": 2, "lora__dropout": 0.3, "run__steps": 3, "run__save_every": 0, "eval__every": 1}
        plain = run_to_the_end(evaluated(home, run__output=home / "dropout", **{**changes, "eval__every": 0}))
        from fastflow.evaluate import responses

        real = responses.grade_part

        def drawing(*arguments, **options):
            torch.rand(3)
            np.random.rand(3)
            return real(*arguments, **options)

        monkeypatch.setattr("fastflow.train.evaluation.responses.grade_part", drawing)
        check_same_training(plain, run_to_the_end(evaluated(home, run__output=home / "drawing", **changes)))

    def test_where_the_next_step_is_sampled_ahead(self, home, monkeypatch):
        monkeypatch.setattr("fastflow.train.trainer.make_sampler", overlapping)
        changes = {"rollout__ahead": 1, "rollout__engine": "vllm", "optim__lr": 1e-2}
        runs = [
            run_to_the_end(evaluated(home, run__output=home / f"ahead-{every}", **changes, eval__every=every))
            for every in (0, 1)
        ]
        check_same_training(*runs)
        assert {line["weight_lag"] for line in metrics_of(runs[1])} == {0, 1}
        assert rows_of(runs[1], 2)[0]["logprob"] != rows_of(runs[1], 1)[0]["logprob"]


class TestResumed:
    @pytest.fixture
    def steps(self, monkeypatch):
        """The steps after which evaluations are made."""
        found, real = [], Evaluation.carry_out

        def counted(self, step, *arguments):
            found.append(step)
            return real(self, step, *arguments)

        monkeypatch.setattr(Evaluation, "carry_out", counted)
        return found

    @pytest.mark.parametrize(("before", "again"), [(4, [4, 5]), (5, [5])])
    def test_no_step_is_evaluated_twice(self, before, again, whole, home, steps):
        """Saves are of steps 2 and 4: killed in step 4, the run goes on from step 2."""
        config = evaluated(home, run__output=home / f"cut-{before}")
        run_until_killed(config, before=before)
        steps.clear()
        run = run_to_the_end(config, resume="yes")
        assert steps == again
        check_same(whole, run)
        assert results_of(run) == results_of(whole)
        assert {file.name for file in (run / "evaluations" / "responses").iterdir()} == {
            file.name for file in (whole / "evaluations" / "responses").iterdir()
        }

    def test_evaluations_after_the_save_are_made_again(self, whole, home, steps):
        config = evaluated(home, run__output=home / "unsaved", run__save_every=3)
        run_until_killed(config, before=5)  # 4 is evaluated, and the save is of step 3
        steps.clear()
        run = run_to_the_end(config, resume="yes")
        assert steps == [4, 5] and results_of(run) == results_of(whole)

    def test_stopped_while_it_evaluates(self, whole, home, steps):
        config = evaluated(home, run__output=home / "stopped")
        trainer = Trainer(config, Console(quiet=True))
        draw = trainer.schedule.draw

        def stopped(requests, params):
            if trainer.position.updates == 4:
                raise KeyboardInterrupt
            return draw(requests, params)

        trainer.schedule.draw = stopped
        with pytest.raises(RunStopped, match=r"step 3 \(4 updates\)"):
            trainer.run()
        steps.clear()
        run = run_to_the_end(config, resume="yes")
        assert steps == [4, 5]
        check_same(whole, run)
        assert results_of(run) == results_of(whole)

    def test_a_run_that_was_not_evaluated_may_begin_with_it(self, home):
        run = run_to_the_end(evaluated(home, run__output=home / "later", run__steps=2, eval__every=0))
        options = ("--run.steps=4", "--eval.every=2", f"--eval.tasks=[{write_task(home, 'other')}]")
        resumed = read_request(["--resume", str(run), *options])
        run_to_the_end(resumed.config, resume="yes")
        assert list(entries_of(run)) == [4]  # the base is gone
        changed = read_request(["--resume", str(run), "--run.steps=6", "--eval.samples=5"])
        with pytest.raises(FastflowError, match=r"cannot change eval\.samples = 5 \(was 2\)"):
            Trainer(changed.config, Console(quiet=True), resume="yes")

    def test_evaluations_of_other_settings_are_named(self, home, caplog):
        config = evaluated(home)
        curve = Curve(home / "mixed", [find_task(config.eval.tasks[0], grader="exact")], config)
        curve.add(0, {"own": [row(0, 0, right=True)]}, {"own": []})
        curve.take_up(0)
        assert caplog.text == ""
        file = home / "mixed" / "evaluations" / "results.json"
        results = json.loads(file.read_text())
        for newer in ("top_k", "min_p", "template_arguments"):  # as before evaluations had them
            del results["settings"][newer]
        file.write_text(json.dumps(results))
        curve.take_up(0)
        assert caplog.text == ""
        del results["settings"]["seeds"]  # as before tasks had seeds of their own
        file.write_text(json.dumps(results))
        curve.take_up(0)
        assert "with other settings than those to come (seeds)" in caplog.text

    def test_responses_of_the_first_evaluation_are_lost(self, home, caplog):
        run = run_to_the_end(evaluated(home, run__output=home / "lost", run__steps=2))
        (run / "evaluations" / entries_of(run)[0]["responses"]).unlink()
        resumed = read_request(["--resume", str(run), "--run.steps=3"])
        run_to_the_end(resumed.config, resume="yes")
        assert "show no intervals" in caplog.text
        assert entries_of(run)[3]["difference"]["low"] is None

    def test_a_run_that_loses_all_its_evaluations_has_no_results(self, home):
        config = evaluated(home, run__output=home / "early-kill", eval__at_start=False, run__save_every=1)
        run_until_killed(config, before=2)
        curve = Trainer(config, Console(quiet=True), resume="yes")
        file = home / "early-kill" / "evaluations" / "results.json"
        file.parent.mkdir()
        file.write_text(
            json.dumps({"tasks": [{"name": "own", "models": [{"step": 2, "scores": {}, "responses": ""}]}]})
        )
        curve.evaluation.take_up(1, curve.ranks)
        curve.close()
        assert not file.exists() and curve.evaluation.curve.evaluated == []

    def test_results_that_are_broken_are_named(self, home):
        run = run_to_the_end(evaluated(home, run__output=home / "broken", run__steps=2))
        (run / "evaluations" / "results.json").write_text('{"tasks": ')
        resumed = read_request(["--resume", str(run), "--run.steps=3"])
        with pytest.raises(FastflowError, match=r"results\.json cannot be read"):
            run_to_the_end(resumed.config, resume="yes")


class TestBestSave:
    METRIC = f"eval/own/avg@{SAMPLES}"

    def best(self, home, name, **changes):
        defaults = {"run__save_every": 0, "run__keep": 1, "run__best_metric": self.METRIC, "eval__every": 1}
        return evaluated(home, run__output=home / name, **{**defaults, **changes})

    def test_it_is_saved_where_it_is_found(self, home, monkeypatch):
        patched_scores(monkeypatch, [0.9, 0.1, 0.4, 0.4, 0.2, 0.3])  # the base's is no save's
        run = run_to_the_end(self.best(home, "best"))
        assert saves_in(run) == ["step-2", "step-5"]
        manifest = json.loads((run / "checkpoints" / "step-2" / "manifest.json").read_text())
        assert manifest["metric"] == 0.4

    def test_the_lowest(self, home, monkeypatch):
        patched_scores(monkeypatch, [0.9, 0.5, 0.4, 0.3, 0.7, 0.8])
        run = run_to_the_end(self.best(home, "lowest", run__best_is="lowest"))
        assert saves_in(run) == ["step-3", "step-5"]

    def test_a_save_between_evaluations_has_no_value(self, home, monkeypatch):
        patched_scores(monkeypatch, [0.9, 0.5, 0.6, 0.1])
        run = run_to_the_end(self.best(home, "between", eval__every=2, run__save_every=1, run__keep=1))
        assert saves_in(run) == ["step-4", "step-5"]

    def test_the_command_says_where_it_is(self, home, monkeypatch):
        import io

        from fastflow.train.command import train

        patched_scores(monkeypatch, [0.1, 0.4, 0.2])
        out = io.StringIO()
        train(self.best(home, "said", run__steps=2), Console(file=out, width=400))
        said = out.getvalue()
        assert (
            f"best {self.METRIC}: 0.4, after step 1, in {home / 'said' / 'checkpoints' / 'step-1' / 'policy'}" in said
        )
        assert f"evaluated every 1 step on own ({QUESTIONS} questions x {SAMPLES} responses)" in said
        assert re.search(r"step 0  before any update\n  eval own  avg@2 10\.0%±10\.0  pass@2 ", said)

    def test_early_stopping_ends_the_run_as_a_whole_one(self, home, monkeypatch):
        patched_scores(monkeypatch, [0.1, 0.4, 0.4, 0.3])
        config = self.best(home, "early", eval__patience=2)
        run = run_to_the_end(config)
        assert list(entries_of(run)) == [0, 1, 2, 3] and saves_in(run) == ["step-1", "step-3"]
        assert newest_save(run).name == "step-3"
        status = json.loads((run / "status.json").read_text())
        assert status["phase"] == "done" and status["step"] == 3 and status["eta_seconds"] == 0
        assert status["stopped_early"] == (
            f"stopped early after step 3: {self.METRIC} has not improved in 2 evaluations (eval.patience = 2) since "
            "step 1, where it was 0.4"
        )
        run_to_the_end(config, resume="yes")  # ends at once, for the same reason
        assert len(metrics_of(run)) == 3
        assert json.loads((run / "status.json").read_text())["phase"] == "done"
        patched_scores(monkeypatch, [0.5, 0.6])
        goes_on = read_request(["--resume", str(run), "--eval.patience=0"])
        run_to_the_end(goes_on.config, resume="yes")
        assert list(entries_of(run)) == [0, 1, 2, 3, 4, 5]

    def test_it_is_off_by_default(self, whole):
        assert json.loads((whole / "status.json").read_text())["stopped_early"] is None


class TestRefusals:
    def refused(self, home, *named, **changes) -> None:
        with pytest.raises(FastflowError) as caught:
            Trainer(evaluated(home, run__output=home / "refused", **changes), Console(quiet=True))
        for name in named:
            assert name in str(caught.value)

    def test_an_unknown_task(self, home):
        self.refused(home, "task 'math50' is unknown", "math500", eval__tasks="[math50]")

    def test_a_task_twice(self, home):
        self.refused(home, "two tasks of eval.tasks are called own", eval__tasks=f"[{home / 'own.jsonl'},own.jsonl]")

    def test_a_metric_that_is_not_measured(self, home):
        self.refused(home, "eval/own/avg@16 is not measured", "eval/own/avg@2", run__best_metric="eval/own/avg@16")

    def test_a_creative_task_needs_a_judge(self, home, caplog):
        self.refused(home, "creative tasks only", eval__tasks="[poem]")
        write_task(home)
        trainer = Trainer(
            evaluated(home, run__output=home / "creative", eval__tasks=f"[poem,{home / 'own.jsonl'}]"),
            Console(quiet=True),
        )
        trainer.close()
        assert "poem is left out, since a creative task needs a judge" in caplog.text
        assert trainer.evaluation.describe() == f"own ({QUESTIONS} questions x {SAMPLES} responses)"

    def test_a_gold_answer_that_is_not_its_own(self, home):
        file = home / "golds.jsonl"
        file.write_text(json.dumps({"prompt": "a", "answer": "none"}) + "\n")
        self.refused(home, "gold answers do not equal themselves", eval__tasks=f"[{file}]", eval__grader="numeric")

    def test_no_room_in_the_context(self, home):
        self.refused(home, "eval.max_response_tokens = 5000", "context", eval__max_response_tokens=5000)

    def test_a_dry_run_finds_them_too(self, home):
        with pytest.raises(FastflowError, match="does not exist"):
            check_inputs(evaluated(home, eval__tasks="[absent.jsonl]"))
