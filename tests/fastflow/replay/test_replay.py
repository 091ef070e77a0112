"""`fastflow replay`: the numbers of a skipped update again, what is named in them, and files that are no such batch."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from command_line import check_refused, invoke
from fastflow.counted import counted
from fastflow.errors import FastflowError
from fastflow.objectives.flow import FlowObjective
from fastflow.replay.recompute import replay
from fastflow.train.bad_updates import HEADER
from fastflow.train.command import train
from fastflow.train.trainer import Trainer
from resumed_runs import configure, metrics_of, run_to_the_end
from small_models import save_model

OVERFLOW = {"objective__format_pattern": "^(?![ec5])", "objective__format_penalty": -1e30, "optim__max_skips": 9}
COMMON = {
    "run__steps": 4, "rollout__max_response_tokens": 2, "batch__responses_per_prompt": 2, "run__save_every": 1,
    "run__keep": 9, "optim__lr": 1e-2,
}  # fmt: skip


class PoisonedTwice(FlowObjective):
    """PowerFlow, but for its second update, whose loss is NaN."""

    attempts = 0

    def losses(self, policy, facts):
        self.attempts += 1
        loss_of = super().losses(policy, facts)
        if self.attempts != 2:
            return loss_of
        return lambda *of: replace(loss_of(*of), loss=loss_of(*of).loss * math.nan)


@pytest.fixture(scope="module", params=["full", "lora"])
def run(request, tmp_path_factory) -> Path:
    """A run that has skipped updates because of a penalty whose square overflows."""
    home = tmp_path_factory.mktemp("run")
    lora = {"lora__rank": 2, "lora__dropout": 0.3} if request.param == "lora" else {}
    return run_to_the_end(configure(home, run__output=home / "run", **COMMON, **OVERFLOW, **lora))


@pytest.fixture(scope="module")
def kept(run) -> Path:
    return sorted((run / "bad").iterdir())[0]


def test_the_same_numbers_again(run, kept):
    """From the save of that very moment, to the bit; whatever the run has learned since."""
    found = replay(kept)
    before = found.batch.about["updates"]
    assert not found.finite and found.weights.endswith("which are those of the skipped update")
    assert f"({counted(before, 'update')})" in found.weights
    dropout = (run / "adapter").exists()
    assert ["lora.dropout" in note for note in found.notes] == [True] * dropout
    then, now = found.batch.result, found.now
    assert (now.loss, now.skipped) == (then.loss, then.skipped)
    for name in ("base_logprob", "behaviour_logprob", "length", "group"):
        assert torch.equal(getattr(now, name), getattr(then, name)), name
    if not dropout:
        for name in ("logprob", "residual", "log_z", "importance", "raw_ratio"):
            assert torch.equal(getattr(now, name), getattr(then, name)), name
        assert all(np.array_equal(*pair) for pair in zip(now.token_logprobs, then.token_logprobs, strict=True))


def test_the_responses_and_tensors_to_blame(run, kept):
    found = replay(kept)
    malformed = {
        (int(found.now.group[index]) + 1, index % 2 + 1)
        for index, penalty in enumerate(found.batch.penalty.tolist())
        if penalty
    }
    assert 0 < len(malformed) < 8
    named = {(row.prompt, row.response) for row in found.responses}
    assert malformed <= named
    assert all("residual is" in row.values[0] and "overflows" in row.values[0] for row in found.responses)
    assert found.gradients or math.isfinite(found.now.grad_norm) is False


def test_the_command(run, kept, capsys, tmp_path):
    files = {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*"))}
    code, out, err = invoke(capsys, "replay", kept, "--json", tmp_path / "found.json")
    assert code == 1, err
    assert "the loss is inf" in out and "what is not finite" in out and "objective.format_penalty" in out
    content = json.loads(
        (tmp_path / "found.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )
    assert content["finite"] is False and content["now"]["loss"] == "inf" and content["responses"]
    assert {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*"))} == files, "the run has changed"


def test_other_weights(run, kept, tmp_path):
    save_model(tmp_path / "other", seed=5)
    found = replay(kept, model=str(tmp_path / "other"))
    assert found.weights == f"in {tmp_path / 'other'}" and "log_z is not that of the run" in found.notes[-1]
    with pytest.raises(FastflowError, match=r"nowhere.*"):
        replay(kept, model=str(tmp_path / "nowhere"))


def test_a_file_that_was_moved_needs_its_run(kept, run, tmp_path):
    shutil.copy(kept, tmp_path / kept.name)
    with pytest.raises(FastflowError, match=r"is no run of fastflow.*--run"):
        replay(tmp_path / kept.name)
    assert replay(tmp_path / kept.name, run=run).now.loss == replay(kept).now.loss


class TestWeightsThatAreGone:
    @pytest.fixture
    def changed(self, run, tmp_path) -> Path:
        shutil.copytree(run, tmp_path / "run", symlinks=True)
        return tmp_path / "run"

    def last(self, run: Path) -> Path:
        return sorted((run / "bad").iterdir())[-1]

    def test_a_damaged_save_is_passed_over_and_stays(self, changed):
        file = self.last(changed)
        first = replay(file)
        weights = Path(first.weights.removeprefix("of ").partition(" (")[0])
        (weights / "trainer" / "state.json").write_text("{}")
        again = replay(file)
        assert weights.exists() and again.weights != first.weights

    def test_without_any_save(self, changed):
        shutil.rmtree(changed / "checkpoints")
        assert "that the run started with" in replay(self.last(changed)).weights

    def test_settings_that_have_changed(self, changed):
        text = (changed / "config.yaml").read_text()
        (changed / "config.yaml").write_text(text.replace("format_penalty: -1.0e+30", "format_penalty: -0.5"))
        found = replay(self.last(changed))
        assert "no longer those of that update" in found.notes[0]


def test_finite_now(tmp_path, capsys):
    """The loss was NaN for a reason that is not in the batch, nor in the weights: exit code 0."""
    config = configure(tmp_path, run__output=tmp_path / "run", **COMMON)
    train(config, Console(quiet=True), PoisonedTwice)
    assert [line["skipped_updates"] for line in metrics_of(tmp_path / "run")] == [0, 1, 0, 0]
    code, out, err = invoke(capsys, "replay", tmp_path / "run" / "bad" / "step-2.safetensors")
    assert code == 0, err
    assert "All numbers are finite now" in out and "PoisonedTwice, an objective of its own" in out
    assert "what is not finite" not in out


def test_a_policy_whose_weights_overflow(tmp_path):
    """The loss is NaN since the policy's log-probs are: they are named, with the gradients, and the remedy."""
    config = configure(tmp_path, run__output=tmp_path / "run", **COMMON)
    trainer = Trainer(config, Console(quiet=True))
    update = trainer.learner.update

    def damaged(*arguments, **options):
        if trainer.learner.updates == 1:
            with torch.no_grad():
                trainer.learner.policy.model.model.layers[1].mlp.down_proj.weight.fill_(3e38)
        return update(*arguments, **options)

    trainer.learner.update = damaged
    with pytest.raises(FastflowError, match=r"NaN or infinite|not finite"):
        trainer.run()
    (file,) = (tmp_path / "run" / "bad").iterdir()
    found = replay(file)
    assert not found.finite and any("log pi is nan" in value for row in found.responses for value in row.values)
    assert any(entry.name.startswith("policy/model.layers.") for entry in found.gradients)


