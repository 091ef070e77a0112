"""Every foreseeable mistake on the command line: exit code 2 and one line that names cause and remedy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch

from fastflow import cli
from small_models import VOCABULARY, make_causal_lm, save_model

PROMPTS = ["ab", "cde", "f", "0123"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Saved models by name; read only."""
    home = tmp_path_factory.mktemp("models")
    save_model(home / "fine")
    save_model(home / "larger", vocab_size=VOCABULARY + 8)
    save_model(home / "large-tokenizer", pieces="abcdefghijklmnopqrstuvwxyz0123456789+-*/=")
    save_model(home / "damaged")
    damaged = make_causal_lm()
    with torch.no_grad():
        damaged.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    damaged.save_pretrained(home / "damaged")
    save_model(home / "damaged-head", tied=False)
    damaged = make_causal_lm(tied=False)
    with torch.no_grad():
        damaged.lm_head.weight[0, 0] = torch.nan
    damaged.save_pretrained(home / "damaged-head")
    return home


@pytest.fixture
def train(tmp_path, models, capsys):
    """A function that runs `fastflow train` on a tiny set-up with some settings changed."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    settings = {
        "model.path": models / "fine",
        "model.device": "cpu",
        "data.path": prompts,
        "objective.log_z": "group_mean",
        "rollout.max_response_tokens": 4,
        "batch.prompts_per_step": 2,
        "batch.responses_per_prompt": 2,
        "run.steps": 2,
        "run.output": tmp_path / "run",
        "run.report": "false",
    }

    def run(**changes) -> tuple[int, str, str]:
        changed = {name.replace("__", "."): value for name, value in changes.items()}
        return invoke(capsys, "train", *(f"--{name}={value}" for name, value in {**settings, **changed}.items()))

    return run


def invoke(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    capsys.readouterr()
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    return (code, *capsys.readouterr())


def check_refused(outcome: tuple[int, str, str], *words: str) -> None:
    code, out, err = outcome
    assert code == 2, (out, err)
    assert err.count("\n") == 1, err
    assert err.startswith("fastflow"), err
    assert "error: " in err
    assert "Traceback" not in out + err
    for word in words:
        assert str(word) in err, (word, err)


def write(path, *lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


class TestArguments:
    @pytest.mark.parametrize("arguments", [["trian"], ["plot", "runs/x"]])
    def test_an_unknown_command(self, capsys, arguments):
        check_refused(invoke(capsys, *arguments), arguments[0], "train", "report")

    def test_no_command(self, capsys):
        check_refused(invoke(capsys), "COMMAND")

    @pytest.mark.parametrize(
        ("arguments", "word"),
        [
            (["report"], "RUN"),
            (["demo", "--seed", "x"], "--seed"),
            (["demo", "--sed", "1"], "--sed"),
            (["report", "a", "b"], "b"),
        ],
    )
    def test_wrong_arguments_of_a_command(self, capsys, arguments, word):
        check_refused(invoke(capsys, *arguments), word)

    def test_a_negative_seed_of_the_demo(self, capsys, tmp_path):
        outcome = invoke(capsys, "demo", "--seed", "-1", "--output", tmp_path / "demo")
        check_refused(outcome, "--seed is -1", "at least 0")
        assert not (tmp_path / "demo").exists()

    def test_train_with_nothing_set(self, capsys):
        check_refused(invoke(capsys, "train"), "model.path is not set", "--model.path", "--preset")

    def test_a_dry_run_with_nothing_set(self, capsys):
        check_refused(invoke(capsys, "train", "--dry-run"), "model.path is not set")

    def test_an_unknown_option(self, train):
        check_refused(train(optim__learning_rat=1), "unknown option --optim.learning_rat")

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("objective.alpha", 0, ("objective.alpha is 0", "above 0")),
            ("objective.alpha", -2, ("objective.alpha is -2", "above 0")),
            ("objective.alpha", "nan", ("objective.alpha",)),
            ("run.steps", "many", ("run.steps", "many")),
            ("model.dtype", "float16", ("model.dtype", "bfloat16")),
            ("batch.updates_per_rollout", 3, ("batch.prompts_per_step", "multiple")),
            ("objective.format_pattern", "(", ("objective.format_pattern", "no regular expression")),
            ("objective.format_check", "no.such:thing", ("objective.format_check", "package.module:function")),
            ("run.seed", 2**64, ("run.seed", "at most")),
        ],
    )
    def test_a_setting_that_cannot_be(self, train, name, value, words):
        check_refused(train(**{name.replace(".", "__"): value}), *words)


class TestSettingsFile:
    def test_a_misspelt_setting(self, capsys, tmp_path):
        file = write(tmp_path / "typo.yaml", "optim:", "  lrr: 1e-6")
        check_refused(invoke(capsys, "train", "--config", file), f"{file}: unknown setting optim.lrr", "optim.lr?")

    def test_a_missing_file(self, capsys, tmp_path):
        outcome = invoke(capsys, "train", "--config", tmp_path / "absent.yaml")
        check_refused(outcome, tmp_path / "absent.yaml", "check --config")

    def test_broken_yaml(self, capsys, tmp_path):
        file = write(tmp_path / "broken.yaml", "optim: {lr: 1", "run: [")
        check_refused(invoke(capsys, "train", "--config", file), file, "not valid YAML")

    def test_an_unknown_preset(self, capsys):
        check_refused(invoke(capsys, "train", "--preset", "demmo"), "demmo", "did you mean demo?")


class TestData:
    def test_a_missing_file(self, train, tmp_path):
        check_refused(train(data__path=tmp_path / "absent.jsonl"), tmp_path / "absent.jsonl", "check data.path")

    def test_a_preset_with_a_file_of_its_own(self, capsys, tmp_path):
        file = write(tmp_path / "bad.jsonl", {"prompt": "ab"}, '{"prompt": "c', {"prompt": "d"})
        outcome = invoke(capsys, "train", "--preset", "demo", "--data.path", file, "--run.output", tmp_path / "run")
        check_refused(outcome, f"{file}:2: not valid JSON", "one JSON object")

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ({"prompt": " "}, ("the prompt is empty", "remove the record")),
            ({"text": "a"}, ("data.prompt_field", "text")),
            ([1], ("a list", "one JSON object")),
            ({"prompt": [{"role": "user", "content": "a"}]}, ("data.chat_template = true",)),
        ],
    )
    def test_a_bad_record(self, train, tmp_path, line, words):
        file = write(tmp_path / "bad.jsonl", {"prompt": "ab"}, "", line)
        check_refused(train(data__path=file), f"{file}:3: ", *words)

    def test_every_prompt_too_long(self, train):
        outcome = train(data__max_prompt_tokens=1, data__suffix="a")
        check_refused(outcome, "prompts.jsonl:1 with 3 tokens", "data.max_prompt_tokens = 1", "raise the limit")

    def test_one_prompt_too_long_where_that_is_an_error(self, train):
        outcome = train(data__max_prompt_tokens=2, data__overlong="error")
        check_refused(outcome, "prompts.jsonl:2: the prompt has 3 tokens", "data.overlong = drop")

    def test_a_chat_template_that_is_not_there(self, train):
        check_refused(train(data__chat_template="true"), "no chat template", "instruct model")

    def test_a_prompt_that_leaves_no_room_in_the_context(self, train):
        check_refused(
            train(rollout__max_response_tokens=127), "context of 128", "rollout.max_response_tokens", "prompts.jsonl:"
        )


class TestModels:
    def test_a_missing_directory(self, train, tmp_path):
        check_refused(train(model__path=tmp_path / "absent"), f"model directory {tmp_path / 'absent'} does not exist")

    def test_a_directory_without_a_model(self, train, tmp_path):
        (tmp_path / "empty").mkdir()
        check_refused(train(model__path=tmp_path / "empty"), "cannot load", tmp_path / "empty", "check the path")

    def test_a_missing_base(self, train, tmp_path):
        check_refused(train(model__base=tmp_path / "absent"), f"model directory {tmp_path / 'absent'} does not exist")

    def test_vocabularies_that_differ(self, train, models):
        outcome = train(model__base=models / "larger")
        check_refused(outcome, "different vocabularies", VOCABULARY, VOCABULARY + 8, "model.base of the same family")

    def test_a_tokenizer_larger_than_the_head(self, train, models):
        outcome = train(model__path=models / "large-tokenizer")
        check_refused(outcome, "43 tokens", f"{VOCABULARY} rows", "check model.path")

    @pytest.fixture
    def changed(self, models, tmp_path):
        """A function that copies the fine model with other entries in its config.json, and returns the copy."""

        def change(**entries):
            copy = shutil.copytree(models / "fine", tmp_path / "changed")
            config = json.loads((copy / "config.json").read_text())
            (copy / "config.json").write_text(json.dumps({**config, **entries}))
            return copy

        return change

    def test_an_unsupported_family(self, train, changed):
        check_refused(train(model__path=changed(model_type="mistral")), "'mistral'", "llama, qwen2, qwen3")

    @pytest.mark.parametrize("content", [b"abc", b""])
    def test_a_weights_file_that_is_cut_short(self, train, changed, content):
        model = changed()
        (model / "model.safetensors").write_bytes(content)
        check_refused(train(model__path=model), f"cannot load the model {model}", "check the path")

    def test_weights_of_another_shape(self, train, changed):
        model = changed(intermediate_size=64)
        check_refused(train(model__path=model), f"cannot load the model {model}")

    def test_weights_that_are_missing_are_not_made_up(self, train, changed):
        """transformers would fill the third layer with random numbers and warn."""
        model = changed(num_hidden_layers=3)
        check_refused(train(model__path=model), str(model), "model.layers.2.")

    def test_pickled_weights_are_not_read(self, train, changed):
        model = changed()
        (model / "model.safetensors").unlink()
        torch.save(make_causal_lm().state_dict(), model / "pytorch_model.bin")
        check_refused(train(model__path=model), f"cannot load the model {model}", "safetensors")

    def test_damaged_weights(self, train, models):
        check_refused(train(model__path=models / "damaged"), "NaN", "weights are damaged")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
    def test_cuda_where_there_is_none(self, train):
        check_refused(train(model__device="cuda"), "no CUDA device", "--model.device cpu")

    @pytest.mark.parametrize("device", ["gpu", "cuda:x", "meta", "xpu"])
    def test_a_device_that_does_not_exist(self, train, device):
        check_refused(train(model__device=device), f"model.device = '{device}'", "auto, cpu, cuda")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
    @pytest.mark.parametrize("kernel", ["varlen", "flash_attn"])
    def test_attention_that_needs_cuda(self, train, kernel):
        check_refused(train(model__attention=kernel), f"model.attention = {kernel}", "auto or sdpa")


class TestTraining:
    def test_a_loss_that_is_not_finite_leaves_a_usable_policy(self, train, models, tmp_path):
        """The base's head is damaged, so the first update has no finite loss; the policy is saved as it was."""
        from safetensors.torch import load_file

        outcome = train(model__base=models / "damaged-head")
        policy = tmp_path / "run" / "policy"
        check_refused(outcome, "the loss is nan", "optim.lr", f"the policy after step 0 (0 updates) is in {policy}")
        before, after = load_file(models / "fine" / "model.safetensors"), load_file(policy / "model.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_a_learning_rate_that_destroys_the_weights(self, train):
        outcome = train(optim__lr=1e30, optim__max_grad_norm=1e30, run__steps=3)
        check_refused(outcome, "optim.lr")

    def test_only_truncated_responses_and_none_to_be_kept(self, train):
        outcome = train(rollout__max_response_tokens=1, objective__truncated="drop", run__seed=3)
        check_refused(outcome, "objective.truncated = drop", "rollout.max_response_tokens")

    def test_an_output_directory_that_holds_a_run(self, train, tmp_path):
        code, out, _ = train(run__steps=1)
        assert code == 0
        assert f"policy saved in {tmp_path / 'run' / 'policy'}" in out
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


class TestMain:
    def test_an_error_of_several_lines_is_printed_on_one(self, capsys, monkeypatch):
        def fail(arguments):
            raise cli.FastflowError("first\n  second\tthird")

        monkeypatch.setattr(cli, "_train", fail)
        code, _, err = invoke(capsys, "train")
        assert (code, err) == (2, "fastflow: error: first second third\n")

    def test_an_interruption_has_its_own_code(self, capsys, monkeypatch):
        def interrupt(arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(cli, "_train", interrupt)
        assert invoke(capsys, "train")[::2] == (130, "fastflow: interrupted\n")

    def test_a_fault_of_ours_is_not_hidden(self, monkeypatch):
        def fail(arguments):
            raise ZeroDivisionError

        monkeypatch.setattr(cli, "_train", fail)
        with pytest.raises(ZeroDivisionError):
            cli.main(["train"])

    def test_dry_run_prints_settings_that_can_be_read_back(self, capsys, tmp_path):
        code, out, err = invoke(capsys, "train", "--preset", "demo", "--optim.lr", "1e-4", "--dry-run")
        assert (code, err) == (0, "")
        file = write(tmp_path / "resolved.yaml", out)
        again = invoke(capsys, "train", "--config", file, "--dry-run")
        assert again == (0, out, "")
        assert "lr: 0.0001\n" in out

    @pytest.mark.parametrize(
        ("option", "value", "words"),
        [
            ("objective.format_pattern", "(", "no regular expression"),
            ("objective.reward", "nowhere:function", "cannot be imported"),
            ("data.path", "bad.jsonl", "bad.jsonl:1"),
            ("model.fused_layers", "liger", "needs a CUDA device, and the model is on cpu"),
        ],
    )
    def test_dry_run_checks_what_needs_no_model(self, capsys, tmp_path, monkeypatch, option, value, words):
        monkeypatch.chdir(tmp_path)
        write(tmp_path / "bad.jsonl", "not json\n")
        code, _, err = invoke(capsys, "train", "--preset", "demo", f"--{option}={value}", "--dry-run")
        assert code == 2 and words in err

    def test_help_of_train_lists_the_settings(self, capsys):
        code, out, err = invoke(capsys, "train", "--help")
        assert (code, err) == (0, "")
        assert "--objective.alpha" in out
        assert "paper-reasoning-base" in out

    def test_help_imports_nothing_heavy(self):
        program = (
            "import sys\n"
            "from fastflow.cli import main\n"
            "try:\n"
            "    main(['--help'])\n"
            "except SystemExit as stop:\n"
            "    heavy = {'torch', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules)\n"
            "    print('IMPORTED', sorted(heavy))\n"
            "    sys.exit(stop.code)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "IMPORTED []" in done.stdout
        assert all(command in done.stdout for command in ("demo", "plan", "train", "verify", "report", "doctor"))

    def test_as_a_module(self):
        command = [sys.executable, "-m", "fastflow.cli", "train", "--config", "no-such-file.yaml"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("fastflow: error: cannot read the configuration no-such-file.yaml")
        assert done.stderr.count("\n") == 1
