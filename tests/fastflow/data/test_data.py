"""Prompts: every source, every rendering, every malformed record, and the order they are served in."""

from __future__ import annotations

import json
import logging
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fastflow.config.schema import DataConfig
from fastflow.data import PromptStream, read_records, tokenize
from fastflow.data.trajectory import Prompt
from fastflow.demo.small_model import make_tokenizer
from fastflow.errors import FastflowError

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<go>{% endif %}"
)
PIECES = ["<system>", "<user>", "<assistant>", "<go>", *"abcdefghijklmnopqrstuvwxyz0123456789 .:"]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(PIECES)


@pytest.fixture
def chat_tokenizer():
    made = make_tokenizer(PIECES)
    made.chat_template = TEMPLATE
    return made


def write_lines(path, *lines):
    path.write_text(
        "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), encoding="utf-8"
    )
    return path


def settings(path, **changes) -> DataConfig:
    return DataConfig(path=str(path), **changes)


def messages(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]


class TestSources:
    def test_jsonl_keeps_records_and_line_numbers_and_skips_blank_lines(self, tmp_path):
        path = write_lines(tmp_path / "p.jsonl", {"prompt": "one", "answer": 1}, "", "   ", {"prompt": "two"})
        assert read_records(settings(path)) == [
            (f"{path}:1", {"prompt": "one", "answer": 1}),
            (f"{path}:4", {"prompt": "two"}),
        ]

    @pytest.mark.parametrize("ending", ["\n", "\r\n"])
    def test_line_endings(self, tmp_path, ending):
        (tmp_path / "p.jsonl").write_bytes(ending.join(['{"prompt": "one"}', '{"prompt": "two"}']).encode())
        assert [record["prompt"] for _, record in read_records(settings(tmp_path / "p.jsonl"))] == ["one", "two"]

    @pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
    def test_unicode_separators_inside_a_string_do_not_end_the_line(self, tmp_path, separator):
        record = {"prompt": f"before{separator}after"}
        path = write_lines(tmp_path / "p.jsonl", json.dumps(record, ensure_ascii=False))
        assert read_records(settings(path)) == [(f"{path}:1", record)]

    def test_parquet_gives_the_records_of_jsonl(self, tmp_path):
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        rows = [{"prompt": "one", "answer": 1}, {"prompt": "two", "answer": 2}]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
        records = read_records(settings(tmp_path / "p.parquet"))
        assert [record for _, record in records] == rows
        assert records[1][0] == f"{tmp_path / 'p.parquet'}:row 2"

    def test_parquet_with_chat_messages(self, tmp_path, chat_tokenizer):
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist([{"prompt": messages("hi")}]), tmp_path / "p.parquet")
        chosen = settings(tmp_path / "p.parquet", chat_template=True)
        assert [p.text for p in tokenize(read_records(chosen), chat_tokenizer, chosen)] == ["<user>hi<go>"]

    @pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
    def test_a_dataset_through_the_datasets_package(self, tmp_path, monkeypatch, suffix):
        """A folder is loaded by load_dataset exactly as a hub id is, without a network."""
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        folder = tmp_path / "folder"
        folder.mkdir()
        made = datasets.Dataset.from_list([{"problem": f"question {i}", "answer": i} for i in range(3)])
        made.to_json(folder / "test.jsonl") if suffix == "jsonl" else made.to_parquet(folder / "test.parquet")
        records = read_records(settings(folder, prompt_field="problem", split="test"))
        assert [record for _, record in records] == list(made)
        assert records[0][0] == f"{folder}[test] row 1"

    def test_subset_and_split_reach_load_dataset(self, monkeypatch):
        datasets = pytest.importorskip("datasets")
        seen = []

        def load_dataset(*arguments, **options):
            seen.append((arguments, options))
            return [{"prompt": "one"}]

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        records = read_records(settings("some/set", subset="main", split="train[:10%]"))
        assert seen == [(("some/set", "main"), {"split": "train[:10%]"})]
        assert records == [("some/set[train[:10%]] row 1", {"prompt": "one"})]

    @pytest.mark.parametrize(
        ("name", "split", "words"), [("absent", "train", "absent"), ("folder", "validation", "validation")]
    )
    def test_a_dataset_that_cannot_be_loaded(self, tmp_path, monkeypatch, name, split, words):
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        (tmp_path / "folder").mkdir()
        write_lines(tmp_path / "folder" / "train.jsonl", {"prompt": "one"})
        with pytest.raises(FastflowError, match=r"data\.split") as caught:
            read_records(settings(f"{tmp_path}/{name}", split=split))
        assert words in str(caught.value)


