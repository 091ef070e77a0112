"""Settings that are refused, alone or together."""

from __future__ import annotations

import math
import typing

import pytest

from fastflow.config.reader import read_config
from fastflow.config.schema import BatchConfig, Config, ObjectiveConfig, sections
from fastflow.config.wrong_type import in_words
from fastflow.errors import FastflowError
from refusals import refusal


class TestRefusals:
    @pytest.mark.parametrize(
        ("option", "nearest"),
        [("--optim.lrr", "optim.lr"), ("--lr", "optim.lr"), ("--presett", "--preset"), ("--dry_run", "--dry-run")],
    )
    @pytest.mark.parametrize("form", ["{} 1", "{}=1"])
    def test_an_unknown_option_names_the_nearest(self, option, nearest, form):
        message = refusal(form.format(option).split())
        assert message.startswith(f"unknown option {option}")
        assert f"did you mean {nearest}?" in message

    @pytest.mark.parametrize("arguments", [["train"], ["-lr", "1"], ["--run.steps", "3", "more"]])
    def test_stray_words(self, arguments):
        assert "unrecognized" in refusal(arguments)

    @pytest.mark.parametrize("before", [[], ["--dry-run"], ["--run.steps", "3"], ["--run.steps=3"]])
    @pytest.mark.parametrize(
        ("argument", "said"),
        [
            ("optim.lr=5e-4", "optim.lr=5e-4 is no option: write --optim.lr 5e-4"),
            ("+optim.lr=5e-4", "write --optim.lr 5e-4"),
            ("rollout.stop=[a, b]", "write --rollout.stop '[a, b]'"),
            ("data.gym.size=3", "write --data.gym.size 3"),
            ("actor_rollout_ref.rollout.n=8", "no setting: did you mean batch.responses_per_prompt?"),
            ("learning_rate=1", "no setting: did you mean optim.lr?"),
        ],
    )
    def test_settings_without_dashes(self, before, argument, said):
        assert said in refusal([*before, argument])

    def test_a_value_may_look_like_a_setting(self):
        assert read_config(["--data.suffix", "optim.lr=1", "--run.steps=3"])[0].data.suffix == "optim.lr=1"

    @pytest.mark.parametrize("text", ['[optim]\nlr = 1e-3\npath = "x"\n', "lr = 3\n"])
    def test_a_file_that_is_not_yaml(self, tmp_path, text):
        (tmp_path / "run.toml").write_text(text)
        message = refusal(["--config", str(tmp_path / "run.toml")])
        assert "run.toml is not YAML" in message and "settings are read from YAML alone" in message

    @pytest.mark.parametrize("option", ["--run.steps", "--config", "--preset"])
    def test_an_option_without_its_value(self, option):
        assert option in refusal([option])

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("objective.alpha", "four"),
            ("run.steps", "1.5"),
            ("run.steps", "ten"),
            ("lora.rank", "true"),
            ("run.report", "perhaps"),
            ("optim.betas", "[0.9]"),
            ("optim.betas", "0.9"),
            ("optim.log_z_lr", "fast"),
        ],
    )
    def test_a_wrong_type(self, yaml_file, name, value):
        assert name in refusal([f"--{name}", value])
        section, entry = name.split(".")
        arguments = yaml_file(f"{section}:\n  {entry}: {value}\n")
        message = refusal(arguments)
        assert name in message
        assert arguments[1] in message

    @pytest.mark.parametrize(
        ("name", "value", "bound"),
        [
            ("objective.alpha", "0", "above 0"),
            ("objective.alpha", "-1", "above 0"),
            ("objective.format_penalty", "0.1", "at most 0"),
            ("objective.beta", "0", "above 0"),
            ("importance.clip_low", "1.1", "at most 1"),
            ("importance.clip_high", "-0.1", "at least 0"),
            ("optim.lr", "0", "above 0"),
            ("optim.log_z_lr", "0", "above 0"),
            ("optim.betas", "[0.9, 1.0]", "below 1"),
            ("optim.betas", "[-0.1, 0.9]", "at least 0"),
            ("batch.responses_per_prompt", "0", "at least 1"),
            ("batch.tokens_per_microbatch", "0", "at least 1"),
            ("rollout.top_p", "0", "above 0"),
            ("rollout.top_p", "1.01", "at most 1"),
            ("rollout.top_k", "-1", "at least 0"),
            ("rollout.top_k", "1000000001", "at most"),
            ("rollout.min_p", "1.01", "at most 1"),
            ("rollout.temperature", "0", "above 0"),
            ("lora.rank", "-1", "at least 0"),
            ("model.checkpoint_share", "-0.1", "at least 0"),
            ("model.checkpoint_share", "1.1", "at most 1"),
            ("lora.dropout", "1", "below 1"),
            ("run.threads", "-1", "at least 0"),
        ],
    )
    def test_out_of_range(self, name, value, bound):
        message = refusal([f"--{name}={value}"])
        assert name in message
        assert bound in message

    @pytest.mark.parametrize("name", ["objective.alpha", "optim.lr", "optim.max_grad_norm", "lora.alpha"])
    @pytest.mark.parametrize("value", ["nan", ".nan", "NaN"])
    def test_nan(self, name, value):
        assert name in refusal([f"--{name}", value])

    @pytest.mark.parametrize("name", ["objective.alpha", "optim.lr"])
    def test_nan_in_yaml(self, yaml_file, name):
        section, entry = name.split(".")
        assert name in refusal(yaml_file(f"{section}:\n  {entry}: .nan\n"))

    def test_nan_in_a_section_made_in_code(self):
        with pytest.raises(FastflowError, match=r"objective\.alpha is nan"):
            ObjectiveConfig(alpha=math.nan)

    @pytest.mark.parametrize(
        ("name", "value", "choice"),
        [
            ("model.dtype", "float16", "bfloat16"),
            ("model.fused_layers", "ligre", "liger"),
            ("model.compile", "layer", "layers"),
            ("objective.name", "power_flow", "powerflow"),
            ("optim.schedule", "cosin", "cosine"),
            ("importance.ratio", "token", "token_mean"),
            ("data.overlong", "truncate", "drop"),
        ],
    )
    def test_a_bad_choice_names_the_choices(self, name, value, choice):
        message = refusal([f"--{name}", value])
        assert name in message
        assert choice in message

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("optim.lr", "nan", "optim.lr is 'nan', but must be a finite number;"),
            ("objective.rent_unanswered", "x", "objective.rent_unanswered is 'x', but must be a finite number;"),
            ("run.steps", "2.5", "run.steps is '2.5', but must be a whole number;"),
            ("model.autocast", "maybe", "model.autocast is 'maybe', but must be true or false;"),
            ("data.template_arguments", "3", "is '3', but must be a mapping, as in {name: value};"),
            ("model.dtype", "bf16", "is 'bf16', but must be float32 or bfloat16: did you mean bfloat16?;"),
            ("rollout.adapters", "x", "rollout.adapters is 'x', but must be auto, merge or apply;"),
        ],
    )
    def test_the_words_are_not_those_of_the_parser(self, name, value, words):
        message = refusal([f"--{name}", value])
        assert words in message and "Parser key" not in message and "class" not in message

    def test_every_setting_has_words_for_its_type(self):
        """But lists, which are checked before."""
        for section, kind in sections().items():
            for entry, hint in typing.get_type_hints(kind).items():
                if typing.get_origin(hint) is not tuple:
                    refused = ValueError(f'Parser key "{section}.{entry}": Expected a <class>. Got value: ?')
                    assert in_words(refused, sections()).startswith(f"{section}.{entry} is '?', but must be ")

    def test_a_bad_choice_in_a_section_made_in_code(self):
        with pytest.raises(FastflowError, match=r"objective\.name is 'powerflaw': did you mean powerflow\?"):
            ObjectiveConfig(name="powerflaw")


