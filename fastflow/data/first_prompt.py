"""Shows one prompt as the model will see it, for `fastflow train --dry-run`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastflow.config.schema import DataConfig
from fastflow.counted import counted
from fastflow.data.conversation import prompt_of
from fastflow.data.prompts import OwnTokens
from fastflow.data.trajectory import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def describe_first(prompts: list[Prompt], tokenizer: PreTrainedTokenizerBase, settings: DataConfig) -> str:
    """Describe the first prompt: its text, its token ids, and what stands before and after the record's own words."""
    first = prompts[0]
    ids = first.ids.tolist()
    before, behind = _additions(first, settings)
    lines = [
        f"The first of {counted(len(prompts), 'prompt')}, {first.source}, in {counted(len(ids), 'token')}:",
        f"  text   {_quoted(first.text)}",
        f"  ids    {ids}",
    ]
    if settings.chat_template:
        lines.append(f"  before the record's words  {_quoted(before)}")
    else:
        spelt = len(tokenizer(first.text, add_special_tokens=False)["input_ids"])
        lines.append(f"  added in front by the tokenizer  {_tokens(ids[: len(ids) - spelt], tokenizer)}")
    lines.append(f"  after the record's words  {_quoted(behind)}")
    left_out = () if settings.chat_template else OwnTokens.of(tokenizer).behind
    if left_out:
        lines.append(f"  left out, which the tokenizer would add at the end  {_tokens(left_out, tokenizer)}")
    return "\n".join(lines)


def _additions(prompt: Prompt, settings: DataConfig) -> tuple[str, str]:
    """Return the text around the record's own words; the whole text where a template rewrites them."""
    value = prompt_of(prompt.source, prompt.record, settings)
    contents = [value] if isinstance(value, str) else [message["content"] for message in value]
    first, last = contents[0].strip(), contents[-1].strip()
    start, end = prompt.text.find(first), prompt.text.rfind(last)
    return (prompt.text[:start], prompt.text[end + len(last) :]) if min(start, end) >= 0 else (prompt.text, "")


def _tokens(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    tokens = zip(tokenizer.convert_ids_to_tokens(list(ids)), ids, strict=True)
    return ", ".join(f"{_quoted(token)} ({i})" for token, i in tokens) or "nothing"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else "nothing"