class TestMalformed:
    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ('{"prompt": "a"', "not valid JSON"),
            ("prompt: a", "not valid JSON"),
            ('["a"]', "a list, but each line must be one JSON object"),
            ('"a"', "a str, but each line must be one JSON object"),
            ('{"promt": "a"}', "no field 'prompt' (data.prompt_field): did you mean promt?"),
            ('{"data": [{"prompt": "a"}]}', "its field 'data' is a list of 1 record; write that list alone"),
            ('{"text": "a", "id": 3}', "no field 'prompt' (data.prompt_field): known are id, text"),
            ('{"prompt": ""}', "the prompt is empty"),
            ('{"prompt": " \\n"}', "the prompt is empty"),
            ('{"prompt": []}', "the prompt is empty"),
            ('{"prompt": [{"role": "user", "content": "  "}]}', "the prompt is empty"),
            ('{"prompt": null}', "must be a string or a list of {role, content} messages, not NoneType"),
            ('{"prompt": 3}', "not int"),
            ('{"prompt": ["a"]}', "must be a string or a list of {role, content} messages"),
            ('{"prompt": [{"role": "user"}]}', "must be a string or a list of {role, content} messages"),
            ('{"prompt": [{"role": "user", "content": null}]}', "must be a string or a list"),
            ('{"prompt": [{"role": "user", "content": "a"}]}', "set data.chat_template = true"),
        ],
    )
    def test_a_bad_line_is_named_by_file_and_line(self, tmp_path, line, reason):
        path = write_lines(tmp_path / "p.jsonl", {"prompt": "fine"}, "", line, {"prompt": "fine"})
        with pytest.raises(FastflowError) as caught:
            read_records(settings(path))
        assert str(caught.value).startswith(f"{path}:3: ")
        assert reason in str(caught.value)

    @pytest.mark.parametrize("name", ["p.jsonl", "p.parquet", "p.json"])
    def test_a_missing_file(self, tmp_path, name):
        with pytest.raises(FastflowError, match=f"{name} does not exist; check data.path"):
            read_records(settings(tmp_path / name))

    @pytest.mark.parametrize("content", ["", "\n \n"])
    def test_a_file_without_records(self, tmp_path, content):
        (tmp_path / "p.jsonl").write_text(content)
        with pytest.raises(FastflowError, match="holds no records"):
            read_records(settings(tmp_path / "p.jsonl"))

    def test_a_file_that_is_not_utf8(self, tmp_path):
        (tmp_path / "p.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
        with pytest.raises(FastflowError, match="UTF-8"):
            read_records(settings(tmp_path / "p.jsonl"))

    def test_a_file_that_is_not_parquet(self, tmp_path):
        pytest.importorskip("pyarrow")
        write_lines(tmp_path / "p.parquet", {"prompt": "one"})
        with pytest.raises(FastflowError, match="needs a parquet file"):
            read_records(settings(tmp_path / "p.parquet"))


class TestRendering:
    def render(self, value, tokenizer, **changes) -> Prompt:
        chosen = settings("p.jsonl", **changes)
        (prompt,) = tokenize([("p.jsonl:1", {"prompt": value})], tokenizer, chosen)
        return prompt

    def test_raw_text_with_suffix(self, tokenizer):
        prompt = self.render("1 2", tokenizer, suffix=" ab")
        assert prompt.text == "1 2 ab"
        assert prompt.ids.dtype == np.int64
        assert tokenizer.convert_ids_to_tokens(prompt.ids.tolist()) == list("1 2 ab")
        assert (prompt.record, prompt.source) == ({"prompt": "1 2"}, "p.jsonl:1")

    @pytest.mark.parametrize(
        ("value", "changes", "expected"),
        [
            ("hi", {}, "<user>hi<go>"),
            ("hi", {"suffix": " now"}, "<user>hi now<go>"),
            ("hi", {"system": "be calm"}, "<system>be calm<user>hi<go>"),
            (messages("a", "b", "c"), {"suffix": "."}, "<user>a<assistant>b<user>c.<go>"),
            (messages("a", "b"), {"suffix": ".", "system": "s"}, "<system>s<user>a.<go>"),
        ],
    )
    def test_chat_template(self, chat_tokenizer, value, changes, expected):
        prompt = self.render(value, chat_tokenizer, chat_template=True, **changes)
        assert prompt.text == expected
        assert chat_tokenizer.decode(prompt.ids.tolist()) == expected

    def test_rendering_leaves_the_record_alone(self, chat_tokenizer):
        value = messages("a")
        prompt = self.render(value, chat_tokenizer, chat_template=True, suffix=" more", system="s")
        assert value == messages("a")
        assert prompt.record == {"prompt": messages("a")}

    @pytest.mark.parametrize("chat", [False, True])
    def test_special_tokens_are_added_to_raw_text_only(self, chat_tokenizer, chat):
        """A chat template writes its own; the tokenizer must not add a second one."""
        from tokenizers.processors import TemplateProcessing

        bos = chat_tokenizer.convert_tokens_to_ids("<assistant>")
        chat_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<assistant> $A", special_tokens=[("<assistant>", bos)]
        )
        ids = self.render("a", chat_tokenizer, chat_template=chat).ids.tolist()
        expected = ["<user>", "a", "<go>"] if chat else ["<assistant>", "a"]
        assert chat_tokenizer.convert_ids_to_tokens(ids) == expected

    def test_a_tokenizer_without_a_template(self, tokenizer):
        with pytest.raises(
            FastflowError, match=r"no chat template; use an instruct model, or set data\.chat_template = false"
        ):
            self.render("a", tokenizer, chat_template=True)

    def test_a_suffix_without_a_user_message(self, chat_tokenizer):
        with pytest.raises(FastflowError, match=r"^p\.jsonl:1: there is no user message for data\.suffix to follow"):
            self.render([{"role": "system", "content": "a"}], chat_tokenizer, chat_template=True, suffix=".")

    def test_a_system_message_beside_one_of_the_records(self, chat_tokenizer):
        own = [{"role": "system", "content": "a"}, *messages("b")]
        words = r"^p\.jsonl:1: field 'prompt' has a system message of its own \(message 1\).*leave that setting out, or"
        with pytest.raises(FastflowError, match=words):
            self.render(own, chat_tokenizer, chat_template=True, system="s")
        assert self.render(own, chat_tokenizer, chat_template=True).text == "<system>a<user>b<go>"

    def test_a_template_that_refuses_the_prompt(self, chat_tokenizer):
        chat_tokenizer.chat_template = "{{ raise_exception('no system role') }}"
        with pytest.raises(FastflowError, match=r"^p\.jsonl:1: the chat template refuses this prompt: no system role"):
            self.render("a", chat_tokenizer, chat_template=True)

    def test_a_prompt_without_tokens(self, chat_tokenizer):
        chat_tokenizer.chat_template = "{# says nothing #}"
        with pytest.raises(FastflowError, match=r"^p\.jsonl:1: the prompt '' has no tokens"):
            self.render("a", chat_tokenizer, chat_template=True)


