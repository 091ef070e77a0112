"""Prompts are exactly what the user meant: token ids against transformers, and tokens at both ends."""

from __future__ import annotations

import json
import logging

import pytest
from tokenizers import Tokenizer, models
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from fastflow.cli import main
from fastflow.config.reader import read_config, to_yaml
from fastflow.config.schema import Config, DataConfig
from fastflow.data import tokenize
from fastflow.demo.small_model import END, make_tokenizer
from fastflow.errors import FastflowError

PIECES = ["<start>", "<user>", "<assistant>", "<system>", "<go>", "<think>", "<stop>", *"abcdefghij .?"]
TEMPLATE = (
    "<start>{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<stop>{% endfor %}"
    "{% if add_generation_prompt %}<go>{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    "{% endif %}"
)


@pytest.fixture
def tokenizer():
    made = make_tokenizer(PIECES)
    made.chat_template = TEMPLATE
    return made


def put_around(tokenizer, form: str):
    """Let the tokenizer put tokens around each text, as `form` says."""
    names = [name for name in form.split() if name != "$A"]
    pairs = [(name, tokenizer.convert_tokens_to_ids(name)) for name in names]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=form, special_tokens=pairs)
    return tokenizer


def tokens(tokenizer, value, **changes) -> list[str]:
    (prompt,) = tokenize([("p.jsonl:1", {"prompt": value})], tokenizer, DataConfig(path="p.jsonl", **changes))
    return tokenizer.convert_ids_to_tokens(prompt.ids.tolist())


class TestRawText:
    @pytest.mark.parametrize(
        ("form", "expected"),
        [
            ("$A", ["a", "b"]),
            ("<start> $A", ["<start>", "a", "b"]),
            ("$A <end>", ["a", "b"]),
            ("<start> $A <end>", ["<start>", "a", "b"]),
            ("<start> <system> $A <stop> <end>", ["<start>", "<system>", "a", "b"]),
        ],
    )
    def test_what_a_tokenizer_puts_behind_is_left_out(self, tokenizer, form, expected):
        assert tokens(put_around(tokenizer, form), "ab") == expected

    def test_a_tokenizer_without_small_letters(self):
        """A text of no tokens would say that all special tokens stand behind it."""
        vocabulary = {piece: index for index, piece in enumerate([END, "<start>", *"0123456789"])}
        digits = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, [])), eos_token=END)
        assert tokens(put_around(digits, "<start> $A <end>"), "12") == ["<start>", "1", "2"]
        with pytest.raises(FastflowError, match=r"^p\.jsonl:1: the prompt 'a' has no tokens"):
            tokens(digits, "a")

    def test_a_start_that_the_text_spells_is_not_doubled(self, tokenizer):
        put_around(tokenizer, "<start> $A <end>")
        assert tokens(tokenizer, "<start>ab") == ["<start>", "a", "b"]

    def test_ids_in_front_are_those_of_transformers(self, tokenizer):
        put_around(tokenizer, "<start> $A <end>")
        whole = tokenizer.convert_ids_to_tokens(tokenizer("ab c.")["input_ids"])
        assert [*tokens(tokenizer, "ab c."), END] == whole

    def test_a_text_that_ends_itself_is_kept_and_reported(self, tokenizer, caplog):
        with caplog.at_level(logging.WARNING, logger="fastflow.data"):
            assert tokens(tokenizer, f"ab{END}") == ["a", "b", END]
        (message,) = [record.getMessage() for record in caplog.records]
        assert message.startswith(
            f"prompts with the end-of-sequence token {END} at their end: 1 of 1 (first: p.jsonl:1)"
        )


