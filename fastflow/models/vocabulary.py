"""Whether policy and base mean the same by every token id."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from fastflow.config.schema import ModelConfig
from fastflow.errors import FastflowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


def check_same_tokens(settings: ModelConfig) -> None:
    """Raise FastflowError where the tokenizers of model.path and model.base give an id to different tokens.

    Ids that only the policy's tokenizer knows are refused too, since prompts and responses may hold them. Chat
    templates, roles and the way text is cut may differ: only the policy's tokenizer is used. A warning where a
    tokenizer is missing, and where the base alone knows an id.
    """
    if settings.base is None or settings.base == settings.path:
        return
    if (theirs := _tokens(settings.base, settings)) is None or (ours := _tokens(settings.path, settings)) is None:
        return
    for token in sorted(ours):
        if theirs.get(token) != ours[token]:
            meaning = f"is {theirs[token]!r}" if token in theirs else "is no token"
            raise FastflowError(
                f"policy and base have different tokenizers: token {token} is {ours[token]!r} in {settings.path}, and "
                f"{meaning} in {settings.base}; the base would score other texts than the policy writes, so choose a "
                "model.base of the same family"
            )
    if more := sorted(theirs.keys() - ours.keys()):
        logger.warning(
            "the tokenizer of the base %s knows %d tokens that the policy's does not (first: %d, %r); the policy "
            "should never write them", settings.base, len(more), more[0], theirs[more[0]],
        )  # fmt: skip


def _tokens(path: str, settings: ModelConfig) -> dict[int, str] | None:
    """Id -> token; None, with a warning, where there is no tokenizer to read."""
    try:
        return {token: text for text, token in _load(path, settings).get_vocab().items()}
    except Exception as error:  # a tokenizer that is not needed but for this may fail in any way
        logger.warning(
            "the tokenizers of policy and base could not be compared, since %s has none that can be read (%s); make "
            "sure that both mean the same by every token id", path, " ".join(str(error).split())[:200],
        )  # fmt: skip
        return None


def _load(path: str, settings: ModelConfig) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    directory = Path(path)
    if directory.is_dir() and not settings.trust_remote_code and not any((directory / name).exists() for name in FILES):
        raise FileNotFoundError("no tokenizer file")  # or transformers would make up an empty one
    return AutoTokenizer.from_pretrained(path, trust_remote_code=settings.trust_remote_code)
