"""Updates with numbers that are not finite: skipped as if they had never been, counted, kept, and then the end."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open

from fastflow.config.reader import read_config
from fastflow.config.resume import read_request
from fastflow.config.schema import BatchConfig, Config, LoraConfig, ObjectiveConfig, OptimConfig
from fastflow.errors import FastflowError
from fastflow.interrupt import RunStopped
from fastflow.models.opening import with_adapters
from fastflow.models.packed import AdaptersOff, FrozenModel, PackedModel
from fastflow.objectives.flow import FlowObjective
from fastflow.report.command import write_report
from fastflow.train.bad_updates import HEADER, MOST_KEPT
from fastflow.train.finite import NonFiniteError
from fastflow.train.learner import Learner
from fastflow.train.trainer import Trainer
from resumed_runs import (
    check_same,
    configure,
    metrics_of,
    newest_save,
    overlapping,
    run_to_the_end,
    run_until_killed,
    saves_in,
)
from small_models import make_causal_lm, make_groups


class Poisoned(FlowObjective):
    """PowerFlow, but for what `poison` makes of the losses of chosen updates, counted from 1."""

    attempts = 0
    bad: tuple[int, ...] = ()

    def losses(self, policy, facts):
        self.attempts += 1
        loss_of = super().losses(policy, facts)
        if self.attempts not in self.bad:
            return loss_of

        def loss(hidden, batch):
            output = loss_of(hidden, batch)
            return replace(output, loss=self.poison(output.loss))

        return loss

    @staticmethod
    def poison(loss):
        return loss * math.nan


class InfiniteGradient(Poisoned):
    """The loss stays finite, and the norm of its gradient does not."""

    @staticmethod
    def poison(loss):
        return loss + 1e37 * (loss - loss.detach())


def make_learner(kind=Poisoned, *, bad=(), log_z="learned", rank=0, max_skips=3, schedule="linear") -> Learner:
    config = Config(
        objective=ObjectiveConfig(alpha=2.0, log_z=log_z),
        batch=BatchConfig(tokens_per_microbatch=60),
        optim=OptimConfig(lr=1e-2, max_skips=max_skips, schedule=schedule, weight_decay=0.1),
    )
    model = make_causal_lm()
    if rank:
        torch.manual_seed(0)
        model = with_adapters(model, LoraConfig(rank=rank))
    policy = PackedModel(model)
    base = AdaptersOff(policy) if rank else FrozenModel(make_causal_lm(seed=1))
    torch.manual_seed(0)  # the log_z head
    learner = Learner(policy, base, config, total_updates=10, objective=kind)
    learner.objective.bad = bad
    return learner


def state_of(learner: Learner) -> dict[str, object]:
    """All that an update changes."""
    head = learner.objective.log_z_head
    return copy.deepcopy(
        {
            "weights": [one.detach() for one in learner.policy.parameters()],
            "log_z": [] if head is None else list(head.state_dict().values()),
            "moments": [value for state in learner.optimizer.state.values() for value in state.values()],
            "schedule": [torch.tensor([learner.schedule.last_epoch, learner.schedule.get_last_lr()[0]])],
            "version": [torch.tensor(learner.policy.version)],
        }
    )


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, tensors in one.items():
        assert len(tensors) == len(other[name]), name
        assert all(torch.equal(*pair) for pair in zip(tensors, other[name], strict=True)), name


class TestLearner:
    @pytest.mark.parametrize("kind", [Poisoned, InfiniteGradient])
    @pytest.mark.parametrize(("log_z", "rank"), [("learned", 0), ("group_mean", 0), ("learned", 2)])
    @pytest.mark.parametrize("bad", [1, 2])
    def test_a_skipped_update_never_was(self, kind, log_z, rank, bad, rng):
        """Also the first, from which log_z would take its start; and the optimiser goes on as if nothing had been."""
        batches = [make_groups(rng) for _ in range(3)]
        learner, undisturbed = (make_learner(kind, bad=at, log_z=log_z, rank=rank) for at in ((bad,), ()))
        for number, batch in enumerate(batches, start=1):
            before = state_of(learner)
            result = learner.update(batch)
            assert bool(result.skipped) == (number == bad)
            if number == bad:
                assert_same(state_of(learner), before)
            else:
                undisturbed.update(batch)
        assert_same(state_of(learner), state_of(undisturbed))
        assert learner.updates == 2 and learner.skips == (1, 0)

    def test_what_is_said_of_it(self, rng):
        nan = make_learner(bad=(1,)).update(make_groups(rng))
        assert nan.skipped == "the loss is nan and the gradient norm nan and nan (policy, log_z)"
        assert math.isnan(nan.loss) and bool(nan.logprob.isfinite().all())
        infinite = make_learner(InfiniteGradient, bad=(1,), log_z="group_mean").update(make_groups(rng))
        assert math.isfinite(infinite.loss) and infinite.grad_norm == math.inf
        assert infinite.skipped.endswith("and the gradient norm inf (policy)")

    def test_the_gradient_is_given_back(self, rng):
        learner = make_learner(bad=(1,))
        learner.update(make_groups(rng))
        assert all(one.grad is None for one in learner.policy.parameters())

    def test_a_base_that_scores_nan_is_found_before_the_policy_runs(self, rng, monkeypatch):
        learner = make_learner()
        with torch.no_grad():
            learner.base.model.lm_head.weight[3, 0] = torch.nan
        monkeypatch.setattr(learner.policy, "hidden_states", lambda batch: pytest.fail("the policy ran"))
        result = learner.update(make_groups(rng))
        assert result.skipped == "the base's log-prob of 12 of 12 responses is not finite"
        assert learner.objective.attempts == 0 and not bool(learner.objective.log_z_head.calibrated)

    def test_a_sampler_that_says_nan(self, rng):
        groups = make_groups(rng)
        broken = replace(
            groups[1].trajectories[2], behaviour_logprobs=groups[1].trajectories[2].behaviour_logprobs * np.nan
        )
        groups[1] = replace(groups[1], trajectories=(*groups[1].trajectories[:2], broken, groups[1].trajectories[3]))
        assert make_learner().update(groups).skipped == "the sampler's log-prob of 1 of 12 responses is not finite"

    @pytest.mark.parametrize("most", [0, 1, 3])
    def test_one_too_many_in_a_row(self, most, rng):
        learner = make_learner(bad=range(2, 100), max_skips=most)
        groups = make_groups(rng)
        learner.update(groups)
        before = state_of(learner)
        for _ in range(most):
            assert learner.update(groups).skipped
        with pytest.raises(NonFiniteError, match=r"the loss is nan .* in update 2.*weights were left.*lower optim\.lr"):
            learner.update(groups)
        assert_same(state_of(learner), before)
        assert learner.skips == (most, most)

    def test_a_good_one_in_between_begins_the_count_again(self, rng):
        learner = make_learner(bad=(1, 3, 5, 7), max_skips=1)
        skipped = [bool(learner.update(make_groups(rng)).skipped) for _ in range(8)]
        assert skipped == [True, False] * 4
        assert learner.skips == (4, 0)

    def test_examine_changes_nothing_and_leaves_the_gradient(self, rng):
        learner, groups = make_learner(), make_groups(rng)
        learner.update(groups)
        before = state_of(learner)
        seen = learner.examine(groups)
        assert_same(state_of(learner), before)
        norm = torch.stack([one.grad.norm() for one in learner.policy.parameters() if one.grad is not None]).norm()
        assert float(norm) == pytest.approx(seen.grad_norm, rel=1e-5) and seen.grad_norm > 0
        assert learner.update(groups).loss == seen.loss


# A real setting that gives infinite numbers for some batches: the square of this penalty overflows.
SOME_OVERFLOW = {
    "objective__format_pattern": "^(?![ec5])", "objective__format_penalty": -1e30, "rollout__max_response_tokens": 2,
    "batch__responses_per_prompt": 2, "optim__max_skips": 100,
}  # fmt: skip
COMMON = {"run__steps": 8, "run__save_every": 2, "run__samples_every": 1, **SOME_OVERFLOW}


def skips_of(run: Path) -> list[int]:
    return [line["skipped_updates"] for line in metrics_of(run)]


def bad_files(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "bad").iterdir())


def header_of(path: Path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()[HEADER], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def strict(text: str):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run in which some updates are skipped."""
    home = tmp_path_factory.mktemp("run")
    return run_to_the_end(configure(home, run__output=home / "run", **COMMON))


