"""Files of settings within bounds: what PyYAML, a pipe or a device would do to a reader is refused in one sentence."""

from __future__ import annotations

import os
import threading

import pytest

from fastflow.config import yaml_file
from fastflow.config.reader import read_config, to_yaml
from fastflow.config.schema import Config, DataConfig
from refusals import refusal


def doubling(form: str) -> str:
    return "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} {form.format(n - 1, n - 1)}\n" for n in range(1, 40))


class TestContent:
    @pytest.mark.parametrize("form", ["[*a{}, *a{}]", "{{p: *a{}, q: *a{}}}"])
    def test_aliases_that_double(self, yaml_file, form):
        assert "holds more than 10000 values, with its aliases" in refusal(yaml_file(doubling(form)))

    @pytest.mark.parametrize("text", ["run: &r {steps: *r}", "&a [*a]", "data: {template_arguments: &t {self: *t}}"])
    def test_an_anchor_that_contains_itself(self, yaml_file, text):
        assert "an anchor (&name) contains itself" in refusal(yaml_file(text))

    def test_an_alias_is_fine(self, yaml_file):
        config, _ = read_config(yaml_file("optim: {lr: &rate 1e-4, log_z_lr: *rate}"))
        assert config.optim.lr == config.optim.log_z_lr == 1e-4

    @pytest.mark.parametrize("value", ["!!int ''", "!!float ''", "!!timestamp x", "!!bool x", "!!binary x"])
    def test_a_value_that_does_not_fit_its_tag(self, yaml_file, value):
        assert "is not valid YAML" in refusal(yaml_file(f"run:\n  seed: {value}\n"))
        assert "run.seed" in refusal([f"--run.seed={value}"]) or "tag" in refusal([f"--run.seed={value}"])

    @pytest.mark.parametrize("tag", ["!!python/object/apply:os.getcwd []", "!!python/name:os.system", "!own x"])
    def test_a_tag_that_names_code(self, yaml_file, tag):
        assert "could not determine a constructor for the tag" in refusal(yaml_file(f"run:\n  output: {tag}\n"))
        with pytest.raises(ValueError, match="could not determine a constructor"):
            __import__("fastflow.config.yaml_file", fromlist=["load"]).load(tag)

    @pytest.mark.parametrize("text", ["run: \x1b", "\x00", "run:\n  output: \x07"])
    def test_unprintable_characters(self, yaml_file, text):
        assert "special characters are not allowed" in refusal(yaml_file(text))

    def test_keys_without_end(self, yaml_file):
        assert "holds more than 10000 values" in refusal(yaml_file("".join(f"k{n}: 1\n" for n in range(10_001))))

    @pytest.mark.parametrize("text", ["? [a]\n: b\n", "? {a: b}\n: c\n"])
    def test_a_key_that_is_no_value(self, yaml_file, text):
        assert "a key must be a plain value" in refusal(yaml_file(text))

    @pytest.mark.parametrize(
        "text", ["1e5", "1E-3", ".5", "1_000", "0x1F", "1:30", "null", "yes", "2024-01-01", "-", "\u202e", "\x9b"]
    )
    def test_a_text_that_looks_like_something_else_stays_a_text(self, yaml_file, text):
        config = Config(data=DataConfig(split=text))
        assert read_config(yaml_file(to_yaml(config)))[0] == config

    def test_brackets_count_where_they_open_something(self, yaml_file):
        for text in ("[" * 600, "{" * 5000, "it's " + "[" * 600):
            config = Config(data=DataConfig(split=text))
            assert read_config(yaml_file(to_yaml(config)))[0] == config
        for text in ("data: " + "[" * 600, "data: " + "{" * 100_000, "data: it's\nrun: " + "[" * 600):
            assert "nested too deeply" in refusal(yaml_file(text))


class TestPlaces:
    def test_a_directory(self, tmp_path):
        assert "Is a directory; check --config" in refusal(["--config", str(tmp_path)])

    def test_a_pipe_without_a_writer(self, tmp_path, monkeypatch):
        os.mkfifo(tmp_path / "pipe")
        monkeypatch.setattr(yaml_file, "LONGEST_SILENCE", 0.1)
        assert "a pipe into which nobody wrote" in refusal(["--config", str(tmp_path / "pipe")])

    def test_a_pipe_with_a_writer(self, tmp_path):
        """As the shell's <(command) gives."""
        os.mkfifo(tmp_path / "pipe")
        writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("run: {steps: 7}\n",))
        writer.start()
        assert read_config(["--config", str(tmp_path / "pipe")])[0].run.steps == 7
        writer.join()

    def test_a_device_without_end(self):
        assert "larger than 256 KiB" in refusal(["--config", "/dev/zero"])

    def test_an_empty_device(self):
        assert read_config(["--config", "/dev/null"])[0] == Config()

    @pytest.mark.parametrize("name", ["a" * 5000, "/proc/self/mem", "loop", ""])
    def test_what_cannot_be_opened_or_read(self, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        assert "cannot read the configuration" in refusal(["--config", name])

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
    def test_an_unreadable_file(self, tmp_path):
        (tmp_path / "closed.yaml").touch(mode=0)
        assert "Permission denied" in refusal(["--config", str(tmp_path / "closed.yaml")])


class TestTwice:
    @pytest.mark.parametrize("option", ["--config", "--preset"])
    def test_only_one_would_count(self, option):
        assert f"{option} is given twice" in refusal([option, "demo", f"{option}=demo"])

    def test_of_a_setting_the_last_one_counts(self):
        assert read_config(["--run.steps=3", "--run.steps", "4"])[0].run.steps == 4
