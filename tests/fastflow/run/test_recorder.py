"""Where measurements go: JSONL, console, TensorBoard, Weights & Biases."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import sys
import types

import pytest
from rich.console import Console

from fastflow.config.schema import Config, ObjectiveConfig, RunConfig
from fastflow.errors import FastflowError
from fastflow.run.pace import duration
from fastflow.run.recorder import ConsoleSink, JsonlSink, Recorder, TensorBoardSink, check_login, make_recorder

METRICS = {
    "tokens": 900,
    "loss": 0.12345,
    "residual_mean": -0.5,
    "residual_std": 1.25,
    "slope": 3.456,
    "alpha": 4.0,
    "length_mean": 17.25,
    "truncated_share": 0.031,
    "malformed_share": None,
    "reward_mean": None,
    "token_entropy": 0.875,
    "grad_norm": 2.5,
    "mismatch_kl": 1.2e-7,
    "weight_lag": 0.0,
    "responses": 64,
    "seconds": 0.5,
    "skipped_updates": 0,
    "skipped_updates_total": 0,
    "alarms": [],
}


def make_config(**run) -> Config:
    return Config(run=RunConfig(**run))


class TestJsonl:
    def test_one_object_a_step_with_null_for_what_is_not_finite(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        sink = JsonlSink(path)
        sink.write(
            1, {"slope": math.nan, "loss": math.inf, "low": -math.inf, "tokens": 3, "share": None, "alarms": ["a"]}
        )
        sink.write(2, {"slope": 1.5})
        sink.close()
        first, second = path.read_text().splitlines()

        def refuse(constant):
            raise AssertionError(f"{constant} is not JSON")

        assert json.loads(first, parse_constant=refuse) == {
            "step": 1, "slope": None, "loss": None, "low": None, "tokens": 3, "share": None, "alarms": ["a"],
        }  # fmt: skip
        assert json.loads(second) == {"step": 2, "slope": 1.5}

    def test_a_step_is_on_disk_at_once(self, tmp_path):
        sink = JsonlSink(tmp_path / "metrics.jsonl")
        sink.write(1, METRICS)
        assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, **METRICS}
        sink.close()

    def test_writing_does_not_change_the_metrics(self, tmp_path):
        metrics = {"slope": math.nan}
        sink = JsonlSink(tmp_path / "metrics.jsonl")
        sink.write(1, metrics)
        sink.close()
        assert math.isnan(metrics["slope"])


class TestConsole:
    @pytest.fixture(autouse=True)
    def clock(self, monkeypatch):
        """The time that the pace reads, which stands still until a test changes it."""
        now = [0.0]
        monkeypatch.setattr("fastflow.run.pace.time", types.SimpleNamespace(monotonic=lambda: now[0]))
        return now

    def printed(self, metrics, *, step=7, steps=100) -> list[str]:
        out = io.StringIO()
        ConsoleSink(Console(file=out, width=40), steps).write(step, metrics)
        return out.getvalue().splitlines()

    def test_one_line_with_the_figures_even_where_the_console_is_narrow(self):
        (line,) = self.printed(METRICS)
        assert line == (
            "step   7  loss 0.1235  residual -0.500±1.250  slope 3.46/4  length 17.2  cut 3%  entropy 0.88  "
            "grad 2.50  mismatch 1e-07  128 responses/s  1800 tokens/s"
        )

    def test_a_slow_run_still_shows_how_fast_it_is(self):
        line = self.printed({**METRICS, "responses": 36, "tokens": 1130, "seconds": 60.0})[0]
        assert line.endswith("0.6 responses/s  19 tokens/s")
        line = self.printed({**METRICS, "responses": 1, "tokens": 450, "seconds": 60.0})[0]
        assert line.endswith("0.017 responses/s  7.5 tokens/s")

    def test_the_time_that_is_left_at_the_pace_of_this_process(self, clock):
        out = io.StringIO()
        sink = ConsoleSink(Console(file=out, width=40), 100, after=50)
        clock[0] = 80.0
        sink.write(51, METRICS)
        clock[0] = 160.0
        sink.write(52, METRICS)
        first, second = out.getvalue().splitlines()
        assert first.endswith("  1:05:20 left") and second.endswith("  1:04:00 left")
        assert duration(2 * 86400 + 61) == "2 d 0:01:01"

    def test_the_malformed_share_only_where_there_is_a_format(self):
        assert "malformed" not in self.printed(METRICS)[0]
        assert "malformed 25%" in self.printed({**METRICS, "malformed_share": 0.25})[0]

    def test_the_reward_only_where_there_is_one(self):
        assert "reward" not in self.printed(METRICS)[0]
        assert "loss 0.1235  reward mean 0.250  residual " in self.printed({**METRICS, "reward_mean": 0.25})[0]

    @pytest.mark.parametrize(("name", "called"), [("powerflow", "residual"), ("grpo", "advantage")])
    def test_a_policy_gradients_residuals_are_advantages(self, name, called, tmp_path):
        out = io.StringIO()
        config = Config(objective=ObjectiveConfig(name=name, reward="a:b" if name == "grpo" else None))
        recorder = make_recorder(config, tmp_path, Console(file=out, width=40))
        recorder.write(1, METRICS)
        recorder.close()
        assert f"  {called} -0.500±1.250  " in out.getvalue()

    def test_the_samplers_lag_and_mismatch_only_where_there_is_any(self):
        line = self.printed({**METRICS, "mismatch_kl": None, "weight_lag": 1.0})[0]
        assert "mismatch" not in line and "  lag 1  " in line
        assert "lag" not in self.printed(METRICS)[0]

    def test_a_slope_without_a_target(self):
        assert "slope 3.46  length" in self.printed({**METRICS, "alpha": None})[0]

    def test_what_a_method_does_not_measure_is_left_out(self):
        line = self.printed({**METRICS, "slope": math.nan, "token_entropy": math.nan})[0]
        assert "residual -0.500±1.250  length 17.2  cut 3%  grad 2.50" in line

    def test_skipped_updates_only_where_there_are_any(self):
        assert "skipped" not in self.printed(METRICS)[0]
        nothing = {**METRICS, "skipped_updates": 2, "loss": math.nan, "grad_norm": math.nan}
        assert "loss nan" in self.printed(nothing)[0] and "  skipped 2 updates  " in self.printed(nothing)[0]

    def test_an_evaluation_has_a_line_for_each_task(self):
        scores = {
            "avg@4": 0.25, "avg@4_error": 0.0312, "pass@2": 0.4, "pass@2_error": 0.1, "pass@4": 0.5,
            "pass@4_error": None, "maj@4": 0.3, "maj@4_error": 0.2, "tokens": 17.25, "tokens_error": 1.0,
            "truncated": 0.05, "truncated_error": 0.01, "well_formed": 0.9, "well_formed_error": 0.01,
            "unparsed_share": 0.2,
        }  # fmt: skip
        both = {f"eval/{task}/{name}": value for task in ("sums", "own task") for name, value in scores.items()}
        lines = self.printed({**METRICS, **both, "seconds_eval": 2.0})
        shown = "avg@4 25.0%±3.1  pass@4 50.0%  maj@4 30.0%±20.0  tokens 17.2  cut 5%  well-formed 90%  unparsed 20%"
        assert lines[1:] == [f"  eval sums  {shown}", f"  eval own task  {shown}"]

    def test_lines_are_aligned(self):
        lines = [self.printed(METRICS, step=step)[0] for step in (1, 10, 100)]
        assert len({len(line) for line in lines}) == 1

    def test_an_alarm_is_no_markup(self):
        lines = self.printed({**METRICS, "alarms": ["[b]loud[/] and [/quiet]"]})
        assert lines[1].rstrip() == "  alarm: [b]loud[/] and [/quiet]"

    def test_alarms_have_lines_of_their_own(self):
        lines = self.printed({**METRICS, "alarms": ["first: " + 20 * "long ", "second"]})
        assert [line.rstrip() for line in lines[1:]] == ["  alarm: first: " + "long " * 19 + "long", "  alarm: second"]


class TestTensorBoard:
    def test_scalars_are_read_back_and_the_rest_is_left_out(self, tmp_path):
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        sink = TensorBoardSink(tmp_path / "tensorboard")
        for step, loss in ((1, 0.5), (2, 0.25)):
            sink.write(step, {**METRICS, "loss": loss, "slope": math.nan})
        sink.close()
        events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
        numbers = {name for name, value in METRICS.items() if type(value) in (int, float)} - {"slope"}
        assert set(events.Tags()["scalars"]) == numbers

    def test_absent_it_says_what_to_install(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorboard", None)
        with pytest.raises(FastflowError, match=r'pip install "fastflow\[tensorboard\]"'):
            TensorBoardSink(tmp_path)


class TestMakeRecorder:
    def test_without_extras_jsonl_and_console(self, tmp_path):
        out = io.StringIO()
        recorder = make_recorder(make_config(), tmp_path, Console(file=out))
        recorder.write(3, METRICS)
        recorder.close()
        assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 3
        assert out.getvalue().startswith("step   3  loss 0.1235")
        assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "status.json"}

    def test_tensorboard_when_asked_for(self, tmp_path):
        pytest.importorskip("tensorboard")
        recorder = make_recorder(make_config(tensorboard=True), tmp_path, Console(file=io.StringIO()))
        recorder.write(1, METRICS)
        recorder.close()
        assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))

    def test_wandb_when_asked_for(self, tmp_path, monkeypatch):
        calls = []

        class FakeRun:
            def log(self, numbers, step):
                calls.append(("log", numbers, step))

            def finish(self):
                calls.append(("finish",))

        def init(**options):
            calls.append(("init", options))
            return FakeRun()

        fake = types.ModuleType("wandb")
        fake.init = init
        monkeypatch.setitem(sys.modules, "wandb", fake)
        config = make_config(wandb="my-project")
        recorder = make_recorder(config, tmp_path, Console(file=io.StringIO()))
        recorder.write(1, {**METRICS, "slope": math.nan})
        recorder.close()
        expected = {name: value for name, value in METRICS.items() if type(value) in (int, float) and name != "slope"}
        identity = (tmp_path / "wandb.id").read_text()
        asked = {"project": "my-project", "config": dataclasses.asdict(config), "dir": str(tmp_path)}
        assert calls == [
            ("init", {**asked, "id": identity, "resume": "allow", "name": tmp_path.name}),
            ("log", expected, 1),
            ("finish",),
        ]
        make_recorder(config, tmp_path, Console(file=io.StringIO()), after=1).close()
        again = {
            **asked,
            "id": identity,
            "resume": "allow",
            "name": None,
        }  # the same run goes on, as it is called there
        assert calls[3] == ("init", again)

    def test_a_wandb_that_takes_no_run(self, tmp_path, monkeypatch):
        """Nothing says afterwards that a run is running."""

        def refuse(**options):
            raise ConnectionError("no\nnetwork")

        monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=refuse))
        with pytest.raises(FastflowError, match=r"run\.wandb = p: .* \(no network\); log in by `wandb login`"):
            make_recorder(make_config(wandb="p"), tmp_path, Console(file=io.StringIO()))
        assert {path.name for path in tmp_path.iterdir()} == {"wandb.id"}

    @pytest.mark.parametrize(
        ("login", "mode", "words"),
        [
            (lambda prompt: False, None, r"run\.wandb = p, and nobody is logged in .*log in by `wandb login`"),
            (lambda prompt: True, None, None),
            (lambda prompt: False, "offline", None),
            (lambda: input("key?"), None, None),  # an older one
            (lambda prompt: {}["no such host"], None, r"Weights & Biases refuses \('no such host'\)"),
        ],
    )
    def test_a_login_is_asked_for_before_models_load(self, monkeypatch, login, mode, words):
        monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(login=login))
        monkeypatch.delenv("WANDB_MODE", raising=False)
        if mode:
            monkeypatch.setenv("WANDB_MODE", mode)
        check_login(make_config())
        if words is None:
            check_login(make_config(wandb="p"))
        else:
            with pytest.raises(FastflowError, match=words):
                check_login(make_config(wandb="p"))

    def test_wandb_absent_says_what_to_install(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "wandb", None)
        with pytest.raises(FastflowError, match=r'pip install "fastflow\[wandb\]"'):
            make_recorder(make_config(wandb="p"), tmp_path, Console(file=io.StringIO()))


def test_every_sink_gets_every_step():
    seen = []

    class Sink:
        def __init__(self, name):
            self.name = name

        def write(self, step, metrics):
            seen.append((self.name, step, metrics["loss"]))

        def close(self):
            seen.append((self.name, "closed"))

    recorder = Recorder([Sink("a"), Sink("b")])
    recorder.write(1, METRICS)
    recorder.close()
    assert seen == [("a", 1, 0.12345), ("b", 1, 0.12345), ("a", "closed"), ("b", "closed")]


def test_an_evaluation_before_the_first_step_is_no_line_of_a_step(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recorder = Recorder([JsonlSink(tmp_path / "metrics.jsonl"), TensorBoardSink(tmp_path / "tensorboard")])
    recorder.evaluated_start({"eval/sums/avg@4": 0.25, "eval/sums/avg@4_error": None, "seconds_eval": 2.0})
    recorder.write(1, METRICS)
    recorder.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 1
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("eval/sums/avg_4")] == [(0, 0.25)]
