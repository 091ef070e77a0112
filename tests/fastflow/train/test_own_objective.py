"""An objective of one's own takes the place of the settings': examples/custom_objective.py against PowerFlow."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fastflow.config.schema import BatchConfig, Config, ObjectiveConfig, OptimConfig
from fastflow.errors import FastflowError
from fastflow.interrupt import RunStopped
from fastflow.models.packed import FrozenModel, PackedModel
from fastflow.models.share import rescore
from fastflow.objectives.flow import FlowObjective
from fastflow.objectives.objective import MakeObjective
from fastflow.train.command import train
from fastflow.train.learner import Learner
from fastflow.train.state import UnderWay
from fastflow.train.trainer import Trainer
from resumed_runs import check_same, configure, run_to_the_end
from small_models import make_causal_lm, make_groups

FILE = Path(__file__).parents[3] / "examples" / "custom_objective.py"
CONFIG = Config(objective=ObjectiveConfig(alpha=2.0, log_z="group_mean"), optim=OptimConfig(lr=1e-3, max_grad_norm=1e9))


@pytest.fixture(scope="module")
def policy_gradient() -> MakeObjective:
    specification = importlib.util.spec_from_file_location("custom_objective", FILE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.PolicyGradient


def gradient(objective: MakeObjective, groups, tokens: int = 10**6) -> torch.Tensor:
    """That of one update on responses that the policy itself has scored."""
    policy, base = PackedModel(make_causal_lm(seed=0)), FrozenModel(make_causal_lm(seed=1))
    config = replace(CONFIG, batch=BatchConfig(tokens_per_microbatch=tokens))
    learner = Learner(policy, base, config, total_updates=10, objective=objective)
    learner.update(rescore(policy, groups, 10**6))
    return torch.cat([parameter.grad.flatten().double() for parameter in policy.parameters()])


def test_on_policy_it_is_half_of_powerflow(policy_gradient, rng):
    groups = make_groups(rng)
    expected, found = gradient(FlowObjective, groups), gradient(policy_gradient, groups)
    assert expected.norm() > 0
    assert float((2 * found - expected).norm() / expected.norm()) < 1e-5


def test_it_does_not_depend_on_micro_batches(policy_gradient, rng):
    groups = make_groups(rng)
    whole, cut = gradient(policy_gradient, groups), gradient(policy_gradient, groups, tokens=40)
    assert float((whole - cut).norm() / whole.norm()) < 1e-5


class OwnLoss(FlowObjective):
    """PowerFlow under another name."""


def test_an_objective_of_its_own_gets_no_response_that_is_dropped(policy_gradient, tmp_path):
    """Whatever method the settings name: only an objective that says so compares with these."""
    changes = {"objective__name": "ttrl", "objective__truncated": "drop", "rollout__max_response_tokens": 30}
    trainer = Trainer(configure(tmp_path, **changes), Console(quiet=True), policy_gradient)
    groups = trainer.sample(1)
    finished = sum(entry.finish_reason == "stop" for group in groups for entry in group.trajectories)
    updates = trainer.updates.carry_out(UnderWay(groups, 0))
    assert 0 < finished < sum(len(group.trajectories) for group in groups)
    assert sum(len(update.result.length) for update in updates) == finished


def test_a_run_with_an_objective_of_its_own_goes_on_with_that_alone(tmp_path):
    make = OwnLoss
    whole, cut = (configure(tmp_path, run__output=tmp_path / name, run__save_every=1) for name in ("whole", "cut"))
    train(whole, Console(quiet=True), make)
    trainer = Trainer(cut, Console(quiet=True), make)
    step = trainer.step

    def stopped(number):
        if number == 3:
            raise KeyboardInterrupt
        return step(number)

    trainer.step = stopped
    with pytest.raises(RunStopped, match=rf"to go on: this program again with --resume {cut.run.output}"):
        trainer.run()
    with pytest.raises(FastflowError, match=r"started with the objective OwnLoss, .* go on with FlowObjective"):
        run_to_the_end(cut, resume="yes")
    train(cut, Console(quiet=True), make, resume="yes")
    check_same(tmp_path / "whole", tmp_path / "cut")