class TestRefused:
    @pytest.fixture(scope="class")
    def parts(self, kept):
        with safe_open(kept, "pt") as file:
            return load_file(kept), file.metadata()

    def written(self, path: Path, parts, changes=None, header=None) -> Path:
        (path / "bad").mkdir(parents=True)
        tensors, metadata = parts
        if header is not None:
            metadata = {HEADER: json.dumps({**json.loads(metadata[HEADER]), **header})}
        merged = {name: one.clone() for name, one in {**tensors, **(changes or {})}.items() if one is not None}
        save_file(merged, path / "bad" / "step-1.safetensors", metadata)
        return path / "bad" / "step-1.safetensors"

    @pytest.mark.parametrize(
        ("name", "tensor", "word"),
        [
            ("prompts/ids", torch.tensor([-1, 2]), "prompts/ids"),
            ("prompts/length", torch.tensor([2**62, 2**62, 0, 1]), "prompts/length"),
            ("prompts/responses", torch.tensor([2, 2, 2, 3]), "entries for"),
            ("responses/ids", torch.zeros(3, dtype=torch.int64), "entries for"),
            ("responses/length", torch.full((8,), -1), "responses/length"),
            ("penalty", torch.zeros(8), "torch.float32"),
            ("penalty", torch.zeros(8, 1, dtype=torch.float64), "2 dimensions"),
            ("result/length", torch.zeros(8, dtype=torch.float64), "contradict"),
            ("surprise", torch.zeros(1), "superfluous"),
        ],
    )
    def test_tensors_that_do_not_fit(self, name, tensor, word, parts, tmp_path, capsys):
        file = self.written(tmp_path, parts, {name: tensor})
        check_refused(invoke(capsys, "replay", file), "is no batch that this fastflow has kept", word)

    @pytest.mark.parametrize(
        ("header", "word"),
        [
            ({"format": 1}, "not of format 2"),
            ({"updates": -1}, "updates in its header is no count"),
            ({"step": True}, "step in its header is no count"),
            ({"objective": ["x"]}, "objective in its header is no text"),
            ({"result": {"loss": "nan", "skipped": ""}}, "lacks numbers"),
            ({"result": 3}, "lacks numbers"),
            (
                {
                    "result": {
                        "loss": 0,
                        "grad_norm": 0,
                        "lr": 0,
                        "microbatches": 1,
                        "tokens": 1,
                        "seconds": {},
                        "skipped": {},
                    }
                },
                "does not say in words",
            ),
            ({"result": {"loss": [], "grad_norm": 0, "lr": 0, "skipped": ""}}, "lacks numbers"),
        ],
    )
    def test_headers_that_do_not_fit(self, header, word, parts, tmp_path, capsys):
        check_refused(invoke(capsys, "replay", self.written(tmp_path, parts, header=header)), word)

    @pytest.mark.parametrize(
        "content",
        [b"", b"\x80\x04\x95 a pickle", b"\xff" * 64, (10**15).to_bytes(8, "little") + b"{}", b"{}" * 50],
        ids=["empty", "pickle", "ones", "a huge header", "text"],
    )
    def test_files_of_other_kinds(self, content, tmp_path, capsys):
        (tmp_path / "file").write_bytes(content)
        check_refused(invoke(capsys, "replay", tmp_path / "file"), "is no batch that this fastflow has kept")

    def test_a_file_cut_short(self, kept, tmp_path, capsys):
        (tmp_path / "file").write_bytes(kept.read_bytes()[:-100])
        check_refused(invoke(capsys, "replay", tmp_path / "file"), "is no batch that this fastflow has kept")

    def test_deeply_nested_headers(self, parts, tmp_path, capsys):
        file = self.written(tmp_path, (parts[0], {HEADER: "[" * 100_000}))
        check_refused(invoke(capsys, "replay", file), "no JSON")

    def test_safetensors_of_something_else(self, run, capsys):
        file = next((run / "policy").glob("*.safetensors"))
        check_refused(invoke(capsys, "replay", file), f"has no {HEADER} in its header")

    def test_what_is_no_file(self, tmp_path, capsys):
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path, tmp_path / "missing", tmp_path / "pipe"):
            check_refused(invoke(capsys, "replay", path), "is no file")

    def test_tokens_that_the_model_does_not_have(self, parts, run, tmp_path, capsys):
        ids = parts[0]["responses/ids"].clone()
        ids[0] = 10**6
        file = self.written(tmp_path, parts, {"responses/ids": ids})
        check_refused(invoke(capsys, "replay", file, "--run", run), "1000000", "--model")

    def test_a_json_file_that_cannot_be_written(self, kept, tmp_path, capsys):
        check_refused(invoke(capsys, "replay", kept, "--json", tmp_path), "--json")
