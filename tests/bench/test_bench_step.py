"""`python -m bench.step`: the contestants' answers, the arithmetic counted, the rules of the contest, the files."""

from __future__ import annotations

import json
import math
import time
from unittest import mock

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import step
from bench.environment import describe
from bench.providers.provider import Unavailable
from bench.steps import contest as contest_module
from bench.steps import table
from bench.steps import trl as trl_module
from bench.steps.clock import PHASES, PhaseClock
from bench.steps.contest import ENTRIES, OURS, Contest, Entry
from bench.steps.model import ModelShape, write_checkpoint
from bench.steps.packed import PackedContestant
from bench.steps.padded import PaddedContestant
from bench.steps.padding import padded_batches
from bench.steps.settings import Outcome, StepSettings
from bench.steps.trajectories import Lengths, draw_groups, response_lengths, sequence_lengths
from fastflow.config.schema import Config, ModelConfig
from fastflow.data.trajectory import flatten
from fastflow.plan.estimate import Sizes
from fastflow.plan.sizes import read_sizes
from fastflow.plan.speed import update_flops

TINY = ModelShape("tiny", 16, 32, 4, 2, 97, tied=True, layers=2)
LENGTHS = Lengths(prompts=3, responses_per_prompt=4, longest_prompt=6, mean_response=7, longest_response=20)
CPU = torch.device("cpu")


class PlainLogprob(torch.autograd.Function):
    """Stands in for TRL's function where trl is not installed; the same arguments."""

    @staticmethod
    def apply(hidden, weight, bias, targets, temperature, chunk, softcap, scale, outputs):
        assert (bias, temperature, softcap, scale) == (None, 1.0, None, 1.0) and outputs[0] == "log_probs"
        logits = (hidden @ weight.to(hidden.dtype).T).float()
        return torch.log_softmax(logits, 1).gather(1, targets[:, None])[:, 0], None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(TINY, 2, folder, "cpu")
    return folder


@pytest.fixture
def groups():
    return draw_groups(LENGTHS, TINY.vocabulary, -math.log(TINY.vocabulary))


@pytest.fixture
def settings(checkpoint):
    return StepSettings(checkpoint, CPU, "float32", tokens_per_microbatch=60)


@pytest.fixture
def any_trl(monkeypatch):
    """TRL's own function where it is installed, else one that takes its place."""
    try:
        trl_module.chunked_logprob()
    except Unavailable:
        monkeypatch.setattr(trl_module, "chunked_logprob", lambda: PlainLogprob)


def update(contestant, groups):
    clock = PhaseClock(CPU)
    clock.start()
    outcome = contestant.update(groups, clock)
    return outcome, clock.stop()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 2e-5), ("mixed", 0.02), ("bfloat16", 0.05)])
def test_all_find_the_same_loss_and_gradient(checkpoint, groups, any_trl, precision, tolerance, checkpointing):
    settings = StepSettings(checkpoint, CPU, precision, 60, checkpointing)
    others = {
        "trl": PaddedContestant(settings, "", trl_module.trl_head),
        "padded": PaddedContestant(settings, "", logit_bytes=60 * 16 * TINY.vocabulary),
        "by length": PaddedContestant(settings, "", by_length=True),
    }
    ours, phases = update(PackedContestant(settings), groups)
    assert ours.loss > 0 and ours.grad_norm > 0 and ours.microbatches > 1
    assert ours.slots == sum(sequence_lengths(groups))
    assert all(phases[phase] > 0 for phase in PHASES)
    for name, contestant in others.items():
        theirs, phases = update(contestant, groups)
        assert theirs.loss == pytest.approx(ours.loss, rel=tolerance), name
        assert theirs.grad_norm == pytest.approx(ours.grad_norm, rel=tolerance), name
        assert theirs.slots > ours.slots and theirs.microbatches > 1
        assert all(phases[phase] > 0 for phase in PHASES)


def test_trl_finds_the_same_from_the_rows_of_responses_alone(settings, groups, any_trl, monkeypatch):
    everywhere, _ = update(PaddedContestant(settings, "", trl_module.trl_head), groups)
    monkeypatch.setattr(trl_module, "leaves_places_out", lambda device: True)
    compact, _ = update(PaddedContestant(settings, "", trl_module.trl_head), groups)
    assert compact[:2] == pytest.approx(everywhere[:2], rel=2e-5)