LONG_AND_SHORT = [(f"p.jsonl:{line}", {"prompt": "a" * length}) for line, length in enumerate((3, 5, 4, 9), start=1)]


class TestOverlong:
    def test_dropped_and_counted(self, tokenizer, caplog):
        with caplog.at_level(logging.WARNING, logger="fastflow.data"):
            prompts = tokenize(LONG_AND_SHORT, tokenizer, settings("p.jsonl", max_prompt_tokens=4))
        assert [prompt.source for prompt in prompts] == ["p.jsonl:1", "p.jsonl:3"]
        (message,) = [record.getMessage() for record in caplog.records]
        assert message == "dropped 2 of 4 prompts over data.max_prompt_tokens = 4 (first: p.jsonl:2 with 5 tokens)"

    def test_nothing_is_said_when_nothing_is_dropped(self, tokenizer, caplog):
        with caplog.at_level(logging.WARNING, logger="fastflow.data"):
            assert len(tokenize(LONG_AND_SHORT, tokenizer, settings("p.jsonl", max_prompt_tokens=9))) == 4
        assert not caplog.records

    def test_the_suffix_counts(self, tokenizer):
        prompts = tokenize(LONG_AND_SHORT, tokenizer, settings("p.jsonl", max_prompt_tokens=5, suffix=" b"))
        assert [prompt.source for prompt in prompts] == ["p.jsonl:1"]

    def test_an_error_when_asked_for(self, tokenizer):
        with pytest.raises(
            FastflowError, match=r"^p\.jsonl:2: the prompt has 5 tokens, over data\.max_prompt_tokens = 4"
        ):
            tokenize(LONG_AND_SHORT, tokenizer, settings("p.jsonl", max_prompt_tokens=4, overlong="error"))

    def test_all_dropped(self, tokenizer):
        with pytest.raises(
            FastflowError, match=r"every prompt of p\.jsonl is over .* \(first: p\.jsonl:1 with 3 tokens\)"
        ):
            tokenize(LONG_AND_SHORT, tokenizer, settings("p.jsonl", max_prompt_tokens=2))