class TestRuns:
    def test_it_goes_on_and_counts(self, run):
        skips = skips_of(run)
        assert len(skips) == 8 and 0 < sum(skips) < 8, "the settings above are to skip some of the updates"
        totals = [line["skipped_updates_total"] for line in metrics_of(run)]
        assert totals == np.cumsum(skips).tolist()
        status = strict((run / "status.json").read_text())
        assert (status["phase"], status["skipped_updates"]) == ("done", totals[-1])
        state = strict((newest_save(run) / "trainer" / "state.json").read_text())
        assert (state["step"], state["updates"], state["skips"]["total"]) == (8, 8 - sum(skips), sum(skips))

    def test_everything_written_is_json_and_a_skipped_step_has_nulls(self, run):
        for file in (*run.glob("*.jsonl"), *run.glob("checkpoints/*/trainer/state.json"), run / "status.json"):
            for text in file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]:
                strict(text)
        for line in metrics_of(run):
            assert (line["loss"] is None) == (line["grad_norm"] is None) == bool(line["skipped_updates"])
            assert line["length_mean"] > 0 and line["lr"] > 0
            assert not any("stale rollouts" in alarm or "sampler mismatch" in alarm for alarm in line["alarms"])
        first = skips_of(run).index(1)
        assert any(alarm.startswith("skipped updates: 1 in") for alarm in metrics_of(run)[first]["alarms"])

    def test_the_report_can_be_written(self, run, tmp_path):
        assert write_report(run, tmp_path / "report.html").stat().st_size > 1000

    def test_the_first_batches_are_kept(self, run):
        steps = [step for step, skipped in enumerate(skips_of(run), start=1) if skipped]
        assert bad_files(run) == [f"step-{step}.safetensors" for step in steps[:MOST_KEPT]]
        about = header_of(run / "bad" / bad_files(run)[0])
        assert (about["step"], about["update"], about["of"], about["updates"]) == (steps[0], 1, 1, steps[0] - 1)
        assert about["objective"] == "FlowObjective" and about["result"]["loss"] == "inf"
        assert about["versions"]["torch"] == torch.__version__

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"objective__log_z": "group_mean", "batch__updates_per_rollout": 2},
            {"lora__rank": 2, "lora__dropout": 0.3, "optim__schedule": "cosine"},
        ],
        ids=["plain", "two updates", "lora"],
    )
    def test_resumed_in_the_middle_of_skips_is_undisturbed(self, changes, tmp_path):
        changes = {**COMMON, "run__save_every": 1, "run__keep": 1, **changes}
        whole = run_to_the_end(configure(tmp_path, run__output=tmp_path / "whole", **changes))
        skips = skips_of(whole)
        assert 0 < sum(skips) < 8 * changes.get("batch__updates_per_rollout", 1)
        config = configure(tmp_path, run__output=tmp_path / "cut", **changes)
        after = next(step for step, skipped in enumerate(skips, start=1) if skipped) + 1
        run_until_killed(config, before=after)  # right after a skip, whose step is saved
        assert saves_in(tmp_path / "cut") == [f"step-{after - 1}"]
        cut = run_to_the_end(config, resume="yes")
        check_same(whole, cut)
        assert bad_files(whole) == bad_files(cut)

    def test_sampled_ahead(self, tmp_path, monkeypatch):
        """What is sampled while a skipped update trains comes from the weights that stay."""
        monkeypatch.setattr("fastflow.train.trainer.make_sampler", overlapping)
        changes = {**COMMON, "run__save_every": 1, "rollout__ahead": 1, "rollout__engine": "vllm"}
        whole = run_to_the_end(configure(tmp_path, run__output=tmp_path / "whole", **changes))
        skips = skips_of(whole)
        lags = [line["weight_lag"] for line in metrics_of(whole)]
        assert 0 < sum(skips) < 8
        assert lags == [0, *(1 - skipped for skipped in skips[:-1])]  # behind a skip, the weights are those of now
        config = configure(tmp_path, run__output=tmp_path / "cut", **changes)
        run_until_killed(config, before=skips.index(1) + 2)
        check_same(whole, run_to_the_end(config, resume="yes"))

    def test_a_stop_inside_a_step_behind_a_skip(self, tmp_path):
        """Ctrl-C in the second update of a step whose first was skipped: it is neither done again nor forgotten."""
        changes = {**COMMON, "batch__updates_per_rollout": 2, "run__save_every": 0}
        whole = run_to_the_end(configure(tmp_path, run__output=tmp_path / "whole", **changes))
        config = configure(tmp_path, run__output=tmp_path / "cut", **changes)
        trainer = Trainer(config, Console(quiet=True))
        update, results = trainer.learner.update, []

        def stopped(*arguments, **options):
            if len(results) % 2 and results[-1].skipped:
                raise KeyboardInterrupt
            results.append(update(*arguments, **options))
            return results[-1]

        trainer.learner.update = stopped
        with pytest.raises(RunStopped):
            trainer.run()
        check_same(whole, run_to_the_end(config, resume="yes"))
        assert bad_files(whole) == bad_files(tmp_path / "cut")

    def test_too_many_end_the_run_and_more_can_be_allowed(self, tmp_path):
        always = {**COMMON, "objective__format_pattern": "never", "optim__max_skips": 1, "run__steps": 4}
        config = configure(tmp_path, run__output=tmp_path / "run", **always)
        with pytest.raises(
            FastflowError, match=r"the loss is inf.*skipped before it: 1 update;.*fastflow replay .*step-2"
        ) as stop:
            run_to_the_end(config)
        assert "the policy after step 1 (0 updates) is in" in str(stop.value)
        assert skips_of(tmp_path / "run") == [1]
        assert bad_files(tmp_path / "run") == ["step-1.safetensors", "step-2.safetensors"]
        request = read_request(["--resume", str(tmp_path / "run"), "--optim.max_skips=2"])
        with pytest.raises(FastflowError, match=r"the loss is inf.*skipped before it: 2 updates;"):
            run_to_the_end(request.config, resume="yes")
        assert skips_of(tmp_path / "run") == [1, 1]

    def test_a_batch_that_cannot_be_kept_stops_nothing(self, tmp_path, caplog):
        config = configure(tmp_path, run__output=tmp_path / "run", **{**COMMON, "run__steps": 4})
        trainer = Trainer(config, Console(quiet=True))
        step = trainer.step

        def without_room(number):
            (tmp_path / "run" / "bad").touch()  # a file where the folder should be
            return step(number)

        trainer.step = without_room
        trainer.run()
        assert sum(skips_of(tmp_path / "run")) > 0
        assert "its batch could not be kept" in caplog.text

    def test_a_new_run_removes_what_was_kept(self, run, tmp_path):
        config = replace(read_config(["--config", str(run / "config.yaml")])[0])
        from fastflow.run.directory import prepare

        for name in ("bad", "config.yaml"):
            source, target = run / name, tmp_path / name
            if source.is_dir():
                target.mkdir()
                for file in source.iterdir():
                    (target / file.name).write_bytes(file.read_bytes())
            else:
                target.write_bytes(source.read_bytes())
        prepare(tmp_path, config)
        assert not (tmp_path / "bad").exists()