def test_the_policies_stay_together_over_updates(settings, groups):
    """The optimisers are the same: after five updates the losses still are."""
    ours, theirs = PackedContestant(settings), PaddedContestant(settings, "")
    losses = [[update(each, groups)[0].loss for _ in range(5)] for each in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-5) and losses[0][0] != losses[0][4]


def test_marks_leave_the_learner_as_it_was(settings, groups):
    contestant = PackedContestant(settings)
    update(contestant, groups)
    assert not {"_step", "_sum_own_gradients"} & vars(contestant.learner).keys()
    assert not {"hidden_states", "flow_loss"} & vars(contestant.learner.policy).keys()


@pytest.mark.parametrize("by_length", [False, True])
def test_every_token_has_its_place_in_one_batch(groups, by_length):
    batches = padded_batches(groups, CPU, most_slots=90, most_logit_rows=math.inf, by_length=by_length)
    flat = [(group.prompt, entry) for group in groups for entry in group.trajectories]
    assert sorted(index for batch in batches for index in batch.sequences.tolist()) == list(range(len(flat)))
    for batch in batches:
        assert batch.input_ids.numel() <= 90 or len(batch.sequences) == 1
        for row, index in enumerate(batch.sequences.tolist()):
            prompt, trajectory = flat[index]
            real = batch.input_ids[row][batch.attention_mask[row].bool()]
            assert real.tolist() == [*prompt.ids, *trajectory.response_ids]
            assert batch.targets[row][batch.response_mask[row]].tolist() == trajectory.response_ids.tolist()
    longest = max(len(entry) for entry in flatten(groups))
    assert all(batch.responses == longest for batch in batches) is not by_length
    if not by_length:
        assert [index for batch in batches for index in batch.sequences.tolist()] == list(range(len(flat)))


def test_logits_limit_a_batch(groups):
    batches = padded_batches(groups, CPU, most_slots=10**6, most_logit_rows=45, by_length=False)
    assert all(batch.response_mask.numel() <= 45 or len(batch.sequences) == 1 for batch in batches) and len(batches) > 1


def test_the_arithmetic_counted_is_that_of_the_products(settings):
    """Without padding, plain transformers multiplies exactly so much; attention has operators of its own."""
    equal = Lengths(prompts=2, responses_per_prompt=2, longest_prompt=1, mean_response=900, longest_response=9)
    groups = draw_groups(equal, TINY.vocabulary, -4.0)
    assert response_lengths(groups) == [9] * 4
    contestant = PaddedContestant(settings, "")
    with FlopCounterMode(display=False) as counter:
        update(contestant, groups)
    counts = counter.get_flop_counts()["Global"]
    products = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm}
    counted = sum(flops for op, flops in counts.items() if op in products)
    body_slots = 4 * 10  # the padded body also reads each last token, which ours leaves out
    assert counted == 4 * 2 * 2 * TINY.layer_parameters * body_slots + 8 * 4 * 9 * TINY.head_parameters
    attention = TINY.update_flops(2, [9] * 4, 36) - 4 * 4 * TINY.layer_parameters * 36 - 8 * 36 * TINY.head_parameters
    assert attention == 4 * 2 * 4 * (2 * 9 * 9 * TINY.width)


def test_the_planner_counts_the_same_arithmetic(tmp_path):
    write_checkpoint(TINY, 2, tmp_path, "cpu")
    sizes = Sizes(read_sizes(str(tmp_path), ModelConfig()), None, None)
    assert update_flops(Config(), sizes, 5, 12) == TINY.update_flops(2, [16], 12)


def test_lengths_are_uneven_and_repeatable():
    lengths = Lengths(prompts=40, responses_per_prompt=10, longest_prompt=64, mean_response=100, longest_response=250)
    groups = draw_groups(lengths, 1000, -6.9, seed=3)
    responses = response_lengths(groups)
    assert len(responses) == 400 and max(responses) == 250 and min(responses) > 0
    assert 85 < sum(responses) / len(responses) < 105  # the longest are cut
    assert {len(group.prompt.ids) for group in groups} <= set(range(16, 65))
    assert response_lengths(draw_groups(lengths, 1000, -6.9, seed=3)) == responses
    assert response_lengths(draw_groups(lengths, 1000, -6.9, seed=4)) != responses


