"""Recorded responses: read from the file of prompts, checked, and gathered by prompt.

A record holds a prompt and a response, or several. Rows of the parquet that `fastflow evaluate` keeps are such records,
with the tokens of both. One and the same prompt in several records is one prompt with all of their responses.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Int64

from fastflow.config.schema import DataConfig
from fastflow.config.setting import suggest
from fastflow.counted import counted
from fastflow.data.prompts import tokenize
from fastflow.data.records import Record
from fastflow.data.response_text import spell
from fastflow.data.trajectory import FinishReason, Prompt, Trajectory
from fastflow.errors import FastflowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PROMPT_IDS, RESPONSE_IDS = "prompt_ids", "response_ids"


@dataclass(frozen=True)
class RecordedPrompt(Prompt):
    """A prompt with the responses that were recorded for it, at least one, and the weight of each."""

    responses: tuple[Trajectory, ...] = ()
    weights: tuple[float, ...] = ()


def read_recorded(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    settings: DataConfig,
    *,
    max_response_tokens: int,
    end_ids: Collection[int] = (),
) -> list[RecordedPrompt]:
    """Tokenise the records' prompts and responses, and gather the responses by prompt.

    A text that has ended gets the end-of-sequence token; one with the finish_reason length gets none, and tokens
    (response_ids) are taken as they are. Leaves out prompts and responses over their limits, and reports how many.
    end_ids: tokens that end a response beside the tokenizer's end-of-sequence token.
    Raises FastflowError, with file and line, for a record without a response, an empty one, contradictory fields, and
    for text that the tokenizer does not know; and where none is left.
    """
    reader = _Reader(tokenizer, settings, max_response_tokens, end_ids)
    gathered: dict[bytes, RecordedPrompt] = {}
    for prompt in _prompts(records, tokenizer, settings):
        responses, weight = reader.responses(prompt)
        if not responses:
            continue
        weights = (weight,) * len(responses)
        before = gathered.get(key := prompt.ids.tobytes())
        if before is not None:
            responses, weights = (*before.responses, *responses), (*before.weights, *weights)
        first = before or prompt
        gathered[key] = RecordedPrompt(first.ids, first.text, first.record, first.source, responses, weights)
    reader.report()
    prompts = list(gathered.values())
    if not prompts:
        raise FastflowError(
            f"every response in {settings.path} is over rollout.max_response_tokens = {max_response_tokens}; raise it"
        )
    for entry in prompts:
        if not any(entry.weights):
            raise FastflowError(f"{entry.source}: all responses to this prompt have the weight 0; remove the prompt")
    return prompts


def check_known(prompts: Sequence[RecordedPrompt], vocab_size: int) -> None:
    """Raise FastflowError for the first token, of a prompt or of a response, that the model's head does not have."""
    for prompt in prompts:
        for ids in (prompt.ids, *(entry.response_ids for entry in prompt.responses)):
            wrong = ids[(ids < 0) | (ids >= vocab_size)]
            if len(wrong):
                raise FastflowError(
                    f"{prompt.source}: this prompt or a response to it holds token {int(wrong[0])}, but the model's "
                    f"head has {vocab_size} rows; it was tokenised for another model: remove {PROMPT_IDS} and "
                    f"{RESPONSE_IDS}, so that the texts count"
                )


def describe(prompts: Sequence[RecordedPrompt], prompts_per_step: int, steps: int, taken: int) -> str:
    """Say how much there is, and how often the run goes through it. taken: responses to a prompt in its turn."""
    counts = [len(prompt.responses) for prompt in prompts]
    each = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    epochs = steps * prompts_per_step / len(prompts)
    again = f", each time with {counted(taken, 'response')}"
    again += ", so that some are taken more than once" if taken > min(counts) else ""
    return (
        f"{counted(sum(counts), 'recorded response')} to {counted(len(prompts), 'prompt')}, {each} each; each prompt "
        f"has its turn {counted(epochs, 'time', '.3g')}{again}"
    )


