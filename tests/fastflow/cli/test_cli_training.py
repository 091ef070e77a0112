"""What goes wrong while training or reporting, and how the command ends."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys

import pytest
import torch

from command_line import check_refused, invoke, write
from fastflow import cli
from fastflow.models.ranks import FailedElsewhere


@pytest.mark.parametrize("stopped", [False, True])
def test_a_rank_with_nothing_to_say_ends_behind_the_one_that_speaks(stopped, monkeypatch, capsys):
    """torchrun stops the other ranks as soon as one has ended; that one is to be the rank that tells why."""
    waited = []

    def run(arguments):
        raise FailedElsewhere("why")

    def sleep(seconds):
        waited.append(seconds)
        if stopped:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(cli, "_run", run)
    monkeypatch.setattr(cli.time, "sleep", sleep)
    assert invoke(capsys, "train") == (2, "", "")
    assert waited == [cli.SPEAKING_SECONDS]


class TestTraining:
    @pytest.mark.parametrize(
        ("skips", "words"),
        [
            (0, ("the base's log-prob of", "is not finite", "optim.lr")),
            (1, ("the base's log-prob of", "skipped before it: 1 update", "fastflow replay")),
            (2, ("every update of the run was skipped (2 in all)", "nothing was learned")),
        ],
    )
    def test_a_base_that_scores_nothing_leaves_a_usable_policy(
        self, skips, words, train, models, tmp_path, monkeypatch
    ):
        """The base's head is damaged, so that no update has finite numbers; the policy is saved as it was. No check
        looks at the head here: a run may also meet such numbers later.
        """
        from safetensors.torch import load_file

        monkeypatch.setattr("fastflow.models.self_check.check_head", lambda *_, **__: 0.0)
        outcome = train(model__base=models / "damaged-head", optim__max_skips=skips)
        policy = tmp_path / "run" / "policy"
        check_refused(outcome, *words, f"the policy after step {skips} (0 updates) is in {policy}")
        before, after = load_file(models / "fine" / "model.safetensors"), load_file(policy / "model.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_a_learning_rate_that_destroys_the_weights(self, train):
        outcome = train(optim__lr=1e30, optim__max_grad_norm=1e30, run__steps=3, optim__max_skips=1)
        check_refused(outcome, "optim.lr", "skipped before it: 1 update")

    @pytest.mark.parametrize("name", ["powerflow", "ttrl"])
    def test_only_truncated_responses_and_none_to_be_kept(self, train, name):
        changes = {"objective__truncated": "drop", "objective__name": name, "run__seed": 3, "run__steps": 9}
        outcome = train(rollout__max_response_tokens=1, optim__max_skips=2, **changes)
        words = "objective.truncated = drop", "skipped before it: 2 updates", "raise rollout.max_response_tokens"
        check_refused(outcome, *words)

    def test_an_output_directory_that_holds_a_run(self, train, tmp_path):
        code, out, _ = train(run__steps=1)
        assert code == 0
        assert f"policy saved in {tmp_path / 'run' / 'policy'}" in out
        assert re.search(
            rf"^to compare it with its base: fastflow evaluate \S+ {tmp_path}/run --max_tokens 4 --tasks",
            out,
            re.MULTILINE,
        )
        before = (tmp_path / "run" / "metrics.jsonl").read_text()
        check_refused(train(run__steps=1), tmp_path / "run", "already holds a run", "--run.output", "--run.overwrite")
        assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
        code, _, _ = train(run__steps=1, run__overwrite="true")
        assert code == 0
        assert (
            len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
        )  # not appended to the first run's

    @pytest.mark.parametrize("overwrite", ["false", "true"])
    def test_an_output_directory_that_holds_something_else(self, train, tmp_path, overwrite):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "thesis.tex").write_text("years of work")
        check_refused(train(run__overwrite=overwrite), "not empty and not a run", "--run.output")
        assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"

    def test_an_output_that_is_a_file(self, train, tmp_path):
        (tmp_path / "run").write_text("")
        check_refused(train(), "is a file", "choose a directory")

    def test_an_output_below_a_file(self, train, tmp_path):
        write(tmp_path / "file", "")
        check_refused(train(run__output=tmp_path / "file" / "run"), f"run.output = {tmp_path / 'file' / 'run'}")

    def test_a_format_check_in_a_broken_module(self, train, tmp_path, monkeypatch):
        write(tmp_path / "broken_check_module.py", "def check(:")
        monkeypatch.syspath_prepend(tmp_path)
        check_refused(
            train(objective__format_check="broken_check_module:check"), "objective.format_check", "invalid syntax"
        )

    @pytest.mark.parametrize("name", ["run [first]", "run [", "a[/b]"])
    def test_brackets_in_a_path_are_no_markup(self, train, tmp_path, name):
        code, out, _ = train(run__steps=1, run__output=tmp_path / name)
        assert code == 0
        assert f"policy saved in {tmp_path / name / 'policy'}" in out

    def test_nothing_is_written_before_the_inputs_are_checked(self, train, models, tmp_path):
        check_refused(train(model__base=models / "larger"), "different vocabularies")
        assert not (tmp_path / "run").exists()


class TestReport:
    def test_no_such_run(self, capsys):
        check_refused(invoke(capsys, "report", "no-such-run"), "no-such-run: no such run directory", "run.output")

    def test_a_directory_that_is_no_run(self, capsys, tmp_path):
        check_refused(invoke(capsys, "report", tmp_path), tmp_path, "metrics.jsonl", "run.output")

    def test_a_run_without_a_step(self, capsys, tmp_path):
        write(tmp_path / "metrics.jsonl")
        check_refused(invoke(capsys, "report", tmp_path), "no complete step yet")

    def test_a_broken_line(self, capsys, tmp_path):
        write(tmp_path / "metrics.jsonl", "{", {"step": 2})
        check_refused(invoke(capsys, "report", tmp_path), "metrics.jsonl, line 1 is broken", "mend or remove")


def test_the_command_that_compares_puts_prompts_as_in_training():
    from fastflow.config.reader import read_config
    from fastflow.evaluate.settings import read_settings
    from fastflow.train.command import how_to_compare

    given = ["--model.path=hub/chat", "--model.base=hub/base", "--run.output=runs/it", "--data.path=x.jsonl"]
    chat = ["--data.chat_template=true", "--data.system=Be brief.", "--model.trust_remote_code=true"]
    told = how_to_compare(read_config([*given, *chat])[0])
    assert told.startswith("to compare it with its base: fastflow evaluate hub/base runs/it --chat_template true ")
    assert "--system 'Be brief.' --max_tokens 3072 --model.trust_remote_code true --tasks" in told
    short = [*given, "--rollout.max_response_tokens=64", "--rollout.stop=[END]"]
    told = how_to_compare(read_config(short)[0])
    assert told.endswith("evaluate hub/base runs/it --rollout.stop '[\"END\"]' --max_tokens 64 --tasks TASKS")
    settings = read_settings(shlex.split(told.partition("fastflow evaluate ")[2]))  # read as it was meant
    assert settings.eval.max_tokens == 64 and settings.rollout.stop == ("END",)
    thinking = ["--data.chat_template=true", "--data.template_arguments={enable_thinking: false}"]
    told = how_to_compare(read_config([*given, *thinking])[0])
    settings = read_settings(shlex.split(told.partition("fastflow evaluate ")[2]))
    assert settings.eval.template_arguments == {"enable_thinking": False}


class TestMain:
    def test_an_error_of_several_lines_is_printed_on_one(self, capsys, monkeypatch):
        def fail(arguments):
            raise cli.FastflowError("first\n  second\tthird")

        monkeypatch.setitem(cli.READ_SETTINGS, "train", fail)
        code, _, err = invoke(capsys, "train")
        assert (code, err) == (2, "fastflow: error: first second third\n")

    def test_an_interruption_has_its_own_code(self, capsys, monkeypatch):
        def interrupt(arguments):
            raise KeyboardInterrupt

        monkeypatch.setitem(cli.READ_SETTINGS, "train", interrupt)
        assert invoke(capsys, "train")[::2] == (130, "fastflow: interrupted\n")

    def test_a_fault_of_ours_is_not_hidden(self, monkeypatch):
        def fail(arguments):
            raise ZeroDivisionError

        monkeypatch.setitem(cli.READ_SETTINGS, "train", fail)
        with pytest.raises(ZeroDivisionError):
            cli.main(["train"])

    def test_dry_run_prints_settings_that_can_be_read_back(self, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)  # where no demo was run
        code, out, err = invoke(capsys, "train", "--preset", "demo", "--optim.lr", "1e-4", "--dry-run")
        assert (code, err) == (0, "")
        file = write(tmp_path / "resolved.yaml", out)
        again = invoke(capsys, "train", "--config", file, "--dry-run")
        assert again == (0, out, "")
        assert "lr: 0.0001\n" in out and "Leave out --dry-run" not in out

    @pytest.mark.parametrize(
        ("option", "value", "words"),
        [
            ("objective.format_pattern", "(", "not a regular expression"),
            ("objective.reward", "nowhere:function", "cannot be imported"),
            ("objective.reward", "posixpath:basename", "takes (p), but is called with (text, record)"),
            ("data.path", "bad.jsonl", "bad.jsonl:1"),
            ("model.fused_layers", "liger", "needs a CUDA device, and the model is on cpu"),
        ],
    )
    def test_dry_run_checks_what_needs_no_model(self, capsys, tmp_path, monkeypatch, option, value, words):
        monkeypatch.chdir(tmp_path)
        write(tmp_path / "bad.jsonl", "not json\n")
        code, _, err = invoke(capsys, "train", "--preset", "demo", f"--{option}={value}", "--dry-run")
        assert code == 2 and words in err

    def test_fewer_prompts_than_a_step_takes(self, train):
        code, out, _ = train(batch__prompts_per_step=9, run__steps=1)
        said = " ".join(out.split())
        assert code == 0
        assert (
            "batch.prompts_per_step = 9, but data.path holds only 4 prompts: each appears up to 3 times in a step"
            in said
        )

    def test_dry_run_warns_of_a_directory_that_holds_a_run(self, capsys, tmp_path):
        """It still prints the settings; going on with that run needs no warning, nor replacing it."""
        write(tmp_path / "prompts.jsonl", '{"prompt": "a"}\n')
        (tmp_path / "run").mkdir()
        write(tmp_path / "run" / "config.yaml", "")
        given = ["train", f"--data.path={tmp_path / 'prompts.jsonl'}", "--model.path=a/b", "--objective.alpha=0.5",
                 f"--run.output={tmp_path / 'run'}", "--dry-run"]  # fmt: skip
        code, out, err = invoke(capsys, *given)
        assert code == 0 and "model:" in out
        assert "as it is now, this run would not start" in err and "already holds a run" in err
        for more in ("--run.overwrite=true", "--resume=auto"):
            assert invoke(capsys, *given, more)[::2] == (0, "")

    def test_dry_run_checks_the_devices(self, capsys):
        given = ["train", "--preset", "demo", "--devices", "3", "--run.replicas", "2", "--dry-run"]
        code, _, err = invoke(capsys, *given)
        assert code == 2 and "run.replicas = 2 does not divide 3 ranks" in err

    def test_help_of_train_lists_the_settings(self, capsys):
        code, out, err = invoke(capsys, "train", "--help")
        assert (code, err) == (0, "")
        assert "--objective.alpha" in out
        assert "paper-reasoning-base" in out

    def test_help_heads_a_section_with_one_whole_sentence(self, capsys):
        lines = invoke(capsys, "train", "--help")[1].splitlines()
        heads = {line.partition(":")[0]: line for line in lines if line[:1].islower() and ": " in line}
        assert heads["surrogate"].endswith("random_reward, format_reward, rl_trajectory and rl_token:")
        assert heads["released"].endswith("differs from the paper, or decides what that leaves open:")
        assert heads["lora"] == "lora: Low-rank adapters:"
        assert heads["objective"].endswith("(residual = log_z + length_scale * log pi - log_target) or reward:")

    @pytest.mark.parametrize("command", ["train", "evaluate"])
    def test_help_names_what_a_setting_takes_and_its_default(self, capsys, command):
        """And no types of Python, nor a default that is nothing."""
        text = " ".join(invoke(capsys, command, "--help")[1].split())
        assert "type:" not in text and "default: )" not in text and "null)" not in text
        expected = {
            "train": ("--model.path TEXT Local", "--model.dtype {float32,bfloat16} Type", "--optim.lr NUMBER Peak",
                      "(default: 5e-07)", "--model.autocast {true,false} Run", "(default: false)",
                      "--optim.betas [ITEM,...] AdamW", "(default: 0.9,0.95)", "--run.steps N Steps;"),
            "evaluate": ("--eval.temperature NUMBER Sampling", "(default: 1)"),
        }  # fmt: skip
        assert [words for words in expected[command] if words not in text] == []

    def test_help_imports_nothing_heavy(self):
        program = (
            "import sys\n"
            "from fastflow.cli import main\n"
            "try:\n"
            "    main(['--help'])\n"
            "except SystemExit as stop:\n"
            "    heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'numpy', 'rich'} & set(sys.modules)\n"
            "    print('IMPORTED', sorted(heavy), [name for name in sys.modules if name.endswith('.command')])\n"
            "    sys.exit(stop.code)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "IMPORTED [] []" in done.stdout
        assert all(command in done.stdout for command in ("demo", "plan", "train", "verify", "report", "doctor"))

    @pytest.mark.parametrize("command", sorted(cli.COMMANDS.keys() - cli.READ_SETTINGS.keys()))
    def test_each_command_has_its_options(self, command, capsys):
        code, out, _ = invoke(capsys, command, "--help")
        assert code == 0 and len(re.findall(r"^  --\w+", out, re.MULTILINE)) >= 2

    def test_as_a_module(self):
        command = [sys.executable, "-m", "fastflow.cli", "train", "--config", "no-such-file.yaml"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("fastflow: error: cannot read the configuration no-such-file.yaml")
        assert done.stderr.count("\n") == 1