class Scripted:
    """A contestant that does what its script says, call by call."""

    note = "scripted"

    def __init__(self, *script, loss=1.0):
        self.script, self.loss = list(script), loss

    def update(self, groups, clock):
        action = self.script.pop(0) if self.script else None
        if isinstance(action, Exception):
            raise action
        for phase in PHASES[1:]:
            clock.enter(phase)
        return Outcome(self.loss, 2.0, 10, 1)

    def slots(self, groups):
        return 10 * len(groups)


def hold(settings, groups, *contestants, seconds=600.0, repeats=3) -> Contest:
    contest = Contest(settings, groups, repeats, time.monotonic() + seconds)
    contest.run([Entry(name, lambda _, each=each: each) for name, each in contestants])
    return contest


def test_medians_and_quartiles_of_the_calls(settings, groups):
    contest = hold(settings, groups, (OURS, Scripted()), ("other", Scripted()))
    assert contest.judge() == []
    for row in contest.rows:
        low, high = row["quartiles_s"]
        assert row["status"] == "ok" and row["calls"] == 3 and row["agrees"] and 0 <= low <= row["median_s"] <= high
        assert set(row["phases_s"]) == set(PHASES)


def test_failures_cost_their_own_row(settings, groups):
    contest = hold(
        settings,
        groups,
        (OURS, Scripted()),
        ("large", Scripted(None, torch.OutOfMemoryError("CUDA out of memory"))),
        ("broken", Scripted(ValueError("no such kernel\nand more"))),
        ("other", Scripted()),
    )
    assert {row["contestant"]: row["status"] for row in contest.rows} == {
        OURS: "ok",
        "large": "failed: out of memory",
        "broken": "failed: ValueError: no such kernel",
        "other": "ok",
    }
    assert contest.judge() == []


def test_layers_that_one_replaces_are_not_the_next_ones(settings, groups):
    from transformers.models.qwen2 import modeling_qwen2

    rotary, seen = modeling_qwen2.apply_rotary_pos_emb, []

    class Replacing(Scripted):
        def update(self, groups, clock):
            seen.append(modeling_qwen2.apply_rotary_pos_emb is rotary)
            modeling_qwen2.apply_rotary_pos_emb = None
            return super().update(groups, clock)

    hold(settings, groups, (OURS, Replacing()), ("other", Replacing()), repeats=1)
    assert seen == [True, False] * 2


def test_the_note_says_which_layers_run(settings):
    assert "attention by sdpa, plain layers." in PackedContestant(settings).note


def test_a_different_loss_or_a_failure_of_ours_is_wrong(settings, groups):
    contest = hold(settings, groups, (OURS, Scripted()), ("other", Scripted(loss=1.1)))
    assert contest.judge() == ["loss of other is 1.1, ours 1"]
    assert contest.rows[1]["agrees"] is False
    contest = hold(settings, groups, (OURS, Scripted(ValueError("broken"))), ("other", Scripted()))
    assert contest.judge() == ["fastflow: failed: ValueError: broken"]


def test_after_the_time_only_ours_runs(settings, groups):
    contest = hold(settings, groups, (OURS, Scripted()), ("other", Scripted()), seconds=-1.0)
    assert [row["status"] for row in contest.rows] == ["ok", "skipped: out of time"]
    assert contest.rows[0]["calls"] == 1


def test_an_update_that_would_end_too_late_is_not_begun(settings, groups):
    contest = Contest(settings, groups, 1, time.monotonic() + 1000)
    contest._check_time({"score": 10.0, "optimiser": 9.0}, times_larger=10.0)
    with pytest.raises(Unavailable, match=r"an update takes about 2009 s, \d+ s are left"):
        contest._check_time({"score": 200.0, "optimiser": 9.0}, times_larger=10.0)


def test_the_slots_are_those_that_an_update_uses(settings, groups):
    for contestant in (PackedContestant(settings), PaddedContestant(settings, "", by_length=True)):
        assert contestant.slots(groups) == update(contestant, groups)[0].slots


