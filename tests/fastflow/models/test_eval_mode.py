"""Whatever looks at a model in eval mode leaves it in the mode that it had."""

from __future__ import annotations

import contextlib

import pytest

from fastflow.models.packed import PackedModel
from fastflow.models.share import rescore
from fastflow.rollout.power.proposal import score
from fastflow.rollout.probe import logprobs_of, probe_for
from small_models import make_causal_lm, make_groups


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("error", [None, KeyError])
def test_the_mode_comes_back(training, error):
    policy = PackedModel(make_causal_lm())
    policy.model.train(training)
    with contextlib.suppress(KeyError), policy.eval_mode():
        assert not any(part.training for part in policy.model.modules())
        if error:
            raise error
    assert all(part.training is training for part in policy.model.modules())


@pytest.mark.parametrize(
    "look",
    [
        lambda policy, groups: rescore(policy, groups, 10**6),
        score,
        lambda policy, groups: logprobs_of(policy, probe_for(policy, 64)),
    ],
    ids=["rescore", "power", "probe"],
)
def test_who_looks_at_a_model_that_trains(look, rng):
    policy = PackedModel(make_causal_lm())
    policy.model.train()
    look(policy, make_groups(rng))
    assert policy.model.training
