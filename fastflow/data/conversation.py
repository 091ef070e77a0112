"""Reads a record's prompt field: a text, or messages that each have a role and a text."""

from __future__ import annotations

from typing import Any

from fastflow.config.schema import DataConfig
from fastflow.config.setting import suggest
from fastflow.counted import counted
from fastflow.errors import FastflowError

Message = dict[str, Any]  # has the keys role and content, both text; a template may read others

FORM = "a string or a list of {role, content} messages"
TEXT_PARTS = ("text", "input_text", "output_text")
ASSISTANT = "assistant"


def prompt_of(place: str, record: dict[str, Any], settings: DataConfig) -> str | list[Message]:
    """Return the text or the messages that a response will follow. Leaves the record as it is.

    Joins the text parts of a message. Treats an assistant turn at the end as `data.final_assistant` says.
    Raises FastflowError, with the place and the entry, for any other form and for an empty prompt.
    """
    name = settings.prompt_field
    if name not in record:
        raise FastflowError(
            f"{place}: no field {name!r} (data.prompt_field): {_wrapped(record) or suggest(name, record)}"
        )
    value = record[name]
    if not isinstance(value, (str, list)):
        raise FastflowError(f"{place}: field {name!r} must be {FORM}, not {type(value).__name__}{_hint(value)}")
    if isinstance(value, str):
        _check_words(place, name, [value])
        return value
    messages = [_message(f"{place}: field {name!r} must be {FORM}", *pair) for pair in enumerate(value, start=1)]
    _check_words(place, name, [message["content"] for message in messages])
    if not settings.chat_template:
        raise FastflowError(
            f"{place}: field {name!r} holds chat messages; set data.chat_template = true to render them"
        )
    return _before_the_response(place, name, messages, settings)


def ends_with_answer(value: str | list[Message]) -> bool:
    """Whether a checked prompt field ends with an assistant turn."""
    return isinstance(value, list) and value[-1]["role"] == ASSISTANT


def _before_the_response(place: str, name: str, messages: list[Message], settings: DataConfig) -> list[Message]:
    if not ends_with_answer(messages) or settings.final_assistant == "continue":
        return messages
    if settings.final_assistant == "error":
        raise FastflowError(
            f"{place}: field {name!r} ends with an assistant turn; remove it, or set data.final_assistant to drop or "
            "continue"
        )
    while messages and ends_with_answer(messages):
        messages = messages[:-1]
    if not any(message["content"].strip() for message in messages):
        raise FastflowError(
            f"{place}: field {name!r} holds assistant turns only, and data.final_assistant = drop leaves them out; "
            "remove the record, or set data.final_assistant = continue"
        )
    return messages


def _message(form: str, number: int, entry: Any) -> Message:
    """Copy a message, with its content as one text."""
    wrong = f"{form}, but entry {number}"
    if not isinstance(entry, dict):
        raise FastflowError(f"{wrong} is a {type(entry).__name__}")
    if {"from", "value"} <= entry.keys():
        raise FastflowError(
            f"{wrong} is a {{from, value}} pair; rename the keys to role and content, and the roles human and gpt to "
            "user and assistant"
        )
    if not isinstance(entry.get("role"), str):
        raise FastflowError(f"{wrong} has no role; add one (its keys are {', '.join(map(str, entry)) or 'none'})")
    wrong += f" ({entry['role']})"
    content = entry.get("content")
    if content is None:
        calls = " but tool calls, which are not text" if entry.get("tool_calls") else ""
        raise FastflowError(f"{wrong} has no content{calls}; fill it or remove the record")
    if isinstance(content, list):
        content = "".join(_part(wrong, *pair) for pair in enumerate(content, start=1))
    if not isinstance(content, str):
        raise FastflowError(f"{wrong} has a content of type {type(content).__name__}; write text")
    return {**entry, "content": content}


def _part(wrong: str, number: int, part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type", "text") in TEXT_PARTS and isinstance(part.get("text"), str):
        return part["text"]
    kind = f"type {part['type']!r}" if isinstance(part, dict) and "type" in part else f"a {type(part).__name__}"
    raise FastflowError(
        f"{wrong} has a content whose part {number} is of {kind}; fastflow renders text alone: remove the part "
        "or the record"
    )


def _check_words(place: str, name: str, texts: list[str]) -> None:
    if not any(text.strip() for text in texts):
        raise FastflowError(f"{place}: the prompt is empty; remove the record or fill the field {name!r}")


def _wrapped(record: dict[str, Any]) -> str:
    """Say what to do with a record that holds the records themselves; empty for any other record."""
    for key, value in record.items():
        if (
            isinstance(value, list)
            and value
            and all(isinstance(entry, dict) for entry in value)
            and "role" not in value[0]
        ):
            records = counted(len(value), "record")
            return f"its field {key!r} is a list of {records}; write that list alone, or one record a line"
    return ""


def _hint(value: Any) -> str:
    return "; put the message into a list" if isinstance(value, dict) and "role" in value else ""
