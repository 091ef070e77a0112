"""Counts prompts that may not be what their author meant, and warns of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastflow.config.schema import DataConfig
from fastflow.data.conversation import Message, ends_with_answer, prompt_of
from fastflow.data.response_text import special_tokens
from fastflow.data.trajectory import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

USER = "user"


def report(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, settings: DataConfig) -> None:
    """Say how many prompts are doubtful in which way, each with the first one's place."""
    _report_ends(prompts, tokenizer)
    if settings.chat_template:
        read = [(prompt, prompt_of(prompt.source, prompt.record, settings)) for prompt in prompts]
        _report_control_tokens(read, tokenizer)
        _report_lost_ends(read)
    _report_repeats(prompts)


def _report_ends(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn of prompts that end with the end-of-sequence token."""
    ended = [prompt.source for prompt in prompts if prompt.ids[-1] == tokenizer.eos_token_id]
    if ended:
        logger.warning(
            "prompts with the end-of-sequence token %s at their end: %d of %d (first: %s); a model expects no response "
            "after it: remove it from the text or from the chat template",
            tokenizer.eos_token, len(ended), len(prompts), ended[0],
        )  # fmt: skip


def _report_control_tokens(
    read: Sequence[tuple[Prompt, str | list[Message]]], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Warn of users' texts that spell special tokens: they become these tokens, and may end a turn or begin one."""
    texts = sorted(filter(None, special_tokens(tokenizer).values()), key=len, reverse=True)
    known = re.compile("|".join(map(re.escape, texts)) or r"(?!)")
    found = []
    for prompt, value in read:
        own = [value] if isinstance(value, str) else [entry["content"] for entry in value if entry["role"] == USER]
        if match := next(filter(None, map(known.search, own)), None):
            found.append((prompt.source, match.group()))
    if found:
        logger.warning(
            "user messages whose text spells a special token, which it becomes: %d of %d (first: %s with %s); a model "
            "takes it for the end of a turn or the like: remove it where it is not meant so",
            len(found), len(read), *found[0],
        )  # fmt: skip


def _report_lost_ends(read: Sequence[tuple[Prompt, str | list[Message]]]) -> None:
    """Warn of final assistant turns that the response does not continue as they stand."""
    lost = [
        prompt.source
        for prompt, value in read
        if isinstance(value, list) and ends_with_answer(value) and value[-1]["content"].strip()
        and not prompt.text.endswith(value[-1]["content"])
    ]  # fmt: skip
    if lost:
        logger.warning(
            "prompts that do not end as the assistant turn that they continue, since the chat template changes it: %d "
            "of %d (first: %s); remove blanks from the turn's end, or see with --dry-run what prompts end with",
            len(lost), len(read), lost[0],
        )  # fmt: skip


def _report_repeats(prompts: Sequence[Prompt]) -> None:
    """Say how many prompts stand there more than once. Each counts: a step may draw several of them."""
    first: dict[bytes, str] = {}
    repeats = [
        prompt.source for prompt in prompts if first.setdefault(prompt.ids.tobytes(), prompt.source) != prompt.source
    ]
    if repeats:
        logger.info(
            "prompts that repeat an earlier one: %d of %d (first: %s); each counts",
            len(repeats),
            len(prompts),
            repeats[0],
        )
