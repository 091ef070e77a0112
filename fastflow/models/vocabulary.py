"""Checks what a token id means: that policy and base mean the same by it, and that the head has a row for it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from fastflow.config.schema import ModelConfig
from fastflow.counted import counted
from fastflow.errors import FastflowError, message_of
from fastflow.models.weights.files import VOCABULARY_FILES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@runtime_checkable
class HasVocabulary(Protocol):
    """A model, or a plan of one, with a head of V rows."""

    @property
    def vocab_size(self) -> int:
        """Rows of the head, V."""


def check_same_tokens(settings: ModelConfig) -> None:
    """Raise FastflowError where the tokenizers of model.path and model.base give an id to different tokens.

    Also refuses ids that only the policy's tokenizer knows, since prompts and responses may hold them. Chat templates,
    roles and the way to cut text may differ, because training uses the policy's tokenizer alone. Warns where a
    tokenizer is missing, and where the base alone knows an id.
    """
    if settings.base is None or settings.base == settings.path:
        return
    if (theirs := _tokens(settings.base, settings)) is None or (ours := _tokens(settings.path, settings)) is None:
        return
    for token in sorted(ours):
        if theirs.get(token) != ours[token]:
            meaning = f"is {theirs[token]!r}" if token in theirs else "is not a token"
            raise FastflowError(
                f"policy and base have different tokenizers: token {token} is {ours[token]!r} in {settings.path}, and "
                f"{meaning} in {settings.base}; the base would score other texts than the policy writes; choose a "
                "model.base of the same family"
            )
    if more := sorted(theirs.keys() - ours.keys()):
        logger.warning(
            "the tokenizer of the base %s knows %s that the policy's does not (first: %d, %r); check that "
            "the policy never writes them", settings.base, counted(len(more), "token"), more[0], theirs[more[0]],
        )  # fmt: skip


def check_same_vocabulary(policy: HasVocabulary, base: HasVocabulary, settings: ModelConfig) -> None:
    """Raise FastflowError where the heads of policy and base have different numbers of rows."""
    if policy.vocab_size != base.vocab_size:
        raise FastflowError(
            f"policy and base have different vocabularies: {settings.path} has {policy.vocab_size} rows in its head, "
            f"{settings.base} has {base.vocab_size}; choose a model.base of the same family"
        )


def check_tokenizer_fits(tokenizer: PreTrainedTokenizerBase, policy: HasVocabulary, settings: ModelConfig) -> None:
    """Raise FastflowError for a tokenizer with ids that have no row in the head.

    Special tokens may have none, but for those that begin, end or pad a text: in Gemma's text models that is the place
    of an image. A prompt that holds such a token is refused (rollout/admission.py).
    """
    if len(tokenizer) <= policy.vocab_size:
        return
    beyond = {token: text for text, token in tokenizer.get_vocab().items() if token >= policy.vocab_size}
    if not beyond:  # two texts of one token
        return
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    special -= {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    if not beyond.keys() <= special:
        raise FastflowError(
            f"the tokenizer in {settings.path} has {len(tokenizer)} tokens, but the model's head only "
            f"{policy.vocab_size} rows; they do not belong together: check model.path"
        )
    logger.info(
        "the tokenizer in %s knows %s for which the model has no row (first: %r), so no prompt may hold any",
        settings.path, counted(len(beyond), "special token"), beyond[min(beyond)],
    )  # fmt: skip


def _tokens(path: str, settings: ModelConfig) -> dict[int, str] | None:
    """Read the token of each id; None, with a warning, where no tokenizer can be read."""
    try:
        return {token: text for text, token in _load(path, settings).get_vocab().items()}
    except Exception as error:  # nothing else needs this tokenizer, and it may raise anything
        logger.warning(
            "the tokenizers of policy and base could not be compared, since that of %s cannot be read (%s); check that "
            "both mean the same by every token id", path, message_of(error),
        )  # fmt: skip
        return None


def _load(path: str, settings: ModelConfig) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    directory = Path(path)
    if (
        directory.is_dir()
        and not settings.trust_remote_code
        and not any((directory / name).exists() for name in VOCABULARY_FILES)
    ):
        raise FileNotFoundError("no tokenizer file")  # otherwise transformers would make an empty one
    return AutoTokenizer.from_pretrained(path, trust_remote_code=settings.trust_remote_code)