def test_batches_become_smaller_where_memory_is_short(settings, groups, monkeypatch):
    contestant, seen = PaddedContestant(settings, ""), []
    update_of = PaddedContestant.update

    def short(self, groups, clock):
        seen.append(self.logit_rows)
        if self.logit_rows > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return update_of(self, groups, clock)

    monkeypatch.setattr(PaddedContestant, "update", short)
    contest = hold(settings, groups, ("padded", contestant), repeats=1)
    assert contest.rows[0]["status"] == "ok" and seen == [math.inf, 30, 15, 15]
    contestant.logit_rows = 0.9
    assert not contestant.halve_batches()


def options_of(*arguments: str):
    options = step.make_parser().parse_args(["--device", "cpu", *arguments])
    for name, value in (step.DEFAULTS["cpu"] | {"prompts": 3, "tokens_per_microbatch": 120, "repeats": 1}).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def test_a_run_from_its_arguments_to_its_files(tmp_path, any_trl, monkeypatch, capsys):
    monkeypatch.setattr(contest_module, "is_installed", lambda package: True)
    monkeypatch.setattr(contest_module, "chunked_logprob", lambda: None)
    options = options_of("--layers", "2", "--output", str(tmp_path / "out"), "--json", str(tmp_path / "step.json"))
    assert step.measure(options, time.monotonic(), {"0.5B": TINY}) == 0
    result = json.loads((tmp_path / "step.json").read_text(encoding="utf-8"))
    assert [row["contestant"] for row in result["rows"]] == list(step.CONTESTANTS) == [entry.name for entry in ENTRIES]
    for row in result["rows"]:
        assert row["status"] == "ok" and row["agrees"] and row["calls"] == 1 and row["note"].endswith(".")
        assert row["tokens_per_s"] == pytest.approx(result["workload"]["tokens"] / row["median_s"])
        assert 0 < row["utilisation"] < 1
        assert sum(row["phases_s"].values()) == pytest.approx(row["median_s"])
    assert result["environment"]["versions"]["torch"] == torch.__version__ and not result["wrong"]
    text = (tmp_path / "out" / "step.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert "| padded_by_length" in text and "| optimiser" in text and "micro-batches" in text


def test_settings_of_ours_alone(checkpoint, groups):
    settings = StepSettings(checkpoint, CPU, "float32", 60, ours={"attention": "sdpa"})
    assert settings.config.model.attention == "sdpa"
    assert PackedContestant(settings).note.endswith(" model.attention = sdpa.")
    with pytest.raises(TypeError, match="no_such_setting"):
        hasattr(StepSettings(checkpoint, CPU, "float32", 60, ours={"no_such_setting": 1}), "config")


def test_the_table_says_what_kept_one_from_an_answer(settings, groups):
    contest = hold(settings, groups, (OURS, Scripted(loss=3.0)), ("other", Scripted(None, ValueError("no kernel"))))
    workload = {"flops": 1e9, "tokens": 5, "matrix_flops_per_s": 1e12}
    with mock.patch.object(table, "workload_line", return_value="work"):
        text = table.as_markdown(describe("cpu"), workload, contest.rows, contest.judge())
    assert text.endswith("- fastflow: scripted\n- other: failed: ValueError: no kernel. scripted")
    derived = table.as_json({}, workload, contest.rows, ["all"])["rows"]
    assert derived[0]["utilisation"] == pytest.approx(1e-3 / contest.rows[0]["median_s"])
    assert derived[1]["flops_per_s"] is None and derived[1]["utilisation"] is None


def test_a_missing_trl_is_named(checkpoint, groups, settings, monkeypatch):
    monkeypatch.setattr(contest_module, "is_installed", lambda package: package != "trl")
    contest = Contest(settings, groups, 1, time.monotonic() + 600)
    contest.run([entry for entry in ENTRIES if entry.name == "trl"])
    assert contest.rows[0]["status"] == "skipped: trl is not installed"


@pytest.mark.parametrize(
    "arguments", [["--model", "3B"], ["--layers", "0"], ["--contestant", "nobody"], ["--ours", "x"]]
)
def test_arguments_are_checked(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        step.main(arguments)
    assert ended.value.code == 2 and arguments[1] in capsys.readouterr().err
