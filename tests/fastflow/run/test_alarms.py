"""Alarms sound past their thresholds, once while they last, and again after a pause."""

from __future__ import annotations

import json
import re
import typing

import pytest

from fastflow.config.methods import OFFLINE, POLICY_GRADIENTS, REWARD_GRADIENTS, Method
from fastflow.config.reader import known_settings, read_config
from fastflow.config.schema import BatchConfig, Config, ObjectiveConfig
from fastflow.run.alarms import ALARMS, Alarms, watched

CALM = {
    "length_mean": 100.0,
    "truncated_share": 0.04,
    "repetition": 0.05,
    "effective_sample_size": 0.9,
    "weight_lag": 0.0,
    "mismatch_mean": 1e-5,
    "mismatch_p99": 1e-4,
    "mismatch_kl": 1e-6,
    "loss": 0.5,
    "ratio_p99": 1.1,
    "log_z": -3.0,
    "residual_mean": 0.0,
    "residual_std": 0.4,
    "malformed_share": 0.1,
    "skipped_updates": 0,
    "skipped_updates_total": 0,
}
FIRST = {
    "small": CALM,
    "lagging": {**CALM, "weight_lag": 1.0},
    "large": {**CALM, "truncated_share": 0.2, "repetition": 0.3},
    "large_log_z": {**CALM, "log_z": 300.0},
    "cut": {**CALM, "truncated_share": 0.9},
}


def after(first, config=None, **changes) -> list[str]:
    """The alarms of a second step that differs from the first in `changes`."""
    alarms = Alarms(config or Config())
    alarms.check(first)
    return alarms.check({**first, **changes})


@pytest.mark.parametrize(
    ("first", "name", "value", "alarm"),
    [
        ("small", "residual_std", 0.0, "no signal"),
        ("small", "length_mean", 50.0, None),
        ("small", "length_mean", 49.9, "length collapse"),
        ("small", "length_mean", 200.0, None),
        ("small", "length_mean", 200.1, "length explosion"),
        ("small", "truncated_share", 0.1, None),  # at least a tenth must be cut
        ("small", "truncated_share", 0.101, "truncation"),
        ("large", "truncated_share", 0.4, None),  # twice the first step's share
        ("large", "truncated_share", 0.41, "truncation"),
        ("small", "repetition", 0.2, None),
        ("small", "repetition", 0.21, "repetition"),
        ("large", "repetition", 0.6, None),
        ("large", "repetition", 0.61, "repetition"),
        ("small", "effective_sample_size", 0.3, None),
        ("small", "effective_sample_size", 0.29, "stale rollouts"),
        ("small", "mismatch_kl", 0.01, None),
        ("small", "mismatch_kl", 0.011, "sampler mismatch"),
        ("small", "mismatch_kl", None, None),  # not measured: the sampler draws from another distribution
        ("lagging", "mismatch_kl", 0.011, None),  # the updates in between, not the sampler
        ("small", "ratio_p99", 10.0, None),
        ("small", "ratio_p99", 10.1, "exploding ratios"),
        ("small", "ratio_p99", float("inf"), "exploding ratios"),
        ("small", "log_z", 13.0, None),  # 10 nats, and twice the 3 at the start
        ("small", "log_z", 13.1, "runaway log_z"),
        ("small", "log_z", -19.1, "runaway log_z"),
        ("large_log_z", "log_z", 900.0, None),  # nats per response, as of the tb_* objectives
        ("large_log_z", "log_z", 920.0, "runaway log_z"),
        ("small", "log_z", float("nan"), None),  # an objective of the user's that has none
        ("small", "malformed_share", 0.94, None),
        ("small", "malformed_share", 0.95, "dead format"),
        ("small", "malformed_share", None, None),  # no format is asked for
        ("small", "skipped_updates", 1, "skipped updates"),
        ("cut", "truncated_share", 0.94, None),  # not twice the first step's, and some still end
        ("cut", "truncated_share", 0.95, "saturated length"),
    ],
)
def test_thresholds(first, name, value, alarm):
    raised = after(FIRST[first], **{name: value})
    assert [message.split(":")[0] for message in raised] == ([] if alarm is None else [alarm])


@pytest.mark.parametrize(
    ("changes", "figures", "remedies"),
    [
        ({"length_mean": 40.0}, ("40.0 tokens", "100.0 at the start"), ("objective.format_pattern", "optim.lr")),
        ({"length_mean": 300.0}, ("300.0 tokens", "100.0 at the start"), ("objective.format_pattern", "optim.lr")),
        ({"truncated_share": 0.5}, ("50%", "4% at the start"), ("rollout.max_response_tokens",)),
        ({"repetition": 0.5}, ("50%", "5% at the start"), ("objective.alpha",)),
        ({"effective_sample_size": 0.1}, ("10%",), ("batch.updates_per_rollout", "optim.lr")),
        ({"ratio_p99": 25.0}, ("above 25.0", "1% of"), ("batch.updates_per_rollout", "optim.lr", "importance.ratio")),
        ({"log_z": 40.0}, ("40.0", "-3.0 at the start"), ("optim.log_z_lr", "objective.log_z")),
        ({"malformed_share": 0.97}, ("97%",), ("data.suffix", "objective.format_pattern")),
        (
            {"skipped_updates": 2, "skipped_updates_total": 5},
            ("2 in this step", "5 in the run"),
            ("optim.lr", "optim.max_grad_norm"),
        ),
    ],
)
def test_a_message_holds_the_figures_and_a_setting_that_exists(changes, figures, remedies):
    (message,) = after(CALM, Config(batch=BatchConfig(updates_per_rollout=2)), **changes)
    assert all(figure in message for figure in figures)
    assert all(remedy in message and remedy in known_settings() for remedy in remedies)


