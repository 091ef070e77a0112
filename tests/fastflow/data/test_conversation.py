"""Forms of a prompt field: read, left out with a count, or refused by place, entry and form."""

from __future__ import annotations

import json
import logging

import pytest

from fastflow.config.schema import DataConfig
from fastflow.data import read_records
from fastflow.data.conversation import prompt_of
from fastflow.errors import FastflowError

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def meaning(value, **changes):
    settings = DataConfig(path="p.jsonl", **{"chat_template": True, **changes})
    return prompt_of("p.jsonl:7", {"prompt": value}, settings)


def refusal(value, **changes) -> str:
    with pytest.raises(FastflowError) as caught:
        meaning(value, **changes)
    assert str(caught.value).startswith("p.jsonl:7: ")
    return str(caught.value)


class TestContent:
    @pytest.mark.parametrize(
        "content",
        [
            "2+2?",
            [{"type": "text", "text": "2+2?"}],
            [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}],
            [{"type": "input_text", "text": "2+2?"}],
            [{"text": "2+2?"}],
            ["2+", "2?"],
        ],
    )
    def test_text_parts_are_joined(self, content):
        record = [{"role": "user", "content": content, "name": "x"}]
        before = json.dumps(record)
        assert meaning(record) == [{"role": "user", "content": "2+2?", "name": "x"}]
        assert json.dumps(record) == before

    @pytest.mark.parametrize(
        ("entry", "words"),
        [
            (
                {"from": "human", "value": "a"},
                "but entry 2 is a {from, value} pair; rename the keys to role and content",
            ),
            (
                {"role": "assistant", "content": None, "tool_calls": [{}]},
                "(assistant) has no content but tool calls, which are not text",
            ),
            ({"role": "user", "content": None}, "but entry 2 (user) has no content; fill it or remove the record"),
            ({"role": "user"}, "but entry 2 (user) has no content"),
            ({"content": "a"}, "but entry 2 has no role; add one (its keys are content)"),
            ({}, "but entry 2 has no role; add one (its keys are none)"),
            ({"role": "user", "content": 3}, "has a content of type int; write text"),
            ({"role": "user", "content": {"text": "a"}}, "has a content of type dict; write text"),
            (
                {"role": "user", "content": [{"type": "image_url"}]},
                "part 1 is of type 'image_url'; fastflow renders text alone",
            ),
            ({"role": "user", "content": ["a", 3]}, "part 2 is of a int; fastflow renders text alone"),
            ("a", "but entry 2 is a str"),
            (None, "but entry 2 is a NoneType"),
        ],
    )
    def test_other_forms_are_named_by_entry(self, entry, words):
        said = refusal([USER, entry])
        assert said.startswith("p.jsonl:7: field 'prompt' must be a string or a list of {role, content} messages, but ")
        assert words in said

    def test_one_message_without_a_list(self):
        assert refusal(USER).endswith("not dict; put the message into a list")

    @pytest.mark.parametrize("value", [[{"role": "user", "content": []}], [{"role": "user", "content": [" "]}], " "])
    def test_nothing_said(self, value):
        assert "the prompt is empty" in refusal(value)


class TestFinalAssistantTurn:
    def test_it_is_left_out(self):
        assert meaning([USER, ANSWER]) == [USER]
        assert meaning([USER, ANSWER, USER, ANSWER, ANSWER]) == [USER, ANSWER, USER]
        assert meaning([USER, ANSWER, USER]) == [USER, ANSWER, USER]

    def test_it_is_continued(self):
        assert meaning([USER, ANSWER], final_assistant="continue") == [USER, ANSWER]

    def test_it_is_an_error(self):
        assert "ends with an assistant turn; remove it, or set" in refusal([USER, ANSWER], final_assistant="error")

    def test_nothing_else_there(self):
        assert "holds assistant turns only" in refusal([ANSWER])
        assert "holds assistant turns only" in refusal([{"role": "system", "content": " "}, ANSWER])

    @pytest.mark.parametrize(
        ("choice", "done"), [("drop", "is left out of 2 of 3"), ("continue", "is to be continued in 2 of 3")]
    )
    def test_it_is_counted(self, tmp_path, caplog, choice, done):
        path = tmp_path / "p.jsonl"
        path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ([USER], [USER, ANSWER], [USER, ANSWER])))
        with caplog.at_level(logging.WARNING, logger="fastflow.data"):
            read_records(DataConfig(path=str(path), chat_template=True, final_assistant=choice))
        (message,) = [record.getMessage() for record in caplog.records]
        assert message == (
            f"data.final_assistant = {choice}: the assistant turn at the end {done} prompts (first: {path}:2)"
        )