class TestChat:
    CONVERSATIONS = (
        [{"role": "user", "content": "a b?"}],
        [{"role": "system", "content": "c"}, {"role": "user", "content": "a"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
    )

    @pytest.mark.parametrize("form", ["$A", "<start> $A <end>"])
    @pytest.mark.parametrize("arguments", [None, {"enable_thinking": False}, {"enable_thinking": True}])
    @pytest.mark.parametrize("messages", CONVERSATIONS)
    def test_ids_are_those_of_transformers(self, tokenizer, messages, arguments, form):
        put_around(tokenizer, form)
        expected = tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=True, **(arguments or {})
        )["input_ids"]
        found = tokens(tokenizer, messages, chat_template=True, template_arguments=arguments)
        assert found == tokenizer.convert_ids_to_tokens(expected)
        assert found[-1] == ("<go>" if arguments == {"enable_thinking": False} else "<think>")

    def test_a_turn_to_continue(self, tokenizer):
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        found = tokens(tokenizer, messages, chat_template=True, final_assistant="continue")
        assert found == ["<start>", "<user>", "a", "<stop>", "<assistant>", "b"]

    @pytest.mark.parametrize("blank", ["", " ", "\n"])
    def test_a_turn_that_has_only_begun(self, tokenizer, blank):
        """The template begins it, though it may trim what it renders."""
        tokenizer.chat_template = tokenizer.chat_template.replace("m['content']", "m['content'] | trim")
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": blank}]
        found = tokens(tokenizer, messages, chat_template=True, final_assistant="continue")
        assert found == tokens(tokenizer, messages[:1], chat_template=True)

    def test_a_turn_whose_end_the_template_trims(self, tokenizer, caplog):
        told = "prompts that do not end as the assistant turn that they continue"
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b "}]
        for form in ("m['content']", "m['content'] | trim"):
            with caplog.at_level(logging.WARNING, logger="fastflow.data"):
                tokenizer.chat_template = tokenizer.chat_template.replace("m['content']", form)
                tokens(tokenizer, messages, chat_template=True, final_assistant="continue")
            assert (told in caplog.text) == ("trim" in form)

    def test_users_who_spell_special_tokens(self, tokenizer, caplog):
        own = [{"role": "system", "content": f"a{END}"}, {"role": "user", "content": "a"}]
        with caplog.at_level(logging.WARNING, logger="fastflow.data"):
            tokens(tokenizer, own, chat_template=True)
            tokens(tokenizer, f"a{END}b")
            assert not caplog.records
            assert END in tokens(tokenizer, f"a{END}b", chat_template=True)
            tokens(tokenizer, [{"role": "user", "content": f"a{END}b"}], chat_template=True)
        told = (
            f"user messages whose text spells a special token, which it becomes: 1 of 1 (first: p.jsonl:1 with {END})"
        )
        assert caplog.text.count(told) == 2

    def test_an_argument_that_the_template_does_not_read(self, tokenizer):
        with pytest.raises(FastflowError, match=r"sets enable_thinkng, which .* did you mean enable_thinking\?"):
            tokens(tokenizer, "a", chat_template=True, template_arguments={"enable_thinkng": False})

    def test_arguments_without_a_template(self):
        with pytest.raises(FastflowError, match=r"data\.template_arguments is set but data\.chat_template is off"):
            Config(data=DataConfig(template_arguments={"enable_thinking": False}))

    def test_arguments_from_file_and_command_line(self, tmp_path):
        file = tmp_path / "run.yaml"
        file.write_text(
            "data:\n  chat_template: true\n  template_arguments:\n    enable_thinking: false\n    level: 3\n"
        )
        config, _ = read_config(["--config", str(file)])
        assert config.data.template_arguments == {"enable_thinking": False, "level": 3}
        (tmp_path / "again.yaml").write_text(to_yaml(config))
        assert read_config(["--config", str(tmp_path / "again.yaml")])[0] == config
        config, _ = read_config(["--data.chat_template", "true", "--data.template_arguments", "{level: low}"])
        assert config.data.template_arguments == {"level": "low"}


def save_model_directory(tokenizer, directory) -> None:
    """What a dry run reads of a model: all but its weights."""
    tokenizer.save_pretrained(directory)
    (directory / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 4096}')


class TestDryRun:
    @pytest.fixture
    def dry_run(self, tmp_path, capsys):
        def run(tokenizer, *records, **options) -> str:
            save_model_directory(tokenizer, tmp_path / "model")
            (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": record}) + "\n" for record in records))
            arguments = ["--model.path", str(tmp_path / "model"), "--data.path", str(tmp_path / "p.jsonl")]
            arguments += [part for name, value in options.items() for part in (f"--data.{name}", value)]
            assert main(["train", "--dry-run", *arguments]) == 0
            return capsys.readouterr().out

        return run

    def test_a_raw_prompt(self, tokenizer, dry_run):
        said = dry_run(put_around(tokenizer, "<start> $A <end>"), "ab", "c")
        start, end = (tokenizer.convert_tokens_to_ids(name) for name in ("<start>", END))
        ids = [start, *tokenizer.convert_tokens_to_ids(["a", "b"])]
        assert "# The first of 2 prompts, " in said
        assert f'#   text   "ab"\n#   ids    {ids}\n' in said
        assert f'#   added in front by the tokenizer  "<start>" ({start})\n' in said
        assert "#   after the record's words  nothing\n" in said
        assert f'#   left out, which the tokenizer would add at the end  "{END}" ({end})\n' in said

    def test_a_start_that_the_text_spells_was_not_added(self, tokenizer, dry_run):
        said = dry_run(put_around(tokenizer, "<start> $A <end>"), "<start>ab")
        assert "#   added in front by the tokenizer  nothing\n" in said

    def test_a_chat_prompt(self, tokenizer, dry_run):
        said = dry_run(tokenizer, [{"role": "user", "content": "ab"}], chat_template="true", suffix=".")
        assert '#   text   "<start><user>ab.<stop><go><think>"\n' in said
        assert '#   before the record\'s words  "<start><user>"\n' in said
        assert '#   after the record\'s words  ".<stop><go><think>"\n' in said

    def test_the_output_is_still_a_configuration(self, tokenizer, dry_run, tmp_path):
        (tmp_path / "read.yaml").write_text(dry_run(tokenizer, "a\nb"))
        config, _ = read_config(["--config", str(tmp_path / "read.yaml")])
        assert config.data.path == str(tmp_path / "p.jsonl")

    def test_a_prompt_that_cannot_be_tokenised_ends_it(self, tmp_path, tokenizer, capsys):
        tokenizer.chat_template = "{{ raise_exception('no') }}"
        save_model_directory(tokenizer, tmp_path / "model")
        (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
        arguments = ["--model.path", str(tmp_path / "model"), "--data.path", str(tmp_path / "p.jsonl")]
        assert main(["train", "--dry-run", *arguments, "--data.chat_template", "true"]) == 2
        assert "the chat template refuses this prompt: no" in capsys.readouterr().err
