"""Where settings come from, and which one wins."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from fastflow.config.presets import BOXED, PRESETS
from fastflow.config.reader import build_parser, known_settings, read_config, to_yaml
from fastflow.config.schema import Config, LoraConfig, ObjectiveConfig, OptimConfig, RunConfig, sections
from fastflow.config.setting import suggest
from fastflow.errors import FastflowError
from refusals import refusal


def lookup(config: Config, name: str):
    section, entry = name.split(".")
    return getattr(getattr(config, section), entry)


def test_defaults_without_any_argument():
    config, dry_run = read_config([])
    assert config == Config()
    assert not dry_run


def test_dry_run_is_recognised():
    assert read_config(["--dry-run"]) == (Config(), True)


class TestPrecedence:
    YAML = "optim:\n  lr: 2.0e-4\n  eps: 1.0e-6\n"

    def test_each_source_overrides_the_one_before(self, yaml_file):
        default = Config()
        arguments = ["--preset", "demo", *yaml_file(self.YAML), "--optim.eps", "1e-5"]
        config, _ = read_config(arguments)
        assert config.optim.betas == default.optim.betas  # default
        assert config.optim.max_grad_norm == PRESETS["demo"]["optim.max_grad_norm"]  # preset over default
        assert config.optim.max_grad_norm != default.optim.max_grad_norm
        assert config.optim.lr == 2e-4 != PRESETS["demo"]["optim.lr"]  # YAML over preset
        assert config.optim.eps == 1e-5  # command line over YAML

    @pytest.mark.parametrize("preset_first", [True, False])
    def test_the_place_of_preset_does_not_matter(self, yaml_file, preset_first):
        file, preset = yaml_file(self.YAML), ["--preset", "demo"]
        config, _ = read_config([*preset, *file] if preset_first else [*file, *preset])
        assert config.optim.lr == 2e-4
        assert config.run.steps == PRESETS["demo"]["run.steps"]

    def test_the_command_line_wins_wherever_it_stands(self, yaml_file):
        config, _ = read_config(["--optim.lr", "1e-5", *yaml_file(self.YAML)])
        assert config.optim.lr == 1e-5
        assert config.optim.eps == 1e-6

    def test_a_preset_inside_the_yaml_lies_under_the_yaml(self, yaml_file):
        config, _ = read_config(yaml_file("preset: demo\nrun:\n  steps: 7\n"))
        assert config.run.steps == 7
        assert config.optim.lr == PRESETS["demo"]["optim.lr"]

    def test_the_preset_of_the_command_line_replaces_that_of_the_yaml(self, yaml_file):
        config, _ = read_config([*yaml_file("preset: demo\n"), "--preset", "paper-creative"])
        assert config.objective.alpha == 0.5
        assert config.model.path == PRESETS["paper-creative"]["model.path"]

    def test_equals_sign_and_separate_value_are_the_same(self):
        assert read_config(["--optim.lr=3e-4"]) == read_config(["--optim.lr", "3e-4"])


class TestPresets:
    @pytest.mark.parametrize("name", PRESETS)
    def test_each_setting_of_a_preset_arrives(self, name):
        config, _ = read_config(["--preset", name])
        read_config(["--preset", name, "--data.path=mine.jsonl"])[0].require_inputs()
        assert {key: lookup(config, key) for key in PRESETS[name]} == PRESETS[name]

    @pytest.mark.parametrize(
        ("name", "alpha", "psi", "pattern"),
        [
            ("paper-reasoning-base", 4.0, -0.5, BOXED),
            ("paper-reasoning-instruct", 2.0, -0.5, BOXED),
            ("paper-creative", 0.5, -0.5, None),
        ],
    )
    def test_the_papers_values(self, name, alpha, psi, pattern):
        objective = read_config(["--preset", name])[0].objective
        assert (objective.alpha, objective.format_penalty, objective.format_pattern) == (alpha, psi, pattern)
        assert objective.name == "powerflow"

    @pytest.mark.parametrize("name", PRESETS)
    def test_a_preset_does_not_leak_into_the_next_reading(self, name):
        read_config(["--preset", name])
        assert read_config([])[0] == Config()

    @pytest.mark.parametrize("arguments", [["--preset", "dmo"], ["--preset=demoo"]])
    def test_an_unknown_preset_names_the_nearest(self, arguments):
        assert "did you mean demo?" in refusal(arguments)

    @pytest.mark.parametrize("value", ["3", "[demo]", "{name: demo}", "dmo"])
    def test_a_preset_in_yaml_that_is_no_known_name(self, yaml_file, value):
        assert "preset" in refusal(yaml_file(f"preset: {value}\n"))


class TestYaml:
    def test_a_section_written_twice_is_refused(self, tmp_path):
        file = tmp_path / "twice.yaml"
        file.write_text("optim:\n  lr: 1.0e-4\nrun:\n  steps: 3\noptim:\n  eps: 1.0e-6\n")
        with pytest.raises(FastflowError, match="'optim' is set twice"):
            read_config(["--config", str(file)])

    @pytest.mark.parametrize("name", PRESETS)
    def test_round_trip_of_a_preset(self, yaml_file, name):
        config, _ = read_config(["--preset", name, "--optim.lr", "3e-5", "--data.suffix", '\nµ: "yes" # no'])
        assert read_config(yaml_file(to_yaml(config)))[0] == config

    def test_round_trip_of_awkward_values(self, yaml_file):
        config = dataclasses.replace(
            Config(),
            optim=OptimConfig(lr=1e-6, betas=(0.5, 0.25), log_z_lr=3e-300, eps=1e-30),
            objective=ObjectiveConfig(format_pattern=r"^\\boxed\{(\d+)\}$", alpha=1 / 3),
            run=RunConfig(output="runs/null", wandb="123"),
        )
        again, _ = read_config(yaml_file(to_yaml(config)))
        assert again == config
        assert type(again.optim.betas) is tuple

    @pytest.mark.parametrize("text", ["1e-6", "1E-6", "1.0e-6", "0.000001"])
    def test_scientific_notation_is_a_number(self, yaml_file, text):
        lr = read_config(yaml_file(f"optim:\n  lr: {text}\n"))[0].optim.lr
        assert type(lr) is float
        assert lr == 1e-6

    def test_dotted_keys_and_sections_are_the_same(self, yaml_file):
        dotted = read_config(yaml_file("optim.lr: 1e-3\n"))[0]
        assert dotted == read_config(yaml_file("optim:\n  lr: 1e-3\n"))[0]
        assert dotted.optim.lr == 1e-3

    @pytest.mark.parametrize("text", ["model:\n  compile: off\nrollout:\n  sleep: off\n", "rollout.sleep: off\n"])
    def test_off_without_quotes_is_the_word(self, yaml_file, text):
        config = read_config(yaml_file(text))[0]
        assert (config.model.compile, config.rollout.sleep) == ("off", "off")
        assert read_config(yaml_file("run:\n  report: off\n"))[0].run.report is False

    @pytest.mark.parametrize("text", ["", "# nothing\n", "optim:\n", "optim: {}\n", "optim:\nrun:\n  # steps: 3\n"])
    def test_an_empty_file_or_section_changes_nothing(self, yaml_file, text):
        assert read_config(yaml_file(text))[0] == Config()

    @pytest.mark.parametrize(
        ("text", "nearest"),
        [
            ("optim:\n  lrr: 1\n", "optim.lr"),
            ("optimm:\n  lr: 1\n", "optim.lr"),
            ("lr: 1\n", "optim.lr"),
            ("objective:\n  alfa: 2\n", "objective.alpha"),
            ("batch:\n  steps: 2\n", "run.steps"),  # right name, wrong section
            ("prest: demo\n", "preset"),
            ("optim: 3\n", "optim."),
            ("optim:\n  lr:\n    peak: 1\n", "optim.lr"),
        ],
    )
    def test_an_unknown_key_names_the_nearest_one_and_the_file(self, yaml_file, text, nearest):
        arguments = yaml_file(text)
        message = refusal(arguments)
        assert message.startswith(f"{arguments[1]}: unknown setting")
        assert f"did you mean {nearest}" in message

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("- optim\n", "list"),
            ("hello\n", "str"),
            ("optim: [1\n", "not valid YAML"),
            ("optim:\n\tlr: 1\n", "not valid YAML"),
            ("!!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ],
    )
    def test_a_file_that_is_no_mapping_or_no_yaml(self, yaml_file, text, words):
        arguments = yaml_file(text)
        message = refusal(arguments)
        assert arguments[1] in message
        assert words in message

    def test_a_file_that_is_not_text(self, tmp_path):
        (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00optim")
        assert "binary.yaml is not valid YAML" in refusal(["--config", str(tmp_path / "binary.yaml")])

    def test_a_missing_file(self, tmp_path):
        message = refusal(["--config", str(tmp_path / "absent.yaml")])
        assert "absent.yaml" in message
        assert "check --config" in message

    def test_the_dump_is_plain_yaml_with_every_setting(self):
        tree = yaml.safe_load(to_yaml(Config()))
        assert [f"{section}.{name}" for section, entries in tree.items() for name in entries] == known_settings()


class TestHelp:
    def test_every_setting_has_help_unit_and_range_in_the_help_text(self):
        text = " ".join(build_parser().format_help().split())
        for name, section in sections().items():
            for entry in dataclasses.fields(section):
                assert f"--{name}.{entry.name}" in text
                assert len(entry.metadata["help"]) > 10, f"{name}.{entry.name}"
        assert "[nats; at most 0]" in text
        assert "[tokens; at least 1]" in text

    def test_settings_cannot_be_changed_behind_the_checks(self):
        for section in sections().values():
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(section(), dataclasses.fields(section)[0].name, None)

    def test_section_names_in_messages_are_the_options_names(self):
        for name, section in sections().items():
            assert section.section_name() == name
        with pytest.raises(FastflowError, match=r"^lora\.rank is -1"):
            LoraConfig(rank=-1)


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("lr", ["optim.lr", "run.steps"], "did you mean optim.lr?"),
        ("run.lr", ["optim.lr", "optim.log_z_lr"], "did you mean optim.lr?"),
        ("name", ["a.name", "b.name"], "did you mean a.name or b.name?"),
        ("xyz", ["beta", "alpha"], "known are alpha, beta"),
        ("xyz", [f"setting{i}" for i in range(13)], "see --help for the known names"),
    ],
)
def test_suggest(name, known, expected):
    assert suggest(name, known) == expected