def make_stream(count: int = 10, **options) -> PromptStream:
    return PromptStream([Prompt(np.array([1]), str(number)) for number in range(count)], **{"seed": 0, **options})


def names(prompts) -> list[str]:
    return [prompt.text for prompt in prompts]


class TestPromptStream:
    def test_without_shuffling_the_order_is_the_files(self):
        stream = make_stream(3, shuffle=False)
        assert names(stream.take(7)) == ["0", "1", "2", "0", "1", "2", "0"]

    def test_each_prompt_once_an_epoch_in_a_new_order(self):
        stream = make_stream(20)
        epochs = [names(stream.take(20)) for _ in range(3)]
        for epoch in epochs:
            assert sorted(epoch, key=int) == [str(number) for number in range(20)]
        assert len({tuple(epoch) for epoch in epochs}) == 3

    @hypothesis_settings(deadline=None)
    @given(st.integers(1, 7), st.lists(st.integers(1, 12), min_size=1, max_size=8))
    def test_turns_count_how_often_each_prompt_was_served(self, count, takes):
        stream, served = make_stream(count), Counter[str]()
        for take in takes:
            turns = stream.turns(take)
            for name, before in zip(names(stream.take(take)), turns, strict=True):
                assert before == served[name]
                served[name] += 1

    def test_the_seed_decides_the_order(self):
        assert names(make_stream(seed=1).take(10)) == names(make_stream(seed=1).take(10))
        assert names(make_stream(seed=1).take(10)) != names(make_stream(seed=2).take(10))

    @hypothesis_settings(deadline=None)
    @given(st.integers(1, 7), st.lists(st.integers(1, 12), min_size=1, max_size=8))
    def test_how_it_is_taken_does_not_matter(self, count, takes):
        pieces = make_stream(count, seed=3)
        taken = [name for take in takes for name in names(pieces.take(take))]
        assert taken == names(make_stream(count, seed=3).take(sum(takes)))
        whole_epochs = Counter(taken[: len(taken) // count * count])
        assert set(whole_epochs.values()) <= {len(taken) // count}

    @hypothesis_settings(deadline=None)
    @given(st.integers(1, 7), st.integers(0, 20), st.integers(1, 20), st.booleans())
    def test_a_restored_stream_goes_on_exactly(self, count, before, after, shuffle):
        stream = make_stream(count, seed=5, shuffle=shuffle)
        stream.take(before)
        state = json.loads(json.dumps(stream.state()))  # as a checkpoint keeps it
        expected = names(stream.take(after))
        resumed = make_stream(count, seed=5, shuffle=shuffle)
        resumed.load_state(state)
        assert names(resumed.take(after)) == expected
        assert resumed.state() == stream.state()

    def test_more_than_an_epoch_at_once(self):
        taken = names(make_stream(4).take(11))
        assert sorted(taken[:4]) == sorted(taken[4:8]) == ["0", "1", "2", "3"]
        assert len(set(taken[8:])) == 3