def test_the_first_step_knows_only_what_needs_no_comparison():
    assert (
        Alarms(Config()).check({**CALM, "length_mean": 1.0, "truncated_share": 0.9, "repetition": 0.0, "log_z": 99.0})
        == []
    )
    (message,) = Alarms(Config()).check({**CALM, "truncated_share": 1.0})
    assert message.startswith("saturated length: 100% of") and "rollout.max_response_tokens" in message
    (message,) = Alarms(Config()).check({**CALM, "effective_sample_size": 0.2})
    assert message.startswith("stale rollouts")


def test_a_lasting_alarm_is_not_repeated_and_returns_after_a_pause():
    alarms = Alarms(Config())
    lengths = [100.0, 40.0, 30.0, 60.0, 45.0]
    raised = [[m.split(":")[0] for m in alarms.check({**CALM, "length_mean": length})] for length in lengths]
    assert raised == [[], ["length collapse"], [], [], ["length collapse"]]


def test_alarms_last_independently():
    alarms = Alarms(Config())
    alarms.check(CALM)
    assert len(alarms.check({**CALM, "length_mean": 40.0})) == 1
    (message,) = alarms.check({**CALM, "length_mean": 40.0, "repetition": 0.9})
    assert message.startswith("repetition")
    (message,) = alarms.check({**CALM, "length_mean": 400.0, "repetition": 0.9})
    assert message.startswith("length explosion")


def test_the_comparison_stays_with_the_first_step():
    """A slow decline is seen although no step differs much from the one before."""
    alarms = Alarms(Config())
    raised = [bool(alarms.check({**CALM, "length_mean": 100.0 * 0.9**step})) for step in range(10)]
    assert raised.index(True) == 7  # 0.9^7 < 0.5
    assert sum(raised) == 1


def test_ratios_that_overflowed_count_as_stale():
    """Ratios that all underflow, or one that overflows, have no effective sample size: staleness at its worst."""
    (message,) = after(CALM, effective_sample_size=float("nan"))
    assert message.startswith("stale rollouts: importance ratios under- or overflowed; ")


SKIPPED = {
    **CALM,
    **dict.fromkeys(("loss", "effective_sample_size", "ratio_p99", "log_z"), float("nan")),
    **dict.fromkeys(("mismatch_mean", "mismatch_p99", "mismatch_kl")),
    "skipped_updates": 1,
    "skipped_updates_total": 1,
}


class TestSkippedSteps:
    """Steps without any update: what updates compute is not known, and no alarm about it begins or ends."""

    def kinds(self, alarms, metrics) -> list[str]:
        return [message.split(":")[0] for message in alarms.check(metrics)]

    def test_only_the_skip_and_the_rollout_are_named(self):
        alarms = Alarms(Config())
        alarms.check(CALM)
        assert self.kinds(alarms, {**SKIPPED, "length_mean": 10.0}) == ["length collapse", "skipped updates"]

    def test_an_alarm_goes_on_behind_them(self):
        alarms = Alarms(Config())
        alarms.check(CALM)
        assert self.kinds(alarms, {**CALM, "ratio_p99": 50.0}) == ["exploding ratios"]
        assert self.kinds(alarms, SKIPPED) == ["skipped updates"]
        assert self.kinds(alarms, {**CALM, "ratio_p99": 50.0}) == []

    def test_the_first_log_z_is_that_of_the_first_update(self):
        alarms = Alarms(Config())
        alarms.check(SKIPPED)
        assert json.loads(json.dumps(alarms.state(), allow_nan=False))["first"].keys() >= {"length_mean"}
        assert self.kinds(alarms, {**CALM, "log_z": 50.0}) == []
        assert self.kinds(alarms, {**CALM, "log_z": 161.0}) == ["runaway log_z"]

    def test_a_state_of_an_earlier_fastflow(self):
        alarms = Alarms(Config())
        alarms.load_state(
            {"first": {"length_mean": 100.0, "truncated_share": 0.04, "repetition": 0.05}, "active": ["truncation"]}
        )
        assert self.kinds(alarms, {**CALM, "length_mean": 10.0}) == ["length collapse"]


