"""Turns records into token ids: renders them, adds the tokenizer's own tokens in front, filters by length."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fastflow.config.schema import DataConfig
from fastflow.config.setting import suggest
from fastflow.counted import counted
from fastflow.data.conversation import Message, ends_with_answer, prompt_of
from fastflow.data.doubtful_prompts import report
from fastflow.data.records import Record
from fastflow.data.trajectory import Prompt
from fastflow.errors import FastflowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

ROLES = ("system", "developer", "user", "assistant", "tool", "function")  # whose texts a template may rewrite
PROBES = ("a", "A", "1", ".", "\u4e00")


@dataclass(frozen=True)
class OwnTokens:
    """Ids that a tokenizer adds to a raw text by itself.

    The ids in front belong to a prompt. The ids behind would end it before the response, so prompts leave them out.
    """

    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> OwnTokens:
        """Find them by the first of a few short texts for which the tokenizer has tokens."""
        for text in PROBES:
            bare, whole = (tokenizer(text, add_special_tokens=added)["input_ids"] for added in (False, True))
            for start in range(len(whole) - len(bare) + 1 if bare else 0):
                if whole[start : start + len(bare)] == bare:
                    return cls(tuple(whole[:start]), tuple(whole[start + len(bare) :]))
        return cls()

    def in_front_of(self, ids: list[int]) -> list[int]:
        """Put the tokens in front, unless the text begins with them already."""
        before = list(self.before)
        return ids if ids[: len(before)] == before else before + ids


def tokenize(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, settings: DataConfig) -> list[Prompt]:
    """Render and tokenise records. Leaves out prompts over `max_prompt_tokens`, and reports how many.

    A rendered chat prompt has the tokens that its template spells, and no others. Raises FastflowError where a chat
    template is missing, does not read a template argument or refuses a prompt; where a prompt has no tokens; where no
    prompt is left; and, with `data.overlong = error`, for the first prompt that is too long.
    """
    if settings.chat_template:
        _check_template(tokenizer, settings.template_arguments or {})
    own = OwnTokens() if settings.chat_template else OwnTokens.of(tokenizer)
    prompts, dropped = [], []
    for place, record in records:
        text = render(place, record, tokenizer, settings)
        bare = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not bare:
            raise FastflowError(
                f"{place}: the prompt {text!r} has no tokens; remove the record or fill data.prompt_field"
            )
        ids = own.in_front_of(bare)
        if len(ids) > settings.max_prompt_tokens:
            if settings.overlong == "error":
                raise FastflowError(
                    f"{place}: the prompt has {len(ids)} tokens, over data.max_prompt_tokens = "
                    f"{settings.max_prompt_tokens}; shorten it, raise the limit, or set data.overlong = drop"
                )
            dropped.append((place, len(ids)))
            continue
        prompts.append(Prompt(np.array(ids, dtype=np.int64), text, record, place))
    if not prompts:
        raise FastflowError(
            f"every prompt of {settings.path} is over data.max_prompt_tokens = {settings.max_prompt_tokens} (first: "
            f"{dropped[0][0]} with {dropped[0][1]} tokens); raise the limit or shorten the prompts"
        )
    if dropped:
        logger.warning(
            "dropped %d of %s over data.max_prompt_tokens = %d (first: %s with %d tokens)",
            len(dropped), counted(len(records), "prompt"), settings.max_prompt_tokens, *dropped[0],
        )  # fmt: skip
    report(prompts, tokenizer, settings)
    return prompts


def render(place: str, record: dict[str, Any], tokenizer: PreTrainedTokenizerBase, settings: DataConfig) -> str:
    """Render the whole text of a prompt, as its tokens spell it."""
    value = prompt_of(place, record, settings)
    if not settings.chat_template:
        return cast(str, value) + settings.suffix  # prompt_of refuses messages here
    messages = _with_additions(place, value, settings)
    goes_on = ends_with_answer(messages)
    if goes_on and not messages[-1]["content"].strip():  # a turn that has only begun, as the template begins one
        messages, goes_on = messages[:-1], False
    try:
        rendered = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
            **(settings.template_arguments or {}),
        )
    except Exception as error:  # a template is any jinja program, and may raise anything
        raise FastflowError(f"{place}: the chat template refuses this prompt: {error}") from error
    text = cast(str, rendered)  # as tokenize=False promises
    _check_nothing_left_out(place, messages, text)
    return text


def _with_additions(place: str, value: str | list[Message], settings: DataConfig) -> list[Message]:
    """Add `data.system` and `data.suffix` to the messages."""
    messages = [{"role": "user", "content": value}] if isinstance(value, str) else [dict(entry) for entry in value]
    if settings.suffix:
        last_user = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
        if last_user is None:
            raise FastflowError(
                f"{place}: there is no user message for data.suffix to follow; add one, or unset data.suffix"
            )
        messages[last_user]["content"] += settings.suffix
    if settings.system is not None:
        own = next((i for i, message in enumerate(messages, start=1) if message["role"] == "system"), None)
        if own is not None:
            raise FastflowError(
                f"{place}: field {settings.prompt_field!r} has a system message of its own (message {own}), and "
                "data.system (in an evaluation eval.system, or the instruction of verbalized) would put another one in "
                "front; leave that setting out, or remove the message"
            )
        messages.insert(0, {"role": "system", "content": settings.system})
    return messages


def _check_template(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]) -> None:
    if not tokenizer.chat_template:
        raise FastflowError(
            "data.chat_template is on, but the tokenizer has no chat template; use an instruct model, or set "
            "data.chat_template = false"
        )
    known = _variables(tokenizer.chat_template) if isinstance(tokenizer.chat_template, str) else None
    if known is not None and "add_generation_prompt" not in known:
        logger.warning(
            "the chat template has no generation prompt (it never reads add_generation_prompt): responses follow the "
            "last message at once, and the model must begin its turn itself; mend the template, or see with --dry-run "
            "what prompts end with"
        )
    for name in arguments:
        if known is not None and name not in known:
            raise FastflowError(
                f"data.template_arguments sets {name}, which the chat template does not read: {suggest(name, known)}"
            )


def _check_nothing_left_out(place: str, messages: list[Message], text: str) -> None:
    """Raise FastflowError where a template passed over a message whose role it does not know."""
    for number, message in enumerate(messages, start=1):
        if message["role"] not in ROLES and message["content"].strip() not in text:
            raise FastflowError(
                f"{place}: the chat template leaves out message {number}, whose role is {message['role']!r}; rename "
                "the role, such as to user, or remove the message"
            )


def _variables(template: str) -> set[str] | None:
    """Find the names that a template takes from its caller; None where it is not plain jinja."""
    from jinja2 import Environment, TemplateError, meta

    environment = Environment(extensions=["jinja2.ext.loopcontrols"])  # noqa: S701, only to parse
    try:
        return meta.find_undeclared_variables(environment.parse(template))
    except TemplateError:
        return None
