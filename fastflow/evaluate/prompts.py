"""Questions as prompts, in tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastflow.config.schema import DataConfig
from fastflow.data.conversation import Message
from fastflow.data.prompts import tokenize
from fastflow.data.trajectory import Prompt
from fastflow.evaluate.questions import Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNLIMITED = 10**9  # tokens of a prompt; the model's context is what limits it


def tokenize_questions(
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat_template: bool,
    system: str | None,
    template_arguments: Mapping[str, Any] | None = None,
    front: str = "",
) -> list[Prompt]:
    """Render and tokenise questions; none is left out. front: a text put in front of each.

    Raises FastflowError as `fastflow.data.prompts.tokenize`.
    """
    settings = DataConfig(
        path="eval.tasks", chat_template=chat_template, template_arguments=template_arguments, system=system,
        max_prompt_tokens=UNLIMITED,
    )  # fmt: skip
    records = [(question.source, {"prompt": _behind(front, question.prompt)}) for question in questions]
    return tokenize(records, tokenizer, settings)


def _behind(front: str, prompt: str | list[Message]) -> str | list[Message]:
    """Put a text in front of a prompt. Messages stay as they are: without a chat template they are refused."""
    return front + prompt if isinstance(prompt, str) else prompt