def test_without_rollouts_only_skipped_updates_sound():
    config = Config(objective=ObjectiveConfig(name="distil"))
    assert [alarm.name for alarm in watched(config)] == ["skipped updates"]
    assert watched(Config()) == ALARMS
    bad = {**CALM, "length_mean": 1.0, "truncated_share": 1.0, "effective_sample_size": 0.0, "skipped_updates": 1}
    assert len(after(CALM, **bad)) > 3
    alarms = Alarms(config)
    assert alarms.check(CALM) == []
    (only,) = alarms.check(bad)
    assert only.startswith("skipped updates")


ALL_BAD = {
    "length collapse": {"length_mean": 10.0},
    "length explosion": {"length_mean": 900.0},
    "truncation": {"truncated_share": 0.5},
    "repetition": {"repetition": 0.9},
    "stale rollouts": {"effective_sample_size": 0.1},
    "sampler mismatch": {"mismatch_kl": 1.0},
    "saturated length": {"truncated_share": 0.99},
    "no signal": {"residual_mean": 0.0, "residual_std": 0.0},
    "exploding ratios": {"ratio_p99": 50.0},
    "runaway log_z": {"log_z": 99.0},
    "dead format": {"malformed_share": 1.0},
    "skipped updates": {"skipped_updates": 1},
}
NEEDED = {  # settings without which a method is refused
    "grpo": ["--objective.reward=answer"],
    "flowrl": ["--objective.reward=answer"],
    "tba": ["--objective.reward=answer", "--objective.log_z=group_mean"],
    "format_reward": ["--objective.format_pattern=x"],
}
SAMPLING = [name for name in typing.get_args(Method) if name not in OFFLINE]


def options(name: str) -> list[str]:
    return [f"--objective.name={name}", *NEEDED.get(name, [])]


def said(config: Config) -> dict[str, str]:
    """What each alarm says that such a run can raise."""
    found = {}
    for changes in ALL_BAD.values():
        found |= {message.split(":")[0]: message for message in after(CALM, config, **changes)}
    return found


@pytest.mark.parametrize("name", SAMPLING)
@pytest.mark.parametrize("more", [[], ["--batch.updates_per_rollout=2"], ["--objective.format_pattern=x"]])
def test_every_setting_that_an_alarm_tells_to_set_is_taken(name, more):
    """objective.name, which is another method, needs settings of its own."""
    given = [*options(name), *more]
    messages = said(read_config(given)[0])
    assert set(messages) <= set(ALL_BAD) and len(messages) >= 10
    for message in messages.values():
        for setting in re.findall(r"\b([a-z_]+\.[a-z_]+)\b", message):
            assert setting in known_settings(), message
        for setting, value in re.findall(r"set ([a-z_]+\.[a-z_]+) = (\w+)", message):
            read_config([*given, f"--{setting}={value}"])


@pytest.mark.parametrize("name", POLICY_GRADIENTS)
def test_a_policy_gradient_has_no_log_z_that_could_run_away(name):
    """Its metric log_z is the groups' mean reward, which rises where the method works."""
    assert after(CALM, read_config(options(name))[0], log_z=99.0) == []


@pytest.mark.parametrize("name", REWARD_GRADIENTS)
def test_a_policy_gradient_is_told_of_nothing_that_it_does_not_read(name):
    given = [*options(name), "--batch.updates_per_rollout=2"]
    messages = said(read_config(given)[0])
    told = " ".join(messages.values())
    for unread in ("importance.ratio", "objective.alpha", "objective.name", "objective.log_z", "a format penalty"):
        assert unread not in told
    assert "surrogate.kl" in messages["length collapse"] and "surrogate.kl" in messages["repetition"]
    assert ("dead format" in messages) == (name == "format_reward")
    assert "surrogate.ratio" not in messages["exploding ratios"]
    (ratios,) = after(CALM, read_config([*given, "--surrogate.ratio=sequence"])[0], ratio_p99=50.0)
    assert "surrogate.ratio = token_mean" in ratios


def test_remedies_name_what_is_not_done_already():
    (on_policy,) = after(CALM, effective_sample_size=0.1)
    assert on_policy.endswith("; set importance.source = recompute")  # one update: the sampler is what differs
    with_format = read_config(["--objective.format_pattern=x"])[0]
    (malformed,) = after(CALM, with_format, repetition=0.9)
    assert "objective.format_penalty" in malformed and "objective.format_pattern" not in malformed
    from_groups = read_config(["--objective.log_z=group_mean"])[0]
    (runaway,) = after(CALM, from_groups, log_z=99.0)
    assert "objective.log_z" not in runaway and "optim.lr" in runaway
    ahead = read_config(["--rollout.engine=vllm", "--rollout.ahead=1"])[0]
    assert "importance.source" not in " ".join(said(ahead).values())  # which is refused with it
    recomputed = read_config(["--importance.source=recompute"])[0]
    (apart,) = after(CALM, recomputed, mismatch_kl=0.5)
    assert "importance.source" not in apart and "dtype" in apart
    (cut,) = after(CALM, read_config(["--objective.truncated=drop"])[0], skipped_updates=1)
    assert "rollout.max_response_tokens" in cut
    without_base = read_config([*options("grpo"), "--surrogate.score_base=false"])[0]
    assert "surrogate.kl" not in " ".join(said(without_base).values())  # which would read it