RECOMPUTE = ["--importance.source=recompute"]
AHEAD = ["--rollout.ahead=1", "--rollout.engine=vllm"]


class TestContradictions:
    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (
                ["--batch.prompts_per_step=6", "--batch.updates_per_rollout=4"],
                ("prompts_per_step", "updates_per_rollout"),
            ),
            (
                ["--objective.log_z=group_mean", "--batch.responses_per_prompt=1"],
                ("group_mean", "responses_per_prompt"),
            ),
            (["--rollout.temperature=0.7"], ("rollout.temperature", "importance.source")),
            (["--rollout.top_p=0.9"], ("rollout.top_p", "importance.source")),
            (["--rollout.top_k=20"], ("rollout.top_k", "importance.source")),
            (["--rollout.min_p=0.1"], ("rollout.min_p", "importance.source")),
            (["--objective.format_pattern=x", "--objective.format_check=a:b"], ("format_pattern", "format_check")),
            (["--objective.name=flowrl"], ("objective.reward", "package.module:function")),
            (["--data.system=Be brief."], ("data.system", "data.chat_template")),
            (["--lora.rank=4", "--model.base=other"], ("model.base", "lora.rank")),
            (["--model.residual_stream=bfloat16"], ("model.residual_stream", "model.autocast = true")),
            (
                ["--model.residual_stream=bfloat16", "--model.autocast=true", "--model.dtype=bfloat16"],
                ("model.residual_stream", "model.dtype = bfloat16"),
            ),
            (["--rollout.min_response_tokens=2"], ("rollout.min_response_tokens", "importance.source")),
            (
                [*RECOMPUTE, "--rollout.min_response_tokens=9", "--rollout.max_response_tokens=8"],
                ("rollout.min_response_tokens = 9", "rollout.max_response_tokens = 8"),
            ),
            (["--rollout.stop=['']"], ("rollout.stop", "empty text")),
            (["--rollout.ahead=1"], ("rollout.ahead", "rollout.engine")),
            ([*AHEAD, *RECOMPUTE], ("rollout.ahead", "importance.source")),
            ([*AHEAD, "--rollout.sleep=drop-weights"], ("rollout.ahead", "rollout.sleep = off, not drop-weights")),
            (["--rollout.engine=vllm-server"], ("rollout.engine", "rollout.servers")),
            (["--eval.every=2"], ("eval.every = 2", "eval.tasks")),
            (["--eval.temperature=0"], ("eval.temperature = 0", "eval.samples")),
            (
                [*RECOMPUTE, "--rollout.min_response_tokens=9", "--eval.max_response_tokens=8"],
                ("rollout.min_response_tokens = 9", "eval.max_response_tokens = 8"),
            ),
            (
                ["--run.best_metric=reward_mean"],
                ("run.best_metric = reward_mean", "before its updates", "eval.every", "eval/math500/avg@4"),
            ),
            (["--run.best_metric=eval/own/avg@4"], ("run.best_metric = eval/own/avg@4", "eval.every")),
            (
                ["--eval.every=2", "--eval.tasks=[own.jsonl]", "--eval.patience=3"],
                ("eval.patience = 3", "run.best_metric", "eval/math500/avg@4"),
            ),
        ],
    )
    def test_refused_with_both_names(self, arguments, named):
        message = refusal(arguments)
        for name in named:
            assert name in message

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--batch.prompts_per_step=8", "--batch.updates_per_rollout=4"],
            ["--objective.log_z=learned", "--batch.responses_per_prompt=1"],
            ["--rollout.temperature=0.7", "--importance.source=recompute"],
            ["--objective.name=flowrl", "--objective.reward=a:b"],
            ["--data.system=Be brief.", "--data.chat_template=true"],
            ["--model.base=other"],
            ["--model.residual_stream=bfloat16", "--model.autocast=true", "--lora.rank=4"],
            [*RECOMPUTE, "--rollout.min_response_tokens=8", "--rollout.max_response_tokens=8"],
            ["--rollout.stop=[END, '```']"],
            AHEAD,
            [*AHEAD, "--rollout.sleep=off"],
            ["--rollout.engine=vllm-server", "--rollout.servers=[http://localhost:8000]"],
            ["--eval.every=2", "--eval.tasks=[aime24,own.jsonl]"],
            ["--eval.temperature=0", "--eval.samples=1"],
            [
                "--eval.every=2",
                "--eval.tasks=[own.jsonl]",
                "--eval.patience=3",
                "--run.best_metric=eval/own/avg@4",
            ],
        ],
    )
    def test_the_mended_settings_are_accepted(self, arguments):
        read_config(arguments)

    def test_contradictions_between_sections_made_in_code(self):
        with pytest.raises(FastflowError, match="equal shares"):
            Config(batch=BatchConfig(prompts_per_step=3, updates_per_rollout=2))

    @pytest.mark.parametrize(
        ("arguments", "missing"),
        [([], "model.path"), (["--model.path=m"], "data.path"), (["--data.path=d"], "model.path")],
    )
    def test_model_and_data_are_required_to_start(self, arguments, missing):
        config, _ = read_config(arguments)
        with pytest.raises(FastflowError, match=f"^{missing} is not set; give --{missing}"):
            config.require_inputs()