class _Reader:
    """Reads the responses of one record after the other, and counts those that are too long or spell another text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: DataConfig, limit: int, end_ids: Collection[int]):
        self._tokenizer, self._settings, self._limit = tokenizer, settings, limit
        self._ends = {tokenizer.eos_token_id, *end_ids}
        self._seen, self._overlong, self._respelt = 0, list[str](), list[str]()

    def responses(self, prompt: Prompt) -> tuple[tuple[Trajectory, ...], float]:
        """Read those of the prompt's record that are not too long, and their weight."""
        place, record = prompt.source, prompt.record
        reason = record.get("finish_reason")
        if reason not in (None, "stop", "length"):
            raise FastflowError(f"{place}: finish_reason is {reason!r}; write stop or length, or leave it out")
        ids = record.get(RESPONSE_IDS)
        if ids is not None and _tokens(place, RESPONSE_IDS, ids):
            found = [self._of_ids(place, _tokens(place, RESPONSE_IDS, ids), reason)]
        else:
            found = [self._of_text(prompt, text, reason) for text in self._texts(place, record)]
        self._seen += len(found)
        kept = []
        for entry in found:
            if len(entry) <= self._limit:
                kept.append(entry)
                continue
            told = f"{place}: a response has {counted(len(entry), 'token')}"
            if self._settings.overlong == "error":
                raise FastflowError(
                    f"{told}, over rollout.max_response_tokens = {self._limit}; shorten it, raise the limit, or set "
                    "data.overlong = drop"
                )
            self._overlong.append(told)
        return tuple(kept), _weight(place, record)

    def report(self) -> None:
        if self._respelt:
            logger.warning(
                "recorded responses whose tokens spell another text behind their prompt: %d of %d (first: %s); give "
                "their tokens (%s), or move a blank from the end of the prompt to the response",
                len(self._respelt), self._seen, self._respelt[0], RESPONSE_IDS,
            )  # fmt: skip
        if self._overlong:
            logger.warning(
                "dropped %d of %s over rollout.max_response_tokens = %d (first: %s)",
                len(self._overlong), counted(self._seen, "recorded response"), self._limit, self._overlong[0],
            )  # fmt: skip

    def _texts(self, place: str, record: dict[str, Any]) -> list[str]:
        name = self._settings.response_field
        if name not in record:
            raise FastflowError(f"{place}: no field {name!r} (data.response_field): {suggest(name, record)}")
        value = record[name]
        texts = value if isinstance(value, list) else [value]
        if not texts:
            raise FastflowError(f"{place}: field {name!r} holds no response; remove the record")
        for text in texts:
            if not isinstance(text, str):
                raise FastflowError(
                    f"{place}: field {name!r} must be a string or a list of strings, not {type(text).__name__}"
                )
        return texts

    def _of_text(self, prompt: Prompt, text: str, reason: FinishReason | None) -> Trajectory:
        place, unknown = prompt.source, self._tokenizer.unk_token_id
        ids = self._behind(prompt, text)
        if not ids:
            raise FastflowError(f"{place}: the response is empty; remove the record or fill the field")
        if unknown is not None and unknown not in self._ends and unknown in ids:
            raise FastflowError(
                f"{place}: the response holds text that the tokenizer does not know ({self._tokenizer.unk_token}); "
                "remove the record, or use the tokenizer that wrote it"
            )
        if reason != "length" and ids[-1] not in self._ends:
            ids = [*ids, cast(int, self._tokenizer.eos_token_id)]
        return self._trajectory(place, np.array(ids, dtype=np.int64), reason or "stop")

    def _behind(self, prompt: Prompt, text: str) -> list[int]:
        """The tokens of a response behind its prompt: the rest of the tokens of both, otherwise the text's own.

        A tokenizer may begin each text with a blank, or join the last character of one with the first of the other.
        """
        before = prompt.ids.tolist()
        spelt = spell(self._tokenizer, before)
        question = prompt.text if prompt.record.get(PROMPT_IDS) is None else spelt
        asked, whole = self._ids(question), self._ids(question + text)
        found = [self._ids(text)]
        if asked and before[-len(asked) :] == asked == whole[: len(asked)] and len(whole) > len(asked):
            found.insert(0, whole[len(asked) :])
        for ids in found:
            if spell(self._tokenizer, [*before, *ids]) == spelt + text:
                return ids
        self._respelt.append(f"{prompt.source}: {spell(self._tokenizer, [*before, *found[0]])[len(spelt) :]!r:.60}")
        return found[0]

    def _ids(self, text: str) -> list[int]:
        return cast("list[int]", self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _of_ids(self, place: str, ids: list[int], reason: FinishReason | None) -> Trajectory:
        ended: FinishReason = "stop" if ids[-1] in self._ends else "length"
        return self._trajectory(place, np.array(ids, dtype=np.int64), reason or ended)

    def _trajectory(self, place: str, ids: Int64[np.ndarray, " R"], reason: FinishReason) -> Trajectory:
        if reason == "length" and int(ids[-1]) in self._ends:
            end = spell(self._tokenizer, ids[-1:].tolist())
            raise FastflowError(
                f"{place}: the response ends with {end}, and its finish_reason is length, which says that it was cut; "
                "remove one of the two"
            )
        return Trajectory(ids, np.full(len(ids), math.nan, dtype=np.float32), reason)


def _prompts(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, settings: DataConfig) -> list[Prompt]:
    """Prompts of all records: by their own tokens where they have them, otherwise as in any other run."""
    given = [PROMPT_IDS in record and record[PROMPT_IDS] is not None for _, record in records]
    if not any(given):
        return tokenize(records, tokenizer, settings)
    if not all(given):
        raise FastflowError(
            f"{records[given.index(False)][0]}: no {PROMPT_IDS}, which other records of the file have; give them to "
            "all or to none"
        )
    for name in ("suffix", "system", "chat_template"):
        if getattr(settings, name):
            raise FastflowError(
                f"data.{name} is set, but the records of {settings.path} hold the tokens of whole prompts "
                f"({PROMPT_IDS}); leave data.{name} out (data.suffix: give null), or remove {PROMPT_IDS}"
            )
    name, limit, prompts = settings.prompt_field, settings.max_prompt_tokens, []
    for place, record in records:
        ids = np.array(_tokens(place, PROMPT_IDS, record[PROMPT_IDS]), dtype=np.int64)
        if not len(ids):
            raise FastflowError(f"{place}: {PROMPT_IDS} is empty; remove the record")
        if len(ids) <= limit:
            prompts.append(Prompt(ids, cast(str, record[name]), record, place))
        elif settings.overlong == "error":
            raise FastflowError(
                f"{place}: the prompt has {len(ids)} tokens, over data.max_prompt_tokens = {limit}; raise the limit, "
                "or set data.overlong = drop"
            )
    if not prompts:
        raise FastflowError(f"every prompt of {settings.path} is over data.max_prompt_tokens = {limit}; raise it")
    if len(prompts) < len(records):
        dropped, of = len(records) - len(prompts), counted(len(records), "prompt")
        logger.warning("dropped %d of %s over data.max_prompt_tokens = %d", dropped, of, limit)
    return prompts


def _tokens(place: str, name: str, value: Any) -> list[int]:
    whole = isinstance(value, list) and all(isinstance(one, int) and not isinstance(one, bool) for one in value)
    if not whole or any(not 0 <= one < 2**31 for one in value):
        raise FastflowError(f"{place}: field {name!r} must be a list of token ids, whole numbers from 0")
    return cast(list[int], value)


def _weight(place: str, record: dict[str, Any]) -> float:
    value = record.get("weight")
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise FastflowError(f"{place}: weight is {value!r}; write a finite number that is not negative")
    return float(value)
