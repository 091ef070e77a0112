"""Tokenizers that lack something, chat templates that leave something out, and prompts of every size."""

from __future__ import annotations

import json
import logging

import pytest

from command_line import check_refused, invoke
from fastflow.config.schema import DataConfig, ModelConfig
from fastflow.data import tokenize
from fastflow.demo.small_model import make_tokenizer
from fastflow.errors import FastflowError
from fastflow.models.tokenizer import load_tokenizer
from small_models import save_model

PIECES = ["<user>", "<bot>", "<assistant>", "<go>", *"abcdefghij"]
PLAIN = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
WITH_TURN = PLAIN + "{% if add_generation_prompt %}<go>{% endif %}"
KNOWN_ROLES = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<user>{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<go>{% endif %}"
)


def rendered(template: str, messages, **changes) -> str:
    tokenizer = make_tokenizer(PIECES)
    tokenizer.chat_template = template
    settings = DataConfig(path="p.jsonl", chat_template=True, **changes)
    return tokenize([("p.jsonl:1", {"prompt": messages})], tokenizer, settings)[0].text


class TestTemplates:
    def test_without_a_generation_prompt(self, caplog):
        with caplog.at_level(logging.WARNING, logger="fastflow.data"):
            assert rendered(PLAIN, "ab") == "<user>ab"
        assert "the chat template has no generation prompt" in caplog.text

    def test_with_one_nothing_is_said(self, caplog):
        with caplog.at_level(logging.WARNING, logger="fastflow.data"):
            assert rendered(WITH_TURN, "ab") == "<user>ab<go>"
        assert not caplog.records

    def test_a_role_that_the_template_shows(self):
        assert rendered(WITH_TURN, [{"role": "bot", "content": "ab"}]) == "<bot>ab<go>"

    def test_a_role_that_the_template_passes_over(self):
        messages = [{"role": "user", "content": "a"}, {"role": "bot", "content": "bc"}]
        with pytest.raises(
            FastflowError, match=r"^p\.jsonl:1: the chat template leaves out message 2, whose role is 'bot'"
        ):
            rendered(KNOWN_ROLES, messages)


class TestMissingTokens:
    @pytest.fixture
    def without(self, tmp_path):
        """A function that saves a model whose tokenizer lacks a role."""

        def save(name: str):
            save_model(tmp_path / "model")
            for file in ("tokenizer_config.json", "special_tokens_map.json"):
                if (tmp_path / "model" / file).exists():
                    entries = json.loads((tmp_path / "model" / file).read_text())
                    entries.pop(name, None)
                    (tmp_path / "model" / file).write_text(json.dumps(entries))
            return str(tmp_path / "model")

        return save

    def test_no_end_of_sequence(self, without, capsys, tmp_path):
        model = without("eos_token")
        with pytest.raises(FastflowError, match=r"has no eos_token; set one in its tokenizer_config\.json"):
            load_tokenizer(ModelConfig(path=model))
        (tmp_path / "p.jsonl").write_text('{"prompt": "ab"}\n')
        options = ["--model.path", model, "--data.path", tmp_path / "p.jsonl", "--rollout.max_response_tokens", 4]
        outcome = invoke(capsys, "train", "--dry-run", *options)
        check_refused(outcome, "no eos_token")

    def test_no_padding_token_is_needed(self, without, capsys, tmp_path):
        model = without("pad_token")
        assert load_tokenizer(ModelConfig(path=model)).pad_token_id is None
        (tmp_path / "p.jsonl").write_text('{"prompt": "ab"}\n{"prompt": "abcdefgh"}\n')
        arguments = {
            "model.path": model, "model.device": "cpu", "data.path": tmp_path / "p.jsonl",
            "run.output": tmp_path / "run",
            "run.steps": 1, "run.report": "false", "batch.prompts_per_step": 2, "batch.responses_per_prompt": 2,
            "rollout.max_response_tokens": 4, "objective.log_z": "group_mean",
        }  # fmt: skip
        code, out, err = invoke(capsys, "train", *(f"--{name}={value}" for name, value in arguments.items()))
        assert code == 0, (out, err)


def tokenized(*texts: str, **changes):
    records = [(f"p.jsonl:{line}", {"prompt": text}) for line, text in enumerate(texts, start=1)]
    return tokenize(records, make_tokenizer(PIECES), DataConfig(path="p.jsonl", **changes))


def test_repeated_prompts_are_counted_and_kept(caplog):
    with caplog.at_level(logging.INFO, logger="fastflow.data"):
        assert len(tokenized("ab", "c", "ab", "ab")) == 4
    assert [record.getMessage() for record in caplog.records] == [
        "prompts that repeat an earlier one: 2 of 4 (first: p.jsonl:3); each counts"
    ]


def test_a_prompt_of_a_million_characters(caplog):
    with caplog.at_level(logging.WARNING, logger="fastflow.data"):
        assert len(tokenized("ab", "a" * 1_000_000)) == 1
    assert (
        "dropped 1 of 2 prompts over data.max_prompt_tokens = 1024 (first: p.jsonl:2 with 1000000 tokens)"
        in caplog.text
    )


def test_a_nul_is_a_character_like_others():
    assert len(tokenized("a\0b")[0].ids) == 3
