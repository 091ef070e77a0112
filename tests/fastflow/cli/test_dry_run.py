"""A dry run refuses what is certainly wrong, and says what only the machine of the run can tell."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config

from command_line import check_refused, invoke, write
from fastflow.config.presets import PRESETS
from fastflow.demo.small_model import make_tokenizer

READY = "# Settings and prompts were checked."


@pytest.fixture
def dry_run(models, capsys, monkeypatch, tmp_path):
    """A function that runs `fastflow train --dry-run` in an empty directory with some settings changed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = write(tmp_path / "prompts.jsonl", {"prompt": "ab"}, {"prompt": "cdef"})

    def run(*more, **changes) -> tuple[int, str, str]:
        settings = {"model.path": models / "fine", "data.path": file, "model.device": "cpu",
                    "rollout.max_response_tokens": 24, "batch.prompts_per_step": 2, "objective.alpha": 0.5}  # fmt: skip
        changed = {name.replace("__", "."): value for name, value in changes.items()}
        options = (f"--{name}={value}" for name, value in {**settings, **changed}.items())
        return invoke(capsys, "train", *options, *more, "--dry-run")

    return run


def test_with_all_here(dry_run):
    code, out, err = dry_run()
    assert (code, err) == (0, "")
    assert READY in out and "NOT checked here" not in out


def test_doubtful_settings_are_told(dry_run):
    code, out, err = dry_run(objective__alpha=4, lora__alpha=64)
    assert code == 0 and READY in out
    assert "alpha above 1 without objective.format_pattern" in err
    assert "lora.alpha = 64 is not read, since lora.rank = 0" in err


def test_fewer_prompts_than_a_step_takes(dry_run):
    code, _, err = dry_run(batch__prompts_per_step=5)
    assert code == 0
    assert "batch.prompts_per_step = 5, but data.path holds only 2 prompts: each appears up to 3 times in a step" in err


class TestRefused:
    @pytest.mark.parametrize(
        "place", ["absent.jsonl", "absent.json.gz", "absent.parquet", "./absent", "../absent", "/absent", "~/absent"]
    )
    def test_a_data_file_that_is_missing(self, dry_run, place):
        check_refused(dry_run(data__path=place), f"data file {place} does not exist", "check data.path")

    def test_a_tilde_that_no_shell_replaces(self, dry_run):
        check_refused(dry_run(data__path="~/absent.jsonl"), "~ is not replaced here")

    @pytest.mark.parametrize("place", ["./absent", "../absent", "/absent", "~/absent", "a/b/absent"])
    @pytest.mark.parametrize("name", ["model.path", "model.base"])
    def test_a_model_directory_that_is_missing(self, dry_run, name, place):
        check_refused(dry_run(**{name: place}), f"model directory {place} does not exist", f"check {name}")

    def test_a_family_that_is_not_trained(self, dry_run, tmp_path):
        GPT2Config().save_pretrained(tmp_path / "gpt2")
        make_tokenizer("abcdef").save_pretrained(tmp_path / "gpt2")
        check_refused(dry_run(model__path="gpt2"), "gpt2 is of the family 'gpt2'; fastflow supports llama")

    @pytest.mark.parametrize("below", ["", "/run"])
    def test_an_output_that_is_a_file(self, dry_run, tmp_path, below):
        file = write(tmp_path / "file", "mine")
        check_refused(dry_run(run__output=f"{file}{below}"), f"run.output = {file}{below}", "is a file", "directory")

    def test_a_response_without_room_in_the_context(self, dry_run):
        outcome = dry_run(rollout__max_response_tokens=128)
        check_refused(outcome, "rollout.max_response_tokens = 128 leaves no room", "context of 128", "lower it below")
        assert "data.max_prompt_tokens" not in outcome[2]  # which cannot help

    def test_a_prompt_without_room_in_the_context(self, dry_run):
        outcome = dry_run(rollout__max_response_tokens=125)
        check_refused(outcome, "prompts.jsonl:2 has 4 tokens", "context of 128", "lower data.max_prompt_tokens or")

    def test_a_device_that_is_none(self, dry_run):
        check_refused(dry_run(model__device="gpu"), "model.device = 'gpu' is not a device")


class TestElsewhere:
    """A dry run on one machine for a run on another."""

    def test_a_device(self, dry_run):
        code, out, err = dry_run(model__device="cuda")
        assert (code, err) == (0, "")
        assert "# NOT checked here: model.device = cuda, since torch sees no CUDA device\n" in out and READY in out

    @pytest.mark.parametrize(
        ("name", "place"),
        [("model.path", "nobody/nothing"), ("model.base", "nothing"), ("data.path", "nobody/nothing")],
    )
    def test_an_id_of_a_hub(self, dry_run, name, place):
        code, out, err = dry_run(**{name: place})
        assert (code, err) == (0, "")
        assert f"# NOT checked here: {name} = {place} is no " in out and "counts as a hub id" in out
        assert (READY in out) == (name == "model.base")

    @pytest.mark.parametrize("name", [name for name in PRESETS if "data.path" in PRESETS[name]])
    def test_the_presets(self, capsys, monkeypatch, tmp_path, name):
        monkeypatch.chdir(tmp_path)
        code, out, err = invoke(capsys, "train", "--preset", name, "--dry-run")
        assert code == 0, err
        assert "# NOT checked here: model.path" in out and "# NOT checked here: data.path" in out
